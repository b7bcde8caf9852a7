"""Scratch folders: those of killed processes are deleted, and no others."""

import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from nnunetv2_deferral import files
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import new_folder, write_durably, write_json, written_whole

WRITER = """
import sys, time
from pathlib import Path
from nnunetv2_deferral.files import written_whole
with written_whole(Path(sys.argv[1])) as scratch:
    (scratch / "half").write_text("half")
    print(scratch.name, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writer(tmp_path):
    """Another process that is writing to the folder; gives it and the name of its scratch folder."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


def write_by_write_durably(folder):
    write_durably(folder / "new", lambda file: file.write_text("new") and None)


def write_by_written_whole(folder):
    write_json([], folder / "new")


@pytest.mark.parametrize("write", [write_by_write_durably, write_by_written_whole])
def test_what_a_killed_process_left_is_deleted_by_the_next(tmp_path, writer, write):
    process, name = writer
    process.kill()
    process.wait()
    assert (tmp_path / name / "half").is_file()
    write(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("write", [write_by_write_durably, write_by_written_whole])
def test_that_of_a_process_that_is_still_writing_stays(tmp_path, writer, write):
    _, name = writer
    write(tmp_path)
    assert (tmp_path / name / "half").read_text() == "half"


def test_those_of_other_machines_and_other_folders_stay(tmp_path):
    host = re.sub("[^A-Za-z0-9]", "-", platform.node())
    names = [
        ".unfinished_abcdefgh",
        ".unfinished_another_abcdefgh",
        f".unfinished_{host}x_abcdefgh",
        "unfinished",
        ".x",
    ]
    for name in [*names, f".unfinished_{host}_abcdefgh"]:
        (tmp_path / name).mkdir()
    write_json([], tmp_path / "new")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*names, "new"])


def test_where_folders_cannot_be_locked_none_are_deleted_and_files_are_written(tmp_path, writer, monkeypatch):
    process, name = writer
    process.kill()
    process.wait()
    monkeypatch.setattr(files, "fcntl", None)
    write_json([], tmp_path / "new")
    assert (tmp_path / name).is_dir()
    assert (tmp_path / "new").is_file()


def test_many_writers_at_once_do_not_delete_what_the_others_write(tmp_path, monkeypatch):
    class Never(set):
        def __contains__(self, _):
            return False

    monkeypatch.setattr(files, "_cleared", Never())  # every write looks for what was left

    def write(number):
        with written_whole(tmp_path) as scratch:
            (scratch / str(number)).write_text(str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(300)))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {str(n): str(n) for n in range(300)}


def test_a_new_folder_appears_whole_and_replaces_another_only_if_asked_to(tmp_path):
    output = tmp_path / "out"
    with new_folder(output) as scratch:
        (scratch / "file").write_text("first")
        assert not output.exists()
    with pytest.raises(InputError, match="is not empty"), new_folder(output):
        pass
    with new_folder(output, replaced=True) as scratch:
        (scratch / "file").write_text("second")
        assert (output / "file").read_text() == "first"
    assert (output / "file").read_text() == "second"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_not_completed_leaves_what_was_there(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "file").write_text("first")
    with pytest.raises(ZeroDivisionError), new_folder(output, replaced=True):
        raise ZeroDivisionError
    assert (output / "file").read_text() == "first"
    # A call that was killed between the two renames has set the former aside.
    output.rename(tmp_path / ".out.replaced")
    with pytest.raises(InputError, match="is not empty"), new_folder(output):
        pass
    assert (output / "file").read_text() == "first"
