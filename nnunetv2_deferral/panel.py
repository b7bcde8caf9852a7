"""Whoever answers for whole cases in an evaluation: raters from disk, and simulated experts by seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.expert_sim.regions import DEFAULT_BOUNDARY_WIDTH
from nnunetv2_deferral.expert_sim.simulate import simulate_case
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.raters import ExpertMasks


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The J experts of an evaluation.

    Attributes:
        experts: In routing order: a name is an expert whose masks are read, a profile one who is simulated.
        label_values: All labels with background, without the ignore label.
        ignore_label: The ignore label or None.
        masks: Where the masks of the named experts are; None if all are simulated.
        seed: With the names of case and expert, all chance of the simulated ones.
        boundary_width: Width in voxels of the band in which a simulated expert's boundary accuracy holds.

    Raises:
        ValueError: If the masks are not those of the named experts, in their order.
    """

    experts: tuple[ExpertProfile | str, ...]
    label_values: tuple[int, ...]
    ignore_label: int | None = None
    masks: ExpertMasks | None = None
    seed: int = 0
    boundary_width: int = DEFAULT_BOUNDARY_WIDTH

    def __post_init__(self) -> None:
        named = tuple(expert for expert in self.experts if isinstance(expert, str))
        found = () if self.masks is None else self.masks.experts
        if named and found != named:
            raise ValueError(f"masks of {', '.join(found) or 'nobody'} are given for the experts {', '.join(named)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the experts in routing order."""
        return tuple(expert if isinstance(expert, str) else expert.name for expert in self.experts)

    def to_dict(self) -> dict[str, Any]:
        """Who answered, as JSON."""
        experts = [expert if isinstance(expert, str) else expert.to_dict() for expert in self.experts]
        return {"experts": experts, "seed": self.seed, "boundary_width": self.boundary_width}

    def answers(self, case: str, reference: np.ndarray, properties: Mapping[str, Any] | None = None) -> np.ndarray:
        """The labels of all experts for a case.

        Args:
            case: The case identifier.
            reference: Its label map, integer of shape S, which simulated experts err from.
            properties: nnU-Net's properties of the case, to compare the geometry of masks with, or None.

        Returns:
            int16 (J, *S), `MISSING` where an expert has no label.

        Raises:
            ValueError: If a mask does not fit, see :meth:`.raters.ExpertMasks.read`.
        """
        answers = np.full((len(self.experts), *reference.shape), MISSING, dtype=np.int16)
        places = [place for place, expert in enumerate(self.experts) if isinstance(expert, str)]
        if self.masks is not None and places:
            answers[places] = self.masks.answers(case, reference.shape, properties)
        places = [place for place, expert in enumerate(self.experts) if not isinstance(expert, str)]
        if places:
            answers[places] = simulate_case(
                torch.from_numpy(reference),
                [expert for expert in self.experts if not isinstance(expert, str)],
                self.label_values,
                seed=self.seed,
                case=case,
                boundary_width=self.boundary_width,
                ignore_label=self.ignore_label,
            ).numpy()
        return answers
