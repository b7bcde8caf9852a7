"""The items of a worklist and their order.

Regions are those of :func:`.region_labels`: pieces that are routed to one expert in one case and lie close together.
They are ordered by expected gain per minute of work. This module does not access files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.decision.effort import WorkTime, best_within_limits, measure_case
from nnunetv2_deferral.decision.regions import Region, describe_regions, region_labels
from nnunetv2_deferral.routing import ONE_VS_ALL

# From this probability of disagreement on, two are to be asked.
OFTEN = 0.5
JSON_NAME, MASKS = "worklist.json", "masks"  # names in the folder of a worklist


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """A region for the worklist.

    Attributes:
        case: The case identifier.
        number: The number of the region in :func:`.region_labels` of the route, in the order of first voxels.
        region: Its expert, size and position.
        expected_gain: The sum of the gain map over its voxels: the expected increase of the mean Dice of the case.
        minutes: Estimated working time.
        probability: The mean of the probability map over its voxels.
        border_mm: The length of its border in the slices that it spans; None without a size in mm.
        disagreement: The mean over its voxels of the probability that raters disagree; None if the model did not learn
            it.
        labels: The share of its voxels with each label of the model, in descending order.
        preferred: The share of its voxels where the expert map names the expert to whom they are routed. It is below 1
            if limits route voxels to other experts; the gain map, which refers to the preferred expert, is then an
            upper bound.
        size: Extent of its bounding box along (z, y, x) in mm or pixels; None along z for a single slice.
        centre_world: The central voxel in LPS mm (x, y, z), in pixels if the file has no physical units.
        box_world: Lowest and highest x, y and z of the centres of the corner voxels of the bounding box.
    """

    case: str
    number: int
    region: Region
    expected_gain: float
    minutes: float
    probability: float
    border_mm: float | None
    disagreement: float | None
    labels: Mapping[int, float]
    preferred: float
    size: tuple[float | None, ...]
    centre_world: tuple[float, ...]
    box_world: tuple[tuple[float, float], ...]

    @property
    def gain_per_minute(self) -> float:
        """Expected gain per minute, the sorting key of the list."""
        return self.expected_gain / self.minutes


@dataclass(frozen=True, kw_only=True)
class ListedRegion:
    """A row of the worklist.

    Attributes:
        item: The region.
        rank: Its position in the list, from 1.
        label: Its value in the mask of its expert and case: its position among the regions of that mask, from 1.
        cumulative_minutes: Working time up to and including this region.
    """

    item: WorkItem
    rank: int
    label: int
    cumulative_minutes: float


def find_items(case: PredictedCase, time: WorkTime, *, unit: str) -> list[WorkItem]:
    """All regions of a case in the order of their first voxels; empty if nothing is deferred.

    Args:
        case: The case, with arrays of three axes.
        time: Working time of regions.
        unit: Unit of its spacing, `"mm"` or `"pixels"`.

    Raises:
        InputError: If the shape of a map differs from the mask's, or a gain is not finite.
    """
    labels = region_labels(case.route)
    regions = describe_regions(labels, case.route, spacing_mm=case.spacing)
    where = labels > 0
    numbers = labels[where]

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(numbers, weights=values, minlength=len(regions) + 1)

    found = measure_case(case, labels, time, unit=unit)
    # Without the map it is not known where limits chose another expert.
    is_preferred = case.expert[where] == case.route[where] if case.has("expert") else np.ones(len(numbers), dtype=bool)
    preferred = sums(is_preferred)
    disagreement = None if case.disagreement is None else sums(case.disagreement[where])
    given, model = np.unique(case.model[where], return_inverse=True)
    counts = np.array([sums(model == place) for place in range(len(given))])
    items = []
    for number, region in enumerate(regions, start=1):
        order = np.argsort(-counts[:, number], kind="stable")
        shares = {int(given[each]): counts[each, number] / region.voxels for each in order if counts[each, number]}
        world = to_world([region.centre, *product(*((a, b - 1) for a, b in region.box))], case)
        items.append(
            WorkItem(
                case=case.name,
                number=number,
                region=region,
                expected_gain=float(found.expected_gain[number - 1]),
                minutes=float(found.minutes[number - 1]),
                probability=float(found.probability[number - 1]),
                border_mm=None if found.border_mm is None else float(found.border_mm[number - 1]),
                disagreement=None if disagreement is None else float(disagreement[number] / region.voxels),
                labels=shares,
                preferred=float(preferred[number] / region.voxels),
                size=_size(region, case),
                centre_world=tuple(world[0].tolist()),
                box_world=tuple(zip(world[1:].min(0).tolist(), world[1:].max(0).tolist(), strict=True)),
            )
        )
    return items


def choose(
    items: Iterable[WorkItem], *, max_regions: int | None = None, max_minutes: float | None = None
) -> list[ListedRegion]:
    """The regions to look at, in descending order of expected gain per minute.

    Args:
        items: Regions in any order. Ties are broken by case name, then by first voxel.
        max_regions: Maximum number of regions; None for no limit.
        max_minutes: Maximum total working time; None for no limit. A region that would exceed it is skipped, and
            shorter ones after it may still be listed.

    Raises:
        InputError: If a limit is negative, or not finite.
    """
    ordered = sorted(items, key=lambda item: (item.case, item.number))
    rates, minutes = (np.array([getattr(item, name) for item in ordered]) for name in ("gain_per_minute", "minutes"))
    chosen = best_within_limits(rates, minutes, max_regions=max_regions, max_minutes=max_minutes)
    best = [ordered[index] for index in chosen]
    found = places(((item.case, item.region.expert) for item in best), (item.minutes for item in best))
    return [ListedRegion(item=item, **place._asdict()) for item, place in zip(best, found, strict=True)]


class Place(NamedTuple):
    """Where a region is in a list; see :class:`ListedRegion`."""

    rank: int
    label: int
    cumulative_minutes: float


def places(masks: Iterable[Hashable], minutes: Iterable[float]) -> Iterator[Place]:
    """The places of the regions of a list, given in its order what mask and how much time each has."""
    labels: Counter[Hashable] = Counter()
    total = 0.0
    for rank, (mask, more) in enumerate(zip(masks, minutes, strict=True), start=1):
        labels[mask] += 1
        total += more
        yield Place(rank, labels[mask], total)


def region_masks(route: np.ndarray, listed: Iterable[ListedRegion]) -> dict[int, np.ndarray]:
    """The masks of a case: for each expert with listed regions, their labels as uint32 of the shape of the route."""
    numbers = region_labels(route)
    size = int(numbers.max(initial=0)) + 1
    values: dict[int, np.ndarray] = {}
    for each in listed:
        table = values.setdefault(each.item.region.expert, np.zeros(size, dtype=np.uint32))
        table[each.item.number] = each.label
    return {expert: table[numbers] for expert, table in sorted(values.items())}


def mask_name(expert: str, file_name: str) -> str:
    """Path of an expert's mask for a case in the folder of a worklist, given the name of the model's mask file."""
    return f"{MASKS}/{expert}/{file_name}"


def to_canonical(voxels: Any, case: PredictedCase) -> np.ndarray:
    """Convert indices (n, 3) of a case's array to indices (z, y, x) of the array in canonical (LPS) orientation."""
    axes = list(case.orientation.axes)
    turned, last = np.asarray(voxels)[:, axes], np.array(case.model.shape)[axes] - 1
    return np.where(case.orientation.flips, last - turned, turned)


def to_world(voxels: Any, case: PredictedCase) -> np.ndarray:
    """Convert indices (n, 3) of a case's array to world coordinates (x, y, z) in LPS mm, (n, 3)."""
    affine = case.orientation.affine
    return to_canonical(voxels, case)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]


def reason(item: WorkItem, expert: str, names: Mapping[int, str], objective: str | None) -> str:
    """A sentence that describes the model's labels in a region and its score.

    Args:
        item: The region.
        expert: The name of the expert to ask.
        names: The names of the labels.
        objective: The objective of the model's settings; only with one-vs-all is the score the probability that asking
            helps.
    """
    shares = [f"{names.get(label, f'label {label}')} ({_percent(share)})" for label, share in item.labels.items()]
    if len(shares) == 1:
        what = f"The model labels the whole region {shares[0].removesuffix(' (100 %)')}"
    else:
        what = f"The model's labels in the region are {', '.join(shares[:-1])} and {shares[-1]}"
    score = f"probability that asking {expert} helps" if objective == ONE_VS_ALL else "deferral probability"
    text = f"{what}; mean {score}: {item.probability:.2f}"
    if item.preferred < 1:
        text += f"; for {_percent(1 - item.preferred)} of it another expert is preferred, so the gain is an upper bound"
    if item.disagreement is not None:
        text += f"; mean probability that raters disagree: {item.disagreement:.2f}"
        if item.disagreement >= OFTEN:
            text += ", so no single answer is right: ask two experts"
    return f"{text}."


def columns(unit: str) -> list[str]:
    """The column names of the CSV file, in the order of :func:`cells`."""
    return [
        *("rank", "case", "expert", "label", "expected_gain", "minutes", "gain_per_minute", "cumulative_minutes"),
        *("voxels", *(f"box_{axis}_{end}" for axis in "zyx" for end in ("start", "stop"))),
        *(f"centre_{axis}" for axis in "zyx"),
        *(f"box_world_{axis}_{end}" for axis in "xyz" for end in ("low", "high")),
        *(f"centre_world_{axis}" for axis in "xyz"),
        *(*(f"size_{unit}_{axis}" for axis in "zyx"), f"diameter_{unit}"),
        *("probability", "border_mm", "disagreement", "why", "picture", "mask"),
    ]


def cells(row: Any) -> list[Any]:
    """The values of a row of :func:`to_row` as a flat list."""
    values = row.values() if isinstance(row, Mapping) else row
    return [cell for each in values for cell in (cells(each) if isinstance(each, list) else [each])]


def to_row(listed: ListedRegion, *, expert: str, unit: str, why: str, picture: str | None, mask: str) -> dict[str, Any]:
    """A row of the list as JSON-ready data; lengths and minutes are rounded to four decimals."""
    item, region = listed.item, listed.item.region

    def rounded(value: Any) -> Any:
        return [rounded(each) for each in value] if isinstance(value, tuple) else value and round(value, 4)

    return {
        "rank": listed.rank,
        "case": item.case,
        "expert": expert,
        "label": listed.label,
        "expected_gain": item.expected_gain,
        "minutes": rounded(item.minutes),
        "gain_per_minute": item.gain_per_minute,
        "cumulative_minutes": rounded(listed.cumulative_minutes),
        "voxels": region.voxels,
        "box": [list(ends) for ends in region.box],
        "centre": list(region.centre),
        "box_world": rounded(item.box_world),
        "centre_world": rounded(item.centre_world),
        f"size_{unit}": rounded(item.size),
        f"diameter_{unit}": rounded(region.diameter_mm),
        "probability": rounded(item.probability),
        "border_mm": rounded(item.border_mm),
        "disagreement": rounded(item.disagreement),
        "why": why,
        "picture": picture,
        "mask": mask,
    }


def _size(region: Region, case: PredictedCase) -> tuple[float | None, ...]:
    # For a single slice nnU-Net sets an arbitrary thickness.
    return (None, *region.size_mm[1:]) if case.model.shape[0] == 1 else region.size_mm


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{min(share, 0.99) if share < 1 else share:.0%}".replace("%", " %")
