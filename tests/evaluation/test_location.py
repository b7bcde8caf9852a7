"""Distances to the border of the reference are those of scipy; computed in slabs, they change nothing."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_deferral.evaluation import location
from nnunetv2_deferral.evaluation.location import LocationStatistics, border_distance_mm


def counted(case, spacing, monkeypatch, voxels):
    monkeypatch.setattr(location, "_SLAB_VOXELS", voxels)
    statistics = LocationStatistics()
    statistics.update(case["scores"], spacing_mm=spacing, **{key: case[key] for key in case if key != "scores"})
    return statistics.summary()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.5, 0.7), (3.0, 20.0, 20.0), (12.0, 1.0, 1.0)])
@pytest.mark.parametrize("kind", ["blobs", "one label", "far apart"])
def test_slabs_change_nothing(monkeypatch, spacing, kind):
    random = np.random.default_rng(0)
    shape = (60, 16, 15)
    reference = np.zeros(shape, np.int64)
    if kind == "blobs":
        reference = np.repeat(random.integers(0, 3, (12, 16, 15)), 5, 0)
    elif kind == "far apart":
        reference[7, 3, 3] = 1
    case = {
        "scores": random.random(shape, dtype=np.float32),
        "reference": reference,
        "wrong": random.random(shape) < 0.3,
        "deferred": random.random(shape) < 0.2,
        "valid": random.random(shape) < 0.9,
    }
    whole = counted(case, spacing, monkeypatch, 10**9)
    assert sum(row["voxels"] for row in whole["by_distance"]) == case["valid"].sum()
    assert counted(case, spacing, monkeypatch, 1) == whole
    assert counted(case, spacing, monkeypatch, 7 * 240) == whole


@pytest.mark.parametrize("kind", ["noise", "specks", "blobs", "below zero"])
@pytest.mark.parametrize("shape", [(9, 14, 11), (1, 13, 17), (12, 15), (6, 1, 1)])
def test_distances_are_those_of_each_label(kind, shape):
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, shape)
    if kind == "specks":
        labels = (random.random(shape) < 0.1).astype(np.uint16) * 65535
    elif kind == "blobs":
        labels = (ndimage.gaussian_filter(random.normal(size=shape), 2) > 0).astype(np.uint8)
    elif kind == "below zero":
        labels = (random.random(shape) < 0.3).astype(np.int8) * 3 - 1
    spacing = (2.3, 0.4, 0.9)[: len(shape)]
    expected = np.full(shape, np.inf)
    for value in (values := np.unique(labels)):
        inside = labels == value
        if values.size > 1:
            expected[inside] = ndimage.distance_transform_edt(inside, sampling=spacing)[inside]
    np.testing.assert_allclose(border_distance_mm(labels, spacing), expected, rtol=1e-5)


@pytest.mark.parametrize("spacing", [Fraction(1, 10), Fraction(1, 5), Fraction(1, 3), Fraction(7, 10), Fraction(1)])
def test_a_distance_that_is_a_limit_belongs_to_the_band_below(spacing):
    reference = np.zeros((1, 1, 200), np.uint8)
    reference[..., 100:] = 1
    nothing = np.zeros(reference.shape, bool)
    statistics = LocationStatistics()
    statistics.update(
        np.zeros(reference.shape, np.float32),
        reference=reference,
        wrong=nothing,
        deferred=nothing,
        valid=~nothing,
        spacing_mm=(1.0, 1.0, float(spacing)),
    )
    distances = [spacing * steps for steps in range(1, 101)]
    limits = (0, 1, 2, 3, 5, 10, 1000)
    expected = [2 * sum(low < each <= high for each in distances) for low, high in itertools.pairwise(limits)]
    assert [row["voxels"] for row in statistics.summary()["by_distance"]] == expected
