"""The picture of a region of the worklist: its surroundings and the whole slice side by side.

The region has a solid outline in the colour of its expert with a white rim, the model's mask a dashed white one. Both
have a dark outer rim, so that they are visible on any image and distinguishable in grey.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.report.style import FONT_SIZE, INK, expert_fill, new_figure, plain
from nnunetv2_deferral.report.views import telling_part

_PANEL, _GAP = 4.6, 0.1  # inches
_LINE = 0.2  # inches per line of text
_CHARACTERS = 140  # per line of the caption
_FINEST = 1600  # maximum resolution of an outline along its longer side, in pixels
_WHITE = "#FFFFFF"


@dataclass(frozen=True, kw_only=True, eq=False)
class RegionView:
    """A slice with a region.

    Attributes:
        image: The image, real (Y, X).
        model: The model's labels, integer of the same shape.
        region: The region, bool of the same shape.
        aspect: Height of a pixel divided by its width.
        place: The expert's index in routing order, from 0.
        title: Title above the picture.
        slice_name: Name of the whole slice.
        caption: Paragraphs below the picture.
        sides: Letters of the left, right, top and bottom side, for example "RLAP"; empty if unknown.
    """

    image: np.ndarray
    model: np.ndarray
    region: np.ndarray
    aspect: float
    place: int
    title: str
    slice_name: str
    caption: tuple[str, ...]
    sides: str = ""


def draw_region(view: RegionView) -> Figure:
    """The picture of a region.

    Raises:
        InputError: If the shapes differ.
    """
    if not view.image.shape == view.model.shape == view.region.shape:
        raise InputError(
            f"{view.title}: image {view.image.shape}, mask {view.model.shape} and region {view.region.shape} differ "
            "in shape"
        )
    whole = (slice(0, view.image.shape[0]), slice(0, view.image.shape[1]))
    parts = (telling_part(view.region), whole)
    lines = [line for each in view.caption for line in textwrap.wrap(each, _CHARACTERS)]
    tall = max(view.aspect * (rows.stop - rows.start) / (cols.stop - cols.start) for rows, cols in parts)
    panel, below, above = _PANEL * min(max(tall, 0.4), 1.6), _LINE * (len(lines) + 1) + 0.25, 0.68
    width, height = 2 * _PANEL + 3 * _GAP, panel + below + above
    figure = new_figure(width, height)
    for column, (part, name) in enumerate(zip(parts, ("the region", view.slice_name), strict=True)):
        left = _GAP + column * (_PANEL + _GAP)
        axes = figure.add_axes((left / width, below / height, _PANEL / width, panel / height))
        _draw_part(axes, view, part)
        axes.set_title(name, fontsize=FONT_SIZE, color=INK, pad=4)
    # Tinted on the whole slice only, where inside and outside of an outline are hard to distinguish.
    tint = np.zeros((*view.region.shape, 4))
    tint[view.region] = to_rgba(expert_fill(view.place)[0], 0.4)
    figure.axes[1].imshow(tint, aspect=view.aspect, interpolation="nearest")
    rows, cols = parts[0]
    box = Rectangle((cols.start - 0.5, rows.start - 0.5), cols.stop - cols.start, rows.stop - rows.start, fill=False)
    box.set(edgecolor=_WHITE, linewidth=0.8, path_effects=[_rim(2.2)])
    figure.axes[1].add_patch(box)
    left = _GAP / width
    text: dict[str, Any] = {"ha": "left", "va": "top", "color": INK}
    figure.text(left, 1 - 0.12 / height, plain(view.title, longest=110), fontsize=12, fontweight="bold", **text)
    caption = plain("\n".join(lines), longest=10_000)
    figure.text(left, (below - 0.32) / height, caption, fontsize=FONT_SIZE - 0.5, linespacing=1.35, **text)
    _add_key(figure, view, (below - 0.28) / height)
    return figure


def _draw_part(axes: Axes, view: RegionView, part: tuple[slice, slice]) -> None:
    shown = np.nan_to_num(view.image[part].astype(np.float64))
    low, high = np.percentile(shown, (0.5, 99.5))
    rows, cols = part
    extent = (cols.start - 0.5, cols.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
    grey = np.clip((shown - low) / max(high - low, 1e-12), 0, 1)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, aspect=view.aspect, interpolation="nearest", extent=extent)
    _outline(axes, view.region, part, _region_look(view))
    for label in np.unique(view.model[view.model > 0]):
        _outline(axes, view.model == label, part, _model_look())
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)
    corners = ((0.015, 0.5, "left", "center"), (0.985, 0.5, "right", "center"),
               (0.5, 0.985, "center", "top"), (0.5, 0.015, "center", "bottom"))  # fmt: skip
    for letter, (x, y, across, along) in zip(view.sides, corners, strict=False):
        letters = axes.text(x, y, letter, transform=axes.transAxes, ha=across, va=along, color=_WHITE, fontsize=9)
        letters.set_path_effects([_rim(2.4)])


def _outline(axes: Axes, mask: np.ndarray, part: tuple[slice, slice], look: dict[str, Any]) -> None:
    """Draw the border of a mask along the edges of its voxels, open where the mask continues outside the part."""
    rows, cols = part
    ring = np.pad(mask, 1)[rows.start : rows.stop + 2, cols.start : cols.stop + 2]
    if not ring.any() or ring.all():
        return
    factor = max(1, min(12, _FINEST // max(ring.shape)))
    # Limited to the bounding box of the mask, which is much smaller than most slices.
    ends = [np.flatnonzero(ring.any(1 - axis))[[0, -1]] for axis in (0, 1)]
    (top, bottom), (left, right) = (
        (max(first - 1, 0), min(last + 2, size)) for (first, last), size in zip(ends, ring.shape, strict=True)
    )
    fine = ring[top:bottom, left:right].repeat(factor, 0).repeat(factor, 1).astype(float)
    y, x = rows.start - 1.5, cols.start - 1.5  # the upper left corner of the ring
    extent = (x + left, x + right, y + bottom, y + top)
    lines = axes.contour(fine, levels=[0.5], colors=look["color"], linewidths=look["linewidth"],
                         linestyles=[look["linestyle"]], extent=extent, origin="upper")  # fmt: skip
    lines.set(path_effects=look["path_effects"])


def _region_look(view: RegionView) -> dict[str, Any]:
    # A white line separates the colour, which may be dark, from the dark rim.
    rim = [_rim(4.8), withStroke(linewidth=3.4, foreground=_WHITE)]
    return {"color": expert_fill(view.place)[0], "linewidth": 2.0, "linestyle": "-", "path_effects": rim}


def _model_look() -> dict[str, Any]:
    return {"color": _WHITE, "linewidth": 1.3, "linestyle": (0, (3, 1.6)), "path_effects": [_rim(2.7)]}


def _rim(width: float) -> AbstractPathEffect:
    return withStroke(linewidth=width, foreground="black")


def _add_key(figure: Figure, view: RegionView, top: float) -> None:
    lines = [Line2D([], [], **_region_look(view), label="region"),
             Line2D([], [], **_model_look(), label="the model's mask")]  # fmt: skip
    figure.legend(handles=lines, loc="lower right", bbox_to_anchor=(0.985, top), ncols=2, frameon=False,
                  fontsize=9, borderaxespad=0, borderpad=0)  # fmt: skip
