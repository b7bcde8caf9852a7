"""Evaluation of a folder of predictions: case by case, in several processes, or in parts that are put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, get_args

from tqdm import tqdm

from nnunetv2_deferral.answers import Confidence, ReviewIndex
from nnunetv2_deferral.decision.limits import limits_text
from nnunetv2_deferral.defaults import BUDGETS
from nnunetv2_deferral.evaluation.evaluation import Evaluation
from nnunetv2_deferral.evaluation.inputs import EvaluationInputs
from nnunetv2_deferral.evaluation.kept_errors import CertificateCheck
from nnunetv2_deferral.files import state_of
from nnunetv2_deferral.folds import are_mirrored
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.maps import PREDICTED_DICE
from nnunetv2_deferral.names import REVIEW_NAME
from nnunetv2_deferral.parts import pieces
from nnunetv2_deferral.processes import map_cases
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.readings import RegionReadings, readings_summary
from nnunetv2_deferral.schema import read_validated_json
from nnunetv2_deferral.text import fingerprint


@dataclass(frozen=True, kw_only=True)
class EvaluatedPart:
    """What was found in some of the cases.

    Attributes:
        evaluation: Their evaluation.
        check: The comparison of the calibration's certificate with them; None without a certificate.
        other_masks: Those whose mask was not predicted with their maps, see :meth:`.PredictionFolder.has_other_mask`.
    """

    evaluation: Evaluation
    check: CertificateCheck | None
    other_masks: tuple[str, ...]

    @classmethod
    def merged(cls, parts: Iterable[EvaluatedPart], cases: Sequence[str]) -> EvaluatedPart:
        """The same for the cases of all parts, of which two are held in memory at a time.

        Args:
            parts: The parts.
            cases: Their cases, in the order that they shall have.
        """

        def both(first: EvaluatedPart, second: EvaluatedPart) -> EvaluatedPart:
            checks = [part.check for part in (first, second) if part.check is not None]
            return cls(
                evaluation=Evaluation.merged([first.evaluation, second.evaluation], cases),
                check=CertificateCheck.merged(checks) if checks else None,
                other_masks=first.other_masks + second.other_masks,
            )

        return reduce(both, parts)


def evaluate(
    inputs: EvaluationInputs,
    *,
    budgets: Sequence[float] = BUDGETS,
    groups: Mapping[str, Any] | None = None,
    domains: Mapping[str, Any] | None = None,
    bootstrap_seed: int = 0,
    surface_tolerance: float | None = None,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Evaluate all cases, with one case in memory at a time and process.

    Args:
        inputs: The inputs.
        budgets: The budgets at which rankings are compared.
        groups: For each case its group in the bootstrap, such as its patient; None for each case by itself.
        domains: For each case its domain, such as its hospital; None for no comparison of domains.
        bootstrap_seed: Seed of the bootstrap.
        surface_tolerance: See :func:`.summarize_deferral`.
        num_processes: 1 runs in this process, more in this one and spawned ones.

    Returns:
        The content of `deferral_summary.json`, see docs/reference/evaluation.md.
    """
    cases = inputs.predictions.cases
    found = evaluate_cases(
        inputs,
        cases,
        groups=groups,
        domains=domains,
        surface_tolerance=surface_tolerance,
        num_processes=num_processes,
    )
    return summarize(inputs, found, budgets=budgets, groups=groups, domains=domains, bootstrap_seed=bootstrap_seed)


def evaluate_cases(
    inputs: EvaluationInputs,
    cases: Sequence[str],
    *,
    groups: Mapping[str, Any] | None = None,
    domains: Mapping[str, Any] | None = None,
    surface_tolerance: float | None = None,
    num_processes: int = 1,
) -> EvaluatedPart:
    """Evaluate some of the cases; arguments as those of :func:`evaluate`."""
    if inputs.experts.masks is not None:  # a damaged record of a review is refused before the work, not after it
        review_effort(inputs.experts.masks, inputs.experts.names, cases)
    work = partial(_evaluate_one_by_one, inputs, groups, domains, surface_tolerance)
    if min(num_processes, len(cases)) <= 1:
        return work(cases, shown=True)
    found = map_cases(work, pieces(cases, num_processes), num_processes, description="Evaluating", size=len)
    return EvaluatedPart.merged(found, cases)


def _evaluate_one_by_one(
    inputs: EvaluationInputs,
    groups: Mapping[str, Any] | None,
    domains: Mapping[str, Any] | None,
    surface_tolerance: float | None,
    cases: Sequence[str],
    *,
    shown: bool = False,
) -> EvaluatedPart:
    folder = inputs.predictions
    calibration = folder.calibration
    evaluation = Evaluation(
        folder.files.regions,
        inputs.experts.names,
        unavailable=folder.settings.unavailable,
        has_regions=folder.files.label_manager.has_regions,
        calibration=None if calibration is None else calibration.heads,
        confidence=None if calibration is None else calibration.confidence,
        surface_tolerance=surface_tolerance,
    )
    certificate = None if calibration is None else calibration.certificate
    seen = () if calibration is None else calibration.seen
    check = None if certificate is None else CertificateCheck(certificate, groups, folder.prediction, seen)
    for name in tqdm(cases, desc="Evaluating", unit="case", disable=not shown):
        case = inputs.read(name)
        evaluation.update(
            case,
            None if domains is None else str(domains[name]),
            group=None if groups is None else str(groups[name]),
            predicted_dice=folder.index["cases"][name].get(PREDICTED_DICE),
        )
        if check is not None:
            check.update(case, folder.limits(name))
    other_masks = tuple(name for name in cases if folder.has_other_mask(name))
    return EvaluatedPart(evaluation=evaluation, check=check, other_masks=other_masks)


def summarize(
    inputs: EvaluationInputs,
    found: EvaluatedPart,
    *,
    budgets: Sequence[float] = BUDGETS,
    groups: Mapping[str, Any] | None = None,
    domains: Mapping[str, Any] | None = None,
    bootstrap_seed: int = 0,
) -> dict[str, Any]:
    """The content of `deferral_summary.json`, given what was found in all cases; otherwise as :func:`evaluate`."""
    folder, experts = inputs.predictions, inputs.experts
    summary = found.evaluation.summary(budgets=budgets, groups=groups, seed=bootstrap_seed)
    limits: dict[str, set[float | None]] = {}
    for case, domain in (domains or {}).items():
        limits.setdefault(str(domain), set()).add(folder.limits(case).budget)
    for name, found_there in (summary["domains"] or {}).items():
        found_there["budget"] = next(iter(limits[name])) if len(limits[name]) == 1 else None
    return summary | {
        "experts": experts.to_dict(),
        "answers": "replace" if inputs.evidence is None else "evidence",
        "ranking": None if folder.calibration is None else folder.calibration.report.get("ranking"),
        "certificate": None if found.check is None else found.check.summary(),
        "review": None if experts.masks is None else review_effort(experts.masks, experts.names, folder.cases),
        "readings": None if experts.masks is None else readings_of(experts.masks, folder.cases),
        "model_identity": folder.index["model"],
        "other_masks": sorted(found.other_masks),
        "calibrated_on": [] if folder.calibration is None else sorted(folder.calibration.seen & {*folder.cases}),
        "unit": folder.files.unit,
        "members": _members(inputs),
        "limits": sorted({limits_text(folder.limits(case), folder.experts) for case in folder.cases}),
        "versions": versions(),
    }


def _members(inputs: EvaluationInputs) -> str | None:
    """Whose masks disagree in the scores of cases, `folds` or `mirrored predictions`; None without such masks."""
    if not inputs.fold_folders:
        return None
    return "mirrored predictions" if are_mirrored(inputs.fold_folders) else "folds"


def same_for_all_parts(
    inputs: EvaluationInputs,
    *,
    groups: Mapping[str, Any] | None,
    domains: Mapping[str, Any] | None,
    surface_tolerance: float | None,
) -> dict[str, Any]:
    """What all parts of an evaluation must have in common, as JSON."""
    folder = inputs.predictions
    return {
        "predictions": folder.index["model"],
        "cases": fingerprint(folder.index["cases"]),
        "references": str(inputs.references),
        "state of the references": state_of([inputs.references]),
        "state of the experts' masks": None if inputs.experts.masks is None else inputs.experts.masks.state,
        "experts": inputs.experts.to_dict(),
        "answers": "replace" if inputs.evidence is None else "evidence",
        "probabilities": inputs.has_probabilities,
        "routing probabilities": inputs.has_routing,
        "tolerance of surfaces": surface_tolerance,
        "folds": [str(each) for each in inputs.fold_folders],
        "mutual information": inputs.has_information,
        "groups": None if groups is None else fingerprint(groups),
        "domains": None if domains is None else fingerprint(domains),
        "versions": versions(),
    }


def readings_of(masks: ExpertMasks, cases: Sequence[str]) -> dict[str, Any] | None:
    """The readings of a review with two readers for each region.

    Args:
        masks: The experts' masks.
        cases: The evaluated cases.

    Returns:
        The `rules` of the review, :func:`.readings_summary` of all regions as `all` and of each pair of readers in
        `pairs` (`readers`, in alphabetical order, and the summary); None if one expert reads each region.

    Raises:
        InputError: If a file of the review is damaged or out of date, see :meth:`.ExpertMasks.settled`.
    """
    rules = masks.rules
    if rules is None:
        return None
    regions = [region for case in cases if (settled := masks.settled(case)) for region in settled.regions]
    pairs: dict[tuple[str, ...], list[RegionReadings]] = {}
    for region in regions:
        pairs.setdefault(tuple(sorted(region["readers"])), []).append(region)
    return {
        "rules": vars(rules),
        "all": readings_summary(regions),
        "pairs": [{"readers": list(names), **readings_summary(pairs[names])} for names in sorted(pairs)],
    }


def review_effort(masks: ExpertMasks, names: Sequence[str], cases: Sequence[str]) -> dict[str, Any] | None:
    """The experts' effort, if their answers were given on the review page.

    Args:
        masks: The experts' masks.
        names: The names of the experts; an adjudicator is added.
        cases: The evaluated cases.

    Returns:
        For each expert the number of these `cases` submitted, their `regions`, the `voxels` asked about,
        `changed_voxels`, `cannot_tell_voxels`, `assumed_voxels`, the `minutes` worked, in how many regions the expert
        stated which `confidence`, and `flags`, the places that the expert flagged outside of their regions (`case`,
        `voxel` [x, y, z], `comment`). Assumed are the voxels that the expert could not tell or that were not on the
        worklist, if the dataset has no ignore label: the masks have the model's labels there, which count as answers.
        None if the folder has no review.json.

    Raises:
        InputError: If review.json cannot be read or is not as :class:`ReviewIndex`.
    """
    if not masks.is_review:
        return None
    rules = masks.rules
    if rules is not None and rules.adjudicator is not None:
        names = [*names, rules.adjudicator]
    records = read_validated_json(masks.folder / REVIEW_NAME, ReviewIndex)["cases"]
    made = {name: {case: records[case][name] for case in cases if name in records.get(case, {})} for name in names}
    keys = ("regions", "voxels", "changed_voxels", "cannot_tell_voxels", "minutes")
    assumed = ("cannot_tell_voxels", "left_out_voxels") if masks.ignore_label is None else ()
    return {
        name: {
            "cases": len(found),
            **{key: sum(record.get(key, 0) for record in found.values()) for key in keys},
            "assumed_voxels": sum(record.get(key, 0) for record in found.values() for key in assumed),
            "confidence": _stated(record.get("confidence", {}) for record in found.values()),
            "flags": [
                {"case": case, "voxel": flag["voxel"], "comment": flag["comment"]}
                for case, record in found.items()
                for flag in record.get("flags", ())
            ],
        }
        for name, found in made.items()
    }


def _stated(confidences: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """The number of regions with each confidence, given it by region for each case."""
    stated = Counter(value for by_region in confidences for value in by_region.values())
    return {each: stated[each] for each in get_args(Confidence)}
