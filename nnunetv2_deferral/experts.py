"""The experts: real raters, whose masks are read from disk, and simulated experts.

In plans, dataset.json and summaries a rater is represented by its name and a simulated expert by its profile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.names import check_expert_name


@dataclass(frozen=True)
class Rater:
    """A real expert, whose masks are read from `<folder>/<name>/<case><file_ending>`.

    Attributes:
        name: The rater's name, which is also the folder's.

    Raises:
        InputError: If the name is invalid, see :func:`.check_expert_name`.
    """

    name: str

    def __post_init__(self) -> None:
        check_expert_name(self.name, "rater")

    def to_json(self) -> str:
        """The rater as in plans and summaries."""
        return self.name


Expert: TypeAlias = Rater | ExpertProfile


def expert_from_json(content: object) -> Expert:
    """Convert a name to a rater, or a mapping to a simulated expert.

    Raises:
        InputError: If `content` is neither, or not a valid name or profile.
    """
    if isinstance(content, str):
        return Rater(content)
    if isinstance(content, Mapping):
        return ExpertProfile.from_dict(content)
    raise InputError(f"an expert must be the name of a rater or a profile, got {content!r}")


def experts_from_json(content: Iterable[object]) -> tuple[Expert, ...]:
    """Apply :func:`expert_from_json` to each item."""
    return tuple(map(expert_from_json, content))


def experts_to_json(experts: Iterable[Expert]) -> list[str | dict[str, Any]]:
    """The experts as in plans and summaries; the inverse of :func:`experts_from_json`."""
    return [expert.to_json() for expert in experts]


def names_of(experts: Iterable[Expert]) -> tuple[str, ...]:
    """The names of the experts, in order."""
    return tuple(expert.name for expert in experts)


def raters_of(experts: Iterable[Expert]) -> tuple[str, ...]:
    """The names of the raters among the experts, in order."""
    return tuple(expert.name for expert in experts if isinstance(expert, Rater))


def profiles_of(experts: Iterable[Expert]) -> tuple[ExpertProfile, ...]:
    """The profiles of the simulated experts, in order."""
    return tuple(expert for expert in experts if isinstance(expert, ExpertProfile))


def remark_on_simulated(names: Sequence[str]) -> str:
    """A sentence for people who are to answer in place of the simulated experts of these names; empty without any."""
    if not names:
        return ""
    return (
        f"The model learned from simulated experts ({', '.join(names)}): it routes by their errors, and people who "
        "answer in their place may err elsewhere."
    )


def described(experts: Iterable[Expert]) -> str:
    """The experts in words, for messages: raters by name, simulated experts with their error model."""
    return ", ".join(
        each.name if isinstance(each, Rater) else f"{each.name} (simulated, {each.error_model})" for each in experts
    )
