import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad

from nnunetv2_deferral.evaluation.risk_coverage import augrc, aurc, risk_coverage_of_cases, risk_coverage_of_voxels
from nnunetv2_deferral.evaluation.score_bins import ScoreHistogram


def of_voxels(scores, losses):
    histogram = ScoreHistogram()
    histogram.update(np.asarray(scores), np.asarray(losses, dtype=bool))
    return risk_coverage_of_voxels(histogram)


BOTH = pytest.mark.parametrize("make", [risk_coverage_of_cases, of_voxels], ids=["cases", "voxels"])


def areas(found):
    return [(each.area, each.optimum, each.random) for each in (found.augrc(), found.aurc())]


def slow_areas(losses):
    """AUGRC and AURC of losses that are kept in this order, by quadrature of the two curves."""
    number = len(losses)

    def risk(coverage):
        whole = min(int(coverage * number + 1e-9), number - 1)
        return (sum(losses[:whole]) + (coverage * number - whole) * losses[whole]) / number

    pieces = [(k / number, (k + 1) / number) for k in range(number)]
    augrc = sum(quad(risk, *piece)[0] for piece in pieces)
    aurc = losses[0] / number + sum(quad(lambda c: risk(c) / c, *piece)[0] for piece in pieces[1:])
    return augrc, aurc


def orders_of(scores):
    """All orders of the items in which scores never fall."""
    return [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] <= scores[b] for a, b in itertools.pairwise(order))
    ]


@BOTH
def test_without_errors_all_areas_are_zero(make):
    assert areas(make([0.1, 0.2, 0.2, 0.9], [0, 0, 0, 0])) == [(0, 0, 0), (0, 0, 0)]


@BOTH
def test_with_errors_only_no_score_is_better_than_another(make):
    found = areas(make([0.1, 0.2, 0.2, 0.9], [1, 1, 1, 1]))
    assert found == [pytest.approx((0.5, 0.5, 0.5)), pytest.approx((1, 1, 1))]


@BOTH
def test_areas_are_normalised_to_those_of_the_best_and_of_a_random_score(make):
    wrong = [0, 0, 1, 0, 1]
    for score, expected in ((wrong, 0), ([1] * 5, 1)):
        found = make(score, wrong)
        assert [found.aurc().normalised, found.augrc().normalised] == pytest.approx([expected] * 2)
    assert make([0, 0, 2, 1, 3], wrong).aurc().normalised == pytest.approx(0)
    assert make([3, 2, 0, 1, 0], wrong).aurc().normalised > 1
    assert all(math.isnan(make([1, 2, 3], losses).aurc().normalised) for losses in ([0, 0, 0], [1, 1, 1]))


@BOTH
@pytest.mark.parametrize("errors", [1, 3, 9])
def test_a_constant_score_is_exactly_random(make, errors):
    found = make([0.3] * 10, [1] * errors + [0] * (10 - errors))
    assert found.augrc().area == found.augrc().random == errors / 20
    assert found.aurc().area == found.aurc().random == errors / 10


@BOTH
@pytest.mark.parametrize(("number", "errors"), [(2, 1), (7, 1), (7, 6), (100, 20)])
def test_a_perfect_score_reaches_the_known_optimum_for_every_number_of_items(make, number, errors):
    wrong = np.arange(number) >= number - errors
    found, rate = make(wrong * 0.5, wrong), errors / number
    assert found.augrc().area == pytest.approx(rate**2 / 2)
    assert found.aurc().area == pytest.approx(rate + (1 - rate) * math.log(1 - rate))
    assert found.augrc().excess == pytest.approx(0)
    assert found.aurc().excess == pytest.approx(0)
    distinct = make(np.arange(number) / number, wrong)
    assert areas(distinct) == [pytest.approx(values) for values in areas(found)]


@BOTH
def test_the_worst_score_keeps_errors_first(make):
    found = make([0.9, 0.1], [0, 1])
    assert found.augrc().area == pytest.approx((0.5 * 0.5 / 2) + 0.5 * 0.5)
    assert found.aurc().area == pytest.approx(0.5 * 1 + 0.5 * math.log(2))


@BOTH
@pytest.mark.parametrize("loss", [0, 1])
def test_one_item_has_no_better_and_no_worse_score(make, loss):
    assert areas(make([0.4], [loss])) == [(loss / 2,) * 3, (loss,) * 3]


@BOTH
def test_without_items_areas_are_undefined(make):
    found = make(np.zeros(0), np.zeros(0))
    assert all(math.isnan(value) for values in areas(found) for value in values)
    assert found.curve().coverage.size == 0


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_areas_are_the_means_over_all_orders_of_the_ties(seed, real):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 3, 6)
    losses = generator.random(6) * 3 if real else generator.integers(0, 2, 6)
    expected = np.mean([slow_areas([losses[i] for i in order]) for order in orders_of(scores)], axis=0)
    found = risk_coverage_of_cases(scores, losses)
    assert (found.augrc().area, found.aurc().area) == pytest.approx(tuple(expected))
    if not real:
        assert areas(of_voxels(scores, losses)) == [pytest.approx(values) for values in areas(found)]


@pytest.mark.parametrize("real", [False, True])
def test_optimum_and_random_are_the_least_and_the_mean_over_all_orders(real):
    generator = np.random.default_rng(7)
    losses = generator.random(6) * 3 if real else np.array([1, 0, 0, 1, 0, 0])
    every = np.array([slow_areas([losses[i] for i in order]) for order in orders_of([0] * 6)])
    found = risk_coverage_of_cases(generator.random(6), losses)
    assert (found.augrc().optimum, found.aurc().optimum) == pytest.approx(tuple(every.min(0)))
    assert (found.augrc().random, found.aurc().random) == pytest.approx(tuple(every.mean(0)))


@pytest.mark.parametrize("seed", range(3))
def test_areas_of_distinct_scores_agree_with_a_sort(seed):
    generator = np.random.default_rng(seed)
    scores, losses = generator.random(2000), generator.random(2000)
    kept = np.concatenate(([0], np.cumsum(losses[np.argsort(scores)]))) / 2000
    found = risk_coverage_of_cases(scores, losses)
    assert found.augrc().area == pytest.approx(np.sum(kept[1:] + kept[:-1]) / 2 / 2000)
    # the mean selective risk at the 2000 coverages (Geifman & El-Yaniv) tends to the same area
    assert found.aurc().area == pytest.approx(np.mean(kept[1:] / (np.arange(2000) + 1) * 2000), abs=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_binning_voxels_moves_areas_by_little(seed):
    generator = np.random.default_rng(seed)
    scores = generator.random(50_000).astype(np.float32)
    wrong = generator.random(50_000) < scores / 5
    binned, exact = of_voxels(scores, wrong), risk_coverage_of_cases(scores, wrong)
    for first, second in zip(areas(binned), areas(exact), strict=True):
        assert first == pytest.approx(second, rel=1e-4)


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_only_the_order_of_scores_matters_and_not_that_of_items(make, seed):
    generator = np.random.default_rng(seed)
    scores, losses = generator.integers(0, 20, 60), generator.integers(0, 2, 60)
    order, expected = generator.permutation(60), areas(make(scores, losses))
    assert areas(make(scores[order], losses[order])) == expected
    assert areas(make(scores.astype(float) ** 3 + 1, losses)) == expected


def test_areas_are_in_the_unit_of_the_loss():
    scores, losses = np.random.default_rng(0).random((2, 40))
    for first, second in zip(
        areas(risk_coverage_of_cases(scores, losses)), areas(risk_coverage_of_cases(scores, 7 * losses)), strict=True
    ):
        assert second == pytest.approx(tuple(7 * value for value in first))


def test_an_area_tells_all_by_name():
    found = risk_coverage_of_cases(np.array([0.9, 0.1]), np.array([0, 1])).augrc().to_dict()
    assert found == pytest.approx({"area": 0.375, "optimum": 0.125, "random": 0.25, "excess": 0.25, "normalised": 2.0})


def test_a_curve_has_points_where_the_score_changes():
    curve = risk_coverage_of_cases(np.array([0.2, 0.1, 0.2, 0.7]), np.array([1, 0, 0, 1])).curve()
    np.testing.assert_allclose(curve.coverage, [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(curve.generalised_risk, [0, 0, 0.25, 0.5])
    np.testing.assert_allclose(curve.selective_risk, [0, 0, 1 / 3, 0.5])


def test_selective_risk_starts_with_what_is_kept_first():
    curve = risk_coverage_of_cases(np.array([0.1, 0.2]), np.array([0.6, 0.2])).curve()
    np.testing.assert_allclose(curve.selective_risk, [0.6, 0.6, 0.4])


@pytest.mark.parametrize("max_points", [2, 10, 100])
def test_a_thinned_curve_keeps_its_ends_and_its_shape(max_points):
    generator = np.random.default_rng(0)
    scores = generator.random(20_000) ** 8
    found = risk_coverage_of_cases(scores, generator.random(20_000) < scores)
    curve, full = found.curve(max_points), found.curve(10**6)
    assert len(curve.coverage) <= max_points
    assert (curve.coverage[0], curve.coverage[-1]) == (0, 1)
    assert curve.generalised_risk[-1] == full.generalised_risk[-1]
    drawn = np.interp(full.coverage, curve.coverage, curve.generalised_risk)
    steps = 2 / (max_points - 1)
    assert np.abs(drawn - full.generalised_risk).max() <= (steps + 1e-3) * full.generalised_risk[-1]
    np.testing.assert_allclose(curve.generalised_risk, curve.coverage * curve.selective_risk, atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "losses", "message"),
    [
        ([0.1, np.nan], [0, 1], "scores must be finite, got nan"),
        ([0.1, 0.2], [0, -0.5], "losses must be finite and not negative, got -0.5"),
        ([0.1, 0.2], [0, np.inf], "got inf"),
        ([0.1, 0.2], [0], r"scores \(2,\), losses \(1,\)"),
        ([[0.1]], [[0]], r"got \(1, 1\)"),
    ],
)
def test_what_cannot_be_ranked_is_named(scores, losses, message):
    with pytest.raises(ValueError, match=message):
        risk_coverage_of_cases(np.array(scores), np.array(losses))


def test_a_curve_of_fewer_than_two_points_is_refused():
    with pytest.raises(ValueError, match="max_points must be at least 2, got 1"):
        of_voxels([0.1], [1]).curve(1)


def test_arrays_of_any_shape_have_the_areas_of_their_items():
    generator = np.random.default_rng(0)
    scores, wrong = generator.random((3, 4, 5)), generator.random((3, 4, 5)) < 0.3
    expected = risk_coverage_of_cases(scores.ravel(), wrong.ravel())
    assert (augrc(scores, wrong), aurc(scores, wrong)) == (expected.augrc(), expected.aurc())
    assert math.isnan(aurc(np.zeros((0, 3)), np.zeros((0, 3))).area)
    with pytest.raises(ValueError, match=r"scores \(6,\), losses \(2, 3\)"):
        augrc(np.zeros(6), np.zeros((2, 3)))
