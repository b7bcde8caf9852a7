"""`nnUNetv2_deferral_evaluate --report`, on a made-up folder of predictions."""

import json
import re

import numpy as np
import pytest
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands.evaluate import main
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.evaluation.inputs import EvaluationInputs
from nnunetv2_deferral.settings import resolve_settings

SITK = {"spacing": (0.7, 0.7, 2.5), "origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}
GEOMETRY = {"sitk_stuff": SITK, "spacing": [2.5, 0.7, 0.7]}
IGNORE = {"background": 0, "lesion": 1, "ignore": 2}


@pytest.fixture
def make_folder(tmp_path):
    """A function that writes predictions, references, experts and images of a few cases, and returns the options."""

    def make(*, ending=".nii.gz", num_cases=4, experts=("ann", "bob"), labels=None):
        writer = SimpleITKIO() if ending == ".nii.gz" else NaturalImage2DIO()
        shape = (4, 32, 32) if ending == ".nii.gz" else (1, 32, 32)
        out = tmp_path / "predictions"
        for folder in ("predictions", "labels", "images", *(f"experts/{name}" for name in experts)):
            (tmp_path / folder).mkdir(parents=True)
        model = maps.ModelIdentity(
            dataset="Dataset701_Small", plans="nnUNetPlans", configuration="2d", trainer="T", experts=experts
        )
        deferral = maps.DeferralFolder(
            folder=out,
            file_ending=ending,
            writer=writer,
            model=model,
            settings=resolve_settings({"experts": list(experts)}),
        )
        for number in range(num_cases):
            case, generator = f"case_{number}", np.random.default_rng(number)
            reference = np.zeros(shape, np.uint8)
            reference[..., 8:20, 10 : 18 + number] = 1
            mask = np.roll(reference, 2, axis=-1)
            if labels is not None:
                reference[..., :8] = 2
            probability = np.where(mask != reference, 0.9, 0.1).astype(np.float32)
            expert = generator.integers(1, len(experts) + 1, shape).astype(np.uint8)
            route = np.where(probability > 0.5, expert, 0).astype(np.uint8)
            deferral.write(case, RoutingMaps(route, probability, expert, probability / 50), GEOMETRY)
            writer.write_seg(mask, str(out / f"{case}{ending}"), GEOMETRY)
            writer.write_seg(reference, str(tmp_path / "labels" / f"{case}{ending}"), GEOMETRY)
            image = (60 * reference + generator.integers(0, 60, shape)).astype(np.uint8)
            writer.write_seg(image, str(tmp_path / "images" / f"{case}_0000{ending}"), GEOMETRY)
            for name in experts:
                writer.write_seg(reference, str(tmp_path / "experts" / name / f"{case}{ending}"), GEOMETRY)
        content = {"labels": labels or {"background": 0, "lesion": 1}, "file_ending": ending}
        (out / "dataset.json").write_text(json.dumps(content))
        folders = {"-i": out, "-ref": tmp_path / "labels", "-experts": tmp_path / "experts", "-o": tmp_path / "out"}
        return [str(word) for pair in folders.items() for word in pair]

    return make


def images_in(html):
    return html.count("data:image/png;base64,")


@pytest.mark.usefixtures("drawn_figures")
@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_the_command_writes_a_report_with_cases(make_folder, tmp_path, capsys, ending):
    report = tmp_path / "somewhere" / "report.html"
    main([*make_folder(ending=ending), "--report", str(report), "-images", str(tmp_path / "images")])
    html = report.read_text(encoding="utf-8")
    assert str(report) in capsys.readouterr().out
    assert images_in(html) == 3 + 3
    summary = json.loads((tmp_path / "out" / "deferral_summary.json").read_text())
    assert summary["intervals"]["Dice"]["system"]["estimate"] == 1
    rate = f"{100 * summary['deferral']['rate']:.1f} %"
    assert re.search(rf'headline">Deferring {rate} of the voxels raised the Dice from [^<]* \(difference \+0', html)
    assert ("in pixels" in html) == (ending == ".png") and ("in mm" in html) == (ending == ".nii.gz")
    assert str(tmp_path) not in html


def test_a_report_without_a_folder_is_written_beside_the_results(make_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([*make_folder(), "--report", "report.html"])
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_only_the_cases_shown_are_read_again(make_folder, tmp_path, monkeypatch):
    seen, read = [], EvaluationInputs.read
    monkeypatch.setattr(EvaluationInputs, "read", lambda self, case: (seen.append(case), read(self, case))[1])
    options = make_folder(num_cases=8)
    main([*options, "--report", str(tmp_path / "a.html")])
    assert len(seen) == 8
    main([*options, "--report", str(tmp_path / "b.html"), "-images", str(tmp_path / "images")])
    assert 8 + 8 + 3 <= len(seen) <= 8 + 8 + 6


def test_without_a_report_none_is_written(make_folder, tmp_path):
    main(make_folder())
    assert not list(tmp_path.rglob("*.html"))


def test_ignored_voxels_do_not_disturb_the_pictures(make_folder, tmp_path, drawn_figures):
    options = make_folder(labels=IGNORE)
    main([*options, "--report", str(tmp_path / "a.html"), "-images", str(tmp_path / "images")])
    assert images_in((tmp_path / "a.html").read_text()) == 6


def refusal(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_missing_image_is_refused_before_anything_is_computed(make_folder, tmp_path, capsys):
    options = make_folder()
    (tmp_path / "images" / "case_2_0000.nii.gz").unlink()
    error = refusal([*options, "--report", str(tmp_path / "a.html"), "-images", str(tmp_path / "images")], capsys)
    assert "case_2" in error and "case_1" not in error and str(tmp_path / "images") in error
    assert not (tmp_path / "out").exists()


def test_images_without_a_report_are_refused(make_folder, tmp_path, capsys):
    assert "--report" in refusal([*make_folder(), "-images", str(tmp_path / "images")], capsys)


def test_an_image_of_another_shape_is_refused_and_leaves_no_page(make_folder, tmp_path, capsys):
    options = make_folder(num_cases=1)
    image = tmp_path / "images" / "case_0_0000.nii.gz"
    SimpleITKIO().write_seg(np.zeros((2, 5, 5), np.uint8), str(image), GEOMETRY)
    error = refusal([*options, "--report", str(tmp_path / "a.html"), "-images", str(tmp_path / "images")], capsys)
    assert "case_0" in error and "(2, 5, 5)" in error
    assert not (tmp_path / "a.html").exists()
