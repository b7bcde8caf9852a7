"""What the pages of results say in words, against the measurements that it was taken from."""

import csv
import json
import math
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "measurements" / "results"


def page(name):
    return re.sub(r"\s+", " ", (ROOT / "docs" / "results" / f"{name}.md").read_text())


def content(name):
    return json.loads((RESULTS / name).read_text())


def transfer(name):
    """The rows of a measurement of budgets on other patients, by method and budget."""
    return {(row["way"], row["budget"]): row for row in content(f"budget_transfer_{name}.json")["rows"]}


def less(rows, way, other, budget):
    return rows[way, budget]["Dice"]["estimate"] - rows[other, budget]["Dice"]["estimate"]


def is_clear(found):
    return found["low"] > 0 or found["high"] < 0


BUDGETS = (0.005, 0.01, 0.02, 0.05)


def test_where_the_confidence_is_at_its_best_the_expected_gain_is_not_said_to_beat_it():
    rows = transfer("501_2d_standard")
    best = max(BUDGETS, key=lambda budget: rows["confidence", budget]["Dice"]["estimate"])
    found = rows["gain", best]["minus_confidence"]
    assert (best, round(found["estimate"], 3), is_clear(found)) == (0.01, 0.006, False)
    assert rows["gain", 0.05]["rate"] == pytest.approx(0.008, abs=5e-4)
    said = page("budgets")
    assert "the gain stops at 0.8 %. At 1 %, where the confidence is at its best, it is ahead by 0.006, whose" in said
    assert "largely because it stops where the confidence spends the whole budget" in said


def test_regions_are_compared_with_single_pixels_of_the_same_budget():
    cost = {
        name: [-less(transfer(name), "regions", "gain, per case", budget) for budget in BUDGETS]
        for name in ("501_2d_standard", "501_2d_standard_correlated", "501_2d_complementary")
    }
    plain, correlated, complementary = cost.values()
    assert max(plain) < 0.001
    assert -0.00105 < min(correlated) < max(correlated) < 0
    assert [round(found(complementary), 3) for found in (min, max)] == [0.002, 0.006]
    said = page("budgets")
    assert "add 0.000 to 0.001 if errors are correlated; with complementary experts they cost 0.002 to 0.006" in said


def test_calibration_changed_the_dice_by_as_much_as_is_said():
    nodules = [
        abs(less(transfer(f"501_2d_{name}"), "gain", "gain, raw", budget))
        for name in ("standard", "standard_correlated", "standard_boundary_bias", "complementary")
        for budget in BUDGETS
    ]
    hippocampi = [less(transfer("004_3d_fullres_standard"), "gain", "gain, raw", budget) for budget in BUDGETS]
    assert round(max(nodules), 3) == 0.002
    assert round(min(hippocampi), 3) == -0.003
    assert "nodules by at most 0.002, and that of hippocampi by up to 0.003, for the worse" in page("budgets")


def test_on_hippocampi_it_is_said_where_regions_are_clearly_worse_than_the_confidence():
    rows = transfer("004_3d_fullres_standard")
    gains = [rows["gain", budget]["minus_confidence"] for budget in BUDGETS]
    assert all(-0.0035 < each["estimate"] <= 0 and not is_clear(each) for each in gains)
    regions = {budget: rows["regions", budget]["minus_confidence"] for budget in BUDGETS}
    assert [budget for budget, found in regions.items() if is_clear(found)] == [0.01]
    lower = [round(-each["estimate"], 3) for each in regions.values()]
    assert (min(lower), max(lower)) == (0.001, 0.006)
    assert "it is lower by 0.001 to 0.006, at 1 % (0.003) with an interval that excludes zero" in page("budgets")


SIMULATED = ("standard", "boundary_bias", "correlated", "complementary", "missed_components")


def rule_minus_confidence(folder: str) -> dict[float, list[dict[str, float]]]:
    """For each budget how far the learned ranking is ahead with each kind of simulated experts."""
    found: dict[float, list[dict[str, float]]] = {}
    for name in SIMULATED:
        for row in content(f"{folder}{name}.json")["policies"]["rule"]:
            found.setdefault(row["budget"], []).append(row["minus_confidence"])
    return found


def test_it_is_said_where_the_learned_ranking_is_worse_than_the_confidence():
    now, before = map(rule_minus_confidence, ("evidence_501_2d_", "evidence_501_2d_two_networks/"))
    worse = {budget: [each["estimate"] for each in before[budget] if each["high"] < 0] for budget in BUDGETS}
    assert [len(worse[budget]) for budget in BUDGETS] == [4, 1, 0, 0]
    assert [round(-found(worse[0.005]), 3) for found in (max, min)] == [0.004, 0.011]
    assert not any(is_clear(each) for each in now[0.005])
    assert all(each["low"] > 0 for rows in (now, before) for budget in (0.02, 0.05) for each in rows[budget])
    said = page("evidence")
    assert "cannot be told from the confidence at 0.5 % with these networks" in said
    assert "by 0.004 to 0.011 for four of the five kinds of simulated experts, and with complementary ones" in said
    assert "From 2 % on it is better with either" in said
    assert "[other networks](evidence.md#nodules-2d)" in page("losses")


def test_what_rounds_and_one_reader_gain_is_as_said():
    at_one_per_cent = {
        name: {way: rows[1] for way, rows in content(f"evidence_501_2d_{name}.json")["policies"].items()}
        for name in (*SIMULATED, "leave_one_out")
    }
    reader = at_one_per_cent.pop("leave_one_out")
    for way, said in (("R1 k1", "0.018 [0.007, 0.028] in one"), ("R4 k1", "0.024 [0.013, 0.035] in four")):
        less = reader[way]["minus_confidence"]
        assert f"{less['estimate']:.3f} [{less['low']:.3f}, {less['high']:.3f}]" in said
        assert said in page("evidence")
    recovered = {
        name: [found[way]["recovered"] for way in ("rule", "R1 k1", "R2 k2", "R4 k2")]
        for name, found in at_one_per_cent.items()
    }
    assert all(rule < one for rule, one, _, _ in recovered.values())
    _, one, two, four = recovered.pop("missed_components")
    assert max(two, four) < one
    more = [[round(found[way] - found[1], 2) for found in recovered.values()] for way in (2, 3)]
    assert [(min(each), max(each)) for each in more] == [(0.07, 0.08), (0.10, 0.12)]


def test_what_rankings_of_readers_reach_in_hindsight_is_told_apart():
    with (RESULTS / "dataset501_2d_real_readers" / "budgets_one_vs_all.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["own_rate"] == "False" and row["ranking"] != "oracle"]
    alike, always = (
        max(float(row["recovered"]) for row in rows if (", always " in row["ranking"]) == hindsight)
        for hindsight in (False, True)
    )
    assert (round(alike, 2), round(always, 2)) == (0.16, 0.24)
    said = page("readers")
    assert "no ranking that could be chosen beforehand reaches much more than a seventh" in said
    assert "(at best 0.16 was recovered)" in said
    assert "Asking rater 3 alone would have recovered up to 0.24" in said


def test_where_the_expected_share_of_raters_is_no_closer_to_them_is_said():
    closer = {}
    for name in ("501_2d", "502_2d", "504_2d", "505_3d_fullres"):
        (readings,) = content(f"multi_rater_{name}.json")["methods"]["ordinal"]["calibration"].values()
        agreement, own = readings["agreement"]["box"], readings["probability"]["box"]
        closer[name] = [agreement[score]["estimate"] < own[score]["estimate"] for score in ("ece", "brier")]
    assert {name for name, found in closer.items() if all(found)} == {"501_2d", "502_2d"}
    assert {name for name, found in closer.items() if any(found)} == {"501_2d", "502_2d"}
    said = page("raters")
    assert (
        "On slices of nodules and on retinal vessels, the share of raters that an ordinal network expects is clos"
        in said
    )
    assert "on cells and volumes, in the box of the foreground, it was not" in said


def test_one_round_of_evidence_is_not_said_to_gain_much_in_volumes_of_hippocampi():
    for name in ("004_3d_fullres_standard", "004_3d_fullres_missed_components", "505_3d_fullres_readers"):
        one, two = (content(f"evidence_{name}.json")["policies"][way] for way in ("R1 k1", "R2 k2"))
        assert any(row["minus_confidence"]["estimate"] > 0.0055 for row in one) == name.startswith("505")
        gains = [row["minus_confidence"]["low"] > 0 for row in two]
        assert any(gains) == ("missed" not in name)
    guide = re.sub(r"\s+", " ", (ROOT / "docs" / "how-to" / "evidence.md").read_text())
    assert (
        "On hippocampi in 3D, a second round with a second expert was needed for a gain, and with experts who miss"
        in guide
    )


def test_goals_of_evidence_that_are_missed_are_named(monkeypatch):
    # Without the __init__ of the extension, which requires Sphinx.
    package = ModuleType("result_tables")
    package.__path__ = [str(ROOT / "docs" / "_ext" / "result_tables")]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    evidence_goals = import_module("result_tables.evidence").evidence_goals
    percents = import_module("result_tables.shared").percents

    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in evidence_goals().splitlines()[2:]]
    missed = [row for row in cells if float(row[4]) < float(row[3])]
    assert missed == [["missed components", "R2 k2", percents([0.01])[0], "0.55", "0.52"]]
    said = page("evidence")
    assert "One goal is missed: against experts who miss whole components" in said
    found = content("evidence_501_2d_missed_components.json")
    others = content("evidence_501_2d_two_networks/missed_components.json")
    reached = [each["policies"][way][1]["recovered"] for each, way in ((found, "R4 k3"), (others, "R2 k2"))]
    assert f"all experts it is {reached[0]:.2f}; with the two networks" in said
    assert f"two rounds recovered {reached[1]:.2f}." in said
    for name, policies in found["policies"].items():
        if name[0] == "R":
            assert min(row["Dice"]["estimate"] for row in policies) > found["model"]["estimate"]


def test_where_rounds_are_below_the_confidence_with_evidence_is_said():
    below = {}
    for file in sorted(RESULTS.glob("evidence_[05]0*_*d_*.json")):
        policies = content(file.name)["policies"]
        for name, rows in policies.items():
            for row, fair in zip(rows, policies["confidence, evidence"], strict=True):
                less_by = fair["Dice"]["estimate"] - row["Dice"]["estimate"]
                if name[0] == "R" and less_by > 0.01:
                    below[file.stem, name, row["budget"]] = less_by
    assert {key[0] for key in below} == {"evidence_004_3d_fullres_missed_components"}
    assert {key[1][:2] for key in below} == {"R2", "R4"}
    assert min(key[2] for key in below) == 0.02
    assert f"by up to {max(below.values()):.3f} from 2 % on" in page("evidence")


def test_what_more_experts_gain_is_not_said_to_be_the_choice_among_them():
    found = {}
    for file in ("dataset501_2d_experts/budgets_one_vs_all_1", "dataset501_2d_frozen_5epochs/budgets_one_vs_all",
                 "dataset501_2d_experts/budgets_one_vs_all_5"):  # fmt: skip
        with (RESULTS / f"{file}.csv").open(newline="") as content_of_file:
            rows = list(csv.DictReader(content_of_file))
        learned = {row["budget"]: float(row["Dice"]) for row in rows if row["ranking"].startswith("learned")}
        chosen = {row["budget"]: float(row["Dice"]) for row in rows if row["ranking"] == "learned"}
        best = {
            budget: max(
                float(row["Dice"])
                for row in rows
                if row["ranking"].startswith("learned, always") and row["budget"] == budget
            )
            for budget in learned
        }
        assert all(chosen[budget] - best[budget] < 0.0005 for budget in chosen)
        found[file] = (
            chosen["0.01"],
            [
                float(row["Dice"])
                for row in rows
                if row["ranking"].startswith("learned, always") and row["budget"] == "0.01"
            ],
        )
    (one, _), (three, _), (five, each) = found.values()
    assert (round(three, 3), round(five, 3)) == (0.980, 0.991)
    assert min(each) > one
    assert (
        "always asking the best one alone gives the same at every budget, of three (0.980) and of five (0.991)"
        in page("losses")
    )


def test_which_queries_are_said_to_be_ahead():
    def is_last(row, strategy):
        return (row["strategy"], row["round"]) == (strategy, 2)

    def rows(file, number):
        found = content(f"query_rounds_004_2d{file}.json")["compared"]
        return {each["strategy"]: each.get("difference") for each in found if each["round"] == number}

    for file in ("", "_short"):
        after = rows(file, 2)
        assert all(after[strategy]["low"] > 0 for strategy in ("entropy", "claspe", "gain"))
        assert max(("entropy", "claspe", "gain"), key=lambda strategy: after[strategy]["estimate"]) == "entropy"
    assert all(difference["high"] < 0 for name, difference in rows("_shortest", 2).items() if difference)
    by_seed = {
        strategy: [row["mean"] for row in content("query_rounds_004_2d.json")["rows"] if is_last(row, strategy)]
        for strategy in ("gain", "random_foreground")
    }
    differences = [ours - theirs for ours, theirs in zip(*by_seed.values(), strict=True)]
    assert min(differences) < 0 < max(differences)
    assert "ahead of `random_foreground` with one seed and behind it with the other" in page("queries")
    first = [rows(file, 1) for file in ("", "_short", "_shortest")]
    for strategy in ("entropy", "claspe", "gain"):
        assert not all(found[strategy]["low"] > 0 for found in first)
    assert "no strategy was ahead in every study" in page("queries")


def test_heads_are_not_said_to_add_to_the_prior_more_than_they_do():
    budgets = (0.005, 0.01, 0.02)
    found = {
        key: {
            policy: [row["recovered"] for row in rows if row["budget"] in budgets]
            for policy, rows in content(f"evidence_501_2d_{key}.json")["policies"].items()
        }
        for key in ("standard", "heads", "aggregated", "heads-aggregated")
    }
    plain = found.pop("standard")
    more = {
        policy: [[each[policy][at] - plain[policy][at] for at in range(3)] for each in found.values()]
        for policy in ("R1 k1", "R2 k2", "R4 k3")
    }
    assert round(max(row[1] for row in more["R1 k1"]), 2) == 0.01
    assert all(row[0] < 0 for rows in more.values() for row in rows)
    in_rounds = [value for policy in ("R2 k2", "R4 k3") for row in more[policy] for value in row]
    assert sum(value < 0 for value in in_rounds) > 0.75 * len(in_rounds)
    said = page("evidence")
    assert "at 1 % one round recovers at most 0.01 more, at 0.5 % and in several rounds it mostly recovers less" in said


def test_the_goals_of_cost_that_are_missed_are_named_with_by_how_much():
    ratios = {name: content(f"overhead_{name}_cpu.json")["ratios"] for name in ("501_2d", "511_2d", "004_3d_fullres")}
    worst = {what: max(each[what] for each in ratios.values()) for what in ("step", "prediction", "memory")}
    drawn = [
        content(f"overhead_{name}_cpu_drawn_in_step.json")["ratios"]["loader"] for name in ("501_2d", "004_3d_fullres")
    ]
    assert max(worst["prediction"], *drawn) < 1.05
    *plain, evidence = (each["cpu_seconds"] for each in content("export.json")["ratios"].values())
    assert (round(min(plain), 1), round(max(plain), 1), round(evidence, 1)) == (1.7, 1.7, 2.5)
    missed = [worst["step"] - 1.05, worst["memory"] - 1.05, ratios["511_2d"]["loader"] - 1.1]
    assert [math.ceil(100 * each - 1e-6) for each in missed] == [2, 12, 16]
    said = page("cost")
    assert "The step misses its goal by up to 0.02, memory by up to 0.12, the loader with readers by 0.16" in said
    assert "a training step up to 7 % longer, and the export of a large case up to 1.7 times as long, or 2.5" in said
    assert "the export by 0.2, or 1.0 with answers as evidence" in said


def test_what_other_experts_and_images_cost_is_as_said():
    nodules, hippocampi = (
        content(f"shift_{name}.json")["domains"]
        for name in ("Dataset501_LIDCnodule2D_2d", "Dataset004_Hippocampus_3d_fullres")
    )

    def gain(domain, ranking=None):
        found = domain["Dice"]["system - model_everywhere"] if ranking is None else domain["rankings"][ranking]["gain"]
        return f"{found['estimate']:.3f}"

    experts, images = nodules["experts"], nodules["images"]
    said = page("shift")
    before = gain(experts["as in the training"])
    fewer, fewest, replaced = (experts[name] for name in ("5 points less", "10 points less", "expert1 replaced"))
    assert f"from {before} to {gain(fewer)}, with the best expert replaced to {gain(replaced)}, with" in said
    assert f"with 10 points less to {gain(fewest)}" in said
    assert min(map(gain, images.values())) > gain(fewer)
    assert f"({gain(fewest, 'learned')}) than asking next to the predicted border ({gain(fewest, 'near_border')})" in (
        said
    )
    assert f"If experts miss whole nodules, the gain is {gain(experts['missed_components errors'])}" in said

    changed = [hippocampi["experts"][name] for name in ("as in the training", "10 points less")]
    assert f"to {gain(fewest)} (nodules) and from {gain(changed[0])} to {gain(changed[1])} (hippocampi)" in said
    missed = hippocampi["experts"]["missed_components errors"]["Dice"]["system - model_everywhere"]
    limits = ", ".join(f"{missed[end]:.3f}" for end in ("low", "high")).replace("-", "\N{MINUS SIGN}")
    assert f"the gain is {missed['estimate']:.3f} [{limits}] instead of {gain(changed[0])}" in said

    own, gamma = images["ID"], images["gamma 3"]
    other = next(found for name, found in images.items() if name.startswith("middle slices"))
    errors, rates = ([each[key] for each in (own, other, gamma)] for key in ("kept_error", "rate"))
    assert "rise from {:.3f} to {:.3f} of the foreground".format(*errors) in said
    assert "the rate from {:.2%} to {:.2%}".format(*rates).replace("%", " %") in said
    assert f"({rates[2]:.2%}), and they rise to {errors[2]:.3f}".replace("%", " %") in said
