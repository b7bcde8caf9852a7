"""Routes with many regions of several voxels each, in pieces that lie apart or touch another expert's."""

import numpy as np
from scipy import ndimage

SHAPES = {".nii.gz": (6, 60, 70), ".png": (1, 90, 84)}
"""By file ending, large enough for several regions of each expert."""


def scattered_route(random, shape):
    """For two experts, uint8: blobs with holes of one or of both, most of them out of reach of the next."""
    share = 0.5 / (15 * 15 * min(15, 2 * shape[0]))
    seeds = random.choice(4, shape, p=[1 - 3 * share, share, share, share]).astype(np.uint8)
    blobs = ndimage.maximum_filter(seeds, 3)
    blobs[blobs == 3] = random.integers(1, 3, np.count_nonzero(blobs == 3))
    return np.where(random.random(shape) < 0.5, blobs, 0).astype(np.uint8)
