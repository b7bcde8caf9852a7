"""nnU-Net's planners, extended for deferral networks.

:class:`DeferralPlannerMixin` stands in front of any of nnU-Net's planners and changes three things: the memory estimate
counts the deferral head, the plans carry the `"deferral"` block, and data that the stock plans already describe is not
preprocessed a second time.
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

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import default_expert_set
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.raters import declared_raters
from nnunetv2_deferral.routing import ONE_VS_ALL
from nnunetv2_deferral.settings import DEFAULT_NUM_EXPERTS, PLANS_KEY, DeferralSettings, resolve_settings

# The mixin stands in front of a planner of nnU-Net; for the type checker it is one.
if TYPE_CHECKING:
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner as _Planner,
    )
else:
    _Planner = object

# What decides the content of a configuration's preprocessed files, in the configuration and in the plans around it.
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
    """The `"deferral"` block that plans get.

    Attributes:
        block: The block as it stands in the plans file.
        settings: What it means.
        kept: One phrase for each setting in which a block found in the plans file, and kept, differs from the one that
            would have been written: `"lambda_balance is 2.0, not 5.0"`.
    """

    block: dict[str, Any]
    settings: DeferralSettings
    kept: tuple[str, ...] = ()


def default_deferral_block(
    *, num_experts: int | None = None, experts: str | Sequence[str] | None = None, raters: Sequence[str] = ()
) -> dict[str, Any]:
    """A block with every setting spelled out, for a person to edit; its objective is one-vs-all.

    Args:
        num_experts: J; None for that of the raters or the list, else 3.
        experts: Name of a set of simulated experts, which stands in the block by its name, or a list of raters; None
            for all raters of the dataset, or where it has none for the usual set of that size.
        raters: The raters that the dataset declares.

    Raises:
        InputError: If there is no such set, none of that size, no such rater, or another number of raters.
    """
    if experts is None and not raters:
        experts = default_expert_set(DEFAULT_NUM_EXPERTS if num_experts is None else num_experts)
    chosen = experts if experts is None or isinstance(experts, str) else list(experts)
    # What docs/results.md found to do as well or better than the paper's objective, and what can be calibrated.
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
    """The block for a plans file: the one a person may have edited there if it has one, else the defaults.

    Args:
        plans_file: The plans about to be written; they need not exist.
        num_experts: J as asked for; None takes that of the block found, or see :func:`default_deferral_block`.
        experts: The experts as asked for, likewise.
        raters: The raters that the dataset declares.
        overwrite: Write the defaults over a block found.

    Raises:
        InputError: If the plans file exists without such a block (then it is not ours to overwrite), if its block is
            invalid, or if it is for another number of experts than asked for.
    """
    found = None
    if plans_file.is_file():
        found = read_json(plans_file).get(PLANS_KEY)
        if found is None:
            raise InputError(
                f'{plans_file} exists and has no "{PLANS_KEY}" block, so it would be overwritten with other plans. '
                "Choose another plans name (-overwrite_plans_name)"
            )
    if found is None or overwrite:
        block = default_deferral_block(num_experts=num_experts, experts=experts, raters=raters)
        return DeferralBlock(block=block, settings=resolve_settings(block, raters=raters))
    try:
        settings = resolve_settings(found, raters=raters)
    except InputError as error:
        raise InputError(f"{plans_file}: {error}. Correct it, or write it anew with --overwrite_deferral") from error
    asked = num_experts if experts is None or isinstance(experts, str) else len(experts)
    if asked is not None and asked != settings.num_experts:
        raise InputError(
            f"{plans_file} is for {settings.num_experts} experts, but {asked} were asked for. Choose another "
            "plans name (-overwrite_plans_name), or write its block anew with --overwrite_deferral"
        )
    number = None if experts is None and raters else settings.num_experts
    usual = resolve_settings(default_deferral_block(num_experts=number, experts=experts, raters=raters))
    return DeferralBlock(block=found, settings=settings, kept=tuple(_differences(settings, usual)))


def head_feature_map_elements(patch_size: Sequence[int], settings: DeferralSettings) -> int:
    """Feature map elements that the deferral head adds for one patch.

    In the unit of nnU-Net's estimate (`compute_conv_feature_map_size`): the outputs of the convolutions for a single
    patch. Both hidden layers, the J + 1 routing logits and the aggregated logit have the full resolution. The
    segmentation layer is nnU-Net's own and already in its estimate.
    """
    channels = 2 * settings.head_channels + (settings.num_experts + 1) + 1
    return channels * int(np.prod(patch_size, dtype=np.int64))


def shared_data_identifier(
    configuration: Mapping[str, Any], plans: Mapping[str, Any], others: Iterable[Mapping[str, Any]]
) -> str | None:
    """The data identifier of a configuration in other plans whose preprocessed files would be the same as ours.

    These must agree, because each of them changes what a preprocessed file holds: the reader and `transpose_forward`
    (which axis is which), the spacing and the functions that resample to it, the normalization, the mask it uses and
    the intensity statistics behind it, and the preprocessor. The name of the configuration need not agree, nor the
    patch size: it only shapes the chunks of the compressed files, and any patch can be read from any chunks.

    Args:
        configuration: A planned configuration.
        plans: What surrounds it: `image_reader_writer`, `transpose_forward` and
            `foreground_intensity_properties_per_channel`.
        others: Plans whose data may be used.

    Returns:
        The first identifier that fits, or None.
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
    """Put in front of one of nnU-Net's planners, makes it plan deferral networks.

    - The head's feature maps count in the memory estimate, so patch and batch are what fits together with the head.
    - The plans get the `"deferral"` block. One that a person has edited is kept when planning again.
    - Configurations use the preprocessed data of the stock plans (`stock_plans_names`, where such plans exist) when
      it is the same as their own would be (:func:`shared_data_identifier`); else they get data of their own.

    The plans name only nnU-Net's classes: `experiment_planner_used` is the stock planner underneath, and the planner
    here stands under `deferral_planner_used`, which nnU-Net ignores.

    Args:
        dataset_name_or_id: As in nnU-Net, like all up to `suppress_transpose`.
        gpu_memory_target_in_gb: None for the default of the stock planner.
        preprocessor_name: A preprocessor of nnU-Net.
        plans_name: None for the planner's `default_plans_name`.
        overwrite_target_spacing: Target spacing of 3d_fullres, three floats.
        suppress_transpose: Keep the order of the axes.
        num_experts: J; None for that of plans that exist under this name, else see :func:`default_deferral_block`.
        experts: Name of a set of simulated experts or a list of raters; None likewise.
        overwrite_deferral: Write the defaults over an existing `"deferral"` block.

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
        self.stock_plans = [read_json(file) for file in stock_files if file.is_file()]

    def static_estimate_VRAM_usage(self, patch_size: Sequence[int], *args: Any, **kwargs: Any) -> int:
        """nnU-Net's estimate and the head's elements. A method here, as the head depends on the settings."""
        network = super().static_estimate_VRAM_usage(patch_size, *args, **kwargs)
        return int(network) + head_feature_map_elements(patch_size, self.deferral.settings)

    def generate_data_identifier(self, configuration_name: str) -> str:
        """An identifier of our own, which :meth:`get_plans_for_configuration` gives up where data can be shared."""
        return f"{self.plans_identifier}_{configuration_name}"

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's configuration, on the data of the stock plans where that is the same."""
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
        """Add the block, name the stock planner, and save as nnU-Net does."""
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
    """The values as they would be read back from a plans file."""
    values = deepcopy(values)
    recursive_fix_for_json_export(values)
    return json.loads(json.dumps(values))


def _differences(settings: DeferralSettings, usual: DeferralSettings) -> Iterable[str]:
    other = usual.to_dict()
    for key, value in settings.to_dict().items():
        if value != other[key]:
            yield f"{key} differ" if key == "experts" else f"{key} is {json.dumps(value)}, not {json.dumps(other[key])}"
