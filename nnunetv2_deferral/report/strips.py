"""Pictures of the most informative cases of an evaluation, read again from disk one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.report.figures import draw_case, to_png
from nnunetv2_deferral.report.page import Picture
from nnunetv2_deferral.report.tables import dice_by_case, score_text, share_text, telling_order
from nnunetv2_deferral.report.views import CaseView

NUM_CASES = 6


def chosen_cases(summary: Mapping[str, Any], most: int = NUM_CASES) -> list[tuple[str, str]]:
    """Cases to show, with reasons: those of :func:`.telling_order` that have one, then others, at least three."""
    order = telling_order(dice_by_case(summary["model_everywhere"]), dice_by_case(summary["system"]))
    telling = sum(bool(why) for _, why in order)
    return order[: min(most, max(telling, 3))]


def case_pictures(
    summary: Mapping[str, Any],
    predictions: PredictionFolder,
    read: Callable[[str], EvaluatedCase],
    images: Path,
) -> list[Picture]:
    """A picture of each chosen case.

    Args:
        summary: The summary of the evaluation.
        predictions: The predictions.
        read: Function that reads a case.
        images: The folder of the images.

    Raises:
        InputError: If an image cannot be read or does not match its case.
    """
    model, system = dice_by_case(summary["model_everywhere"]), dice_by_case(summary["system"])
    experts = list(summary["deferral"]["share"])
    files = predictions.files
    pictures = []
    for case, why in chosen_cases(summary):
        view = CaseView(
            case=read(case),
            image=files.read_image([files.image_file(images, case)])[0],
            model_dice=model[case],
            system_dice=system[case],
        )
        caption = _caption(summary, case, model[case], system[case], experts)
        png = to_png(draw_case(view, experts), dpi=130)
        pictures.append(Picture(png=png, title=f"{case}: {why}" if why else case, caption=caption))
    return pictures


def _caption(summary: Mapping[str, Any], case: str, model: float, system: float, experts: Sequence[str]) -> str:
    rates = summary["deferral"]["per_case"][case]
    came = summary["deferred"]["per_case"][case]
    asked = ", ".join(f"{name} {share_text(rates['share'][name])}" for name in experts if rates["share"][name] > 0)
    text = f"Dice of the model {score_text(model)}, of the system {score_text(system)}. "
    if not asked:
        return text + "Nothing was deferred."
    missed = f", {came['unanswered']:,} unanswered" if came["unanswered"] else ""
    return text + (
        f"{share_text(rates['deferral_rate'])} of the voxels deferred ({asked}): {came['fixed']:,} voxels fixed, "
        f"{came['worsened']:,} worsened{missed}."
    )
