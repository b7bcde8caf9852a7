"""Regions that two experts read: where they agree, where an adjudicator decides, and what is settled.

    REVIEWS/settled/readings.json    the rules of the review, which review.json has as well
    REVIEWS/settled/<case>.npz       the settled labels of a case, and the outcome of each region

The review page writes these files; whoever reads the answers of a review takes the settled labels where there are any,
see :class:`.raters.ExpertMasks`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.defaults import MAX_DIFFERENCE, READING_MEASURES
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_durably, write_json_durably
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.names import REVIEW_NAME, check_expert_name
from nnunetv2_deferral.schema import Boolean, Count, Number, Share, Text, read_validated_json, validate

FOLDER, RULES_NAME = "settled", "readings.json"
INDEX_KEY = "readings"  # of the rules in review.json


class Outcome(IntEnum):
    """What became of a region; 0 in a map of outcomes is a voxel about which nobody is asked."""

    OPEN = 1
    """Nobody has answered, or the readers differ and the adjudicator has not decided."""
    SINGLE = 2
    """One reader has answered, the other not (yet), or could not tell."""
    AGREED = 3
    """Both have answered alike, up to the difference that the rules allow."""
    ADJUDICATED = 4
    """The adjudicator has decided."""


OUTCOMES = tuple(outcome.name.lower() for outcome in Outcome)


@dataclass(frozen=True, kw_only=True)
class ReadingRules:
    """When two readers of a region agree, and who decides if they do not.

    Attributes:
        adjudicator: The name of the person who decides; None if differences stay open.
        max_difference: The largest difference in [0, 1] of readers who agree.
        measure: `"voxels"`, the share of the region's voxels with different labels, or `"dice"`, 1 - Dice of the label
            with the lowest Dice (of those other than background that either used).

    Raises:
        InputError: If a value is out of range.
    """

    adjudicator: str | None = None
    max_difference: float = MAX_DIFFERENCE
    measure: str = READING_MEASURES[0]

    def __post_init__(self) -> None:
        if self.adjudicator is not None:
            check_expert_name(self.adjudicator, "the adjudicator")
        if not 0 <= self.max_difference <= 1:
            raise InputError(f"the maximum difference of readers must be in [0, 1], got {self.max_difference}")
        if self.measure not in READING_MEASURES:
            raise InputError(f"readers are compared by {' or '.join(READING_MEASURES)}, got {self.measure!r}")

    def begin(self, folder: Path, *, has_answers: bool = True) -> None:
        """Record the rules of a review, or check that it was begun with these.

        Args:
            folder: The folder of the review.
            has_answers: Whether anybody has answered; if not, other rules are replaced.

        Raises:
            InputError: If it was begun with others; the message names the folder and the differences.
        """
        file = folder / FOLDER / RULES_NAME
        begun = ReadingRules.of(folder) if has_answers else None
        if begun is not None and begun != self:
            differences = [f"{key} {vars(begun)[key]!r}, now {now!r}" for key, now in vars(self).items()
                           if vars(begun)[key] != now]  # fmt: skip
            raise InputError(f"{folder}: this review was started with {'; '.join(differences)}")
        if begun is None or not file.is_file():
            write_json_durably(vars(self), file)

    @classmethod
    def of(cls, folder: Path) -> ReadingRules | None:
        """The rules of a review; None if one expert reads each region.

        They are in review.json, too, so that a review whose folder `settled` was deleted, or was not copied, is not
        taken for one with a single reader for each region.

        Raises:
            InputError: If their file cannot be read.
        """
        file, index = folder / FOLDER / RULES_NAME, folder / REVIEW_NAME
        if file.is_file():
            return cls._of(read_validated_json(file, _Rules))
        rules = read_validated_json(index, _Index).get(INDEX_KEY) if index.is_file() else None
        return None if rules is None else cls._of(rules)

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> ReadingRules:
        return cls(**{key: content[key] for key in _Rules.__annotations__})


class RegionReadings(TypedDict):
    """The readings of a region.

    Attributes:
        number: Its number in the case.
        voxels: Its size.
        gain: Its expected gain.
        readers: The names of the two, first the one to whom the model routes it.
        outcome: One of :data:`OUTCOMES`.
        disputed: Whether both answered and differ by more than the rules allow.
        difference: By the measure of the rules; None unless both answered.
        dice: Dice of all labels other than background; None unless both answered. 1 if both say background throughout.
        kappa: Cohen's kappa of the two; None unless both answered, or if both give one and the same label throughout.
    """

    number: Count
    voxels: Count
    gain: Number
    readers: Annotated[list[Text], Field(min_length=2, max_length=2)]
    outcome: Literal["open", "single", "agreed", "adjudicated"]
    disputed: Boolean
    difference: Share | None
    dice: Share | None
    kappa: Number | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Settlement:
    """What is settled of V voxels.

    Attributes:
        labels: int16 (V,), :data:`.MISSING` where the outcome is open.
        outcomes: uint8 (V,), an :class:`Outcome` each.
        regions: The regions in the order of their numbers.
    """

    labels: np.ndarray
    outcomes: np.ndarray
    regions: list[RegionReadings]


def settle(
    first: np.ndarray,
    second: np.ndarray,
    decided: np.ndarray,
    regions: np.ndarray,
    gain: np.ndarray,
    readers: Sequence[tuple[str, str]],
    rules: ReadingRules,
) -> Settlement:
    """Settle the readings of a case.

    Where readers agree on a region, its labels are those of the first; where these are missing, those of the second.

    Args:
        first: int16 (V,), the labels of the first readers of V voxels, :data:`.MISSING` where there is none.
        second: int16 (V,), those of the second readers.
        decided: int16 (V,), those of the adjudicator, which count where readers differ.
        regions: int (V,), the number of the region of each voxel, from 1 without gaps.
        gain: Real (V,), the expected gain of each voxel.
        readers: The names of both readers of each region.
        rules: When they agree.

    Returns:
        What is settled; empty for no voxels.
    """
    labels, outcomes = np.full(first.shape, MISSING, np.int16), np.full(first.shape, Outcome.OPEN, np.uint8)
    order = np.argsort(regions, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(regions, minlength=len(readers) + 1)[1:])[:-1]) if readers else []
    found: list[RegionReadings] = []
    for number, (names, voxels) in enumerate(zip(readers, groups, strict=True), start=1):
        one, two = first[voxels], second[voxels]
        row = _compare(number, names, one, two, rules)
        row["gain"] = float(gain[voxels].sum())
        outcome, answer = Outcome.OPEN, np.full(voxels.shape, MISSING, np.int16)
        if row["disputed"]:
            if (decided[voxels] != MISSING).any():
                outcome, answer = Outcome.ADJUDICATED, decided[voxels]
        elif (one != MISSING).any() or (two != MISSING).any():
            outcome = Outcome.SINGLE if row["difference"] is None else Outcome.AGREED
            answer = np.where(one == MISSING, two, one)
        labels[voxels], outcomes[voxels] = answer, outcome
        row["outcome"] = OUTCOMES[outcome - 1]  # type: ignore[typeddict-item]
        found.append(row)
    return Settlement(labels=labels, outcomes=outcomes, regions=found)


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> float | None:
    """Cohen's kappa of two readers' labels (V,); None if it is undefined: no voxels, or one and the same label."""
    if not first.size:
        return None
    values, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, two = np.split(places, 2)
    shares = [np.bincount(each, minlength=values.size) / first.size for each in (one, two)]
    by_chance = float(np.dot(*shares))
    return None if by_chance >= 1 else float(((one == two).mean() - by_chance) / (1 - by_chance))


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """The settled labels of a case, in the orientation of the file.

    Attributes:
        experts: The names of the experts in routing order.
        labels: int16 of shape S, :data:`.MISSING` where nothing is settled.
        outcomes: uint8 of shape S, an :class:`Outcome`, or 0.
        route: uint8 of shape S, the number of the expert to whom the voxel is routed where readers are asked, or 0.
        regions: The readings of each region.
        masks: By the name of a reader or the adjudicator, the digest of the mask that was used, see :func:`digests`.
        basis: A digest of the predictions, the regions, their readers and the rules.
    """

    experts: tuple[str, ...]
    labels: np.ndarray
    outcomes: np.ndarray
    route: np.ndarray
    regions: list[RegionReadings]
    masks: Mapping[str, str]
    basis: str

    def write(self, folder: Path, case: str) -> None:
        """Write it to the folder of a review.

        Raises:
            OSError: If the disk is full or fails; an earlier file is unchanged then.
        """
        meta = {
            "experts": list(self.experts),
            "regions": self.regions,
            "masks": dict(self.masks),
            "basis": self.basis,
        }

        def fill(target: Path) -> None:
            with target.open("wb") as stream:
                np.savez_compressed(
                    stream,
                    meta=np.array(json.dumps(meta)),
                    labels=self.labels,
                    outcomes=self.outcomes,
                    route=self.route,
                )

        write_durably(settled_file(folder, case), fill)


def settled_file(folder: Path, case: str) -> Path:
    """The file of a case in the folder of a review; it need not exist."""
    return folder / FOLDER / f"{case}.npz"


def read_settled(folder: Path, case: str) -> Settled | None:
    """What is settled of a case; None if nothing is.

    Raises:
        InputError: If its file cannot be read or is damaged.
    """
    file = settled_file(folder, case)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            labels, outcomes, route = (arrays[name] for name in ("labels", "outcomes", "route"))
            meta = json.loads(str(arrays["meta"]))
    except MemoryError:
        raise
    except Exception as error:  # zip files fail in many ways: struct.error, zlib.error, EOFError, BadZipFile, ...
        raise InputError(f"{file} is damaged: {error}. Restart the review to rewrite it") from error
    validate(meta, _Meta, str(file))
    kinds = [(labels, np.int16), (outcomes, np.uint8), (route, np.uint8)]
    if any(array.dtype != kind or array.shape != labels.shape for array, kind in kinds) or (
        max(outcomes.max(initial=0), 0) > max(Outcome) or route.max(initial=0) > len(meta["experts"])
    ):
        raise InputError(f"{file} is damaged. Restart the review to rewrite it")
    return Settled(
        experts=tuple(meta["experts"]),
        labels=labels,
        outcomes=outcomes,
        route=route,
        regions=meta["regions"],
        masks=meta["masks"],
        basis=meta["basis"],
    )


def digests(files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of the files that exist, by name.

    Raises:
        InputError: If one cannot be read.
    """
    found = {}
    for name, file in files.items():
        try:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
    return found


def disputed_in(regions: Sequence[RegionReadings]) -> list[int]:
    """The numbers of the regions about which both readers have answered differently."""
    return [each["number"] for each in regions if each["disputed"]]


def readings_summary(regions: Sequence[RegionReadings]) -> dict[str, Any]:
    """The readings of any number of regions.

    Returns:
        The number of regions with each of the `outcomes` by its name, how many are `disputed`, how many are `compared`
        because both answered, and the means of `dice`, `kappa` and `difference` over these; None without any.
    """
    outcomes = Counter[str](each["outcome"] for each in regions)

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return {
        "outcomes": {name: outcomes[name] for name in OUTCOMES},
        "disputed": sum(each["disputed"] for each in regions),
        "compared": sum(each["difference"] is not None for each in regions),
        "dice": mean([each["dice"] for each in regions]),
        "kappa": mean([each["kappa"] for each in regions]),
        "difference": mean([each["difference"] for each in regions]),
    }


class _Rules(TypedDict):
    adjudicator: Text | None
    max_difference: Share
    measure: Literal["voxels", "dice"]


class _Index(TypedDict):
    readings: NotRequired[_Rules | None]  # INDEX_KEY


class _Meta(TypedDict):
    experts: Annotated[list[Text], Field(min_length=2, max_length=254)]
    regions: list[RegionReadings]
    masks: dict[Text, Text]
    basis: Text


def _compare(
    number: int, readers: tuple[str, str], first: np.ndarray, second: np.ndarray, rules: ReadingRules
) -> RegionReadings:
    both = (first != MISSING) & (second != MISSING)
    one, two = first[both], second[both]
    row: RegionReadings = {
        "number": number,
        "voxels": int(first.size),
        "gain": 0.0,
        "readers": list(readers),
        "outcome": "open",
        "disputed": False,
        "difference": None,
        "dice": None,
        "kappa": None,
    }
    if one.size:
        row["dice"], row["kappa"] = _dice(one > 0, two > 0, (one == two) & (one > 0)), cohens_kappa(one, two)
        if rules.measure == "dice":
            labels = np.union1d(one, two)
            difference = 1 - min((_dice(one == label, two == label) for label in labels if label), default=1.0)
        else:
            difference = float((one != two).mean())
        row["difference"], row["disputed"] = difference, difference > rules.max_difference
    return row


def _dice(first: np.ndarray, second: np.ndarray, common: np.ndarray | None = None) -> float:
    """Dice of two masks (V,); 1 if both are empty."""
    sizes = int(first.sum()) + int(second.sum())
    return 2 * float((first & second if common is None else common).sum()) / sizes if sizes else 1.0
