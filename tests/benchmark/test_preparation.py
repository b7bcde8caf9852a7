"""What must be there before anything is trained."""

import json

import pytest
from made_up_workplace import CASES, STOCK, write_plans

from nnunetv2_deferral.benchmark.preparation import prepare
from nnunetv2_deferral.commands.benchmark import main
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import Method


def test_all_that_is_missing_is_told_before_anything_is_trained(workplace, capsys):
    write_plans(workplace, "Other", configuration={"data_identifier": "nowhere_2d"})
    methods = [
        STOCK,
        Method(trainer="nnUNetTrainerDeferral9Experts", plans="nnUNetPlans"),
        Method(trainer="nnUNetTrainer_5epochs", plans="Other"),
        Method(trainer="nnUNetTrainer_5epochs", plans="None"),
    ]
    with pytest.raises(InputError) as error:
        prepare(workplace.experiment(), methods)
    parts = ("3 problem(s)", "unknown trainer nnUNetTrainerDeferral9Experts", "nowhere_2d has no preprocessed cases",
             "None.json is missing", "nnUNetv2_preprocess -d 901 -plans_name Other -c 2d")  # fmt: skip
    for part in parts:
        assert part in str(error.value)


def test_an_unknown_trainer_ends_the_command_before_it_trains(workplace, capsys):
    with pytest.raises(SystemExit) as error:
        main([*workplace.arguments, "-tr", "nnUNetTrainerr", "--run"])
    assert error.value.code == 2
    assert "unknown trainer nnUNetTrainerr" in capsys.readouterr().err
    assert not any((workplace.root / "results").iterdir())


def test_a_configuration_that_the_plans_lack_is_refused(workplace):
    experiment = workplace.experiment()
    with pytest.raises(ValueError, match="nnUNetPlans has no configuration 3d_fullres, only 2d"):
        prepare(type(experiment).find(901, "3d_fullres", [0]), [STOCK])


def test_missing_splits_are_written_as_nnunet_would(workplace):
    (workplace.preprocessed / "splits_final.json").unlink()
    for case in CASES:
        (workplace.preprocessed / "nnUNetPlans_2d" / f"{case}.b2nd").write_bytes(b"")
    prepare(workplace.experiment(), [STOCK])
    splits = json.loads((workplace.preprocessed / "splits_final.json").read_text())
    assert len(splits) == 5
    assert sorted(case for fold in splits for case in fold["val"]) == CASES


def test_splits_that_are_there_stay(workplace):
    before = (workplace.preprocessed / "splits_final.json").read_bytes()
    prepare(workplace.experiment(), [STOCK])
    assert (workplace.preprocessed / "splits_final.json").read_bytes() == before
