"""Which deferred regions people should look at first, and what is known of each.

A region is a connected component of what one expert is asked about in one case (full connectivity). Regions are ordered
by the expected gain per minute of work. Knows numpy, nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.decision.regions import Region, describe_regions, region_labels
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.routing import ONE_VS_ALL

JSON_NAME, MASKS = "worklist.json", "masks"  # of the folder that a list is written to and read from

_ROUNDING = 1e-9  # minutes: sums of decimal fractions may miss a limit that they should just meet


@dataclass(frozen=True, kw_only=True)
class WorkTime:
    """How long a region takes: so much to find and judge it, and so much for each centimetre of its extent.

    No more than a rule of thumb, to be replaced by one's own figures.

    Attributes:
        minutes_per_region: Positive.
        minutes_per_cm: Not negative. Counts where voxels have a size in mm.

    Raises:
        InputError: If either is out of range or not finite.
    """

    minutes_per_region: float = 0.5
    minutes_per_cm: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.minutes_per_region < math.inf:
            raise InputError(f"minutes_per_region must be positive and finite, got {self.minutes_per_region}")
        if not 0 <= self.minutes_per_cm < math.inf:
            raise InputError(f"minutes_per_cm must be finite and at least 0, got {self.minutes_per_cm}")

    def minutes(self, extent_mm: float | None) -> float:
        """For a region whose box is so long along its longest side; None where that is not known in mm."""
        return self.minutes_per_region + (0 if extent_mm is None else self.minutes_per_cm * extent_mm / 10)


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """A region that somebody could look at.

    Attributes:
        case: The case identifier.
        number: Its number in :func:`.region_labels` of the case's route, in the order of first voxels.
        region: Its expert, size and place.
        expected_gain: The sum of the gain map over its voxels: the expected rise of the case's mean Dice.
        minutes: The work that it is.
        probability: The mean of the probability map over its voxels.
        labels: The share of its voxels that the model gave each label, largest first.
        preferred: The share of its voxels for which the expert map names the expert who is asked. Limits on experts and
            regions make others of it; the gain map is that of the preferred one and promises too much there.
        size: Extent of its box along the axes (z, y, x), in mm or pixels; None along z where there is one slice only.
        centre_world: Its central voxel in LPS mm (x, y, z), in pixels where the file knows nothing else.
        box_world: The lowest and highest x, y, z of the centres of the corner voxels of its box.
    """

    case: str
    number: int
    region: Region
    expected_gain: float
    minutes: float
    probability: float
    labels: Mapping[int, float]
    preferred: float
    size: tuple[float | None, ...]
    centre_world: tuple[float, ...]
    box_world: tuple[tuple[float, float], ...]

    @property
    def gain_per_minute(self) -> float:
        """What the list is ordered by."""
        return self.expected_gain / self.minutes


@dataclass(frozen=True, kw_only=True)
class ListedRegion:
    """A region of the list.

    Attributes:
        item: The region.
        rank: Its place in the list, from 1.
        label: Its value in the mask of its expert and case: its place among these, from 1.
        cumulative_minutes: The work up to and with it.
    """

    item: WorkItem
    rank: int
    label: int
    cumulative_minutes: float


def find_items(case: PredictedCase, time: WorkTime, *, unit: str) -> list[WorkItem]:
    """All regions of a case in the order of their first voxels; empty where nothing is deferred.

    Args:
        case: Its arrays have three axes.
        time: How long regions take.
        unit: What its spacing is in, `"mm"` or `"pixels"`.

    Raises:
        InputError: If a map has another shape than the mask, or a gain is not finite.
    """
    labels = region_labels(case.route)
    regions = describe_regions(labels, case.route, spacing_mm=case.spacing)
    where = labels > 0
    numbers, voxels = labels[where], np.array([0, *(region.voxels for region in regions)])

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(numbers, weights=values, minlength=len(voxels))

    gains, probabilities = sums(case.gain[where]), sums(case.probability[where])
    preferred = sums(case.expert[where] == case.route[where])
    given, model = np.unique(case.model[where], return_inverse=True)
    counts = np.array([sums(model == place) for place in range(len(given))])
    items = []
    for number, region in enumerate(regions, start=1):
        size = _size(region, case)
        order = np.argsort(-counts[:, number], kind="stable")
        shares = {int(given[each]): counts[each, number] / region.voxels for each in order if counts[each, number]}
        world = to_world([region.centre, *product(*((a, b - 1) for a, b in region.box))], case)
        items.append(
            WorkItem(
                case=case.name,
                number=number,
                region=region,
                expected_gain=float(gains[number]),
                minutes=time.minutes(max(each for each in size if each is not None) if unit == "mm" else None),
                probability=float(probabilities[number] / region.voxels),
                labels=shares,
                preferred=float(preferred[number] / region.voxels),
                size=size,
                centre_world=tuple(world[0].tolist()),
                box_world=tuple(zip(world[1:].min(0).tolist(), world[1:].max(0).tolist(), strict=True)),
            )
        )
    return items


def choose(
    items: Iterable[WorkItem], *, max_regions: int | None = None, max_minutes: float | None = None
) -> list[ListedRegion]:
    """The regions to look at, those with the highest expected gain per minute first.

    Args:
        items: In any order. Ties are in the order of case names, then of first voxels.
        max_regions: How many at most, None for any number.
        max_minutes: The work there is time for, None for any. A region that would exceed it is left out, shorter ones
            further down may still fit.

    Raises:
        InputError: If a limit is negative, or not finite.
    """
    check_limits(max_regions, max_minutes)
    listed: list[ListedRegion] = []
    labels: dict[tuple[str, int], int] = {}
    minutes = 0.0
    for item in sorted(items, key=lambda item: (-item.gain_per_minute, item.case, item.number)):
        if max_regions is not None and len(listed) >= max_regions:
            break
        if max_minutes is not None and minutes + item.minutes > max_minutes + _ROUNDING:
            continue
        minutes += item.minutes
        key = (item.case, item.region.expert)
        labels[key] = labels.get(key, 0) + 1
        listed.append(ListedRegion(item=item, rank=len(listed) + 1, label=labels[key], cumulative_minutes=minutes))
    return listed


def check_limits(max_regions: int | None, max_minutes: float | None) -> None:
    """Refuse limits that cannot be.

    Raises:
        InputError: Naming the limit and its value.
    """
    if max_regions is not None and max_regions < 0:
        raise InputError(f"max_regions must be at least 0, got {max_regions}")
    if max_minutes is not None and not 0 <= max_minutes < math.inf:
        raise InputError(f"max_minutes must be finite and at least 0, got {max_minutes}")


def region_masks(route: np.ndarray, listed: Iterable[ListedRegion]) -> dict[int, np.ndarray]:
    """The masks of a case: for each expert with a listed region, uint32 of the shape of the route, 0 or the label."""
    numbers = region_labels(route)
    size = int(numbers.max(initial=0)) + 1
    values: dict[int, np.ndarray] = {}
    for each in listed:
        table = values.setdefault(each.item.region.expert, np.zeros(size, dtype=np.uint32))
        table[each.item.number] = each.label
    return {expert: table[numbers] for expert, table in sorted(values.items())}


def mask_name(expert: str, file_name: str) -> str:
    """Where the mask of an expert for a case is in the folder of a list, given the name of the model's mask file."""
    return f"{MASKS}/{expert}/{file_name}"


def to_canonical(voxels: Any, case: PredictedCase) -> np.ndarray:
    """Indices (n, 3) of a case's array as indices (z, y, x) of the same array in the patient's orientation."""
    axes = list(case.orientation.axes)
    turned, last = np.asarray(voxels)[:, axes], np.array(case.model.shape)[axes] - 1
    return np.where(case.orientation.flips, last - turned, turned)


def to_world(voxels: Any, case: PredictedCase) -> np.ndarray:
    """Indices (n, 3) of a case's array in world coordinates (n, 3): LPS in mm, as x, y, z."""
    affine = case.orientation.affine
    return to_canonical(voxels, case)[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]


def reason(item: WorkItem, expert: str, names: Mapping[int, str], objective: str | None) -> str:
    """Why somebody should look at a region, in a sentence that claims no more than the maps say.

    Args:
        item: The region.
        expert: The name of whom to ask.
        names: Of the labels.
        objective: Of the model's settings; only with one-vs-all is the score the probability that asking helps.
    """
    shares = [f"{names.get(label, f'label {label}')} ({_percent(share)})" for label, share in item.labels.items()]
    if len(shares) == 1:
        what = f"All of it is {shares[0].removesuffix(' (100 %)')} to the model"
    else:
        what = f"The model's border between {', '.join(shares[:-1])} and {shares[-1]} runs through it"
    score = f"probability that asking {expert} helps" if objective == ONE_VS_ALL else "deferral probability"
    text = f"{what}; mean {score}: {item.probability:.2f}"
    if item.preferred < 1:
        text += f"; {_percent(1 - item.preferred)} of it would rather go to others, so the gain is an upper bound"
    return f"{text}."


def totals(items: Sequence[WorkItem]) -> dict[str, Any]:
    """How many `cases` and `regions` these are, their `voxels`, `minutes` and `expected_gain`; 0 for none."""
    return {
        "cases": len({item.case for item in items}),
        "regions": len(items),
        "voxels": sum(item.region.voxels for item in items),
        "minutes": math.fsum(item.minutes for item in items),
        "expected_gain": math.fsum(item.expected_gain for item in items),
    }


def columns(unit: str) -> list[str]:
    """What the cells of :func:`to_row` are called, in their order, when it is written flat."""
    return [
        *("rank", "case", "expert", "label", "expected_gain", "minutes", "gain_per_minute", "cumulative_minutes"),
        *("voxels", *(f"box_{axis}_{end}" for axis in "zyx" for end in ("start", "stop"))),
        *(f"centre_{axis}" for axis in "zyx"),
        *(f"box_world_{axis}_{end}" for axis in "xyz" for end in ("low", "high")),
        *(f"centre_world_{axis}" for axis in "xyz"),
        *(*(f"size_{unit}_{axis}" for axis in "zyx"), f"diameter_{unit}", "why", "picture", "mask"),
    ]


def cells(row: Any) -> list[Any]:
    """The values of a row one after the other, those of lists and mappings included."""
    values = row.values() if isinstance(row, Mapping) else row
    return [cell for each in values for cell in (cells(each) if isinstance(each, list) else [each])]


def to_row(listed: ListedRegion, *, expert: str, unit: str, why: str, picture: str | None, mask: str) -> dict[str, Any]:
    """A region of the list as JSON has it; lengths and minutes are rounded to what can matter."""
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
        "why": why,
        "picture": picture,
        "mask": mask,
    }


def _size(region: Region, case: PredictedCase) -> tuple[float | None, ...]:
    # What nnU-Net gives as the thickness of a single slice is made up.
    return (None, *region.size_mm[1:]) if case.model.shape[0] == 1 else region.size_mm


def _percent(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{min(share, 0.99) if share < 1 else share:.0%}".replace("%", " %")
