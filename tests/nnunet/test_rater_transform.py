"""What raters get from the spatial augmentation is what nnU-Net's own makes of their channels."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from scipy.ndimage import gaussian_filter

from nnunetv2_deferral.expert_sim.transform import SplitRatersTransform
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.nnunet.rater_transform import RaterSpatialTransform, follows_the_reference

torch.set_num_threads(1)

SHAPES = {2: (60, 52), 3: (12, 30, 34)}
PATCHES = {2: (44, 40), 3: (10, 24, 22)}
NUM_SAMPLES = {2: 150, 3: 60}
LABELS = [(0, 1), (1, 2), (0, 1, 2), (0, 1, 2, 3, 7)]


def nnunets(dim, **options):
    """As nnU-Net sets it up, with every sample turned, scaled and deformed."""
    return SpatialTransform(
        PATCHES[dim],
        patch_center_dist_from_border=0,
        random_crop=False,
        **{
            "p_rotation": 1,
            "rotation": (-np.pi, np.pi),
            "p_scaling": 1,
            "scaling": (0.7, 1.4),
            "p_elastic_deform": 0.3,
            "border_mode_seg": "constant",
            "padding_value_seg": -1,
        }
        | options,
    )


def label_map(rng, shape, labels):
    levels = gaussian_filter(rng.random(shape), 2)
    ranks = levels.ravel().argsort().argsort().reshape(shape)
    return np.array(labels)[ranks * len(labels) // ranks.size]


def sample(rng, shape, labels, pad=5):
    """Raters: the reference, a small and a large difference, nothing alike, absent, some left out, a border pixel."""
    reference = label_map(rng, shape, labels)
    other, twin, corner = label_map(rng, shape, labels), reference.copy(), reference.copy()
    small, large, partial = reference.copy(), reference.copy(), reference.copy()
    box = tuple(slice(n // 2, n // 2 + 4) for n in shape)
    small[box] = other[box]
    large[:, : shape[1] // 2] = other[:, : shape[1] // 2]
    unlike = np.roll(np.array(labels), 1)[np.searchsorted(labels, reference)]
    partial[box] = MISSING
    corner[(0,) * len(shape)] = 9
    stack = np.stack([reference, twin, small, large, unlike, np.full(shape, MISSING), partial, corner])
    if pad:  # As the loader pads a patch that reaches out of the image.
        stack[:, :pad] = stack[..., -pad:] = -1
    return {"image": torch.zeros(1, *shape), "segmentation": torch.from_numpy(stack.astype(np.int16))}


def mark(rng, reference):
    """Write -1 over some of the background, as nnU-Net does where the image is 0."""
    reference[torch.from_numpy(label_map(rng, reference.shape, (False, True))) & (reference == 0)] = -1


def run(seed, steps, data, num_raters):
    """Reference and raters at the end, and what else is in the segmentation; -1 is background, as nnU-Net has it."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    data = {key: value.clone() for key, value in data.items()}
    for step in (*steps, SplitRatersTransform(num_raters)):
        data = step(**data)
    return data["segmentation"].clamp(min=0), data["raters"]


def both(seed, spatial, data, num_raters, around=((), ())):
    """With nnU-Net's transform and with ours."""
    ours = RaterSpatialTransform(spatial, num_raters)
    return [run(seed, (*around[0], step, *around[1]), data, num_raters) for step in (spatial, ours)]


@pytest.fixture(params=[pytest.param(4, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def samples(request):
    """The seeds of so many samples, of which only the first quarter is used outside of slow tests."""
    return lambda number: range(number // request.param)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("pad", [0, 5])
def test_all_channels_are_what_nnunet_makes_of_them(samples, dim, labels, pad):
    rng = np.random.default_rng(0)
    for seed in samples(NUM_SAMPLES[dim] // len(LABELS)):
        data = sample(rng, SHAPES[dim], labels, pad)
        (segmentation, raters), (own_segmentation, own_raters) = both(seed, nnunets(dim), data, 7)
        assert torch.equal(own_segmentation, segmentation)
        assert own_raters.dtype == torch.int16
        assert torch.equal(own_raters, raters)
        assert torch.equal(own_raters[0], own_segmentation[0])
        assert (own_raters[4] == MISSING).all()


@pytest.mark.parametrize("dim", [2, 3])
def test_patches_that_show_much_of_the_outside(samples, dim):
    rng = np.random.default_rng(1)
    for seed in samples(40):
        data = sample(rng, tuple(n // 2 for n in SHAPES[dim]), (0, 1, 2), 2)
        expected, own = both(seed, nnunets(dim, scaling=(1.5, 2)), data, 7)
        assert all(map(torch.equal, expected, own))


def test_samples_that_are_only_cropped():
    rng = np.random.default_rng(2)
    for seed in range(5):
        data = sample(rng, SHAPES[2], (0, 1, 2))
        expected, own = both(seed, nnunets(2, p_rotation=0, p_scaling=0, p_elastic_deform=0), data, 7)
        assert all(map(torch.equal, expected, own))


@pytest.mark.parametrize("dim", [2, 3])
def test_what_a_cascade_stacks_behind_the_raters_stays_there(samples, dim):
    rng = np.random.default_rng(3)
    for seed in samples(20):
        data = sample(rng, SHAPES[dim], (0, 1, 2))
        previous = torch.from_numpy(label_map(rng, (2, *SHAPES[dim]), (0, 1, 2)).astype(np.int16))
        data["segmentation"] = torch.cat((data["segmentation"], previous))
        expected, own = both(seed, nnunets(dim), data, 7)
        assert own[0].shape[0] == 3
        assert all(map(torch.equal, expected, own))


@pytest.mark.parametrize("extra", [0, 1])
def test_dummy_2d_augmentation_folds_slices_into_channels(samples, extra):
    rng = np.random.default_rng(4)
    around = ((Convert3DTo2DTransform(),), (Convert2DTo3DTransform(),))
    for seed in samples(30):
        data = sample(rng, (4, *SHAPES[2]), (0, 1, 2), 0)
        data["segmentation"] = torch.cat((data["segmentation"], data["segmentation"][2 : 2 + extra]))
        expected, own = both(seed, nnunets(2), data, 7, around)
        assert own[1].shape == (7, 4, *PATCHES[2])
        assert all(map(torch.equal, expected, own))
        # Each slice of a rater goes with that slice of the reference.
        mark(rng, data["segmentation"][0])
        expected, own = both(seed, nnunets(2), data, 7, around)
        assert torch.equal(own[0], expected[0])
        assert torch.equal(own[1][0], own[0][0])


@pytest.mark.parametrize("dim", [2, 3])
def test_background_is_no_difference_where_the_reference_is_marked_as_outside(samples, dim):
    """nnU-Net writes -1 into the reference where the image is 0, but a rater says 0 there."""
    rng, differed = np.random.default_rng(5), 0
    for seed in samples(40):
        data = sample(rng, SHAPES[dim], (0, 1, 2))
        mark(rng, data["segmentation"][0])
        (reference, raters), (own_reference, own_raters) = both(seed, nnunets(dim), data, 7)
        assert torch.equal(own_reference, reference)
        assert torch.equal(own_raters[0], own_reference[0])
        # nnU-Net has it otherwise in a few voxels, where a third label meets the two kinds of background.
        differs = own_raters != raters
        assert torch.equal(own_raters[differs], own_reference.expand_as(raters)[differs])
        assert differs.float().mean() < 0.02
        differed += int(differs.sum())
    assert differed


def test_a_rater_is_there_even_if_the_reference_is_all_marked_as_outside():
    data = {"image": torch.zeros(1, 60, 52), "segmentation": torch.zeros(3, 60, 52, dtype=torch.int16)}
    data["segmentation"][0] = -1
    data["segmentation"][2] = MISSING
    raters = both(0, nnunets(2), data, 2)[1][1]
    assert (raters[0] == 0).all()
    assert (raters[1] == MISSING).all()


def test_only_interpolation_as_nnunet_has_it_by_default_is_taken_over():
    class Derived(SpatialTransform):
        pass

    assert follows_the_reference(nnunets(2))
    for option in (
        {"mode_seg": "nearest"},
        {"seg_tiebreak": "lowest"},
        {"border_mode_seg": "reflection"},
        {"padding_value_seg": 0},
        {"align_corners": True},
    ):
        assert not follows_the_reference(nnunets(2, **option)), option
    assert not follows_the_reference(Derived(PATCHES[2], 0, False))
