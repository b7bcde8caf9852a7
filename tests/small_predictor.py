"""nnU-Net's predictor with a small deferral network that was not trained."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_deferral.network import deferral_head
from nnunetv2_deferral.nnunet.naming import trainer_class
from nnunetv2_deferral.settings import resolve_settings

DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "nodule": 1}, "file_ending": ".nii.gz"}
TRAINER = "nnUNetTrainerDeferral3Experts"


def small_predictor() -> nnUNetPredictor:
    """A 2D network for one channel, two classes and three experts, with weights drawn from a fixed seed."""
    plans = PlansManager(_plans())
    configuration = plans.get_configuration("2d")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = trainer_class(TRAINER).build_network_architecture(plans, configuration, 1, 2, False)
        for parameter in deferral_head(network).deferral_parameters():
            torch.nn.init.normal_(parameter)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.manual_initialization(
        network, plans, configuration, [network.state_dict()], DATASET_JSON, TRAINER, (0, 1)
    )
    return predictor


def _plans() -> dict[str, Any]:
    resampling: dict[str, Any] = {}
    for what, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
        resampling[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{what}_kwargs"] = {
            "is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None,
        }  # fmt: skip
    unet = {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3], [3, 3]],
        "strides": [[1, 1], [2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_2d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [32, 32],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": unet,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    } | resampling
    return {
        "dataset_name": "Dataset901_Small",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
        "continue_training": False,
        "configurations": {"2d": configuration},
        "deferral": resolve_settings(None, num_experts=3).to_dict(),
        "deferral_model": {"trainer": TRAINER, "has_regions": False},
    }
