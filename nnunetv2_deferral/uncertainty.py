"""Voxel-wise uncertainty from probabilities, as nnU-Net saves them with `--save_probabilities` (`--npz`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import entr

from nnunetv2_deferral.arrays import in_chunks


def one_minus_max(probabilities: np.ndarray, *, has_regions: bool) -> np.ndarray:
    """1 - the largest softmax probability; with regions, min(p, 1 - p) of the least certain region.

    Args:
        probabilities: Floating (K, *S): of classes, summing to 1, or of regions, each in [0, 1].
        has_regions: Whether the probabilities are those of regions.

    Returns:
        float32 of shape S, in [0, 1).
    """
    if has_regions:
        return np.minimum(probabilities, 1 - probabilities).max(0).astype(np.float32)
    return np.clip(1 - probabilities.max(0), 0, 1).astype(np.float32)


def entropy(probabilities: np.ndarray, *, has_regions: bool) -> np.ndarray:
    """Entropy of the softmax in nats; with regions, the sum of the binary entropies of all regions.

    Args:
        probabilities: See :func:`one_minus_max`.
        has_regions: See :func:`one_minus_max`.

    Returns:
        float32 of shape S, not negative.
    """
    total = entr(probabilities).sum(0)
    if has_regions:
        total = total + entr(1 - probabilities).sum(0)
    return np.maximum(total, 0).astype(np.float32)


def times_doubt(
    uncertainty: np.ndarray, right: np.ndarray, calibrator: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """An uncertainty u times 1 - c, with the confidence c of a head that predicts whether the model is right.

    Args:
        uncertainty: Floating, shape S.
        right: Probability that the model is right, floating of shape S in [0, 1], or NaN where nothing was predicted.
        calibrator: Maps these probabilities to calibrated ones; None for none.

    Returns:
        float32 of shape S, u (1 - c); 0 where nothing was predicted.
    """
    found, start = np.empty(uncertainty.size, dtype=np.float32), 0
    for some, said in in_chunks(uncertainty, right):
        confidence = np.clip(np.nan_to_num(said, nan=1.0), 0, 1)
        doubt = 1 - (confidence if calibrator is None else calibrator(confidence))
        found[start : start + some.size] = np.where(np.isnan(said), 0, some * doubt)
        start += some.size
    return found.reshape(uncertainty.shape)


class MutualInformation:
    """The mutual information of label and network in an ensemble, of which one network is in memory at a time.

    It is high where networks contradict each other, and 0 where all are equally uncertain. Kept are the sum of the
    probabilities and of their entropies, however many networks there are.

    Example:
        Two networks that are certain of different classes, and two that are both uncertain:

        >>> information = MutualInformation(has_regions=False)
        >>> information.add(np.array([[1.0, 0.5], [0.0, 0.5]], dtype=np.float32))
        >>> information.add(np.array([[0.0, 0.5], [1.0, 0.5]], dtype=np.float32))
        >>> information.result()
        array([1., 0.], dtype=float32)
    """

    def __init__(self, *, has_regions: bool) -> None:
        """Start without networks.

        Args:
            has_regions: See :func:`one_minus_max`.
        """
        self._has_regions = has_regions
        self._networks = 0
        self._sum = self._entropies = np.zeros(0, dtype=np.float32)

    def add(self, probabilities: np.ndarray) -> None:
        """Add a network.

        Args:
            probabilities: Floating (K, *S), see :func:`one_minus_max`; of the same shape for all networks.
        """
        if not self._networks:
            shape = probabilities.shape
            self._sum = np.zeros(shape, dtype=np.float32)
            self._entropies = np.zeros(shape if self._has_regions else shape[1:], dtype=np.float32)
        self._networks += 1
        self._sum += probabilities
        for number, of_class in enumerate(probabilities):
            into = self._entropies[number] if self._has_regions else self._entropies
            into += self._entropy(of_class)

    def result(self) -> np.ndarray:
        """The entropy of the mean probabilities less the mean of the entropies, as a share of the highest possible.

        Returns:
            float32 of shape S in [0, 1]: with classes divided by log K; with regions that of the region where it is
            highest, divided by log 2. 0 with one network.
        """
        number = max(self._networks, 1)
        highest = np.zeros(self._sum.shape[1:], dtype=np.float32)
        for place, of_class in enumerate(self._sum):
            found = self._entropy(of_class / number)
            if self._has_regions:
                np.maximum(highest, found - self._entropies[place] / number, out=highest)
            else:
                highest += found
        if not self._has_regions:
            highest -= self._entropies / number
        most = 2 if self._has_regions else max(len(self._sum), 2)
        return np.clip(highest / np.float32(np.log(most)), 0, 1)

    def _entropy(self, of_class: np.ndarray) -> np.ndarray:
        """The part of a class in the entropy, or the whole entropy of a region; of the shape of the probabilities."""
        found: np.ndarray = entr(of_class)
        return found + entr(1 - of_class) if self._has_regions else found
