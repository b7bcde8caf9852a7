"""Confidence intervals by the bootstrap over cases, or over groups of cases such as patients.

Groups are resampled with replacement, each with all of its cases; the interval is given by percentiles of the statistic
over resamples (Efron & Tibshirani 1993), widened about the estimate by :func:`small_sample_factor`. Without that,
nominal 95 % intervals cover 83 % for 5 groups and 91 % for 12. Cases of one patient are correlated: if patients have
several cases, groups must be given, otherwise the intervals are too narrow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_deferral.errors import InputError

Statistic = Callable[[np.ndarray], float]

_MAX_WEIGHTS = 2**22  # per batch of resamples: 32 MiB


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval; `low` and `high` are NaN if the interval is undefined."""

    estimate: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """`estimate`, `low` and `high`."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


def mean_over_cases(values: np.ndarray) -> float:
    """The mean over cases, ignoring NaN; for several columns the mean of their means, as nnU-Net's foreground mean.

    Args:
        values: (N,) or (N, R) for R regions.

    Returns:
        The mean; NaN if all values are NaN.
    """
    columns = _columns(np.asarray(values, dtype=np.float64))
    return float(_weighted_means(columns, np.ones((1, len(columns))))[0])


def bootstrap_interval(
    values: np.ndarray,
    statistic: Statistic = mean_over_cases,
    *,
    generator: np.random.Generator,
    groups: Sequence[Hashable] | None = None,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The bootstrap interval of a statistic of per-case values.

    Args:
        values: (N,) or (N, K), a row for each case; NaN where undefined.
        statistic: Maps resampled rows, (M,) or (M, K), to a number, independently of their order. The default is fast;
            any other is called once per resample.
        generator: The source of randomness.
        groups: For each case its group, such as its patient, (N,); None for each case by itself.
        num_resamples: The number of resamples.
        level: The coverage of the interval, in (0, 1).

    Returns:
        The statistic of all cases, and the interval, which lies in [0, 1] if all values do. Resamples with an undefined
        statistic are ignored. The interval is NaN if the statistic is NaN in all resamples, or fewer than two groups
        have values that are not NaN.

    Raises:
        InputError: If `groups` is not of length N, or an option is out of range.

    Example:
        The mean Dice of six cases of three patients:

        >>> import numpy as np
        >>> from nnunetv2_deferral import bootstrap_interval
        >>> dice = np.array([0.91, 0.90, 0.80, 0.82, 0.70, np.nan])
        >>> patients = ["a", "a", "b", "b", "c", "c"]
        >>> interval = bootstrap_interval(dice, groups=patients, generator=np.random.default_rng(0))
        >>> f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"
        '0.826 (0.487 to 1.000)'
    """
    values = np.asarray(values, dtype=np.float64)
    return _bootstrap((values,), statistic, generator, groups, num_resamples, level)


def bootstrap_difference(
    first: np.ndarray,
    second: np.ndarray,
    statistic: Statistic = mean_over_cases,
    *,
    generator: np.random.Generator,
    groups: Sequence[Hashable] | None = None,
    num_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The bootstrap interval of the paired difference statistic(first) - statistic(second).

    Each resample has the same cases for both. A value that is NaN in one sample is ignored in that sample only, so that
    the estimate equals the difference of the separately reported statistics.

    Args:
        first: (N,) or (N, K), as in :func:`bootstrap_interval`.
        second: The same for another method, with the cases in the same order.
        statistic: See :func:`bootstrap_interval`.
        generator: See :func:`bootstrap_interval`.
        groups: See :func:`bootstrap_interval`.
        num_resamples: See :func:`bootstrap_interval`.
        level: See :func:`bootstrap_interval`.

    Returns:
        See :func:`bootstrap_interval`, in [-1, 1] if all values lie in [0, 1]; at least two groups must have values
        that are not NaN in both samples.

    Raises:
        InputError: If the shapes differ; see also :func:`bootstrap_interval`.

    Example:
        The system is better than the model in each of five cases, by different amounts:

        >>> import numpy as np
        >>> from nnunetv2_deferral import bootstrap_difference
        >>> model = np.array([0.80, 0.70, 0.90, 0.60, 0.75])
        >>> system = model + np.array([0.02, 0.05, 0.01, 0.08, 0.03])
        >>> interval = bootstrap_difference(system, model, generator=np.random.default_rng(0))
        >>> f"{interval.estimate:.3f} ({interval.low:.3f} to {interval.high:.3f})"
        '0.038 (0.006 to 0.073)'
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise InputError(f"paired values must have the same shape, got {first.shape} and {second.shape}")
    return _bootstrap((first, second), statistic, generator, groups, num_resamples, level)


@functools.cache
def small_sample_factor(number: int, level: float) -> float:
    r"""The factor by which a percentile interval of `number` groups is widened, above 1.

    .. math:: \sqrt{\frac{n}{n - 1}} \; \frac{t_{n - 1}}{z}

    with the quantiles of Student's t and of the normal distribution: resamples of n values have a variance that is too
    small by (n - 1) / n, and their percentiles ignore that it is estimated (Hesterberg 2015, "What teachers should know
    about the bootstrap"). 1.58 for 5 groups, 1.17 for 12, 1.06 for 30.
    """
    from scipy.stats import norm, t  # imported here because it is slow to import

    upper = (1 + level) / 2
    return float(math.sqrt(number / (number - 1)) * t.ppf(upper, number - 1) / norm.ppf(upper))


def _bootstrap(
    samples: tuple[np.ndarray, ...],
    statistic: Statistic,
    generator: np.random.Generator,
    groups: Sequence[Hashable] | None,
    num_resamples: int,
    level: float,
) -> Interval:
    """The interval of the statistic of one sample, or of the difference between two samples."""
    number = len(samples[0])
    group = _number_groups(groups, number)
    if num_resamples < 1:
        raise InputError(f"num_resamples must be at least 1, got {num_resamples}")
    if not 0 < level < 1:
        raise InputError(f"level must lie in (0, 1), got {level}")
    estimate = _less(*(_resampled(sample, statistic, np.ones((1, number), dtype=np.int64)) for sample in samples))[0]
    defined = np.all([~np.isnan(_columns(sample)).all(1) for sample in samples], axis=0)
    number_of_groups = len(np.unique(group[defined]))
    if number_of_groups < 2:
        return Interval(float(estimate), float("nan"), float("nan"))
    drawn = []
    for start in range(0, num_resamples, rows := max(_MAX_WEIGHTS // number, 1)):
        weights = _draw(group, min(rows, num_resamples - start), generator)
        drawn.append(_less(*(_resampled(sample, statistic, weights) for sample in samples)))
    found = np.concatenate(drawn)
    found = found[~np.isnan(found)]
    if not found.size:
        return Interval(float(estimate), float("nan"), float("nan"))
    bounds = np.quantile(found, ((1 - level) / 2, (1 + level) / 2))
    low, high = estimate + small_sample_factor(number_of_groups, level) * (bounds - estimate)
    if all(np.nanmin(sample) >= 0 and np.nanmax(sample) <= 1 for sample in samples):
        low, high = max(low, 1.0 - len(samples)), min(high, 1.0)
    return Interval(float(estimate), float(low), float(high))


def _columns(values: np.ndarray) -> np.ndarray:
    """Per-case values as (N, R), also for N = 0."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def _number_groups(groups: Sequence[Hashable] | None, number: int) -> np.ndarray:
    """The groups of the cases as integers from 0, in order of appearance."""
    if groups is None:
        return np.arange(number)
    if len(groups) != number:
        raise InputError(f"groups must have one entry for each of {number} cases, got {len(groups)}")
    names: dict[Hashable, int] = {}
    return np.array([names.setdefault(name, len(names)) for name in groups], dtype=np.int64)


def _draw(group: np.ndarray, rows: int, generator: np.random.Generator) -> np.ndarray:
    """The number of times that each case is drawn in each resample: int64 (rows, N)."""
    number = int(group.max()) + 1
    return generator.multinomial(number, np.full(number, 1 / number), size=rows)[:, group]


def _resampled(values: np.ndarray, statistic: Statistic, weights: np.ndarray) -> np.ndarray:
    """The statistic of each resample, float64 (rows,), from the multiplicities (rows, N) of the cases."""
    if statistic is mean_over_cases:
        return _weighted_means(_columns(values), weights)
    return np.array([statistic(np.repeat(values, row, axis=0)) for row in weights], dtype=np.float64)


def _weighted_means(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each row of weights (M, N), the mean over columns of the weighted means of (N, R), ignoring NaN: (M,)."""
    defined = ~np.isnan(columns)
    means = _ratio(weights @ np.where(defined, columns, 0), weights @ defined.astype(np.float64))
    has_mean = ~np.isnan(means)
    return _ratio(np.where(has_mean, means, 0).sum(1), has_mean.sum(1))


def _ratio(sums: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Sums divided by numbers; NaN where the number is 0."""
    return np.divide(sums, numbers, out=np.full(sums.shape, np.nan), where=numbers > 0)


def _less(first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
    return first if second is None else first - second
