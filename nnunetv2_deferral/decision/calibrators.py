"""Maps from the probabilities that a head learned to calibrated ones, one a head."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from scipy.special import expit, logit

from nnunetv2_deferral.arrays import check_probabilities, in_chunks, to_logits
from nnunetv2_deferral.errors import InputError

MAX_KNOTS = 64


@dataclass(frozen=True)
class Calibrator(ABC):
    """Calibrated probabilities from those of a head; never falls where they rise."""

    kind: ClassVar[str]

    @abstractmethod
    def on_logits(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits from logits, float64 of any shape."""

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, float32 in [0, 1], from real floating point in [0, 1], both of any shape.

        Raises:
            InputError: If a dtype or probability is not as above.
        """
        calibrated, start = np.empty(probabilities.size, dtype=np.float32), 0
        for (some,) in in_chunks(probabilities):
            calibrated[start : start + some.size] = expit(self.on_logits(to_logits(some)))
            start += some.size
        return calibrated.reshape(probabilities.shape)

    def to_dict(self) -> dict[str, Any]:
        """What :func:`calibrator_from_dict` reads, in JSON's types."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"kind": self.kind, **values}


@dataclass(frozen=True)
class Identity(Calibrator):
    """Probabilities as they are, to float32."""

    kind = "none"

    def on_logits(self, logits: np.ndarray) -> np.ndarray:
        """The same logits."""
        return logits

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The same probabilities, float32."""
        check_probabilities(probabilities)
        return probabilities.astype(np.float32)


@dataclass(frozen=True)
class Temperature(Calibrator):
    """sigmoid(logit(p) / T) (Guo et al. 2017, "On calibration of modern neural networks").

    Attributes:
        temperature: T > 0. Above 1 for a head that is too sure.

    Raises:
        InputError: If it is not positive and finite.

    Example:
        >>> import numpy as np
        >>> from nnunetv2_deferral import Temperature
        >>> Temperature(2.0)(np.array([0.5, 0.9, 0.99])).round(3)
        array([0.5  , 0.75 , 0.909], dtype=float32)
    """

    temperature: float
    kind = "temperature"

    def __post_init__(self) -> None:
        if not (_is_number(self.temperature) and self.temperature > 0):
            raise InputError(f"a temperature must be positive and finite, got {self.temperature!r}")

    def on_logits(self, logits: np.ndarray) -> np.ndarray:
        """The logits divided by T."""
        return logits / self.temperature


@dataclass(frozen=True)
class Isotonic(Calibrator):
    """Linear between knots, in logits on both sides, and with slope 1 beyond them: strictly rising everywhere.

    A plain isotonic regression is a staircase, which makes voxels of different rank equal. With its blocks as knots it
    keeps them apart (Oron & Flournoy 2017, "Centered isotonic regression").

    Attributes:
        logits: 1 to `MAX_KNOTS`, of the head, strictly ascending.
        probabilities: What is right there, in (0, 1), strictly ascending.

    Raises:
        InputError: If they are not as above.

    Example:
        A head that says 0.5 and 0.95 (logits 0 and 2.944) where 0.6 and 0.8 are right:

        >>> import numpy as np
        >>> from nnunetv2_deferral import Isotonic
        >>> calibrator = Isotonic(logits=(0.0, 2.944), probabilities=(0.6, 0.8))
        >>> calibrator(np.array([0.5, 0.8, 0.95])).round(2)
        array([0.6, 0.7, 0.8], dtype=float32)
    """

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    kind = "isotonic"

    def __post_init__(self) -> None:
        for name in ("logits", "probabilities"):
            values = getattr(self, name)
            listed = isinstance(values, list | tuple) and 1 <= len(values) <= MAX_KNOTS
            if not (listed and all(map(_is_number, values))):
                raise InputError(f"{name} must be 1 to {MAX_KNOTS} finite numbers, got {values!r}")
            if any(first >= second for first, second in pairwise(values)):
                raise InputError(f"{name} must be strictly ascending, got {values!r}")
            object.__setattr__(self, name, tuple(values))  # a list from JSON is equal to no tuple
        if not 0 < self.probabilities[0] <= self.probabilities[-1] < 1:
            raise InputError(f"probabilities must lie between 0 and 1, got {self.probabilities!r}")
        if len(self.logits) != len(self.probabilities):
            raise InputError(f"got {len(self.logits)} logits but {len(self.probabilities)} probabilities")

    def on_logits(self, logits: np.ndarray) -> np.ndarray:
        """The logits, interpolated between the knots."""
        inner = np.interp(logits, self.logits, logit(np.array(self.probabilities)))
        return inner + np.minimum(logits - self.logits[0], 0) + np.maximum(logits - self.logits[-1], 0)


IDENTITY = Identity()
# The simplest first.
KINDS: tuple[type[Calibrator], ...] = (Identity, Temperature, Isotonic)


def calibrator_from_dict(content: Any) -> Calibrator:
    """The map that wrote this.

    Raises:
        InputError: If `content` is not what :meth:`Calibrator.to_dict` writes, naming what is wrong.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"a calibration map is a mapping with a kind, got {content!r}")
    kinds = {each.kind: each for each in KINDS}
    kind, values = content.get("kind"), {key: value for key, value in content.items() if key != "kind"}
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"the kind of a calibration map is one of {', '.join(kinds)}, got {kind!r}")
    expected = {field.name for field in fields(kinds[kind])}
    if values.keys() != expected:
        raise InputError(f"a calibration map of kind {kind} has the keys {sorted(expected)}, got {list(values)}")
    return kinds[kind](**values)


def apply(maps: Sequence[Calibrator], probabilities: np.ndarray) -> np.ndarray:
    """Channel j of real floating point (J + 1, *S) in [0, 1] through map j; float32 of the same shape, in [0, 1].

    Raises:
        InputError: If there are more or fewer maps than channels, or a dtype or probability is not as above.
    """
    if probabilities.ndim < 1 or len(maps) != len(probabilities):
        raise InputError(f"one map a channel is needed, got {len(maps)} maps for shape {probabilities.shape}")
    return np.stack([each(channel) for each, channel in zip(maps, probabilities, strict=True)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
