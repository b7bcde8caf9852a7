"""Cases with experts' labels, reduced to the voxels that experts may be asked about; and Dice after questions there."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
from typing_extensions import Self

from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.defaults import BUDGETS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.budgets import BudgetResult
from nnunetv2_deferral.evaluation.overlap import Region, overlap, region_key, region_mask
from nnunetv2_deferral.evidence.posterior import Candidates, EvidenceModel
from nnunetv2_deferral.evidence.questions import Policy, ask
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.parts import in_order


@dataclass(frozen=True, kw_only=True)
class AnsweredCase:
    """The candidates of a case with everybody's labels there, and the model's counts over the whole case.

    Attributes:
        name: The case identifier.
        candidates: The n voxels that may be asked about, without ignored ones.
        answers: int16 (J, n), the experts' labels, :data:`.labels.MISSING` where an expert has none.
        model: int16 (n,), the model's labels.
        truth: int16 (n,), the reference's.
        num_voxels: The number of valid voxels of the case.
        counts: int64 (3, R), for each region the model's true positives, its voxels and the reference's.
        regions: The R labels or regions that are scored.
    """

    name: str
    candidates: Candidates
    answers: np.ndarray
    model: np.ndarray
    truth: np.ndarray
    num_voxels: int
    counts: np.ndarray
    regions: tuple[Region, ...]

    @classmethod
    def of(cls, case: EvaluatedCase, candidates: Candidates, regions: Sequence[Region]) -> AnsweredCase:
        """Keep what can matter of a case; the candidates must be valid voxels."""
        scores = overlap(case.reference, case.model, regions, case.valid).values()
        return cls(
            name=case.name,
            candidates=candidates,
            answers=candidates.take(case.answers).astype(np.int16),
            model=candidates.take(case.model).astype(np.int16),
            truth=candidates.take(case.reference).astype(np.int16),
            num_voxels=int(np.count_nonzero(case.valid)),
            counts=np.array([[each[key] for each in scores] for key in ("TP", "n_pred", "n_ref")], dtype=np.int64),
            regions=tuple(regions),
        )

    def dice(self, labels: np.ndarray) -> np.ndarray:
        """Dice of each region, float64 (R,), if the candidates' labels are these; NaN where there is no such region."""
        found = np.full(len(self.regions), np.nan)
        for place, region in enumerate(self.regions):
            truth, before, after = (region_mask(each, region) for each in (self.truth, self.model, labels))
            hits, predicted, reference = self.counts[:, place]
            hits += np.count_nonzero(truth & after) - np.count_nonzero(truth & before)
            predicted += np.count_nonzero(after) - np.count_nonzero(before)
            if predicted + reference:
                found[place] = 2 * hits / (predicted + reference)
        return found

    def fused(self, model: EvidenceModel, asked: np.ndarray) -> np.ndarray:
        """The system's labels of the candidates, int16 (n,), after these questions, bool (J, n)."""
        return model.fuse(self.model, self.candidates, self.answers, asked)


@dataclass(frozen=True)
class Questioned:
    """A case before further questions.

    Attributes:
        case: Its n candidates.
        asked: Bool (J, n), what was asked in earlier rounds.
        has_earlier: Whether there were any.
    """

    case: AnsweredCase
    asked: np.ndarray
    has_earlier: bool

    @classmethod
    def of(cls, case: EvaluatedCase, model: EvidenceModel, regions: Sequence[Region]) -> Questioned:
        """Reduce a case with a prior to its candidates.

        Args:
            case: The case.
            model: The evidence model.
            regions: The foreground labels, or tuples of labels, to score.
        """
        before = case.prediction.answered
        earlier = None if before is None else before.only(case.valid)
        candidates = Candidates.of(
            case.prediction.prior,
            case.prediction.spacing,
            model.structures,
            where=case.valid,
            including=None if earlier is None else earlier.where(case.model.shape),
        )
        answered = AnsweredCase.of(case, candidates, regions)
        asked = np.zeros(answered.answers.shape, dtype=bool)
        if earlier is not None:
            answers, asked = earlier.added_to(candidates.index, answered.answers, asked)
            answered = replace(answered, answers=answers)
        return cls(answered, asked, earlier is not None)


@dataclass(frozen=True)
class _Ranked(Questioned):
    """A case of a ranking.

    Attributes:
        scores: The scores of its candidates, (n,).
        experts: The indices of the experts to ask, int64 (n,), from 0.
    """

    scores: np.ndarray
    experts: np.ndarray


_Kept = TypeVar("_Kept", bound=Questioned)


class _EvidenceStatistics(Generic[_Kept]):
    """What is kept of each case to score the system at any budget if answers are read as evidence."""

    def __init__(self, model: EvidenceModel) -> None:
        """Start without cases, given the evidence model."""
        self._model = model
        self._found: dict[str, _Kept] = {}

    @property
    def _cases(self) -> list[_Kept]:
        if not self._found:
            raise InputError("no cases were added")
        return [*self._found.values()]

    @property
    def _num_voxels(self) -> int:
        return sum(each.case.num_voxels for each in self._cases)

    def _result(
        self, budget: float, model: EvidenceModel, asked: Sequence[np.ndarray], *, questions: int
    ) -> BudgetResult:
        """The system after these questions in each case, bool (J, n), of which so many count."""
        cases = [each.case for each in self._cases]
        return BudgetResult(
            budget=float(budget),
            rate=questions / max(self._num_voxels, 1),
            cases=tuple(self._found),
            regions=tuple(region_key(region) for region in cases[0].regions),
            dice=np.stack([case.dice(case.fused(model, done)) for case, done in zip(cases, asked, strict=True)]),
        )

    @classmethod
    def merged(cls, parts: Sequence[Self], cases: Sequence[str]) -> Self:
        """The statistics of all cases of several parts, in the order of `cases`, which must be these cases."""
        merged = copy.copy(parts[0])
        merged._found = in_order([part._found for part in parts], cases)
        return merged


class EvidenceBudgets(_EvidenceStatistics[_Ranked]):
    """Accumulates, case by case, what is needed to score one ranking at any budget if answers are read as evidence.

    As :class:`.BudgetStatistics`, but what an answer does depends on the other answers. Voxels with the score 0 and
    voxels about which the evidence model is certain are never asked about. Questions of earlier rounds are asked at
    every budget and do not count.
    """

    def update(self, case: Questioned, scores: np.ndarray, experts: np.ndarray) -> None:
        """Add a case.

        Args:
            case: The case.
            scores: Shape S, not negative; high scores are asked about first.
            experts: Integers in [1, J], whom to ask.
        """
        take = case.case.candidates.take
        self._found[case.case.name] = _Ranked(
            case.case, case.asked, case.has_earlier, take(scores), take(experts).astype(np.int64) - 1
        )

    def at(self, budgets: Iterable[float] = BUDGETS) -> list[BudgetResult]:
        """The system at each budget, a share of all valid voxels; see :meth:`.BudgetStatistics.at`."""
        cases = self._cases
        model = self._model.in_round(2 if any(each.has_earlier for each in cases) else 1)
        scores = np.concatenate([each.scores for each in cases])
        order = np.argsort(-scores, kind="stable")[: np.count_nonzero(scores > 0)]
        rank = np.full(scores.size, scores.size, dtype=np.int64)
        rank[order] = np.arange(order.size)
        ends = np.cumsum([each.scores.size for each in cases])[:-1]
        found = []
        for budget in budgets:
            number = int(budget * self._num_voxels)
            asked = [each.asked.copy() for each in cases]
            for each, done, ranks in zip(cases, asked, np.split(rank, ends), strict=True):
                where = np.flatnonzero(ranks < number)
                done[each.experts[where], where] = True
            found.append(self._result(budget, model, asked, questions=min(number, order.size)))
        return found


class RoundsBudgets(_EvidenceStatistics[Questioned]):
    """As :class:`EvidenceBudgets`, if questions are asked in rounds by the value of information.

    A voxel that several experts are asked about counts as often. Nobody is asked who has no label there.
    """

    def __init__(self, model: EvidenceModel, policy: Policy, available: np.ndarray) -> None:
        """Start without cases.

        Args:
            model: The evidence model.
            policy: The rounds, and how many experts may be asked about a voxel.
            available: Bool (J,), who can be asked.
        """
        super().__init__(model)
        self._policy, self._available = policy, available

    def update(self, case: Questioned) -> None:
        """Add a case without earlier rounds."""
        self._found[case.case.name] = case

    def at(self, budgets: Iterable[float] = BUDGETS) -> list[BudgetResult]:
        """The system at each budget; where values tie, slightly more may be asked, see :func:`.ask`."""
        model = self._model.in_round(self._policy.rounds)
        cases = [(each.case.candidates, each.case.answers) for each in self._cases]

        def value(candidates: Candidates, answers: np.ndarray, asked: np.ndarray, most: int) -> np.ndarray:
            values = model.values(candidates, answers, asked, most=most, available=self._available)
            return np.where(answers == MISSING, 0, values)

        # The same for all budgets.
        first = {
            id(candidates): value(candidates, answers, np.zeros(answers.shape, dtype=bool), self._policy.most)
            for candidates, answers in cases
        }

        def score(candidates: Candidates, answers: np.ndarray, asked: np.ndarray, most: int) -> np.ndarray:
            return value(candidates, answers, asked, most) if asked.any() else first[id(candidates)]

        found = []
        for budget in budgets:
            number = int(budget * self._num_voxels)
            (*_, asked), _ = ask(model, cases, self._policy, budget=number, score=score)
            found.append(self._result(budget, model, asked, questions=sum(int(done.sum()) for done in asked)))
        return found
