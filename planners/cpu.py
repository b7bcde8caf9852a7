"""A planner for deferral networks small enough to train on two CPU cores."""

from __future__ import annotations

from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_deferral.planners.deferral import DeferralPlannerMixin


class nnUNetPlannerDeferralCPU(DeferralPlannerMixin, ExperimentPlanner):
    """nnU-Net's default planner with half the features and a small limit on feature map elements.

    Meant for experiments, teaching and tests, not for results to be published. An epoch of 250 iterations on 128x128
    images takes one to two minutes on two CPU cores.

    The limits include the head: 15 million elements per batch in 2D (four images of 128x128; for larger images the
    batch size is reduced first, then the patch size), 23 million in 3D. `gpu_memory_target_in_gb` only scales these
    limits; 8, the default, leaves them unchanged.

    There is no 3d_lowres configuration, and hence no cascade: nnU-Net adds one if the patch covers less than a quarter
    of the image, which nearly always applies to patches of this size.
    """

    default_plans_name = "nnUNetDeferralCPUPlans"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.UNet_base_num_features = 16
        self.UNet_max_features_2d = 128
        self.UNet_max_features_3d = 128
        self.UNet_reference_val_2d = 3_750_000
        self.UNet_reference_val_corresp_bs_2d = 4
        self.UNet_reference_val_3d = 11_500_000
        self.UNet_reference_val_corresp_bs_3d = 2
        self.lowres_creation_threshold = 0.0
