# The public names and the modules from which they are imported on first use; also read by lazy_loader.

from .calibration.evidence_models import fit_evidence_model
from .calibration.selection import select_calibrator
from .decision.calibrators import Isotonic, Temperature
from .decision.certificate import certified_budget, groups_needed
from .decision.decide import decide
from .decision.gains import find_candidates
from .decision.limits import Limits
from .errors import InputError
from .evaluation.bootstrap import bootstrap_difference, bootstrap_interval
from .evaluation.budgets import dice_at_budgets
from .evaluation.rater_calibration import multi_rater_ece
from .evaluation.risk_coverage import augrc, aurc
from .evidence.posterior import EvidenceModel
from .evidence.questions import Policy, ask
from .expert_sim.profiles import ExpertProfile, expert_set
from .expert_sim.simulate import simulate_case
from .fusion import fuse, fuse_masks
from .losses.balance import balance_loss
from .losses.coherence import coherence_loss
from .losses.collaboration import collaboration_loss
from .losses.objective import DeferralObjective
from .losses.one_vs_all import one_vs_all_loss
from .losses.several_raters import multi_rater_loss
from .maps import write_maps
from .nnunet.in_memory import predict_array
from .plots import plot_case, plot_coverage, plot_reliability
from .predictions import PredictionFolder
from .routing import routing_rule
from .worklist.listing import choose_regions, find_regions

__version__: str

__all__ = [
    "DeferralObjective",
    "EvidenceModel",
    "ExpertProfile",
    "InputError",
    "Isotonic",
    "Limits",
    "Policy",
    "PredictionFolder",
    "Temperature",
    "ask",
    "augrc",
    "aurc",
    "balance_loss",
    "bootstrap_difference",
    "bootstrap_interval",
    "certified_budget",
    "choose_regions",
    "coherence_loss",
    "collaboration_loss",
    "decide",
    "dice_at_budgets",
    "expert_set",
    "find_candidates",
    "find_regions",
    "fit_evidence_model",
    "fuse",
    "fuse_masks",
    "groups_needed",
    "multi_rater_ece",
    "multi_rater_loss",
    "one_vs_all_loss",
    "plot_case",
    "plot_coverage",
    "plot_reliability",
    "predict_array",
    "routing_rule",
    "select_calibrator",
    "simulate_case",
    "write_maps",
]
