"""The directive `result-table`: the tables of the results page, from the files in `RESULTS` when the page is built.

No figure is typed in here or in a table of the page. Machine and date are those that the files name.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

RESULTS = Path(__file__).parents[2] / "measurements" / "results"

BUDGETS = (0.005, 0.01, 0.02, 0.05)
_STOCK = "nnUNetTrainer_5epochs"
_NONE = "–"
_THIRDS = {"low": 1, "middle": 2, "high": 3}

Rows = list[Sequence[str]]


def stock_and_deferral() -> str:
    """Stock and deferral trainings of 5 epochs, fold 0, of the 2D and the 3D dataset."""
    header = ("dataset", "trainer", "Dice of the model", "Dice of the system", "deferred", "by expert", "experts alone")
    rows: Rows = []
    sources = []
    for name in ("004_3d_fullres", "501_2d"):
        content = _json(f"compare_{name}_nnUNetDeferralCPUPlans_fold0_5epochs.json")
        rows += [_compared(content, row) for row in content["rows"]]
        sources.append(f"{content['dataset']}: {content['cases']} cases, {content['machine']}, {content['date']}")
    return _table(header, rows) + f"\n\n{_small('; '.join(sources))}"


def joint_folds() -> str:
    """Stock and deferral trainings on two further folds."""
    return _benchmark(
        "dataset501_2d_joint_5epochs", {_STOCK: "stock", "nnUNetTrainerDeferral3Experts_DC_5epochs": "`_DC`"}
    )


def joint_3d() -> str:
    """Stock and deferral to one expert on the 3D dataset."""
    names = {_STOCK: "stock", "nnUNetTrainerDeferral1Expert_DC_5epochs": "`1Expert_DC`"}
    return _benchmark("dataset004_3d_joint_5epochs", names)


def frozen() -> str:
    """Two objectives on the same frozen network."""
    names = {
        _STOCK: "stock",
        "nnUNetTrainerDeferral3Experts_frozen_5epochs": "`_DC_frozen`",
        "nnUNetTrainerDeferral3Experts_OvA_frozen_5epochs": "`_OvA_frozen`",
    }
    return _benchmark("dataset501_2d_frozen_5epochs", names)


def frozen_budgets() -> str:
    """Rankings at matched budgets for the two objectives on the frozen network."""
    rankings = {"learned": "expected gain", "probability": "probability map", "max_softmax": "max softmax"}
    rows = []
    for objective, words in (("collaboration", "`_DC`"), ("one_vs_all", "`_OvA`")):
        found = _budgets(f"dataset501_2d_frozen_5epochs/budgets_{objective}.csv")
        rows += [(words, name, *_cells(found[key])) for key, name in rankings.items()]
    rows.append(("either", "oracle", *_cells(found["oracle"])))
    return _table(("objective", "ranking", *_percents()), rows)


def transfer() -> str:
    """Budgets and calibrators fitted on other patients, 2D, by the experts' error model."""
    experts = {
        "standard": "Table 2",
        "standard_correlated": "Table 2, correlated errors",
        "standard_boundary_bias": "Table 2, boundary bias",
        "complementary": "complementary (E.11)",
    }
    rows: Rows = []
    for name, words in experts.items():
        rows += [(words, *row) for row in _transfer_rows(f"budget_transfer_501_2d_{name}.json", region="3 pixels")]
    note = _transfer_note("budget_transfer_501_2d_standard.json")
    return _table(("experts", "deferred by", *_percents()), rows) + f"\n\n{_small(note)}"


def transfer_3d() -> str:
    """The same for the 3D dataset."""
    file = "budget_transfer_004_3d_fullres_standard.json"
    rows = list(_transfer_rows(file, region="4 mm", with_oracle=True))
    return _table(("deferred by", *_percents()), rows) + f"\n\n{_small(_transfer_note(file))}"


def transfer_calibration() -> str:
    """Calibration error of each head over the least certain voxels, before and after calibrators of other patients."""
    files = {
        "501_2d_standard": "2D, Table 2",
        "501_2d_standard_boundary_bias": "2D, Table 2, boundary bias",
        "501_2d_complementary": "2D, complementary (E.11)",
        "004_3d_fullres_standard": "3D, Table 2",
    }
    rows = []
    for name, words in files.items():
        heads = _json(f"budget_transfer_{name}.json")["calibration"].values()
        rows.append((words, *(f"{head['ece_before']:.3f} → {head['ece_after']:.3f}" for head in heads)))
    return _table(("experts", "model", "expert 1", "expert 2", "expert 3"), rows)


_EVIDENCE = {
    "standard": "Table 2, independent",
    "correlated": "errors in patches",
    "boundary_bias": "borders too wide or tight",
    "missed_components": "missed components",
    "complementary": "complementary",
    "readers": "four readers, reference at least 2 of them",
    "leave_one_out": "one reader, reference the other three",
}
_POLICIES = ("rule", "confidence", "confidence, evidence", "R1 k1", "R2 k2", "R4 k2", "R4 k3", "R4 k4")


def evidence() -> str:
    """Answers as evidence at 0.5, 1 and 2 %, by kind of experts and policy."""
    return _evidence("501_2d", _EVIDENCE, BUDGETS[:3])


def evidence_3d() -> str:
    """The same for two classes in 3D, whose errors are a larger share of the voxels."""
    return _evidence("004_3d_fullres", ("standard", "correlated", "missed_components"), BUDGETS[1:4])


def _evidence(of: str, kinds: Iterable[str], budgets: Sequence[float]) -> str:
    rows, sources = [], set()
    for key in kinds:
        name, content = _EVIDENCE[key], _json(f"evidence_{of}_{key}.json")
        sources.add(f"{content['groups']} patients, {content['machine']}, {content['date']}")
        for policy in _POLICIES:
            found = {row["budget"]: row for row in content["policies"].get(policy, ())}
            if found:
                rows.append((name, policy, *(_evidence_cell(found[budget]) for budget in budgets)))
    header = ("experts", "policy", *_percents(budgets))
    return _table(header, rows) + f"\n\n{_small('; '.join(sorted(sources)))}"


def _evidence_cell(row: Mapping[str, Any]) -> str:
    part = _NONE if row["recovered"] is None else f"{row['recovered']:.2f}"
    return f"{row['Dice']['estimate']:.3f} ({part}) {_percent(row['questions'])}"


def shift() -> str:
    """What rankings gain where images, cases or experts differ from those of the training."""
    return _shift("shift_Dataset501_LIDCnodule2D_2d.json")


def shift_3d() -> str:
    """The same for hippocampi."""
    return _shift("shift_Dataset004_Hippocampus_3d_fullres.json")


def _shift(file: str) -> str:
    content = _json(file)
    named = {"images": "", "experts": "experts: ", "raters": "disagreement of readers: "}
    rankings = {
        "learned": "learned",
        "max_softmax": "max softmax",
        "near_border": "near the border",
        "oracle": "oracle",
    }
    rows = []
    for kind, domains in content["domains"].items():
        for name, found in sorted(domains.items(), key=lambda each: _THIRDS.get(each[0], 0)):
            gains = (found["rankings"][key]["gain"] for key in rankings)
            dice = found["Dice"]
            rows.append(
                (
                    named.get(kind, f"{kind}: ") + name,
                    f"{dice['model_everywhere']['estimate']:.3f}",
                    _interval(dice["system - model_everywhere"]),
                    f"{found['rate']:.2%}",
                    f"{found['kept_error']:.3f}",
                    *(_interval(gain) for gain in gains),
                )
            )
    header = ("domain", "model", "system − model", "deferred", "kept error", *rankings.values())
    note = f"{content['dataset']}, fold {content['fold']}, {content['machine']}, {content['date']}"
    return _table(header, rows) + f"\n\n{_small(note)}"


def ablation() -> str:
    """The paper's losses one by one, three experts."""
    losses = {
        "DC_noSC_noLB": "DC (`_DC_noSC_noLB`)",
        "DC_noLB": "DC + SC (`_DC_noLB`)",
        "DC_noSC": "DC + LB (`_DC_noSC`)",
        "DC": "DC + SC + LB (`_DC`)",
        "DC_paperSC": "DC + SC as in the paper + LB (`_DC_paperSC`)",
        "OvA": "one-vs-all (`_OvA`)",
    }
    return _ablation(losses, trainer="nnUNetTrainerDeferral3Experts", prefix="")


def ablation_one_expert() -> str:
    """The same with one expert."""
    losses = {
        "DC_noSC": "DC (`_DC_noSC`)",
        "DC": "DC + SC (`_DC`)",
        "DC_paperSC": "DC + SC as in the paper (`_DC_paperSC`)",
        "OvA": "one-vs-all (`_OvA`)",
    }
    return _ablation(losses, trainer="nnUNetTrainerDeferral1Expert", prefix="1_expert_")


def numbers_of_experts() -> str:
    """One-vs-all with one, three and five experts."""
    files = {
        "1": "dataset501_2d_experts/budgets_one_vs_all_1.csv",
        "3": "dataset501_2d_frozen_5epochs/budgets_one_vs_all.csv",
        "5": "dataset501_2d_experts/budgets_one_vs_all_5.csv",
    }
    rows = []
    for number, file in files.items():
        found = _budgets(file)
        own = found["learned"]["own"]
        rows.append(
            (
                number,
                _interval(own),
                _percent(float(own["rate"])),
                _listed(found["learned"]),
                _listed(found["max_softmax"]),
            )
        )
    at = ", ".join(f"{100 * budget:g}" for budget in BUDGETS)
    return _table(("experts", "system", "deferred", f"expected gain at {at} %", f"max softmax at {at} %"), rows)


def readers_2d() -> str:
    """Four real readers, 2D: rankings at matched budgets and how they rank the model's errors."""
    folder = "dataset501_2d_real_readers"
    found = _budgets(f"{folder}/budgets_one_vs_all.csv")
    areas = _json(f"{folder}/evaluation_one_vs_all.json")["risk_coverage"]
    augrc = {name: f"{1000 * area['AUGRC']['area']:.3f}" for name, area in areas.items()}
    some = next(iter(areas.values()))["AUGRC"]
    augrc |= {"random": f"{1000 * some['random']:.3f}", "oracle": f"{1000 * some['optimum']:.3f}"}
    rankings = {
        "learned": "expected gain",
        "probability": "probability map",
        "max_softmax": "max softmax",
        "random": "random",
        "oracle": "oracle",
    }
    rows = [(words, *_cells(found[key]), augrc.get(key, "")) for key, words in rankings.items()]
    return _table(("ranking", *_percents(), "AUGRC × 1000"), rows)


def readers_3d() -> str:
    """Four real readers and a weak model, 3D."""
    found = _budgets("dataset505_3d_real_readers/budgets_one_vs_all.csv")
    budgets = (*BUDGETS, 0.1)
    rankings = {
        "learned": "expected gain",
        "probability": "probability map",
        "max_softmax": "max softmax",
        "max_softmax, always rater4": "max softmax, always rater4",
        "oracle": "oracle",
    }
    rows = [(words, *_cells(found[key], budgets)) for key, words in rankings.items()]
    return _table(("ranking", *_percents(budgets)), rows)


_METHODS = {
    "ordinal": "ordinal",
    "majority": "`_majority`",
    "meanLabel": "`_meanLabel`",
    "randomRater": "`_randomRater`",
    "ordinal_noDice": "ordinal, `_noDice`",
    "majority_noDice": "`_majority_noDice`",
}


def several_raters() -> str:
    """Ways to learn from several raters: Dice, and calibration to all of them."""
    rows, notes = [], []
    for name, dataset in (("501_2d", "501"), ("504_2d", "504")):
        content = _json(f"multi_rater_{name}.json")
        for method, words in _METHODS.items():
            if method not in content["methods"]:
                continue
            found = content["methods"][method]
            (calibration,), (dice,) = found["calibration"].values(), found["dice"].values()
            for reading, values in calibration.items():
                scores = (values["image"]["ece"], values["box"]["ece"], values["curvas_ece"], values["box"]["brier"])
                overlap = (dice["reference"], dice["raters"]) if reading == "probability" else ()
                cells = [_of_json(each) for each in overlap] or [_NONE, _NONE]
                estimates = (f"{scores[0]['estimate']:.4f}", *map(_of_json, scores[1:]))
                rows.append((dataset, words, reading, *cells, *estimates))
        first = next(iter(content["methods"].values()))
        notes.append(
            f"{dataset}: {first['cases']} cases of {first['groups']} {'patients' if name == '501_2d' else 'images'}, "
            f"{len(first['raters'])} raters, fold {content['fold']}, {content['epochs']} epochs of "
            f"{content['iterations']} steps, plans {content['plans']}; {content['machine']}, {content['date']}"
        )
    header = (
        "dataset",
        "target",
        "reading",
        "Dice, reference",
        "Dice, mean of raters",
        "ECE, image",
        "ECE, box",
        "ECE as in CURVAS",
        "Brier score, box",
    )
    return _table(header, rows) + f"\n\n{_small('. '.join(notes))}"


def surfaces() -> str:
    """Dice and surfaces of model and system, by the errors of simulated experts."""
    names = {
        "independent": "independent errors",
        "correlated": "errors in patches",
        "boundary_bias": "borders too wide or tight",
        "missed_components": "missed components",
    }
    rows, notes = [], []
    for name, dataset in (("501_2d", "501, 2D"), ("004_3d_fullres", "004, 3D")):
        content = _json(f"surfaces_{name}.json")
        for error_model, of in content["found"].items():
            pairs = (
                f"{of['model_everywhere'][score]:{form}} → {of['system'][score]:{form}}"
                for score, form in (("Dice", ".3f"), ("HD95", ".1f"), ("NSD", ".3f"))
            )
            rows.append((dataset, names[error_model], _percent(of["rate"]), *pairs))
        cases, unit = (content["found"]["independent"][key] for key in ("cases", "unit"))
        notes.append(f"{dataset}: {cases} cases, in {unit}, {content['machine']}, {content['date']}")
    header = ("dataset", "experts", "deferred", "Dice", "HD95", "NSD, tolerance 1")
    return _table(header, rows) + f"\n\n{_small('; '.join(notes))}"


def overhead() -> str:
    """What deferral adds to time and memory."""
    rows = []
    drawn = "_cpu_drawn_in_step"
    for name in ("501_2d_cpu", "511_2d_cpu", "004_3d_fullres_cpu", f"501_2d{drawn}", f"004_3d_fullres{drawn}"):
        content = _json(f"overhead_{name}.json")
        ratios, machine = content["ratios"], content["machine"]
        cells = (ratios.get(key) for key in ("step", "loader", "prediction", "memory"))
        where = ", experts drawn in the step" if name.endswith(drawn) else ""
        rows.append(
            (
                content["what"].removesuffix(" patch as planned") + where,
                f"`{content['trainer']}`",
                *(_NONE if ratio is None else _rounded(ratio) for ratio in cells),
                f"{machine['device']}, torch {machine['torch']}, {content['date']}",
            )
        )
    header = ("what", "trainer", "training step", "data loader", "prediction", "peak memory", "machine, date")
    return _table(header, rows)


def networks() -> str:
    """What deferral adds to a training step of other networks, relative to their own trainers."""
    names = {
        "plain": "PlainConvUNet",
        "resenc_m": "ResidualEncoderUNet, plans ResEncM",
        "primus_s": "Primus-S",
        "swin_unetr": "SwinUNETR of MONAI",
    }
    rows = []
    for name, words in names.items():
        content = _json(f"networks_{name}.json")
        ratios, machine = content["ratios"], content["machine"]
        measured = f"{machine['device']}, torch {machine['torch']}, {content['date']}"
        rows.append(
            (words, f"`{content['trainer']}`", *(_rounded(ratios[key]) for key in ("step", "memory")), measured)
        )
    return _table(("network", "trainer", "training step", "peak memory", "machine, date"), rows)


def memory() -> str:
    """What an evaluation takes."""
    rows = []
    for name in ("24x4194304", "1x100000000"):
        content = _json(f"evaluation_memory_{name}.json")
        machine = content["machine"]
        rows.append(
            (
                content["what"],
                f"{content['memory_mib']['peak'] / 1024:.1f} GiB",
                *(f"{value:.1f} s" for value in content["seconds_of_one_core"].values()),
                f"{machine['device']}, numpy {machine['numpy']}, {content['date']}",
            )
        )
    header = ("what", "peak memory", "risk-coverage", "a ranking", "the oracle", "machine, date")
    return _table(header, rows)


def export() -> str:
    """What the export of a resampled case takes, relative to stock."""
    content = _json("export.json")
    found, machine = content["found"], content["machine"]
    names = {"deferral": "one-vs-all, no limits", "budget": "a budget of 1 %", "evidence": "answers as evidence"}
    rows = [
        (
            name,
            *(_rounded(content["ratios"][kind][key]) for key in ("cpu_seconds", "peak_mib")),
            f"{found[kind]['files_mib']:.0f} MiB",
        )
        for kind, name in names.items()
    ]
    shapes = " to ".join("×".join(map(str, content[key])) for key in ("predicted", "image"))
    line = f"{shapes} voxels, {content['classes']} classes, {content['experts']} experts; {machine['device']}"
    table = _table(("decision", "processor time", "peak memory", "files"), rows)
    return f"{table}\n\n{_small(line + ', ' + content['date'])}"


_FILES = {
    "probabilities": "`<case>.npz`",
    "mask": "mask",
    "route": "`route`",
    "expert": "`expert`",
    "probability": "`probability`",
    "gain": "`gain`",
    "prior": "`prior`",
    "routing": "`routing`",
    "fold": "`folds`, each",
    "mutual_information": "`mutual_information`",
}


def sizes() -> str:
    """The size of each file of a case."""
    content = _json("sizes.json")
    cases = content["cases"]
    rows = [(words, *(_kib(found["bytes"][kind]) for found in cases.values())) for kind, words in _FILES.items()]
    shapes = [
        f"{'×'.join(map(str, found['image'][-int(name[0]) :]))} `{found['file_ending']}`"
        for name, found in cases.items()
    ]
    line = f"one synthetic object with smooth noise, {content['classes']} classes, {content['experts']} experts"
    return f"{_table(('file', *shapes), rows)}\n\n{_small(line + ', ' + content['date'])}"


def _kib(size: int) -> str:
    return f"{size / 1024:.1f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"


def many_cases() -> str:
    """What the entry of one more case takes in folders of many."""
    content = _json("many_cases.json")
    rows = [
        (f"{int(number):,}".replace(",", " "), f"{found['entry_ms']:.1f} ms", f"{found['read_all_seconds']:.1f} s")
        for number, found in content["cases"].items()
    ]
    table = _table(("cases in the folder", "entry of one more", "reading all entries"), rows)
    return f"{table}\n\n{_small(content['machine']['device'] + ', ' + content['date'])}"


def archive() -> str:
    """Two processes against one, and the memory of a list from many cases."""
    content = _json("archive.json")
    rows = [
        (what, f"{times['one']:.0f} s", f"{times['two']:.0f} s", f"{times['speed_up']:.2f}")
        for what, times in content["processes"].items()
    ]
    table = _table(("", "one process", "two processes", "speed-up"), rows)
    shape, listed = " x ".join(map(str, content["shape"])), content["list"]
    line = f"{content['volumes']} volumes of {shape}; {content['machine']['device']}, {content['date']}"
    regions, cases = (f"{listed[key]:,}".replace(",", " ") for key in ("regions", "cases"))
    memory = (
        f"Choosing a list from {regions} regions of {cases} cases: {listed['seconds']:.0f} s, {listed['peak_mib']} MiB "
        "at most."
    )
    return f"{table}\n\n{_small(line)}\n\n{memory}"


def query_rounds() -> str:
    """Dice on other patients after each round of queries, by strategy."""
    content = _json("query_rounds_004_2d.json")
    found = {(row["strategy"], row["round"]): row for row in content["compared"]}
    rounds = sorted({number for _, number in found})
    rows: Rows = []
    for strategy in content["arguments"]["strategies"]:
        cells = []
        for number in rounds:
            row = found.get((strategy, number))
            cells.append(_NONE if row is None else f"{row['dice']:.3f} ({row['seeds']})")
            less = None if row is None else row.get("difference")
            cells.append(
                _NONE if less is None else f"{less['estimate']:+.3f} ({less['low']:+.3f} to {less['high']:+.3f})"
            )
        rows.append((f"`{strategy}`", *cells))
    begun = [row["mean"] for row in content["rows"] if row["strategy"] == "start"]
    given = content["arguments"]
    note = (
        f"Dice after round 0: {' and '.join(f'{value:.3f}' for value in begun)}. {content['pool']} images in the "
        f"pool, {content['test']} of other patients for testing, {given['n']} boxes of "
        f"{' x '.join(map(str, given['patch']))} voxels a round, {50 * given['start_epochs']} iterations for the "
        f"start and {50 * given['epochs']} a round; {content['machine']}, {content['date']}"
    )
    head = [words for number in rounds for words in (f"round {number} (seeds)", "− `random_foreground`")]
    return _table(("strategy", *head), rows) + f"\n\n{_small(note)}"


TABLES: dict[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        stock_and_deferral,
        joint_folds,
        joint_3d,
        frozen,
        frozen_budgets,
        transfer,
        transfer_3d,
        transfer_calibration,
        evidence,
        evidence_3d,
        shift,
        shift_3d,
        ablation,
        ablation_one_expert,
        numbers_of_experts,
        readers_2d,
        readers_3d,
        several_raters,
        surfaces,
        overhead,
        networks,
        memory,
        export,
        sizes,
        many_cases,
        archive,
        query_rounds,
    )
}


def _compared(content: Mapping[str, Any], row: Mapping[str, Any]) -> Sequence[str]:
    dataset = content["dataset"].split("_")[0]
    if "system" not in row:
        return (dataset, f"`{row['trainer']}`", f"{row['model']:.3f}", *[_NONE] * 4)
    shares = ", ".join(_percent(share) for share in row["share"].values())
    alone = ", ".join(f"{dice:.3f}" for dice in row["experts"].values())
    scores = (f"{row['model']:.3f}", f"{row['system']:.3f}")
    return (dataset, f"`{row['trainer']}`", *scores, _percent(row["rate"]), shares, alone)


def _benchmark(folder: str, names: Mapping[str, str]) -> str:
    rows = []
    for trainer, words in names.items():
        found = _scores(folder, trainer)
        model = _interval(found["model_everywhere", "foreground_mean", "Dice"])
        system = found.get(("system", "foreground_mean", "Dice"))
        difference = _NONE if system is None else _interval(system, "minus_first")
        system_text = _NONE if system is None else _interval(system)
        rows.append((words, model, system_text, difference, *_deferred(found)))
    header = ("trainer", "Dice of the model", "Dice of the system", "system − stock", "deferred", "by expert")
    return _table(header, rows) + f"\n\n{_small(_last_line(folder))}"


def _ablation(losses: Mapping[str, str], *, trainer: str, prefix: str) -> str:
    folder, rows = "dataset501_2d_ablation", []
    for name, words in losses.items():
        found = _scores(folder, f"{trainer}_{name}_frozen_5epochs")
        budgets = _budgets(f"{folder}/budgets_{prefix}{name}.csv")["learned"]
        system = _interval(found["system", "foreground_mean", "Dice"])
        rows.append((words, system, *_deferred(found), *_cells(budgets)))
    header = ("losses", "Dice of the system", "deferred", "by expert", *_percents())
    return _table(header, rows) + f"\n\n{_small(_last_line(folder))}"


def _deferred(found: Mapping[tuple[str, str, str], Mapping[str, str]]) -> tuple[str, str]:
    rates = {key[2]: float(row["estimate"]) for key, row in found.items() if key[0] == "deferral" and row["estimate"]}
    if "rate" not in rates:
        return _NONE, _NONE
    experts = [_percent(value) for name, value in sorted(rates.items()) if name.startswith("share")]
    return _percent(rates["rate"]), ", ".join(experts)


def _transfer_rows(file: str, *, region: str, with_oracle: bool = False) -> Iterable[Sequence[str]]:
    ways = {
        "gain": "expected gain",
        "gain, per case": "expected gain, budget of each case",
        "regions": f"expected gain, regions of {region}",
        "confidence": "confidence",
    }
    if with_oracle:
        ways["oracle"] = "oracle"
    found = {(row["way"], row["budget"]): row for row in _json(file)["rows"]}
    for way, words in ways.items():
        if (way, BUDGETS[0]) not in found:
            continue
        yield (words, *(_transfer_cell(found[way, budget]) for budget in BUDGETS))


def _transfer_cell(row: Mapping[str, Any]) -> str:
    dice = f"{row['Dice']['estimate']:.3f}"
    return f"{dice} ({row['recovered']:.2f}), {_percent(row['rate'])}" if "recovered" in row else dice


def _transfer_note(file: str) -> str:
    content = _json(file)
    folds = ", ".join(map(str, content["folds"]))
    return f"{content['cases']} cases, folds {folds}; {content['machine']}, {content['date']}"


@cache
def _json(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


@cache
def _budgets(name: str) -> dict[str, dict[Any, dict[str, str]]]:
    """Rows of a budgets.csv by ranking, and there by budget or `"own"`, the model's own rate."""
    found: dict[str, dict[Any, dict[str, str]]] = {}
    with (RESULTS / name).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = "own" if row["own_rate"] == "True" else float(row["budget"])
            found.setdefault(row["ranking"], {})[key] = row
    return found


@cache
def _scores(folder: str, trainer: str) -> dict[tuple[str, str, str], dict[str, str]]:
    with (RESULTS / folder / "benchmark.csv").open(newline="", encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["trainer"] == trainer]
    if not found:
        raise ValueError(f"{folder}/benchmark.csv has no trainer {trainer}")
    return {(row["part"], row["region"], row["score"]): row for row in found}


def _last_line(folder: str) -> str:
    """Versions, machine and date of a benchmark, the last line of its Markdown."""
    return (RESULTS / folder / "benchmark.md").read_text(encoding="utf-8").strip().splitlines()[-1]


def _cells(rows: Mapping[Any, Mapping[str, str]], budgets: Sequence[float] = BUDGETS) -> list[str]:
    return [_cell(rows[budget]) for budget in budgets]


def _cell(row: Mapping[str, str]) -> str:
    dice = f"{float(row['Dice']):.3f}"
    return dice if row["ranking"] == "oracle" else f"{dice} ({float(row['recovered']):.2f})"


def _listed(rows: Mapping[Any, Mapping[str, str]]) -> str:
    return ", ".join(f"{float(rows[budget]['Dice']):.3f}" for budget in BUDGETS)


def _interval(row: Mapping[str, str], column: str = "") -> str:
    """An estimate with its interval, of the score itself or of a difference."""
    names = (column, f"{column}_low", f"{column}_high") if column else None
    if names is None:
        names = ("estimate" if "estimate" in row else "Dice", "low", "high")
    estimate, low, high = (row[name] for name in names)
    if not estimate:
        return _NONE
    text = f"{float(estimate):.3f}"
    return f"{text} [{float(low):.3f}, {float(high):.3f}]" if low else text


def _of_json(found: Mapping[str, float | None]) -> str:
    """As :func:`_interval`, of numbers, of which 0 is one."""
    return _interval({key: "" if value is None else str(value) for key, value in found.items()})


def _rounded(value: float) -> str:
    """Two decimals of a number that the file holds with three: 1.045 is 1.05, which its binary form is just below."""
    return str(Decimal(str(value)).quantize(Decimal("0.01"), ROUND_HALF_UP))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _percents(budgets: Sequence[float] = BUDGETS) -> list[str]:
    return [f"{100 * budget:g} %" for budget in budgets]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _small(text: str) -> str:
    return f"*{text}.*"


class ResultTable(SphinxDirective):
    """One table, by its name in `TABLES`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The table and the line below it."""
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"no table {name}; there are {', '.join(TABLES)}")
        container = nodes.Element()
        self.state.nested_parse(StringList(TABLES[name]().splitlines(), source=name), 0, container)
        return list(container.children)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("result-table", ResultTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
