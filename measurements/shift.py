"""Measures what deferral gains where cases, images or experts differ from those of the training.

    python measurements/shift.py -d 501 -c 2d -f 0 -tr TRAINER -p PLANS -work FOLDER [-device cpu]

The validation cases of a fold are predicted by `nnUNetv2_predict`, as they are and with synthetic shifts
(`nnUNetv2_deferral_shift`), and evaluated by domains:

    images      each kind and level of shift
    size        thirds of the cases by the foreground of their reference
    raters      thirds by the share of the foreground that raters disagree about, if the dataset has raters
    experts     the images as they are, answered by other simulated experts than those of the training

Compared in each domain are the learned ranking and rankings that need no training, at one budget. FOLDER keeps shifted
images and predictions; what is there is not made again. Results are written to measurements/results/ with machine and
date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.commands.shift import shift_images
from nnunetv2_deferral.defaults import OWN_DOMAIN, SHIFT_KINDS
from nnunetv2_deferral.evaluation.folders import evaluate
from nnunetv2_deferral.evaluation.inputs import EvaluationInputs, open_inputs
from nnunetv2_deferral.evaluation.rankings import ENTROPY, LEARNED, MAX_SOFTMAX, ORACLE, RANDOM
from nnunetv2_deferral.evaluation.sanity import NEAR_BORDER, NEAR_CENTRE
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES
from nnunetv2_deferral.files import without_nan, write_json
from nnunetv2_deferral.installed import find_script
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import FOLDER, ExpertMasks, declared_raters

RESULTS = Path(__file__).parent / "results"
RANKINGS = (LEARNED, MAX_SOFTMAX, ENTROPY, NEAR_BORDER, NEAR_CENTRE, RANDOM, ORACLE)
THIRDS = ("low", "middle", "high")


def predicted(experiment: Experiment, method: Method, fold: int, work: Path, given: argparse.Namespace) -> Path:
    """The folder of predictions of the validation cases and their shifted copies."""
    sources, shifted = work / "sources", work / "shifted"
    if not shifted.exists():
        for case in experiment.cases()[fold]:
            for kind in ("images", "labels"):
                for file in (experiment.raw / f"{kind}Tr").glob(f"{case}*{experiment.file_ending}"):
                    (sources / f"{kind}Ts").mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, sources / f"{kind}Ts" / file.name)
        shutil.copyfile(experiment.raw / "dataset.json", sources / "dataset.json")
        shift_images(
            sources / "imagesTs", shifted, kinds=given.kinds, levels=given.levels, references=sources / "labelsTs"
        )
    words = f"-d {experiment.dataset} -c {experiment.configuration} -f {fold} -tr {method.trainer} -p {method.plans}"
    folders = ["-i", str(shifted / "images"), "-o", str(work / "predictions")]
    more = f"-device {given.device} -npp 1 -nps 1 --save_probabilities --continue_prediction".split()
    subprocess.run([find_script("nnUNetv2_predict"), *folders, *words.split(), *more], check=True)
    return work / "predictions"


def thirds(values: Mapping[str, float]) -> dict[str, str]:
    """Each case in the lower, middle or upper third of the values."""
    order = sorted(values, key=lambda case: values[case])
    return {case: THIRDS[3 * place // len(order)] for place, case in enumerate(order)}


def disagreement(experiment: Experiment, folder: PredictionFolder, cases: list[str]) -> dict[str, float] | None:
    """The share of the voxels that any rater marks about which raters disagree; None with fewer than two raters."""
    raters = declared_raters(experiment.dataset_json)
    masks = ExpertMasks.of(experiment.raw / FOLDER, raters, folder.files)
    if len(raters) < 2:
        return None
    found = {}
    for case in cases:
        answers = np.stack([each for name in raters if (each := masks.read(name, case)) is not None]) > 0
        found[case] = float(1 - answers.all(0).sum() / max(answers.any(0).sum(), 1))
    return found


def compact(domains: Mapping[str, Any], budget: float) -> dict[str, Any]:
    """What is kept of the domains: scores, and the rankings at the budget."""
    found = {}
    for name, domain in domains.items():
        rows = {
            ranking: next(row for row in domain["budgets"][ranking] if row["budget"] == budget) for ranking in RANKINGS
        }
        found[name] = {key: domain[key] for key in ("cases", "rate", "Dice", "kept_error", "ECE")} | {"rankings": rows}
    return found


def by_domain(
    inputs: EvaluationInputs, domains: Mapping[str, str], groups: Mapping[str, str], budget: float
) -> dict[str, Any]:
    """The domains of an evaluation of the cases that have one."""
    cases = tuple(case for case in inputs.predictions.cases if case in domains)
    chosen = replace(inputs, predictions=replace(inputs.predictions, cases=cases))
    summary = evaluate(chosen, budgets=(budget,), groups=groups, domains=domains)
    return dict(summary["domains"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-d", required=True)
    add("-c", required=True)
    add("-f", type=int, default=0)
    add("-tr", required=True)
    add("-p", required=True)
    add("-work", type=Path, required=True)
    add("-kinds", nargs="+", default=list(SHIFT_KINDS))
    add("-levels", type=int, nargs="+", default=[1, 2, 3])
    add("-budget", type=float, default=0.01)
    add("-device", default="cpu")
    add("-name", default="shift")
    given = parser.parse_args()
    experiment, method = Experiment.find(given.d, given.c, [given.f]), Method(trainer=given.tr, plans=given.p)
    folder = predicted(experiment, method, given.f, given.work, given)
    labels = given.work / "shifted" / "labels"
    domains = json.loads((given.work / "shifted" / "domains.json").read_text())
    groups = json.loads((given.work / "shifted" / "groups.json").read_text())

    inputs = open_inputs(folder, labels)
    everything = evaluate(inputs, budgets=(given.budget,), groups=groups, domains=domains)["domains"]
    results: dict[str, Any] = {"images": compact(everything, given.budget)}
    same = [case for case in inputs.predictions.cases if domains[case] == OWN_DOMAIN]
    values = {"size": {case: float((inputs.read(case).reference > 0).sum()) for case in same}}
    if (found := disagreement(experiment, inputs.predictions, same)) is not None:
        values["raters"] = found
    for name, each in values.items():
        results[name] = compact(by_domain(inputs, thirds(each), groups, given.budget), given.budget)
    results["experts"] = {}
    for errors in ERROR_MODEL_NAMES:
        others = open_inputs(folder, labels, error_model=errors)
        way = dict.fromkeys(same, errors)
        results["experts"] |= compact(by_domain(others, way, groups, given.budget), given.budget)
    content = {
        "dataset": experiment.dataset,
        "trainer": method.trainer,
        "plans": method.plans,
        "fold": given.f,
        "budget": given.budget,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU needed",
        "date": date.today().isoformat(),
        "domains": results,
    }
    file = RESULTS / f"{given.name}_{experiment.dataset}_{given.c}.json"
    write_json(without_nan(content), file)
    print(file)


if __name__ == "__main__":
    main()
