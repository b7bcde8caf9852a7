"""The `"deferral"` block of the plans: settings, defaults and validation.

Like nnU-Net's own settings, those of deferral are part of the plans. The block of a plans file need only contain
settings that differ from the defaults. :func:`resolve_settings` combines it with the settings fixed by the trainer's
name to the effective settings, which the trainer writes to the plans of the model folder. Predictions need nothing
else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from nnunetv2_deferral.channels import ChannelLayout
from nnunetv2_deferral.decision.assignment import check_capacities
from nnunetv2_deferral.decision.limits import CASE, Limits
from nnunetv2_deferral.defaults import AGGREGATED, BOUNDARY_WIDTH, MAPS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import EXPERT_SETS, ExpertProfile, default_expert_set, expert_set
from nnunetv2_deferral.expert_sim.zones import remark_on_band, spacing_in_voxels_of
from nnunetv2_deferral.experts import (
    Expert,
    Rater,
    experts_from_json,
    experts_to_json,
    names_of,
    profiles_of,
    raters_of,
)
from nnunetv2_deferral.multi_rater.ordinal_head import OrdinalChannels
from nnunetv2_deferral.names import check_expert_names
from nnunetv2_deferral.routing import COLLABORATION, ONE_VS_ALL, RoutingRule, routing_rule
from nnunetv2_deferral.schema import Boolean, Count, Integer, NonNegative, Number, Share, Text, validate

PLANS_KEY = "deferral"
# The settings with which the predictions of a stock network are routed, in its plans once it is calibrated.
STOCK_KEY = "deferral_of_stock"
DEFAULT_NUM_EXPERTS = 3
_WHERE = "deferral settings"
# Raters agree nearly everywhere with a reference made from their own masks; without a cost nearly everything would be
# deferred. Simulated experts have no cost in the paper.
RATER_COST = 0.05

# Sec. 5.2.4 gives bounds for three experts only; for another J the same totals are divided equally.
_PAPER_LOWER = (0.15, 0.10, 0.10)
_PAPER_UPPER = (0.35, 0.25, 0.30)


class SettingsBlock(TypedDict, total=False):
    """Types and ranges of the `"deferral"` block of the plans; see :class:`DeferralSettings` for the meanings."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    num_experts: Annotated[int, Field(strict=True, ge=1)] | None
    experts: Text | Annotated[list[Text | dict[Text, Any]], Field(min_length=1)] | None
    lower: list[Share]
    upper: list[Share]
    costs: list[Share]
    unavailable: list[Text]
    boundary_width: Count
    expert_voxel_mm: Annotated[Number, Field(gt=0)] | None
    objective: Literal["collaboration", "one_vs_all"]
    multi_rater: Boolean
    lambda_coherence: NonNegative
    lambda_balance: NonNegative
    beta_consistency: NonNegative
    beta_rate: NonNegative
    coherence_trains_routing: Boolean
    routing_trains_decoder: Boolean
    segmentation_loss: Literal["nnunet", "cross_entropy"]
    segmentation_layer: Text | None
    features_from: Text | None
    head_channels: Annotated[Integer, Field(ge=1, le=4096)]
    head_initialization: Literal["undecided", "random"]
    head_sees_confidence: Boolean
    head_learning_rate: Annotated[Number, Field(gt=0)]
    optimizer: Literal["nnunet", "adamw"]
    schedule: Literal["nnunet", "step"]
    patience: Annotated[Integer, Field(ge=1)] | None
    final_weights: Literal["last", "best"]
    warmup: Annotated[Number, Field(ge=0, lt=1)]
    budget: Share | None
    capacities: list[Share | None] | None
    budget_over: Literal["case", "dataset"]
    min_region_mm: NonNegative | None
    maps: list[Literal["route", "probability", "expert", "gain", "aggregated"]]
    evaluation_seed: Count


@dataclass(frozen=True, kw_only=True)
class DeferralSettings:
    """All settings for training and use of a deferral network.

    Attributes:
        experts: The J experts in routing order (route j is `experts[j - 1]`): simulated experts, and raters, whose
            masks are in `expertsTr/<rater>` of the dataset.
        costs: c_j in [0, 1], one per expert. With `collaboration` it is subtracted from the reward for asking an expert
            who is right, with `one_vs_all` from the expert's probability of being right. An expert must be better than
            the model by this amount to be asked.
        unavailable: Names of experts who cannot be asked: no voxel is routed to them, in training or prediction.
        boundary_width: Width in voxels of the band around label changes where an expert's boundary accuracy holds.
        expert_voxel_mm: Edge of the voxels in which the width of the band and the correlation length of simulated
            errors are measured. None for the voxels at hand: of the preprocessed data in training, of the images in
            evaluation.
        objective: `"collaboration"`, the paper's DC with its softmax over routes, or `"one_vs_all"`, separate
            probabilities of being right for the model and each expert.
        multi_rater: Whether the network also learns from the experts' masks how many of them mark each structure, see
            :mod:`.multi_rater`. All experts must then be raters, two or more.
        lambda_coherence: Weight of the spatial-coherence loss, lambda_1 of Eq. (10). 0 switches it off.
        lambda_balance: Weight of the load-balancing penalty, lambda_2 of Eq. (10). 0 switches it off.
        beta_consistency: Weight of the squared difference in the spatial-coherence loss, beta_1 of Eq. (7).
        beta_rate: Weight of the deferral rate in the spatial-coherence loss, beta_2 of Eq. (7).
        lower: Lower bounds l_j of Eq. (9), one per expert, as shares of all voxels.
        upper: Upper bounds u_j of Eq. (9), one per expert, as shares of all voxels.
        coherence_trains_routing: True for the paper's Eq. (7), whose squared term has a gradient in the routing logits
            too. False trains the aggregated predictor only, so that for J >= 3 the routing is not suppressed.
        routing_trains_decoder: Whether gradients of the routing losses reach the shared decoder. With False the
            segmentation network is trained exactly as by nnU-Net.
        segmentation_loss: `"nnunet"` (Dice and cross-entropy at every scale, or the loss of the trainer to which
            deferral is added) or `"cross_entropy"`, the paper's, at full resolution.
        segmentation_layer: Name of the convolution that gives the network's output, which the head replaces. None to
            find it.
        features_from: For a network without such a convolution, the name of the module whose output are the last
            features, on which the head is added.
        head_channels: Width of the hidden layer of the two deferral predictors.
        head_initialization: Of the last layer of the routing predictor: `"undecided"` (zero) or `"random"`.
        head_sees_confidence: Whether the routing predictor sees the segmentation's confidence besides the features.
        head_learning_rate: Initial learning rate of the head's own Adam optimiser (cosine schedule).
        optimizer: `"nnunet"`, that of the trainer for the network and Adam for the head, or `"adamw"`, the paper's for
            both, with its rate and weight decay.
        schedule: `"nnunet"`, that of the trainer for the network and a cosine for the head, or `"step"`, the paper's
            for both.
        patience: The training ends after this number of epochs without a better Dice of the system and without a lower
            deferral rate in validation. None for the full length.
        final_weights: The weights of the final checkpoint: those after the `"last"` epoch, or of the epoch with the
            `"best"` Dice of the system in validation.
        warmup: Share of the epochs, at the start, in which only the segmentation network is trained.
        budget: Share in [0, 1] of the voxels that may be deferred, those with the highest expected gain. None leaves
            the decision to the rule.
        capacities: Share in [0, 1] of the voxels that may go to each expert, None for an expert without a limit. None
            for no limits.
        budget_over: `"case"` or `"dataset"`, the reference of budget and capacities, see :class:`.limits.Limits`.
        min_region_mm: Equivalent diameter of the smallest region that is deferred. None decides voxel by voxel.
        maps: The maps that predictions write, of `"route"` (always written), `"probability"`, `"expert"`, `"gain"` and,
            if there is an aggregated predictor, `"aggregated"`.
        evaluation_seed: Seed of the simulated experts in the final validation.
    """

    experts: tuple[Expert, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    costs: tuple[float, ...]
    unavailable: tuple[str, ...] = ()
    boundary_width: int = BOUNDARY_WIDTH
    expert_voxel_mm: float | None = None
    objective: str = COLLABORATION
    multi_rater: bool = False
    lambda_coherence: float = 1.0
    lambda_balance: float = 5.0
    beta_consistency: float = 0.5
    beta_rate: float = 0.1
    coherence_trains_routing: bool = False
    routing_trains_decoder: bool = False
    segmentation_loss: str = "nnunet"
    segmentation_layer: str | None = None
    features_from: str | None = None
    head_channels: int = 8
    head_initialization: str = "undecided"
    head_sees_confidence: bool = True
    head_learning_rate: float = 3e-3
    optimizer: str = "nnunet"
    schedule: str = "nnunet"
    patience: int | None = None
    final_weights: str = "last"
    warmup: float = 0.1
    budget: float | None = None
    capacities: tuple[float | None, ...] | None = None
    budget_over: str = CASE
    min_region_mm: float | None = None
    maps: tuple[str, ...] = MAPS
    evaluation_seed: int = 0

    def __post_init__(self) -> None:
        if not self.experts:
            raise InputError(f"{_WHERE}: there must be at least one expert")
        validate(self.to_dict(), SettingsBlock, _WHERE)
        names = check_expert_names(self.expert_names, _WHERE)
        if strangers := [name for name in self.unavailable if name not in names]:
            raise InputError(
                f"{_WHERE}: unavailable names {', '.join(strangers)}, but the experts are {', '.join(names)}"
            )
        if set(self.unavailable) == set(names):
            raise InputError(f"{_WHERE}: all experts ({', '.join(names)}) are unavailable")
        if None not in (self.segmentation_layer, self.features_from):
            raise InputError(
                f'{_WHERE}: "segmentation_layer" ({self.segmentation_layer}) and "features_from" '
                f"({self.features_from}) are mutually exclusive"
            )
        if AGGREGATED in self.maps and not self.has_aggregated:
            raise InputError(
                f'{_WHERE}: maps has "{AGGREGATED}", but without the spatial-coherence loss (lambda_coherence is 0, as '
                "as with _noSC) there is no aggregated predictor"
            )
        self._check_raters()
        _check_bounds(self.lower, self.upper, self.num_experts)
        if len(self.costs) != self.num_experts:
            raise InputError(f"{_WHERE}: costs has {len(self.costs)} numbers for {self.num_experts} experts")
        check_capacities(self.capacities, self.num_experts, named=f"{_WHERE}: capacities")
        try:
            self.limits.to_dict()
        except InputError as error:
            raise InputError(f"{_WHERE}: {error}") from error

    def _check_raters(self) -> None:
        if not self.multi_rater:
            return
        if self.profiles or self.num_experts < 2:
            simulated = f" (simulated: {', '.join(names_of(self.profiles))})" if self.profiles else ""
            raise InputError(
                f'{_WHERE}: "multi_rater" (the trainer option _MR) learns how far raters agree, which requires at '
                "least two with masks in expertsTr and no simulated expert, but the experts are "
                f"{', '.join(self.expert_names)}{simulated}"
            )
        if self.features_from is not None:
            raise InputError(
                f'{_WHERE}: "multi_rater" replaces the segmentation layer of the network, but "features_from" '
                f"({self.features_from}) is for networks without one"
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
        """The routing rule of the objective."""
        return routing_rule(self.objective, self.costs, self.available)

    @property
    def has_aggregated(self) -> bool:
        """Whether there is an aggregated deferral predictor, which the spatial-coherence loss trains."""
        return self.lambda_coherence > 0

    @property
    def known_maps(self) -> tuple[str, ...]:
        """All maps that the model can write."""
        return (*MAPS, AGGREGATED) if self.has_aggregated else MAPS

    @property
    def limits(self) -> Limits:
        """The limits on deferral."""
        return Limits(
            budget=self.budget,
            capacities=self.capacities,
            over=self.budget_over,
            min_region_mm=self.min_region_mm,
        )

    def spacing_of_experts(self, spacing: Sequence[float]) -> tuple[float, ...] | None:
        """A spacing in mm, by axis, in the voxels of simulated experts; None if they are those at hand."""
        return spacing_in_voxels_of(self.expert_voxel_mm, spacing)

    def remark_on_band(self, spacing: Sequence[float]) -> str:
        """A sentence if simulated experts have no border band at a spacing in mm, by axis; otherwise empty."""
        return remark_on_band(self.boundary_width, self.expert_voxel_mm, spacing) if self.profiles else ""

    @property
    def available(self) -> tuple[bool, ...]:
        """Whether each of the J experts can be asked."""
        return tuple(name not in self.unavailable for name in self.expert_names)

    def ordinal_channels(self, num_heads: int, *, has_regions: bool) -> OrdinalChannels | None:
        """The segmentation and the levels of the raters, given nnU-Net's heads; None if levels are not learned."""
        return OrdinalChannels(num_heads, has_regions, self.num_experts) if self.multi_rater else None

    def layout(self, num_heads: int, *, has_regions: bool, with_aggregated: bool = True) -> ChannelLayout:
        """The order of the output channels, given nnU-Net's heads."""
        ordinal = self.ordinal_channels(num_heads, has_regions=has_regions)
        num_levels = 0 if ordinal is None else ordinal.num_levels
        return ChannelLayout(num_heads, self.num_experts, num_levels, with_aggregated)

    def to_dict(self) -> dict[str, Any]:
        """The settings as a plans block of JSON types, from which :func:`resolve_settings` restores them."""
        block = asdict(self) | {"experts": experts_to_json(self.experts)}
        return {"num_experts": self.num_experts} | {
            key: list(value) if isinstance(value, tuple) else value for key, value in block.items()
        }


def check_place(plans: Mapping[str, Any]) -> None:
    """Refuse plans in which the block stands where it would be ignored: under a misspelt key, or in a configuration.

    Raises:
        InputError: Naming the key or the configuration.
    """
    for key in plans:
        if key != PLANS_KEY and get_close_matches(key.lower(), [PLANS_KEY], cutoff=0.8):
            raise InputError(f'the plans have the key "{key}", which is ignored: it must be "{PLANS_KEY}"')
    for name, configuration in plans.get("configurations", {}).items():
        if PLANS_KEY in configuration:
            raise InputError(
                f'the "{PLANS_KEY}" block is in the configuration {name} of the plans, where it is ignored: it must '
                'stand beside "configurations" and is for all of them'
            )


def resolve_settings(
    block: Mapping[str, Any] | None,
    *,
    num_experts: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    raters: Sequence[str] | None = None,
    asked_by: str = "the trainer",
) -> DeferralSettings:
    """Combine the plans' block with the settings fixed by the trainer to the effective settings.

    Args:
        block: The `"deferral"` block of the plans, or None if there is none (stock plans). Its `"experts"` is the name
            of a set of simulated experts, or a list of profiles (simulated experts) and names (raters).
        num_experts: J as fixed by the trainer's name, or None if the name does not fix it.
        overrides: Settings fixed by the trainer's name (ablations), which take precedence over the plans.
        raters: The raters declared in dataset.json, empty if there are none; None if dataset.json is not available
            (then the raters of the block are not checked).
        asked_by: The source of `num_experts`, for messages.

    Returns:
        The effective settings. If the plans do not specify experts, these are the raters of the dataset, or without
        raters the paper's three simulated experts of Table 2.

    Raises:
        InputError: If a key is unknown, a value is of the wrong type or out of range, a rater is not declared in the
            dataset, the trainer, the plans, the dataset and the list of experts disagree on the number of experts (the
            message names the sources), or the trainer's name switches off load balancing for an objective without it.
    """
    where = f'the "{PLANS_KEY}" block of the plans'
    known = SettingsBlock.__annotations__
    if isinstance(block, Mapping) and (unknown := sorted(set(map(str, block)) - set(known))):
        raise InputError(f"{where} has unknown keys: {', '.join(unknown)}. Known keys: {', '.join(sorted(known))}")
    validate({} if block is None else block, SettingsBlock, where)
    given = dict(block or {})
    planned = given.pop("num_experts", None)
    experts = _resolve_experts(given.get("experts"), raters, plans_num=planned, asked={asked_by: num_experts})
    default_lower, default_upper = _default_bounds(len(experts))
    given["experts"] = experts
    given["lower"] = tuple(given.get("lower", default_lower))
    given["upper"] = tuple(given.get("upper", default_upper))
    given["costs"] = tuple(given.get("costs", [RATER_COST if isinstance(expert, Rater) else 0.0 for expert in experts]))
    given["unavailable"] = tuple(given.get("unavailable", ()))
    given["maps"] = tuple(given.get("maps", MAPS))
    if given.get("capacities") is not None:
        given["capacities"] = tuple(given["capacities"])
    settings = DeferralSettings(**(given | dict(overrides or {})))
    if settings.objective == ONE_VS_ALL and "lambda_balance" in (overrides or {}):
        raise InputError(
            "the trainer option _noLB switches off load balancing, which the one-vs-all objective does not have. For "
            "the paper's objective without load balancing use _DC_noLB"
        )
    return settings


def _resolve_experts(
    experts: str | list[dict[str, Any] | str] | None,
    raters: Sequence[str] | None,
    *,
    plans_num: int | None,
    asked: Mapping[str, int | None],
) -> tuple[Expert, ...]:
    """Determine the experts, and check that all sources agree on their number.

    Raises:
        InputError: If they disagree, or a rater is not declared in the dataset.
    """
    said = {**asked, f'"num_experts" in the plans\' "{PLANS_KEY}" block': plans_num}
    advice = "Change the plans or choose another trainer"
    if isinstance(experts, list):
        said[f'the list "experts" in the plans\' "{PLANS_KEY}" block'] = len(experts)
    elif experts is None and raters:
        said[f'"experts" in dataset.json ({", ".join(raters)})'] = len(raters)
        advice = (
            f'Choose another trainer, or set "experts" in the plans\' "{PLANS_KEY}" block to a list of raters, or to a '
            'named set such as "standard" to simulate them'
        )
    numbers = {who: number for who, number in said.items() if number is not None}
    if len(set(numbers.values())) > 1:
        agreeing = {number: [who for who, theirs in numbers.items() if theirs == number] for number in numbers.values()}
        sides = ", but ".join(
            f"{' and '.join(who)} {'says' if len(who) == 1 else 'say'} {number}" for number, who in agreeing.items()
        )
        raise InputError(f"conflicting numbers of experts: {sides}. {advice}")
    if experts is None and raters:
        experts = list(raters)
    if isinstance(experts, list):
        found = experts_from_json(experts)
        strangers = [] if raters is None else [rater for rater in raters_of(found) if rater not in raters]
        if strangers:
            raise InputError(
                f'the plans\' "{PLANS_KEY}" block names the raters {", ".join(map(repr, strangers))}, but '
                + (f"dataset.json declares {', '.join(raters)}" if raters else "dataset.json declares no experts")
                + f" (for a set of simulated experts, {', '.join(EXPERT_SETS)}, give its name instead of a list)"
            )
        return found
    number = next(iter(numbers.values()), DEFAULT_NUM_EXPERTS)
    return expert_set(experts or default_expert_set(number), number)


def _default_bounds(num_experts: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Load bounds for J experts: the paper's for three, none for one (no load balancing), else its totals divided by J.

    Returns:
        Lower and upper bounds, J each.
    """
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
            raise InputError(f"{_WHERE}: {name} has {len(bounds)} bounds ({list(bounds)}) for {num_experts} experts")
    for expert, (low, high) in enumerate(zip(lower, upper, strict=True), start=1):
        if low > high:
            raise InputError(f"{_WHERE}: lower bound {low} of expert {expert} is above its upper bound {high}")
    if sum(lower) > 1:
        raise InputError(f"{_WHERE}: the lower bounds {list(lower)} sum to more than 1 and cannot be met")
