"""Uncertainties of voxels."""

import numpy as np

from nnunetv2_deferral.decision.calibrators import Temperature
from nnunetv2_deferral.uncertainty import times_doubt


def test_an_uncertainty_counts_as_far_as_the_model_is_not_confident():
    uncertainty = np.array([[0.5, 0.5, 0.5], [0.2, 0.0, 0.4]], dtype=np.float32)
    right = np.array([[1.0, 0.0, 0.5], [0.75, 0.1, np.nan]], dtype=np.float32)
    found = times_doubt(uncertainty, right)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0, 0.5, 0.25], [0.05, 0, 0]], atol=1e-7)
    # Of the logit of 0.75, log 3, half is the logit of 0.634.
    calibrated = times_doubt(uncertainty, right, Temperature(2.0))
    np.testing.assert_allclose(calibrated[1], [0.2 * (1 - np.sqrt(3) / (1 + np.sqrt(3))), 0, 0], atol=1e-6)
