"""The HTML report of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nnunetv2_deferral.decision.limits import WITHOUT_LIMITS
from nnunetv2_deferral.evaluation.summary import cautions
from nnunetv2_deferral.report import domain_tables, evaluation_tables, statements
from nnunetv2_deferral.report.curves import draw_curves
from nnunetv2_deferral.report.figures import to_png
from nnunetv2_deferral.report.outcomes import FEW_VOXELS, draw_load, draw_location
from nnunetv2_deferral.report.page import Definitions, Note, Page, Part, Picture, Section, write_page
from nnunetv2_deferral.report.reliability_figure import draw_reliability, reliability_texts

_DPI = 150
WITHOUT_IMAGES = (
    "Pictures of cases are omitted because no images were given. To include them, evaluate again with -images FOLDER, "
    "the folder of the predicted images (<case>_0000 and the file ending)."
)


def write_evaluation_page(
    summary: Mapping[str, Any], file: Path, *, cases: Sequence[Picture] | None = None, unit: str = "mm"
) -> None:
    """Write the HTML report of an evaluation atomically.

    Args:
        summary: The content of `deferral_summary.json`, see :func:`nnunetv2_deferral.evaluation.folders.evaluate`.
        file: The HTML file.
        cases: Pictures of cases, from :func:`.strips.case_pictures`; None without images.
        unit: Unit of distances: mm, or pixels for images without a spacing.
    """
    write_page(evaluation_page(summary, cases=cases, unit=unit), file)


def evaluation_page(summary: Mapping[str, Any], *, cases: Sequence[Picture] | None = None, unit: str = "mm") -> Page:
    """The report as a page; arguments as in :func:`write_evaluation_page`."""
    model = summary["model_identity"]
    return Page(
        title=f"Evaluation of deferral: {model['dataset']}, {model['configuration']}",
        cautions=[f"{caution}." for caution in cautions(summary)],
        headline=f"{statements.headline(summary)} {statements.sanity(summary)}".strip(),
        introduction=statements.remarks(summary),
        sections=(
            _numbers(summary),
            _budgets(summary),
            _load(summary),
            _location(summary, unit),
            *_domains(summary),
            *_reliability(summary),
            _cases(cases),
            _failures(summary),
            Section(heading="Definitions", parts=(Definitions(statements.definitions(summary)),)),
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
            f"Model alone: the network without experts. System: {statements.system_text(summary)}. "
            "Expert alone: the expert's labels, scored on the cases and voxels that the expert labelled. "
            f"{num_cases} {'case' if num_cases == 1 else 'cases'}. Numbers in brackets are 95 % intervals. "
            "Definitions, experts and methods are described at the end of this page."
        )
    )
    return Section(heading="Model, system and experts", parts=parts)


def _budgets(summary: Mapping[str, Any]) -> Section:
    caption = (
        "Dice of the system against the share of all voxels deferred (logarithmic axis). Left: voxels ranked by "
        "different scores, answered by the expert that the model selects; the oracle is an upper bound. Right: voxels "
        "ranked by the learned score, answered by the selected expert or always by the same one, with each expert "
        "alone for comparison. The diamond is the model's own decision with its interval; bars and band are 95 % "
        "intervals of the learned ranking. Deferral helps where a curve lies above the model alone. If the learned "
        "curve is not above model uncertainty (max softmax, entropy), learning where to defer brought no advantage."
    )
    return Section(
        heading="Matched budgets",
        parts=(
            _picture(draw_curves(summary), "Dice of the system against the share of voxels deferred", caption),
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
            "Max softmax and entropy are omitted because not all cases have the model's probabilities "
            "(--save_probabilities in prediction, --npz in training)."
        )
    ]


def _load(summary: Mapping[str, Any]) -> Section:
    caption = (
        "Left: distribution of the deferred voxels among the experts; if one expert has nearly all of them, routing "
        "may have collapsed. Middle: voxels that the experts fixed (right) and worsened (left). Right: outcome of all "
        "voxels routed to each expert."
    )
    of_review = (
        evaluation_tables.effort_table(summary),
        evaluation_tables.readings_table(summary),
        evaluation_tables.flags_table(summary),
    )
    return Section(
        heading="Load and effect of the experts",
        parts=(
            _picture(draw_load(summary), "Load and effect of each expert", caption),
            evaluation_tables.load_table(summary),
            *(table for table in of_review if table is not None),
        ),
    )


def _location(summary: Mapping[str, Any], unit: str) -> Section:
    caption = (
        "Left: error rate of the model by deferral score, with the number of voxels above; the error rate should rise "
        f"with the score. Pale: fewer than {FEW_VOXELS} voxels; dotted: all voxels. Right: deferral rate and error "
        f"rate of the model by distance to the border of the reference in {unit}; the numbers on the bars are per "
        "cent. The deferral rate should be high where the error rate is."
    )
    return Section(
        heading="Location of deferral and errors",
        parts=(
            _picture(draw_location(summary, unit=unit), "Error rate by score and by distance", caption),
            evaluation_tables.errors_table(summary),
        ),
    )


def _domains(summary: Mapping[str, Any]) -> list[Section]:
    if not summary.get("domains"):
        return []
    return [
        Section(
            heading="Domains",
            parts=(
                domain_tables.domains_text(summary),
                domain_tables.domains_table(summary),
                domain_tables.rankings_table(summary),
            ),
        )
    ]


def _reliability(summary: Mapping[str, Any]) -> list[Section]:
    table = evaluation_tables.reliability_table(summary)
    if table is None:
        return []
    caption = (
        "For each voxel the network predicts the probability that the model and each expert are right. The voxels "
        "where the model is least certain are grouped by predicted probability; the vertical axis is the observed "
        "frequency of being right. The area of a marker grows with the number of voxels. Points below the diagonal are "
        "overconfident. The panels have different axes. The expected calibration error (ECE) is the mean distance from "
        "the diagonal. Where no open marker is visible next to a filled one, calibration did not change the "
        "probabilities. Errors of neighbouring voxels are correlated, so a few cases can distort a curve."
    )
    return [
        Section(
            heading="Reliability of the probabilities",
            parts=(
                *reliability_texts(summary),
                _picture(draw_reliability(summary), "Observed frequency against predicted probability", caption),
                table,
            ),
        )
    ]


def _cases(pictures: Sequence[Picture] | None) -> Section:
    if pictures is None:
        return Section(heading="Cases", parts=(WITHOUT_IMAGES,))
    how = (
        "From left to right: image, reference (yellow), the model's mask with its errors, routing (black line: the "
        "model's mask), and the fused mask with the remaining errors. Volumes are shown in the slice with the most "
        "deferred voxels, in true proportions and cropped to the relevant part. Numbers refer to the whole case."
    )
    return Section(heading="Cases", parts=(how, *pictures))


def _failures(summary: Mapping[str, Any]) -> Section:
    text = "How well do scores of whole cases rank the cases by the model's Dice?"
    parts: list[Part] = [text, evaluation_tables.cases_table(summary)]
    if (predicted := evaluation_tables.predicted_dice_text(summary)) is not None:
        parts.append(predicted)
    return Section(heading="Failure detection", parts=parts)


def _background(summary: Mapping[str, Any]) -> Section:
    return Section(
        heading="Methods and limitations",
        parts=(
            Definitions(
                [
                    ("experts", statements.experts_text(summary)),
                    ("intervals", statements.intervals_text(summary)),
                    ("limits on deferral", "\n".join(summary.get("limits", [WITHOUT_LIMITS]))),
                    ("limitations", "\n".join(statements.limits(summary))),
                    ("model", statements.model_text(summary)),
                ]
            ),
            Note("All numbers are in deferral_summary.json, cases.csv and budgets.csv of the same evaluation."),
        ),
    )


def _picture(figure: Figure, title: str, caption: str) -> Picture:
    return Picture(png=to_png(figure, dpi=_DPI), title=title, caption=caption)
