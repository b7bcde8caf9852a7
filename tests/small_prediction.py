"""A small folder of predicted masks with deferral maps, written as a prediction writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from made_once import made_once
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_deferral import maps
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.defaults import MAPS
from nnunetv2_deferral.settings import resolve_settings

LABELS = {"background": 0, "rim": 1, "core": 2}
GEOMETRY = {
    "sitk_stuff": {
        "spacing": (0.7, 1.1, 2.5),
        "origin": (-11.0, 3.5, 40.0),
        "direction": (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    },
    "spacing": [2.5, 1.1, 0.7],
}


class WrittenCase(NamedTuple):
    """What was written for a case, all of shape (Z, Y, X) or (1, Y, X)."""

    model: np.ndarray
    route: np.ndarray
    probability: np.ndarray
    expert: np.ndarray
    gain: np.ndarray

    @property
    def maps(self) -> RoutingMaps:
        return RoutingMaps(*self[1:])


def reader_of(ending: str) -> Any:
    return SimpleITKIO() if ending == ".nii.gz" else NaturalImage2DIO()


def write_prediction(
    folder: Path,
    *,
    ending: str = ".nii.gz",
    experts: Sequence[str] = ("ann", "bob"),
    cases: Sequence[str] = ("x", "y"),
    labels: dict[str, Any] = LABELS,
    routes_to: Sequence[int] | None = None,
    kinds: tuple[str, ...] = MAPS,
) -> dict[str, WrittenCase]:
    """Write random masks, maps and a dataset.json; `routes_to` are the routes that occur, by default all."""
    how = (ending, tuple(experts), tuple(cases), labels, routes_to, kinds)
    return made_once(folder, ("prediction", how, GEOMETRY), lambda made: _write_prediction(made, *how))


def _write_prediction(
    folder: Path,
    ending: str,
    experts: Sequence[str],
    cases: Sequence[str],
    labels: dict[str, Any],
    routes_to: Sequence[int] | None,
    kinds: tuple[str, ...],
) -> dict[str, WrittenCase]:
    shape = (4, 6, 7) if ending == ".nii.gz" else (1, 9, 8)
    routes = list(range(len(experts) + 1)) if routes_to is None else list(routes_to)
    deferral = deferral_folder(folder, ending, experts, kinds)
    written = {}
    for number, case in enumerate(cases):
        random = np.random.default_rng(number)
        predicted = written[case] = WrittenCase(
            random.integers(0, 3, shape).astype(np.uint8),
            random.choice(routes, shape).astype(np.uint8),
            random.random(shape, dtype=np.float32),
            random.integers(1, len(experts) + 1, shape).astype(np.uint8),
            random.random(shape, dtype=np.float32) / 100,
        )
        deferral.write(case, predicted.maps, GEOMETRY)
        write_mask(folder / f"{case}{ending}", predicted.model)
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ending}))
    return written


def write_study(root: Path) -> None:
    """A prediction `in` of two cases, and `experts`, `labels` and `images` for it."""
    for case, predicted in write_prediction(root / "in").items():
        for folder in ("experts/ann", "experts/bob", "labels"):
            write_mask(root / folder / f"{case}.nii.gz", np.roll(predicted.model, len(folder), -1))
        write_mask(root / "images" / f"{case}_0000.nii.gz", predicted.model)


def deferral_folder(
    folder: Path, ending: str, experts: Sequence[str], kinds: tuple[str, ...] = MAPS
) -> maps.DeferralFolder:
    model = maps.ModelIdentity(
        dataset="Dataset701_Small", plans="nnUNetPlans", configuration="2d", trainer="T", experts=tuple(experts)
    )
    settings = resolve_settings({"experts": list(experts)})
    return maps.DeferralFolder(
        folder=folder, file_ending=ending, writer=reader_of(ending), model=model, settings=settings, kinds=kinds
    )


def write_mask(file: Path, mask: np.ndarray, **geometry: Any) -> None:
    """A mask with the geometry of the prediction, but for what `geometry` changes (`origin`, ...)."""
    file.parent.mkdir(parents=True, exist_ok=True)
    properties = GEOMETRY | {"sitk_stuff": GEOMETRY["sitk_stuff"] | geometry}
    reader_of(".nii.gz" if file.name.endswith(".nii.gz") else file.suffix).write_seg(mask, str(file), properties)


def read_mask(file: Path) -> np.ndarray:
    values, _ = reader_of(".nii.gz" if file.name.endswith(".nii.gz") else file.suffix).read_seg(str(file))
    return values[0].astype(np.int64)
