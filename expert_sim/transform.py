"""Transforms of nnU-Net's data loader (batchgeneratorsv2) that add the experts' answers to training samples.

:class:`SplitRatersTransform` belongs directly after the spatial transforms, :class:`SimulateExpertsTransform` or
:class:`KeepLabelsTransform` before the segmentation is converted to regions or to a list for deep supervision,
:class:`ExpertsToTargetTransform` last.

Randomness: nnU-Net's augmenter starts its workers with `seeds=None`. Forked workers then all inherit the same state of
torch's global generator, while numpy's is seeded from the operating system in each worker (with a seed, both are seeded
from it). Workers thus differ in numpy's global state only. The first sample in a process draws from it the seed of a
generator, which seeds every sample, and restores the state, so that all other random numbers are the same as without
experts. Loaders of torch (>= 1.9) seed numpy in each worker too.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform

from nnunetv2_deferral.defaults import BOUNDARY_WIDTH
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.expert_sim.simulate import simulate_experts
from nnunetv2_deferral.expert_sim.zones import check_label_map, check_values
from nnunetv2_deferral.labels import MISSING


class SampleSeeds:
    """Seeds for samples, different in every process and not changing any other random numbers; see the module."""

    def __init__(self) -> None:
        self._process: int | None = None
        self._seeds = random.Random(0)

    def draw(self) -> int:
        """A seed in [0, 2**63)."""
        if self._process != os.getpid():
            state = np.random.get_state()
            self._seeds = random.Random(np.random.bytes(16))
            np.random.set_state(state)
            self._process = os.getpid()
        return self._seeds.getrandbits(63)


class SimulateExpertsTransform(BasicTransform):
    """Adds `"experts"`, int16 of shape (J, X, Y[, Z]), redrawn for each sample (DeferredSeg, section 5.2.2).

    The reference is channel 0 of `"segmentation"`, an integer tensor of shape (C, X, Y[, Z]). Negative labels, which
    mark voxels outside the image in nnU-Net, are background here as in nnU-Net's loss. Image and segmentation are
    unchanged.

    Args:
        profiles: The J experts, at least one.
        label_values: The labels of the dataset, without the ignore label.
        boundary_width: Depth of the boundary band on each side of a label change, in the unit of the spacing.
        spacing: Spacing of the voxels by axis; None for 1, with which the unit is the voxel.
        ignore_label: The label of voxels without a reference, which is kept in the answers. None if there is none.

    Raises:
        InputError: If there are no profiles, or a sample has no integer segmentation tensor or labels that are not in
            the dataset.
    """

    def __init__(
        self,
        *,
        profiles: Sequence[ExpertProfile],
        label_values: Sequence[int],
        boundary_width: int = BOUNDARY_WIDTH,
        spacing: Sequence[float] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__()
        if len(profiles) == 0:
            raise InputError("there must be at least one expert to simulate, got no profiles")
        self.profiles = tuple(profiles)
        self.label_values = tuple(int(value) for value in label_values)
        self.boundary_width = boundary_width
        self.spacing = spacing
        self.ignore_label = ignore_label
        self._seeds = SampleSeeds()

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the seed of this sample's experts."""
        return {"seed": self._seeds.draw()}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Add the experts' answers to a sample."""
        data_dict["experts"] = simulate_experts(
            _label_map(data_dict),
            self.profiles,
            self.label_values,
            generator=torch.Generator().manual_seed(params["seed"]),
            boundary_width=self.boundary_width,
            spacing=self.spacing,
            ignore_label=self.ignore_label,
        )
        return data_dict


class KeepLabelsTransform(BasicTransform):
    """Adds the label map under `"experts"`, int16 (1, X, Y[, Z]), from which experts are simulated on the device.

    See :mod:`.batches`. Arguments and errors are those of :class:`SimulateExpertsTransform`.
    """

    def __init__(self, *, label_values: Sequence[int], ignore_label: int | None = None) -> None:
        super().__init__()
        ignored = () if ignore_label is None else (ignore_label,)
        self.known = tuple(sorted({int(value) for value in (*label_values, *ignored)}))

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Add the label map of a sample, after a check of its labels."""
        labels = _label_map(data_dict)
        check_label_map(labels)
        check_values(labels, self.known)
        data_dict["experts"] = labels[None].to(torch.int16)
        return data_dict


class SplitRatersTransform(BasicTransform):
    """Separates raters' masks from the segmentation, with which they passed through the spatial transforms.

    `"segmentation"` (1 + R + C, *S) becomes (1 + C, *S), where C is the number of channels that nnU-Net appends for a
    cascade, and `"raters"` is added, int16 (R, *S). Voxels outside the image, which nnU-Net marks with -1, become
    background as in the reference, or `MISSING` for a rater without labels in the patch.

    Args:
        num_raters: The number R of raters.
    """

    def __init__(self, num_raters: int) -> None:
        super().__init__()
        self.num_raters = num_raters

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Split the segmentation of a sample."""
        reference, masks, others = data_dict["segmentation"].tensor_split([1, 1 + self.num_raters])
        # In place, as nnU-Net treats the -1 of the reference.
        raters = masks.numpy().astype(np.int16, copy=False)
        if raters.min() < 0:
            missing = raters.reshape(self.num_raters, -1).max(1) < 0
            raters[raters == -1] = 0
            raters[missing] = MISSING
        data_dict["raters"] = torch.from_numpy(raters)
        data_dict["segmentation"] = torch.cat((reference, others)) if len(others) else reference
        return data_dict


class ExpertsToTargetTransform(BasicTransform):
    """Appends the experts' answers to `"segmentation"`, which is converted to a list if it is not one yet.

    nnU-Net's loader forwards only image and segmentation, and collates a list of segmentations entry by entry, each in
    its own shape and dtype. The last entry of a batch's target is therefore int16 (B, J, X, Y[, Z]).

    Args:
        order: For each of the J experts, the index in the concatenation of `"raters"` and `"experts"` (the simulated
            ones); None for the order of the concatenation.

    Raises:
        InputError: If a sample has no segmentation or no experts.
    """

    def __init__(self, order: Sequence[int] | None = None) -> None:
        super().__init__()
        self.order = None if order is None or list(order) == sorted(order) else list(order)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Append the experts' answers of a sample to its target."""
        answers = [data_dict.pop(key) for key in ("raters", "experts") if data_dict.get(key) is not None]
        missing = ["segmentation"] * (data_dict.get("segmentation") is None) + ["experts"] * (not answers)
        if missing:
            raise InputError(f"the sample has no {' and no '.join(missing)}, only {sorted(data_dict)}")
        experts = answers[0] if len(answers) == 1 else torch.cat(answers)
        segmentation = data_dict["segmentation"]
        scales = list(segmentation) if isinstance(segmentation, (list, tuple)) else [segmentation]
        data_dict["segmentation"] = [*scales, experts if self.order is None else experts[self.order]]
        return data_dict


def _label_map(data_dict: Mapping[str, Any]) -> torch.Tensor:
    """Channel 0 of the segmentation of a sample, (X, Y) or (X, Y, Z), without nnU-Net's negative labels."""
    segmentation = data_dict.get("segmentation")
    if not isinstance(segmentation, torch.Tensor) or segmentation.ndim not in (3, 4):
        raise InputError(
            "simulated experts need a segmentation tensor of shape (C, X, Y) or (C, X, Y, Z), before it is "
            f"converted to a list for deep supervision; got {_describe(segmentation)}"
        )
    labels = segmentation[0]
    return labels if labels.is_floating_point() else torch.from_numpy(np.maximum(labels.numpy(), 0))


def _describe(segmentation: object) -> str:
    if isinstance(segmentation, torch.Tensor):
        return f"shape {tuple(segmentation.shape)}"
    return "none" if segmentation is None else f"a {type(segmentation).__name__}"
