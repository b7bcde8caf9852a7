"""DC, SC and LB against slow per-voxel loops written straight from Eqs. (4), (7), (8) and (9)."""

import math

import pytest
import torch

from nnunetv2_deferral.losses.balance import balance_loss, routing_ratio
from nnunetv2_deferral.losses.coherence import coherence_loss
from nnunetv2_deferral.losses.collaboration import LOG_FLOOR, collaboration_loss
from nnunetv2_deferral.routing import close_routes, routing_log_probabilities

SHAPES = [(2, 5, 4), (2, 3, 4, 2)]


def make_batch(num_experts, shape, *, with_mask):
    generator = torch.Generator().manual_seed(num_experts + len(shape))
    batch, *space = shape
    logits = torch.randn(batch, num_experts + 1, *space, generator=generator, dtype=torch.float64)
    expert_right = torch.rand(batch, num_experts, *space, generator=generator) < 0.7
    model_right = torch.rand(batch, *space, generator=generator) < 0.8
    aggregated = torch.randn(batch, 1, *space, generator=generator, dtype=torch.float64)
    valid = torch.rand(batch, *space, generator=generator) < 0.6 if with_mask else None
    return logits, expert_right, model_right, aggregated, valid


def voxels(valid, shape):
    everywhere = torch.ones(shape, dtype=torch.bool)
    return [tuple(index) for index in (everywhere if valid is None else valid).nonzero().tolist()]


def softmax_at(logits, voxel):
    batch, *place = voxel
    values = [math.exp(logits[(batch, channel, *place)]) for channel in range(logits.shape[1])]
    return [value / sum(values) for value in values]


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_experts", [1, 3])
def test_collaboration_equals_the_sum_over_voxels_of_equation_4(num_experts, shape, with_mask):
    logits, expert_right, model_right, _, valid = make_batch(num_experts, shape, with_mask=with_mask)
    places, total = voxels(valid, shape), 0.0
    for batch, *place in places:
        probability = softmax_at(logits, (batch, *place))
        for expert in range(num_experts):
            right = bool(expert_right[(batch, expert, *place)])
            total += (1 - 2 * right) * math.log(probability[expert + 1])
        total -= bool(model_right[(batch, *place)]) * math.log(probability[0])
    loss = collaboration_loss(routing_log_probabilities(logits), expert_right, model_right, valid=valid)
    assert loss.item() == pytest.approx(total / len(places), rel=1e-5)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_coherence_equals_the_sum_over_voxels_of_equation_7(shape, with_mask):
    logits, _, _, aggregated, valid = make_batch(3, shape, with_mask=with_mask)
    places, total = voxels(valid, shape), 0.0
    for batch, *place in places:
        probability = softmax_at(logits, (batch, *place))
        deferred = probability.index(max(probability)) != 0
        predicted = 1 / (1 + math.exp(-aggregated[(batch, 0, *place)]))
        total -= math.log(predicted if deferred else 1 - predicted)
        total += 0.5 * (predicted - sum(probability[1:])) ** 2 + 0.1 * predicted
    loss = coherence_loss(
        aggregated,
        *decided(routing_log_probabilities(logits)),
        beta_consistency=0.5,
        beta_rate=0.1,
        trains_routing=True,
        valid=valid,
    )
    assert loss.item() == pytest.approx(total / len(places), rel=1e-5)


@pytest.mark.parametrize("with_mask", [False, True])
def test_balance_equals_equations_8_and_9(with_mask):
    logits, _, _, _, valid = make_batch(3, SHAPES[0], with_mask=with_mask)
    places = voxels(valid, SHAPES[0])
    ratio = [sum(softmax_at(logits, voxel)[expert] for voxel in places) / len(places) for expert in (1, 2, 3)]
    lower, upper = [ratio[0] + 0.05, 0.0, 0.1], [1.0, ratio[1] - 0.02, 1.0]
    expected = 0.05 + 0.02 + max(ratio[2] - 1, 0) + max(0.1 - ratio[2], 0)
    measured = routing_ratio(routing_log_probabilities(logits), valid)
    assert measured.tolist() == pytest.approx(ratio, rel=1e-5)
    assert balance_loss(measured, torch.tensor(lower), torch.tensor(upper)).item() == pytest.approx(expected, abs=1e-6)


def decided(log_routing):
    """The paper's decision whether a voxel is deferred, and how likely it is to be."""
    return log_routing.argmax(1) != 0, 1 - log_routing[:, 0].exp()


def losses_of(logits, aggregated, expert_right, model_right, valid):
    log_routing = routing_log_probabilities(logits)
    bounds = torch.full((expert_right.shape[1],), 0.2), torch.full((expert_right.shape[1],), 0.25)
    yield collaboration_loss(log_routing, expert_right, model_right, valid=valid)
    yield coherence_loss(
        aggregated, *decided(log_routing), beta_consistency=0.5, beta_rate=0.1, trains_routing=True, valid=valid
    )
    yield balance_loss(routing_ratio(log_routing, valid), *bounds)


@pytest.mark.parametrize("scale", [1.0, 1e3, 6e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_losses_and_gradients_are_finite_for_any_logits_in_any_precision(dtype, scale):
    logits, expert_right, model_right, aggregated, _ = make_batch(3, SHAPES[0], with_mask=False)
    logits = (logits.clamp(-1, 1) * scale).to(dtype).requires_grad_()
    aggregated = (aggregated.clamp(-1, 1) * scale).to(dtype).requires_grad_()
    for loss in losses_of(logits, aggregated, expert_right, model_right, None):
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        for gradient in torch.autograd.grad(loss, (logits, aggregated), allow_unused=True, retain_graph=True):
            assert gradient is None or torch.isfinite(gradient).all()


def test_losses_stay_in_float32_under_autocast():
    logits, expert_right, model_right, aggregated, _ = make_batch(3, SHAPES[0], with_mask=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = list(losses_of(logits.bfloat16(), aggregated.bfloat16(), expert_right, model_right, None))
    assert {loss.dtype for loss in losses} == {torch.float32}


def test_gradients_agree_with_finite_differences(monkeypatch):
    # In float64, which the losses leave only because of the cast that keeps autocast out.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    logits, expert_right, model_right, aggregated, valid = make_batch(2, (1, 3, 2), with_mask=True)
    log_routing = routing_log_probabilities

    def collaboration(values):
        return collaboration_loss(log_routing(values), expert_right, model_right, valid=valid)

    def coherence(values, prediction):
        return coherence_loss(
            prediction,
            *decided(log_routing(values)),
            beta_consistency=0.5,
            beta_rate=0.1,
            trains_routing=True,
            valid=valid,
        )

    def balance(values):
        bounds = torch.tensor([0.9, 0.0]).double(), torch.tensor([1.0, 0.05]).double()
        return balance_loss(routing_ratio(log_routing(values), valid), *bounds)

    logits, aggregated = logits.requires_grad_(), aggregated.requires_grad_()
    assert torch.autograd.gradcheck(collaboration, (logits,))
    assert torch.autograd.gradcheck(coherence, (logits, aggregated))
    assert torch.autograd.gradcheck(balance, (logits,))


def test_a_wrong_expert_is_not_rewarded_below_the_floor():
    logits = torch.tensor([30.0, -30.0]).view(1, 2, 1, 1).requires_grad_()
    wrong, right = torch.zeros(1, 1, 1, 1, dtype=torch.bool), torch.ones(1, 1, 1, dtype=torch.bool)
    loss = collaboration_loss(routing_log_probabilities(logits), wrong, right)
    assert loss.item() == pytest.approx(LOG_FLOOR)
    loss.backward()
    assert logits.grad.abs().max() < 1e-6


def test_ignored_voxels_have_no_gradient():
    logits, expert_right, model_right, aggregated, valid = make_batch(3, SHAPES[0], with_mask=True)
    logits, aggregated = logits.requires_grad_(), aggregated.requires_grad_()
    sum(losses_of(logits, aggregated, expert_right, model_right, valid=valid)).backward()
    for gradient in (logits.grad, aggregated.grad):
        assert (gradient.movedim(1, -1)[~valid] == 0).all()
        assert (gradient.movedim(1, -1)[valid] != 0).any()


def test_a_batch_without_a_voxel_that_counts_costs_nothing():
    logits, expert_right, model_right, aggregated, _ = make_batch(3, SHAPES[0], with_mask=False)
    nothing = torch.zeros(SHAPES[0], dtype=torch.bool)
    collaboration, coherence, _ = losses_of(logits, aggregated, expert_right, model_right, nothing)
    assert collaboration == 0
    assert coherence == 0


def test_coherence_reaches_the_routing_only_in_the_form_of_the_paper():
    logits, _, _, aggregated, _ = make_batch(3, SHAPES[0], with_mask=False)
    for trains_routing in (False, True):
        values = logits.clone().requires_grad_()
        loss = coherence_loss(
            aggregated.requires_grad_(),
            *decided(routing_log_probabilities(values)),
            beta_consistency=0.5,
            beta_rate=0.1,
            trains_routing=trains_routing,
        )
        (gradient,) = torch.autograd.grad(loss, values, allow_unused=True)
        assert (gradient is not None and bool((gradient != 0).any())) == trains_routing


def test_minimising_collaboration_finds_the_optimum_known_in_closed_form():
    """With accuracies above one half the optimum is M_j ~ 2 a_j - 1, M_0 ~ a_0."""
    accuracies, number = (0.9, 0.7, 0.55), 1000
    model_accuracy, *expert_accuracies = accuracies
    steps = torch.arange(number)
    model_right = (steps < model_accuracy * number).view(1, number, 1)
    expert_right = torch.stack([steps < a * number for a in expert_accuracies]).view(1, 2, number, 1)
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100)

    def closure():
        optimizer.zero_grad()
        spread = logits.view(1, 3, 1, 1).expand(1, 3, number, 1)
        loss = collaboration_loss(routing_log_probabilities(spread), expert_right, model_right)
        loss.backward()
        return loss

    optimizer.step(closure)
    weights = torch.tensor([model_accuracy, *(2 * a - 1 for a in expert_accuracies)])
    assert torch.softmax(logits, 0).tolist() == pytest.approx((weights / weights.sum()).tolist(), abs=2e-3)


def who_knows(num_experts, shape):
    """Where each expert has a label: the first nowhere in the first image, the others here and there."""
    batch, *space = shape
    known = torch.rand(batch, num_experts, *space, generator=torch.Generator().manual_seed(7)) < 0.7
    known[0, 0] = False
    return known


COSTS = (0.0, 0.05, 0.6)


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_experts", [1, 3])
def test_collaboration_with_costs_and_missing_labels_equals_the_sum_over_what_is_known(num_experts, shape, with_mask):
    logits, expert_right, model_right, _, valid = make_batch(num_experts, shape, with_mask=with_mask)
    known = who_knows(num_experts, shape)
    places, total = voxels(valid, shape), 0.0
    for batch, *place in places:
        probability = softmax_at(logits, (batch, *place))
        for expert in range(num_experts):
            if known[(batch, expert, *place)]:
                right = bool(expert_right[(batch, expert, *place)])
                total += (1 - (2 - COSTS[expert]) * right) * math.log(probability[expert + 1])
        total -= bool(model_right[(batch, *place)]) * math.log(probability[0])
    loss = collaboration_loss(
        routing_log_probabilities(logits),
        expert_right,
        model_right,
        valid=valid,
        known=known,
        costs=torch.tensor(COSTS[:num_experts]),
    )
    assert loss.item() == pytest.approx(total / len(places), rel=1e-5)


def test_costs_of_nothing_and_labels_everywhere_change_no_loss():
    logits, expert_right, model_right, _, valid = make_batch(3, SHAPES[0], with_mask=True)
    log_routing, everywhere = routing_log_probabilities(logits), torch.ones_like(expert_right)
    how = {"known": everywhere, "costs": torch.zeros(3)}
    plain = collaboration_loss(log_routing, expert_right, model_right, valid=valid)
    assert collaboration_loss(log_routing, expert_right, model_right, valid=valid, **how) == plain
    assert torch.equal(routing_ratio(log_routing, valid, everywhere), routing_ratio(log_routing, valid))


def test_a_cost_of_1_takes_the_whole_reward_and_leaves_the_punishment():
    logits, expert_right, model_right, _, _ = make_batch(1, SHAPES[0], with_mask=False)
    logits = logits.requires_grad_()
    loss = collaboration_loss(
        routing_log_probabilities(logits), expert_right, torch.zeros_like(model_right), costs=torch.ones(1)
    )
    loss.backward()
    right = expert_right[:, 0]
    assert (logits.grad[:, 1][right] == 0).all()
    assert (logits.grad[:, 1][~right] > 0).all()


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_load_of_an_expert_is_the_mean_over_the_voxels_that_count_and_the_expert_knows(shape, with_mask):
    logits, _, _, _, valid = make_batch(3, shape, with_mask=with_mask)
    known = who_knows(3, shape)
    expected = []
    for expert in range(3):
        places = [voxel for voxel in voxels(valid, shape) if known[(voxel[0], expert, *voxel[1:])]]
        expected.append(sum(softmax_at(logits, voxel)[expert + 1] for voxel in places) / len(places))
    ratio = routing_ratio(routing_log_probabilities(logits), valid, known)
    assert ratio.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_load_of_an_expert_who_knows_nothing_is_0():
    logits, _, _, _, valid = make_batch(3, SHAPES[0], with_mask=True)
    known = torch.ones(2, 3, 5, 4, dtype=torch.bool)
    known[:, 1] = False
    ratio = routing_ratio(routing_log_probabilities(logits), valid, known)
    assert ratio[1] == 0
    assert (ratio[[0, 2]] > 0).all()


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_missing_label_gives_no_gradient_to_that_experts_logit_and_the_others_keep_theirs(with_mask):
    logits, expert_right, model_right, aggregated, valid = make_batch(3, SHAPES[0], with_mask=with_mask)
    known, logits = who_knows(3, SHAPES[0]), logits.requires_grad_()
    log_routing = routing_log_probabilities(close_routes(logits, known))
    bounds = torch.full((3,), 0.6), torch.full((3,), 0.7)
    losses = {
        "collaboration": collaboration_loss(
            log_routing, expert_right, model_right, valid=valid, known=known, costs=torch.tensor(COSTS)
        ),
        "coherence": coherence_loss(
            aggregated, *decided(log_routing), beta_consistency=0.5, beta_rate=0.1, trains_routing=True, valid=valid
        ),
        "balance": balance_loss(routing_ratio(log_routing, valid, known), *bounds),
    }
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert (gradient[:, 1:][~known] == 0).all(), name
        everything = torch.ones(SHAPES[0], dtype=torch.bool) if valid is None else valid
        assert (gradient[:, 1:][known & everything[:, None]] != 0).all(), name
        assert torch.isfinite(gradient).all(), name


def test_gradients_with_costs_and_missing_labels_agree_with_finite_differences(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    logits, expert_right, model_right, _, valid = make_batch(3, (2, 3, 2), with_mask=True)
    known, costs = who_knows(3, (2, 3, 2)), torch.tensor(COSTS).double()

    def objective(values):
        log_routing = routing_log_probabilities(close_routes(values, known))
        bounds = torch.tensor([0.9, 0.0, 0.2]).double(), torch.tensor([1.0, 0.05, 0.3]).double()
        return collaboration_loss(
            log_routing, expert_right, model_right, valid=valid, known=known, costs=costs
        ) + balance_loss(routing_ratio(log_routing, valid, known), *bounds)

    assert torch.autograd.gradcheck(objective, (logits.requires_grad_(),))
