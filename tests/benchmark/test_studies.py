"""The paper's tables: which trainers on which plans, and how they are laid out."""

import json

import pytest
from made_up_workplace import SPLITS, STOCK, ask_where_wrong, write_plans

from nnunetv2_deferral.benchmark.plans import plans_with, use_expert_set, use_weights
from nnunetv2_deferral.benchmark.studies import StudyMaker
from nnunetv2_deferral.benchmark.trainers import expected_epochs, find_trainer, with_epochs
from nnunetv2_deferral.commands.benchmark import main
from nnunetv2_deferral.expert_sim.profiles import expert_set
from nnunetv2_deferral.settings import resolve_settings


@pytest.fixture
def maker(workplace):
    def make(plans="nnUNetPlans", write=True):
        return StudyMaker(workplace.experiment(), plans, name=lambda name: f"{name}_5epochs", write=write)

    return make


def settings_of(here, method, number):
    block = json.loads((here.preprocessed / f"{method.plans}.json").read_text()).get("deferral")
    return resolve_settings(block, num_experts=number)


def test_the_ablation_has_the_rows_of_table_6(maker):
    rows = maker().ablation().rows
    ours = ("one-vs-all", "+ SC as in the paper", "+ SC as in the paper, LB")
    assert [tuple(row.headings.values()) for row in rows if row.headings["Loss"] not in ours] == [
        *(("1", "DC"), ("1", "+ SC")),
        *(("3", "DC"), ("3", "+ SC"), ("3", "+ LB"), ("3", "+ SC, LB")),
    ]
    full = next(row.method.trainer for row in rows if tuple(row.headings.values()) == ("3", "+ SC, LB"))
    assert full == "nnUNetTrainerDeferral3Experts_DC_5epochs"
    for row in rows:
        overrides = find_trainer(row.method.trainer).settings_overrides
        if row.headings["Loss"] == "one-vs-all":
            assert overrides == {"objective": "one_vs_all"}
            continue
        assert overrides["objective"] == "collaboration"  # whatever the plans say
        assert ("lambda_coherence" in overrides) == ("SC" not in row.headings["Loss"])
        if row.headings["J"] == "3":
            assert ("lambda_balance" in overrides) == ("LB" not in row.headings["Loss"])


def test_frozen_tables_train_heads_on_the_stock_network(workplace, capsys):
    """-epochs is then the length of the heads; the stock trainer is named as it is."""
    with pytest.raises(SystemExit):
        main([*workplace.arguments, "-tr", STOCK.trainer, "--ablation", "--frozen", "-epochs", "20"])
    message = capsys.readouterr().err
    assert "nnUNetTrainerDeferral3Experts_DC_noLB_frozen_20epochs" in message
    assert "nnUNetTrainerDeferral1Expert_OvA_frozen_20epochs" in message
    assert f"{STOCK.trainer}_20epochs" not in message


def test_frozen_without_a_table_is_refused(workplace, capsys):
    with pytest.raises(SystemExit):
        main([*workplace.arguments, "-tr", STOCK.trainer, "--frozen"])
    assert "--frozen applies to the tables only" in capsys.readouterr().err


def test_stock_plans_need_no_derived_ones_for_the_ablation(maker):
    assert {row.method.plans for row in maker().ablation().rows} == {"nnUNetPlans"}


def test_plans_that_name_three_experts_get_others_for_one(workplace, maker):
    write_plans(workplace, "CPU", deferral=resolve_settings({}, num_experts=3).to_dict())
    rows = maker("CPU").ablation().rows
    assert {row.headings["J"]: row.method.plans for row in rows} == {"1": "CPU_standard", "3": "CPU"}
    one = next(row.method for row in rows if row.headings["J"] == "1")
    assert settings_of(workplace, one, 1).experts == expert_set("standard", 1)


def test_simulated_experts_take_the_place_of_raters_whose_agreement_is_learned(workplace, maker):
    write_plans(workplace, "Raters", deferral={"experts": ["ann", "bob"], "multi_rater": True})
    one = next(row.method for row in maker("Raters").ablation().rows if row.headings["J"] == "1")
    assert settings_of(workplace, one, 1).experts == expert_set("standard", 1)


def test_scalability_has_the_sets_of_table_d9(workplace, maker):
    rows = maker().experts([1, 2, 3, 4, 5]).rows
    for number, row in enumerate(rows, start=1):
        assert row.method.trainer == f"nnUNetTrainerDeferral{number}Expert{'s' * (number > 1)}_DC_5epochs"
        assert settings_of(workplace, row.method, number).experts == expert_set("scalability", number)


def test_the_grid_has_the_groups_of_table_c8(workplace, maker):
    rows = maker().grid().rows
    assert [row.headings["Group"] for row in rows] == list("ABCDEFGHIJKLMNOP")
    assert tuple(rows[6].headings.values()) == ("G", "1.00", "5.00")
    assert rows[6].method.plans == "nnUNetPlans"  # the defaults
    found = [settings_of(workplace, row.method, None) for row in rows]
    assert [(s.lambda_coherence, s.lambda_balance) for s in found] == [
        (first, second) for first in (0.1, 1, 5, 10) for second in (0.1, 1, 5, 10)
    ]
    assert all(find_trainer(row.method.trainer).settings_overrides["coherence_trains_routing"] for row in rows)


def test_derived_plans_differ_in_the_deferral_block_alone(workplace):
    name = plans_with(
        use_weights(0.5, 1), workplace.preprocessed, "nnUNetPlans", num_experts=None, raters=(), write=True
    )
    assert name == "nnUNetPlans_l1_0.5_l2_1"
    base, derived = (
        json.loads((workplace.preprocessed / f"{each}.json").read_text()) for each in ("nnUNetPlans", name)
    )
    assert derived.pop("deferral") == {"lambda_coherence": 0.5, "lambda_balance": 1.0}
    assert derived == base | {"plans_name": name}


def test_plans_of_that_name_that_differ_are_not_overwritten(workplace):
    write_plans(workplace, "nnUNetPlans_scalability", deferral={"experts": "standard"})
    before = (workplace.preprocessed / "nnUNetPlans_scalability.json").read_text()
    with pytest.raises(ValueError, match='nnUNetPlans_scalability.json differs from .*"standard"'):
        plans_with(
            use_expert_set("scalability"),
            workplace.preprocessed,
            "nnUNetPlans",
            num_experts=3,
            raters=(),
            write=True,
        )
    assert (workplace.preprocessed / "nnUNetPlans_scalability.json").read_text() == before


def test_without_running_no_plans_are_written(workplace, maker):
    maker(write=False).grid()
    assert [file.name for file in workplace.preprocessed.glob("nnUNetPlans*.json")] == ["nnUNetPlans.json"]


def test_there_are_trainers_for_five_experts_at_most(maker):
    with pytest.raises(ValueError, match=r"1 to 5 experts, not for \[0, 6\]"):
        maker().experts([0, 3, 6])


@pytest.mark.parametrize(
    ("epochs", "name"), [(None, "T"), (1000, "T"), (1, "T_1epoch"), (5, "T_5epochs"), (250, "T_250epochs")]
)
def test_lengths_in_names(epochs, name):
    assert with_epochs("T", epochs) == name
    assert expected_epochs(name) == (epochs or 1000)


def test_the_length_stands_before_the_trainer_to_which_deferral_is_added():
    name = "nnUNetTrainerDeferral_5epochs_on_nnUNetTrainerNoMirroring"
    assert with_epochs("nnUNetTrainerDeferral_on_nnUNetTrainerNoMirroring", 5) == name
    assert expected_epochs(name) == 5


def test_a_length_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        with_epochs("T", 0)


@pytest.mark.slow
def test_tables_are_laid_out_as_in_the_paper(workplace, maker):
    """All of them at once, on folders that are made up."""
    workplace.write_model(STOCK)
    studies = [maker().ablation(), maker().grid([1.0, 5.0]), maker().experts([1, 3])]
    for number, row in enumerate(row for study in studies for row in study.rows):
        settings = json.loads((workplace.preprocessed / f"{row.method.plans}.json").read_text()).get("deferral", {})
        experts = {"num_experts": int(row.headings.get("J", 3))}
        workplace.write_model(row.method, errors=10 + number, route=ask_where_wrong, **(settings | experts))
    arguments = [*workplace.arguments, "-epochs", "5"]
    main([*arguments, "--ablation", "--grid", "1", "5", "--num_experts", "1", "3"])
    text = (workplace.root / "out" / "benchmark.md").read_text()
    assert "| J | Loss | Dice system | Dice expert | Dice model | IoU system |" in text
    assert "| 3 | + SC, LB | " in text
    assert "| Group | λ1 | λ2 | system IoU | system Dice | system Sensitivity | expert IoU |" in text
    assert "| Metric | Predictor | J = 1 | J = 3 |" in text
    content = json.loads((workplace.root / "out" / "benchmark.json").read_text())
    assert [(study["name"], len(study["rows"])) for study in content["studies"]] == [
        ("ablation", 10),
        ("grid", 4),
        ("experts", 2),
    ]
    assert content["methods"][0]["trainer"] == STOCK.trainer
    assert len(SPLITS) == len(content["folds"])
