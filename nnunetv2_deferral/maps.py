"""The deferral maps beside a folder of predicted masks: where they are, how they are written and read.

    <folder>/<case>.nii.gz                        the model's mask, written by nnU-Net
    <folder>/deferral/route/<case>.nii.gz         uint8: 0 the model, j expert j
    <folder>/deferral/probability/<case>.nii.gz   float32 in [0, 1]: probability that the voxel is deferred
    <folder>/deferral/expert/<case>.nii.gz        uint8: whom to ask if the voxel were deferred, j as above
    <folder>/deferral/gain/<case>.nii.gz          float32: what asking that expert is expected to add to the case's Dice
    <folder>/deferral/routing/<case>.npz          with --save_probabilities or --npz: J + 1 probabilities, uncalibrated
    <folder>/deferral/deferral.json               experts, settings, versions, calibration; rates and limits per case

The maps lie in a subfolder because nnU-Net takes every file with the dataset's ending in the folder itself for a case.
2D formats without floating point hold the probability as integers, 0..65535 in .png and .tif, 0..255 in .bmp, and the
gain likewise as a share of the case's `largest_gain` in deferral.json, rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock

from nnunetv2_deferral import __version__
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json, write_json, written_whole
from nnunetv2_deferral.settings import DeferralSettings

FOLDER = "deferral"
# What stands for probability 1 in the formats of nnU-Net's 2D reader of natural images.
_FULL_SCALE = {".png": 65535, ".tif": 65535, ".bmp": 255}


class MaskWriter(Protocol):
    """What of nnU-Net's reader-writers the maps are written with."""

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict[str, Any]) -> None:
        """Write a mask with the geometry in `properties`."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Which model made the maps of a folder, who could be asked, and with which calibration (its fingerprint)."""

    dataset: str
    plans: str
    configuration: str
    trainer: str | None
    experts: tuple[str, ...]
    unavailable: tuple[str, ...] = ()
    calibration: str | None = None


def route_file(folder: Path, case: str, file_ending: str) -> Path:
    """The routing map of a case."""
    return folder / FOLDER / "route" / f"{case}{file_ending}"


def probability_file(folder: Path, case: str, file_ending: str) -> Path:
    """The deferral probability of a case."""
    return folder / FOLDER / "probability" / f"{case}{file_ending}"


def expert_file(folder: Path, case: str, file_ending: str) -> Path:
    """The most suitable expert for every voxel of a case, deferred or not."""
    return folder / FOLDER / "expert" / f"{case}{file_ending}"


def gain_file(folder: Path, case: str, file_ending: str) -> Path:
    """What asking the most suitable expert about a voxel is expected to add to the Dice of a case."""
    return folder / FOLDER / "gain" / f"{case}{file_ending}"


# What there is of every case, each a function of folder, case and file ending.
MAP_FILES = (route_file, probability_file, expert_file, gain_file)


def routing_file(folder: Path, case: str) -> Path:
    """The J + 1 probabilities that the maps of a case are made of."""
    return folder / FOLDER / "routing" / f"{case}.npz"


def index_file(folder: Path) -> Path:
    """The JSON file about all maps of a folder."""
    return folder / FOLDER / "deferral.json"


def full_scale(file_ending: str, shape: Sequence[int]) -> int | None:
    """The integer that stands for probability 1 in a map of this shape, or None where floats are written."""
    return _FULL_SCALE.get(file_ending) if shape[0] == 1 else None


def check_folder(folder: Path, model: ModelIdentity) -> None:
    """Refuse a folder that holds the deferral maps of another model.

    Raises:
        InputError: Naming the folder and both models.
    """
    file = index_file(folder)
    if not file.is_file():
        return
    theirs, ours = read_json(file)["model"], _as_json(model)
    if theirs != ours:
        differing = [
            f"{key}: {theirs.get(key)} there, {value} now" for key, value in ours.items() if theirs.get(key) != value
        ]
        raise InputError(
            f"{folder} already holds the deferral maps of another model ({'; '.join(differing)}). Predict into another "
            f"folder, or remove {file.parent}"
        )


def write_maps(
    folder: Path,
    case: str,
    file_ending: str,
    route: np.ndarray,
    probability: np.ndarray,
    expert: np.ndarray,
    gain: np.ndarray,
    *,
    writer: MaskWriter,
    properties: dict[str, Any],
    model: ModelIdentity,
    settings: DeferralSettings,
    calibration: ModelCalibration | None = None,
    statistics: Mapping[str, Any] | None = None,
) -> None:
    """Write the maps of a case and enter it into the folder's `deferral.json`; safe in several processes at once.

    Args:
        folder: The folder of the masks.
        case: The case identifier.
        file_ending: The dataset's file ending, such as `.nii.gz`.
        route: uint8, in the axis order of nnU-Net's writers: (Z, Y, X) or (1, Y, X).
        probability: float32 of the same shape, in [0, 1].
        expert: uint8 of the same shape, in [1, J].
        gain: float32 of the same shape, not negative.
        writer: nnU-Net's reader-writer for this dataset.
        properties: nnU-Net's properties of the case, which hold its geometry.
        model: Which model made the maps.
        settings: The effective settings of the model.
        calibration: What the maps were made with, or None.
        statistics: What is to be said of the case beside its rates.
    """
    largest_gain = float(gain.max(initial=0))
    if scale := full_scale(file_ending, route.shape):
        probability = np.round(probability.astype(np.float64) * scale).astype(np.min_scalar_type(scale))
        # Up, as a voxel where anything is to be gained must not become one where nothing is.
        gain = np.ceil(gain.astype(np.float64) * (scale / (largest_gain or 1))).clip(max=scale)
        gain = gain.astype(probability.dtype)
    for file, array in (
        (route_file(folder, case, file_ending), route),
        (probability_file(folder, case, file_ending), probability),
        (expert_file(folder, case, file_ending), expert),
        (gain_file(folder, case, file_ending), gain),
    ):
        with written_whole(file.parent) as scratch:
            writer.write_seg(_as_typed(array), str(scratch / file.name), properties)
    entry = deferral_rates(route, model.experts) | {"largest_gain": largest_gain} | dict(statistics or {})
    _enter_case(folder, case, entry, model, settings, calibration)


def save_routing(folder: Path, case: str, probabilities: np.ndarray) -> None:
    """Save the routing probabilities of a case, as nnU-Net saves those of the segmentation.

    Args:
        folder: The folder of the masks.
        case: The case identifier.
        probabilities: float32 (J + 1, *S) before calibration, NaN where nothing was predicted.
    """
    file = routing_file(folder, case)
    with written_whole(file.parent) as scratch:
        np.savez_compressed(scratch / file.name, probabilities=probabilities)


def deferral_rates(route: np.ndarray, experts: Sequence[str]) -> dict[str, Any]:
    """The share of voxels that is deferred, and the share that goes to each expert.

    Returns:
        `{"deferral_rate": float, "share": {expert: float}}`, shares of all voxels; 0 for an empty map.
    """
    counts = np.bincount(route.ravel(), minlength=len(experts) + 1)
    share = counts / max(route.size, 1)
    return {
        "deferral_rate": float(share[1:].sum()),
        "share": {name: float(value) for name, value in zip(experts, share[1:], strict=True)},
    }


def _enter_case(
    folder: Path,
    case: str,
    entry: dict[str, Any],
    model: ModelIdentity,
    settings: DeferralSettings,
    calibration: ModelCalibration | None,
) -> None:
    file = index_file(folder)
    with FileLock(file.with_name(".deferral.json.lock")):
        cases = read_json(file)["cases"] if file.is_file() else {}
        content = {
            "model": _as_json(model),
            "settings": settings.to_dict(),
            "calibration": None if calibration is None else calibration.to_dict(),
            "versions": {
                "nnunetv2_deferral": __version__,
                "nnunetv2": version("nnunetv2"),
                "torch": version("torch"),
            },
            "cases": dict(sorted((cases | {case: entry}).items())),
        }
        write_json(content, file)


def _as_json(model: ModelIdentity) -> dict[str, Any]:
    return asdict(model) | {"experts": list(model.experts), "unavailable": list(model.unavailable)}


class _Typed(np.ndarray):
    """An array that keeps its dtype where nnU-Net's writers cast a mask to unsigned integers."""

    def astype(self, *_args: Any, **_kwargs: Any) -> np.ndarray:
        return np.asarray(self)


def _as_typed(array: np.ndarray) -> np.ndarray:
    # nnU-Net's writers know every format and its geometry, orientation included, but write integers only.
    return array.view(_Typed)
