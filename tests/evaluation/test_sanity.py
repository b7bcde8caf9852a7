"""Scores that know nothing of the image."""

import numpy as np
import pytest

from nnunetv2_deferral.evaluation.location import DISTANCES_MM, border_distance_mm, distances_in_slabs
from nnunetv2_deferral.evaluation.sanity import NEAR_BORDER, NEAR_CENTRE, near_border, near_centre, sanity_scores


def ball(shape, centre, radius, spacing):
    steps = [(np.arange(size) - middle) * step for size, middle, step in zip(shape, centre, spacing, strict=True)]
    return (np.sqrt(sum(each**2 for each in np.ix_(*steps))) < radius).astype(int)


def test_the_nearer_to_the_predicted_border_the_higher_the_score():
    spacing = (2.0, 0.5, 1.0)
    model = ball((12, 60, 50), (6, 20, 22), 6.0, spacing)
    distance, scores = border_distance_mm(model, spacing), near_border(model, spacing)
    assert scores.dtype == np.uint8
    assert np.array_equal(scores == 0, distance > 9.99995)
    order = np.argsort(distance.ravel(), kind="stable")
    assert (np.diff(scores.ravel()[order].astype(int)) <= 0).all()
    assert scores[distance == distance.min()].min() == scores.max()


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_has_no_border(label):
    assert not near_border(np.full((3, 5, 4), label), (1.0, 1.0, 1.0)).any()


@pytest.mark.parametrize("seed", range(6))
def test_distances_in_slabs_and_boxes_are_those_of_the_whole_up_to_the_last_band(seed, monkeypatch):
    monkeypatch.setattr("nnunetv2_deferral.evaluation.location._SLAB_VOXELS", 2000)
    generator = np.random.default_rng(seed)
    spacing = tuple(generator.uniform(0.4, 3, 3))
    labels = np.zeros((40, 30, 35), dtype=int)
    for label in range(1, 1 + seed % 3 + (seed > 3)):
        labels[tuple(slice(low, low + 5) for low in generator.integers(0, 25, 3))] = label
    if seed == 5:
        labels[0, 0, 0] = 2  # the label of the corner is rare
    whole = border_distance_mm(labels, spacing)
    slabs = list(distances_in_slabs(labels, spacing))
    assert len(slabs) > 1
    found = np.concatenate([distance for _, distance in slabs])
    reach = DISTANCES_MM[-2]
    assert found.shape == labels.shape
    np.testing.assert_allclose(np.minimum(found, reach), np.minimum(whole, reach), atol=1e-5)


def test_the_score_of_the_centre_falls_with_the_distance_in_mm():
    scores = near_centre((3, 5, 5), (10.0, 1.0, 1.0))
    assert scores[1, 2, 2] == 255
    assert scores[0, 0, 0] == scores[2, 4, 4] == 0
    assert scores[1, 0, 0] > scores[0, 2, 2]  # 2.8 mm against 10 mm
    assert np.array_equal(scores, scores[::-1, ::-1, ::-1])
    assert near_centre((1, 1), (1.0, 1.0)).tolist() == [[255]]


def test_they_depend_on_nothing_but_the_mask_and_the_size():
    model = ball((1, 30, 30), (0, 12, 12), 5, (1.0, 1.0, 1.0))
    found = sanity_scores(model, (1.0, 1.0, 1.0))
    assert list(found) == [NEAR_BORDER, NEAR_CENTRE]
    assert all(each.shape == model.shape and each.dtype == np.uint8 for each in found.values())
