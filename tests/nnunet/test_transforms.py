"""Experts in nnU-Net's own augmentation pipelines."""

import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_deferral.nnunet.device_experts import DeviceExperts
from nnunetv2_deferral.nnunet.transforms import add_experts
from nnunetv2_deferral.settings import resolve_settings

PERFECT = [{"name": f"e{j}", "foreground": 1.0, "background": 1.0, "boundary": 1.0} for j in (1, 2)]
SCALES = [[1.0, 1.0], [0.5, 0.5]]


def make_sample(labels=3, extra_channels=0):
    generator = torch.Generator().manual_seed(0)
    segmentation = torch.zeros(1 + extra_channels, 48, 48, dtype=torch.int16)
    segmentation[:, 10:30, 12:34] = 1
    segmentation[:, 18:26, 18:26] = labels - 1
    return {"image": torch.randn(1, 48, 48, generator=generator), "segmentation": segmentation}


def training_pipeline(**kwargs):
    return nnUNetTrainer.get_training_transforms((32, 32), (-0.5, 0.5), SCALES, (0, 1), False, **kwargs)


def with_experts(pipeline, experts=PERFECT, **kwargs):
    settings = resolve_settings({"experts": experts})
    return add_experts(pipeline, settings, label_values=[0, 1, 2], ignore_label=None, **kwargs)


def test_perfect_experts_know_the_augmented_reference():
    pipeline = with_experts(training_pipeline())
    for _ in range(5):
        *targets, experts = pipeline(**make_sample())["segmentation"]
        assert [tuple(target.shape) for target in targets] == [(1, 32, 32), (1, 16, 16)]
        assert experts.dtype == torch.int16
        assert torch.equal(experts, targets[0].expand(2, -1, -1))


def test_experts_answer_labels_where_the_target_is_regions():
    pipeline = with_experts(training_pipeline(regions=[(1, 2), (2,)]))
    *targets, experts = pipeline(**make_sample())["segmentation"]
    assert targets[0].shape == (2, 32, 32)
    assert torch.equal(experts[0] > 0, targets[0][0])
    assert torch.equal(experts[0] == 2, targets[0][1])


def test_in_a_cascade_the_experts_are_drawn_from_the_reference_not_from_the_previous_stage():
    pipeline = with_experts(training_pipeline(is_cascaded=True, foreground_labels=[1, 2]))
    sample = make_sample(extra_channels=1)
    sample["segmentation"][1] = 0
    transformed = pipeline(**sample)
    *targets, experts = transformed["segmentation"]
    assert transformed["image"].shape[0] == 1 + 2
    assert torch.equal(experts[0], targets[0][0])
    assert (experts[0] > 0).any()


def test_without_deep_supervision_the_target_is_a_list_all_the_same():
    pipeline = with_experts(nnUNetTrainer.get_validation_transforms(None))
    target, experts = pipeline(**make_sample())["segmentation"]
    assert torch.equal(target.expand(2, -1, -1), experts)


def test_voxels_from_outside_the_image_are_background_to_the_experts():
    sample = make_sample()
    sample["segmentation"][:, :, :20] = -1
    target, experts = with_experts(nnUNetTrainer.get_validation_transforms(None))(**sample)["segmentation"]
    assert int(experts.min()) == 0
    assert torch.equal(target[0], experts[0])


@pytest.mark.parametrize("on_device", [False, True])
def test_the_spacing_reaches_the_simulation(on_device):
    wrong_at_borders = {"name": "e", "foreground": 1, "background": 1, "boundary": 0}
    settings = resolve_settings({"experts": [wrong_at_borders], "expert_voxel_mm": 2})
    spacing = settings.spacing_of_experts((4.0, 1.0))
    assert spacing == (2.0, 0.5)
    named = {"label_values": [0, 1], "ignore_label": None, "spacing": spacing}
    pipeline = add_experts(nnUNetTrainer.get_validation_transforms(None), settings, on_device=on_device, **named)
    labels = torch.zeros(1, 30, 30, dtype=torch.int16)
    labels[0, 15:] = 1
    target, experts = pipeline(image=torch.zeros(1, 30, 30), segmentation=labels)["segmentation"]
    if on_device:
        experts = DeviceExperts(settings, torch.device("cpu"), **named)(experts[None])[0]
    assert (experts != target).all(dim=-1).flatten().nonzero().flatten().tolist() == [14, 15]


@pytest.mark.parametrize("seed", [0, 1])
def test_numpys_seed_governs_the_experts_of_a_sample(seed):
    imperfect = [{"name": "e1", "foreground": 0.5, "background": 0.5, "boundary": 0.5}]
    drawn = []
    for state in (seed, seed, seed + 1):
        pipeline = with_experts(nnUNetTrainer.get_validation_transforms(None), imperfect)
        np.random.seed(state)
        drawn.append(pipeline(**make_sample())["segmentation"][-1])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
