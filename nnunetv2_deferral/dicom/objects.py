"""DICOM segmentations and parametric maps of a volume, in the study of its source and with references to it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, TM

from nnunetv2_deferral import __version__
from nnunetv2_deferral.dicom.codes import CodeJson, LabelCodes
from nnunetv2_deferral.dicom.segments import REGION_TYPE
from nnunetv2_deferral.dicom.series import Series
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.image_files import reason_of
from nnunetv2_deferral.text import fingerprint

INVESTIGATIONAL = "INVESTIGATIONAL USE ONLY"

# The quantities of the maps, all but the first with codes of our own.
QUANTITIES = {
    "probability": Code("122157", "DCM", "Probability"),
    "gain in Dice": Code("EXPECTED_GAIN", "99NNUNET", "Expected gain in Dice"),
    "gain in score": Code("GAIN_SCORE", "99NNUNET", "Gain, a score without a unit"),
}

_SOFTWARE = "nnunetv2-deferral"
_LONGEST_LABEL = 64  # of DICOM's value representation LO
_REGION_CODES: LabelCodes = {
    "category": {"value": "309825002", "scheme": "SCT", "meaning": "Spatial and Relational Concept"},
    "type": {"value": REGION_TYPE[0], "scheme": REGION_TYPE[1], "meaning": "Selected region"},
}
# Of type 2 in these objects, so that they are present but may be empty; anonymizers remove them.
_OF_PATIENT = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime"),
)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A segment of a segmentation.

    Attributes:
        label: Its name; characters beyond 64 are cut off.
        codes: What it is.
        description: In words, up to 1024 characters; None for none.
        tracking: An identifier that stays when the segmentation is edited; None for none.
    """

    label: str
    codes: LabelCodes
    description: str | None = None
    tracking: str | None = None


@dataclass(frozen=True, kw_only=True)
class Content:
    """What an object is called.

    Attributes:
        label: Up to 16 capital letters, digits and underscores.
        text: Words for the series.
        number: The number of its series.
    """

    label: str
    text: str
    number: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The series that objects are derived from, and the model.

    Attributes:
        series: The series.
        headers: Its headers, see :func:`.load_headers`.
        model: The identity of the model, as in deferral.json.
    """

    series: Series
    headers: Sequence[Dataset]
    model: Mapping[str, Any]

    def segmentation(self, volume: np.ndarray, segments: Sequence[Segment], kind: str, content: Content) -> Dataset:
        """A segmentation.

        Args:
            volume: In the order of the series: integer (Z, Y, X), the number of the segment from 1, or 0; or (Z, Y, X,
                number of segments), bool, or for a fractional one float32 in [0, 1].
            segments: In the order of their numbers.
            kind: One of :data:`.defaults.DICOM_KINDS`.
            content: What it is called.

        Raises:
            InputError: If headers of the source do not allow it; the message names the series.
        """
        values = volume.astype(np.uint8) if volume.dtype == bool else volume
        descriptions = [self._description(number, segment) for number, segment in enumerate(segments, start=1)]
        with _building(self.series):
            return hd.seg.Segmentation(
                pixel_array=self._by_frame(values),
                segmentation_type=kind.upper(),
                segment_descriptions=descriptions,
                **self._common(content),
            )

    def parametric_map(self, volume: np.ndarray, quantity: Code, content: Content) -> Dataset:
        """A parametric map of numbers without a unit.

        Args:
            volume: float32 (Z, Y, X) in the order of the series.
            quantity: What the numbers are.
            content: What it is called.

        Raises:
            InputError: If headers of the source do not allow it; the message names the series.
        """
        highest = float(volume.max(initial=0))
        mapping = hd.pm.RealWorldValueMapping(
            lut_label=content.label,
            lut_explanation=quantity.meaning,
            unit=codes.UCUM.NoUnits,
            value_range=(0.0, highest or 1.0),
            slope=1,
            intercept=0,
            quantity_definition=quantity,
        )
        # By default a window has a width of at least 1.
        exact = hd.VOILUTFunctionValues.LINEAR_EXACT
        window = hd.VOILUTTransformation((highest or 1.0) / 2, highest or 1.0, voi_lut_function=exact)
        with _building(self.series):
            made = hd.pm.ParametricMap(
                pixel_array=self._by_frame(volume.astype(np.float32)),
                contains_recognizable_visual_features=False,
                real_world_value_mappings=[mapping],
                voi_lut_transformations=[window],
                **self._common(content),
            )
        # For dcmqi, by which 3D Slicer reads parametric maps: it crashes without an anatomy, and takes the frames for
        # sorted along the normal, so that it would mirror the order of highdicom.
        anatomy = Dataset()
        anatomy.FrameLaterality = "U"
        anatomy.AnatomicRegionSequence = self.headers[0].get("AnatomicRegionSequence") or [
            hd.sr.CodedConcept("38266002", "SCT", "Entire body")
        ]
        made.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]
        self._sort_frames(made)
        return made

    def _sort_frames(self, made: Dataset) -> None:
        """Put the frames of a parametric map in the order of the volume."""
        groups, normal = list(made.PerFrameFunctionalGroupsSequence), self.series.planes[0].normal
        places = [np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float) for group in groups]
        order = np.argsort([place @ normal for place in places])
        frames = np.frombuffer(made.FloatPixelData, dtype=np.float32).reshape(len(groups), -1)
        made.FloatPixelData = frames[order].tobytes()
        made.PerFrameFunctionalGroupsSequence = [groups[place] for place in order]
        for number, group in enumerate(made.PerFrameFunctionalGroupsSequence, start=1):
            group.FrameContentSequence[0].DimensionIndexValues = [number]

    def _by_frame(self, volume: np.ndarray) -> np.ndarray:
        """From the order of the volume to that of the source's frames."""
        if not self.series.is_multi_frame:
            return volume
        frames = np.empty_like(volume)
        frames[[plane.frame - 1 for plane in self.series.planes]] = volume
        return frames

    def _common(self, content: Content) -> dict[str, Any]:
        return {
            "source_images": [_completed(header, self.headers[0]) for header in self.headers],
            "series_instance_uid": hd.UID(),
            "series_number": content.number,
            "series_description": f"{content.text} - {INVESTIGATIONAL}"[:_LONGEST_LABEL],
            "sop_instance_uid": hd.UID(),
            "instance_number": 1,
            "manufacturer": _SOFTWARE,
            "manufacturer_model_name": _SOFTWARE,
            "software_versions": __version__,
            "device_serial_number": self._serial,
            "content_creator_name": "",
            "specific_character_set": "ISO_IR 192",  # UTF-8, also if the source has another
            "content_label": content.label,
            "content_description": f"{INVESTIGATIONAL}: {content.text}"[:_LONGEST_LABEL],
        }

    @property
    def _serial(self) -> str:
        """Identifies the model with its experts and calibration."""
        return fingerprint(dict(self.model))

    def _description(self, number: int, segment: Segment) -> hd.seg.SegmentDescription:
        names = [str(self.model.get(key)) for key in ("trainer", "dataset", "configuration")]
        algorithm = hd.AlgorithmIdentificationSequence(
            name=f"nnU-Net {' '.join(names)}"[:_LONGEST_LABEL],
            family=codes.cid7162.ArtificialIntelligence,
            version=__version__,
            source=_SOFTWARE,
            parameters={"use": "investigational", "model": self._serial},
        )
        item = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=plain(segment.label)[:_LONGEST_LABEL],
            segmented_property_category=_code(segment.codes["category"]),
            segmented_property_type=_code(segment.codes["type"]),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_id=None if segment.tracking is None else plain(segment.tracking)[:_LONGEST_LABEL],
            tracking_uid=None if segment.tracking is None else hd.UID(),
        )
        if "modifier" in segment.codes:
            modifier = hd.sr.CodedConcept.from_code(_code(segment.codes["modifier"]))
            item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        if segment.description is not None:
            item.SegmentDescription = segment.description[:1024]
        return item


def region_segment(expert: str, why: str, rank: int, *, description: str, tracking: str) -> Segment:
    """The segment of a region to review, `ask <expert>: <why>, rank <n>`; `why` is shortened to fit."""
    before, after = f"ask {plain(expert)}: ", f", rank {rank}"
    room = max(_LONGEST_LABEL - len(before) - len(after), 0)
    short = plain(why)
    short = short if len(short) <= room else f"{short[: max(room - 3, 0)]}..."
    return Segment(
        label=f"{before}{short}"[: _LONGEST_LABEL - len(after)] + after,
        codes=_REGION_CODES,
        description=description,
        tracking=tracking,
    )


def plain(text: str) -> str:
    r"""Text for a DICOM attribute, in which `\` separates values."""
    return text.replace("\\", "/").strip()


def _completed(header: Dataset, first: Dataset) -> Dataset:
    """A header as highdicom expects it: with empty patient data if there are none, and one orientation for all slices.

    :func:`.read_series` has checked that orientations and pixel spacings are the same up to rounding.
    """
    header = copy.copy(header)
    for keyword in _OF_PATIENT:
        if keyword not in header or not _is_valid(header[keyword]):
            setattr(header, keyword, "")
    if "ImageOrientationPatient" in first:
        header.ImageOrientationPatient = first.ImageOrientationPatient
    elif (frames := header.get("PerFrameFunctionalGroupsSequence")) and "SharedFunctionalGroupsSequence" in header:
        shared = copy.copy(header.SharedFunctionalGroupsSequence[0])
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            if keyword not in shared:
                setattr(shared, keyword, frames[0][keyword].value)
        header.SharedFunctionalGroupsSequence = [shared]
    return header


def _is_valid(element: DataElement) -> bool:
    """Whether a date or time can be read and a sex is one of DICOM's; highdicom takes no others."""
    if element.keyword == "PatientSex":
        return str(element.value or "") in ("", "M", "F", "O")
    kinds: dict[str, Callable[[str], object]] = {"DA": DA, "TM": TM}
    try:
        kinds.get(element.VR, str)(str(element.value or ""))
    except ValueError:
        return False
    return True


def _code(code: CodeJson) -> Code:
    return Code(code["value"], code["scheme"], code["meaning"])


@contextmanager
def _building(series: Series) -> Iterator[None]:
    """No warnings of highdicom and pydicom on values of the source that are not strictly valid, and errors by name.

    Raises:
        InputError: In place of the errors of either, which have no common class.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"no DICOM objects can be made of series {series.uid}: {reason_of(error)}") from error
