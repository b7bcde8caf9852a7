"""Intervals and paired differences of the scores of methods, as plain data.

Differences are relative to the first method: masks of the model are compared with the first method's, the system with
the first method's system, or its mask if it is a stock model. After :mod:`.verification` all methods have the same
cases.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np

from nnunetv2_deferral.benchmark.scores import MethodScores
from nnunetv2_deferral.benchmark.studies import Study
from nnunetv2_deferral.benchmark.timing import Times
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_difference, bootstrap_interval, mean_over_cases
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.nnunet.experiment import Experiment

SCORES = ("Dice", "IoU", "Sensitivity")
FOREGROUND = "foreground_mean"
LEVEL = 0.95
_COMPARED = ("model_everywhere", "system")


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Options of the bootstrap.

    Attributes:
        groups: For each case its group, such as its patient; None for each case by itself.
        seed: The seed, the same for all intervals.
        num_resamples: The number of resamples.
    """

    groups: Mapping[str, Any] | None = None
    seed: int = 0
    num_resamples: int = 2000

    def options(self, cases: Sequence[str]) -> dict[str, Any]:
        """Arguments for the functions of :mod:`nnunetv2_deferral.evaluation.bootstrap`."""
        return {
            "generator": np.random.default_rng(self.seed),
            "groups": None if self.groups is None else [self.groups[case] for case in cases],
            "num_resamples": self.num_resamples,
            "level": LEVEL,
        }


def compare(
    experiment: Experiment,
    scores: Sequence[MethodScores],
    times: Sequence[Times],
    *,
    studies: Sequence[Study] = (),
    resampling: Resampling | None = None,
    against_raters: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Compare methods.

    Args:
        experiment: Dataset, configuration and folds.
        scores: The scores of the methods; differences are relative to the first.
        times: The durations of the methods, in the same order.
        studies: Tables whose rows are among the methods.
        resampling: Options of the bootstrap.
        against_raters: For each method what :func:`.score_against_raters` found; empty for nothing.

    Returns:
        The content of benchmark.json, NaN where undefined, see docs/how-to/comparing.md.
    """
    resampling = resampling or Resampling()
    cases = experiment.cases()
    names = [case for fold in cases.values() for case in fold]
    groups = resampling.groups
    place = {found.method: number for number, found in enumerate(scores)}
    return {
        "dataset": experiment.dataset,
        "configuration": experiment.configuration,
        "folds": list(experiment.folds),
        "cases": {str(fold): found for fold, found in cases.items()},
        "num_cases": len(names),
        "regions": _region_names(experiment, list(scores[0].summary["model_everywhere"]["mean"])),
        "intervals": {
            "level": LEVEL,
            "num_groups": len(names) if groups is None else len({groups[case] for case in names}),
            "num_resamples": resampling.num_resamples,
            "seed": resampling.seed,
        },
        "methods": [
            _method(found, scores[0], cases, resampling) | {"time": asdict(took), "against_raters": dict(of_raters)}
            for found, took, of_raters in zip(scores, times, against_raters or [{}] * len(scores), strict=True)
        ],
        "studies": [
            {
                "name": study.name,
                "title": study.title,
                "rows": [{"headings": dict(row.headings), "method": place[row.method]} for row in study.rows],
            }
            for study in studies
        ],
        "versions": versions("torch") | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": date.today().isoformat(),
    }


def parts_of(found: MethodScores) -> dict[str, Mapping[str, Any]]:
    """The scored parts by name: `system`, `expert`, `model`, `model_everywhere`, and each expert alone."""
    parts = {name: found.summary[name] for name in ("system", "expert", "model", "model_everywhere") if name in
             found.summary}  # fmt: skip
    return parts | {f"{name} alone": part for name, part in found.summary.get("expert_everywhere", {}).items()}


def values(part: Mapping[str, Any], cases: Sequence[str], regions: Sequence[str], score: str) -> np.ndarray:
    """A score by case and region, (N, R), NaN where undefined or where the part lacks the case."""
    rows = {row["case"]: row["metrics"] for row in part["metric_per_case"]}
    missing = float("nan")
    found = [[rows[case][region][score] if case in rows else missing for region in regions] for case in cases]
    return np.array(found, dtype=np.float64)


def _region_names(experiment: Experiment, regions: Sequence[str]) -> dict[str, str]:
    """The names of labels or regions in dataset.json, by their keys in the scores."""
    labels = experiment.dataset_json["labels"]
    names = {str(tuple(value) if isinstance(value, list) else value): name for name, value in labels.items()}
    return {region: names.get(region, region) for region in regions}


def _method(
    found: MethodScores, first: MethodScores, folds: Mapping[int, Sequence[str]], resampling: Resampling
) -> dict[str, Any]:
    cases = [case for names in folds.values() for case in names]
    regions = list(first.summary["model_everywhere"]["mean"])
    parts = parts_of(found)
    deferral = {key: value for key, value in found.summary.get("deferral", {}).items() if key != "per_case"}
    return {
        "trainer": found.method.trainer,
        "plans": found.method.plans,
        "deferral_model": bool(found.experts),
        "experts": list(found.experts),
        "answered_by": found.answered_by,
        "deferral": deferral,
        "scores": {name: _scores(part, None, cases, regions, resampling) for name, part in parts.items()},
        "minus_first": {}
        if found is first
        else {
            name: _scores(parts[name], _counterpart(first, name), cases, regions, resampling)
            for name in _COMPARED
            if name in parts
        },
        "per_fold": {
            str(fold): {
                name: {score: mean_over_cases(values(part, names, regions, score)) for score in SCORES}
                for name, part in parts.items()
            }
            for fold, names in folds.items()
        },
        "summary": found.summary,
    }


def _counterpart(first: MethodScores, part: str) -> Mapping[str, Any]:
    return first.summary.get(part, first.summary["model_everywhere"])


def _scores(
    part: Mapping[str, Any],
    other: Mapping[str, Any] | None,
    cases: Sequence[str],
    regions: Sequence[str],
    resampling: Resampling,
) -> dict[str, Any]:
    """Each score of each region and of their mean, with interval; or of the differences from another part."""
    result: dict[str, Any] = {}
    for region in (FOREGROUND, *regions):
        chosen = list(regions) if region == FOREGROUND else [region]
        result[region] = {}
        for score in SCORES:
            ours = values(part, cases, chosen, score)
            options = resampling.options(cases)
            if other is None:
                interval = bootstrap_interval(ours, **options)
            else:
                interval = bootstrap_difference(ours, values(other, cases, chosen, score), **options)
            result[region][score] = interval.to_dict()
    return result
