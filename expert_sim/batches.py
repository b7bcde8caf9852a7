"""Experts of whole batches, drawn where the batch is, so that the data loader of a GPU does not wait for them.

The distributions are those of :mod:`.error_models`, which has them for single images on the CPU; the numbers drawn
differ. All functions work on tensors of any device. Independent and correlated errors never wait for the device if
labels have no gaps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from nnunetv2_deferral.defaults import BOUNDARY_WIDTH
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.error_models import CORRELATION_SIGMA
from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.expert_sim.zones import widths_in_voxels

_OUTSIDE = -1  # class index of voxels that have no label
_SHIFTS_AT_ONCE = 8  # bounds the memory


def simulate_batch(
    labels: Tensor,
    profiles: Sequence[ExpertProfile],
    label_values: Sequence[int],
    *,
    generator: torch.Generator,
    boundary_width: int = BOUNDARY_WIDTH,
    spacing: Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Tensor:
    """The answers of J experts for each image of a batch.

    Args:
        labels: The references, integer label maps (B, X, Y) or (B, X, Y, Z). That they have no other labels than
            `label_values` and `ignore_label` is not checked.
        profiles: The J experts.
        label_values: The labels of the dataset, without the ignore label; 0 and at least one other.
        generator: On the device of the labels.
        boundary_width: Depth of the boundary band on each side of a label change, in the unit of the spacing.
        spacing: Spacing of the voxels by axis; None for 1, with which the unit is the voxel.
        ignore_label: As for :func:`.simulate.simulate_experts`.

    Returns:
        int16 tensor of shape (B, J, X, Y) or (B, J, X, Y, Z) on the device of the labels.

    Raises:
        InputError: If there are no experts.
    """
    if len(profiles) == 0:
        raise InputError("there must be at least one expert to simulate, got no profiles")
    zones = BatchZones.of(
        labels, label_values, boundary_width=boundary_width, spacing=spacing, ignore_label=ignore_label
    )
    classes = [_ERROR_MODELS[profile.error_model](zones, profile, generator) for profile in profiles]
    answers = torch.stack(classes, dim=1)
    values = sorted(set(map(int, label_values)))
    if values != list(range(len(values))):
        answers = torch.tensor(values, dtype=torch.int16, device=labels.device)[answers.long()]
    if zones.valid is None or ignore_label is None:
        return answers
    return answers.masked_fill_(~zones.valid[:, None], ignore_label)


@dataclass(frozen=True, kw_only=True)
class BatchZones:
    """The references of a batch and their zones, shared by all experts; *S is (X, Y) or (X, Y, Z).

    Attributes:
        classes: The index of each label among the values, int16 (B, *S), with 0, the background, at ignored voxels.
        num_classes: The number K of label values.
        valid: Bool (B, *S), False at ignored voxels; None if there is no ignore label.
        band: Bool (B, *S), the boundary band; False where not valid.
        widths: Depth of the band on each side, in voxels by axis.
        spacing: Spacing of the voxels by axis; 1 if the unit is the voxel.
    """

    classes: Tensor
    num_classes: int
    valid: Tensor | None
    band: Tensor
    widths: tuple[int, ...]
    spacing: tuple[float, ...]

    @classmethod
    def of(
        cls,
        labels: Tensor,
        label_values: Sequence[int],
        *,
        boundary_width: int,
        spacing: Sequence[float] | None,
        ignore_label: int | None,
    ) -> BatchZones:
        """The zones of label maps (B, *S); see :func:`simulate_batch`."""
        values = sorted(set(map(int, label_values)))
        valid = None if ignore_label is None else labels != ignore_label
        known = labels if valid is None else torch.where(valid, labels, 0)
        classes = known.to(torch.int16)
        if values != list(range(len(values))):
            classes = torch.bucketize(classes, classes.new_tensor(values), out_int32=True).to(torch.int16)
        spacing = (1.0,) * (labels.ndim - 1) if spacing is None else tuple(spacing)
        widths = widths_in_voxels(boundary_width, spacing)
        band = _boundary_band(classes, valid, len(values), widths)
        return cls(classes=classes, num_classes=len(values), valid=valid, band=band, widths=widths, spacing=spacing)

    @cached_property
    def is_foreground(self) -> Tensor:
        """Bool (B, *S): every label but 0."""
        return self.classes != 0

    @cached_property
    def beyond(self) -> tuple[Tensor, Tensor]:
        """Foreground and background among valid voxels outside the band: bool (B, *S) each."""
        beyond = ~self.band if self.valid is None else ~self.band & self.valid
        return beyond & self.is_foreground, beyond & ~self.is_foreground

    def accuracies(self, profile: ExpertProfile) -> list[tuple[Tensor, float]]:
        """The zones of a profile, bool (B, *S) without common voxels, each with its accuracy."""
        foreground, background = self.beyond
        beyond = [(foreground, profile.foreground), (background, profile.background)]
        return beyond + self.accuracies_in_band(profile)

    def accuracies_in_band(self, profile: ExpertProfile) -> list[tuple[Tensor, float]]:
        """The band with its accuracy, or its two sides if the accuracy depends on the side."""
        if profile.boundary is not None:
            return [(self.band, profile.boundary)]
        return [
            (self.band & self.is_foreground, profile.band_accuracy(profile.foreground)),
            (self.band & ~self.is_foreground, profile.band_accuracy(profile.background)),
        ]

    @cached_property
    def components(self) -> Tensor:
        """Connected components of each foreground label: int64 (B, *S), the same number throughout a component.

        Components are connected through faces, edges and corners; touching labels are separate components. The numbers
        are flat indices into (B, *S); background voxels have one each.
        """
        return _connected_components(self.classes)


def independent_errors(zones: BatchZones, profile: ExpertProfile, generator: torch.Generator) -> Tensor:
    """Independent errors, see :func:`.error_models.independent_errors`: class indices, int16 (B, *S)."""
    classes = zones.classes
    chance = torch.rand(classes.shape, generator=generator, device=classes.device)
    wrong = torch.zeros_like(zones.band)
    for mask, accuracy in zones.accuracies(profile):
        wrong |= mask & (chance >= accuracy)
    others = zones.num_classes - 1
    steps = None
    if others > 1:
        steps = torch.randint(others, classes.shape, generator=generator, device=classes.device, dtype=torch.int16)
    return _answer_otherwise(zones, wrong, steps)


def correlated_errors(zones: BatchZones, profile: ExpertProfile, generator: torch.Generator) -> Tensor:
    """Errors in blobs, see :func:`.error_models.correlated_errors`: class indices, int16 (B, *S)."""
    shape = zones.classes.shape
    order = _smooth_fields(zones, generator).flatten(1).argsort(dim=1, descending=True)
    wrong_in_order = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    for mask, accuracy in zones.accuracies(profile):
        in_order = mask.flatten(1).gather(1, order)
        ranks = in_order.cumsum(1, dtype=torch.int32)
        number = _random_round(ranks[:, -1].double() * (1 - accuracy), generator)
        wrong_in_order |= in_order & (ranks <= number[:, None])
    wrong = torch.empty_like(wrong_in_order).scatter_(1, order, wrong_in_order).view(shape)
    others = zones.num_classes - 1
    steps = None
    if others > 1:
        ranks = torch.special.ndtr(_smooth_fields(zones, generator))
        steps = (ranks * others).to(torch.int16).clamp(max=others - 1)
    return _answer_otherwise(zones, wrong, steps)


def boundary_bias_errors(zones: BatchZones, profile: ExpertProfile, generator: torch.Generator) -> Tensor:
    """Shifted boundaries, see :func:`.error_models.boundary_bias_errors`: class indices, int16 (B, *S)."""
    answers = torch.where(zones.band, zones.classes, independent_errors(zones, profile, generator))
    in_band = [mask.flatten(1).sum(1).double() * (1 - accuracy) for mask, accuracy in zones.accuracies_in_band(profile)]
    number = _random_round(torch.stack(in_band).sum(0), generator)
    voxels = zones.band.flatten().nonzero()[:, 0]
    if not len(voxels):
        return answers
    keys, across = _moved_boundary(zones, voxels, generator)
    # By image, and in each by key: a stable sort keeps the order of the keys.
    images = voxels // zones.band[0].numel()
    by_key = keys.argsort()
    order = by_key[images[by_key].argsort(stable=True)]
    firsts = torch.searchsorted(images, torch.arange(len(number), device=voxels.device))
    places = torch.arange(len(voxels), device=voxels.device) - firsts[images]
    flipped = torch.where(places < number[images], across[order], zones.classes.flatten()[voxels[order]])
    answers.view(-1)[voxels[order]] = flipped
    return answers


def missed_components_errors(zones: BatchZones, profile: ExpertProfile, generator: torch.Generator) -> Tensor:
    """Missed objects, see :func:`.error_models.missed_components_errors`: class indices, int16 (B, *S)."""
    answers = torch.where(zones.is_foreground, zones.classes, independent_errors(zones, profile, generator))
    chance = torch.rand(answers.numel(), generator=generator, device=answers.device)
    return torch.where(zones.is_foreground & (chance[zones.components] >= profile.foreground), 0, answers)


_ERROR_MODELS: dict[str, Callable[[BatchZones, ExpertProfile, torch.Generator], Tensor]] = {
    "independent": independent_errors,
    "correlated": correlated_errors,
    "boundary_bias": boundary_bias_errors,
    "missed_components": missed_components_errors,
}


def _answer_otherwise(zones: BatchZones, wrong: Tensor, steps: Tensor | None) -> Tensor:
    """The reference classes, replaced by another one where `wrong`.

    Args:
        zones: The batch.
        wrong: Bool (B, *S).
        steps: int16 (B, *S) in [0, K - 2], cyclic distance from the class after the right one. None for two classes.
    """
    other = 1 - zones.classes if steps is None else (zones.classes + 1 + steps) % zones.num_classes
    return torch.where(wrong, other, zones.classes)


def _random_round(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round up or down at random, so that the expectation is the value: int64 of the same shape."""
    chance = torch.rand(values.shape, generator=generator, device=values.device, dtype=torch.float64)
    return (values.double() + chance).floor().long()


def _boundary_band(classes: Tensor, valid: Tensor | None, num_classes: int, widths: Sequence[int]) -> Tensor:
    """The band of :func:`.zones.boundary_band` for class indices int16 (B, *S): bool (B, *S)."""
    # Height above the lowest class and depth below the highest, both from 1: 0, for ignored voxels, is below any.
    values = torch.stack((classes + 1, num_classes - classes), dim=1).float()
    if valid is not None:
        values.mul_(valid[:, None])
    pool = functional.max_pool2d if classes.ndim == 3 else functional.max_pool3d
    highest = values
    for axis, width in enumerate(min(width, side - 1) for width, side in zip(widths, classes.shape[1:], strict=True)):
        window = [2 * width + 1 if other == axis else 1 for other in range(classes.ndim - 1)]
        highest = pool(highest, window, stride=1, padding=[side // 2 for side in window])
    band = (highest != values).any(dim=1)
    return band if valid is None else band & valid


def _smooth_fields(zones: BatchZones, generator: torch.Generator) -> Tensor:
    """White noise smoothed by a Gaussian of :data:`.CORRELATION_SIGMA`, for each of B images: float32 (B, *S).

    Periodic; each voxel is standard normal.
    """
    shape = zones.classes.shape
    axes = tuple(range(1, len(shape)))
    spectrum = torch.fft.rfftn(torch.randn(tuple(shape), generator=generator, device=generator.device), dim=axes)
    variance = torch.ones((), device=generator.device)
    for axis, spacing in zip(axes, zones.spacing, strict=True):
        frequencies = torch.fft.fftfreq(shape[axis], device=generator.device)
        transfer = torch.exp(-2 * (math.pi * CORRELATION_SIGMA / spacing * frequencies) ** 2)
        variance = variance * (transfer**2).mean()
        kept = transfer[: spectrum.shape[axis]]  # the last axis holds only frequencies up to one half
        spectrum = spectrum * kept.view([-1 if other == axis else 1 for other in range(len(shape))])
    return torch.fft.irfftn(spectrum, s=tuple(shape[1:]), dim=axes) / variance.sqrt()


def _moved_boundary(zones: BatchZones, voxels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The order in which voxels of the band flip when all boundaries shift one way, and their new classes.

    Args:
        zones: The batch.
        voxels: The n voxels of the band, flat indices into (B, *S), ascending.
        generator: On their device.

    Returns:
        float32 sort keys (n,), ascending, and int16 classes (n,), as :func:`.error_models.boundary_bias_errors` has
        them.
    """
    device = voxels.device
    number, *size = zones.classes.shape
    reach = sum((width * each) ** 2 for width, each in zip(zones.widths, zones.spacing, strict=True)) * (1 + 1e-6)
    margins = [min(int(math.sqrt(reach) / each), side - 1) for each, side in zip(zones.spacing, size, strict=True)]
    ranks = _random_ranks(number, zones.num_classes, generator)
    images, own_class = voxels // math.prod(size), zones.classes.flatten()[voxels]
    own_rank = ranks[images, own_class.long()]
    may_grow = own_rank < ranks.amax(1)[images]
    present = zones.classes if zones.valid is None else torch.where(zones.valid, zones.classes, _OUTSIDE)
    both_sides = [margin for margin in reversed(margins) for _ in range(2)]
    padded = functional.pad(present, both_sides, value=_OUTSIDE)
    strides = torch.tensor(padded.stride(), device=device)
    places = torch.stack(torch.unravel_index(voxels, zones.classes.shape), dim=1)
    places[:, 1:] += torch.tensor(margins, device=device)
    flat, starts = padded.flatten(), (places * strides).sum(1)
    # The nearest voxel of higher rank, and of lower; from near to far, without the voxels that are decided.
    farther = 2 * reach + 1
    best = torch.full((2, len(voxels)), farther, device=device)
    found = own_class.repeat(2, 1)
    shifts = torch.tensor(_shifts(margins), device=device)
    squared = (shifts * torch.tensor(zones.spacing, device=device)).square().sum(1)
    order = squared.argsort()[: int((squared <= reach).sum())]
    undecided = torch.arange(len(voxels), device=device)
    for some in order.split(_SHIFTS_AT_ONCE):
        there = flat[starts[undecided, None] + (shifts[some] * strides[1:]).sum(1)]
        rank = ranks[images[undecided, None], there.long().clamp(min=0)]
        own = own_rank[undecided, None]
        for way, wanted in enumerate((rank > own, rank < own)):
            nearest, at = torch.where(wanted & (there != _OUTSIDE), squared[some], farther).min(1)
            closer = nearest < best[way, undecided]
            which = undecided[closer]
            best[way, which] = nearest[closer]
            found[way, which] = there.gather(1, at[:, None])[:, 0][closer]
        grown, shrunk = best[:, undecided] <= reach
        undecided = undecided[~grown & (may_grow[undecided] | ~shrunk)]
        if not len(undecided):
            break
    grows = best[0] <= reach
    keys = torch.where(grows, best[0], best[1] + farther)  # without any within reach last, and as it is
    ties = torch.special.ndtr(_smooth_fields(zones, generator)).flatten()[voxels]
    return keys + ties * min(zones.spacing) ** 2, torch.where(grows, found[0], found[1])


def _random_ranks(number: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """For each of B images, the ranks of the classes: background lowest, or all reversed. int16 (B, K)."""
    device = generator.device
    foreground = torch.rand((number, num_classes - 1), generator=generator, device=device).argsort(1)
    ranks = functional.pad(foreground.to(torch.int16) + 1, (1, 0))
    return torch.where(torch.rand((number, 1), generator=generator, device=device) < 0.5, -ranks, ranks)


def _shifts(widths: Sequence[int]) -> list[tuple[int, ...]]:
    """All shifts by at most these widths, besides none."""
    return [shift for shift in itertools.product(*(range(-width, width + 1) for width in widths)) if any(shift)]


def _connected_components(classes: Tensor) -> Tensor:
    """See :meth:`BatchZones.components`.

    FastSV (Zhang, Azad and Buluc, 2020): each voxel points to another one of its component with a higher number; trees
    of pointers are hooked onto each other where they touch, and flattened, until nothing changes.
    """
    shifts = [shift for shift in _shifts([1] * (classes.ndim - 1)) if shift > (0,) * len(shift)]
    parents = torch.arange(classes.numel(), device=classes.device).view(classes.shape)
    grandparents = parents
    while True:
        highest = grandparents.clone()
        for shift in shifts:
            here, there = _overlap(shift), _overlap([-step for step in shift])
            joined = (classes[here] == classes[there]) & (classes[here] != 0)
            for one, other in ((here, there), (there, here)):
                offered = torch.where(joined, grandparents[other], -1)
                highest[one] = torch.maximum(highest[one], offered)
        hooked = parents.flatten().scatter_reduce(0, parents.flatten(), highest.flatten(), "amax").view(classes.shape)
        parents = torch.maximum(torch.maximum(hooked, highest), grandparents)
        flattened = parents.flatten()[parents]
        if torch.equal(flattened, grandparents):
            return flattened
        grandparents = flattened


def _overlap(shift: Sequence[int]) -> tuple[slice, ...]:
    """Of a batch, the voxels that lie on it when it is moved by `shift`."""
    return (slice(None), *(slice(max(step, 0), min(step, 0) or None) for step in shift))
