"""On a full disk ITK writes an empty or incomplete file without an error; nothing of it may get a final name."""

from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from small_prediction import GEOMETRY, deferral_folder, write_study

from nnunetv2_deferral.commands import fuse, simulate_experts, worklist
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.errors import InputError

FULL = "cannot be written completely: is the disk full?"


@pytest.fixture
def folders(tmp_path):
    write_study(tmp_path)
    return tmp_path


@pytest.fixture(params=[0, 0.5, 0.97], ids=["empty", "half", "nearly whole"])
def full(request, folders, monkeypatch):
    """From now on every mask is cut off without an error."""
    stock = SimpleITKIO.write_seg

    def write(self, seg, output_fname, properties):
        stock(self, seg, output_fname, properties)
        content = Path(output_fname).read_bytes()
        Path(output_fname).write_bytes(content[: int(len(content) * request.param)])

    monkeypatch.setattr(SimpleITKIO, "write_seg", write)


def snapshot(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "simulation.json"}


COMMANDS = {
    "fuse": (fuse.main, ["-i", "in", "-experts", "experts", "-o", "out"]),
    "simulate_experts": (simulate_experts.main, ["-i", "labels", "-djfile", "in/dataset.json", "-o", "out"]),
    "worklist": (worklist.main, ["-i", "in", "-images", "images", "-o", "out"]),
}


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_so_and_leaves_no_incomplete_file(folders, capsys, monkeypatch, command):
    monkeypatch.chdir(folders)
    main, arguments = COMMANDS[command]
    before = snapshot(folders)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert FULL in capsys.readouterr().err
    assert snapshot(folders) == before


@pytest.mark.usefixtures("full")
def test_maps_of_an_earlier_prediction_stay_as_they_were(folders):
    before = snapshot(folders)
    deferral = deferral_folder(folders / "in", ".nii.gz", ("ann", "bob"))
    nothing = np.zeros((4, 6, 7), np.uint8)
    maps = RoutingMaps(nothing, nothing.astype(np.float32), nothing + 1, nothing.astype(np.float32))
    with pytest.raises(InputError, match=FULL.replace("?", r"\?")):
        deferral.write("x", maps, GEOMETRY)
    assert snapshot(folders) == before
