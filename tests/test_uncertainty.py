"""Uncertainties of voxels."""

import numpy as np
import pytest

from nnunetv2_deferral.decision.calibrators import Temperature
from nnunetv2_deferral.uncertainty import MutualInformation, times_doubt


def test_an_uncertainty_counts_as_far_as_the_model_is_not_confident():
    uncertainty = np.array([[0.5, 0.5, 0.5], [0.2, 0.0, 0.4]], dtype=np.float32)
    right = np.array([[1.0, 0.0, 0.5], [0.75, 0.1, np.nan]], dtype=np.float32)
    found = times_doubt(uncertainty, right)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 0.5, 0.25], [0.05, 0, 0]], atol=1e-7)
    # Of the logit of 0.75, log 3, half is the logit of 0.634.
    calibrated = times_doubt(uncertainty, right, Temperature(2.0))
    np.testing.assert_allclose(calibrated[1], [0.2 * (1 - np.sqrt(3) / (1 + np.sqrt(3))), 0, 0], atol=1e-6)


def information(*networks, has_regions=False):
    found = MutualInformation(has_regions=has_regions)
    for probabilities in networks:
        found.add(np.array(probabilities, dtype=np.float32))
    return found.result()


def test_only_networks_that_contradict_each_other_have_mutual_information():
    certain, other, undecided = [[1.0], [0.0], [0.0]], [[0.0], [1.0], [0.0]], [[1 / 3]] * 3
    assert information(certain, certain) == 0
    assert information(undecided, undecided) == pytest.approx(0, abs=1e-6)
    assert information(certain) == 0
    assert information(certain, other) == pytest.approx(np.log(2) / np.log(3))
    assert information(certain, other, [[0.0], [0.0], [1.0]]) == pytest.approx(1)


def test_of_several_regions_that_with_the_most_counts():
    first, second = [[1.0, 1.0], [1.0, 0.5]], [[1.0, 0.0], [0.0, 0.5]]
    np.testing.assert_allclose(information(first, second, has_regions=True), [1, 1], atol=1e-6)
    np.testing.assert_allclose(information(first[1:], second[1:], has_regions=True), [1, 0], atol=1e-6)
