r"""Weights of voxels: what a corrected voxel adds to Dice, and what a worsened one takes from it.

With the predicted area A of a class, the area B of the reference and the Dice D, recovering a missed voxel adds
(2 - D) / (A + B), and removing a false one D / (A + B). The reference is unknown; its expected area and the expected
Dice follow from the model's probabilities p:

.. math:: A = \sum [\text{predicted}], \quad B = \sum p, \quad
          D = \frac{2 \sum_\text{predicted} p}{A + B}
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nnunetv2_deferral.arrays import chunks_of, highest
from nnunetv2_deferral.evidence.expected_dice import dice_steps

_CERTAIN = 1e-12  # where all classes are certain, all others are as probable


class VoxelWeight(NamedTuple):
    """The weight of each voxel, each float32 that broadcasts to S.

    Attributes:
        right: What a right answer adds to the mean Dice of the case where the model is wrong.
        wrong: What a wrong answer takes from it where the model is right.
    """

    right: np.ndarray
    wrong: np.ndarray

    @classmethod
    def of(cls, weight: np.ndarray | float | VoxelWeight) -> VoxelWeight:
        """The weights, or one weight for both."""
        if isinstance(weight, VoxelWeight):
            return weight
        both = np.asarray(weight, dtype=np.float32)
        return cls(both, both)

    def flat(self, shape: Sequence[int]) -> VoxelWeight:
        """The weights of n voxels of that shape, each (n,); a single number for all is not copied."""
        right = _flat(self.right, shape)
        return VoxelWeight(right, right if self.wrong is self.right else _flat(self.wrong, shape))

    def at(self, where: slice) -> VoxelWeight:
        """The weights of some voxels, of weights (n,)."""
        right = self.right[where]
        return VoxelWeight(right, right if self.wrong is self.right else self.wrong[where])


def dice_weight(probabilities: np.ndarray, *, has_regions: bool) -> VoxelWeight:
    r"""What corrected and worsened voxels change in the mean foreground Dice of a case.

    With M_k = (2 - D_k) / (A_k + B_k) of a missed voxel of class k and F_k = D_k / (A_k + B_k) of a false one, 0 for
    the background, and the predicted class c among K:

    .. math:: w_\text{right} = F_c + \sum_{k \ne c} \frac{p_k}{1 - p_c} M_k, \quad
              w_\text{wrong} = M_c + \sum_{k \ne c} \frac{F_k}{K - 1}

    both divided by the number of foreground classes. Regions are predicted where p > 1/2, and wrong voxels are wrong in
    one of them, with a probability in proportion to min(p, 1 - p); wrong answers to right voxels in any.
    A + B counts as at least 2 :data:`.expected_dice.SMALLEST_AREA`.

    Args:
        probabilities: float32 (K, *S), at the resolution at which Dice is computed, of classes, background first, or of
            regions.
        has_regions: Whether the probabilities are those of regions.

    Returns:
        The weights, each of shape S.
    """
    shape, flat = probabilities.shape[1:], probabilities.reshape(len(probabilities), -1)
    missed, false = dice_steps(*_areas(flat, has_regions=has_regions))
    if has_regions:
        scored = len(flat)
    else:
        scored = len(flat) - 1
        missed[0] = false[0] = 0
    missed, false = (missed / max(scored, 1)).astype(np.float32), (false / max(scored, 1)).astype(np.float32)
    weigh = _of_regions if has_regions else _of_classes
    right, wrong = np.empty(flat.shape[1], dtype=np.float32), np.empty(flat.shape[1], dtype=np.float32)
    for where, part in _chunks(flat):
        right[where], wrong[where] = weigh(part, missed, false)
    return VoxelWeight(right.reshape(shape), wrong.reshape(shape))


def _flat(weight: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if weight.size == 1:
        return np.broadcast_to(weight.reshape(1), math.prod(shape))
    return np.broadcast_to(weight, shape).reshape(-1)


def _areas(probabilities: np.ndarray, *, has_regions: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B and the expected true positives, float64 (K,), from probabilities (K, n)."""
    number = len(probabilities)
    predicted, expected, hit = np.zeros(number), np.zeros(number), np.zeros(number)
    for _, part in _chunks(probabilities):
        expected += part.sum(1, dtype=np.float64)
        if has_regions:
            inside = part > 0.5
            predicted += inside.sum(1)
            hit += np.sum(part, axis=1, dtype=np.float64, where=inside)
        else:
            label = highest(part)
            predicted += np.bincount(label, minlength=number)
            hit += np.bincount(label, part.max(0), minlength=number)
    return predicted, expected, hit


def _of_classes(probabilities: np.ndarray, missed: np.ndarray, false: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of n voxels, from probabilities (K, n) and what errors are worth (K,)."""
    label = highest(probabilities)
    others = probabilities + np.float32(_CERTAIN)
    others[label, np.arange(label.size)] = 0
    rest = others.sum(0)
    right = np.divide(missed @ others, rest, out=np.zeros_like(rest), where=rest > 0)
    wrong = missed + (false.sum() - false) / max(len(false) - 1, 1)
    return false[label] + right, wrong[label]


def _of_regions(probabilities: np.ndarray, missed: np.ndarray, false: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`_of_classes`, from probabilities of regions."""
    inside = probabilities > 0.5
    error = np.maximum(np.where(inside, 1 - probabilities, probabilities), np.float32(_CERTAIN))
    missed, false = missed[:, None], false[:, None]
    right = (error * np.where(inside, false, missed)).sum(0) / error.sum(0)
    return right, np.where(inside, missed, false).mean(0)


def _chunks(flat: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Parts (K, m) of an array (K, n), float32, with their places."""
    for where in chunks_of(flat.shape[1], len(flat)):
        yield where, flat[:, where].astype(np.float32, copy=False)
