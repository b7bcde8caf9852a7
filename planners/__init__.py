"""Experiment planners that write plans for deferral networks.

nnU-Net's own commands look up planners inside nnunetv2 only, so these are selected by
`nnUNetv2_deferral_plan_experiment -pl NAME`. The plans they write are ordinary plans, which name nnU-Net's own classes
only and have an additional block, `"deferral"`.
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
