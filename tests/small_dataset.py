"""A small dataset in nnUNet_raw and nnUNet_preprocessed, by nnU-Net's own preprocessor, without the time of planning.

It has everything that moves voxels about: axes that are transposed (by no mere swap), a border that is cropped away,
and another spacing than that of the images; if asked for, corners outside of the body, which nnU-Net marks with -1.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage import io

LABELS = {"background": 0, "rim": 1, "core": 2}
SPACING, ORIGIN = (0.8, 1.1, 2.5), (-7.0, 3.5, 11.0)  # in SimpleITK's order x, y, z
DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # a quarter turn about z
CASES = ("a", "b", "c")
# (Z, Y, X)
SHAPES = {"a": (12, 26, 22), "b": (14, 24, 28), "c": (10, 30, 24)}
PATCHES = {"2d": (24, 20), "3d_fullres": (16, 14, 12)}


@dataclass(frozen=True, kw_only=True)
class SmallDataset:
    """Where a dataset is, and its plans."""

    raw: Path
    preprocessed: Path
    plans: PlansManager

    @property
    def json(self) -> dict[str, Any]:
        return json.loads((self.raw / "dataset.json").read_text())

    @property
    def ending(self) -> str:
        return self.json["file_ending"]

    def data(self, configuration: str) -> Path:
        """nnU-Net's folder of preprocessed cases."""
        return self.preprocessed / self.plans.get_configuration(configuration).data_identifier

    def mask_file(self, rater: str, case: str) -> Path:
        file = self.raw / "expertsTr" / rater / f"{case}{self.ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def reference(self, case: str) -> np.ndarray:
        """As it is in the file."""
        return read_mask(self.raw / "labelsTr" / f"{case}{self.ending}")

    def write_mask(self, rater: str, case: str, mask: np.ndarray, **geometry: Any) -> Path:
        file = self.mask_file(rater, case)
        write_mask(file, mask, **geometry)
        return file

    def copy_reference(self, rater: str, cases: Sequence[str] = CASES) -> None:
        """A rater who answers with the reference's very files."""
        for case in cases:
            file = self.mask_file(rater, case)
            file.write_bytes((self.raw / "labelsTr" / file.name).read_bytes())

    def declare(self, *raters: str) -> None:
        for folder in (self.raw, self.preprocessed):
            (folder / "dataset.json").write_text(json.dumps(self.json | {"experts": list(raters)}))


def make_dataset(
    root: Path,
    name: str = "Dataset701_Small",
    *,
    ending: str = ".nii.gz",
    labels: dict[str, Any] = LABELS,
    configurations: Sequence[str] = ("2d", "3d_fullres"),
    with_corners: bool = False,
) -> SmallDataset:
    """Write a dataset of three cases below `root`, plan and preprocess it. Volumes, or with `.png` one slice of each.

    A label "ignore" in `labels` covers a part of every case.
    """
    raw, preprocessed = root / "raw" / name, root / "preprocessed" / name
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    flat = ending == ".png"
    content = {"channel_names": {"0": "x"}, "labels": labels, "numTraining": len(CASES), "file_ending": ending}
    for folder in (raw, preprocessed):
        (folder / "dataset.json").write_text(json.dumps(content))
    for number, case in enumerate(CASES):
        image, mask = _shapes(case, with_corners=with_corners)
        if "ignore" in labels:
            mask[:, :, -8:] = labels["ignore"]
        if flat:
            image, mask = image[len(image) // 2], mask[len(mask) // 2]
        spacing = [value * (1 + 0.2 * number) for value in SPACING]
        _write(raw / "imagesTr" / f"{case}_0000{ending}", image.astype(np.uint8 if flat else np.float32), spacing)
        write_mask(raw / "labelsTr" / f"{case}{ending}", mask, spacing=spacing)
    plans = _plans(name, flat=flat, configurations=("2d",) if flat else configurations)
    (preprocessed / "nnUNetPlans.json").write_text(json.dumps(plans))
    dataset = SmallDataset(raw=raw, preprocessed=preprocessed, plans=PlansManager(plans))
    for configuration in plans["configurations"]:
        preprocess(dataset, configuration)
    return dataset


def preprocess(dataset: SmallDataset, configuration: str, cases: Sequence[str] = CASES) -> None:
    """What nnUNetv2_preprocess does, without its pool of processes."""
    folder = dataset.data(configuration)
    folder.mkdir(exist_ok=True)
    for case in cases:
        for file in folder.glob(f"{case}*"):
            file.unlink()
        DefaultPreprocessor(verbose=False).run_case_save(
            str(folder / case),
            [str(dataset.raw / "imagesTr" / f"{case}_0000{dataset.ending}")],
            str(dataset.raw / "labelsTr" / f"{case}{dataset.ending}"),
            dataset.plans,
            dataset.plans.get_configuration(configuration),
            dataset.json,
        )


def write_mask(
    file: Path,
    mask: np.ndarray,
    *,
    spacing: Sequence[float] | None = None,
    origin: Sequence[float] = ORIGIN,
    direction: Sequence[float] = DIRECTION,
) -> None:
    """Write a label map; `spacing` is by default that of the case which the file's name names."""
    if spacing is None:
        number = CASES.index(file.name.split(".")[0]) if file.name.split(".")[0] in CASES else 0
        spacing = [value * (1 + 0.2 * number) for value in SPACING]
    _write(file, mask.astype(np.uint8), spacing, origin, direction)


def read_mask(file: Path) -> np.ndarray:
    return io.imread(file) if file.suffix == ".png" else sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def _write(
    file: Path,
    array: np.ndarray,
    spacing: Sequence[float],
    origin: Sequence[float] = ORIGIN,
    direction: Sequence[float] = DIRECTION,
) -> None:
    if array.ndim == 2:
        io.imsave(file, array, check_contrast=False)
        return
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(list(spacing))
    image.SetOrigin(list(origin))
    image.SetDirection(list(direction))
    sitk.WriteImage(image, str(file))


def _shapes(case: str, *, with_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """A body, a box or with corners a ball, in a border of 0, and in it an oblique rim and core that touch its edge."""
    shape = SHAPES[case]
    random = np.random.default_rng(CASES.index(case))
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    scaled = (grid - (np.array(shape) / 2 + random.uniform(-1, 1, 3))) / (np.array(shape) * 0.45)
    body = np.linalg.norm(scaled, ord=2 if with_corners else np.inf, axis=-1) < 1
    tilted = scaled @ np.array([0.5, 0.9, -0.7])
    mask = np.where(tilted > 0.1, 1, 0) + np.where(tilted > 0.45, 1, 0)
    mask[~body & (random.uniform(size=shape) < 0.97)] = 0
    image = np.where(body, 40 + 60 * mask + random.normal(0, 12, shape), 0).clip(1 * body, 250)
    return image, mask.astype(np.uint8)


def _plans(name: str, *, flat: bool, configurations: Sequence[str]) -> dict[str, Any]:
    resampling = {
        f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")
    } | {
        f"resampling_fn_{what}_kwargs": {
            "is_seg": what == "seg",
            "order": 3 if what == "data" else 1,
            "order_z": 0,
            "force_separate_z": None,
        }
        for what in ("data", "seg", "probabilities")
    }
    spacing = {"2d": [0.8, 1.3] if flat else [0.9, 1.6], "3d_fullres": [0.7, 0.9, 1.6]}
    statistics = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    return {
        "dataset_name": name,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NaturalImage2DIO" if flat else "SimpleITKIO",
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "transpose_forward": [0, 1, 2] if flat else [2, 0, 1],
        "transpose_backward": [0, 1, 2] if flat else [1, 2, 0],
        "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(statistics, 1.0)},
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(PATCHES[configuration]),
                "spacing": spacing[configuration],
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "architecture": {},
                **resampling,
            }
            for configuration in configurations
        },
    }
