"""Domains: sets of cases, such as those of a hospital or a scanner, that are compared with each other.

What was learned and fitted on the cases of one domain may not hold in another. Rankings are compared at the same share
of the voxels of each domain, so that a domain in which much is deferred does not hide what happens in the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnunetv2_deferral.defaults import OWN_DOMAIN
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_difference, bootstrap_interval
from nnunetv2_deferral.evaluation.budgets import BudgetResult, recovered_gain
from nnunetv2_deferral.evaluation.rankings import BEST_EXPERT, MAX_SOFTMAX, ORACLE, Rankings
from nnunetv2_deferral.evaluation.reliability import MODEL, ReliabilityStatistics
from nnunetv2_deferral.parts import in_order

_ALWAYS = ", always "


@dataclass(frozen=True)
class Domain:
    """The statistics of the cases of a domain.

    Attributes:
        rankings: Those of the rankings.
        reliability: Those of the routing probabilities, if cases have any.
        cases: For each case the number of foreground voxels of its reference.
    """

    rankings: Rankings
    reliability: ReliabilityStatistics
    cases: dict[str, int] = field(default_factory=dict)

    @classmethod
    def merged(cls, parts: Sequence[Domain], cases: Sequence[str]) -> Domain:
        """The statistics of all cases of several parts, or domains, in the order of `cases`, which includes these."""
        found = in_order([part.cases for part in parts], cases)
        return cls(
            Rankings.merged([part.rankings for part in parts], list(found)),
            ReliabilityStatistics.merged([part.reliability for part in parts]),
            found,
        )


def summarize_domain(
    domain: Domain,
    *,
    dice: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
    budgets: Sequence[float],
    has_routing: bool,
    draw: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """The scores of a domain.

    Args:
        domain: The domain, with at least one case.
        dice: Dice (N, R) of `model_everywhere` and `system` for its N cases.
        counts: The numbers of its voxels, see :class:`.DeferralCounts`.
        budgets: Shares of the domain's voxels at which rankings are compared.
        has_routing: Whether cases have routing probabilities.
        draw: Arguments of the bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        `cases`, their number; `rate`, the share of the voxels that were deferred; `Dice` with intervals of
        `model_everywhere`, `system` and their difference; `kept_error`, the model's wrong voxels that nobody was asked
        about, divided by the reference's foreground (NaN without any); `ECE` of each head on the least certain voxels,
        calibrated if there is a calibration (None without routing probabilities); and `budgets`, for each ranking that
        asks the chosen expert, for 1 - max softmax with the expert who is best at that budget, and each budget
        `budget`, `Dice`, the gain over the model alone (`gain`, with its interval) and the share of the oracle's that
        is `recovered`.
    """

    def difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
        return bootstrap_difference(first, second, generator=np.random.default_rng(seed), **draw).to_dict()

    alone, system = dice["model_everywhere"], dice["system"]
    intervals = {
        name: bootstrap_interval(values, generator=np.random.default_rng(seed), **draw).to_dict()
        for name, values in dice.items()
    }
    foreground = sum(domain.cases.values())
    kept = counts["model_wrong"] - counts["deferred_model_wrong"]
    return {
        "cases": len(domain.cases),
        "rate": counts["deferred"] / max(counts["voxels"], 1),
        "Dice": intervals | {"system - model_everywhere": difference(system, alone)},
        "kept_error": kept / foreground if foreground else math.nan,
        "ECE": _calibration_errors(domain.reliability) if has_routing else None,
        "budgets": _budget_rows(domain.rankings, budgets, difference),
    }


def _budget_rows(rankings: Rankings, budgets: Sequence[float], difference: Any) -> dict[str, list[dict[str, Any]]]:
    everything = rankings.at([0.0, *budgets])
    results = {name: found for name, found in everything.items() if _ALWAYS not in name}
    if always := [found for name, found in everything.items() if name.startswith(f"{MAX_SOFTMAX}{_ALWAYS}")]:
        results[BEST_EXPERT] = [max(found, key=_dice_or_least) for found in zip(*always, strict=True)]
    rows = {}
    for name, (without, *found) in results.items():
        rows[name] = [
            {
                "budget": each.budget,
                "Dice": each.foreground_mean,
                "gain": difference(each.dice, without.dice),
                "recovered": recovered_gain(each.foreground_mean, without.foreground_mean, oracle.foreground_mean),
            }
            for each, oracle in zip(found, results[ORACLE][1:], strict=True)
        ]
    return rows


def _dice_or_least(result: BudgetResult) -> float:
    return -math.inf if math.isnan(result.foreground_mean) else result.foreground_mean


def _calibration_errors(statistics: ReliabilityStatistics) -> dict[str, float | None]:
    found = {}
    for name, head in statistics.summary()["heads"].items():
        least = head["least_certain"]
        found["model" if name == MODEL else name] = (least["after"] or least["before"])["ece"]
    return found


def domains_in_order(found: Mapping[str, Mapping[str, Any]], own: str = OWN_DOMAIN) -> list[str]:
    """The names of domains: the training's own first, then by what deferral gains, the worst last.

    Args:
        found: The summaries by name.
        own: The name of the training's own domain; it need not be there.
    """

    def place(name: str) -> tuple[bool, float]:
        gain = found[name]["Dice"]["system - model_everywhere"]["estimate"]
        return name != own, math.inf if math.isnan(gain) else -gain

    return sorted(found, key=place)
