"""Error models: how a simulated expert errs.

Every error model is a function `(reference, profile, generator) -> answers`: it takes the regions of one image, an
expert's accuracies and a CPU generator, the only source of chance, and returns an int16 label map of the same shape.
Voxels without a reference are answered with anything and count for nothing; the caller puts the ignore label back.

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

"Exact" is up to one voxel: a region of n voxels has n (1 - accuracy) wrong ones, rounded up or down at random so that
the expectation is exact in regions of any size. Regions that are empty are passed over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import scipy.fft
import torch
from scipy import ndimage

from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.expert_sim.zones import Reference

ErrorModel = Callable[[Reference, ExpertProfile, torch.Generator], torch.Tensor]

CORRELATION_SIGMA = 3.0
"""Standard deviation, in voxels, of the Gaussian that smooths the random fields."""


def independent_errors(reference: Reference, profile: ExpertProfile, generator: torch.Generator) -> torch.Tensor:
    """Each voxel is wrong on its own, and then any other label is as likely (DeferredSeg, section 5.2.2).

    Args:
        reference: The regions of one image, of shape (X, Y) or (X, Y, Z).
        profile: The expert's accuracies; each is met in expectation in its region.
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
    """Errors come in blobs: the peaks of a smooth random field, as many in each region as its accuracy leaves.

    The wrong label is chosen by a second smooth field, uniform among the others over many draws and alike within a
    blob of one reference label. The fields are periodic, so that errors are as likely at the image border as within.

    Args:
        reference: The regions of one image, of shape (X, Y) or (X, Y, Z).
        profile: The expert's accuracies; each is met up to one voxel in its region.
        generator: CPU generator.
        sigma: Smoothness of the fields: standard deviation of the smoothing Gaussian, in voxels.

    Returns:
        int16 label map of the same shape.
    """
    shape = tuple(reference.labels.shape)
    field = _smooth_field(shape, sigma, generator).ravel()
    wrong = np.zeros(field.size, dtype=bool)
    for mask, accuracy in region_accuracies(reference, profile):
        voxels = np.flatnonzero(mask)
        wrong[_smallest(voxels, -field[voxels], _random_round(voxels.size * (1 - accuracy), generator))] = True
    steps = None
    others = len(reference.label_values) - 1
    if others > 1:
        ranks = torch.special.ndtr(torch.from_numpy(_smooth_field(shape, sigma, generator).ravel()[wrong]))
        steps = (ranks * others).long().clamp(max=others - 1)
    return _answer_otherwise(reference, torch.from_numpy(wrong).reshape(shape), steps)


def boundary_bias_errors(reference: Reference, profile: ExpertProfile, generator: torch.Generator) -> torch.Tensor:
    """The expert draws every boundary too far out or too far in; elsewhere errors are independent.

    One draw decides between over-segmentation (the background voxels of the band nearest to the foreground take its
    label) and under-segmentation (the foreground voxels nearest to the background take the label across). Where
    foreground labels touch, a random order of them, drawn with it, says which one grows. Ties in distance are broken by
    a smooth field, so that the last voxels flip in arcs rather than as specks. When the side that gives way has too few
    voxels, the nearest ones on the other side follow.

    Args:
        reference: The regions of one image, of shape (X, Y) or (X, Y, Z).
        profile: The expert's accuracies. In the band as a whole the number of errors is met up to one voxel (with an
            edge boost: the sum of both sides); outside of it FG and BG are met in expectation.
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
    """Whole objects are missed: each connected component of a foreground label becomes background, or stays as it is.

    A component is missed with probability 1 - FG, on its own, whatever its size; so the accuracy over foreground
    voxels is FG in expectation, but in one image with one component it is 0 or 1. The part of the band within the
    foreground follows its component, hence has accuracy FG too, whatever the profile says of the band. In the
    background errors are independent: accuracy BG outside the band, and the band's accuracy for the background side
    within it. Components are connected through faces, edges and corners; two labels that touch are two components.

    Args:
        reference: The regions of one image, of shape (X, Y) or (X, Y, Z).
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
        missed[0] = False  # number 0 stands for everything outside the components
        answers[torch.from_numpy(missed.numpy()[components])] = 0
    return answers


ERROR_MODELS: dict[str, ErrorModel] = {
    "independent": independent_errors,
    "correlated": correlated_errors,
    "boundary_bias": boundary_bias_errors,
    "missed_components": missed_components_errors,
}


def _wrong_independently(reference: Reference, profile: ExpertProfile, generator: torch.Generator) -> torch.Tensor:
    """Where an expert errs, each voxel on its own: bool tensor of the image's shape.

    This runs for every expert and sample of a training, so chance comes in 16 bits a voxel, four voxels a draw. An
    accuracy is met to within 2**-16.
    """
    number = reference.labels.numel()
    draws = torch.empty(-(-number // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    chance = draws.numpy().view(np.int16)[:number].reshape(reference.labels.shape)
    # From this draw on a voxel is wrong; 2**15, which none reaches, where the expert is always right.
    by_region = [
        mask & (chance >= round(accuracy * 2**16) - 2**15) for mask, accuracy in region_accuracies(reference, profile)
    ]
    return torch.from_numpy(functools.reduce(np.logical_or, by_region))


def _answer_otherwise(reference: Reference, wrong: torch.Tensor, steps: torch.Tensor | None) -> torch.Tensor:
    """The reference labels, but another one where `wrong`.

    Args:
        reference: The image.
        wrong: Bool tensor of the image's shape, with n voxels True.
        steps: Int64 tensor of shape (n,) with values in [0, number of labels - 2]: how many labels to go on, beyond the
            next, from the right one; the labels are a ring. Not needed when there are two labels.
    """
    labels, values = reference.labels.numpy(), np.array(reference.label_values, dtype=np.int16)
    if steps is None:
        # The bits in which two labels differ make one of the other.
        return torch.from_numpy(labels ^ wrong.numpy() * (values[0] ^ values[1]))
    answers = labels.copy()
    voxels, where = answers.reshape(-1), np.flatnonzero(wrong.numpy())
    right = np.searchsorted(values, voxels[where])
    voxels[where] = values[(right + 1 + steps.numpy()) % values.size]
    return torch.from_numpy(answers)


def region_accuracies(reference: Reference, profile: ExpertProfile) -> list[tuple[np.ndarray, float]]:
    """The masks of FG, BG and BD (Tables 2, D.9, E.11), without voxels to be ignored, each with its accuracy."""
    foreground, background = reference.beyond
    beyond = [(foreground, profile.foreground), (background, profile.background)]
    return beyond + _band_accuracies(reference, profile)


def _band_accuracies(reference: Reference, profile: ExpertProfile) -> list[tuple[np.ndarray, float]]:
    """The band as one region, or, when the accuracy there depends on the side, as two."""
    band = reference.band.numpy()
    if profile.boundary is not None:
        return [(band, profile.boundary)]
    return [
        (band & reference.is_foreground, profile.band_accuracy(profile.foreground)),
        (band & ~reference.is_foreground, profile.band_accuracy(profile.background)),
    ]


def _random_round(value: float, generator: torch.Generator) -> int:
    """`value` rounded up or down at random, so that the expectation is `value`."""
    whole = int(value)
    return whole + int(torch.rand((), generator=generator, dtype=torch.float64).item() < value - whole)


def _smallest(items: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """Those `count` of `items` (shape (n,)) that have the smallest `keys` (shape (n,)), in no order."""
    if count <= 0:
        return items[:0]
    return items if count >= items.size else items[np.argpartition(keys, count - 1)[:count]]


def _smooth_field(shape: tuple[int, ...], sigma: float, generator: torch.Generator) -> np.ndarray:
    """White noise smoothed by a Gaussian of `sigma` voxels: float32, periodic, every voxel standard normal."""
    spectrum = scipy.fft.rfftn(torch.randn(shape, generator=generator).numpy())
    variance = 1.0
    for axis, size in enumerate(shape):
        transfer = np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(size)) ** 2).astype(np.float32)
        variance *= float(np.mean(transfer**2))
        kept = transfer[: spectrum.shape[axis]]  # the last axis holds only frequencies up to one half
        spectrum *= kept.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return scipy.fft.irfftn(spectrum, s=shape) / np.float32(np.sqrt(variance))


def _moved_boundary(reference: Reference, generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """In which order the voxels of the band flip when all boundaries move one way, and what they become.

    Labels are ranked: the background lowest and the foreground in random order, or all of it upside down. Each label
    grows into those of lower rank, so a voxel first takes the nearest label of higher rank; a voxel with none in reach
    comes after all those, and takes the nearest label of lower rank.

    Returns:
        For the n voxels of the band in C order: float64 sort keys (n,), small first, and int16 labels (n,).
    """
    values = np.array(reference.label_values)
    rank_of = np.empty(values.size, dtype=np.int64)
    rank_of[values != 0] = 1 + torch.randperm(values.size - 1, generator=generator).numpy()
    rank_of[values == 0] = 0
    if torch.rand((), generator=generator) < 0.5:
        rank_of = -rank_of
    # Whatever is across the boundary from a voxel of the band is within its width, so this much of the image is enough.
    margin = reference.boundary_width
    around_band = ndimage.find_objects(reference.band.numpy().astype(np.uint8))[0]
    box = tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in around_band)
    band, labels = reference.band.numpy()[box], reference.labels.numpy()[box]
    valid = np.ones_like(band) if reference.valid is None else reference.valid.numpy()[box]
    ranks = rank_of[np.searchsorted(values, labels)]
    keys = np.full(band.shape, np.inf)
    across = labels.copy()
    reach = labels.ndim * reference.boundary_width**2
    for rank in np.unique(ranks[band]):
        undecided = band & (ranks == rank)
        for step, source in enumerate((valid & (ranks > rank), valid & (ranks < rank))):
            if not source.any() or not undecided.any():
                continue
            nearest = ndimage.distance_transform_edt(~source, return_distances=False, return_indices=True)
            here = np.nonzero(undecided)
            there = nearest[:, undecided]
            squared = ((there - np.stack(here)) ** 2).sum(axis=0)
            near = squared <= reach
            voxels = tuple(index[near] for index in here)
            keys[voxels] = squared[near] + step * (reach + 1)
            across[voxels] = labels[tuple(there[:, near])]
            undecided[voxels] = False
    ties = torch.special.ndtr(torch.from_numpy(_smooth_field(band.shape, CORRELATION_SIGMA, generator)))
    return (keys + ties.numpy())[band], across[band]
