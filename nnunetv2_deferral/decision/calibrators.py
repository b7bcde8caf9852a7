"""Calibrators: monotonic maps from the probabilities of a head to calibrated ones."""

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
    """A monotonically increasing map from the probabilities of a head to calibrated ones."""

    kind: ClassVar[str]

    @abstractmethod
    def on_logits(self, logits: np.ndarray) -> np.ndarray:
        """Calibrate logits, float64 of any shape."""

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrate probabilities.

        Args:
            probabilities: Real floating point in [0, 1], any shape.

        Returns:
            float32 in [0, 1], of the same shape.

        Raises:
            InputError: If the dtype is not floating point or a probability is outside [0, 1].
        """
        calibrated, start = np.empty(probabilities.size, dtype=np.float32), 0
        for (some,) in in_chunks(probabilities):
            calibrated[start : start + some.size] = expit(self.on_logits(to_logits(some)))
            start += some.size
        return calibrated.reshape(probabilities.shape)

    def to_dict(self) -> dict[str, Any]:
        """The calibrator as JSON-ready data; the inverse of :func:`calibrator_from_dict`."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"kind": self.kind, **values}


@dataclass(frozen=True)
class Identity(Calibrator):
    """Leaves probabilities unchanged, except for conversion to float32."""

    kind = "none"

    def on_logits(self, logits: np.ndarray) -> np.ndarray:
        """The same logits."""
        return logits

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The same probabilities as float32.

        Raises:
            InputError: See :meth:`Calibrator.__call__`.
        """
        check_probabilities(probabilities)
        return probabilities.astype(np.float32)


@dataclass(frozen=True)
class Temperature(Calibrator):
    """Temperature scaling, sigmoid(logit(p) / T) (Guo et al. 2017, "On calibration of modern neural networks").

    Attributes:
        temperature: T > 0. Above 1 for an overconfident head.

    Raises:
        InputError: If the temperature is not positive and finite.

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
    """Piecewise linear in logits between knots, with slope 1 outside: strictly increasing everywhere.

    Plain isotonic regression is a step function, which loses the order of voxels within a block. With its blocks as
    knots of a linear interpolation the order is kept (Oron & Flournoy 2017, "Centered isotonic regression").

    Attributes:
        logits: 1 to `MAX_KNOTS` logits of the head, strictly ascending.
        probabilities: The calibrated probabilities there, in (0, 1), strictly ascending.

    Raises:
        InputError: If the two differ in length, or one is not as above.

    Example:
        A head that predicts 0.5 and 0.95 (logits 0 and 2.944) where the observed frequencies are 0.6 and 0.8:

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
            object.__setattr__(self, name, tuple(values))  # a list from JSON would not compare equal to a tuple
        if not 0 < self.probabilities[0] <= self.probabilities[-1] < 1:
            raise InputError(f"probabilities must lie in (0, 1), got {self.probabilities!r}")
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
    """Restore a calibrator from the data of :meth:`Calibrator.to_dict`.

    Raises:
        InputError: If `content` is not of this form; the message names the fault.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"a calibrator must be a mapping with a kind, got {content!r}")
    kinds = {each.kind: each for each in KINDS}
    kind, values = content.get("kind"), {key: value for key, value in content.items() if key != "kind"}
    if not isinstance(kind, str) or kind not in kinds:
        raise InputError(f"the kind of a calibrator must be one of {', '.join(kinds)}, got {kind!r}")
    expected = {field.name for field in fields(kinds[kind])}
    if values.keys() != expected:
        raise InputError(f"a calibrator of kind {kind} must have the keys {sorted(expected)}, got {list(values)}")
    return kinds[kind](**values)


def apply(maps: Sequence[Calibrator], probabilities: np.ndarray) -> np.ndarray:
    """Apply map j to channel j.

    Args:
        maps: J + 1 calibrators.
        probabilities: Real floating point (J + 1, *S) in [0, 1].

    Returns:
        float32 (J + 1, *S) in [0, 1].

    Raises:
        InputError: If there is not one map per channel, the dtype is not floating point, or a probability is outside
            [0, 1].
    """
    if probabilities.ndim < 1 or len(maps) != len(probabilities):
        raise InputError(f"one map per channel is required, got {len(maps)} maps for shape {probabilities.shape}")
    return np.stack([each(channel) for each, channel in zip(maps, probabilities, strict=True)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
