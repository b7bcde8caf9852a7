"""Five numbers that describe how certain a network is of a class in a case, from which its Dice is predicted.

As in Zenk et al. 2025, "Comparative benchmarking of failure detection methods in medical image segmentation": the mean
score near the predicted border, inside and outside of it, and the size and the number of components of the mask (after
Jungo et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from nnunetv2_deferral.arrays import check_bool, check_same_shape, highest_in_chunks

FEATURES = ("border", "foreground", "background", "share", "components")
BORDER_VOXELS = 4
"""The depth of the border band on each side."""


def case_features(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The features of a class in a case.

    Args:
        scores: Real, shape S; high means uncertain, such as the entropy of the softmax in nats.
        mask: bool of shape S, where the class is predicted.

    Returns:
        float64 (5,), as named in :data:`FEATURES`: the mean score of the voxels that have another voxel of the class or
        not of the class within 4 voxels (Chebyshev); of the other voxels of the class; of the other voxels; the share
        of the class in all voxels; and the number of its components (neighbours share a face). A mean over no voxels is
        0: without foreground all but the third are 0.

    Raises:
        InputError: If the shapes differ or `mask` is not bool.
    """
    check_same_shape(scores=scores, mask=mask)
    check_bool(mask=mask)
    size = 2 * BORDER_VOXELS + 1
    near = ndimage.maximum_filter(mask, size) != ndimage.minimum_filter(mask, size)
    parts = (near, mask & ~near, ~mask & ~near)
    means = [float(scores[part].mean(dtype=np.float64)) if part.any() else 0.0 for part in parts]
    components = ndimage.label(mask, output=np.int32)[1] if mask.any() else 0
    return np.array([*means, mask.mean() if mask.size else 0.0, components], dtype=np.float64)


def predicted_classes(probabilities: np.ndarray, *, has_regions: bool) -> Iterator[np.ndarray]:
    """Where each foreground class, or region, is predicted.

    Args:
        probabilities: Floating (K, *S): of classes, the background first, or of regions.
        has_regions: Whether the probabilities are those of regions.

    Yields:
        bool of shape S: where the class has the highest probability, or the region one above 0.5.
    """
    if has_regions:
        yield from (each > 0.5 for each in probabilities)
        return
    highest = highest_in_chunks(probabilities)
    yield from (highest == channel for channel in range(1, len(probabilities)))
