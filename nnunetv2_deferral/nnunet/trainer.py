"""The deferral trainer: nnU-Net's training with a routing head, experts in the batch and the deferral objective."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from filelock import FileLock
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, autocast, distributed, nn
from torch._dynamo import OptimizedModule

from nnunetv2_deferral.decision.limits import refuse_minutes
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY, calibration_of_other_folds
from nnunetv2_deferral.environment import all_maps, check_names, simulates_on_device
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.summary import cautions
from nnunetv2_deferral.experts import Rater
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.fusion import fuse
from nnunetv2_deferral.head_place import find_head_place
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.losses.objective import DeferralObjective, ObjectiveTerms
from nnunetv2_deferral.network import DeferralHead, add_deferral_head, deferral_head
from nnunetv2_deferral.nnunet import hooks
from nnunetv2_deferral.nnunet.bases import check_settings_of_base, clip_norm_of_base, remark_on_augmentation
from nnunetv2_deferral.nnunet.device_experts import DeviceExperts
from nnunetv2_deferral.nnunet.export import effective_limits
from nnunetv2_deferral.nnunet.finite_losses import FiniteLosses
from nnunetv2_deferral.nnunet.managers import MODEL_KEY, DeferralPlansManager, label_space
from nnunetv2_deferral.nnunet.online_overlap import overlap_counts
from nnunetv2_deferral.nnunet.optimizer import (
    ADAM_BETAS,
    PAPER_RATE,
    PAPER_WEIGHT_DECAY,
    CosineSchedule,
    JointOptimizer,
    JointScaler,
    JointSchedule,
    StepSchedule,
    without_parameters,
)
from nnunetv2_deferral.nnunet.pretrained import check_same_model, check_same_training, load_stock_network
from nnunetv2_deferral.nnunet.progress import KEYS, TERMS, epochs_since_best, plot_progress
from nnunetv2_deferral.nnunet.rater_data import (
    RaterDataset,
    dataset_raters,
    experts_folder,
    labelled_voxels,
    prepare_raters,
    undeclared_raters,
)
from nnunetv2_deferral.nnunet.rater_labels import (
    NAME,
    RaterLabels,
    cases_of_two,
    raters_without_labels,
    settings_of_all_folds,
    without_raters,
)
from nnunetv2_deferral.nnunet.transforms import add_experts
from nnunetv2_deferral.nnunet.validation import discard_maps_of_another_model, summarize_validation
from nnunetv2_deferral.routing import close_routes
from nnunetv2_deferral.settings import PLANS_KEY, check_place, resolve_settings
from nnunetv2_deferral.text import plural, rate_text

hooks.install()

# The checkpoint of the epoch with the best validation Dice of the system.
BEST_SYSTEM = "checkpoint_best_system.pth"

# Below this number of feature channels the log warns.
FEW_FEATURES = 8


class DeferralTrainer(nnUNetTrainer):
    """nnU-Net's trainer with pixel-wise deferral to experts.

    Subclasses are created from trainers' names, see `naming`, which fix the attributes. They may have another trainer
    of nnU-Net as a second base, whose network, losses, augmentation, optimizer and schedule are then used.

    Attributes:
        num_experts: The number J of experts, or None to take it from the plans.
        epochs: The number of epochs, or None for nnU-Net's default.
        settings_overrides: Settings that override those of the plans.
        frozen: Whether the segmentation network is pretrained and not changed.
        clip_norm: The norm at which the base clips gradients.
    """

    num_experts: ClassVar[int | None] = None
    epochs: ClassVar[int | None] = None
    settings_overrides: ClassVar[Mapping[str, Any]] = {}
    frozen: ClassVar[bool] = False
    clip_norm: ClassVar[float] = 12.0

    inference_allowed_mirroring_axes: tuple[int, ...] | None  # nnU-Net's
    optimizer: Any  # None, then a JointOptimizer, for the base its own
    lr_scheduler: Any
    grad_scaler: Any  # None without mixed precision, else a JointScaler

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse bases that deferral cannot be combined with.

        Raises:
            InputError: See :func:`.clip_norm_of_base`.
        """
        super().__init_subclass__(**kwargs)
        cls.clip_norm = clip_norm_of_base(cls, DeferralTrainer)

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        hooks.check_nnunet_version()
        check_names()
        check_place(plans)
        self.settings = resolve_settings(
            plans.get(PLANS_KEY),
            num_experts=self.num_experts,
            overrides=self.settings_overrides,
            raters=dataset_raters(plans["dataset_name"], dataset_json),
        )
        # A copy, so that the caller's plans are not modified.
        plans = {**plans, PLANS_KEY: self.settings.to_dict()}
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.labels = label_space(self.label_manager)
        if len(self.label_manager.all_labels) < 2:
            raise InputError(
                f"dataset.json of {self.plans_manager.dataset_name} has no foreground label (labels: "
                f"{dataset_json['labels']}), but deferral requires at least one"
            )
        plans[MODEL_KEY] = {"trainer": type(self).__name__, "has_regions": self.label_manager.has_regions}
        self.layout = self.settings.layout(
            self.label_manager.num_segmentation_heads, has_regions=self.label_manager.has_regions
        )
        if self.epochs is not None:
            self.num_epochs = self.epochs
        check_settings_of_base(type(self), DeferralTrainer, self.settings)
        if self.settings.segmentation_loss == "cross_entropy":
            self.enable_deep_supervision = False
        if self.settings.optimizer == "adamw":
            self.initial_lr, self.weight_decay = PAPER_RATE, PAPER_WEIGHT_DECAY
        self._device_experts: DeviceExperts | None = None
        if self.settings.profiles and simulates_on_device(self.device.type):
            self._device_experts = DeviceExperts(
                self.settings,
                self.device,
                label_values=self.label_manager.all_labels,
                ignore_label=self.label_manager.ignore_label,
                spacing=self._spacing_of_experts(),
                rank=self.local_rank,
            )
        self._left_out: tuple[str, ...] = ()
        self._keeps_mirroring = False
        if self.grad_scaler is not None:
            self.grad_scaler = JointScaler(self.grad_scaler, shared=self.settings.routing_trains_decoder)
        self._finite_losses = FiniteLosses(scaled=self.grad_scaler is not None)
        self._has_segmentation_weights = not self.frozen
        self._register_log_keys()

    @property
    def warmup_epochs(self) -> int:
        """The number of epochs, at the start, in which only the segmentation network is trained."""
        return 0 if self.frozen else int(self.settings.warmup * self.num_epochs)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """nnU-Net's network with a deferral head; called in training and in prediction.

        `num_output_channels` is the number K of segmentation heads. The plans manager is converted to a
        :class:`.DeferralPlansManager` in place, so that from here on deferral channels are counted. Unless the plans
        have the place of the head, it is found and written to them.

        Raises:
            InputError: If the trainer's number of experts is not that of the plans, or no place for the head is found.
        """
        build = super().build_network_architecture
        described: tuple[Any, ...] = (plans_manager, configuration_manager)
        if "plans_manager" not in signature(build).parameters:  # a base for nnU-Net before 2.7
            described = (
                configuration_manager.network_arch_class_name,
                configuration_manager.network_arch_init_kwargs,
                configuration_manager.network_arch_init_kwargs_req_import,
            )
        network = build(*described, num_input_channels, num_output_channels, enable_deep_supervision)
        deferral_plans = DeferralPlansManager.adopt(plans_manager)
        settings = deferral_plans.settings
        if cls.num_experts not in (None, settings.num_experts):
            raise InputError(
                f"{cls.__name__} is for {cls.num_experts} experts, but the plans of this model have "
                f"{settings.num_experts} ({', '.join(settings.expert_names)})"
            )
        has_regions = deferral_plans.has_regions
        patch_size = configuration_manager.patch_size
        place = deferral_plans.head_place
        if place is None:
            deferral_plans.head_place = place = find_head_place(
                network,
                (num_input_channels, *patch_size),
                num_output_channels,
                segmentation_layer=settings.segmentation_layer,
                features_from=settings.features_from,
            )
        network = add_deferral_head(
            network,
            place,
            settings,
            num_heads=num_output_channels,
            dimension=len(patch_size),
            has_regions=has_regions,
        )
        if cls.frozen:
            # Before nnU-Net wraps the network: DDP expects gradients for all parameters that require one at that time.
            head = {id(parameter) for parameter in deferral_head(network).deferral_parameters()}
            for parameter in network.parameters():
                parameter.requires_grad_(id(parameter) in head)
        return network

    def configure_optimizers(self, *args: Any, **kwargs: Any) -> tuple[JointOptimizer, JointSchedule]:
        """The base's optimizer and schedule for its network, Adam with a cosine schedule for the deferral parameters.

        Bases with several stages call this again with the name of the stage, and may then continue with the optimizer
        that they find, which is their own.
        """
        parameters = list(self._head().deferral_parameters())
        rate = self.settings.head_learning_rate
        deferral: torch.optim.Optimizer
        if isinstance(self.optimizer, JointOptimizer):
            deferral = self.optimizer.deferral
            self.optimizer, self.lr_scheduler = self.optimizer.segmentation, self.lr_scheduler.segmentation
        else:
            deferral = torch.optim.Adam(parameters, rate, betas=ADAM_BETAS)
        segmentation, schedule = super().configure_optimizers(*args, **kwargs)
        if self.settings.optimizer == "adamw":
            options: dict[str, Any] = {"lr": PAPER_RATE, "weight_decay": PAPER_WEIGHT_DECAY}
            rate = PAPER_RATE
            segmentation = torch.optim.AdamW(self.network.parameters(), **options)
            deferral = torch.optim.AdamW(parameters, **options)
            schedule = PolyLRScheduler(segmentation, PAPER_RATE, self.num_epochs)
        schedule_of_head: CosineSchedule | StepSchedule = CosineSchedule(deferral, rate, self.num_epochs)
        if self.settings.schedule == "step":
            schedule, schedule_of_head = StepSchedule(segmentation, self.initial_lr), StepSchedule(deferral, rate)
        return (
            JointOptimizer(without_parameters(segmentation, parameters), deferral, clip_norm=self.clip_norm),
            JointSchedule(schedule, schedule_of_head),
        )

    def _build_loss(self) -> DeferralObjective:
        segmentation_loss = super()._build_loss()
        if self.settings.segmentation_loss == "cross_entropy":
            segmentation_loss.weight_dice = 0
        objective = DeferralObjective(self.settings, self.labels, segmentation_loss).to(self.device)
        if self._do_i_compile():
            objective.compile_deferral_terms()
        return objective

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:  # noqa: N802
        """nnU-Net's augmentation; a frozen network is mirrored as in its own training, which may be not at all."""
        axes = self.inference_allowed_mirroring_axes
        rotation, dummy_2d, patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self._keeps_mirroring:
            self.inference_allowed_mirroring_axes = mirror_axes = axes
        return rotation, dummy_2d, patch_size, mirror_axes

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's augmentation, followed by the experts of the augmented sample."""
        return self._with_experts(super().get_training_transforms(*args, **kwargs))

    def get_validation_transforms(self, *args: Any, **kwargs: Any) -> BasicTransform:
        """nnU-Net's validation transforms, with experts."""
        return self._with_experts(super().get_validation_transforms(*args, **kwargs))

    def _with_experts(self, pipeline: BasicTransform) -> BasicTransform:
        return add_experts(
            pipeline,
            self.settings,
            label_values=self.label_manager.all_labels,
            ignore_label=self.label_manager.ignore_label,
            spacing=self._spacing_of_experts(),
            on_device=self._device_experts is not None,
        )

    def _spacing_of_experts(self) -> tuple[float, ...] | None:
        return self.settings.spacing_of_experts(self.configuration_manager.spacing)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's datasets, with raters' masks as additional channels of the segmentations if there are raters."""
        datasets = super().get_tr_and_val_datasets()
        raters = self.settings.raters
        if not raters:
            return datasets
        folder = experts_folder(Path(self.preprocessed_dataset_folder))
        training, validation = (RaterDataset(dataset, folder, raters) for dataset in datasets)
        return training, validation

    def load_pretrained_weights(self, filename: str) -> None:
        """Load weights of a stock checkpoint before the training starts: for a frozen trainer all, else as nnU-Net.

        Raises:
            InputError: For a frozen trainer, see :func:`.load_stock_network`.
        """
        if not self.was_initialized:
            self.initialize()
        if not self.frozen:
            with self._head().removed_from(self._module()):
                load_pretrained_weights(self.network, filename, verbose=True)
            return
        stock = load_stock_network(self._module(), filename, self.plans_manager.plans, self.configuration_name)
        self.inference_allowed_mirroring_axes = axes = stock.mirroring
        self._keeps_mirroring = self._has_segmentation_weights = True
        self.print_to_log_file(f"Segmentation network loaded from {filename}; only the deferral head is trained")
        self.print_to_log_file(f"As in its training, mirroring along the axes {axes or 'none'}")
        all_axes = tuple(range(len(self.configuration_manager.patch_size)))
        if remark := remark_on_augmentation(type(self), stock.trainer, mirrors_all_axes=axes == all_axes):
            self.print_to_log_file(f"WARNING: {remark}", also_print_to_console=True)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Resume from a checkpoint with the same experts and settings.

        Raises:
            InputError: See :func:`.check_same_training`.
        """
        check_same_training(filename_or_checkpoint, self.settings, device=self.device)
        super().load_checkpoint(filename_or_checkpoint)
        self._has_segmentation_weights = True
        self._keeps_mirroring = self.frozen
        self._register_log_keys()

    def on_train_start(self) -> None:
        """Check that training is possible and start it.

        Raises:
            InputError: If a frozen trainer has no pretrained weights, limits in the environment are invalid, other
                folds of the model were trained with other experts or settings, raters' masks are invalid, no expert is
                left because raters have no labels in the training cases of this fold or of others of the model, or
                agreement is to be learned and no case was labelled by two raters.
        """
        if not self._has_segmentation_weights:
            raise InputError(
                f"{type(self).__name__} trains a deferral head on a trained network, which must be specified with "
                "-pretrained_weights FOLDER_OF_A_STOCK_TRAINING/fold_X/checkpoint_final.pth"
            )
        refuse_minutes(effective_limits(self.settings))  # now, not in the validation after the training
        check_same_model(Path(self.output_folder_base), self.fold, self.settings)
        labels = None
        if self.settings.raters:
            prepare_raters(self)
            labels = self._count_labels()
        plans_file = Path(self.output_folder_base) / "plans.json"
        kept = calibration_of_other_folds(plans_file, self.fold)
        super().on_train_start()
        if self.local_rank == 0:
            self._finish_plans(plans_file, {} if kept is None else {CALIBRATION_KEY: kept}, labels)
        names = ", ".join(
            f"{expert.name} ({'rater' if isinstance(expert, Rater) else f'simulated, {expert.error_model}'}"
            f"{'' if available else ', unavailable'})"
            for expert, available in zip(self.settings.experts, self.settings.available, strict=True)
        )
        self.print_to_log_file(f"Deferral to {self.settings.num_experts} experts: {names}")
        if self._device_experts is not None:
            self.print_to_log_file(f"Simulated experts are drawn in each step on {self.device}")
        if without_band := self.settings.remark_on_band(self.configuration_manager.spacing):
            self.print_to_log_file(f"WARNING: {without_band}")
        declared = dataset_raters(self.plans_manager.dataset_name, self.dataset_json)
        if remark := undeclared_raters(self.plans_manager.dataset_name, declared):
            self.print_to_log_file(f"WARNING: {remark}")
        self._log_head()
        if self.warmup_epochs:
            first = "epoch trains" if self.warmup_epochs == 1 else f"{self.warmup_epochs} epochs train"
            self.print_to_log_file(f"The first {first} the segmentation network only")

    def _log_head(self) -> None:
        """Log where the head is, and warn if there is little for it to see."""
        head = self._head()
        name = next(name for name, module in self._module().named_modules() if module is head)
        number = head.hidden_features.in_channels
        self.print_to_log_file(f"Deferral head {name} on {number} feature channels")
        if number < FEW_FEATURES:
            self.print_to_log_file(
                f"WARNING: {number} feature channels may be too few for routing. A layer with more can be given as "
                '"features_from" in the "deferral" block of the plans'
            )

    def on_train_epoch_start(self) -> None:
        """Start an epoch; a frozen segmentation network stays in evaluation mode."""
        super().on_train_epoch_start()
        self._finite_losses.start_epoch()
        if self.frozen:
            self.network.eval()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of both optimizers on one batch.

        Raises:
            RuntimeError: If the loss is not finite and the training cannot recover, see :class:`.FiniteLosses`.
        """
        self.optimizer.zero_grad(set_to_none=True)
        terms, _, _, _ = self._forward(batch)
        if self.grad_scaler is not None:
            self.grad_scaler.backward(terms.segmentation, terms.deferral)
            self.grad_scaler.step(self.optimizer)
            # Only now, so that the GPU need not wait for the check.
            values = self._checked(terms)
        else:
            values = self._checked(terms)
            terms.total.backward()
            self.optimizer.clip_gradients()
            self.optimizer.step()
        return values

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the losses of the epoch."""
        super().on_train_epoch_end(train_outputs)
        if warning := self._finite_losses.summary():
            self.print_to_log_file(warning)
        self._log_terms("train", train_outputs)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Losses, counts for nnU-Net's pseudo Dice of the model and of the system, and numbers of routed voxels."""
        terms, full, target, experts = self._forward(batch)
        parts = self.layout.split(full)
        reference, valid = self.labels.reference(target)
        model = self.labels.answer(parts.segmentation)
        routing = close_routes(parts.routing, experts != MISSING) if self.settings.raters else parts.routing
        rule = self.settings.rule
        route = rule.decision(rule.probabilities(routing))
        answers = torch.cat((model[None], self.labels.encode(experts)))
        system = fuse(answers, route[:, None])
        mask = None if valid is None else valid[:, None].float()
        kept = torch.ones_like(route, dtype=torch.bool) if valid is None else valid
        routed = torch.bincount(route[kept], minlength=self.layout.num_routes)
        model_counts = overlap_counts(model, reference, mask, self.labels)
        system_counts = overlap_counts(system, reference, mask, self.labels)
        return (
            _loss_values(terms)
            | dict(zip(("tp_hard", "fp_hard", "fn_hard"), model_counts, strict=True))
            | {"system_counts": np.stack(system_counts), "routed": routed.cpu().numpy()}
        )

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the pseudo Dice of the model and of the system, the deferral rate and the experts' shares."""
        super().on_validation_epoch_end(val_outputs)
        self._log_terms("val", val_outputs)
        collated = collate_outputs(val_outputs)
        tp, fp, fn = self._sum_over_ranks(np.sum(collated["system_counts"], 0))
        with np.errstate(invalid="ignore"):
            dice = 2 * tp / (2 * tp + fp + fn)
        routed = self._sum_over_ranks(np.sum(collated["routed"], 0))
        share = routed / max(routed.sum(), 1)
        self.logger.log("mean_fg_dice_system", float(np.nanmean(dice)), self.current_epoch)
        self.logger.log("deferral_rate", float(share[1:].sum()), self.current_epoch)
        self.logger.log("deferral_share", [float(value) for value in share[1:]], self.current_epoch)

    def run_training(self) -> None:
        """nnU-Net's training, which ends early without improvement if the settings say so."""
        try:
            super().run_training()
        except _NoImprovementError:
            self.on_train_end()

    def on_epoch_start(self) -> None:
        """Start an epoch, unless the training ends early."""
        patience = self.settings.patience
        dice, rate = (self._validated(key) for key in ("mean_fg_dice_system", "deferral_rate"))
        if patience is not None and dice:
            without = min(epochs_since_best(dice), epochs_since_best(rate, lowest=True))
            if without >= patience:
                self.print_to_log_file(
                    f"Training ends: for {plural(without, 'epoch')}, neither has the validation Dice of the system "
                    "risen nor the deferral rate fallen"
                )
                raise _NoImprovementError
        super().on_epoch_start()

    def on_train_end(self) -> None:
        """Write the final checkpoint, with the weights of the best epoch if the settings say so."""
        if self.settings.final_weights == "best":
            if self.is_ddp:
                distributed.barrier()
            best = torch.load(self._best_file(), map_location=self.device, weights_only=False)
            self._module().load_state_dict(best["network_weights"])
            self.print_to_log_file(f"The final weights are those of epoch {best['current_epoch'] - 1}")
        super().on_train_end()

    def _best_file(self) -> Path:
        return Path(self.output_folder) / BEST_SYSTEM

    def _validated(self, key: str) -> list[float]:
        """A value of the log in all epochs."""
        log: dict[str, list[float]] = self.logger.local_logger.my_fantastic_logging
        return log[key]

    def on_epoch_end(self) -> None:
        """Print and plot deferral losses, rate and shares, and end the epoch."""
        epoch = self.current_epoch
        if self.settings.final_weights == "best" and not epochs_since_best(self._validated("mean_fg_dice_system")):
            self.save_checkpoint(str(self._best_file()))
        value = {key: self.logger.get_value(key, -1) for key in KEYS}
        terms = ", ".join(f"{term} {value[f'train_loss_{term}']:.4f}" for term in TERMS)
        shares = ", ".join(map(rate_text, value["deferral_share"]))
        self.print_to_log_file(f"train losses: {terms}")
        self.print_to_log_file(
            f"pseudo Dice of the system {value['mean_fg_dice_system']:.4f}; deferred "
            f"{rate_text(value['deferral_rate'])} of the voxels (by expert: {shares})"
            + (" [warm-up, routing is not trained yet]" if epoch < self.warmup_epochs else "")
        )
        super().on_epoch_end()
        if self.local_rank == 0:
            plot_progress(self.logger.local_logger.my_fantastic_logging, self.settings, self.output_folder)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's final validation, followed by the deferral summary, see :func:`.summarize_validation`."""
        refuse_minutes(effective_limits(self.settings))
        # With --val the training was in another process.
        without = raters_without_labels(Path(self.output_folder))
        self._leave_out(without, why=f"no labels of {', '.join(without)} in the training of {self.output_folder}")
        if self.local_rank == 0:
            discard_maps_of_another_model(self, self.plans_manager)
        if self.is_ddp:
            distributed.barrier()
        with all_maps(self.settings.known_maps):
            super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            summary = summarize_validation(self, self.settings)
            if summary is None:
                self.print_to_log_file(
                    f"The raw dataset with the masks of {', '.join(self.settings.raters)} was not found; "
                    "deferral_summary.json is not written"
                )
                return
            self.print_to_log_file(
                f"Dice of the model {summary['model_everywhere']['foreground_mean']['Dice']:.4f}, of the system "
                f"{summary['system']['foreground_mean']['Dice']:.4f}, deferred "
                f"{rate_text(summary['deferral']['rate'])}",
                also_print_to_console=True,
            )
            for caution in cautions(summary):
                self.print_to_log_file(f"CAUTION: {caution}", also_print_to_console=True)

    def _count_labels(self) -> RaterLabels:
        """Count the raters' labels in the training cases, log them, and leave out raters without any."""
        planned, cases = self._planned_unavailable(), self.do_split()[0]
        labelled = labelled_voxels(Path(self.preprocessed_dataset_folder))
        if self.settings.multi_rater:
            cases_of_two(labelled, raters=self.settings.raters, cases=cases, fold=self.fold)
        labels = RaterLabels.count(
            labelled,
            raters=[rater for rater in self.settings.raters if rater not in planned],
            cases=cases,
            fold=self.fold,
        )
        counts = ", ".join(f"{rater} {number}" for rater, number in labels.cases.items())
        self.print_to_log_file(f"Labelled cases of the {labels.num_cases} training cases: {counts}")
        for line in labels.statements():
            self.print_to_log_file(line)
        why = f"no labels of {', '.join(labels.without)} in the {labels.num_cases} training cases of fold {self.fold}"
        self._leave_out(labels.without, why=why)
        settings_of_all_folds(self.settings, labels, Path(self.output_folder_base))  # refuses if nobody is left
        return labels

    def _leave_out(self, raters: Collection[str], *, why: str) -> None:
        """Make raters unavailable in this training, besides those who are in the plans.

        Raises:
            InputError: If no expert is available then.
        """
        planned = self._planned_unavailable()
        settings = without_raters(replace(self.settings, unavailable=planned), raters, why=why)
        if settings == self.settings:
            return
        self.settings = settings
        self._left_out = tuple(name for name in self.settings.unavailable if name not in planned)
        for plans in (self.plans_manager.plans, self.my_init_kwargs["plans"]):
            plans[PLANS_KEY] = self.settings.to_dict()
        if self.was_initialized:
            self.loss = self._build_loss()
            self._head().set_available(self.settings.available)

    def _planned_unavailable(self) -> tuple[str, ...]:
        """Those who are unavailable in the plans, without the raters left out by this training."""
        return tuple(name for name in self.settings.unavailable if name not in self._left_out)

    def _finish_plans(self, plans_file: Path, added: dict[str, Any], labels: RaterLabels | None) -> None:
        """Add to the plans that nnU-Net has written to the model folder what other folds of the model require."""
        if labels is None:
            if added:
                write_json({**self.plans_manager.plans, **added}, plans_file)
            return
        # Folds may be started at the same time: each writes its file before it reads those of the others.
        with FileLock(plans_file.with_name(".deferral_plans.lock")):
            write_json(labels.to_dict(), Path(self.output_folder) / NAME)
            settings = settings_of_all_folds(self.settings, labels, plans_file.parent)
            write_json({**self.plans_manager.plans, PLANS_KEY: settings.to_dict(), **added}, plans_file)
        if others := [name for name in settings.unavailable if name not in self.settings.unavailable]:
            self.print_to_log_file(
                f"WARNING: predictions with this model route nothing to {', '.join(others)}, because another fold has "
                f"no labels of {', '.join(others)}"
            )

    def _forward(self, batch: dict[str, Any]) -> tuple[ObjectiveTerms, Tensor, Tensor, Tensor]:
        """The objective on a batch, and the full-resolution output, target and expert labels."""
        data = batch["data"].to(self.device, non_blocking=True)
        *targets, experts = (part.to(self.device, non_blocking=True) for part in batch["target"])
        if self._device_experts is not None:
            experts = self._device_experts(experts)
        target = targets if self.enable_deep_supervision else targets[0]
        weight = 0.0 if self.current_epoch < self.warmup_epochs else 1.0
        # As in nnU-Net, autocast on CUDA only (slow on CPUs, not implemented on MPS).
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            terms = self.loss(output, target, experts, weight)
        return terms, output[0] if self.enable_deep_supervision else output, targets[0], experts

    def _checked(self, terms: ObjectiveTerms) -> dict[str, np.ndarray]:
        """The values of the losses of a training step, after a check that the training can go on."""
        values = _loss_values(terms)
        self._finite_losses.check(values, self.current_epoch)
        return values

    def _log_terms(self, phase: str, outputs: list[dict[str, Any]]) -> None:
        collated = collate_outputs(outputs)
        for term in TERMS:
            mean = self._sum_over_ranks(np.array(np.mean(collated[term]))) / self._world_size()
            self.logger.log(f"{phase}_loss_{term}", float(mean), self.current_epoch)

    def _sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        if not self.is_ddp:
            return values
        gathered: list[Any] = [None] * self._world_size()
        distributed.all_gather_object(gathered, values)
        return np.sum(gathered, axis=0)

    def _world_size(self) -> int:
        return distributed.get_world_size() if self.is_ddp else 1

    def _register_log_keys(self) -> None:
        log = self.logger.local_logger.my_fantastic_logging
        for key in KEYS:
            log.setdefault(key, [])

    def _module(self) -> nn.Module:
        """The network without the wrappers of DDP and torch.compile."""
        module = self.network.module if isinstance(self.network, nn.parallel.DistributedDataParallel) else self.network
        return module._orig_mod if isinstance(module, OptimizedModule) else module

    def _head(self) -> DeferralHead:
        return deferral_head(self._module())


class _NoImprovementError(Exception):
    """Ends nnU-Net's loop over the epochs."""


def _loss_values(terms: ObjectiveTerms) -> dict[str, np.ndarray]:
    """The total, `"loss"`, and the terms, each a scalar, by one transfer from the device."""
    values = torch.stack([terms.total, *(getattr(terms, term) for term in TERMS)]).detach().cpu().numpy()
    return dict(zip(("loss", *TERMS), values, strict=True))
