"""Measures what deferral gains where cases, images or experts differ from those of the training.

    python measurements/shift.py -d 501 -c 2d -f 0 -tr TRAINER -p PLANS -work FOLDER [-slices_of FOLDER] [-device cpu]

The validation cases of a fold are predicted by `nnUNetv2_predict`, as they are and with synthetic shifts
(`nnUNetv2_deferral_shift`), and evaluated by domains:

    images      each kind and level of shift
    other       with -slices_of, the middle slices of another, 3D dataset of the same kind of images
    size        thirds of the cases by the foreground of their reference
    intensity   thirds of the cases by the mean of their image
    raters      thirds by the share of the foreground that raters disagree about, if the dataset has raters
    experts     the images as they are, answered by those of the training and by others: with other error models, 5 and
                10 points less accurate, and with the most accurate one replaced by another like the least accurate

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
import SimpleITK as sitk

from nnunetv2_deferral.answers import ExpertAnswers, trained_with
from nnunetv2_deferral.commands.shift import shift_images
from nnunetv2_deferral.defaults import OWN_DOMAIN, SHIFT_KINDS
from nnunetv2_deferral.evaluation.folders import evaluate
from nnunetv2_deferral.evaluation.inputs import EvaluationInputs, open_inputs
from nnunetv2_deferral.evaluation.rankings import ENTROPY, LEARNED, MAX_SOFTMAX, ORACLE, RANDOM
from nnunetv2_deferral.evaluation.sanity import NEAR_BORDER, NEAR_CENTRE
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES, ExpertProfile, with_error_model
from nnunetv2_deferral.experts import profiles_of
from nnunetv2_deferral.files import without_nan, write_json
from nnunetv2_deferral.installed import find_script
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import FOLDER, ExpertMasks

RESULTS = Path(__file__).parent / "results"
RANKINGS = (LEARNED, MAX_SOFTMAX, ENTROPY, NEAR_BORDER, NEAR_CENTRE, RANDOM, ORACLE)
THIRDS = ("low", "middle", "high")


def prepared(experiment: Experiment, fold: int, work: Path, given: argparse.Namespace) -> None:
    """Make the folder of the validation cases, their shifted copies, and cases of another dataset."""
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
    if given.slices_of is None:
        return
    patients: dict[str, str] = json.loads((experiment.raw / "groups.json").read_text())
    validated = set(experiment.cases()[fold])
    training = {patient for case, patient in patients.items() if case not in validated}
    found = middle_slices(given.slices_of, training, shifted, experiment.file_ending)
    domain = f"middle slices of {given.slices_of.name}"
    for name, new in (("groups.json", found), ("domains.json", dict.fromkeys(found, domain))):
        write_json(json.loads((shifted / name).read_text()) | new, shifted / name)


def predicted(experiment: Experiment, method: Method, fold: int, work: Path, device: str) -> Path:
    """The folder of predictions of all these cases."""
    words = f"-d {experiment.dataset} -c {experiment.configuration} -f {fold} -tr {method.trainer} -p {method.plans}"
    folders = ["-i", str(work / "shifted" / "images"), "-o", str(work / "predictions")]
    more = f"-device {device} -npp 1 -nps 1 --save_probabilities --continue_prediction".split()
    subprocess.run([find_script("nnUNetv2_predict"), *folders, *words.split(), *more], check=True)
    return work / "predictions"


def middle_slices(raw: Path, training: set[str], into: Path, file_ending: str) -> dict[str, str]:
    """Write the middle slices of a dataset's images and references, and return the patient of each.

    Patients, by its groups.json, of the training are left out.
    """
    patients: dict[str, str] = json.loads((raw / "groups.json").read_text())
    found = {case: patient for case, patient in patients.items() if patient not in training}
    for case in found:
        for kind, suffix in (("images", "_0000"), ("labels", "")):
            (volume,) = (raw / f"{kind}Tr").glob(f"{case}{suffix}.*")
            image = sitk.ReadImage(str(volume))
            (into / kind).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image[:, :, image.GetSize()[2] // 2], str(into / kind / f"{case}{suffix}{file_ending}"))
    return found


def thirds(values: Mapping[str, float]) -> dict[str, str]:
    """Each case in the lower, middle or upper third of the values."""
    order = sorted(values, key=lambda case: values[case])
    return {case: THIRDS[3 * place // len(order)] for place, case in enumerate(order)}


def mean_intensity(images: Path, case: str) -> float:
    """The mean of the first channel of an image."""
    (file,) = images.glob(f"{case}_0000.*")
    return float(sitk.GetArrayFromImage(sitk.ReadImage(str(file))).mean())


def disagreement(experiment: Experiment, folder: PredictionFolder, cases: list[str]) -> dict[str, float] | None:
    """The share of the voxels that any rater marks about which raters disagree; None with fewer than two raters."""
    raters = sorted(each.name for each in (experiment.raw / FOLDER).glob("*") if each.is_dir())
    masks = ExpertMasks.of(experiment.raw / FOLDER, raters, folder.files)
    if len(raters) < 2:
        return None
    found = {}
    for case in cases:
        answers = np.stack([each for name in raters if (each := masks.read(name, case)) is not None]) > 0
        found[case] = float(1 - answers.all(0).sum() / max(answers.any(0).sum(), 1))
    return found


def less_accurate(profile: ExpertProfile, by: float) -> ExpertProfile:
    """The expert with lower accuracies in all zones; a boost in the boundary band stays what it is."""
    lower = {
        field: max(value - by, 0.0)
        for field in ("foreground", "background", "boundary")
        if (value := getattr(profile, field)) is not None
    }
    return replace(profile, **lower)


def other_experts(profiles: tuple[ExpertProfile, ...]) -> dict[str, tuple[ExpertProfile, ...]]:
    """The experts of the training, and others in their places."""
    by_accuracy = sorted(profiles, key=lambda each: each.band_accuracy(each.foreground) + each.foreground)
    least, most = by_accuracy[0], by_accuracy[-1]
    others = [replace(least, name=most.name) if each == most else each for each in profiles]
    trained = {each.error_model for each in profiles}
    return (
        {"as in the training": profiles}
        | {f"{name} errors": with_error_model(profiles, name) for name in ERROR_MODEL_NAMES if {name} != trained}
        | {f"{100 * by:.0f} points less": tuple(less_accurate(each, by) for each in profiles) for by in (0.05, 0.1)}
        | ({f"{most.name} replaced": tuple(others)} if len(profiles) > 1 else {})
    )


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
    add("-slices_of", type=Path, help="folder of a raw dataset in 3D")
    add("-kinds", nargs="*", default=list(SHIFT_KINDS))
    add("-levels", type=int, nargs="+", default=[1, 2, 3])
    add("-budget", type=float, default=0.01)
    add("-device", default="cpu")
    add("-name", default="shift")
    given = parser.parse_args()
    experiment, method = Experiment.find(given.d, given.c, [given.f]), Method(trainer=given.tr, plans=given.p)
    prepared(experiment, given.f, given.work, given)
    folder = predicted(experiment, method, given.f, given.work, given.device)
    labels = given.work / "shifted" / "labels"
    domains = json.loads((given.work / "shifted" / "domains.json").read_text())
    groups = json.loads((given.work / "shifted" / "groups.json").read_text())

    inputs = open_inputs(folder, labels)
    everything = compact(by_domain(inputs, domains, groups, given.budget), given.budget)
    results: dict[str, Any] = {"images": everything}
    same = [case for case in inputs.predictions.cases if domains[case] == OWN_DOMAIN]
    values = {
        "size": {case: float((inputs.read(case).reference > 0).sum()) for case in same},
        "intensity": {case: mean_intensity(given.work / "shifted" / "images", case) for case in same},
    }
    if (found := disagreement(experiment, inputs.predictions, same)) is not None:
        values["raters"] = found
    for name, each in values.items():
        results[name] = compact(by_domain(inputs, thirds(each), groups, given.budget), given.budget)
    results["experts"] = {}
    for name, profiles in other_experts(profiles_of(trained_with(inputs.predictions))).items():
        others = replace(inputs, experts=ExpertAnswers.of_model(inputs.predictions, profiles))
        of_all = dict.fromkeys(same, name)
        results["experts"] |= compact(by_domain(others, of_all, groups, given.budget), given.budget)
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
