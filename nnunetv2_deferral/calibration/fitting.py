"""Fitting of a model's calibrators and budget thresholds on its validation cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral.calibration.confidence_fitting import ConfidenceFit
from nnunetv2_deferral.calibration.evidence_fitting import fit_gated_evidence, predicted_gains
from nnunetv2_deferral.calibration.forecast_fitting import ForecastFit
from nnunetv2_deferral.calibration.region_thresholds import thresholds_for_regions
from nnunetv2_deferral.calibration.selection import Selection, select_by_statistics
from nnunetv2_deferral.calibration.validation_cases import ValidationCases
from nnunetv2_deferral.decision.assignment import thresholds_within_limits
from nnunetv2_deferral.decision.calibrators import IDENTITY, Calibrator, apply
from nnunetv2_deferral.decision.limits import DATASET, Limits
from nnunetv2_deferral.decision.model_calibration import (
    CALIBRATION_KEY,
    FittedEvidence,
    FittedThresholds,
    ModelCalibration,
)
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.head_statistics import HeadStatistics
from nnunetv2_deferral.evaluation.reliability import ReliabilityStatistics
from nnunetv2_deferral.files import read_json, without_nan, write_json
from nnunetv2_deferral.routing import ONE_VS_ALL
from nnunetv2_deferral.settings import STOCK_KEY

_PARTS = 5  # of the groups, held back in turn to check calibrators


def calibrate(
    cases: ValidationCases,
    limits: Sequence[Limits] = (),
    *,
    evidence: bool = True,
    exchangeable: bool = False,
    forecast: bool = False,
) -> ModelCalibration:
    """Fit calibrators, then how answers are read as evidence, then thresholds for limits over a dataset.

    Args:
        cases: The cases to fit on.
        limits: The limits to fit thresholds for.
        evidence: Whether to fit how answers are read as evidence; it is only kept if it does not do worse than
            replacing labels, see :func:`.fit_gated_evidence`.
        exchangeable: Whether the experts are anonymous readers, see :func:`.fit_tables`.
        forecast: Whether to fit forests that predict the Dice of a case, see :class:`.ForecastFit`.

    Returns:
        The calibration. Its report has for each head the calibrator, held-out log losses, and bias and expected
        calibration error before and after calibration, over all voxels and over the least certain ones, each group's
        after calibration by calibrators fitted on others (None for too few groups); and the comparison of evidence with
        replacement. The heads of the paper's objective, which are probabilities of routes and not of being right, stay
        as they are.

    Raises:
        InputError: If the model or an available expert has labels in fewer than two groups of cases, neither heads nor
            evidence can be fitted, or there are fewer than 10 cases for the forests.
    """
    has_heads = cases.settings.objective == ONE_VS_ALL
    if not has_heads and not evidence:
        raise InputError(
            f'the objective "{cases.settings.objective}" predicts probabilities of routes, not of being right, which '
            "cannot be calibrated. Fit how answers are read as evidence (without --replace), or thresholds only "
            "(--thresholds_only -budgets ...), or train with one-vs-all (_OvA)"
        )
    names = ("model", *cases.settings.expert_names)
    every, confidence = [HeadStatistics() for _ in names], ConfidenceFit(cases)
    dice = ForecastFit(cases, cases.files.class_names) if forecast else None
    for case in tqdm(cases, total=len(cases.cases), desc="Reading", unit="case"):
        if has_heads:
            right, known = case.right, case.known & case.prediction.predicted
            for head, statistics in enumerate(every):
                statistics.update(cases.group(case.name), case.prediction.routing[head], right[head], known[head])
        confidence.update(case)
        if dice is not None:
            dice.update(case)
    report = _origin(cases) | {"heads": {}}
    heads = _identities(cases)
    if has_heads:
        can_be_asked = (True, *cases.settings.available)
        fits = _fits(names, every, can_be_asked)
        heads = tuple(each.calibrator for each in fits)
        before, after = _reliability(cases, names, every, can_be_asked)
        report["heads"] = {
            name: {
                "map": fit.calibrator.to_dict(),
                "log_loss": fit.log_loss,
                **{
                    part: {"before": _errors(before, name, part), "after": _errors(after, name, part)}
                    for part in ("all", "least_certain")
                },
            }
            for name, fit in zip(names, fits, strict=True)
        }
    forests = None
    if dice is not None:
        forests, report["predicted_dice"] = dice.forecast()
    fitted = None
    if evidence:
        fitted, report["evidence"] = fit_gated_evidence(cases, heads, exchangeable=exchangeable)
    return ModelCalibration(
        experts=cases.settings.expert_names,
        heads=heads,
        thresholds=_fit_thresholds(cases, heads, limits, fitted) if limits else (),
        evidence=fitted,
        confidence=confidence.rule(),
        forecast=forests,
        report=without_nan(report),
    )


def leave_uncalibrated(cases: ValidationCases, limits: Sequence[Limits]) -> ModelCalibration:
    """Fit thresholds for limits over a dataset only; probabilities are unchanged, with any objective.

    Returns:
        The calibration, with the identity for each head and no heads in its report.
    """
    heads = _identities(cases)
    return ModelCalibration(
        experts=cases.settings.expert_names,
        heads=heads,
        thresholds=_fit_thresholds(cases, heads, limits, None),
        report=without_nan(_origin(cases) | {"heads": {}}),
    )


def fit_thresholds(cases: ValidationCases, limits: Sequence[Limits]) -> ModelCalibration:
    """Fit thresholds for limits over a dataset, and keep the calibration that the model has.

    Without one, probabilities are unchanged.

    Returns:
        The calibration with these thresholds, and with its own for other limits. A certificate of a budget over a
        dataset is removed, because it was of its own thresholds.

    Raises:
        InputError: If the model's calibration cannot be read.
    """
    current = cases.calibration
    if current is None:
        return leave_uncalibrated(cases, limits)
    fitted = _fit_thresholds(cases, current.heads, limits, current.evidence)
    others = [each for each in current.thresholds if not any(each.are_for(new) for new in fitted)]
    certificate = current.certificate
    return replace(
        current,
        thresholds=(*fitted, *others),
        certificate=None if certificate is None or certificate.over == DATASET else certificate,
        # Retraining any of these folds removes the calibration.
        report={**current.report, "folds": sorted({*current.report.get("folds", []), *cases.experiment.folds})},
    )


def write_calibration(calibration: ModelCalibration, cases: ValidationCases) -> Path:
    """Write a calibration to the plans in the folder of its model, atomically; returns the file."""
    file = cases.model / "plans.json"
    stock = {STOCK_KEY: cases.settings.to_dict()} if cases.is_stock else {}
    write_json(read_json(file) | stock | {CALIBRATION_KEY: calibration.to_dict()}, file)
    return file


def _identities(cases: ValidationCases) -> tuple[Calibrator, ...]:
    """Calibrators that change nothing."""
    return (IDENTITY,) * (cases.settings.num_experts + 1)


def _origin(cases: ValidationCases) -> dict[str, Any]:
    """What a calibration was fitted on, for its report."""
    return {
        "dataset": cases.experiment.dataset,
        "folds": list(cases.experiment.folds),
        "cases": [case for _, case in cases.cases],
        "experts": cases.experts.to_dict(),
    }


def _fits(names: Sequence[str], every: Sequence[HeadStatistics], can_be_asked: Sequence[bool]) -> list[Selection]:
    """The calibrator of each head; of experts who cannot be asked the identity."""
    fits = []
    for name, statistics, can in zip(names, every, can_be_asked, strict=True):
        try:
            fits.append(select_by_statistics(statistics) if can else Selection(IDENTITY, {}))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    return fits


def _reliability(
    cases: ValidationCases, names: Sequence[str], every: Sequence[HeadStatistics], can_be_asked: Sequence[bool]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The reliability of all heads before calibration, and after calibration by calibrators fitted on other groups.

    The latter is None if too few groups have labels of all heads to fit calibrators without some of them.
    """
    groups = sorted({cases.group(case) for _, case in cases.cases})
    parts = [set(groups[part::_PARTS]) for part in range(min(_PARTS, len(groups)))]
    try:
        fitted = [
            [
                fit.calibrator
                for fit in _fits(names, [each.of_groups(set(groups) - part) for each in every], can_be_asked)
            ]
            for part in parts
        ]
    except InputError:
        fitted = []
    before, after = ReliabilityStatistics(names), ReliabilityStatistics(names)
    for case in tqdm(cases, total=len(cases.cases), desc="Checking", unit="case"):
        nobody = np.zeros(case.reference.shape, dtype=np.uint8)
        before.update(case.name, case.prediction.routing, case.right, case.known, nobody)
        if fitted:
            (part,) = (place for place, held_back in enumerate(parts) if cases.group(case.name) in held_back)
            # Nothing was predicted where the model's probability is NaN.
            calibrated = np.where(
                ~case.prediction.predicted, np.nan, apply(fitted[part], np.nan_to_num(case.prediction.routing))
            )
            after.update(case.name, calibrated, case.right, case.known, nobody)
    return before.summary()["heads"], after.summary()["heads"] if fitted else None


def _fit_thresholds(
    cases: ValidationCases, heads: Sequence[Calibrator], limits: Sequence[Limits], evidence: FittedEvidence | None
) -> tuple[FittedThresholds, ...]:
    def read(doing: str = "Routing regions") -> Iterator[tuple[np.ndarray, tuple[float, ...]]]:
        for fold, case in tqdm(cases.cases, desc=doing, unit="case"):
            prediction = cases.prediction(fold, case)
            yield predicted_gains(cases, prediction, heads, evidence), prediction.spacing

    kept, voxels = [], 0
    for gained, _ in read("Ranking"):
        flat = gained.reshape(len(gained), -1)
        kept.append(flat[:, (flat > 0).any(0)])
        voxels += flat[0].size
    gains = np.concatenate(kept, axis=1)
    found: dict[Limits, tuple[np.ndarray, float]] = {}
    for limit in limits:
        thresholds = thresholds_within_limits(
            gains, num_voxels=voxels, budget=limit.budget, capacities=limit.capacities
        )
        deferred = np.count_nonzero((gains > thresholds[:, None]).any(0))
        found[limit] = thresholds, deferred / max(voxels, 1)
    in_regions = [limit for limit in limits if limit.min_region_mm is not None]
    found |= zip(in_regions, thresholds_for_regions(read, in_regions, gains, voxels), strict=True)
    return tuple(
        FittedThresholds(limit.budget, limit.capacities, tuple(map(float, thresholds)), rate, limit.min_region_mm)
        for limit, (thresholds, rate) in ((limit, found[limit]) for limit in limits)
    )


def _errors(heads: Mapping[str, Any] | None, name: str, part: str) -> dict[str, Any]:
    """The errors of a head, None where they are unknown."""
    return {key: None if heads is None else heads[name][part]["before"][key] for key in ("ece", "bias")}
