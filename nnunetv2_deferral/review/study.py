"""The predictions, images and references of a review, in the browser's orientation."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.review.geometry import Orientation, orientation_of
from nnunetv2_deferral.review.rules import RefusedError

REACH_VOXELS = 2
"""Pieces of a route that lie within twice this distance are one region, so that specks are visited together."""
MAX_REGIONS = np.iinfo(np.uint16).max
CASES_IN_MEMORY = 3


@dataclass(frozen=True, kw_only=True)
class CaseInfo:
    """What the list of cases tells; counts are (J,) in routing order.

    Attributes:
        name: The case identifier.
        shape: (Z, Y, X) in the browser's orientation.
        voxels: How many voxels each expert is asked about.
        regions: How many regions these form.
        images: The files of the image, one a channel.
        reference: The file of the reference, if there is one.
    """

    name: str
    shape: tuple[int, int, int]
    voxels: tuple[int, ...]
    regions: tuple[int, ...]
    images: tuple[Path, ...]
    reference: Path | None


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedCase:
    """The maps of a case in the browser's orientation.

    Attributes:
        info: Its entry in the list.
        properties: nnU-Net's properties of the model's mask.
        orientation: How the file lies.
        model: uint8 (Z, Y, X), the model's mask.
        route: uint8 of the same shape.
        digest: Of both.
    """

    info: CaseInfo
    properties: dict[str, Any]
    orientation: Orientation
    model: np.ndarray
    route: np.ndarray
    digest: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What an expert is asked in a case.

    Attributes:
        voxels: int64 (V,), where the voxels lie in the flat volume, ascending.
        regions: uint16 (Z, Y, X): 0 not asked, else the number of the region, largest first.
        listing: For each region its number, its size in voxels, a voxel [z, y, x] in the middle of its largest slice,
            and the corners of its box (the second one is the last voxel inside).
    """

    voxels: np.ndarray
    regions: np.ndarray
    listing: list[dict[str, Any]]


class Study:
    """All that is reviewed; reads files, writes none, and may be used from any thread.

    Attributes:
        predictions: The predictions.
        infos: The cases by name.
    """

    def __init__(self, predictions: PredictionFolder, images: Path, references: Path | None) -> None:
        """Read through all cases once.

        Raises:
            ValueError: If a mask, route or image is missing or does not fit; the message names the file.
        """
        self.predictions = predictions
        highest = max(self.labels)
        if highest > np.iinfo(np.uint8).max:
            raise ValueError(f"the review page knows labels up to 255, the dataset has {highest}")
        self._images, self._references = images, references
        cases = tqdm(predictions.cases, desc="Reading the routes", unit="case")
        self.infos = {case: self._inspect(case) for case in cases}
        self._lock = threading.Lock()
        self._case = lru_cache(CASES_IN_MEMORY)(self._read_case)
        self._asked = lru_cache(CASES_IN_MEMORY * len(self.experts))(self._find_asked)
        self._image = lru_cache(CASES_IN_MEMORY)(self._read_image)

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the experts in routing order."""
        return self.predictions.experts

    @property
    def labels(self) -> tuple[int, ...]:
        """All labels with background, without the ignore label."""
        return self.predictions.files.label_values

    def case(self, name: str) -> LoadedCase:
        """The maps of a case of the listing.

        Raises:
            RefusedError: If the name is not in the listing.
        """
        if name not in self.infos:
            raise RefusedError(404, "There is no such case.")
        with self._lock:
            return self._case(name)

    def asked(self, name: str, expert: str) -> Asked:
        """What an expert is asked in a case."""
        case = self.case(name)
        with self._lock:
            return self._asked(case, self.experts.index(expert) + 1)

    def image(self, name: str) -> np.ndarray:
        """The image (C, Z, Y, X), uint8 or int16 where that holds its values exactly, else float32.

        Raises:
            RefusedError: If it cannot be read or has another shape than the mask.
        """
        case = self.case(name)
        with self._lock:
            return self._image(case)

    def reference(self, name: str) -> np.ndarray | None:
        """The reference of a case, int64 (Z, Y, X), or None."""
        case = self.case(name)
        file = case.info.reference
        if file is None:
            return None
        values, _ = self.predictions.files.read(file)
        turned = case.orientation.to_canonical(values)
        if turned.shape != case.info.shape:
            raise RefusedError(422, f"The reference has shape {turned.shape}, the model's mask {case.info.shape}.")
        return turned

    def is_colour(self, name: str) -> bool:
        """Whether the channels of a case are red, green and blue of one picture."""
        return len(self.infos[name].images) == 1 and self.image(name).shape[0] == 3

    def _inspect(self, name: str) -> CaseInfo:
        files = self.predictions.files
        pattern = "[0-9]" * 4
        images = tuple(
            sorted(
                file
                for file in self._images.glob(f"*_{pattern}{files.file_ending}")
                if file.name.removesuffix(files.file_ending)[:-5] == name
            )
        )
        if not images:
            raise ValueError(f"there is no image {self._images / f'{name}_0000{files.file_ending}'}")
        reference = self._references and self._references / f"{name}{files.file_ending}"
        model, _, orientation = self._read_mask(name)
        route = self._read_route(name, model.shape, orientation)
        numbers = range(1, len(self.experts) + 1)
        return CaseInfo(
            name=name,
            shape=model.shape,
            voxels=tuple(int((route == number).sum()) for number in numbers),
            regions=tuple(len(find_regions(route == number)[1]) for number in numbers),
            images=images,
            reference=reference if reference and reference.is_file() else None,
        )

    def _read_mask(self, name: str) -> tuple[np.ndarray, dict[str, Any], Orientation]:
        values, properties = self.predictions.model(name)
        if values.ndim != 3:
            raise ValueError(f"{self.predictions.mask_file(name)} has {values.ndim} axes instead of 3")
        unknown = np.setdiff1d(values, self.labels)
        if unknown.size:
            raise ValueError(f"{self.predictions.mask_file(name)} holds unknown labels: {unknown[:5].tolist()}")
        orientation = orientation_of(properties, values.shape)
        return orientation.to_canonical(values.astype(np.uint8)), properties, orientation

    def _read_route(self, name: str, shape: Sequence[int], orientation: Orientation) -> np.ndarray:
        route = orientation.to_canonical(self.predictions.route(name))
        if route.shape != tuple(shape):
            raise ValueError(f"the route of {name} has shape {route.shape}, its mask {tuple(shape)}")
        return route

    def _read_case(self, name: str) -> LoadedCase:
        model, properties, orientation = self._read_mask(name)
        route = self._read_route(name, model.shape, orientation)
        digest = hashlib.sha256(str(model.shape).encode() + model.tobytes() + route.tobytes()).hexdigest()
        return LoadedCase(
            info=self.infos[name],
            properties=properties,
            orientation=orientation,
            model=model,
            route=route,
            digest=digest,
        )

    def _find_asked(self, case: LoadedCase, number: int) -> Asked:
        mask = case.route == number
        regions, listing = find_regions(mask)
        return Asked(voxels=np.flatnonzero(mask), regions=regions, listing=listing)

    def _read_image(self, case: LoadedCase) -> np.ndarray:
        try:
            values, _ = self.predictions.files.reader.read_images([str(file) for file in case.info.images])
        except Exception as error:  # readers fail in their own ways
            raise RefusedError(422, f"The image of this case cannot be read: {error}") from error
        turned = case.orientation.to_canonical(_narrow(values))
        if turned.shape[1:] != case.info.shape:
            raise RefusedError(422, f"The image has shape {turned.shape[1:]}, the model's mask {case.info.shape}.")
        return turned


def find_regions(mask: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The regions of a mask, see :class:`Asked`.

    Args:
        mask: Bool (Z, Y, X).

    Returns:
        :attr:`Asked.regions` and :attr:`Asked.listing`; the listing of an empty mask is empty.
    """
    numbers = np.zeros(mask.shape, dtype=np.uint16)
    box = ndimage.find_objects(mask.astype(np.uint8))
    if not box:
        return numbers, []
    inside = mask[box[0]]
    padded = np.pad(inside, REACH_VOXELS)
    joined = ndimage.binary_dilation(padded, np.ones((3, 3, 3)), iterations=REACH_VOXELS)
    pieces, _ = ndimage.label(joined, np.ones((3, 3, 3)))
    pieces = pieces[(slice(REACH_VOXELS, -REACH_VOXELS),) * 3] * inside
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(1, order.size + 1)
    # What is beyond the number that fits, the smallest specks of a very noisy route, shares the last number.
    numbers[box[0]] = np.where(inside, np.minimum(rank[pieces], MAX_REGIONS), 0)
    found = ndimage.find_objects(numbers)
    return numbers, [_describe(numbers, number, where) for number, where in enumerate(found, start=1)]


def _describe(numbers: np.ndarray, number: int, where: tuple[slice, slice, slice]) -> dict[str, Any]:
    inside = numbers[where] == number
    per_slice = inside.sum(axis=(1, 2))
    depth = int(per_slice.argmax())
    rows, columns = np.nonzero(inside[depth])
    middle = int(((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin())
    low = [edge.start for edge in where]
    return {
        "number": number,
        "voxels": int(per_slice.sum()),
        "centre": [low[0] + depth, low[1] + int(rows[middle]), low[2] + int(columns[middle])],
        "box": [low, [edge.stop - 1 for edge in where]],
    }


def _narrow(values: np.ndarray) -> np.ndarray:
    """The smallest type that holds all values exactly: a byte a voxel instead of four on the way to the browser."""
    for kind in (np.uint8, np.int16):
        limits = np.iinfo(kind)
        if values.min(initial=0) >= limits.min and values.max(initial=0) <= limits.max:
            narrow = values.astype(kind)
            if np.array_equal(narrow, values):
                return narrow
    return values.astype(np.float32)
