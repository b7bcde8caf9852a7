"""Plots of arrays, in the style of the reports; each function returns a matplotlib `Figure`.

A figure is displayed as the last expression of a notebook cell, or saved with `figure.savefig("case.png")`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_deferral.arrays import check_same_shape
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.decision.calibrators import Calibrator
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.overlap import overlap, summarize
from nnunetv2_deferral.evaluation.reliability import ReliabilityStatistics
from nnunetv2_deferral.evaluation.risk_coverage import risk_coverage_of_cases
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.report.coverage_figure import GENERALISED, draw_coverage
from nnunetv2_deferral.report.figures import draw_case
from nnunetv2_deferral.report.reliability_figure import draw_reliability
from nnunetv2_deferral.report.views import CaseView


def plot_case(
    image: np.ndarray,
    reference: np.ndarray,
    model: np.ndarray,
    experts: np.ndarray,
    route: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    spacing: Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Figure:
    """Plot a case as a row of panels: image, reference, the model's errors, the route, the system's errors.

    Volumes are shown in the slice with the most deferred voxels; large images are cropped.

    Args:
        image: One channel, real, of shape S = (Y, X) or (Z, Y, X).
        reference: Label map, integer of shape S.
        model: The model's label map, integer of shape S.
        experts: The experts' label maps, integer (J, *S), `MISSING` (-2) where an expert has no label.
        route: Integers in [0, J] of shape S: 0 the model, j expert j.
        names: The names of the experts; None for expert1, expert2 and so on.
        spacing: Size of a voxel along each axis of S, any unit; None for cubic voxels.
        ignore_label: The reference label of voxels excluded from evaluation, where only the image is shown; None if
            there is none.

    Raises:
        InputError: If shapes differ, the number of names is not J, or a route exceeds J.

    Example:
        >>> import numpy as np
        >>> from nnunetv2_deferral import plot_case
        >>> reference = np.zeros((32, 32), dtype=int)
        >>> reference[8:24, 8:24] = 1
        >>> model = np.roll(reference, 4, axis=1)
        >>> route = (model != reference).astype(np.uint8)
        >>> figure = plot_case(reference * 100.0, reference, model, reference[None], route, names=["ann"])
        >>> [axes.get_title() for axes in figure.axes]
        ['image', 'reference', 'model: Dice 0.750', 'deferred: 12.5 %', 'system: Dice 1.000']
    """
    check_same_shape(image=image, reference=reference, model=model, route=route)
    names = [f"expert{number}" for number in range(1, len(experts) + 1)] if names is None else list(names)
    if len(names) != len(experts):
        raise InputError(f"got {len(names)} names for {len(experts)} experts")
    prediction = PredictedCase(
        "case",
        model=model,
        route=route,
        properties=None if spacing is None else {"spacing": list(spacing)},
        num_experts=len(experts),
    )
    case = EvaluatedCase(prediction=prediction, reference=reference, answers=experts, ignore_label=ignore_label)
    model_dice, system_dice = (_mean_dice(case, answer) for answer in (model, fuse_masks(model, experts, case.route)))
    return draw_case(CaseView(case=case, image=image, model_dice=model_dice, system_dice=system_dice), names)


def plot_coverage(scores: Mapping[str, np.ndarray], losses: np.ndarray, *, risk: str = GENERALISED) -> Figure:
    """Plot risk-coverage curves: the risk of the items kept when those with the highest scores are deferred first.

    Args:
        scores: Scores by name, finite, all of one shape; high means uncertain.
        losses: Of the same shape, finite and not negative: False for right and True for wrong voxels, 1 - Dice for
            cases.
        risk: `"generalised"` (sum of the losses kept divided by the number of all items, area AUGRC) or `"selective"`
            (mean loss of the items kept, area AURC).

    Raises:
        InputError: If there are no scores or no items, shapes differ, a score or loss is not finite, a loss is
            negative, or `risk` is unknown.

    Example:
        >>> import numpy as np
        >>> from nnunetv2_deferral import plot_coverage
        >>> random = np.random.default_rng(0)
        >>> wrong = random.random(1000) < 0.2
        >>> scores = {"sharp": wrong + 2 * random.random(1000), "blunt": wrong + 9 * random.random(1000)}
        >>> figure = plot_coverage(scores, wrong)
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['sharp: AUGRC 0.03798', 'blunt: AUGRC 0.08234', 'random: AUGRC 0.0965', 'optimum: AUGRC 0.01862']
    """
    losses = np.asarray(losses)
    found = {}
    for name, score in scores.items():
        check_same_shape(**{name: np.asarray(score), "losses": losses})
        found[name] = risk_coverage_of_cases(np.ravel(score), losses.ravel())
    return draw_coverage(found, risk=risk)


def plot_reliability(
    probabilities: np.ndarray,
    right: np.ndarray,
    *,
    names: Sequence[str],
    known: np.ndarray | None = None,
    calibrators: Sequence[Calibrator] | None = None,
    least_certain: bool = False,
) -> Figure:
    """Plot reliability diagrams: observed frequency against predicted probability of being correct, a panel per head.

    Args:
        probabilities: Floating point (H, *S) in [0, 1], of H heads before calibration; NaN where nothing was predicted.
        right: Bool (H, *S), whether the model or expert of each head is right.
        names: The names of the heads: `"model"` and the experts.
        known: Bool (H, *S), the voxels to count; None for all.
        calibrators: One per head, to show the probabilities after calibration as well; None for no calibration.
        least_certain: Show only the 2 % of voxels where the first head is least certain, among which deferral is
            decided.

    Raises:
        InputError: If shapes differ, there is not one name and one calibrator per head, a dtype is not as above, or a
            probability is outside [0, 1].

    Example:
        >>> import numpy as np
        >>> from nnunetv2_deferral import Temperature, plot_reliability
        >>> random = np.random.default_rng(0)
        >>> logits = random.normal(1, 1, (1, 10_000))
        >>> right = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
        >>> said = 1 / (1 + np.exp(-2 * logits))
        >>> figure = plot_reliability(said, right, names=["model"], calibrators=[Temperature(2.0)])
        >>> print(figure.axes[0].get_title(loc="left"))
        model
        ECE 0.1049 → 0.0130
    """
    probabilities, right = np.asarray(probabilities), np.asarray(right)
    statistics = ReliabilityStatistics(names, calibrators)
    nobody = np.zeros(probabilities.shape[1:], dtype=np.uint8)
    counted = np.ones(right.shape, dtype=bool) if known is None else known
    statistics.update("plot_reliability", probabilities, right, counted, nobody)
    return draw_reliability({"reliability": statistics.summary()}, part="least_certain" if least_certain else "all")


def _mean_dice(case: EvaluatedCase, answer: np.ndarray) -> float:
    """The mean Dice of the foreground labels in the reference; NaN if there are none."""
    labels = [int(label) for label in np.unique(case.reference[case.valid]) if label > 0]
    if not labels:
        return math.nan
    mean: float = summarize({"case": overlap(case.reference, answer, labels, case.valid)})["foreground_mean"]["Dice"]
    return mean
