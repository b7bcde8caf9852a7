"""Trainings as jobs, through submitit's local executor."""

import sys

import pytest
from made_up_workplace import SPLITS, STOCK, FakeTraining
from waiting import wait_for

from nnunetv2_deferral.benchmark.cluster import ClusterExecutor, Requeued, parse_parameters
from nnunetv2_deferral.benchmark.running import run_trainings
from nnunetv2_deferral.benchmark.state import Stage
from nnunetv2_deferral.benchmark.training import TrainingError


@pytest.fixture
def trainings(workplace):
    workplace.write_model(STOCK).rename(workplace.root / "finished")
    return [
        FakeTraining(
            experiment=workplace.experiment(),
            method=STOCK,
            fold=fold,
            cases=tuple(SPLITS[fold]["val"]),
            device="cpu",
            logs=workplace.root / "logs",
        )
        for fold in (0, 1)
    ]


@pytest.fixture
def executor(workplace):
    """Jobs on this machine; they get the fake training by value, as they cannot import this folder."""
    pytest.importorskip("submitit", reason="submitit is not installed (pip install nnunetv2-deferral[slurm])")
    import cloudpickle
    import made_up_workplace

    cloudpickle.register_pickle_by_value(made_up_workplace)
    yield ClusterExecutor(workplace.root / "logs", cluster="local", parameters={"timeout_min": 60})
    cloudpickle.unregister_pickle_by_value(made_up_workplace)


@pytest.mark.slow
def test_jobs_do_what_is_missing(trainings, executor):
    run_trainings(trainings[:1])
    run_trainings(trainings, executor)
    assert all(training.state().stage is Stage.DONE for training in trainings)
    assert [(training.folder / "calls.txt").read_text() for training in trainings] == ["start at epoch 0\n"] * 2


@pytest.mark.slow
def test_a_job_that_fails_is_told_with_its_log(trainings, executor):
    (trainings[0].source.parent / "behaviour.txt").write_text("fail")
    with pytest.raises(TrainingError, match=r"(?s)1 of 1 trainings failed.*the batch is too large for this GPU"):
        run_trainings(trainings[:1], executor)


@pytest.mark.slow
def test_an_interruption_cancels_the_jobs(trainings, executor, workplace):
    (trainings[0].source.parent / "behaviour.txt").write_text("slow")

    def interrupt():
        if trainings[0].log.is_file() and b"Epoch 1" in trainings[0].log.read_bytes():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor(trainings[:1], interrupt)
    (trainings[0].source.parent / "behaviour.txt").write_text("")

    def runs():
        try:
            run_trainings(trainings[:1])
        except TrainingError as error:
            if "already" not in str(error):
                raise
            return False
        return True

    wait_for(runs)  # the job needs a moment to end its training, on a busy machine a long one
    assert (trainings[0].folder / "calls.txt").read_text() == "start at epoch 0\n--c at epoch 1\n"


def test_a_preempted_job_is_submitted_again(trainings, executor):
    again = Requeued(trainings[0]).checkpoint()
    assert again.function.task == trainings[0]


def test_without_submitit_the_error_says_what_to_install(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install nnunetv2-deferral\[slurm\]"):
        ClusterExecutor(workplace.root)


def test_unknown_parameters_are_refused(workplace):
    pytest.importorskip("submitit", reason="submitit is not installed (pip install nnunetv2-deferral[slurm])")
    with pytest.raises(ValueError, match="submitit refuses -executor local"):
        ClusterExecutor(workplace.root, cluster="local", parameters={"gpus": 1})


def test_parameters_are_key_and_value():
    assert parse_parameters(["slurm_partition=gpu", "mem_gb=32"]) == {"slurm_partition": "gpu", "mem_gb": 32}
    with pytest.raises(ValueError, match="KEY=VALUE, got 'gpu'"):
        parse_parameters(["gpu"])
