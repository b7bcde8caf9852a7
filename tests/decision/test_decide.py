"""What becomes of a case: the rule, limits, prices, calibration and regions together."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from connected import connected_pieces
from scipy import ndimage

from nnunetv2_deferral.decision.area import VoxelWeight
from nnunetv2_deferral.decision.assignment import route_by_thresholds, route_within_limits
from nnunetv2_deferral.decision.calibrators import IDENTITY, Isotonic, Temperature
from nnunetv2_deferral.decision.decide import decide
from nnunetv2_deferral.decision.gains import gain_text, gain_unit
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.model_calibration import FittedEvidence, FittedThresholds, ModelCalibration
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.routing import OneVsAllRule, SoftmaxRule

SHAPES = [(18, 21), (1, 20, 17), (6, 14, 13)]
NAMES = ("ann", "bob", "cat", "dan")
RULES = {
    "softmax": lambda experts: SoftmaxRule((True,) * experts),
    "one_vs_all": lambda experts: OneVsAllRule((0.0,) * experts, (True,) * experts),
}
FIGURES_WITHOUT_LIMITS = {"expected_gain"}


def random_probabilities(generator, rule, experts, shape, *, unknown=True):
    """float32 (J + 1, *S), smooth enough for regions, with a border of NaN."""
    logits = generator.normal(0, 6, (experts + 1, *shape))
    logits = np.stack([ndimage.gaussian_filter(each, 1.2) for each in logits]) * 2
    if isinstance(rule, SoftmaxRule):
        probabilities = np.exp(logits) / np.exp(logits).sum(0)
    else:
        probabilities = 1 / (1 + np.exp(-logits))
    probabilities = probabilities.astype(np.float32)
    if unknown:
        probabilities[..., :3] = np.nan
    return probabilities


def random_worth(generator, shape):
    """A scalar or a map, as one and as several classes have it."""
    if generator.random() < 0.5:
        return np.full((1,) * len(shape), generator.uniform(1e-4, 1e-1), dtype=np.float32)
    return generator.uniform(1e-4, 1e-1, shape).astype(np.float32)


def random_limits(generator, experts, *, min_region_mm=None):
    """A budget, capacities or both, which go together."""
    budget = None if generator.random() < 0.25 else float(generator.choice([0.0, 1.0, *generator.uniform(0, 0.6, 3)]))
    capacities = None
    if budget is None or generator.random() < 0.6:
        each = [generator.choice([None, 0.0, *generator.uniform(0, 0.4, 3)]) for _ in range(experts)]
        capacities = tuple(None if share is None else float(share) for share in each)
        if budget is not None:
            budget = min(budget, sum(1.0 if share is None else share for share in capacities))
    return Limits(budget=budget, capacities=capacities, min_region_mm=min_region_mm)


def random_cases(name, *, number, min_region_mm=None, seed=0):
    """Cases of all ranks: (keyword arguments of decide, experts)."""
    for place in range(number):
        generator = np.random.default_rng([seed, place, name == "softmax"])
        shape, experts = SHAPES[place % len(SHAPES)], 1 + place % 4
        rule = RULES[name](experts)
        yield (
            {
                "probabilities": random_probabilities(generator, rule, experts, shape),
                "voxel_weight": random_worth(generator, shape),
                "rule": rule,
                "limits": random_limits(generator, experts, min_region_mm=min_region_mm),
                "spacing_mm": tuple(generator.uniform(0.6, 1.6, len(shape))),
            },
            experts,
        )


def fitted(experts, *thresholds, heads=None, budget=0.1, capacities=None):
    """A calibration with thresholds for one budget over a dataset, by voxel and for regions of any size used here."""
    return ModelCalibration(
        experts=NAMES[:experts],
        heads=heads or (IDENTITY,) * (experts + 1),
        thresholds=tuple(
            FittedThresholds(budget, capacities, thresholds, 0.1, size)
            for size in (None, 0, 2.5, 3, 4, 5, 6)
            if thresholds
        ),
    )


def gained(gains, route):
    """The gain of a route, voxel by voxel."""
    return math.fsum(float(gains[(route[where] - 1, *where)]) for where in np.ndindex(route.shape) if route[where])


def decided(probabilities, *, voxel_weight=1.0, rule=None, limits=None, spacing_mm=None, calibration=None):
    probabilities = np.asarray(probabilities, dtype=np.float32)
    return decide(
        probabilities,
        np.asarray(voxel_weight, dtype=np.float32),
        rule=rule or RULES["one_vs_all"](len(probabilities) - 1),
        limits=limits or Limits(),
        spacing_mm=spacing_mm or (1.0,) * (probabilities.ndim - 1),
        calibration=calibration,
    )


def constant(*levels, shape=(12, 15)):
    """Probabilities that are the same everywhere."""
    return np.stack([np.full(shape, level, dtype=np.float32) for level in levels])


class TestWithoutLimits:
    @pytest.mark.parametrize("name", RULES)
    def test_the_rule_decides(self, name):
        asked = 0
        for case, _ in random_cases(name, number=12):
            made, statistics, *_ = decide(**case | {"limits": Limits()})
            known = ~np.isnan(case["probabilities"][0])
            rule, here = case["rule"], case["probabilities"][:, known]
            assert np.array_equal(made.route[known], rule.decision(here, axis=0))
            assert np.array_equal(made.expert[known], rule.expert(here, axis=0))
            assert made.probability[known] == pytest.approx(rule.score(here, axis=0), abs=1e-6)
            assert set(statistics) == FIGURES_WITHOUT_LIMITS
            asked += np.count_nonzero(made.route)
        assert asked > 1000

    def test_the_costs_count(self):
        probabilities = constant(0.5, 0.7, 0.6)
        for costs, asked in [((0.0, 0.0), 1), ((0.15, 0.0), 2), ((0.15, 0.04), 2), ((0.2, 0.1), 0), ((0.25, 0.15), 0)]:
            rule = OneVsAllRule(costs, (True, True))
            assert np.unique(decided(probabilities, rule=rule).maps.route).tolist() == [asked], costs

    def test_maps_have_their_types_and_ranges(self):
        for name, limits in product(RULES, (Limits(), Limits(budget=0.2), Limits(budget=0.2, min_region_mm=2))):
            for case, experts in random_cases(name, number=6):
                route, probability, expert, gain = decide(**case | {"limits": limits}).maps
                shape = case["probabilities"].shape[1:]
                assert all(each.shape == shape for each in (route, probability, expert, gain))
                assert (route.dtype, expert.dtype) == (np.uint8, np.uint8)
                assert (probability.dtype, gain.dtype) == (np.float32, np.float32)
                assert route.max() <= experts
                assert 1 <= expert.min() <= expert.max() <= experts
                assert 0 <= probability.min() <= probability.max() <= 1
                assert 0 <= gain.min() <= gain.max() < np.inf

    def test_what_is_given_stays_as_it_is(self):
        for case, experts in random_cases("one_vs_all", number=4):
            before = case["probabilities"].copy(), case["voxel_weight"].copy()
            decide(**case, calibration=fitted(experts, heads=(Temperature(2.0),) * (experts + 1)))
            assert np.array_equal(case["probabilities"], before[0], equal_nan=True)
            assert np.array_equal(case["voxel_weight"], before[1])


class TestOverwritten:
    """Where score and gains take the place of the probabilities, in chunks."""

    @pytest.fixture(autouse=True)
    def small_chunks(self, monkeypatch):
        monkeypatch.setattr("nnunetv2_deferral.arrays.CHUNK_VALUES", 101)

    @staticmethod
    def assert_same(case, **more):
        expected = decide(**case, **more)
        overwritten = case["probabilities"].copy()
        found = decide(**case | {"probabilities": overwritten}, **more, overwrite=True)
        assert found.statistics == expected.statistics
        for name, one, other in zip(found.maps._fields, found.maps, expected.maps, strict=True):
            assert np.array_equal(one, other), name
        assert np.array_equal(found.gains, expected.gains)
        assert np.shares_memory(found.maps.probability, overwritten)

    @pytest.mark.parametrize("name", RULES)
    def test_the_decision_is_the_same(self, name):
        for case, experts in random_cases(name, number=12):
            self.assert_same(case)
            self.assert_same(case, calibration=fitted(experts, heads=(Temperature(2.0),) * (experts + 1)))

    def test_the_decision_is_the_same_with_answers_as_evidence(self):
        for case, experts in random_cases("one_vs_all", number=6):
            evidence = FittedEvidence(
                model=EvidenceModel.simple(dict.fromkeys(NAMES[:experts], 0.9)), answered_by=NAMES[:experts]
            )
            foreground = np.random.default_rng(experts).random(case["probabilities"].shape[1:], dtype=np.float32)
            calibration = replace(fitted(experts), evidence=evidence)
            self.assert_same(case, calibration=calibration, softmax=np.stack((1 - foreground, foreground)))


class TestWhatWasNotPredicted:
    LIMITS = (
        Limits(),
        Limits(budget=1.0),
        Limits(budget=0.3, capacities=(0.2, None)),
        Limits(capacities=(1.0, 1.0)),
        Limits(budget=0.1, over="dataset"),
        Limits(min_region_mm=0),
        Limits(min_region_mm=4),
        Limits(budget=0.4, min_region_mm=4),
        Limits(budget=0.1, over="dataset", min_region_mm=4),
    )
    CALIBRATIONS = (
        None,
        fitted(2, 0.0, 0.0),
        # Whatever is said: the model is hardly ever right, ann nearly always.
        fitted(2, 0.0, 0.0, heads=(Isotonic((16.0,), (0.2,)), Isotonic((-16.5,), (0.9,)), IDENTITY)),
    )

    @pytest.mark.parametrize("calibration", CALIBRATIONS, ids=["plain", "thresholds", "maps"])
    @pytest.mark.parametrize("limits", LIMITS, ids=str)
    def test_stays_the_models(self, limits, calibration):
        for shape in SHAPES:
            probabilities = constant(0.1, 0.9, 0.8, shape=shape)
            unknown = np.zeros(shape, dtype=bool)
            unknown[..., :4] = True
            unknown[..., 9, 9] = True  # a hole that a region would fill
            probabilities[:, unknown] = np.nan
            made = decided(probabilities, limits=limits, calibration=calibration).maps
            assert not made.route[unknown].any()
            assert not made.probability[unknown].any()
            assert not made.gain[unknown].any()
            assert (made.expert[unknown] == 1).all()
            assert made.route[~unknown].any()

    @pytest.mark.parametrize("limits", LIMITS, ids=str)
    def test_a_case_without_any_prediction_is_the_models(self, limits):
        made, statistics, *_ = decided(constant(*[np.nan] * 3), limits=limits, calibration=fitted(2, 0.0, 0.0))
        assert not any(each.any() for each in (made.route, made.probability, made.gain))
        assert statistics["expected_gain"] == 0

    def test_names_the_first_expert_who_can_be_asked(self):
        probabilities = constant(0.1, 0.9, 0.8)
        probabilities[:, 3] = np.nan
        for rule in (SoftmaxRule((False, True)), OneVsAllRule((0.0, 0.0), (False, True))):
            made = decided(probabilities, rule=rule, limits=Limits(budget=0.5)).maps
            assert np.unique(made.expert).tolist() == [2]
            assert np.unique(made.route).tolist() == [0, 2]


def assert_within(route, limits):
    counts = np.bincount(route.ravel(), minlength=5)[1:]
    assert counts.sum() <= (1.0 if limits.budget is None else limits.budget) * route.size + 1e-9
    for count, share in zip(counts, limits.capacities or (), strict=False):
        assert count <= (1.0 if share is None else share) * route.size + 1e-9


class TestLimitsOfEachCase:
    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("min_region_mm", [None, 0, 4.0])
    def test_are_never_exceeded(self, name, min_region_mm):
        deferred = binding = 0
        for case, experts in random_cases(name, number=60, min_region_mm=min_region_mm):
            limits = case["limits"]
            route = decide(**case).maps.route
            assert_within(route, limits)
            assert route.max() <= experts
            deferred += route.any()
            binding += limits.budget is not None and np.count_nonzero(route) == math.floor(limits.budget * route.size)
        assert deferred > 25
        assert binding > (0 if min_region_mm else 10)

    @pytest.mark.parametrize("name", RULES)
    def test_are_used_up_where_enough_is_to_be_gained(self, name):
        for case, _ in random_cases(name, number=9):
            for budget in (0.0, 0.05, 0.2):
                made = decide(**case | {"limits": Limits(budget=budget)}).maps
                assert np.count_nonzero(made.gain) > 0.2 * made.route.size
                assert np.count_nonzero(made.route) == math.floor(budget * made.route.size)
                taken = made.route > 0
                assert np.array_equal(made.route[taken], made.expert[taken])
                assert made.gain[taken].min(initial=np.inf) >= made.gain[~taken].max()

    @pytest.mark.parametrize("name", RULES)
    def test_calibrated_gains_are_what_is_ranked(self, name):
        for case, experts in random_cases(name, number=8, seed=1):
            heads = tuple(Temperature(0.5 + head) for head in range(experts + 1))
            limits = case["limits"]
            made = decide(**case, calibration=fitted(experts, heads=heads))
            known = ~np.isnan(case["probabilities"][0])
            calibrated = np.stack(
                [head(channel[known]) for head, channel in zip(heads, case["probabilities"], strict=True)]
            )
            voxel_weight = np.broadcast_to(case["voxel_weight"], known.shape)[known]
            gains = np.full((experts, *known.shape), -np.inf, dtype=np.float32)
            gains[:, known] = case["rule"].gains(calibrated, axis=0) * voxel_weight
            expected = route_within_limits(gains, budget=limits.budget, capacities=limits.capacities)
            assert np.array_equal(made.maps.route, expected)
            assert np.array_equal(made.maps.gain, np.maximum(gains.max(0), 0))
            assert made.maps.probability[known] == pytest.approx(case["rule"].score(calibrated, axis=0), abs=1e-6)

    @pytest.mark.parametrize("limits", [Limits(), Limits(budget=0.3), Limits(budget=0.3, min_region_mm=3)], ids=str)
    def test_an_expert_who_is_not_available_is_never_asked(self, limits):
        available = (True, False, True)
        for rule in (SoftmaxRule(available), OneVsAllRule((0.1, 0.0, 0.2), available)):
            for place, shape in enumerate(SHAPES):
                generator = np.random.default_rng(place)
                probabilities = random_probabilities(generator, rule, 3, shape)
                if isinstance(rule, SoftmaxRule):  # the network closes that route
                    probabilities[2] = 0
                made = decided(
                    probabilities, voxel_weight=random_worth(generator, shape), rule=rule, limits=limits
                ).maps
                assert {0} < set(np.unique(made.route)) <= {0, 1, 3}
                assert set(np.unique(made.expert)) == {1, 3}

    @pytest.mark.parametrize("limits", [Limits(), Limits(budget=1.0), Limits(min_region_mm=3)], ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_everything_is_deferred_where_asking_helps_everywhere(self, limits, shape):
        made, statistics, *_ = decided(constant(0.2, 0.7, 0.9, shape=shape), voxel_weight=0.01, limits=limits)
        assert np.unique(made.route).tolist() == [2]
        assert statistics["expected_gain"] == pytest.approx(0.7 * 0.01 * math.prod(shape), rel=1e-5)

    @pytest.mark.parametrize(
        "limits", [Limits(), Limits(budget=1.0), Limits(budget=0.0), Limits(min_region_mm=3)], ids=str
    )
    def test_nothing_is_deferred_where_asking_harms_everywhere(self, limits):
        made, statistics, *_ = decided(constant(0.9, 0.7, 0.89), limits=limits)
        assert not made.route.any()
        assert not made.gain.any()
        assert statistics["expected_gain"] == 0

    def test_a_budget_of_nothing_defers_nothing(self):
        for limits in (Limits(budget=0.0), Limits(capacities=(0.0, 0.0)), Limits(budget=0.0, min_region_mm=0)):
            made = decided(constant(0.2, 0.7, 0.9), limits=limits).maps
            assert not made.route.any()
            assert made.gain.all()  # what would be gained is said all the same

    def test_figures_say_which_limits_were_kept(self):
        probabilities = constant(0.2, 0.7, 0.9)
        for limits in (Limits(budget=0.1), Limits(capacities=(0.1, None)), Limits(budget=0.1, min_region_mm=2)):
            statistics = decided(probabilities, limits=limits).statistics
            assert statistics["limits"] == limits.to_dict()
            assert ("lost_by_regions" in statistics) == (limits.min_region_mm is not None)


class TestThresholdsOverADataset:
    def exact_gains(self, case, calibration):
        """What decide ranks, as far as numpy does the same twice."""
        known = np.where(np.isnan(case["probabilities"][:1]), np.float32(0.5), case["probabilities"])
        gains = (case["rule"].gains(calibration.apply(known), axis=0) * case["voxel_weight"]).astype(np.float32)
        return np.where(np.isnan(case["probabilities"][0]), -np.inf, gains)

    @pytest.mark.parametrize("name", RULES)
    def test_are_applied(self, name):
        asked = experts_seen = 0
        for case, experts in random_cases(name, number=24):
            generator = np.random.default_rng(experts)
            heads = tuple(Temperature(0.7 + 0.2 * head) for head in range(experts + 1))
            free = self.exact_gains(case, fitted(experts, heads=heads))
            thresholds = np.float32(generator.uniform(0.1, 0.8, experts) * free.max())
            if experts > 2:
                thresholds[0] = np.inf
            calibration = fitted(experts, *thresholds.tolist(), heads=heads)
            made = decide(**case | {"limits": Limits(budget=0.1, over="dataset")}, calibration=calibration)
            expected = route_by_thresholds(free, thresholds)
            assert np.array_equal(made.maps.route, expected)
            assert made.statistics["expected_gain"] == pytest.approx(gained(free, expected), rel=1e-4)
            asked += np.count_nonzero(expected)
            experts_seen = max(experts_seen, np.unique(expected).size - 1)
        assert asked > 500
        assert experts_seen >= 2

    def test_are_those_of_the_limits_that_are_asked_for(self):
        several = ModelCalibration(
            experts=NAMES[:2],
            heads=(IDENTITY,) * 3,
            thresholds=(
                FittedThresholds(0.1, None, (0.8, 0.8), 0.1),
                FittedThresholds(0.2, None, (0.3, 0.65), 0.2),
                FittedThresholds(0.1, (0.1, None), (math.inf, 0.1), 0.1),
            ),
        )
        probabilities = constant(0.2, 0.6, 0.9)
        for limits, asked in (
            (Limits(budget=0.1, over="dataset"), 0),
            (Limits(budget=0.2, over="dataset"), 1),
            (Limits(budget=0.1, capacities=(0.1, None), over="dataset"), 2),
        ):
            route = decided(probabilities, limits=limits, calibration=several).maps.route
            assert np.unique(route).tolist() == [asked]

    def test_are_refused_where_they_were_not_fitted(self):
        with pytest.raises(ValueError, match="no thresholds were fitted for a budget of 0.3 over a dataset"):
            decided(constant(0.2, 0.9), limits=Limits(budget=0.3, over="dataset"), calibration=fitted(1, 0.1))

    @pytest.mark.parametrize("min_region_mm", [None, 3])
    def test_a_hard_case_gets_more_than_its_share(self, min_region_mm):
        limits = Limits(budget=0.1, capacities=(0.05, 0.05), over="dataset", min_region_mm=min_region_mm)
        calibration = fitted(2, 0.3, 0.3, capacities=(0.05, 0.05))
        hard = decided(constant(0.2, 0.6, 0.8), limits=limits, calibration=calibration).maps
        easy = decided(constant(0.7, 0.6, 0.8), limits=limits, calibration=calibration).maps
        assert (hard.route == 2).all()
        assert not easy.route.any()
        assert easy.gain.all()

    def test_are_prices_of_regions_too(self):
        probabilities = constant(0.2, 0.5, shape=(20, 30))
        probabilities[1, 4:14, 4:14] = 0.9
        probabilities[1, 5:7, 20:22] = 1.0  # worth it, but too small
        calibration = fitted(1, 0.5)
        limits = Limits(budget=0.1, over="dataset", min_region_mm=6)
        made, statistics, *_ = decided(probabilities, limits=limits, calibration=calibration)
        assert np.count_nonzero(made.route) == pytest.approx(100, abs=12)
        assert made.route[5:13, 5:13].all()
        assert not made.route[:, 18:].any()
        assert statistics["limits"]["over"] == "dataset"

    @pytest.mark.parametrize("name", RULES)
    def test_without_any_calibration_the_rule_decides(self, name):
        """As in the validation that thresholds are fitted on."""
        asked = 0
        for case, experts in random_cases(name, number=12):
            expected = decide(**case | {"limits": Limits()}).maps.route
            for limits in (Limits(budget=0.05, over="dataset"), Limits(capacities=(0.01,) * experts, over="dataset")):
                made = decide(**case | {"limits": limits}).maps
                assert np.array_equal(made.route, expected)
            asked += np.count_nonzero(expected)
        assert asked > 1000

    def test_without_any_calibration_the_rule_decides_with_its_costs(self):
        rule = OneVsAllRule((0.2, 0.3), (True, True))
        probabilities = constant(0.5, 0.6, 0.6)  # better, but not worth the cost
        assert not decided(probabilities, rule=rule).maps.route.any()
        assert not decided(probabilities, rule=rule, limits=Limits(budget=0.05, over="dataset")).maps.route.any()


class TestCosts:
    def test_count_for_regions_without_a_budget(self):
        probabilities = constant(0.5, 0.7)
        for cost, asked in ((0.0, [1]), (0.19, [1]), (0.21, [0])):
            rule = OneVsAllRule((cost,), (True,))
            for limits in (Limits(min_region_mm=3), Limits(min_region_mm=0), Limits(capacities=(None,))):
                made = decided(probabilities, voxel_weight=0.01, rule=rule, limits=limits).maps
                assert np.unique(made.route).tolist() == asked, (cost, limits)

    def test_are_in_voxels_and_so_weigh_with_what_a_voxel_is_worth(self):
        probabilities, rule = constant(0.5, 0.7, shape=(10, 10)), OneVsAllRule((0.1,), (True,))
        voxel_weight = np.full((10, 10), 0.001, dtype=np.float32)
        voxel_weight[:5] = 10
        made = decided(probabilities, voxel_weight=voxel_weight, rule=rule, limits=Limits(min_region_mm=0)).maps
        assert (made.route == 1).all()

    @pytest.mark.parametrize("min_region_mm", [None, 3.0])
    def test_that_all_have_in_common_do_not_count_within_a_budget(self, min_region_mm):
        generator = np.random.default_rng(0)
        probabilities = random_probabilities(generator, RULES["one_vs_all"](2), 2, (20, 25))
        limited = (
            Limits(budget=0.2, min_region_mm=min_region_mm),
            Limits(capacities=(0.1, 0.15), min_region_mm=min_region_mm),
        )
        for limits in limited:
            free, dear = (
                decided(probabilities, rule=OneVsAllRule(costs, (True, True)), limits=limits)
                for costs in ((0.0, 0.25), (0.5, 0.75))
            )
            assert free.maps.route.any()
            assert np.array_equal(free.maps.route, dear.maps.route)
            assert free.statistics["expected_gain"] == dear.statistics["expected_gain"]

    def test_beyond_the_cheapest_count_within_a_budget(self):
        probabilities = constant(0.5, 0.7, 0.8)
        for extra, asked in ((0.0, 2), (0.05, 2), (0.15, 1)):
            rule = OneVsAllRule((0.3, 0.3 + extra), (True, True))
            route = decided(probabilities, rule=rule, limits=Limits(budget=0.5)).maps.route
            assert np.unique(route[route > 0]).tolist() == [asked]
            assert np.count_nonzero(route) == route.size // 2

    def test_of_an_expert_who_cannot_be_asked_are_not_the_common_level(self):
        rule = OneVsAllRule((0.0, 0.3), (False, True))
        assert not decided(constant(0.5, 0.7, 0.7), rule=rule, limits=Limits(min_region_mm=0)).maps.route.any()
        assert decided(constant(0.5, 0.7, 0.7), rule=rule, limits=Limits(budget=1.0)).maps.route.all()


class TestExpectedGain:
    @pytest.mark.parametrize("name", RULES)
    def test_is_the_sum_over_what_is_deferred(self, name):
        total = 0.0
        for case, experts in random_cases(name, number=16):
            for limits in (Limits(), case["limits"]):
                made, statistics, *_ = decide(**case | {"limits": limits})
                known = ~np.isnan(case["probabilities"][0])
                gains = np.zeros((experts, *known.shape))
                voxel_weight = np.broadcast_to(case["voxel_weight"], known.shape)[known]
                gains[:, known] = case["rule"].gains(case["probabilities"][:, known], axis=0) * voxel_weight
                assert statistics["expected_gain"] == pytest.approx(gained(gains, made.route), rel=1e-4, abs=1e-9)
                if limits == Limits() or limits.capacities is None:  # all go to the expert whom the map names
                    assert statistics["expected_gain"] == pytest.approx(
                        made.gain[made.route > 0].sum(dtype=np.float64), rel=1e-6
                    )
                total += statistics["expected_gain"]
        assert total > 1

    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("min_region_mm", [0, 2.5, 6.0])
    def test_of_regions_is_never_above_that_by_voxel(self, name, min_region_mm):
        less = 0
        for case, _ in random_cases(name, number=30, min_region_mm=min_region_mm, seed=2):
            made, statistics, *_ = decide(**case)
            limits = case["limits"]
            voxels = decide(**case | {"limits": Limits(budget=limits.budget, capacities=limits.capacities)})
            lost = voxels.statistics["expected_gain"] - statistics["expected_gain"]
            assert statistics["lost_by_regions"] == pytest.approx(lost, abs=1e-6)
            assert statistics["expected_gain"] >= 0
            assert lost >= -1e-6 * voxels.statistics["expected_gain"]
            less += lost > 0
            for region in connected_pieces(made.route, spacing_mm=case["spacing_mm"]):
                assert region.diameter_mm >= min_region_mm * (1 - 1e-9)
        assert less > 10

    @pytest.mark.parametrize("priced_by", ["costs", "thresholds"])
    def test_of_regions_is_not_above_that_by_voxel_where_there_are_prices(self, priced_by):
        probabilities = constant(0.3, 0.6, shape=(14, 14))
        probabilities[1, 6:8, 6:8] = 0.35  # a hole: better than the model, but not by as much as is asked for
        if priced_by == "costs":
            how = {"rule": OneVsAllRule((0.1,), (True,)), "limits": Limits(min_region_mm=3)}
        else:
            limits = Limits(budget=0.1, over="dataset", min_region_mm=3)
            how = {"limits": limits, "calibration": fitted(1, 0.1)}
        statistics = decided(probabilities, **how).statistics
        assert statistics["lost_by_regions"] >= 0

    def test_grows_with_the_budget(self):
        for case, _ in random_cases("one_vs_all", number=6):
            found = [
                decide(**case | {"limits": Limits(budget=b)}).statistics["expected_gain"] for b in (0, 0.1, 0.3, 1)
            ]
            assert found[0] == 0
            assert found == sorted(found)
            assert found[1] < found[2]


class TestWorth:
    def two_objects(self):
        """A large object on the left, a small one on the right, in whose neighbourhood as much is doubtful."""
        probabilities = constant(0.3, 0.8, shape=(16, 24))
        probabilities[1, :, 12:] = 0.7  # the expert is somewhat worse there
        voxel_weight = np.full((16, 24), 1 / 400, dtype=np.float32)
        voxel_weight[:, 12:] = 1 / 40
        return probabilities, voxel_weight

    def test_of_a_map_decides_which_voxels_are_taken(self):
        probabilities, voxel_weight = self.two_objects()
        alike = decided(probabilities, voxel_weight=1 / 400, limits=Limits(budget=0.25)).maps.route
        by_area = decided(probabilities, voxel_weight=voxel_weight, limits=Limits(budget=0.25)).maps.route
        assert np.count_nonzero(alike) == np.count_nonzero(by_area) == 16 * 24 // 4
        assert alike[:, :12].any()
        assert not alike[:, 12:].any()
        assert by_area[:, 12:].any()
        assert not by_area[:, :12].any()

    def test_of_a_map_decides_which_regions_are_taken(self):
        probabilities, voxel_weight = self.two_objects()
        limits = Limits(budget=0.25, min_region_mm=3)
        alike, by_area = (
            decided(probabilities, voxel_weight=each, limits=limits).maps.route for each in (1 / 400, voxel_weight)
        )
        assert np.count_nonzero(alike[:, :12]) > 3 * np.count_nonzero(alike[:, 12:])
        assert np.count_nonzero(by_area[:, 12:]) > 3 * np.count_nonzero(by_area[:, :12])

    def test_changes_nothing_where_nothing_is_limited(self):
        probabilities, voxel_weight = self.two_objects()
        assert np.array_equal(
            decided(probabilities, voxel_weight=voxel_weight).maps.route, decided(probabilities).maps.route
        )

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_of_one_number_scales_the_gain_and_leaves_the_route(self, shape):
        rule = RULES["one_vs_all"](2)
        probabilities = random_probabilities(np.random.default_rng(3), rule, 2, shape)
        limits = Limits(budget=0.2)
        one = decided(probabilities, rule=rule, limits=limits)
        scalar, broadcast, whole = (
            decided(probabilities, rule=rule, limits=limits, voxel_weight=voxel_weight)
            for voxel_weight in (0.25, np.full((1,) * len(shape), 0.25), np.full(shape, 0.25))
        )
        assert one.maps.route.any()
        for each in (scalar, broadcast, whole):
            assert np.array_equal(each.maps.route, one.maps.route)
            assert np.array_equal(each.maps.gain, one.maps.gain / 4)
            assert each.statistics["expected_gain"] == pytest.approx(one.statistics["expected_gain"] / 4)


@pytest.mark.filterwarnings("error")
def test_where_a_voxel_is_worth_nothing_an_expert_who_cannot_be_asked_stays_out_of_the_question():
    probabilities = np.full((3, 4, 5), 0.5, dtype=np.float32)
    probabilities[1:] = 0.9
    voxel_weight = np.zeros((4, 5), dtype=np.float32)
    voxel_weight[0] = 0.01
    rule = OneVsAllRule((0.0, 0.0), (False, True))
    maps = decide(probabilities, voxel_weight, rule=rule, limits=Limits(budget=1.0), spacing_mm=(1, 1)).maps
    assert maps.gain[0] == pytest.approx(0.4 * 0.01)
    assert not maps.gain[1:].any()
    assert np.array_equal(np.unique(maps.route[0]), [2])


def test_without_further_arguments_the_rule_decides_and_gains_are_in_voxels():
    probabilities = np.array([[0.9, 0.2], [0.8, 0.9]], dtype=np.float32)
    rule = OneVsAllRule((0.0,), (True,))
    bare = decide(probabilities, rule=rule)
    full = decide(probabilities, np.float32(1), rule=rule, limits=Limits(), spacing_mm=(1.0,))
    assert bare.maps.route.tolist() == [0, 1]
    assert bare.maps.gain == pytest.approx([0, 0.7])
    assert bare.maps.gain.dtype == np.float32
    for one, other in zip(bare.maps, full.maps, strict=True):
        assert np.array_equal(one, other)


class TestTwoWeights:
    """What a right answer adds where the model is wrong, and what a wrong one takes where it is right."""

    WEIGHT = VoxelWeight(np.float32(0.03), np.float32(0.01))

    def test_count_with_the_probabilities_of_both(self):
        made, statistics, *_ = decide(
            constant(0.6, 0.5, 0.3, shape=(4, 5)), self.WEIGHT, rule=RULES["one_vs_all"](2), limits=Limits(budget=0.5)
        )
        gain = 0.4 * 0.5 * 0.03 - 0.6 * 0.5 * 0.01  # although the model is right more often
        assert made.gain == pytest.approx(np.full((4, 5), gain), rel=1e-5)
        assert np.count_nonzero(made.route == 1) == 10
        assert statistics["expected_gain"] == pytest.approx(10 * gain, rel=1e-5)

    def test_of_each_voxel_are_its_own(self):
        right, wrong = np.array([0.01, 0.02, 0.01, 0.02]), np.array([0.01, 0.01, 0.03, 0.03])
        weight = VoxelWeight(right.astype(np.float32), wrong.astype(np.float32))
        made = decide(constant(0.5, 0.8, shape=(4,)), weight, rule=RULES["one_vs_all"](1), limits=Limits(budget=1.0))
        assert made.maps.gain == pytest.approx(np.maximum(0.5 * 0.8 * right - 0.5 * 0.2 * wrong, 0), rel=1e-5)

    def test_with_the_papers_rule_only_the_first_counts(self):
        probabilities = random_probabilities(np.random.default_rng(0), RULES["softmax"](2), 2, (9, 8))
        limits, rule = Limits(budget=0.2), RULES["softmax"](2)
        both = decide(probabilities, self.WEIGHT, rule=rule, limits=limits).maps
        for one, other in zip(both, decide(probabilities, 0.03, rule=rule, limits=limits).maps, strict=True):
            assert np.array_equal(one, other)

    def test_costs_are_shares_of_the_first(self):
        for cost, asked in ((0.09, True), (0.11, False)):
            made = decide(
                constant(0.6, 0.5), self.WEIGHT, rule=OneVsAllRule((cost,), (True,)), limits=Limits(min_region_mm=0)
            ).maps
            assert made.route.all() == asked, cost
        rule = OneVsAllRule((0.3, 0.4), (True, True))
        made = decide(constant(0.6, 0.5, 0.6), self.WEIGHT, rule=rule, limits=Limits(budget=1.0)).maps
        gains = np.array([0.4 * 0.5 * 0.03 - 0.6 * 0.5 * 0.01, 0.4 * 0.6 * 0.03 - 0.6 * 0.4 * 0.01 - 0.1 * 0.03])
        assert made.gain == pytest.approx(np.full(made.gain.shape, gains[made.expert[0, 0] - 1]), rel=1e-5)

    def test_leave_out_experts_who_cannot_be_asked_and_what_was_not_predicted(self):
        probabilities = constant(0.3, 0.9, 0.5, shape=(6, 5))
        probabilities[:, 2] = np.nan
        rule = OneVsAllRule((0.0, 0.0), (False, True))
        made = decide(probabilities, self.WEIGHT, rule=rule, limits=Limits(budget=1.0)).maps
        assert not made.route[2].any()
        assert not made.gain[2].any()
        assert np.unique(np.delete(made.route, 2, axis=0)).tolist() == [2]


def test_a_gain_is_in_dice_where_it_is_made_of_probabilities_of_being_right_or_of_evidence():
    assert gain_unit("one_vs_all", evidence=False) == gain_unit("collaboration", evidence=True) == "Dice"
    assert gain_unit("collaboration", evidence=False) == "score"
    assert gain_text(0.01234, "Dice") == "expected gain 0.0123 Dice"
    assert gain_text(0.01234, "score") == "score 0.0123"
