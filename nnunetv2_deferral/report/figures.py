"""Pictures of a deferral system at work: one of every case, and an overview for a first page.

A row of panels tells the story of a case from left to right: image, reference, what the model got wrong, who was asked
where, what the system answered. Whatever is told by colour is told by lightness or hatching as well, so the pictures
survive grey printing and colour-blind readers (colours of Okabe and Ito). Volumes are shown in one slice.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nnunetv2_deferral.evaluation.summary import Case
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.maps import deferral_rates

PANELS = ("image", "reference", "model", "who was asked", "system")

_EXPERT_STYLES = (
    ("#0072B2", ""),
    ("#E69F00", "////"),
    ("#CC79A7", "...."),
    ("#009E73", "xxxx"),
    ("#F0E442", "----"),
    ("#D55E00", "++++"),
    ("#56B4E9", "\\\\\\\\"),
)
_ERROR_STYLES = {
    "added": ("#D55E00", "", "added: not in the reference"),
    "missed": ("#56B4E9", "////", "missed: only in the reference"),
    "confused": ("#F0E442", "xxxx", "another label than the reference"),
}
_OUTLINE = "#FFD60A"
_INK = "#222222"
_FINEST = 1600  # screen pixels along the longer side of an outline, no more is ever seen


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseView:
    """A case with what it takes to draw it.

    Attributes:
        case: Label maps and route, all of shape (Y, X) or (Z, Y, X); nnU-Net's (1, Y, X) for 2D will do as well.
        image: One channel of the image, any real type, same shape.
        spacing: Size of a voxel in the order of the axes, any unit, as many as axes.
        model_dice: Dice of the model's mask, NaN where undefined.
        system_dice: Dice of the fused mask, NaN where undefined.
    """

    case: Case
    image: np.ndarray
    spacing: tuple[float, ...]
    model_dice: float
    system_dice: float

    def __post_init__(self) -> None:
        shape = self.case.reference.shape
        if self.image.shape != shape or len(self.spacing) != len(shape):
            raise ValueError(
                f"case {self.case.name}: masks of shape {shape} do not go with an image of shape {self.image.shape} "
                f"and {len(self.spacing)} spacings"
            )
        if len(shape) not in (2, 3):
            raise ValueError(f"case {self.case.name}: only 2D and 3D can be drawn, got shape {shape}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Slice:
    """What is drawn of a case, each of shape (Y, X)."""

    image: np.ndarray
    reference: np.ndarray
    model: np.ndarray
    system: np.ndarray
    route: np.ndarray
    aspect: float


def fullest_slice(route: np.ndarray) -> int:
    """Index along the first axis of the slice with the most deferred voxels, the middle one if nothing is deferred."""
    deferred = (route > 0).reshape(route.shape[0], -1).sum(1)
    return int(deferred.argmax()) if deferred.any() else route.shape[0] // 2


def error_kinds(reference: np.ndarray, answer: np.ndarray) -> dict[str, np.ndarray]:
    """Where an answer is wrong, by the kind of error.

    Returns:
        Bool masks of the shape of `reference`: `added` (background in the reference), `missed` (background in the
        answer) and `confused` (two different foreground labels).
    """
    wrong = reference != answer
    added, missed = wrong & (reference == 0), wrong & (answer == 0)
    return {"added": added, "missed": missed, "confused": wrong & ~added & ~missed}


def draw_case(view: CaseView, experts: Sequence[str]) -> Figure:
    """The picture of one case: a row of panels with a legend below.

    Args:
        view: The case.
        experts: Names of the J experts in routing order.

    Raises:
        ValueError: If there are more than seven experts, or routes to experts without a name.
    """
    return _draw_rows([view], experts, width=13.0, with_names=False)


def draw_overview(views: Sequence[CaseView], experts: Sequence[str]) -> Figure:
    """A few cases as rows under common headings, about 1400 pixels wide when saved by :func:`to_png`.

    Raises:
        ValueError: If there is no case, and as in :func:`draw_case`.
    """
    if not views:
        raise ValueError("an overview needs at least one case, got none")
    return _draw_rows(views, experts, width=11.7, with_names=True)


def to_png(figure: Figure, *, dpi: int = 120) -> bytes:
    """The figure as an optimised PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", pil_kwargs={"optimize": True})
    return buffer.getvalue()


def _draw_rows(views: Sequence[CaseView], experts: Sequence[str], *, width: float, with_names: bool) -> Figure:
    _check_experts(views, experts)
    slices = [_slice(view) for view in views]
    panel = width / len(PANELS)
    shapes = [part.aspect * part.image.shape[0] / part.image.shape[1] for part in slices]
    heights = [panel * min(max(shape, 0.4), 1.6) for shape in shapes]
    title, legend = 0.42, 0.5
    figure = Figure(figsize=(width, sum(heights) + title * len(views) + legend))
    FigureCanvasAgg(figure)
    total = figure.get_figheight()
    top = total
    for row, (view, part, height) in enumerate(zip(views, slices, heights, strict=True)):
        top -= title
        for column, name in enumerate(PANELS):
            gap = 0.04
            box = (column * panel + gap, top - height + gap, panel - 2 * gap, height - 2 * gap)
            axes = figure.add_axes((box[0] / width, box[1] / total, box[2] / width, box[3] / total))
            _draw_panel(axes, name, part)
            axes.set_title(_title(name, view, show_case=with_names), fontsize=10, color=_INK, pad=4)
            _frame(axes)
        top -= height
        if row + 1 < len(views):
            figure.add_artist(_rule(top / total))
    _add_legend(figure, views, slices, experts)
    return figure


def _draw_panel(axes: Axes, name: str, part: _Slice) -> None:
    low, high = np.percentile(part.image, (0.5, 99.5))
    shown = np.clip((part.image - low) / max(high - low, 1e-12), 0, 1)
    if name == "who was asked":
        shown = 0.6 + 0.4 * shown  # paler, so that the colours stand out
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect=part.aspect, interpolation="nearest")
    if name == "reference":
        _outline(axes, part.reference)
    elif name in ("model", "system"):
        answer = part.model if name == "model" else part.system
        for kind, where in error_kinds(part.reference, answer).items():
            _fill(axes, where, *_ERROR_STYLES[kind][:2], opacity=0.75)
        _outline(axes, answer)
    elif name == "who was asked":
        for route, (colour, hatch) in enumerate(_EXPERT_STYLES, start=1):
            _fill(axes, part.route == route, colour, hatch, opacity=0.9)
        _outline(axes, part.model, colour=_INK)


def _fill(axes: Axes, where: np.ndarray, colour: str, hatch: str, *, opacity: float) -> None:
    """Fill the voxels of a bool mask (Y, X), hatched in ink if `hatch` is not empty."""
    if not where.any():
        return
    layer = np.zeros((*where.shape, 4))
    layer[where] = to_rgba(colour, opacity)
    axes.imshow(layer, aspect=axes.get_aspect(), interpolation="nearest")
    if hatch:
        fine, extent = _refined(where)
        hatched = axes.contourf(
            fine, levels=[0.5, 1.5], colors="none", hatches=[hatch], extent=extent, origin="upper", antialiased=True
        )
        hatched.set_edgecolor(_INK)
        hatched.set_linewidth(0.0)


def _outline(axes: Axes, labels: np.ndarray, *, colour: str = _OUTLINE) -> None:
    """Draw the borders of all foreground labels along the edges of their voxels."""
    for label in np.unique(labels[labels > 0]):
        fine, extent = _refined(labels == label)
        axes.contour(fine, levels=[0.5], colors=colour, linewidths=1.1, extent=extent, origin="upper")


def _refined(mask: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The mask with every voxel repeated, so that a contour follows its edges, and its extent in voxels of the image.

    One voxel of background is put around, so that what touches the border of the image has an outline there too.
    """
    factor = max(1, min(12, _FINEST // max(mask.shape)))
    padded = np.pad(mask, 1)
    height, width = mask.shape
    fine = padded.repeat(factor, 0).repeat(factor, 1).astype(float)
    return fine, (-1.5, width + 0.5, height + 0.5, -1.5)


def _slice(view: CaseView) -> _Slice:
    case = view.case
    system = fuse_masks(case.model, case.experts, case.route)
    where = fullest_slice(case.route) if case.route.ndim == 3 else ...
    return _Slice(
        image=view.image[where],
        reference=case.reference[where],
        model=case.model[where],
        system=system[where],
        route=case.route[where],
        aspect=view.spacing[-2] / view.spacing[-1],
    )


def _title(name: str, view: CaseView, *, show_case: bool) -> str:
    if name == "image":
        return view.case.name if show_case else "image"
    if name == "model":
        return f"model: Dice {_score(view.model_dice)}"
    if name == "system":
        return f"system: Dice {_score(view.system_dice)}"
    if name == "who was asked":
        return f"deferred: {np.mean(view.case.route > 0) if view.case.route.size else 0:.1%}"
    return name


def _score(dice: float) -> str:
    return "–" if math.isnan(dice) else f"{dice:.3f}"


def _frame(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    height, width = axes.get_images()[0].get_size()
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    axes.spines[:].set_visible(False)


def _rule(height: float) -> Line2D:
    return Line2D([0.006, 0.994], [height, height], color="0.85", linewidth=0.8)


def _add_legend(figure: Figure, views: Sequence[CaseView], slices: Sequence[_Slice], experts: Sequence[str]) -> None:
    rates = [deferral_rates(view.case.route, experts)["share"] for view in views]
    entries: list[Patch] = []
    for name, (colour, hatch) in zip(experts, _EXPERT_STYLES, strict=False):
        share = f" ({rates[0][name]:.1%})" if len(views) == 1 else ""
        entries.append(_swatch(colour, hatch, f"asked {name}{share}"))
    answers = [(part.reference, answer) for part in slices for answer in (part.model, part.system)]
    for kind, (colour, hatch, label) in _ERROR_STYLES.items():
        if kind != "confused" or any(error_kinds(*pair)[kind].any() for pair in answers):
            entries.append(_swatch(colour, hatch, label))
    legend = figure.legend(
        handles=entries,
        loc="lower center",
        ncols=len(entries),
        frameon=False,
        fontsize=9,
        handlelength=1.6,
        columnspacing=1.4,
        borderaxespad=0.5,
    )
    for text in legend.get_texts():
        text.set_color(_INK)


def _swatch(colour: str, hatch: str, label: str) -> Patch:
    return Patch(facecolor=colour, edgecolor=_INK, linewidth=0.0, hatch=hatch, label=label)


def _check_experts(views: Sequence[CaseView], experts: Sequence[str]) -> None:
    if len(experts) > len(_EXPERT_STYLES):
        raise ValueError(f"there are styles for {len(_EXPERT_STYLES)} experts, got {len(experts)}")
    for view in views:
        highest = int(view.case.route.max(initial=0))
        if highest > len(experts):
            raise ValueError(
                f"case {view.case.name} has voxels routed to expert {highest}, but only {len(experts)} have names"
            )
