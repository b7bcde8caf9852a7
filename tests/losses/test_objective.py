import pytest
import torch

from nnunetv2_deferral.labels import LabelSpace
from nnunetv2_deferral.losses.objective import DeferralObjective
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
