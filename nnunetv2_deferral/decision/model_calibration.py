"""What was fitted on a model's validation cases and is kept in its plans: calibration maps and budget thresholds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.decision.calibrators import Calibrator, apply, calibrator_from_dict
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import without_nan

# The entry of the plans in the model folder.
CALIBRATION_KEY = "deferral_calibration"


@dataclass(frozen=True)
class FittedThresholds:
    """The price of asking each expert with which a budget over the validation cases was met.

    Attributes:
        budget: Share of all voxels that may be deferred, or None.
        capacities: Share of all voxels that may go to each expert, or None.
        thresholds: t_j, one an expert: asked is whoever has the highest gain less t_j, where that is positive. inf for
            an expert who is never asked.
        rate: The share of the validation voxels that was deferred.
    """

    budget: float | None
    capacities: tuple[float | None, ...] | None
    thresholds: tuple[float, ...]
    rate: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "budget": self.budget,
            "capacities": None if self.capacities is None else list(self.capacities),
            "thresholds": without_nan(self.thresholds),  # JSON knows no inf
            "rate": self.rate,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FittedThresholds:
        """What :meth:`to_dict` wrote."""
        capacities = content["capacities"]
        return cls(
            budget=content["budget"],
            capacities=None if capacities is None else tuple(capacities),
            thresholds=tuple(math.inf if each is None else float(each) for each in content["thresholds"]),
            rate=float(content["rate"]),
        )


@dataclass(frozen=True, kw_only=True)
class ModelCalibration:
    """What `nnUNetv2_deferral_calibrate` writes into the plans of a model folder.

    Attributes:
        experts: The names of the experts in routing order.
        heads: How to calibrate the J + 1 probabilities, the model's first.
        thresholds: For each budget over a dataset that was asked for.
        report: On what it was fitted and how good it is; for people.
    """

    experts: tuple[str, ...]
    heads: tuple[Calibrator, ...]
    thresholds: tuple[FittedThresholds, ...] = ()
    report: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float32 of the same shape (J + 1, *S)."""
        return apply(self.heads, probabilities)

    def thresholds_for(self, limits: Limits) -> np.ndarray:
        """The thresholds t_j, float64 (J,), that keep limits over a dataset.

        Raises:
            InputError: If none were fitted for these limits; the message lists those that were.
        """
        for fitted in self.thresholds:
            if (fitted.budget, fitted.capacities) == (limits.budget, limits.capacities):
                return np.array(fitted.thresholds)
        raise InputError(
            f"no thresholds were fitted for {_words(limits.budget, limits.capacities)} over a dataset "
            f"(fitted: {'; '.join(_words(each.budget, each.capacities) for each in self.thresholds) or 'none'}). "
            "Fit them on the validation cases: nnUNetv2_deferral_calibrate ... -budgets"
        )

    @property
    def fingerprint(self) -> str:
        """Short, and another one for whatever makes other maps: what was fitted, not the report on it."""
        fitted = {key: value for key, value in self.to_dict().items() if key != "report"}
        return hashlib.sha256(json.dumps(fitted, sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """As JSON, :meth:`from_dict` reads it back."""
        return {
            "experts": list(self.experts),
            "heads": [each.to_dict() for each in self.heads],
            "thresholds": [each.to_dict() for each in self.thresholds],
            "report": dict(self.report),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], experts: Sequence[str]) -> ModelCalibration:
        """Read the entry of the plans of a model with these experts.

        Raises:
            InputError: If it is of another model, or not as :meth:`to_dict` writes it.
        """
        entry = f'the "{CALIBRATION_KEY}" entry of the plans'
        try:
            found = cls(
                experts=tuple(content["experts"]),
                heads=tuple(calibrator_from_dict(each) for each in content["heads"]),
                thresholds=tuple(FittedThresholds.from_dict(each) for each in content["thresholds"]),
                report=content["report"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{entry} cannot be read: {error!r}") from error
        if found.experts != tuple(experts) or len(found.heads) != len(experts) + 1:
            raise InputError(
                f"{entry} is of another model: it has {len(found.heads)} probabilities for the experts "
                f"{', '.join(found.experts)}, and the model asks {', '.join(experts)}"
            )
        for fitted in found.thresholds:
            if len(fitted.thresholds) != len(experts):
                raise InputError(
                    f"{entry} has {len(fitted.thresholds)} thresholds for the budget {fitted.budget}, but there are "
                    f"{len(experts)} experts"
                )
            if not all(threshold >= 0 for threshold in fitted.thresholds):
                raise InputError(f"{entry} has thresholds {list(fitted.thresholds)}, which must not be negative")
        return found


def calibration_of_other_folds(plans_file: Path, fold: int | str) -> dict[str, Any] | None:
    """The entry in the plans of a model folder, if it was fitted without a fold that is about to be trained anew.

    nnU-Net writes the plans of the model folder whenever a fold is trained, and what was fitted on other folds is still
    true then.
    """
    try:
        content = json.loads(plans_file.read_text()).get(CALIBRATION_KEY)
    except (OSError, ValueError):
        return None  # there are none yet, or they were cut short and are written anew
    return None if content is None or fold in content.get("report", {}).get("folds", []) else content


def _words(budget: float | None, capacities: Sequence[float | None] | None) -> str:
    words = [] if budget is None else [f"a budget of {budget:g}"]
    if capacities is not None:
        words.append(f"capacities of {', '.join('none' if each is None else f'{each:g}' for each in capacities)}")
    return " with ".join(words) or "no limit"
