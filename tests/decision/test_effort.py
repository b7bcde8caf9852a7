"""The working time of regions: the length of their borders, against shapes of known size and a slow reference."""

import math
from itertools import product

import numpy as np
import pytest
from scattered import SHAPES, scattered_route
from skimage.measure import perimeter_crofton

from nnunetv2_deferral.decision.effort import WorkTime, border_lengths_mm, edit_cm, measure
from nnunetv2_deferral.decision.regions import region_labels


def ellipse(shape, spacing, radii, turned=0.0):
    """A slice with an ellipse of these radii in mm."""
    y, x = (np.arange(n) - n / 2 + 0.1 for n in shape)
    y, x = np.meshgrid(y * spacing[0], x * spacing[1], indexing="ij")
    down, right = y * math.cos(turned) - x * math.sin(turned), y * math.sin(turned) + x * math.cos(turned)
    return ((down / radii[0]) ** 2 + (right / radii[1]) ** 2 <= 1).astype(np.int32)


def ramanujan(a, b):
    return math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))


def reference(labels, spacing):
    """Line by line through the voxels of each region, in each slice."""
    _, dy, dx = spacing
    diagonal = math.atan2(dy, dx)
    steps = {(0, 1): diagonal, (1, 0): math.pi / 2 - diagonal, (1, 1): math.pi / 4, (1, -1): math.pi / 4}
    lengths = []
    for number in range(1, labels.max() + 1):
        inside = {tuple(each) for each in np.argwhere(labels == number)}
        length = 0.0
        for (z, y, x), ((down, right), angle) in product(inside, steps.items()):
            ends = [(z, y + down, x + right) not in inside, (z, y - down, x - right) not in inside]
            length += sum(ends) / 2 * angle * dy * dx / math.hypot(down * dy, right * dx)
        lengths.append(length)
    return lengths


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 0.7), (1.0, 2.0), (1.5, 0.5)])
@pytest.mark.parametrize("turned", [0.0, 0.3, 0.8])
def test_the_border_of_an_ellipse_is_its_circumference(spacing, turned):
    shape = [round(70 / each) for each in spacing]
    labels = ellipse(shape, spacing, (30.0, 18.0), turned)[np.newaxis]
    assert border_lengths_mm(labels, (5.0, *spacing)) == pytest.approx([ramanujan(30, 18)], rel=0.04)


@pytest.mark.parametrize("turned", [0.0, math.pi / 4])
def test_the_border_of_a_square_does_not_depend_much_on_how_it_lies(turned):
    y, x = np.mgrid[-60:61, -60:61]
    down, right = y * math.cos(turned) - x * math.sin(turned), y * math.sin(turned) + x * math.cos(turned)
    labels = (np.maximum(abs(down), abs(right)) <= 40).astype(np.int32)[np.newaxis]
    assert border_lengths_mm(labels, (1, 1, 1)) == pytest.approx([4 * 80], rel=0.06)


def test_the_borders_of_all_slices_and_of_holes_count():
    plane = ellipse((60, 60), (1, 1), (25.0, 25.0)) - ellipse((60, 60), (1, 1), (10.0, 10.0))
    labels = np.stack([plane, np.zeros_like(plane), plane, plane])
    assert border_lengths_mm(labels, (9.0, 1, 1)) == pytest.approx([3 * 2 * math.pi * (25 + 10)], rel=0.03)


def test_with_square_pixels_it_is_that_of_scikit_image():
    plane = ellipse((60, 60), (1, 1), (25.0, 11.0), 0.4)
    assert border_lengths_mm(plane[np.newaxis], (1, 1, 1)) == pytest.approx([perimeter_crofton(plane, directions=4)])


@pytest.mark.parametrize("seed", range(3))
def test_borders_of_many_regions_are_those_of_the_slow_reference(seed):
    labels = region_labels(scattered_route(np.random.default_rng(seed), SHAPES[".nii.gz"]))
    found = border_lengths_mm(labels, (2.5, 1.1, 0.7))
    assert found.size == labels.max() > 5
    assert found == pytest.approx(reference(labels, (2.5, 1.1, 0.7)))


def test_a_region_at_the_edge_of_the_image_ends_there():
    whole, inner = np.ones((1, 9, 9), np.int32), np.zeros((1, 11, 11), np.int32)
    inner[0, 1:10, 1:10] = 1
    assert border_lengths_mm(whole, (1, 1, 1)) == pytest.approx(border_lengths_mm(inner, (1, 1, 1)))


def test_where_there_is_no_region_there_is_no_border():
    assert border_lengths_mm(np.zeros((2, 3, 4), np.int32), (1, 1, 1)).shape == (0,)
    with pytest.raises(ValueError, match="spacing_mm must be 3 positive numbers, one per axis"):
        border_lengths_mm(np.zeros((2, 3, 4), np.int32), (1, 0, 1))


def test_an_edit_takes_the_border_times_its_probability():
    time = WorkTime(minutes_per_region=0.5, minutes_per_cm=0.1)
    assert time.minutes(edit_cm(0.25, 80.0)) == pytest.approx(0.5 + 0.1 * 0.25 * 8)
    assert time.minutes(edit_cm(0.0, 80.0)) == 0.5


def test_by_default_a_certain_edit_of_typical_length_takes_two_minutes_and_a_look():
    assert WorkTime().minutes(edit_cm(1.0, None)) == pytest.approx(2.15)


def test_regions_are_measured_by_their_voxels():
    labels = np.array([[[1, 1, 0, 0, 0, 0, 2]]], np.int32)
    gain, probability = np.array([[[1, 2, 9, 9, 9, 9, 4.0]]]), np.array([[[0.2, 0.4, 1, 1, 1, 1, 0.5]]])
    found = measure(labels, gain, probability, WorkTime(), spacing_mm=None)
    assert found.voxels.tolist() == [2, 1]
    assert found.expected_gain.tolist() == [3, 4]
    assert found.probability == pytest.approx([0.3, 0.5])
    assert found.border_mm is None
    assert found.minutes == pytest.approx([0.15 + 0.3 * 2, 0.15 + 0.5 * 2])
