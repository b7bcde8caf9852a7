"""Regions keep a budget over a dataset as single voxels do."""

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_deferral.calibration.region_thresholds import routed_voxels, thresholds_for_regions
from nnunetv2_deferral.decision.assignment import thresholds_within_limits
from nnunetv2_deferral.decision.calibrators import IDENTITY
from nnunetv2_deferral.decision.decide import decide
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.model_calibration import FittedThresholds, ModelCalibration
from nnunetv2_deferral.routing import OneVsAllRule

SPACING = (1.5, 1.0)
RULE = OneVsAllRule((0.0, 0.0), (True, True))


def with_holes(number):
    """The model errs in some objects, each with holes where it does not; float32 (3, *S) for each case."""
    found, shape = [], (60, 64)
    for place in range(number):
        generator = np.random.default_rng(place)
        model = np.full(shape, 0.95)
        for _ in range(5):
            centre, radius = generator.integers(6, 54, 2), generator.uniform(3, 6)
            distance = np.hypot(*(np.indices(shape) - centre[:, None, None])) / radius
            model = np.where(distance < 1, generator.uniform(0.3, 0.7) + 0.03 * distance, model)
        model = np.where(generator.random(shape) < 0.3, 0.93, model) - 0.001 * generator.random(shape)
        found.append(np.stack([model, np.full(shape, 0.9), np.full(shape, 0.85)]).astype(np.float32))
    return found


def probabilities_of(number, *, sigma, experts=(0.9, 0.85), seed=0):
    """The model errs in bands; float32 (3, *S) for each case."""
    found = []
    for place in range(number):
        generator = np.random.default_rng([seed, place])
        noise = ndimage.gaussian_filter(generator.normal(size=(2, 60, 64)), (0, sigma, sigma))
        noise /= noise.std((1, 2), keepdims=True)
        model = np.clip(1 - 0.6 * np.exp(-((noise[0] / 0.3) ** 2)) - 0.05 * generator.random((60, 64)), 0, 1)
        right = np.array(experts)[:, None, None] - 0.05 * np.abs(noise[1])
        found.append(np.concatenate([model[None], right]).astype(np.float32))
    return found


def routed(cases, limits, thresholds):
    """The number of voxels for each expert, as predictions route them."""
    fitted = FittedThresholds(limits.budget, limits.capacities, tuple(thresholds), 0.0, limits.min_region_mm)
    calibration = ModelCalibration(experts=("a", "b"), heads=(IDENTITY,) * 3, thresholds=(fitted,))
    routes = [
        decide(case, rule=RULE, limits=limits, spacing_mm=SPACING, calibration=calibration).maps.route for case in cases
    ]
    return np.bincount(np.concatenate(routes, axis=None), minlength=3)[1:], sum(route.size for route in routes)


def fit(cases, *limits):
    """What is fitted by regions and what would be by voxels."""
    each = [RULE.gains(case, axis=0) for case in cases]
    flat = np.concatenate([gains.reshape(2, -1) for gains in each], axis=1)
    positive = flat[:, (flat > 0).any(0)]
    found = thresholds_for_regions(
        lambda trials: sum(routed_voxels(gains, SPACING, trials) for gains in each), limits, positive, flat.shape[1]
    )
    by_voxel = [
        thresholds_within_limits(positive, num_voxels=flat.shape[1], budget=each.budget, capacities=each.capacities)
        for each in limits
    ]
    return found, by_voxel


@pytest.mark.parametrize("above", [True, False], ids=["with gaps", "with specks"])
@pytest.mark.parametrize("budget", [0.03, 0.05])
def test_a_budget_is_kept_and_used_up(budget, above):
    """With thresholds by voxel, gaps between voxels exceed it, and specks that are left out leave much of it."""
    cases = with_holes(8) if above else probabilities_of(8, sigma=3)
    limits = Limits(budget=budget, over="dataset", min_region_mm=5)
    [(thresholds, rate)], [by_voxel] = fit(cases, limits)
    deferred, voxels = routed(cases, limits, thresholds)
    assert deferred.sum() == pytest.approx(rate * voxels)
    assert 0.97 * budget < rate <= budget
    before = routed(cases, limits, by_voxel)[0].sum() / voxels
    assert before > 1.05 * budget if above else before < 0.9 * budget


def test_it_is_kept_on_other_cases_on_average():
    limits = Limits(budget=0.03, over="dataset", min_region_mm=6)
    [(thresholds, _)], _ = fit(probabilities_of(12, sigma=3), limits)
    deferred, voxels = routed(probabilities_of(12, sigma=3, seed=1), limits, thresholds)
    assert deferred.sum() / voxels == pytest.approx(0.03, rel=0.1)


def test_capacities_are_kept_too():
    cases = probabilities_of(6, sigma=3)
    limits = Limits(budget=0.05, capacities=(0.01, None), over="dataset", min_region_mm=5)
    [(thresholds, rate)], _ = fit(cases, limits)
    deferred, voxels = routed(cases, limits, thresholds)
    assert deferred[0] <= 0.01 * voxels
    assert deferred.sum() == pytest.approx(rate * voxels)
    assert 0.8 * 0.05 < rate <= 0.05
    assert thresholds[0] > thresholds[1]


@pytest.mark.slow
def test_several_limits_are_fitted_at_once_as_each_by_itself():
    cases = probabilities_of(4, sigma=2)
    limits = [
        Limits(budget=budget, over="dataset", min_region_mm=size) for budget, size in ((0.01, 4), (0.05, 4), (0.01, 0))
    ]
    together, _ = fit(cases, *limits)
    for each, (thresholds, rate) in zip(limits, together, strict=True):
        [(alone, rate_alone)], _ = fit(cases, each)
        assert np.array_equal(thresholds, alone)
        assert rate == rate_alone


def test_where_everything_positive_fits_thresholds_are_zero():
    cases = probabilities_of(3, sigma=3, experts=(0.5, 0.45))
    [(thresholds, rate)], _ = fit(cases, Limits(budget=0.9, over="dataset", min_region_mm=5))
    assert not thresholds.any()
    assert 0 < rate < 0.9


def test_where_no_region_fits_nobody_is_asked():
    cases = probabilities_of(1, sigma=3)
    limits = Limits(budget=0.0005, over="dataset", min_region_mm=20)  # 1 voxel
    [(thresholds, rate)], _ = fit(cases, limits)
    assert rate == 0
    assert not routed(cases, limits, thresholds)[0].any()


def test_where_nobody_is_worth_asking_nothing_is_deferred():
    cases = probabilities_of(2, sigma=3, experts=(0.1, 0.1))
    [(thresholds, rate)], _ = fit(cases, Limits(budget=0.1, over="dataset", min_region_mm=5))
    assert not thresholds.any()
    assert rate == 0
