"""Trainers of two short epochs, written as a user of nnU-Net would write them: subclass, then set in `__init__`.

They stand in a second folder of `nnUNet_extTrainer`, behind ours.
"""

import os
from contextlib import ExitStack
from unittest.mock import patch

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

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
