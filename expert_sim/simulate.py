"""Simulation of experts' answers for one image.

The zones of an image are computed once (:class:`.zones.Reference`) for all experts. All randomness comes from the
generators that are passed in. For evaluation they are made by :func:`case_generator`, so that an expert's answers for a
case do not depend on the order of the cases or the number of processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch

from nnunetv2_deferral.defaults import BOUNDARY_WIDTH
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.error_models import ERROR_MODELS
from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.expert_sim.zones import Reference


def case_generator(seed: int, case: str, expert: str) -> torch.Generator:
    """A CPU generator that depends only on `seed`, the case's name and the expert's name."""
    digest = hashlib.sha256(json.dumps([int(seed), case, expert]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # within int64


def simulate_experts(
    labels: torch.Tensor,
    profiles: Sequence[ExpertProfile],
    label_values: Sequence[int],
    *,
    generator: torch.Generator | Sequence[torch.Generator],
    boundary_width: int = BOUNDARY_WIDTH,
    spacing: Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> torch.Tensor:
    """The answers of J experts for one image.

    Args:
        labels: The reference, an integer label map of shape (X, Y) or (X, Y, Z) on the CPU. With one label only there
            is no boundary band.
        profiles: The J experts.
        label_values: The labels of the dataset, without the ignore label; 0 and at least one other.
        generator: One CPU generator used by the experts in turn, or one per expert.
        boundary_width: Depth of the boundary band on each side of a label change, in the unit of the spacing.
        spacing: Spacing of the voxels by axis, in the unit of the band's width and of the correlation length of errors;
            None for 1, with which the unit is the voxel.
        ignore_label: Voxels of this label keep it in every answer; they do not form a boundary with their neighbours,
            belong to no zone, and count as background for connected components. None if there is no such label.

    Returns:
        int16 tensor of shape (J, X, Y) or (J, X, Y, Z).

    Raises:
        InputError: If there are no experts, the number of generators is not J, a generator is not on the CPU, or the
            labels are invalid, see :meth:`.zones.Reference.from_labels`.
    """
    if len(profiles) == 0:
        raise InputError("there must be at least one expert to simulate, got no profiles")
    generators = [generator] * len(profiles) if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != len(profiles):
        raise InputError(f"one generator per expert is required, got {len(generators)} for {len(profiles)} experts")
    elsewhere = [str(each.device) for each in generators if each.device.type != "cpu"]
    if elsewhere:
        raise InputError(f"experts are simulated on the CPU, got a generator on {elsewhere[0]}")
    reference = Reference.from_labels(
        labels, label_values, boundary_width=boundary_width, spacing=spacing, ignore_label=ignore_label
    )
    answers = torch.stack(
        [
            ERROR_MODELS[profile.error_model](reference, profile, own_generator)
            for profile, own_generator in zip(profiles, generators, strict=True)
        ]
    )
    if reference.valid is not None and reference.ignore_label is not None:
        answers.masked_fill_(~reference.valid, reference.ignore_label)
    return answers


def simulate_case(
    labels: torch.Tensor,
    profiles: Sequence[ExpertProfile],
    label_values: Sequence[int],
    *,
    seed: int,
    case: str,
    boundary_width: int = BOUNDARY_WIDTH,
    spacing: Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> torch.Tensor:
    """The reproducible answers of J experts for one case of an evaluation.

    Each expert's generator is seeded by `seed`, `case` and the expert's name; see :func:`simulate_experts`.

    Args:
        labels: The reference, an integer label map of shape (X, Y) or (X, Y, Z) on the CPU.
        profiles: The J experts.
        label_values: The labels of the dataset, without the ignore label; 0 and at least one other.
        seed: The seed.
        case: The case identifier.
        boundary_width: Depth of the boundary band on each side of a label change, in the unit of the spacing.
        spacing: Spacing of the voxels by axis, in the unit of the band's width and of the correlation length of errors;
            None for 1, with which the unit is the voxel.
        ignore_label: Voxels of this label keep it in every answer. None if there is no such label.

    Returns:
        int16 tensor of shape (J, X, Y) or (J, X, Y, Z).

    Raises:
        InputError: See :func:`simulate_experts`.

    Example:
        Three experts, who are right in 92, 85 and 75 % of the foreground:

        >>> import torch
        >>> from nnunetv2_deferral import expert_set, simulate_case
        >>> labels = torch.zeros(200, 200, dtype=torch.long)
        >>> labels[50:150, 50:150] = 1
        >>> answers = simulate_case(labels, expert_set("standard", 3), label_values=(0, 1), seed=0, case="case_1")
        >>> [round(share, 2) for share in (answers == labels)[:, 52:148, 52:148].float().mean((1, 2)).tolist()]
        [0.92, 0.85, 0.76]
    """
    return simulate_experts(
        labels,
        profiles,
        label_values,
        generator=[case_generator(seed, case, profile.name) for profile in profiles],
        boundary_width=boundary_width,
        spacing=spacing,
        ignore_label=ignore_label,
    )
