import re

import numpy as np
import pytest

from nnunetv2_deferral.evaluation.score_bins import NUM_BINS, ScoreHistogram, score_bins

DTYPES = [np.float16, np.float32, np.float64, np.uint8, np.int64, bool]


def random_scores(seed, shape=(500,), dtype=np.float32):
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return np.exp(generator.normal(-3, 3, shape)).astype(dtype)
    return generator.integers(0, 2 if dtype is bool else 200, shape).astype(dtype)


def histogram_of(scores, wrong, valid=None):
    histogram = ScoreHistogram()
    histogram.update(scores, wrong, valid)
    return histogram


def assert_equal(first, second):
    np.testing.assert_array_equal(first.voxels, second.voxels)
    np.testing.assert_array_equal(first.errors, second.errors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bins_never_fall_where_scores_rise(dtype):
    scores = np.sort(random_scores(0, dtype=dtype))
    assert (np.diff(score_bins(scores)) >= 0).all()


def test_scores_of_one_bin_differ_by_less_than_a_4096th():
    scores = np.sort(np.exp(np.random.default_rng(1).uniform(-20, 20, 200_000))).astype(np.float32)
    first, second = scores[:-1].astype(float), scores[1:].astype(float)
    same = score_bins(scores)[:-1] == score_bins(scores)[1:]
    assert same.any()
    assert (second / first - 1)[same].max() < 2**-12
    assert not same[second / first - 1 >= 2**-12].any()


@pytest.mark.parametrize("unit", [1, 255])
def test_the_values_of_a_png_map_keep_apart(unit):
    assert len(np.unique(score_bins(np.arange(256) / unit))) == 256
    assert len(np.unique(score_bins(np.arange(256, dtype=np.uint8)))) == 256


def test_zero_has_a_bin_of_its_own():
    scores = np.array([0.0, -0.0, np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).tiny], np.float32)
    assert score_bins(scores)[:2].tolist() == [0, 0]
    assert (score_bins(scores)[2:] > 0).all()


def test_the_largest_score_has_a_bin():
    assert score_bins(np.array([np.finfo(np.float32).max]))[0] == NUM_BINS - 1


def test_bins_have_the_shape_of_the_scores_however_these_lie_in_memory():
    scores = random_scores(2, (6, 4, 5))
    bins = score_bins(scores.T)
    assert bins.shape == (5, 4, 6)
    np.testing.assert_array_equal(bins, score_bins(scores).T)
    assert score_bins(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1e-30, 1e39])
def test_scores_that_have_no_bin_are_named(value):
    with pytest.raises(ValueError, match=re.escape(f"finite and not negative, got {value}")):
        score_bins(np.array([0.5, value, 0.1]))


def test_complex_scores_are_refused():
    with pytest.raises(ValueError, match="complex128"):
        score_bins(np.zeros(2, complex))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_mask", [False, True])
def test_a_histogram_equals_counting_voxel_by_voxel(dtype, with_mask):
    scores, generator = random_scores(3, (10, 30), dtype), np.random.default_rng(4)
    wrong, valid = generator.random((10, 30)) < 0.3, generator.random((10, 30)) < 0.6 if with_mask else None
    found = histogram_of(scores, wrong, valid)
    voxels, errors = np.zeros(NUM_BINS, int), np.zeros(NUM_BINS, int)
    for voxel in np.ndindex(scores.shape):
        if valid is None or valid[voxel]:
            bin_ = score_bins(scores[voxel].reshape(1))[0]
            voxels[bin_] += 1
            errors[bin_] += wrong[voxel]
    np.testing.assert_array_equal(found.voxels, voxels)
    np.testing.assert_array_equal(found.errors, errors)


@pytest.mark.parametrize("seed", range(5))
def test_voxels_may_come_in_parts_and_in_any_order(seed):
    generator = np.random.default_rng(seed)
    scores, wrong = random_scores(seed), generator.random(500) < 0.3
    cut = generator.integers(0, 501)
    parts, whole = histogram_of(scores[:cut], wrong[:cut]), histogram_of(scores, wrong)
    parts.update(scores[cut:], wrong[cut:])
    assert_equal(parts, whole)
    order = generator.permutation(500)
    assert_equal(histogram_of(scores[order], wrong[order]), whole)


@pytest.mark.parametrize("few", [500, 0])
def test_chunks_and_ways_of_counting_make_no_difference(monkeypatch, few):
    scores, wrong = random_scores(5), np.random.default_rng(6).random(500) < 0.3
    whole = histogram_of(scores, wrong)
    monkeypatch.setattr("nnunetv2_deferral.arrays.CHUNK_VOXELS", 7)
    monkeypatch.setattr("nnunetv2_deferral.evaluation.score_bins._FEW", few)
    assert_equal(histogram_of(scores, wrong), whole)


def test_voxels_that_do_not_count_need_no_score():
    found = histogram_of(np.array([np.nan, 0.5]), np.array([True, True]), np.array([False, True]))
    assert (found.voxels.sum(), found.errors.sum()) == (1, 1)
    assert histogram_of(np.zeros((0, 2)), np.zeros((0, 2), bool)).voxels.sum() == 0


@pytest.mark.parametrize(
    ("scores", "wrong", "valid", "message"),
    [
        (np.zeros(3), np.zeros(4, bool), None, r"scores \(3,\), wrong \(4,\)"),
        (np.zeros(3), np.zeros(3, bool), np.ones((3, 1), bool), r"valid \(3, 1\)"),
        (np.zeros(3), np.zeros(3, int), None, "wrong must be bool, got dtype int64"),
        (np.zeros(3), np.zeros(3, bool), np.ones(3, np.uint8), "valid must be bool, got dtype uint8"),
    ],
)
def test_what_a_histogram_cannot_count_is_named(scores, wrong, valid, message):
    with pytest.raises(ValueError, match=message):
        histogram_of(scores, wrong, valid)


@pytest.mark.parametrize("few", [500, 0])
def test_a_bad_score_adds_nothing(monkeypatch, few):
    monkeypatch.setattr("nnunetv2_deferral.arrays.CHUNK_VOXELS", 2)
    monkeypatch.setattr("nnunetv2_deferral.evaluation.score_bins._FEW", few)
    histogram = ScoreHistogram()
    with pytest.raises(ValueError, match="got -1"):
        histogram.update(np.array([0.1, 0.2, 0.3, -1]), np.ones(4, bool))
    assert_equal(histogram, ScoreHistogram())
