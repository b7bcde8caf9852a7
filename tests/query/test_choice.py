"""The choice of boxes: counts, no overlap, seeds, the limit without noise, and classes that do not occur."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.query.choice import beta_of_round, choose_boxes, disjoint_boxes, shares_of_classes
from nnunetv2_deferral.query.patches import Box, Grid

SHAPE, SIZE, STRIDE = (6, 12, 12), (2, 4, 4), (1, 2, 2)
ROOM = Box((0, 0, 0), (2, 4, 4))  # of a corner


def draw(seed=0, *, number=8, classes=2, cases=("a", "b", "c"), beta=1.0, taken=(), absent=(), start=False):
    """Candidates of random maps, and the choice from them."""
    maps, random = np.random.default_rng(100), np.random.default_rng(seed)
    grid, candidates = Grid(SHAPE, SIZE, STRIDE), []
    for case in cases:
        by_class = [maps.random(SHAPE) * (place not in absent) for place in range(classes)]
        means = [grid.means(of) for of in [*by_class, maps.random(SHAPE)]]
        candidates += disjoint_boxes(
            case, grid, means[:-1], means[-1], number=number, beta=beta, random=random, taken=taken
        )
    return candidates, choose_boxes(candidates, number=number, classes=classes, random=random, start=start)


def test_the_noise_decays_by_a_hundred_over_the_rounds():
    assert [round(beta_of_round(number, 5), 2) for number in range(5)] == [1, 3.16, 10, 31.62, 100]
    assert beta_of_round(0, 1) == 1


@pytest.mark.parametrize(("number", "rounds"), [(5, 5), (-1, 5), (0, 0)])
def test_rounds_out_of_range_are_refused(number, rounds):
    with pytest.raises(InputError, match="round"):
        beta_of_round(number, rounds)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100), st.integers(1, 20), st.integers(0, 3), st.sampled_from([1.0, 10.0, np.inf]), st.booleans())
def test_as_many_boxes_as_asked_for_without_overlap(seed, number, classes, beta, has_annotation):
    _, choice = draw(seed, number=number, classes=classes, beta=beta, taken=[ROOM] if has_annotation else [])
    assert len(choice.chosen) == number
    for first, second in combinations(choice.chosen, 2):
        assert first.case != second.case or not first.box.overlaps(second.box)
    if has_annotation:
        assert not any(each.box.overlaps(ROOM) for each in choice.chosen)


def test_two_thirds_are_chosen_class_by_class():
    _, choice = draw(number=16)
    found = [each.by_class for each in choice.chosen]
    assert sorted((found.count(0), found.count(1), found.count(None))) == [5, 5, 6]
    assert choice.missing == (0, 0)


def test_an_image_gives_each_class_no_more_than_its_part():
    candidates, _ = draw(number=20)
    for case in "abc":
        for place in range(2):
            assert sum(each.case == case and each.by_class == place for each in candidates) == int(0.66 * 20 / 3)


def test_the_share_of_a_class_that_does_not_occur_is_chosen_by_all():
    _, choice = draw(number=16, absent=(1,))
    found = [each.by_class for each in choice.chosen]
    assert (found.count(0), found.count(1), found.count(None)) == (5, 0, 11)
    assert choice.missing == (0, 5)


def test_a_seed_gives_the_same_choice_and_another_another():
    assert draw(3)[1] == draw(3)[1]
    assert draw(3)[1] != draw(4)[1]


def test_without_noise_the_best_boxes_of_all_images_are_chosen():
    candidates, choice = draw(number=5, classes=0, beta=np.inf)
    best = sorted((each.score for each in candidates), reverse=True)[:5]
    assert [each.score for each in choice.chosen] == best
    assert draw(7, number=5, classes=0, beta=np.inf)[1] == choice


@pytest.mark.parametrize("beta", [1.0, 4.0])
def test_a_box_is_drawn_with_a_probability_that_is_proportional_to_a_power_of_its_score(beta):
    grid, random = Grid((3,), (1,), (1,)), np.random.default_rng(0)
    scores, number = np.array([1.0, 2.0, 4.0]), 1500
    first = [
        disjoint_boxes("a", grid, [], scores, number=1, beta=beta, random=random)[0].box.starts[0]
        for _ in range(number)
    ]
    expected = scores**beta / (scores**beta).sum()
    shares = np.bincount(first, minlength=3) / number
    assert np.all(np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / number))


def test_a_start_set_has_each_class_in_two_images():
    """Even where all of the best boxes of a class are in one image."""
    grid, random, candidates = Grid((1, 12), (1, 2), (1, 1)), np.random.default_rng(0), []
    for case, scale in (("a", 1e6), ("b", 1.0), ("c", 1e-6)):
        maps = [np.full(grid.positions, scale)] * 3
        candidates += disjoint_boxes(case, grid, maps[:2], maps[2], number=9, beta=np.inf, random=random)
    for start, images in ((True, {"a", "b"}), (False, {"a"})):
        choice = choose_boxes(candidates, number=9, classes=2, random=np.random.default_rng(0), start=start)
        assert len(choice.chosen) == 9
        for place in range(2):
            of = [each for each in choice.chosen if each.by_class == place]
            assert len(of) >= 2
            assert {each.case for each in of} >= images


def test_a_start_set_that_is_too_small_is_refused():
    with pytest.raises(InputError, match="at least 2 boxes for each of 2 classes, got 3 boxes"):
        draw(number=3, start=True)


def test_more_boxes_than_there_is_room_for_are_refused():
    with pytest.raises(InputError, match=r"81 boxes were asked for, but only \d+ that do not overlap"):
        draw(number=81)


def test_scores_that_are_no_scores_are_refused():
    grid = Grid((3,), (1,), (1,))
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="scores of a must be finite and not negative"):
            disjoint_boxes("a", grid, [], np.array([0, 1, wrong]), number=1, beta=1, random=np.random.default_rng(0))


def test_an_image_without_scores_still_gives_boxes():
    """A network that is certain everywhere leaves the choice to chance."""
    grid = Grid((4,), (1,), (1,))
    found = disjoint_boxes("a", grid, [], np.zeros(4), number=4, beta=1, random=np.random.default_rng(0))
    assert sorted(each.box.starts[0] for each in found) == [0, 1, 2, 3]


@pytest.mark.parametrize(("number", "classes"), [(10, 3), (1, 2), (100, 7), (5, 0)])
def test_classes_have_equal_shares_up_to_one(number, classes):
    shares = shares_of_classes(number, classes, np.random.default_rng(0))
    assert sum(shares) == (int(0.66 * number) if classes else 0)
    assert max(shares, default=0) - min(shares, default=0) <= 1
