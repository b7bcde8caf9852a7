import json

import numpy as np
import pytest
import SimpleITK as sitk

from nnunetv2_deferral.commands.convert_dataset import convert_dataset, main
from nnunetv2_deferral.defaults import CONVERTED_DATASETS
from nnunetv2_deferral.errors import InputError


@pytest.fixture
def published(tmp_path):
    """One training case of PROMISE12."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name in ("Case00", "Case00_segmentation"):
        sitk.WriteImage(
            sitk.GetImageFromArray(np.eye(6, dtype=np.int16)[None].repeat(3, 0)), str(folder / f"{name}.mhd")
        )
    return folder


def ended_with(arguments, capsys):
    """What the command says when it ends with exit code 2, without the usage."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.partition(": error: ")[2]


def test_the_command_takes_nnunets_letters(published, tmp_path):
    raw = tmp_path / "raw"
    main(["promise12", "-i", str(published), "-d", "24", "-o", str(raw), "-np", "1", "--ignore_label_geometry"])
    assert json.loads((raw / "Dataset024_PROMISE12" / "dataset.json").read_text())["numTraining"] == 1


def test_datasets_go_where_nnunet_looks_for_them(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "from_environment"))
    main(["promise12", "-i", str(published), "-d", "24"])
    assert (tmp_path / "from_environment" / "Dataset024_PROMISE12" / "labelsTr" / "Case00.nii.gz").is_file()
    monkeypatch.delenv("nnUNet_raw")
    said = ended_with(["promise12", "-i", str(published), "-d", "25"], capsys)
    assert said == "nnUNet_raw is not set; set it or specify the folder of raw datasets with -o\n"


def test_bad_input_ends_with_one_line(published, tmp_path, capsys):
    arguments = ["promise12", "-i", str(published), "-d", "24", "-o", str(tmp_path / "raw")]
    (published / "Case01.mhd").touch()
    (published / "Case02_segmentation.mhd").touch()
    said = ended_with(arguments, capsys)
    assert said.startswith("2 problems: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "raw").exists()
    (published / "Case02_segmentation.mhd").unlink()
    (published / "Case01.mhd").unlink()
    main(arguments)
    assert "a dataset with id 24 already exists" in ended_with(arguments, capsys)


def test_unreadable_files_end_with_one_line_too(published, tmp_path, capsys):
    (published / "Case00_segmentation.mhd").write_text("no header")
    said = ended_with(["promise12", "-i", str(published), "-d", "24", "-o", str(tmp_path / "raw")], capsys)
    assert "Case00_segmentation.mhd cannot be read" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("dataset", CONVERTED_DATASETS)
def test_an_empty_or_missing_folder_is_refused_for_every_dataset(dataset, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        said = ended_with([dataset, "-i", str(tmp_path / folder), "-d", "1", "-o", str(tmp_path / "raw")], capsys)
        assert any(word in said for word in ("does not exist", "is missing", "there are no", "has no"))
        assert folder in said
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["liver", "-d", "1"], "invalid choice: 'liver'"),
        (["lits", "-d", "one"], "invalid int value: 'one'"),
        (["lits", "-d", "1", "-task", "1"], "only amos22 has tasks, not lits"),
        (["amos22", "-d", "1", "-task", "3"], "argument -task: invalid choice"),
        (["chaksu", "-d", "1", "--ignore_label_geometry"], "photographs, whose files have no geometry"),
        (["promise12", "-d", "0"], "between 1 and 999, got 0"),
        (["promise12", "-d", "1", "-np", "0"], "must be at least 1, got 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments, message, published, tmp_path, capsys):
    assert message in ended_with([*arguments, "-i", str(published), "-o", str(tmp_path / "raw")], capsys)
    assert not (tmp_path / "raw").exists()


def test_the_library_refuses_unknown_datasets(published, tmp_path):
    with pytest.raises(InputError, match="unknown dataset 'kits'; known datasets: chaksu, promise12, lits, amos22"):
        convert_dataset("kits", published, 1, tmp_path)


def test_the_command_says_what_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["-h"])
    printed = capsys.readouterr().out
    assert "{chaksu,promise12,lits,amos22}" in printed
    assert "nothing is overwritten" in " ".join(printed.split())
