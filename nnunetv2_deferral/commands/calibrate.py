"""`nnUNetv2_deferral_calibrate`: fit a model's calibrators and budget thresholds on cases it was not trained on.

They are fitted to the outputs that the final validation saved with `--npz`, on cases held out from each fold's training
set, or to predictions of other cases with a reference, and written to plans.json in the model folder, where prediction
reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases
from nnunetv2_deferral.calibration.certification import certify, split_for_certification
from nnunetv2_deferral.calibration.fitting import (
    FirstReading,
    RankedGains,
    calibrate,
    fit_thresholds,
    rank_gains,
    read_first,
    same_for_all_parts,
    write_calibration,
)
from nnunetv2_deferral.calibration.forecast_fitting import text as forecast_text
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.decision.assignment import check_capacities
from nnunetv2_deferral.decision.certificate import check_risk
from nnunetv2_deferral.decision.limits import Limits, warn_of_full_budget
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.decision.predicted_by import PredictedBy
from nnunetv2_deferral.defaults import CONFIDENCE, FOLDS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.reliability import LEAST_CERTAIN
from nnunetv2_deferral.expert_sim.profiles import EXPERT_SETS
from nnunetv2_deferral.nnunet.experiment import Experiment, Method, fold_numbers
from nnunetv2_deferral.parts import read_parts, remove_parts
from nnunetv2_deferral.processes import Workers
from nnunetv2_deferral.raters import FOLDER as RATERS
from nnunetv2_deferral.text import named_folds, plural, rate_text

PARTS = "calibration"  # folder in that of the model
_OF_ALL = "; or calibrate on predictions of cases that it was not trained on (-i PREDICTIONS -ref LABELS)"


def text(calibration: ModelCalibration) -> str:
    """A summary of the fit for the terminal."""
    report = calibration.report
    fitted_on, number = PredictedBy.noted(report), len(report["cases"])
    if fitted_on.prediction is None:
        lines = [f"{number} validation cases of {named_folds(fitted_on.folds)}"]
    else:
        lines = [f"{plural(number, 'case')} in {fitted_on.words}"]
    if report["heads"]:
        lines.append(f"  {'calibration':<40} calibrator   ECE of the {LEAST_CERTAIN:.0%} least certain voxels   of all")
    for name, head in report["heads"].items():
        found = [head[part][when]["ece"] for part in ("least_certain", "all") for when in ("before", "after")]
        errors = ["–" if error is None else f"{error:.4f}" for error in found]
        lines.append(
            f"  {name:<40} {head['map']['kind']:<12} {errors[0]} -> {errors[1]}"
            f"                        {errors[2]} -> {errors[3]}"
        )
    if calibration.ranking_statement is not None:
        lines.append(f"  {calibration.ranking_statement}")
    lines += forecast_text(report.get("predicted_dice", {}))
    if "evidence" in report:
        lines += _evidence_text(report["evidence"])
    if (rule := calibration.confidence) is not None:
        lines.append(
            f"  for comparison, the model's own confidence: best with {rule.expert}, for at most "
            f"{rate_text(rule.most)} of voxels"
        )
    if "certification" in report:
        lines += _certification_text(calibration)
    elif "attempted" in report:
        lines.append("  no certificate: the earlier attempt (-certify) concerned the previous calibration")
    for each in calibration.thresholds:
        limits = [] if each.budget is None else [f"budget {rate_text(each.budget)}"]
        if each.capacities is not None:
            words = ("no limit" if capacity is None else rate_text(capacity) for capacity in each.capacities)
            limits.append(f"capacities {', '.join(words)}")
        if each.min_region_mm is not None:
            limits.append(f"regions of {each.min_region_mm:g} mm")
        prices = ", ".join(f"{value:.3g}" for value in each.thresholds)
        rate = rate_text(each.rate)
        lines.append(f"  {' and '.join(limits)} over the dataset: gain > {prices}; {rate} of voxels deferred")
    return "\n".join(lines)


def _evidence_text(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"  budget {row['budget']:>5.1%}: Dice {row['evidence']:.3f} if answers are read as evidence "
        f"({rate_text(row['rate_evidence'])} of voxels), {row['replaced']:.3f} if they replace labels "
        f"({rate_text(row['rate_replaced'])}), on held-out patients"
        for row in found["budgets"]
    ]
    if found["kept"]:
        return [*lines, "  answers are read as evidence in further predictions"]
    return [*lines, f"  answers replace the model's labels: evidence was not kept because {found['reason']}"]


def _certification_text(calibration: ModelCalibration) -> list[str]:
    found = calibration.report["certification"]
    rows = ", ".join(f"{row['violations']} at {row['budget']:.4g}" for row in found["budgets"])
    lines = [f"  of {found['groups']} held out for the certificate, kept error above {found['kept_error']:g}: {rows}"]
    if found["attempts"] > 1:
        lines.append(
            f"  this is attempt {found['attempts']} on these cases: only the first has the stated confidence, because "
            "some of many attempts succeed by chance"
        )
    if calibration.certificate is not None:
        return [*lines, f"  {calibration.certificate.statement}"]
    needed = ", ".join(f"{number} if {place}" for place, number in enumerate(found["groups_needed"]))
    return [
        *lines,
        f"  nothing can be certified: a share of {found['alpha']:.4g} with confidence {found['confidence']:.4g} "
        f"requires this many cases (patients): {needed} of them exceed the kept error",
    ]


def _checked_confidence(given: argparse.Namespace) -> float:
    """The confidence of the certificate, after the options of certificates were checked."""
    if given.certify is None:
        if given.confidence is not None:
            raise InputError("-confidence is the confidence of a certificate and requires -certify X ALPHA")
        return CONFIDENCE
    confidence = CONFIDENCE if given.confidence is None else float(given.confidence)
    kept_error, alpha = given.certify
    check_risk(kept_error, alpha, confidence)
    if given.capacities is not None:
        raise InputError("-certify is for budgets without -capacities")
    return confidence


def _limits(given: argparse.Namespace) -> list[Limits]:
    """The limits to fit thresholds for, but for the smallest regions, which the plans may say."""
    capacities = None if given.capacities is None else tuple(given.capacities)
    budgets: list[float | None] = list(given.budgets)
    if not budgets and capacities is not None:
        budgets = [None]
    if 1 in budgets:
        warn_of_full_budget()
    if given.thresholds_only and given.predict_dice:
        raise InputError("--thresholds_only keeps the calibration that the model has; --predict_dice fits it")
    if given.thresholds_only and not budgets:
        raise InputError("--thresholds_only needs -budgets or -capacities")
    return [Limits(budget=budget, capacities=capacities, over="dataset") for budget in budgets]


def _split(
    given: argparse.Namespace, cases: CalibrationCases, limits: Sequence[Limits]
) -> tuple[CalibrationCases, CalibrationCases | None]:
    """The cases to fit on, and those held back for a certificate."""
    if given.certify is None:
        return cases, None
    if any(each.min_region_mm is not None for each in limits):
        raise InputError("-certify is for budgets of single voxels: -min_region_mm none")
    if given.thresholds_only and cases.calibration is not None:
        raise InputError(
            "-certify requires cases that nothing was fitted on, but --thresholds_only keeps a calibration fitted on "
            "all of them: certify without --thresholds_only"
        )
    return split_for_certification(cases)


def _cases(given: argparse.Namespace, workers: Workers) -> CalibrationCases:
    """The cases to calibrate on: of final validations, or of a folder of predictions."""
    if (given.i is None) != (given.ref is None):
        raise InputError("-i PREDICTIONS and -ref LABELS must be given together")
    method = Method(trainer=given.tr, plans=given.p)
    if given.i is not None:
        if given.f is not None:
            raise InputError("-f selects final validations; predictions (-i) record which folds made them")
        return CalibrationCases.of_predictions(
            Experiment.find(given.d, given.c, None),
            method,
            given.i,
            given.ref,
            experts=given.experts,
            groups_file=given.groups,
            workers=workers,
        )
    if given.experts is not None and Path(given.experts).is_dir() and given.experts not in EXPERT_SETS:
        raise InputError(
            f"-experts {given.experts}: a folder of masks is for predictions (-i); of validation cases, masks are read "
            f"from {RATERS} of the raw dataset"
        )
    experiment = Experiment.find(given.d, given.c, fold_numbers(given.f or range(FOLDS), instead=_OF_ALL))
    names = [case for found in experiment.cases().values() for case in found]
    groups = None if given.groups is None else read_groups(given.groups, names)
    return CalibrationCases.of_validations(experiment, method, experts=given.experts, groups=groups, workers=workers)


def _fit(
    given: argparse.Namespace, cases: CalibrationCases, limits: Sequence[Limits], found: Sequence[Any] | None
) -> ModelCalibration:
    """Fit to the cases, which parts have found this in, or None."""
    if given.thresholds_only:
        return fit_thresholds(cases, limits, None if found is None else RankedGains.merged(found, cases))
    return calibrate(
        cases,
        limits,
        evidence=not given.replace,
        exchangeable=given.exchangeable,
        keep_heads=given.keep_heads,
        forecast=given.predict_dice,
        first=None if found is None else FirstReading.merged(found, cases),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.calibrate()
    given = parser.parse_args(arguments)
    try:
        confidence, limits, part = _checked_confidence(given), _limits(given), parsers.part_of(given)
        with Workers(given.np) as workers:
            cases = _cases(given, workers)
            check_capacities(given.capacities, cases.settings.num_experts, named="-capacities")
            regions = [cases.settings.min_region_mm] if given.min_region_mm is None else given.min_region_mm
            limits = [replace(each, min_region_mm=region) for region in regions for each in limits]
            fitted_on, held_out = _split(given, cases, limits)
            folder = cases.model / PARTS
            common = same_for_all_parts(fitted_on, thresholds_only=given.thresholds_only, forecast=given.predict_dice)
            if part.of > 1:
                own = fitted_on.of_cases(part.cases(fitted_on.cases))
                read = rank_gains(own) if given.thresholds_only else read_first(own, forecast=given.predict_dice)
                print(part.write(read, folder, common))
                return
            found = [*read_parts(folder, common)] if given.merge else None
            calibration = _fit(given, fitted_on, limits, found)
            if held_out is not None:
                kept_error, alpha = given.certify
                calibration = certify(
                    held_out,
                    calibration,
                    kept_error=kept_error,
                    alpha=alpha,
                    confidence=confidence,
                    grouped=given.groups is not None,
                )
        file = write_calibration(calibration, cases)
        if given.merge:
            remove_parts(folder)
    except InputError as error:
        parser.error(str(error))
    print(text(calibration))
    used = f"used by nnUNetv2_deferral_route -m {file.parent}" if cases.is_stock else "used by all further predictions"
    print(f"  written to {file}; {used}")
