"""Distances to the border of the reference are computed in slabs, which change nothing."""

import numpy as np
import pytest

from nnunetv2_deferral.evaluation import location
from nnunetv2_deferral.evaluation.location import LocationStatistics


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
