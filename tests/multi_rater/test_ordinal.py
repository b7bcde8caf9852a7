"""The ordinal reading of several raters: analytic cases, a loop over voxels, and invariances."""

import math

import pytest
import torch

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.losses.several_raters import RPS_WEIGHT, multi_rater_loss
from nnunetv2_deferral.multi_rater.ordinal import (
    agreement,
    count_raters,
    disagreement,
    majority_level,
    majority_logit,
    ranked_probability_score,
)

STRUCTURES = ((1,), (2,), (1, 2))


def make_raters(num_raters, shape=(2, 4, 5), *, missing=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, *space = shape
    masks = torch.randint(0, 3, (batch, num_raters, *space), generator=generator, dtype=torch.int16)
    masks[torch.rand(masks.shape, generator=generator) < missing] = MISSING
    levels = torch.randn(batch, len(STRUCTURES), num_raters + 1, *space, generator=generator, dtype=torch.float64)
    valid = torch.rand(batch, *space, generator=generator) < 0.7
    return masks, levels, valid


def slow_loss(levels, masks, valid):
    """The loss voxel by voxel, straight from its definition."""
    number, total, counted = masks.shape[1], 0.0, 0
    for batch, *place in valid.nonzero().tolist():
        labels = [int(masks[(batch, rater, *place)]) for rater in range(number)]
        labels = [label for label in labels if label != MISSING]
        for index, structure in enumerate(STRUCTURES):
            if not labels:
                continue
            share = sum(label in structure for label in labels) / len(labels)
            exponentials = [math.exp(levels[(batch, index, level, *place)]) for level in range(number + 1)]
            p = [value / sum(exponentials) for value in exponentials]
            foreground = sum(p[k] for k in range(number + 1) if k >= number / 2)
            total -= math.log(foreground if share >= 0.5 else 1 - foreground)
            if len(labels) >= 2 or number == 1:
                terms = [((share <= j / number + 1e-12) - sum(p[: j + 1])) ** 2 for j in range(number + 1)]
                total += RPS_WEIGHT * sum(terms) / (number + 1)
            counted += 1
    return total / counted


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("num_raters", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 4, 5), (1, 3, 2, 4)])
def test_the_loss_equals_a_loop_over_voxels(num_raters, shape, missing):
    masks, levels, valid = make_raters(num_raters, shape, missing=missing)
    loss = multi_rater_loss(levels, *count_raters(masks, STRUCTURES), valid=valid)
    assert loss.item() == pytest.approx(slow_loss(levels, masks, valid), rel=1e-9)


@pytest.mark.parametrize("num_raters", [1, 2, 5])
def test_certainty_of_the_right_count_has_no_score(num_raters):
    marks = torch.arange(num_raters + 1).view(1, 1, -1)
    levels = torch.where(torch.eye(num_raters + 1, dtype=torch.bool), 200.0, 0.0).view(1, 1, num_raters + 1, -1)
    score = ranked_probability_score(levels, marks, torch.full_like(marks, num_raters))
    assert torch.equal(score, torch.zeros_like(score))


def test_the_score_grows_with_the_distance_from_the_count():
    # All probability on level k, c = 0 of 4: F = 1 everywhere and P_j = [j >= k], so k of five terms are 1.
    levels = torch.where(torch.eye(5, dtype=torch.bool), 200.0, 0.0).view(1, 1, 5, 5)
    score = ranked_probability_score(levels, torch.zeros(1, 1, 5, dtype=torch.long), torch.tensor(4).expand(1, 1, 5))
    assert score.flatten().tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


def test_the_order_of_raters_does_not_matter():
    masks, levels, valid = make_raters(4, missing=0.3)
    permuted = masks[:, [2, 0, 3, 1]]
    first, second = (
        multi_rater_loss(levels, *count_raters(each, STRUCTURES), valid=valid) for each in (masks, permuted)
    )
    assert torch.equal(first, second)


def test_with_one_rater_the_score_is_half_the_brier_score():
    masks, levels, _ = make_raters(1)
    marks, seen = count_raters(masks, STRUCTURES)
    probability = torch.softmax(levels, 2)[:, :, 1]
    brier = (probability - marks).square().mean()
    cross_entropy = torch.nn.functional.binary_cross_entropy(probability, marks.double())
    assert multi_rater_loss(levels, marks, seen).item() == pytest.approx((cross_entropy + 0.4 * brier).item())


def test_raters_who_did_not_see_a_voxel_leave_the_share_of_the_others():
    levels = torch.randn(1, 1, 5, 1, generator=torch.Generator().manual_seed(0))
    one_of_two = ranked_probability_score(levels, torch.tensor([[[1]]]), torch.tensor([[[2]]]))
    two_of_four = ranked_probability_score(levels, torch.tensor([[[2]]]), torch.tensor([[[4]]]))
    assert torch.equal(one_of_two, two_of_four)
    alone = ranked_probability_score(levels, torch.tensor([[[1]]]), torch.tensor([[[1]]]))
    assert alone.item() == 0


def test_voxels_that_nobody_saw_and_ignored_voxels_do_not_count():
    masks, levels, valid = make_raters(3)
    masks[:, :, 0] = MISSING
    levels.requires_grad_()
    multi_rater_loss(levels, *count_raters(masks, STRUCTURES), valid=valid).backward()
    gradient = levels.grad.abs().sum((1, 2))
    assert (gradient[:, 0] == 0).all()
    assert (gradient[~valid] == 0).all()
    assert (gradient[:, 1:][valid[:, 1:]] > 0).all()
    nowhere = multi_rater_loss(levels, *count_raters(torch.full_like(masks, MISSING), STRUCTURES))
    assert nowhere.item() == 0


def test_gradients_are_those_of_finite_differences():
    masks, levels, valid = make_raters(3, (1, 2, 2), missing=0.2)
    counted = count_raters(masks, STRUCTURES)
    assert torch.autograd.gradcheck(lambda z: multi_rater_loss(z, *counted, valid=valid), levels.requires_grad_())


def test_extreme_logits_give_finite_losses_and_gradients_in_half_precision():
    levels = torch.full((1, 1, 5, 2), -6e4, dtype=torch.float16)
    levels[0, 0, 0, 0] = levels[0, 0, 4, 1] = 6e4
    levels.requires_grad_()
    loss = multi_rater_loss(levels, torch.tensor([[[4, 0]]]), torch.tensor([[[4]]]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite() and levels.grad.isfinite().all()


@pytest.mark.parametrize("num_raters", [1, 2, 3, 4, 7])
def test_the_readings_follow_from_the_probabilities(num_raters):
    levels = torch.randn(2, num_raters + 1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = torch.softmax(levels, 1)
    majority = sum(p[:, k] for k in range(num_raters + 1) if k >= num_raters / 2)
    torch.testing.assert_close(torch.sigmoid(majority_logit(levels)), majority)
    torch.testing.assert_close(agreement(p), sum(k / num_raters * p[:, k] for k in range(num_raters + 1)))
    torch.testing.assert_close(disagreement(p), 1 - p[:, 0] - p[:, -1])
    torch.testing.assert_close(disagreement(p.movedim(1, 2), 2), disagreement(p))


def test_half_of_the_raters_are_a_majority():
    assert [majority_level(number) for number in (1, 2, 3, 4, 8)] == [1, 1, 2, 2, 4]
    with pytest.raises(InputError, match="at least one rater, got 0"):
        majority_level(0)


def test_regions_count_the_raters_who_mark_any_of_their_labels():
    masks = torch.tensor([[[1, 2, 0, MISSING], [2, 2, 0, MISSING], [0, 1, MISSING, 1]]], dtype=torch.int16)
    marks, seen = count_raters(masks, STRUCTURES)
    assert marks.tolist() == [[[1, 1, 0, 1], [1, 2, 0, 0], [2, 3, 0, 1]]]
    assert seen.tolist() == [[[3, 3, 2, 1]]]
