"""The evidence method against slow references, voxel by voxel."""

from dataclasses import replace
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy import ndimage
from scipy.special import expit, logit, ndtr

from nnunetv2_deferral.calibration.evidence_models import fit_evidence_model
from nnunetv2_deferral.decision.gains import find_candidates
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.answer_tables import (
    NUM_ZONES,
    SHRINKAGE,
    ZONE_EDGES,
    AnswerTables,
    by_combination,
    fit_tables,
    pattern_of,
    zones,
)
from nnunetv2_deferral.evidence.expected_dice import best_labels, structure_weights, thresholds
from nnunetv2_deferral.evidence.neighbourhood import SIGMA, neighbour_residuals
from nnunetv2_deferral.evidence.posterior import CERTAIN, Candidates, EvidenceModel
from nnunetv2_deferral.evidence.prior import LARGEST_LOGIT, Prior, PriorMap, from_steps, smoothed_logits, to_steps
from nnunetv2_deferral.evidence.questions import Policy, ask
from nnunetv2_deferral.evidence.structures import Structures
from nnunetv2_deferral.evidence.value import values_of_information
from nnunetv2_deferral.labels import MISSING

BINARY = Structures((0, 1))
CLASSES = Structures((0, 1, 2))
REGIONS = Structures((0, 1, 2), regions=((1, 2), (2,)), order=(1, 2))


def random_tables(structures: int, experts: int, seed: int = 0) -> AnswerTables:
    """Tables of experts who are usually right, with dependent answers."""
    generator = np.random.default_rng(seed)
    right = generator.uniform(0.6, 0.95, (structures, NUM_ZONES, 2, experts))
    joint = np.empty((structures, NUM_ZONES, 2, 1 << experts))
    for number, digits in enumerate(product((0, 1), repeat=experts)):
        for truth in (0, 1):
            agreed = np.array(digits) == truth
            joint[:, :, truth, number] = np.where(agreed, right[:, :, truth], 1 - right[:, :, truth]).prod(-1)
    joint *= generator.uniform(0.7, 1.4, joint.shape)
    return AnswerTables(joint / joint.sum(-1, keepdims=True))


def probability(tables: AnswerTables, structure: int, zone: int, truth: int, known: dict[int, int]) -> float:
    """P(these answers | truth), by summing over all combinations."""
    total = 0.0
    for number, digits in enumerate(product((0, 1), repeat=tables.num_experts)):
        if all(digits[expert] == answer for expert, answer in known.items()):
            total += tables.joint[structure, zone, truth, number]
    return total


def test_marginal_tables_and_log_ratios_equal_sums_over_all_answers() -> None:
    tables, generator = random_tables(2, 3), np.random.default_rng(1)
    zone = generator.integers(0, NUM_ZONES, 40)
    inside, answered = generator.random((3, 40)) < 0.5, generator.random((3, 40)) < 0.6
    found = tables.log_ratios(1, zone, inside, answered)
    for voxel in range(40):
        known = {int(e): int(inside[e, voxel]) for e in np.flatnonzero(answered[:, voxel])}
        expected = np.log(probability(tables, 1, zone[voxel], 1, known) / probability(tables, 1, zone[voxel], 0, known))
        assert found[voxel] == pytest.approx(expected, abs=1e-5)
    # The order of the experts is that of the binary digits.
    assert tables.of((2, 0))[0, 3, 1, 2] == pytest.approx(probability(tables, 0, 3, 1, {2: 1, 0: 0}))


@pytest.mark.parametrize("weights", [((0.3, 0.3), (0.1, 0.1)), ((0.3, 0.2), (0.2, 0.05))])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_value_of_information_equals_enumeration(most: int, weights: tuple[tuple[float, float], ...]) -> None:
    tables, generator, voxels = random_tables(2, 3), np.random.default_rng(2), 30
    chance, zone = generator.random((2, voxels)), generator.integers(0, NUM_ZONES, (2, voxels))
    inside = generator.random((2, 3, voxels)) < 0.5
    asked = generator.random((3, voxels)) < 0.3
    answered = asked & (generator.random((3, voxels)) < 0.8)
    available = np.array([True, True, False])
    found = values_of_information(
        tables,
        probability=chance,
        zone=zone,
        inside=inside,
        answered=answered,
        asked=asked,
        weights=np.array(weights),
        most=most,
        available=available,
    )
    assert (found >= 0).all()
    assert (found > 0).any()
    for voxel in range(voxels):
        left = [e for e in range(3) if available[e] and not asked[e, voxel]]
        best = np.zeros(3)
        for size in range(1, min(most - asked[:, voxel].sum(), len(left)) + 1):
            for chosen in combinations(left, int(size)):
                gain = 0.0
                for s, (missed, false) in enumerate(weights):
                    known = {int(e): int(inside[s, e, voxel]) for e in np.flatnonzero(answered[:, voxel])}
                    before = [probability(tables, s, zone[s, voxel], y, known) for y in (0, 1)]
                    least = (2 * false / (missed + false) + 1) / 4  # half of a Dice halfway to 1
                    stays = chance[s, voxel] > least
                    for answers in product((0, 1), repeat=int(size)):
                        more = known | dict(zip(chosen, answers, strict=True))
                        after = [probability(tables, s, zone[s, voxel], y, more) / before[y] for y in (0, 1)]
                        hit, miss = chance[s, voxel] * after[1], (1 - chance[s, voxel]) * after[0]
                        # A right voxel inside adds what it would have missed, a wrong one takes what it is false.
                        worth = hit * missed - miss * false
                        gain += ((hit / (hit + miss) > least) - int(stays)) * worth
                for expert in chosen:
                    best[expert] = max(best[expert], gain / size)
        np.testing.assert_allclose(found[:, voxel], best, atol=1e-6)


def test_nobody_is_asked_where_no_answer_can_change_the_label() -> None:
    joint = np.tile([[0.9, 0.1], [0.1, 0.9]], (1, NUM_ZONES, 1, 1))  # one expert, right in 90 %
    found = values_of_information(
        AnswerTables(joint),
        probability=np.array([[0.05, 0.5, 0.95]]),
        zone=np.array([[1, 2, 4]]),
        inside=np.zeros((1, 1, 3), dtype=bool),
        answered=np.zeros((1, 3), dtype=bool),
        asked=np.zeros((1, 3), dtype=bool),
        weights=np.ones((1, 2)),
        most=1,
    )
    np.testing.assert_allclose(found, [[0, 0.4, 0]], atol=1e-6)


def test_labels_are_those_that_add_most_at_a_dice_halfway_to_1() -> None:
    generator, total = np.random.default_rng(13), np.array([0.5, 0.3, 0.7])
    logits = generator.normal(0, 1.5, (3, 200))
    for structures in (BINARY, CLASSES, REGIONS):
        number = len(structures.members)
        dice = np.array([0.5, 0.8, 0.3])[:number]
        scored, halfway = structures.scored * total[:number], (dice + 1) / 2
        weights = np.stack([1 - dice / 2, dice / 2], axis=1) * scored[:, None]
        found = best_labels(structures, logits[:number], weights)
        chance = expit(logits[:number])
        if structures is CLASSES:
            chance /= chance.sum(0)
        missed, false = ((1 - halfway / 2) * scored)[:, None], (halfway / 2 * scored)[:, None]
        gains = chance * missed - (1 - chance) * false  # from labelling a voxel as inside
        if structures is REGIONS:  # the second lies within the first
            np.testing.assert_array_equal(structures.contain(found)[1], gains[1] > 0)
            np.testing.assert_array_equal(structures.contain(found)[0], (gains > 0).any(0))
        else:
            added = [(gains * structures.contain(np.full(200, label))).sum(0) for label in structures.labels]
            np.testing.assert_array_equal(found, np.argmax(added, axis=0))
        assert (found != structures.to_labels(logits[:number])).any()


def test_half_of_the_dice_is_the_best_threshold() -> None:
    """That from which the thresholds follow."""
    generator = np.random.default_rng(14)
    chance = generator.beta(0.3, 0.6, 20_000)
    truths = generator.random((20, chance.size)) < chance

    def mean_dice(least: float) -> float:
        labels = chance > least
        return float(np.mean([2 * (labels & truth).sum() / (labels.sum() + truth.sum()) for truth in truths]))

    places = np.arange(0.1, 0.9, 0.02)
    found = np.array([mean_dice(least) for least in places])
    assert places[found.argmax()] == pytest.approx(found.max() / 2, abs=0.03)
    assert found.max() > mean_dice(0.5) + 0.003


def test_thresholds_are_between_a_quarter_and_a_half() -> None:
    missed = structure_weights(PriorMap(np.full((1, 3, 3), -2, dtype=np.float32), np.ones(1)), BINARY)
    assert missed[0, 1] == 0, "a mask that misses everything"
    np.testing.assert_array_equal(thresholds(missed), [0.25])
    np.testing.assert_allclose(thresholds(np.array([[0.0, 0.0], [0.3, 0.3], [0.3, 0.2]])), [0.5, 0.5, 0.45])


def test_structures_weigh_with_the_labels_and_the_dice_that_the_prior_expects() -> None:
    generator = np.random.default_rng(12)
    for structures, number in ((BINARY, 1), (CLASSES, 3), (REGIONS, 2)):
        logits = generator.normal(-1, 2, (number, 6, 30)).astype(np.float32)
        chance = expit(logits.astype(np.float64))
        weights = structure_weights(PriorMap(logits, chance.sum((1, 2))), structures)
        labels = structures.to_labels(logits.reshape(number, -1)).reshape(6, 30)
        scored = int(structures.scored.sum())
        for structure, inside in enumerate(structures.contain(labels)):
            total = inside.sum() + chance[structure].sum()
            dice = 2 * chance[structure][inside].sum() / total
            expected = np.array([2 - dice, dice]) / total / scored * structures.scored[structure]
            np.testing.assert_allclose(weights[structure], expected, rtol=1e-5)
    none = np.full((1, 3, 3), -8, dtype=np.float32)
    np.testing.assert_allclose(structure_weights(PriorMap(none, np.zeros(1)), BINARY), [[0.1, 0.0]])
    # The model, from which the area is, may expect less than the prior.
    surer = structure_weights(PriorMap(-none, np.array([4.0])), BINARY)
    np.testing.assert_allclose(surer.sum(), 2 / 20)
    assert (surer >= 0).all()


@pytest.mark.parametrize(("scale", "shift", "share"), [(2, 0, 0.005), (9, 0, 0.01), (9, -1.6, 0.001)])
@pytest.mark.parametrize("sensitivity", [0.9, 0.7])
def test_the_value_that_is_promised_is_the_gain_on_average(
    scale: float, shift: float, share: float, sensitivity: float
) -> None:
    """A good and a bad mask and none at all, against references drawn from the prior and answers from the tables."""
    generator, specificity = np.random.default_rng(0), 0.9
    distance = 14 - np.hypot(*(np.indices((1, 80, 80))[1:] - 40.0))
    logits = logit(ndtr(distance / scale + shift).clip(1e-4, 1 - 1e-4)).astype(np.float32)[None]
    prior = PriorMap(logits, expit(logits).sum((1, 2, 3), dtype=np.float64))
    joint = [[specificity, 1 - specificity], [1 - sensitivity, sensitivity]]
    model = EvidenceModel(
        structures=BINARY,
        experts=("e",),
        prior=Prior(((0.0, 1.0, 0.0, 0.0),), 1.0),
        tables=AnswerTables(np.tile(joint, (1, NUM_ZONES, 1, 1))),
    )
    case = Candidates.of(prior, (1.0, 1.0, 1.0), BINARY)
    nobody = np.full((1, case.index.size), MISSING, dtype=np.int16)
    values = model.values(case, nobody, np.zeros(nobody.shape, dtype=bool))
    asked = np.zeros(values.shape, dtype=bool)
    asked[0, np.argsort(-values[0], kind="stable")[: int(share * distance.size)]] = True
    before, changes = (logits[0] > 0).ravel(), []
    for _ in range(100):
        field = ndimage.gaussian_filter(generator.normal(size=distance.shape), (0, 1.5, 1.5), mode="wrap")
        truth = (distance / scale + shift + field / field.std() > 0).ravel()
        answers = truth[case.index] ^ (
            generator.random(case.index.size) >= np.where(truth[case.index], sensitivity, specificity)
        )
        after = before.copy()
        after[case.index] = model.fuse(before[case.index], case, answers[None].astype(np.int16), asked)
        changes.append(np.diff([2 * np.sum(each & truth) / (each.sum() + truth.sum()) for each in (before, after)])[0])
    assert 0.9 < values[asked].sum() / np.mean(changes) < 1.15


def test_tables_are_counts_shrunk_towards_independence() -> None:
    generator, voxels = np.random.default_rng(3), 4000
    zone, truth = generator.integers(0, NUM_ZONES, voxels), generator.random(voxels) < 0.4
    inside = truth ^ (generator.random((2, voxels)) < [[0.1], [0.3]])
    table = fit_tables(zone, truth, inside, np.ones((2, voxels), dtype=bool))
    for place, outcome in product(range(NUM_ZONES), (0, 1)):
        here = (zone == place) & (truth == outcome)
        overall = (inside[:, truth == outcome].sum(1) + 0.5 + outcome) / ((truth == outcome).sum() + 2)
        own = (inside[:, here].sum(1) + SHRINKAGE * overall) / (here.sum() + SHRINKAGE)
        for number, digits in enumerate(product((False, True), repeat=2)):
            alone = np.prod([chance if digit else 1 - chance for digit, chance in zip(digits, own, strict=True)])
            count = (inside[:, here] == np.array(digits)[:, None]).all(0).sum()
            assert table[place, outcome, number] == pytest.approx(
                (count + SHRINKAGE * alone) / (here.sum() + SHRINKAGE)
            )
    assert AnswerTables(table[None]).num_experts == 2


def test_exchangeable_experts_are_alike_and_missing_answers_count_for_nobody() -> None:
    generator, voxels = np.random.default_rng(4), 500
    zone, truth = generator.integers(0, NUM_ZONES, voxels), generator.random(voxels) < 0.5
    inside = truth ^ (generator.random((3, voxels)) < [[0.05], [0.2], [0.4]])
    every = np.ones((3, voxels), dtype=bool)
    alike = fit_tables(zone, truth, inside, every, exchangeable=True)
    np.testing.assert_allclose(alike, fit_tables(zone, truth, inside[[2, 0, 1]], every, exchangeable=True))
    np.testing.assert_allclose(alike[..., [1, 3]], alike[..., [2, 5]])  # 001 as 010, 011 as 101
    part = every.copy()
    part[2, ::2] = False
    changed = inside.copy()
    changed[2, ::2] ^= True
    np.testing.assert_array_equal(fit_tables(zone, truth, inside, part), fit_tables(zone, truth, changed, part))
    nobody = fit_tables(zone, truth, inside, ~every)
    np.testing.assert_allclose(AnswerTables(nobody[None]).of((0,))[0, 0], [[0.75, 0.25], [0.25, 0.75]])


@pytest.mark.parametrize("shape", [(1, 9, 11), (4, 7, 8)])
def test_neighbour_residuals_equal_a_loop_over_pairs(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(5)
    spacing = np.array([3.0, 1.0, 1.0])
    index = np.sort(generator.choice(int(np.prod(shape)), 60, replace=False))
    answered = generator.random(60) < 0.4
    prior, updated = generator.random((2, 60)).astype(np.float32)
    sigmas = [0.0 if n == 1 else SIGMA / s for n, s in zip(shape, spacing, strict=True)]
    found = neighbour_residuals(shape, index, answered, prior, updated, sigmas)
    places = np.stack(np.unravel_index(index, shape), axis=1)
    for v in range(60):
        above = below = 0.0
        for u in np.flatnonzero(answered):
            steps = np.abs(places[u] - places[v])
            if u != v and all(step <= int(3 * s + 0.5) for step, s in zip(steps, sigmas, strict=True)):
                near = np.exp(-0.5 * sum((step / s) ** 2 for step, s in zip(steps, sigmas, strict=True) if s))
                above += near * (updated[u] - prior[u])
                below += near * prior[u] * (1 - prior[u])
        assert found[v] == pytest.approx(above / (below + 0.25), abs=1e-4)
    assert not neighbour_residuals(shape, index, np.zeros(60, dtype=bool), prior, updated, sigmas).any()


def test_the_prior_is_a_sum_of_logits_of_smoothed_probabilities() -> None:
    generator, weights = np.random.default_rng(6), (0.2, 0.5, 0.3, -0.1)
    inside = generator.random((1, 1, 12, 10)).astype(np.float32)
    found = Prior((weights,), voxel_size=0.5).logits(inside, (5.0, 0.5, 0.25))
    expected = np.full((12, 10), weights[0])
    for weight, scale in zip(weights[1:], (0, 1.5, 4), strict=True):
        smooth = ndimage.gaussian_filter(inside[0, 0].astype(float), (scale, 2 * scale), mode="nearest", truncate=3)
        expected += weight * np.clip(logit(smooth), -8, 8)
    np.testing.assert_allclose(found[0, 0], expected, atol=1e-3)
    unchanged = Prior(((0.0, 1.0, 0.0, 0.0),), 1.0).logits(np.array([[[0, 1.0, 0.5]]], dtype=np.float32), (1, 1))
    np.testing.assert_allclose(unchanged, [[[-LARGEST_LOGIT, LARGEST_LOGIT, 0]]], atol=1e-3)
    np.testing.assert_array_equal(from_steps(to_steps(found.copy())), found)


@pytest.mark.parametrize("place", [(20, 30, 25), (0, 59, 3)], ids=["inside", "corner"])
@pytest.mark.parametrize("outside", [0.0, 1.0])
def test_the_prior_is_the_same_where_most_of_the_image_is_certain(outside: float, place: tuple[int, ...]) -> None:
    """It is smoothed in a box around what is not certain; compared with smoothing everywhere."""
    generator, weights, spacing = np.random.default_rng(8), (0.2, 0.5, 0.3, -0.1), (1.0, 0.5, 2.0)
    inside = np.full((1, 40, 60, 50), outside, dtype=np.float32)
    inside += (1e-4 if outside == 0 else -1e-4) * generator.random(inside.shape, dtype=np.float32)
    where = (0, *(slice(first, first + 5) for first in place))
    inside[where] = generator.random(inside[where].shape, dtype=np.float32)
    found = Prior((weights,), voxel_size=1.0).logits(inside, spacing)
    expected = np.full(inside.shape[1:], weights[0], dtype=np.float32)
    for weight, feature in zip(weights[1:], smoothed_logits(inside[0], spacing, 1.0), strict=True):
        expected += np.float32(weight) * feature
    np.testing.assert_allclose(found[0], expected, atol=LARGEST_LOGIT / 32767 * 1.01)
    assert len(np.unique(found)) > 100
    certain = Prior((weights,), voxel_size=1.0).logits(np.full((1, 4, 5, 6), outside, np.float32), spacing)
    assert np.unique(certain) == pytest.approx([0.2 + 0.7 * (8 if outside else -8)], abs=1e-3)


def test_labels_follow_nnunets_conversion() -> None:
    logits = np.random.default_rng(7).normal(size=(3, 50)).astype(np.float32)
    manager = LabelManager({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
    expected = np.asarray(manager.convert_probabilities_to_segmentation(expit(logits[:2]).reshape(2, 50, 1, 1)))
    np.testing.assert_array_equal(REGIONS.to_labels(logits[:2]), expected.ravel())
    np.testing.assert_array_equal(CLASSES.to_labels(logits), logits.argmax(0))
    np.testing.assert_array_equal(BINARY.to_labels(logits[:1]), logits[0] > 0)
    labels = np.array([0, 1, 2, MISSING])
    np.testing.assert_array_equal(REGIONS.contain(labels), [[0, 1, 1, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(CLASSES.scored, [False, True, True])
    for structures in (BINARY, CLASSES, REGIONS):
        assert Structures.from_dict(structures.to_dict()) == structures


def toy(structures: Structures, experts: int, shape: tuple[int, ...] = (1, 16, 16)) -> tuple[EvidenceModel, Candidates]:
    number = len(structures.members)
    model = EvidenceModel(
        structures=structures,
        experts=tuple(f"e{place}" for place in range(experts)),
        prior=Prior(((0.0, 1.0, 0.0, 0.0),) * number, 1.0),
        tables=random_tables(number, experts),
        neighbourhood=((0.0, 1.0, 0.9, 0.8),) * number,
    )
    inside = np.random.default_rng(8).beta(0.4, 0.4, (number, *shape)).astype(np.float32)
    spacing = (1.0, 1.0, 1.0)
    return model, Candidates.of(model.prior.map_of(inside, spacing), spacing, structures)


@pytest.mark.parametrize("structures", [BINARY, CLASSES, REGIONS])
@pytest.mark.parametrize("policy", [Policy(), Policy(rounds=2, most=2), Policy(rounds=4, most=3)])
def test_questions_stay_within_the_budget_and_cuts_repeat_them(structures: Structures, policy: Policy) -> None:
    model, case = toy(structures, 3)
    answers = np.random.default_rng(9).choice(structures.labels, (3, case.index.size)).astype(np.int16)
    answers[0, ::5] = MISSING
    cases = [(case, answers), (case, np.roll(answers, 7, axis=1))]
    history, cuts = ask(model, cases, policy, budget=60)
    assert sum(int(asked.sum()) for asked in history[-1]) <= 60
    assert sum(int(asked.sum()) for asked in history[-1]) > 40
    for before, after in pairwise(history):
        assert all((later | earlier == later).all() for earlier, later in zip(before, after, strict=True))
    assert max(int(asked.sum(0).max()) for asked in history[-1]) <= policy.most
    repeated, _ = ask(model, cases[1:], policy, cuts=cuts)
    np.testing.assert_array_equal(repeated[-1][0], history[-1][1])


def test_voxels_that_nobody_answered_keep_the_models_labels() -> None:
    model, case = toy(CLASSES, 2)
    generator = np.random.default_rng(10)
    answers = generator.integers(0, 3, (2, case.index.size)).astype(np.int16)
    asked = generator.random(answers.shape) < 0.2
    answers[:, ::3] = MISSING
    labels = np.full(case.index.size, 1, dtype=np.uint8)
    fused = model.fuse(labels, case, answers, asked)
    silent = ~(asked & (answers != MISSING)).any(0)
    assert fused.dtype == np.uint8
    np.testing.assert_array_equal(fused[silent], 1)
    assert (fused[~silent] != 1).any()


def test_candidates_are_the_uncertain_voxels() -> None:
    prior = np.array([[[-9.0, 0.0, CERTAIN, 2.0]]], dtype=np.float32)
    found = PriorMap(prior, np.ones(1))
    case = Candidates.of(found, (1.0, 1.0), BINARY)
    np.testing.assert_array_equal(case.index, [1, 3])
    np.testing.assert_array_equal(case.put(case.take(prior[0]), np.float32(7)), [[7, 0, 7, 2]])
    where, including = np.array([[True, False, True, True]]), np.array([[True, False, False, False]])
    np.testing.assert_array_equal(Candidates.of(found, (1.0, 1.0), BINARY, where=where).index, [3])
    both = Candidates.of(found, (1.0, 1.0), BINARY, where=where, including=including)
    np.testing.assert_array_equal(both.index, [0, 3])


def test_a_model_survives_json_and_refuses_parts_that_do_not_fit() -> None:
    model, case = toy(REGIONS, 2)
    restored = EvidenceModel.from_dict(model.to_dict())
    answers, asked = np.ones((2, case.index.size), dtype=np.int16), np.ones((2, case.index.size), dtype=bool)
    np.testing.assert_array_equal(restored.posterior(case, answers, asked), model.posterior(case, answers, asked))
    content = model.to_dict()
    for change, message in (
        ({"experts": ["e0"]}, "1 experts, but the tables are of 2"),
        ({"neighbourhood": [[0.0, 1.0, 1.0, 1.0]]}, "2 structures, but 1 neighbourhoods"),
        ({"later": [[0.0, 1.0, 1.0, 1.0]]}, "2 structures, but 1 later neighbourhoods"),
        ({"tables": (-np.array(content["tables"])).tolist()}, "positive probabilities"),
        ({"tables": [[0.5, 0.5]]}, "must have shape"),
        ({"neighbourhood": [[0.0, 1.0, float("nan"), 1.0]] * 2}, "4 finite weights"),
        ({"prior": content["prior"] | {"voxel_size": 0}}, "size of a voxel must be positive and finite, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            EvidenceModel.from_dict(content | change)


def test_combinations_group_every_voxel_once() -> None:
    chosen = np.random.default_rng(11).random((3, 50)) < 0.5
    groups = by_combination(chosen)
    assert sorted(np.concatenate([where for _, where in groups])) == list(range(50))
    for experts, where in groups:
        expected = np.zeros((3, where.size), dtype=bool)
        expected[list(experts)] = True
        np.testing.assert_array_equal(chosen[:, where], expected)
    np.testing.assert_array_equal(pattern_of(np.array([[1, 0], [0, 1]], dtype=bool)), [2, 1])
    np.testing.assert_array_equal(zones(logit(np.array([0.01, *ZONE_EDGES]))), range(NUM_ZONES))


def test_a_simple_model_has_experts_who_are_right_as_often_as_said_everywhere() -> None:
    model = EvidenceModel.simple({"ann": 0.9, "bob": 0.6}, labels=(0, 1, 2))
    assert model.experts == ("ann", "bob")
    for expert, right in enumerate((0.9, 0.6)):
        table = model.tables.of([expert])
        np.testing.assert_allclose(table, np.broadcast_to([[right, 1 - right], [1 - right, right]], table.shape))
    softmax = np.moveaxis(np.random.default_rng(0).dirichlet(np.ones(3), (4, 5)).astype(np.float32), -1, 0)
    np.testing.assert_allclose(model.prior_of(softmax, (1.0, 1.0)).logits, np.clip(logit(softmax), -8, 8), atol=1e-3)
    for right in ({}, {"ann": 1.0}):
        with pytest.raises(InputError, match="right with a probability in"):
            EvidenceModel.simple(right)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers": []}, "probabilities has 1 cases, but answers has 0"),
        ({"probabilities": [], "references": [], "answers": []}, "no cases to fit on"),
        ({"answers": [np.zeros((2, 4, 5), dtype=int)]}, r"case 0: .* got \(2, 4, 5\) and \(2, 4, 5\)"),
        ({"references": [np.full((4, 5), 2)]}, "not among the 2 classes"),
        ({"probabilities": [np.full((2, 4, 5), np.nan, dtype=np.float32)]}, r"case 0: .* numbers in \[0, 1\]"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "probabilities": [np.full((2, 4, 5), 0.5, dtype=np.float32)],
        "references": [np.zeros((4, 5), dtype=int)],
        "answers": [np.zeros((1, 4, 5), dtype=int)],
    }
    with pytest.raises(InputError, match=words):
        fit_evidence_model(**(given | changes), experts=("ann",))


FEW = {"answers": np.zeros((1, 4), dtype=int), "asked": np.ones((1, 4), dtype=bool)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers": np.zeros((2, 4), dtype=int)}, r"answers must have shape \(1, 4\) \(J, n\), got \(2, 4\)"),
        ({"asked": np.ones((1, 3), dtype=bool)}, r"asked must have shape \(1, 4\) \(J, n\), got \(1, 3\)"),
        ({"asked": np.ones((1, 4))}, "asked must be bool, got dtype float64"),
        ({"answers": np.full((1, 4), np.nan)}, "answers must be integers, got dtype float64"),
        ({"answers": np.array([[0, 7, 1, -1]])}, r"answers have the labels -1, 7, but there are \[0, 1\]"),
    ],
)
def test_answers_that_are_none_of_the_candidates_and_experts_are_refused(changes: dict[str, Any], words: str) -> None:
    model = EvidenceModel.simple({"ann": 0.9})
    foreground = np.full((1, 4), 0.4, dtype=np.float32)
    case = find_candidates(model, np.stack([1 - foreground, foreground]))
    given, labels = FEW | changes, np.zeros(4, dtype=int)
    for read in (model.values, model.posterior, model.features):
        with pytest.raises(InputError, match=words):
            read(case, **given)
    with pytest.raises(InputError, match=words):
        model.fuse(labels, case, **given)
    # What nobody was asked does not count.
    ignored = {"answers": np.array([[0, 7, 1, 1]]), "asked": np.array([[True, False, True, True]])}
    assert model.fuse(labels, case, **ignored).tolist() == [0, 0, 1, 1]


def test_candidates_of_another_model_and_impossible_limits_are_refused() -> None:
    model = EvidenceModel.simple({"ann": 0.9})
    foreground = np.full((1, 4), 0.4, dtype=np.float32)
    case = find_candidates(model, np.stack([1 - foreground, foreground]))
    with pytest.raises(InputError, match=r"shape \(3, 4\) \(S, n\), got shape \(1, 4\)"):
        EvidenceModel.simple({"ann": 0.9}, labels=(0, 1, 2)).values(case, **FEW)
    with pytest.raises(InputError, match=r"got shape \(1, 4\) with NaN"):
        model.values(replace(case, prior=case.prior * np.nan), **FEW)
    with pytest.raises(InputError, match="must be at least 1, got 0"):
        model.values(case, **FEW, most=0)
    with pytest.raises(InputError, match="available must be bool"):
        model.values(case, **FEW, available=np.ones(1))
    with pytest.raises(InputError, match=r"available must have shape \(1,\) \(J,\), got \(2,\)"):
        model.values(case, **FEW, available=np.ones(2, dtype=bool))
    for labels in (np.zeros(3, dtype=int), np.zeros(4)):
        with pytest.raises(InputError, match=r"the model's labels must be integers of shape \(4,\)"):
            model.fuse(labels, case, **FEW)


def test_questions_that_make_no_sense_are_refused():
    model = EvidenceModel.simple({"ann": 0.9})
    foreground = np.full((1, 4), 0.4, dtype=np.float32)
    said = np.stack([1 - foreground, foreground])
    case = find_candidates(model, said)
    answers = np.zeros((1, 4), dtype=int)
    for wrong in (-1, 0.01, float("nan")):
        with pytest.raises(InputError, match="number of questions"):
            ask(model, [(case, answers)], Policy(), budget=wrong)
    with pytest.raises(InputError, match="shape"):
        ask(model, [(case, answers[:, 1:])], Policy(), budget=1)
    with pytest.raises(InputError, match="one cut for each of 2 rounds, got 1"):
        ask(model, [(case, answers)], Policy(rounds=2), cuts=[0.1])
    for wrong in ({"rounds": 0}, {"rounds": 2.5}, {"most": 0}):
        with pytest.raises(InputError, match="whole number"):
            Policy(**wrong)
    for wrong, message in ((said * np.nan, "numbers in"), (said[[0, 1, 1]], "2 classes"), (said - 0.5, "numbers in")):
        with pytest.raises(InputError, match=message):
            find_candidates(model, wrong)
    with pytest.raises(InputError, match="does not end with that of the case"):
        case.take(np.zeros((5, 4)))
