"""Masks of real experts in the formats of nnU-Net: what is read, and what is refused with file and value."""

import re

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io
from small_dataset import DIRECTION, ORIGIN, SPACING, write_mask

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import geometry_differences
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.raters import ExpertMasks, declared_raters

FORMATS = {".png": (NaturalImage2DIO, (7, 9)), ".nii.gz": (SimpleITKIO, (4, 7, 9))}


def label_map(ending, highest=2, seed=0):
    return np.random.default_rng(seed).integers(0, highest + 1, FORMATS[ending][1]).astype(np.uint8)


def write(folder, rater, case, ending, mask, **geometry):
    file = folder / rater / f"{case}{ending}"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_mask(file, mask, **geometry)
    return file


def masks_in(folder, ending=".nii.gz", experts=("ann", "bob"), reader=None, **more):
    reader = FORMATS[ending][0]() if reader is None else reader
    how = {"file_ending": ending, "reader": reader, "label_values": (0, 1, 2)}
    return ExpertMasks(folder=folder, experts=experts, **how, **more)


def properties_of(file, reader=None):
    return (reader or SimpleITKIO()).read_images([str(file)])[1]


class TestReading:
    @pytest.mark.parametrize("ending", list(FORMATS))
    def test_the_labels_are_those_of_the_file_with_an_axis_of_slices(self, tmp_path, ending):
        mask = label_map(ending)
        write(tmp_path, "ann", "x", ending, mask)
        labels = masks_in(tmp_path, ending).read("ann", "x")
        assert labels.dtype == np.int16
        assert np.array_equal(labels, mask if mask.ndim == 3 else mask[None])

    @pytest.mark.parametrize("ending", list(FORMATS))
    def test_a_case_that_an_expert_did_not_annotate_is_missing_and_the_others_are_not(self, tmp_path, ending):
        mask = label_map(ending)
        write(tmp_path, "bob", "x", ending, mask)
        masks = masks_in(tmp_path, ending, experts=("ann", "bob", "eve"))
        assert masks.read("ann", "x") is None
        shape = mask.shape if mask.ndim == 3 else (1, *mask.shape)
        answers = masks.answers("x", shape)
        assert answers.dtype == np.int16
        assert (answers[[0, 2]] == MISSING).all()
        assert np.array_equal(answers[1].reshape(mask.shape), mask)

    @pytest.mark.parametrize("ending", list(FORMATS))
    def test_voxels_with_the_ignore_label_are_missing_and_no_others(self, tmp_path, ending):
        mask = label_map(ending, highest=3)
        write(tmp_path, "ann", "x", ending, mask)
        labels = masks_in(tmp_path, ending, ignore_label=3).read("ann", "x").reshape(mask.shape)
        assert (mask == 3).any()
        assert np.array_equal(labels, np.where(mask == 3, MISSING, mask.astype(int)))

    def test_the_geometry_is_compared_only_with_one_that_is_given(self, tmp_path):
        write(tmp_path, "ann", "x", ".nii.gz", label_map(".nii.gz"), origin=(0, 0, 0))
        assert masks_in(tmp_path).read("ann", "x") is not None

    def test_cases_are_the_files_of_this_ending_in_order(self, tmp_path):
        for case in ("b", "a", "._a"):
            write(tmp_path, "ann", case, ".nii.gz", label_map(".nii.gz"))
        (tmp_path / "ann" / "a.json").write_text("{}")
        assert masks_in(tmp_path).cases("ann") == ["a", "b"]
        assert masks_in(tmp_path).cases("bob") == []


class TestRefusals:
    @pytest.mark.parametrize("ending", list(FORMATS))
    def test_labels_that_the_dataset_does_not_have(self, tmp_path, ending):
        mask = label_map(ending)
        mask[..., 0, 0], mask[..., 0, 1] = 7, 3
        file = write(tmp_path, "ann", "x", ending, mask)
        with pytest.raises(ValueError, match="contains labels that are not in dataset.json: 3, 7") as refused:
            masks_in(tmp_path, ending).read("ann", "x")
        assert str(file) in str(refused.value)

    def test_the_ignore_label_where_the_dataset_has_none(self, tmp_path):
        write(tmp_path, "ann", "x", ".nii.gz", label_map(".nii.gz", highest=3))
        with pytest.raises(ValueError, match="not in dataset.json: 3$"):
            masks_in(tmp_path).read("ann", "x")

    def test_fractions_of_labels(self, tmp_path):
        file = tmp_path / "ann" / "x.nii.gz"
        file.parent.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 3, 4), 0.5, np.float32)), str(file))
        with pytest.raises(ValueError, match="x.nii.gz: contains labels .*: 0.5"):
            masks_in(tmp_path).read("ann", "x")

    def test_only_ten_of_many_labels_are_listed(self, tmp_path):
        write(tmp_path, "ann", "x", ".nii.gz", np.arange(30, dtype=np.uint8).reshape(2, 3, 5))
        with pytest.raises(ValueError, match=r": 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, \.\.\.$"):
            masks_in(tmp_path).read("ann", "x")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"spacing": (0.8, 1.1, 3.0)}, "spacing (3, 1.1, 0.8) instead of (2.5, 1.1, 0.8)"),
            ({"origin": (-7.0, 3.5, 0.0)}, "origin (-7, 3.5, 0) instead of (-7, 3.5, 11)"),
            (
                {"direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)},
                "direction (1, 0, 0, 0, 1, 0, 0, 0, 1) instead of (0, -1, 0, 1, 0, 0, 0, 0, 1)",
            ),
        ],
    )
    def test_another_geometry_than_the_images(self, tmp_path, change, message):
        mask = label_map(".nii.gz")
        image = write(tmp_path, "images", "x", ".nii.gz", mask, spacing=SPACING)
        file = write(tmp_path, "ann", "x", ".nii.gz", mask, **({"spacing": SPACING} | change))
        # A direction of 0 is read as one of -0, depending on the version of ITK.
        with pytest.raises(InputError) as refused:
            masks_in(tmp_path).read("ann", "x", properties_of(image))
        said = str(refused.value).replace("(-0", "(0").replace(" -0", " 0")
        assert re.fullmatch(re.escape(f"{file}: {message}") + r" \(corners up to \S+ voxels apart\)", said)

    def test_all_that_is_wrong_with_a_file_is_said_at_once(self, tmp_path):
        image = write(tmp_path, "images", "x", ".nii.gz", label_map(".nii.gz"))
        write(tmp_path, "ann", "x", ".nii.gz", 9 * label_map(".nii.gz"), origin=(0, 0, 0), spacing=(1, 1, 1))
        with pytest.raises(ValueError, match=r"dataset.json: 9, 18; spacing .*; origin \(0, 0, 0\)"):
            masks_in(tmp_path).read("ann", "x", properties_of(image))

    @pytest.mark.parametrize("ending", list(FORMATS))
    def test_another_shape_than_the_cases(self, tmp_path, ending):
        mask = label_map(ending)
        file = write(tmp_path, "bob", "x", ending, mask[..., :-1])
        shape = mask.shape if mask.ndim == 3 else (1, *mask.shape)
        message = re.escape(f"{file}: shape {(*shape[:-1], shape[-1] - 1)} instead of {shape}")
        with pytest.raises(ValueError, match=message):
            masks_in(tmp_path, ending).answers("x", shape)

    @pytest.mark.parametrize("ending", list(FORMATS))
    def test_a_file_that_was_cut_short(self, tmp_path, ending):
        file = write(tmp_path, "ann", "x", ending, label_map(ending))
        file.write_bytes(file.read_bytes()[:40])
        with pytest.raises(ValueError, match=re.escape(f"{file} cannot be read; is it complete? (")):
            masks_in(tmp_path, ending).read("ann", "x")

    def test_a_picture_in_colour(self, tmp_path):
        file = tmp_path / "ann" / "x.png"
        file.parent.mkdir()
        io.imsave(file, np.zeros((7, 9, 3), np.uint8), check_contrast=False)
        with pytest.raises(ValueError, match=r"x.png is not a map with one channel: .* shape \(3, 1, 7, 9\)"):
            masks_in(tmp_path, ".png").read("ann", "x")

    def test_experts_who_are_asked_and_have_no_masks_at_all(self, tmp_path):
        write(tmp_path, "ann", "x", ".nii.gz", label_map(".nii.gz"))
        (tmp_path / "eve").mkdir()
        masks = masks_in(tmp_path, experts=("ann", "bob", "eve"))
        masks.check_answers({"x": ["ann"], "y": ["ann"]})
        with pytest.raises(InputError, match=r"no \*.nii.gz in .*/bob, .*/eve \(existing folders: ann, eve\)"):
            masks.check_answers({"x": ["ann", "eve"], "y": ["bob"]})

    def test_experts_who_have_not_answered_in_a_review_yet(self, tmp_path):
        (tmp_path / "review.json").write_text("{}")
        masks = masks_in(tmp_path, experts=("ann", "bob"))
        with pytest.raises(InputError, match="has no mask of any expert for a case with voxels routed to this expert"):
            masks.check_answers({"x": ["ann", "bob"]})
        write(tmp_path, "ann", "x", ".nii.gz", label_map(".nii.gz"))
        masks.check_answers({"x": ["ann", "bob"], "y": ["bob"]})

    def test_masks_of_which_none_is_of_a_case_that_is_asked_about(self, tmp_path):
        for expert, case in (("ann", "other"), ("bob", "x")):
            write(tmp_path, expert, case, ".nii.gz", label_map(".nii.gz"))
        masks = masks_in(tmp_path, experts=("ann", "bob"))
        masks.check_answers({"x": [], "y": []})
        with pytest.raises(InputError, match=f"{tmp_path} has no mask of any expert for a case"):
            masks.check_answers({"x": ["ann"], "y": ["bob"]})

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("x.nii", "not .nii.gz"),
            ("x.NII.GZ", "not .nii.gz"),
            ("x.seg.nrrd", "not .nii.gz"),
            ("notes.txt", "not .nii.gz"),
            ("X.nii.gz", "not spelled x"),
            ("Stra\u00dfe.nii.gz", "not spelled strasse"),
            ("u\u0308.nii.gz", "not spelled \u00fc"),
        ],
    )
    def test_files_that_would_not_be_used_are_named(self, tmp_path, name, reason):
        write(tmp_path, "ann", "x", ".nii.gz", label_map(".nii.gz"))
        masks, cases = masks_in(tmp_path, experts=("ann",)), ["x", "strasse", "\u00fc"]
        for accompanying in (".DS_Store", "._x.nii.gz", "x.json"):
            (tmp_path / "ann" / accompanying).touch()
        write(tmp_path, "ann", "another_case", ".nii.gz", label_map(".nii.gz"))
        assert masks.unused(cases) == []
        (tmp_path / "ann" / name).touch()
        assert masks.unused(cases) == [f"{tmp_path / 'ann' / name} ({reason})"]
        with pytest.raises(InputError, match=re.escape(f"files that would not be used (1): {tmp_path / 'ann' / name}")):
            masks.check_answers({case: ["ann"] for case in cases})

    def test_an_experts_folder_that_is_spelled_otherwise_is_named(self, tmp_path):
        write(tmp_path, "Ann", "x", ".nii.gz", label_map(".nii.gz"))
        assert masks_in(tmp_path, experts=("ann",)).unused(["x"]) == [f"{tmp_path / 'Ann'} (not spelled ann)"]

    def test_a_folder_of_experts_that_is_empty(self, tmp_path):
        with pytest.raises(InputError, match=r"existing folders: none"):
            masks_in(tmp_path).check_answers({"x": ["ann"]})


class TestGeometry:
    def test_rounding_of_another_tool_is_no_difference(self, tmp_path):
        """A file that says where it is by a quaternion (single precision) beside one that says it by an affine."""
        image, mask = tmp_path / "image.nii.gz", tmp_path / "mask.nii.gz"
        array = np.zeros((9, 7, 4), np.uint8)
        affine = np.array([[0, -1.2, 0, 70], [0.8, 0, 0, -30], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])
        for file, quaternion in ((image, False), (mask, True)):
            written = nibabel.Nifti1Image(array, affine)
            written.set_sform(None if quaternion else affine, code=int(not quaternion))
            written.set_qform(affine if quaternion else None, code=int(quaternion))
            nibabel.save(written, file)
        for reader in (SimpleITKIO(), NibabelIO()):
            found, expected = properties_of(mask, reader), properties_of(image, reader)
            assert str(found) != str(expected)
            assert geometry_differences(found, expected, (4, 7, 9)) == []

    @pytest.mark.parametrize(("voxels", "differs"), [(0.0, False), (0.01, False), (0.049, False), (0.06, True)])
    def test_a_shift_by_more_than_a_twentieth_of_a_voxel_is_a_difference(self, tmp_path, voxels, differs):
        mask = label_map(".nii.gz")
        files = [
            write(tmp_path, rater, "x", ".nii.gz", mask, origin=(*ORIGIN[:2], height))
            for rater, height in (("ann", ORIGIN[2]), ("bob", ORIGIN[2] + voxels * min(SPACING)))
        ]
        differences = geometry_differences(*map(properties_of, files), mask.shape)
        assert len(differences) == differs
        assert all(re.fullmatch(r"origin .* \(corners up to 0.06 voxels apart\)", each) for each in differences)

    def test_a_small_turn_is_a_difference_if_it_moves_a_corner(self, tmp_path):
        turned = (0.001, -1.0, 0.0, 1.0, 0.001, 0.0, 0.0, 0.0, 1.0)
        files = [
            write(tmp_path, rater, "x", ".nii.gz", label_map(".nii.gz"), direction=direction)
            for rater, direction in (("ann", DIRECTION), ("bob", turned))
        ]
        assert geometry_differences(*map(properties_of, files), (4, 7, 9)) == []  # 0.02 voxels at the farthest corner
        (difference,) = geometry_differences(*map(properties_of, files), (4, 70, 90))
        assert difference.startswith("direction ")

    def test_what_only_one_of_them_has_is_not_compared(self):
        volume = {"spacing": [1, 1, 1], "sitk_stuff": {"origin": (0, 0, 0)}}
        assert geometry_differences(volume, {"spacing": [1, 1, 1]}, (2, 3, 4)) == []
        assert geometry_differences({"spacing": [1, 1, 1]}, volume, (2, 3, 4)) == []

    def test_a_mask_stored_in_another_orientation_fits_once_the_reader_turns_both(self, tmp_path):
        mask = label_map(".nii.gz").transpose(2, 1, 0)
        affine = np.diag([0.8, 1.1, 2.5, 1.0])
        image = nibabel.Nifti1Image(mask, affine)
        nibabel.save(image, tmp_path / "image.nii.gz")
        (tmp_path / "ann").mkdir()
        flipped = image.as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
        nibabel.save(flipped, tmp_path / "ann" / "x.nii.gz")
        reader = NibabelIOWithReorient()
        labels = masks_in(tmp_path, reader=reader).read("ann", "x", properties_of(tmp_path / "image.nii.gz", reader))
        assert np.array_equal(labels, mask.transpose(2, 1, 0))
        with pytest.raises(ValueError, match=r"ann/x.nii.gz: affine \(-0.8"):
            masks_in(tmp_path, reader=NibabelIO()).read(
                "ann", "x", properties_of(tmp_path / "image.nii.gz", NibabelIO())
            )


class TestDeclaration:
    def test_the_order_of_dataset_json_is_kept(self):
        assert declared_raters({"experts": ["bob", "ann"]}) == ("bob", "ann")

    def test_a_dataset_need_not_declare_any(self):
        assert declared_raters({}) == ()
        assert declared_raters({"experts": []}) == ()

    @pytest.mark.parametrize(
        "declared",
        [
            "ann",
            None,
            {"ann": 1},
            ["ann", 2],
            ["ann", "ann"],
            ["ann", ""],
            ["."],
            [".."],
            ["a/b"],
            ["a\\b"],
            [["ann"]],
            ["ann", "system"],
            ["model"],
        ],
    )
    def test_what_cannot_be_folders_of_masks_is_refused_and_shown(self, declared):
        with pytest.raises(InputError, match='^"experts" in dataset.json') as refused:
            declared_raters({"experts": declared})
        shown = declared[-1] if isinstance(declared, list) else declared
        assert repr(shown) in str(refused.value)
