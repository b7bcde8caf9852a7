"""Where weights come from: a stock checkpoint, for the whole network or to start from, or a training cut off."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.run.run_training import maybe_load_checkpoint, run_training
from torch.nn.parallel import DistributedDataParallel
from workplace import FLAT, SOLID, TRANSFORMERS, Workplace, read

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.finite_losses import PATIENCE, FiniteLosses
from nnunetv2_deferral.nnunet.optimizer import JointScaler
from nnunetv2_deferral.nnunet.progress import KEYS

VALIDATED = ("train_4", "train_5")


@pytest.fixture(scope="module")
def stock_checkpoint(flat_stock: Path) -> Path:
    return flat_stock / "checkpoint_final.pth"


@pytest.fixture(scope="module")
def frozen(workplace: Workplace, stock_checkpoint: Path) -> Path:
    """The fold folder of a training of the head alone, on the stock network."""
    return workplace.train(FLAT, "2d", 0, "TinyFrozen", "-pretrained_weights", stock_checkpoint)


def start(workplace: Workplace, trainer: str, weights: Path | None, plans: str = "nnUNetPlans") -> None:
    """What nnUNetv2_train does, in this process."""
    run_training(
        FLAT, "2d", 0, trainer, plans, pretrained_weights=None if weights is None else str(weights),
        device=torch.device("cpu"),
    )  # fmt: skip


def assert_not_started(workplace: Workplace, trainer: str, plans: str = "nnUNetPlans") -> None:
    fold = workplace.model(FLAT, "2d", trainer, plans) / "fold_0"
    assert not list(fold.glob("checkpoint*"))
    assert all("Epoch 0" not in log.read_text() for log in fold.glob("training_log_*.txt"))


class TestFrozen:
    def test_its_masks_are_the_stock_networks(self, flat_stock: Path, frozen: Path) -> None:
        for case in VALIDATED:
            expected, written = (read(fold / "validation" / f"{case}.png") for fold in (flat_stock, frozen))
            np.testing.assert_array_equal(written, expected)

    @pytest.mark.parametrize("axes", [None, (0,), (0, 1)])
    def test_it_is_mirrored_as_the_stock_network_in_training_and_prediction(
        self, workplace: Workplace, stock_checkpoint: Path, tmp_path: Path, axes: tuple[int, ...] | None
    ) -> None:
        file = mirrored(stock_checkpoint, tmp_path, axes)
        plans = named_plans(workplace, "Mirrored")
        trainer = workplace.trainer("TinyFrozen", FLAT, "2d", plans=plans)
        trainer.load_pretrained_weights(str(file))
        trainer.on_train_start()
        assert trainer.inference_allowed_mirroring_axes == axes
        assert augmented_by_mirroring(trainer) == axes
        saved = tmp_path / "latest.pth"
        trainer.save_checkpoint(str(saved))

        resumed = workplace.trainer("TinyFrozen", FLAT, "2d", plans=plans)
        resumed.load_checkpoint(str(saved))
        resumed.on_train_start()
        assert resumed.inference_allowed_mirroring_axes == axes
        assert augmented_by_mirroring(resumed) == axes

    def test_a_checkpoint_without_mirroring_axes_is_not_mirrored_as_in_stock_predictions(
        self, workplace: Workplace, stock_checkpoint: Path, tmp_path: Path
    ) -> None:
        file = mirrored(stock_checkpoint, tmp_path, None, keep=False)
        trainer = workplace.trainer("TinyFrozen", FLAT, "2d", plans=named_plans(workplace, "Mirrored"))
        trainer.load_pretrained_weights(str(file))
        trainer.on_train_start()
        assert trainer.inference_allowed_mirroring_axes is None

    def test_its_masks_are_those_of_a_stock_network_without_mirroring(
        self, workplace: Workplace, flat_stock: Path, stock_checkpoint: Path, tmp_path: Path
    ) -> None:
        file = mirrored(stock_checkpoint, tmp_path, None)
        stock, ours = (
            workplace.trainer(name, FLAT, "2d", plans=named_plans(workplace, "Unmirrored"))
            for name in ("TinyStock", "TinyFrozen")
        )
        stock.load_checkpoint(str(file))
        ours.load_pretrained_weights(str(file))
        ours.on_train_start()
        folders = []
        for trainer in (stock, ours):
            trainer.perform_actual_validation()
            folders.append(Path(trainer.output_folder) / "validation")
        differ = []
        for case in VALIDATED:
            mirrored_too, expected, written = (
                read(folder / f"{case}.png") for folder in (flat_stock / "validation", *folders)
            )
            np.testing.assert_array_equal(written, expected)
            differ.append((mirrored_too != expected).any())
        assert any(differ)

    def test_its_weights_are_the_stock_networks(self, stock_checkpoint: Path, frozen: Path) -> None:
        stock, ours = (
            torch.load(file, weights_only=False)["network_weights"]
            for file in (stock_checkpoint, frozen / "checkpoint_final.pth")
        )
        for key, value in ours.items():
            stock_key = key.replace(".segmentation.", ".")
            assert stock_key not in stock or torch.equal(value, stock[stock_key])
        assert {key.replace(".segmentation.", ".") for key in ours} >= set(stock)
        assert ours["decoder.seg_layers.1.routing.weight"].abs().max() > 0

    def test_it_is_refused_without_weights(self, workplace: Workplace) -> None:
        name = "nnUNetTrainerDeferral3Experts_frozen"
        with pytest.raises(ValueError, match=f"{name} trains a deferral head .*-pretrained_weights"):
            start(workplace, name, None)
        assert_not_started(workplace, name)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                lambda c: c["init_args"].update(configuration="3d_fullres"),
                "configuration 3d_fullres, not 2d",
            ),
            (lambda c: configuration_of(c).update(spacing=[2.0, 3.0]), "the plans of .*differ in spacing"),
            (
                lambda c: configuration_of(c)["architecture"]["arch_kwargs"].update(features_per_stage=[8, 16, 32]),
                "the plans of .*differ in architecture",
            ),
            (
                lambda c: c["init_args"]["plans"].update(dataset_name="Dataset123_Other", transpose_forward=[2, 0, 1]),
                "Dataset123_Other.*Dataset901_Flat.*differ in transpose_forward",
            ),
            (
                lambda c: c["network_weights"].update({"decoder.seg_layers.1.weight": torch.zeros(5, 4, 1, 1)}),
                r"do not match this network: .*seg_layers.1.weight has shape \(5, 4, 1, 1\) instead of \(3, 4, 1, 1\)",
            ),
            (lambda c: c["network_weights"].pop("decoder.seg_layers.1.bias"), "seg_layers.1.bias is missing"),
            (lambda c: c["network_weights"].update(more=torch.zeros(1)), "more is unexpected"),
        ],
    )
    def test_it_is_refused_on_another_networks_weights(
        self,
        workplace: Workplace,
        stock_checkpoint: Path,
        tmp_path: Path,
        damage: Callable[[dict[str, Any]], None],
        message: str,
    ) -> None:
        checkpoint = torch.load(stock_checkpoint, weights_only=False)
        damage(checkpoint)
        file = tmp_path / "other.pth"
        torch.save(checkpoint, file)
        name = "nnUNetTrainerDeferral3Experts_frozen"
        with pytest.raises(ValueError, match=message) as refused:
            start(workplace, name, file)
        assert str(file) in str(refused.value)
        assert_not_started(workplace, name)

    def test_the_weights_of_a_deferral_model_are_not_a_stock_networks(
        self, workplace: Workplace, flat_deferral: Path
    ) -> None:
        name = "nnUNetTrainerDeferral3Experts_frozen"
        with pytest.raises(ValueError, match="do not match this network"):
            start(workplace, name, flat_deferral / "checkpoint_final.pth")
        assert_not_started(workplace, name)

    def test_a_distributed_training_waits_for_gradients_of_the_head_alone(
        self, workplace: Workplace, tmp_path: Path
    ) -> None:
        """nnU-Net wraps the network while it initializes; DDP then notes who has gradients, and insists on them."""
        trainer = workplace.trainer("nnUNetTrainerDeferral3Experts_frozen", FLAT, "2d")
        network = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, trainer.label_manager.num_segmentation_heads
        )
        torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
        try:
            wrapped = DistributedDataParallel(network)
            for _ in range(2):
                output = wrapped(torch.randn(2, 1, 32, 32))
                output[0][:, 3:].sum().backward()
        finally:
            torch.distributed.destroy_process_group()
        head = {id(parameter) for parameter in network.decoder.seg_layers[-1].deferral_parameters()}
        assert {id(parameter) for parameter in network.parameters() if parameter.requires_grad} == head


def mirrored(checkpoint: Path, folder: Path, axes: tuple[int, ...] | None, *, keep: bool = True) -> Path:
    """A copy of a stock checkpoint as if trained with other mirroring, or without the entry that says so."""
    content = torch.load(checkpoint, weights_only=False)
    content["inference_allowed_mirroring_axes"] = axes
    if not keep:
        del content["inference_allowed_mirroring_axes"]
    file = folder / "mirrored.pth"
    torch.save(content, file)
    return file


def augmented_by_mirroring(trainer: Any) -> tuple[int, ...] | None:
    """The axes along which training images are mirrored."""
    steps = trainer.dataloader_train.data_loader.transforms.transforms
    found = [step.allowed_axes for step in steps if isinstance(step, MirrorTransform)]
    return tuple(found[0]) if found else None


def configuration_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["init_args"]["plans"]["configurations"]["2d"]


class TestPretrained:
    def test_a_stock_checkpoint_starts_a_deferral_training_as_it_would_a_stock_one(
        self, workplace: Workplace, stock_checkpoint: Path
    ) -> None:
        trainer = workplace.trainer("TinyDeferral3Experts", FLAT, "2d")
        trainer.initialize()
        before = copy.deepcopy(trainer.network.state_dict())
        maybe_load_checkpoint(trainer, False, False, str(stock_checkpoint))
        stock = torch.load(stock_checkpoint, weights_only=False)["network_weights"]
        for key, value in trainer.network.state_dict().items():
            # nnU-Net leaves every segmentation layer as it was, and with it the head.
            assert torch.equal(value, before[key] if ".seg_layers." in key else stock[key]), key

    @TRANSFORMERS
    @pytest.mark.filterwarnings("ignore:Trainer TinyPrimus uses the old:DeprecationWarning")
    def test_the_weights_of_a_stock_transformer_are_those_of_the_network_with_deferral(
        self, workplace: Workplace, tmp_path: Path
    ) -> None:
        stock = workplace.trainer("TinyPrimus", SOLID, "3d_fullres")
        stock.initialize()
        file = tmp_path / "stock.pth"
        stock.save_checkpoint(str(file))
        for options in ("", "_frozen"):
            ours = workplace.trainer(f"nnUNetTrainerDeferral3Experts{options}_on_TinyPrimus", SOLID, "3d_fullres")
            ours.load_pretrained_weights(str(file))
            with ours._head().removed_from(ours.network):
                weights = ours.network.state_dict()
                assert all(torch.equal(weights[key], value) for key, value in stock.network.state_dict().items())

    @pytest.mark.slow
    def test_the_command_takes_it_too(self, workplace: Workplace, stock_checkpoint: Path) -> None:
        fold = workplace.train(FLAT, "2d", 1, "TinyDeferral1Expert", "-pretrained_weights", stock_checkpoint)
        assert (fold / "validation" / "deferral_summary.json").is_file()


def train_one_epoch(trainer: Any) -> None:
    """The first epoch of nnU-Net's run_training."""
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(next(trainer.dataloader_train)) for _ in range(3)])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val)) for _ in range(2)])
    trainer.on_epoch_end()


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """A nested state as one dictionary of its leaves."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in flattened(v, f"{name}.{k}").items()}
    if isinstance(value, list):
        return {key: leaf for k, v in enumerate(value) for key, leaf in flattened(v, f"{name}.{k}").items()}
    return {name: value}


class TestPaper:
    def test_its_training_is_that_of_the_paper(self, workplace: Workplace) -> None:
        trainer = workplace.trainer(
            "nnUNetTrainerDeferral3Experts_paper", FLAT, "2d", plans=named_plans(workplace, "P")
        )
        trainer.on_train_start()
        trainer.network.train()
        for optimizer in (trainer.optimizer.segmentation, trainer.optimizer.deferral):
            assert type(optimizer) is torch.optim.AdamW
            assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(1e-4, 0.01)]
        trainer.lr_scheduler.step(4)
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-4 * 0.8**2}
        assert trainer.warmup_epochs == 0
        batch = next(trainer.dataloader_train)
        *targets, _ = batch["target"]
        assert len(targets) == 1
        trainer.network.eval()
        with torch.no_grad():
            terms = trainer._forward(batch)[0]
            expected = torch.nn.functional.cross_entropy(trainer.network(batch["data"])[:, :3], targets[0][:, 0].long())
        assert terms.segmentation.item() == pytest.approx(expected.item(), rel=1e-5)
        trainer.network.train()
        assert np.isfinite(trainer.train_step(batch)["loss"])

    def test_what_a_trainer_has_of_its_own_is_not_replaced(self, workplace: Workplace) -> None:
        for name, method in (
            ("AdamW_on_nnUNetTrainerAdam", 'optimizer": "adamw" cannot be .* nnUNetTrainerAdam, .* configure_optim'),
            (
                "CE_on_nnUNetTrainerDiceLoss",
                'loss": "cross_entropy" cannot be .* nnUNetTrainerDiceLoss, .* _build',
            ),
        ):
            with pytest.raises(InputError, match=method):
                workplace.trainer(f"nnUNetTrainerDeferral3Experts_{name}", FLAT, "2d")

    def test_a_training_without_improvement_ends_early_with_the_best_weights(self, workplace: Workplace) -> None:
        block = {"patience": 2, "final_weights": "best"}
        plans = workplace.derive_plans(FLAT, "Patient", lambda plans: plans.update(deferral=block))
        trainer = workplace.trainer("TinyDeferral3Experts", FLAT, "2d", plans=plans)
        trainer.num_epochs = 9
        values = {"mean_fg_dice_system": [0.5, 0.6, 0.4, 0.6, 0.3], "deferral_rate": [0.1, 0.3, 0.05, 0.06, 0.05]}
        validate, weights = trainer.on_validation_epoch_end, []

        def validate_as_given(outputs: list) -> None:
            validate(outputs)
            for key, given in values.items():
                trainer.logger.local_logger.my_fantastic_logging[key][-1] = given[trainer.current_epoch]
            weights.append(copy.deepcopy(trainer.network.state_dict()))

        trainer.on_validation_epoch_end = validate_as_given
        trainer.run_training()
        assert trainer.current_epoch == 5
        fold = Path(trainer.output_folder)
        final, best = (
            torch.load(fold / name, weights_only=False)["network_weights"]
            for name in ("checkpoint_final.pth", "checkpoint_best_system.pth")
        )
        for key, value in final.items():
            assert torch.equal(value, weights[1][key])
            assert torch.equal(value, best[key])
        assert any(not torch.equal(value, weights[-1][key]) for key, value in final.items())


class TestLossesThatAreNotFinite:
    def started(self, workplace: Workplace) -> tuple[Any, dict[str, Any]]:
        """A trainer and a batch with a voxel that is NaN."""
        trainer = workplace.trainer("TinyDeferral3Experts", FLAT, "2d", plans=named_plans(workplace, "NotFinite"))
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        trainer.train_step(next(trainer.dataloader_train))
        batch = next(trainer.dataloader_train)
        batch["data"][0, 0, 3, 4] = torch.nan
        return trainer, batch

    def test_one_stops_the_training_before_the_step(self, workplace: Workplace) -> None:
        trainer, batch = self.started(workplace)
        before = copy.deepcopy(trainer.network.state_dict())
        with pytest.raises(RuntimeError, match="stopped in epoch 0, iteration 1: .*: segmentation, routing"):
            trainer.train_step(batch)
        assert all(torch.equal(value, before[key]) for key, value in trainer.network.state_dict().items())

    def test_a_gradient_scaler_leaves_the_step_out_and_a_series_stops_the_training(self, workplace: Workplace) -> None:
        trainer, batch = self.started(workplace)
        trainer.grad_scaler = JointScaler(torch.amp.GradScaler("cpu"), shared=False)
        trainer._finite_losses = FiniteLosses(scaled=True)
        before = copy.deepcopy(trainer.network.state_dict())
        for _ in range(PATIENCE - 1):
            trainer.train_step(copy.deepcopy(batch))
        assert all(torch.equal(value, before[key]) for key, value in trainer.network.state_dict().items())
        with pytest.raises(RuntimeError, match=f"for {PATIENCE} iterations in a row: segmentation, routing"):
            trainer.train_step(copy.deepcopy(batch))


class TestResume:
    def test_a_checkpoint_brings_back_weights_both_optimizers_and_the_log(
        self, workplace: Workplace, tmp_path: Path
    ) -> None:
        cut_off = workplace.trainer("TinyDeferral3Experts", FLAT, "2d", fold=1, plans=named_plans(workplace, "Resume"))
        cut_off.on_train_start()
        train_one_epoch(cut_off)
        file = Path(cut_off.output_folder) / "checkpoint_latest.pth"
        assert file.is_file()

        resumed = workplace.trainer("TinyDeferral3Experts", FLAT, "2d", fold=1, plans="Resume")
        resumed.load_checkpoint(str(file))
        assert resumed.current_epoch == 1
        states = [(trainer.network.state_dict(), trainer.optimizer.state_dict()) for trainer in (cut_off, resumed)]
        expected, restored = (flattened({"network": state[0], "optimizer": state[1]}) for state in states)
        assert restored.keys() == expected.keys()
        assert any("momentum_buffer" in key for key in restored)  # SGD's
        assert any("exp_avg_sq" in key for key in restored)  # Adam's
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(restored[key], value), key
            else:
                assert restored[key] == value, key
        log = resumed.logger.local_logger.my_fantastic_logging
        assert log == cut_off.logger.local_logger.my_fantastic_logging
        assert all(len(log[key]) == 1 for key in KEYS)

        # From the same state, both go on in the same way.
        batch = next(cut_off.dataloader_train)
        for trainer in (cut_off, resumed):
            trainer.network.train()
            trainer.lr_scheduler.step(1)
            trainer.train_step(copy.deepcopy(batch))
        for key, value in cut_off.network.state_dict().items():
            assert torch.equal(resumed.network.state_dict()[key], value), key

    def test_a_checkpoint_of_other_experts_is_refused(self, workplace: Workplace, flat_deferral: Path) -> None:
        plans = workplace.derive_plans(FLAT, "Two", lambda plans: plans.update(deferral={"num_experts": 2}))
        trainer = workplace.trainer("TinyDeferral", FLAT, "2d", plans=plans)
        file = flat_deferral / "checkpoint_final.pth"
        with pytest.raises(
            ValueError, match=r"other experts \(expert1, expert2, expert3\) than .*\(expert1, expert2\)$"
        ) as refused:
            trainer.load_checkpoint(str(file))
        assert str(file) in str(refused.value)

    def test_a_fold_beside_one_that_was_trained_with_other_settings_is_refused(
        self, workplace: Workplace, flat_deferral: Path
    ) -> None:
        trainer = workplace.trainer("TinyDeferral3Experts", FLAT, "2d", fold=1)
        trainer.settings = replace(trainer.settings, objective="one_vs_all")
        with pytest.raises(ValueError, match=f"other folds of {flat_deferral.parent} .fold_0.*objective is"):
            trainer.on_train_start()

    def test_a_stock_checkpoint_is_refused(self, workplace: Workplace, stock_checkpoint: Path) -> None:
        trainer = workplace.trainer("TinyDeferral3Experts", FLAT, "2d")
        with pytest.raises(ValueError, match="checkpoint_final.pth"):
            trainer.load_checkpoint(str(stock_checkpoint))

    @pytest.mark.slow
    def test_a_training_that_was_cut_off_is_continued_with_its_log(self, workplace: Workplace) -> None:
        plans = named_plans(workplace, "CutOff")
        arguments = (FLAT, "2d", 0, "-tr", "TinyInterrupted", "-p", plans, "-device", "cpu")
        assert "the power went out" in workplace.command("nnUNetv2_train", *arguments, fails=True).stdout
        fold = workplace.model(FLAT, "2d", "TinyInterrupted", plans) / "fold_0"
        before = torch.load(fold / "checkpoint_latest.pth", weights_only=False)["logging"]
        assert len(before["train_losses"]) == 1

        workplace.command("nnUNetv2_train", *arguments, "--c")
        after = torch.load(fold / "checkpoint_final.pth", weights_only=False)["logging"]
        for key in (*KEYS, "train_losses", "val_losses", "mean_fg_dice"):
            assert len(after[key]) == 2, key
            assert after[key][:1] == before[key], key
        assert (fold / "validation" / "deferral_summary.json").is_file()

        # Continuing what is finished validates again and trains no further.
        workplace.command("nnUNetv2_train", *arguments, "--c")
        after = torch.load(fold / "checkpoint_final.pth", weights_only=False)["logging"]
        assert len(after["train_losses"]) == 2

    @pytest.mark.slow
    def test_a_frozen_training_can_be_validated_and_continued_without_its_weights(
        self, workplace: Workplace, frozen: Path
    ) -> None:
        for option in ("--val", "--c"):
            workplace.train(FLAT, "2d", 0, "TinyFrozen", option)
        assert (frozen / "validation" / "deferral_summary.json").is_file()


def named_plans(workplace: Workplace, name: str) -> str:
    """The dataset's plans under another name, so that a training has a folder of its own."""
    return workplace.derive_plans(FLAT, name, lambda plans: None)


@pytest.mark.slow
class TestTrainingAgain:
    def test_maps_of_other_experts_make_way_in_the_validation_folder(self, workplace: Workplace) -> None:
        """The same trainer and plans names, but someone has edited the experts in between."""
        maps = []
        for number in (2, 1):
            block = {"deferral": {"num_experts": number}}
            plans = workplace.derive_plans(FLAT, "Edited", lambda plans, block=block: plans.update(block))
            trainer = workplace.trainer("TinyDeferral", FLAT, "2d", plans=plans)
            trainer.initialize()
            trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            trainer.inference_allowed_mirroring_axes = None
            model = Path(trainer.output_folder_base)
            model.mkdir(parents=True, exist_ok=True)
            shutil.copy(workplace.preprocessed / FLAT / "dataset.json", model)  # as a training does at its start
            trainer.perform_actual_validation()
            folder = Path(trainer.output_folder) / "validation"
            maps.append(json.loads((folder / "deferral" / "deferral.json").read_text()))
            if number == 2:
                (folder / "deferral" / "route" / "of_another_split.png").write_bytes(b"")
        assert [len(each["model"]["experts"]) for each in maps] == [2, 1]
        assert not (folder / "deferral" / "route" / "of_another_split.png").exists()
