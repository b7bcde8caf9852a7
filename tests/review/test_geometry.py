"""To the browser's orientation and back is the identity, and the browser's orientation is the one it claims to be."""

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_deferral.geometry import displacement_voxels, orientation_of

SHAPE = (3, 4, 5)
SPACING = (0.5, 0.8, 2.0)
ORIGIN = (-3.0, 7.0, 11.0)
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
TILT = np.array([[0.9848, -0.1736, 0.0], [0.1736, 0.9848, 0.0], [0.0, 0.0, 1.0]])


def matrix(order, signs):
    """A direction matrix whose file axis i points along patient axis order[i]."""
    directions = np.zeros((3, 3))
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        directions[world, axis] = sign
    return directions


def properties_of(direction):
    sitk_stuff = {"spacing": SPACING, "origin": ORIGIN, "direction": tuple(np.ravel(direction))}
    return {"sitk_stuff": sitk_stuff, "spacing": SPACING[::-1]}


def test_there_are_48_orientations():
    assert len({tuple(np.ravel(matrix(*orientation))) for orientation in ORIENTATIONS}) == 48


@pytest.mark.parametrize("tilt", [np.eye(3), TILT], ids=["straight", "oblique"])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_to_the_browser_and_back_is_the_identity_for_every_orientation(order, signs, tilt):
    orientation = orientation_of(properties_of(tilt @ matrix(order, signs)), SHAPE)
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    assert np.array_equal(orientation.to_file(orientation.to_canonical(array)), array)
    channels = np.stack([array, -array])
    assert np.array_equal(orientation.to_file(orientation.to_canonical(channels)), channels)


@pytest.mark.parametrize("tilt", [np.eye(3), TILT], ids=["straight", "oblique"])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_every_voxel_keeps_its_place_in_the_patient(order, signs, tilt):
    direction = tilt @ matrix(order, signs)
    orientation = orientation_of(properties_of(direction), SHAPE)
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))  # index (z, y, x) of the file
    turned = orientation.to_canonical(places)
    to_mm = direction * np.asarray(SPACING)
    for index in np.ndindex(turned.shape[1:]):
        in_file = turned[(slice(None), *index)][::-1]
        expected = np.asarray(ORIGIN) + to_mm @ in_file
        found = orientation.affine @ [*index[::-1], 1]
        assert found[:3] == pytest.approx(expected)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_the_browser_counts_towards_left_posterior_and_superior(order, signs):
    orientation = orientation_of(properties_of(matrix(order, signs)), SHAPE)
    steps = orientation.affine[:3, :3]
    assert steps == pytest.approx(np.diag(np.diag(steps)))
    assert (np.diag(steps) > 0).all()
    assert orientation.spacing_mm == pytest.approx(np.diag(steps)[::-1])
    assert orientation.oblique_degrees == pytest.approx(0, abs=1e-6)


def test_an_oblique_volume_says_by_how_much():
    assert orientation_of(properties_of(TILT), SHAPE).oblique_degrees == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO, NibabelIOWithReorient])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_all_readers_of_nnunet_show_the_same_volume(tmp_path, reader, signs):
    direction = TILT @ matrix((1, 2, 0), signs)
    array = np.random.default_rng(0).integers(0, 9, SHAPE).astype(np.uint8)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(direction.ravel())
    file = tmp_path / "x.nii.gz"
    sitk.WriteImage(image, str(file))
    values, properties = reader().read_seg(str(file))
    shown = orientation_of(properties, values.shape[1:]).to_canonical(values[0])
    expected = orientation_of(properties_of(direction), SHAPE)
    assert np.array_equal(shown, expected.to_canonical(array))
    apart = displacement_voxels(orientation_of(properties, values.shape[1:]), expected, shown.shape)
    assert apart < 1e-3


def test_pictures_are_shown_as_they_are_and_have_no_sides():
    orientation = orientation_of({"spacing": (999, 1, 1)}, (1, 4, 5))
    array = np.arange(20).reshape(1, 4, 5)
    assert np.array_equal(orientation.to_canonical(array), array)
    assert not orientation.named


def test_a_shift_is_told_in_voxels():
    moved = properties_of(np.eye(3))
    moved["sitk_stuff"] = moved["sitk_stuff"] | {"origin": (-3.0, 7.0, 11.25)}
    here, there = orientation_of(properties_of(np.eye(3)), SHAPE), orientation_of(moved, SHAPE)
    assert displacement_voxels(there, here, SHAPE) == pytest.approx(0.5)


def test_directions_that_span_no_space_are_refused():
    with pytest.raises(ValueError, match="not linearly independent"):
        orientation_of(properties_of(np.ones((3, 3))), SHAPE)
