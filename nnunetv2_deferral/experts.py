"""Who can be asked: real raters, whose masks lie on disk, and simulated experts.

In plans, dataset.json and summaries a rater is written as a name and a simulated expert as a profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.names import check_expert_name


@dataclass(frozen=True)
class Rater:
    """A real expert, whose masks are read from `<folder>/<name>/<case><file_ending>`.

    Attributes:
        name: The name, also that of the folder.

    Raises:
        InputError: If no expert may have this name.
    """

    name: str

    def __post_init__(self) -> None:
        check_expert_name(self.name, "rater")

    def to_json(self) -> str:
        """The rater as plans and summaries have it."""
        return self.name


Expert: TypeAlias = Rater | ExpertProfile


def expert_from_json(content: object) -> Expert:
    """The expert that a name (a rater) or a mapping (a profile) stands for.

    Raises:
        InputError: If it is neither, or not a valid name or profile.
    """
    if isinstance(content, str):
        return Rater(content)
    if isinstance(content, Mapping):
        return ExpertProfile.from_dict(content)
    raise InputError(f"an expert is the name of a rater or a profile, got {content!r}")


def experts_from_json(content: Iterable[object]) -> tuple[Expert, ...]:
    """:func:`expert_from_json` for each."""
    return tuple(map(expert_from_json, content))


def experts_to_json(experts: Iterable[Expert]) -> list[str | dict[str, Any]]:
    """The experts as plans and summaries have them; :func:`experts_from_json` reads them back."""
    return [expert.to_json() for expert in experts]


def names_of(experts: Iterable[Expert]) -> tuple[str, ...]:
    """The names of all, in their order."""
    return tuple(expert.name for expert in experts)


def raters_of(experts: Iterable[Expert]) -> tuple[str, ...]:
    """The names of the raters, in their order."""
    return tuple(expert.name for expert in experts if isinstance(expert, Rater))


def profiles_of(experts: Iterable[Expert]) -> tuple[ExpertProfile, ...]:
    """The simulated experts, in their order."""
    return tuple(expert for expert in experts if isinstance(expert, ExpertProfile))
