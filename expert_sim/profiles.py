"""Profiles of simulated experts: accuracies by zone and error model.

A profile is plain data (part of the `"deferral"` block of a plans file); errors are drawn in :mod:`.error_models`. The
named sets are those of the DeferredSeg paper (Tables 2, D.9 and E.11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.names import check_expert_name

ERROR_MODEL_NAMES = ("independent", "correlated", "boundary_bias", "missed_components")


@dataclass(frozen=True, kw_only=True)
class ExpertProfile:
    """The accuracies and the error model of one simulated expert.

    The image consists of three zones: the boundary band around label changes (BD), and outside it the reference
    foreground (FG, every label but 0) and background (BG, label 0).

    Attributes:
        name: The expert's name, also used as a folder name.
        foreground: Probability in [0, 1] of being right in FG.
        background: Probability in [0, 1] of being right in BG.
        boundary: Probability in [0, 1] of being right anywhere in BD (the paper's Table 2), or None.
        edge_boost: In [-1, 1], added in BD to the accuracy of the voxel's own side (FG or BG) and clipped to [0, 1]
            (the paper's Tables D.9 and E.11), or None. Exactly one of `boundary` and `edge_boost` must be given.
        error_model: One of :data:`ERROR_MODEL_NAMES`; for the accuracies that each meets see :mod:`.error_models`.

    Raises:
        InputError: If a number is out of range, both or neither of `boundary` and `edge_boost` are given, the error
            model is unknown, or the name is invalid; the message names expert, field and value.

    Example:
        A reader who misses whole objects and is good at boundaries:

        >>> from nnunetv2_deferral import ExpertProfile
        >>> profile = ExpertProfile(
        ...     name="ann", foreground=0.8, background=0.99, boundary=0.95, error_model="missed_components"
        ... )
        >>> profile.band_accuracy(side=profile.foreground)
        0.95
    """

    name: str
    foreground: float
    background: float
    boundary: float | None = None
    edge_boost: float | None = None
    error_model: str = "independent"

    def __post_init__(self) -> None:
        check_expert_name(self.name, "expert profile")
        self._check_range("foreground", 0.0)
        self._check_range("background", 0.0)
        if (self.boundary is None) == (self.edge_boost is None):
            raise InputError(
                f"expert {self.name!r}: exactly one of boundary and edge_boost must be given, "
                f"got boundary={self.boundary!r} and edge_boost={self.edge_boost!r}"
            )
        if self.boundary is not None:
            self._check_range("boundary", 0.0)
        if self.edge_boost is not None:
            self._check_range("edge_boost", -1.0)
        if self.error_model not in ERROR_MODEL_NAMES:
            raise InputError(
                f"expert {self.name!r}: error_model must be one of {', '.join(ERROR_MODEL_NAMES)}, "
                f"got {self.error_model!r}"
            )

    def _check_range(self, field: str, lowest: float) -> None:
        value = getattr(self, field)
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not lowest <= value <= 1.0:  # NaN fails the comparison
            raise InputError(f"expert {self.name!r}: {field} must be a number in [{lowest:g}, 1], got {value!r}")

    def band_accuracy(self, side: float) -> float:
        """The accuracy in the boundary band for voxels whose own side (FG or BG) has accuracy `side`."""
        if self.boundary is not None:
            return self.boundary
        return min(max(side + (self.edge_boost or 0.0), 0.0), 1.0)

    def to_json(self) -> dict[str, Any]:
        """The profile as JSON-ready data, without fields that are None."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ExpertProfile:
        """Restore a profile from the data of :meth:`to_json`.

        Raises:
            InputError: If keys are unknown or missing (the message names them), or a value is invalid.
        """
        unknown = sorted(set(data) - {field.name for field in fields(cls)})
        missing = sorted({"name", "foreground", "background"} - set(data))
        if unknown or missing:
            faults = [f"unknown keys {unknown}"] * bool(unknown) + [f"missing keys {missing}"] * bool(missing)
            raise InputError(f"expert {data.get('name', '?')!r}: {' and '.join(faults)} in an expert profile")
        return cls(**data)


# (FG, BG, BD) by expert. Table 2 gives absolute accuracies in the band, D.9 and E.11 a boost added to FG or BG.
_TABLE_2 = ((0.92, 0.98, 0.98), (0.85, 0.99, 0.94), (0.75, 0.95, 0.90))
_TABLE_D9 = ((0.92, 0.98, 0.05), (0.91, 0.99, 0.05), (0.93, 0.97, 0.05), (0.90, 0.97, 0.10), (0.94, 0.99, 0.06))
_TABLE_E11 = (
    (0.97, 0.90, 0.08),
    (0.88, 0.99, 0.08),
    (0.88, 0.90, 0.12),
    (0.97, 0.99, 0.03),
    (0.97, 0.90, 0.10),
    (0.88, 0.99, 0.12),
    (0.97, 0.99, 0.03),
)

# The rows of the table, numbered from 1 as in the paper, of the J experts of a set.
_SETS: dict[str, dict[int, tuple[int, ...]]] = {
    "standard": {1: (1,), 2: (1, 2), 3: (1, 2, 3)},
    "scalability": {1: (1,), 2: (2, 3), 3: (1, 2, 3), 4: (2, 3, 4, 5), 5: (1, 2, 3, 4, 5)},
    "complementary": {1: (1,), 2: (1, 6), **{j: tuple(range(1, j + 1)) for j in range(3, 8)}},
}
_TABLES = {"standard": _TABLE_2, "scalability": _TABLE_D9, "complementary": _TABLE_E11}

EXPERT_SETS = tuple(_SETS)


def expert_set(name: str, num_experts: int) -> tuple[ExpertProfile, ...]:
    """The experts of one of the paper's named sets.

    Args:
        name: `"standard"` (Table 2, 1 to 3 experts), `"scalability"` (Table D.9, 1 to 5) or `"complementary"` (Table
            E.11, 1 to 7).
        num_experts: The number J of experts. The paper does not always use the first J rows of its table.

    Returns:
        J profiles with independent errors, named "expert1" to "expertJ" in order.

    Raises:
        InputError: If the set is unknown or not defined for J experts; the message lists the alternatives.

    Example:
        >>> from nnunetv2_deferral import expert_set
        >>> for profile in expert_set("standard", 3):
        ...     print(profile.name, profile.foreground, profile.background, profile.boundary)
        expert1 0.92 0.98 0.98
        expert2 0.85 0.99 0.94
        expert3 0.75 0.95 0.9
    """
    if name not in _SETS:
        raise InputError(f"unknown expert set {name!r}; known sets: {', '.join(EXPERT_SETS)}")
    rows_by_number = _SETS[name]
    if num_experts not in rows_by_number:
        raise InputError(
            f"expert set {name!r} is defined for {min(rows_by_number)} to {max(rows_by_number)} experts, not for "
            f"{num_experts!r}"
        )
    is_absolute = name == "standard"
    profiles = []
    for place, row in enumerate(rows_by_number[num_experts], start=1):
        foreground, background, band = _TABLES[name][row - 1]
        profiles.append(
            ExpertProfile(
                name=f"expert{place}",
                foreground=foreground,
                background=background,
                boundary=band if is_absolute else None,
                edge_boost=None if is_absolute else band,
            )
        )
    return tuple(profiles)


def default_expert_set(num_experts: int) -> str:
    """The default set: `"standard"` for up to 3 experts, `"scalability"` for more."""
    return "standard" if num_experts <= 3 else "scalability"


def with_error_model(profiles: Sequence[ExpertProfile], error_model: str | None) -> tuple[ExpertProfile, ...]:
    """The profiles with the same error model; None for those that they have.

    Raises:
        InputError: If the error model is unknown.
    """
    if error_model is None:
        return tuple(profiles)
    return tuple(replace(profile, error_model=error_model) for profile in profiles)
