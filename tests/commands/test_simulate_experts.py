import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from killed import killed_after
from skimage import io

from nnunetv2_deferral.answers import SIMULATION_NAME
from nnunetv2_deferral.commands.simulate_experts import main, simulate_experts_for_folder
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import ExpertProfile, expert_set
from nnunetv2_deferral.expert_sim.simulate import case_generator, simulate_experts

torch.set_num_threads(1)

REAL_DATA = Path(__file__).parents[2] / "../shared/data"
SPACING, ORIGIN = (0.7, 0.9, 2.5), (-11.0, 3.5, 40.0)
DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
PERFECT = ExpertProfile(name="oracle", foreground=1, background=1, boundary=1)


def volume(shape=(9, 24, 30), shift=0):
    labels = np.zeros(shape, dtype=np.uint8)
    labels[2:7, 4 + shift : 14 + shift, 5:20] = 1
    labels[3:6, 10 + shift : 18 + shift, 10:25] = 2
    return labels


def write_nifti(path, array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(path))


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def write_dataset_json(folder, labels=None, file_ending=".nii.gz", **more):
    labels = {"background": 0, "a": 1, "b": 2} if labels is None else labels
    path = folder / "dataset.json"
    path.write_text(json.dumps({"labels": labels, "file_ending": file_ending, "channel_names": {"0": "x"}, **more}))
    return path


@pytest.fixture
def dataset(tmp_path):
    """Three small volumes with an unusual geometry: (label folder, dataset.json, output folder)."""
    labels = tmp_path / "labelsTr"
    labels.mkdir()
    for shift in range(3):
        write_nifti(labels / f"case_{shift}.nii.gz", volume(shift=shift))
    return labels, write_dataset_json(tmp_path), tmp_path / "out"


def arrays(folder):
    return {str(path.relative_to(folder)): read(path) for path in sorted(folder.rglob("*.nii.gz"))}


def assert_same(first, second):
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_every_expert_answers_every_case_and_nothing_else_is_left(dataset):
    labels, djfile, out = dataset
    written = simulate_experts_for_folder(labels, djfile, out)
    expected = [out / f"expert{j}" / f"case_{case}.nii.gz" for j in (1, 2, 3) for case in range(3)]
    assert written == expected
    assert sorted(path for path in out.rglob("*") if path.is_file()) == [*expected, out / SIMULATION_NAME]
    assert sorted(path for path in out.rglob("*") if path.is_dir()) == [out / f"expert{j}" for j in (1, 2, 3)]


def test_answers_are_those_of_the_library_for_seed_case_and_expert(dataset):
    labels, djfile, out = dataset
    simulate_experts_for_folder(labels, djfile, out, experts="complementary", num_experts=2, seed=7, boundary_width=1)
    for profile in expert_set("complementary", 2):
        (expected,) = simulate_experts(
            torch.from_numpy(volume(shift=1)),
            (profile,),
            (0, 1, 2),
            generator=case_generator(7, "case_1", profile.name),
            boundary_width=1,
        )
        assert np.array_equal(read(out / profile.name / "case_1.nii.gz"), expected.numpy())


def test_profiles_of_a_file_answer_like_those_of_the_caller(dataset, tmp_path):
    labels, djfile, out = dataset
    hasty = ExpertProfile(name="hasty", foreground=0.6, background=0.9, boundary=0.7, error_model="correlated")
    file = tmp_path / "panel.json"
    file.write_text(json.dumps({"experts": [hasty.to_json(), PERFECT.to_json()]}))
    simulate_experts_for_folder(labels, djfile, out, experts=str(file))
    simulate_experts_for_folder(labels, djfile, tmp_path / "other", experts=[hasty, PERFECT])
    assert_same(arrays(out), arrays(tmp_path / "other"))
    assert json.loads((out / SIMULATION_NAME).read_text()) == json.loads(
        (tmp_path / "other" / SIMULATION_NAME).read_text()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"experts": [{"name": "ann", "foreground": 2, "background": 1, "boundary": 1}]}', "'ann': foreground must"),
        ('{"experts": ["ann"]}', "experts.*must be an object, got 'ann'"),
        ('{"raters": []}', "experts"),
        ('{"experts": []}', "panel.json has no experts"),
        ("not json", "panel.json"),
        (None, "panel.json"),
    ],
)
def test_a_file_of_profiles_that_makes_no_sense_is_named(dataset, tmp_path, content, message):
    labels, djfile, out = dataset
    file = tmp_path / "panel.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as refused:
        simulate_experts_for_folder(labels, djfile, out, experts=str(file))
    assert str(file) in str(refused.value)
    assert not out.exists()


def test_nifti_keeps_its_geometry(dataset):
    labels, djfile, out = dataset
    simulate_experts_for_folder(labels, djfile, out, num_experts=1)
    image = sitk.ReadImage(str(out / "expert1" / "case_0.nii.gz"))
    assert image.GetSpacing() == pytest.approx(SPACING)
    assert image.GetOrigin() == pytest.approx(ORIGIN)
    assert image.GetDirection() == pytest.approx(DIRECTION)


def test_png_is_answered_as_png(tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    io.imsave(labels / "x.png", volume()[4], check_contrast=False)
    djfile = write_dataset_json(tmp_path, file_ending=".png")
    simulate_experts_for_folder(labels, djfile, tmp_path / "out", experts=[PERFECT])
    answer = io.imread(tmp_path / "out" / "oracle" / "x.png")
    assert answer.dtype == np.uint8
    assert np.array_equal(answer, volume()[4])


def test_tiff_volumes_get_their_spacing_file_and_the_search_for_a_reader_is_silent(tmp_path, capfd):
    labels = tmp_path / "labels"
    labels.mkdir()
    tifffile.imwrite(labels / "x.tif", volume())
    (labels / "x.json").write_text(json.dumps({"spacing": [3, 1, 2]}))
    djfile = write_dataset_json(tmp_path, file_ending=".tif")
    simulate_experts_for_folder(labels, djfile, tmp_path / "out", experts=[PERFECT])
    assert np.array_equal(tifffile.imread(tmp_path / "out" / "oracle" / "x.tif"), volume())
    assert json.loads((tmp_path / "out" / "oracle" / "x.json").read_text()) == {"spacing": [3, 1, 2]}
    assert "Traceback" not in capfd.readouterr().err


def test_processes_order_and_company_do_not_change_the_answers(dataset, tmp_path):
    labels, djfile, out = dataset
    simulate_experts_for_folder(labels, djfile, out, error_model="correlated")
    spread = tmp_path / "spread"
    simulate_experts_for_folder(labels, djfile, spread, error_model="correlated", num_processes=2)
    assert_same(arrays(out), arrays(spread))
    (labels / "case_0.nii.gz").unlink()
    fewer = tmp_path / "fewer"
    simulate_experts_for_folder(labels, djfile, fewer, error_model="correlated", num_experts=2)
    assert_same({name: array for name, array in arrays(out).items() if name in arrays(fewer)}, arrays(fewer))


def test_parts_have_the_answers_of_one_call(dataset, tmp_path):
    labels, djfile, out = dataset
    simulate_experts_for_folder(labels, djfile, out)
    words = ["-i", labels, "-djfile", djfile, "-o", tmp_path / "parts", "-num_parts", 2, "-part_id"]
    main([*map(str, words), "1"])
    assert 0 < len(arrays(tmp_path / "parts")) < len(arrays(out))
    main([*map(str, words), "0"])
    assert_same(arrays(out), arrays(tmp_path / "parts"))


def test_another_seed_gives_other_answers(dataset, tmp_path):
    labels, djfile, out = dataset
    simulate_experts_for_folder(labels, djfile, out, num_experts=1)
    simulate_experts_for_folder(labels, djfile, tmp_path / "other", num_experts=1, seed=1)
    first, second = arrays(out), arrays(tmp_path / "other")
    assert all(not np.array_equal(first[name], second[name]) for name in first)


def test_the_error_model_can_be_chosen_for_all_experts(dataset):
    labels, djfile, out = dataset
    simulate_experts_for_folder(labels, djfile, out, error_model="missed_components", num_experts=2)
    record = json.loads((out / SIMULATION_NAME).read_text())
    assert [expert["error_model"] for expert in record["experts"]] == ["missed_components"] * 2
    assert [ExpertProfile.from_dict(expert).name for expert in record["experts"]] == ["expert1", "expert2"]
    assert (record["seed"], record["boundary_width"]) == (0, 2)


def test_five_experts_come_from_the_scalability_set(dataset):
    labels, djfile, out = dataset
    simulate_experts_for_folder(labels, djfile, out, num_experts=5)
    record = json.loads((out / SIMULATION_NAME).read_text())
    assert record["experts"] == [profile.to_json() for profile in expert_set("scalability", 5)]


def test_regions_and_the_ignore_label_are_honoured(tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    array = volume()
    array[:, :, :8] = 3
    write_nifti(labels / "x.nii.gz", array)
    regions = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    djfile = write_dataset_json(tmp_path, labels=regions, regions_class_order=[1, 2])
    simulate_experts_for_folder(labels, djfile, tmp_path / "out")
    for answer in arrays(tmp_path / "out").values():
        assert np.array_equal(answer == 3, array == 3)
        assert set(np.unique(answer)) == {0, 1, 2, 3}
        assert (answer != array).any()


def test_missing_inputs_are_refused(dataset, tmp_path):
    labels, djfile, out = dataset
    with pytest.raises(InputError, match="nowhere.json is missing"):
        simulate_experts_for_folder(labels, tmp_path / "nowhere.json", out)
    with pytest.raises(InputError, match="the folder of labels .*nowhere does not exist"):
        simulate_experts_for_folder(tmp_path / "nowhere", djfile, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no files with the ending .nii.gz"):
        simulate_experts_for_folder(tmp_path / "empty", djfile, out)
    assert not out.exists()


@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
def test_labels_that_the_dataset_does_not_know_are_named_with_their_file(dataset, num_processes):
    labels, djfile, out = dataset
    array = volume()
    array[0, 0, :2] = 7, 9
    write_nifti(labels / "case_1.nii.gz", array)
    with pytest.raises(InputError, match="case_1.nii.gz contains labels that are not in dataset.json: 7, 9"):
        simulate_experts_for_folder(labels, djfile, out, num_processes=num_processes)
    assert not list(out.rglob("case_1.nii.gz"))
    assert not list(out.rglob(".unfinished_*"))


def test_fractional_labels_and_colour_images_are_refused(dataset, tmp_path):
    labels, djfile, out = dataset
    write_nifti(labels / "case_0.nii.gz", volume().astype(np.float32) / 2)
    with pytest.raises(InputError, match="case_0.nii.gz contains labels .*: 0.5"):
        simulate_experts_for_folder(labels, djfile, out)
    colours = tmp_path / "colours"
    colours.mkdir()
    io.imsave(colours / "x.png", np.zeros((8, 8, 3), dtype=np.uint8), check_contrast=False)
    djfile = write_dataset_json(tmp_path, file_ending=".png")
    with pytest.raises(InputError, match="x.png is not a map with one channel"):
        simulate_experts_for_folder(colours, djfile, tmp_path / "out2")


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        ({"background": 0}, {}, "no foreground"),
        ({"background": 0, "ignore": 1}, {}, "no foreground"),
        ({"a": 1}, {}, "nnU-Net does not accept .*Background label not declared"),
        ({"background": 0, "ignore": 1, "a": 2}, {}, "nnU-Net does not accept .*ignore label"),
        ({"background": 0, "a": [1, 2]}, {}, "nnU-Net does not accept .*regions_class_order"),
        (None, {"file_ending": ".xyz"}, "no files with the ending .xyz"),
    ],
)
def test_datasets_that_cannot_be_answered_are_refused(dataset, labels, more, message):
    folder, djfile, out = dataset
    write_dataset_json(djfile.parent, labels=labels, **more)
    with pytest.raises(InputError, match=message):
        simulate_experts_for_folder(folder, djfile, out)


def test_a_file_ending_that_nnunet_cannot_read_is_refused(dataset):
    folder, djfile, out = dataset
    (folder / "x.xyz").write_text("no image")
    write_dataset_json(djfile.parent, file_ending=".xyz")
    with pytest.raises(InputError, match="no reader for .*x.xyz"):
        simulate_experts_for_folder(folder, djfile, out)


@pytest.mark.parametrize(("content", "message"), [("{", "json cannot be read"), ("{}", "json: labels is missing")])
def test_what_is_no_dataset_json_is_refused(dataset, content, message):
    folder, djfile, out = dataset
    djfile.write_text(content)
    with pytest.raises(InputError, match=message):
        simulate_experts_for_folder(folder, djfile, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": "fancy"}, "unknown expert set 'fancy'; known sets: standard"),
        ({"experts": "standard", "num_experts": 5}, "1 to 3 experts, not for 5"),
        ({"experts": []}, "the number of experts to simulate must be at least 1, got 0"),
        ({"experts": [PERFECT, PERFECT]}, "two experts have the same name"),
        ({"error_model": "drunk"}, "'drunk'"),
        ({"num_processes": 0}, "the number of processes must be at least 1, got 0"),
        ({"boundary_width": -1}, "at least 0 voxels, got -1"),
        ({"expert_voxel_mm": 0.0}, "voxels must be above 0 mm, got 0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(dataset, options, message):
    labels, djfile, out = dataset
    with pytest.raises(InputError, match=message):
        simulate_experts_for_folder(labels, djfile, out, **options)
    assert not out.exists()


def test_earlier_answers_are_replaced_only_when_asked(dataset):
    labels, djfile, out = dataset
    simulate_experts_for_folder(labels, djfile, out, num_experts=1)
    before = arrays(out)
    with pytest.raises(InputError, match="6 of 9|3 of 9"):
        simulate_experts_for_folder(labels, djfile, out, seed=1)
    assert_same(before, arrays(out))
    simulate_experts_for_folder(labels, djfile, out, num_experts=1, seed=1, overwrite=True)
    assert all(not np.array_equal(array, before[name]) for name, array in arrays(out).items())


def test_new_cases_join_earlier_ones_only_when_made_alike(dataset):
    labels, djfile, out = dataset
    simulate_experts_for_folder(labels, djfile, out)
    for file in labels.iterdir():
        file.rename(labels / file.name.replace("case", "next"))
    with pytest.raises(InputError, match="answers simulated with other parameters"):
        simulate_experts_for_folder(labels, djfile, out, seed=1)
    simulate_experts_for_folder(labels, djfile, out)
    assert len(arrays(out)) == 18


def test_references_are_never_replaced(dataset):
    labels, djfile, _ = dataset
    expert = ExpertProfile(name=labels.name, foreground=0.5, background=0.5, boundary=0.5)
    with pytest.raises(InputError, match="would overwrite the labels"):
        simulate_experts_for_folder(labels, djfile, labels.parent, experts=[expert], overwrite=True)
    assert np.array_equal(read(labels / "case_0.nii.gz"), volume())


def test_a_write_that_fails_leaves_no_trace(dataset, monkeypatch):
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    def fail(self, seg, output_fname, properties):
        Path(output_fname).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(SimpleITKIO, "write_seg", fail)
    labels, djfile, out = dataset
    with pytest.raises(OSError, match="disk full"):
        simulate_experts_for_folder(labels, djfile, out)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["simulation.json"]
    monkeypatch.undo()
    assert simulate_experts_for_folder(labels, djfile, out)


@pytest.mark.parametrize("written", [1, 4])
def test_a_call_that_was_killed_can_be_repeated(dataset, monkeypatch, written):
    labels, djfile, out = dataset
    expected = {file: file.read_bytes() for file in simulate_experts_for_folder(labels, djfile, out)}
    shutil.rmtree(out)
    killed_after(written + 1, monkeypatch)  # the first is the record
    with pytest.raises(KeyboardInterrupt):
        simulate_experts_for_folder(labels, djfile, out)
    monkeypatch.undo()
    assert 0 < sum(file.is_file() for file in expected) < len(expected)
    with pytest.raises(InputError, match="already exist"):
        simulate_experts_for_folder(labels, djfile, out, seed=1)
    simulate_experts_for_folder(labels, djfile, out)
    assert {file: file.read_bytes() for file in expected} == expected


def test_the_command_takes_nnunets_letters(dataset, tmp_path):
    labels, djfile, out = dataset
    main(["-i", str(labels), "-djfile", str(djfile), "-o", str(out), "-experts", "scalability", "-num_experts", "2"])
    other = tmp_path / "other"
    more = ["-seed", "3", "-np", "1", "-boundary_width", "1", "-error_model", "boundary_bias", "--overwrite"]
    main(["-i", str(labels), "-djfile", str(djfile), "-o", str(other), "-num_experts", "1", *more])
    assert len(arrays(out)) == 6
    record = json.loads((other / SIMULATION_NAME).read_text())
    assert (record["seed"], record["boundary_width"]) == (3, 1)
    assert record["experts"][0]["error_model"] == "boundary_bias"
    assert "expert_voxel_mm" not in record
    main(["-i", str(labels), "-djfile", str(djfile), "-o", str(other), "-voxel_mm", "0.5", "--overwrite"])
    assert json.loads((other / SIMULATION_NAME).read_text())["expert_voxel_mm"] == 0.5


def test_the_command_ends_bad_input_with_one_line(dataset, capsys):
    labels, djfile, out = dataset
    with pytest.raises(SystemExit) as ended:
        main(["-i", str(labels), "-djfile", str(djfile), "-o", str(out), "-num_experts", "9"])
    assert ended.value.code == 2
    assert "expert set 'scalability' is defined for 1 to 5 experts, not for 9" in capsys.readouterr().err


def test_the_command_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["-h"])
    printed = capsys.readouterr().out
    assert "-djfile" in printed
    assert "scalability" in printed


@pytest.mark.parametrize("name", ["Dataset004_Hippocampus", "Dataset501_LIDCnodule2D"])
def test_real_labels_are_answered_in_their_own_format(name, tmp_path):
    source = REAL_DATA / name
    if not source.is_dir():
        pytest.skip(f"real data {name} is not beside the checkout")
    labels = tmp_path / "labels"
    labels.mkdir()
    for file in sorted((source / "labelsTr").iterdir())[:2]:
        shutil.copy(file, labels)
    written = simulate_experts_for_folder(labels, source / "dataset.json", tmp_path / "out")
    assert len(written) == 6
    for path in written:
        original, answer = (sitk.ReadImage(str(file)) for file in (labels / path.name, path))
        assert answer.GetSize() == original.GetSize()
        if path.name.endswith(".nii.gz"):
            assert answer.GetDirection() == pytest.approx(original.GetDirection())
            assert answer.GetSpacing() == pytest.approx(original.GetSpacing())
        agreement = (sitk.GetArrayFromImage(original) == sitk.GetArrayFromImage(answer)).mean()
        assert 0.8 < agreement < 1
