"""The deferred regions of any number of cases in a few bytes each, from which those of a worklist are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from nnunetv2_deferral.decision.effort import WorkTime, best_within_limits
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.processes import map_cases
from nnunetv2_deferral.worklist.items import WorkItem, find_items

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


def find_regions(folder: PredictionFolder, cases: Sequence[str], time: WorkTime, *, num_processes: int) -> np.ndarray:
    """All regions of some cases of a folder, with one case in memory at a time and process.

    Returns:
        Of shape (N,), with the fields of :class:`.WorkItem` that a list is chosen by, in the order of case and region.
        `case` is the index among all cases of the folder.
    """
    found = map_cases(partial(_items, folder, time), cases, num_processes, description="Reading the maps")
    places = {case: place for place, case in enumerate(folder.cases)}
    rows = [table_of(items, places[case]) for case, items in zip(cases, found, strict=True)]
    return np.concatenate([np.zeros(0, ROW), *rows])


def table_of(items: Sequence[WorkItem], place: int = 0) -> np.ndarray:
    """The rows (N,) of the regions of the case with this index."""
    rows = [
        (place, each.number, each.region.expert, each.region.voxels, each.expected_gain, each.minutes) for each in items
    ]
    return np.array(rows, dtype=ROW)


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


def _items(folder: PredictionFolder, time: WorkTime, case: str) -> list[WorkItem]:
    # The disagreement is for the rows of the list, and not read of all cases of an archive.
    return find_items(folder.case(case).without("disagreement"), time, unit=folder.files.unit)
