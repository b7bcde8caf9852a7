import copy

import pytest
import torch
from torch import nn

from nnunetv2_deferral.nnunet.optimizer import (
    CosineSchedule,
    JointOptimizer,
    JointScaler,
    JointSchedule,
    StepSchedule,
    without_parameters,
)


class Constant:
    def step(self, epoch):
        self.epoch = epoch


def make_pair(learning_rate=0.1):
    network, head = nn.Linear(3, 3), nn.Linear(3, 1)
    everything = torch.optim.SGD([*network.parameters(), *head.parameters()], learning_rate, momentum=0.9)
    joint = JointOptimizer(
        without_parameters(everything, head.parameters()),
        torch.optim.Adam(head.parameters(), learning_rate),
        clip_norm=12.0,
    )
    return network, head, joint


def test_each_side_is_stepped_by_its_own_optimizer():
    network, head, joint = make_pair()
    before = network.weight.detach().clone(), head.weight.detach().clone()
    network.weight.grad, head.weight.grad = torch.full((3, 3), 0.5), torch.full((1, 3), 0.5)
    joint.step()
    assert (before[0] - network.weight).flatten().tolist() == pytest.approx([0.05] * 9, abs=1e-6)
    assert (before[1] - head.weight).flatten().tolist() == pytest.approx([0.1] * 3, abs=1e-4)


def test_a_huge_deferral_gradient_does_not_shorten_the_step_of_the_network():
    network, head, joint = make_pair()
    network.weight.grad, head.weight.grad = torch.ones(3, 3), torch.full((1, 3), 1e6)
    joint.clip_gradients()
    assert torch.equal(network.weight.grad, torch.ones(3, 3))
    assert head.weight.grad.norm().item() == pytest.approx(12.0, rel=1e-4)


def test_states_are_restored_exactly():
    network, head, joint = make_pair()
    for parameter in (*network.parameters(), *head.parameters()):
        parameter.grad = torch.randn_like(parameter)
    joint.step()
    _, _, other = make_pair()
    other.load_state_dict(joint.state_dict())
    for mine, theirs in ((joint.segmentation, other.segmentation), (joint.deferral, other.deferral)):
        for state, restored in zip(
            mine.state_dict()["state"].values(), theirs.state_dict()["state"].values(), strict=True
        ):
            assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(restored[key])) for key in state)


def test_nnunets_learning_rate_comes_first_and_the_heads_follows_a_cosine():
    _, _, joint = make_pair()
    schedule = JointSchedule(Constant(), CosineSchedule(joint.deferral, initial_rate=0.2, num_epochs=10))
    rates = []
    for epoch in (0, 5, 10):
        schedule.step(epoch)
        rates.append(joint.param_groups[1]["lr"])
    assert joint.param_groups[0]["lr"] == 0.1
    assert rates == pytest.approx([0.2, 0.1, 0.0], abs=1e-9)
    assert schedule.segmentation.epoch == 10


def test_the_papers_schedule_is_that_of_torch():
    _, _, joint = make_pair()
    schedule = StepSchedule(joint.segmentation, 0.1)
    expected = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    steps = torch.optim.lr_scheduler.StepLR(expected, step_size=2, gamma=0.8)
    for epoch in range(7):
        schedule.step(epoch)
        assert joint.param_groups[0]["lr"] == pytest.approx(steps.get_last_lr()[0])
        expected.step()
        steps.step()


def test_gradients_are_cleared_on_both_sides():
    network, head, joint = make_pair()
    network.weight.grad, head.weight.grad = torch.ones(3, 3), torch.ones(1, 3)
    joint.zero_grad()
    assert network.weight.grad is None
    assert head.weight.grad is None


def losses_of(network, head, factor=1.0):
    """Losses of both sides, that of the head so large that its scaled gradients overflow if `factor` is."""
    features = network(torch.ones(1, 3))
    return features.square().sum(), factor * head(features.detach()).sum()


def make_scaler(*, shared=False):
    return JointScaler(torch.amp.GradScaler("cpu", init_scale=1024.0), shared=shared)


def test_an_overflow_in_the_head_leaves_out_its_step_alone():
    torch.manual_seed(0)
    network, head, joint = make_pair()
    expected = copy.deepcopy(network)
    plain = torch.optim.SGD(expected.parameters(), 0.1, momentum=0.9)
    scaler = make_scaler()
    scale = scaler.deferral.get_scale()
    before = head.weight.detach().clone()
    for factor in (1e38, 1e38, 1.0):
        assert torch.equal(head.weight, before)
        joint.zero_grad()
        scaler.backward(*losses_of(network, head, factor))
        scaler.step(joint)
        plain.zero_grad()
        losses_of(expected, head)[0].backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 12.0)
        plain.step()
    assert not torch.equal(head.weight, before)
    assert torch.equal(network.weight, expected.weight)
    assert scaler.segmentation.get_scale() == 1024.0
    assert scaler.deferral.get_scale() == scale / 4


def test_with_a_shared_scaler_gradients_of_both_losses_have_one_scale():
    network, head, joint = make_pair()
    scaler = make_scaler(shared=True)
    features = network(torch.ones(1, 3))
    scaler.backward(features.sum(), head(features).sum())
    expected = copy.deepcopy(network)
    expected.zero_grad()
    (expected(torch.ones(1, 3)).sum() + head(expected(torch.ones(1, 3))).sum()).backward()
    scaler.step(joint)
    assert torch.allclose(network.weight.grad, expected.weight.grad)
    assert scaler.deferral is scaler.segmentation


def test_a_frozen_network_needs_no_gradients_for_the_head_to_step():
    network, head, joint = make_pair()
    network.requires_grad_(False)
    scaler, before = make_scaler(), head.weight.detach().clone()
    scaler.backward(*losses_of(network, head))
    scaler.step(joint)
    assert not torch.equal(head.weight, before)


def test_the_scales_of_both_sides_are_restored():
    scaler, other = make_scaler(), make_scaler()
    for side, scale in ((scaler.deferral, 8.0), (scaler.segmentation, 16.0)):
        side.scale(torch.zeros(1))
        side.update(scale)
    other.load_state_dict(scaler.state_dict())
    assert (other.segmentation.get_scale(), other.deferral.get_scale()) == (16.0, 8.0)
