import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "measurements" / "gpu_check.py"


@pytest.mark.slow
def test_the_check_for_gpus_runs_at_tiny_size_on_a_cpu(tmp_path):
    file = tmp_path / "found.json"
    subprocess.run([sys.executable, SCRIPT, "-device", "cpu", "-size", "24", "-n", "1", "-o", file], check=True)
    found = json.loads(file.read_text())
    assert found["not compiled"]["ratios"].keys() == {"step", "loader", "prediction", "memory"}
    assert min(found["not compiled"]["ratios"].values()) > 0
    assert found["two_largest_by_topk"] > 0
    assert found["export"]["deferral"].keys() == {"cpu_seconds", "peak_mib"}
