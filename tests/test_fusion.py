import numpy as np
import pytest
import torch

from nnunetv2_deferral import fusion
from nnunetv2_deferral.fusion import fuse, fuse_masks, unanswered
from nnunetv2_deferral.labels import MISSING


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


def test_where_the_expert_who_is_asked_has_no_label_the_models_stands():
    model, route = np.array([3, 3, 3, 3], dtype=np.uint8), np.array([0, 1, 1, 2])
    experts = np.array([[1, 1, MISSING, 1], [MISSING, MISSING, MISSING, MISSING]], dtype=np.int16)
    fused = fuse_masks(model, experts, route)
    assert fused.dtype == np.uint8
    assert fused.tolist() == [3, 1, 3, 3]
    assert unanswered(experts, route).tolist() == [False, False, True, True]


def test_the_models_own_labels_may_look_like_a_missing_one():
    fused = fuse_masks(np.array([MISSING, 1]), np.array([[5, 5]]), np.array([0, 1]))
    assert fused.tolist() == [MISSING, 5]


def test_nobody_is_unanswered_where_the_model_keeps_its_voxels_or_the_experts_know():
    experts = np.array([[MISSING, 0, 1], [2, MISSING, 1]])
    assert not unanswered(experts, np.array([2, 1, 0])).any()
    assert unanswered(experts, np.array([1, 2, 1])).tolist() == [True, True, False]


def test_fusing_and_being_unanswered_agree_voxel_by_voxel():
    generator = np.random.default_rng(0)
    model, route = generator.integers(0, 4, (6, 7)), generator.integers(0, 4, (6, 7))
    experts = generator.choice([MISSING, 0, 1, 2, 3], (3, 6, 7))
    fused, missed = fuse_masks(model, experts, route), unanswered(experts, route)
    for place in np.ndindex(6, 7):
        asked = experts[(route[place] - 1, *place)] if route[place] else None
        assert missed[place] == (asked == MISSING)
        assert fused[place] == (model[place] if asked in (None, MISSING) else asked)


def test_pieces_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    model, route = random.integers(0, 3, (5, 6, 7)), random.integers(0, 3, (5, 6, 7), np.uint8)
    experts = random.integers(-2, 3, (2, 5, 6, 7)).astype(np.int16)
    whole = fusion.fuse_masks(model, experts, route)
    monkeypatch.setattr(fusion, "_PIECE", 11)
    assert np.array_equal(fusion.fuse_masks(model, experts, route), whole)
