"""Load balancing in a distributed training: two processes with half a batch each do what one does with all of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn

from nnunetv2_deferral.losses.balance import balance_loss, routing_ratio

pytestmark = pytest.mark.distributed

LOWER, UPPER = torch.tensor([0.15, 0.10, 0.10]), torch.tensor([0.35, 0.25, 0.30])


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Conv2d(2, 4, 3, padding=1)
    with torch.no_grad():
        network.bias.copy_(torch.tensor([-1.0, 2.0, -3.0, 0.5]))  # outside the bounds on both sides
    return network


def _batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randn(4, 2, 8, 8, generator=random)
    valid = torch.rand(4, 8, 8, generator=random) < torch.tensor([0.9, 0.8, 0.2, 0.1]).view(4, 1, 1)
    return images, valid


def _ratio_and_gradients(network: nn.Module, images: Tensor, valid: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    ratio = routing_ratio(torch.log_softmax(network(images), 1), valid)
    balance_loss(ratio, LOWER, UPPER).backward()
    return ratio.detach(), [parameter.grad.clone() for parameter in network.parameters()]


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    images, valid = (part.chunk(2)[rank] for part in _batch())
    for masked in (False, True):
        network = nn.parallel.DistributedDataParallel(_network())
        result = _ratio_and_gradients(network, images, valid if masked else None)
        torch.save(result, Path(folder) / f"{rank}_{masked}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which both processes have left the ratio and the gradients that they saw."""
    folder = tmp_path_factory.mktemp("distributed")
    multiprocessing.spawn(_run, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize("masked", [False, True], ids=["all voxels", "ignored voxels"])
def test_two_processes_see_the_ratio_and_the_gradient_of_the_joined_batch(two_processes: Path, masked: bool) -> None:
    images, valid = _batch()
    ratio, gradients = _ratio_and_gradients(_network(), images, valid if masked else None)
    assert (ratio > UPPER).any()
    assert (ratio < LOWER).any()
    for rank in (0, 1):
        their_ratio, their_gradients = torch.load(two_processes / f"{rank}_{masked}.pt")
        torch.testing.assert_close(their_ratio, ratio)
        for theirs, expected in zip(their_gradients, gradients, strict=True):
            assert expected.abs().max() > 0
            torch.testing.assert_close(theirs, expected)
