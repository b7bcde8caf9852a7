"""Reading DICOM segmentations that other programs wrote or edited, voxel by voxel, without resampling."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from nnunetv2_deferral.dicom.planes import Plane, decoding, frame_groups, numbers, planes_of, read_object
from nnunetv2_deferral.dicom.series import TOLERANCE
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import MAX_DISPLACEMENT_VOXELS, Orientation
from nnunetv2_deferral.text import fingerprint

CLASSES = {"1.2.840.10008.5.1.4.1.1.66.4": "Segmentation", "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation"}
REGION_TYPE = ("111099", "DCM")  # "Selected region"
_TRACKING = re.compile(r"route-[0-9a-f]{12}(?=/)")
_REGION_LABEL = re.compile(r"ask .+, rank \d+")


@dataclass(frozen=True, kw_only=True)
class FoundSegment:
    """A segment as a file describes it; codes are value and scheme, and `tracking` is empty for none."""

    number: int
    label: str
    category: tuple[str, str]
    kind: tuple[str, str]
    modifier: tuple[str, str] | None
    tracking: str

    @property
    def is_region(self) -> bool:
        """Whether it is a region to review, and not an answer."""
        return self.kind == REGION_TYPE or _REGION_LABEL.fullmatch(self.label) is not None

    @property
    def route(self) -> str | None:
        """:func:`route_name` of the case at the export; None if it does not say."""
        found = _TRACKING.match(self.tracking)
        return found and found[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class SegmentationFile:
    """A segmentation.

    Attributes:
        file: The file.
        instance: Its SOPInstanceUID.
        study: Its StudyInstanceUID.
        frame_of_reference: Its FrameOfReferenceUID, empty if it has none.
        sources: The SOPInstanceUIDs that it refers to, by SeriesInstanceUID.
        segments: Its segments by number.
    """

    file: Path
    instance: str
    study: str
    frame_of_reference: str
    sources: Mapping[str, tuple[str, ...]]
    segments: Mapping[int, FoundSegment]
    _dataset: Dataset

    @classmethod
    def read(cls, file: Path) -> SegmentationFile:
        """Read a file.

        Raises:
            InputError: If it cannot be read, is no segmentation, a fractional one, or describes no segments.
        """
        dataset = read_object(file)
        kind = str(dataset.get("SOPClassUID", ""))
        if kind not in CLASSES:
            raise InputError(f"{file} is not a DICOM segmentation: SOPClassUID {kind or 'missing'}")
        if str(dataset.get("SegmentationType")) == "FRACTIONAL":
            raise InputError(f"{file} is a FRACTIONAL segmentation; answers must be BINARY or LABELMAP")
        with decoding(file):
            items = [_segment(item) for item in dataset.get("SegmentSequence") or ()]
            sources: dict[str, tuple[str, ...]] = {}
            for each in dataset.get("ReferencedSeriesSequence") or ():
                named = (str(one.ReferencedSOPInstanceUID) for one in each.get("ReferencedInstanceSequence") or ())
                uid = str(each.SeriesInstanceUID)
                sources[uid] = (*sources.get(uid, ()), *named)
            instance = str(dataset.SOPInstanceUID)
        return cls(
            file=file,
            instance=instance,
            study=str(dataset.get("StudyInstanceUID") or ""),
            frame_of_reference=str(dataset.get("FrameOfReferenceUID") or ""),
            sources=sources,
            segments={item.number: item for item in items if item.number},  # 0 is the background of label maps
            _dataset=dataset,
        )

    def masks(self, orientation: Orientation, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
        """Each segment on the voxels of a volume.

        Its frames may be in any order, cropped, turned and mirrored, as long as they lie on the voxels.

        Args:
            orientation: Of the volume.
            shape: Of the volume's array in its file.

        Returns:
            For each segment with voxels, bool of shape `shape`.

        Raises:
            InputError: If frames do not lie on the voxels, two frames of a segment are at one place, or voxels of a
                segment are outside of the volume; the message names file, frame and displacement.
        """
        planes = planes_of(self._dataset, str(self.file))
        if not planes:
            raise InputError(f"{self.file} has no frames")
        with decoding(self.file):
            pixels: np.ndarray = self._dataset.pixel_array
            frames = pixels.reshape(len(planes), *planes[0].shape)
        canonical = orientation.to_canonical(np.zeros(shape, dtype=bool))
        found: dict[int, np.ndarray] = {}
        places: dict[tuple[int, str], int] = {}
        for plane, frame in zip(planes, frames, strict=True):
            for number, where in self._of_segments(plane, frame):
                if where.size:
                    other = places.setdefault((number, numbers(plane.position)), plane.frame)
                    if other != plane.frame:
                        raise InputError(
                            f"{self.file}: the frames {other} and {plane.frame} are both of segment {number} at "
                            f"{numbers(plane.position)}"
                        )
                    voxels = self._voxels(plane, where, orientation, canonical.shape, number)
                    found.setdefault(number, np.zeros_like(canonical))[tuple(voxels.T)] = True
        return {number: orientation.to_file(mask) for number, mask in sorted(found.items())}

    def _of_segments(self, plane: Plane, frame: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """The segments of a frame, each with its pixels (n, 2) as row and column."""
        for group in frame_groups(self._dataset, plane.frame):
            for item in group.get("SegmentIdentificationSequence") or ():
                return [(int(item.ReferencedSegmentNumber), np.argwhere(frame != 0))]
        return [(int(number), np.argwhere(frame == number)) for number in np.unique(frame) if number]

    def _voxels(
        self, plane: Plane, pixels: np.ndarray, orientation: Orientation, shape: tuple[int, ...], number: int
    ) -> np.ndarray:
        """The voxels (n, 3), as z, y and x of the canonical array, of pixels."""
        to_voxels = np.linalg.inv(orientation.affine)
        steps = to_voxels[:3, :3] @ np.stack([plane.down, plane.right], axis=1)
        first = to_voxels[:3, :3] @ plane.position + to_voxels[:3, 3]
        whole = np.rint(steps)
        if not np.array_equal(np.sort(np.abs(whole), axis=0), [[0, 0], [0, 0], [1, 1]]):
            raise InputError(
                f"{self.file}, frame {plane.frame}: its pixels are not the voxels of the case: a step to the next row "
                f"is {numbers(steps[:, 0])} voxels along x, y, z and one to the next column {numbers(steps[:, 1])}"
            )
        exact = pixels @ steps.T + first
        voxels = np.rint(exact).astype(np.int64)
        if (apart := float(np.abs(exact - voxels).max())) > TOLERANCE + MAX_DISPLACEMENT_VOXELS:
            raise InputError(
                f"{self.file}, frame {plane.frame}: its pixels are up to {apart:.3g} voxels from the voxels of the case"
            )
        voxels = voxels[:, ::-1]
        if outside := int(((voxels < 0) | (voxels >= np.array(shape))).any(axis=1).sum()):
            raise InputError(
                f"{self.file}, frame {plane.frame}: {outside} voxels of segment {number} are outside of the image"
            )
        return voxels


def route_name(route: np.ndarray) -> str:
    """A name of the regions of a case, with which the tracking identifiers of exported segments begin."""
    return f"route-{fingerprint([route.shape, zlib.crc32(route.tobytes())])}"


def _segment(item: Dataset) -> FoundSegment:
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    modifier = kind.get("SegmentedPropertyTypeModifierCodeSequence") or ()
    return FoundSegment(
        number=int(item.SegmentNumber),
        label=str(item.get("SegmentLabel", "")).strip(),
        category=_pair(item.SegmentedPropertyCategoryCodeSequence[0]),
        kind=_pair(kind),
        modifier=_pair(modifier[0]) if modifier else None,
        tracking=str(item.get("TrackingID", "")),
    )


def _pair(code: Dataset) -> tuple[str, str]:
    return str(code.get("CodeValue", "")), str(code.get("CodingSchemeDesignator", ""))
