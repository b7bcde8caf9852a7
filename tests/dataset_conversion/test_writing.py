"""What all converters have in common, shown on a small LiTS."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunetv2_deferral.commands.convert_dataset import convert_dataset
from nnunetv2_deferral.dataset_conversion.common import DatasetInfo, raise_faults, visible_files, write_dataset
from nnunetv2_deferral.errors import InputError


@pytest.fixture
def published(tmp_path, write_pair):
    folder = tmp_path / "LiTS"
    for number in range(3):
        write_pair(folder / f"volume-{number}.nii", folder / f"segmentation-{number}.nii", [1, 2])
    return folder


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def test_an_id_that_is_taken_is_refused_and_what_is_there_stays(published, raw, files_below):
    (raw / "Dataset007_Other" / "imagesTr").mkdir(parents=True)
    (raw / "Dataset007_Other" / "dataset.json").write_text("{}")
    with pytest.raises(InputError, match="id 7 already exists: .*Dataset007_Other"):
        convert_dataset("lits", published, 7, raw)
    assert files_below(raw) == ["Dataset007_Other/dataset.json"]
    convert_dataset("lits", published, 70, raw)
    with pytest.raises(InputError, match="id 70 already exists: .*Dataset070_LiTS"):
        convert_dataset("lits", published, 70, raw)


@pytest.mark.parametrize("dataset_id", [0, -1, 1000])
def test_ids_that_nnunet_does_not_know_are_refused(published, raw, dataset_id):
    with pytest.raises(InputError, match=f"between 1 and 999, got {dataset_id}"):
        convert_dataset("lits", published, dataset_id, raw)


def test_there_is_at_least_one_process(published, raw):
    with pytest.raises(InputError, match="must be at least 1, got 0"):
        convert_dataset("lits", published, 7, raw, num_processes=0)


def test_a_dataset_that_appears_meanwhile_is_not_overwritten(published, raw, monkeypatch, files_below):
    from nnunetv2_deferral.dataset_conversion import common

    def generate(folder, **_):
        (raw / "Dataset007_LiTS").mkdir()
        (raw / "Dataset007_LiTS" / "dataset.json").write_text("theirs")

    monkeypatch.setattr(common, "generate_dataset_json", generate)
    with pytest.raises(InputError, match="raw cannot be written to: Directory not empty"):
        convert_dataset("lits", published, 7, raw)
    assert files_below(raw) == ["Dataset007_LiTS/dataset.json"]
    assert (raw / "Dataset007_LiTS" / "dataset.json").read_text() == "theirs"


def test_a_full_disk_leaves_nothing_behind(published, raw, monkeypatch, files_below):
    write = sitk.WriteImage

    def fail(image, path, *more):
        if "LiTS_001" in path:
            Path(path).write_bytes(b"half")
            raise RuntimeError("somewhere.cxx:7:\nno space left")
        write(image, path, *more)

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(OSError, match="LiTS_001_0000.nii.gz cannot be written: no space left$"):
        convert_dataset("lits", published, 7, raw)
    assert list(raw.iterdir()) == []


def test_the_number_of_processes_changes_neither_files_nor_faults(published, raw, tmp_path, write_pair, files_below):
    folders = [convert_dataset("lits", published, 7, tmp_path / f"raw{n}", num_processes=n) for n in (1, 2)]
    assert files_below(folders[0]) == files_below(folders[1])
    assert all((folders[0] / file).read_bytes() == (folders[1] / file).read_bytes() for file in files_below(folders[0]))
    for number in (0, 2):
        write_pair(published / f"volume-{number}.nii", published / f"segmentation-{number}.nii", [5 + number])
    messages = []
    for num_processes in (1, 2):
        with pytest.raises(InputError, match=r"2 problems: .*segmentation-0.* 5; .*segmentation-2.* 7$") as raised:
            convert_dataset("lits", published, 7, raw, num_processes=num_processes)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@dataclass(frozen=True)
class Pretended:
    """A case that is found faulty only when it is written."""

    split: str
    fault: str = ""

    def faults(self):
        return []

    def write(self, folder):
        (folder / f"written_{self.split}").touch()
        if self.fault:
            raise InputError(self.fault)


def test_faults_that_show_when_writing_are_gathered_and_nothing_is_left(raw):
    info = DatasetInfo(
        name="X", channel_names={}, labels={}, file_ending=".png", reference="", licence="", num_published=1
    )
    cases = [Pretended("Tr", "one is bad"), Pretended("Ts"), Pretended("Ts", "two is bad")]
    with pytest.raises(InputError, match="2 problems: one is bad; two is bad"):
        write_dataset(info, cases, raw, 7)
    assert list(raw.iterdir()) == []


def test_many_faults_are_counted_and_the_first_are_listed():
    raise_faults([])
    with pytest.raises(InputError, match="^only one$"):
        raise_faults(["only one"])
    with pytest.raises(InputError, match=r"^23 problems: fault 0; .*; fault 19; and 3 more$"):
        raise_faults([f"fault {number}" for number in range(23)])


def test_hidden_files_are_not_looked_at(tmp_path):
    for name in ("b/seen", "a", "b/.hidden", ".git/x", "__MACOSX/y", "b/._z"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(visible_files(tmp_path)) == [tmp_path / "a", tmp_path / "b" / "seen"]


def test_files_already_in_a_hidden_folder_above_are_seen(tmp_path):
    inner = tmp_path / ".cache" / "published"
    inner.mkdir(parents=True)
    (inner / "seen").touch()
    assert list(visible_files(inner)) == [inner / "seen"]


def test_the_published_files_are_not_changed(published, raw):
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    convert_dataset("lits", published, 7, raw)
    assert before == {path.name: path.read_bytes() for path in published.iterdir()}
