"""The paint engine under node."""

import shutil
import subprocess
from pathlib import Path

import pytest

from nnunetv2_deferral import review

STATIC = Path(review.__file__).parent / "static"
NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_paint_engine_and_the_saver(tmp_path):
    for module in STATIC.glob("*.js"):
        shutil.copy(module, tmp_path)
    shutil.copy(Path(__file__).parent / "engine.test.mjs", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    result = subprocess.run([NODE, "--test", "--test-reporter=tap", str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "# tests" in result.stdout
