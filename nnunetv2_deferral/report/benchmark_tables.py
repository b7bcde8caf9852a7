"""The results of a benchmark as Markdown in the layouts of the paper (scores in per cent), CSV and JSON (fractions)."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_deferral.benchmark.comparison import FOREGROUND, SCORES
from nnunetv2_deferral.files import without_nan, written_whole
from nnunetv2_deferral.report.benchmark_statements import cautions, panels, simulated_text
from nnunetv2_deferral.report.statements import experts_text, interval_text
from nnunetv2_deferral.report.tables import DASH, percent_text
from nnunetv2_deferral.text import markdown_table

NAME = "benchmark"
_PARTS = ("system", "expert", "model")
_COLUMNS = ("trainer", "plans", "part", "region", "score", "estimate", "low", "high",
            "minus_first", "minus_first_low", "minus_first_high")  # fmt: skip


def write_tables(results: Mapping[str, Any], output: Path) -> list[Path]:
    """Write benchmark.json (NaN as null), benchmark.csv and benchmark.md atomically.

    Args:
        results: From :func:`nnunetv2_deferral.benchmark.comparison.compare`.
        output: The output folder.

    Returns:
        The files written.
    """
    with written_whole(output) as scratch:
        (scratch / f"{NAME}.json").write_text(json.dumps(without_nan(results), indent=1) + "\n")
        (scratch / f"{NAME}.md").write_text(markdown(results), encoding="utf-8")
        with (scratch / f"{NAME}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(long_rows(results))
    return [output / f"{NAME}.{ending}" for ending in ("md", "csv", "json")]


def long_rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row per number, with its interval and its difference from the first method if defined."""
    for method in results["methods"]:
        row = {key: method[key] for key in ("trainer", "plans")}
        for part, regions in method["scores"].items():
            for region, scores in regions.items():
                for score, found in scores.items():
                    less = method["minus_first"].get(part, {}).get(region, {}).get(score, {})
                    names = {"estimate": "minus_first", "low": "minus_first_low", "high": "minus_first_high"}
                    difference = {names[key]: value for key, value in less.items()}
                    yield row | {"part": part, "region": region, "score": score} | found | difference
        deferral = method["deferral"]
        if deferral:
            shares = {f"share of {name}": share for name, share in deferral["share"].items()}
            for score, value in ({key: deferral[key] for key in ("rate", "unanswered")} | shares).items():
                yield row | {"part": "deferral", "score": score, "estimate": value}
        for score, value in method["time"].items():
            if isinstance(value, float) and not math.isnan(value):
                yield row | {"part": "time", "score": score, "estimate": value}


def markdown(results: Mapping[str, Any]) -> str:
    """All tables as Markdown, with headings."""
    methods, names = results["methods"], results["regions"]
    regions = [FOREGROUND, *names]
    parts = [
        f"# {results['dataset']}, {results['configuration']}",
        *(f"CAUTION: {caution}" for caution in cautions(results)),
        _introduction(results),
        *_experts(results),
        "## Deferral",
        markdown_table(_deferral_rows(methods)),
        f"## Difference in Dice from {methods[0]['trainer']}, in percentage points",
        markdown_table(_difference_rows(methods, names)),
    ]
    # With a single class the mean equals the class.
    for region in regions if len(regions) > 2 else regions[1:]:
        title = "Mean over the foreground" if region == FOREGROUND else f"Class {names[region]}"
        parts += [f"## {title}", markdown_table(_score_rows(methods, region))]
    if rows := list(against_raters(methods, names)):
        parts += ["## Against all raters", markdown_table([AGAINST_RATERS, *rows]), AGAINST_RATERS_NOTE]
    for study in results["studies"]:
        layout = {"experts": _scalability_rows, "grid": _grid_rows}.get(study["name"], _ablation_rows)
        parts += [f"## {study['title']}", markdown_table(layout(study, methods))]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    parts += ["## Time", markdown_table(_time_rows(methods)), _time_note(results)]
    parts += [f"{versions}; {results['machine']}; {results['date']}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(results: Mapping[str, Any]) -> str:
    folds, drawn = results["folds"], results["intervals"]
    groups = "cases" if drawn["num_groups"] == results["num_cases"] else f"{drawn['num_groups']} groups of cases"
    return (
        f"{'Fold' if len(folds) == 1 else 'Folds'} {', '.join(map(str, folds))}, {results['num_cases']} validation "
        "cases, each counted once. Scores are means over cases in per cent, with "
        f"{drawn['level']:.0%} intervals from {drawn['num_resamples']} bootstrap resamples of the {groups} in "
        "brackets. System: the fused mask. Expert: the experts' labels on the deferred voxels. Model: the model's "
        "labels on the voxels it keeps. Model everywhere: the model's mask of the whole image, as of a stock model. "
        "Cases with an undefined score are excluded from means, so expert and model refer to other voxels, and "
        f"possibly other cases, than the system. {DASH}: undefined in all cases."
    )


def _experts(results: Mapping[str, Any]) -> Iterator[str]:
    """What simulated experts show, and who answered, for each group of experts."""
    if remark := simulated_text(results):
        yield remark
    yield from (f"Experts: {experts_text({'experts': panel})}" for panel in panels(results))


def _score_rows(methods: Sequence[Mapping[str, Any]], region: str) -> Iterator[list[str]]:
    """One row per method: all scores of system, expert, model and model everywhere."""
    parts = (*_PARTS, "model_everywhere")
    yield ["trainer", *(f"{score} {_named(part)}" for score in SCORES for part in parts)]
    for method in methods:
        yield [_name(method, methods), *(_score(method, part, region, score) for score in SCORES for part in parts)]


def _deferral_rows(methods: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["trainer", "system Dice", "model everywhere Dice", "deferred", "routed to each expert", "unanswered"]
    for method in methods:
        deferral = method["deferral"]
        shares = (f"{name} {percent_text(share)}" for name, share in deferral.get("share", {}).items())
        yield [
            _name(method, methods),
            *(_interval(method["scores"].get(part), FOREGROUND, "Dice") for part in ("system", "model_everywhere")),
            percent_text(deferral["rate"]) if deferral else DASH,
            ", ".join(shares) or DASH,
            percent_text(deferral["unanswered"]) if deferral else DASH,
        ]


def _difference_rows(methods: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[list[str]]:
    """One row per method after the first: differences of system and model everywhere, for each region."""
    parts = ("system", "model_everywhere")
    regions = {FOREGROUND: ""} | ({key: f", {name}" for key, name in names.items()} if len(names) > 1 else {})
    yield ["trainer", *(f"{_named(part)}{name}" for name in regions.values() for part in parts)]
    for method in methods[1:]:
        less = method["minus_first"]
        cells = (_interval(less.get(part), region, "Dice", sign="+") for region in regions for part in parts)
        yield [_name(method, methods), *cells]


AGAINST_RATERS = (
    "trainer",
    "class",
    "Dice, mean of raters",
    "ECE in the box",
    "ECE by rater in the box",
    "ECE of the agreement in the box",
)
AGAINST_RATERS_NOTE = (
    "Scores as fractions, with 95 % intervals. Dice is between the mask and each rater's mask. ECE is the calibration "
    "error of the probabilities in the box around all raters' foreground, against all raters together and against "
    "each rater separately; lower is better. The agreement is the share of raters that a network of "
    "nnUNetTrainerMultiRater, or with _MR, expects to mark a voxel. Only methods validated with --npz are listed."
)


def against_raters(methods: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[list[str]]:
    """One row per method and region: Dice and calibration errors against all raters, as in `AGAINST_RATERS`."""
    for method in methods:
        found = method.get("against_raters", {})  # not in results of earlier versions
        for region, readings in found.get("calibration", {}).items():
            own = readings["probability"]
            agreement = readings.get("agreement")
            yield [
                _name(method, methods),
                names.get(region, region),
                interval_text(found["dice"][region]["raters"]),
                interval_text(own["box"]["ece"]),
                interval_text(own["curvas_ece"]),
                DASH if agreement is None else interval_text(agreement["box"]["ece"]),
            ]


def _ablation_rows(study: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Table 6: for each score the columns system, expert and model."""
    headings = list(study["rows"][0]["headings"])
    yield [*headings, *(f"{score} {part}" for score in SCORES for part in _PARTS), "model everywhere Dice", "deferred"]
    for row in study["rows"]:
        method = methods[row["method"]]
        cells = (_score(method, part, FOREGROUND, score) for score in SCORES for part in _PARTS)
        yield [*row["headings"].values(), *cells, *_more(method)]


def _grid_rows(study: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Table C.8: for each of system, expert and model the columns IoU, Dice and Sensitivity."""
    scores = ("IoU", "Dice", "Sensitivity")
    headings = list(study["rows"][0]["headings"])
    yield [*headings, *(f"{part} {score}" for part in _PARTS for score in scores), "model everywhere Dice", "deferred"]
    for row in study["rows"]:
        method = methods[row["method"]]
        cells = (_score(method, part, FOREGROUND, score) for part in _PARTS for score in scores)
        yield [*row["headings"].values(), *cells, *_more(method)]


def _scalability_rows(study: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Table D.10: one column per number of experts, one row per score and predictor."""
    chosen = [methods[row["method"]] for row in study["rows"]]
    yield ["Metric", "Predictor", *(f"J = {row['headings']['J']}" for row in study["rows"])]
    for score in SCORES:
        for part in (*_PARTS, "model_everywhere"):
            yield [score, _named(part), *(_score(method, part, FOREGROUND, score) for method in chosen)]
    yield ["deferred", "", *(_more(method)[1] for method in chosen)]


def _time_rows(methods: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["trainer", "trained on", "seconds per epoch", "epoch, ratio", "prediction, seconds", "prediction, ratio"]
    for method in methods:
        took = method["time"]
        numbers = ("seconds_per_epoch", "epoch_ratio", "seconds_prediction", "prediction_ratio")
        yield [_name(method, methods), took["device"] or DASH, *(_number(took[key]) for key in numbers)]


def _time_note(results: Mapping[str, Any]) -> str:
    return (
        f"Ratios are relative to {results['methods'][0]['trainer']}. Epochs: ratio of medians, if device and number of "
        "steps agree. Trainings ran at different times and may have been affected by other load on the machine. "
        "Prediction: one run, from start to end of the command. Seconds are given for GPUs only."
    )


def _more(method: Mapping[str, Any]) -> list[str]:
    rate = method["deferral"].get("rate", math.nan)
    return [_score(method, "model_everywhere", FOREGROUND, "Dice"), percent_text(rate)]


def _score(method: Mapping[str, Any], part: str, region: str, score: str) -> str:
    found = method["scores"].get(part)
    return DASH if found is None else _points(found[region][score]["estimate"])


def _interval(regions: Mapping[str, Any] | None, region: str, score: str, sign: str = "") -> str:
    if regions is None:
        return DASH
    estimate, low, high = (_points(regions[region][score][key], sign) for key in ("estimate", "low", "high"))
    return f"{estimate} [{low}, {high}]"


def _points(value: float, sign: str = "") -> str:
    return DASH if math.isnan(value) else format(100 * value, f"{sign}.2f")


def _number(value: float) -> str:
    return DASH if math.isnan(value) else f"{value:.3g}"


def _named(part: str) -> str:
    return part.replace("_", " ")


def _name(method: Mapping[str, Any], methods: Sequence[Mapping[str, Any]]) -> str:
    """The name of the trainer, with its plans if these differ among methods."""
    differ = len({each["plans"] for each in methods}) > 1
    return f"{method['trainer']} ({method['plans']})" if differ else method["trainer"]
