"""What training took, by nnU-Net's logs."""

import json
import math

import pytest
from made_up_workplace import DEFERRAL, STOCK, ask_where_wrong

from nnunetv2_deferral.benchmark.timing import epoch_seconds, method_times, time_predictions
from nnunetv2_deferral.benchmark.verification import split_sizes


def write_log(fold, name, *epochs):
    fold.mkdir(exist_ok=True)
    lines = [f"2026-11-21 11:21:19: Epoch {epoch} \n2026-11-21: Epoch time: {took} s " for epoch, took in epochs]
    (fold / f"training_log_{name}.txt").write_text("\n".join(lines))


def test_the_first_epoch_of_each_log_is_left_out(tmp_path):
    write_log(tmp_path, "2026_11_9_08_00_00", (0, 90.0), (1, 10.0), (2, 11.0))
    assert epoch_seconds(tmp_path) == [10.0, 11.0]


def test_a_single_epoch_is_better_than_none(tmp_path):
    write_log(tmp_path, "2026_11_9_08_00_00", (0, 90.0))
    assert epoch_seconds(tmp_path) == [90.0]


def test_a_repeated_epoch_counts_as_it_was_repeated(tmp_path):
    write_log(tmp_path, "2026_11_9_08_00_00", (0, 90.0), (1, 10.0), (2, 11.0))
    write_log(tmp_path, "2026_11_10_08_00_00", (1, 50.0), (2, 12.0))  # the later by date, not by name
    assert epoch_seconds(tmp_path) == [10.0, 12.0]


def test_without_logs_there_is_nothing(tmp_path):
    assert epoch_seconds(tmp_path) == []
    assert split_sizes(tmp_path) is None


@pytest.fixture
def trained(workplace):
    workplace.write_model(STOCK, seconds=10.0)
    workplace.write_model(DEFERRAL, seconds=12.0, route=ask_where_wrong)
    return workplace


def edit_debug(here, method, **values):
    for fold in (0, 1):
        file = here.experiment().fold(method, fold) / "debug.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_seconds_are_told_for_a_gpu(trained):
    for method in (STOCK, DEFERRAL):
        edit_debug(trained, method, device="cuda:0", gpu_name="NVIDIA H200")
    stock, deferral = method_times(trained.experiment(), [STOCK, DEFERRAL])
    assert (stock.device, stock.seconds_per_epoch, deferral.seconds_per_epoch) == ("NVIDIA H200", 10.0, 12.0)
    assert deferral.epoch_ratio == pytest.approx(1.2)


@pytest.mark.parametrize("other", [{"hostname": "there"}, {"num_iterations_per_epoch": "20"}])
def test_other_machines_or_steps_are_not_compared(trained, other):
    edit_debug(trained, DEFERRAL, **other)
    deferral = method_times(trained.experiment(), [STOCK, DEFERRAL])[1]
    assert math.isnan(deferral.epoch_ratio)


def test_folds_of_different_machines_have_no_device(trained):
    file = trained.experiment().fold(STOCK, 1) / "debug.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hostname": "there"}))
    stock, deferral = method_times(trained.experiment(), [STOCK, DEFERRAL])
    assert (stock.device, deferral.device) == ("", "cpu")
    assert math.isnan(deferral.epoch_ratio)


def test_predictions_are_told_as_ratios_on_a_cpu(trained):
    times = method_times(trained.experiment(), [STOCK, DEFERRAL], predictions=[4.0, 5.0], device="cpu")
    assert [each.prediction_ratio for each in times] == [1, 1.25]
    assert all(math.isnan(each.seconds_prediction) for each in times)


def test_missing_raw_images_are_named(trained):
    with pytest.raises(ValueError, match=r"3 raw images .* are missing.*case_0_0000.png"):
        time_predictions(trained.experiment(0), [STOCK], device="cpu", logs=trained.root)
