import numpy as np
import pytest
import torch

from nnunetv2_deferral.fusion import fuse, fuse_masks


def test_every_voxel_is_answered_by_whom_it_was_routed_to():
    generator = np.random.default_rng(0)
    model, route = generator.integers(0, 4, (5, 6)), generator.integers(0, 3, (5, 6))
    experts = generator.integers(0, 4, (2, 5, 6))
    fused = fuse_masks(model.astype(np.uint8), experts, route)
    assert fused.dtype == np.uint8
    for place in np.ndindex(5, 6):
        expected = model[place] if route[place] == 0 else experts[(route[place] - 1, *place)]
        assert fused[place] == expected


def test_answers_with_several_channels_are_fused_as_a_whole():
    answers = torch.stack([torch.zeros(1, 2, 3, 1), torch.ones(1, 2, 3, 1)])
    fused = fuse(answers, torch.tensor([0, 1, 0]).view(1, 1, 3, 1))
    assert fused[0, :, :, 0].tolist() == [[0, 1, 0], [0, 1, 0]]


def test_a_route_to_an_expert_who_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="routed to expert 3, but there are 2 experts"):
        fuse_masks(np.zeros((2, 2)), np.zeros((2, 2, 2)), np.full((2, 2), 3))


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shapes differ: model \(2, 2\), experts \(2, 3\)"):
        fuse_masks(np.zeros((2, 2)), np.zeros((1, 2, 3)), np.zeros((2, 2)))
