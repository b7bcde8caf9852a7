"""Case-level failure detection: identification of poor segmentations by a score that needs no reference.

A voxel score (probability map, entropy, 1 - max softmax) is averaged to a score of the case, or the folds of an
ensemble are compared. As everywhere in :mod:`risk_coverage`, high means uncertain. Scores are assessed by AURC and
AUGRC with the loss 1 - Dice (Zenk et al. 2025, "Comparative benchmarking of failure detection methods in medical image
segmentation").
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations

import numpy as np
from scipy import ndimage

from nnunetv2_deferral.arrays import check_bool, check_same_shape
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.bootstrap import Interval, bootstrap_interval
from nnunetv2_deferral.evaluation.overlap import Region, overlap
from nnunetv2_deferral.evaluation.risk_coverage import RiskCoverageArea, risk_coverage_of_cases

# Names of scores that need several folds.
FOLD_DISAGREEMENT, MUTUAL_INFORMATION = "fold_disagreement", "mutual_information"


class NoVoxels(Enum):
    """The score of a case if there are no voxels to average over, such as for an empty predicted foreground.

    HIGHEST: The highest voxel score of the case. Like a mean over foreground, it is not diluted by background.
    WHOLE_IMAGE: The mean over all voxels. Empty masks then appear more certain than all others.
    UNDEFINED: NaN; the case is excluded. This excludes empty masks of cases with foreground, the worst failures.
    """

    HIGHEST = "highest"
    WHOLE_IMAGE = "whole_image"
    UNDEFINED = "undefined"


def mean_score(scores: np.ndarray, valid: np.ndarray | None = None) -> float:
    """The mean over all voxels.

    Args:
        scores: Real, any shape S; high means uncertain.
        valid: Bool of shape S, the voxels that count, or None for all.

    Returns:
        A float in the unit of the scores, NaN if no voxel counts.

    Raises:
        InputError: If the shapes differ, `valid` is not bool, or a score is not finite.
    """
    return _mean_where(scores, None, valid, NoVoxels.UNDEFINED)


def mean_foreground_score(
    scores: np.ndarray,
    prediction: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    no_voxels: NoVoxels = NoVoxels.HIGHEST,
) -> float:
    """The mean over the predicted foreground, i.e. all labels but 0.

    Args:
        scores: Real, any shape S; high means uncertain.
        prediction: Label map, integer of shape S.
        valid: Bool of shape S, the voxels that count, or None for all.
        no_voxels: The result without predicted foreground.

    Returns:
        A float in the unit of the scores, NaN if no voxel counts.

    Raises:
        InputError: If the shapes differ, `valid` is not bool, or a score is not finite.
    """
    return _mean_where(scores, prediction != 0, valid, no_voxels)


def mean_score_off_boundary(
    scores: np.ndarray,
    prediction: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    width_voxels: int = 2,
    no_voxels: NoVoxels = NoVoxels.HIGHEST,
) -> float:
    """The mean over the voxels outside a band around predicted boundaries, where scores are always high.

    Args:
        scores: Real, any shape S; high means uncertain.
        prediction: Label map, integer of shape S.
        valid: Bool of shape S, the voxels that count, or None for all.
        width_voxels: The depth of the band on each side: it consists of the voxels with another label within this
            Chebyshev distance, as in `expert_sim.zones.boundary_band`. 0 for no band.
        no_voxels: The result if all voxels are in the band.

    Returns:
        A float in the unit of the scores, NaN if no voxel counts.

    Raises:
        InputError: If the shapes differ, `valid` is not bool, the width is negative, or a score is not finite.
    """
    if width_voxels < 0:
        raise InputError(f"width_voxels must be at least 0, got {width_voxels}")
    size = 2 * width_voxels + 1
    same = ndimage.maximum_filter(prediction, size) == ndimage.minimum_filter(prediction, size)
    return _mean_where(scores, same, valid, no_voxels)


def highest_box_score(scores: np.ndarray, valid: np.ndarray | None = None, *, edge_voxels: int = 10) -> float:
    """The highest mean over a box, which is not diluted by certain voxels elsewhere (Zenk et al. 2025).

    Args:
        scores: Real, any shape S; high means uncertain.
        valid: Bool of shape S, the voxels that count, or None for all. Scores of others are 0.
        edge_voxels: The edge of the box, at most that of the image along each axis.

    Returns:
        A float in the unit of the scores, NaN if no voxel counts.

    Raises:
        InputError: If the shapes differ, `valid` is not bool, the edge is less than 1, or a score is not finite.
    """
    if edge_voxels < 1:
        raise InputError(f"edge_voxels must be at least 1, got {edge_voxels}")
    check_same_shape(scores=scores, valid=valid)
    check_bool(valid=valid)
    counted = scores if valid is None else np.where(valid, scores, 0)
    if not scores.size or not (valid is None or valid.any()):
        return float("nan")
    means = np.asarray(counted, dtype=np.float32)
    for axis, length in enumerate(scores.shape):
        edge = min(edge_voxels, length)
        means = ndimage.uniform_filter1d(means, edge, axis=axis, mode="nearest")
        # Only boxes that are within the image.
        inside = slice(edge // 2, edge // 2 + length - edge + 1)
        means = means[tuple(inside if each == axis else slice(None) for each in range(scores.ndim))]
    highest = float(means.max())
    if not np.isfinite(highest):
        raise InputError(f"scores must be finite, got a mean of {highest}")
    return highest


def agreement_intervals(
    values: np.ndarray,
    *,
    generator: np.random.Generator,
    groups: Sequence[Hashable] | None = None,
    num_resamples: int = 2000,
) -> dict[str, dict[str, float]]:
    """How well a predicted Dice agrees with the true one, with bootstrap intervals.

    Args:
        values: float64 (N, 2), the predicted and the true Dice of each case; NaN where undefined.
        generator: The source of randomness.
        groups: See :func:`.bootstrap_interval`.
        num_resamples: See :func:`.bootstrap_interval`.

    Returns:
        `mean_absolute_error`, `pearson` and `spearman`, each with `estimate`, `low` and `high`; NaN where undefined.
        Intervals lie within what an error of values in [0, 1] and a correlation can be.
    """
    known = ~np.isnan(values).any(1)
    # Negative, because intervals of values in [0, 1] are kept within it, which correlations need not be.
    rows = -values[known]
    of_rows = None if groups is None else [group for group, has in zip(groups, known, strict=True) if has]
    found = {}
    for name in ("mean_absolute_error", "pearson", "spearman"):

        def statistic(sample: np.ndarray, name: str = name) -> float:
            return agreement(sample[:, 0], sample[:, 1])[name]

        interval = bootstrap_interval(rows, statistic, generator=generator, groups=of_rows, num_resamples=num_resamples)
        # A percentile interval is widened about the estimate, also beyond these.
        lowest = 0.0 if name == "mean_absolute_error" else -1.0
        low, high = (float(np.clip(bound, lowest, 1.0)) for bound in (interval.low, interval.high))
        found[name] = Interval(interval.estimate, low, high).to_dict()
    return found


def agreement(predicted: np.ndarray, dice: np.ndarray) -> dict[str, float]:
    """How well predicted values agree with true ones.

    Args:
        predicted: (N,), finite.
        dice: (N,), finite.

    Returns:
        `mean_absolute_error`, NaN without cases; `pearson` and `spearman`, the correlations of values and ranks, NaN if
        either is constant.
    """
    from scipy.stats import rankdata  # imported here because it is slow to import

    def correlation(first: np.ndarray, second: np.ndarray) -> float:
        if len(first) < 2 or not np.ptp(first) or not np.ptp(second):
            return float("nan")
        return float(np.corrcoef(first, second)[0, 1])

    return {
        "mean_absolute_error": float(np.abs(predicted - dice).mean()) if len(dice) else float("nan"),
        "pearson": correlation(predicted, dice),
        "spearman": correlation(rankdata(predicted), rankdata(dice)),
    }


def fold_disagreement(masks: np.ndarray, regions: Sequence[Region], valid: np.ndarray | None = None) -> float:
    """1 - the mean Dice between the masks of all pairs of folds (Roy et al. 2019; Zenk et al. 2025).

    The Dice of a pair is its mean over regions, excluding those in neither mask. It is 1 if neither mask has any
    region.

    Args:
        masks: Label maps, integer (F, *S), one per fold, at least two.
        regions: The foreground labels, or tuples of labels.
        valid: Bool of shape S, the voxels that count, or None for all.

    Returns:
        A float in [0, 1]; 0 if no voxel counts.

    Raises:
        InputError: If there is only one mask, shapes differ, or `valid` is not bool.
    """
    if len(masks) < 2:
        raise InputError(f"at least two masks are required, got {len(masks)}")
    check_same_shape(masks=masks[0], valid=valid)
    check_bool(valid=valid)
    dice = []
    for first, second in combinations(masks, 2):
        by_region = [scores["Dice"] for scores in overlap(first, second, regions, valid).values()]
        defined = [value for value in by_region if not np.isnan(value)]
        dice.append(float(np.mean(defined)) if defined else 1.0)
    return float(1 - np.mean(dice))


@dataclass(frozen=True)
class FailureDetection:
    """How well a score of cases detects those with a low Dice.

    Attributes:
        aurc: Area under the selective risk-coverage curve with the loss 1 - Dice.
        augrc: Area under the generalised risk-coverage curve with the loss 1 - Dice.
        num_cases: The number of cases included.
        undefined: The cases excluded because their score or Dice is NaN.
    """

    aurc: RiskCoverageArea
    augrc: RiskCoverageArea
    num_cases: int
    undefined: tuple[str, ...]


def failure_detection(scores: Mapping[str, float], dice: Mapping[str, float]) -> FailureDetection:
    """AURC and AUGRC over cases with the loss 1 - Dice.

    Args:
        scores: The score of each case; high means uncertain. NaN where undefined.
        dice: The Dice of each case in [0, 1], such as the foreground mean; NaN where undefined.

    Returns:
        The areas over the cases with score and Dice, NaN without any. Only scores with the same `undefined` cases are
        comparable.

    Raises:
        InputError: If the cases differ or a Dice is outside [0, 1].
    """
    if scores.keys() != dice.keys():
        raise InputError(f"cases with a score and cases with a Dice differ in {sorted(scores.keys() ^ dice.keys())}")
    for case, value in dice.items():
        if not (np.isnan(value) or 0 <= value <= 1):
            raise InputError(f"Dice must lie in [0, 1], got {value} for case {case}")
    cases = [case for case in scores if not (np.isnan(scores[case]) or np.isnan(dice[case]))]
    found = risk_coverage_of_cases(
        np.array([scores[case] for case in cases]), np.array([1 - dice[case] for case in cases])
    )
    undefined = tuple(case for case in scores if case not in set(cases))
    return FailureDetection(found.aurc(), found.augrc(), len(cases), undefined)


def _mean_where(scores: np.ndarray, where: np.ndarray | None, valid: np.ndarray | None, no_voxels: NoVoxels) -> float:
    """The mean over the valid voxels in `where` (None: all)."""
    check_same_shape(scores=scores, prediction=where, valid=valid)
    check_bool(valid=valid)
    counted = np.ones(scores.shape, dtype=bool) if valid is None else valid
    chosen = scores[counted if where is None else where & counted]
    if not chosen.size and no_voxels is not NoVoxels.UNDEFINED:
        chosen = scores[counted]
        if no_voxels is NoVoxels.HIGHEST and chosen.size:
            chosen = chosen.max(keepdims=True)
    if not chosen.size:
        return float("nan")
    mean = float(chosen.mean(dtype=np.float64))
    if not np.isfinite(mean):
        raise InputError(f"scores must be finite, got a mean of {mean}")
    return mean
