"""Trainers of two short epochs, written as a user of nnU-Net would write them: subclass, then set in `__init__`.

They stand in a second folder of `nnUNet_extTrainer`, behind ours.
"""

import os
from contextlib import ExitStack
from unittest.mock import patch

import torch
from dynamic_network_architectures.architectures.primus import Primus
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus

from nnunetv2_deferral.nnunet.multi_rater_naming import multi_rater_class
from nnunetv2_deferral.nnunet.naming import trainer_class


class Tiny:
    """Two epochs of three iterations, with a checkpoint after each.

    Pictures of progress would take most of their time; they are drawn if the environment has TINY_PICTURES.
    """

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 2
        self.num_iterations_per_epoch = 3
        self.num_val_iterations_per_epoch = 2
        self.save_every = 1

    def on_epoch_end(self):
        with ExitStack() as without:
            if "TINY_PICTURES" not in os.environ:
                without.enter_context(patch.object(self.logger, "plot_progress_png"))
                without.enter_context(patch("nnunetv2_deferral.nnunet.trainer.plot_progress"))
            super().on_epoch_end()


class TinyStock(Tiny, nnUNetTrainer):
    pass


class TinyDeferral(Tiny, trainer_class("nnUNetTrainerDeferral")):
    pass


class TinyDeferral1Expert(Tiny, trainer_class("nnUNetTrainerDeferral1Expert")):
    pass


class TinyDeferral3Experts(Tiny, trainer_class("nnUNetTrainerDeferral3Experts")):
    pass


class TinyFrozen(Tiny, trainer_class("nnUNetTrainerDeferral3Experts_frozen")):
    pass


class TinyDeferralMR(Tiny, trainer_class("nnUNetTrainerDeferral_OvA_MR")):
    pass


class TinyMultiRater(Tiny, multi_rater_class("nnUNetTrainerMultiRater")):
    pass


class TinyMultiRaterMajority(Tiny, multi_rater_class("nnUNetTrainerMultiRater_majority")):
    pass


class TinyMultiRaterMeanLabel(Tiny, multi_rater_class("nnUNetTrainerMultiRater_meanLabel")):
    pass


class TinyMultiRaterRandom(Tiny, multi_rater_class("nnUNetTrainerMultiRater_randomRater_noDice")):
    pass


class TinyPrimus(AbstractPrimus):
    """A transformer with a segmentation layer that is a transposed convolution, clipping and warm-up of its own."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.warmup_duration_whole_net = 1

    @staticmethod
    def build_network_architecture(
        architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels,
        num_output_channels, enable_deep_supervision=True,
    ):  # fmt: skip
        """In the form that nnU-Net had before 2.7."""
        return Primus(num_input_channels, 24, (8, 8, 8), num_output_channels, 1, 2, (16, 16, 16))


class TinyInterrupted(TinyDeferral3Experts):
    """Ends as if it were killed at the start of its second epoch, unless it is a continued training."""

    continued = False

    def load_checkpoint(self, filename_or_checkpoint):
        super().load_checkpoint(filename_or_checkpoint)
        self.continued = True

    def on_epoch_start(self):
        if self.current_epoch == 1 and not self.continued:
            raise RuntimeError("the power went out")
        super().on_epoch_start()
