r"""Answer tables: how experts answer inside and outside of a structure, where the prior is as it is.

T[z, y, a] is the joint probability of the J experts' answers a (each inside or outside) given the truth y in zone z of
the prior. It is counted on validation cases and shrunk: the joint frequencies towards the product of the experts' own,
these towards those of all zones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logit

from nnunetv2_deferral.errors import InputError

ZONE_EDGES = (0.02, 0.2, 0.5, 0.8, 0.98)  # of the prior probability
NUM_ZONES = len(ZONE_EDGES) + 1
SHRINKAGE = 50.0  # voxels


def zones(prior: np.ndarray) -> np.ndarray:
    """The zones, int8 in [0, `NUM_ZONES`), of prior logits of any shape."""
    return np.digitize(prior, logit(ZONE_EDGES)).astype(np.int8)


def pattern_of(inside: np.ndarray) -> np.ndarray:
    """The number of a combination of answers, int64 (n,): bool (k, n) as binary digits, the first expert's highest."""
    number = np.zeros(inside.shape[1:], dtype=np.int64)
    for answer in inside:
        number = number * 2 + answer
    return number


@dataclass(frozen=True)
class AnswerTables:
    """The answer tables of S structures and J experts.

    Attributes:
        joint: float64 (S, `NUM_ZONES`, 2, 2^J), T[z, y, a] with a as in :func:`pattern_of`; positive, and each row
            over a sums to 1.

    Raises:
        InputError: If the shape is another, or a row is not a distribution with positive probabilities.
    """

    joint: np.ndarray

    def __post_init__(self) -> None:
        shape, patterns = self.joint.shape, self.joint.shape[-1] if self.joint.ndim else 0
        if len(shape) != 4 or shape[1:3] != (NUM_ZONES, 2) or patterns < 2 or patterns & (patterns - 1):
            raise InputError(f"answer tables must have shape (S, {NUM_ZONES}, 2, 2^J), got {shape}")
        if not ((self.joint > 0).all() and np.allclose(self.joint.sum(-1), 1, atol=1e-6)):
            raise InputError("each row of an answer table must consist of positive probabilities that sum to 1")

    @property
    def num_experts(self) -> int:
        """The number J of experts."""
        return self.joint.shape[-1].bit_length() - 1

    def of(self, experts: Sequence[int]) -> np.ndarray:
        """The joint probabilities of some experts' answers, float64 (S, `NUM_ZONES`, 2, 2^k).

        Args:
            experts: Indices of k experts from 0, without repetition; the order is that of the binary digits.
        """
        key = tuple(experts)
        if key not in self._marginals:
            others = tuple(3 + expert for expert in range(self.num_experts) if expert not in key)
            digits = self.joint.reshape(*self.joint.shape[:3], *[2] * self.num_experts).sum(axis=others)
            # What is left of the experts' axes is in their order; it is to be in that of `experts`.
            ordered = digits.transpose(0, 1, 2, *(3 + sorted(key).index(expert) for expert in key))
            self._marginals[key] = ordered.reshape(*self.joint.shape[:3], -1)
        return self._marginals[key]

    @cached_property
    def _marginals(self) -> dict[tuple[int, ...], np.ndarray]:
        return {}

    def log_ratios(self, structure: int, zone: np.ndarray, inside: np.ndarray, answered: np.ndarray) -> np.ndarray:
        """The evidence of the answers at each voxel, log T[z, 1, a] - log T[z, 0, a] of those who answered.

        Args:
            structure: Index of the structure.
            zone: int (n,), see :func:`zones`.
            inside: Bool (J, n), the answers; ignored where not answered.
            answered: Bool (J, n).

        Returns:
            float32 (n,), 0 where nobody answered.
        """
        found = np.zeros(zone.shape, dtype=np.float32)
        for experts, where in by_combination(answered):
            if experts:
                table = self.of(experts)[structure]
                pattern = pattern_of(inside[list(experts)][:, where])
                found[where] = np.log(table[zone[where], 1, pattern]) - np.log(table[zone[where], 0, pattern])
        return found


def by_combination(chosen: np.ndarray) -> list[tuple[tuple[int, ...], np.ndarray]]:
    """Group voxels by the experts chosen at them: for bool (J, n), the experts' indices and the voxels' (m,)."""
    number = pattern_of(chosen)
    groups = []
    for each in np.flatnonzero(np.bincount(number)):
        where = np.flatnonzero(number == each)
        groups.append((tuple(int(expert) for expert in np.flatnonzero(chosen[:, where[0]])), where))
    return groups


def fit_tables(
    zone: np.ndarray, truth: np.ndarray, inside: np.ndarray, answered: np.ndarray, *, exchangeable: bool = False
) -> np.ndarray:
    """The table of one structure, from voxels with a known truth.

    Args:
        zone: int (n,), see :func:`zones`.
        truth: Bool (n,), whether the voxel is inside.
        inside: Bool (J, n), the experts' answers; ignored where not answered.
        answered: Bool (J, n). Joint frequencies are counted where all experts answered.
        exchangeable: Whether the experts are anonymous ("rater1" is a slot and not a person): all get the same
            frequencies, averaged over permutations.

    Returns:
        float64 (`NUM_ZONES`, 2, 2^J), T[z, y, a]. Without voxels, experts who are right with a probability of 3/4.
    """
    experts = len(inside)
    digits = np.arange(1 << experts)[:, None] >> np.arange(experts)[::-1] & 1  # (2^J, J), as in pattern_of
    everyone = answered.all(0)
    table = np.empty((NUM_ZONES, 2, 1 << experts))
    for outcome in (0, 1):
        known = answered & (truth == outcome)
        hits, number = (inside & known).sum(1), known.sum(1)
        if exchangeable:
            hits, number = np.full(experts, hits.mean()), np.full(experts, number.mean())
        overall = (hits + 0.5 + outcome) / (number + 2)
        for place in range(NUM_ZONES):
            here = known & (zone == place)
            hits, number = (inside & here).sum(1), here.sum(1)
            if exchangeable:
                hits, number = np.full(experts, hits.mean()), np.full(experts, number.mean())
            own = (hits + SHRINKAGE * overall) / (number + SHRINKAGE)
            product = np.where(digits == 1, own, 1 - own).prod(1)
            joint = here.all(0) & everyone
            counts = np.bincount(pattern_of(inside[:, joint]), minlength=1 << experts).astype(np.float64)
            if exchangeable:
                positive = digits.sum(1)
                counts = (np.bincount(positive, counts) / np.bincount(positive))[positive]
            table[place, outcome] = (counts + SHRINKAGE * product) / (counts.sum() + SHRINKAGE)
    return table
