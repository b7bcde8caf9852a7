"""What is deferred is regions that a person can look at, of a minimum size, and never more than allowed."""

import math

import numpy as np
import pytest
from connected import connected_pieces
from scipy import ndimage

from nnunetv2_deferral.decision.gains import expected_gain
from nnunetv2_deferral.decision.region_routing import route_regions

SHAPES = [(40, 44), (1, 40, 44), (14, 20, 22)]
SPACINGS = {(40, 44): (1.0, 0.8), (1, 40, 44): (7.0, 1.0, 0.8), (14, 20, 22): (2.0, 1.0, 0.8)}


def ball(shape, radius, centre=None):
    """Bool: the voxels within a radius, along an axis of length 1 all."""
    centre = [(length - 1) / 2 for length in shape] if centre is None else centre
    grid = np.meshgrid(*(np.arange(length) - each for length, each in zip(shape, centre, strict=True)), indexing="ij")
    return sum(np.square(each) for each in grid) <= radius**2


def bump(shape, centre, width):
    """Gaussian of height 1."""
    grid = np.meshgrid(*(np.arange(length) - each for length, each in zip(shape, centre, strict=True)), indexing="ij")
    return np.exp(-sum(np.square(each) for each in grid) / (2 * width**2))


def one_expert(inside, gain=1.0, outside=-0.2):
    return np.where(inside, gain, outside).astype(np.float32)[None]


def random_gains(shape, seed, experts=3):
    """Patches, dust, and places where an expert cannot be asked."""
    generator = np.random.default_rng(seed)
    width = [0 if length == 1 else 2.5 for length in shape]
    patches = ndimage.gaussian_filter(generator.normal(size=shape), width)
    preference = ndimage.gaussian_filter(generator.normal(size=(experts, *shape)), [0, *width])
    gains = patches / patches.std() + 0.5 * preference / preference.std() - 0.8
    gains += 0.4 * generator.normal(size=gains.shape)
    gains[experts - 1][generator.random(shape) < 0.02] = -np.inf
    return gains.astype(np.float32)


def components(route):
    """(expert, mask) of each connected component, full connectivity."""
    for expert in np.unique(route[route > 0]):
        labels, number = ndimage.label(route == expert, np.ones((3,) * route.ndim))
        for each in range(1, number + 1):
            yield int(expert), labels == each


def diameter(voxels, shape, spacing):
    if len(shape) == 2 or shape[0] == 1:
        return math.sqrt(4 * voxels * spacing[-1] * spacing[-2] / math.pi)
    return (6 * voxels * math.prod(spacing) / math.pi) ** (1 / 3)


def holes_of(mask):
    """The holes of a component, one mask each; in the plane where there is one only."""
    flat = mask[0] if mask.ndim == 3 and mask.shape[0] == 1 else mask
    labels, number = ndimage.label(ndimage.binary_fill_holes(flat) & ~flat)
    return [(labels == each).reshape(mask.shape) for each in range(1, number + 1)]


LIMITS = [(None, None), (0.02, None), (0.1, (0.02, None, 0.05)), (0.3, (0.0, 0.2, 0.2)), (None, (0.05, 0.01, 0.0))]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smallest", [0.0, 2.5, 5.0])
@pytest.mark.parametrize(("budget", "capacities"), LIMITS)
def test_whatever_the_gains_every_region_is_within_the_limits_large_enough_and_worth_it(
    shape, smallest, budget, capacities
):
    spacing = SPACINGS[shape]
    deferred = 0
    for seed in range(4):
        gains = random_gains(shape, seed)
        before = gains.copy()
        route = route_regions(gains, spacing_mm=spacing, budget=budget, min_diameter_mm=smallest, capacities=capacities)
        assert route.shape == shape
        assert route.dtype == np.uint8
        assert np.array_equal(gains, before)

        size = math.prod(shape)
        room = size if budget is None else int(budget * size)
        left = [room - np.count_nonzero(route)]
        for expert, capacity in enumerate(capacities or (None,) * 3, start=1):
            left.append((size if capacity is None else int(capacity * size)) - np.count_nonzero(route == expert))
        assert min(left) >= 0

        for expert, mask in components(route):
            assert diameter(mask.sum(), shape, spacing) >= smallest * (1 - 1e-9)
            gain = gains[expert - 1].astype(float)
            assert gain[mask].sum() > 0  # finite, too: nobody is asked who cannot be
            for hole in holes_of(mask):
                unasked = hole & (route == 0)
                fits = 0 < unasked.sum() <= min(left[0], left[expert])
                small = diameter(unasked.sum(), shape, spacing) < smallest * (1 - 1e-9)
                assert not (fits and small and gain[mask].sum() + gain[unasked].sum() > 1e-4)

        voxelwise = np.sort(gains.max(axis=0).ravel().astype(float))[::-1][:room]
        assert expected_gain(gains, route) <= voxelwise[voxelwise > 0].sum() + 1e-4
        deferred += np.count_nonzero(route)
    assert deferred


@pytest.mark.parametrize("shape", SHAPES)
def test_a_blob_is_taken_whole_by_the_one_expert_who_gains_most_on_it(shape):
    inside = ball(shape, 6)
    gains = np.concatenate([one_expert(inside, 0.5), one_expert(inside, 0.6), one_expert(inside, 0.1)])
    here_and_there = inside & (np.arange(inside.size).reshape(shape) % 11 == 0)
    gains[0][here_and_there] = 0.9
    spacing = (1.0,) * len(shape)
    route = route_regions(gains, spacing_mm=spacing, budget=None, min_diameter_mm=4)
    assert np.array_equal(route, 2 * inside)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("hole_gain", "filled"), [(-0.05, True), (-5.0, True), (-500.0, False), (-np.inf, False)])
def test_a_small_hole_is_filled_where_the_region_is_still_worth_it(shape, hole_gain, filled):
    hole, disc = ball(shape, 1), ball(shape, 6)
    gains = np.full((2, *shape), -0.2, dtype=np.float32)
    gains[1] = np.where(hole, hole_gain, np.where(disc, 1, -0.2))
    route = route_regions(gains, spacing_mm=(1.0,) * len(shape), budget=None, min_diameter_mm=4)
    assert np.array_equal(route, 2 * (disc if filled else disc & ~hole))


@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_model_knows_inside_of_a_region_is_left_to_it_unless_it_is_a_speck(shape):
    """The border of an object is in doubt, its inside is not: to have that redrawn as well would only harm."""
    inside, disc = ball(shape, 4), ball(shape, 6)
    gains = np.where(inside, -0.02, np.where(disc, 1, -0.2))[None].astype(np.float32)
    route = route_regions(gains, spacing_mm=(1.0,) * len(shape), budget=None, min_diameter_mm=3)
    kept = disc & (route == 0)
    assert kept.sum() > inside.sum() / 2
    assert not (kept & ~inside).any()


def test_of_two_holes_only_that_is_filled_for_which_the_gain_suffices():
    gains = np.full((1, 20, 30), -1, dtype=np.float32)
    gains[0, 2:18, 2:28] = 0.1
    gain = 0.1 * (16 * 26 - 2)
    gains[0, 9, 8], gains[0, 9, 20] = -0.6 * gain, -0.5 * gain
    route = route_regions(gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=2)
    assert route[9, 20] == 1
    assert np.count_nonzero(route) == 16 * 26 - 1


@pytest.mark.parametrize("limited", ["budget", "capacities"])
def test_a_hole_is_left_open_where_filling_it_exceeds_a_limit(limited):
    hole, disc = ball((40, 44), 1), ball((40, 44), 7)
    gains = np.where(hole, -1.5, one_expert(disc)).astype(np.float32)
    for voxels, filled in ((disc.sum() - 1, False), (disc.sum(), True)):
        share = (voxels + 0.5) / disc.size
        limits = {"budget": share} if limited == "budget" else {"budget": None, "capacities": [share]}
        route = route_regions(gains, spacing_mm=(1, 1), min_diameter_mm=4, **limits)
        assert np.array_equal(route > 0, disc if filled else disc & ~hole)


def test_what_goes_to_another_expert_in_a_hole_stays_there():
    core, gap, disc = (ball((50, 50), radius) for radius in (5, 6, 14))
    gains = np.concatenate([one_expert(disc & ~gap), one_expert(core)])
    route = route_regions(gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=7)
    assert np.array_equal(route > 0, disc)
    assert (route[core] == 2).all()
    assert (route[disc & ~gap] == 1).all()


def test_specks_vanish_and_what_they_would_have_taken_goes_to_regions():
    inside = ball((60, 60), 6, (40, 40))
    specks = np.zeros_like(inside)
    specks[2:30:9, 2:58:9] = True
    gains = np.where(specks, 5.0, one_expert(inside))
    route = route_regions(gains, spacing_mm=(1, 1), budget=inside.sum() / inside.size, min_diameter_mm=4)
    assert np.array_equal(route > 0, inside)
    voxels = route_regions(gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=0)
    assert np.array_equal(voxels > 0, inside | specks)


@pytest.mark.parametrize(("gap_gain", "joined"), [(-0.01, True), (-1.0, False), (-np.inf, False)])
def test_specks_that_lie_close_become_one_region_where_the_gaps_cost_little(gap_gain, joined):
    specks = np.zeros((1, 40, 40), dtype=bool)
    for row in (16, 20):
        for column in range(4, 36, 4):  # over many tiles of the search for clusters
            specks[0, row : row + 2, column : column + 2] = True
    gains = one_expert(specks, 1.0, gap_gain)
    route = route_regions(gains, spacing_mm=(9, 1, 1), budget=None, min_diameter_mm=4)
    assert bool(route.any()) == joined
    if joined:
        assert len(connected_pieces(route, spacing_mm=(9, 1, 1))) == 1
        assert (route[specks] == 1).all()
        # 8 mm apart they are too far from each other, but those 2 mm apart are not.
        wide = route_regions(gains, spacing_mm=(9, 1, 4), budget=None, min_diameter_mm=5)
        assert [region.voxels for region in connected_pieces(wide, spacing_mm=(9, 1, 4))] == [12] * 8


@pytest.mark.parametrize(("around", "joined"), [(-0.01, True), (-100.0, False)])
def test_specks_amid_great_harm_do_not_become_one_region(around, joined):
    gains = np.full((1, 30, 30), around, dtype=np.float32)
    gains[0, 10:16, 10:16] = -0.01
    for row, column in ((10, 10), (10, 14), (14, 10), (14, 14)):
        gains[0, row : row + 2, column : column + 2] = 1
    route = route_regions(gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=4)
    assert np.count_nonzero(route) == (36 if joined else 0)


@pytest.mark.parametrize(("gap_gain", "asked"), [(-0.1, True), (-0.9, False)])
def test_a_gap_is_asked_about_where_the_mean_gain_around_is_positive(gap_gain, asked):
    blobs = np.zeros((30, 40), dtype=bool)
    blobs[5:25, 5:19] = blobs[5:25, 21:35] = True
    gains = one_expert(blobs)
    gains[0, 5:25, 19:21] = gap_gain
    route = route_regions(gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=4)
    assert route[blobs].all()
    assert (route[7:23, 19:21] > 0).all() == (route[:, 19:21] > 0).any() == asked


def test_the_spacing_decides_what_is_too_small():
    inside = np.zeros((9, 20, 20), dtype=bool)
    inside[3:6, 7:13, 7:13] = True  # 108 voxels: a ball of 5.9 mm, with slices of 3 mm of 8.5 mm
    gains = one_expert(inside)
    asked = {
        spacing: np.count_nonzero(route_regions(gains, spacing_mm=spacing, budget=None, min_diameter_mm=7))
        for spacing in ((1, 1, 1), (3, 1, 1), (3, 0.5, 0.5))
    }
    assert asked == {(1, 1, 1): 0, (3, 1, 1): 108, (3, 0.5, 0.5): 0}


def test_a_region_of_just_the_minimum_size_is_kept_and_of_one_voxel_less_is_not():
    inside = np.zeros((20, 20), dtype=bool)
    inside[5:11, 5:11] = True
    minimum = math.sqrt(4 * 36 / math.pi)
    assert route_regions(one_expert(inside), spacing_mm=(1, 1), budget=None, min_diameter_mm=minimum).sum() == 36
    inside[5, 5] = False
    assert not route_regions(one_expert(inside), spacing_mm=(1, 1), budget=None, min_diameter_mm=minimum).any()


def test_of_slices_it_is_the_area_that_counts_and_not_their_distance():
    inside = ball((1, 30, 30), 4)
    gains = one_expert(inside)
    for distance in (0.1, 50.0):
        for minimum, kept in ((7.5, True), (8.5, False)):  # 49 voxels: a circle of 7.9 mm
            route = route_regions(gains, spacing_mm=(distance, 1, 1), budget=None, min_diameter_mm=minimum)
            assert bool(route.any()) == kept


def test_of_two_blobs_the_denser_is_taken_when_only_one_fits():
    large, small = ball((50, 60), 8, (24, 15)), ball((50, 60), 5, (24, 45))
    gains = np.maximum(one_expert(large, 0.5), one_expert(small, 0.6))
    route = route_regions(gains, spacing_mm=(1, 1), budget=(small.sum() + 0.5) / small.size, min_diameter_mm=5)
    assert np.array_equal(route > 0, small)


@pytest.mark.parametrize("shape", [(60, 61), (1, 60, 61), (24, 30, 31)])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("limited", ["budget", "capacities"])
def test_of_a_blob_beyond_the_limit_the_core_is_taken(shape, flat, limited):
    centre = [(length - 1) / 2 for length in shape]
    inside = np.zeros(shape, dtype=bool)
    inside[tuple(slice(0, 1) if length == 1 else slice(length // 5, -(length // 5)) for length in shape)] = True
    gains = one_expert(inside, 1.0 if flat else bump(shape, centre, 8))
    number = inside.sum() // 4
    share = (number + 0.5) / inside.size
    limits = {"budget": share} if limited == "budget" else {"budget": None, "capacities": [share]}
    spacing = (1.0,) * len(shape)
    route = route_regions(gains, spacing_mm=spacing, min_diameter_mm=5, **limits)
    assert np.count_nonzero(route) == number
    assert not route[~inside].any()
    (region,) = connected_pieces(route, spacing_mm=spacing)
    assert np.abs(np.subtract(region.centre, centre)).max() <= 1.5
    # Compact: not much longer than a ball of this size.
    assert max(region.size_mm) <= 1.3 * region.diameter_mm + 1


@pytest.mark.parametrize("seed", range(8))
def test_of_a_rugged_blob_that_is_too_large_a_part_of_the_minimum_size_is_taken(seed):
    generator = np.random.default_rng(seed)
    rugged = ndimage.gaussian_filter(generator.normal(size=(60, 60)), 3)
    gains = one_expert(ball((60, 60), 25), 1 + 0.5 * rugged / rugged.std())
    route = route_regions(gains, spacing_mm=(1, 1), budget=125 / 3600, min_diameter_mm=12)
    (region,) = connected_pieces(route, spacing_mm=(1, 1))
    assert 114 <= region.voxels <= 125


def test_the_part_of_a_blob_with_two_peaks_that_is_taken_is_connected():
    shape = (40, 60)
    peaks = np.maximum(bump(shape, (20, 18), 5), bump(shape, (20, 40), 5))
    gains = (np.maximum(peaks, 0.3 * ball(shape, 18)) - 0.2).astype(np.float32)[None]
    for voxels in (60, 200, 400):
        route = route_regions(gains, spacing_mm=(1, 1), budget=(voxels + 0.5) / 2400, min_diameter_mm=8)
        assert voxels * 0.8 <= np.count_nonzero(route) <= voxels
        assert all(mask.sum() >= 51 for _, mask in components(route))


def test_the_cores_of_many_blobs_are_taken_rather_than_few_of_them_whole():
    shape = (100, 100)
    gain = sum(bump(shape, (row, column), 6) for row in (20, 50, 80) for column in (20, 50, 80)) - 0.05
    gains = gain.astype(np.float32)[None]
    route = route_regions(gains, spacing_mm=(1, 1), budget=0.05, min_diameter_mm=5)
    assert len(connected_pieces(route, spacing_mm=(1, 1))) >= 7
    assert expected_gain(gains, route) >= 0.9 * np.sort(gain.ravel())[::-1][:500].sum()


def test_who_has_no_capacity_left_is_stood_in_for_by_the_next_best():
    left, right = ball((40, 60), 7, (20, 14)), ball((40, 60), 7, (20, 44))
    gains = np.concatenate([one_expert(left, 1.0), one_expert(left, 0.4)])
    gains[0][right], gains[1][right] = 0.8, 0.5
    route = route_regions(
        gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=6, capacities=[(left.sum() + 0.5) / left.size, None]
    )
    assert np.array_equal(route, np.where(left, 1, 2 * right))


def test_who_has_no_capacity_does_not_spoil_the_regions_of_others():
    inside = ball((40, 60), 7, (20, 30))
    gains = np.concatenate([np.random.default_rng(0).random((1, 40, 60), dtype=np.float32), one_expert(inside, 0.4)])
    limits = {"spacing_mm": (1, 1), "budget": inside.sum() / inside.size, "min_diameter_mm": 6}
    route = route_regions(gains, capacities=[0, None], **limits)
    assert np.count_nonzero(route == 2) > 0.9 * inside.sum()
    gains[0] = -np.inf
    assert np.array_equal(route, route_regions(gains, **limits))


def test_who_cannot_be_asked_is_not_asked():
    inside = ball((30, 30), 6)
    gains = np.concatenate([one_expert(inside, 0.9), one_expert(inside, 0.3)])
    gains[0] = -np.inf
    assert np.array_equal(route_regions(gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=5), 2 * inside)
    gains[1] = -np.inf
    assert not route_regions(gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=5).any()


def test_a_voxel_about_which_an_expert_cannot_be_asked_does_not_cost_the_region():
    inside = ball((30, 30), 6)
    gains = np.concatenate([one_expert(inside), np.full((1, 30, 30), -1, dtype=np.float32)])
    gains[:, 15, 17] = -np.inf, 0.1
    expected = inside.copy()
    expected[15, 17] = False
    assert np.array_equal(route_regions(gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=5), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_deferred_where_nobody_helps_or_nothing_may_be(shape):
    spacing = (1.0,) * len(shape)
    for gains in (np.zeros((2, *shape), np.float32), np.full((2, *shape), -1.0, np.float32)):
        assert not route_regions(gains, spacing_mm=spacing, budget=None, min_diameter_mm=3).any()
    gains = one_expert(ball(shape, 6))
    assert not route_regions(gains, spacing_mm=spacing, budget=0, min_diameter_mm=3).any()
    assert not route_regions(gains, spacing_mm=spacing, budget=None, min_diameter_mm=3, capacities=[0]).any()
    assert not route_regions(gains, spacing_mm=spacing, budget=None, min_diameter_mm=500).any()


def test_without_voxels_there_are_no_regions():
    route = route_regions(np.zeros((2, 0, 5, 5), np.float32), spacing_mm=(1, 1, 1), budget=0.5, min_diameter_mm=3)
    assert route.shape == (0, 5, 5)
    assert connected_pieces(route, spacing_mm=(1, 1, 1)) == []


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smallest", [0.0, 4.0])
def test_everything_is_deferred_where_everything_helps_and_nothing_limits(shape, smallest):
    gains = np.random.default_rng(0).random((1, *shape), dtype=np.float32) + 0.1
    for each in (gains, np.ones_like(gains)):
        assert route_regions(each, spacing_mm=SPACINGS[shape], budget=None, min_diameter_mm=smallest).all()


def test_what_is_far_away_has_no_influence():
    gains = random_gains((40, 44), 5, experts=2)
    gains[:, :6] = gains[:, -6:] = gains[:, :, :6] = gains[:, :, -6:] = -1
    alone = route_regions(gains, spacing_mm=(1, 1), budget=None, min_diameter_mm=3)
    among = np.full((2, 150, 160), -1, dtype=np.float32)
    among[:, 7:47, 9:53] = among[:, 101:141, 103:147] = gains
    route = route_regions(among, spacing_mm=(1, 1), budget=None, min_diameter_mm=3)
    assert alone.any()
    assert np.array_equal(route[7:47, 9:53], alone)
    assert np.array_equal(route[101:141, 103:147], alone)
    assert np.count_nonzero(route) == 2 * np.count_nonzero(alone)


def test_the_expected_gain_is_that_of_who_is_asked():
    gains = np.array([[[1, 2], [3, -np.inf]], [[10, 20], [-30, 40]]], dtype=np.float32)
    assert expected_gain(gains, np.array([[0, 1], [2, 2]])) == 2 - 30 + 40
    assert expected_gain(gains, np.zeros((2, 2), np.uint8)) == 0
    with pytest.raises(ValueError, match=r"routes must lie in \[0, 2\], got 0 to 3"):
        expected_gain(gains, np.array([[0, 1], [2, 3]]))
    with pytest.raises(ValueError, match=r"shapes differ: gains \(2, 2\), route \(2, 3\)"):
        expected_gain(gains, np.zeros((2, 3), np.uint8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 1.5}, r"a budget must be a share of the voxels in \[0, 1\], got 1.5"),
        ({"budget": float("nan")}, "a budget must be a share .* got nan"),
        ({"capacities": [0.5]}, "one capacity per expert, got 1 for 2 experts"),
        ({"capacities": [0.5, -0.1]}, "the capacity of expert 2 must be a share .* got -0.1"),
        ({"min_diameter_mm": -1}, "min_diameter_mm must be finite and at least 0, got -1"),
        ({"min_diameter_mm": float("nan")}, "min_diameter_mm .* got nan"),
        ({"min_diameter_mm": float("inf")}, "min_diameter_mm .* got inf"),
        ({"spacing_mm": (1, 1)}, r"spacing_mm must be 3 positive numbers.* got \(1.0, 1.0\)"),
        ({"spacing_mm": (1, 0, 1)}, "spacing_mm must be 3 positive numbers"),
        ({"spacing_mm": (1, float("nan"), 1)}, "spacing_mm must be 3 positive numbers"),
        ({"gains": np.zeros((5, 5), np.float32)}, r"got \(5, 5\)"),
        ({"gains": np.zeros((0, 5, 5), np.float32)}, r"J in \[1, 255\], got \(0, 5, 5\)"),
        ({"gains": np.full((2, 3, 3, 3), np.nan, np.float32)}, "finite or -inf, got nan"),
        ({"gains": np.full((2, 3, 3, 3), np.inf, np.float32)}, "finite or -inf, got inf"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    good = {"gains": np.ones((2, 3, 3, 3), np.float32), "spacing_mm": (1, 1, 1), "budget": 0.5, "min_diameter_mm": 2}
    with pytest.raises(ValueError, match=message):
        route_regions(**{**good, **wrong})


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_of_a_border_in_doubt_most_of_what_the_budget_can_gain_is_gained(share):
    """A rough shell is one large region: with all its gaps it exceeds the budget, and pieces of it leave out much."""
    grid = np.meshgrid(*(np.arange(length) - (length - 1) / 2 for length in (24, 40, 40)), indexing="ij")
    distance = np.sqrt(sum(np.square(each) for each in grid)) - 11
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=distance.shape), 0.5)
    gains = (np.exp(-(distance**2) / 2) * (1 + noise / noise.std()) - 0.1).astype(np.float32)[None]
    budget = share * np.mean(gains > 0)
    route = route_regions(gains, spacing_mm=(1, 1, 1), budget=budget, min_diameter_mm=4)
    best = np.sort(gains[gains > 0])[::-1][: int(budget * distance.size)]
    assert expected_gain(gains, route) > 0.9 * best.sum(dtype=float)
