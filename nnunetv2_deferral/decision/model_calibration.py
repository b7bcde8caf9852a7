"""The calibration of a model, stored in its plans: calibration maps and budget thresholds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.decision.calibrators import Calibrator, apply, calibrator_from_dict
from nnunetv2_deferral.decision.certificate import Certificate
from nnunetv2_deferral.decision.combination import Combination, choice_text
from nnunetv2_deferral.decision.confidence import ConfidenceRule
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.predicted_by import PredictedBy
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.files import without_nan
from nnunetv2_deferral.forecast.forest import DiceForecast
from nnunetv2_deferral.text import fingerprint

# The entry of the plans in the model folder.
CALIBRATION_KEY = "deferral_calibration"
_ENTRY = f'the "{CALIBRATION_KEY}" entry of the plans'
COMBINATION_KEY, FORECAST_KEY = "combination", "forecast"  # within it
_WITHOUT_EFFECT = ("certificate", "confidence", FORECAST_KEY, "report")  # on maps


@dataclass(frozen=True)
class FittedThresholds:
    """The thresholds with which limits over the validation cases were met.

    Attributes:
        budget: Share of all voxels that may be deferred, or None.
        capacities: Share of all voxels that may go to each expert, or None.
        thresholds: t_j, one per expert. A voxel is deferred to the expert with the highest gain minus t_j if that is
            positive. inf for an expert who is never asked.
        rate: The share of the validation voxels that was deferred.
        min_region_mm: The minimum size of the regions that were deferred; None if these were single voxels.
    """

    budget: float | None
    capacities: tuple[float | None, ...] | None
    thresholds: tuple[float, ...]
    rate: float
    min_region_mm: float | None = None

    def are_for(self, limits: Limits | FittedThresholds) -> bool:
        """Whether they keep these limits, or the same limits as others."""
        asked = (limits.budget, limits.capacities, limits.min_region_mm)
        return asked == (self.budget, self.capacities, self.min_region_mm)

    def to_dict(self) -> dict[str, Any]:
        """The thresholds as JSON-ready data."""
        # Without regions as in earlier versions, so that their fingerprints remain.
        regions = {} if self.min_region_mm is None else {"min_region_mm": self.min_region_mm}
        return regions | {
            "budget": self.budget,
            "capacities": None if self.capacities is None else list(self.capacities),
            "thresholds": without_nan(self.thresholds),  # JSON has no inf
            "rate": self.rate,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FittedThresholds:
        """Restore thresholds from the data of :meth:`to_dict`."""
        capacities = content["capacities"]
        return cls(
            budget=content["budget"],
            capacities=None if capacities is None else tuple(capacities),
            thresholds=tuple(math.inf if each is None else float(each) for each in content["thresholds"]),
            rate=float(content["rate"]),
            min_region_mm=None if (size := content.get("min_region_mm")) is None else float(size),
        )


@dataclass(frozen=True, kw_only=True)
class FittedEvidence:
    """An evidence model and the experts whose answers it was fitted on.

    Attributes:
        model: The evidence model.
        answered_by: The experts, in routing order, as in plans: names of raters, profiles of simulated experts. The
            model says nothing about the answers of others.
    """

    model: EvidenceModel
    answered_by: tuple[Any, ...]

    def applies_to(self, experts: Sequence[Any]) -> bool:
        """Whether these are the experts, as JSON-ready data (:func:`.experts_to_json`), that it was fitted on."""
        return list(self.answered_by) == list(experts)

    def to_dict(self) -> dict[str, Any]:
        """The model and its experts as JSON-ready data."""
        return {"model": self.model.to_dict(), "answered_by": list(self.answered_by)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> FittedEvidence:
        """Restore the data of :meth:`to_dict`."""
        return cls(model=EvidenceModel.from_dict(content["model"]), answered_by=tuple(content["answered_by"]))


@dataclass(frozen=True, kw_only=True)
class ModelCalibration:
    """The calibration that `nnUNetv2_deferral_calibrate` writes to the plans of a model folder.

    Attributes:
        experts: The names of the experts in routing order.
        heads: The calibrators of the J + 1 probabilities, the model's first.
        combination: How the heads are combined with the model's confidence before they are calibrated; None if they are
            not.
        thresholds: One entry for each requested budget over a dataset.
        evidence: How answers are read as evidence; None if an answer replaces the model's label.
        certificate: What is guaranteed about kept errors, or None.
        confidence: The rule that asks by the model's own confidence, with which evaluations compare; or None.
        forecast: What predicts the Dice of a case, or None.
        report: Cases used and quality of the fit, for information only.
    """

    experts: tuple[str, ...]
    heads: tuple[Calibrator, ...]
    combination: Combination | None = None
    thresholds: tuple[FittedThresholds, ...] = ()
    evidence: FittedEvidence | None = None
    certificate: Certificate | None = None
    confidence: ConfidenceRule | None = None
    forecast: DiceForecast | None = None
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_softmax(self) -> bool:
        """Whether the decision needs the model's probabilities of classes or regions."""
        return self.evidence is not None or self.combination is not None

    def combined(self, probabilities: np.ndarray, softmax: np.ndarray | None) -> np.ndarray:
        """What the calibrators are for: the probabilities (J + 1, *S), combined with the confidence if they are to be.

        Args:
            probabilities: As in :func:`.calibrators.apply`.
            softmax: The model's probabilities of classes or regions (K, *S); only needed for a combination.

        Raises:
            InputError: If `softmax` is needed and missing, or see :meth:`.Combination.__call__`.
        """
        if self.combination is None:
            return probabilities
        if softmax is None:
            raise InputError("this calibration combines the heads with the model's confidence, which is missing")
        return self.combination(probabilities, softmax)

    def apply(self, probabilities: np.ndarray, softmax: np.ndarray | None = None) -> np.ndarray:
        """Combine (see :meth:`combined`) and calibrate probabilities (J + 1, *S); float32 of the same shape."""
        return apply(self.heads, self.combined(probabilities, softmax))

    def thresholds_for(self, limits: Limits) -> np.ndarray:
        """The thresholds t_j, float64 (J,), for limits over a dataset.

        Raises:
            InputError: If none were fitted for these limits; the message lists the limits with thresholds.
        """
        for fitted in self.thresholds:
            if fitted.are_for(limits):
                return np.array(fitted.thresholds)
        raise InputError(
            f"no thresholds were fitted for {_words(limits)} over a dataset "
            f"(fitted: {'; '.join(map(_words, self.thresholds)) or 'none'}). "
            "Fit them on the validation cases: nnUNetv2_deferral_calibrate ... -budgets"
            f"{'' if limits.min_region_mm is None else ' -min_region_mm'}"
        )

    @property
    def ranking_statement(self) -> str | None:
        """What was found of the heads on patients held back; None if that was not tried."""
        choice = self.report.get("ranking")
        return None if choice is None else choice_text(choice)

    @property
    def seen(self) -> frozenset[str]:
        """The names of the cases that anything was fitted on or certified with."""
        found = {*self.report.get("cases", ()), *self.report.get("certification", {}).get("cases", ())}
        return frozenset(found)

    @property
    def fingerprint(self) -> str:
        """A short hash of everything that affects the maps, i.e. without certificate, baseline, forecast and report."""
        fitted = {key: value for key, value in self.to_dict().items() if key not in _WITHOUT_EFFECT}
        return fingerprint(fitted)

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON-ready data; the inverse of :meth:`from_dict`."""
        return {
            "experts": list(self.experts),
            "heads": [each.to_dict() for each in self.heads],
            # Left out rather than None, as in earlier versions, so that their fingerprints remain.
            **({} if self.combination is None else {COMBINATION_KEY: self.combination.to_dict()}),
            "thresholds": [each.to_dict() for each in self.thresholds],
            "evidence": None if self.evidence is None else self.evidence.to_dict(),
            "certificate": None if self.certificate is None else self.certificate.to_dict(),
            "confidence": None if self.confidence is None else self.confidence.to_dict(),
            **({} if self.forecast is None else {FORECAST_KEY: self.forecast.to_dict()}),
            "report": dict(self.report),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], experts: Sequence[str], entry: str = _ENTRY) -> ModelCalibration:
        """Restore the calibration of a model with these experts from the entry of its plans.

        Args:
            content: The entry.
            experts: The names of the J experts in routing order.
            entry: What messages call it.

        Raises:
            InputError: If the entry belongs to another model or is not of the form of :meth:`to_dict`.
        """
        try:
            found = cls(
                experts=tuple(content["experts"]),
                heads=tuple(calibrator_from_dict(each) for each in content["heads"]),
                thresholds=tuple(FittedThresholds.from_dict(each) for each in content["thresholds"]),
                # Calibrations of earlier versions have neither.
                evidence=None if content.get("evidence") is None else FittedEvidence.from_dict(content["evidence"]),
                report=content["report"],
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{entry} cannot be read: {error!r}") from error
        if found.experts != tuple(experts) or len(found.heads) != len(experts) + 1:
            raise InputError(
                f"{entry} belongs to another model: it has {len(found.heads)} probabilities for the experts "
                f"{', '.join(found.experts)}, but the model's experts are {', '.join(experts)}"
            )
        if (combination := content.get(COMBINATION_KEY)) is not None:
            found = replace(found, combination=Combination.from_dict(combination, f"{entry}: {COMBINATION_KEY}"))
            if found.combination is not None and len(found.combination.weights) != len(found.heads):
                raise InputError(
                    f"{entry}: {COMBINATION_KEY}.weights must be of {len(found.heads)} heads, got "
                    f"{len(found.combination.weights)}"
                )
        if (certificate := content.get("certificate")) is not None:
            found = replace(found, certificate=Certificate.from_dict(certificate, f"{entry}: certificate"))
        if (confidence := content.get("confidence")) is not None:
            found = replace(found, confidence=ConfidenceRule.from_dict(confidence, f"{entry}: confidence"))
            if found.confidence is not None and found.confidence.expert not in experts:
                raise InputError(f"{entry}: confidence.expert must be one of {', '.join(experts)}")
        if (forecast := content.get(FORECAST_KEY)) is not None:
            found = replace(found, forecast=DiceForecast.from_dict(forecast, f"{entry}: {FORECAST_KEY}"))
        if found.evidence is not None and found.evidence.model.experts != tuple(experts):
            raise InputError(
                f"{entry} has evidence of the experts {', '.join(found.evidence.model.experts)}, but the model's "
                f"experts are {', '.join(experts)}"
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
    """The entry in the plans of a model folder, unless it was fitted on a fold that is about to be retrained.

    nnU-Net rewrites the plans of the model folder whenever a fold is trained; a calibration fitted on other folds
    remains valid.

    Returns:
        The entry, or None if there is none or it was fitted on `fold`.
    """
    try:
        content = json.loads(plans_file.read_text()).get(CALIBRATION_KEY)
    except (OSError, ValueError):
        return None  # missing or truncated; nnU-Net writes them again
    return None if content is None or str(fold) in PredictedBy.noted(content.get("report", {})).folds else content


def _words(limits: Limits | FittedThresholds) -> str:
    words = [] if limits.budget is None else [f"a budget of {limits.budget:g}"]
    if limits.capacities is not None:
        each = ("none" if capacity is None else f"{capacity:g}" for capacity in limits.capacities)
        words.append(f"capacities of {', '.join(each)}")
    found = " with ".join(words) or "no limit"
    return found if limits.min_region_mm is None else f"{found} in regions of {limits.min_region_mm:g} mm"
