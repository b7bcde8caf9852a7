"""Fitting of a model's calibrators and budget thresholds on its validation cases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases, Pair
from nnunetv2_deferral.calibration.confidence_fitting import ConfidenceFit
from nnunetv2_deferral.calibration.evidence_fitting import fit_gated_evidence, predicted_gains
from nnunetv2_deferral.calibration.forecast_fitting import ForecastFit
from nnunetv2_deferral.calibration.head_choice import Rows, choose_ranking, fit_combined, rows_of
from nnunetv2_deferral.calibration.region_thresholds import Trial, routed_voxels, thresholds_for_regions
from nnunetv2_deferral.calibration.selection import Selection, select_by_statistics
from nnunetv2_deferral.decision.assignment import thresholds_within_limits
from nnunetv2_deferral.decision.calibrators import IDENTITY
from nnunetv2_deferral.decision.combination import CONFIDENCE, HEADS, RANKINGS
from nnunetv2_deferral.decision.limits import DATASET, Limits
from nnunetv2_deferral.decision.model_calibration import (
    CALIBRATION_KEY,
    FittedThresholds,
    ModelCalibration,
)
from nnunetv2_deferral.decision.predicted_by import PredictedBy
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.head_statistics import HeadStatistics
from nnunetv2_deferral.evaluation.reliability import ReliabilityStatistics
from nnunetv2_deferral.files import read_json, without_nan, write_json
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.parts import in_order
from nnunetv2_deferral.routing import ONE_VS_ALL
from nnunetv2_deferral.settings import STOCK_KEY
from nnunetv2_deferral.text import fingerprint

_FEWEST = 6  # groups, to choose between rankings
_PARTS = 5  # of the groups, held back in turn to check calibrators


@dataclass(frozen=True, kw_only=True)
class FirstReading:
    """What is needed of each case before anything is fitted.

    Attributes:
        heads: The statistics of the J + 1 heads, without voxels for the paper's objective.
        rows: For each case and head what a combination is fitted on, see :func:`.rows_of`; none for the paper's
            objective and stock networks.
        confidence: What the rule of the model's own confidence is chosen by.
        forecast: What forests are fitted on that predict the Dice; None if there are to be none.
    """

    heads: Sequence[HeadStatistics]
    rows: dict[str, list[Rows]]
    confidence: ConfidenceFit
    forecast: ForecastFit | None

    @classmethod
    def merged(cls, parts: Sequence[FirstReading], cases: CalibrationCases) -> FirstReading:
        """What was found in all parts, equal up to rounding to what is found in all these cases."""
        forecasts = [part.forecast for part in parts if part.forecast is not None]
        return cls(
            heads=[HeadStatistics.merged(each) for each in zip(*(part.heads for part in parts), strict=True)],
            rows=in_order([part.rows for part in parts], cases.names) if any(part.rows for part in parts) else {},
            confidence=ConfidenceFit.merged([part.confidence for part in parts], cases.names),
            forecast=ForecastFit.merged(forecasts, cases.names) if forecasts else None,
        )


@dataclass(frozen=True, kw_only=True)
class RankedGains:
    """What thresholds are fitted on.

    Attributes:
        of_cases: For each case the gains of asking each expert where one is positive, float32 (J, m).
        voxels: The number of all voxels.
    """

    of_cases: dict[str, np.ndarray]
    voxels: int

    @classmethod
    def merged(cls, parts: Sequence[RankedGains], cases: CalibrationCases) -> RankedGains:
        """The gains of the cases of all parts, which are these, in their order."""
        return cls(
            of_cases=in_order([part.of_cases for part in parts], cases.names),
            voxels=sum(part.voxels for part in parts),
        )


def read_first(cases: CalibrationCases, *, forecast: bool = False) -> FirstReading:
    """Read each case once, for what is needed before anything is fitted; see :func:`calibrate`."""
    return FirstReading.merged(cases.in_pieces(partial(_read_piece, forecast), "Reading"), cases)


def rank_gains(cases: CalibrationCases) -> RankedGains:
    """The gains of all cases with the calibration that the model has, for :func:`fit_thresholds`."""
    current = cases.calibration
    return _rank(cases, _uncalibrated(cases) if current is None else current)


def same_for_all_parts(cases: CalibrationCases, *, thresholds_only: bool, forecast: bool) -> dict[str, Any]:
    """What parts of :func:`read_first`, or of :func:`rank_gains`, must have in common, as JSON.

    Args:
        cases: The cases to fit on.
        thresholds_only: Whether the parts are of :func:`rank_gains`.
        forecast: See :func:`calibrate`.
    """
    current = cases.calibration if thresholds_only else None
    return _origin(cases) | {
        "cases": fingerprint(cases.cases),
        "groups": fingerprint({case: cases.group(case) for case in cases.names}),
        "settings": fingerprint(cases.settings.to_dict()),
        "predictions": fingerprint(cases.decided),
        "files": cases.state,
        "calibration": None if current is None else fingerprint(current.to_dict()),
        "--thresholds_only": thresholds_only,
        "--predict_dice": forecast,
        "versions": versions(),
    }


def calibrate(
    cases: CalibrationCases,
    limits: Sequence[Limits] = (),
    *,
    evidence: bool = True,
    exchangeable: bool = False,
    keep_heads: bool = False,
    forecast: bool = False,
    first: FirstReading | None = None,
) -> ModelCalibration:
    """Fit calibrators, then how answers are read as evidence, then thresholds for limits over a dataset.

    Heads that rank voxels of patients held back clearly better combined with the model's confidence are combined, see
    :mod:`.head_choice`.

    Args:
        cases: The cases to fit on.
        limits: The limits to fit thresholds for.
        evidence: Whether to fit how answers are read as evidence; it is only kept if it does not do worse than
            replacing labels, see :func:`.fit_gated_evidence`.
        exchangeable: Whether the experts are anonymous readers, see :func:`.fit_tables`.
        keep_heads: Whether not to try what the heads gain from the model's confidence.
        forecast: Whether to fit forests that predict the Dice of a case, see :class:`.ForecastFit`.
        first: What was found in the cases by :func:`read_first`; None to read them.

    Returns:
        The calibration. Its report has for each head the calibrator, held-out log losses, and bias and expected
        calibration error before and after calibration, over all voxels and over the least certain ones, each group's
        after calibration by calibrators fitted on others (None for too few groups); the comparison of evidence with
        replacement; and `ranking`, that of the heads with the model's confidence, where heads may be combined. The
        heads of the paper's objective, which are probabilities of routes and not of being right, stay as they are.

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
    first = read_first(cases, forecast=forecast) if first is None else first
    report = _origin(cases) | {"heads": {}} | cases.attempted
    rule = _uncalibrated(cases)
    rule_without: Callable[[Collection[str]], ModelCalibration] = partial(_as_it_is, rule)
    if has_heads:
        can_be_asked = (True, *cases.settings.available)
        fits = _fits(names, first.heads, can_be_asked)
        parts = _parts(cases)
        combines = not keep_heads and bool(first.rows) and len({*map(cases.group, cases.names)}) >= _FEWEST
        without = _fitted_without(parts, cases, names, first, can_be_asked, RANKINGS if combines else (HEADS,))
        chosen = HEADS
        if combines and without:
            report["ranking"] = choose_ranking(cases, without, parts)
            chosen = report["ranking"]["chosen"]
        before, after = _reliability(cases, names, [each[chosen] for each in without], parts)
        rule = replace(rule, heads=tuple(each.calibrator for each in fits))
        if chosen != HEADS:
            rule = _combined(cases, [*first.rows.values()], can_be_asked, chosen)
            fits = [Selection(each, {}) for each in rule.heads]
        rule_without = partial(_rule_without, cases, names, first, can_be_asked, chosen, rule)
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
    if first.forecast is not None:
        forests, report["predicted_dice"] = first.forecast.forecast()
    fitted = None
    if evidence:
        fitted, report["evidence"] = fit_gated_evidence(cases, rule, rule_without, exchangeable=exchangeable)
    rule = replace(rule, evidence=fitted)
    return replace(
        rule,
        thresholds=_fit_thresholds(cases, rule, limits) if limits else (),
        confidence=first.confidence.rule(),
        forecast=forests,
        report=without_nan(report),
    )


def leave_uncalibrated(
    cases: CalibrationCases, limits: Sequence[Limits], ranked: RankedGains | None = None
) -> ModelCalibration:
    """Fit thresholds for limits over a dataset only; probabilities are unchanged, with any objective.

    Returns:
        The calibration, with the identity for each head and no heads in its report.
    """
    rule = _uncalibrated(cases)
    return replace(
        rule,
        thresholds=_fit_thresholds(cases, rule, limits, ranked),
        report=without_nan(_origin(cases) | {"heads": {}} | cases.attempted),
    )


def fit_thresholds(
    cases: CalibrationCases, limits: Sequence[Limits], ranked: RankedGains | None = None
) -> ModelCalibration:
    """Fit thresholds for limits over a dataset, and keep the calibration that the model has.

    Without one, probabilities are unchanged.

    Args:
        cases: The cases to fit on.
        limits: The limits.
        ranked: What was found in the cases by :func:`rank_gains`; None to read them.

    Returns:
        The calibration with these thresholds, and with its own for other limits. A certificate of a budget over a
        dataset is removed, because it was of its own thresholds.

    Raises:
        InputError: If the model's calibration cannot be read, or is of final validations and the cases of predictions,
            or the other way round.
    """
    current = cases.calibration
    if current is None:
        return leave_uncalibrated(cases, limits, ranked)
    kept, own = PredictedBy.noted(current.report), cases.predicted_by
    if kept.prediction != own.prediction:
        raise InputError(
            f"the calibration that is kept (--thresholds_only) was fitted on {kept.words}, not on {own.words}"
        )
    fitted = _fit_thresholds(cases, current, limits, ranked)
    others = [each for each in current.thresholds if not any(each.are_for(new) for new in fitted)]
    certificate, report = current.certificate, dict(current.report)
    if certificate is not None and certificate.over == DATASET:
        certificate, report = None, report | cases.attempted
        report.pop("certification", None)
    # Retraining any of these folds removes the calibration, and evaluations say that they see these cases again.
    report |= replace(own, folds=tuple(sorted({*kept.folds, *own.folds}))).to_dict()
    report["cases"] = [*dict.fromkeys([*report.get("cases", ()), *cases.names])]
    return replace(current, thresholds=(*fitted, *others), certificate=certificate, report=report)


def write_calibration(calibration: ModelCalibration, cases: CalibrationCases) -> Path:
    """Write a calibration to the plans in the folder of its model, atomically; returns the file."""
    file = cases.model / "plans.json"
    stock = {STOCK_KEY: cases.settings.to_dict()} if cases.is_stock else {}
    write_json(read_json(file) | stock | {CALIBRATION_KEY: calibration.to_dict()}, file)
    return file


def _read_piece(forecast: bool, cases: CalibrationCases) -> FirstReading:
    every = [HeadStatistics() for _ in range(cases.settings.num_experts + 1)]
    confidence, dice = ConfidenceFit(cases), ForecastFit(cases.files) if forecast else None
    rows: dict[str, list[Rows]] = {}
    for case in cases:
        if cases.settings.objective == ONE_VS_ALL:
            right, known = case.right, case.known & case.prediction.predicted
            for head, statistics in enumerate(every):
                statistics.update(cases.group(case.name), case.prediction.routing[head], right[head], known[head])
            if not cases.is_stock:  # whose heads are its confidence
                rows[case.name] = rows_of(case, has_regions=cases.files.label_manager.has_regions)
        confidence.update(case)
        if dice is not None:
            dice.update(case, cases.group(case.name))
    return FirstReading(heads=every, rows=rows, confidence=confidence, forecast=dice)


def _uncalibrated(cases: CalibrationCases) -> ModelCalibration:
    """A calibration that changes nothing."""
    heads = (IDENTITY,) * (cases.settings.num_experts + 1)
    return ModelCalibration(experts=cases.settings.expert_names, heads=heads)


def _origin(cases: CalibrationCases) -> dict[str, Any]:
    """What a calibration was fitted on, for its report."""
    return {
        "dataset": cases.dataset,
        **cases.predicted_by.to_dict(),
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


def _parts(cases: CalibrationCases) -> list[set[str]]:
    """The groups that are held back together."""
    groups = sorted({cases.group(case) for case in cases.names})
    return [set(groups[part::_PARTS]) for part in range(min(_PARTS, len(groups)))]


def _fitted_without(
    parts: Sequence[set[str]],
    cases: CalibrationCases,
    names: Sequence[str],
    first: FirstReading,
    can_be_asked: Sequence[bool],
    rankings: Sequence[str],
) -> list[dict[str, ModelCalibration]]:
    """For each part the calibrations for some of :data:`RANKINGS`, by name, fitted on all other groups.

    Empty if too few groups have labels of all heads.
    """
    found = []
    for part in parts:
        others = {cases.group(case) for case in cases.names} - part
        rows = [rows for case, rows in first.rows.items() if cases.group(case) in others]
        try:
            fits = _fits(names, [each.of_groups(others) for each in first.heads], can_be_asked)
        except InputError:
            return []
        as_they_are = replace(_uncalibrated(cases), heads=tuple(fit.calibrator for fit in fits))
        found.append(
            {kind: as_they_are if kind == HEADS else _combined(cases, rows, can_be_asked, kind) for kind in rankings}
        )
    return found


def _as_it_is(rule: ModelCalibration, held_back: Collection[str]) -> ModelCalibration:
    """A calibration that nothing was fitted for."""
    del held_back
    return rule


def _rule_without(
    cases: CalibrationCases,
    names: Sequence[str],
    first: FirstReading,
    can_be_asked: Sequence[bool],
    ranking: str,
    rule: ModelCalibration,
    held_back: Collection[str],
) -> ModelCalibration:
    """The calibration for a ranking fitted without some groups; `rule`, that of all, if too few others have labels."""
    found = _fitted_without([set(held_back)], cases, names, first, can_be_asked, (ranking,))
    return found[0][ranking] if found else rule


def _combined(
    cases: CalibrationCases, rows: Sequence[Sequence[Rows]], can_be_asked: Sequence[bool], kind: str
) -> ModelCalibration:
    """The calibration for a ranking other than that of the heads as they are."""
    combination, heads = fit_combined(
        rows,
        can_be_asked,
        has_regions=cases.files.label_manager.has_regions,
        confidence_only=kind == CONFIDENCE,
    )
    return replace(_uncalibrated(cases), combination=combination, heads=tuple(heads))


def _reliability(
    cases: CalibrationCases, names: Sequence[str], fitted: Sequence[ModelCalibration], parts: Sequence[set[str]]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The reliability of all heads before and after calibration, the latter None if nothing could be fitted.

    Args:
        cases: The cases.
        names: The names of the heads.
        fitted: For each part of the groups the calibration that was fitted on the others.
        parts: The groups of each part.
    """
    found = cases.in_pieces(partial(_check, names, fitted, parts), "Checking")
    before, after = (ReliabilityStatistics.merged(each).summary()["heads"] for each in zip(*found, strict=True))
    return before, after if fitted else None


def _check(
    names: Sequence[str],
    fitted: Sequence[ModelCalibration],
    parts: Sequence[set[str]],
    cases: CalibrationCases,
) -> tuple[ReliabilityStatistics, ReliabilityStatistics]:
    """The reliability before and after calibration, the latter without cases if nothing could be fitted."""
    before, after = ReliabilityStatistics(names), ReliabilityStatistics(names)
    for case in cases:
        nobody = np.zeros(case.reference.shape, dtype=np.uint8)
        before.update(case.name, case.prediction.routing, case.right, case.known, nobody)
        if fitted:
            (part,) = (place for place, held_back in enumerate(parts) if cases.group(case.name) in held_back)
            # Nothing was predicted where the model's probability is NaN.
            calibrated = fitted[part].apply(np.nan_to_num(case.prediction.routing), case.prediction.softmax)
            said = np.where(~case.prediction.predicted, np.nan, calibrated)
            # The same voxels as before: calibrated probabilities are less spread, and others would be the lowest.
            uncalibrated = case.prediction.routing[0]
            after.update(case.name, said, case.right, case.known, nobody, uncalibrated=uncalibrated)
    return before, after


def _fit_thresholds(
    cases: CalibrationCases,
    calibration: ModelCalibration,
    limits: Sequence[Limits],
    ranked: RankedGains | None = None,
) -> tuple[FittedThresholds, ...]:
    def count(trials: Sequence[Trial]) -> np.ndarray:
        route = partial(_route, cases, calibration, trials)
        return np.sum([*cases.map(route, "Routing regions")], axis=0)

    found_gains = _rank(cases, calibration) if ranked is None else ranked
    gains, voxels = np.concatenate([*found_gains.of_cases.values()], axis=1), found_gains.voxels
    found: dict[Limits, tuple[np.ndarray, float]] = {}
    for limit in limits:
        thresholds = thresholds_within_limits(
            gains, num_voxels=voxels, budget=limit.budget, capacities=limit.capacities
        )
        deferred = np.count_nonzero((gains > thresholds[:, None]).any(0))
        found[limit] = thresholds, deferred / max(voxels, 1)
    in_regions = [limit for limit in limits if limit.min_region_mm is not None]
    found |= zip(in_regions, thresholds_for_regions(count, in_regions, gains, voxels), strict=True)
    return tuple(
        FittedThresholds(limit.budget, limit.capacities, tuple(map(float, thresholds)), rate, limit.min_region_mm)
        for limit, (thresholds, rate) in ((limit, found[limit]) for limit in limits)
    )


def _rank(cases: CalibrationCases, calibration: ModelCalibration) -> RankedGains:
    found = [*cases.map(partial(_positive_gains, cases, calibration), "Ranking")]
    return RankedGains(
        of_cases={name: gains for name, (gains, _) in zip(cases.names, found, strict=True)},
        voxels=sum(number for _, number in found),
    )


def _positive_gains(cases: CalibrationCases, calibration: ModelCalibration, pair: Pair) -> tuple[np.ndarray, int]:
    """The gains (J, m) in a case where one is positive, and its number of voxels."""
    gained = predicted_gains(cases, cases.prediction(*pair), calibration)
    flat = gained.reshape(len(gained), -1)
    return flat[:, (flat > 0).any(0)], flat[0].size


def _route(
    cases: CalibrationCases,
    calibration: ModelCalibration,
    trials: Sequence[Trial],
    pair: Pair,
) -> np.ndarray:
    prediction = cases.prediction(*pair)
    return routed_voxels(predicted_gains(cases, prediction, calibration), prediction.spacing, trials)


def _errors(heads: Mapping[str, Any] | None, name: str, part: str) -> dict[str, Any]:
    """The errors of a head, None where they are unknown."""
    return {key: None if heads is None else heads[name][part]["before"][key] for key in ("ece", "bias")}
