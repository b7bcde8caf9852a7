"""`nnUNetv2_deferral_fuse`: fuse a model's masks with those of its experts, as routed.

Each voxel takes the label of the source it was routed to or, if the model's calibration reads answers as evidence, the
label that is most probable given the answers. Where the asked expert has no label, the model's label is kept;
`fusion.json` counts these voxels for each case.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.answers import evidence_of, who_answered
from nnunetv2_deferral.cases import fuse_evidence
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.files import (
    begin_publication,
    end_publication,
    new_folder,
    unfinished_files,
    write_json,
    written_whole,
)
from nnunetv2_deferral.fusion import fuse_masks, unanswered
from nnunetv2_deferral.image_files import check_written
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.maps import other_masks_text
from nnunetv2_deferral.parts import Part, in_order, read_parts, remove_parts
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.processes import check_processes, map_cases
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.readings import OUTCOMES, readings_summary
from nnunetv2_deferral.text import fingerprint, listed, plural

REPORT_NAME = "fusion.json"


def fuse_folder(
    predictions: Path,
    experts: Path,
    output: Path,
    *,
    dataset_json: Path | None = None,
    overwrite: bool = False,
    evidence: bool | None = None,
    num_processes: int = 1,
    merge: bool = False,
) -> dict[str, Any]:
    """Fuse all cases of a prediction.

    Args:
        predictions: A folder of predictions by a deferral model.
        experts: The folder of the experts' masks, `<experts>/<expert>/<case><file_ending>`, with the expert names of
            deferral.json.
        output: Output folder for `<case><file_ending>` and fusion.json, which appear together once all are complete.
        dataset_json: See :meth:`.PredictionFolder.open`.
        overwrite: Replace existing masks in `output`.
        evidence: Whether answers are read as evidence or replace the model's labels; None for the default, see
            :func:`.evidence_of`.
        num_processes: 1 runs in this process, more in this one and spawned ones.
        merge: Put together what all parts made (:func:`fuse_part`), with the same arguments, instead of fusing.

    Returns:
        The content of fusion.json: `experts`, `answers` (`"evidence"` or `"replace"`), and for each case the number of
        voxels `deferred`, `changed`, `unanswered` (by expert), and `overruled`, whose label is not the expert's; after
        a review with two readers for each region also its `readings`, see :func:`.readings.readings_summary`.

    Raises:
        InputError: For predictions without deferral maps, an expert to whom voxels are routed but who has no masks, a
            mask that does not match its case (shape, geometry, labels), an output folder that already has masks, or
            parts that do not belong together, see :func:`.read_parts`.
    """
    check_processes(num_processes)
    fusion = _Fusion.open(predictions, experts, dataset_json, evidence)
    fusion.check_output(output, overwrite=overwrite)
    with written_whole(output) as scratch:
        cases = fusion.merged(output, scratch) if merge else fusion(fusion.folder.cases, scratch, output, num_processes)
        report = {"experts": list(fusion.folder.experts), "answers": fusion.answered_as, "cases": cases}
        write_json(report, scratch / REPORT_NAME)
        # A call that is killed while the masks move to their places can be repeated, see `check_output`.
        begin_publication(output, [fusion.folder.mask_file(name).name for name in cases])
    end_publication(output)
    if merge:
        remove_parts(output)
    return report


def fuse_part(
    part: Part,
    predictions: Path,
    experts: Path,
    output: Path,
    *,
    dataset_json: Path | None = None,
    overwrite: bool = False,
    evidence: bool | None = None,
    num_processes: int = 1,
) -> Path:
    """Fuse a part of the cases; its masks stay in `output/parts` until :func:`fuse_folder` merges all parts.

    Args:
        part: The part.
        predictions: As of :func:`fuse_folder`, like the others.
        experts: See there.
        output: See there.
        dataset_json: See there.
        overwrite: See there; what an earlier call left of the part is replaced in any case.
        evidence: See there.
        num_processes: See there.

    Returns:
        The file of what the part found.

    Raises:
        InputError: As :func:`fuse_folder`.
    """
    fusion = _Fusion.open(predictions, experts, dataset_json, evidence)
    fusion.check_output(output, overwrite=overwrite)
    part.file(output).unlink(missing_ok=True)  # that of other masks than those to come
    part.folder(output).parent.mkdir(parents=True, exist_ok=True)
    with new_folder(part.folder(output), replaced=True) as scratch:
        found = fusion(part.cases(fusion.folder.cases), scratch, output, num_processes)
    return part.write(found, output, fusion.same_for_all_parts)


@dataclass(frozen=True, kw_only=True)
class _Fusion:
    """What is fused and how; `evidence` is None if answers replace the model's labels."""

    folder: PredictionFolder
    masks: ExpertMasks
    evidence: EvidenceModel | None

    @classmethod
    def open(cls, predictions: Path, experts: Path, dataset_json: Path | None, evidence: bool | None) -> _Fusion:
        folder = PredictionFolder.open(predictions, dataset_json)
        masks = ExpertMasks.of(experts, folder.experts, folder.files)
        masks.check_answers({case: folder.asked(case) for case in folder.cases})
        reading = evidence_of(folder, experts, who_answered(experts, folder.experts), wanted=evidence)
        return cls(folder=folder, masks=masks, evidence=reading)

    @property
    def answered_as(self) -> str:
        return "replace" if self.evidence is None else "evidence"

    @property
    def same_for_all_parts(self) -> dict[str, Any]:
        """What all parts of a fusion must have in common, as JSON."""
        return {
            "predictions": self.folder.index["model"],
            "cases": fingerprint(self.folder.index["cases"]),
            "experts": str(self.masks.folder),
            "state of the experts' masks": self.masks.state,
            "answers": self.answered_as,
            "versions": versions(),
        }

    def check_output(self, output: Path, *, overwrite: bool) -> None:
        """Refuse to replace what is read and, without `overwrite`, masks that are there."""
        read_from = [self.folder.folder, *(self.masks.folder / expert for expert in self.masks.experts)]
        if output.resolve() in [each.resolve() for each in read_from]:
            raise InputError(
                f"the fused masks would overwrite their own inputs in {output}; choose another folder (-o)"
            )
        existing = [case for case in self.folder.cases if (output / self.folder.mask_file(case).name).exists()]
        unfinished = unfinished_files(output)
        if not overwrite and any(self.folder.mask_file(case).name not in unfinished for case in existing):
            raise InputError(
                f"{output} already has masks of {len(existing)} of these cases, the first being {existing[0]}; choose "
                "another folder (-o) or replace them (--overwrite)"
            )

    def __call__(self, cases: Sequence[str], scratch: Path, output: Path, num_processes: int) -> dict[str, Any]:
        """Write the fused masks of some cases to `scratch`; returns their entries in fusion.json."""
        work = partial(_fuse_case, self.folder, self.masks, self.evidence, scratch, output)
        return dict(zip(cases, map_cases(work, cases, num_processes, description="Fusing"), strict=True))

    def merged(self, output: Path, scratch: Path) -> dict[str, Any]:
        """Copy the masks that all parts made to `scratch`; returns the entries of all cases in fusion.json."""
        found = list(read_parts(output, self.same_for_all_parts))
        for number in range(len(found)):
            folder = Part(number=number, of=len(found)).folder(output)
            missing = [name for name in found[number] if not (folder / self.folder.mask_file(name).name).is_file()]
            if missing:
                raise InputError(f"{folder} lacks the masks of {listed(missing)}; make this part again")
            shutil.copytree(folder, scratch, dirs_exist_ok=True)
        return in_order(found, self.folder.cases)


def _fuse_case(
    folder: PredictionFolder,
    masks: ExpertMasks,
    reading: EvidenceModel | None,
    scratch: Path,
    output: Path,
    name: str,
) -> dict[str, Any]:
    """Write the fused mask of a case to `scratch`; returns its entry in fusion.json."""
    case = folder.case(name)
    model, route = case.model, case.route
    answers = masks.answers(name, model.shape, case.properties)
    replaced = fuse_masks(case.current, answers, route)
    system = replaced if reading is None else fuse_evidence(case, answers, reading)
    file = folder.mask_file(name).name
    folder.files.reader.write_seg(system, str(scratch / file), case.properties)
    check_written(scratch / file, output / file)
    silent = unanswered(answers, route)
    missed = np.bincount(route[silent], minlength=len(folder.experts) + 1)[1:]
    settled = masks.settled(name)
    read = {} if settled is None else {"readings": readings_summary(settled.regions)}
    other = {"other_mask": True} if folder.has_other_mask(name) else {}
    return {
        **read,
        **other,
        "deferred": int((route > 0).sum()),
        "changed": int((system != model).sum()),
        "overruled": int((system != replaced).sum()),
        "unanswered": {expert: int(n) for expert, n in zip(folder.experts, missed, strict=True) if n},
    }


def summary(report: dict[str, Any], output: Path) -> str:
    """A summary of the fusion for the terminal."""
    cases = report["cases"]
    deferred, changed, overruled = (
        sum(case[key] for case in cases.values()) for key in ("deferred", "changed", "overruled")
    )
    lines = [
        f"{plural(len(cases), 'case')} fused into {output}: {plural(deferred, 'voxel')} deferred, {changed} changed"
    ]
    if report["answers"] == "evidence":
        lines.append(
            f"  answers were read as evidence and overruled at {plural(overruled, 'voxel')}; with --replace they are "
            "final"
        )
    if others := [name for name, case in cases.items() if case.get("other_mask")]:
        lines.append(f"  CAUTION: {other_masks_text(others)}")
    read = [case["readings"]["outcomes"] for case in cases.values() if "readings" in case]
    if read:
        numbers = ", ".join(f"{sum(each[outcome] for each in read)} {outcome}" for outcome in OUTCOMES)
        lines.append(f"  regions with two readers: {numbers}; where a region is open, the model's label is kept")
    for expert in report["experts"]:
        missed = {name: case["unanswered"][expert] for name, case in cases.items() if expert in case["unanswered"]}
        if missed:
            names = ", ".join(list(missed)[:5]) + (", ..." if len(missed) > 5 else "")
            lines.append(
                f"  {expert} has no label for {plural(sum(missed.values()), 'voxel')} of {plural(len(missed), 'case')} "
                f"({names}); the model's labels are kept"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.fuse()
    given = parser.parse_args(arguments)
    try:
        part = parsers.part_of(given)
        how: dict[str, Any] = {
            "dataset_json": given.djfile,
            "overwrite": given.overwrite,
            "evidence": given.evidence,
            "num_processes": given.np,
        }
        if part.of > 1:
            print(fuse_part(part, given.i, given.experts, given.o, **how))
            return
        report = fuse_folder(given.i, given.experts, given.o, merge=given.merge, **how)
    except InputError as error:
        parser.error(str(error))
    print(summary(report, given.o))
