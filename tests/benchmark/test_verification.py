"""What cannot be compared is refused, with all that is wrong."""

import json

import pytest
from made_up_workplace import CASES, DEFERRAL, SPLITS, STOCK, ask_where_wrong, write_plans

from nnunetv2_deferral.benchmark.verification import verify, verify_begun
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import Experiment, Method

BOTH = (STOCK, DEFERRAL)


@pytest.fixture
def trained(workplace):
    workplace.write_model(STOCK)
    workplace.write_model(DEFERRAL, route=ask_where_wrong)
    return workplace


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_stock_and_deferral_side_by_side_are_accepted(trained):
    verify(trained.experiment(), BOTH)


def test_other_splits_than_those_of_the_training_are_refused(trained):
    swapped = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:2], "val": CASES[2:]}]
    (trained.preprocessed / "splits_final.json").write_text(json.dumps(swapped))
    with pytest.raises(ValueError, match="different splits: .* 3 training and 3 validation cases") as error:
        verify(trained.experiment(0), BOTH)
    assert "1 cases that are not in the validation of fold 0" in str(error.value)
    with pytest.raises(ValueError, match="nothing was trained"):
        verify_begun(trained.experiment(0), BOTH)


def test_splits_of_the_same_size_with_other_cases_are_refused(trained):
    (trained.preprocessed / "splits_final.json").write_text(json.dumps(SPLITS[::-1]))
    with pytest.raises(ValueError, match="case_0, case_1, case_2"):
        verify(trained.experiment(0), [STOCK])


def test_folds_that_share_a_case_are_refused(trained):
    (trained.preprocessed / "splits_final.json").write_text(json.dumps([SPLITS[0], SPLITS[0]]))
    with pytest.raises(ValueError, match="case_0 is in the validation of fold 0 and of fold 1"):
        verify(trained.experiment(), BOTH)


def test_a_fold_that_there_is_not_is_refused(trained):
    with pytest.raises(ValueError, match="has 2 folds, but not fold 4"):
        verify(trained.experiment(0, 4), BOTH)


def test_a_training_on_other_plans_is_refused(trained):
    file = trained.experiment().model(DEFERRAL) / "plans.json"
    edit(file, lambda plans: plans["configurations"]["2d"].update(data_identifier="other_2d", batch_size=7))
    with pytest.raises(ValueError, match='2d: batch_size is 7, not 2; 2d: data_identifier is "other_2d"'):
        verify(trained.experiment(), BOTH)


def test_a_model_that_was_calibrated_since_is_still_compared(trained):
    file = trained.experiment().model(DEFERRAL) / "plans.json"
    edit(file, lambda plans: plans.update(deferral_calibration={"folds": [0]}))
    verify(trained.experiment(), BOTH)


def test_plans_of_other_names_are_compared_by_what_is_in_them(workplace):
    other = Method(trainer=DEFERRAL.trainer, plans="nnUNetOtherPlans")
    write_plans(workplace, "nnUNetOtherPlans", deferral={"num_experts": 3})
    workplace.write_model(STOCK)
    workplace.write_model(other, route=ask_where_wrong)
    verify(workplace.experiment(), (STOCK, other))
    write_plans(workplace, "nnUNetOtherPlans", configuration={"patch_size": [8, 8]})
    workplace.write_model(other, route=ask_where_wrong)
    with pytest.raises(ValueError, match=r"plans or data of .* differ .*patch_size is \[8, 8\], not \[24, 28\]"):
        verify(workplace.experiment(), (STOCK, other))


def test_a_model_of_other_labels_is_refused(trained):
    edit(trained.experiment().model(STOCK) / "dataset.json", lambda content: content["labels"].update({"shell": 3}))
    with pytest.raises(ValueError, match='labels is .*"shell": 3'):
        verify(trained.experiment(), BOTH)


def test_a_model_of_another_fingerprint_is_refused(trained):
    edit(trained.experiment().model(DEFERRAL) / "dataset_fingerprint.json", lambda content: content["spacings"].pop())
    with pytest.raises(ValueError, match="the dataset's fingerprint is"):
        verify(trained.experiment(), BOTH)


def test_all_faults_are_told_at_once(trained):
    (trained.experiment().validation(STOCK, 0) / "summary.json").unlink()
    (trained.experiment().fold(DEFERRAL, 1) / "checkpoint_final.pth").unlink()
    (trained.preprocessed / "gt_segmentations" / "case_5.png").unlink()
    unknown = Method(trainer="nnUNetTrainerDeferral3Experts_noXY", plans="nnUNetPlans")
    never = Method(trainer="nnUNetTrainerDeferral1Expert", plans="nnUNetPlans")
    with pytest.raises(InputError) as error:
        verify(trained.experiment(), (*BOTH, unknown, never))
    for part in ("5 problem(s)", "no summary.json", "not trained", "case_5.png is missing", "unknown option _noXY"):
        assert part in str(error.value)
    assert "nnUNetTrainerDeferral1Expert on nnUNetPlans was not trained" in str(error.value)


def test_an_unknown_stock_trainer_is_named(trained):
    with pytest.raises(ValueError, match="unknown trainer nnUNetTrainer_6epochs"):
        verify(trained.experiment(), [Method(trainer="nnUNetTrainer_6epochs", plans="nnUNetPlans")])


def test_an_unknown_dataset_is_refused(workplace):
    with pytest.raises(ValueError, match="unknown dataset 77"):
        Experiment.find(77, "2d", [0])


@pytest.mark.parametrize("folds", [[], [0, 0], [-1]])
def test_folds_are_different_numbers(workplace, folds):
    with pytest.raises(ValueError, match="folds"):
        Experiment.find(901, "2d", folds)


def test_splits_that_are_cut_short_are_named(trained):
    (trained.preprocessed / "splits_final.json").write_text('[{"train": ["case_')
    with pytest.raises(ValueError, match="splits_final.json cannot be read"):
        verify(trained.experiment(), BOTH)


def test_a_start_with_other_splits_that_left_no_checkpoint_is_no_obstacle(trained):
    fold = trained.experiment().fold(STOCK, 0)
    (fold / "checkpoint_final.pth").unlink()
    (trained.preprocessed / "splits_final.json").write_text(
        json.dumps([{"train": CASES[4:], "val": CASES[:3]}, SPLITS[1]])
    )
    verify_begun(trained.experiment(), [STOCK])
