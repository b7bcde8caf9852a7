import torch

from nnunetv2_deferral.labels import LabelSpace, is_right


def test_with_classes_an_answer_is_the_most_likely_label():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]]).t().reshape(1, 3, 2, 1)
    assert LabelSpace(3).answer(logits).flatten().tolist() == [1, 0]


def test_with_regions_an_answer_is_the_set_of_regions_above_one_half():
    logits = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]]).t().reshape(1, 2, 3, 1)
    answer = LabelSpace(2, ((1, 2), (2,))).answer(logits)
    assert answer[0, :, :, 0].t().tolist() == [[True, False], [True, True], [False, False]]


def test_an_expert_is_right_about_regions_only_if_the_whole_set_agrees():
    labels = LabelSpace(2, ((1, 2), (2,)))
    reference = labels.encode(torch.tensor([2, 2, 2, 0]).view(1, 1, 4, 1))[0]
    experts = labels.encode(torch.tensor([2, 1, 0, 0]).view(1, 1, 4, 1))
    assert is_right(experts, reference).flatten().tolist() == [True, False, False, True]


def test_right_and_wrong_of_several_experts_keep_their_order():
    labels = LabelSpace(3)
    maps = torch.tensor([[0, 1, 2], [2, 2, 2]]).view(1, 2, 3, 1)
    reference = torch.tensor([0, 1, 1]).view(1, 1, 3, 1)
    right = is_right(labels.encode(maps), reference)
    assert right.shape == (2, 1, 3, 1)
    assert right.flatten(1).tolist() == [[True, True, False], [False, False, False]]


def test_the_ignore_label_is_taken_out_of_classes_and_of_regions():
    target = torch.tensor([0, 1, 2, 3]).view(1, 1, 4, 1)
    reference, valid = LabelSpace(3, ignore_label=3).reference(target)
    assert reference.flatten().tolist() == [0, 1, 2, 0]
    assert valid.flatten().tolist() == [True, True, True, False]
    regions = torch.stack([target[:, 0] == 1, target[:, 0] == 2, target[:, 0] == 3], 1)
    reference, valid = LabelSpace(2, ((1,), (2,)), ignore_label=3).reference(regions)
    assert reference.shape == (1, 2, 4, 1)
    assert valid.flatten().tolist() == [True, True, True, False]


def test_without_an_ignore_label_every_voxel_counts():
    assert LabelSpace(2).reference(torch.zeros(1, 1, 2, 2))[1] is None


def test_one_hot_has_a_channel_for_every_class():
    answer = torch.tensor([0, 2]).view(1, 1, 2, 1)
    assert LabelSpace(3).one_hot(answer)[0, :, :, 0].int().t().tolist() == [[1, 0, 0], [0, 0, 1]]
