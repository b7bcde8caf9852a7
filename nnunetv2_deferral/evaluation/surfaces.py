"""Distances between the surfaces of labels, by MONAI (the optional dependencies `surfaces`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from importlib import import_module

import numpy as np
import torch

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.overlap import Region, region_key, region_mask

HD95, NSD = "HD95", "NSD"


def check_tolerance(tolerance: float) -> None:
    """Refuse a tolerance of surfaces that is negative or not finite, and scores of surfaces without MONAI.

    Raises:
        InputError: Naming the value, or what to install.
    """
    if not 0 <= tolerance < math.inf:
        raise InputError(f"the tolerance of surfaces must be finite and at least 0, got {tolerance}")
    try:
        import_module("monai.metrics")
    except ImportError as error:
        raise InputError(
            'scores of surfaces require MONAI, which is not installed: pip install "nnunetv2-deferral[surfaces]"'
        ) from error


def surface_scores(
    reference: np.ndarray,
    prediction: np.ndarray,
    regions: Sequence[Region],
    *,
    spacing: Sequence[float],
    tolerance: float,
    valid: np.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """95th percentile of the Hausdorff distance, and normalised surface distance, of each label or region.

    Args:
        reference: Label map, integer of shape S with two or three axes; a single slice (1, Y, X) counts as two.
        prediction: Label map of the same shape.
        regions: The labels, or tuples of labels, to score.
        spacing: Size of a voxel along each axis of S, in mm or pixels.
        tolerance: The distance, in the unit of the spacing, up to which surfaces are the same in NSD.
        valid: Bool of the same shape; other voxels belong to no region, in both maps.

    Returns:
        For each region, keyed as in nnU-Net's summaries, `HD95` in the unit of the spacing, the larger of the two
        directions between voxels of the borders, and `NSD` in [0, 1], with borders weighted by their area (Nikolov et
        al. 2021, "Clinically applicable segmentation of head and neck anatomy for radiotherapy"). If neither map has
        the region, both are NaN; if one has it, `NSD` is 0 and `HD95` NaN, because there is no distance.

    Raises:
        InputError: See :func:`check_tolerance`.

    Example:
        A square that is shifted by one pixel of 2 mm:

        >>> import numpy as np
        >>> from nnunetv2_deferral.evaluation.surfaces import surface_scores
        >>> reference = np.zeros((1, 12, 12), dtype=int)
        >>> reference[:, 3:8, 3:8] = 1
        >>> surface_scores(reference, np.roll(reference, 1, axis=2), (1,), spacing=(1, 2, 2), tolerance=2)
        {'1': {'HD95': 2.0, 'NSD': 1.0}}
    """
    check_tolerance(tolerance)
    monai = import_module("monai.metrics")
    is_slice = reference.ndim == 3 and reference.shape[0] == 1
    sizes = [float(size) for size in (spacing[1:] if is_slice else spacing)]
    found = {}
    for region in regions:
        masks = [region_mask(labels, region) for labels in (reference, prediction)]
        if valid is not None:
            masks = [mask & valid for mask in masks]
        truth, predicted = (mask[0] if is_slice else mask for mask in masks)
        scores = {HD95: math.nan, NSD: math.nan}
        if truth.any() and predicted.any():
            two = [torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (predicted, truth)]
            how = {"include_background": True, "spacing": sizes}
            with warnings.catch_warnings():  # MONAI warns of arguments that it passes itself
                warnings.simplefilter("ignore", FutureWarning)
                scores[HD95] = float(monai.compute_hausdorff_distance(*two, percentile=95, **how))
                scores[NSD] = float(monai.compute_surface_dice(*two, [tolerance], use_subvoxels=True, **how))
        elif truth.any() or predicted.any():
            scores[NSD] = 0.0
        found[region_key(region)] = scores
    return found
