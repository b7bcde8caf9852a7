"""Integration of the experts into nnU-Net's data augmentation."""

from __future__ import annotations

from collections.abc import Sequence

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from nnunetv2_deferral.expert_sim.transform import (
    ExpertsToTargetTransform,
    KeepLabelsTransform,
    SimulateExpertsTransform,
    SplitRatersTransform,
)
from nnunetv2_deferral.nnunet.rater_transform import RaterSpatialTransform, follows_the_reference
from nnunetv2_deferral.settings import DeferralSettings

# Transforms that follow the spatial transforms.
_LABEL_TRANSFORMS = (RemoveLabelTransform, MoveSegAsOneHotToDataTransform)
# Transforms after which the segmentation is no longer a label map from which experts can be simulated.
_TARGET_TRANSFORMS = (ConvertSegmentationToRegionsTransform, DownsampleSegForDSTransform)


def add_experts(
    pipeline: BasicTransform,
    settings: DeferralSettings,
    *,
    label_values: Sequence[int],
    ignore_label: int | None,
    spacing: Sequence[float] | None = None,
    on_device: bool = False,
) -> ComposeTransforms:
    """Extend a pipeline to append the experts' label maps to the target.

    Simulated experts are drawn from the augmented label map. Raters' masks are channels of the segmentation
    (:class:`.rater_data.RaterDataset`) and are augmented with it.

    Args:
        pipeline: nnU-Net's transforms, a `ComposeTransforms`.
        settings: The experts and the width of the boundary band.
        label_values: All labels including background, without the ignore label.
        ignore_label: The ignore label or None.
        spacing: Spacing of the voxels in those of simulated experts, by axis; None for 1.
        on_device: Whether simulated experts are drawn in the training step, see :class:`.device_experts.DeviceExperts`.

    Returns:
        The pipeline, whose target is a list: nnU-Net's targets, finest first, then the experts' label maps, int16
        (J, *S) at full resolution. With `on_device`: raters' label maps, then the label map that experts are drawn
        from.
    """
    steps = list(pipeline.transforms) if isinstance(pipeline, ComposeTransforms) else [pipeline]
    if settings.profiles:
        step = (
            KeepLabelsTransform(label_values=label_values, ignore_label=ignore_label)
            if on_device
            else SimulateExpertsTransform(
                profiles=settings.profiles,
                label_values=label_values,
                boundary_width=settings.boundary_width,
                spacing=spacing,
                ignore_label=ignore_label,
            )
        )
        steps.insert(_first(steps, _TARGET_TRANSFORMS), step)
    if settings.raters:
        steps = separate_raters(steps, len(settings.raters))
    order = None if on_device else order_of_experts(settings)
    return ComposeTransforms([*steps, ExpertsToTargetTransform(order)])


def order_of_experts(settings: DeferralSettings) -> list[int]:
    """For each of the J experts the index among raters, followed by simulated experts."""
    found = [*settings.raters, *(profile.name for profile in settings.profiles)]
    return [found.index(name) for name in settings.expert_names]


def separate_raters(steps: Sequence[BasicTransform], num_raters: int) -> list[BasicTransform]:
    """Augment raters' masks with the segmentation, of which they are channels, and then separate them from it.

    Args:
        steps: nnU-Net's transforms.
        num_raters: The number R of raters.

    Returns:
        The transforms, after which a sample has its raters' masks under `"raters"`, int16 (R, *S).
    """
    found = [RaterSpatialTransform(step, num_raters) if follows_the_reference(step) else step for step in steps]
    place = _first(found, (*_LABEL_TRANSFORMS, KeepLabelsTransform, SimulateExpertsTransform, *_TARGET_TRANSFORMS))
    found.insert(place, SplitRatersTransform(num_raters))
    return found


def _first(steps: Sequence[BasicTransform], kinds: tuple[type, ...]) -> int:
    """The index of the first step of these kinds, or the number of steps."""
    return next((place for place, step in enumerate(steps) if isinstance(step, kinds)), len(steps))
