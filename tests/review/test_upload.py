"""Masks that were drawn in another program."""

import gzip
import hashlib
import re

import numpy as np
import pytest
import SimpleITK as sitk
from skimage import io
from small_review import write_pictures, write_volumes

from nnunetv2_deferral.review.masks import write_mask

CASE = "case_a"


def send(browser, body, *, case=CASE, name="mask.nii.gz", revision=0, digest=None):
    return browser.post(
        f"/api/cases/{case}/upload?revision={revision}&key={'u' * 16}&name={name}",
        content=body,
        headers={"x-content-sha256": digest or hashlib.sha256(body).hexdigest()},
    )


@pytest.fixture
def ann(served):
    return served.browser("ann")


@pytest.fixture
def downloaded(ann, tmp_path):
    """The expert's mask as the page gives it, with all of the first region set."""
    file = tmp_path / "downloaded.nii.gz"
    file.write_bytes(ann.get(f"/api/cases/{CASE}/download/mask").content)
    image = sitk.ReadImage(str(file))
    regions = tmp_path / "regions.nii.gz"
    regions.write_bytes(ann.get(f"/api/cases/{CASE}/download/regions").content)
    own = sitk.GetArrayFromImage(sitk.ReadImage(str(regions)))
    array = sitk.GetArrayFromImage(image)
    array[own == 1] = 1
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    return changed


def as_bytes(image, tmp_path, name="sent.nii.gz"):
    sitk.WriteImage(image, str(tmp_path / name))
    return (tmp_path / name).read_bytes()


def labels_of(ann):
    regions, labels = ann.volume(CASE, "regions", np.uint16), ann.volume(CASE, "labels")
    return labels[regions == 1]


def test_a_mask_that_was_changed_inside_of_the_regions_is_taken_over(ann, downloaded, tmp_path):
    assert not labels_of(ann).all()
    answer = send(ann, as_bytes(downloaded, tmp_path))
    assert answer.status_code == 200, answer.text
    assert answer.json()["done"] == [1, 2]
    assert labels_of(ann).all()
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1}).status_code == 200


def test_a_mask_whose_axes_are_stored_in_another_order_is_taken_over(ann, downloaded, tmp_path):
    turned = sitk.Flip(sitk.PermuteAxes(downloaded, (2, 0, 1)), (True, False, True))
    assert send(ann, as_bytes(turned, tmp_path)).status_code == 200
    assert labels_of(ann).all()


def test_another_format_that_the_reader_knows_is_taken_over(ann, downloaded, tmp_path):
    assert send(ann, as_bytes(downloaded, tmp_path, "m.nrrd"), name="My Mask.NRRD").status_code == 200
    assert labels_of(ann).all()


def shifted(image):
    image.SetOrigin([at + 0.5 for at in image.GetOrigin()])
    return image


def other_spacing(image):
    image.SetSpacing([0.7, 0.9, 2.0])
    return image


def other_direction(image):
    image.SetDirection(np.eye(3).ravel())
    return image


def cropped(image):
    return image[:-1]


def transposed(image):
    turned = sitk.GetImageFromArray(sitk.GetArrayFromImage(image).transpose(0, 2, 1).copy())
    for name in ("Spacing", "Origin", "Direction"):
        getattr(turned, f"Set{name}")(getattr(image, f"Get{name}")())
    return turned


def unknown_label(image):
    image[10, 5, 2] = 5
    return image


def fraction(image):
    return sitk.Cast(image, sitk.sitkFloat32) * 0.5


def outside(image):
    image[0, 0, 0] = 1
    return image


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shifted, "Spacing, origin or direction of the file differ"),
        (other_spacing, "Spacing, origin or direction of the file differ"),
        (other_direction, "Spacing, origin or direction of the file differ|has shape"),
        (cropped, "voxels"),
        (transposed, "has shape"),
        (unknown_label, "labels that are not in the dataset: 5"),
        (fraction, "not whole numbers"),
        (outside, "differs from the model's mask in 1 voxels outside your regions"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_whole(served, ann, downloaded, tmp_path, snapshot, change, reason):
    body = as_bytes(change(downloaded), tmp_path)
    before = snapshot(served.folders.reviews)
    answer = send(ann, body)
    assert answer.status_code == 422
    assert re.search(reason, answer.json()["reason"]), answer.json()
    assert snapshot(served.folders.reviews) == before


def test_a_file_that_is_cut_short_or_changed_on_the_way_is_refused(served, ann, downloaded, tmp_path, snapshot):
    body = as_bytes(downloaded, tmp_path)
    before = snapshot(served.folders.reviews)
    for part in (body[: len(body) // 2], body[:-4], body[:10], b""):
        assert send(ann, part).status_code == 422
    assert send(ann, body, digest="0" * 64).status_code == 400
    assert send(ann, b"no mask at all").status_code == 422
    assert send(ann, body, name="mask.exe").status_code == 422
    assert send(ann, body, name="").status_code == 422
    assert send(ann, body, revision=4).status_code == 409
    assert snapshot(served.folders.reviews) == before


def test_a_small_file_that_unfolds_into_a_huge_volume_is_refused_by_its_header(ann):
    header = bytearray(352)
    header[0:4] = (348).to_bytes(4, "little")
    for place, size in enumerate((3, 30000, 30000, 30000)):
        header[40 + 2 * place : 42 + 2 * place] = size.to_bytes(2, "little")
    header[70:72] = (2).to_bytes(2, "little")
    header[72:74] = (8).to_bytes(2, "little")
    header[108:112] = np.float32(352).tobytes()
    header[344:348] = b"n+1\0"
    answer = send(ann, gzip.compress(bytes(header)))
    assert answer.status_code == 422
    assert "30000 x 30000 x 30000" in answer.json()["reason"]


def test_where_the_expert_is_not_asked_the_ignore_label_may_stand(tmp_path, serve):
    served = serve(write_volumes(tmp_path, labels={"background": 0, "nodule": 1, "ignore": 2}))
    ann = served.browser("ann")
    case = served.review.study.case(CASE)
    mask = np.where(case.route == 1, 1, 2).astype(np.uint8)
    file = tmp_path / "ignored.nii.gz"
    write_mask(mask, case, file, served.review.study.predictions.files)
    assert send(ann, file.read_bytes()).status_code == 200
    mask[case.route == 1] = 2
    write_mask(mask, case, file, served.review.study.predictions.files)
    assert send(ann, file.read_bytes(), revision=1).status_code == 422


def test_a_picture_can_be_uploaded_too(tmp_path, serve):
    ann = serve(write_pictures(tmp_path)).browser("ann")
    file = tmp_path / "mask.png"
    file.write_bytes(ann.get("/api/cases/photo/download/mask").content)
    assert send(ann, file.read_bytes(), case="photo", name="mask.png").status_code == 200
    io.imsave(file, np.zeros((20, 24, 3), dtype=np.uint8), check_contrast=False)
    answer = send(ann, file.read_bytes(), case="photo", name="mask.png", revision=1)
    assert answer.status_code == 422
