"""The HTML report of a benchmark."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_deferral.benchmark.comparison import FOREGROUND, SCORES, Resampling
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.report import benchmark_figures as figures
from nnunetv2_deferral.report import statements
from nnunetv2_deferral.report.benchmark_statements import (
    MOST_IN_HEADLINE,
    cautions,
    headline,
    method_names,
    panels,
    remarks,
    verdict,
)
from nnunetv2_deferral.report.benchmark_tables import AGAINST_RATERS, AGAINST_RATERS_NOTE, against_raters
from nnunetv2_deferral.report.figures import to_png
from nnunetv2_deferral.report.page import Definitions, Note, Page, Part, Picture, Section, Table, write_page
from nnunetv2_deferral.report.statements import interval_text
from nnunetv2_deferral.report.tables import DASH, ratio, share_text

_DPI = 150
_MOST_PANELS = 24  # more do not fit into a figure
_MOST_COLUMNS = 4  # of intervals side by side
_COLUMNS = {
    "model_everywhere": "alone",
    "system": "system",
    "model": "model,\nkept voxels",
    "expert": "expert,\ndeferred voxels",
}
_WORDS = (
    ("alone", "The network's mask of the whole image, as of a stock model, or an expert's labels of the whole image."),
    ("system", "Model and experts together: the expert's label where a voxel was deferred, the model's elsewhere."),
    ("deferred", "Voxels labelled by an expert, not by the model; the deferral rate is their share of all voxels."),
    ("kept voxels, deferred voxels", "Scores over the voxels that the model keeps and over those that it defers. As "
     "the voxels differ, these scores are not comparable with each other or with the others."),
    ("unanswered", "Deferred voxels where the expert has no label; the model's label is kept."),
    ("Dice", f"Overlap with the reference between 0 and 1, mean over cases; {DASH} if undefined."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Methods that are shown together: a table of the paper, or without a title those that are in none.

    Each method has its index in the results, a label, and the leading cells of its table rows, under `heads`.
    """

    title: str
    heads: Sequence[str]
    places: Sequence[int]
    labels: Sequence[str]
    cells: Sequence[Sequence[str]]


def check_report(file: Path) -> None:
    """Check that a report can be written, before anything is computed.

    Raises:
        InputError: If the path exists and is not a regular file, or its folder cannot be written or created.
    """
    if file.exists() and not file.is_file():
        raise InputError(f"the report {file} cannot be written: it exists and is not a regular file")
    there = file.absolute().parent
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=there):
            pass
    except OSError as error:
        raise InputError(f"the report {file} cannot be written: {error}") from error


def write_benchmark_page(results: Mapping[str, Any], file: Path, *, groups: Mapping[str, Any] | None = None) -> None:
    """Write the HTML report of a benchmark atomically.

    Args:
        results: From :func:`nnunetv2_deferral.benchmark.comparison.compare`, or the content of benchmark.json.
        file: The HTML file.
        groups: The group of each case, if the results were computed with groups, which they do not contain. Without
            them, experts alone have no intervals in that case.

    Raises:
        InputError: If the number of groups differs from that of the results.
    """
    write_page(benchmark_page(results, groups=groups), file)


def benchmark_page(results: Mapping[str, Any], *, groups: Mapping[str, Any] | None = None) -> Page:
    """The report as a page; arguments as in :func:`write_benchmark_page`."""
    results = _with_nan(results)
    resampling, names = _resampling(results, groups), method_names(results["methods"])
    sections: list[Section] = []
    verdicts = [(names[place], verdict(results, place)) for place in range(1, len(names))]
    if len(verdicts) > MOST_IN_HEADLINE:
        sections.append(Section(heading="Method by method", parts=(Definitions(verdicts),)))
    for group in _groups(results, names):
        parts = (_compared(results, group, resampling), _asked(results, group), _scores(results, group))
        if group.title:
            sections.append(Section(heading=group.title, parts=[part for found in parts for part in found]))
        else:
            headings = (f"Differences from {names[0]}", "Load of the experts", "Scores")
            sections += [Section(heading=heading, parts=found) for heading, found in zip(headings, parts, strict=True)]
    return Page(
        title=f"Comparison of trainings: {results['dataset']}, {results['configuration']}",
        cautions=cautions(results),
        headline=headline(results, verdicts),
        introduction=remarks(results, names),
        sections=(
            *(section for section in sections if section.parts),
            *_raters(results),
            _times(results, names),
            Section(heading="Definitions", parts=(Definitions(_WORDS),)),
            _background(results, names),
        ),
    )


def _groups(results: Mapping[str, Any], names: Sequence[str]) -> list[_Group]:
    """The methods that are in no table of the paper, then each table with the first method for comparison."""
    studies = results["studies"]
    placed = {row["method"] for study in studies for row in study["rows"]}
    loose = [0, *(place for place in range(1, len(names)) if place not in placed)]
    found = []
    if len(loose) > 1 or not studies:
        called = [names[place] for place in loose]
        found.append(
            _Group(title="", heads=["trainer"], places=loose, labels=called, cells=[[name] for name in called])
        )
    for study in studies:
        heads = list(study["rows"][0]["headings"])
        rows = [(row["method"], ", ".join(" ".join(pair) for pair in row["headings"].items()),
                 list(row["headings"].values())) for row in study["rows"]]  # fmt: skip
        if all(place for place, *_ in rows):
            rows.insert(0, (0, names[0], [names[0], *([""] * (len(heads) - 1))]))
        places, labels, cells = zip(*rows, strict=True)
        found.append(_Group(title=study["title"], heads=heads, places=places, labels=labels, cells=cells))
    return found


def _compared(results: Mapping[str, Any], group: _Group, resampling: Resampling | None) -> list[Part]:
    methods, regions = [results["methods"][place] for place in group.places], _regions(results)
    blocks = [figures.Block(heading=label, lines=figures.method_lines(method))
              for label, method in zip(group.labels, methods, strict=True)]  # fmt: skip
    alone = [
        figures.expert_line(expert, results, resampling) for expert in figures.experts_alone(methods, group.labels)
    ]
    blocks.append(figures.Block(heading="experts alone, whole image", lines=alone))
    if not (blocks := [block for block in blocks if block.lines]):
        return []
    first = method_names(results["methods"])[0]
    caption = (
        f"Paired differences in Dice from {first} on the same cases, with 95 % intervals; positive is better, and "
        "intervals that cross the line are inconclusive. Hollow markers have no interval. Arrows mark experts outside "
        f"the scale. Models and experts are compared with the mask of {first}, systems with its system if it has one."
    )
    drawn = regions
    if len(regions) > _MOST_PANELS:
        drawn = {FOREGROUND: regions[FOREGROUND]}
        caption += f" The {len(regions) - 1} classes are in the tables below."
    picture = to_png(figures.draw_forest(blocks, drawn), dpi=_DPI)
    parts: list[Part] = [Picture(png=picture, title=f"Difference in Dice from {first}", caption=caption)]
    for begin in range(0, len(regions), _MOST_COLUMNS):
        shown = list(regions)[begin : begin + _MOST_COLUMNS]
        rows = [
            [block.heading, line.label, *(_broken(line.differences[region], signed=True) for region in shown)]
            for block in blocks
            for line in block.lines
        ]
        head = ["", "", *(regions[region] for region in shown)]
        parts.append(Table(caption=f"Differences in Dice from {first}, with 95 % intervals", head=head, rows=rows))
    return parts


def _asked(results: Mapping[str, Any], group: _Group) -> list[Part]:
    found = [(label, results["methods"][place]["deferral"])
             for place, label in zip(group.places, group.labels, strict=True)
             if results["methods"][place]["deferral_model"]]  # fmt: skip
    if not found:
        return []
    loads = [figures.Load(label=label, rate=deferral["rate"], shares=deferral["share"]) for label, deferral in found]
    rows = []
    for label, deferral in found:
        rate = deferral["rate"]
        shares = (f"{name}: {share_text(ratio(share, rate))} ({share_text(share)})"
                  for name, share in deferral["share"].items())  # fmt: skip
        rows.append([label, share_text(rate), "\n".join(shares), share_text(deferral["unanswered"])])
    caption = (
        "Distribution of the deferred voxels among the experts; if one expert has nearly all of them, routing may have "
        "collapsed."
    )
    return [
        Picture(png=to_png(figures.draw_loads(loads), dpi=_DPI), title="Load of each expert", caption=caption),
        Table(caption="For each expert the share of the deferred voxels (of all voxels)",
              head=["", "deferred", "routed to", "unanswered"], rows=rows),
    ]  # fmt: skip


def _scores(results: Mapping[str, Any], group: _Group) -> list[Part]:
    """A table for each score and region: one row per method, then the experts alone."""
    methods = [results["methods"][place] for place in group.places]
    columns = {part: head for part, head in _COLUMNS.items() if any(part in method["scores"] for method in methods)}
    lines = [(cells, method["scores"], method["deferral"].get("rate", math.nan))
             for cells, method in zip(group.cells, methods, strict=True)]  # fmt: skip
    lines += [
        ([expert.label, *([""] * (len(group.heads) - 1))], {"model_everywhere": expert.scores}, math.nan)
        for expert in figures.experts_alone(methods, group.labels)
    ]
    tables: list[Part] = []
    for region, title in _regions(results).items():
        for score in SCORES:
            rows = []
            for cells, scores, rate in lines:
                found = (_broken(scores[part][region][score]) if part in scores else DASH for part in columns)
                rows.append([*cells, *found, share_text(rate)])
            tables.append(
                Table(caption=f"{score}, {title}", head=[*group.heads, *columns.values(), "deferred"], rows=rows)
            )
    return tables


def _raters(results: Mapping[str, Any]) -> list[Section]:
    """Scores against all raters of the dataset; nothing without any."""
    rows = [[_on_two_lines(cell) for cell in row] for row in against_raters(results["methods"], results["regions"])]
    if not rows:
        return []
    table = Table(caption="Dice and calibration, against all raters", head=list(AGAINST_RATERS), rows=rows)
    return [Section(heading="Against all raters", parts=(table, Note(AGAINST_RATERS_NOTE)))]


def _times(results: Mapping[str, Any], names: Sequence[str]) -> Section:
    """Ratios, and seconds if the results contain them (GPUs only)."""
    columns = {"epoch_ratio": "epoch, ratio", "prediction_ratio": "prediction, ratio",
               "seconds_per_epoch": "seconds\nper epoch", "seconds_prediction": "prediction,\nseconds"}  # fmt: skip
    took = [method["time"] for method in results["methods"]]
    shown = [key for key in columns if key.endswith("ratio") or any(not math.isnan(each[key]) for each in took)]
    rows = [
        [name, str(each["device"]) or DASH, *(DASH if math.isnan(each[key]) else f"{each[key]:.3g}" for key in shown)]
        for name, each in zip(names, took, strict=True)
    ]
    caption = f"Duration of training and prediction relative to {names[0]}"
    note = (
        "Epochs: ratio of medians, if device and number of steps agree. Trainings ran at different times and may have "
        "been affected by other load on the machine. Prediction: one run, from start to end of the command. Seconds "
        "are given for GPUs only."
    )
    head = ["trainer", "trained on", *(columns[key] for key in shown)]
    return Section(heading="Time", parts=(Table(caption=caption, head=head, rows=rows), Note(note)))


def _broken(found: Mapping[str, float], *, signed: bool = False) -> str:
    """An estimate with its interval on a second line."""
    return _on_two_lines(interval_text(found, signed=signed))


def _on_two_lines(interval: str) -> str:
    return interval.replace(" [", "\n[").replace(", ", ",\N{NO-BREAK SPACE}")


def _background(results: Mapping[str, Any], names: Sequence[str]) -> Section:
    cases = results["cases"]
    methods = [
        f"{method['trainer']}, plans {method['plans']}"
        + (f", experts {', '.join(method['experts'])}" if method["deferral_model"] else "")
        for method in results["methods"]
    ]
    drawn = {"intervals": results["intervals"], "deferred": {"per_case": [c for fold in cases.values() for c in fold]}}
    limits = [
        "Each method was trained once per fold; repeated trainings of the same trainer would differ as well. If "
        "settings were selected on these cases, all results are optimistic.",
    ]
    mean = results["methods"][0]["summary"]["model_everywhere"]["mean"]
    undefined = {
        title: mean[region]["n_undefined"]
        for region, title in results["regions"].items()
        if mean[region]["n_undefined"]
    }
    if undefined:
        numbers = ", ".join(f"{title}: {number}" for title, number in undefined.items())
        limits.append(f"Cases excluded from the mean of {names[0]} because a score is undefined, by class: {numbers}.")
    answering = panels(results)
    if answering:
        limits.append(
            "An expert alone labels every voxel of every image: a point of comparison, not an alternative with the "
            "same effort. The share of voxels does not measure working time."
        )
    if any(isinstance(expert, str) for panel in answering for expert in panel["experts"]):
        limits.append(
            "If the reference was made from these raters' own labels, their agreement with it is partly by "
            "construction."
        )
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    meanings = [
        ("data", f"{results['dataset']}, configuration {results['configuration']}"),
        ("folds", ", ".join(f"{fold} ({len(found)} cases)" for fold, found in cases.items())),
        ("methods", "\n".join(methods)),
        ("experts", "\n".join(statements.experts_text({"experts": panel}) for panel in answering) or "none"),
        ("intervals", statements.intervals_text(drawn)),
        ("limitations", "\n".join(limits)),
        ("versions", f"{versions}; {results['machine']}; {results['date']}"),
    ]
    note = Note(
        "All numbers are in benchmark.json and benchmark.csv of the same benchmark, except for the differences of "
        "experts alone, which are computed from the scores by case in benchmark.json."
    )
    return Section(heading="Methods and limitations", parts=(Definitions(meanings), note))


def _regions(results: Mapping[str, Any]) -> dict[str, str]:
    """The titles of the regions shown: the mean and each class, or only the class if there is one."""
    classes = {region: f"class {name}" for region, name in results["regions"].items()}
    return classes if len(classes) == 1 else {FOREGROUND: "mean over classes"} | classes


def _resampling(results: Mapping[str, Any], groups: Mapping[str, Any] | None) -> Resampling | None:
    """The resampling used for the results; None if it used groups that are not given."""
    drawn, cases = results["intervals"], [case for fold in results["cases"].values() for case in fold]
    if groups is None and drawn["num_groups"] != len(cases):
        return None
    if groups is not None and len({groups[case] for case in cases}) != drawn["num_groups"]:
        number = len({groups[case] for case in cases})
        raise InputError(f"the results were computed with {drawn['num_groups']} groups of cases, got {number}")
    return Resampling(groups=groups, seed=drawn["seed"], num_resamples=drawn["num_resamples"])


def _with_nan(content: Any) -> Any:
    """The data with None replaced by NaN, as before it was written as JSON."""
    if isinstance(content, Mapping):
        return {key: _with_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_nan(value) for value in content]
    return math.nan if content is None else content
