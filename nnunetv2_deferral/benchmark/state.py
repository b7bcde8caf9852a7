"""The progress of a fold, determined from the files in its folder.

nnU-Net writes checkpoints, summaries and masks in place, so an interruption can leave any of them truncated. A
checkpoint is a zip whose directory is written last, and summary.json is written after all masks; completeness is
determined from these.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

from typing_extensions import TypedDict

from nnunetv2_deferral import maps
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import is_deferral_model
from nnunetv2_deferral.schema import Text, read_validated_json
from nnunetv2_deferral.text import listed

FINAL = "checkpoint_final.pth"
# In the order in which nnU-Net looks for a checkpoint to continue from.
_UNFINISHED = ("checkpoint_latest.pth", "checkpoint_best.pth")


class _Row(TypedDict):
    prediction_file: Text
    metrics: dict[Text, dict[Text, Any]]


class _Summary(TypedDict):
    metric_per_case: list[_Row]


class Stage(Enum):
    """The next step of a fold."""

    START = "nothing is trained"
    RESUME = "the training is not finished"
    VALIDATE = "the validation is not complete"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class FoldState:
    """The state of a fold.

    Attributes:
        stage: The next step.
        problem: A message about what is missing; empty when done.
        broken: Truncated checkpoints.
    """

    stage: Stage
    problem: str = ""
    broken: tuple[Path, ...] = ()


def fold_state(folder: Path, cases: Sequence[str], file_ending: str) -> FoldState:
    """The state of a fold.

    Args:
        folder: The folder of the fold, which need not exist.
        cases: Its validation cases.
        file_ending: The dataset's file ending.
    """
    checkpoints = [folder / name for name in (FINAL, *_UNFINISHED)]
    there = [file for file in checkpoints if file.is_file()]
    broken = tuple(file for file in there if not zipfile.is_zipfile(file))
    whole = [file.name for file in there if file not in broken]
    if FINAL in whole:
        problem = validation_problem(folder, cases, file_ending)
        return FoldState(stage=Stage.VALIDATE if problem else Stage.DONE, problem=problem, broken=broken)
    cut = f"; truncated: {listed(map(str, broken))}" if broken else ""
    if whole:
        return FoldState(
            stage=Stage.RESUME, problem=f"{folder} was not trained to the end ({FINAL} is missing{cut})", broken=broken
        )
    return FoldState(stage=Stage.START, problem=f"{folder} was not trained{cut}", broken=broken)


def validation_problem(fold: Path, cases: Sequence[str], file_ending: str) -> str:
    """A message about what is missing in the validation of a fold; empty if it is complete."""
    folder = fold / "validation"
    if not (folder / "summary.json").is_file():
        return f"{folder} has no summary.json: the validation is missing or was interrupted"
    try:
        scored = set(read_summary(folder, file_ending))
        deferral = is_deferral_model(fold.parent)
        entered = set(maps.read_index(folder)["cases"]) if deferral else set(cases)
    except InputError as error:
        return f"{folder} is not complete: {error}"
    if missing := [case for case in cases if case not in scored]:
        return f"{folder / 'summary.json'} lacks {len(missing)} of the fold's {len(cases)} cases: {listed(missing)}"
    if missing := [case for case in cases if case not in entered]:
        return f"{maps.entries_folder(folder)} lacks {len(missing)} of the fold's {len(cases)} cases: {listed(missing)}"
    files = [folder / f"{case}{file_ending}" for case in cases]
    if deferral:
        kinds = maps.kinds_of(maps.read_model(folder))
        files += [maps.MAP_FILES[kind](folder, case, file_ending) for case in cases for kind in kinds]
    if empty := [str(file) for file in files if not file.is_file() or not file.stat().st_size]:
        return f"{len(empty)} files are missing or empty: {listed(empty, 3)}"
    return ""


def read_summary(folder: Path, file_ending: str) -> dict[str, dict[str, Any]]:
    """The scores in the summary.json of a folder of predictions: by case, for each label or region.

    Raises:
        InputError: If the file is missing, cannot be read, or has another content.
    """
    rows = cast(_Summary, read_validated_json(folder / "summary.json", _Summary))["metric_per_case"]
    return {Path(row["prediction_file"]).name.removesuffix(file_ending): row["metrics"] for row in rows}


def other_cases(fold: Path, cases: Sequence[str], file_ending: str) -> list[str]:
    """The cases in the validation folder that do not belong to the fold, sorted."""
    files = (fold / "validation").glob(f"*{file_ending}")
    found = {file.name.removesuffix(file_ending) for file in files if not file.name.startswith(".")}
    return sorted(found - set(cases))
