import itertools
import math

import numpy as np
import pytest

from nnunetv2_deferral.evaluation.budgets import (
    BUDGETS,
    BudgetStatistics,
    dice_at_budgets,
    recovered_gain,
)
from nnunetv2_deferral.evaluation.overlap import overlap, summarize
from nnunetv2_deferral.evaluation.score_bins import NUM_BINS
from nnunetv2_deferral.labels import MISSING

REGIONS = (1, (1, 2))


def make_cases(seed, *, num_levels=None, missing=0.0, masked=False, shapes=((4, 5), (3, 2, 4))):
    """Cases by name: scores, of so many levels or all distinct, and labels 0 to 2."""
    generator = np.random.default_rng(seed)
    total = sum(math.prod(shape) for shape in shapes)
    ranks, cases = iter(generator.permutation(total)), {}
    for number, shape in enumerate(shapes):
        if num_levels:
            scores = generator.integers(0, num_levels, shape).astype(np.float32)
        else:
            scores = np.array([next(ranks) for _ in range(math.prod(shape))], np.float32).reshape(shape)
        reference, model, answer = generator.integers(0, 3, (3, *shape))
        answer[generator.random(shape) < missing] = MISSING
        valid = generator.random(shape) < 0.7 if masked else None
        cases[f"case{number}"] = {
            "scores": scores,
            "reference": reference,
            "model": model,
            "answer": answer,
            "valid": valid,
        }
    return cases


def statistics_of(cases, regions=REGIONS, **options):
    found = BudgetStatistics(regions, **options)
    for name, case in cases.items():
        found.update(name, **case)
    return found


def counted(case):
    return np.ones(case["scores"].shape, bool) if case["valid"] is None else case["valid"]


def order_of_deferral(cases):
    """All voxels that can be deferred, (score, case, index), the highest score first."""
    voxels = [
        (float(case["scores"][index]), name, index)
        for name, case in cases.items()
        for index in np.ndindex(case["scores"].shape)
        if counted(case)[index] and case["answer"][index] != MISSING
    ]
    return sorted(voxels, key=lambda voxel: -voxel[0])


def scores_after(cases, deferred, regions=REGIONS):
    """Summary of the masks when just these voxels are answered by the expert."""
    systems = {name: case["model"].copy() for name, case in cases.items()}
    for _, name, index in deferred:
        systems[name][index] = cases[name]["answer"][index]
    return {name: overlap(case["reference"], systems[name], regions, counted(case)) for name, case in cases.items()}


def assert_same_scores(result, metrics):
    summary, expected = result.summary(), summarize(metrics)
    for region, scores in expected["mean"].items():
        assert summary["mean"][region]["Dice"] == pytest.approx(scores["Dice"], nan_ok=True)
        assert summary["mean"][region]["n_undefined"] == scores["n_undefined"]
    assert result.foreground_mean == pytest.approx(expected["foreground_mean"]["Dice"], nan_ok=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_each_budget_scores_the_masks_with_the_highest_scores_deferred(seed, missing, masked):
    cases = make_cases(seed, missing=missing, masked=masked)
    order, number = order_of_deferral(cases), sum(int(counted(case).sum()) for case in cases.values())
    results = statistics_of(cases).at(np.arange(number + 1) / number)
    for num_deferred, result in enumerate(results):
        assert_same_scores(result, scores_after(cases, order[:num_deferred]))
        assert result.rate == pytest.approx(min(num_deferred, len(order)) / number)


@pytest.mark.parametrize("seed", range(4))
def test_within_a_tie_counts_are_the_means_over_all_choices(seed):
    cases = make_cases(seed, num_levels=2, shapes=((5,), (4,)), missing=0.1)
    order = order_of_deferral(cases)
    top = [voxel for voxel in order if voxel[0] == order[0][0]]
    results = statistics_of(cases).at(np.arange(len(top) + 1) / 9)
    for num_deferred, result in enumerate(results):
        chosen = [scores_after(cases, some) for some in itertools.combinations(top, num_deferred)]
        for row, name in zip(result.dice, cases, strict=True):
            for dice, region in zip(row, result.regions, strict=True):
                tp, fp, fn = (np.mean([metrics[name][region][key] for metrics in chosen]) for key in ("TP", "FP", "FN"))
                expected = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan
                assert dice == pytest.approx(expected, nan_ok=True)


def test_a_fraction_of_a_voxel_is_a_fraction_of_its_counts():
    case = {"reference": np.array([1, 1]), "model": np.array([1, 0]), "answer": np.array([1, 1])}
    (result,) = statistics_of({"a": case | {"scores": np.array([0, 1]), "valid": None}}, [1]).at([0.25])
    assert result.foreground_mean == pytest.approx(2 * 1.5 / (1.5 + 2))
    assert result.rate == 0.25


def test_a_random_ranking_changes_counts_in_proportion():
    cases = make_cases(0, num_levels=1)
    nothing, half, everything = statistics_of(cases, [1]).at([0, 0.5, 1])
    for name, at_0, at_half, at_1 in zip(cases, nothing.dice, half.dice, everything.dice, strict=True):
        case = cases[name]
        reference = (case["reference"] == 1).sum()
        predicted = [(case[who] == 1).sum() for who in ("model", "answer")]
        hits = [dice * (number + reference) / 2 for dice, number in zip((at_0, at_1), predicted, strict=True)]
        assert at_half == pytest.approx(2 * np.mean(hits) / (np.mean(predicted) + reference))


def test_budget_zero_is_the_model_alone_and_one_the_experts_wherever_they_answer():
    cases = make_cases(1, missing=0.4)
    nothing, everything = statistics_of(cases).at([0, 1])
    assert_same_scores(nothing, scores_after(cases, []))
    assert_same_scores(everything, scores_after(cases, order_of_deferral(cases)))
    assert nothing.rate == 0
    assert everything.rate == pytest.approx(len(order_of_deferral(cases)) / 44)


def test_the_usual_budgets_come_by_themselves():
    assert [result.budget for result in statistics_of(make_cases(0)).at()] == list(BUDGETS)


def test_an_undefined_dice_is_left_out_and_counted():
    empty = {"reference": np.zeros(2, int), "model": np.array([1, 0]), "answer": np.zeros(2, int)}
    full = {"reference": np.array([1, 1]), "model": np.array([1, 0]), "answer": np.array([1, 0])}
    cases = {"empty": empty, "full": full}
    found = statistics_of({name: case | {"scores": np.ones(2), "valid": None} for name, case in cases.items()}, [1])
    before, after = found.at([0, 1])
    assert before.foreground_mean == pytest.approx((0 + 2 / 3) / 2)
    assert after.foreground_mean == pytest.approx(2 / 3)
    assert after.summary()["mean"]["1"]["n_undefined"] == 1


def test_without_positive_only_a_score_of_zero_is_deferred_last():
    case = {"reference": np.array([1, 1]), "model": np.array([1, 1]), "answer": np.array([0, 0])}
    cases = {"a": case | {"scores": np.zeros(2), "valid": None}}
    assert statistics_of(cases, [1]).at([1])[0].foreground_mean == 0
    assert statistics_of(cases, [1], positive_only=True).at([1])[0].foreground_mean == 1


@pytest.mark.parametrize(
    ("dice", "without", "oracle_dice", "expected"),
    [
        (0.8, 0.7, 0.9, 0.5),
        (0.7, 0.7, 0.9, 0),
        (0.6, 0.7, 0.9, -0.5),
        (0.9, 0.7, 0.9, 1),
        (0.8, 0.8, 0.8, math.nan),
        (0.75, 0.8, 0.8001, math.nan),  # not -500
        (0.8, 0.7994, 0.8, 1),
        (0.9, 0.8, 0.7, math.nan),
        (0.9, math.nan, 0.7, math.nan),
    ],
)
def test_what_is_recovered_is_a_fraction_of_the_oracles_gain(dice, without, oracle_dice, expected):
    assert recovered_gain(dice, without, oracle_dice) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("num_levels", [None, 4])
def test_order_and_chunks_make_no_difference(num_levels, monkeypatch):
    cases = make_cases(2, num_levels=num_levels, missing=0.2, masked=True, shapes=((6, 7), (5, 5), (3, 4, 5)))
    budgets = np.linspace(0, 1, 23)
    whole = statistics_of(cases).at(budgets)
    monkeypatch.setattr("nnunetv2_deferral.arrays.CHUNK_VOXELS", 5)
    monkeypatch.setattr("nnunetv2_deferral.evaluation.score_bins._FEW", 0)
    generator, shuffled = np.random.default_rng(0), {}
    for name, case in cases.items():
        order = generator.permutation(case["scores"].size)
        shuffled[name] = {key: array.ravel()[order] for key, array in case.items()}
    for first, second in zip(statistics_of(shuffled).at(budgets), whole, strict=True):
        np.testing.assert_allclose(first.dice, second.dice)
        assert (first.rate, first.cases) == (second.rate, second.cases)


def test_voxels_that_cannot_be_deferred_need_no_score():
    cases = make_cases(3, missing=0.3, masked=True)
    expected = statistics_of(cases).at()
    for case in cases.values():
        case["scores"][(case["answer"] == MISSING) | ~case["valid"]] = np.nan
    for positive_only in (False, True):
        statistics_of(cases, positive_only=positive_only)
    for first, second in zip(statistics_of(cases).at(), expected, strict=True):
        np.testing.assert_array_equal(first.dice, second.dice)


def test_a_case_where_nothing_counts_scores_nothing():
    case = {key: np.zeros((2, 0), int) for key in ("scores", "reference", "model", "answer")} | {"valid": None}
    (result,) = statistics_of({"a": case}).at([0.5])
    assert result.rate == 0
    assert math.isnan(result.foreground_mean)


def test_what_is_kept_of_a_case_is_bounded_by_its_bins():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 10, 10_000).astype(np.uint8)
    reference, model, answer = generator.integers(0, 2, (3, 10_000))
    found = BudgetStatistics([1])
    found.update("a", scores, reference=reference, model=model, answer=answer)
    assert found._cases["a"].changes.shape == (2, 10)
    assert found._deferrable.shape == (NUM_BINS,)


def bad_case(**changes):
    return {key: np.zeros(3, int) for key in ("scores", "reference", "model", "answer")} | {"valid": None} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros(4)}, r"scores \(4,\), reference \(3,\)"),
        ({"answer": np.zeros((1, 3), int)}, r"answer \(1, 3\)"),
        ({"valid": np.ones(3, int)}, "valid must be bool"),
        ({"scores": np.array([0.1, np.nan, 0.2])}, "got nan"),
        ({"scores": np.array([0.1, -2.0, 0.2])}, "got -2.0"),
    ],
)
@pytest.mark.parametrize("positive_only", [False, True])
def test_a_case_that_cannot_be_scored_is_refused_and_leaves_nothing(changes, message, positive_only):
    found = BudgetStatistics([1], positive_only=positive_only)
    with pytest.raises(ValueError, match=message):
        found.update("a", **bad_case(**changes))
    with pytest.raises(ValueError, match="no case"):
        found.at()


def test_cases_are_added_once():
    found = statistics_of({"a": bad_case()})
    with pytest.raises(ValueError, match="case a was already added"):
        found.update("a", **bad_case())


@pytest.mark.parametrize("budget", [-0.1, 1.5, math.nan])
def test_budgets_are_fractions(budget):
    with pytest.raises(ValueError, match=f"got {budget}"):
        statistics_of(make_cases(0)).at([budget])


def test_at_least_one_region_is_needed():
    with pytest.raises(ValueError, match="at least one region"):
        BudgetStatistics([])


def test_dice_at_budgets_of_arrays_is_that_of_the_statistics():
    cases = make_cases(0, missing=0.1, masked=True)
    statistics = BudgetStatistics((1, 2), positive_only=True)
    for name, case in cases.items():
        statistics.update(name, **case)
    keys = {"scores": "scores", "references": "reference", "models": "model", "answers": "answer", "valid": "valid"}
    arrays = {key: [case[each] for case in cases.values()] for key, each in keys.items()}
    found = dice_at_budgets(**arrays, regions=(1, 2), positive_only=True)
    for one, other in zip(found, statistics.at(BUDGETS), strict=True):
        assert (one.budget, one.rate, one.regions) == (other.budget, other.rate, other.regions)
        np.testing.assert_array_equal(one.dice, other.dice)


def test_without_regions_all_labels_of_the_references_are_scored():
    cases = make_cases(0)
    arrays = [[case[key] for case in cases.values()] for key in ("scores", "reference", "model", "answer")]
    assert dice_at_budgets(*arrays, budgets=[0])[0].regions == ("1", "2")


def test_dice_at_budgets_refuses_lists_that_differ_and_references_without_foreground():
    empty = np.zeros((1, 5), int)
    with pytest.raises(ValueError, match="scores has 1 cases, but models has 2"):
        dice_at_budgets(empty, empty, [empty[0]] * 2, empty)
    with pytest.raises(ValueError, match="at least one region"):
        dice_at_budgets(empty, empty, empty, empty)
