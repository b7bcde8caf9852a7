"""What the segmentation network does is what stock nnU-Net does: its training, its masks, its probabilities."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from workplace import FLAT, SOLID, TRANSFORMERS, Workplace, predictor_of, read, write_stock_twin

TESTED = ("test_6", "test_7")


@pytest.fixture(scope="module")
def flat_twin(workplace: Workplace, flat_deferral: Path) -> Path:
    """A stock model with the segmentation network of the 2D deferral model."""
    return write_stock_twin(flat_deferral, workplace.root / "twins" / "flat")


class TestMasks:
    def test_a_stock_network_with_the_same_weights_predicts_the_same_in_2d(
        self, workplace: Workplace, flat_twin: Path, flat_prediction: Path
    ) -> None:
        output = workplace.root / "flat_twin_prediction"
        workplace.command(
            "nnUNetv2_predict_from_modelfolder", "-i", workplace.raw / FLAT / "imagesTs", "-o", output, "-m", flat_twin,
            "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1, "--save_probabilities", nnUNet_extTrainer="",
        )  # fmt: skip
        assert not (output / "deferral").exists()
        for case in TESTED:
            np.testing.assert_array_equal(read(output / f"{case}.png"), read(flat_prediction / f"{case}.png"))
            stock, ours = (np.load(folder / f"{case}.npz")["probabilities"] for folder in (output, flat_prediction))
            assert stock.shape == (3, 1, 40, 48)
            np.testing.assert_array_equal(stock, ours)

    def test_a_stock_network_with_the_same_weights_predicts_the_same_in_3d(
        self, workplace: Workplace, solid_deferral: Path, solid_prediction: Path, tmp_path: Path
    ) -> None:
        """This one in our process, where nnU-Net's names are replaced."""
        predictor = predictor_of(write_stock_twin(solid_deferral, tmp_path / "twin"))
        output = tmp_path / "output"
        predictor.predict_from_files(
            str(workplace.raw / SOLID / "imagesTs"),
            str(output),
            num_processes_preprocessing=1,
            num_processes_segmentation_export=1,
        )
        assert not (output / "deferral").exists()
        for case in TESTED:
            np.testing.assert_array_equal(read(output / f"{case}.nii.gz"), read(solid_prediction / f"{case}.nii.gz"))


def initialized(workplace: Workplace, name: str, dataset: str, configuration: str) -> Any:
    trainer = workplace.trainer(name, dataset, configuration)
    trainer.num_epochs = 2
    trainer.initialize()
    trainer.network.train()
    return trainer


def batch_for(trainer: Any, seed: int) -> dict[str, Any]:
    """A random batch in the form of nnU-Net's loader, with experts as the last target."""
    random = torch.Generator().manual_seed(seed)
    patch = trainer.configuration_manager.patch_size
    targets = [
        torch.randint(0, 3, (2, 1, *[int(size * scale[0]) for size in patch]), generator=random, dtype=torch.int16)
        for scale in trainer._get_deep_supervision_scales() or [[1.0]]
    ]
    experts = torch.randint(0, 3, (2, 3, *patch), generator=random, dtype=torch.int16)
    return {"data": torch.randn(2, 1, *patch, generator=random), "target": [*targets, experts]}


def without_experts(batch: dict[str, Any]) -> dict[str, Any]:
    targets = batch["target"][:-1]
    return {"data": batch["data"], "target": targets if len(targets) > 1 else targets[0]}


class TestTraining:
    @staticmethod
    def train_both(
        workplace: Workplace, name: str, dataset: str, configuration: str, base: str = "nnUNetTrainer"
    ) -> tuple[Any, dict, Any]:
        stock = initialized(workplace, base, dataset, configuration)
        ours = initialized(workplace, name, dataset, configuration)
        with ours._head().removed_from(ours.network):
            ours.network.load_state_dict(stock.network.state_dict())
        before = copy.deepcopy(dict(ours._head().named_parameters()))
        for epoch in (0, 1):
            for trainer in (stock, ours):
                trainer.current_epoch = epoch
                trainer.logger.log("lrs", 0.0, 0)  # the base may look at the epoch before
                trainer.on_train_epoch_start()
            batch = batch_for(ours, epoch)
            torch.manual_seed(epoch)
            stock.train_step(without_experts(batch))
            torch.manual_seed(epoch)
            ours.train_step(batch)
        return stock, before, ours

    # Warnings of torch about nnU-Net's trainers, and of nnU-Net about a form that it still takes.
    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.filterwarnings("ignore:Trainer TinyPrimus uses the old:DeprecationWarning")
    @pytest.mark.parametrize(
        ("dataset", "configuration", "base"),
        [
            (FLAT, "2d", None),
            (SOLID, "3d_fullres", None),
            (FLAT, "2d", "nnUNetTrainerAdam"),
            (FLAT, "2d", "nnUNetTrainerDiceTopK10Loss"),
            (FLAT, "2d", "nnUNetTrainerNoDeepSupervision"),
            (FLAT, "2d", "nnUNetTrainerCosAnneal"),
            pytest.param(SOLID, "3d_fullres", "TinyPrimus", marks=TRANSFORMERS),
        ],
    )
    def test_steps_change_the_segmentation_network_exactly_as_stock_steps_do(
        self, workplace: Workplace, dataset: str, configuration: str, base: str | None
    ) -> None:
        name = f"nnUNetTrainerDeferral3Experts{f'_on_{base}' if base else ''}"
        stock, before, ours = self.train_both(workplace, name, dataset, configuration, base or "nnUNetTrainer")
        for key, parameter in ours._head().named_parameters():
            assert not torch.equal(parameter, before[key]), key
        expected = stock.network.state_dict()
        with ours._head().removed_from(ours.network):
            found = ours.network.state_dict()
            assert found.keys() == expected.keys()
            for key, value in found.items():
                assert torch.equal(value, expected[key]), key

    def test_with_joint_training_they_do_not(self, workplace: Workplace) -> None:
        stock, _, ours = self.train_both(workplace, "nnUNetTrainerDeferral3Experts_joint", FLAT, "2d")
        key = "encoder.stages.0.0.convs.0.conv.weight"
        assert not torch.equal(ours.network.state_dict()[key], stock.network.state_dict()[key])

    def test_validation_counts_what_stock_counts(self, workplace: Workplace) -> None:
        stock, _, ours = self.train_both(workplace, "nnUNetTrainerDeferral3Experts", FLAT, "2d")
        batch = batch_for(ours, 7)
        with torch.no_grad():
            expected, counted = stock.validation_step(without_experts(batch)), ours.validation_step(batch)
        for key in ("tp_hard", "fp_hard", "fn_hard"):
            np.testing.assert_array_equal(counted[key], expected[key])
        assert counted["segmentation"] == pytest.approx(expected["loss"])


class TestStockBesideOurs:
    def test_a_stock_trainer_keeps_its_own_managers_and_log(self, workplace: Workplace, flat_deferral: Path) -> None:
        predictor_of(flat_deferral.parent)
        trainer = initialized(workplace, "nnUNetTrainer", FLAT, "2d")
        assert type(trainer.plans_manager).__name__ == "PlansManager"
        assert trainer.network.decoder.seg_layers[-1].out_channels == 3
        assert not [key for key in trainer.logger.local_logger.my_fantastic_logging if "deferral" in key]

    def test_stock_pretrained_weights_still_load_as_before(self, workplace: Workplace, flat_stock: Path) -> None:
        from nnunetv2.run.run_training import maybe_load_checkpoint

        trainer = workplace.trainer("nnUNetTrainer", FLAT, "2d")
        file = flat_stock / "checkpoint_final.pth"
        maybe_load_checkpoint(trainer, False, False, str(file))
        weights = torch.load(file, weights_only=False)["network_weights"]
        key = "encoder.stages.0.0.convs.0.conv.weight"
        assert torch.equal(trainer.network.state_dict()[key], weights[key])

    def test_nnunets_own_trainers_are_found(self, workplace: Workplace) -> None:
        assert recursive_find_trainer_class_by_name("nnUNetTrainer_5epochs").__module__.startswith("nnunetv2.")


class TestPythonInterface:
    @pytest.fixture
    def image(self, workplace: Workplace) -> tuple[np.ndarray, dict]:
        from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

        return NaturalImage2DIO().read_images([str(workplace.raw / FLAT / "imagesTs" / "test_6_0000.png")])

    def test_one_array_gives_the_models_mask_and_its_probabilities(
        self, flat_deferral: Path, flat_prediction: Path, image: tuple[np.ndarray, dict]
    ) -> None:
        predictor = predictor_of(flat_deferral.parent)
        mask, probabilities = predictor.predict_single_npy_array(*image, save_or_return_probabilities=True)
        np.testing.assert_array_equal(mask[0], read(flat_prediction / "test_6.png"))
        np.testing.assert_allclose(probabilities, np.load(flat_prediction / "test_6.npz")["probabilities"], atol=1e-6)
        np.testing.assert_array_equal(predictor.predict_single_npy_array(*image), mask)

    def test_one_array_with_a_file_name_writes_the_maps_too(
        self, flat_deferral: Path, flat_prediction: Path, image: tuple[np.ndarray, dict], tmp_path: Path
    ) -> None:
        predictor_of(flat_deferral.parent).predict_single_npy_array(*image, output_file_truncated=str(tmp_path / "one"))
        np.testing.assert_array_equal(read(tmp_path / "one.png"), read(flat_prediction / "test_6.png"))
        route = "deferral/route"
        np.testing.assert_array_equal(read(tmp_path / route / "one.png"), read(flat_prediction / route / "test_6.png"))

    def test_lists_of_files_go_where_the_caller_says(
        self, workplace: Workplace, flat_deferral: Path, flat_prediction: Path, tmp_path: Path
    ) -> None:
        images = workplace.raw / FLAT / "imagesTs"
        predictor_of(flat_deferral.parent).predict_from_files(
            [[str(images / f"{case}_0000.png")] for case in TESTED],
            [str(tmp_path / case / "mask") for case in TESTED],
            num_processes_preprocessing=1,
            num_processes_segmentation_export=1,
        )
        for case in TESTED:
            for part in (".", "deferral/route", "deferral/probability"):
                np.testing.assert_array_equal(
                    read(tmp_path / case / part / "mask.png"), read(flat_prediction / part / f"{case}.png")
                )

    def test_without_files_the_masks_are_returned(
        self, workplace: Workplace, flat_deferral: Path, flat_prediction: Path
    ) -> None:
        file = workplace.raw / FLAT / "imagesTs" / "test_7_0000.png"
        (mask,) = predictor_of(flat_deferral.parent).predict_from_files(
            [[str(file)]], None, num_processes_preprocessing=1, num_processes_segmentation_export=1
        )
        np.testing.assert_array_equal(mask[0], read(flat_prediction / "test_7.png"))

    def test_a_moved_model_folder_is_enough_to_predict(
        self, flat_deferral: Path, flat_prediction: Path, image: tuple[np.ndarray, dict], tmp_path: Path
    ) -> None:
        moved = tmp_path / "elsewhere"
        shutil.copytree(flat_deferral.parent, moved, ignore=shutil.ignore_patterns("validation"))
        mask = predictor_of(moved).predict_single_npy_array(*image)
        np.testing.assert_array_equal(mask[0], read(flat_prediction / "test_6.png"))
