"""A certificate of 40 patients."""

from __future__ import annotations

from typing import Any

from nnunetv2_deferral.decision.certificate import Certificate
from nnunetv2_deferral.decision.predicted_by import PredictedBy


def certificate(**other: Any) -> Certificate:
    values = {
        "kept_error": 0.2,
        "alpha": 0.1,
        "confidence": 0.9,
        "budget": 0.01,
        "over": "case",
        "groups": 40,
        "violations": 1,
        "grouped": True,
        "median_foreground": 55.0,
        "predicted_by": PredictedBy(folds=("0",)),
        "scores": (0.5, 0.25),
    }
    return Certificate(**values | other)
