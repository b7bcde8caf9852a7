"""The tables of the paper as trainers and plans.

Trainers' names select the paper's objective (`_DC`), regardless of the plans, with LB and SC unless switched off by
`_noLB` and `_noSC`. By default SC trains the aggregated predictor only, so that its weight does not affect the routing;
the paper's own form is selected by `_paperSC`, in one additional row per number of experts in the ablation and in the
whole grid. The ablation ends with one-vs-all, which is not in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nnunetv2_deferral.benchmark.plans import PlansChange, plans_with, use_expert_set, use_weights
from nnunetv2_deferral.dataset import read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.nnunet.naming import BASE_NAME, MAX_EXPERTS
from nnunetv2_deferral.nnunet.rater_data import dataset_raters
from nnunetv2_deferral.settings import PLANS_KEY, resolve_settings

LAMBDAS = (0.1, 1.0, 5.0, 10.0)
"""The values of lambda_1 and lambda_2 in Table C.8."""

_ABLATION = (
    (1, "DC", "_DC_noSC"),
    (1, "+ SC", "_DC"),
    (1, "+ SC as in the paper", "_DC_paperSC"),
    (1, "one-vs-all", "_OvA"),
    (3, "DC", "_DC_noSC_noLB"),
    (3, "+ SC", "_DC_noLB"),
    (3, "+ LB", "_DC_noSC"),
    (3, "+ SC, LB", "_DC"),
    (3, "+ SC as in the paper, LB", "_DC_paperSC"),
    (3, "one-vs-all", "_OvA"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table (a column of the paper's scalability table).

    Attributes:
        headings: The cells beside the scores, by column heading.
        method: The method that is scored.
    """

    headings: Mapping[str, str]
    method: Method


@dataclass(frozen=True, kw_only=True)
class Study:
    """A table of the paper.

    Attributes:
        name: `"ablation"`, `"grid"` or `"experts"`.
        title: The title of the table.
        rows: The rows in the paper's order.
    """

    name: str
    title: str
    rows: tuple[Row, ...]


class StudyMaker:
    """Makes studies for a dataset, with plans derived from given ones."""

    def __init__(self, experiment: Experiment, plans: str, *, name: Callable[[str], str], write: bool) -> None:
        """Prepare.

        Args:
            experiment: Dataset, configuration and folds.
            plans: Name of the plans that the others are derived from.
            name: Converts a trainer's base name to the name to train, for example with a number of epochs.
            write: Write derived plans that do not exist yet.
        """
        self._folder = experiment.preprocessed
        self._plans = plans
        self._name = name
        self._write = write
        self._raters = dataset_raters(experiment.dataset, experiment.dataset_json)

    def ablation(self, expert_set: str = "standard") -> Study:
        """Table 6, with one and three simulated experts.

        Raises:
            InputError: See :func:`.plans_with`.
        """
        change = use_expert_set(expert_set)
        rows = [
            Row(headings={"J": str(number), "Loss": loss}, method=self._method(number, options, change))
            for number, loss, options in _ABLATION
        ]
        return Study(name="ablation", title="Ablation of the losses (the paper's Table 6)", rows=tuple(rows))

    def grid(self, lambdas: Sequence[float] = LAMBDAS) -> Study:
        """Table C.8, with the experts of the plans and the paper's form of SC.

        Raises:
            InputError: See :func:`.plans_with`.
        """
        block = read_plans_json(self._folder / f"{self._plans}.json").get(PLANS_KEY)
        number = resolve_settings(block, raters=self._raters).num_experts
        pairs = [(coherence, balance) for coherence in lambdas for balance in lambdas]
        rows = [
            Row(
                headings={"Group": group, "λ1": f"{coherence:.2f}", "λ2": f"{balance:.2f}"},
                method=self._method(number, "_DC_paperSC", use_weights(coherence, balance)),
            )
            for group, (coherence, balance) in zip(_letters(), pairs, strict=False)
        ]
        title = f"Weights of coherence (λ1) and balance (λ2), J = {number} (the paper's Table C.8)"
        return Study(name="grid", title=title, rows=tuple(rows))

    def experts(self, numbers: Sequence[int], expert_set: str = "scalability") -> Study:
        """Table D.10 (E.12 with the complementary set): numbers of simulated experts.

        Raises:
            InputError: If a number is not in [1, `MAX_EXPERTS`]; see also :func:`.plans_with`.
        """
        if unknown := [number for number in numbers if not 1 <= number <= MAX_EXPERTS]:
            raise InputError(f"trainers exist for 1 to {MAX_EXPERTS} experts, not for {unknown}")
        change = use_expert_set(expert_set)
        rows = [Row(headings={"J": str(number)}, method=self._method(number, "_DC", change)) for number in numbers]
        table = {"scalability": " (the paper's Table D.10)", "complementary": " (the paper's Table E.12)"}
        title = f"Numbers of experts, set {expert_set}{table.get(expert_set, '')}"
        return Study(name="experts", title=title, rows=tuple(rows))

    def _method(self, number: int, options: str, change: PlansChange) -> Method:
        named = number if number <= MAX_EXPERTS else None
        plans = plans_with(change, self._folder, self._plans, num_experts=named, raters=self._raters, write=self._write)
        experts = "" if named is None else f"{number}Expert{'s' if number > 1 else ''}"
        return Method(trainer=self._name(f"{BASE_NAME}{experts}{options}"), plans=plans)


def _letters() -> Iterator[str]:
    """A, B, ..., Z, AA, ..., the paper's names of groups."""
    number = 0
    while True:
        yield (chr(ord("A") + number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)
        number += 1
