import numpy as np
import pytest

from nnunetv2_deferral.dataset_conversion.staple import staple


def circle(shape, radius, center):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2


def outlines(seed):
    """Five annotators' outlines that differ in place and size."""
    generator = np.random.default_rng(seed)
    return [circle((60, 60), 14 + generator.uniform(-2, 2), 30 + generator.uniform(-2, 2, 2)) for _ in range(5)]


def test_the_order_of_the_annotators_does_not_matter():
    assert np.array_equal(staple(outlines(3)[::-1]), staple(outlines(3)))


@pytest.mark.parametrize("seed", range(4))
def test_the_size_of_the_photograph_does_not_matter(seed):
    masks = [np.pad(mask, ((200, 310), (50, 600))) for mask in outlines(seed)]
    result = staple(masks)
    assert np.array_equal(result, np.pad(staple(outlines(seed)), ((200, 310), (50, 600))))
    # As much background makes two votes of five suffice, unless it is left out of the estimation.
    assert np.array_equal(result, np.sum(masks, axis=0) >= 3)


def test_a_tie_between_two_belongs_to_the_structure():
    small, large = circle((60, 60), 8, (20, 24)), circle((60, 60), 11, (20, 24))
    assert np.array_equal(staple([small, large]), large)


@pytest.mark.parametrize("seed", range(6))
def test_staple_agrees_with_a_plain_implementation_of_the_paper(seed):
    """Expectation maximisation of Warfield et al. (2004), Eqs. 17 to 20, over the whole of a tight picture."""
    generator = np.random.default_rng(seed)
    truth = circle((48, 52), 15, center=(24, 26))
    masks = [
        np.roll(truth, generator.integers(-3, 4, 2), (0, 1)) ^ (generator.random(truth.shape) < 0.02) for _ in range(5)
    ]
    # The noise reaches all borders, so that no surroundings are cut off.
    votes = np.stack(masks).reshape(5, -1).astype(float)
    prior, sensitivity, specificity = votes.mean(), np.full((5, 1), 0.99999), np.full((5, 1), 0.99999)
    for _ in range(500):
        inside = prior * np.prod(np.where(votes > 0, sensitivity, 1 - sensitivity), axis=0)
        outside = (1 - prior) * np.prod(np.where(votes > 0, 1 - specificity, specificity), axis=0)
        weight = inside / (inside + outside)
        sensitivity = ((votes * weight).sum(1) / weight.sum())[:, None]
        specificity = (((1 - votes) * (1 - weight)).sum(1) / (1 - weight).sum())[:, None]
    assert np.array_equal(staple(masks).ravel(), weight >= 0.5)


def test_emptiness_and_fullness_are_results_too():
    empty, full = np.zeros((6, 7), bool), np.ones((6, 7), bool)
    assert not staple([empty, empty]).any()
    assert staple([full, full]).all()
    assert np.array_equal(staple([full]), full)


def test_marks_up_to_the_borders_of_the_picture_are_estimated_as_well():
    half = np.zeros((20, 30), bool)
    half[:, :15] = True
    assert np.array_equal(staple([half, half, ~half, half, np.ones_like(half)]), half)
