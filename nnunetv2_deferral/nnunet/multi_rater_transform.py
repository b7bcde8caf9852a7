"""Integration of several raters' labels as the training target into nnU-Net's data augmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

from nnunetv2_deferral.expert_sim.transform import ExpertsToTargetTransform, SampleSeeds
from nnunetv2_deferral.labels import MISSING, LabelSpace
from nnunetv2_deferral.losses.several_raters import structures_of
from nnunetv2_deferral.multi_rater.rater_targets import majority_label, majority_of_regions, random_rater
from nnunetv2_deferral.nnunet.transforms import separate_raters


def add_raters(
    pipeline: BasicTransform, num_raters: int, labels: LabelSpace, *, at_random: bool = False, in_target: bool = True
) -> ComposeTransforms:
    """Extend a pipeline to have raters' labels as the target in place of the reference.

    Args:
        pipeline: nnU-Net's transforms, for segmentations with raters' masks (:class:`.rater_data.RaterDataset`).
        num_raters: The number K of raters.
        labels: The label space.
        at_random: Whether the target is the label map of a random rater, drawn for each sample, or that of the
            majority.
        in_target: Whether the raters' label maps, int16 (K, *S) at full resolution, are appended to the target, which
            then is a list.

    Returns:
        The pipeline.
    """
    steps = list(pipeline.transforms) if isinstance(pipeline, ComposeTransforms) else [pipeline]
    steps = separate_raters(steps, num_raters)
    downsampling = (index for index, step in enumerate(steps) if isinstance(step, DownsampleSegForDSTransform))
    steps.insert(next(downsampling, len(steps)), RatersAsTargetTransform(labels, at_random=at_random))
    return ComposeTransforms([*steps, ExpertsToTargetTransform()] if in_target else steps)


class RatersAsTargetTransform(BasicTransform):
    """Replaces the reference in `"segmentation"` by labels of the `"raters"`, int16 (K, *S).

    It belongs after the conversion to regions and before the conversion to a list for deep supervision. Ignored voxels
    stay ignored.

    Args:
        labels: The label space.
        at_random: Whether the target is that of a random rater who labelled any voxel of the sample, and of the
            majority only where that rater has no label; or that of the majority everywhere.
    """

    def __init__(self, labels: LabelSpace, *, at_random: bool = False) -> None:
        super().__init__()
        self.labels = labels
        self.structures: Sequence[Sequence[int]] = structures_of(labels)
        self.at_random = at_random
        self._seeds = SampleSeeds()

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the seed of the rater of this sample."""
        return {"seed": self._seeds.draw() if self.at_random else 0}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace the reference of a sample."""
        segmentation, raters = data_dict["segmentation"], data_dict["raters"]
        target = self._of(segmentation, raters)
        if self.at_random:
            chosen = random_rater(raters, np.random.default_rng(params["seed"]))
            target = torch.where(chosen != MISSING, self._of(segmentation, chosen), target)
        data_dict["segmentation"] = target
        return data_dict

    def _of(self, segmentation: torch.Tensor, raters: torch.Tensor) -> torch.Tensor:
        """The target of a sample from these raters."""
        if self.labels.regions is None:
            target = majority_label(segmentation, raters, [label for (label,) in self.structures])
            if self.labels.ignore_label is None:
                return target
            return torch.where(segmentation == self.labels.ignore_label, segmentation, target)
        regions = segmentation[: len(self.structures)]
        return torch.cat((majority_of_regions(regions, raters, self.structures), segmentation[len(self.structures) :]))
