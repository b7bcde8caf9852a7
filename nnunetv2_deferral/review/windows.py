"""The grey-level windows that the page offers for each channel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_deferral.errors import InputError

HOUNSFIELD = {
    "Lung": (-600, 1500),
    "Mediastinum": (40, 400),
    "Bone": (480, 2500),
    "Brain": (40, 80),
    "Liver": (60, 160),
}
"""Level and width of the windows for CT."""

PERCENTILES = ((0.5, 99.5), (2, 98), (5, 95), (0, 100))
"""The first is the one that an image is opened with, unless it has 8 bits."""

EIGHT_BITS: dict[str, Any] = {"name": "Full range 0–255", "centre": 127.5, "width": 255}


def check_windows(chosen: Mapping[str, Mapping[str, Sequence[float]]], channels: int) -> None:
    """Refuse windows of dataset.json that could not be shown.

    Args:
        chosen: The key `windows` of dataset.json.
        channels: The number of channels.

    Raises:
        InputError: If a key is not the number of a channel, or a width is not positive.
    """
    for number, windows in chosen.items():
        if number not in map(str, range(channels)):
            raise InputError(
                f'"windows" in dataset.json: there is no channel {number!r}; windows are listed by number of the '
                f"channel, {', '.join(map(repr, map(str, range(channels))))}"
            )
        for name, (_, width) in windows.items():
            if width <= 0:
                raise InputError(
                    f'"windows" in dataset.json: {name!r} has the width {width:g}; a window is [level, width], with a '
                    "width above 0"
                )


def windows_of(
    channels: Sequence[str], chosen: Mapping[str, Mapping[str, Sequence[float]]], *, colour: bool, eight_bits: bool
) -> list[list[dict[str, Any]]]:
    """The windows of each channel, in the order of the keys R, 1, 2, ...

    Args:
        channels: The names of the channels. Channels with the word CT in their name have Hounsfield units.
        chosen: The key `windows` of dataset.json: level and width by number of the channel and name of the window.
        colour: Whether the image is an RGB picture, whose values are not stretched.
        eight_bits: Whether all values are from 0 to 255.

    Returns:
        For each channel the `name` of each window, and either its `centre` and `width` or, of the image's values, the
        percentiles `low` and `high`. The first is the one that an image is opened with.
    """
    if colour:
        return [[EIGHT_BITS] for _ in channels]
    percentiles: list[dict[str, Any]] = [
        {"name": f"Percentiles {low:g}–{high:g}", "low": low, "high": high} for low, high in PERCENTILES
    ]
    automatic = [EIGHT_BITS, *percentiles] if eight_bits else percentiles
    windows = []
    for number, name in enumerate(channels):
        is_ct = re.search(r"(^|[^a-z])ct([^a-z]|$)", name.lower())
        fixed = chosen.get(str(number), HOUNSFIELD if is_ct else None)
        if fixed is None:
            windows.append(automatic)
        else:
            named = [{"name": name, "centre": level, "width": width} for name, (level, width) in fixed.items()]
            windows.append([automatic[0], *named])
    return windows
