"""The page of a benchmark: is the mask as good as stock nnU-Net's, is the system better, and who was asked."""

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
    headline,
    method_names,
    panels,
    remarks,
    verdict,
)
from nnunetv2_deferral.report.figures import to_png
from nnunetv2_deferral.report.page import Definitions, Note, Page, Part, Picture, Section, Table, write_page
from nnunetv2_deferral.report.statements import interval_text
from nnunetv2_deferral.report.tables import DASH, ratio, share_text

_DPI = 150
_MOST_PANELS = 24  # more are no figure
_MOST_COLUMNS = 4  # of intervals beside each other
_COLUMNS = {
    "model_everywhere": "alone",
    "system": "system",
    "model": "model, where\nit answers",
    "expert": "expert, where\nasked",
}
_WORDS = (
    ("alone", "The network's mask of the whole image, as a stock model has, or an expert who labels everything."),
    ("system", "Model and experts together: the asked expert's label where the model defers, its own elsewhere."),
    ("deferred", "Handed to an expert instead of answered by the model; the rate is the share of all voxels."),
    ("where it answers, where asked", "Scored over the voxels that the model keeps, and over those that it defers: "
     "other voxels each, to be compared neither with each other nor with the rest."),
    ("unanswered", "Of what was deferred: the expert who was asked has no label there, so the model's answer stands."),
    ("Dice", f"Overlap with the reference from 0 to 1, a mean over cases; {DASH} where there is nothing to overlap."),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Methods that are shown together: a table of the paper, or those that stand in none, without a title.

    A method has its place in the results, a label, and the cells that stand at the left of tables under `heads`.
    """

    title: str
    heads: Sequence[str]
    places: Sequence[int]
    labels: Sequence[str]
    cells: Sequence[Sequence[str]]


def check_report(file: Path) -> None:
    """Refuse a file that could not be written, before anything is computed for it.

    Raises:
        InputError: If it is a folder or no plain file, or if its folder cannot be written or made.
    """
    if file.exists() and not file.is_file():
        raise InputError(f"the report {file} cannot be written: it is there and no file")
    there = file.absolute().parent
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=there):
            pass
    except OSError as error:
        raise InputError(f"the report {file} cannot be written: {error}") from error


def write_benchmark_page(results: Mapping[str, Any], file: Path, *, groups: Mapping[str, Any] | None = None) -> None:
    """Write the page of a benchmark, whole or not at all.

    Args:
        results: From :func:`nnunetv2_deferral.benchmark.comparison.compare`, or what was read from benchmark.json.
        file: The HTML file.
        groups: For each case what it was drawn with, where results were made with groups, for they do not hold them.
            Without, experts alone then have no intervals.

    Raises:
        InputError: If the groups are not as many as those of the results.
    """
    write_page(benchmark_page(results, groups=groups), file)


def benchmark_page(results: Mapping[str, Any], *, groups: Mapping[str, Any] | None = None) -> Page:
    """The page; arguments as in :func:`write_benchmark_page`."""
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
            headings = (f"Differences to {names[0]}", "Who was asked", "Scores")
            sections += [Section(heading=heading, parts=found) for heading, found in zip(headings, parts, strict=True)]
    return Page(
        title=f"Trainings compared: {results['dataset']}, {results['configuration']}",
        headline=headline(results, verdicts),
        introduction=remarks(results, names),
        sections=(
            *(section for section in sections if section.parts),
            _times(results, names),
            Section(heading="Words", parts=(Definitions(_WORDS),)),
            _background(results, names),
        ),
    )


def _groups(results: Mapping[str, Any], names: Sequence[str]) -> list[_Group]:
    """The tables of the paper, each with the first method to compare with, and before them what stands in none."""
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
    blocks.append(figures.Block(heading="experts, labelling everything", lines=alone))
    if not (blocks := [block for block in blocks if block.lines]):
        return []
    first = method_names(results["methods"])[0]
    caption = (
        f"Dots are differences in Dice to {first} on the same cases, bars their 95 % intervals: right of the line is "
        "better, and a bar across the line leaves open which is. Hollow: there is no interval. An arrow stands for an "
        "expert alone beyond the scale. Model and expert are set against its mask, a system against its system, if it "
        "has one."
    )
    drawn = regions
    if len(regions) > _MOST_PANELS:
        drawn = {FOREGROUND: regions[FOREGROUND]}
        caption += f" The {len(regions) - 1} classes are in the tables below."
    picture = to_png(figures.draw_forest(blocks, drawn), dpi=_DPI)
    parts: list[Part] = [Picture(png=picture, title=f"Dice less that of {first}", caption=caption)]
    for begin in range(0, len(regions), _MOST_COLUMNS):
        shown = list(regions)[begin : begin + _MOST_COLUMNS]
        rows = [
            [block.heading, line.label, *(_broken(line.differences[region], signed=True) for region in shown)]
            for block in blocks
            for line in block.lines
        ]
        head = ["", "", *(regions[region] for region in shown)]
        parts.append(Table(caption=f"The same in numbers: Dice less that of {first}", head=head, rows=rows))
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
        "How the voxels that a method deferred are shared out among its experts; where one expert has nearly the whole "
        "bar, routing has collapsed."
    )
    return [
        Picture(png=to_png(figures.draw_loads(loads), dpi=_DPI), title="Load of each expert", caption=caption),
        Table(caption="The same in numbers: of each expert the share of the deferred voxels (of all voxels)",
              head=["", "deferred", "asked", "unanswered"], rows=rows),
    ]  # fmt: skip


def _scores(results: Mapping[str, Any], group: _Group) -> list[Part]:
    """A table for each score of each region: a row a method, then the experts alone."""
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


def _times(results: Mapping[str, Any], names: Sequence[str]) -> Section:
    """Ratios; seconds where the results have any, which is on GPUs."""
    columns = {"epoch_ratio": "epoch, ratio", "prediction_ratio": "prediction, ratio",
               "seconds_per_epoch": "seconds\nan epoch", "seconds_prediction": "seconds\nto predict"}  # fmt: skip
    took = [method["time"] for method in results["methods"]]
    shown = [key for key in columns if key.endswith("ratio") or any(not math.isnan(each[key]) for each in took)]
    rows = [
        [name, str(each["device"]) or DASH, *(DASH if math.isnan(each[key]) else f"{each[key]:.3g}" for key in shown)]
        for name, each in zip(names, took, strict=True)
    ]
    caption = f"What training and prediction take, {names[0]} being 1"
    note = (
        "Epochs are medians, set in relation where device and number of steps are the same; trainings ran at different "
        "times, so what else the machine did is in them. Prediction is measured once, from the start of the command to "
        "its end. Seconds are told for GPUs only."
    )
    head = ["trainer", "trained on", *(columns[key] for key in shown)]
    return Section(heading="Time", parts=(Table(caption=caption, head=head, rows=rows), Note(note)))


def _broken(found: Mapping[str, float], *, signed: bool = False) -> str:
    """An estimate, and below it its interval in one line."""
    return interval_text(found, signed=signed).replace(" [", "\n[").replace(", ", ",\N{NO-BREAK SPACE}")


def _background(results: Mapping[str, Any], names: Sequence[str]) -> Section:
    cases = results["cases"]
    methods = [
        f"{method['trainer']}, plans {method['plans']}"
        + (f", asks {', '.join(method['experts'])}" if method["deferral_model"] else "")
        for method in results["methods"]
    ]
    drawn = {"intervals": results["intervals"], "deferred": {"per_case": [c for fold in cases.values() for c in fold]}}
    limits = [
        "Each method is one training a fold: another training of the same trainer would differ, too. If settings were "
        "chosen on these cases, all numbers are optimistic.",
    ]
    mean = results["methods"][0]["summary"]["model_everywhere"]["mean"]
    undefined = {
        title: mean[region]["n_undefined"]
        for region, title in results["regions"].items()
        if mean[region]["n_undefined"]
    }
    if undefined:
        numbers = ", ".join(f"{title}: {number}" for title, number in undefined.items())
        limits.append(f"Cases left out of the mean of {names[0]} because a score is undefined, by class: {numbers}.")
    answering = panels(results)
    if answering:
        limits.append(
            "An expert alone would have labelled every voxel of every image: a reference, not an alternative at the "
            "same effort. A share of voxels is not a measure of working time either."
        )
    if any(isinstance(expert, str) for panel in answering for expert in panel["experts"]):
        limits.append(
            "If the reference was made from these raters' own labels, they are right partly by construction; this page "
            "cannot know."
        )
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    meanings = [
        ("data", f"{results['dataset']}, configuration {results['configuration']}"),
        ("folds", ", ".join(f"{fold} ({len(found)} cases)" for fold, found in cases.items())),
        ("methods", "\n".join(methods)),
        ("experts", "\n".join(statements.experts_text({"experts": panel}) for panel in answering) or "none"),
        ("intervals", statements.intervals_text(drawn)),
        ("limits", "\n".join(limits)),
        ("made with", f"{versions}; {results['machine']}; {results['date']}"),
    ]
    note = Note(
        "All numbers are in benchmark.json and benchmark.csv, written with this page, but for the differences of "
        "experts alone, which are made of the scores by case in benchmark.json."
    )
    return Section(heading="How this was done, and what it cannot tell", parts=(Definitions(meanings), note))


def _regions(results: Mapping[str, Any]) -> dict[str, str]:
    """What is shown, by region: the mean and every class; a single class says the same as its mean."""
    classes = {region: f"class {name}" for region, name in results["regions"].items()}
    return classes if len(classes) == 1 else {FOREGROUND: "mean over classes"} | classes


def _resampling(results: Mapping[str, Any], groups: Mapping[str, Any] | None) -> Resampling | None:
    """As the intervals of the results were drawn; None if they were by groups that are not known here."""
    drawn, cases = results["intervals"], [case for fold in results["cases"].values() for case in fold]
    if groups is None and drawn["num_groups"] != len(cases):
        return None
    if groups is not None and len({groups[case] for case in cases}) != drawn["num_groups"]:
        number = len({groups[case] for case in cases})
        raise InputError(f"the results were made with {drawn['num_groups']} groups of cases, not with these {number}")
    return Resampling(groups=groups, seed=drawn["seed"], num_resamples=drawn["num_resamples"])


def _with_nan(content: Any) -> Any:
    """The same data with NaN for None, as it was before it was written as JSON."""
    if isinstance(content, Mapping):
        return {key: _with_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_nan(value) for value in content]
    return math.nan if content is None else content
