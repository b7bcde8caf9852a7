"""No routes within the limits gain more than those that are found, as a linear program and weak duality show."""

import math

import numpy as np
import pytest
from scipy.optimize import linprog

from nnunetv2_deferral.decision.assignment import (
    MOST_EXPERTS,
    check_capacities,
    route_by_thresholds,
    route_within_limits,
    thresholds_within_limits,
)


def in_voxels(budget, capacities, number):
    total = number if budget is None else math.floor(budget * number)
    return total, [number if share is None else math.floor(share * number) for share in capacities]


def gained(gains, route):
    deferred = np.flatnonzero(route)
    return gains[route.ravel()[deferred] - 1, deferred].astype(np.float64)


def assert_within(route, total, each):
    counts = np.bincount(route.ravel(), minlength=len(each) + 1)[1:]
    assert counts.size == len(each)
    assert counts.sum() <= total
    assert (counts <= each).all()


def best_total_gain(gains, total, each):
    """The value of the transportation problem by HiGHS."""
    experts, number = gains.shape
    of_voxels = np.tile(np.eye(number), experts)
    of_experts = np.kron(np.eye(experts), np.ones(number))
    limits = np.vstack((of_voxels, of_experts, np.ones(experts * number)))
    solution = linprog(
        -np.maximum(gains, 0).ravel(), limits, np.concatenate((np.ones(number), each, [total])), method="highs"
    )
    assert solution.status == 0
    return -solution.fun


def upper_bound(gains, thresholds, total, each):
    """What no routes within the limits can gain more than, whatever the thresholds are (weak duality)."""
    asked = np.minimum(each, total) > 0
    thresholds, each = thresholds[asked], np.minimum(each, total)[asked]
    price = thresholds.min(initial=np.inf) if each.sum() > total else 0.0
    surplus = gains[asked].astype(np.float64) - thresholds[:, None]
    return total * price + each @ (thresholds - price) + surplus.max(axis=0, initial=0).sum()


def random_gains(kind, shape, generator):
    if kind == "continuous":
        gains = generator.normal(0.3, 1, shape)
    elif kind == "alike":  # everybody wants the same voxels, whoever is asked
        gains = generator.exponential(1, shape[1]) + 1e-3 * generator.random(shape)
    elif kind == "skewed":
        gains = np.exp(generator.normal(0, 4, shape))
    else:
        gains = generator.integers(-2, 4, shape)
    gains = gains.astype(np.float32)
    gains[generator.random(shape) < 0.1] = -np.inf
    return gains


def random_limits(experts, generator):
    """No limits, no room at all, and anything between, adding up to more than the budget or to less."""
    budget = None if generator.random() < 0.25 else float(generator.random())
    capacities = [generator.choice([None, 0.0, generator.random() / 3, generator.random()]) for _ in range(experts)]
    return budget, capacities


KINDS = ("continuous", "alike", "skewed", "integers")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experts", [1, 2, 3, 4])
def test_no_routes_within_the_limits_gain_more(kind, experts):
    generator = np.random.default_rng([experts, KINDS.index(kind)])
    for _ in range(30):
        gains = random_gains(kind, (experts, int(generator.integers(1, 40))), generator)
        budget, capacities = random_limits(experts, generator)
        total, each = in_voxels(budget, capacities, gains.shape[1])
        route = route_within_limits(gains, budget=budget, capacities=capacities)
        assert_within(route, total, each)
        assert (gained(gains, route) > 0).all()
        assert gained(gains, route).sum() == pytest.approx(best_total_gain(gains, total, each), rel=1e-7, abs=1e-7)


def test_there_may_be_many_experts_but_no_more_than_allowed():
    generator = np.random.default_rng(3)
    for experts in (8, MOST_EXPERTS):
        gains = random_gains("continuous", (experts, 60), generator)
        route = route_within_limits(gains, budget=0.8, capacities=[0.05] * experts)
        assert gained(gains, route).sum() == pytest.approx(best_total_gain(gains, 48, [3] * experts), rel=1e-7)
    with pytest.raises(ValueError, match=rf"1 to {MOST_EXPERTS} experts, got \({MOST_EXPERTS + 1}, 2\)"):
        route_within_limits(np.ones((MOST_EXPERTS + 1, 2)), budget=None, capacities=None)


@pytest.mark.parametrize("capacities", [(0, 0, 0), (0.1, 0, 0.1), (0.2, 0.2, 0.2), (1, 0.29, None), (None, None, None)])
@pytest.mark.parametrize("budget", [0, 0.003, 0.29, 1, None])
@pytest.mark.parametrize("gain", [-np.inf, 0, 1e-30, 0.3, 1e30])
def test_where_all_gains_are_equal_as_many_voxels_are_deferred_as_the_limits_allow(gain, budget, capacities):
    gains = np.full((3, 5, 4, 5), gain, np.float32)
    total, each = in_voxels(budget, capacities, 100)
    route = route_within_limits(gains, budget=budget, capacities=capacities)
    assert route.dtype == np.uint8
    assert route.shape == (5, 4, 5)
    assert_within(route, total, each)
    assert np.count_nonzero(route) == (min(total, sum(each)) if gain > 0 else 0)


def test_of_equal_gains_the_first_voxels_are_taken_and_the_experts_of_lower_index():
    same = np.ones((3, 2, 5))
    route = route_within_limits(same, budget=0.6, capacities=[0.2, 0.3, 0.4])
    assert route.ravel().tolist() == [1, 1, 2, 2, 2, 3, 0, 0, 0, 0]
    assert route_within_limits(same, budget=0.2, capacities=[None, 0.5, 0.5]).ravel().tolist() == [1, 1] + [0] * 8
    apart = np.repeat([[1, -1], [-1, 1]], 5000, axis=1)
    route = route_within_limits(apart, budget=0.2, capacities=[0.05, None])
    assert np.flatnonzero(route == 1).tolist() == list(range(500))
    assert np.flatnonzero(route == 2).tolist() == list(range(5000, 6500))


@pytest.mark.parametrize("capacities", [None, (None, None, None), (1, None, 1)])
@pytest.mark.parametrize("budget", [0, 0.01, 0.123, 0.5, 1])
def test_with_a_budget_alone_the_highest_gains_are_deferred(budget, capacities):
    generator = np.random.default_rng(7)
    gains = np.round(generator.normal(size=(3, 11, 13)), 1).astype(np.float32)  # with ties
    best = gains.max(axis=0)
    taken = np.argsort(-best, axis=None, kind="stable")[: int(budget * best.size)]
    taken = taken[best.ravel()[taken] > 0]
    expected = np.zeros(best.size)
    expected[taken] = 1 + gains.argmax(axis=0).ravel()[taken]
    route = route_within_limits(gains, budget=budget, capacities=capacities)
    assert np.array_equal(route, expected.reshape(best.shape))


def test_without_limits_whoever_gains_the_most_is_asked_everywhere():
    gains = np.random.default_rng(8).normal(size=(3, 50))
    expected = np.where(gains.max(axis=0) > 0, 1 + gains.argmax(axis=0), 0)
    assert np.array_equal(route_within_limits(gains, budget=None, capacities=None), expected)


def test_an_expert_who_cannot_be_asked_somewhere_is_not_asked_there():
    gains = np.array([[1, 2, 3, 4], [-np.inf, 1, -np.inf, 1]])
    assert route_within_limits(gains, budget=None, capacities=[0.25, None]).tolist() == [0, 2, 0, 1]
    assert route_within_limits(gains, budget=None, capacities=[0, 0.5]).tolist() == [0, 2, 0, 2]


def test_small_gains_are_deferred_as_well_where_there_is_room():
    gains = np.array([[1, 0.9, -1], [0.5, 0.5, 1e-30]])
    assert route_within_limits(gains, budget=None, capacities=[0.34, 0.67]).tolist() == [1, 2, 2]


def test_the_best_expert_is_left_to_those_voxels_where_nobody_else_helps():
    gains = np.array([[5, 4], [4.5, 1]])
    assert route_within_limits(gains, budget=None, capacities=[0.5, 0.5]).tolist() == [2, 1]


def test_experts_in_another_order_get_the_same_voxels_and_every_time():
    generator = np.random.default_rng(11)
    gains = generator.normal(size=(3, 500))
    capacities, order = [0.05, 0.1, None], [2, 0, 1]
    route = route_within_limits(gains, budget=0.3, capacities=capacities)
    other = route_within_limits(gains[order], budget=0.3, capacities=[capacities[index] for index in order])
    assert np.array_equal(route, np.array([0, 3, 1, 2])[other])
    assert np.array_equal(route, route_within_limits(gains, budget=0.3, capacities=capacities))


@pytest.mark.parametrize("kind", KINDS)
def test_weak_duality_shows_that_nothing_better_exists_among_many_voxels(kind):
    generator = np.random.default_rng(KINDS.index(kind))
    gains = random_gains(kind, (3, 100_000), generator)
    limits = {"budget": 0.4, "capacities": [0.1, 0.15, 0.2]}
    route = route_within_limits(gains, **limits)
    assert_within(route, 40_000, [10_000, 15_000, 20_000])
    bound = upper_bound(
        gains, thresholds_within_limits(gains, num_voxels=100_000, **limits), 40_000, [10_000, 15_000, 20_000]
    )
    assert gained(gains, route).sum() == pytest.approx(bound, rel=1e-9)


def test_a_whole_volume_is_routed_optimally():
    generator = np.random.default_rng(5)
    wrong = generator.beta(0.05, 3, (100, 100, 100)).astype(np.float32)
    gains = wrong * generator.uniform(0.5, 1, (3, 100, 100, 100)).astype(np.float32) - np.float32(0.01)
    limits = {"budget": 0.05, "capacities": [0.01, 0.02, 0.03]}
    route = route_within_limits(gains, **limits)
    assert_within(route, 50_000, [10_000, 20_000, 30_000])
    assert np.count_nonzero(route) == 50_000
    flat = gains.reshape(3, -1)
    matters = flat[:, (flat > 0).any(axis=0)]
    thresholds = thresholds_within_limits(matters, num_voxels=route.size, **limits)
    bound = upper_bound(matters, thresholds, 50_000, [10_000, 20_000, 30_000])
    assert gained(flat, route).sum() == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize("experts", [1, 2, 3, 4])
def test_thresholds_repeat_the_routes_and_solve_the_dual(experts):
    generator = np.random.default_rng(experts)
    for trial in range(60):
        gains = random_gains(KINDS[trial % 3], (experts, int(generator.integers(1, 60))), generator).astype(np.float64)
        gains += 1e-6 * generator.random(gains.shape)  # no ties
        budget, capacities = random_limits(experts, generator)
        total, each = in_voxels(budget, capacities, gains.shape[1])
        thresholds = thresholds_within_limits(gains, num_voxels=gains.shape[1], budget=budget, capacities=capacities)
        route = route_within_limits(gains, budget=budget, capacities=capacities)
        assert thresholds.dtype == np.float64
        assert (thresholds >= 0).all()
        assert np.array_equal(route_by_thresholds(gains, thresholds), route)
        assert upper_bound(gains, thresholds, total, each) == pytest.approx(gained(gains, route).sum(), rel=1e-9)


@pytest.mark.parametrize("experts", [1, 2, 3, 4])
def test_only_limits_that_are_used_up_have_a_price(experts):
    generator = np.random.default_rng(20 + experts)
    priced = 0
    for trial in range(60):
        gains = random_gains(KINDS[trial % 4], (experts, int(generator.integers(5, 60))), generator)
        budget, capacities = random_limits(experts, generator)
        total, each = np.array(in_voxels(budget, capacities, gains.shape[1]), dtype=object)
        thresholds = thresholds_within_limits(gains, num_voxels=gains.shape[1], budget=budget, capacities=capacities)
        counts = np.bincount(route_within_limits(gains, budget=budget, capacities=capacities), minlength=experts + 1)
        spare = counts[1:] < np.minimum(each, total)
        if counts[1:].sum() < total:
            assert (thresholds[spare] == 0).all()
        elif spare.any():
            assert (thresholds[spare] == thresholds.min()).all()
            priced += thresholds.min() > 0
        no_room = np.minimum(each, total) == 0
        assert np.array_equal(np.isinf(thresholds), no_room)
    assert priced > 0 or experts == 1


def test_a_limit_that_is_just_reached_has_no_price():
    gains = np.array([[3, 2, 1, -1, 0.5, -0.01], [2.99, -1, -1, 1, 2, -0.01]])
    expected = [1, 1, 1, 2, 2, 0]
    for limits in (
        {"budget": 5 / 6, "capacities": None},
        {"budget": None, "capacities": [0.5, 0.34]},
        {"budget": 5 / 6, "capacities": [0.5, 0.34]},
    ):
        assert route_within_limits(gains, **limits).tolist() == expected
        assert thresholds_within_limits(gains, num_voxels=6, **limits).tolist() == [0, 0]


def test_thresholds_are_what_lies_between_the_gains_deferred_and_kept():
    gains = np.array([[0.9, 0.8, 0.2, 0.1, 0.0], [0.0, 0.1, 0.75, 0.62, 0.5]])
    budget_alone = thresholds_within_limits(gains, num_voxels=10, budget=0.3, capacities=None)
    assert budget_alone[0] == budget_alone[1]
    assert 0.62 < budget_alone[0] < 0.75
    first, second = thresholds_within_limits(gains, num_voxels=10, budget=None, capacities=[None, 0.1])
    assert first == 0
    assert 0.62 - 0.1 < second < 0.75 - 0.2  # the first expert helps there as well
    first, second = thresholds_within_limits(gains, num_voxels=10, budget=0.3, capacities=[0.1, None])
    assert 0.5 < second < 0.62
    assert 0.8 < first < 0.9


@pytest.mark.parametrize(
    ("budget", "capacities", "rates"),
    [
        (0.05, None, None),
        (0.05, [0.01, None, 0.015], (0.01, None, 0.015)),
        (None, [0.03, 0.04, 0.05], (0.03, 0.04, 0.05)),
    ],
)
def test_thresholds_meet_the_limits_on_other_voxels_of_the_same_kind(budget, capacities, rates):
    generator = np.random.default_rng(9)
    number = 200_000
    fitted, other = (generator.beta(0.1, 2, number) * generator.uniform(0.4, 1, (3, number)) - 0.02 for _ in range(2))
    matters = fitted[:, (fitted > 0).any(axis=0)]
    thresholds = thresholds_within_limits(matters, num_voxels=number, budget=budget, capacities=capacities)
    on_fitted, on_other = (
        np.bincount(route_by_thresholds(gains, thresholds), minlength=4)[1:] / number for gains in (fitted, other)
    )
    if budget is not None:
        assert budget - 1 / number <= on_fitted.sum() <= budget
        assert on_other.sum() == pytest.approx(budget, abs=0.003)
    for expert, rate in enumerate(rates or ()):
        if rate is not None:
            assert on_fitted[expert] == pytest.approx(rate, abs=1 / number)
            assert on_other[expert] == pytest.approx(rate, abs=0.003)


def test_experts_without_capacity_share_the_price_of_the_budget_whoever_is_asked():
    gains = np.array([[5, 4, 3, -1], [0, 0, 0, 1]])
    first, second = thresholds_within_limits(gains, num_voxels=4, budget=0.5, capacities=None)
    assert first == second
    assert 3 < first < 4


def test_gains_that_are_rounded_make_no_price():
    generator = np.random.default_rng(2)
    common = generator.uniform(0.5, 1, 200)
    gains = np.stack((common, common + 1e-15 * generator.integers(-1, 2, 200), common + 0.1))
    gains = np.append(gains, [[-0.01]] * 3, axis=1)
    thresholds = thresholds_within_limits(gains, num_voxels=300, budget=0.9, capacities=[None, 0.5, 0.1])
    assert thresholds == pytest.approx([0, 0, 0.1], abs=1e-12)


def test_limits_of_very_many_voxels_are_limits():
    gains = np.array([[0.9, 0.5, 0.7], [0.2, 0.3, 0.1]])
    few = thresholds_within_limits(gains, num_voxels=4, budget=0.75, capacities=[0.25, None])
    many = thresholds_within_limits(gains, num_voxels=10**9, budget=None, capacities=[1e-9, None])
    assert few.tolist() == many.tolist()
    assert route_by_thresholds(gains, few).tolist() == [1, 2, 2]


def test_voxels_that_do_not_matter_need_not_be_given():
    gains = np.random.default_rng(4).normal(-1, 1, (2, 3000))
    limits = {"num_voxels": 3000, "budget": 0.1, "capacities": [0.02, None]}
    matters = gains[:, (gains > 0).any(axis=0)]
    assert matters.shape[1] < 1500
    assert thresholds_within_limits(matters, **limits).tolist() == thresholds_within_limits(gains, **limits).tolist()


def test_ties_with_the_model_stay_within_the_limits():
    thresholds = thresholds_within_limits(np.full((1, 50), 0.3), num_voxels=100, budget=0.1, capacities=None)
    assert thresholds.tolist() == [0.3]
    assert not route_by_thresholds(np.full((1, 50), 0.3), thresholds).any()


def test_no_limits_are_no_thresholds_and_no_room_is_one_that_nothing_exceeds():
    gains = np.array([[0.5, 0.2], [0.1, 0.4]], np.float32)
    assert thresholds_within_limits(gains, num_voxels=2, budget=None, capacities=None).tolist() == [0, 0]
    assert thresholds_within_limits(gains, num_voxels=9, budget=0.1, capacities=None).tolist() == [np.inf] * 2
    assert thresholds_within_limits(gains, num_voxels=9, budget=None, capacities=[None, 0]).tolist() == [0, np.inf]
    assert not route_by_thresholds(gains, np.array([np.inf, np.inf])).any()


def test_thresholds_are_exceeded_not_reached_and_compared_in_double_precision():
    gains = np.array([[0.5, 0.6, 0.9, -np.inf], [0.25, 0.35, 0.65, -np.inf]])
    route = route_by_thresholds(gains, np.array([0.5, 0.25]))
    assert route.dtype == np.uint8
    assert route.tolist() == [0, 1, 1, 0]
    just_above = np.array([[0.5]], np.float32)
    assert route_by_thresholds(just_above, np.array([0.5 - 1e-12])).tolist() == [1]
    assert route_by_thresholds(np.ones((2, 3, 4)), np.array([0.5, 0.4])).tolist() == [[2] * 4] * 3


def test_nothing_is_routed_where_there_are_no_voxels():
    for shape in ((0,), (4, 0, 2)):
        nothing = np.zeros((2, *shape), np.float32)
        assert route_within_limits(nothing, budget=0.1, capacities=[0.1, None]).shape == shape
        assert route_by_thresholds(nothing, np.zeros(2)).shape == shape
    nothing = np.zeros((2, 0))
    assert thresholds_within_limits(nothing, num_voxels=100, budget=0.1, capacities=[0.1, None]).tolist() == [0, 0]
    assert thresholds_within_limits(nothing, num_voxels=0, budget=None, capacities=None).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("gains", "budget", "capacities", "message"),
    [
        (np.zeros((0, 3)), None, None, r"1 to 12 experts, got \(0, 3\)"),
        (np.array(1.0), None, None, r"1 to 12 experts, got \(\)"),
        (np.array([[0.5, np.nan]]), None, None, "finite or -inf, got nan"),
        (np.array([[0.5, np.inf]]), None, None, "finite or -inf, got inf"),
        (np.ones((1, 3)), 1.5, None, r"\[0, 1\], got 1.5"),
        (np.ones((1, 3)), float("nan"), None, r"\[0, 1\], got nan"),
        (np.ones((1, 3)), None, [-0.5], r"capacities\[0\] .* got -0.5"),
        (np.ones((1, 3)), None, [0.5, 0.5], r"each of 1 experts, got \(0.5, 0.5\)"),
    ],
)
def test_what_is_no_gain_or_limit_is_refused_by_name(gains, budget, capacities, message):
    with pytest.raises(ValueError, match=message):
        route_within_limits(gains, budget=budget, capacities=capacities)
    with pytest.raises(ValueError, match=message):
        thresholds_within_limits(gains, num_voxels=3, budget=budget, capacities=capacities)


def test_thresholds_are_fitted_to_pooled_voxels_that_are_not_more_than_there_are():
    with pytest.raises(ValueError, match=r"m <= 2 voxels, got \(1, 3\)"):
        thresholds_within_limits(np.ones((1, 3)), num_voxels=2, budget=None, capacities=None)
    with pytest.raises(ValueError, match=r"shape \(J, m\) .* got \(1, 3, 3\)"):
        thresholds_within_limits(np.ones((1, 3, 3)), num_voxels=9, budget=None, capacities=None)


@pytest.mark.parametrize("thresholds", [[0.1], [0.1, -0.1], [0.1, float("nan")], [[0.1, 0.1]]])
def test_there_is_one_threshold_an_expert_and_none_is_negative(thresholds):
    with pytest.raises(ValueError, match="thresholds must be 2 numbers >= 0, got .*0.1"):
        route_by_thresholds(np.ones((2, 3)), np.array(thresholds))


def test_capacities_are_shares_and_zero_for_who_cannot_be_asked():
    assert check_capacities([0.1, None, 1], 3) == (0.1, None, 1)
    assert check_capacities(None, 2) == (None, None)
    assert check_capacities([0.1, None, 0.2], 3, available=[True, False, False]) == (0.1, 0, 0)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"plans: capacities\[1\] must be a share .* got {wrong}"):
            check_capacities([0.5, wrong], 2, named="plans: capacities")
    with pytest.raises(ValueError, match=r"capacities must have one entry for each of 3 experts, got \(0.5,\)$"):
        check_capacities([0.5], 3)
    with pytest.raises(ValueError, match=r"available must have one entry for each of 2 experts, got \(True,\)$"):
        check_capacities([0.5, None], 2, available=[True])
