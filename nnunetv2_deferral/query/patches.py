"""Boxes of one size in an image: where they may lie, their mean scores, and the greedy choice of disjoint ones.

A box is given by its start along each axis. Boxes start at multiples of a stride, and along each axis also at the last
place at which they fit, so that borders can be reached. The stride is part of a strategy with noise: among more
positions the largest noise is larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.errors import InputError


class Box(NamedTuple):
    """A box in an image.

    Attributes:
        starts: Its first voxel along each axis.
        stops: The voxel after its last along each axis.
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index."""
        return tuple(map(slice, self.starts, self.stops))

    def overlaps(self, other: Box) -> bool:
        """Whether the boxes have a voxel in common."""
        return all(
            start < other_stop and other_start < stop
            for start, stop, other_start, other_stop in zip(*self, *other, strict=True)
        )


class Grid:
    """The positions that boxes of one size may have in an image."""

    def __init__(self, shape: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> None:
        """Describe the positions.

        Args:
            shape: Shape S of the image.
            size: Edges of the boxes in voxels, at least 1, one for each axis of S.
            stride: Distance of neighbouring positions in voxels, at least 1, one for each axis of S.

        Raises:
            InputError: If a number of axes differs, an edge or stride is less than 1, or the box is larger than the
                image.
        """
        self.shape, self.size, self.stride = (tuple(int(each) for each in of) for of in (shape, size, stride))
        for name, of in (("box", self.size), ("stride", self.stride)):
            if len(of) != len(self.shape) or min(of, default=1) < 1:
                raise InputError(f"a {name} needs {len(self.shape)} numbers of at least 1 for an image, got {of}")
        if any(edge > length for edge, length in zip(self.size, self.shape, strict=True)):
            raise InputError(f"the box of {self.size} voxels is larger than the image of {self.shape}")
        self.starts = tuple(
            np.unique(np.append(np.arange(0, length - edge + 1, step), length - edge))
            for length, edge, step in zip(self.shape, self.size, self.stride, strict=True)
        )

    @property
    def positions(self) -> tuple[int, ...]:
        """The number of positions along each axis, G."""
        return tuple(map(len, self.starts))

    def box(self, place: Sequence[int]) -> Box:
        """The box at an index of G."""
        starts = tuple(int(of[at]) for of, at in zip(self.starts, place, strict=True))
        return Box(starts, tuple(start + edge for start, edge in zip(starts, self.size, strict=True)))

    def means(self, values: np.ndarray) -> np.ndarray:
        """The mean of a map over the box at each position.

        Args:
            values: Real of shape S.

        Returns:
            float64 of shape G.

        Raises:
            InputError: If the shape is another.
        """
        if values.shape != self.shape:
            raise InputError(f"a map of shape {self.shape} is required, got {values.shape}")
        found = values
        for axis, (starts, edge) in enumerate(zip(self.starts, self.size, strict=True)):
            sums = np.cumsum(found, axis=axis, dtype=np.float64)
            found = sums.take(starts + edge - 1, axis)
            inner = tuple(slice(None) if other != axis else slice(1, None) for other in range(len(self.shape)))
            found[inner] -= sums.take(starts[1:] - 1, axis)  # the first box starts at 0
            found /= edge
        return found

    def overlapping(self, box: Box) -> tuple[slice, ...]:
        """The index, in G, of all positions whose boxes overlap a box, which may have another size."""
        return tuple(
            slice(int(np.searchsorted(of, start - edge, "right")), int(np.searchsorted(of, stop, "left")))
            for of, start, stop, edge in zip(self.starts, *box, self.size, strict=True)
        )

    def free(self, taken: Iterable[Box]) -> np.ndarray:
        """Where no box of `taken` is overlapped, bool of shape G."""
        found = np.ones(self.positions, dtype=bool)
        for box in taken:
            found[self.overlapping(box)] = False
        return found

    def greedy(self, values: np.ndarray, free: np.ndarray, most: int, ties: np.ndarray) -> list[tuple[int, ...]]:
        """Positions of disjoint boxes, each the best of those that are left.

        Args:
            values: float of shape G; -inf is allowed, NaN is not.
            free: bool of shape G, the positions that may be taken. Positions that overlap those chosen become False.
            most: The largest number of boxes.
            ties: float of shape G; equal values are taken in descending order of it.

        Returns:
            Indices of G in descending order of their values; fewer than `most` if there is no more room.
        """
        chosen: list[tuple[int, ...]] = []
        places = np.flatnonzero(free)
        order = places[np.lexsort((ties.reshape(-1)[places], values.reshape(-1)[places]))[::-1]]
        for place in order:
            if len(chosen) == most:
                break
            index = tuple(int(each) for each in np.unravel_index(place, free.shape))
            if free[index]:
                chosen.append(index)
                free[self.overlapping(self.box(index))] = False
        return chosen
