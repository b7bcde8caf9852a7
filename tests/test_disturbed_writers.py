"""Writers that are killed at random times or meet a full disk: the same call then does what an undisturbed one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from disturbed_writers import WRITERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed as on Unix"),
]
SCRIPT = Path(__file__).with_name("disturbed_writers.py")


def faults(*words):
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def may_mount(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system may be mounted here, which a small disk needs")
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_killed_at_any_time_can_be_called_again(tmp_path, writer):
    assert faults(writer, tmp_path / "trial", "kill", 20, 0) == []


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize("writer", [each for each in WRITERS if each != "trainings"])
def test_a_writer_on_a_full_disk_says_so_and_loses_nothing(tmp_path, writer):
    assert faults(writer, tmp_path / "trial", "disk", 8, 0) == []
