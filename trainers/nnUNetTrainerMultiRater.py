"""The trainers for several raters, in the folder that `nnUNet_extTrainer` is set to.

    nnUNetv2_train 501 2d 0 -tr nnUNetTrainerMultiRater
    nnUNetv2_train 501 2d 0 -tr nnUNetTrainerMultiRater_majority_20epochs

docs/reference/trainers.md lists the options of a name. nnU-Net imports this module outside its package; therefore
imports are absolute, and classes are defined in a module that can be imported again.
"""

from nnunetv2_deferral.nnunet.multi_rater_naming import multi_rater_class


def __getattr__(name: str) -> type:
    return multi_rater_class(name)
