import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nnunetv2_deferral.evaluation.bootstrap import (
    bootstrap_difference,
    bootstrap_interval,
    mean_over_cases,
    small_sample_factor,
)
from nnunetv2_deferral.evaluation.risk_coverage import risk_coverage_of_cases

NAN = math.nan


def rng(seed=0):
    return np.random.default_rng(seed)


def augrc(rows):
    return risk_coverage_of_cases(rows[:, 0], rows[:, 1]).augrc().area


def slow_mean(values):
    return float(np.nanmean(values)) if not np.isnan(values).all() else NAN


def all_resamples(values, groups):
    """The statistic of every draw of the groups with replacement."""
    names = sorted(set(groups))
    members = {name: [value for value, group in zip(values, groups, strict=True) if group == name] for name in names}
    for draw in itertools.product(names, repeat=len(names)):
        yield slow_mean(np.array([value for name in draw for value in members[name]]))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2, 0.4], 0.3),
        ([0.2, NAN, 0.4], 0.3),
        ([[0.2, NAN], [0.4, 0.9]], 0.6),
        ([[0.2, NAN], [0.4, NAN]], 0.3),
        ([NAN, NAN], NAN),
        ([], NAN),
    ],
)
def test_the_mean_over_cases_is_nnunets_foreground_mean(values, expected):
    assert mean_over_cases(np.array(values)) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("groups", ["abcde", "aabbc", "bacba", "abbbb"])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_the_interval_lies_between_percentiles_of_all_possible_resamples(groups, level):
    values = np.array([0.1, 0.5, 0.55, NAN, 0.9])
    every = np.repeat(list(all_resamples(values, groups)), 100)  # so that percentiles fall on values, not between
    found = bootstrap_interval(values, generator=rng(), groups=groups, num_resamples=40_000, level=level)
    assert found.estimate == pytest.approx(slow_mean(values))
    groups_with_values = len({group for group, value in zip(groups, values, strict=True) if not np.isnan(value)})
    wider = small_sample_factor(groups_with_values, level)
    for bound, percentile in ((found.low, (1 - level) / 2), (found.high, (1 + level) / 2)):
        least, most = np.nanquantile(every, [percentile - 0.01, percentile + 0.01])
        least, most = np.clip(found.estimate + wider * (np.array([least, most]) - found.estimate), 0, 1)
        assert least - 1e-9 <= bound <= most + 1e-9


@pytest.mark.parametrize("number", [5, 8, 12, 40])
def test_intervals_cover_the_mean_of_few_cases(number):
    covered, repeats, mean = 0, 400, 0.8
    for seed in range(repeats):
        found = bootstrap_interval(rng(seed).beta(8, 2, number), generator=rng(seed + 1), num_resamples=500)
        covered += found.low <= mean <= found.high
    assert covered / repeats > 0.925  # 0.95 less two standard errors; without the factor 0.83 to 0.93


def test_the_factor_for_few_groups():
    assert small_sample_factor(5, 0.95) == pytest.approx(math.sqrt(5 / 4) * 2.776 / 1.960, abs=1e-3)
    assert small_sample_factor(10_000, 0.95) == pytest.approx(1, abs=1e-3)


def narrower(interval, number):
    """The interval before it was widened for few cases."""
    factor = small_sample_factor(number, 0.95)
    return [interval.estimate + (bound - interval.estimate) / factor for bound in (interval.low, interval.high)]


@pytest.mark.parametrize("seed", range(3))
def test_intervals_agree_with_scipy(seed):
    values = rng(seed).beta(5, 2, 40)
    found = bootstrap_interval(values, generator=rng(1), num_resamples=20_000)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, random_state=2)
    assert narrower(found, 40) == pytest.approx(theirs.confidence_interval, abs=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_paired_intervals_agree_with_scipy(seed):
    first = rng(seed).beta(5, 2, 40)
    second = first - rng(seed + 9).normal(0.02, 0.03, 40)
    found = bootstrap_difference(first, second, generator=rng(1), num_resamples=20_000)
    theirs = stats.bootstrap(
        (first, second),
        lambda a, b, axis: np.mean(a, axis) - np.mean(b, axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        random_state=2,
    )
    assert found.estimate == pytest.approx(first.mean() - second.mean())
    assert narrower(found, 40) == pytest.approx(theirs.confidence_interval, abs=1e-3)


@pytest.mark.parametrize("columns", [None, 3])
@pytest.mark.parametrize("groups", [None, list("aabbbcdeefgh")])
def test_the_fast_mean_equals_the_slow_way_on_the_same_draws(columns, groups):
    values = rng(0).random((12,) if columns is None else (12, columns))
    values[rng(1).random(values.shape) < 0.3] = NAN
    fast = bootstrap_interval(values, generator=rng(5), groups=groups, num_resamples=200)
    slow = bootstrap_interval(
        values, lambda rows: mean_over_cases(rows), generator=rng(5), groups=groups, num_resamples=200
    )
    assert (fast.estimate, fast.low, fast.high) == pytest.approx((slow.estimate, slow.low, slow.high))
    other = values[::-1]
    fast = bootstrap_difference(values, other, generator=rng(5), groups=groups, num_resamples=200)
    slow = bootstrap_difference(
        values, other, lambda rows: mean_over_cases(rows), generator=rng(5), groups=groups, num_resamples=200
    )
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high))


def test_any_statistic_of_rows_has_an_interval():
    scores = rng(0).random(30)
    rows = np.stack([scores, np.clip(scores + rng(1).normal(0, 0.2, 30), 0, 1)], axis=1)
    found = bootstrap_interval(rows, augrc, generator=rng(2), num_resamples=300)
    assert found.estimate == augrc(rows)
    assert found.low < found.estimate < found.high


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = rng(0).random(20)
    first, again, other = (bootstrap_interval(values, generator=rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_many_cases_are_drawn_in_pieces_without_a_difference(monkeypatch):
    values = rng(0).random(50)
    whole = bootstrap_interval(values, generator=rng(1))
    monkeypatch.setattr("nnunetv2_deferral.evaluation.bootstrap._MAX_WEIGHTS", 160)
    pieces = bootstrap_interval(values, generator=rng(1))
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high))


def test_cases_of_one_patient_are_drawn_together():
    values, patients = np.repeat(rng(0).random(10), 8), np.repeat(np.arange(10), 8)
    apart = bootstrap_interval(values, generator=rng(1))
    together = bootstrap_interval(values, generator=rng(1), groups=list(patients))
    alone = bootstrap_interval(values[::8], generator=rng(1))
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))


def test_a_paired_interval_is_narrow_where_methods_differ_by_a_constant():
    values = rng(0).random(15)
    found = bootstrap_difference(values + 0.1, values, generator=rng(1))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize(
    ("values", "groups"),
    [([0.5, 0.7], ["a", "a"]), ([0.5], None), ([NAN, NAN], None), ([NAN, 0.5, 0.7], ["a", "b", "b"]), ([], None)],
)
def test_without_two_groups_that_have_values_there_is_no_interval(values, groups):
    found = bootstrap_interval(np.array(values), generator=rng(), groups=groups)
    assert found.estimate == pytest.approx(slow_mean(np.array(values)), nan_ok=True)
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_difference_needs_two_groups_with_values_in_both():
    found = bootstrap_difference(np.array([0.1, NAN, 0.3]), np.array([NAN, 0.4, 0.5]), generator=rng())
    assert found.estimate == pytest.approx(0.2 - 0.45)
    assert math.isnan(found.low)


def test_a_statistic_that_is_never_defined_has_no_interval():
    found = bootstrap_interval(np.array([0.1, 0.2]), lambda rows: NAN, generator=rng(), num_resamples=5)
    assert math.isnan(found.low)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["a"]}, "groups must have one entry for each of 2 cases, got 1"),
        ({"num_resamples": 0}, "num_resamples must be at least 1, got 0"),
        ({"level": 95}, "got 95"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.array([0.1, 0.2]), generator=rng(), **options)


def test_paired_values_have_one_shape():
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        bootstrap_difference(np.zeros(2), np.zeros(3), generator=rng())
