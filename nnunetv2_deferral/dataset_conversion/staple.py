"""The consensus of several annotators on a structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

_MARGIN = 0.1
"""Width of the surroundings in which the consensus is estimated, relative to the longer side of what was marked."""
_ITERATIONS = 1000


def staple(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Where a structure is with a probability of at least one half; a tie belongs to it.

    STAPLE (Warfield et al. 2004) rates annotators by sensitivity and specificity. The latter depends on how much
    background there is: on a whole photograph all are so specific that the votes of two out of five suffice, and the
    consensus grows with the photograph. Hence the estimation is restricted to the surroundings of what was marked.

    Args:
        masks: Booleans of one shape, at least one.

    Returns:
        Likewise. What all agree on is returned as it is; an image nobody marked has no consensus but emptiness.
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
    result[box] = probability.round(6) >= 0.5  # rounded, so that a tie is a tie on every machine
    return result
