"""Worklists from arrays: the regions of a decision and their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.worklist.items import ListedRegion, WorkItem, choose, find_items

_DEFAULT_TIME = WorkTime()


def find_regions(
    maps: RoutingMaps,
    model: np.ndarray,
    *,
    case: str = "case",
    spacing_mm: Sequence[float] | None = None,
    time: WorkTime = _DEFAULT_TIME,
) -> list[WorkItem]:
    """The deferred regions of a decision, with their expected gain and estimated working time.

    Args:
        maps: The maps of the case from :func:`.decide`, of shape S = (Z, Y, X), or (Y, X) for a single slice.
        model: The model's label map, integer of shape S.
        case: The name of the case.
        spacing_mm: Size of a voxel along each axis of S; None if unknown. Sizes are then in pixels, and the working
            time does not depend on them.
        time: Working time of regions.

    Returns:
        The regions in the order of their first voxels; empty if nothing is deferred.

    Raises:
        InputError: If the shapes differ, or there are neither two nor three axes.

    Example:
        >>> import numpy as np
        >>> from nnunetv2_deferral import decide, find_regions, routing_rule
        >>> a = np.full((2, 6, 12), 0.9, dtype=np.float32)  # the model and one expert
        >>> a[0, 2:4, 1:3], a[0, 2:5, 9:11] = 0.5, 0.2  # where the model is probably wrong
        >>> decision = decide(a, rule=routing_rule("one_vs_all", costs=(0.0,)))
        >>> regions = find_regions(decision.maps, np.zeros((6, 12), dtype=int), spacing_mm=(1.0, 1.0))
        >>> [(each.region.voxels, round(each.expected_gain, 1), round(each.minutes, 2)) for each in regions]
        [(4, 1.6, 0.16), (6, 4.2, 0.17)]
    """
    if model.ndim not in (2, 3):
        raise InputError(f"a case must have shape (Z, Y, X) or (Y, X), got {model.shape}")
    spacing = (1.0,) * model.ndim if spacing_mm is None else tuple(float(size) for size in spacing_mm)
    if len(spacing) != model.ndim:
        raise InputError(f"spacing_mm has {len(spacing)} entries for an array of shape {model.shape}")
    arrays = {"model": model, **maps._asdict()}
    if model.ndim == 2:
        arrays, spacing = {name: array[np.newaxis] for name, array in arrays.items()}, (1.0, *spacing)
    predicted = PredictedCase(case, **arrays, properties={"spacing": spacing})
    return find_items(predicted, time, unit="pixels" if spacing_mm is None else "mm")


def choose_regions(
    regions: Iterable[WorkItem], *, max_regions: int | None = None, max_minutes: float | None = None
) -> list[ListedRegion]:
    """The regions to look at, in descending order of expected gain per minute of work.

    Args:
        regions: Regions of any number of cases from :func:`find_regions`, in any order.
        max_regions: Maximum number of regions; None for no limit.
        max_minutes: Maximum total working time; None for no limit. A region that would exceed it is skipped, and
            shorter ones after it may still be listed.

    Returns:
        The listed regions in order, each with its `item`, `rank` and `cumulative_minutes`.

    Raises:
        InputError: If a limit is negative or not finite.

    Example:
        >>> import numpy as np
        >>> from nnunetv2_deferral import choose_regions, decide, find_regions, routing_rule
        >>> a = np.full((2, 6, 12), 0.9, dtype=np.float32)
        >>> a[0, 2:4, 1:3], a[0, 2:5, 9:11] = 0.5, 0.2
        >>> decision = decide(a, rule=routing_rule("one_vs_all", costs=(0.0,)))
        >>> regions = find_regions(decision.maps, np.zeros((6, 12), dtype=int), spacing_mm=(1.0, 1.0))
        >>> [(each.rank, each.item.region.centre) for each in choose_regions(regions, max_minutes=0.2)]
        [(1, (0, 3, 9))]
    """
    return choose(regions, max_regions=max_regions, max_minutes=max_minutes)
