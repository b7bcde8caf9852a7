"""nnU-Net's spatial augmentation of raters' masks, at little more than the cost for the reference alone.

nnU-Net interpolates every channel of a segmentation label by label; four raters would add about half of the other work
of the data loader. As raters mostly agree with the reference, nnU-Net's result for the reference is reused, and only
voxels that depend on a difference are interpolated for raters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from torch.nn.functional import grid_sample

from nnunetv2_deferral.labels import MISSING

# nnU-Net's label of voxels outside the image, and of the reference where the image is 0 up to its edge.
_OUTSIDE = -1
# Margin of the crop around all differences, in voxels: interpolation reaches 1 voxel, in both directions.
_MARGIN = 2


def follows_the_reference(transform: BasicTransform) -> bool:
    """Whether a transform has nnU-Net's default interpolation, as :class:`RaterSpatialTransform` requires."""
    settings: dict[str, object] = {"mode_seg": "bilinear", "seg_tiebreak": "nearest", "border_mode_seg": "constant"}
    settings |= {"padding_value_seg": _OUTSIDE, "align_corners": False}
    return type(transform) is SpatialTransform and settings.items() <= vars(transform).items()


class RaterSpatialTransform(BasicTransform):
    """nnU-Net's `SpatialTransform`, accelerated for segmentations with raters' masks.

    ``"segmentation"``, int16, has as channels the reference, R raters and any channels that nnU-Net appends. The result
    is that of nnU-Net, except that outside the image a rater's mask is background instead of -1, and that a mask
    without any label is MISSING everywhere. Where the reference is -1, background of a rater counts as agreement, so
    that a mask equal to the reference stays equal to it.

    Args:
        spatial: A transform for which :func:`follows_the_reference` is True.
        num_raters: The number R of raters.
    """

    def __init__(self, spatial: SpatialTransform, num_raters: int) -> None:
        super().__init__()
        self.spatial = spatial
        self.num_raters = num_raters

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """The parameters of nnU-Net's transform."""
        return self.spatial.get_parameters(**data_dict)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Transform a sample."""
        if params["grid"] is None:
            # Most samples are only cropped, which is done for all channels together.
            return self.spatial.apply(data_dict, **params)
        segmentation = data_dict["segmentation"]
        # Dummy 2D augmentation has converted each channel to a block of slices.
        depth = len(segmentation) // data_dict.get("nchannels_seg", len(segmentation))
        reference, masks, others = segmentation.tensor_split([depth, depth * (1 + self.num_raters)])
        data_dict["segmentation"] = torch.cat((reference, others)) if len(others) else reference
        data_dict = self.spatial.apply(data_dict, **params)
        moved, others = data_dict["segmentation"].tensor_split([depth])
        raters = masks.numpy().reshape(self.num_raters, *reference.shape)
        answers = torch.from_numpy(_move(raters, reference.numpy(), moved.numpy(), params["grid"]))
        data_dict["segmentation"] = torch.cat((moved, answers.flatten(0, 1), others))
        return data_dict


# numpy, because it compares and selects small integers several times faster than torch on CPUs.
def _move(masks: np.ndarray, reference: np.ndarray, moved: np.ndarray, grid: torch.Tensor) -> np.ndarray:
    """Transform masks like the reference.

    Args:
        masks: The raters' masks (R, D, *S).
        reference: The reference (D, *S).
        moved: nnU-Net's transformed reference, (D, *P).
        grid: The sampling grid of the transform, as for `grid_sample`, float32 (*P, dim).

    Returns:
        The transformed masks (R, D, *P).
    """
    absent = masks.reshape(len(masks), -1).max(1) < 0
    differs = (masks != reference) & ((masks != 0) | (reference != _OUTSIDE))
    differs[absent] = False
    anywhere = differs.any((0, 1))
    answers = np.repeat(np.maximum(moved, 0)[None], len(masks), 0)
    near = np.flatnonzero(_draws_on(anywhere[None], grid))
    if len(near):
        box = [[low - _MARGIN, high + 1 + _MARGIN] for low, high in _extent(anywhere)]
        cut = crop_and_pad_nd(masks, box, _OUTSIDE)
        points = _seen_from(box, anywhere.shape, grid.view(-1, anywhere.ndim).numpy()[near])
        channels = cut.reshape(-1, *cut.shape[2:])
        reached = _draws_on(crop_and_pad_nd(differs, box, False).reshape(channels.shape), points)
        voxels = answers.reshape(len(channels), -1)
        voxels[:, near] = np.where(reached.reshape(len(channels), -1), _interpolate(channels, points), voxels[:, near])
    answers[absent] = MISSING
    return answers


def _extent(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of a non-empty mask along each axis."""
    axes = range(mask.ndim)
    found = [np.flatnonzero(mask.any(tuple(other for other in axes if other != axis))) for axis in axes]
    return [(int(indices[0]), int(indices[-1])) for indices in found]


def _seen_from(box: list[list[int]], shape: tuple[int, ...], points: np.ndarray) -> torch.Tensor:
    """Convert points (N, dim) of an image to a grid (N, 1[, 1], dim) in a box cropped from it."""
    # grid_sample orders axes from the last to the first, with -1 and 1 at the edges.
    size, start, length = np.array([(n, low, high - low) for n, (low, high) in zip(shape, box, strict=True)][::-1]).T
    moved = ((points + 1) * size - 2 * start) / length - 1
    return torch.from_numpy(moved.astype(np.float32)).view(-1, *[1] * (len(shape) - 1), len(shape))


def _draws_on(mask: np.ndarray, grid: torch.Tensor) -> np.ndarray:
    """Whether interpolation at a grid (*P, dim) depends on any voxel of a mask (C, *S): bool (C, *P)."""
    return _sample(mask, grid).numpy() > 0


def _interpolate(masks: np.ndarray, grid: torch.Tensor) -> np.ndarray:
    """Interpolate label maps (C, *S) at a grid (N, 1[, 1], dim) by the rule of nnU-Net's transform: (C, N).

    The result is the label with the largest weight; ties go to the label of the nearest voxel, else to the smallest. As
    in nnU-Net, weights are scaled to [0, 1000] and rounded to float16, so that nearly equal weights are tied.
    """
    labels = np.unique(masks)
    indicators = (masks == labels.reshape(-1, *[1] * masks.ndim)) * np.float32(1000)
    weights = _sample(indicators.reshape(-1, *masks.shape[1:]), grid).half().float().numpy()
    weights = weights.reshape(len(labels), len(masks), -1)
    nearest = _sample(masks, grid, mode="nearest").numpy().astype(masks.dtype).reshape(len(masks), -1)
    weight_of_nearest = np.take_along_axis(weights, np.searchsorted(labels, nearest)[None], 0)[0]
    return np.where(weight_of_nearest == weights.max(0), nearest, labels[weights.argmax(0)])


def _sample(values: np.ndarray, grid: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """`grid_sample` of channels (C, *S) at a grid (*P, dim), float32 (C, *P); 0 outside."""
    return grid_sample(torch.from_numpy(values).float()[None], grid[None], mode=mode, align_corners=False)[0]
