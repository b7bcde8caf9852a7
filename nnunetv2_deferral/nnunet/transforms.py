"""Where the experts enter nnU-Net's data augmentation."""

from __future__ import annotations

from collections.abc import Sequence

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from nnunetv2_deferral.expert_sim.transform import ExpertsToTargetTransform, SimulateExpertsTransform
from nnunetv2_deferral.settings import DeferralSettings

# From the first of these on, the segmentation is no longer the label map that experts are drawn from.
_TARGET_TRANSFORMS = (ConvertSegmentationToRegionsTransform, DownsampleSegForDSTransform)


def add_experts(
    pipeline: BasicTransform,
    settings: DeferralSettings,
    *,
    label_values: Sequence[int],
    ignore_label: int | None,
) -> ComposeTransforms:
    """Draw experts on the augmented label map and carry them to the loss as the last entry of the target.

    Args:
        pipeline: nnU-Net's transforms, a `ComposeTransforms`.
        settings: The experts and the width of the boundary band.
        label_values: All labels with background, without the ignore label.
        ignore_label: The ignore label or None.

    Returns:
        The pipeline whose target is a list: nnU-Net's targets, finest first, then the experts' label maps
        (int16, (J, *S), at full resolution).
    """
    steps = list(pipeline.transforms) if isinstance(pipeline, ComposeTransforms) else [pipeline]
    simulate = SimulateExpertsTransform(
        profiles=settings.experts,
        label_values=[int(value) for value in label_values],
        boundary_width=settings.boundary_width,
        ignore_label=ignore_label,
    )
    first = next((index for index, step in enumerate(steps) if isinstance(step, _TARGET_TRANSFORMS)), len(steps))
    return ComposeTransforms([*steps[:first], simulate, *steps[first:], ExpertsToTargetTransform()])
