"""Experiment planners that write plans for deferral networks.

nnU-Net's own commands look planners up inside nnunetv2 only, so these are chosen by name through
`nnUNetv2_deferral_plan_experiment -pl NAME`. The plans they write are ordinary plans: they name nothing but nnU-Net's
own classes and carry one more block, `"deferral"`.
"""

from nnunetv2_deferral.planners.cpu import nnUNetPlannerDeferralCPU
from nnunetv2_deferral.planners.deferral import (
    nnUNetPlannerDeferral,
    nnUNetPlannerDeferralResEncL,
    nnUNetPlannerDeferralResEncM,
    nnUNetPlannerDeferralResEncXL,
)

PLANNERS = {
    planner.__name__: planner
    for planner in (
        nnUNetPlannerDeferral,
        nnUNetPlannerDeferralResEncM,
        nnUNetPlannerDeferralResEncL,
        nnUNetPlannerDeferralResEncXL,
        nnUNetPlannerDeferralCPU,
    )
}

__all__ = ["PLANNERS", *PLANNERS]
