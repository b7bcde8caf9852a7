"""The deferral trainers for nnU-Net: set `nnUNet_extTrainer` to this folder.

    nnUNetv2_train 501 2d 0 -tr nnUNetTrainerDeferral3Experts
    nnUNetv2_train 501 2d 0 -tr nnUNetTrainerDeferral1Expert_20epochs_noSC

docs/reference/trainers.md lists the options of a name. nnU-Net imports this module outside its package; therefore
imports are absolute, and classes are defined in a module that can be imported again.
"""

from nnunetv2_deferral.nnunet.naming import trainer_class


def __getattr__(name: str) -> type:
    return trainer_class(name)
