"""Plans small enough to train a deferral network on two CPU cores."""

from __future__ import annotations

from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_deferral.planners.deferral import DeferralPlannerMixin


class nnUNetPlannerDeferralCPU(DeferralPlannerMixin, ExperimentPlanner):
    """nnU-Net's default planner with half the features and a small budget of feature map elements.

    Meant for trying things out, teaching and tests, not for results to publish. An epoch of 250 iterations on
    128x128 images takes a minute or two on two CPU cores.

    The budgets count the head, as everywhere in this package: 2D allows 15 million elements in a batch (four images of
    128x128, or fewer and at last smaller patches of larger images), 3D 23 million. `gpu_memory_target_in_gb` scales
    them and has no other meaning here; 8, the default, leaves them as they are.

    There is never a 3d_lowres configuration (and hence no cascade): nnU-Net adds one as soon as the patch sees less
    than a quarter of the image, which patches of this size nearly always do.
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
