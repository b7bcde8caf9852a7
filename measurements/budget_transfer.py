"""Measures how well calibration and budget thresholds fitted on validation cases transfer to other patients.

    python measurements/budget_transfer.py -d 501 -c 2d -f 0 1 2 -tr TRAINER -p PLANS [-groups groups.json]

Each fold is held out in turn: calibrators and thresholds are fitted on the validation cases of the other folds, as by
`nnUNetv2_deferral_calibrate`, and applied to the held-out fold. All folds must have been validated with --npz, and no
patient may be in two folds. Compared at each budget over all voxels:

    gain            expected gain, calibrated, above the thresholds of the other folds
    gain, raw       the same without calibration
    gain, per case  calibrated, with the budget kept in each case
    regions         the same, with regions of at least -region_mm
    confidence      the fair baseline: 1 - max softmax above its threshold of the other folds, answered by the expert
                    who was most accurate on the voxels deferred there
    oracle          the upper bound of what deferral to experts who are right can reach, on the held-out cases

Reported are Dice (mean over cases, 95 % interval over groups), the realised deferral rate, the recovered part of the
oracle's gain, the difference from the confidence baseline, and the calibration error over the least certain voxels of
the held-out folds. Results are written to measurements/results/ with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases
from nnunetv2_deferral.calibration.fitting import calibrate, leave_uncalibrated
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.decision.decide import decide
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_difference, bootstrap_interval, mean_over_cases
from nnunetv2_deferral.evaluation.budgets import recovered_gain
from nnunetv2_deferral.evaluation.head_statistics import HeadStatistics
from nnunetv2_deferral.evaluation.oracle import OracleStatistics
from nnunetv2_deferral.evaluation.overlap import overlap
from nnunetv2_deferral.evaluation.reliability import LEAST_CERTAIN, reliability
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES
from nnunetv2_deferral.experts import Rater
from nnunetv2_deferral.files import without_nan, write_json
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.routing import ONE_VS_ALL
from nnunetv2_deferral.uncertainty import one_minus_max

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.005, 0.01, 0.02, 0.05)
CONFIDENCE, ORACLE, GAIN = "confidence", "oracle", "gain"


def counts(case: EvaluatedCase) -> np.ndarray:
    """The voxels that were predicted and are not ignored, bool of shape S."""
    return case.valid & case.prediction.predicted


class Tally:
    """Dice by case and number of deferred voxels, for each method and budget."""

    def __init__(self, regions: Sequence[Any]) -> None:
        self.regions = list(regions)
        self.dice: dict[tuple[str, float], list[list[float]]] = defaultdict(list)
        self.deferred: dict[tuple[str, float], int] = defaultdict(int)
        self.voxels: dict[tuple[str, float], int] = defaultdict(int)

    def add(self, way: str, budget: float, case: EvaluatedCase, route: np.ndarray) -> None:
        system, counted = fuse_masks(case.model, case.answers, route), counts(case)
        scores = overlap(case.reference, system, self.regions, counted)
        self.dice[way, budget].append([each["Dice"] for each in scores.values()])
        self.deferred[way, budget] += np.count_nonzero(route[counted])
        self.voxels[way, budget] += np.count_nonzero(counted)

    def rate(self, way: str, budget: float) -> float:
        return self.deferred[way, budget] / self.voxels[way, budget]


class Confidence:
    """The fair baseline, fitted on validation cases: ranking by confidence, expert by accuracy on deferred voxels."""

    def __init__(self, cases: CalibrationCases, has_regions: bool) -> None:
        self.has_regions = has_regions
        scores, right = [], []
        for fold, name in cases.cases:
            case = cases.read(fold, name)
            score, counted = one_minus_max(case.prediction.softmax, has_regions=has_regions), counts(case)
            scores.append(score[counted])
            right.append((case.right[1:] & case.known[1:])[:, counted])
        self.scores, self.right = np.concatenate(scores), np.concatenate(right, axis=1)

    def fit(self, budget: float) -> tuple[float, int]:
        """The threshold, and the expert (from 1) with the highest accuracy above it."""
        place = max(int(budget * self.scores.size), 1)
        threshold = float(np.partition(self.scores, -place)[-place])
        return threshold, 1 + int(self.right[:, self.scores >= threshold].mean(1).argmax())


def open_cases(
    experiment: Experiment, folds: Sequence[int], method: Method, groups: Mapping[str, Any] | None, errors: str | None
) -> CalibrationCases:
    """The cases of some folds, optionally with another error model of the simulated experts than in training."""
    cases = CalibrationCases.of_validations(
        Experiment.find(experiment.dataset, experiment.configuration, folds), method, groups=groups
    )
    if errors is not None:
        experts = tuple(e if isinstance(e, Rater) else replace(e, error_model=errors) for e in cases.experts.experts)
        cases.experts = replace(cases.experts, experts=experts)
    return cases


def held_out(
    experiment: Experiment,
    method: Method,
    groups: Mapping[str, Any] | None,
    budgets: Sequence[float],
    errors: str | None,
) -> Iterator[tuple[int, CalibrationCases, ModelCalibration, ModelCalibration, CalibrationCases]]:
    """For each fold its cases, the fits on the other folds with and without calibrators, and the cases of these."""
    limits = [Limits(budget=budget, over="dataset") for budget in budgets]
    for fold in experiment.folds:
        others = tuple(other for other in experiment.folds if other != fold)
        seen, own = (open_cases(experiment, folds, method, groups, errors) for folds in (others, (fold,)))
        raw = leave_uncalibrated(seen, limits)
        calibrated = calibrate(seen, limits) if seen.settings.objective == ONE_VS_ALL else raw
        yield fold, own, calibrated, raw, seen


def measure(
    experiment: Experiment,
    method: Method,
    groups: Mapping[str, Any] | None,
    budgets: Sequence[float],
    region_mm: float,
    errors: str | None = None,
) -> dict[str, Any]:
    """The results over all folds."""
    tally: Tally | None = None
    names: list[str] = []
    oracle: OracleStatistics | None = None
    heads: list[tuple[HeadStatistics, HeadStatistics]] = []
    for fold, own, calibrated, raw, seen in held_out(experiment, method, groups, budgets, errors):
        regions, has_regions = own.files.regions, own.files.label_manager.has_regions
        tally = tally or Tally(regions)
        oracle = oracle or OracleStatistics(regions)
        confidence = Confidence(seen, has_regions)
        fitted = {budget: confidence.fit(budget) for budget in budgets}
        heads = heads or [(HeadStatistics(), HeadStatistics()) for _ in range(len(own.settings.experts) + 1)]
        for _, name in own.cases:
            case = own.read(fold, name)
            routing, voxel_weight = case.prediction.routing, own.voxel_weight(case.prediction)
            names.append(name)
            how = {"rule": own.settings.rule, "spacing_mm": case.prediction.spacing}
            tally.add("model", 0.0, case, np.zeros(case.reference.shape, np.uint8))
            tally.add("rule", 0.0, case, decide(routing, voxel_weight, limits=Limits(), **how).maps.route)
            _count_heads(heads, case, own.group(name), calibrated)
            score = one_minus_max(case.prediction.softmax, has_regions=has_regions)
            for budget in budgets:
                everywhere, each = Limits(budget=budget, over="dataset"), Limits(budget=budget)
                in_regions = Limits(budget=budget, min_region_mm=region_mm)
                for way, limits, calibration in (
                    (GAIN, everywhere, calibrated),
                    ("gain, raw", everywhere, raw),
                    ("gain, per case", each, calibrated),
                    ("regions", in_regions, calibrated),
                ):
                    found = decide(routing, voxel_weight, limits=limits, calibration=calibration, **how)
                    tally.add(way, budget, case, found.maps.route)
                threshold, best = fitted[budget]
                route = np.where((score >= threshold) & counts(case), best, 0).astype(np.uint8)
                tally.add(CONFIDENCE, budget, case, route)
            oracle.update(name, reference=case.reference, model=case.model, answers=case.answers, valid=counts(case))
    if tally is None or oracle is None:
        raise ValueError("there are no folds")
    draw = {"groups": None if groups is None else [groups[name] for name in names], "num_resamples": 2000}
    return {
        "cases": len(names),
        "calibration": _errors(("model", *own.settings.expert_names), heads),
        "rows": _rows(tally, oracle, budgets, draw),
    }


def _count_heads(
    heads: Sequence[tuple[HeadStatistics, HeadStatistics]],
    case: EvaluatedCase,
    group: str,
    calibration: ModelCalibration,
) -> None:
    """Add the least certain voxels of a case to the statistics before and after calibration."""
    routing, counted = case.prediction.routing, counts(case)
    known = np.where(np.isnan(routing), 0, routing)
    after = calibration.apply(known, case.prediction.softmax)
    model = known[0][counted]
    edge = np.partition(model, place := int(LEAST_CERTAIN * model.size))[place]
    for head, (raw, calibrated) in enumerate(heads):
        where = case.known[head] & counted & (known[0] <= edge)
        raw.update(group, known[head], case.right[head], where)
        calibrated.update(group, after[head], case.right[head], where)


def _errors(
    names: Sequence[str], heads: Sequence[tuple[HeadStatistics, HeadStatistics]]
) -> dict[str, dict[str, float]]:
    found = {}
    for name, (raw, calibrated) in zip(names, heads, strict=True):
        before, after = reliability(raw), reliability(calibrated)
        found[name] = {
            "ece_before": before.ece, "ece_after": after.ece, "bias_before": before.bias, "bias_after": after.bias,
        }  # fmt: skip
    return found


def _rows(tally: Tally, oracle: OracleStatistics, budgets: Sequence[float], draw: dict[str, Any]) -> list[dict]:
    bounds = dict(zip(budgets, oracle.at(budgets), strict=True))
    without = mean_over_cases(np.array(tally.dice["model", 0.0]))
    rows = []
    for (way, budget), values in tally.dice.items():
        dice = np.array(values)
        interval = bootstrap_interval(dice, generator=np.random.default_rng(0), **draw)
        row = {"way": way, "budget": budget, "rate": tally.rate(way, budget), "Dice": interval.to_dict()}
        if budget:
            row["recovered"] = recovered_gain(interval.estimate, without, bounds[budget].foreground_mean)
            row["minus_confidence"] = bootstrap_difference(
                dice, np.array(tally.dice[CONFIDENCE, budget]), generator=np.random.default_rng(0), **draw
            ).to_dict()
        rows.append(row)
    rows += [
        {"way": ORACLE, "budget": budget, "rate": found.rate, "Dice": {"estimate": found.foreground_mean}}
        for budget, found in bounds.items()
    ]
    return rows


def text(result: Mapping[str, Any]) -> str:
    """The results as Markdown tables."""
    lines = [
        "| method | budget | realised rate | Dice | recovered gain | difference from confidence |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        dice, less = row["Dice"], row.get("minus_confidence")
        interval = f" [{dice['low']:.3f}, {dice['high']:.3f}]" if "low" in dice else ""
        recovered = f"{row['recovered']:.2f}" if "recovered" in row else ""
        difference = f"{less['estimate']:+.3f} [{less['low']:+.3f}, {less['high']:+.3f}]" if less else ""
        lines.append(
            f"| {row['way']} | {row['budget']:.2%} | {row['rate']:.2%} | {dice['estimate']:.3f}{interval} | "
            f"{recovered} | {difference} |"
        )
    lines += [
        "",
        f"| {LEAST_CERTAIN:.0%} least certain voxels | ECE before | ECE after | bias before | bias after |",
        "|---|---|---|---|---|",
    ]
    for name, found in result["calibration"].items():
        values = " | ".join(f"{found[key]:.4f}" for key in ("ece_before", "ece_after", "bias_before", "bias_after"))
        lines.append(f"| {name} | {values} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-d", required=True)
    add("-c", required=True)
    add("-f", type=int, nargs="+", required=True)
    add("-tr", required=True)
    add("-p", default="nnUNetPlans")
    add("-groups", type=Path)
    add("-budgets", type=float, nargs="+", default=list(BUDGETS))
    add("-error_model", choices=ERROR_MODEL_NAMES, help="error model of simulated experts. Default: as in training")
    add("-region_mm", type=float, default=3.0)
    add("-name", help="stem of the file of results. Default: from dataset, trainer, plans and error model")
    given = parser.parse_args()
    experiment = Experiment.find(given.d, given.c, given.f)
    method = Method(trainer=given.tr, plans=given.p)
    groups = None if given.groups is None else json.loads(given.groups.read_text())
    found = measure(experiment, method, groups, given.budgets, given.region_mm, given.error_model)
    result = {
        "dataset": experiment.dataset,
        "configuration": experiment.configuration,
        "folds": list(experiment.folds),
        "trainer": given.tr,
        "plans": given.p,
        "region_mm": given.region_mm,
        "error_model": given.error_model,
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU needed",
        **found,
    }
    errors = f"_{given.error_model}" if given.error_model else ""
    name = given.name or f"budget_transfer_{experiment.dataset}_{given.c}_{given.tr}_{given.p}{errors}"
    write_json(without_nan(result), RESULTS / f"{name}.json")
    print(text(result))
    print(f"\n{RESULTS / name}.json")


if __name__ == "__main__":
    main()
