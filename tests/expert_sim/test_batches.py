import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.batches import BatchZones, simulate_batch
from nnunetv2_deferral.expert_sim.error_models import ERROR_MODELS
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES, expert_set, with_error_model
from nnunetv2_deferral.expert_sim.simulate import simulate_experts
from nnunetv2_deferral.expert_sim.zones import boundary_band

torch.set_num_threads(1)

IGNORED = 7


def blobs(shape, seed=0, values=(0, 1, 2)):
    """A batch of images (B, *S) with blobs of all labels, some of which touch."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, [0] + [2] * (len(shape) - 1))
    classes = np.digitize(smooth, np.quantile(smooth, [0.6, 0.85]))
    return torch.from_numpy(np.array(values)[classes].astype(np.int16))


def zones_of(labels, ignore_label=None, **options):
    return BatchZones.of(
        labels, range(3), ignore_label=ignore_label, **{"boundary_width": 2, "spacing": None, **options}
    )


@pytest.mark.parametrize("shape", [(2, 41, 36), (2, 15, 18, 13)])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("width", [0, 1, 3])
def test_the_band_is_that_of_each_image(shape, ignored, width):
    labels = blobs(shape)
    if ignored:
        labels[:, 4:9] = IGNORED
    band = zones_of(labels, IGNORED if ignored else None, boundary_width=width).band
    for image, found in zip(labels, band, strict=True):
        assert torch.equal(found, boundary_band(image, width, ignore_label=IGNORED if ignored else None))


def spiral(size):
    """A path one voxel wide, of length in the order of the number of voxels."""
    labels = torch.zeros(1, size, size, dtype=torch.int16)
    for row in range(0, size, 2):
        labels[0, row] = 1
        labels[0, row + 1 : row + 2, -1 if row % 4 == 0 else 0] = 1
    return labels


@pytest.mark.parametrize("labels", [blobs((2, 60, 50)), blobs((2, 14, 18, 16)), spiral(41)], ids=["2d", "3d", "path"])
def test_components_are_those_of_scipy(labels):
    components = zones_of(labels).components
    for image, found in zip(labels.numpy(), components.numpy(), strict=True):
        for value in (1, 2):
            here = image == value
            numbers, count = ndimage.label(here, structure=np.ones([3] * image.ndim))
            pairs = set(zip(numbers[here].tolist(), found[here].tolist(), strict=True))
            assert len(pairs) == count == len({number for _, number in pairs})


def test_components_of_different_images_are_different():
    labels = torch.ones(3, 5, 6, dtype=torch.int16)
    assert zones_of(labels).components.flatten(1).unique(dim=1).unique().numel() == 3


def autocorrelation(wrong, lag):
    wrong = wrong.double() - wrong.double().mean()
    return float((wrong[..., lag:] * wrong[..., :-lag]).mean() / wrong.var())


def test_correlated_errors_have_the_correlation_length_of_those_for_images():
    labels = torch.zeros(4, 160, 160, dtype=torch.int16)
    profiles = with_error_model(expert_set("standard", 3), "correlated")
    generator = torch.Generator().manual_seed(0)
    batch = simulate_batch(labels, profiles, (0, 1), generator=generator) != 0
    images = torch.stack([simulate_experts(each, profiles, (0, 1), generator=generator) for each in labels]) != 0
    for lag in (2, 4, 8, 20):
        found, expected = (autocorrelation(wrong[:, 2], lag) for wrong in (batch, images))
        assert found == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
def test_experts_of_a_batch_differ_by_image_and_expert(model):
    labels = blobs((1, 40, 40)).expand(2, -1, -1)
    profiles = with_error_model([expert_set("standard", 1)[0]] * 2, model)
    answers = simulate_batch(labels, profiles, (0, 1, 2), generator=torch.Generator().manual_seed(3))
    assert answers.shape == (2, 2, 40, 40)
    assert answers.dtype == torch.int16
    assert len({tuple(each.flatten().tolist()) for each in answers.flatten(0, 1)}) == 4


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
def test_labels_with_gaps_and_ignored_voxels_are_answered_by_labels(model):
    labels = blobs((2, 30, 30), values=(0, 3, 9))
    labels[:, :, :5] = IGNORED
    profiles = with_error_model(expert_set("standard", 3), model)
    answers = simulate_batch(
        labels, profiles, (9, 0, 3), generator=torch.Generator().manual_seed(0), ignore_label=IGNORED
    )
    assert set(answers.unique().tolist()) <= {0, 3, 9, IGNORED}
    assert torch.equal(answers == IGNORED, (labels == IGNORED)[:, None].expand_as(answers))
    right = (answers == labels[:, None])[:, :, :, 5:]
    assert 0.5 < right.float().mean() < 1


def test_components_reach_across_neither_ignored_voxels_nor_images():
    labels = torch.zeros(2, 9, 9, dtype=torch.int16)
    labels[:, 2:7, 2:7] = 1
    labels[:, 4] = IGNORED
    numbers = zones_of(labels, IGNORED).components
    assert len({int(numbers[image, row, 3]) for image in (0, 1) for row in (3, 5)}) == 4


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
def test_every_tensor_is_made_on_the_device_of_the_labels(model):
    # A tensor without a device would be one without data here, which cannot be combined with others.
    labels, generator = blobs((2, 20, 20)), torch.Generator().manual_seed(0)
    with torch.device("meta"):
        simulate_batch(
            labels, with_error_model(expert_set("standard", 2), model), (0, 1, 2), generator=generator, ignore_label=5
        )


@pytest.mark.parametrize("model", ["independent", "correlated"])
def test_the_frequent_models_never_wait_for_the_device(model):
    # Reading a value of a fake tensor is an error.
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        labels = torch.zeros(2, 16, 16, dtype=torch.int16)
        profiles = with_error_model(expert_set("standard", 2), model)
        answers = simulate_batch(labels, profiles, (0, 1, 2), generator=torch.Generator(), ignore_label=5)
    assert answers.shape == (2, 2, 16, 16)


def test_there_is_an_implementation_for_every_error_model():
    from nnunetv2_deferral.expert_sim.batches import _ERROR_MODELS

    assert _ERROR_MODELS.keys() == ERROR_MODELS.keys()


def test_a_batch_without_experts_is_refused():
    with pytest.raises(InputError, match="at least one expert"):
        simulate_batch(torch.zeros(1, 4, 4), (), (0, 1), generator=torch.Generator())
