"""The predictions, images and references of a review, in the browser's orientation."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import Orientation
from nnunetv2_deferral.labels import unknown_labels
from nnunetv2_deferral.maps import other_masks_text
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.review.edits import RefusedError
from nnunetv2_deferral.review.recent import RecentlyUsed
from nnunetv2_deferral.review.visits import MAX_REGIONS, describe_visits, numbered, numbered_by_gain, second_reader
from nnunetv2_deferral.review.windows import check_windows
from nnunetv2_deferral.worklist.reading import Worklist

logger = logging.getLogger(__name__)

KEPT_CASES, KEPT_BYTES = 3, 2**30
"""Cases, and images, that were used last are kept in memory up to this size, and at least so many of each."""
READ_FIRST, READ_FIRST_SECONDS = 50, 3.0
"""With a worklist, the number of cases that are read and checked before the page is served, and for how long."""


@dataclass(frozen=True, kw_only=True)
class CaseInfo:
    """A case in the list of cases; values by expert are (J,) in routing order.

    Of a case that has not been read yet this is what the worklist and the entries of the predictions tell.

    Attributes:
        name: The case identifier.
        shape: (Z, Y, X) in the browser's orientation; None before the case has been read.
        rate: Share of the voxels that are deferred.
        shares: Share of the voxels that each expert is asked about; before the case has been read, that are routed to
            them.
        asked: Number of voxels that anybody is asked about.
        voxels: Number of voxels that each expert is asked about.
        regions: Number of regions that these form.
        gains: Expected increase of the mean Dice of the case if they are answered.
        ranks: Best rank of these regions on the worklist; None without a worklist or listed regions.
        left_out: Number of voxels routed to each expert that are not on the worklist; 0 before the case has been read.
        listings: With a worklist or two readers, the digest of what each expert is asked; else, and before the case has
            been read, empty.
        images: The files of the image, one per channel, or one for an RGB picture.
        reference: The file of the reference, or None.
        other_mask: See :meth:`.PredictionFolder.has_other_mask`; False before the case has been read.
    """

    name: str
    shape: tuple[int, int, int] | None
    rate: float
    shares: tuple[float, ...]
    asked: int
    voxels: tuple[int, ...]
    regions: tuple[int, ...]
    gains: tuple[float, ...]
    ranks: tuple[int | None, ...]
    left_out: tuple[int, ...]
    listings: tuple[str, ...]
    images: tuple[Path, ...]
    reference: Path | None
    other_mask: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class ReviewedCase:
    """A case in the browser's orientation, with V voxels routed to experts, in the order of the flat volume.

    Attributes:
        name: The case identifier.
        properties: nnU-Net's properties of the model's mask.
        orientation: The orientation of the file.
        model: uint8 (Z, Y, X), the model's mask, with the answers of earlier rounds of questions.
        route: uint8 (Z, Y, X); with a worklist, 0 for voxels that are not listed.
        gain: float32 (V,), the gain map at these voxels.
        regions: int32 (V,), the number of the region of each of these voxels, from 1 without gaps.
        readers: For each region the numbers of the experts who are asked, first the one to whom it is routed.
        ranks: For each region its rank on the worklist; None without a worklist.
        left_out: See :attr:`CaseInfo.left_out`.
        other_mask: See :attr:`CaseInfo.other_mask`.
        questions: What was found of :meth:`Study.questions`, by the numbers of the regions.
    """

    name: str
    properties: dict[str, Any]
    orientation: Orientation
    model: np.ndarray
    route: np.ndarray
    gain: np.ndarray
    regions: np.ndarray
    readers: tuple[tuple[int, ...], ...]
    ranks: tuple[int | None, ...]
    left_out: tuple[int, ...]
    other_mask: bool
    questions: dict[tuple[int, ...], Asked] = field(default_factory=dict, repr=False)

    @property
    def nbytes(self) -> int:
        """Its size in memory, without what was found of its questions, which is small."""
        return self.model.nbytes + self.route.nbytes + self.gain.nbytes + self.regions.nbytes

    @cached_property
    def digest(self) -> str:
        """A digest of mask, route and gain."""
        digest = hashlib.sha256(str(self.model.shape).encode())
        for each in (self.model, self.route, self.gain):
            digest.update(each.tobytes())
        return digest.hexdigest()

    def of_reader(self, number: int) -> list[int]:
        """The numbers of the regions that an expert reads."""
        return [region for region, readers in enumerate(self.readers, start=1) if number in readers]


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """The voxels and regions of a case that a person is asked about.

    Attributes:
        shape: (Z, Y, X) of the case.
        voxels: int64 (V,), the indices of the voxels in the flat volume, ascending.
        numbers: uint16 (V,), the number of the region of each of these voxels. Regions are numbered by rank on the
            worklist, or without a worklist, by expected gain.
        listing: The description of each region from :func:`.describe_visits` and its `rank`, None without a worklist.
    """

    shape: tuple[int, ...]
    voxels: np.ndarray
    numbers: np.ndarray
    listing: list[dict[str, Any]]

    @property
    def regions(self) -> np.ndarray:
        """uint16 (Z, Y, X): the number of the region, 0 where the person is not asked. Made anew each time."""
        regions = np.zeros(self.shape, dtype=np.uint16)
        regions.ravel()[self.voxels] = self.numbers
        return regions

    @cached_property
    def digest(self) -> str:
        """A digest of the voxels and their regions."""
        return hashlib.sha256(self.voxels.tobytes() + self.numbers.tobytes()).hexdigest()


class Study:
    """The data of a review: predictions, images and references. Read-only and thread-safe.

    Attributes:
        predictions: The predictions.
        worklist: The worklist that limits the regions; None for all deferred regions.
        readers_per_region: 1 or 2.
        then: Called with each case that has been read, before it can be reviewed.
    """

    def __init__(
        self,
        predictions: PredictionFolder,
        images: Path,
        references: Path | None,
        worklist: Worklist | None = None,
        readers_per_region: int = 1,
    ) -> None:
        """Find the files of all cases. With a worklist these can be reviewed at once, else when :meth:`read` has been.

        Raises:
            InputError: If an image is missing, a label exceeds 255, or there are fewer experts than readers.
        """
        self.worklist = worklist
        self.predictions = predictions
        self.readers_per_region = readers_per_region
        self.then: Callable[[ReviewedCase], None] = lambda case: None
        available = [name for name in predictions.experts if name not in predictions.settings.unavailable]
        if not 1 <= readers_per_region <= 2:
            raise InputError(f"a region can have 1 or 2 readers, got {readers_per_region} (-readers_per_region)")
        if readers_per_region > len(available):
            raise InputError(
                f"{readers_per_region} readers for each region require as many experts; available in "
                f"{predictions.folder}: {', '.join(available)}"
            )
        self._available = tuple(self.experts.index(name) + 1 for name in available)
        highest = max(self.labels)
        if highest > np.iinfo(np.uint8).max:
            raise InputError(f"the review page supports labels up to 255, but the dataset has {highest}")
        found = predictions.files.images(images, predictions.cases)
        if missing := next((case for case, channels in found.items() if not channels), None):
            raise InputError(f"the image {predictions.files.image_file(images, missing)} does not exist")
        content = predictions.files.content
        most = max(len(content.get("channel_names", {})), *map(len, found.values()))
        check_windows(content.get("windows", {}), most)
        self._images = {case: tuple(channels) for case, channels in found.items()}
        self._references = references
        self._read: set[str] = set()
        self._infos = {} if worklist is None else {case: self._listed(worklist, case) for case in predictions.cases}
        self._lock = threading.Lock()
        limits = {"most_bytes": KEPT_BYTES, "at_least": KEPT_CASES}
        self._case = RecentlyUsed(self._read_case, lambda case: case.nbytes, **limits)
        self._image = RecentlyUsed(self._read_image, lambda image: image.nbytes, **limits)

    @property
    def is_bound(self) -> bool:
        """Whether what an expert is asked depends on more than the predictions."""
        return self.worklist is not None or self.readers_per_region > 1

    @property
    def waiting(self) -> list[str]:
        """The cases that have not been read: with a worklist those that it lists, in its order, else all."""
        if self.worklist is None:
            cases: Iterable[str] = self.predictions.cases
        else:
            ranked = sorted((rows[0].rank, case) for (case, _), rows in self.worklist.rows.items())
            cases = dict.fromkeys(case for _, case in ranked)
        return [case for case in cases if case not in self._read]

    def read(self, cases: Iterable[str], *, wanted: Callable[[], bool] = lambda: True) -> None:
        """Read and check some cases; those that have been read can be reviewed meanwhile.

        Args:
            cases: Their names, such as :attr:`waiting`.
            wanted: Asked before each case whether to go on.

        Raises:
            InputError: If a mask or map is missing or inconsistent, or a mask of the worklist; the message names the
                file.
        """
        cases = list(cases)
        for case in tqdm(cases, desc="Reading the maps", unit="case", disable=not cases):
            if not wanted():
                return
            if case not in self._read:
                found = self._read_case(case)
                self._note(found)
                self._case.add(case, found)

    def read_first(self) -> None:
        """Read and check the first cases that wait, as :meth:`read`, for a few seconds at most.

        Raises:
            InputError: As by :meth:`read`.
        """
        until = time.monotonic() + READ_FIRST_SECONDS
        self.read(self.waiting[:READ_FIRST], wanted=lambda: time.monotonic() < until)

    @property
    def infos(self) -> dict[str, CaseInfo]:
        """The cases that can be reviewed, by name."""
        return dict(self._infos)

    def info(self, name: str) -> CaseInfo:
        """What the list says of a case that can be reviewed."""
        return self._infos[name]

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the experts in routing order."""
        return self.predictions.experts

    @property
    def labels(self) -> tuple[int, ...]:
        """All labels including background, without the ignore label."""
        return self.predictions.files.label_values

    def case(self, name: str) -> ReviewedCase:
        """A case with its maps.

        Raises:
            RefusedError: If there is no case of this name, or it has not been read yet.
            InputError: If a file of the case is missing or inconsistent.
        """
        if name not in self._infos and name in self.predictions.cases:
            raise RefusedError(503, "This case is still being read.")
        if name not in self._infos:
            raise RefusedError(404, "No such case.")
        with self._lock:
            case = self._case(name)
            if name not in self._read:
                self._note(case)
            return case

    def asked(self, name: str, expert: str) -> Asked:
        """The voxels and regions of a case that an expert is asked about."""
        case = self.case(name)
        return self.questions(case, self._read_by(case, expert))

    def questions(self, case: ReviewedCase, wanted: Sequence[int]) -> Asked:
        """The voxels of some regions of a case, to ask about them."""
        key = tuple(wanted)
        if key not in case.questions:
            case.questions[key] = self._find_questions(case, key)
        return case.questions[key]

    def _find_questions(self, case: ReviewedCase, wanted: Sequence[int]) -> Asked:
        if self.worklist is None:
            inside = numbered_by_gain(case.regions, case.gain, wanted)
        else:
            inside = numbered(case.regions, sorted(wanted, key=lambda number: case.ranks[number - 1] or 0))
        asked = inside > 0
        voxels, numbers = np.flatnonzero(case.route)[asked], inside[asked]
        listing = describe_visits(
            voxels, numbers, case.gain[asked], case.route.shape, spacing_mm=case.orientation.spacing_mm
        )
        named, places = np.unique(inside, return_index=True)
        number_in_case = dict(zip(named.tolist(), case.regions[places].tolist(), strict=True))
        for region in listing:
            region["rank"] = case.ranks[number_in_case[region["number"]] - 1]
        return Asked(shape=case.route.shape, voxels=voxels, numbers=numbers, listing=listing)

    def image(self, name: str) -> np.ndarray:
        """The image (C, Z, Y, X), uint8 or int16 if that represents its values exactly, else float32.

        Raises:
            RefusedError: If it cannot be read, or its shape differs from the mask's.
        """
        self.case(name)
        with self._lock:
            return self._image(name)

    def reference(self, name: str) -> np.ndarray | None:
        """The reference of a case, int64 (Z, Y, X), or None."""
        case = self.case(name)
        file = self.info(name).reference
        if file is None:
            return None
        values, _ = self.predictions.files.read(file)
        turned = case.orientation.to_canonical(values)
        if turned.shape != case.model.shape:
            raise RefusedError(422, f"The reference has shape {turned.shape}, but the mask has {case.model.shape}.")
        return turned

    def is_colour(self, name: str) -> bool:
        """Whether the image of a case is an RGB picture."""
        return len(self.info(name).images) == 1 and self.image(name).shape[0] == 3

    def _note(self, case: ReviewedCase) -> None:
        if case.other_mask:
            logger.warning("%s", other_masks_text([case.name]))
        self.then(case)
        self._infos[case.name] = self._inspect(case)
        self._read.add(case.name)

    def _reference(self, name: str) -> Path | None:
        file = self._references and self._references / f"{name}{self.predictions.files.file_ending}"
        return file if file and file.is_file() else None

    def _listed(self, worklist: Worklist, name: str) -> CaseInfo:
        """What the worklist tells of a case."""
        numbers = range(1, len(self.experts) + 1)
        rows = [(first, row) for first in numbers for row in worklist.rows.get((name, self.experts[first - 1]), ())]
        own = [
            [row for region, (first, row) in enumerate(rows, start=1) if number in self._readers(name, region, first)]
            for number in numbers
        ]
        entry = self.predictions.index["cases"][name]
        return CaseInfo(
            name=name,
            shape=None,
            rate=entry["deferral_rate"],
            shares=tuple(entry["share"][expert] for expert in self.experts),
            asked=sum(row.voxels for _, row in rows),
            voxels=tuple(sum(row.voxels for row in found) for found in own),
            regions=tuple(map(len, own)),
            gains=tuple(math.fsum(row.expected_gain for row in found) for found in own),
            ranks=tuple(min((row.rank for row in found), default=None) for found in own),
            left_out=(0,) * len(own),
            listings=("",) * len(own),
            images=self._images[name],
            reference=self._reference(name),
        )

    def _inspect(self, case: ReviewedCase) -> CaseInfo:
        name, size = case.name, case.model.size
        asked = [self._find_questions(case, self._read_by(case, expert)) for expert in self.experts]
        return CaseInfo(
            name=name,
            shape=case.model.shape,
            rate=(case.gain.size + sum(case.left_out)) / size,
            shares=tuple(each.voxels.size / size for each in asked),
            asked=int(case.gain.size),
            voxels=tuple(each.voxels.size for each in asked),
            regions=tuple(len(each.listing) for each in asked),
            gains=tuple(math.fsum(region["gain"] for region in each.listing) for each in asked),
            ranks=tuple(each.listing[0]["rank"] if each.listing else None for each in asked),
            left_out=case.left_out,
            listings=tuple(each.digest if self.is_bound else "" for each in asked),
            images=self._images[name],
            reference=self._reference(name),
            other_mask=case.other_mask,
        )

    def _read_case(self, name: str) -> ReviewedCase:
        predicted = self.predictions.case(name)
        mask, everything = predicted.current, predicted.route
        if mask.ndim != 3:
            raise InputError(f"{self.predictions.mask_file(name)} must have 3 axes, got {mask.ndim}")
        if unknown := unknown_labels(mask, self.labels):
            raise InputError(f"{self.predictions.mask_file(name)} contains unknown labels: {unknown}")
        turn, route = predicted.orientation, everything
        if self.worklist is None:
            turned_route = turn.to_canonical(route)
            regions = region_labels(turned_route)[turned_route > 0]
            ranks: tuple[int | None, ...] = (None,) * int(regions.max(initial=0))
            left_out = (0,) * len(self.experts)
        else:
            listed = self.worklist.labels(name, everything, predicted.properties)
            route = np.where(listed > 0, everything, 0).astype(np.uint8)
            turned_route = turn.to_canonical(route)
            labels = np.minimum(turn.to_canonical(listed)[turned_route > 0], MAX_REGIONS)
            keys, regions = np.unique(
                turned_route[turned_route > 0].astype(np.int64) * (MAX_REGIONS + 1) + labels, return_inverse=True
            )
            regions = (regions + 1).astype(np.int32)
            ranks = tuple(self._rank(name, *divmod(key, MAX_REGIONS + 1)) for key in keys.tolist())
            numbers = range(1, len(self.experts) + 1)
            left_out = tuple(int((everything == number).sum() - (route == number).sum()) for number in numbers)
        firsts = np.zeros(len(ranks) + 1, dtype=np.uint8)
        firsts[regions] = turned_route[turned_route > 0]
        return ReviewedCase(
            name=name,
            properties=predicted.properties,
            orientation=turn,
            model=turn.to_canonical(mask.astype(np.uint8)),
            route=turned_route,
            gain=turn.to_canonical(predicted.gain)[turned_route > 0],
            regions=regions,
            readers=tuple(self._readers(name, region, int(firsts[region])) for region in range(1, len(firsts))),
            ranks=ranks,
            left_out=left_out,
            other_mask=self.predictions.has_other_mask(name),
        )

    def _rank(self, case: str, expert: int, label: int) -> int | None:
        rows = self.worklist.rows[case, self.experts[expert - 1]] if self.worklist else ()
        return rows[label - 1].rank if rows else None

    def _readers(self, case: str, region: int, first: int) -> tuple[int, ...]:
        if self.readers_per_region == 1:
            return (first,)
        return first, second_reader(case, region, first, self._available)

    def _read_by(self, case: ReviewedCase, expert: str) -> list[int]:
        return case.of_reader(self.experts.index(expert) + 1)

    def _read_image(self, name: str) -> np.ndarray:
        case = self._case(name)
        try:
            values = self.predictions.files.read_image(self.info(name).images)
        except InputError as error:
            raise RefusedError(422, f"The image of this case cannot be used: {error}") from error
        turned = case.orientation.to_canonical(_narrow(values))
        if turned.shape[1:] != case.model.shape:
            raise RefusedError(422, f"The image has shape {turned.shape[1:]}, but the mask has {case.model.shape}.")
        return turned


def _narrow(values: np.ndarray) -> np.ndarray:
    """Convert to the smallest type that represents all values exactly, to reduce the transfer to the browser."""
    low, high = values.min(initial=0), values.max(initial=0)
    for kind in (np.uint8, np.int16):
        limits = np.iinfo(kind)
        if low >= limits.min and high <= limits.max:
            narrow = values.astype(kind)
            if np.array_equal(narrow, values):
                return narrow
    return values.astype(np.float32)
