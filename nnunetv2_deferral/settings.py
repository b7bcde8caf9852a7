"""The `"deferral"` block of the plans: what a person may set, its defaults, and what makes it invalid.

nnU-Net keeps everything a training needs in its plans, and so does this package. The block of a plans file holds only
what the person wants to differ from the defaults; :func:`resolve_settings` joins it with what the trainer's name fixes
and returns the effective settings, which the trainer writes back into the plans of the model folder. A prediction
needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nnunetv2_deferral.expert_sim.profiles import ExpertProfile, default_expert_set, expert_set
from nnunetv2_deferral.expert_sim.regions import DEFAULT_BOUNDARY_WIDTH

PLANS_KEY = "deferral"
DEFAULT_NUM_EXPERTS = 3
SEGMENTATION_LOSSES = ("nnunet", "cross_entropy")

# Sec. 5.2.4 gives bounds for three experts only; for another J the same totals are shared out equally.
_PAPER_LOWER = (0.15, 0.10, 0.10)
_PAPER_UPPER = (0.35, 0.25, 0.30)


@dataclass(frozen=True, kw_only=True)
class DeferralSettings:
    """Everything that shapes the training and the use of a deferral network.

    Attributes:
        experts: The J simulated experts, in routing order (route j is `experts[j - 1]`).
        boundary_width: Width in voxels of the band around label changes where an expert's boundary accuracy holds.
        lambda_coherence: Weight of the spatial-coherence loss, lambda_1 of Eq. (10). 0 switches it off.
        lambda_balance: Weight of the load-balancing penalty, lambda_2 of Eq. (10). 0 switches it off.
        beta_consistency: Weight of the squared difference in the spatial-coherence loss, beta_1 of Eq. (7).
        beta_rate: Weight of the deferral rate in the spatial-coherence loss, beta_2 of Eq. (7).
        lower: Lower bounds l_j of Eq. (9), one an expert, as a share of all voxels.
        upper: Upper bounds u_j of Eq. (9), likewise.
        coherence_trains_routing: True is the paper's Eq. (7), whose squared term also pulls on the routing logits.
            False trains the aggregated predictor alone, which for J >= 3 keeps the routing from being suppressed.
        routing_trains_decoder: Whether the routing losses reach the shared decoder. False leaves the training of the
            segmentation network exactly as nnU-Net's.
        segmentation_loss: `"nnunet"` (Dice and cross-entropy at every scale) or `"cross_entropy"`, the paper's.
        head_channels: Width of the hidden layer of the two deferral predictors.
        head_learning_rate: Initial learning rate of the head's own Adam (cosine schedule).
        warmup: Share of the epochs, from the first, in which only the segmentation network is trained.
        evaluation_seed: Seed of the simulated experts that the final validation is scored with.
    """

    experts: tuple[ExpertProfile, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    boundary_width: int = DEFAULT_BOUNDARY_WIDTH
    lambda_coherence: float = 1.0
    lambda_balance: float = 5.0
    beta_consistency: float = 0.5
    beta_rate: float = 0.1
    coherence_trains_routing: bool = False
    routing_trains_decoder: bool = False
    segmentation_loss: str = "nnunet"
    head_channels: int = 8
    head_learning_rate: float = 3e-3
    warmup: float = 0.1
    evaluation_seed: int = 0

    def __post_init__(self) -> None:
        if not self.experts:
            raise ValueError("deferral settings: there must be at least one expert")
        _check_bounds(self.lower, self.upper, self.num_experts)
        for name in ("lambda_coherence", "lambda_balance", "beta_consistency", "beta_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"deferral settings: {name} must not be negative, got {getattr(self, name)}")
        if self.boundary_width < 0:
            raise ValueError(f"deferral settings: boundary_width must not be negative, got {self.boundary_width}")
        if self.head_channels < 1:
            raise ValueError(f"deferral settings: head_channels must be at least 1, got {self.head_channels}")
        if not self.head_learning_rate > 0:
            raise ValueError(f"deferral settings: head_learning_rate must be positive, got {self.head_learning_rate}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"deferral settings: warmup is a share of the epochs in [0, 1), got {self.warmup}")
        if self.segmentation_loss not in SEGMENTATION_LOSSES:
            raise ValueError(
                f"deferral settings: segmentation_loss is {self.segmentation_loss!r}, but must be one of "
                f"{', '.join(SEGMENTATION_LOSSES)}"
            )

    @property
    def num_experts(self) -> int:
        """The number of experts J."""
        return len(self.experts)

    @property
    def expert_names(self) -> tuple[str, ...]:
        """The names of the experts in routing order."""
        return tuple(expert.name for expert in self.experts)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plans block (JSON types only); :func:`resolve_settings` reads it back unchanged."""
        block = asdict(self) | {"experts": [expert.to_dict() for expert in self.experts]}
        return {"num_experts": self.num_experts} | {
            key: list(value) if isinstance(value, tuple) else value for key, value in block.items()
        }


def resolve_settings(
    block: Mapping[str, Any] | None,
    *,
    num_experts: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> DeferralSettings:
    """Join the plans' block with what the trainer fixes into the effective settings.

    Args:
        block: The `"deferral"` block of the plans, or None where the plans have none (stock plans). Its `"experts"`
            is the name of an expert set or a list of profiles.
        num_experts: J as the trainer's name fixes it, or None where it leaves it open.
        overrides: Settings that the trainer's name fixes (ablations); they win over the plans.

    Returns:
        The effective settings. Without any word on the experts these are the paper's three of Table 2.

    Raises:
        ValueError: For an unknown key, a value out of its range, or a number of experts on which the trainer, the
            plans and the list of experts disagree; the message names both sides.
    """
    given = dict(block or {})
    known = {field.name for field in fields(DeferralSettings)} | {"num_experts"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(
            f'the "{PLANS_KEY}" block of the plans has unknown keys: {", ".join(unknown)}. '
            f"Known keys: {', '.join(sorted(known))}"
        )
    planned = given.pop("num_experts", None)
    given["experts"] = _resolve_experts(given.get("experts"), trainer_num=num_experts, plans_num=planned)
    default_lower, default_upper = _default_bounds(len(given["experts"]))
    given["lower"] = tuple(given.get("lower", default_lower))
    given["upper"] = tuple(given.get("upper", default_upper))
    return DeferralSettings(**(given | dict(overrides or {})))


def _resolve_experts(
    experts: str | list[dict[str, Any]] | None, *, trainer_num: int | None, plans_num: int | None
) -> tuple[ExpertProfile, ...]:
    """The profiles of the experts, once everyone who says how many there are says the same."""
    said = {"the trainer": trainer_num, f'"num_experts" in the plans\' "{PLANS_KEY}" block': plans_num}
    if isinstance(experts, list):
        said[f'the list "experts" in the plans\' "{PLANS_KEY}" block'] = len(experts)
    numbers = {who: number for who, number in said.items() if number is not None}
    if len(set(numbers.values())) > 1:
        sides = ", but ".join(f"{who} says {number}" for who, number in numbers.items())
        raise ValueError(f"the number of experts is in conflict: {sides}. Change the plans or choose another trainer")
    if isinstance(experts, list):
        profiles = tuple(ExpertProfile.from_dict(expert) for expert in experts)
        names = [profile.name for profile in profiles]
        if len(set(names)) != len(names):
            raise ValueError(f"deferral settings: two experts have the same name: {', '.join(names)}")
        return profiles
    number = next(iter(numbers.values()), DEFAULT_NUM_EXPERTS)
    return expert_set(experts or default_expert_set(number), number)


def _default_bounds(num_experts: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Load bounds for J experts: the paper's for three, none for one (its LB is omitted), else its totals shared."""
    if num_experts == 1:
        return (0.0,), (1.0,)
    if num_experts == len(_PAPER_LOWER):
        return _PAPER_LOWER, _PAPER_UPPER
    return (
        (round(sum(_PAPER_LOWER) / num_experts, 4),) * num_experts,
        (round(sum(_PAPER_UPPER) / num_experts, 4),) * num_experts,
    )


def _check_bounds(lower: tuple[float, ...], upper: tuple[float, ...], num_experts: int) -> None:
    for name, bounds in (("lower", lower), ("upper", upper)):
        if len(bounds) != num_experts:
            raise ValueError(
                f"deferral settings: {name} has {len(bounds)} bounds ({list(bounds)}) for {num_experts} experts"
            )
        if not all(0 <= bound <= 1 for bound in bounds):
            raise ValueError(f"deferral settings: {name} bounds must lie in [0, 1], got {list(bounds)}")
    for expert, (low, high) in enumerate(zip(lower, upper, strict=True), start=1):
        if low > high:
            raise ValueError(f"deferral settings: lower bound {low} of expert {expert} is above its upper bound {high}")
    if sum(lower) > 1:
        raise ValueError(f"deferral settings: the lower bounds {list(lower)} sum to more than 1 and cannot be met")
