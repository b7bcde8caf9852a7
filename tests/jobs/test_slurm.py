"""Jobs as an array of a real SLURM cluster: this machine as its only node. Needs root, slurmctld, slurmd and munged."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_jobs import MadeUpPlan, content, job, writes

from nnunetv2_deferral.benchmark.cluster import ClusterExecutor
from nnunetv2_deferral.jobs.engine import run_plan
from nnunetv2_deferral.jobs.job import JobError

PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged", "runuser")
missing = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (apt install slurm-wlm munge)"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a node of SLURM is started by root"),
]
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName={host} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
"""


def call(*words):
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A cluster of this machine, ended with the test."""
    has_munge = not subprocess.run(["pgrep", "-x", "munged"], stdout=subprocess.DEVNULL, check=False).returncode
    if not has_munge:
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge")
        call("runuser", "-u", "munge", "--", shutil.which("munged"))
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(host=host, folder=folder, ports=(26817, 26818)))
    monkeypatch.setenv("SLURM_CONF", str(file))
    daemons = [subprocess.Popen([shutil.which(name), "-D"], stderr=subprocess.DEVNULL) for name in PROGRAMS[1:3]]
    end = time.monotonic() + 30
    while "idle" not in subprocess.run(["sinfo"], capture_output=True, text=True, check=False).stdout:
        assert time.monotonic() < end, (folder / "slurmctld.log").read_text()
        time.sleep(0.5)
    yield
    end = time.monotonic() + 60
    while call("squeue", "--noheader") and time.monotonic() < end:  # processes of jobs wait for the daemons otherwise
        time.sleep(0.5)
    for daemon in daemons:
        daemon.terminate()
        daemon.wait(timeout=30)
    if not has_munge:
        call("runuser", "-u", "munge", "--", shutil.which("munged"), "--stop")


@pytest.fixture
def execute(node, tmp_path):
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules["test_jobs"])
    yield ClusterExecutor(tmp_path / "jobs", parameters={"timeout_min": 5, "slurm_partition": "main"})
    cloudpickle.unregister_pickle_by_value(sys.modules["test_jobs"])


def test_parts_are_an_array_and_each_runs_once(execute, tmp_path):
    parts = [writes(tmp_path, f"part{number}", number=number, of=2) for number in range(2)]
    plan = MadeUpPlan(tmp_path, parts, [writes(tmp_path, "whole", step="evaluate_merge")])
    assert run_plan(plan, execute)["complete"]
    assert content(tmp_path) == {"part0": "x", "part1": "x", "whole": "x"}
    scripts = [file.read_text() for file in (tmp_path / "jobs" / "submitit").glob("*submission*.sh")]
    assert any("#SBATCH --array=0-1" in script for script in scripts)
    assert run_plan(plan, execute)["complete"]
    assert content(tmp_path) == {"part0": "x", "part1": "x", "whole": "x"}


def test_what_fails_there_is_tried_three_times_and_told(execute, tmp_path):
    plan = MadeUpPlan(tmp_path, [job(tmp_path, "print('the reason'); raise SystemExit(3)")])
    with pytest.raises(JobError, match=r"evaluate \(job \d+\)(.|\n)*the reason"):
        run_plan(plan, execute)
    assert (tmp_path / "jobs" / "evaluate_0_of_1.log").read_text().count("\nthe reason\n") == 3
