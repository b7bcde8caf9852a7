import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from skimage import io

from nnunetv2_deferral import maps
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.settings import resolve_settings

SETTINGS = resolve_settings(None)
MODEL = maps.ModelIdentity(
    dataset="Dataset001_A", plans="nnUNetPlans", configuration="2d", trainer="T", experts=SETTINGS.expert_names
)
OBLIQUE = (0.0, 0.8, 0.6, -1.0, 0.0, 0.0, 0.0, -0.6, 0.8)


def make_maps(shape, seed=0):
    generator = np.random.default_rng(seed)
    route = generator.integers(0, 4, shape).astype(np.uint8)
    return route, generator.random(shape, dtype=np.float32)


def write(folder, case, ending, route, probability, writer, properties, model=MODEL):
    made = RoutingMaps(route, probability, np.maximum(route, 1), probability / 50)
    deferral = maps.DeferralFolder(folder=folder, file_ending=ending, writer=writer, model=model, settings=SETTINGS)
    deferral.write(case, made, properties)


@pytest.mark.parametrize("writer", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
def test_maps_of_volumes_keep_the_geometry_of_the_image(tmp_path, writer):
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((4, 5, 6), dtype=np.float32))
    image.SetSpacing((0.7, 1.3, 2.5))
    image.SetOrigin((3.0, -4.0, 5.0))
    # Reorienting writers only know axis permutations and flips.
    image.SetDirection(OBLIQUE if "Reorient" not in writer.__name__ else (0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "image.nii.gz"))
    array, properties = writer().read_images([str(tmp_path / "image.nii.gz")])
    route = (array[0] * 4).astype(np.uint8)
    write(tmp_path, "case", ".nii.gz", route, array[0], writer(), properties)
    probability = sitk.ReadImage(str(maps.probability_file(tmp_path, "case", ".nii.gz")))
    written_route = sitk.ReadImage(str(maps.route_file(tmp_path, "case", ".nii.gz")))
    assert probability.GetPixelID() == sitk.sitkFloat32
    assert written_route.GetPixelID() == sitk.sitkUInt8
    for written in (probability, written_route):
        assert written.GetSpacing() == pytest.approx(image.GetSpacing(), abs=1e-5)
        assert written.GetOrigin() == pytest.approx(image.GetOrigin(), abs=1e-5)
        assert written.GetDirection() == pytest.approx(image.GetDirection(), abs=1e-5)
    # The map equals the image it was made of, voxel for voxel, whatever the writer did to the axes.
    difference = sitk.GetArrayFromImage(probability) - sitk.GetArrayFromImage(image)
    assert np.abs(difference).max() <= 0.5 / 65535 + 1e-6
    expected = (sitk.GetArrayFromImage(image) * 4).astype(np.uint8)
    assert np.array_equal(sitk.GetArrayFromImage(written_route), expected)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("writer", [SimpleITKIO, NibabelIO])
def test_in_nifti_gains_are_scaled_integers_that_every_reader_scales_back(tmp_path, ending, writer):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4), np.float32)), str(tmp_path / "image.nii.gz"))
    _, properties = writer().read_images([str(tmp_path / "image.nii.gz")])
    gain = np.linspace(0, 3e-4, 24, dtype=np.float32).reshape(2, 3, 4)
    gain[0, 0, 1] = 1e-12
    made = RoutingMaps((gain > 1e-4).astype(np.uint8), gain, np.ones(gain.shape, np.uint8), gain)
    maps.DeferralFolder(folder=tmp_path, file_ending=ending, writer=writer(), model=MODEL, settings=SETTINGS).write(
        "case", made, properties
    )
    file = maps.gain_file(tmp_path, "case", ending)
    if ending == ".nii.gz":
        assert file.read_bytes()[3:8] == bytes(5)  # neither a name nor a time, so that files can be compared
    assert [each.name for each in file.parent.iterdir()] == [file.name]
    stored = nibabel.load(file)
    assert stored.get_data_dtype() == np.uint16
    step = 3e-4 / 65535
    for found in (sitk.GetArrayFromImage(sitk.ReadImage(str(file))), np.asarray(stored.get_fdata()).T):
        assert (found > 0).tolist() == (gain > 0).tolist()
        assert np.abs(found - gain).max() < step * 1.01
        assert np.abs(found - gain)[gain > step].max() < step * 0.51


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_a_case_without_any_gain_has_a_map_of_zeros(tmp_path, ending):
    writer, properties = SimpleITKIO(), {"sitk_stuff": {"spacing": (1, 1), "origin": (0, 0), "direction": (1, 0, 0, 1)}}
    nothing = np.zeros((1, 4, 5), np.float32)
    write(tmp_path, "case", ending, nothing.astype(np.uint8), nothing, writer, properties)
    for file in (maps.gain_file, maps.probability_file):
        assert not sitk.GetArrayFromImage(sitk.ReadImage(str(file(tmp_path, "case", ending)))).any()


def test_in_png_the_probability_is_an_integer_of_16_bits(tmp_path):
    route, probability = make_maps((1, 7, 9))
    probability[0, 0, :2] = (0.0, 1.0)
    write(tmp_path, "case", ".png", route, probability, NaturalImage2DIO(), {"spacing": (999, 1, 1)})
    written = io.imread(maps.probability_file(tmp_path, "case", ".png"))
    assert written.dtype == np.uint16
    assert written[0, :2].tolist() == [0, 65535]
    assert np.abs(written / 65535 - probability[0]).max() <= 0.5 / 65535 + 1e-6
    assert np.array_equal(io.imread(maps.route_file(tmp_path, "case", ".png")), route[0])
    assert np.array_equal(io.imread(maps.expert_file(tmp_path, "case", ".png")), np.maximum(route[0], 1))


@pytest.mark.parametrize(
    ("ending", "scale"), [(".PNG", 65535), (".Png", 65535), (".TIF", 65535), (".BMP", 255), (".bmp", 255)]
)
def test_endings_in_upper_case_have_integers_too(tmp_path, ending, scale):
    route, probability = make_maps((1, 7, 9))
    write(tmp_path, "case", ending, route, probability, NaturalImage2DIO(), {"spacing": (999, 1, 1)})
    written = io.imread(maps.probability_file(tmp_path, "case", ending))
    assert written.dtype == np.min_scalar_type(scale)
    assert np.abs(written / scale - probability[0]).max() <= 0.5 / scale + 1e-6
    assert np.array_equal(io.imread(maps.route_file(tmp_path, "case", ending)), route[0])


def test_a_stack_of_tif_images_keeps_its_floats_and_the_file_with_its_spacing(tmp_path):
    route, probability = make_maps((3, 7, 9))
    write(tmp_path, "case", ".tif", route, probability, Tiff3DIO(), {"spacing": (2.0, 1.0, 1.0)})
    written, properties = Tiff3DIO().read_seg(str(maps.probability_file(tmp_path, "case", ".tif")))
    assert np.array_equal(written[0], probability)
    assert list(properties["spacing"]) == [2.0, 1.0, 1.0]


def test_the_index_holds_the_rates_of_every_case(tmp_path):
    route = np.array([[[0, 0, 1, 1], [2, 0, 0, 0]]], dtype=np.uint8)
    write(tmp_path, "b", ".png", route, np.zeros(route.shape, np.float32), NaturalImage2DIO(), {})
    write(tmp_path, "a", ".png", 0 * route, np.zeros(route.shape, np.float32), NaturalImage2DIO(), {})
    index = maps.read_index(tmp_path)
    assert list(index["cases"]) == ["a", "b"]
    assert index["cases"]["b"]["deferral_rate"] == pytest.approx(3 / 8)
    assert index["cases"]["b"]["share"] == pytest.approx({"expert1": 2 / 8, "expert2": 1 / 8, "expert3": 0})
    assert index["cases"]["a"]["deferral_rate"] == 0
    assert index["model"]["experts"] == ["expert1", "expert2", "expert3"]
    assert set(index["versions"]) == {"nnunetv2_deferral", "nnunetv2", "torch"}
    text = maps.deferred_text(tmp_path, ["a", "b", "elsewhere"])
    assert text.startswith(
        "Deferred 18.75% of the voxels (expert1 12.50%, expert2 6.25%, expert3 0.00%), mean of 2 cases."
    )
    assert maps.deferred_text(tmp_path, ["elsewhere"]) == ""


def test_cases_written_at_the_same_time_are_all_in_the_index(tmp_path):
    route, probability = make_maps((1, 4, 4))
    names = [f"case{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: write(tmp_path, name, ".png", route, probability, NaturalImage2DIO(), {}), names))
    assert set(maps.read_index(tmp_path)["cases"]) == set(names)


def test_a_case_adds_one_small_file_and_leaves_the_others_and_the_index(tmp_path):
    route, probability = make_maps((1, 4, 4))
    write(tmp_path, "a", ".png", route, probability, NaturalImage2DIO(), {})
    index = maps.index_file(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in (index, maps.case_file(tmp_path, "a"))}
    assert "cases" not in json.loads(index.read_text())
    write(tmp_path, "b", ".png", route, probability, NaturalImage2DIO(), {})
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert sorted(file.name for file in maps.case_file(tmp_path, "a").parent.iterdir()) == ["a.json", "b.json"]


def into_the_earlier_form(folder):
    index = maps.read_index(folder)
    for entry in index["cases"].values():
        del entry["model"]
    maps.index_file(folder).write_text(json.dumps(index))
    shutil.rmtree(maps.case_file(folder, "case").parent)


def test_folders_of_earlier_versions_are_read_and_added_to(tmp_path):
    route, probability = make_maps((1, 4, 4))
    for case in ("a", "b"):
        write(tmp_path, case, ".png", 0 * route, probability, NaturalImage2DIO(), {})
    into_the_earlier_form(tmp_path)
    assert set(maps.read_index(tmp_path)["cases"]) == {"a", "b"}
    for case in ("b", "c"):
        write(tmp_path, case, ".png", route | 1, probability, NaturalImage2DIO(), {})
    found = maps.read_index(tmp_path)["cases"]
    assert [entry["deferral_rate"] for entry in found.values()] == [0, 1, 1]


def test_parts_that_were_copied_together_are_whole_and_of_two_models_are_not(tmp_path):
    route, probability = make_maps((1, 4, 4))
    other = replace(MODEL, configuration="3d_fullres")
    for part, model in (("first", MODEL), ("second", MODEL), ("third", other)):
        write(tmp_path / part, part, ".png", route, probability, NaturalImage2DIO(), {}, model)
    for part in ("first", "second"):
        shutil.copytree(tmp_path / part, tmp_path / "all", dirs_exist_ok=True)
    assert set(maps.read_index(tmp_path / "all")["cases"]) == {"first", "second"}
    shutil.copytree(tmp_path / "third", tmp_path / "all", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"first\.json: the maps are of another model .* of .*deferral\.json"):
        maps.read_index(tmp_path / "all")


def test_a_folder_with_the_maps_of_another_model_is_refused(tmp_path):
    route, probability = make_maps((1, 4, 4))
    maps.check_folder(tmp_path, MODEL)
    write(tmp_path, "case", ".png", route, probability, NaturalImage2DIO(), {})
    maps.check_folder(tmp_path, MODEL)
    other = maps.ModelIdentity(
        dataset="Dataset001_A", plans="P", configuration="2d", trainer="T", experts=MODEL.experts
    )
    with pytest.raises(ValueError, match="maps of another model .plans: nnUNetPlans there, P now"):
        maps.check_folder(tmp_path, other)


def test_maps_made_while_another_expert_was_away_are_not_mixed_with_others(tmp_path):
    route, probability = make_maps((1, 4, 4))
    write(tmp_path, "case", ".png", route, probability, NaturalImage2DIO(), {})
    with pytest.raises(ValueError, match=r"unavailable: \[\] there, \['expert2'\] now"):
        maps.check_folder(tmp_path, replace(MODEL, unavailable=("expert2",)))


def test_a_map_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    class Failing(NaturalImage2DIO):
        def write_seg(self, seg, output_fname, properties):
            super().write_seg(seg, output_fname, properties)
            raise OSError("disk full")

    route, probability = make_maps((1, 4, 4))
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, "case", ".png", route, probability, Failing(), {})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
