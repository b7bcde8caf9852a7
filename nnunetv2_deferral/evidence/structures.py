"""Structures: the binary questions that a label map answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunetv2_deferral.arrays import highest
from nnunetv2_deferral.errors import InputError


@dataclass(frozen=True)
class Structures:
    """The S structures of a dataset, each a set of labels that a voxel is inside or outside of.

    With two labels this is the foreground alone; with more, every label, background included; with region-based
    training, every region.

    Attributes:
        labels: All labels, background first, in the order of the model's probabilities; with regions, those of the
            label maps.
        regions: The labels of each region, in the order of the model's probabilities; None without region-based
            training.
        order: With regions, the label that each region's voxels get, later ones over earlier ones, nnU-Net's
            `regions_class_order`.

    Raises:
        InputError: If there are fewer than two labels, or not one label in `order` for each region.
    """

    labels: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...] | None = None
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise InputError(f"at least two labels are required, got {list(self.labels)}")
        if len(self.regions or ()) != len(self.order or ()):
            raise InputError(f"each region needs a label, got regions {self.regions} and labels {self.order}")

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The labels inside each structure."""
        if self.regions is not None:
            return self.regions
        return tuple((label,) for label in (self.labels[1:] if len(self.labels) == 2 else self.labels))

    @property
    def num_channels(self) -> int:
        """The number K of the model's probabilities."""
        return len(self.labels if self.regions is None else self.regions)

    @property
    def scored(self) -> np.ndarray:
        """Bool (S,): whether the structure has a Dice, i.e. all but the background."""
        return np.array([self.regions is not None or self.labels[0] not in inside for inside in self.members])

    def probabilities(self, softmax: np.ndarray) -> np.ndarray:
        """The probability of being inside each structure, (S, *shape), from the model's (K, *shape)."""
        return softmax[1:] if self.regions is None and len(self.labels) == 2 else softmax

    def contain(self, labels: np.ndarray) -> np.ndarray:
        """Whether voxels are inside each structure: bool (S, *shape) from a label map; outside for other labels."""
        return np.stack([np.isin(labels, inside) for inside in self.members])

    def to_labels(self, logits: np.ndarray) -> np.ndarray:
        """The label of voxels, int64 (n,), from the logits (S, n) of being inside each structure.

        With two labels the foreground where its logit is positive; with more the label with the highest; with regions
        as nnU-Net converts probabilities.
        """
        if self.order is not None:
            found = np.zeros(logits.shape[1:], dtype=np.int64)
            for label, inside in zip(self.order, logits > 0, strict=True):
                found[inside] = label
            return found
        if len(self.labels) == 2:
            return np.where(logits[0] > 0, self.labels[1], self.labels[0]).astype(np.int64)
        return np.array(self.labels, dtype=np.int64)[highest(logits)]

    def to_dict(self) -> dict[str, Any]:
        """The structures as JSON-ready data; the inverse of :meth:`from_dict`."""
        regions = None if self.regions is None else [list(inside) for inside in self.regions]
        return {
            "labels": list(self.labels),
            "regions": regions,
            "order": None if self.order is None else list(self.order),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Structures:
        """Restore structures from the data of :meth:`to_dict`."""
        regions: Sequence[Sequence[int]] | None = content["regions"]
        return cls(
            labels=tuple(content["labels"]),
            regions=None if regions is None else tuple(tuple(inside) for inside in regions),
            order=None if content["order"] is None else tuple(content["order"]),
        )
