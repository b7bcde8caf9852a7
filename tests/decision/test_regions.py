"""The one definition of a region, against a slow reference."""

import math

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_deferral.decision.regions import REACH_VOXELS, describe_regions, region_labels

SHAPES = [(9, 30, 34), (1, 40, 44), (40, 44)]


def regions_of(route, *, spacing_mm):
    return describe_regions(region_labels(route), route, spacing_mm=spacing_mm)


def reference(route):
    """Voxels of one expert whose gap is at most twice the reach are one region; grown from voxel to voxel."""
    labels = np.zeros(route.shape, dtype=np.int64)
    voxels = [tuple(each) for each in np.argwhere(route)]
    number = 0
    for first in voxels:
        if labels[first]:
            continue
        number += 1
        labels[first] = number
        waiting = [first]
        while waiting:
            voxel = waiting.pop()
            for other in voxels:
                near = max(abs(a - b) for a, b in zip(voxel, other, strict=True)) <= 2 * REACH_VOXELS + 1
                if near and route[other] == route[first] and not labels[other]:
                    labels[other] = number
                    waiting.append(other)
    return labels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_regions_are_those_of_the_reference(shape, seed):
    share = 60 / math.prod(shape)
    route = np.random.default_rng(seed).choice(3, size=shape, p=[1 - 2 * share, share, share]).astype(np.uint8)
    labels = region_labels(route)
    assert labels.dtype == np.int32
    assert np.array_equal(labels, reference(route))


@pytest.mark.parametrize(("gap", "number"), [(0, 1), (4, 1), (5, 2)])
@pytest.mark.parametrize("axis", range(3))
def test_pieces_of_one_expert_with_a_gap_of_up_to_four_voxels_are_one_region(gap, number, axis):
    route = np.zeros((12, 12, 12), dtype=np.uint8)
    places = np.full((2, 3), 5)
    places[:, axis] = 2, 3 + gap
    route[tuple(places.T)] = 1
    assert region_labels(route).max() == number
    route[tuple(places[1])] = 2
    assert region_labels(route).max() == 2


def test_regions_have_their_sizes_in_mm():
    route = np.zeros((4, 10, 12), dtype=np.uint8)
    route[1:3, 2:5, 4:8] = 2
    route[3, 5, 8] = 2  # touches a corner
    route[0, 9, 0:3] = 1
    route[1, 9, 2] = 3  # another expert's, though it touches
    first, second, third = regions_of(route, spacing_mm=(3.0, 0.5, 2.0))
    assert (first.expert, first.voxels, first.box, first.centre) == (1, 3, ((0, 1), (9, 10), (0, 3)), (0, 9, 1))
    assert first.size_mm == (3.0, 0.5, 6.0)
    assert first.diameter_mm == pytest.approx((6 * 9 / math.pi) ** (1 / 3))
    assert (second.expert, second.voxels, second.box) == (2, 25, ((1, 4), (2, 6), (4, 9)))
    assert second.size_mm == (9.0, 2.0, 10.0)
    assert (third.expert, third.voxels, third.centre) == (3, 1, (1, 9, 2))
    labels = region_labels(route)
    assert labels.dtype == np.int32
    assert np.array_equal(labels, np.select([route == 1, route == 2, route == 3], [1, 2, 3]))


def test_in_the_plane_the_diameter_is_that_of_a_circle():
    route = np.zeros((1, 8, 8), dtype=np.uint8)
    route[0, 1:4, 1:6] = 1
    for stack, spacing in ((route, (4.0, 0.5, 2.0)), (route[0], (0.5, 2.0))):
        (region,) = regions_of(stack, spacing_mm=spacing)
        assert region.diameter_mm == pytest.approx(math.sqrt(4 * 15 / math.pi))
        assert region.size_mm == tuple(each * mm for each, mm in zip((1, 3, 5)[-len(spacing) :], spacing, strict=True))


def test_the_centre_lies_inside_a_region_and_is_nearest_in_mm():
    distance = np.hypot(*(np.arange(21)[axis] - 10 for axis in (np.s_[:, None], np.s_[None])))
    ring = ((distance <= 8) & (distance > 5)).astype(np.uint8)
    (region,) = regions_of(ring, spacing_mm=(1, 4))
    assert ring[region.centre]
    assert region.centre in ((4, 10), (16, 10))  # the hole is 6 voxels of 4 mm wide, but of 1 mm high


def test_regions_are_in_the_order_of_their_first_voxels():
    for seed, shape in enumerate(SHAPES):
        route = np.random.default_rng(seed).choice(4, size=shape, p=[0.988, 0.004, 0.004, 0.004]).astype(np.uint8)
        labels = region_labels(route)
        regions = regions_of(route, spacing_mm=(1.0,) * len(shape))
        found, first = np.unique(labels, return_index=True)
        assert found.tolist() == list(range(len(regions) + 1))
        assert (np.diff(first[1:]) > 0).all()
        assert len(regions) == reference(route).max() > 3
        for number, region in enumerate(regions, start=1):
            assert region.voxels == np.count_nonzero(labels == number)
            assert (route[labels == number] == region.expert).all()
            assert labels[region.centre] == number
            assert region.box == tuple((each.start, each.stop) for each in ndimage.find_objects(labels)[number - 1])


def test_a_spacing_that_does_not_fit_the_route_is_refused():
    route = np.ones((3, 4), dtype=np.uint8)
    for spacing in ((1, 1, 1), (1, -1), (float("inf"), 1)):
        with pytest.raises(ValueError, match="spacing_mm must be 2 positive numbers"):
            regions_of(route, spacing_mm=spacing)
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        regions_of(route[0], spacing_mm=(1,))
