"""Measures which share of a model's errors lies in the voxels that are deferred first, as published for other networks.

    python measurements/errors_deferred.py -d 502 -c 2d -f 0 -tr TRAINER -p PLANS -groups groups.json

Of each validation case, the share B of its voxels with the highest scores is deferred, and the errors in them count as
gone: whoever answers is always right, and no question is counted twice. This is how arXiv 2604.13262 compares rules of
deferral on retinal vessels (Dataset502 here). Scores are u = 1 - max softmax (with two classes, entropy has the same
order), the deferral probability that the network has learned, and u (1 - c) with the learned confidence c. Each is
counted over the whole image, and over what is not black, without the border of photographs. The network must have been
validated with --npz. Results are written to measurements/results/ with the machine and the date.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections import defaultdict
from datetime import date
from pathlib import Path

import numpy as np

from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_interval
from nnunetv2_deferral.evaluation.overlap import overlap
from nnunetv2_deferral.evaluation.risk_coverage import risk_coverage_of_cases
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.uncertainty import one_minus_max, times_doubt

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.02, 0.05, 0.12, 0.25)
BLACK = 0.1  # of the largest value of an image
WHOLE, NOT_BLACK = "whole image", "not black"


def scores_of(case: EvaluatedCase, *, has_regions: bool) -> dict[str, np.ndarray]:
    """The scores of a case by name, each of the shape of the case."""
    predicted = case.prediction
    doubt = one_minus_max(predicted.softmax, has_regions=has_regions)
    return {
        "1 - max softmax": doubt,
        "deferral probability": predicted.probability,
        "u (1 - c)": times_doubt(doubt, predicted.routing[0]),
    }


def errors_gone(scores: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """The share of the errors in the voxels with the highest scores, at each budget; parts of ties count in part."""
    curve = risk_coverage_of_cases(scores, wrong).curve(max_points=scores.size + 1)
    return 1 - np.interp(1 - np.array(BUDGETS), curve.coverage, curve.generalised_risk) / wrong.mean()


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", required=True)
    parser.add_argument("-f", type=int, nargs="+", required=True)
    parser.add_argument("-tr", required=True)
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-groups", type=Path, required=True)
    given = parser.parse_args()
    experiment, method = Experiment.find(given.d, given.c, given.f), Method(trainer=given.tr, plans=given.p)
    names = [case for found in experiment.cases().values() for case in found]
    cases = CalibrationCases.of_validations(experiment, method, groups=read_groups(given.groups, names))
    gone: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    dice, wrong_share, shown, groups = [], [], [], []
    for case in cases:
        image = cases.files.read_image(cases.files.image_files(experiment.raw / "imagesTr", case.name)).max(0)
        parts = {WHOLE: case.valid, NOT_BLACK: case.valid & (image > BLACK * image.max())}
        wrong = (case.model != case.reference).astype(np.float64)
        scored = overlap(case.reference, case.model, cases.files.regions, case.valid)
        dice.append(np.mean([scores["Dice"] for scores in scored.values()]))
        wrong_share.append(wrong[case.valid].mean())
        shown.append(np.count_nonzero(parts[NOT_BLACK]) / np.count_nonzero(case.valid))
        groups.append(cases.group(case.name))
        for name, scores in scores_of(case, has_regions=cases.files.label_manager.has_regions).items():
            for part, inside in parts.items():
                gone[name, part].append(errors_gone(scores[inside], wrong[inside]))
    generator = np.random.default_rng(0)
    content = {
        "dataset": experiment.dataset,
        "trainer": given.tr,
        "plans": given.p,
        "folds": given.f,
        "cases": len(dice),
        "groups": len(set(groups)),
        "foreground_dice": float(np.mean(dice)),
        "wrong": float(np.mean(wrong_share)),
        "not_black": float(np.mean(shown)),
        "budgets": BUDGETS,
        "gone": [
            {
                "score": name,
                "part": part,
                "shares": [
                    bootstrap_interval(values, groups=groups, generator=generator).to_dict()
                    for values in np.stack(rows).T
                ],
            }
            for (name, part), rows in gone.items()
        ],
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU needed",
    }
    write_json(content, RESULTS / f"errors_deferred_{given.d}_{given.c}.json")
    for row in content["gone"]:
        print(
            f"{row['score']:22s} {row['part']:12s} " + " | ".join(f"{each['estimate']:.1%}" for each in row["shares"])
        )


if __name__ == "__main__":
    main()
