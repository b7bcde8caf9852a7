"""Distances between surfaces: analytic cases and what is undefined."""

import math

import numpy as np
import pytest

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.overlap import overlap, summarize
from nnunetv2_deferral.evaluation.surfaces import surface_scores


def box(shape, *slices, label=1):
    found = np.zeros(shape, dtype=int)
    found[slices] = label
    return found


CUBE = box((12, 20, 20), slice(3, 8), slice(4, 12), slice(5, 15))


def scores(prediction, *, reference=CUBE, spacing=(3.0, 1.0, 0.5), tolerance=1.0, **how):
    return surface_scores(reference, prediction, (1,), spacing=spacing, tolerance=tolerance, **how)["1"]


def test_a_mask_that_is_the_reference_has_no_distance():
    assert scores(CUBE) == {"HD95": 0, "NSD": 1}


@pytest.mark.parametrize(("axis", "step"), [(0, 3.0), (1, 1.0), (2, 0.5)])
def test_a_shift_is_as_far_as_the_voxels_are_large_along_its_axis(axis, step):
    shifted = np.roll(CUBE, 2, axis=axis)
    assert scores(shifted)["HD95"] == pytest.approx(2 * step)
    assert scores(shifted, tolerance=2 * step)["NSD"] == 1
    assert scores(shifted, tolerance=1.9 * step)["NSD"] < 1


def test_a_single_slice_has_lines_in_place_of_surfaces():
    """In a plane the thickness of the slice does not matter, as nnU-Net makes it up."""
    reference = box((1, 30, 30), 0, slice(5, 15), slice(5, 15))
    shifted = np.roll(reference, 4, axis=2)
    for thickness in (1.0, 999.0):
        found = scores(shifted, reference=reference, spacing=(thickness, 1.0, 1.0), tolerance=0.5)
        assert found["HD95"] == pytest.approx(4)
        assert 0.1 < found["NSD"] < 0.9
    assert found == scores(shifted[0], reference=reference[0], spacing=(1.0, 1.0), tolerance=0.5)


@pytest.mark.parametrize(("truth", "predicted", "nsd"), [(0, 1, 0), (1, 0, 0), (0, 0, math.nan)])
def test_without_a_surface_there_is_no_distance(truth, predicted, nsd):
    found = scores(CUBE * predicted, reference=CUBE * truth)
    np.testing.assert_equal(found, {"HD95": math.nan, "NSD": nsd})


def test_voxels_that_do_not_count_belong_to_nothing():
    wrong = CUBE.copy()
    wrong[:, 18:, 18:] = 1
    valid = np.ones(CUBE.shape, dtype=bool)
    valid[:, 16:, 16:] = False
    assert scores(wrong)["NSD"] < 1
    assert scores(wrong, valid=valid) == {"HD95": 0, "NSD": 1}


def test_a_region_is_the_union_of_its_labels():
    labels = CUBE + 2 * box(CUBE.shape, slice(3, 8), slice(12, 16), slice(5, 15))
    found = surface_scores(labels, (labels > 0).astype(int), [(1, 2), 2], spacing=(1, 1, 1), tolerance=1)
    assert found["(1, 2)"] == {"HD95": 0, "NSD": 1}
    np.testing.assert_equal(found["2"], {"HD95": math.nan, "NSD": 0.0})


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf])
def test_a_tolerance_is_a_length(tolerance):
    with pytest.raises(InputError, match=f"tolerance of surfaces must be finite and at least 0, got {tolerance}"):
        scores(CUBE, tolerance=tolerance)


def test_cases_without_a_distance_are_counted():
    cases = {}
    for name, mask in (("a", CUBE), ("b", np.roll(CUBE, 1, axis=0)), ("c", 0 * CUBE)):
        found = scores(mask, tolerance=5.0)
        cases[name] = {"1": overlap(CUBE, mask, (1,))["1"] | found}
    mean = summarize(cases)["mean"]["1"]
    assert (mean["HD95"], mean["n_undefined_HD95"], mean["n_undefined"]) == (pytest.approx(1.5), 1, 0)
    assert mean["NSD"] == pytest.approx(2 / 3)
