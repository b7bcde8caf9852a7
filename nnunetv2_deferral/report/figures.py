"""Pictures of single cases, and an overview of several.

The panels of a row are image, reference, the model's mask with its errors, the routing, and the fused mask with the
remaining errors. Colours (from the palette of Okabe and Ito) are always combined with lightness or hatching, so that
pictures are readable in grey and by colour-blind readers. Volumes are shown in one slice, cropped to the relevant part.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.maps import deferral_rates
from nnunetv2_deferral.report.style import INK, RULE, expert_fill, new_figure, plain
from nnunetv2_deferral.report.tables import share_text
from nnunetv2_deferral.report.views import CaseView, error_kinds, fullest_slice, telling_part

PANELS = ("image", "reference", "model", "routing", "system")

_ERROR_STYLES = {
    "added": ("#D55E00", "", "false positive"),
    "missed": ("#56B4E9", "////", "false negative"),
    "confused": ("#F0E442", "xxxx", "wrong foreground label"),
}
_OUTLINE = "#FFD60A"
_KEY_HEIGHT = 0.24  # inches per row
_FINEST = 1600  # maximum resolution of an outline along its longer side, in pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class _Slice:
    """The slice of a case to draw; arrays of shape (Y, X)."""

    image: np.ndarray
    reference: np.ndarray
    model: np.ndarray
    system: np.ndarray
    route: np.ndarray
    aspect: float
    place: str


def draw_case(view: CaseView, experts: Sequence[str]) -> Figure:
    """The picture of one case: a row of panels with a legend below.

    Args:
        view: The case.
        experts: Names of the J experts in routing order.

    Raises:
        InputError: If voxels are routed to an expert without a name.
    """
    return _draw_rows([view], experts, width=11.7, with_names=False)


def draw_overview(views: Sequence[CaseView], experts: Sequence[str]) -> Figure:
    """Several cases as rows of one figure, about 1400 pixels wide when saved by :func:`to_png`.

    Raises:
        InputError: If there is no case, and as in :func:`draw_case`.
    """
    if not views:
        raise InputError("an overview requires at least one case, got none")
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
    keys = _keys(views, slices, experts, width)
    title, legend = 0.42, 0.26 + _KEY_HEIGHT * sum(math.ceil(len(entries) / columns) for entries, columns in keys)
    figure = new_figure(width, sum(heights) + title * len(views) + legend)
    total = figure.get_figheight()
    top = total
    for row, (view, part, height) in enumerate(zip(views, slices, heights, strict=True)):
        top -= title
        for column, name in enumerate(PANELS):
            gap = 0.04
            box = (column * panel + gap, top - height + gap, panel - 2 * gap, height - 2 * gap)
            axes = figure.add_axes((box[0] / width, box[1] / total, box[2] / width, box[3] / total))
            _draw_panel(axes, name, part)
            axes.set_title(_title(name, view, part, show_case=with_names), fontsize=10, color=INK, pad=4)
            _frame(axes)
        top -= height
        if row + 1 < len(views):
            figure.add_artist(_rule(top / total))
    _add_keys(figure, keys)
    return figure


def _draw_panel(axes: Axes, name: str, part: _Slice) -> None:
    low, high = np.percentile(part.image, (0.5, 99.5))
    shown = np.clip((part.image - low) / max(high - low, 1e-12), 0, 1)
    if name == "routing":
        shown = 0.6 + 0.4 * shown  # paler, so that the colours stand out
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect=part.aspect, interpolation="nearest")
    if name == "reference":
        _outline(axes, part.reference)
    elif name in ("model", "system"):
        answer = part.model if name == "model" else part.system
        for kind, where in error_kinds(part.reference, answer).items():
            _fill(axes, where, *_ERROR_STYLES[kind][:2], opacity=0.75)
        _outline(axes, answer)
    elif name == "routing":
        for route in np.unique(part.route[part.route > 0]):
            _fill(axes, part.route == route, *expert_fill(int(route) - 1), opacity=0.9)
        _outline(axes, part.model, colour=INK)


def _fill(axes: Axes, where: np.ndarray, colour: str, hatch: str, *, opacity: float) -> None:
    """Fill the voxels of a bool mask (Y, X), with dark hatching if `hatch` is not empty."""
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
        hatched.set_edgecolor(INK)
        hatched.set_linewidth(0.0)


def _outline(axes: Axes, labels: np.ndarray, *, colour: str = _OUTLINE) -> None:
    """Draw the borders of all foreground labels along the edges of their voxels."""
    for label in np.unique(labels[labels > 0]):
        fine, extent = _refined(labels == label)
        axes.contour(fine, levels=[0.5], colors=colour, linewidths=1.1, extent=extent, origin="upper")


def _refined(mask: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The mask upsampled by repetition, so that a contour follows the edges of voxels, and its extent in image voxels.

    It is padded with one voxel of background, so that objects at the border of the image have a closed outline.
    """
    factor = max(1, min(12, _FINEST // max(mask.shape)))
    padded = np.pad(mask, 1)
    height, width = mask.shape
    fine = padded.repeat(factor, 0).repeat(factor, 1).astype(float)
    return fine, (-1.5, width + 0.5, height + 0.5, -1.5)


def _slice(view: CaseView) -> _Slice:
    case = view.case
    system = case.system
    masks = [case.reference, case.model, system, case.route]
    if case.ignore_label is not None:
        masks = [np.where(case.valid, mask, 0) for mask in masks]
    image, place = view.image, ""
    if image.ndim == 3:
        index = fullest_slice(masks[3], masks[0] != masks[1], masks[0])
        place = f"slice {index + 1} of {len(image)}" if len(image) > 1 else ""
        image, masks = image[index], [mask[index] for mask in masks]
    part = telling_part(*masks)
    reference, model, system, route = (mask[part] for mask in masks)
    if image[part].size < image.size:
        place = ", ".join(filter(None, [place, "cropped"]))
    return _Slice(
        image=image[part],
        reference=reference,
        model=model,
        system=system,
        route=route,
        aspect=case.prediction.spacing[-2] / case.prediction.spacing[-1],
        place=place,
    )


def _title(name: str, view: CaseView, part: _Slice, *, show_case: bool) -> str:
    if name == "image":
        return plain(view.case.name) if show_case else ", ".join(filter(None, ["image", part.place]))
    if name == "model":
        return f"model: Dice {_score(view.model_dice)}"
    if name == "system":
        return f"system: Dice {_score(view.system_dice)}"
    if name == "routing":
        route = view.counted_route
        return f"deferred: {share_text(float(np.mean(route > 0)) if route.size else 0.0)}"
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
    return Line2D([0.006, 0.994], [height, height], color=RULE, linewidth=0.8)


def _keys(
    views: Sequence[CaseView], slices: Sequence[_Slice], experts: Sequence[str], width: float
) -> list[tuple[list[Patch], int]]:
    """The entries of the legend, in one row if they fit, else in two, each row with its number of columns."""
    rates = [deferral_rates(view.counted_route, experts)["share"] for view in views]
    asked, errors = [], []
    for place, name in enumerate(experts):
        share = f" ({share_text(rates[0][name])})" if len(views) == 1 else ""
        asked.append(_swatch(*expert_fill(place), f"routed to {plain(name)}{share}"))
    answers = [(part.reference, answer) for part in slices for answer in (part.model, part.system)]
    for kind, (colour, hatch, label) in _ERROR_STYLES.items():
        if kind != "confused" or any(error_kinds(*pair)[kind].any() for pair in answers):
            errors.append(_swatch(colour, hatch, label))
    if _columns(asked + errors, width) == len(asked + errors):
        return [(asked + errors, len(asked + errors))]
    return [(asked, _columns(asked, width)), (errors, len(errors))]


def _columns(entries: Sequence[Patch], width: float) -> int:
    """The number of legend columns that fit into `width` inches; a column is as wide as its longest label."""
    labels = [str(entry.get_label()) for entry in entries]
    for columns in range(len(labels), 1, -1):
        rows = math.ceil(len(labels) / columns)
        longest = [max(map(len, labels[first : first + rows])) for first in range(0, len(labels), rows)]
        if sum(0.5 + 0.07 * letters for letters in longest) <= width:
            return columns
    return 1


def _add_keys(figure: Figure, keys: Sequence[tuple[list[Patch], int]]) -> None:
    height = 0.09
    for entries, columns in reversed(keys):
        legend = figure.legend(
            handles=entries,
            loc="lower center",
            bbox_to_anchor=(0.5, height / figure.get_figheight()),
            ncols=columns,
            frameon=False,
            fontsize=9,
            handlelength=1.6,
            columnspacing=1.4,
            borderaxespad=0,
            borderpad=0,
        )
        height += _KEY_HEIGHT * math.ceil(len(entries) / columns)
        for text in legend.get_texts():
            text.set_color(INK)


def _swatch(colour: str, hatch: str, label: str) -> Patch:
    return Patch(facecolor=colour, edgecolor=INK, linewidth=0.0, hatch=hatch, label=label)


def _check_experts(views: Sequence[CaseView], experts: Sequence[str]) -> None:
    for view in views:
        highest = int(view.case.route.max(initial=0))
        if highest > len(experts):
            raise InputError(
                f"case {view.case.name} has voxels routed to expert {highest}, but only {len(experts)} have names"
            )
