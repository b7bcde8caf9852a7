"""The two rules: what is deferred to whom, and that every way of asking says the same."""

import numpy as np
import pytest
import torch

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.routing import COLLABORATION, ONE_VS_ALL, OneVsAllRule, SoftmaxRule, close_routes, routing_rule

ALL = (True, True, True)
RULES = [SoftmaxRule(ALL), OneVsAllRule((0.0, 0.1, 0.0), ALL)]


@pytest.mark.parametrize("rule", RULES)
def test_tensors_and_arrays_are_decided_alike_along_any_axis(rule):
    probabilities = rule.probabilities(torch.randn(2, 4, 5, 6))
    assert probabilities.dtype == torch.float32
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    for name in ("decision", "score", "expert"):
        of_tensor = getattr(rule, name)(probabilities)
        of_array = getattr(rule, name)(probabilities.numpy())
        assert of_tensor.shape == (2, 5, 6)
        assert np.allclose(of_tensor.numpy(), of_array)
        assert np.allclose(of_tensor[1].numpy(), getattr(rule, name)(probabilities[1].numpy(), axis=0))


@pytest.mark.parametrize("rule", RULES)
def test_whoever_is_asked_is_the_preferred_expert(rule):
    probabilities = rule.probabilities(torch.randn(3, 4, 20, 20))
    decision, expert = rule.decision(probabilities), rule.expert(probabilities)
    assert (decision > 0).any()
    assert (decision == 0).any()
    assert expert.min() >= 1
    assert expert.max() <= 3
    assert bool((decision[decision > 0] == expert[decision > 0]).all())


@pytest.mark.parametrize("rule", [SoftmaxRule(ALL), OneVsAllRule((0.0,) * 3, ALL)])
def test_a_voxel_where_all_are_alike_stays_the_models(rule):
    assert rule.decision(rule.probabilities(torch.zeros(1, 4, 2, 2))).sum() == 0


@pytest.mark.parametrize("rule", [SoftmaxRule(ALL), OneVsAllRule((0.0,) * 3, ALL)])
def test_an_expert_who_is_not_there_is_never_asked_nor_preferred(rule):
    routing = torch.randn(2, 4, 8, 8) * 5
    closed = close_routes(routing, torch.tensor([True, False, True]).view(1, 3, 1, 1))
    probabilities = rule.probabilities(closed)
    assert not (rule.decision(probabilities) == 2).any()
    assert not (rule.expert(probabilities) == 2).any()


def test_one_vs_all_defers_where_the_best_expert_less_the_cost_beats_the_model():
    rule = OneVsAllRule((0.0, 0.2), (True, True))
    model, first, second = (
        np.array(values) for values in ([0.9, 0.5, 0.5, 0.5], [0.8, 0.6, 0.6, 0.4], [1, 0.75, 0.85, 0.6])
    )
    probabilities = np.stack([model, first, second])
    assert rule.decision(probabilities, axis=0).tolist() == [0, 1, 2, 0]
    assert rule.expert(probabilities, axis=0).tolist() == [1, 1, 2, 1]
    helps = [(1 - 0.9) * 0.8, 0.5 * 0.6, 0.5 * 0.85, 0.5 * 0.4]
    assert rule.score(probabilities, axis=0) == pytest.approx(helps)


def test_the_score_of_the_softmax_is_all_that_is_not_the_models():
    probabilities = np.array([[0.6], [0.3], [0.1]])
    assert SoftmaxRule((True, True)).score(probabilities, axis=0) == pytest.approx([0.4])


def test_an_objective_has_its_rule():
    assert routing_rule(COLLABORATION, (0.1,), (True,)) == SoftmaxRule((True,))
    assert routing_rule(ONE_VS_ALL, (0.1,), (True,)) == OneVsAllRule((0.1,), (True,))


@pytest.mark.parametrize("rule", [SoftmaxRule((False, True, True)), OneVsAllRule((0.0, 0.5, 0.5), (False, True, True))])
def test_an_expert_who_cannot_be_asked_is_not_preferred_whatever_the_probabilities(rule):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(1, 4, 30, 30, generator=generator) * 0.1
    probabilities[:, 1:3] = 0
    assert set(rule.expert(probabilities).unique().tolist()) <= {2, 3}
    assert set(rule.expert(probabilities.numpy()[0], axis=0).ravel().tolist()) <= {2, 3}


@pytest.mark.parametrize("rule", RULES)
def test_gains_say_who_is_preferred_and_where_something_is_deferred(rule):
    probabilities = rule.probabilities(torch.randn(2, 4, 30, 30))
    gains = rule.gains(probabilities)
    assert gains.shape == (2, 3, 30, 30)
    assert torch.equal(1 + gains.argmax(1), rule.expert(probabilities))
    assert torch.equal(gains.amax(1) > rule.cheapest, rule.decision(probabilities) > 0)
    assert np.allclose(gains[1].numpy(), rule.gains(probabilities[1].numpy(), axis=0))


def test_a_cost_that_all_have_in_common_is_left_to_the_budget():
    probabilities = np.array([[0.5], [0.7], [0.8]], dtype=np.float32)
    free, dear = OneVsAllRule((0.0, 0.2), (True, True)), OneVsAllRule((0.1, 0.3), (True, True))
    assert free.gains(probabilities, axis=0).ravel() == pytest.approx([0.2, 0.1])
    assert dear.gains(probabilities, axis=0).ravel() == pytest.approx([0.2, 0.1])
    assert (free.cheapest, dear.cheapest) == (0.0, 0.1)


def test_nothing_is_gained_by_an_expert_who_cannot_be_asked():
    probabilities = np.array([[0.1], [0.9], [0.8]], dtype=np.float32)
    for rule in (OneVsAllRule((0.0, 0.3), (False, True)), SoftmaxRule((False, True))):
        gains = rule.gains(probabilities, axis=0).ravel()
        assert gains[0] == -np.inf
        assert gains[1] == pytest.approx(0.7)  # the only one is the cheapest


def test_all_experts_are_available_unless_said_otherwise():
    assert routing_rule(ONE_VS_ALL, (0.1, 0.2)) == OneVsAllRule((0.1, 0.2), (True, True))
    assert routing_rule(COLLABORATION, (0.1, 0.2)) == SoftmaxRule((True, True))


def test_an_unknown_objective_and_numbers_that_differ_are_refused():
    with pytest.raises(InputError, match='"collaboration" or "one_vs_all", got \'softmax\''):
        routing_rule("softmax", (0.0,))
    with pytest.raises(InputError, match="costs has 2 entries, but available has 1"):
        routing_rule(ONE_VS_ALL, (0.0, 0.0), (True,))
