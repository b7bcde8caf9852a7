"""Running trainings: nothing is done twice, nothing is lost, failures are told. A script stands for nnUNetv2_train."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_workplace import (
    DEFERRAL,
    SPLITS,
    STOCK,
    FakeTraining,
    Workplace,
    ask_where_wrong,
    cut_short,
    write_checkpoint,
)
from own_process import OwnProcess
from waiting import wait_for

from nnunetv2_deferral.benchmark.running import Progress, run_trainings
from nnunetv2_deferral.benchmark.state import Stage
from nnunetv2_deferral.benchmark.training import Training, TrainingError, trainings_of
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import Method
from nnunetv2_deferral.processes import ended_by_signals


@pytest.fixture
def trainings(workplace):
    """Two folds of a stock trainer that are not trained; what they will have as validation is already there."""
    model = workplace.write_model(STOCK)
    model.rename(workplace.root / "finished")
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


def calls(training):
    file = training.folder / "calls.txt"
    return file.read_text().splitlines() if file.is_file() else []


def behave(training, behaviour):
    (training.source.parent / "behaviour.txt").write_text(behaviour)


def wait_for_its_second_epoch(training, process):
    wait_for(
        lambda: training.log.is_file() and b"Epoch 1" in training.log.read_bytes(),
        alive=process.runs,
    )


def test_what_is_missing_is_run_once(trainings):
    run_trainings(trainings)
    run_trainings(trainings)
    assert [calls(training) for training in trainings] == [["start at epoch 0"]] * 2
    assert all(training.state().stage is Stage.DONE for training in trainings)


def test_a_missing_validation_alone_is_run_alone(trainings):
    run_trainings(trainings)
    cut_short(trainings[1].folder / "validation" / "summary.json")
    run_trainings(trainings)
    assert calls(trainings[0]) == ["start at epoch 0"]
    assert calls(trainings[1]) == ["start at epoch 0", "--val at epoch 0"]


def test_a_failure_is_told_with_its_log_and_does_not_stop_the_others(trainings):
    good = replace(trainings[1], logs=trainings[1].logs)
    behave(trainings[0], "fail")
    with pytest.raises(TrainingError) as error:
        run_trainings([trainings[0]])
    assert "fold 0: nnUNetv2_train failed with exit code 1" in str(error.value)
    assert "the batch is too large for this GPU" in str(error.value)
    behave(trainings[0], "")
    missing = replace(trainings[0], pretrained=Path("nowhere.pth"), method=replace(STOCK, plans="other"))
    with pytest.raises(TrainingError, match=r"(?s)1 of 2 trainings failed.*nowhere.pth, which is missing"):
        run_trainings([missing, good])
    assert good.state().stage is Stage.DONE


def test_invalid_input_of_one_training_does_not_stop_the_others(trainings, monkeypatch):
    command = FakeTraining.command

    def refuse(self, stage):
        if self.fold == 0:
            raise InputError("nnUNetv2_train is not installed")
        return command(self, stage)

    monkeypatch.setattr(FakeTraining, "command", refuse)
    with pytest.raises(TrainingError, match=r"(?s)1 of 2 trainings failed\n.*fold 0: nnUNetv2_train is not installed"):
        run_trainings(trainings)
    assert [training.state().stage for training in trainings] == [Stage.START, Stage.DONE]


def test_after_a_failure_the_training_goes_on_from_its_checkpoint(trainings):
    behave(trainings[0], "fail")
    with pytest.raises(TrainingError):
        run_trainings(trainings[:1])
    behave(trainings[0], "")
    run_trainings(trainings[:1])
    assert calls(trainings[0]) == ["start at epoch 0", "--c at epoch 1"]


def test_a_checkpoint_that_is_cut_short_is_set_aside(trainings):
    fold = trainings[0].folder
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        write_checkpoint(fold / name)
        cut_short(fold / name)
    run_trainings(trainings[:1])
    assert calls(trainings[0]) == ["start at epoch 0"]
    assert (fold / "checkpoint_best.pth.broken").is_file()
    assert (fold / "checkpoint_final.pth.broken").is_file()


def test_an_end_without_a_validation_is_a_failure(trainings):
    behave(trainings[0], "no validation")
    with pytest.raises(TrainingError, match="ended without an error, but .* has no summary.json"):
        run_trainings(trainings[:1])


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")
def test_after_nohup_a_closed_terminal_ends_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def run_one_as_the_command_does(root):
    """Run the first training of the fixture `trainings`; for another process."""
    here = Workplace(root)
    training = FakeTraining(
        experiment=here.experiment(),
        method=STOCK,
        fold=0,
        cases=tuple(SPLITS[0]["val"]),
        device="cpu",
        logs=here.root / "logs",
    )
    with ended_by_signals():
        run_trainings([training])


def start_in_another_process(workplace):
    return OwnProcess(run_one_as_the_command_does, workplace.root, folder=workplace.root)


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_started_again_nothing_is_lost(workplace, trainings, number):
    training = trainings[0]
    behave(training, "slow")
    with start_in_another_process(workplace) as process:
        wait_for_its_second_epoch(training, process)
        process.send_signal(number)
        process.wait()
        assert "KeyboardInterrupt" in process.errors
    behave(training, "")
    run_trainings([training])
    assert calls(training) == ["start at epoch 0", "--c at epoch 1"]


@pytest.mark.skipif(sys.platform == "win32", reason="locks as on Unix")
def test_where_nothing_can_be_locked_nobody_else_is_blamed(trainings):
    lock = trainings[0].folder.parent / ".benchmark_fold_0.lock"
    lock.mkdir(parents=True)
    with pytest.raises(TrainingError, match="cannot be trained: .*directory.*benchmark_fold_0"):
        run_trainings(trainings[:1])


@pytest.mark.skipif(sys.platform == "win32", reason="locks as on Unix")
def test_a_training_that_outlives_its_benchmark_is_not_started_twice(workplace, trainings):
    training = trainings[0]
    behave(training, "slow")
    with start_in_another_process(workplace) as process:
        wait_for_its_second_epoch(training, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
        process.wait()
    try:
        with pytest.raises(TrainingError, match="is already being trained by another process"):
            run_trainings([training])
    finally:
        for child in children:
            os.kill(int(child), signal.SIGKILL)
    behave(training, "")
    wait_for(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children))
    run_trainings([training])
    assert calls(training) == ["start at epoch 0", "--c at epoch 1"]


def test_one_bar_counts_the_epochs_of_all(trainings):
    run_trainings(trainings[:1])
    (trainings[0].folder / "debug.json").write_text('{"num_epochs": "3"}')
    with Progress(trainings) as progress:
        assert (progress.epochs, progress.total) == (3, 3 + 5)  # what is done, and what the name promises
        trainings[1].log.parent.mkdir(parents=True, exist_ok=True)
        with trainings[1].log.open("a") as log:
            log.write("2026-11-21 11:29:30: Epoch 2 \n")
        progress.watch()
        assert progress.epochs == 3 + 2
        with trainings[1].log.open("a") as log:
            log.write("2026-11-21 11:29:30: Training done. \n")
        progress.watch()
        assert progress.epochs == progress.total == 8


def test_a_frozen_trainer_starts_from_the_stock_network_of_its_fold(workplace):
    frozen = Method(trainer="nnUNetTrainerDeferral3Experts_frozen_1epoch", plans="nnUNetPlans")
    how = {"device": "cpu", "logs": workplace.root}
    found = trainings_of(workplace.experiment(), [frozen, STOCK], **how)
    assert [training.pretrained for training in found] == [
        workplace.experiment().fold(STOCK, 0) / "checkpoint_final.pth",
        workplace.experiment().fold(STOCK, 1) / "checkpoint_final.pth",
        None,
        None,
    ]
    with pytest.raises(ValueError, match="starts from the network of a stock trainer"):
        trainings_of(workplace.experiment(), [frozen], **how)


def test_a_frozen_trainer_with_agreement_starts_from_the_network_that_learned_it(workplace):
    frozen, of_raters, with_agreement = (
        Method(trainer=name, plans="nnUNetPlans")
        for name in (
            "nnUNetTrainerDeferral_OvA_frozen",
            "nnUNetTrainerMultiRater_5epochs",
            "nnUNetTrainerDeferral_OvA_MR_frozen",
        )
    )
    experiment, how = workplace.experiment(), {"device": "cpu", "logs": workplace.root}
    found = trainings_of(experiment, [of_raters, STOCK, frozen, with_agreement], **how)
    starts = {training.method: training.pretrained for training in found if training.fold == 0}
    assert starts[frozen] == experiment.fold(STOCK, 0) / "checkpoint_final.pth"
    assert starts[with_agreement] == experiment.fold(of_raters, 0) / "checkpoint_final.pth"
    with pytest.raises(ValueError, match="MR_frozen starts from the network of nnUNetTrainerMultiRater: add one"):
        trainings_of(experiment, [STOCK, with_agreement], **how)


def test_command_lines_are_nnunets(workplace):
    training = Training(
        experiment=workplace.experiment(), method=DEFERRAL, fold=1, cases=("case_3",), device="cpu", logs=Path("logs")
    )
    words = training.command(Stage.RESUME)
    assert Path(words[0]).name == "nnUNetv2_train"
    assert words[1:] == [
        *("Dataset901_Made", "2d", "1", "-tr", DEFERRAL.trainer, "-p", "nnUNetPlans", "-device", "cpu", "--c")
    ]
    assert training.command(Stage.VALIDATE)[-1] == "--val"
    assert training.command(Stage.START)[-2:] == ["-device", "cpu"]
    assert replace(training, npz=True).command(Stage.VALIDATE)[-2:] == ["--npz", "--val"]


def test_a_deferral_fold_is_done_with_its_maps(workplace):
    workplace.write_model(DEFERRAL, route=ask_where_wrong)
    trainings = trainings_of(workplace.experiment(), [DEFERRAL], device="cpu", logs=workplace.root)
    assert {training.state().stage for training in trainings} == {Stage.DONE}
