"""`nnUNetv2_deferral_fuse`: the system's masks, from the masks and routes of a model and the masks of its experts.

The rule is that of training: every voxel is answered by whom it was routed to. Where the expert who was asked has no
label, the model's stays, and `fusion.json` says how many voxels of which case that concerns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json, written_whole
from nnunetv2_deferral.fusion import fuse_masks, unanswered
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import ExpertMasks

COMMAND = "nnUNetv2_deferral_fuse"
REPORT_NAME = "fusion.json"


def fuse_folder(
    predictions: Path, experts: Path, output: Path, *, dataset_json: Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Fuse all cases of a prediction.

    Args:
        predictions: A folder that a deferral model has predicted into.
        experts: The experts' masks, `<experts>/<expert>/<case><file_ending>`, with the names of deferral.json.
        output: Where `<case><file_ending>` and fusion.json go. They appear together, when the last is complete.
        dataset_json: See :meth:`.PredictionFolder.open`.
        overwrite: Replace masks that are in `output` already.

    Returns:
        What was written to fusion.json: `experts`, and for every case the number of voxels `deferred`, `changed` by
        it, and `unanswered` by expert.

    Raises:
        InputError: For predictions without deferral maps, an expert who was asked and has no masks at all, a mask that
            does not fit its case (shape, geometry, labels), or an output folder that holds something already.
    """
    folder = PredictionFolder.open(predictions, dataset_json)
    masks = ExpertMasks.of(experts, folder.experts, folder.files)
    masks.check_asked(folder.asked())
    _check_output(folder, masks, output, overwrite=overwrite)
    cases: dict[str, Any] = {}
    report = {"experts": list(folder.experts), "cases": cases}
    with written_whole(output) as scratch:
        for name in tqdm(folder.cases, desc="Fusing", unit="case"):
            case = folder.case(name)
            model, route = case.model, case.route
            answers = masks.answers(name, model.shape, case.properties)
            system = fuse_masks(model, answers, route)
            folder.files.reader.write_seg(system, str(scratch / folder.mask_file(name).name), case.properties)
            missed = np.bincount(route[unanswered(answers, route)], minlength=len(folder.experts) + 1)[1:]
            cases[name] = {
                "deferred": int((route > 0).sum()),
                "changed": int((system != model).sum()),
                "unanswered": {expert: int(n) for expert, n in zip(folder.experts, missed, strict=True) if n},
            }
        write_json(report, scratch / REPORT_NAME)
    return report


def summary(report: dict[str, Any], output: Path) -> str:
    """What was done, for people."""
    cases = report["cases"]
    deferred, changed = (sum(case[key] for case in cases.values()) for key in ("deferred", "changed"))
    lines = [f"{len(cases)} cases fused into {output}: {deferred} voxels deferred, {changed} changed"]
    for expert in report["experts"]:
        missed = {name: case["unanswered"][expert] for name, case in cases.items() if expert in case["unanswered"]}
        if missed:
            names = ", ".join(list(missed)[:5]) + (", ..." if len(missed) > 5 else "")
            lines.append(
                f"  {expert} has no label for {sum(missed.values())} voxels of {len(missed)} cases ({names}): the "
                "model's stay"
            )
    return "\n".join(lines)


def _check_output(folder: PredictionFolder, masks: ExpertMasks, output: Path, *, overwrite: bool) -> None:
    read_from = [folder.folder, *(masks.folder / expert for expert in masks.experts)]
    if output.resolve() in [each.resolve() for each in read_from]:
        raise InputError(
            f"the fused masks would replace those they are made of in {output}: choose another folder (-o)"
        )
    existing = [case for case in folder.cases if (output / folder.mask_file(case).name).exists()]
    if existing and not overwrite:
        raise InputError(
            f"{output} holds masks of {len(existing)} of these cases already, the first of {existing[0]}; choose "
            "another folder (-o), or replace them (--overwrite)"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends with one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Fuse the masks of a deferral model with those of its experts, voxel by voxel as the model routed "
        "them. Masks of experts are found as EXPERTS/<expert>/<case>, with the names of the model's experts.",
    )
    parser.add_argument("-i", metavar="PREDICTIONS", type=Path, required=True, help="folder of masks and deferral maps")
    parser.add_argument("-experts", metavar="EXPERTS", type=Path, required=True, help="folder of the experts' masks")
    parser.add_argument("-o", metavar="OUT", type=Path, required=True, help="output folder for the fused masks")
    parser.add_argument("-djfile", metavar="DATASET_JSON", type=Path, help="default: the one beside the predictions")
    parser.add_argument("--overwrite", action="store_true", help="replace masks that are there already")
    given = parser.parse_args(arguments)
    try:
        report = fuse_folder(given.i, given.experts, given.o, dataset_json=given.djfile, overwrite=given.overwrite)
    except InputError as error:
        parser.error(str(error))
    print(summary(report, given.o))
