"""A budget of minutes over all cases of a folder: what is not worth its time is not asked about.

Cases are decided one by one, and only after the last is it known which regions are worth the time. Until then their
entries have a limit of minutes but no `minutes`, and :func:`.maps.read_index` refuses the folder. A choice that was
interrupted may be repeated: regions that were left out before would be left out again.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral import maps
from nnunetv2_deferral.decision.effort import Measured, WorkTime, best_within_limits, measure_case
from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.defaults import MEASURED_BY
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.image_files import write_labels
from nnunetv2_deferral.predictions import PredictionFolder


class Kept(NamedTuple):
    """What is asked about within a budget of minutes.

    Attributes:
        regions: The number of regions.
        of_regions: The number of regions before the choice.
        minutes: Their working time.
        of_minutes: The working time of all regions before the choice.
        voxels: Their number of voxels.
    """

    regions: int
    of_regions: int
    minutes: float
    of_minutes: float
    voxels: int

    def __str__(self) -> str:
        return (
            f"{self.regions} of {self.of_regions} regions in {self.minutes:.1f} of {self.of_minutes:.1f} minutes, all "
            "cases together"
        )


def keep_minutes(predictions: Path, minutes: float, time: WorkTime, dataset_json: Path | None = None) -> Kept:
    """Leave only the regions of a folder to experts that give the most per minute.

    They are chosen as for a worklist, over all cases. Route maps are rewritten where regions are left out, and each
    case is entered with the `minutes` of its regions and the `time` that they were estimated with.

    Args:
        predictions: A folder whose cases were decided with this limit.
        minutes: The budget.
        time: Working time of regions.
        dataset_json: See :meth:`.PredictionFolder.open`.

    Raises:
        InputError: If the budget is negative or not finite, or a map cannot be read or written.
    """
    folder = PredictionFolder.open(predictions, dataset_json, undecided=True, needed=MEASURED_BY)
    found = [_measured(folder, case, time) for case in tqdm(folder.cases, desc="Measuring regions", unit="case")]
    work, gains = (np.concatenate([each[name] for each in map(Measured._asdict, found)]) for name in _CHOSEN_BY)
    kept = np.zeros(len(work), dtype=bool)
    kept[best_within_limits(gains / work, work, max_regions=None, max_minutes=minutes)] = True
    ends = np.cumsum([len(each.minutes) for each in found])[:-1]
    chosen = np.split(kept, ends)
    for case, measured, of_case in zip(tqdm(folder.cases, desc="Choosing", unit="case"), found, chosen, strict=True):
        _keep(folder, case, measured, of_case, time)
    voxels = np.concatenate([each.voxels for each in found])
    return Kept(int(kept.sum()), len(kept), math.fsum(work[kept]), math.fsum(work), int(voxels[kept].sum()))


_CHOSEN_BY = ("minutes", "expected_gain")


def _measured(folder: PredictionFolder, name: str, time: WorkTime) -> Measured:
    case = folder.case(name)
    return measure_case(case, region_labels(case.route), time, unit=folder.files.unit)


def _keep(folder: PredictionFolder, name: str, measured: Measured, kept: np.ndarray, time: WorkTime) -> None:
    """Rewrite the route of a case, and last its entry, which says that this is done."""
    case = folder.case(name)
    route = case.route
    if not kept.all():
        route = np.where(np.r_[False, kept][region_labels(route)], route, 0).astype(np.uint8)
        file = maps.route_file(folder.folder, name, folder.files.file_ending)
        write_labels(route, file, folder.files.reader, case.properties)
    entry, rates = dict(folder.index["cases"][name]), maps.deferral_rates(route, folder.experts)
    if rates["deferral_rate"] != entry["deferral_rate"]:  # also if a choice was interrupted after the route
        # The gain map is that of the preferred experts, so that its sum may exceed what the routed ones are to add.
        entry["expected_gain"] = min(entry["expected_gain"], math.fsum(measured.expected_gain[kept]))
    work = {"minutes": math.fsum(measured.minutes[kept]), "time": asdict(time)}
    write_json(entry | rates | work, maps.case_file(folder.folder, name))
