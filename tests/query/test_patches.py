"""Positions of boxes, their means, and the greedy choice, against slow references."""

from itertools import product

import numpy as np
import pytest

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.query.patches import Box, Grid

GRIDS = [
    ((7, 9, 8), (3, 2, 4), (1, 1, 1)),
    ((7, 9, 8), (3, 4, 2), (2, 3, 2)),
    ((1, 11, 6), (1, 5, 6), (1, 2, 3)),
    ((10,), (3,), (4,)),
]


@pytest.mark.parametrize(("shape", "size", "stride"), GRIDS)
def test_means_are_those_of_each_box(shape, size, stride):
    values = np.random.default_rng(0).random(shape)
    grid = Grid(shape, size, stride)
    means = grid.means(values.astype(np.float32))
    assert means.shape == grid.positions
    for place in np.ndindex(grid.positions):
        assert means[place] == pytest.approx(values[grid.box(place).slices].mean(), rel=1e-6)


@pytest.mark.parametrize(("shape", "size", "stride"), GRIDS)
def test_boxes_begin_at_multiples_of_the_stride_and_at_the_last_place(shape, size, stride):
    grid = Grid(shape, size, stride)
    for starts, length, edge, step in zip(grid.starts, shape, size, stride, strict=True):
        assert sorted({*range(0, length - edge + 1, step), length - edge}) == starts.tolist()


@pytest.mark.parametrize(("shape", "size", "stride"), GRIDS)
def test_free_positions_are_those_whose_boxes_share_no_voxel_with_what_is_taken(shape, size, stride):
    grid, random = Grid(shape, size, stride), np.random.default_rng(1)
    starts = tuple(int(random.integers(0, length)) for length in shape)
    taken = Box(starts, tuple(min(start + 2, length) for start, length in zip(starts, shape, strict=True)))
    covered = np.zeros(shape, dtype=bool)
    covered[taken.slices] = True
    free = grid.free([taken])
    for place in np.ndindex(grid.positions):
        assert free[place] != covered[grid.box(place).slices].any()
        assert free[place] != grid.box(place).overlaps(taken)


def slow_greedy(grid: Grid, values: np.ndarray, most: int) -> list[tuple[int, ...]]:
    chosen: list[tuple[int, ...]] = []
    for place in sorted(product(*map(range, grid.positions)), key=lambda place: -values[place]):
        if len(chosen) < most and not any(grid.box(place).overlaps(grid.box(other)) for other in chosen):
            chosen.append(place)
    return chosen


@pytest.mark.parametrize("most", [0, 1, 4, 1000])
@pytest.mark.parametrize(("shape", "size", "stride"), GRIDS)
def test_the_greedy_choice_takes_the_best_box_that_is_left(shape, size, stride, most):
    grid = Grid(shape, size, stride)
    values = np.random.default_rng(2).random(grid.positions)
    free = grid.free([])
    assert grid.greedy(values, free, most, values) == slow_greedy(grid, values, most)


def test_equal_values_are_taken_in_the_order_of_the_second_key():
    grid = Grid((3,), (1,), (1,))
    assert grid.greedy(np.zeros(3), grid.free([]), 3, np.array([0.1, 0.3, 0.2])) == [(1,), (2,), (0,)]


@pytest.mark.parametrize(
    ("size", "stride", "fault"),
    [
        ((3, 9, 2), (1, 1, 1), r"the box of \(3, 9, 2\) voxels is larger than the image of \(4, 8, 8\)"),
        ((3, 0, 2), (1, 1, 1), "a box needs 3 numbers of at least 1"),
        ((3, 2), (1, 1, 1), "a box needs 3 numbers"),
        ((3, 2, 2), (1, 1, 0), "a stride needs 3 numbers of at least 1"),
    ],
)
def test_what_is_no_box_of_the_image_is_refused(size, stride, fault):
    with pytest.raises(InputError, match=fault):
        Grid((4, 8, 8), size, stride)
