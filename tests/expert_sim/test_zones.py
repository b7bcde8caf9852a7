import itertools

import pytest
import torch

from nnunetv2_deferral.expert_sim.error_models import region_accuracies
from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.expert_sim.zones import Reference, boundary_band, widths_in_voxels

torch.set_num_threads(1)


def slow_band(labels, width, ignore_label=None):
    """The definition, voxel by voxel."""
    band = torch.zeros(labels.shape, dtype=torch.bool)
    for voxel in itertools.product(*map(range, labels.shape)):
        window = labels[tuple(slice(max(index - width, 0), index + width + 1) for index in voxel)]
        if ignore_label is not None:
            window = window[window != ignore_label]
        band[voxel] = labels[voxel] != ignore_label and bool((window != labels[voxel]).any())
    return band


def random_labels(shape, num_labels, seed=0, scale=5):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(num_labels, [size // scale + 1 for size in shape], generator=generator)
    for axis in range(len(shape)):
        coarse = coarse.repeat_interleave(scale, axis).narrow(axis, 0, shape[axis])
    return coarse


@pytest.mark.parametrize("shape", [(17, 23), (11, 7, 9), (1, 17, 13)])
@pytest.mark.parametrize("num_labels", [2, 4])
@pytest.mark.parametrize("width", [1, 2, 3, 1000])
def test_the_band_agrees_with_its_definition(shape, num_labels, width):
    labels = random_labels(shape, num_labels)
    assert torch.equal(boundary_band(labels, width), slow_band(labels, width))


@pytest.mark.parametrize("ignore_label", [3, 0])
def test_ignored_voxels_are_in_no_band_and_make_none(ignore_label):
    labels = random_labels((25, 22), 4, seed=1)
    band = boundary_band(labels, 2, ignore_label=ignore_label)
    assert torch.equal(band, slow_band(labels, 2, ignore_label))
    half = torch.zeros(10, 10, dtype=torch.int16)
    half[:, 5:] = 3
    assert not boundary_band(half, 2, ignore_label=3).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_dtype_gives_the_same_band(dtype):
    labels = random_labels((20, 20), 3)
    assert torch.equal(boundary_band(labels.to(dtype), 2), slow_band(labels, 2))


@pytest.mark.parametrize("spread", [1, 252, 253, 254, 255, 256, 32767, 65534])
def test_labels_may_be_as_far_apart_as_int16_holds(spread):
    lowest = -32767 if spread > 32767 else 0
    labels = torch.tensor([lowest, lowest + spread, lowest + spread // 2])[random_labels((14, 15), 3, scale=4)]
    assert torch.equal(boundary_band(labels, 1), slow_band(labels, 1))


def test_the_band_is_as_deep_as_asked_on_each_side():
    labels = torch.zeros(20, 9, dtype=torch.int64)
    labels[10:] = 1
    assert boundary_band(labels, 3)[:, 4].nonzero().flatten().tolist() == [7, 8, 9, 10, 11, 12]


def test_a_window_larger_than_the_image_is_cut():
    labels = torch.tensor([[0, 0, 0], [0, 0, 1]])
    assert boundary_band(labels, 50).all()


def test_the_image_border_is_no_boundary_and_one_label_has_no_band():
    assert not boundary_band(torch.ones(8, 8, 8, dtype=torch.int16), 2).any()
    assert not boundary_band(random_labels((9, 9), 3), 0).any()


@pytest.mark.parametrize(
    ("labels", "width", "message"),
    [
        (torch.zeros(4, 4, dtype=torch.int16), -1, "at least 0 voxels, got -1"),
        (torch.zeros(4, 4), 2, "integer dtype, got torch.float32"),
        (torch.zeros(4, dtype=torch.int16), 2, r"shape \(X, Y\).*got \(4,\)"),
        (torch.zeros(0, 4, dtype=torch.int16), 2, "not be empty"),
        (torch.full((4, 4), 40000), 2, "int16"),
    ],
)
def test_what_is_no_label_map_or_width_is_refused(labels, width, message):
    with pytest.raises(ValueError, match=message):
        boundary_band(labels, width)


@pytest.mark.parametrize(
    ("band_field", "expected"),
    [({"boundary": 0.5}, [0.8, 0.5, 0.5, 0.9]), ({"edge_boost": 0.15}, [0.8, 0.95, 1.0, 0.9])],
)
def test_accuracies_follow_region_and_side(band_field, expected):
    profile = ExpertProfile(name="a", foreground=0.9, background=0.8, **band_field)
    labels = torch.tensor([[0, 0, 2, 2, 2]])
    reference = Reference.from_labels(labels, (0, 1, 2), boundary_width=1)
    found = torch.full(labels.shape, -1.0)
    for mask, accuracy in region_accuracies(reference, profile):
        assert (found[mask] == -1).all()
        found[mask] = accuracy
    assert found[0].tolist() == pytest.approx([*expected, expected[-1]])


def test_a_reference_hides_ignored_voxels():
    labels = torch.tensor([[0, 0, 2], [1, 2, 2]], dtype=torch.uint8)
    reference = Reference.from_labels(labels, (0, 1), boundary_width=1, ignore_label=2)
    assert reference.labels.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert reference.valid.tolist() == [[True, True, False], [True, False, False]]
    assert reference.band.tolist() == [[True, True, False], [True, False, False]]


@pytest.mark.parametrize(
    ("values", "ignore_label", "message"),
    [
        ((0,), None, r"at least two label values.*\[0\]"),
        ((1, 2), None, r"begin with the background label 0, got \[1, 2\]"),
        ((), None, "background label 0"),
        ((0, 70000), None, "int16, got 70000"),
        ((0, 1, 2), 2, "ignore label 2 is among"),
        ((0, 1), None, r"contains \[2\].*\[0, 1\]"),
        ((0, 1, 3), None, r"contains \[2\].*\[0, 1, 3\]"),
    ],
)
def test_label_values_that_do_not_fit_are_refused(values, ignore_label, message):
    with pytest.raises(ValueError, match=message):
        Reference.from_labels(torch.tensor([[0, 1, 2]]), values, ignore_label=ignore_label)


def test_widths_do_not_depend_on_the_digits_of_a_header():
    for spacing in (0.8, 0.79999989, 0.80000012):
        assert widths_in_voxels(2, (spacing, 5.0, 1.0)) == (3, 0, 2)
