"""Simulated experts that are drawn in the training step, where the batch is."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_deferral.defaults import SIMULATE_ON, SIMULATION_PLACES
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.batches import simulate_batch
from nnunetv2_deferral.expert_sim.transform import SampleSeeds
from nnunetv2_deferral.nnunet.transforms import order_of_experts
from nnunetv2_deferral.settings import DeferralSettings


def simulates_on_device(device: torch.device) -> bool:
    """Whether experts are drawn on the device: on GPUs, unless the environment says otherwise.

    A data loader that draws experts takes longer for each sample, for which a GPU would wait. On a CPU, the loader's
    workers are the better place.

    Raises:
        InputError: If the environment variable :data:`.SIMULATE_ON` is none of :data:`.SIMULATION_PLACES`.
    """
    wanted = os.environ.get(SIMULATE_ON, "").strip()
    if wanted and wanted not in SIMULATION_PLACES:
        raise InputError(f"{SIMULATE_ON} must be one of {', '.join(SIMULATION_PLACES)}, got {wanted!r}")
    return (wanted or ("device" if device.type == "cuda" else "loader")) == "device"


class DeviceExperts:
    """Completes the experts of batches by those that are simulated, see :func:`.transforms.add_experts`.

    Like the data loader, draws are seeded from numpy's state, which they leave as it is: differently in every process
    unless the user has seeded numpy.

    Args:
        settings: The experts and the width of the boundary band.
        device: Of the batches.
        label_values: All labels including background, without the ignore label.
        ignore_label: The ignore label or None.
        spacing: Spacing of the voxels in those of simulated experts, by axis; None for 1.
        rank: Of this process in a training on several GPUs.
    """

    def __init__(
        self,
        settings: DeferralSettings,
        device: torch.device,
        *,
        label_values: Sequence[int],
        ignore_label: int | None,
        spacing: Sequence[float] | None = None,
        rank: int = 0,
    ) -> None:
        self._settings = settings
        self._label_values = tuple(label_values)
        self._ignore_label = ignore_label
        self._spacing = spacing
        self._order = torch.tensor(order_of_experts(settings), device=device)
        self._generator = torch.Generator(device).manual_seed(SampleSeeds().draw() ^ rank)

    def __call__(self, given: Tensor) -> Tensor:
        """The label maps of all experts.

        Args:
            given: int16 (B, R + 1, *S): those of the R raters, and the label map that experts are drawn from.

        Returns:
            int16 (B, J, *S).
        """
        raters, labels = given[:, :-1], given[:, -1]
        simulated = simulate_batch(
            labels,
            self._settings.profiles,
            self._label_values,
            generator=self._generator,
            boundary_width=self._settings.boundary_width,
            spacing=self._spacing,
            ignore_label=self._ignore_label,
        )
        return simulated if not raters.shape[1] else torch.cat((raters, simulated), dim=1)[:, self._order]
