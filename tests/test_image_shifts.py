"""Synthetic shifts of images."""

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_deferral.defaults import SHIFT_KINDS, SHUFFLE
from nnunetv2_deferral.image_shifts import SHIFTS, shift_image

SPACING = (3.0, 1.0, 1.0)


def picture(shape=(2, 12, 40, 36), seed=0):
    """Smooth structures with a little noise, in arbitrary units."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = np.stack([ndimage.gaussian_filter(channel, 2.5) for channel in noise])
    return (100 + 800 * smooth + 5 * noise).astype(np.float32)


def shifted(image, kind, level, *, spacing=SPACING, seed=3):
    return shift_image(image, kind, level, spacing=spacing, generator=np.random.default_rng(seed))


def test_the_kinds_are_those_of_the_command():
    assert tuple(SHIFTS) == (*SHIFT_KINDS, SHUFFLE)


@pytest.mark.parametrize("kind", SHIFT_KINDS)
@pytest.mark.parametrize(("shape", "spacing"), [((2, 12, 40, 36), SPACING), ((1, 32, 30), (1.0, 1.0))])
def test_every_level_is_further_from_the_image_and_repeatable(kind, shape, spacing):
    image = picture(shape)
    before = image.copy()
    levels = [shifted(image, kind, level, spacing=spacing) for level in (1, 2, 3)]
    assert all(each.shape == shape and each.dtype == np.float32 and np.isfinite(each).all() for each in levels)
    assert np.array_equal(image, before)
    distances = [np.abs(each - image).mean() / image.std() for each in levels]
    assert 0.005 < distances[0] < distances[1] < distances[2]
    assert np.array_equal(levels[1], shifted(image, kind, 2, spacing=spacing))


@pytest.mark.parametrize("kind", SHIFT_KINDS)
def test_what_is_the_same_everywhere_stays_so(kind):
    image = np.full((1, 4, 16, 16), 7.0, dtype=np.float32)
    assert shifted(image, kind, 3) == pytest.approx(image, abs=1e-4)


@pytest.mark.parametrize("kind", ["bias_field", "noise", "ghosting"])
def test_other_random_numbers_give_another_image(kind):
    image = picture((1, 20, 20, 20))
    found = [shifted(image, kind, 2, spacing=(1.0, 1.0, 1.0), seed=seed) for seed in range(4)]
    assert any(not np.array_equal(found[0], each) for each in found[1:])


def test_noise_has_the_standard_deviation_of_its_level():
    image = picture((1, 64, 64))
    added = shifted(image, "noise", 2, spacing=(1.0, 1.0)) - image
    assert added.std() == pytest.approx(0.35 * image.std(), rel=0.05)


def test_a_bias_field_is_smooth_and_multiplies_what_is_above_the_minimum():
    image = picture((1, 40, 40))
    image -= image.min()
    where = image > 1
    ratio = np.where(where, shifted(image, "bias_field", 2, spacing=(1.0, 1.0)) / np.where(where, image, 1), np.nan)
    assert np.nanmin(ratio) > 0
    steps = np.abs(np.diff(np.log(ratio[0]), axis=1))
    assert np.nanmax(steps) < 0.5 < np.nanmax(np.log(ratio)) - np.nanmin(np.log(ratio))


def test_blur_is_as_wide_in_mm_along_every_axis():
    image = np.zeros((1, 9, 31, 31), dtype=np.float32)
    image[0, 4, 15, 15] = 1
    found = shifted(image, "blur", 2, spacing=(2.0, 1.0, 1.0))[0]
    spread = [
        np.sqrt((found.sum(tuple({0, 1, 2} - {axis})) * (np.arange(found.shape[axis]) - middle) ** 2).sum()) * step
        for axis, (middle, step) in enumerate(((4, 2.0), (15, 1.0), (15, 1.0)))
    ]
    assert spread == pytest.approx([2, 2, 2], rel=0.05)


def test_slices_far_apart_keep_their_own_resolution():
    image = picture((1, 8, 32, 32))
    image[0, 4] += 1000
    found = shifted(image, "downsample", 3, spacing=(5.0, 1.0, 1.0))[0]
    means = found.mean((1, 2)) - image[0].mean((1, 2))
    assert np.abs(means).max() < 60
    assert np.abs(np.diff(found[0], axis=0)).mean() < np.abs(np.diff(image[0, 0], axis=0)).mean()


def test_gamma_keeps_mean_and_deviation_and_the_order_of_values():
    image = picture((1, 30, 30))
    found = shifted(image, "gamma", 2, spacing=(1.0, 1.0))
    assert (found.mean(), found.std()) == pytest.approx((image.mean(), image.std()), rel=1e-3)
    assert (np.diff(found.ravel()[np.argsort(image.ravel())]) >= -1e-3).all()


def test_ghosts_repeat_what_is_there_at_a_quarter_of_the_image():
    image = np.zeros((1, 4, 64), dtype=np.float32)
    image[..., 10:14] = 1
    found = shifted(image, "ghosting", 3, spacing=(1.0, 1.0))[0, 0]
    ghost = found[10 + 16 : 14 + 16]
    assert np.abs(ghost).mean() > 2.5 * np.abs(found[18:24]).mean()


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize(
    ("shape", "spacing"), [((2, 12, 40, 37), SPACING), ((1, 32, 30), (1.0, 1.0)), ((1, 1, 9), (1, 1))]
)
def test_a_shuffled_image_has_all_its_voxels_with_their_channels_at_other_places(shape, spacing, level):
    image = picture(shape)
    before = image.copy()
    found = shifted(image, SHUFFLE, level, spacing=spacing)
    voxels, moved = (each.reshape(shape[0], -1) for each in (image, found))
    assert np.array_equal(image, before) and found.shape == shape
    assert sorted(zip(*voxels, strict=True)) == sorted(zip(*moved, strict=True))
    assert (voxels != moved).mean() > 0.5
    assert np.array_equal(found, shifted(image, SHUFFLE, level, spacing=spacing))


def test_at_the_first_level_quarters_of_each_axis_are_shuffled():
    image = np.arange(64 * 64, dtype=np.float32).reshape(1, 64, 64)
    found = shifted(image, SHUFFLE, 1, spacing=(1.0, 1.0))[0].reshape(4, 16, 4, 16).transpose(0, 2, 1, 3)
    assert np.array_equal(found - found[..., :1, :1], np.broadcast_to(image[0, :16, :16], (4, 4, 16, 16)))


@pytest.mark.parametrize(
    ("image", "kind", "level", "spacing", "message"),
    [
        (picture((1, 9, 9)), "rain", 1, (1, 1), "unknown shift 'rain'; known are bias_field"),
        (picture((1, 9, 9)), "blur", 4, (1, 1), "one of 1, 2, 3, got 4"),
        (picture((1, 9, 9))[0], "blur", 1, (1, 1), r"must have shape \(C, \*S\)"),
        (picture((1, 9, 9)), "blur", 1, (1, 1, 1), "and a spacing for S"),
    ],
)
def test_what_makes_no_sense_is_refused(image, kind, level, spacing, message):
    with pytest.raises(ValueError, match=message):
        shifted(image, kind, level, spacing=spacing)
