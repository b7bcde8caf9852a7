"""Rankings by the errors of other cases: what is known of a voxel from its place, or from the predicted mask.

Each voxel lies in a cell: of the position in the image (:func:`position_cells`), or of the predicted class and the
distance to the predicted border (:func:`mask_cells`). It is scored with the share of errors in its cell over other
cases. For that, cases are in :data:`FOLDS` folds by a hash of their group, and those of a fold are scored by the cases
of all other folds. The scores are known only after the last case, but numbers of voxels by fold and cell suffice, so
that cases are read once and parts can be merged exactly.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from nnunetv2_deferral.arrays import in_chunks
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.defaults import BUDGETS
from nnunetv2_deferral.evaluation.budgets import BudgetResult, BudgetStatistics
from nnunetv2_deferral.evaluation.overlap import Region
from nnunetv2_deferral.evaluation.score_bins import ScoreHistogram, score_bins

PRIOR_MAP, MASK_ONLY = "prior_map", "mask_only"
FOLDS = 4
CELLS = 2048  # FOLDS * CELLS whole numbers have bins of their own
_STEPS = {1: 32, 2: 32, 3: 12}  # along each axis, by the number of axes longer than one voxel
_LEVELS = 16  # of distance
_CLASSES = CELLS // _LEVELS


def position_cells(shape: Sequence[int]) -> np.ndarray:
    """The cell of each voxel by its position, as a share of the image: uint16 of this shape, below :data:`CELLS`.

    Cells of slices and of volumes are not told apart, so that one dataset should have either.
    """
    steps = _STEPS[min(max(sum(size > 1 for size in shape), 1), 3)]
    cells = np.zeros(shape, dtype=np.uint16)
    for axis, size in enumerate(shape):
        if size > 1:
            places = (np.arange(size) * steps // size).astype(np.uint16)
            cells *= np.uint16(steps)
            cells += places.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return cells


def mask_cells(model: np.ndarray, near_border: np.ndarray) -> np.ndarray:
    """The cell of each voxel by predicted class and distance to the predicted border.

    Args:
        model: The model's label map, integer of shape S; labels from 127 on share their cells.
        near_border: uint8 of shape S, see :func:`.sanity.near_border`.

    Returns:
        uint16 of shape S, below :data:`CELLS`.
    """
    cells = np.empty(model.shape, dtype=np.uint16)
    for some, labels, distances in in_chunks(cells, model, near_border):  # views of `cells`
        some[...] = np.minimum(labels, _CLASSES - 1)
        some *= np.uint16(_LEVELS)
        some += distances // (256 // _LEVELS)
    return cells


def fold_of(group: str) -> int:
    """The fold of the cases of a group, the same in every process."""
    return zlib.crc32(group.encode()) % FOLDS


class PriorErrors:
    """Accumulates, case by case, the statistics of one such ranking, at any budget and as a ranking of errors."""

    def __init__(self, regions: Sequence[Region]) -> None:
        """Start without cases.

        Args:
            regions: The foreground labels, or tuples of labels, to score.
        """
        self._budgets = BudgetStatistics(regions)  # with fold and cell as the score
        self._counts = np.zeros((2, FOLDS, CELLS), dtype=np.int64)

    def update(self, case: EvaluatedCase, cells: np.ndarray, answer: np.ndarray, group: str) -> None:
        """Add a case.

        Args:
            case: The case.
            cells: uint16 of the shape S of the case, below :data:`CELLS`; overwritten.
            answer: The labels of the expert who would be asked, integer of shape S.
            group: The group of the case, such as its patient: no case is scored by others of its group.
        """
        fold = fold_of(group)
        for some, model, reference, valid in in_chunks(cells, case.model, case.reference, case.valid):
            for counts, where in zip(self._counts, (valid, valid & (model != reference)), strict=True):
                counts[fold] += np.bincount(some[where], minlength=CELLS)
        cells += np.uint16(fold * CELLS)
        self._budgets.update(
            case.name, cells, reference=case.reference, model=case.before, answer=answer, valid=case.valid
        )

    def at(self, budgets: Iterable[float] = BUDGETS) -> list[BudgetResult]:
        """The system at each budget, see :meth:`.BudgetStatistics.at`."""
        return self._budgets.rescored(self._rates().reshape(-1)).at(budgets)

    @property
    def is_defined(self) -> bool:
        """Whether there are cases of other folds to score by: not if all groups are in one fold."""
        return int(np.count_nonzero(self._counts[0].sum(axis=1))) > 1

    def histogram(self) -> ScoreHistogram:
        """Numbers of voxels and of errors by score."""
        found, bins = ScoreHistogram(), score_bins(self._rates())
        for totals, counts in zip((found.voxels, found.errors), self._counts, strict=True):
            np.add.at(totals, bins, counts)
        return found

    @classmethod
    def merged(cls, parts: Sequence[PriorErrors], cases: Sequence[str]) -> PriorErrors:
        """The statistics of all cases of several parts, in the order of `cases`, which must be these cases."""
        merged = cls(parts[0]._budgets.regions)
        merged._budgets = BudgetStatistics.merged([part._budgets for part in parts], cases)
        merged._counts = np.sum([part._counts for part in parts], axis=0)
        return merged

    def _rates(self) -> np.ndarray:
        """The scores of the voxels of each fold and cell, float64 (F, C): shares of errors in the other folds.

        One voxel with their mean share is added to each cell, for cells in which they have none. Shares are relative to
        this mean: else the voxels of a fold with many errors, which the mean of the others lacks, would rank last.
        """
        voxels, errors = self._counts.sum(axis=1, keepdims=True) - self._counts
        mean = errors.sum(axis=1, keepdims=True) / np.maximum(voxels.sum(axis=1, keepdims=True), 1)
        rates: np.ndarray = (errors + mean) / (voxels + 1) / np.where(mean > 0, mean, 1)
        return rates
