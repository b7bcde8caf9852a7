import pytest
import torch

from nnunetv2_deferral.labels import MISSING, LabelSpace
from nnunetv2_deferral.losses.objective import DeferralObjective
from nnunetv2_deferral.losses.several_raters import OrdinalObjective
from nnunetv2_deferral.settings import resolve_settings


def segmentation_loss(output, target):
    """A stand-in with nnU-Net's calling convention: one output a scale, each with its target."""
    if isinstance(output, list):
        return sum(segmentation_loss(*pair) for pair in zip(output, target, strict=True))
    return output.square().mean() + 0 * target.float().mean()


def make_batch(num_heads=2, num_experts=3, size=(2, 8, 6)):
    generator = torch.Generator().manual_seed(0)
    batch, *space = size
    output = torch.randn(batch, num_heads + num_experts + 2, *space, generator=generator).requires_grad_()
    target = torch.randint(0, num_heads, (batch, 1, *space), generator=generator).to(torch.int16)
    experts = torch.randint(0, num_heads, (batch, num_experts, *space), generator=generator).to(torch.int16)
    return output, target, experts


def test_the_total_is_the_weighted_sum_of_equation_10():
    settings = resolve_settings(
        {"lambda_coherence": 0.5, "lambda_balance": 7.0, "lower": [0.9, 0, 0], "upper": [1, 1, 1]}
    )
    objective = DeferralObjective(settings, LabelSpace(2), segmentation_loss)
    terms = objective(*make_batch())
    expected = terms.segmentation + terms.routing + 0.5 * terms.coherence + 7.0 * terms.balance
    assert terms.balance > 0
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert terms.deferral.item() == pytest.approx((terms.total - terms.segmentation).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("weight", "term", "function"),
    [("lambda_coherence", "coherence", "coherence_loss"), ("lambda_balance", "balance", "balance_loss")],
)
def test_a_term_of_weight_0_is_not_computed_and_the_total_is_the_same(weight, term, function, monkeypatch):
    batch = make_batch()
    labels, loads = LabelSpace(2), {"lower": [0.9, 0, 0], "upper": [1, 1, 1]}
    reported = DeferralObjective(resolve_settings(loads), labels, segmentation_loss)(*batch)
    monkeypatch.setattr(f"nnunetv2_deferral.losses.objective.{function}", None)
    settings = resolve_settings(loads | {weight: 0.0})
    terms = DeferralObjective(settings, labels, segmentation_loss)(*batch)
    assert getattr(reported, term) > 0
    assert getattr(terms, term) == 0
    expected = reported.total - getattr(resolve_settings(loads), weight) * getattr(reported, term)
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_during_the_warm_up_only_the_segmentation_is_trained():
    objective = DeferralObjective(resolve_settings(None), LabelSpace(2), segmentation_loss)
    output, target, experts = make_batch()
    terms = objective(output, target, experts, deferral_weight=0.0)
    terms.total.backward()
    assert terms.total.item() == pytest.approx(terms.segmentation.item())
    assert terms.routing != 0
    assert (output.grad[:, :2] != 0).all()
    assert (output.grad[:, 2:] == 0).all()


def test_deep_supervision_gives_every_scale_to_the_segmentation_loss_and_only_the_finest_to_the_rest():
    objective = DeferralObjective(resolve_settings(None), LabelSpace(2), segmentation_loss)
    output, target, experts = make_batch()
    coarse, coarse_target = torch.randn(2, 2, 4, 3), torch.zeros(2, 1, 4, 3)
    single = objective(output, target, experts)
    deep = objective([output, coarse], [target, coarse_target], experts)
    assert deep.segmentation.item() == pytest.approx((single.segmentation + coarse.square().mean()).item(), rel=1e-6)
    assert deep.routing == single.routing
    assert deep.coherence == single.coherence


def test_no_gradient_of_the_deferral_losses_reaches_the_segmentation_logits():
    objective = DeferralObjective(resolve_settings(None), LabelSpace(2), lambda output, target: output.sum() * 0)
    output, target, experts = make_batch()
    objective(output, target, experts).total.backward()
    assert (output.grad[:, :2] == 0).all()
    assert (output.grad[:, 2:6] != 0).any()


@pytest.mark.parametrize("regions", [None, ((1, 2), (2,))])
def test_ignored_voxels_change_no_deferral_loss(regions):
    ignore = 3
    labels = LabelSpace(2 if regions else 3, regions, ignore_label=ignore)
    objective = DeferralObjective(resolve_settings(None), labels, segmentation_loss)
    output, _, experts = make_batch(labels.num_segmentation_heads)
    label_map = torch.randint(0, 3, (2, 8, 6), generator=torch.Generator().manual_seed(1))
    ignored = torch.zeros(2, 8, 6, dtype=torch.bool)
    ignored[:, :3] = True
    label_map[ignored] = ignore
    target = label_map[:, None]
    if regions:
        target = torch.stack([torch.isin(label_map, torch.tensor(r)) for r in (*regions, (ignore,))], 1)
    changed = output.detach().clone()
    changed[ignored.unsqueeze(1).expand_as(changed)] += 5.0
    first, second = objective(output, target, experts), objective(changed, target, experts)
    for term in ("routing", "coherence", "balance"):
        assert getattr(first, term).item() == pytest.approx(getattr(second, term).item(), rel=1e-6)


PROFILE = {"name": "sim", "foreground": 0.9, "background": 0.9, "boundary": 0.9}
MIXED = {"experts": ["ann", PROFILE, "bob"], "lower": [0.4] * 2 + [0.1], "upper": [0.5] * 3}


def missing_here_and_there(experts):
    """The first rater has not seen the first image, the second left out a part of both."""
    experts = experts.clone()
    experts[0, 0] = MISSING
    experts[:, 2, :3] = MISSING
    return experts


OBJECTIVES = pytest.mark.parametrize("objective_name", ["collaboration", "one_vs_all"])


@OBJECTIVES
@pytest.mark.parametrize("regions", [None, ((1, 2), (2,))])
@pytest.mark.parametrize("dimension", [2, 3])
def test_where_a_rater_has_no_label_its_logit_changes_nothing_and_learns_nothing(regions, dimension, objective_name):
    labels = LabelSpace(2 if regions else 3, regions)
    settings = resolve_settings(MIXED | {"coherence_trains_routing": True, "objective": objective_name})
    objective = DeferralObjective(settings, labels, lambda output, target: output.sum() * 0)
    heads, space = labels.num_segmentation_heads, (8, 6, 4)[:dimension]
    output, _, experts = make_batch(heads, size=(2, *space))
    label_map = torch.randint(0, 3, (2, *space), generator=torch.Generator().manual_seed(1))
    target = label_map[:, None]
    if regions:
        target = torch.stack([torch.isin(label_map, torch.tensor(region)) for region in regions], 1)
    experts = missing_here_and_there(experts)
    unknown = experts == MISSING
    terms = objective(output, target, experts)
    terms.total.backward()
    routing = output.grad[:, heads + 1 : heads + 4]
    assert (routing[unknown] == 0).all()
    assert (routing[~unknown] != 0).all()

    changed = output.detach().clone()
    changed[:, heads + 1 : heads + 4][unknown] += 9.0
    again = objective(changed, target, experts)
    for term in ("routing", "coherence", "balance"):
        assert getattr(again, term).item() == getattr(terms, term).item()


@OBJECTIVES
def test_an_expert_without_a_single_label_is_as_if_it_were_not_there(objective_name):
    """But for the balance, of which every expert has a term of its own."""
    output, target, experts = make_batch()
    experts[:, 2] = MISSING
    settings = resolve_settings(MIXED | {"objective": objective_name})
    with_third = DeferralObjective(settings, LabelSpace(2), segmentation_loss)
    alone = resolve_settings({"experts": MIXED["experts"][:2], "objective": objective_name})
    without_third = DeferralObjective(alone, LabelSpace(2), segmentation_loss)
    fewer = torch.cat((output[:, :5], output[:, 6:]), 1)
    first, second = with_third(output, target, experts), without_third(fewer, target, experts[:, :2])
    for term in ("routing", "coherence"):
        assert getattr(first, term).item() == pytest.approx(getattr(second, term).item(), rel=1e-6)


def test_the_load_of_a_rater_is_measured_where_it_has_labels():
    output, target, experts = make_batch()
    output = torch.zeros_like(output)
    experts = missing_here_and_there(experts)
    settings = resolve_settings(MIXED | {"lower": [0.0] * 3, "upper": [0.0] * 3})
    balance = DeferralObjective(settings, LabelSpace(2), segmentation_loss)(output, target, experts).balance
    # With equal logits every voxel is shared out equally among the model and the experts who know it.
    known = experts != MISSING
    share = 1 / (1 + known.sum(1, keepdim=True))
    expected = sum((share.expand_as(known)[:, j][known[:, j]]).mean() for j in range(3))
    assert balance.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("experts", [["ann", "bob", "eve"], [PROFILE | {"name": f"e{j}"} for j in range(3)]])
def test_the_costs_of_the_settings_are_taken_from_the_reward(experts):
    output, target, labels = make_batch()
    free, priced = (
        DeferralObjective(resolve_settings({"experts": experts, "costs": costs}), LabelSpace(2), segmentation_loss)
        for costs in ([0, 0, 0], [0.0, 0.5, 0.0])
    )
    first, second = free(output, target, labels), priced(output, target, labels)
    right = (labels[:, 1] == target[:, 0]).float()
    log_probability = torch.log_softmax(output[:, 2:6], 1)[:, 2]
    assert (second.routing - first.routing).item() == pytest.approx(
        (0.5 * right * log_probability).mean().item(), rel=1e-5
    )
    assert second.coherence == first.coherence


def test_with_collaboration_a_batch_in_which_no_rater_has_a_label_trains_the_segmentation_alone():
    settings = resolve_settings({"experts": ["ann", "bob", "eve"]})
    output, target, experts = make_batch()
    terms = DeferralObjective(settings, LabelSpace(2), segmentation_loss)(
        output, target, torch.full_like(experts, MISSING)
    )
    terms.total.backward()
    assert torch.isfinite(terms.total)
    # The model has the voxels for certain, so its own logit has nothing to learn either.
    assert output.grad[:, 2:6].abs().max() < 1e-6
    assert (output.grad[:, :2] != 0).any()


@OBJECTIVES
@pytest.mark.parametrize("experts", [["ann", "bob", "eve"], [PROFILE | {"name": f"e{j}"} for j in range(3)]])
def test_an_expert_who_is_not_available_is_as_if_it_were_not_there(experts, objective_name):
    """But for the balance. The head closes the route; what remains must not be a loss without a gradient."""
    names = [expert if isinstance(expert, str) else expert["name"] for expert in experts]
    output, target, answers = make_batch()
    output = output.detach()
    output[:, 5] = -100.0
    with_third, without_third = (
        DeferralObjective(resolve_settings(block | {"objective": objective_name}), LabelSpace(2), segmentation_loss)
        for block in ({"experts": experts, "unavailable": names[2:]}, {"experts": experts[:2]})
    )
    fewer = torch.cat((output[:, :5], output[:, 6:]), 1)
    first, second = with_third(output, target, answers), without_third(fewer, target, answers[:, :2])
    for term in ("routing", "coherence"):
        assert getattr(first, term).item() == pytest.approx(getattr(second, term).item(), rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"objective": "one_vs_all"}, {"experts": ["ann", "bob", "eve"]}])
def test_the_objective_for_classes_is_that_of_the_settings(settings):
    output, target, experts = make_batch()
    found = DeferralObjective.for_classes(2, 3, segmentation_loss, **settings)(output, target, experts)
    block = resolve_settings(settings, num_experts=3)
    expected = DeferralObjective(block, LabelSpace(2), segmentation_loss)(output, target, experts)
    assert found.total.item() == expected.total.item()


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="unknown keys: lambda"):
        DeferralObjective.for_classes(2, 3, segmentation_loss, **{"lambda": 1})


def gradients(compiled, settings, labels, target, experts, output):
    objective = DeferralObjective(settings, labels, lambda logits, _: logits.square().mean())
    if compiled:
        torch._dynamo.reset()
        objective._deferral_terms = torch.compile(objective._deferral_terms, fullgraph=True, backend=compiled)
    output = output.clone().requires_grad_()
    terms = objective(output, target, experts)
    terms.total.backward()
    return [*(term.detach() for term in terms), output.grad]


COMPILED = [
    pytest.param(backend, objective, regions, experts, marks=[] if few else pytest.mark.slow)
    for backend in ("eager", "inductor")
    for objective in ("collaboration", "one_vs_all")
    for regions in (None, ((1, 2), (2,)))
    for experts in (None, ["ann", "bob"])
    for few in [backend == "eager" and (objective == "one_vs_all") == bool(regions) == bool(experts)]
]


@pytest.mark.parametrize(("backend", "objective_name", "regions", "experts"), COMPILED)
def test_compiled_as_one_graph_the_deferral_terms_are_the_same(backend, objective_name, regions, experts):
    block = {"objective": objective_name} | ({"experts": experts} if experts else {"num_experts": 2})
    labels = LabelSpace(2 if regions else 3, regions, ignore_label=3)
    random = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 3, (2, 2, 12, 10), generator=random, dtype=torch.int16)
    if experts:
        maps[:, 0, :5] = MISSING
    if regions:
        target = torch.rand(2, 3, 12, 10, generator=random) > 0.7
    else:
        target = torch.randint(0, 4, (2, 1, 12, 10), generator=random, dtype=torch.int16)
    output = torch.randn(2, labels.num_segmentation_heads + 4, 12, 10, generator=random)
    given = (resolve_settings(block), labels, target, maps, output)
    for found, expected in zip(gradients(backend, *given), gradients(None, *given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_with_levels_the_segmentation_loss_is_that_of_the_trainer_for_several_raters():
    names, labels = ["ann", "bob", "eve"], LabelSpace(2)
    settings = resolve_settings({"experts": names, "multi_rater": True})
    output, target, experts = make_batch()
    experts[0, 1] = MISSING
    levels = torch.randn(2, 4, 8, 6)
    with_levels = torch.cat((output[:, :2], levels, output[:, 2:]), 1)
    terms = DeferralObjective(settings, labels, segmentation_loss)(with_levels, target, experts)
    alone = OrdinalObjective(labels, 3, segmentation_loss)(with_levels[:, :6], [target, experts])
    without = DeferralObjective(resolve_settings({"experts": names}), labels, segmentation_loss)
    expected = without(output, target, experts)
    assert terms.segmentation.item() == pytest.approx(alone.item())
    assert terms.segmentation > expected.segmentation
    assert terms.deferral.item() == pytest.approx(expected.deferral.item())
