"""A voxel is worth what putting it right adds to Dice."""

import numpy as np
import pytest
import torch

from nnunetv2_deferral.decision.area import SMALLEST_AREA, dice_weight


def dice(model, reference, label):
    model, reference = model == label, reference == label
    return 2 * np.sum(model & reference) / (model.sum() + reference.sum())


def test_for_one_class_all_voxels_of_a_case_are_worth_the_same():
    probabilities = torch.zeros(1, 4, 5, 5)
    probabilities[0, 1:3] = 0.8
    weight = dice_weight(probabilities)
    assert weight.shape == (1, 1, 1, 1)
    assert float(weight) == pytest.approx(1 / 80)


def test_where_nothing_is_predicted_the_worth_is_bounded():
    assert float(dice_weight(torch.zeros(1, 3, 3))) == pytest.approx(0.5 / SMALLEST_AREA)


def test_areas_are_counted_at_the_resolution_of_dice():
    probabilities = torch.full((1, 6, 6), 0.5)
    assert float(dice_weight(probabilities, num_voxels=4 * 36)) == pytest.approx(0.5 / (18 * 4))


def test_a_voxel_is_worth_what_the_class_in_doubt_there_is_worth():
    # Class 1 is large, class 2 small; a doubtful voxel of background beside each.
    probabilities = torch.zeros(2, 20, 40)
    probabilities[0, :, :20] = 1.0  # 400 voxels
    probabilities[1, :5, 35:] = 1.0  # 25 voxels
    probabilities[0, 10, 20], probabilities[1, 5, 35] = 0.4, 0.4
    weight = dice_weight(probabilities)[0]
    assert weight.shape == (20, 40)
    assert float(weight[10, 20]) == pytest.approx(1 / (4 * 400.4), rel=1e-5)
    assert float(weight[5, 35]) == pytest.approx(1 / (4 * 25.4), rel=1e-5)
    both = torch.zeros(2, 3, 100)
    both[:, 0, 0] = 0.5
    both[0, 1], both[1, 2] = 1.0, 1.0
    assert float(dice_weight(both)[0, 0, 0]) == pytest.approx(1 / (4 * 100.5), rel=1e-5)


def test_the_worth_is_about_what_a_missed_voxel_adds_to_mean_dice():
    reference = np.zeros((1, 60, 60), int)
    reference[0, 5:35, 5:35], reference[0, 45:53, 45:53] = 1, 2
    model = reference.copy()
    model[0, 5, 5:10], model[0, 45, 45:47] = 0, 0
    probabilities = torch.from_numpy(np.stack([model == 1, model == 2]).astype(np.float32))
    probabilities[0, 0, 5, 5], probabilities[1, 0, 45, 45] = 0.4, 0.4
    weight = dice_weight(probabilities)[0]
    for label, voxel in ((1, (0, 5, 5)), (2, (0, 45, 45))):
        better = model.copy()
        better[voxel] = label
        gained = np.mean([dice(better, reference, each) - dice(model, reference, each) for each in (1, 2)])
        assert float(weight[voxel]) == pytest.approx(gained, rel=0.1)


def test_it_is_the_same_for_regions_and_in_any_number_of_slices():
    probabilities = torch.rand(3, 37, 6, 5, generator=torch.Generator().manual_seed(0)) ** 4
    whole = dice_weight(probabilities)
    turned = dice_weight(probabilities.transpose(1, 3)).transpose(1, 3)
    assert whole.shape == (1, 37, 6, 5)
    assert torch.allclose(whole, turned)
    assert (whole > 0).all()
