"""A made-up nnU-Net workplace: masks, maps, plans and logs as trainings leave them, without any training."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunet_folders import NnunetFolders
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from nnunetv2_deferral import maps
from nnunetv2_deferral.benchmark.training import Training
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.evaluation.overlap import overlap
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.settings import resolve_settings

DATASET = "Dataset901_Made"
LABELS = {"background": 0, "rim": 1, "core": 2}
CASES = [f"case_{number}" for number in range(6)]
SPLITS = [{"train": CASES[3:], "val": CASES[:3]}, {"train": CASES[:3], "val": CASES[3:]}]
STOCK = Method(trainer="nnUNetTrainer_5epochs", plans="nnUNetPlans")
DEFERRAL = Method(trainer="nnUNetTrainerDeferral3Experts_5epochs", plans="nnUNetPlans")
SHAPE = (1, 24, 28)
LOG = """
2026-11-21 11:21:18.1: This split has {train} training and {val} validation cases.
2026-11-21 11:21:19.1: Epoch 0
2026-11-21 11:21:29.1: Epoch time: 90.0 s
2026-11-21 11:21:29.2: Epoch 1
2026-11-21 11:21:39.1: Epoch time: {seconds} s
2026-11-21 11:21:39.2: Epoch 2
2026-11-21 11:21:49.1: Epoch time: {seconds} s
2026-11-21 11:21:50.1: Training done.
"""


@dataclass
class Workplace(NnunetFolders):
    """nnU-Net's folders, filled by hand."""

    dataset: str = DATASET

    @property
    def arguments(self) -> list[str]:
        """Of the command, for both folds."""
        return ["-d", "901", "-c", "2d", "-f", "0", "1", "-o", str(self.root / "out")]

    def experiment(self, *folds: int) -> Experiment:
        return Experiment.find(901, "2d", folds or (0, 1))

    def reference(self, case: str) -> np.ndarray:
        return read(self.preprocessed / "gt_segmentations" / f"{case}.png")

    def write_model(
        self,
        method: Method,
        *,
        folds: Sequence[int] = (0, 1),
        errors: int = 40,
        seconds: float = 10.0,
        route: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
        **block: Any,
    ) -> Path:
        """What a training leaves. With a route, (reference, mask) -> route, it is that of a deferral model."""
        model = self.experiment().model(method)
        model.mkdir(parents=True, exist_ok=True)
        plans = json.loads((self.preprocessed / f"{method.plans}.json").read_text())
        settings = resolve_settings({**plans.get("deferral", {}), **block}, num_experts=None)
        if route is not None:
            plans |= {"deferral": settings.to_dict(), "deferral_model": {"trainer": method.trainer}}
        (model / "plans.json").write_text(json.dumps(plans))
        (model / "dataset.json").write_text((self.preprocessed / "dataset.json").read_text())
        (model / "dataset_fingerprint.json").write_text((self.preprocessed / "dataset_fingerprint.json").read_text())
        for fold in folds:
            self._write_fold(model / f"fold_{fold}", fold, errors, seconds)
            if route is not None:
                self._write_maps(model / f"fold_{fold}" / "validation", SPLITS[fold]["val"], method, settings, route)
        return model

    def _write_fold(self, folder: Path, fold: int, errors: int, seconds: float) -> None:
        (folder / "validation").mkdir(parents=True, exist_ok=True)
        write_checkpoint(folder / "checkpoint_final.pth")
        sizes = {part: len(cases) for part, cases in SPLITS[fold].items()}
        (folder / "training_log_2026_11_21_11_21_18.txt").write_text(LOG.format(seconds=seconds, **sizes))
        debug = {"device": "cpu", "hostname": "here", "num_epochs": "3", "num_iterations_per_epoch": "250"}
        (folder / "debug.json").write_text(json.dumps(debug))
        rows = []
        for case in SPLITS[fold]["val"]:
            reference = self.reference(case)
            mask = with_errors(reference, errors, seed=CASES.index(case))
            write(folder / "validation" / f"{case}.png", mask)
            scores = overlap(reference, mask, (1, 2))
            rows.append({"prediction_file": str(folder / "validation" / f"{case}.png"), "metrics": scores})
        (folder / "validation" / "summary.json").write_text(json.dumps({"metric_per_case": rows}))

    def _write_maps(self, folder: Path, cases: Sequence[str], method: Method, settings: Any, route: Any) -> None:
        identity = maps.ModelIdentity(
            dataset=DATASET,
            plans=method.plans,
            configuration="2d",
            trainer=method.trainer,
            experts=settings.expert_names,
        )
        deferral = maps.DeferralFolder(
            folder=folder, file_ending=".png", writer=NaturalImage2DIO(), model=identity, settings=settings
        )
        for case in cases:
            where = route(self.reference(case), read(folder / f"{case}.png")).astype(np.uint8)
            expert = np.maximum(where, 1)
            probability = (where > 0).astype(np.float32)
            made = RoutingMaps(where, probability, expert, probability)
            deferral.write(case, made, {"spacing": (999, 1, 1)})


def write_plans(here: Workplace, name: str, **changes: Any) -> None:
    configuration = {"data_identifier": "nnUNetPlans_2d", "spacing": [1, 1], "patch_size": [24, 28], "batch_size": 2}
    configuration |= {"architecture": {"network_class_name": "PlainConvUNet", "arch_kwargs": {}}}
    configuration |= changes.pop("configuration", {})
    plans = {"dataset_name": DATASET, "plans_name": name, "configurations": {"2d": configuration}} | changes
    (here.preprocessed / f"{name}.json").write_text(json.dumps(plans))


def disc(number: int) -> np.ndarray:
    """A disc with a core, int64 of :data:`SHAPE`."""
    rows, columns = np.ogrid[: SHAPE[1], : SHAPE[2]]
    distance = np.hypot(rows - 11 - number % 3, columns - 13 + number % 2)
    return ((distance < 8).astype(np.int64) + (distance < 4))[None]


def with_errors(mask: np.ndarray, number: int, seed: int) -> np.ndarray:
    """The mask with other labels in some voxels."""
    wrong = mask.copy()
    where = np.random.default_rng(seed).choice(mask.size, number, replace=False)
    wrong.ravel()[where] = (wrong.ravel()[where] + 1) % 3
    return wrong


def write(file: Path, mask: np.ndarray) -> None:
    NaturalImage2DIO().write_seg(mask.astype(np.uint8), str(file), {"spacing": (999, 1, 1)})


def read(file: Path) -> np.ndarray:
    return NaturalImage2DIO().read_seg(str(file))[0][0].astype(np.int64)


def write_checkpoint(file: Path) -> None:
    """A zip, as torch writes them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"weights" * 100)


def cut_short(file: Path) -> None:
    """Take the second half of a file away."""
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def ask_where_wrong(reference: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A route: expert 1 wherever the mask is wrong."""
    return (reference != mask).astype(np.uint8)


class FakeTraining(Training):
    """Runs a script in place of nnUNetv2_train that trains three epochs and takes its validation from elsewhere."""

    def command(self, stage: Any) -> list[str]:
        words = super().command(stage)
        script = Path(__file__).with_name("fake_train.py")
        return [sys.executable, str(script), str(self.folder), str(self.source), *words[4:]]

    @property
    def source(self) -> Path:
        """A finished fold to copy from."""
        return self.logs.parent / "finished" / f"fold_{self.fold}"
