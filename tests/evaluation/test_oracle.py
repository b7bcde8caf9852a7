"""No choice of voxels, and so no ranking, reaches more than the oracle."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_deferral.defaults import BUDGETS
from nnunetv2_deferral.evaluation.bootstrap import mean_over_cases
from nnunetv2_deferral.evaluation.budgets import BudgetStatistics, recovered_gain
from nnunetv2_deferral.evaluation.oracle import OracleStatistics
from nnunetv2_deferral.evaluation.overlap import overlap
from nnunetv2_deferral.labels import MISSING

REGIONS = ([1], [1, 2], [(1, 2), 2])


def mean_dice(systems, cases, regions):
    return mean_over_cases(
        np.array(
            [
                [scores["Dice"] for scores in overlap(reference, system, regions).values()]
                for (reference, _, _), system in zip(cases, systems, strict=True)
            ]
        )
    )


def oracle_of(cases, regions, valid=None):
    found = OracleStatistics(regions)
    for number, (reference, model, answers) in enumerate(cases):
        given = {} if valid is None else {"valid": valid[number]}
        found.update(f"case{number}", reference=reference, model=model, answers=answers, **given)
    return found


def random_cases(generator, sizes, *, labels, experts, missing=0.1):
    """(reference, model, answers) of each case, often without some label."""
    cases = []
    for size in sizes:
        reference, model = (generator.choice(labels, size, p=generator.dirichlet(np.ones(labels))) for _ in range(2))
        answers = np.where(generator.random((experts, size)) < 0.6, reference, generator.integers(0, labels, size))
        answers[generator.random(answers.shape) < missing] = MISSING
        cases.append((reference, model, answers))
    return cases


def best_of_all(cases, regions, most):
    """The highest mean Dice for each number of voxels from 0 to `most`, by trying everything."""
    sizes = [reference.size for reference, _, _ in cases]
    places = [(case, voxel) for case, size in enumerate(sizes) for voxel in range(size)]
    best = [mean_dice([model for _, model, _ in cases], cases, regions)]
    for number in range(1, most + 1):
        found = [best[-1]]
        for chosen in itertools.combinations(places, number):
            options = [np.unique(cases[case][2][:, voxel]) for case, voxel in chosen]
            for answers in itertools.product(*options):
                systems = [model.copy() for _, model, _ in cases]
                for (case, voxel), answer in zip(chosen, answers, strict=True):
                    if answer != MISSING:
                        systems[case][voxel] = answer
                found.append(mean_dice(systems, cases, regions))
        best.append(np.nanmax(found) if not np.isnan(found).all() else np.nan)
    return best


@pytest.mark.parametrize("regions", REGIONS, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_no_choice_of_voxels_is_better_by_trying_all(seed, regions):
    generator = np.random.default_rng(seed)
    sizes = ((4, 3), (3, 2, 2), (6,), (2, 2, 2))[seed % 4]
    cases = random_cases(generator, sizes, labels=3 if len(regions) > 1 else 2, experts=1 + seed % 2)
    best = best_of_all(cases, regions, most=4)
    results = oracle_of(cases, regions).at(np.arange(5) / sum(sizes))
    assert results[0].foreground_mean == pytest.approx(best[0], nan_ok=True)
    for result, reached in zip(results, best, strict=True):
        assert np.isnan(reached) or result.foreground_mean >= reached - 1e-12


@pytest.mark.parametrize("regions", REGIONS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_no_ranking_recovers_more_than_all_of_its_gain(seed, regions):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(20, 400, generator.integers(1, 7))
    cases = random_cases(generator, sizes, labels=3, experts=3)
    valid = [generator.random(size) < 0.9 for size in sizes]
    budgets = [0, 0.0013, *BUDGETS, 0.3, 1]
    without, *bounds = oracle_of(cases, regions, valid).at(budgets)
    recovered = []
    for kind in ("random", "noise", "knows the reference", "prefers missed voxels", "prefers small cases", "one tie"):
        for who in (0, 3):
            statistics = BudgetStatistics(regions, positive_only=kind == "knows the reference")
            for number, (reference, model, answers) in enumerate(cases):
                right = np.where((answers == reference).any(0), reference, model)
                answer = right if who == 3 else answers[who]
                helps = (answer == reference) & (model != reference)
                scores = {
                    "random": np.ones(reference.size),
                    "noise": generator.random(reference.size),
                    "knows the reference": helps.astype(float),
                    "prefers missed voxels": helps * (1.0 + (reference > 0)),
                    "prefers small cases": helps / reference.size,
                    "one tie": np.where(helps, 1, 0.5),
                }[kind]
                statistics.update(
                    f"case{number}", scores, reference=reference, model=model, answer=answer, valid=valid[number]
                )
            for found, bound in zip(statistics.at(budgets)[1:], bounds, strict=True):
                assert found.foreground_mean <= bound.foreground_mean + 1e-9, (kind, who, bound.budget)
                recovered.append(recovered_gain(found.foreground_mean, without.foreground_mean, bound.foreground_mean))
    assert np.nanmax(recovered) > 0.6


def discs(generator, number):
    """Discs of one label, which models and two experts draw with errors."""
    cases = []
    for _ in range(number):
        grid = np.indices((48, 48)) - generator.uniform(15, 33, (2, 1, 1))
        distance = generator.uniform(3, 12) - np.hypot(*grid)
        noise = ndimage.gaussian_filter(generator.normal(size=(3, 48, 48)), (0, 2, 2)) * 12
        model, *answers = (distance + noise > 0).astype(int)
        reference = (distance > 0).astype(int)
        cases.append((reference, np.where(generator.random() < 0.2, 0, model), np.stack(answers)))
    return cases


def test_of_one_label_it_is_nearly_reached_by_correcting_the_best_voxel_again_and_again():
    cases = discs(np.random.default_rng(0), 8)
    budgets = np.array([0, 0.001, 0.003, 0.01, 0.03])
    bounds = [result.foreground_mean for result in oracle_of(cases, [1]).at(budgets)]
    truths, systems = ([case[place].copy() for case in cases] for place in (0, 1))
    helps = [(model != truth) & (answers == truth).any(0) for truth, model, answers in cases]
    reached, number = [], 0
    for limit in budgets * sum(truth.size for truth in truths):
        while number < int(limit):
            options = []
            for case, (truth, system) in enumerate(zip(truths, systems, strict=True)):
                hits, total = (truth & system).sum(), truth.sum() + system.sum()
                for label, after in ((1, 2 * (hits + 1) / (total + 1)), (0, 2 * hits / (total - 1))):
                    if (places := np.flatnonzero(helps[case] & (system != truth) & (truth == label))).size:
                        options.append((after - 2 * hits / total, case, int(places[0]), label))
            _, case, place, label = max(options)
            systems[case].flat[place] = label
            number += 1
        reached.append(mean_dice(systems, cases, [1]))
    share = (np.array(reached[1:]) - reached[0]) / (np.array(bounds[1:]) - bounds[0])
    assert bounds[0] == pytest.approx(reached[0])
    assert (share > [0.9, 0.97, 0.99, 0.99]).all()
    assert (share <= 1 + 1e-12).all()


def test_it_stops_when_nothing_more_is_to_be_gained():
    cases = discs(np.random.default_rng(1), 4)
    helpful = [(model != truth) & (answers == truth).any(0) for truth, model, answers in cases]
    best = [np.where(helps, truth, model) for (truth, model, _), helps in zip(cases, helpful, strict=True)]
    share = sum(helps.sum() for helps in helpful) / sum(helps.size for helps in helpful)
    half, all_of_it, everything = oracle_of(cases, [1]).at([share / 2, share, 1])
    assert half.rate == pytest.approx(share / 2)
    assert all_of_it.rate == everything.rate == pytest.approx(share)
    assert everything.foreground_mean == pytest.approx(mean_dice(best, cases, [1]))
    assert half.foreground_mean < all_of_it.foreground_mean == everything.foreground_mean
    assert everything.dice.shape == (4, 1)


def test_it_grows_with_the_budget_and_never_faster_than_before():
    results = oracle_of(discs(np.random.default_rng(2), 5), [1]).at(np.linspace(0, 0.05, 40))
    steps = np.diff([result.foreground_mean for result in results])
    assert (steps >= -1e-12).all()
    assert (np.diff(steps) <= 1e-9).all()


def test_a_case_without_reference_is_left_out_once_it_is_clean():
    full = np.array([1, 1, 1, 1, 0, 0]), np.array([1, 1, 0, 0, 0, 0]), np.array([[1, 1, 0, 0, 0, 0]])
    empty = np.zeros(6, int), np.array([1, 1, 0, 0, 0, 0]), np.zeros((1, 6), int)
    found = oracle_of([full, empty], [1]).at(np.array([0, 1, 2, 3]) / 12)
    assert [result.foreground_mean for result in found] == pytest.approx([1 / 3, 1 / 2, 2 / 3, 2 / 3])
    assert np.isnan(found[2].dice[1, 0])
    assert found[2].rate == pytest.approx(2 / 12)
    # With a wrong answer to one of the voxels it never becomes clean.
    empty[2][0, 0] = 1
    assert [result.foreground_mean for result in oracle_of([full, empty], [1]).at([0, 1])] == pytest.approx([1 / 3] * 2)


def test_a_region_that_no_reference_has_is_left_out_once_it_is_clean():
    case = np.array([1, 1, 0, 0, 0, 0]), np.array([1, 1, 2, 0, 0, 0]), np.array([[1, 1, 0, 0, 0, 0]])
    found = oracle_of([case], [1, 2]).at(np.array([0, 0.5, 1]) / 6)
    assert [result.foreground_mean for result in found] == pytest.approx([0.5, 0.75, 1])
    nothing = np.zeros(4, int), np.zeros(4, int), np.ones((1, 4), int)
    (result,) = oracle_of([nothing], [1]).at([1])
    assert np.isnan(result.foreground_mean)
    assert result.rate == 0


def test_an_answer_that_is_wrong_but_better_helps():
    """A voxel of class 2 that the model takes for class 1, and the expert for background."""
    reference, model = np.array([2, 1, 1, 0]), np.array([1, 1, 1, 0])
    (result,) = oracle_of([(reference, model, np.array([[0, 1, 1, 0]]))], [1]).at([0.25])
    assert result.foreground_mean == 1


def test_chunks_make_no_difference(monkeypatch):
    cases = random_cases(np.random.default_rng(3), (90, 70), labels=3, experts=2)
    whole = oracle_of(cases, [1, 2]).at()
    monkeypatch.setattr("nnunetv2_deferral.arrays.CHUNK_VOXELS", 7)
    for first, second in zip(oracle_of(cases, [1, 2]).at(), whole, strict=True):
        np.testing.assert_array_equal(first.dice, second.dice)
    assert [result.budget for result in whole] == list(BUDGETS)


def test_what_cannot_be_scored_is_refused():
    labels = np.zeros(3, int)
    with pytest.raises(ValueError, match="at least one region"):
        OracleStatistics([])
    found = OracleStatistics([1])
    with pytest.raises(ValueError, match="no cases"):
        found.at()
    with pytest.raises(ValueError, match=r"answer \(2,\)"):
        found.update("a", reference=labels, model=labels, answers=np.zeros((1, 2), int))
    with pytest.raises(ValueError, match="valid must be bool"):
        found.update("a", reference=labels, model=labels, answers=labels[None], valid=labels)
    found.update("a", reference=labels, model=labels, answers=labels[None])
    with pytest.raises(ValueError, match="case a was already added"):
        found.update("a", reference=labels, model=labels, answers=labels[None])
    with pytest.raises(ValueError, match=r"got 1\.5"):
        found.at([1.5])
