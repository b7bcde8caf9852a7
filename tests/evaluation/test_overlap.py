import math

import numpy as np
import pytest
from nnunetv2.evaluation.evaluate_predictions import (
    compute_tp_fp_fn_tn,
    label_or_region_to_key,
    region_or_label_to_mask,
)

from nnunetv2_deferral.evaluation.overlap import overlap, region_key, region_mask, summarize


def test_scores_of_a_small_example():
    reference, prediction = np.array([1, 1, 0, 0, 2]), np.array([1, 0, 1, 0, 2])
    one = overlap(reference, prediction, [1, 2])["1"]
    assert (one["TP"], one["FP"], one["FN"], one["TN"]) == (1, 1, 1, 2)
    assert one["Dice"] == pytest.approx(0.5)
    assert one["IoU"] == pytest.approx(1 / 3)
    assert one["Sensitivity"] == pytest.approx(0.5)
    assert overlap(reference, prediction, [(1, 2)])["(1, 2)"]["TP"] == 2


def test_voxels_that_do_not_count_are_left_out():
    reference, prediction = np.array([1, 1, 0]), np.array([1, 0, 1])
    scores = overlap(reference, prediction, [1], valid=np.array([True, False, False]))["1"]
    assert scores["Dice"] == 1
    assert scores["FP"] + scores["FN"] == 0


def test_without_foreground_scores_are_undefined_and_left_out_of_means_with_their_number():
    empty = overlap(np.zeros(4, int), np.zeros(4, int), [1])
    full = overlap(np.ones(4, int), np.ones(4, int), [1])
    assert all(math.isnan(empty["1"][key]) for key in ("Dice", "IoU", "Sensitivity"))
    summary = summarize({"a": empty, "b": full})
    assert summary["mean"]["1"]["Dice"] == 1
    assert summary["mean"]["1"]["n_undefined"] == 1
    assert summary["foreground_mean"]["Dice"] == 1
    assert math.isnan(summarize({"a": empty})["foreground_mean"]["Dice"])


def test_false_positives_without_a_reference_score_zero():
    scores = overlap(np.zeros(4, int), np.array([1, 0, 0, 0]), [1])["1"]
    assert scores["Dice"] == 0
    assert math.isnan(scores["Sensitivity"])


@pytest.mark.parametrize("region", [0, 2, (1, 2), (3,)])
@pytest.mark.parametrize("with_valid", [True, False])
def test_masks_keys_and_counts_are_nnunets(region, with_valid):
    random = np.random.default_rng(0)
    reference, prediction = random.integers(0, 3, (2, 4, 5, 6))
    valid = random.random(reference.shape) < 0.7 if with_valid else None
    masks = [region_or_label_to_mask(labels, region) for labels in (reference, prediction)]
    for labels, mask in zip((reference, prediction), masks, strict=True):
        assert np.array_equal(region_mask(labels, region), mask)
    assert region_key(region) == label_or_region_to_key(region)
    scores = overlap(reference, prediction, [region], valid)[region_key(region)]
    expected = compute_tp_fp_fn_tn(*masks, None if valid is None else ~valid)
    assert tuple(scores[key] for key in ("TP", "FP", "FN", "TN")) == expected
