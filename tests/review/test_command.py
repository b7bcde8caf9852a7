"""nnUNetv2_deferral_review: what it says, and what it does not start with."""

import json

import pytest
from small_review import free_port, write_volumes

from nnunetv2_deferral.commands import review as command
from nnunetv2_deferral.commands.review import main
from nnunetv2_deferral.review import server


def options(folders, **changes):
    values = {"-i": folders.predictions, "-images": folders.images, "-ref": folders.references, "-o": folders.reviews}
    return [str(part) for name, value in (values | changes).items() if value is not None for part in (name, value)]


def test_it_prints_a_link_for_everyone(tmp_path, monkeypatch, capsys):
    folders, served = write_volumes(tmp_path), []
    monkeypatch.setattr(server, "serve", lambda app, port: served.append(port))
    main([*options(folders), "--port", "9123"])
    printed = capsys.readouterr().out
    assert served == [9123]
    for name in ("coordinator", "ann", "bob"):
        assert f"{name:11}  http://127.0.0.1:9123/#enter=" in printed
    assert json.loads((folders.reviews / "review.json").read_text()) == {"cases": {}}


def fails(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["-i", "-images", "-ref"])
def test_a_folder_that_is_not_there_is_named(tmp_path, capsys, name):
    folders = write_volumes(tmp_path)
    fails(capsys, options(folders, **{name: tmp_path / "nowhere"}), f"the folder {tmp_path / 'nowhere'} does not exist")


@pytest.mark.parametrize("place", ["predictions", "predictions/deferral", "labels/reviews", "."])
def test_answers_may_not_lie_among_the_inputs(tmp_path, capsys, place):
    fails(capsys, options(write_volumes(tmp_path), **{"-o": tmp_path / place}), "overlaps the input folder")


def test_predictions_of_a_stock_model_are_refused(tmp_path, capsys):
    folders = write_volumes(tmp_path)
    (folders.predictions / "deferral" / "deferral.json").unlink()
    fails(capsys, options(folders), "no deferral maps")


def test_a_missing_image_is_named(tmp_path, capsys):
    folders = write_volumes(tmp_path)
    (folders.images / "case_b_0000.nii.gz").unlink()
    fails(capsys, options(folders), "case_b_0000.nii.gz")
    assert not folders.reviews.exists()


@pytest.mark.parametrize("name", ["../ann", ".review", "a/b", " "])
def test_experts_whose_names_are_no_folders_are_refused(tmp_path, capsys, name):
    folders = write_volumes(tmp_path)
    index = folders.predictions / "deferral" / "deferral.json"
    index.write_text(index.read_text().replace('"ann"', json.dumps(name)))
    fails(capsys, options(folders), "is not a valid name of an expert")


PART = "q7Jm-very-secret-2Kx"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        f'{{"coordinator": "{PART}',
        f'["{PART}"]',
        f'"{PART}"',
        f'{{"coordinator": ["{PART}"], "experts": {{}}}}',
        f'{{"coordinator": "", "experts": {{"ann": {{"{PART}": 1}}}}}}',
        f'{{"coordinator": "", "experts": "{PART}"}}',
        f'{{"coordinator": "", "experts": ["{PART}"]}}',
        '{"coordinator": "", "experts": {"ann": null}}',
        '{"coordinator": 5, "experts": {}}',
        f'{{"coordinator": "{PART}"}}',
        f'{{"coordinator": "{PART}", "experts": {{}}}}\xff',
        "[" * 5000,
    ],
)
def test_damaged_links_are_an_error_that_says_what_to_do_and_shows_no_secret(tmp_path, capsys, content):
    folders = write_volumes(tmp_path)
    hidden = folders.reviews / ".review"
    hidden.mkdir(parents=True)
    (hidden / "access.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit) as stopped:
        main([*options(folders), "--port", str(free_port())])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "access.json is damaged; delete it to create new links" in printed.err
    assert PART not in printed.err + printed.out


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_of_the_extra_is_named_with_how_to_install_it(tmp_path, monkeypatch, capsys, package):
    monkeypatch.setattr(command, "review", raising(ModuleNotFoundError(f"No module named {package!r}", name=package)))
    fails(capsys, options(write_volumes(tmp_path)), "pip install 'nnunetv2-deferral[review]'")


def test_any_other_failed_import_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "review", raising(ModuleNotFoundError("No module named 'mat'", name="mat")))
    with pytest.raises(ModuleNotFoundError, match="mat"):
        main(options(write_volumes(tmp_path)))


def raising(error):
    def review(*_arguments, **_options):
        raise error

    return review
