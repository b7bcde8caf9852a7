import json
import os
import sys

import numpy as np
import pytest
from skimage.io import imread

from nnunetv2_deferral.commands import demo as command
from nnunetv2_deferral.commands.worklist import main as worklist
from nnunetv2_deferral.demo import pipeline as demo
from nnunetv2_deferral.demo.data import (
    draw_blob,
    draw_displacement,
    draw_reference,
    make_case,
    render_image,
    write_dataset,
)
from nnunetv2_deferral.demo.report import DemoFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.installed import find_script


@pytest.fixture
def blob():
    return draw_blob(np.random.default_rng(3))


def files_in(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_case_is_the_same_whenever_it_is_made():
    for first, second in zip(make_case(1, 2), make_case(1, 2), strict=True):
        np.testing.assert_array_equal(first, second)


def test_cases_and_seeds_differ():
    image = make_case(1, 2)[0]
    assert not np.array_equal(image, make_case(1, 3)[0])
    assert not np.array_equal(image, make_case(2, 2)[0])


def test_the_image_does_not_show_the_hidden_border(monkeypatch):
    image, reference = make_case(1, 2)
    inner, outer = (0.5, -0.5) if draw_displacement(np.random.default_rng([1, 2, 1])) < 0 else (-0.5, 0.5)
    monkeypatch.setattr("nnunetv2_deferral.demo.data.draw_displacement", lambda _: inner)
    other_image, other_reference = make_case(1, 2)
    np.testing.assert_array_equal(image, other_image)
    assert inner != outer
    assert not np.array_equal(reference, other_reference)


def test_the_border_of_the_visible_shape_is_behind_the_veil_where_the_reference_is_displaced(blob):
    inwards, outwards = draw_reference(blob, -0.5).astype(bool), draw_reference(blob, 0.5).astype(bool)
    moving = inwards != outwards
    assert 0.03 < moving.mean() < 0.25
    assert (inwards <= outwards).all()

    # A sharp border changes by about the blob's contrast from one pixel to the next; behind the veil nothing does.
    class NoNoise:
        def standard_normal(self, shape):
            return np.random.default_rng(0).standard_normal(shape)

        def normal(self, _mean, _deviation, shape):
            return np.zeros(shape)

    steps = np.abs(np.diff(render_image(blob, NoNoise()).astype(float), axis=0))
    everywhere, hidden = steps.max(), steps[moving[1:] & moving[:-1]]
    assert np.median(hidden) < everywhere / 4


def test_displacements_go_in_and_out_and_are_never_small():
    generator = np.random.default_rng(0)
    drawn = np.array([draw_displacement(generator) for _ in range(400)])
    assert np.abs(drawn).min() >= 0.3 and np.abs(drawn).max() <= 0.5
    assert 0.4 < (drawn > 0).mean() < 0.6


def test_no_reference_touches_the_border_of_the_image():
    for index in range(60):
        shape = draw_blob(np.random.default_rng([0, index]))
        reference = draw_reference(shape, 0.5)
        edge = np.concatenate([reference[0], reference[-1], reference[:, 0], reference[:, -1]])
        assert not edge.any()


def test_a_border_outside_of_the_veil_is_refused(blob):
    with pytest.raises(ValueError, match=r"at most 0.5 .*, got 0.7"):
        draw_reference(blob, 0.7)


def test_the_data_set_is_deterministic_and_complete(tmp_path):
    folders = [write_dataset(tmp_path / name, num_training=5, num_test=2, seed=7) for name in ("a", "b")]
    assert files_in(folders[0]) == files_in(folders[1])
    assert len(list((folders[0] / "imagesTr").iterdir())) == len(list((folders[0] / "labelsTr").iterdir())) == 5
    assert json.loads((folders[0] / "dataset.json").read_text())["numTraining"] == 5
    image = imread(folders[0] / "imagesTs" / "blob_005_0000.png")
    np.testing.assert_array_equal(image, make_case(7, 5)[0])
    assert set(np.unique(imread(folders[0] / "labelsTs" / "blob_006.png"))) == {0, 1}


def test_too_few_cases_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got 4 and 1"):
        write_dataset(tmp_path, num_training=4, num_test=1, seed=0)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_never_touched(tmp_path, overwrite):
    (tmp_path / "nnUNet_raw").mkdir()
    with pytest.raises(ValueError, match="is not empty and was not written by"):
        demo.prepare_folder(tmp_path, overwrite=overwrite)
    assert [entry.name for entry in tmp_path.iterdir()] == ["nnUNet_raw"]


def test_an_earlier_demo_is_kept_unless_asked(tmp_path):
    demo.prepare_folder(tmp_path)
    with pytest.raises(ValueError, match="has an earlier demo"):
        demo.prepare_folder(tmp_path)


def test_overwriting_removes_only_what_a_demo_writes(tmp_path):
    demo.prepare_folder(tmp_path)
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "a.png").touch()
    (tmp_path / "report.html").touch()
    (tmp_path / "my_notes.txt").write_text("mine")
    demo.prepare_folder(tmp_path, overwrite=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["demo.json", "my_notes.txt"]


def test_the_command_refuses_a_folder_that_is_not_empty(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        command.main(["-o", str(tmp_path)])
    assert stop.value.code == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_the_users_own_folders_are_not_handed_on(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "/somewhere/else")
    environment = demo.demo_environment(tmp_path)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert environment[name] == str(tmp_path / name)
    assert os.environ["nnUNet_raw"] == "/somewhere/else"


def test_the_head_is_trained_on_the_network_of_the_stock_training(tmp_path):
    files = DemoFiles(tmp_path, deferral_trainer=demo.DEFERRAL_TRAINER, plans=demo.PLANS)
    stock, deferral = (step.arguments for step in demo.demo_steps(files, device="cpu") if step.epochs)
    *same, option, weights = deferral
    assert {(a, b) for a, b in zip(stock, same, strict=True) if a != b} == {(demo.STOCK_TRAINER, demo.DEFERRAL_TRAINER)}
    assert option == "-pretrained_weights"
    assert demo.STOCK_TRAINER in weights and weights.endswith("fold_0/checkpoint_final.pth")


def test_a_failing_step_shows_the_end_of_its_log_and_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "find_script", lambda _: sys.executable)
    code = "print(*range(100), sep='\\n'); raise SystemExit(3)"
    with pytest.raises(demo.StepError, match=r"Failing: thing failed with exit code 3") as error:
        demo.run_step(demo.Step("failing", "Failing", ("thing", "-c", code)), logs=tmp_path, environment=os.environ)
    assert "  99\n" in str(error.value) and "  10\n" not in str(error.value)
    assert str(tmp_path / "failing.log") in str(error.value)


def test_the_epochs_of_a_training_are_read_from_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("2026-01-01 00:00:00: Epoch 0\nEpoch time: 3 s\n2026-01-01 00:00:03: Epoch 1\nEpoch time: 4 s\n")
    assert demo._epochs_begun(log, demo.Step("train", "Training", (), 5)) == 1
    assert demo._epochs_begun(log, demo.Step("plan", "Planning", ())) == 0


def test_scripts_beside_the_running_python_come_first(tmp_path, monkeypatch):
    for folder in ("venv", "path"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "script").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_script("script") == str(tmp_path / "venv" / "script")
    with pytest.raises(InputError, match="no_such_script"):
        find_script("no_such_script")


@pytest.mark.slow
def test_the_whole_demo(tmp_path, capsys, full_resolution):
    out = tmp_path / "out"
    command.main(["-o", str(out), "-device", "cpu"])
    table = json.loads((out / "table.json").read_text())
    dice = {row["who"]: row["Dice"] for row in table["rows"]}
    assert dice["system (model + experts)"] > dice["model alone"] + 0.02
    assert 0 < table["deferral"]["rate"] < 0.5
    assert len(list((out / "cases").iterdir())) == len(list((out / "predictions" / "system").iterdir())) == 8
    assert (out / "overview.png").stat().st_size > 10_000
    html = (out / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 9
    assert str(out) not in html
    said = capsys.readouterr().out
    assert str(out / "report.html") in said
    begin = said.index("nnUNetv2_deferral_worklist")
    worklist(said[begin:].splitlines()[0].split()[1:])
    assert (out / "worklist" / "worklist.csv").is_file()
