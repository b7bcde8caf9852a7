import pytest
import torch
from torch import nn

from nnunetv2_deferral.nnunet.optimizer import JointOptimizer, JointSchedule, without_parameters


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
    schedule = JointSchedule(Constant(), joint.deferral, initial_rate=0.2, num_epochs=10)
    rates = []
    for epoch in (0, 5, 10):
        schedule.step(epoch)
        rates.append(joint.param_groups[1]["lr"])
    assert joint.param_groups[0]["lr"] == 0.1
    assert rates == pytest.approx([0.2, 0.1, 0.0], abs=1e-9)
    assert schedule.segmentation.epoch == 10


def test_gradients_are_cleared_on_both_sides():
    network, head, joint = make_pair()
    network.weight.grad, head.weight.grad = torch.ones(3, 3), torch.ones(1, 3)
    joint.zero_grad()
    assert network.weight.grad is None
    assert head.weight.grad is None
