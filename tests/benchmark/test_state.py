"""What is left to do in a fold, read from its folder."""

import pytest
from made_up_workplace import DEFERRAL, SPLITS, STOCK, ask_where_wrong, cut_short, write_checkpoint

from nnunetv2_deferral.benchmark.state import Stage, fold_state, other_cases

VAL = SPLITS[0]["val"]


@pytest.fixture
def stock(workplace):
    return workplace.write_model(STOCK) / "fold_0"


@pytest.fixture
def deferral(workplace):
    return workplace.write_model(DEFERRAL, route=ask_where_wrong) / "fold_0"


def stage(fold):
    return fold_state(fold, VAL, ".png").stage


def test_a_finished_fold_is_done(stock, deferral):
    assert stage(stock) is Stage.DONE
    assert stage(deferral) is Stage.DONE


def test_without_a_folder_everything_is_to_do(stock):
    assert stage(stock.with_name("fold_7")) is Stage.START


@pytest.mark.parametrize("name", ["checkpoint_latest.pth", "checkpoint_best.pth"])
def test_a_training_with_a_checkpoint_goes_on(stock, name):
    (stock / "checkpoint_final.pth").rename(stock / name)
    assert stage(stock) is Stage.RESUME


def test_a_checkpoint_that_is_cut_short_counts_as_missing(stock):
    write_checkpoint(stock / "checkpoint_latest.pth")
    cut_short(stock / "checkpoint_final.pth")
    state = fold_state(stock, VAL, ".png")
    assert state.stage is Stage.RESUME
    assert state.broken == (stock / "checkpoint_final.pth",)
    cut_short(stock / "checkpoint_latest.pth")
    assert stage(stock) is Stage.START


@pytest.mark.parametrize("path", ["summary.json", "case_1.png", "deferral/deferral.json", "deferral/route/case_1.png"])
def test_a_validation_that_lacks_a_file_is_repeated(deferral, path):
    (deferral / "validation" / path).unlink()
    state = fold_state(deferral, VAL, ".png")
    assert state.stage is Stage.VALIDATE
    assert path.split("/")[-1] in state.problem


@pytest.mark.parametrize("path", ["summary.json", "deferral/deferral.json"])
def test_a_validation_with_json_that_is_cut_short_is_repeated(deferral, path):
    cut_short(deferral / "validation" / path)
    assert stage(deferral) is Stage.VALIDATE


def test_a_summary_that_lacks_a_case_is_repeated(stock):
    problem = fold_state(stock, [*VAL, "case_9"], ".png").problem
    assert "lacks 1 of the fold's 4 cases: case_9" in problem


def test_cases_of_other_folds_are_seen(stock):
    assert other_cases(stock, VAL, ".png") == []
    assert other_cases(stock, VAL[:2], ".png") == ["case_2"]
