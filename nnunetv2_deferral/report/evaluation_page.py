"""The page of an evaluation: did asking help, which voxels were deferred, who was asked, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nnunetv2_deferral.report import evaluation_tables, statements
from nnunetv2_deferral.report.curves import draw_curves
from nnunetv2_deferral.report.figures import to_png
from nnunetv2_deferral.report.outcomes import FEW_VOXELS, draw_load, draw_location
from nnunetv2_deferral.report.page import Definitions, Note, Page, Part, Picture, Section, write_page
from nnunetv2_deferral.report.reliability_figure import draw_reliability, reliability_texts

_DPI = 150
WITHOUT_IMAGES = (
    "Pictures of single cases are left out because no images were given. To have them, evaluate again with "
    "-images FOLDER, the folder of the images that nnU-Net predicted (named <case>_0000 and the file ending)."
)


def write_evaluation_page(
    summary: Mapping[str, Any], file: Path, *, cases: Sequence[Picture] | None = None, unit: str = "mm"
) -> None:
    """Write the page of an evaluation, whole or not at all.

    Args:
        summary: What `deferral_summary.json` holds, see :func:`nnunetv2_deferral.commands.evaluate.evaluate`.
        file: The HTML file.
        cases: Pictures of cases, from :func:`.strips.case_pictures`; None where there are no images.
        unit: Of distances: mm, or pixels for images without a spacing.
    """
    write_page(evaluation_page(summary, cases=cases, unit=unit), file)


def evaluation_page(summary: Mapping[str, Any], *, cases: Sequence[Picture] | None = None, unit: str = "mm") -> Page:
    """The page; arguments as in :func:`write_evaluation_page`."""
    model = summary["model_identity"]
    return Page(
        title=f"Does asking experts help? {model['dataset']}, {model['configuration']}",
        headline=statements.headline(summary),
        introduction=statements.remarks(summary),
        sections=(
            _numbers(summary),
            _budgets(summary),
            _load(summary),
            _location(summary, unit),
            *_reliability(summary),
            _cases(cases),
            _failures(summary),
            Section(heading="Words", parts=(Definitions(statements.DEFINITIONS),)),
            _background(summary),
        ),
    )


def _numbers(summary: Mapping[str, Any]) -> Section:
    parts: list[Part] = [evaluation_tables.scores_table(summary)]
    if (regions := evaluation_tables.regions_table(summary)) is not None:
        parts.append(regions)
    num_cases = len(summary["deferred"]["per_case"])
    parts.append(
        Note(
            "The model alone is the network without asking anyone; the system takes the label of the expert who was "
            "asked where the model defers; an expert alone has labelled everything, and is scored on the cases that "
            f"expert has labelled. {num_cases} {'case' if num_cases == 1 else 'cases'}. Brackets hold 95 % intervals; "
            "how they were drawn, who the experts were, and what all words mean is told at the end of this page."
        )
    )
    return Section(heading="Model, system and experts", parts=parts)


def _budgets(summary: Mapping[str, Any]) -> Section:
    caption = (
        "Dice of the system when a given share of all voxels is deferred (logarithmic axis). Left: by which score the "
        "voxels are chosen, each then answered by the expert whom the model would ask; the oracle is a bound. Right: "
        "the learned choice of voxels, answered by the expert the model chooses or always by the same one, beside "
        "every expert alone. The diamond is what the model decides by itself, with its interval; the band holds "
        "between the budgets at which intervals were computed (bars). Curves above the model alone mean that asking "
        "helps; a learned curve that is not above the model's own uncertainty (max softmax, entropy) knows no "
        "better where to ask than the model's own probabilities do."
    )
    return Section(
        heading="How much to ask, where, and whom",
        parts=(
            _picture(draw_curves(summary), "System Dice against the share of voxels deferred", caption),
            evaluation_tables.budgets_table(summary),
            evaluation_tables.differences_table(summary),
            *_without_probabilities(summary),
        ),
    )


def _without_probabilities(summary: Mapping[str, Any]) -> list[Part]:
    if "max_softmax" in summary["budgets"]:
        return []
    return [
        Note(
            "The model's own uncertainty is not compared because its probabilities were not saved beside all masks "
            "(nnU-Net's --save_probabilities when predicting, --npz when training)."
        )
    ]


def _load(summary: Mapping[str, Any]) -> Section:
    caption = (
        "Left: how the deferred voxels are shared out; where one bar takes nearly all, routing has collapsed to one "
        "expert. Middle: voxels that asking made right, to the right, and that it made wrong, to the left. Right: "
        "what became of all voxels asked of each expert."
    )
    effort = evaluation_tables.effort_table(summary)
    return Section(
        heading="Who was asked, and what came of it",
        parts=(
            _picture(draw_load(summary), "Load and benefit of each expert", caption),
            evaluation_tables.load_table(summary),
            *(() if effort is None else (effort,)),
        ),
    )


def _location(summary: Mapping[str, Any], unit: str) -> Section:
    caption = (
        "Left: the share of voxels that the model has wrong, by the probability of deferral, with the number "
        f"of voxels above; a useful score rises to the right. Pale: fewer than {FEW_VOXELS} voxels. Right: by the "
        f"distance to the border of the reference in {unit}, the share deferred and the share that the model has "
        "wrong; the numbers on the bars are per cent. Deferral that knows where the model errs is high where errors "
        "are."
    )
    return Section(
        heading="Were the deferred voxels the wrong ones?",
        parts=(
            _picture(draw_location(summary, unit=unit), "Score against error, and deferral by distance", caption),
            evaluation_tables.errors_table(summary),
        ),
    )


def _reliability(summary: Mapping[str, Any]) -> list[Section]:
    table = evaluation_tables.reliability_table(summary)
    if table is None:
        return []
    caption = (
        "For every voxel the network says how probable it is that the model, and each expert, is right there. Among "
        "the voxels where the model is least sure, those of similar probability are taken together: across what is "
        "said, upwards how often it was right, with larger marks for more voxels. On the diagonal probabilities mean "
        "what they say; below it they are too high. Every panel has axes of its own. The expected calibration error "
        "(ECE) is the mean distance from the diagonal. Where no open mark is seen beside a filled one, calibration "
        "left the probabilities as they were. Neighbouring voxels are right or wrong together, so that a few cases can "
        "bend a curve."
    )
    return [
        Section(
            heading="Do the probabilities mean what they say?",
            parts=(
                *reliability_texts(summary),
                _picture(draw_reliability(summary), "What was said, and what happened", caption),
                table,
            ),
        )
    ]


def _cases(pictures: Sequence[Picture] | None) -> Section:
    if pictures is None:
        return Section(heading="Case by case", parts=(WITHOUT_IMAGES,))
    how = (
        "From left to right: the image, the reference (yellow), the model's answer with its errors, who was asked "
        "where (the black line is the model's border), and the system's answer with the errors that are left. A "
        "volume is shown in the slice with most deferred voxels, at its true proportions; where little of a picture "
        "matters, that part alone is shown. Numbers are of the whole case."
    )
    return Section(heading="Case by case", parts=(how, *pictures))


def _failures(summary: Mapping[str, Any]) -> Section:
    text = "Would a score for the whole case have told which cases the model segments badly, before anyone looks?"
    return Section(heading="Which cases went wrong?", parts=(text, evaluation_tables.cases_table(summary)))


def _background(summary: Mapping[str, Any]) -> Section:
    return Section(
        heading="How this was done, and what it cannot tell",
        parts=(
            Definitions(
                [
                    ("experts", statements.experts_text(summary)),
                    ("intervals", statements.intervals_text(summary)),
                    ("limits", "\n".join(statements.limits(summary))),
                    ("model", statements.model_text(summary)),
                ]
            ),
            Note("All numbers are in deferral_summary.json, cases.csv and budgets.csv, written with this page."),
        ),
    )


def _picture(figure: Figure, title: str, caption: str) -> Picture:
    return Picture(png=to_png(figure, dpi=_DPI), title=title, caption=caption)
