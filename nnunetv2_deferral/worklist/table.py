"""The deferred regions of any number of cases in a few bytes each, from which those of a worklist are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.decision.effort import WorkTime, best_within_limits, measure_case
from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.processes import map_cases

ROW = np.dtype(
    [
        ("case", "<i4"),  # index of its case
        ("number", "<i4"),
        ("expert", "u1"),
        ("voxels", "<i8"),
        ("expected_gain", "<f8"),
        ("minutes", "<f8"),
    ]
)


def region_rows(folder: PredictionFolder, cases: Sequence[str], time: WorkTime, *, num_processes: int) -> np.ndarray:
    """All regions of some cases of a folder, with one case in memory at a time and process.

    Returns:
        Of shape (N,), with the fields of :class:`.WorkItem` that a list is chosen by, in the order of case and region.
        `case` is the index among all cases of the folder.
    """
    places = {case: place for place, case in enumerate(folder.cases)}
    work = partial(_rows, folder, time)
    numbered = [(case, places[case]) for case in cases]
    found = map_cases(work, numbered, num_processes, description="Reading the maps")
    return np.concatenate([np.zeros(0, ROW), *found])


def table_of(case: PredictedCase, time: WorkTime, *, unit: str, place: int = 0) -> np.ndarray:
    """The rows (N,) of the regions of a case, as :func:`.find_items` finds them; of its maps only what rows need.

    Args:
        case: The case, with arrays of three axes.
        time: Working time of regions.
        unit: Unit of its spacing, `"mm"` or `"pixels"`.
        place: The index of the case.
    """
    labels = region_labels(case.route)
    found = measure_case(case, labels, time, unit=unit)
    rows = np.zeros(len(found.voxels), ROW)
    rows["case"] = place
    rows["number"] = np.arange(1, len(rows) + 1)
    rows["expert"][labels[labels > 0] - 1] = case.route[labels > 0]
    for name in ("voxels", "expected_gain", "minutes"):
        rows[name] = getattr(found, name)
    return rows


def choose_rows(table: np.ndarray, *, max_regions: int | None, max_minutes: float | None) -> np.ndarray:
    """The rows of the regions to look at, in their order, as :func:`.choose` chooses them.

    Raises:
        InputError: If a limit is negative, or not finite.
    """
    table = table[np.lexsort((table["number"], table["case"]))]
    rates = table["expected_gain"] / table["minutes"]
    return table[best_within_limits(rates, table["minutes"], max_regions=max_regions, max_minutes=max_minutes)]


def totals(table: np.ndarray) -> dict[str, Any]:
    """Number of `cases` and `regions`, and their total `voxels`, `minutes` and `expected_gain`."""
    return {
        "cases": len(np.unique(table["case"])),
        "regions": len(table),
        "voxels": int(table["voxels"].sum()),
        "minutes": math.fsum(table["minutes"]),
        "expected_gain": math.fsum(table["expected_gain"]),
    }


def _rows(folder: PredictionFolder, time: WorkTime, numbered: tuple[str, int]) -> np.ndarray:
    name, place = numbered
    return table_of(folder.case(name), time, unit=folder.files.unit, place=place)
