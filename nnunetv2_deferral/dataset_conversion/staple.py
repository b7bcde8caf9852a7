"""Consensus of several annotators on a structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

_MARGIN = 0.1
"""Margin around the marked pixels in which the consensus is estimated, relative to their longer extent."""
_ITERATIONS = 1000


def staple(masks: Sequence[np.ndarray]) -> np.ndarray:
    """The pixels that belong to a structure with a probability of at least 0.5 according to STAPLE.

    STAPLE (Warfield et al. 2004) estimates sensitivity and specificity of annotators. Specificity depends on the amount
    of background: on a whole photograph it is so high for all annotators that two votes out of five suffice, and the
    consensus grows with the size of the photograph. Therefore the estimation is restricted to the surroundings of the
    marked pixels.

    Args:
        masks: Bool (Y, X), all of one shape, at least one mask.

    Returns:
        Bool (Y, X). If all masks are equal, this mask; empty if all are empty.
    """
    if all(np.array_equal(mask, masks[0]) for mask in masks):
        return np.asarray(masks[0], dtype=bool)
    marked = np.any(masks, axis=0)
    extents = [np.flatnonzero(marked.any(axis=1 - axis)) for axis in (0, 1)]
    margin = max(1, round(_MARGIN * max(int(np.ptp(extent)) + 1 for extent in extents)))
    box = tuple(slice(max(0, int(extent[0]) - margin), int(extent[-1]) + margin + 1) for extent in extents)
    estimate = sitk.STAPLEImageFilter()
    estimate.SetForegroundValue(1)
    estimate.SetMaximumIterations(_ITERATIONS)
    images = [sitk.GetImageFromArray(mask[box].astype(np.uint8)) for mask in masks]
    probability = sitk.GetArrayFromImage(estimate.Execute(images))
    result = np.zeros(marked.shape, dtype=bool)
    result[box] = probability.round(6) >= 0.5  # rounded, so that ties do not depend on the machine
    return result
