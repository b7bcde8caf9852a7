"""A small nnU-Net workplace: two generated datasets, tiny plans, and the stock console commands.

Everything lies in one temporary folder a test session, with pytest-xdist one a worker. Datasets and the models of the
main path are made once and are only read by the tests; a test that trains a variant gives it a plans name of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunet_folders import NnunetFolders
from scripts import Scripts
from skimage import io

HERE = Path(__file__).parent
# nnU-Net trains its transformers with a fused AdamW, which PyTorch has on a CPU from 2.4 on.
TRANSFORMERS = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 4), reason="PyTorch < 2.4 trains no transformer on a CPU"
)
FLAT, SOLID = "Dataset901_Flat", "Dataset902_Solid"  # 2D .png, 3D .nii.gz
SPACING, ORIGIN = (0.8, 1.1, 2.5), (-7.0, 3.5, 11.0)  # in SimpleITK's order x, y, z
DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # a quarter turn about z
LABELS = {"background": 0, "rim": 1, "core": 2}


@dataclass
class Workplace(NnunetFolders):
    """The folders of nnU-Net and how its commands are run on them.

    Attributes:
        scripts: Runs them.
        environment: Environment variables that every command sees.
    """

    scripts: Scripts = field(kw_only=True)
    environment: dict[str, str] = field(default_factory=dict)

    def command(
        self, name: str, *arguments: object, fails: bool = False, own_process: bool = False, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a console script and return it with its whole output as `stdout`.

        A command that should succeed and does not (or the other way round) fails the test with that output. See
        :class:`Scripts` for `own_process`.
        """
        environment = os.environ | self.environment | environment
        done = self.scripts.run(name, [*map(str, arguments)], environment, own_process=own_process)
        if (done.returncode != 0) != fails:
            pytest.fail(f"{name} {' '.join(map(str, arguments))} ended with {done.returncode}\n{done.stdout[-6000:]}")
        return done

    def train(
        self,
        dataset: str,
        configuration: str,
        fold: object,
        trainer: str,
        *options: object,
        plans: str = "nnUNetPlans",
        **how: Any,
    ) -> Path:
        """`nnUNetv2_train`; returns the folder of the fold."""
        self.command(
            "nnUNetv2_train",
            dataset,
            configuration,
            fold,
            "-tr",
            trainer,
            "-p",
            plans,
            "-device",
            "cpu",
            *options,
            **how,
        )
        return self.model(dataset, configuration, trainer, plans) / f"fold_{fold}"

    def predict(
        self,
        dataset: str,
        configuration: str,
        trainer: str,
        output: Path,
        *options: object,
        folds: tuple = (0,),
        plans: str = "nnUNetPlans",
        images: Path | None = None,
        **how: Any,
    ) -> subprocess.CompletedProcess[str]:
        """`nnUNetv2_predict` on the test images of the dataset."""
        return self.command(
            "nnUNetv2_predict", "-d", dataset, "-c", configuration, "-tr", trainer, "-p", plans, "-f", *folds,
            "-i", images or self.raw / dataset / "imagesTs", "-o", output, "-device", "cpu", "-npp", 1, "-nps", 1,
            *options, **how,
        )  # fmt: skip

    def model(self, dataset: str, configuration: str, trainer: str, plans: str = "nnUNetPlans") -> Path:
        """The folder of a trained model."""
        return self.results / dataset / f"{trainer}__{plans}__{configuration}"

    def derive_plans(self, dataset: str, name: str, change: Callable[[dict[str, Any]], None]) -> str:
        """Write a changed copy of the dataset's plans under another name, on the same preprocessed data."""
        folder = self.preprocessed / dataset
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        plans["plans_name"] = name
        change(plans)
        (folder / f"{name}.json").write_text(json.dumps(plans))
        return name

    def trainer(self, name: str, dataset: str, configuration: str, fold: int = 0, plans: str = "nnUNetPlans") -> Any:
        """A trainer object as nnUNetv2_train builds it (not initialized)."""
        from nnunetv2.run.run_training import get_trainer_from_args

        return get_trainer_from_args(dataset, configuration, fold, name, plans, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """nnU-Net's folders and environment, also for this process, with both datasets planned and preprocessed."""
    from nnunetv2.utilities import utils

    from nnunetv2_deferral import trainers

    temporary = tmp_path_factory.getbasetemp()
    shared = temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary
    here = Workplace(tmp_path_factory.mktemp("nnunet"), scripts=Scripts(shared / "scripts_seen"))
    here.environment = here.variables | {
        "nnUNet_extTrainer": os.pathsep.join((str(Path(trainers.__file__).parent), str(HERE / "trainers"))),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "MATPLOTLIBRC": str(HERE / "matplotlibrc"),
    }
    with pytest.MonkeyPatch.context() as patch:
        here.use(patch)
        patch.setattr(utils, "Pool", ThreadPool)  # nnU-Net forks twelve processes for sorting the names of files
        for name, value in here.environment.items():
            patch.setenv(name, value)
        for dataset in (FLAT, SOLID):
            write_dataset(here, dataset)
            plan(here, dataset)
            preprocess(here, dataset)
        yield here


@pytest.fixture(scope="session")
def flat_stock(workplace: Workplace) -> Path:
    """The fold folder of a stock training on the 2D dataset."""
    return workplace.train(FLAT, "2d", 0, "TinyStock")


@pytest.fixture(scope="session")
def flat_deferral(workplace: Workplace) -> Path:
    """The fold folder of a deferral training (three experts) on the 2D dataset, with npz files and pictures."""
    return workplace.train(FLAT, "2d", 0, "TinyDeferral3Experts", "--npz", TINY_PICTURES="1")


@pytest.fixture(scope="session")
def flat_deferral_fold_1(workplace: Workplace, flat_deferral: Path) -> Path:
    """The second fold of the same, with experts drawn in the training step as on a GPU, and fewer maps asked for."""
    asked = {"nnUNet_deferral_simulate_on": "device", "nnUNet_deferral_maps": "route"}
    return workplace.train(FLAT, "2d", 1, "TinyDeferral3Experts", "--npz", **asked)


@pytest.fixture(scope="session")
def flat_prediction(workplace: Workplace, flat_deferral: Path) -> Path:
    """The prediction folder of that model on the test images, with npz files."""
    output = workplace.root / "flat_prediction"
    workplace.predict(FLAT, "2d", "TinyDeferral3Experts", output, "--save_probabilities")
    return output


@pytest.fixture(scope="session")
def solid_deferral(workplace: Workplace) -> Path:
    """The fold folder of a deferral training (three experts) on the 3D dataset, with a process that augments."""
    return workplace.train(SOLID, "3d_fullres", 0, "TinyDeferral3Experts", nnUNet_n_proc_DA="1")


@pytest.fixture(scope="session")
def solid_prediction(workplace: Workplace, solid_deferral: Path) -> Path:
    """The prediction folder of that model on the test images."""
    output = workplace.root / "solid_prediction"
    workplace.predict(SOLID, "3d_fullres", "TinyDeferral3Experts", output)
    return output


def write_dataset(here: Workplace, dataset: str, labels: dict[str, Any] = LABELS, **dataset_json: Any) -> None:
    """Generate a raw dataset: six training cases and two for testing, a disc or ball with a core in each.

    A label "ignore" in `labels` marks one side of every training case.
    """
    flat = "Flat" in dataset
    ending = ".png" if flat else ".nii.gz"
    folder = here.raw / dataset
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(8):
        image, mask = _shapes(index, (40, 48) if flat else (28, 24, 20))
        subset, case = ("Tr", f"train_{index}") if index < 6 else ("Ts", f"test_{index}")
        if "ignore" in labels and subset == "Tr":
            mask[..., :10] = labels["ignore"]
        _write(folder / f"images{subset}" / f"{case}_0000{ending}", image, index)
        _write(folder / f"labels{subset}" / f"{case}{ending}", mask, index)
    content = {"channel_names": {"0": "image"}, "labels": labels, "numTraining": 6, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(content | dataset_json))


def _shapes(index: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(index)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    centre = np.array(shape) / 2 + random.uniform(-3, 3, len(shape))
    distance = np.linalg.norm((grid - centre) / (np.array(shape) * 0.3), axis=-1)
    mask = (distance < 1).astype(np.uint8) + (distance < 0.55)
    image = 40 + 60 * mask + random.normal(0, 12, shape)
    outside = np.ones(shape, bool)
    outside[(slice(2, -2),) * len(shape)] = False
    image[outside] = 0  # which nnU-Net crops away
    return image.clip(0, 250), mask.astype(np.uint8)


def _write(file: Path, array: np.ndarray, index: int) -> None:
    if array.ndim == 2:
        io.imsave(file, array.astype(np.uint8), check_contrast=False)
        return
    image = sitk.GetImageFromArray(array.astype(np.uint8 if "labels" in file.parent.name else np.float32))
    image.SetSpacing([value * (1 + 0.15 * (index % 2)) for value in SPACING])
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(file))


def plan(here: Workplace, dataset: str) -> None:
    """Plan with nnU-Net, then shrink what it planned; two folds instead of five."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiments

    identifier = int(dataset[7:10])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_n_proc_DA", "1")  # also the number of threads while planning, which 0 is too few for
        # Nothing of ours takes part in planning, so its pool of new processes may as well be threads.
        patch.setattr(multiprocessing, "get_context", lambda _method: SimpleNamespace(Pool=ThreadPool))
        extractor = DatasetFingerprintExtractor(identifier, 1)
        extractor.num_foreground_voxels_for_intensitystats = 10_000  # drawn with replacement, by default 100 million
        extractor.run(overwrite_existing=True)
        plan_experiments([identifier])
    folder = here.preprocessed / dataset
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"] = {
        name: shrink(configuration)
        for name, configuration in plans["configurations"].items()
        if name in ("2d", "3d_fullres")
    }
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    cases = [f"train_{index}" for index in range(6)]
    folds = [{"train": cases[:4], "val": cases[4:]}, {"train": cases[2:], "val": cases[:2]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))


def shrink(configuration: dict[str, Any]) -> dict[str, Any]:
    """A planned configuration with a small U-Net, a small patch and batch."""
    dimensions = len(configuration["patch_size"])
    small = deepcopy(configuration) | {"patch_size": [32, 32] if dimensions == 2 else [16] * 3, "batch_size": 2}
    small["architecture"]["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [4, 8, 16],
        "kernel_sizes": [[3] * dimensions] * 3,
        "strides": [[1] * dimensions, [2] * dimensions, [2] * dimensions],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
    }
    return small


def preprocess(here: Workplace, dataset: str, plans: str = "nnUNetPlans") -> None:
    """What nnUNetv2_preprocess does, without its pool of processes."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = here.preprocessed / dataset
    manager = PlansManager(str(folder / f"{plans}.json"))
    shutil.copy(here.raw / dataset / "dataset.json", folder)
    shutil.copytree(here.raw / dataset / "labelsTr", folder / "gt_segmentations", dirs_exist_ok=True)
    content = json.loads((folder / "dataset.json").read_text())
    cases = get_filenames_of_train_images_and_targets(str(here.raw / dataset), content)
    for name in manager.available_configurations:
        configuration = manager.get_configuration(name)
        output = folder / configuration.data_identifier
        if output.is_dir():
            continue
        output.mkdir()
        for case, files in cases.items():
            configuration.preprocessor_class(verbose=False).run_case_save(
                str(output / case), files["images"], files["label"], manager, configuration, content
            )


def variant_of_flat(here: Workplace, dataset: str, labels: dict[str, Any], **dataset_json: Any) -> str:
    """The 2D dataset with other labels, under the name `dataset`, ready to train with the same plans."""
    write_dataset(here, dataset, labels, **dataset_json)
    source, folder = here.preprocessed / FLAT, here.preprocessed / dataset
    folder.mkdir()
    for name in ("dataset_fingerprint.json", "splits_final.json"):
        shutil.copy(source / name, folder)
    plans = json.loads((source / "nnUNetPlans.json").read_text()) | {"dataset_name": dataset}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    preprocess(here, dataset)
    return dataset


def write_stock_twin(deferral_fold: Path, model: Path) -> Path:
    """A stock model folder with the segmentation network of a deferral model; returns the folder."""
    checkpoint = torch.load(deferral_fold / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    weights = checkpoint["network_weights"]
    last = "decoder.seg_layers.1."
    assert any(key.startswith(last) for key in weights)
    kept = {key: value for key, value in weights.items() if not key.startswith(last) or ".segmentation." in key}
    checkpoint["network_weights"] = {key.replace(".segmentation.", "."): value for key, value in kept.items()}
    checkpoint["trainer_name"] = "nnUNetTrainer"
    (model / "fold_0").mkdir(parents=True)
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    shutil.copy(deferral_fold.parent / "dataset.json", model)
    plans = json.loads((deferral_fold.parent / "plans.json").read_text())
    del plans["deferral"], plans["deferral_model"]
    (model / "plans.json").write_text(json.dumps(plans))
    return model


def predictor_of(model: Path) -> Any:
    """nnU-Net's predictor for fold 0 of a model folder, on the CPU."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    return predictor


def read(file: Path) -> np.ndarray:
    """An image file as an array, in its own dtype."""
    return io.imread(file) if file.suffix == ".png" else sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
