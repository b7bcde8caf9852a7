r"""Heads combined with the model's confidence, where a head alone ranks voxels worse than that.

After few epochs a head may know less of the model's errors than the model's own probabilities. The probability
:math:`a_j` that the model, or expert j, is right is then replaced by

.. math:: \sigma\big(w_0 + w_1 \operatorname{logit} a_j + w_2 \operatorname{logit} c\big)

with the model's confidence c, its largest probability. The weights are fitted on validation cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from typing_extensions import TypedDict

from nnunetv2_deferral.arrays import in_chunks, to_logits
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.prior import LARGEST_LOGIT
from nnunetv2_deferral.schema import Boolean, Number, validate
from nnunetv2_deferral.uncertainty import one_minus_max

UNCHANGED = (0.0, 1.0, 0.0)  # weights
HEADS, COMBINED, CONFIDENCE = RANKINGS = ("heads", "combined", "confidence")
_DONE = {
    HEADS: "the heads are kept as they are",
    COMBINED: "both are combined",
    CONFIDENCE: "the confidence replaces the heads",
}
_TOLD = 0.01  # the budget of the statement


class _Stored(TypedDict):
    weights: list[tuple[Number, Number, Number]]
    has_regions: Boolean


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How the J + 1 heads are combined with the model's confidence.

    Attributes:
        weights: For each head, the model's first, the weights (w_0, w_1, w_2).
        has_regions: Whether the model's probabilities are those of regions.
    """

    weights: tuple[tuple[float, float, float], ...]
    has_regions: bool

    def __call__(self, probabilities: np.ndarray, softmax: np.ndarray) -> np.ndarray:
        """Combine probabilities of being right with the confidence.

        Args:
            probabilities: Real floating point (J + 1, *S) in [0, 1], or NaN, which stays.
            softmax: The model's probabilities of classes or regions, real floating point (K, *S).

        Returns:
            float32 (J + 1, *S) in [0, 1].

        Raises:
            InputError: If there is not one channel for each head, shapes differ, or a probability is outside [0, 1].
        """
        if len(probabilities) != len(self.weights):
            raise InputError(f"there are {len(self.weights)} heads to combine, got shape {probabilities.shape}")
        if probabilities.shape[1:] != softmax.shape[1:]:
            raise InputError(f"shapes differ: heads {probabilities.shape[1:]}, probabilities {softmax.shape[1:]}")
        doubt = one_minus_max(softmax, has_regions=self.has_regions)
        combined, start = np.empty((len(self.weights), doubt.size), dtype=np.float32), 0
        for some, *heads in in_chunks(doubt, *probabilities):
            confidence = confidence_logits(some)
            for found, head, (constant, own, other) in zip(combined, heads, self.weights, strict=True):
                logits = constant + own * to_logits(np.nan_to_num(head, nan=0.5)) + other * confidence
                found[start : start + some.size] = np.where(np.isnan(head), np.nan, expit(logits))
            start += some.size
        return combined.reshape(probabilities.shape)

    def to_dict(self) -> dict[str, Any]:
        """The combination as JSON-ready data."""
        return {"weights": [list(each) for each in self.weights], "has_regions": self.has_regions}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str) -> Combination:
        """Restore the data of :meth:`to_dict`.

        Raises:
            InputError: Naming `where`, if a value is missing or of another type.
        """
        validate(content, _Stored, where)
        weights: Sequence[Sequence[float]] = content["weights"]
        return cls(
            weights=tuple((float(constant), float(own), float(other)) for constant, own, other in weights),
            has_regions=content["has_regions"],
        )


def confidence_logits(doubt: np.ndarray) -> np.ndarray:
    """float64 logits of 1 - doubt, clipped because saved probabilities are in half precision.

    Args:
        doubt: Real floating point in [0, 1], from :func:`.one_minus_max`.
    """
    return np.clip(-to_logits(doubt), -LARGEST_LOGIT, LARGEST_LOGIT)


def choice_text(choice: Mapping[str, Any]) -> str:
    """What was found of the heads on patients held back, and what was therefore done, as a sentence.

    Args:
        choice: `chosen`, one of :data:`RANKINGS`, and `budgets`, a row for each `budget` with the share of the oracle's
            gain that is recovered by each of these, or None.
    """
    row = next(row for row in choice["budgets"] if row["budget"] == _TOLD)
    heads, combined, confidence = ("-" if row[name] is None else f"{row[name]:.2f}" for name in RANKINGS)
    return (
        f"on held-out patients, ranking by the heads recovers {heads} of the oracle's gain at {_TOLD:.0%}, ranking by "
        f"the model's confidence {confidence}, and by both combined {combined}: {_DONE[choice['chosen']]}"
    )
