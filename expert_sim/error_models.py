"""Error models of simulated experts.

An error model is a function `(reference, profile, generator) -> answers`: it takes the zones of one image, an expert's
accuracies and a CPU generator, the only source of randomness, and returns an int16 label map of the same shape. The
answers at voxels without a reference are arbitrary; the caller replaces them by the ignore label.

=================  =============================  ===============  ===================================
model              foreground (FG)                background (BG)  boundary band (BD)
=================  =============================  ===============  ===================================
independent        in expectation                 in expectation   in expectation
correlated         exact                          exact            exact (with an edge boost: on each
                                                                   of its sides)
boundary_bias      in expectation                 in expectation   exact over the whole band; nearly
                                                                   all errors are on one side of it
missed_components  in expectation over            in expectation   background side in expectation;
                   components, not in each image                   foreground side as FG
=================  =============================  ===============  ===================================

"Exact" is to within one voxel: a zone of n voxels has n (1 - accuracy) errors, rounded up or down at random so that the
expectation is exact for zones of any size. Empty zones are skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft
import torch
from scipy import ndimage

from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.expert_sim.zones import Reference, widths_in_voxels

ErrorModel = Callable[[Reference, ExpertProfile, torch.Generator], torch.Tensor]

CORRELATION_SIGMA = 3.0
"""Standard deviation of the Gaussian that smooths the random fields, in voxels or the unit of the spacing."""


def independent_errors(reference: Reference, profile: ExpertProfile, generator: torch.Generator) -> torch.Tensor:
    """Independent errors in each voxel, with all wrong labels equally likely (DeferredSeg, section 5.2.2).

    Args:
        reference: The zones of one image, of shape (X, Y) or (X, Y, Z).
        profile: The expert's accuracies; each is met in expectation in its zone.
        generator: CPU generator.

    Returns:
        int16 label map of the same shape.
    """
    wrong = _wrong_independently(reference, profile, generator)
    others = len(reference.label_values) - 1
    steps = torch.randint(others, (int(wrong.sum()),), generator=generator) if others > 1 else None
    return _answer_otherwise(reference, wrong, steps)


def correlated_errors(
    reference: Reference, profile: ExpertProfile, generator: torch.Generator, *, sigma: float = CORRELATION_SIGMA
) -> torch.Tensor:
    """Errors in blobs: in each zone, the highest values of a smooth random field, as many as the accuracy requires.

    The wrong label is chosen by a second smooth field: uniform over draws, and mostly constant within a blob of one
    reference label. The fields are periodic, so that errors are as likely at the image border as elsewhere.

    Args:
        reference: The zones of one image, of shape (X, Y) or (X, Y, Z).
        profile: The expert's accuracies; each is met to within one voxel in its zone.
        generator: CPU generator.
        sigma: Standard deviation of the Gaussian that smooths the fields, in the unit of the reference's spacing.

    Returns:
        int16 label map of the same shape.
    """
    shape = tuple(reference.labels.shape)
    sigmas = [sigma / each for each in reference.spacing]
    field = _smooth_field(shape, sigmas, generator).ravel()
    wrong = np.zeros(field.size, dtype=bool)
    for mask, accuracy in region_accuracies(reference, profile):
        voxels = np.flatnonzero(mask)
        wrong[_smallest(voxels, -field[voxels], _random_round(voxels.size * (1 - accuracy), generator))] = True
    steps = None
    others = len(reference.label_values) - 1
    if others > 1:
        ranks = torch.special.ndtr(torch.from_numpy(_smooth_field(shape, sigmas, generator).ravel()[wrong]))
        steps = (ranks * others).long().clamp(max=others - 1)
    return _answer_otherwise(reference, torch.from_numpy(wrong).reshape(shape), steps)


def boundary_bias_errors(reference: Reference, profile: ExpertProfile, generator: torch.Generator) -> torch.Tensor:
    """All boundaries shifted outwards or inwards; outside the band errors are independent.

    A random draw selects over-segmentation (the background voxels of the band nearest to the foreground take its label)
    or under-segmentation (the foreground voxels nearest to the background take the label across the boundary). Where
    foreground labels touch, a random order determines which one grows. Ties in distance are broken by a smooth field,
    so that the last voxels flip in arcs instead of specks. If the receding side has too few voxels, the nearest ones on
    the other side follow.

    Args:
        reference: The zones of one image, of shape (X, Y) or (X, Y, Z).
        profile: The expert's accuracies. The number of errors in the whole band is met to within one voxel (with an
            edge boost: the sum of both sides); outside the band FG and BG are met in expectation.
        generator: CPU generator.

    Returns:
        int16 label map of the same shape. Without a band, the same as independent errors.
    """
    answers = torch.where(reference.band, reference.labels, independent_errors(reference, profile, generator))
    in_band = [(int(mask.sum()), accuracy) for mask, accuracy in _band_accuracies(reference, profile)]
    num_wrong = _random_round(sum(count * (1 - accuracy) for count, accuracy in in_band), generator)
    if num_wrong == 0:
        return answers
    voxels = np.flatnonzero(reference.band.numpy())
    order, across = _moved_boundary(reference, generator)
    flipped = _smallest(np.arange(voxels.size), order, num_wrong)
    answers.view(-1)[torch.from_numpy(voxels[flipped])] = torch.from_numpy(across[flipped])
    return answers


def missed_components_errors(reference: Reference, profile: ExpertProfile, generator: torch.Generator) -> torch.Tensor:
    """Missed objects: each connected component of a foreground label is either kept or replaced by background.

    A component is missed with probability 1 - FG, independently and regardless of its size. The accuracy over
    foreground voxels is thus FG in expectation, but 0 or 1 in an image with a single component. The foreground side of
    the band follows its component and has accuracy FG too; the profile's accuracy in the band does not apply there. In
    the background errors are independent: accuracy BG outside the band, and the band's accuracy for the background side
    within it. Components are connected through faces, edges and corners; touching labels are separate components.

    Args:
        reference: The zones of one image, of shape (X, Y) or (X, Y, Z).
        profile: The expert's accuracies.
        generator: CPU generator.

    Returns:
        int16 label map of the same shape.
    """
    labels = reference.labels
    answers = torch.where(labels == 0, independent_errors(reference, profile, generator), labels)
    connectivity = ndimage.generate_binary_structure(labels.ndim, labels.ndim)
    for value in reference.label_values:
        of_this_label = (labels == value).numpy()
        if value == 0 or not of_this_label.any():
            continue
        components, count = ndimage.label(of_this_label, structure=connectivity)
        missed = torch.rand(count + 1, generator=generator) >= profile.foreground
        missed[0] = False  # 0 is the outside of the components
        answers[torch.from_numpy(missed.numpy()[components])] = 0
    return answers


ERROR_MODELS: dict[str, ErrorModel] = {
    "independent": independent_errors,
    "correlated": correlated_errors,
    "boundary_bias": boundary_bias_errors,
    "missed_components": missed_components_errors,
}


def _wrong_independently(reference: Reference, profile: ExpertProfile, generator: torch.Generator) -> torch.Tensor:
    """Draw independent errors: bool tensor of the image's shape.

    This runs for every expert and training sample. For speed each voxel gets 16 random bits, four voxels per draw, so
    that accuracies are met to within 2**-16.
    """
    number = reference.labels.numel()
    draws = torch.empty(-(-number // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    chance = draws.numpy().view(np.int16)[:number].reshape(reference.labels.shape)
    # A voxel is wrong from this value on. For accuracy 1 it is 2**15, above the range of int16.
    by_region = [
        mask & (chance >= round(accuracy * 2**16) - 2**15) for mask, accuracy in region_accuracies(reference, profile)
    ]
    return torch.from_numpy(functools.reduce(np.logical_or, by_region))


def _answer_otherwise(reference: Reference, wrong: torch.Tensor, steps: torch.Tensor | None) -> torch.Tensor:
    """The reference labels, replaced by another label where `wrong`.

    Args:
        reference: The image.
        wrong: Bool tensor of the image's shape, with n voxels True.
        steps: Int64 tensor of shape (n,) with values in [0, number of labels - 2]: cyclic distance from the label after
            the right one to the wrong one. None for two labels.

    Returns:
        int16 label map of the image's shape.
    """
    labels, values = reference.labels.numpy(), np.array(reference.label_values, dtype=np.int16)
    if steps is None:
        # XOR with the differing bits exchanges the two labels.
        return torch.from_numpy(labels ^ wrong.numpy() * (values[0] ^ values[1]))
    answers = labels.copy()
    voxels, where = answers.reshape(-1), np.flatnonzero(wrong.numpy())
    right = np.searchsorted(values, voxels[where])
    voxels[where] = values[(right + 1 + steps.numpy()) % values.size]
    return torch.from_numpy(answers)


def region_accuracies(reference: Reference, profile: ExpertProfile) -> list[tuple[np.ndarray, float]]:
    """The masks of FG, BG and BD (Tables 2, D.9, E.11), without ignored voxels, each with its accuracy."""
    foreground, background = reference.beyond
    beyond = [(foreground, profile.foreground), (background, profile.background)]
    return beyond + _band_accuracies(reference, profile)


def _band_accuracies(reference: Reference, profile: ExpertProfile) -> list[tuple[np.ndarray, float]]:
    """The mask and accuracy of the band, or of its two sides if the accuracy depends on the side."""
    band = reference.band.numpy()
    if profile.boundary is not None:
        return [(band, profile.boundary)]
    return [
        (band & reference.is_foreground, profile.band_accuracy(profile.foreground)),
        (band & ~reference.is_foreground, profile.band_accuracy(profile.background)),
    ]


def _random_round(value: float, generator: torch.Generator) -> int:
    """Round `value` up or down at random, with expectation `value`."""
    whole = int(value)
    return whole + int(torch.rand((), generator=generator, dtype=torch.float64).item() < value - whole)


def _smallest(items: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """The `count` of `items` (n,) with the smallest `keys` (n,), unordered; all if `count` is n or more."""
    if count <= 0:
        return items[:0]
    return items if count >= items.size else items[np.argpartition(keys, count - 1)[:count]]


def _smooth_field(shape: tuple[int, ...], sigmas: Sequence[float], generator: torch.Generator) -> np.ndarray:
    """White noise smoothed by a Gaussian of `sigmas` voxels by axis: float32, periodic, each voxel standard normal."""
    spectrum = scipy.fft.rfftn(torch.randn(shape, generator=generator).numpy())
    variance = 1.0
    for axis, (size, sigma) in enumerate(zip(shape, sigmas, strict=True)):
        transfer = np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(size)) ** 2).astype(np.float32)
        variance *= float(np.mean(transfer**2))
        kept = transfer[: spectrum.shape[axis]]  # the last axis holds only frequencies up to one half
        spectrum *= kept.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return scipy.fft.irfftn(spectrum, s=shape) / np.float32(np.sqrt(variance))


def _moved_boundary(reference: Reference, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The order in which voxels of the band flip when all boundaries shift one way, and their new labels.

    Labels are ranked: background lowest and foreground in random order, or all ranks reversed. Each label grows into
    those of lower rank: a voxel takes the nearest label of higher rank. Voxels without one within reach come after all
    others and take the nearest label of lower rank.

    Returns:
        For the n voxels of the band in C order: float64 sort keys (n,), ascending, and int16 labels (n,).
    """
    values = np.array(reference.label_values)
    rank_of = np.empty(values.size, dtype=np.int64)
    rank_of[values != 0] = 1 + torch.randperm(values.size - 1, generator=generator).numpy()
    rank_of[values == 0] = 0
    if torch.rand((), generator=generator) < 0.5:
        rank_of = -rank_of
    # The nearest other label of a voxel of the band is within the band's width, so a crop with this margin suffices.
    spacing = np.array(reference.spacing)
    margins = widths_in_voxels(reference.boundary_width, reference.spacing)
    around_band = ndimage.find_objects(reference.band.numpy().astype(np.uint8))[0]
    box = tuple(
        slice(max(side.start - margin, 0), side.stop + margin)
        for side, margin in zip(around_band, margins, strict=True)
    )
    band, labels = reference.band.numpy()[box], reference.labels.numpy()[box]
    valid = np.ones_like(band) if reference.valid is None else reference.valid.numpy()[box]
    ranks = rank_of[np.searchsorted(values, labels)]
    keys = np.full(band.shape, np.inf)
    across = labels.copy()
    reach = float(((spacing * margins) ** 2).sum()) * (1 + 1e-9)
    for rank in np.unique(ranks[band]):
        undecided = band & (ranks == rank)
        for step, source in enumerate((valid & (ranks > rank), valid & (ranks < rank))):
            if not source.any() or not undecided.any():
                continue
            nearest = ndimage.distance_transform_edt(~source, spacing, return_distances=False, return_indices=True)
            here = np.nonzero(undecided)
            there = nearest[:, undecided]
            squared = ((spacing[:, None] * (there - np.stack(here))) ** 2).sum(axis=0)
            near = squared <= reach
            voxels = tuple(index[near] for index in here)
            keys[voxels] = squared[near] + step * (reach + 1)
            across[voxels] = labels[tuple(there[:, near])]
            undecided[voxels] = False
    sigmas = [CORRELATION_SIGMA / each for each in reference.spacing]
    ties = torch.special.ndtr(torch.from_numpy(_smooth_field(band.shape, sigmas, generator)))
    return (keys + ties.numpy() * spacing.min() ** 2)[band], across[band]
