"""Rankings by the errors of other cases."""

from dataclasses import replace

import numpy as np
import pytest
from square_cases import make_case

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.evaluation.budgets import BudgetStatistics
from nnunetv2_deferral.evaluation.evaluation import Evaluation
from nnunetv2_deferral.evaluation.prior_errors import (
    CELLS,
    FOLDS,
    MASK_ONLY,
    PRIOR_MAP,
    PriorErrors,
    fold_of,
    mask_cells,
    position_cells,
)

SHAPE = (1, 32, 32)


def wrong_at(name, rows, *, columns=slice(None)):
    """A case whose model misses these rows of an object that fills the image; the expert is right."""
    reference = np.ones(SHAPE, dtype=np.int64)
    model = reference.copy()
    model[:, rows, columns] = 0
    maps = {"route": np.zeros(SHAPE, np.uint8), "probability": np.zeros(SHAPE, np.float32)}
    prediction = PredictedCase(name, model=model, expert=np.ones(SHAPE, np.uint8), gain=maps["probability"], **maps)
    return EvaluatedCase(prediction=prediction, reference=reference, answers=reference[None])


def by_position(cases, groups=None):
    found = PriorErrors((1,))
    for case in cases:
        group = case.name if groups is None else groups[case.name]
        found.update(case, position_cells(SHAPE), case.answers[0], group)
    return found


def in_other_folds(number):
    """Names of cases, each in a fold of its own."""
    names, place = {}, 0
    while len(names) < number:
        names.setdefault(fold_of(str(place)), str(place))
        place += 1
    return list(names.values())


def test_positions_are_shares_of_the_image():
    assert np.array_equal(np.unique(position_cells(SHAPE)), np.arange(32 * 32))
    small, large = position_cells((24, 12, 36)), position_cells((48, 60, 12))
    assert small[3, 5, 7] == small[2, 5, 6] == large[6, 29, 2]
    assert small.max() < CELLS and small.dtype == np.uint16
    assert position_cells((1, 1, 1)).tolist() == [[[0]]]


def test_the_mask_gives_class_and_distance():
    model, near = np.array([0, 0, 3, 3, 250], np.uint8), np.array([255, 0, 255, 240, 0], np.uint8)
    cells = mask_cells(model, near)
    assert cells.tolist() == [15, 0, 3 * 16 + 15, 3 * 16 + 15, CELLS - 16]


def test_voxels_come_first_where_other_cases_are_wrong():
    first, second = in_other_folds(2)
    found = by_position([wrong_at(first, [3]), wrong_at(second, [3])])
    budget = 32 / 1024
    assert found.at([0, budget / 2, budget])[-1].foreground_mean == 1
    alone, half, _ = found.at([0, budget / 2, budget])
    assert alone.foreground_mean == pytest.approx(2 * 992 / (992 + 1024))
    assert half.foreground_mean == pytest.approx(2 * 1008 / (1008 + 1024))
    histogram = found.histogram()
    assert histogram.errors[histogram.voxels > 0].tolist() == [0, 64]


def test_a_case_is_not_scored_by_its_own_errors_nor_by_those_of_its_group():
    cases = [wrong_at(name, [3]) for name in in_other_folds(2)]
    for found in (by_position(cases[:1]), by_position(cases, dict.fromkeys((case.name for case in cases), "patient"))):
        histogram = found.histogram()
        assert np.count_nonzero(histogram.voxels) == 1
        fixed = found.at([0.5])[0].dice[0, 0]
        assert fixed == pytest.approx(2 * (992 + 16) / (992 + 16 + 1024))  # of 32 wrong voxels, half
    # Elsewhere wrong, they are scored by each other: what is asked first is right.
    apart = by_position([wrong_at(cases[0].name, [3]), wrong_at(cases[1].name, [20])])
    without, at_first = apart.at([0, 32 / 1024])
    assert at_first.foreground_mean == without.foreground_mean


def test_other_names_for_scores_are_the_same_as_these_scores():
    generator = np.random.default_rng(0)
    values = generator.random(40) * (generator.random(40) > 0.2)
    direct, renamed = (BudgetStatistics((1, 2), positive_only=False) for _ in range(2))
    for name in "ab":
        reference, model, answer = generator.integers(0, 3, (3, 1, 20, 20))
        numbers = generator.integers(0, 40, (1, 20, 20))
        direct.update(name, values[numbers], reference=reference, model=model, answer=answer)
        renamed.update(name, numbers.astype(np.uint16), reference=reference, model=model, answer=answer)
    budgets = (0, 0.07, 0.3, 1)
    for one, other in zip(direct.at(budgets), renamed.rescored(values).at(budgets), strict=True):
        assert one.rate == other.rate
        np.testing.assert_array_equal(one.dice, other.dice)


def test_names_for_every_fold_and_cell_have_bins_of_their_own():
    statistics = BudgetStatistics((1,))
    voxels = np.arange(FOLDS * CELLS, dtype=np.uint16)
    nothing, everything = np.zeros(voxels.shape, int), np.ones(voxels.shape, int)
    statistics.update("all", voxels, reference=everything, model=nothing, answer=everything)
    assert statistics.rescored(voxels[::-1].astype(float)).at([1 / voxels.size])[0].dice == pytest.approx(
        2 / (1 + voxels.size)
    )


def test_groups_reach_the_rankings_and_ignored_voxels_count_nowhere():
    cases = [make_case(number, 0.2) for number in range(4)]
    cases = [replace(case, reference=np.where(case.model > 0, 9, case.reference), ignore_label=9) for case in cases]
    valid = sum(int(case.valid.sum()) for case in cases)
    found = {}
    for groups in (None, "patient"):
        evaluation = Evaluation((1,), ("ann", "bob"))
        for case in cases:
            evaluation.update(case, group=groups)
        found[groups] = evaluation.summary(budgets=(0.1,), num_resamples=2)
    for name in (PRIOR_MAP, MASK_ONLY):
        by_case = found[None]["risk_coverage"][name]["AUGRC"]
        assert by_case["area"] != pytest.approx(by_case["random"])
        for part in ("risk_coverage", "budgets"):  # of one patient, there are no others to be scored by
            assert name in found[None][part]
            assert name not in found["patient"][part]
    assert valid < 4 * 24 * 24


def test_cases_with_many_errors_do_not_come_last_because_their_own_fold_is_left_out():
    names, few, many = iter(map(str, range(10**6))), [], []
    while min(len(few), len(many)) < 4:
        name = next(names)
        (few if fold_of(name) == fold_of("0") else many if fold_of(name) == fold_of("1") else []).append(name)
    few, many = few[:4], many[:4]
    assert fold_of("0") != fold_of("1")
    wrong = [wrong_at(name, [3] if name in (*many, few[0]) else []) for name in few + many]
    found = by_position(wrong)
    of_a_row = 8 * 32 / (8 * 1024)  # as many voxels as the eight rows have, five of which are wrong
    before, half, after = (each.dice[:, 0].sum() for each in found.at([0, of_a_row / 2, of_a_row]))
    assert after - before == pytest.approx(5 * (1 - 2 * 992 / (992 + 1024)))
    assert (half - before) / (after - before) == pytest.approx(0.5, abs=0.02)
