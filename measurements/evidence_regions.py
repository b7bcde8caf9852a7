"""Measures what more could be made of answers to whole regions, on the validation cases of a trained model.

    python measurements/evidence_regions.py 501 2d nnUNetTrainerDeferral3Experts_5epochs nnUNetDeferralCPUPlans -f 0

For groups of cases held back in three parts, regions of several smallest sizes are asked about in one round, by the sum
of the values of their voxels. Compared are the Dice if only voxels that were answered change (as in the package), and
if those around may change, too, with the difference and its interval. `promised` is the mean over regions of the sum of
their values, `kept` of what their answers added to Dice, for the smaller and the larger half of regions. Written to
measurements/results/ with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np

from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases
from nnunetv2_deferral.calibration.evidence_fitting import predicted_gains, structures_of
from nnunetv2_deferral.calibration.evidence_models import candidates_of, fit_evidence, fit_prior
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.decision.calibrators import IDENTITY
from nnunetv2_deferral.decision.model_calibration import FittedEvidence, ModelCalibration
from nnunetv2_deferral.decision.region_routing import route_regions
from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.evaluation.answered_cases import AnsweredCase
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_difference
from nnunetv2_deferral.evaluation.overlap import Region
from nnunetv2_deferral.evidence.expected_dice import best_labels
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.nnunet.experiment import Experiment, Method, fold_numbers

RESULTS = Path(__file__).parent / "results"
BUDGETS, SIZES = (0.005, 0.01, 0.02), (2.0, 4.0, 8.0)
PARTS = 3


def fitted_on(cases: CalibrationCases) -> EvidenceModel:
    """An evidence model fitted on these cases."""
    structures = structures_of(cases.files)
    size = float(np.median([min(case.prediction.spacing) for case in cases]))
    prior = fit_prior(cases, len(cases.cases), structures, voxel_size=size)
    seen = [AnsweredCase.of(case, candidates_of(case, structures, prior), cases.files.regions) for case in cases]
    return fit_evidence(seen, prior, structures, cases.experts.names)


def measure(
    model: EvidenceModel, case: EvaluatedCase, gains: np.ndarray, route: np.ndarray, regions: Sequence[Region]
) -> tuple[dict[str, float], list[tuple[int, float, float]]]:
    """Dice of a case with a route by regions, and for each region its voxels, promised and kept gain."""
    including = (route > 0) & case.valid
    answered = AnsweredCase.of(case, candidates_of(case, model.structures, model.prior, including), regions)
    candidates, given = answered.candidates, answered.answers
    there, labels = candidates.take(route), candidates.take(region_labels(route))
    asked = there == np.arange(1, len(given) + 1)[:, None]
    fused = model.fuse(answered.model, candidates, given, asked)
    features = model.features(candidates, given, asked)
    near = asked.any(0) | (features[:, 3] != 0).any(0)
    around = np.where(
        near,
        best_labels(model.structures, model.posterior(candidates, given, asked), candidates.weights),
        answered.model,
    )

    def mean(found: np.ndarray) -> float:
        return float(np.nanmean(answered.dice(found)))

    alone, each = mean(answered.model), []
    for number in range(1, int(labels.max(initial=0)) + 1):
        here = labels == number
        worth = candidates.take(gains)[there[here][0] - 1, here].sum()
        each.append((int(here.sum()), float(worth), mean(np.where(here, fused, answered.model)) - alone))
    return {"model": alone, "answered": mean(fused), "around": mean(around)}, each


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("dataset", "configuration", "trainer", "plans"):
        parser.add_argument(name)
    parser.add_argument("-f", nargs="+", default=["0"])
    given = parser.parse_args()
    experiment = Experiment.find(given.dataset, given.configuration, fold_numbers(given.f))
    cases = CalibrationCases.of_validations(experiment, Method(trainer=given.trainer, plans=given.plans))
    groups, rows = sorted({cases.group(case) for case in cases.names}), []
    found: dict[tuple[float, float], list[tuple[dict[str, float], list[tuple[int, float, float]]]]] = {}
    heads = (IDENTITY,) * (cases.settings.num_experts + 1)
    for part in range(PARTS):
        held_back = groups[part::PARTS]
        model = fitted_on(cases.of_groups([group for group in groups if group not in held_back]))
        calibration = ModelCalibration(
            experts=cases.settings.expert_names, heads=heads, evidence=FittedEvidence(model=model, answered_by=())
        )
        for case in cases.of_groups(held_back):
            gains = predicted_gains(cases, case.prediction, calibration)
            for size in SIZES:
                for budget in BUDGETS:
                    route = route_regions(
                        gains, spacing_mm=case.prediction.spacing, budget=budget, min_diameter_mm=size
                    )
                    one = measure(model, case, gains, route, cases.files.regions)
                    found.setdefault((size, budget), []).append(one)
    for (size, budget), of_cases in sorted(found.items()):
        dice = {name: round(float(np.mean([row[name] for row, _ in of_cases])), 4) for name in of_cases[0][0]}
        around, answered = (np.array([[row[name]] for row, _ in of_cases]) for name in ("around", "answered"))
        more = bootstrap_difference(around, answered, generator=np.random.default_rng(0)).to_dict()
        each = np.array([region for _, regions in of_cases for region in regions], dtype=float).reshape(-1, 3)
        halves = {}
        if len(each):
            small = each[:, 0] <= np.median(each[:, 0])
            for name, where in (("smaller", small), ("larger", ~small)):
                if where.any():
                    voxels, promised, kept = each[where].mean(0)
                    halves[name] = {
                        "regions": int(where.sum()),
                        "voxels": round(float(voxels), 1),
                        "promised": round(float(promised), 5),
                        "kept": round(float(kept), 5),
                    }
        rows.append({"min_region": size, "budget": budget, "Dice": dice, "around - answered": more, "regions": halves})
        print(json.dumps(rows[-1]), flush=True)
    machine = {"device": f"CPU, {os.cpu_count()} cores", "machine": platform.machine()}
    content = {"cases": len(cases.names), "rows": rows, "machine": machine, "date": date.today().isoformat()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"evidence_regions_{given.dataset}_{given.configuration}.json").write_text(
        json.dumps(content | vars(given), indent=4) + "\n"
    )


if __name__ == "__main__":
    main()
