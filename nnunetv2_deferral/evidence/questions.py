"""Questions: which experts to ask about which voxels, in rounds, within a budget over many cases.

A question is a voxel and an expert: a voxel about which two experts are asked counts twice. In each of R rounds a
further share of the budget is spent on what is worth most, given the answers of the rounds before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import Candidates, EvidenceModel

Score = Callable[[Candidates, np.ndarray, np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Policy:
    """How questions are asked.

    Attributes:
        rounds: The number R of rounds.
        most: The number k of experts that may be asked about a voxel in total.

    Raises:
        InputError: If a number is not at least 1.

    Example:
        >>> from nnunetv2_deferral import Policy
        >>> Policy(rounds=2, most=2)
        Policy(rounds=2, most=2)
    """

    rounds: int = 1
    most: int = 1

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("experts of a voxel", self.most)):
            if value != int(value) or value < 1:
                raise InputError(f"the number of {name} must be a whole number of at least 1, got {value}")


ONE_ROUND = Policy()


def ask(
    model: EvidenceModel,
    cases: Sequence[tuple[Candidates, np.ndarray]],
    policy: Policy,
    *,
    budget: int | None = None,
    cuts: Sequence[float] | None = None,
    score: Score | None = None,
) -> tuple[list[list[np.ndarray]], list[float]]:
    """Ask in rounds.

    Args:
        model: The evidence model.
        cases: For each case its candidates and the experts' labels (J, n).
        policy: The policy.
        budget: The number of questions over all cases, spent in equal parts in the rounds. What one does not spend is
            left to the next. Voxels of equal value are asked about together, so that more are asked where values tie.
        cuts: Instead of a budget, the lowest value that is asked about in each round, so that cases are independent.
        score: `(candidates, answers, asked, most) -> (J, n)`, what is asked first; None for the value of information.
            Never asked at 0.

    Returns:
        For each round and case the questions asked until then, bool (J, n); and the lowest value in each round, inf if
        nothing was asked.

    Raises:
        InputError: If the budget is not a whole number of at least 0, there is not one cut for each round, or labels do
            not have the shape (J, n) of their candidates; see also :meth:`.EvidenceModel.values`.

    Example:
        Two questions about three voxels in two rounds. The voxel that is worth most comes first; each goes to the
        better expert:

        >>> import numpy as np
        >>> from nnunetv2_deferral import EvidenceModel, Policy, ask, find_candidates
        >>> model = EvidenceModel.simple({"ann": 0.9, "bob": 0.8})
        >>> foreground = np.array([[0.1, 0.45, 0.7]], dtype=np.float32)
        >>> case = find_candidates(model, np.stack([1 - foreground, foreground]))
        >>> answers = np.array([[0, 1, 1], [0, 0, 1]])
        >>> (first,), (second,) = ask(model, [(case, answers)], Policy(rounds=2, most=2), budget=2)[0]
        >>> first.astype(int).tolist(), second.astype(int).tolist()
        ([[0, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 0, 0]])
    """
    if budget is not None and (budget != budget or budget != int(budget) or budget < 0):
        raise InputError(f"the budget must be a number of questions of at least 0, got {budget}")
    if cuts is not None and len(cuts) != policy.rounds:
        raise InputError(f"there must be one cut for each of {policy.rounds} rounds, got {len(cuts)}")
    for candidates, answers in cases:
        if answers.shape != (expected := (len(model.experts), candidates.index.size)):
            raise InputError(f"the labels of the experts must have shape {expected} (J, n), got {answers.shape}")
    rank = score or (lambda case, answers, asked, most: model.values(case, answers, asked, most=most))
    asked = [np.zeros(answers.shape, dtype=bool) for _, answers in cases]
    history, lowest = [], []
    for number in range(policy.rounds):
        values = [rank(case, answers, done, policy.most) for (case, answers), done in zip(cases, asked, strict=True)]
        if cuts is not None:
            cut = cuts[number]
        else:
            spent = sum(int(done.sum()) for done in asked)
            room = math.floor((budget or 0) * (number + 1) / policy.rounds) - spent
            cut = cut_at(values, room)
        # Of several experts at a voxel the best is asked now, the others later if it is still worth it.
        asked = [done | best_at(value, cut) for done, value in zip(asked, values, strict=True)]
        history.append(asked)
        lowest.append(cut)
    return history, lowest


def cut_at(values: Sequence[np.ndarray], number: int) -> float:
    """The lowest value among the `number` best voxels of several arrays (J, n), each with its best expert.

    At least `number` voxels are at or above it only where values tie; inf for `number` < 1 or without positive values.
    """
    best = np.concatenate([each.max(0, initial=0) for each in values]) if values else np.zeros(0)
    best = best[best > 0]
    if number < 1 or not best.size:
        return math.inf
    return float(best.min() if best.size <= number else np.partition(best, -number)[-number])


def best_at(values: np.ndarray, cut: float) -> np.ndarray:
    """The best expert at every voxel whose value reaches the cut and is positive: bool (J, n)."""
    highest = values.max(0, initial=0)
    chosen = np.zeros(values.shape, dtype=bool)
    where = np.flatnonzero((highest > 0) & (highest >= cut))
    chosen[values[:, where].argmax(0), where] = True
    return chosen
