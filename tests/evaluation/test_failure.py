import math

import numpy as np
import pytest
import torch

from nnunetv2_deferral.evaluation.failure import (
    NoVoxels,
    agreement_intervals,
    failure_detection,
    fold_disagreement,
    highest_box_score,
    mean_foreground_score,
    mean_score,
    mean_score_off_boundary,
)
from nnunetv2_deferral.expert_sim.zones import boundary_band

NAN = math.nan
SCORES = np.array([0.1, 0.2, 0.3, 0.6])
LEFT = np.array([True, True, False, False])


def slow_mean(scores, chosen):
    values = [float(scores[index]) for index in np.ndindex(scores.shape) if chosen[index]]
    return sum(values) / len(values) if values else NAN


def random_case(seed, shape):
    generator = np.random.default_rng(seed)
    prediction = np.zeros(shape, np.uint8)
    prediction[tuple(slice(2, size - 2) for size in shape)] = 1
    prediction[tuple(slice(3, size // 2) for size in shape)] = 2
    return generator.random(shape).astype(np.float32), prediction, generator.random(shape) < 0.8


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(12, 9), (8, 9, 10), (1, 12, 9)])
def test_means_equal_a_loop_over_voxels(shape, masked):
    scores, prediction, valid = random_case(0, shape)
    valid = valid if masked else None
    where = np.ones(shape, bool) if valid is None else valid
    assert mean_score(scores, valid) == pytest.approx(slow_mean(scores, where))
    assert mean_foreground_score(scores, prediction, valid, no_voxels=NoVoxels.UNDEFINED) == pytest.approx(
        slow_mean(scores, where & (prediction != 0)), nan_ok=True
    )
    for width in (0, 1, 2):
        band = boundary_band(torch.from_numpy(prediction), width).numpy()
        found = mean_score_off_boundary(scores, prediction, valid, width_voxels=width, no_voxels=NoVoxels.UNDEFINED)
        assert found == pytest.approx(slow_mean(scores, where & ~band), nan_ok=True)


@pytest.mark.parametrize(
    ("policy", "expected"), [(NoVoxels.HIGHEST, 0.2), (NoVoxels.WHOLE_IMAGE, 0.15), (NoVoxels.UNDEFINED, NAN)]
)
def test_an_empty_predicted_foreground_is_scored_as_the_policy_says(policy, expected):
    found = mean_foreground_score(SCORES, np.zeros(4, int), LEFT, no_voxels=policy)
    assert found == pytest.approx(expected, nan_ok=True)
    everywhere_band = mean_score_off_boundary(SCORES, np.array([0, 1, 0, 1]), LEFT, width_voxels=3, no_voxels=policy)
    assert everywhere_band == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("policy", NoVoxels)
def test_where_no_voxel_counts_no_policy_helps(policy):
    nowhere = np.zeros(4, bool)
    assert math.isnan(mean_score(SCORES, nowhere))
    assert math.isnan(mean_foreground_score(SCORES, np.ones(4, int), nowhere, no_voxels=policy))
    assert math.isnan(mean_score_off_boundary(SCORES, np.ones(4, int), nowhere, no_voxels=policy))


def test_scores_at_boundaries_do_not_count_off_boundary():
    prediction = np.zeros((20, 20), int)
    prediction[:, 10:] = 1
    scores = np.zeros((20, 20))
    scores[:, 9:11] = 1
    assert mean_score_off_boundary(scores, prediction, width_voxels=1) == 0
    assert mean_score(scores) == pytest.approx(0.1)
    assert mean_score_off_boundary(scores, prediction, width_voxels=0) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(1, 13, 7), (11, 12, 4), (3, 3)])
@pytest.mark.parametrize("edge", [1, 4, 5])
def test_the_highest_box_is_the_one_with_the_highest_mean(shape, edge):
    scores = np.random.default_rng(0).random(shape)
    valid = np.random.default_rng(1).random(shape) < 0.8
    size = [min(edge, length) for length in shape]
    places = np.ndindex(*(length - each + 1 for length, each in zip(shape, size, strict=True)))
    counted = np.where(valid, scores, 0)
    slow = [
        counted[tuple(slice(at, at + each) for at, each in zip(place, size, strict=True))].mean() for place in places
    ]
    assert highest_box_score(scores, valid, edge_voxels=edge) == pytest.approx(max(slow), rel=1e-5)


def test_a_box_without_voxels_that_count_has_no_score():
    assert math.isnan(highest_box_score(SCORES, np.zeros(4, bool)))


def test_the_agreement_of_a_predicted_dice_has_intervals_that_may_be_negative():
    random = np.random.default_rng(0)
    dice = random.random(40)
    values = np.stack([np.append(1 - dice, 0.5), np.append(dice, NAN)], axis=1)
    found = agreement_intervals(values, generator=np.random.default_rng(0), num_resamples=200)
    assert found["pearson"]["estimate"] == found["spearman"]["estimate"] == pytest.approx(-1)
    assert found["pearson"]["low"] == pytest.approx(-1)
    error = found["mean_absolute_error"]
    assert error["estimate"] == pytest.approx(np.abs(1 - 2 * dice).mean())
    assert error["low"] < error["estimate"] < error["high"]


@pytest.mark.parametrize("sign", [1, -1])
def test_intervals_of_the_agreement_stay_within_what_is_possible(sign):
    random = np.random.default_rng(0)
    for number in (5, 8, 12):
        dice = random.uniform(0.5, 1, number)
        values = np.stack([0.5 + sign * (dice + random.normal(0, 0.03, number) - 0.75), dice], axis=1)
        found = agreement_intervals(values, generator=random, num_resamples=200)
        for name in ("pearson", "spearman"):
            assert -1 <= found[name]["low"] <= found[name]["high"] <= 1
        assert found["mean_absolute_error"]["low"] >= 0


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ([[1, 1, 0, 0], [1, 1, 0, 0]], 0),
        ([[1, 1, 0, 0], [0, 0, 1, 1]], 1),
        ([[1, 1, 0, 0], [1, 0, 0, 0]], 1 / 3),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], 2 / 3),
        ([[0, 0, 0, 0], [0, 0, 0, 0]], 0),
        ([[1, 1, 2, 0], [1, 1, 0, 0]], 1 / 2),
    ],
)
def test_folds_disagree_by_one_less_their_mean_dice(masks, expected):
    assert fold_disagreement(np.array(masks), [1, 2]) == pytest.approx(expected)


def test_folds_are_compared_where_voxels_count_and_in_any_order():
    masks = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0]])
    assert fold_disagreement(masks, [1]) == pytest.approx(fold_disagreement(masks[::-1], [1]))
    assert fold_disagreement(masks[:2], [1], LEFT) == pytest.approx(1 / 3)
    assert fold_disagreement(masks, [1], np.zeros(4, bool)) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_score(SCORES, np.ones(3, bool)), r"valid \(3,\)"),
        (lambda: mean_score(SCORES, np.ones(4, int)), "valid must be bool"),
        (lambda: mean_score(np.array([0.1, NAN])), "got a mean of nan"),
        (lambda: mean_foreground_score(SCORES, np.ones(3, int)), r"prediction \(3,\)"),
        (lambda: mean_score_off_boundary(SCORES, np.ones(3, int)), r"prediction \(3,\)"),
        (lambda: mean_score_off_boundary(SCORES, np.ones(4, int), width_voxels=-1), "got -1"),
        (lambda: fold_disagreement(np.ones((1, 4), int), [1]), "at least two masks are required, got 1"),
        (lambda: fold_disagreement(np.ones((2, 4), int), [1], np.ones(3, bool)), r"valid \(3,\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_failures_that_are_found_first_have_the_optimal_area():
    dice = {"a": 0.9, "b": 0.5, "c": 0.7}
    found = failure_detection({case: 1 - value for case, value in dice.items()}, dice)
    assert found.num_cases == 3
    assert found.augrc.excess == pytest.approx(0)
    assert found.aurc.excess == pytest.approx(0)
    assert found.augrc.random == pytest.approx(0.3 / 2)
    worst = failure_detection(dice, dice)
    assert worst.augrc.area > worst.augrc.random > worst.augrc.optimum


def test_cases_without_score_or_dice_are_left_out_and_named():
    found = failure_detection({"a": 0.1, "b": NAN, "c": 0.2}, {"a": NAN, "b": 0.5, "c": 0.75})
    assert found.undefined == ("a", "b")
    assert found.num_cases == 1
    assert found.aurc.area == pytest.approx(0.25)
    assert math.isnan(failure_detection({}, {}).aurc.area)


@pytest.mark.parametrize(
    ("scores", "dice", "message"),
    [
        ({"a": 0.1}, {"b": 0.1}, r"differ in \['a', 'b'\]"),
        ({"a": 0.1}, {"a": 1.5}, "got 1.5 for case a"),
        ({"a": math.inf}, {"a": 0.5}, "scores must be finite, got inf"),
    ],
)
def test_scores_and_dice_that_do_not_fit_are_named(scores, dice, message):
    with pytest.raises(ValueError, match=message):
        failure_detection(scores, dice)
