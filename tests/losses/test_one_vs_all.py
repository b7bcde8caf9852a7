"""The one-vs-all loss against a slow reference, its gradients, and what it converges to."""

import math

import pytest
import torch

from nnunetv2_deferral.losses.one_vs_all import one_vs_all_loss


def make_batch(num_experts=2, shape=(2, 3, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, *space = shape
    routing = torch.randn(batch, num_experts + 1, *space, generator=generator)
    expert_right = torch.rand(batch, num_experts, *space, generator=generator) < 0.7
    model_right = torch.rand(shape, generator=generator) < 0.8
    valid = torch.rand(shape, generator=generator) < 0.6
    known = torch.rand(batch, num_experts, *space, generator=generator) < 0.5
    return routing, expert_right, model_right, valid, known


@pytest.mark.parametrize("with_counts", [False, True])
@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 2, 3, 3)])
def test_it_is_the_mean_over_voxels_of_binary_cross_entropies(shape, with_known, with_counts):
    routing, expert_right, model_right, valid, known = make_batch(shape=shape)
    total, number = 0.0, 0
    for place in torch.cartesian_prod(*(torch.arange(size) for size in shape)).tolist():
        batch, *space = place
        if with_counts and not valid[tuple(place)]:
            continue
        number += 1
        answers = [(0, bool(model_right[tuple(place)]))]
        answers += [
            (expert + 1, bool(expert_right[(batch, expert, *space)]))
            for expert in range(2)
            if not with_known or known[(batch, expert, *space)]
        ]
        for route, right in answers:
            probability = 1 / (1 + math.exp(-routing[(batch, route, *space)].item()))
            total -= math.log(probability if right else 1 - probability)
    masks = {"valid": valid if with_counts else None, "known": known if with_known else None}
    assert one_vs_all_loss(routing, expert_right, model_right, **masks).item() == pytest.approx(
        total / number, rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_it_is_finite_for_any_logits_with_finite_gradients(dtype):
    routing, expert_right, model_right, *_ = make_batch()
    extreme = (routing.clamp(-1, 1) * 6e4).to(dtype).requires_grad_()
    loss = one_vs_all_loss(extreme, expert_right, model_right)
    (gradient,) = torch.autograd.grad(loss, extreme)
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss))
    assert bool(torch.isfinite(gradient).all())


def test_where_an_expert_has_no_label_its_logit_has_no_gradient():
    routing, expert_right, model_right, valid, known = make_batch()
    routing.requires_grad_()
    (gradient,) = torch.autograd.grad(
        one_vs_all_loss(routing, expert_right, model_right, valid=valid, known=known), routing
    )
    assert bool((gradient[:, 1:][~known] == 0).all())
    assert bool((gradient[:, 0][valid] != 0).all())
    assert bool((gradient.movedim(1, -1)[~valid] == 0).all())


def test_nothing_that_counts_costs_nothing():
    routing, expert_right, model_right, valid, _ = make_batch()
    assert one_vs_all_loss(routing, expert_right, model_right, valid=valid & False) == 0


def test_minimising_it_finds_how_often_each_is_right():
    generator = torch.Generator().manual_seed(1)
    accuracy = torch.tensor([0.95, 0.6, 0.8])
    right = torch.rand(1, 3, 4000, generator=generator) < accuracy.view(1, 3, 1)
    logits = torch.full((1, 3, 1), 4.0, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        one_vs_all_loss(logits.expand(1, 3, 4000), right[:, 1:], right[:, 0]).backward()
        optimizer.step()
    assert torch.sigmoid(logits.detach()).flatten().tolist() == pytest.approx(
        right.float().mean(2)[0].tolist(), abs=1e-3
    )
