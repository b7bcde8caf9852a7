"""Edits of an expert's answers, and their checks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from nnunetv2_deferral.text import shown

MAX_SECONDS_PER_SAVE = 3600.0
_MAX_COUNT = 2**53  # larger numbers are not exact in JavaScript


class RefusedError(Exception):
    """A request that was refused without any change on disk.

    Attributes:
        status: The HTTP status.
        reason: The reason shown to the user.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change to be saved.

    Attributes:
        revision: The revision that the change is based on.
        key: Identifier of the save, chosen by the page, by which repeated requests are recognised.
        runs: int64 (N, 3): start and length in the flat volume in the browser's orientation, and label.
        done: The numbers of the answered regions.
        seconds: Working time since the last save.
        remarks: Unchecked content for :func:`.parse_remarks`; None if the remarks stay as they are.
    """

    revision: int
    key: str
    runs: np.ndarray
    done: tuple[int, ...]
    seconds: float
    remarks: Any = None

    @cached_property
    def digest(self) -> str:
        """A digest of what is to be saved, to tell a repeated request from another one with the same key."""
        digest = hashlib.sha256(f"{self.done} {self.seconds} {self.remarks}".encode())
        digest.update(self.runs.tobytes())
        return digest.hexdigest()


def parse_edit(content: Any, max_runs: int) -> Edit:
    """Parse the edit in the body of a request.

    Args:
        content: The parsed body.
        max_runs: The largest number of runs: that of the voxels that the expert is asked about.

    Raises:
        RefusedError: If a field is missing or invalid.
    """
    if not isinstance(content, Mapping):
        raise RefusedError(400, "The request is not a JSON object.")
    revision, key, runs = content.get("revision"), content.get("key"), content.get("runs")
    done, seconds = content.get("done"), content.get("seconds")
    if not is_count(revision):
        raise RefusedError(400, f"revision must be a whole number, got {shown(revision)}.")
    if not isinstance(key, str) or not 8 <= len(key) <= 64:
        raise RefusedError(400, "key must be a string of 8 to 64 characters.")
    if not isinstance(runs, list):
        raise RefusedError(400, _RUNS)
    if len(runs) > max_runs:
        raise RefusedError(422, f"There are {len(runs)} runs, but you are asked about {max_runs} voxels.")
    if not isinstance(done, list) or not all(map(is_count, done)):
        raise RefusedError(400, "done must be a list of region numbers.")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MAX_SECONDS_PER_SAVE:
        raise RefusedError(400, f"seconds must be between 0 and {MAX_SECONDS_PER_SAVE:.0f}, got {shown(seconds)}.")
    return Edit(
        revision=int(revision),  # type: ignore[arg-type]
        key=key,
        runs=_parse_runs(runs),
        done=tuple(sorted(set(done))),
        seconds=float(seconds),
        remarks=content.get("remarks"),
    )


def apply_edit(
    edit: Edit, labels: np.ndarray, asked: np.ndarray, shape: Sequence[int], known_labels: Sequence[int], regions: int
) -> np.ndarray:
    """The expert's labels after an edit.

    Args:
        edit: The edit.
        labels: uint8 (V,), the current labels of the V voxels that the expert is asked about.
        asked: int64 (V,), the indices of these voxels in the flat volume, ascending.
        shape: (Z, Y, X) of the volume.
        known_labels: All labels including background.
        regions: The number of the expert's regions.

    Returns:
        The changed labels as a copy.

    Raises:
        RefusedError: If a run lies outside the volume, overlaps another, has an unknown label or contains a voxel that
            the expert is not asked about; or if `edit.done` contains a region that does not exist.
    """
    start, length, label = edit.runs.T
    if (length < 1).any():
        raise RefusedError(422, "A run must have at least one voxel.")
    size = int(np.prod(shape))
    if (start >= size).any() or (length > size - start).any():
        raise RefusedError(422, f"An edit lies outside the volume of {_by(shape)} voxels.")
    if (start[1:] < start[:-1] + length[:-1]).any():
        raise RefusedError(422, "Runs must be in order and must not overlap.")
    unknown = np.setdiff1d(label, known_labels)
    if unknown.size:
        raise RefusedError(422, f"The dataset has no label {', '.join(map(str, unknown[:5]))}.")
    if edit.done and not 1 <= min(edit.done) <= max(edit.done) <= regions:
        raise RefusedError(422, f"There are {regions} regions, but region {max(edit.done)} is marked as answered.")
    first, end = np.searchsorted(asked, start), np.searchsorted(asked, start + length)
    outside = length - (end - first)
    if outside.any():
        run = int(np.argmax(outside > 0))
        inside = asked[first[run] : end[run]]
        differs = np.flatnonzero(inside != start[run] + np.arange(inside.size))
        voxel = start[run] + (differs[0] if differs.size else inside.size)
        raise RefusedError(
            422,
            f"{outside.sum()} of the {length.sum()} changed voxels are outside your regions, "
            f"the first at {place_text(np.unravel_index(int(voxel), tuple(shape)))}.",
        )
    places = np.repeat(first - np.cumsum(length) + length, length) + np.arange(int(length.sum()))
    changed = labels.copy()
    changed[places] = np.repeat(label, length).astype(labels.dtype)
    return changed


def check_whole_mask(mask: np.ndarray, model: np.ndarray, asked: np.ndarray, known_labels: Sequence[int]) -> np.ndarray:
    """An expert's labels from a mask of the whole volume, for example one drawn in another program.

    Args:
        mask: Integer (Z, Y, X), in the browser's orientation.
        model: The model's mask, same shape.
        asked: int64 (V,), the indices in the flat volume of the voxels that the expert is asked about.
        known_labels: All labels including background.

    Returns:
        The labels of these voxels, uint8 (V,).

    Raises:
        RefusedError: If the mask has unknown labels, or differs from the model's mask where the expert is not asked.
    """
    unknown = np.setdiff1d(mask, known_labels)
    if unknown.size:
        raise RefusedError(
            422, f"The file contains labels that are not in the dataset: {', '.join(map(str, unknown[:5]))}."
        )
    differs = (mask != model).ravel()
    differs[asked] = False
    outside = np.flatnonzero(differs)
    if outside.size:
        raise RefusedError(
            422,
            f"The file differs from the model's mask in {outside.size} voxels outside your regions, the first at "
            f"{place_text(np.unravel_index(outside[0], mask.shape))}. Start from the mask that can be downloaded here.",
        )
    return mask.ravel()[asked].astype(np.uint8)


def runs_between(before: np.ndarray, after: np.ndarray, asked: np.ndarray) -> list[list[int]]:
    """The differences between two sets of labels (V,) as :attr:`Edit.runs`; adjacent voxels of a label are joined."""
    at = np.flatnonzero(before != after)
    if not at.size:
        return []
    voxels, labels = asked[at], after[at]
    first = np.flatnonzero(np.r_[True, (np.diff(voxels) != 1) | (np.diff(labels.astype(np.int64)) != 0)])
    lengths = np.diff(np.r_[first, at.size])
    return np.stack([voxels[first], lengths, labels[first]], axis=1).astype(int).tolist()


def is_count(value: Any) -> bool:
    """Whether a value from JSON is a whole number from 0 that JavaScript represents exactly."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_COUNT


_RUNS = "runs must be a list of [start, length, label], non-negative whole numbers."


def _parse_runs(runs: list[Any]) -> np.ndarray:
    """Runs as an array; there may be a million, so that nothing here is done in a loop."""
    if set(map(type, runs)) - {list} or set(map(len, runs)) - {3}:
        raise RefusedError(400, _RUNS)
    numbers = list(chain.from_iterable(runs))
    if set(map(type, numbers)) - {int} or not 0 <= min(numbers, default=0) <= max(numbers, default=0) < _MAX_COUNT:
        raise RefusedError(400, _RUNS)
    return np.array(numbers, dtype=np.int64).reshape(-1, 3)


def place_text(index: Sequence[Any]) -> str:
    """A voxel (z, y, x) in words, counted from 1."""
    z, y, x = (int(at) + 1 for at in index)
    return f"slice {z}, row {y}, column {x}"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
