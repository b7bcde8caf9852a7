"""Step 3: the fused mask, its changes and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_deferral.cases import fuse_evidence
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.evaluation.overlap import overlap
from nnunetv2_deferral.fusion import fuse_masks, unanswered
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.readings import read_settled
from nnunetv2_deferral.review.store import ReviewStore
from nnunetv2_deferral.review.study import ReviewedCase, Study


def fused_mask(study: Study, store: ReviewStore, case: ReviewedCase, *, has_two_readers: bool = False) -> np.ndarray:
    """The model's mask fused with the submitted answers as by `nnUNetv2_deferral_fuse`, (Z, Y, X)."""
    return fuse_masks(case.model, _answers(study, store, case, has_two_readers=has_two_readers), case.route)


def case_result(
    study: Study, store: ReviewStore, case: ReviewedCase, *, scores: bool, has_two_readers: bool = False
) -> dict[str, Any]:
    """Changes, experts and, if there is a reference, scores of a case.

    Args:
        study: The study.
        store: The answers.
        case: The case.
        scores: Whether scores are wanted.
        has_two_readers: Whether two experts read each region, so that what they settled counts.

    Returns:
        `experts` (one entry per expert: voxels, regions, whether submitted, changed voxels, minutes),
        `deferred_voxels`, `left_out_voxels` (deferred but not on the worklist), `changed_voxels`, `unanswered_voxels`
        (of those that experts are asked about), `overruled_voxels` (whose answer the model and the answers around would
        overrule if answers were read as evidence; None if the model has no evidence model of raters), and `scores` (a
        list of region, Dice of the model and Dice of the system; None without a reference or if not wanted); with
        scores also `corrected_voxels` and `spoiled_voxels`.
    """
    name, info = case.name, study.info(case.name)
    answers = _answers(study, store, case, has_two_readers=has_two_readers)
    fused = fuse_masks(case.model, answers, case.route)
    experts = []
    changed = (fused != case.model)[case.route > 0]
    for number, expert in enumerate(study.experts, start=1):
        asked = np.isin(case.regions, case.of_reader(number))
        experts.append(
            {
                "expert": expert,
                "voxels": info.voxels[number - 1],
                "regions": info.regions[number - 1],
                "submitted": store.is_submitted(expert, name),
                "changed_voxels": int((asked & changed).sum()),
                "minutes": (store.record(expert, name) or {}).get("minutes"),
            }
        )
    result: dict[str, Any] = {
        "experts": experts,
        "deferred_voxels": int((case.route > 0).sum()) + sum(case.left_out),
        "left_out_voxels": sum(case.left_out),
        "changed_voxels": int((fused != case.model).sum()),
        "unanswered_voxels": int(unanswered(answers, case.route).sum()),
        "overruled_voxels": _overruled(study, case, answers, fused),
        "scores": None,
    }
    reference = study.reference(name) if scores else None
    if reference is not None:
        result |= _scores(study.predictions.files, reference, case.model, fused)
    return result


def total_result(study: Study, store: ReviewStore) -> dict[str, Any]:
    """Totals of each expert: cases, voxels and minutes, requested and submitted."""
    experts = []
    for place, expert in enumerate(study.experts):
        cases = [info for info in study.infos.values() if info.voxels[place]]
        records = [store.record(expert, info.name) for info in cases]
        made = [record for record in records if record is not None]
        submitted = sum(store.is_submitted(expert, info.name) for info in cases)
        voxels = sum(info.voxels[place] for info in cases)
        experts.append(total_of(expert, len(cases), voxels, made, num_submitted=submitted))
    return {"experts": experts}


def total_of(
    name: str, num_cases: int, voxels: int, records: Sequence[Mapping[str, Any]], *, num_submitted: int
) -> dict[str, Any]:
    """The total of a person who is asked about so many cases and voxels, given the records of their submissions."""
    return {
        "expert": name,
        "cases": num_cases,
        "submitted": num_submitted,
        "voxels": voxels,
        "answered_voxels": sum(record["voxels"] for record in records),
        "changed_voxels": sum(record["changed_voxels"] for record in records),
        "minutes": sum(record["minutes"] for record in records),
    }


def _scores(files: DatasetFiles, reference: np.ndarray, model: np.ndarray, fused: np.ndarray) -> dict[str, Any]:
    ignore = files.label_manager.ignore_label
    valid = np.ones(reference.shape, dtype=bool) if ignore is None else reference != ignore
    before = overlap(reference, model, files.regions, valid)
    after = overlap(reference, fused, files.regions, valid)
    names = {str(label): name for label, name in files.label_names.items()}
    return {
        "scores": [
            {"region": names.get(region, region), "model": before[region]["Dice"], "system": after[region]["Dice"]}
            for region in before
        ],
        "corrected_voxels": int((valid & (model != reference) & (fused == reference)).sum()),
        "spoiled_voxels": int((valid & (model == reference) & (fused != reference)).sum()),
    }


def _overruled(study: Study, case: ReviewedCase, answers: np.ndarray, fused: np.ndarray) -> int | None:
    calibration = study.predictions.calibration
    fitted = None if calibration is None else calibration.evidence
    if fitted is None or not fitted.applies_to(study.experts):
        return None
    to_file = case.orientation.to_file
    predicted = study.predictions.case(case.name)
    read = fuse_evidence(predicted, to_file(answers), fitted.model, to_file(case.route))
    return int((read != to_file(fused)).sum())


def _answers(study: Study, store: ReviewStore, case: ReviewedCase, *, has_two_readers: bool) -> np.ndarray:
    if has_two_readers:  # what was settled last, also while masks are being submitted
        answers = np.full((len(study.experts), *case.route.shape), MISSING, dtype=np.int16)
        if (settled := read_settled(store.folder, case.name)) is not None:
            answers[:] = case.orientation.to_canonical(settled.labels)
        return answers
    masks = ExpertMasks.of(store.folder, study.experts, study.predictions.files)
    shape = case.orientation.to_file(case.model).shape
    return case.orientation.to_canonical(masks.answers(case.name, shape, case.properties))
