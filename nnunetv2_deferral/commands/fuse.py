"""`nnUNetv2_deferral_fuse`: fuse a model's masks with those of its experts, as routed.

Each voxel takes the label of the source it was routed to or, if the model's calibration reads answers as evidence, the
label that is most probable given the answers. Where the asked expert has no label, the model's label is kept;
`fusion.json` counts these voxels for each case.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.answers import evidence_of, who_answered
from nnunetv2_deferral.cases import fuse_evidence
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.files import begin_publication, end_publication, unfinished_files, write_json, written_whole
from nnunetv2_deferral.fusion import fuse_masks, unanswered
from nnunetv2_deferral.image_files import check_written
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.processes import check_processes, map_cases
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.readings import OUTCOMES, readings_summary

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
        num_processes: 1 runs in this process, more in as many spawned ones.

    Returns:
        The content of fusion.json: `experts`, `answers` (`"evidence"` or `"replace"`), and for each case the number of
        voxels `deferred`, `changed`, `unanswered` (by expert), and `overruled`, whose label is not the expert's; after
        a review with two readers for each region also its `readings`, see :func:`.readings.readings_summary`.

    Raises:
        InputError: For predictions without deferral maps, an expert to whom voxels are routed but who has no masks, a
            mask that does not match its case (shape, geometry, labels), or an output folder that already has masks.
    """
    check_processes(num_processes)
    folder = PredictionFolder.open(predictions, dataset_json)
    masks = ExpertMasks.of(experts, folder.experts, folder.files)
    masks.check_answers({case: folder.asked(case) for case in folder.cases})
    _check_output(folder, masks, output, overwrite=overwrite)
    reading = evidence_of(folder, experts, who_answered(experts, folder.experts), wanted=evidence)
    answered_as = "replace" if reading is None else "evidence"
    with written_whole(output) as scratch:
        work = partial(_fuse_case, folder, masks, reading, scratch, output)
        found = map_cases(work, folder.cases, num_processes, description="Fusing")
        cases = dict(zip(folder.cases, found, strict=True))
        report = {"experts": list(folder.experts), "answers": answered_as, "cases": cases}
        write_json(report, scratch / REPORT_NAME)
        # A call that is killed while the masks move to their places can be repeated, see `_check_output`.
        begin_publication(output, [folder.mask_file(name).name for name in cases])
    end_publication(output)
    return report


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
    return {
        **read,
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
    lines = [f"{len(cases)} cases fused into {output}: {deferred} voxels deferred, {changed} changed"]
    if report["answers"] == "evidence":
        lines.append(
            f"  answers were read as evidence and overruled at {overruled} voxels; with --replace they are final"
        )
    read = [case["readings"]["outcomes"] for case in cases.values() if "readings" in case]
    if read:
        numbers = ", ".join(f"{sum(each[outcome] for each in read)} {outcome}" for outcome in OUTCOMES)
        lines.append(f"  regions with two readers: {numbers}; where a region is open, the model's label is kept")
    for expert in report["experts"]:
        missed = {name: case["unanswered"][expert] for name, case in cases.items() if expert in case["unanswered"]}
        if missed:
            names = ", ".join(list(missed)[:5]) + (", ..." if len(missed) > 5 else "")
            lines.append(
                f"  {expert} has no label for {sum(missed.values())} voxels of {len(missed)} cases ({names}); the "
                "model's labels are kept"
            )
    return "\n".join(lines)


def _check_output(folder: PredictionFolder, masks: ExpertMasks, output: Path, *, overwrite: bool) -> None:
    read_from = [folder.folder, *(masks.folder / expert for expert in masks.experts)]
    if output.resolve() in [each.resolve() for each in read_from]:
        raise InputError(f"the fused masks would overwrite their own inputs in {output}; choose another folder (-o)")
    existing = [case for case in folder.cases if (output / folder.mask_file(case).name).exists()]
    unfinished = unfinished_files(output)
    if any(folder.mask_file(case).name not in unfinished for case in existing) and not overwrite:
        raise InputError(
            f"{output} already has masks of {len(existing)} of these cases, the first being {existing[0]}; choose "
            "another folder (-o) or replace them (--overwrite)"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.fuse()
    given = parser.parse_args(arguments)
    try:
        report = fuse_folder(
            given.i,
            given.experts,
            given.o,
            dataset_json=given.djfile,
            overwrite=given.overwrite,
            evidence=given.evidence,
            num_processes=given.np,
        )
    except InputError as error:
        parser.error(str(error))
    print(summary(report, given.o))
