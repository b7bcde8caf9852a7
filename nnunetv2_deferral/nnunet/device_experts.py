"""Simulated experts that are drawn in the training step, where the batch is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nnunetv2_deferral.expert_sim.batches import simulate_batch
from nnunetv2_deferral.expert_sim.transform import SampleSeeds
from nnunetv2_deferral.nnunet.transforms import order_of_experts
from nnunetv2_deferral.settings import DeferralSettings


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
