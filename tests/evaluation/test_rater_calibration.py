"""Calibration to several raters: the oracle, a loop over pairs, boxes, and cases without raters."""

import numpy as np
import pytest

from nnunetv2_deferral.commands.evaluate_raters import rater_text
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.rater_calibration import RaterCalibration, joint_box, multi_rater_ece
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.report.benchmark_tables import AGAINST_RATERS

RATERS = ("ann", "bob", "eve", "max")


def make_case(seed, shape=(3, 8, 9), missing=0.0, classes=2):
    random = np.random.default_rng(seed)
    masks = random.integers(0, classes, (len(RATERS), *shape)).astype(np.int16)
    masks[:, :, :2] = 0  # outside of every box
    masks[random.random(masks.shape) < missing] = MISSING
    probabilities = random.random((classes - 1, *shape), dtype=np.float32)
    return masks, probabilities, masks[0].clip(0)


def share_of_raters(masks, label=1):
    seen = (masks != MISSING).sum(0)
    return np.divide((masks == label).sum(0), seen, out=np.zeros(seen.shape), where=seen > 0).astype(np.float32)


def slow_ece(probabilities, labels, num_bins):
    """Pair by pair; `labels` is a list of the raters' labels of each voxel."""
    bins = [[] for _ in range(num_bins)]
    for p, given in zip(probabilities.ravel(), labels, strict=True):
        bins[min(int(np.float64(p) * num_bins), num_bins - 1)] += [(np.float64(p), y) for y in given]
    number = sum(map(len, bins))
    return sum(abs(sum(p for p, _ in pairs) - sum(y for _, y in pairs)) for pairs in bins) / number


def labels_of(masks):
    return [[label for label in voxel if label != MISSING] for voxel in masks.reshape(len(masks), -1).T.tolist()]


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_error_equals_a_loop_over_pairs(missing):
    masks, probabilities, model = make_case(0, missing=missing)
    statistics = RaterCalibration([1], RATERS)
    statistics.update("x", {"probability": probabilities}, masks, model=model)
    found = statistics.summary()["calibration"]["1"]["probability"]
    assert found["image"]["ece"]["estimate"] == pytest.approx(slow_ece(probabilities, labels_of(masks), 15))
    box = joint_box(masks == 1)
    inside = (slice(None), *box)
    assert found["box"]["ece"]["estimate"] == pytest.approx(
        slow_ece(probabilities[inside], labels_of(masks[inside]), 15)
    )
    each = [slow_ece(probabilities[inside], labels_of(masks[rater : rater + 1][inside]), 50) for rater in range(4)]
    assert found["curvas_ece"]["estimate"] == pytest.approx(np.mean(each))
    pairs = [(p - y) ** 2 for p, given in zip(probabilities.ravel(), labels_of(masks), strict=True) for y in given]
    assert found["image"]["brier"]["estimate"] == pytest.approx(np.mean(pairs), rel=1e-5)


def test_intervals_of_errors_stay_within_what_is_possible():
    masks, _, model = make_case(0)
    statistics = RaterCalibration([1], RATERS)
    marked = np.where(np.arange(9) < 5, 1, 0) * np.ones_like(masks)
    for number in range(4):  # three cases that are all wrong, and one that is in doubt
        said = np.where(marked[0] == 1, 0.02, 0.98) if number else np.full(model.shape, 0.5)
        statistics.update(f"case_{number}", {"p": said[None]}, marked, model=model)
    found = statistics.summary(num_resamples=300)["calibration"]["1"]["p"]
    for interval in (found[place][score] for place in ("image", "box") for score in ("ece", "brier")):
        assert 0 <= interval["low"] < interval["estimate"] < interval["high"] <= 1


def test_the_error_by_rater_is_not_that_of_the_challenge_curvas_and_is_not_called_so():
    masks, probabilities, model = make_case(0)
    statistics = RaterCalibration([1], RATERS)
    statistics.update("x", {"probability": probabilities}, masks, model=model)
    summary = statistics.summary(num_resamples=10)
    inside = joint_box(masks == 1)
    p = probabilities[0][inside].astype(np.float64)
    # Of the more probable of two classes the probability, and whether it is the rater's.
    right = [[[int((p > 0.5).flat[place] == label)] for place, label in enumerate(mask[inside].flat)] for mask in masks]
    challenge = np.mean([slow_ece(np.maximum(p, 1 - p), each, 50) for each in right])
    assert challenge < 0.95 * summary["calibration"]["1"]["probability"]["curvas_ece"]["estimate"]
    said = rater_text(summary)
    assert "ECE of probability, box, by rater" in said
    assert "CURVAS" not in said + " ".join(AGAINST_RATERS)


@pytest.mark.parametrize("missing", [0.0, 0.4])
def test_the_share_of_raters_has_no_error_and_the_lowest_brier_score(missing):
    statistics = RaterCalibration([1], RATERS)
    for seed in range(3):
        masks, _, model = make_case(seed, missing=missing)
        oracle = share_of_raters(masks)[None]
        readings = {"oracle": oracle, "majority": (oracle >= 0.5).astype(np.float32)}
        statistics.update(f"case_{seed}", readings, masks, model=model)
    found = statistics.summary(num_resamples=50)["calibration"]["1"]
    for place in ("image", "box"):
        assert found["oracle"][place]["ece"]["estimate"] == pytest.approx(0, abs=1e-7)
        assert found["majority"][place]["ece"]["estimate"] > 0.05
        assert found["oracle"][place]["brier"]["estimate"] < found["majority"][place]["brier"]["estimate"]
        assert found["oracle"][place]["ece"]["low"] >= 0
    assert found["oracle"]["curvas_ece"]["estimate"] > 0.05  # no single probability suits raters who differ


def test_cases_are_pooled_and_resampled_by_patient():
    statistics = RaterCalibration([1], ("ann",))
    for case, labels in {"x": 0, "y": 1}.items():
        masks = np.full((1, 1, 4, 4), labels, dtype=np.int16)
        statistics.update(case, {"p": np.full((1, 1, 4, 4), 0.5, dtype=np.float32)}, masks, model=masks[0])
    found = statistics.summary(num_resamples=50)
    assert found["calibration"]["1"]["p"]["image"]["ece"]["estimate"] == 0  # half of all pairs
    assert [rows["1"]["ece_image_p"] for rows in found["per_case"].values()] == [0.5, 0.5]
    of_one = statistics.summary(groups={"x": "patient", "y": "patient"}, num_resamples=50)
    assert of_one["groups"] == 1
    assert np.isnan(of_one["calibration"]["1"]["p"]["image"]["ece"]["low"])


def test_a_case_that_nobody_marks_has_no_box():
    statistics = RaterCalibration([1, 2], RATERS)
    masks, probabilities, model = make_case(0, classes=3)
    statistics.update("x", {"p": probabilities}, masks, model=model, reference=model)
    empty = np.zeros_like(masks)
    statistics.update("y", {"p": np.zeros_like(probabilities)}, empty, model=empty[0], reference=empty[0])
    found = statistics.summary(num_resamples=20)
    assert found["calibration"]["2"]["p"]["box"]["cases"] == 1
    assert found["calibration"]["2"]["p"]["image"]["cases"] == 2
    assert np.isnan(found["per_case"]["y"]["1"]["curvas_ece_p"])
    assert [rows["1"]["Dice_reference"] for rows in found["per_case"].values()] == [
        1,
        pytest.approx(np.nan, nan_ok=True),
    ]
    assert found["dice"]["1"]["raters"]["estimate"] > 0


def test_ignored_voxels_do_not_count():
    masks, probabilities, model = make_case(0)
    valid = np.ones(model.shape, dtype=bool)
    valid[0] = False
    without, only = RaterCalibration([1], RATERS), RaterCalibration([1], RATERS)
    without.update("x", {"p": probabilities}, masks, model=model, reference=masks[1], valid=valid)
    only.update("x", {"p": probabilities[:, 1:]}, masks[:, 1:], model=model[1:], reference=masks[1][1:])
    first, second = (each.summary(num_resamples=20) for each in (without, only))
    assert str(first["per_case"]) == str(second["per_case"])
    assert str(first["dice"]) == str(second["dice"])


def test_regions_are_marked_by_any_of_their_labels():
    masks, _, model = make_case(0, classes=3)
    statistics = RaterCalibration([(1, 2)], RATERS)
    oracle = np.mean(masks > 0, 0, dtype=np.float32)[None]
    statistics.update("x", {"p": oracle}, masks, model=model)
    assert statistics.summary(num_resamples=20)["calibration"]["(1, 2)"]["p"]["image"]["ece"][
        "estimate"
    ] == pytest.approx(0)


def test_what_does_not_fit_is_refused_by_name():
    masks, probabilities, model = make_case(0)
    statistics = RaterCalibration([1], RATERS)
    with pytest.raises(InputError, match=r"case x: p must have shape \(1, 3, 8, 9\), got \(2, 3, 8, 9\)"):
        statistics.update("x", {"p": np.concatenate([probabilities] * 2)}, masks, model=model)
    with pytest.raises(InputError, match=r"case x: probabilities must lie in \[0, 1\], got 2"):
        statistics.update("x", {"p": probabilities + 2}, masks, model=model)
    with pytest.raises(InputError, match="case x: got p, reference, but for other cases p"):
        statistics.update("x", {"p": probabilities}, masks, model=model, reference=model)
    with pytest.raises(InputError, match="case x: got masks of 2 raters instead of 4"):
        statistics.update("x", {"p": probabilities}, masks[:2], model=model)
    with pytest.raises(InputError, match="must lie between 0 and the number who saw it"):
        multi_rater_ece(np.array([0.5]), np.array([3]), np.array([2]))
    with pytest.raises(InputError, match="there must be structures and raters"):
        RaterCalibration([], RATERS)


def test_without_any_label_the_error_is_undefined():
    assert np.isnan(multi_rater_ece(np.array([0.5]), np.array([0]), np.array([0])))
    assert joint_box(np.zeros((2, 3, 3), dtype=bool)) is None
