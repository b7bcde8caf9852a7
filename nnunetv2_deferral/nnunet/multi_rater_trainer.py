"""The trainer for several raters: nnU-Net's training with an ordinal head, or with one of three simpler targets."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, autocast, distributed, nn

from nnunetv2_deferral import maps
from nnunetv2_deferral.agreement_maps import check_folder
from nnunetv2_deferral.dataset import read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.losses.several_raters import MeanLabelLoss, OrdinalObjective
from nnunetv2_deferral.multi_rater.ordinal_head import OrdinalChannels, add_ordinal_head, find_ordinal_place
from nnunetv2_deferral.nnunet import hooks
from nnunetv2_deferral.nnunet.managers import label_space
from nnunetv2_deferral.nnunet.multi_rater_plans import MULTI_RATER_KEY, MultiRaterPlansManager, multi_rater_block
from nnunetv2_deferral.nnunet.multi_rater_transform import add_raters
from nnunetv2_deferral.nnunet.online_overlap import overlap_counts
from nnunetv2_deferral.nnunet.pretrained import other_trained_folds
from nnunetv2_deferral.nnunet.rater_data import (
    RaterDataset,
    dataset_raters,
    experts_folder,
    labelled_voxels,
    prepare_raters,
)
from nnunetv2_deferral.nnunet.rater_labels import cases_of_two

hooks.install()


@dataclass(frozen=True)
class RaterMethod:
    """How a training uses several raters.

    Attributes:
        has_levels: Whether the network has an ordinal head.
        needs_masks: Whether the loss takes the raters' label maps.
        at_random: Whether the target of a training sample is that of a random rater instead of the majority.
    """

    has_levels: bool = False
    needs_masks: bool = False
    at_random: bool = False


ORDINAL = RaterMethod(has_levels=True, needs_masks=True)
MAJORITY = RaterMethod()
MEAN_LABEL = RaterMethod(needs_masks=True)
RANDOM_RATER = RaterMethod(at_random=True)


class MultiRaterTrainer(nnUNetTrainer):
    """nnU-Net's trainer for the masks of at least two raters in `expertsTr`.

    Subclasses are created from trainers' names, see `multi_rater_naming`, which fix the attributes.

    Attributes:
        method: How raters are used.
        epochs: The number of epochs, or None for nnU-Net's default.
        with_dice: Whether nnU-Net's loss has its Dice term.
    """

    method: ClassVar[RaterMethod] = ORDINAL
    epochs: ClassVar[int | None] = None
    with_dice: ClassVar[bool] = True

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        hooks.check_nnunet_version()
        self.raters = dataset_raters(plans["dataset_name"], dataset_json)
        if len(self.raters) < 2:
            named = f"only {self.raters[0]}" if self.raters else "none"
            raise InputError(
                f"{type(self).__name__} learns how far raters agree, which requires at least two, but dataset.json of "
                f'{plans["dataset_name"]} declares {named} under "experts". For one rater, train nnUNetTrainer on that '
                "rater's masks as labelsTr"
            )
        # A copy, so that the caller's plans are not modified.
        plans = {**plans, MULTI_RATER_KEY: {"trainer": type(self).__name__, "raters": list(self.raters)}}
        super().__init__(plans, configuration, fold, dataset_json, device)
        plans[MULTI_RATER_KEY]["has_regions"] = bool(self.label_manager.has_regions)
        self.labels = label_space(self.label_manager)
        if len(self.label_manager.all_labels) < 2:
            raise InputError(
                f"dataset.json of {self.plans_manager.dataset_name} has no foreground label (labels: "
                f"{dataset_json['labels']})"
            )
        if self.epochs is not None:
            self.num_epochs = self.epochs

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's network, with an ordinal head if the method has one; called in training and in prediction.

        The plans manager is then converted to a :class:`.MultiRaterPlansManager` in place, so that from here on the
        channels of the levels are counted. Unless the plans have the place of the head, it is found and written to
        them.

        Raises:
            InputError: If the plans are not those of a trained model, or there is no place for the head.
        """
        network: nn.Module = super().build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        if not cls.method.has_levels:
            return network
        block = multi_rater_block(plans_manager.plans)
        MultiRaterPlansManager.adopt(plans_manager)
        if "segmentation_layer" not in block:
            shape = (num_input_channels, *configuration_manager.patch_size)
            block["segmentation_layer"] = find_ordinal_place(network, shape, num_output_channels)
        channels = OrdinalChannels(num_output_channels, block["has_regions"], len(block["raters"]))
        return add_ordinal_head(network, block["segmentation_layer"], channels)

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        if not self.with_dice:
            (loss.loss if self.enable_deep_supervision else loss).weight_dice = 0
        if self.method.has_levels:
            return OrdinalObjective(self.labels, len(self.raters), loss)
        if self.method.needs_masks:
            return MeanLabelLoss(self.labels, loss.weight_factors if self.enable_deep_supervision else None)
        return loss

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's augmentation, with raters' labels as the target."""
        return self._with_raters(super().get_training_transforms(*args, **kwargs), at_random=self.method.at_random)

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's validation transforms, with the majority of raters as the target."""
        return self._with_raters(super().get_validation_transforms(*args, **kwargs), at_random=False)

    def _with_raters(self, pipeline: BasicTransform, *, at_random: bool) -> BasicTransform:
        return add_raters(
            pipeline, len(self.raters), self.labels, at_random=at_random, in_target=self.method.needs_masks
        )

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's datasets, with raters' masks as additional channels of the segmentations."""
        folder = experts_folder(Path(self.preprocessed_dataset_folder))
        training, validation = super().get_tr_and_val_datasets()
        return RaterDataset(training, folder, self.raters), RaterDataset(validation, folder, self.raters)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Resume from a checkpoint with the same raters.

        Raises:
            InputError: If the raters differ.
        """
        checkpoint = filename_or_checkpoint
        if isinstance(checkpoint, str):
            checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=False)
        trained = checkpoint["init_args"]["plans"].get(MULTI_RATER_KEY, {}).get("raters", [])
        if trained != list(self.raters):
            raise InputError(
                f"the checkpoint {filename_or_checkpoint if isinstance(filename_or_checkpoint, str) else ''} was "
                f"trained with the raters {', '.join(trained) or 'none'}, but dataset.json declares "
                f"{', '.join(self.raters)}"
            )
        super().load_checkpoint(filename_or_checkpoint)

    def on_train_start(self) -> None:
        """Check and preprocess the raters' masks, and start the training.

        Raises:
            InputError: If masks are invalid, no training case was labelled by two raters, or other folds of the model
                were trained with another number of raters.
        """
        self._check_other_folds()
        prepare_raters(self)
        self._check_labels()
        super().on_train_start()
        self.print_to_log_file(f"{type(self).__name__}: {len(self.raters)} raters ({', '.join(self.raters)})")

    def _check_other_folds(self) -> None:
        """Refuse to overwrite the plans of a model whose other folds were trained with another number of raters."""
        model = Path(self.output_folder_base)
        others = other_trained_folds(model, self.fold)
        if not others or not (model / "plans.json").is_file():
            return
        theirs = read_plans_json(model / "plans.json").get(MULTI_RATER_KEY, {}).get("raters", [])
        if len(theirs) != len(self.raters):
            raise InputError(
                f"{model / 'plans.json'}: {', '.join(others)} of this model learned from "
                f"{', '.join(theirs) or 'none'}, but dataset.json now declares {', '.join(self.raters)}. Networks for "
                "different numbers of raters cannot be folds of one model; move its folder away, or declare the same "
                "raters"
            )

    def _check_labels(self) -> None:
        labelled = labelled_voxels(Path(self.preprocessed_dataset_folder))
        cases = [case for case in self.do_split()[0] if case in labelled]
        of_two = cases_of_two(labelled, raters=self.raters, cases=cases, fold=self.fold)
        counts = ", ".join(f"{rater} {sum(labelled[case][rater] > 0 for case in cases)}" for rater in self.raters)
        self.print_to_log_file(f"Labelled cases of the {len(cases)} training cases: {counts}")
        if alone := len(cases) - of_two:
            self.print_to_log_file(f"{alone} of them were labelled by fewer than two raters")

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's validation step on the segmentation channels."""
        if not self.method.needs_masks:
            found: dict[str, Any] = super().validation_step(batch)
            return found
        data = batch["data"].to(self.device, non_blocking=True)
        target = [part.to(self.device, non_blocking=True) for part in batch["target"]]
        # As in nnU-Net, autocast on CUDA only.
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        full: Tensor = output[0] if self.enable_deep_supervision else output
        reference, valid = self.labels.reference(target[0])
        mask = None if valid is None else valid[:, None].float()
        answer = self.labels.answer(full[:, : self.label_manager.num_segmentation_heads])
        counts = overlap_counts(answer, reference, mask, self.labels)
        return {
            "loss": loss.detach().cpu().numpy(),
            **dict(zip(("tp_hard", "fp_hard", "fn_hard"), counts, strict=True)),
        }

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's final validation; maps of another model, from an earlier training, are removed before."""
        if self.method.has_levels and self.local_rank == 0:
            folder = Path(self.output_folder) / "validation"
            try:
                check_folder(folder, self.plans_manager.model(self.configuration_manager))
            except InputError as error:
                self.print_to_log_file(f"Removing {folder / maps.FOLDER}: {error}")
                shutil.rmtree(folder / maps.FOLDER)
        if self.is_ddp:
            distributed.barrier()
        super().perform_actual_validation(save_probabilities)
