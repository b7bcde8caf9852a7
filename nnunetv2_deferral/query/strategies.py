"""Which maps the boxes of each strategy are chosen by, and with how much noise.

All strategies choose with :mod:`.choice`; they differ in their maps:

- `claspe`: for each class c the probability of the class times the entropy, p_c H, and for all classes the entropy H;
  noise that decays over the rounds.
- `entropy`: H, without classes and noise: the most uncertain boxes.
- `random`: 1, without classes: each position is as likely as any other.
- `random_foreground`: for each class whether it is predicted, and for all classes 1: a box is drawn with a probability
  that is proportional to its predicted voxels of the class.
- `gain`: the gain map of a deferral model per minute of work, without classes and noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.forecast.features import predicted_classes
from nnunetv2_deferral.query.choice import beta_of_round
from nnunetv2_deferral.query.ensemble import foreground
from nnunetv2_deferral.uncertainty import entropy


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What a strategy does.

    Attributes:
        by_class: Whether a share of the boxes is chosen class by class.
        decays: Whether the noise decays over the rounds.
        noise: Whether there is noise.
        reads: What of a prediction it needs: `"probabilities"` or `"gain"`.
    """

    by_class: bool
    decays: bool = False
    noise: bool = True
    reads: str = "probabilities"

    def beta(self, number: int, rounds: int) -> float:
        """The inverse scale of the noise in a round; infinity for none.

        Raises:
            InputError: If the round is out of range.
        """
        decaying = beta_of_round(number, rounds)
        return (decaying if self.decays else 1.0) if self.noise else math.inf


STRATEGIES = {
    "claspe": Strategy(by_class=True, decays=True),
    "entropy": Strategy(by_class=False, noise=False),
    "random": Strategy(by_class=False),
    "random_foreground": Strategy(by_class=True),
    "gain": Strategy(by_class=False, noise=False, reads="gain"),
}


def maps_of(name: str, probabilities: np.ndarray, files: DatasetFiles) -> tuple[Iterator[np.ndarray], np.ndarray]:
    """The maps of a strategy that reads probabilities.

    Args:
        name: A key of :data:`STRATEGIES`.
        probabilities: float32 (K, *S), the mean over the folds.
        files: The dataset.

    Returns:
        The maps of the classes, each computed when it is asked for, and the map over all classes; float32 of shape S,
        not negative.

    Raises:
        InputError: If the strategy is unknown or reads something else.
    """
    if name not in STRATEGIES or STRATEGIES[name].reads != "probabilities":
        raise InputError(f"{name!r} is not a strategy that reads probabilities")
    has_regions = files.label_manager.has_regions
    if name in ("claspe", "entropy"):
        uncertainty = entropy(probabilities, has_regions=has_regions)
        by_class = (each * uncertainty for each in foreground(probabilities, files)) if name == "claspe" else iter(())
        return by_class, uncertainty
    everywhere = np.ones(probabilities.shape[1:], dtype=np.float32)
    if name == "random":
        return iter(()), everywhere
    return (each.astype(np.float32) for each in predicted_classes(probabilities, has_regions=has_regions)), everywhere
