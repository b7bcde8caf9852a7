"""Targets from several raters, and the losses of the trainings, against slow references and stock losses."""

from collections import Counter

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch.nn.functional import cross_entropy

from nnunetv2_deferral.labels import MISSING, LabelSpace
from nnunetv2_deferral.losses.several_raters import MeanLabelLoss, OrdinalObjective, multi_rater_loss, structures_of
from nnunetv2_deferral.multi_rater.ordinal import count_raters, ranked_probability_score
from nnunetv2_deferral.multi_rater.rater_targets import majority_label, majority_of_regions, random_rater

REGIONS = ((1, 2), (2,))


def make_masks(num_raters=4, classes=3, shape=(6, 8), missing=0.2, batch=None):
    generator = torch.Generator().manual_seed(num_raters)
    size = (num_raters, *shape) if batch is None else (batch, num_raters, *shape)
    masks = torch.randint(0, classes, size, generator=generator, dtype=torch.int16)
    masks[torch.rand(size, generator=generator) < missing] = MISSING
    reference = torch.randint(0, classes, (*size[:-3], 1, *shape), generator=generator, dtype=torch.int16)
    return masks, reference


def slow_majority(labels, reference, foreground):
    """The rule in words, for the labels of one voxel."""
    labels = [label for label in labels if label != MISSING]
    if not labels:
        return reference
    with_half = [label for label, number in Counter(labels).items() if 2 * number >= len(labels)]
    marked = sorted(label for label in with_half if label in foreground)
    if reference in marked:
        return reference
    if marked:
        return marked[0]
    return 0 if with_half else reference


@pytest.mark.parametrize("missing", [0.0, 0.4])
@pytest.mark.parametrize("num_raters", [2, 3, 4])
def test_the_majority_is_that_of_a_loop_over_voxels(num_raters, missing):
    masks, reference = make_masks(num_raters, classes=4, missing=missing)
    found = majority_label(reference, masks, (1, 2, 3))
    assert found.dtype == reference.dtype
    for row, column in np.ndindex(*reference.shape[1:]):
        labels = masks[:, row, column].tolist()
        assert found[0, row, column] == slow_majority(labels, int(reference[0, row, column]), (1, 2, 3))


def test_with_one_class_the_majority_is_where_at_least_half_mark_it():
    masks, reference = make_masks(4, classes=2, missing=0)
    expected = masks.sum(0, keepdim=True) >= 2
    assert torch.equal(majority_label(reference, masks, (1,)) == 1, expected)
    assert torch.equal(majority_of_regions(reference == 1, masks, [(1,)]), expected)


def test_regions_have_a_majority_each():
    masks, _ = make_masks(3, missing=0)
    masks[:, 0] = MISSING
    reference = torch.ones(2, 6, 8, dtype=torch.bool)
    found = majority_of_regions(reference, masks, REGIONS)
    assert found.dtype == torch.bool
    assert found[:, 0].all()  # nobody saw it
    assert torch.equal(found[0, 1:], (masks[:, 1:] > 0).sum(0) >= 2)
    assert torch.equal(found[1, 1:], (masks[:, 1:] == 2).sum(0) >= 2)


def test_a_random_rater_is_one_who_labelled_and_each_is_drawn():
    masks = torch.arange(4, dtype=torch.int16).view(4, 1, 1).repeat(1, 2, 2)
    masks[2] = MISSING
    generator = np.random.default_rng(0)
    drawn = Counter(int(random_rater(masks, generator)[0, 0, 0]) for _ in range(300))
    assert set(drawn) == {0, 1, 3}
    assert min(drawn.values()) > 70
    nobody = random_rater(torch.full_like(masks, MISSING), generator)
    assert nobody.shape == (1, 2, 2)
    assert (nobody == MISSING).all()


def stock_loss(ignore_label=None, scales=2):
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, ignore_label=ignore_label, dice_class=MemoryEfficientSoftDiceLoss)
    return DeepSupervisionWrapper(loss, [1.0, 0.5][:scales])


def test_the_ordinal_loss_is_nnunets_plus_the_weighted_score():
    labels = LabelSpace(3, ignore_label=3)
    masks, reference = make_masks(4, batch=2, missing=0.3)
    reference[:, :, :2] = 3
    output = torch.randn(2, 3 + 2 * 5, 6, 8, generator=torch.Generator().manual_seed(0))
    coarse, coarse_reference = output[:, :3, ::2, ::2], reference[:, :, ::2, ::2]
    objective = OrdinalObjective(labels, 4, stock_loss(ignore_label=3))
    loss = objective([output, coarse], [reference, coarse_reference, masks])
    stock = stock_loss(ignore_label=3)([output[:, :3], coarse], [reference, coarse_reference])
    levels = output[:, 3:].unflatten(1, (2, 5))
    score = ranked_probability_score(levels, *count_raters(masks, structures_of(labels)))
    assert loss.item() == pytest.approx((stock + 0.8 * score[:, :, 2:].mean()).item(), rel=1e-5)


def test_without_dice_and_deep_supervision_one_class_has_the_loss_of_the_paper():
    masks, _ = make_masks(4, classes=2, batch=2, missing=0)
    reference = (masks.sum(1, keepdim=True) >= 2).to(torch.int16)
    levels = torch.randn(2, 1, 5, 6, 8, generator=torch.Generator().manual_seed(0))
    from nnunetv2_deferral.multi_rater.ordinal import majority_logit

    logit = majority_logit(levels, 2)
    output = torch.cat((torch.zeros_like(logit), logit, levels.flatten(1, 2)), 1)
    objective = OrdinalObjective(LabelSpace(2), 4, lambda logits, target: cross_entropy(logits, target[:, 0].long()))
    paper = multi_rater_loss(levels, *count_raters(masks, [(1,)]))
    assert objective(output, [reference, masks]).item() == pytest.approx(paper.item(), rel=1e-6)


def test_the_mean_label_is_a_soft_target_of_every_scale():
    masks, reference = make_masks(4, batch=2, missing=0)
    logits = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([(masks == label).float().mean(1) for label in range(3)], 1)
    loss = MeanLabelLoss(LabelSpace(3), [1.0, 0.5])(
        [logits, logits[..., ::2, ::2]], [reference, reference[..., ::2, ::2], masks]
    )
    pooled = torch.nn.functional.avg_pool2d(shares, 2)
    expected = cross_entropy(logits, shares) + 0.5 * cross_entropy(logits[..., ::2, ::2], pooled)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_mean_label_of_regions_and_where_nobody_saw_the_voxel():
    masks, _ = make_masks(3, batch=1, missing=0)
    masks[:, :, 0] = MISSING
    masks[:, 0, 1:] = MISSING
    target = torch.zeros(1, 2, 6, 8, dtype=torch.bool)
    target[:, :, 0] = True
    logits = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    shares = torch.stack([torch.isin(masks[:, 1:], torch.tensor(region)).float().mean(1) for region in REGIONS], 1)
    shares[:, :, 0] = 1
    loss = MeanLabelLoss(LabelSpace(2, regions=REGIONS))(logits, [target, masks])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, shares)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
