"""Measures what it brings to read answers as evidence and to ask in rounds, on other patients than those fitted on.

    python measurements/evidence.py -d 501 -c 2d -f 0 1 -tr TRAINER -p PLANS [-groups groups.json] [-experts SET]
        [-error_model MODEL | -raters | --leave_one_out] [-seeds N] [-parts N] [-features FEATURES] -name NAME

Each fold (with -parts, each of N parts of the patients) is held out in turn: prior, answer tables, neighbourhoods,
calibrators and baselines are fitted on the validation cases of the others, which must have been validated with --npz.
At each budget, a share of all voxels in questions (a voxel that is asked of two experts counts twice), compared are

    rule                    today's expected gain; answers replace the model's labels
    confidence              1 - max softmax over the expected area, the expert who was most accurate where the other
                            folds were least certain; answers replace labels
    confidence, evidence    the same questions, answers read as evidence
    R1 k1 ... R4 kJ         value of information in R rounds with at most k experts per voxel; answers as evidence
    oracle                  the upper bound of what asking experts who are right can reach

with the experts of the training, another set or error model, the raters of the dataset (exchangeable), or each rater in
turn with the majority of the others as reference. With -features, all but `rule` start from probabilities that are
combined with what the deferral head says (head_features.py). Results are written to measurements/results/ with the
machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from head_features import FEATURES, Stack

from nnunetv2_deferral.answers import ExpertAnswers
from nnunetv2_deferral.arrays import of_experts
from nnunetv2_deferral.calibration.calibration_cases import CalibrationCases
from nnunetv2_deferral.calibration.evidence_fitting import predicted_gains, structures_of
from nnunetv2_deferral.calibration.evidence_models import candidates_of, fit_evidence, fit_prior
from nnunetv2_deferral.calibration.fitting import calibrate
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.evaluation.answered_cases import AnsweredCase
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_difference, bootstrap_interval, mean_over_cases
from nnunetv2_deferral.evaluation.budgets import BudgetStatistics, recovered_gain
from nnunetv2_deferral.evaluation.oracle import OracleStatistics
from nnunetv2_deferral.evidence.posterior import Candidates, EvidenceModel
from nnunetv2_deferral.evidence.prior import Prior
from nnunetv2_deferral.evidence.questions import Policy, ask
from nnunetv2_deferral.evidence.structures import Structures
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES
from nnunetv2_deferral.experts import Rater, described
from nnunetv2_deferral.files import without_nan, write_json
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.raters import FOLDER, ExpertMasks
from nnunetv2_deferral.uncertainty import one_minus_max

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.005, 0.01, 0.02, 0.05)
MODEL, ORACLE, RULE, CONFIDENCE = "model", "oracle", "rule", "confidence"


class Folds:
    """Opens the validation cases of folds with the experts of a measurement."""

    def __init__(self, given: argparse.Namespace, experiment: Experiment, method: Method) -> None:
        self.given, self.experiment, self.method = given, experiment, method
        names = [case for found in experiment.cases().values() for case in found]
        self.groups = None if given.groups is None else read_groups(given.groups, names)
        self.raters = tuple(sorted(each.name for each in (experiment.raw / FOLDER).glob("*") if each.is_dir()))

    def open(self, folds: Sequence[int], seed: int | None = None) -> CalibrationCases:
        experiment = Experiment.find(self.experiment.dataset, self.experiment.configuration, folds)
        cases = CalibrationCases.of_validations(experiment, self.method, experts=self.given.experts, groups=self.groups)
        if self.given.raters or self.given.leave_one_out:
            cases.experts = ExpertAnswers(
                experts=tuple(map(Rater, self.raters)),
                label_values=cases.files.label_values,
                ignore_label=cases.files.label_manager.ignore_label,
                masks=ExpertMasks.of(experiment.raw / FOLDER, self.raters, cases.files),
            )
        if self.given.error_model is not None:
            changed = tuple(
                each if isinstance(each, Rater) else replace(each, error_model=self.given.error_model)
                for each in cases.experts.experts
            )
            cases.experts = replace(cases.experts, experts=changed)
        return cases if seed is None else _with_seed(cases, seed)

    def held_out(self) -> list[set[str]]:
        """The groups that are held out together: those of a fold, or of each part."""
        every = self.open(self.experiment.folds)
        if self.given.parts is None:
            folds = self.experiment.folds
            return [{every.group(case) for fold, case in every.cases if fold == str(own)} for own in folds]
        groups = sorted({every.group(case) for case in every.names})
        return [set(groups[part :: self.given.parts]) for part in range(self.given.parts)]

    def read(self, cases: CalibrationCases) -> Iterator[EvaluatedCase]:
        """The cases, or with `--leave_one_out` each as often as there are raters, one of whom is the only expert."""
        for case in cases:
            if not self.given.leave_one_out:
                yield case
                continue
            for place in range(len(self.raters)):
                others = np.delete(case.answers, place, 0)
                reference = (others == 1).sum(0) * 2 > len(others)  # of a dataset with one foreground label
                yield replace(case, answers=case.answers[place : place + 1], reference=reference.astype(np.int64))


def _with_seed(cases: CalibrationCases, seed: int) -> CalibrationCases:
    cases.experts = replace(cases.experts, seed=seed)
    return cases


def policies(experts: int) -> dict[str, Policy]:
    """The policies that are compared, by name."""
    found = {}
    for rounds, most in ((1, 1), (2, 2), (4, 2), (4, experts)):
        most = min(most, experts)
        found[f"R{rounds} k{most}"] = Policy(rounds, most)
    return found


def asked_by(model: EvidenceModel, cases: Sequence[AnsweredCase], policy: Policy, number: int) -> list[np.ndarray]:
    """The questions of a policy, bool (J, n) for each case."""

    def score(case: Candidates, answers: np.ndarray, asked: np.ndarray, most: int) -> np.ndarray:
        return model.in_round(1 + int(policy.rounds > 1)).values(case, answers, asked, most=most)

    return ask(model, [(case.candidates, case.answers) for case in cases], policy, budget=number, score=score)[0][-1]


def best_expert(cases: Sequence[AnsweredCase], scores: Sequence[np.ndarray], budget: float) -> int:
    """The expert with the highest accuracy where the model is least certain."""
    every = np.concatenate(scores)
    number = min(max(int(budget * sum(case.num_voxels for case in cases)), 1), every.size)
    least = np.partition(every, -number)[-number]
    right = np.concatenate([(case.answers == case.truth) & (case.answers != MISSING) for case in cases], axis=1)
    return int(right[:, every >= least].mean(1).argmax())


def most_uncertain(cases: Sequence[AnsweredCase], scores: Sequence[np.ndarray], number: int) -> list[np.ndarray]:
    """The `number` voxels with the highest scores of all cases, bool (n,) for each."""
    every = np.concatenate(scores)
    chosen = np.zeros(every.size, dtype=bool)
    chosen[np.argsort(-every, kind="stable")[:number]] = True
    return np.split(chosen, np.cumsum([score.size for score in scores])[:-1])


def reduced(
    case: EvaluatedCase, structures: Structures, prior: Prior, cases: CalibrationCases
) -> tuple[AnsweredCase, np.ndarray]:
    """The candidates of a case, and the model's doubt at them over the expected area, (n,)."""
    candidates = candidates_of(case, structures, prior)
    doubt = one_minus_max(case.prediction.softmax, has_regions=cases.files.label_manager.has_regions)
    answered = AnsweredCase.of(case, candidates, cases.files.regions)
    return answered, candidates.take(doubt) * float(candidates.weights.max())


def measure(folds: Folds, seeds: int) -> dict[str, Any]:
    """The results over all folds."""
    dice: dict[tuple[str, float], list[np.ndarray]] = defaultdict(list)
    questions: dict[tuple[str, float], int] = defaultdict(int)
    groups: list[str] = []
    voxels = 0
    simulated = not (folds.given.raters or folds.given.leave_one_out)
    opened_once = folds.open(folds.experiment.folds)
    every = {opened_once.group(case) for case in opened_once.names}
    for held_out_groups in folds.held_out():
        others = every - held_out_groups
        seen, own = opened_once.of_groups(others), opened_once.of_groups(held_out_groups)
        structures, regions = structures_of(own.files), own.files.regions
        names = own.experts.names[:1] if folds.given.leave_one_out else own.experts.names
        size = float(np.median([min(seen.prediction(*pair).spacing) for pair in seen.cases]))
        repeats = len(folds.raters) if folds.given.leave_one_out else 1
        wanted = folds.given.features
        stack = Stack() if wanted is None else Stack.fit(folds.read(seen), wanted)
        prior = fit_prior(map(stack, folds.read(seen)), repeats * len(seen.cases), structures, voxel_size=size)

        fitted_on: list[tuple[AnsweredCase, np.ndarray]] = []
        for seed in range(seeds if simulated else 1):
            opened = folds.open(folds.experiment.folds, seed if simulated else None).of_groups(others)
            fitted_on += [reduced(stack(case), structures, prior, seen) for case in folds.read(opened)]
        calibration = calibrate(seen, evidence=False) if simulated else None
        held_out: list[AnsweredCase] = []
        doubts: list[np.ndarray] = []
        oracle = OracleStatistics(regions)
        rule = BudgetStatistics(regions, positive_only=True)
        for place, case in enumerate(folds.read(own)):
            answered, doubt = reduced(stack(case), structures, prior, own)
            held_out.append(answered)
            doubts.append(doubt)
            name = f"{case.name} {place}"
            groups.append(own.group(case.name))
            given = {"reference": case.reference, "model": case.model, "valid": case.valid}
            oracle.update(name, answers=case.answers, **given)
            if calibration is not None:
                gains = predicted_gains(own, case.prediction, calibration)
                asked = of_experts(case.answers, gains.argmax(0) + 1)
                rule.update(name, np.maximum(gains.max(0), 0), answer=asked, **given)
        total = sum(case.num_voxels for case in held_out)
        voxels += total
        dice[MODEL, 0.0] += [case.dice(case.model) for case in held_out]
        for name, statistics in ((ORACLE, oracle), *([(RULE, rule)] if calibration is not None else [])):
            for budget, result in zip(BUDGETS, statistics.at(BUDGETS), strict=True):
                dice[name, budget] += list(result.dice)
                questions[name, budget] += round(result.rate * total)
        seen_cases, seen_doubts = [each for each, _ in fitted_on], [each for _, each in fitted_on]
        model = fit_evidence(seen_cases, prior, structures, names, exchangeable=folds.given.raters)
        for budget in BUDGETS:
            number = int(budget * total)
            expert = best_expert(seen_cases, seen_doubts, budget)
            for case, chosen in zip(held_out, most_uncertain(held_out, doubts, number), strict=True):
                asked = np.zeros(case.answers.shape, dtype=bool)
                asked[expert] = chosen
                replaced = np.where(chosen & (case.answers[expert] != MISSING), case.answers[expert], case.model)
                dice[CONFIDENCE, budget].append(case.dice(replaced))
                dice[f"{CONFIDENCE}, evidence", budget].append(case.dice(case.fused(model, asked)))
                for name in (CONFIDENCE, f"{CONFIDENCE}, evidence"):
                    questions[name, budget] += int(chosen.sum())
            for name, policy in policies(len(names)).items():
                last = model.in_round(1 + int(policy.rounds > 1))
                for case, asked in zip(held_out, asked_by(model, held_out, policy, number), strict=True):
                    dice[name, budget].append(case.dice(case.fused(last, asked)))
                    questions[name, budget] += int(asked.sum())
    return _summary(dice, questions, groups, voxels)


def _summary(
    dice: dict[tuple[str, float], list[np.ndarray]],
    questions: dict[tuple[str, float], int],
    groups: Sequence[str],
    voxels: int,
) -> dict[str, Any]:
    scores = {key: np.stack(rows) for key, rows in dice.items()}
    without = mean_over_cases(scores[MODEL, 0.0])
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (name, budget), values in scores.items():
        if name == MODEL:
            continue
        interval = bootstrap_interval(values, groups=groups, generator=np.random.default_rng(0))
        less = bootstrap_difference(
            values, scores[CONFIDENCE, budget], groups=groups, generator=np.random.default_rng(0)
        )
        rows[name].append(
            {
                "budget": budget,
                "questions": questions[name, budget] / voxels,
                "Dice": interval.to_dict(),
                "recovered": recovered_gain(interval.estimate, without, mean_over_cases(scores[ORACLE, budget])),
                "minus_confidence": less.to_dict(),
            }
        )
    model = bootstrap_interval(scores[MODEL, 0.0], groups=groups, generator=np.random.default_rng(0))
    return {
        "cases": len(scores[MODEL, 0.0]),
        "groups": len(set(groups)),
        "model": model.to_dict(),
        "policies": dict(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", required=True)
    parser.add_argument("-f", type=int, nargs="+", required=True)
    parser.add_argument("-tr", required=True)
    parser.add_argument("-p", default="nnUNetPlans")
    parser.add_argument("-groups", type=Path)
    parser.add_argument("-experts", help="set of simulated experts")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("-error_model", choices=ERROR_MODEL_NAMES)
    who.add_argument("-raters", action="store_true")
    who.add_argument("--leave_one_out", action="store_true")
    parser.add_argument("-seeds", type=int, default=3, help="seeds of simulated experts that are fitted on")
    parser.add_argument("-parts", type=int, help="hold out parts of the patients. Default: folds")
    parser.add_argument("-features", choices=FEATURES, help="what the prior knows besides the model's probabilities")
    parser.add_argument("-name", required=True, help="of the file in measurements/results")
    given = parser.parse_args()
    experiment, method = Experiment.find(given.d, given.c, given.f), Method(trainer=given.tr, plans=given.p)
    folds = Folds(given, experiment, method)
    found = measure(folds, given.seeds)
    found |= {
        "dataset": experiment.dataset,
        "configuration": given.c,
        "folds": given.f,
        "parts": given.parts,
        "trainer": given.tr,
        "plans": given.p,
        "experts": described(folds.open(given.f[:1]).experts.experts),
        "leave_one_out": given.leave_one_out,
        "features": given.features,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU needed",
    }
    write_json(without_nan(found), RESULTS / given.name)
    for name, rows in found["policies"].items():
        cells = (f"{r['Dice']['estimate']:.4f} ({r['recovered']:+.2f}) {r['questions']:.2%}" for r in rows)
        print(f"{name:22s} {' | '.join(cells)}")
    print(json.dumps(found["model"]))


if __name__ == "__main__":
    main()
