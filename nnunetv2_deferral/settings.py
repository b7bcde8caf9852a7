"""The `"deferral"` block of the plans: what a person may set, its defaults, and what makes it invalid.

nnU-Net keeps everything a training needs in its plans, and so does this package. The block of a plans file holds only
what the person wants to differ from the defaults; :func:`resolve_settings` joins it with what the trainer's name fixes
and returns the effective settings, which the trainer writes back into the plans of the model folder. A prediction
needs nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from nnunetv2_deferral.decision.assignment import check_capacities
from nnunetv2_deferral.decision.limits import CASE, Limits, check_budget
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import EXPERT_SETS, ExpertProfile, default_expert_set, expert_set
from nnunetv2_deferral.expert_sim.zones import DEFAULT_BOUNDARY_WIDTH
from nnunetv2_deferral.experts import (
    Expert,
    Rater,
    experts_from_json,
    experts_to_json,
    names_of,
    profiles_of,
    raters_of,
)
from nnunetv2_deferral.names import check_expert_names
from nnunetv2_deferral.routing import COLLABORATION, ONE_VS_ALL, RoutingRule, routing_rule

PLANS_KEY = "deferral"
DEFAULT_NUM_EXPERTS = 3
OBJECTIVES = (COLLABORATION, ONE_VS_ALL)
SEGMENTATION_LOSSES = ("nnunet", "cross_entropy")
# Raters agree with a reference made of their own masks nearly everywhere. Deferring for free then means deferring
# nearly everything; simulated experts have no cost in the paper.
RATER_COST = 0.05

# Sec. 5.2.4 gives bounds for three experts only; for another J the same totals are shared out equally.
_PAPER_LOWER = (0.15, 0.10, 0.10)
_PAPER_UPPER = (0.35, 0.25, 0.30)


@dataclass(frozen=True, kw_only=True)
class DeferralSettings:
    """Everything that shapes the training and the use of a deferral network.

    Attributes:
        experts: The J experts in routing order (route j is `experts[j - 1]`): simulated ones, and raters, whose masks
            lie in `expertsTr/<rater>` of the dataset.
        costs: c_j in [0, 1], one an expert. With `collaboration` it is taken from the reward for asking an expert who
            is right, with `one_vs_all` from the probability that the expert is; the expert must be that much better.
        unavailable: Names of experts who cannot be asked: no voxel is routed to them, in training or prediction.
        boundary_width: Width in voxels of the band around label changes where an expert's boundary accuracy holds.
        objective: `"collaboration"`, the paper's DC with its softmax over routes, or `"one_vs_all"`: how likely the
            model and each expert are to be right, each for itself.
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
        budget: Share in [0, 1] of the voxels that may be deferred, those with the highest expected gain. None lets the
            rule decide.
        capacities: Share in [0, 1] of the voxels that may go to each expert, None for no limit to one. None for no
            limit to any.
        budget_over: `"case"` or `"dataset"`, what budget and capacities are shares of, see :class:`.limits.Limits`.
        min_region_mm: Equivalent diameter of the smallest region that is deferred. None decides voxel by voxel.
        evaluation_seed: Seed of the simulated experts that the final validation is scored with.
    """

    experts: tuple[Expert, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    costs: tuple[float, ...]
    unavailable: tuple[str, ...] = ()
    boundary_width: int = DEFAULT_BOUNDARY_WIDTH
    objective: str = COLLABORATION
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
    budget: float | None = None
    capacities: tuple[float | None, ...] | None = None
    budget_over: str = CASE
    min_region_mm: float | None = None
    evaluation_seed: int = 0

    def __post_init__(self) -> None:
        if not self.experts:
            raise InputError("deferral settings: there must be at least one expert")
        names = check_expert_names(self.expert_names, "deferral settings")
        if strangers := [name for name in self.unavailable if name not in names]:
            raise InputError(
                f"deferral settings: unavailable names {', '.join(strangers)}, but the experts are {', '.join(names)}"
            )
        if set(self.unavailable) == set(names):
            raise InputError("deferral settings: all experts are unavailable, so there is nobody to defer to")
        _check_bounds(self.lower, self.upper, self.num_experts)
        if len(self.costs) != self.num_experts or not all(0 <= cost <= 1 for cost in self.costs):
            raise InputError(
                f"deferral settings: costs must be {self.num_experts} numbers in [0, 1], one an expert, got "
                f"{list(self.costs)}"
            )
        for name in ("lambda_coherence", "lambda_balance", "beta_consistency", "beta_rate"):
            if getattr(self, name) < 0:
                raise InputError(f"deferral settings: {name} must not be negative, got {getattr(self, name)}")
        if self.boundary_width < 0:
            raise InputError(f"deferral settings: boundary_width must not be negative, got {self.boundary_width}")
        if self.head_channels < 1:
            raise InputError(f"deferral settings: head_channels must be at least 1, got {self.head_channels}")
        if not self.head_learning_rate > 0:
            raise InputError(f"deferral settings: head_learning_rate must be positive, got {self.head_learning_rate}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"deferral settings: warmup is a share of the epochs in [0, 1), got {self.warmup}")
        if self.budget is not None:
            check_budget(self.budget, named="deferral settings: budget")
        check_capacities(self.capacities, self.num_experts, named="deferral settings: capacities")
        try:
            self.limits.to_dict()
        except InputError as error:
            raise InputError(f"deferral settings: {error}") from error
        if self.objective not in OBJECTIVES:
            raise InputError(
                f"deferral settings: objective is {self.objective!r}, but must be one of {', '.join(OBJECTIVES)}"
            )
        if self.segmentation_loss not in SEGMENTATION_LOSSES:
            raise InputError(
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
        return names_of(self.experts)

    @property
    def raters(self) -> tuple[str, ...]:
        """The names of the experts whose masks are read from disk, in routing order."""
        return raters_of(self.experts)

    @property
    def profiles(self) -> tuple[ExpertProfile, ...]:
        """The profiles of the experts who are simulated, in routing order."""
        return profiles_of(self.experts)

    @property
    def rule(self) -> RoutingRule:
        """What the routing logits mean."""
        return routing_rule(self.objective, self.costs, self.available)

    @property
    def limits(self) -> Limits:
        """How much may be deferred."""
        return Limits(
            budget=self.budget,
            capacities=self.capacities,
            over=self.budget_over,
            min_region_mm=self.min_region_mm,
        )

    @property
    def available(self) -> tuple[bool, ...]:
        """Who can be asked, one an expert."""
        return tuple(name not in self.unavailable for name in self.expert_names)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plans block (JSON types only); :func:`resolve_settings` reads it back unchanged."""
        block = asdict(self) | {"experts": experts_to_json(self.experts)}
        return {"num_experts": self.num_experts} | {
            key: list(value) if isinstance(value, tuple) else value for key, value in block.items()
        }


def resolve_settings(
    block: Mapping[str, Any] | None,
    *,
    num_experts: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    raters: Sequence[str] | None = None,
    asked_by: str = "the trainer",
) -> DeferralSettings:
    """Join the plans' block with what the trainer fixes into the effective settings.

    Args:
        block: The `"deferral"` block of the plans, or None where the plans have none (stock plans). Its `"experts"`
            is the name of a set of simulated experts, or a list of profiles (simulated) and names of raters.
        num_experts: J as the trainer's name fixes it, or None where it leaves it open.
        overrides: Settings that the trainer's name fixes (ablations); they win over the plans.
        raters: The raters that dataset.json declares, empty if it declares none, or None where it is not at hand
            (then those that the block names are believed).
        asked_by: Who fixes `num_experts`, for messages.

    Returns:
        The effective settings. Without a word on the experts in the plans these are the raters of the dataset, and
        where it has none the paper's three simulated ones of Table 2.

    Raises:
        InputError: For an unknown key, a value out of its range, a rater that the dataset does not have, a number of
            experts on which the trainer, the plans, the dataset and the list of experts disagree (the message names
            both sides), or a trainer's name that is about load balancing where the objective has none.
    """
    given = dict(block or {})
    known = {field.name for field in fields(DeferralSettings)} | {"num_experts"}
    unknown = sorted(set(given) - known)
    if unknown:
        raise InputError(
            f'the "{PLANS_KEY}" block of the plans has unknown keys: {", ".join(unknown)}. '
            f"Known keys: {', '.join(sorted(known))}"
        )
    _check_types(given)
    planned = given.pop("num_experts", None)
    experts = _resolve_experts(given.get("experts"), raters, plans_num=planned, asked={asked_by: num_experts})
    default_lower, default_upper = _default_bounds(len(experts))
    given["experts"] = experts
    given["lower"] = tuple(given.get("lower", default_lower))
    given["upper"] = tuple(given.get("upper", default_upper))
    given["costs"] = tuple(given.get("costs", [RATER_COST if isinstance(expert, Rater) else 0.0 for expert in experts]))
    given["unavailable"] = tuple(given.get("unavailable", ()))
    if given.get("capacities") is not None:
        given["capacities"] = tuple(given["capacities"])
    settings = DeferralSettings(**(given | dict(overrides or {})))
    if settings.objective == ONE_VS_ALL and "lambda_balance" in (overrides or {}):
        raise InputError(
            "the one-vs-all objective has no load balancing that could be left out (_noLB). For the paper's objective, "
            "which has, name it: _DC_noLB"
        )
    return settings


def _check_types(block: Mapping[str, Any]) -> None:
    """Refuse values of another type than the settings have, as JSON brings them."""
    for key, (types, words) in _LISTS.items():
        value = block.get(key)
        if value is None or (key == "experts" and isinstance(value, str)):
            continue
        if not isinstance(value, (list, tuple)) or not all(isinstance(each, types) for each in value):
            raise InputError(f"deferral settings: {key} must be a list of {words}, got {value!r}")
        if key == "experts" and not value:
            raise InputError("deferral settings: there must be at least one expert, got an empty list")
    for key in ("budget", "min_region_mm"):
        if not isinstance(block.get(key), int | float | None):
            raise InputError(f"deferral settings: {key} must be a number, got {block[key]!r}")


_LISTS: dict[str, tuple[tuple[type, ...], str]] = {
    "lower": ((int, float), "numbers"),
    "upper": ((int, float), "numbers"),
    "costs": ((int, float), "numbers"),
    "capacities": ((int, float, type(None)), "numbers, or null for no limit"),
    "unavailable": ((str,), "names"),
    "experts": ((str, Mapping), "raters' names and profiles, or the name of a set"),
}


def _resolve_experts(
    experts: str | list[dict[str, Any] | str] | None,
    raters: Sequence[str] | None,
    *,
    plans_num: int | None,
    asked: Mapping[str, int | None],
) -> tuple[Expert, ...]:
    """The experts, once everyone who says how many there are says the same."""
    said = {**asked, f'"num_experts" in the plans\' "{PLANS_KEY}" block': plans_num}
    advice = "Change the plans or choose another trainer"
    if isinstance(experts, list):
        said[f'the list "experts" in the plans\' "{PLANS_KEY}" block'] = len(experts)
    elif experts is None and raters:
        said[f'"experts" in dataset.json ({", ".join(raters)})'] = len(raters)
        advice = (
            f'Choose another trainer, or name those to train with in the plans\' "{PLANS_KEY}" block: '
            '"experts": a list of raters, or a named set such as "standard" to simulate them'
        )
    numbers = {who: number for who, number in said.items() if number is not None}
    if len(set(numbers.values())) > 1:
        sides = ", but ".join(f"{who} says {number}" for who, number in numbers.items())
        raise InputError(f"the number of experts is in conflict: {sides}. {advice}")
    if experts is None and raters:
        experts = list(raters)
    if isinstance(experts, list):
        found = experts_from_json(experts)
        strangers = [] if raters is None else [rater for rater in raters_of(found) if rater not in raters]
        if strangers:
            raise InputError(
                f'the plans\' "{PLANS_KEY}" block names the raters {", ".join(map(repr, strangers))}, but '
                + (f"dataset.json declares {', '.join(raters)}" if raters else "dataset.json declares no experts")
                + f" (sets of simulated experts are {', '.join(EXPERT_SETS)}, and stand without a list)"
            )
        return found
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
            raise InputError(
                f"deferral settings: {name} has {len(bounds)} bounds ({list(bounds)}) for {num_experts} experts"
            )
        if not all(0 <= bound <= 1 for bound in bounds):
            raise InputError(f"deferral settings: {name} bounds must lie in [0, 1], got {list(bounds)}")
    for expert, (low, high) in enumerate(zip(lower, upper, strict=True), start=1):
        if low > high:
            raise InputError(f"deferral settings: lower bound {low} of expert {expert} is above its upper bound {high}")
    if sum(lower) > 1:
        raise InputError(f"deferral settings: the lower bounds {list(lower)} sum to more than 1 and cannot be met")
