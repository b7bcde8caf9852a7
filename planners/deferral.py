"""nnU-Net's planners, extended for deferral networks.

:class:`DeferralPlannerMixin` extends any of nnU-Net's planners in three respects: the memory estimate includes the
deferral head, the plans contain the `"deferral"` block, and data already preprocessed for the stock plans is shared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunetv2_deferral.dataset import read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import default_expert_set
from nnunetv2_deferral.raters import declared_raters
from nnunetv2_deferral.routing import ONE_VS_ALL
from nnunetv2_deferral.settings import DEFAULT_NUM_EXPERTS, PLANS_KEY, DeferralSettings, resolve_settings

# The mixin is combined with a planner of nnU-Net; for the type checker it is one.
if TYPE_CHECKING:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner as _Planner,
    )
else:
    _Planner = object

# The entries of a configuration, and of the plans around it, that determine the preprocessed files.
_DATA_KEYS = (
    "preprocessor_name",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)
_DATA_KEYS_OF_PLANS = ("image_reader_writer", "transpose_forward", "foreground_intensity_properties_per_channel")


@dataclass(frozen=True, kw_only=True)
class DeferralBlock:
    """The `"deferral"` block for plans.

    Attributes:
        block: The block as written to the plans file.
        settings: The effective settings.
        kept: For an existing block that is kept, one phrase for each setting that differs from the defaults:
            `"lambda_balance is 2.0, not 5.0"`.
    """

    block: dict[str, Any]
    settings: DeferralSettings
    kept: tuple[str, ...] = ()


def default_deferral_block(
    *, num_experts: int | None = None, experts: str | Sequence[str] | None = None, raters: Sequence[str] = ()
) -> dict[str, Any]:
    """A block with all settings written out for editing, with the one-vs-all objective.

    Args:
        num_experts: The number J of experts; None for the number of raters, or 3 without raters.
        experts: Name of a set of simulated experts, which is written to the block as a name, or a list of raters; None
            for all raters of the dataset, or without raters the default set for J.
        raters: The raters declared in the dataset.

    Raises:
        InputError: If the set is unknown or not defined for J experts, a rater is not declared, or their number is not
            `num_experts`.
    """
    if experts is None and not raters:
        experts = default_expert_set(DEFAULT_NUM_EXPERTS if num_experts is None else num_experts)
    chosen = experts if experts is None or isinstance(experts, str) else list(experts)
    # According to docs/results/losses.md as good as or better than the paper's objective, and it can be calibrated.
    block: dict[str, Any] = {"objective": ONE_VS_ALL}
    if chosen is not None:
        block["experts"] = chosen
    settings = resolve_settings(block, num_experts=num_experts, raters=raters, asked_by="-num_experts")
    return settings.to_dict() | ({"experts": chosen} if isinstance(chosen, str) else {})


def settle_deferral_block(
    plans_file: Path,
    *,
    num_experts: int | None = None,
    experts: str | Sequence[str] | None = None,
    raters: Sequence[str] = (),
    overwrite: bool = False,
) -> DeferralBlock:
    """The block for a plans file: the existing one, which may have been edited, else the defaults.

    Args:
        plans_file: The plans to be written; the file need not exist.
        num_experts: The requested number J of experts; None for that of an existing block, else see
            :func:`default_deferral_block`.
        experts: The requested experts; None for those of an existing block, or the defaults.
        raters: The raters declared in the dataset.
        overwrite: Replace an existing block by the defaults.

    Raises:
        InputError: If the plans file exists without a block (other plans must not be overwritten), the existing block
            is invalid, or it is for another number of experts than requested.
    """
    found = None
    if plans_file.is_file():
        found = read_plans_json(plans_file).get(PLANS_KEY)
        if found is None:
            raise InputError(
                f'{plans_file} exists and has no "{PLANS_KEY}" block; it would be overwritten by different plans. '
                "Choose another plans name (-overwrite_plans_name)"
            )
    if found is None or overwrite:
        block = default_deferral_block(num_experts=num_experts, experts=experts, raters=raters)
        return DeferralBlock(block=block, settings=resolve_settings(block, raters=raters))
    try:
        settings = resolve_settings(found, raters=raters)
    except InputError as error:
        raise InputError(f"{plans_file}: {error}. Correct it, or replace it with --overwrite_deferral") from error
    asked = num_experts if experts is None or isinstance(experts, str) else len(experts)
    if asked is not None and asked != settings.num_experts:
        raise InputError(
            f"{plans_file} is for {settings.num_experts} experts, but {asked} were requested. Choose another "
            "plans name (-overwrite_plans_name), or replace its block with --overwrite_deferral"
        )
    number = None if experts is None and raters else settings.num_experts
    usual = resolve_settings(default_deferral_block(num_experts=number, experts=experts, raters=raters))
    return DeferralBlock(block=found, settings=settings, kept=tuple(_differences(settings, usual)))


def head_feature_map_elements(patch_size: Sequence[int], settings: DeferralSettings) -> int:
    """The number of feature map elements that the deferral head adds for one patch.

    The unit is that of nnU-Net's estimate (`compute_conv_feature_map_size`): outputs of convolutions for a single
    patch. Both hidden layers, the J + 1 routing logits and the aggregated logit are at full resolution. The
    segmentation layer is part of nnU-Net's estimate.
    """
    channels = 2 * settings.head_channels + (settings.num_experts + 1) + 1
    return channels * int(np.prod(patch_size, dtype=np.int64))


def shared_data_identifier(
    configuration: Mapping[str, Any], plans: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> str | None:
    """Find a configuration in other plans with the same preprocessed files.

    All entries that affect the content of preprocessed files must agree: the reader and `transpose_forward` (order of
    the axes), the spacing and the resampling functions, the normalisation with its mask and intensity statistics, and
    the preprocessor. The name of the configuration and the patch size may differ; the latter only determines the
    chunks of the compressed files, from which any patch can be read.

    Args:
        configuration: A planned configuration.
        plans: The plans' `image_reader_writer`, `transpose_forward` and
            `foreground_intensity_properties_per_channel`.
        others: Plans whose data may be shared.

    Returns:
        The data identifier of the first such configuration, or None.
    """
    wanted = _as_json({key: configuration[key] for key in _DATA_KEYS})
    wanted_of_plans = _as_json({key: plans[key] for key in _DATA_KEYS_OF_PLANS})
    for other in others:
        if {key: other.get(key) for key in _DATA_KEYS_OF_PLANS} != wanted_of_plans:
            continue
        for candidate in other["configurations"].values():
            if {key: candidate.get(key) for key in _DATA_KEYS} == wanted:
                return candidate["data_identifier"]
    return None


class DeferralPlannerMixin(_Planner):
    """Extends one of nnU-Net's planners, given as the second base class, to deferral networks.

    - The memory estimate includes the head's feature maps, so that patch and batch size fit with the head.
    - The plans contain the `"deferral"` block. An existing block is kept when planning again.
    - Configurations share the preprocessed data of the stock plans (`stock_plans_names`, if these exist) where it would
      be identical (:func:`shared_data_identifier`), and have their own otherwise.

    The plans name nnU-Net's classes only: `experiment_planner_used` is the underlying stock planner. The planner itself
    is named in `deferral_planner_used`, which nnU-Net ignores.

    Args:
        dataset_name_or_id: As in nnU-Net, like all arguments up to `suppress_transpose`.
        gpu_memory_target_in_gb: None for the default of the stock planner.
        preprocessor_name: A preprocessor of nnU-Net.
        plans_name: None for the planner's `default_plans_name`.
        overwrite_target_spacing: Target spacing of 3d_fullres, three floats.
        suppress_transpose: Keep the order of the axes.
        num_experts: The number J of experts; None for that of existing plans of this name, else see
            :func:`default_deferral_block`.
        experts: Name of a set of simulated experts or a list of raters; None as for `num_experts`.
        overwrite_deferral: Replace an existing `"deferral"` block by the defaults.

    Raises:
        InputError: See :func:`settle_deferral_block`.
    """

    default_plans_name: str
    stock_plans_names: tuple[str, ...] = ("nnUNetPlans",)

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
        *,
        num_experts: int | None = None,
        experts: str | Sequence[str] | None = None,
        overwrite_deferral: bool = False,
    ) -> None:
        memory = {} if gpu_memory_target_in_gb is None else {"gpu_memory_target_in_gb": gpu_memory_target_in_gb}
        super().__init__(
            dataset_name_or_id,
            preprocessor_name=preprocessor_name,
            plans_name=self.default_plans_name if plans_name is None else plans_name,
            overwrite_target_spacing=overwrite_target_spacing,
            suppress_transpose=suppress_transpose,
            **memory,
        )
        folder = Path(nnUNet_preprocessed, self.dataset_name)
        self.deferral = settle_deferral_block(
            folder / f"{self.plans_identifier}.json",
            num_experts=num_experts,
            experts=experts,
            raters=declared_raters(self.dataset_json),
            overwrite=overwrite_deferral,
        )
        stock_files = [folder / f"{name}.json" for name in self.stock_plans_names]
        self.stock_plans = [read_plans_json(file) for file in stock_files if file.is_file()]

    def static_estimate_VRAM_usage(self, patch_size: Sequence[int], *args: Any, **kwargs: Any) -> int:
        """nnU-Net's estimate plus the head's elements. An instance method, because the head depends on the settings."""
        network = super().static_estimate_VRAM_usage(patch_size, *args, **kwargs)
        return int(network) + head_feature_map_elements(patch_size, self.deferral.settings)

    def generate_data_identifier(self, configuration_name: str) -> str:
        """The plans' own identifier, which :meth:`get_plans_for_configuration` replaces if data can be shared."""
        return f"{self.plans_identifier}_{configuration_name}"

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's configuration, with the data identifier of the stock plans if data can be shared."""
        configuration = super().get_plans_for_configuration(*args, **kwargs)
        shared = shared_data_identifier(configuration, self._data_properties, self.stock_plans)
        if shared is not None:
            configuration["data_identifier"] = shared
        return configuration

    @cached_property
    def _data_properties(self) -> dict[str, Any]:
        return {
            "image_reader_writer": self.determine_reader_writer().__name__,
            "transpose_forward": self.determine_transpose()[0],
            "foreground_intensity_properties_per_channel": self.dataset_fingerprint[
                "foreground_intensity_properties_per_channel"
            ],
        }

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Add the block and the names of the planners, and save with nnU-Net."""
        stock = next(base for base in type(self).__mro__ if base.__module__.startswith("nnunetv2."))
        plans["experiment_planner_used"] = stock.__name__
        plans["deferral_planner_used"] = type(self).__name__
        plans[PLANS_KEY] = deepcopy(self.deferral.block)
        super().save_plans(plans)


class nnUNetPlannerDeferral(DeferralPlannerMixin, ExperimentPlanner):
    """nnU-Net's default planner (PlainConvUNet, 8 GB) for deferral networks."""

    default_plans_name = "nnUNetDeferralPlans"


class nnUNetPlannerDeferralResEncM(DeferralPlannerMixin, nnUNetPlannerResEncM):
    """The residual encoder preset M (8 GB) for deferral networks."""

    default_plans_name = "nnUNetDeferralResEncUNetMPlans"
    stock_plans_names = ("nnUNetPlans", "nnUNetResEncUNetMPlans")


class nnUNetPlannerDeferralResEncL(DeferralPlannerMixin, nnUNetPlannerResEncL):
    """The residual encoder preset L (24 GB) for deferral networks."""

    default_plans_name = "nnUNetDeferralResEncUNetLPlans"
    stock_plans_names = ("nnUNetPlans", "nnUNetResEncUNetLPlans")


class nnUNetPlannerDeferralResEncXL(DeferralPlannerMixin, nnUNetPlannerResEncXL):
    """The residual encoder preset XL (40 GB) for deferral networks."""

    default_plans_name = "nnUNetDeferralResEncUNetXLPlans"
    stock_plans_names = ("nnUNetPlans", "nnUNetResEncUNetXLPlans")


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """The values after a round trip through a plans file."""
    values = deepcopy(values)
    recursive_fix_for_json_export(values)
    return json.loads(json.dumps(values))


def _differences(settings: DeferralSettings, usual: DeferralSettings) -> Iterable[str]:
    other = usual.to_dict()
    for key, value in settings.to_dict().items():
        if value != other[key]:
            yield f"{key} differ" if key == "experts" else f"{key} is {json.dumps(value)}, not {json.dumps(other[key])}"
