"""A fault of the program keeps its traceback; only what a user got wrong ends in one line."""

import numpy as np
import pytest
from small_prediction import write_prediction

from nnunetv2_deferral.commands import fuse


def test_a_planted_numpy_error_leaves_a_command_with_its_traceback(tmp_path, monkeypatch, capsys):
    for case in write_prediction(tmp_path / "in"):
        for expert in ("ann", "bob"):
            (tmp_path / "experts" / expert).mkdir(parents=True, exist_ok=True)
            (tmp_path / "experts" / expert / f"{case}.nii.gz").write_bytes(
                (tmp_path / "in" / f"{case}.nii.gz").read_bytes()
            )

    def broken(*_arrays):
        return np.ones(2) + np.ones(3)

    monkeypatch.setattr(fuse, "fuse_masks", broken)
    arguments = ["-i", tmp_path / "in", "-experts", tmp_path / "experts", "-o", tmp_path / "out"]
    with pytest.raises(ValueError, match="operands could not be broadcast together"):
        fuse.main([str(each) for each in arguments])
    assert "error:" not in capsys.readouterr().err
