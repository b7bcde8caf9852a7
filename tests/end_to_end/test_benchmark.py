"""The benchmark through nnU-Net's own commands: killed, failed, started again, and compared."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from workplace import FLAT

COMMAND = "from nnunetv2_deferral.commands.benchmark import main; main()"
TRAINERS = ("TinyStock", "TinyInterrupted")
PLANS = "nnUNetBenchmarkPlans"

pytestmark = pytest.mark.slow


@pytest.fixture
def start(workplace, tmp_path):
    """Starts the command with `--run` on the first fold of the 2D dataset; everything goes to tmp_path/out."""
    workplace.derive_plans(FLAT, PLANS, lambda plans: None)
    words = ["-d", FLAT, "-c", "2d", "-f", "0", "-p", PLANS, "-o", tmp_path / "out", "-device", "cpu", "--run"]

    def run(*more):
        command = [sys.executable, "-c", COMMAND, *map(str, words), "-tr", *TRAINERS, *more]
        environment = os.environ | workplace.environment
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return run


def finish(process, code):
    text = process.communicate(timeout=600)[0]
    assert process.returncode == code, text
    return text


def test_killed_failed_and_started_again(workplace, start, tmp_path):
    logs = tmp_path / "out" / "logs" / FLAT
    stock_log, deferral_log = (logs / f"{trainer}__{PLANS}__2d__fold_0.log" for trainer in TRAINERS)
    folds = [workplace.model(FLAT, "2d", trainer, PLANS) / "fold_0" for trainer in TRAINERS]

    killed = start()
    until = time.monotonic() + 120
    while not (stock_log.is_file() and "Epoch 0" in stock_log.read_text()):
        assert time.monotonic() < until and killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGTERM)
    assert "interrupted; repeat the same call to resume" in finish(killed, 130)
    assert not deferral_log.exists()

    assert "the power went out" in finish(start(), 1)  # the deferral trainer fails in its second epoch
    assert (folds[0] / "checkpoint_final.pth").is_file()
    assert not (tmp_path / "out" / "benchmark.json").exists()
    trained = (folds[0] / "checkpoint_final.pth").stat().st_mtime_ns

    text = finish(start(), 0)
    assert "4/4" in text.replace("\r", "\n")  # one bar over two epochs of each
    assert deferral_log.read_text().count("$ ") == 2
    assert deferral_log.read_text().splitlines()[-1]
    second = deferral_log.read_text().split("$ ")[2]
    assert "--c" in second.splitlines()[0]
    assert "Epoch 1" in second and "Epoch 0" not in second
    assert (folds[0] / "checkpoint_final.pth").stat().st_mtime_ns == trained

    before = [log.read_bytes() for log in (stock_log, deferral_log)]
    finish(start("--time_prediction"), 0)
    assert [log.read_bytes() for log in (stock_log, deferral_log)] == before
    check_results(json.loads((tmp_path / "out" / "benchmark.json").read_text()), folds)


def check_results(found, folds):
    """The same scores as nnU-Net's summary and the trainer's own."""
    stock, deferral = found["methods"]
    expected = json.loads((folds[0] / "validation" / "summary.json").read_text())["mean"]
    for label in ("1", "2"):
        for score in ("Dice", "IoU"):
            mean = stock["scores"]["model_everywhere"][label][score]["estimate"]
            assert (mean is None) == (expected[label][score] is None)
            assert mean is None or mean == pytest.approx(expected[label][score], nan_ok=True)
    own = json.loads((folds[1] / "validation" / "deferral_summary.json").read_text())
    for part in ("system", "model_everywhere"):
        assert deferral["scores"][part]["foreground_mean"]["Dice"]["estimate"] == pytest.approx(
            own[part]["foreground_mean"]["Dice"]
        )
    assert deferral["deferral"]["rate"] == pytest.approx(own["deferral"]["rate"])
    assert deferral["time"]["epoch_ratio"] > 0
    assert deferral["time"]["prediction_ratio"] > 0
    assert deferral["time"]["seconds_prediction"] is None  # seconds on a CPU tell nothing
