"""The deferral trainers, where nnU-Net finds them: point `nnUNet_extTrainer` at this folder.

    nnUNetv2_train 501 2d 0 -tr nnUNetTrainerDeferral3Experts
    nnUNetv2_train 501 2d 0 -tr nnUNetTrainerDeferral1Expert_20epochs_noSC

`nnUNetv2_deferral_doctor` lists what a name can say. nnU-Net imports this module by itself, outside its package, so
imports here are absolute and nothing is defined here that must be imported again.
"""

from nnunetv2_deferral.nnunet.naming import trainer_class


def __getattr__(name: str) -> type:
    return trainer_class(name)
