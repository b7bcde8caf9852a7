"""The model's probabilities combined with what the deferral head says of them, as a trained head might improve a prior.

For one foreground class. With p the probability of foreground and s the sign of logit p,

    logit p' = w_0 + w_1 logit p + s (w_2 logit a_0 + ... )

where a_0, a_1, ... are the heads' probabilities that model and experts are right, and 1 - A that of the aggregated
predictor that the voxel is not deferred.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit

from nnunetv2_deferral.arrays import to_logits
from nnunetv2_deferral.calibration.regression import logistic_weights, sample_voxels
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase

FEATURES = {
    "heads": lambda case: list(case.routing),
    "aggregated": lambda case: [1 - case.aggregated],
    "heads-aggregated": lambda case: [*case.routing, 1 - case.aggregated],
}
_EASY, _MAX_EASY, _RIDGE = 6.0, 300, 1e-5  # as for the prior: logits, voxels of a case, per voxel


@dataclass(frozen=True)
class Stack:
    """Probabilities combined with features of the head; without weights those of the model."""

    features: str | None = None
    weights: tuple[float, ...] = ()

    @classmethod
    def fit(cls, cases: Iterable[EvaluatedCase], features: str) -> Stack:
        """Fit the weights on cases that have the probabilities and maps that the features are made of."""
        rows = [_rows(case, features) for case in cases]
        x, truth, weight = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        unchanged = (0.0, 1.0, *[0.0] * (x.shape[1] - 1))
        return cls(features, logistic_weights(x, truth, weight, ridge=_RIDGE, otherwise=unchanged))

    def __call__(self, case: EvaluatedCase) -> EvaluatedCase:
        """The case with other probabilities, and the same mask."""
        if self.features is None:
            return case
        constant, *others = self.weights
        inside = expit(constant + _inputs(case.prediction, self.features) @ np.array(others)).astype(np.float32)
        prediction = PredictedCase(
            case.name, model=case.model, softmax=np.stack((1 - inside, inside)), properties=case.prediction.properties
        )
        return replace(case, prediction=prediction)


def _inputs(case: PredictedCase, features: str) -> np.ndarray:
    own = to_logits(case.softmax[1])
    found = [np.sign(own) * to_logits(np.clip(each, 0, 1)) for each in FEATURES[features](case)]
    return np.stack([own, *found], axis=-1).clip(-8, 8)


def _rows(case: EvaluatedCase, features: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, truth = _inputs(case.prediction, features)[case.valid], (case.reference == 1)[case.valid]
    easy = (np.abs(x[:, 0]) > _EASY) & (truth == (x[:, 0] > 0))
    generator = np.random.default_rng(zlib.crc32(case.name.encode()))
    where, weights = sample_voxels([(~easy, truth.size), (easy, _MAX_EASY)], generator)
    return x[where], truth[where], weights
