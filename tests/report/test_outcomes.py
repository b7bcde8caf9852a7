import numpy as np
import pytest

from nnunetv2_deferral.report.figures import to_png
from nnunetv2_deferral.report.outcomes import draw_load, draw_location, unchanged
from nnunetv2_deferral.report.style import OUTCOMES


def bars(axes):
    """Height of the middle, begin and length of horizontal bars."""
    return [(round(patch.get_y() + patch.get_height() / 2), patch.get_x(), patch.get_width()) for patch in axes.patches]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_load_is_the_share_of_the_deferred_voxels(make_summary):
    summary = make_summary(experts=("ann", "bob", "cid"))
    counts = summary["deferred"]["experts"]
    total = summary["deferred"]["total"]["deferred"]
    load = draw_load(summary).axes[0]
    assert [length for _, _, length in bars(load)] == [counts[name]["deferred"] / total for name in counts]
    assert [label.get_text() for label in load.get_yticklabels()] == ["ann", "bob", "cid"]
    assert next(line for line in load.lines if line.get_label() == "equal shares").get_xdata()[0] == 1 / 3


def test_fixed_goes_right_and_made_worse_left(make_summary):
    summary = make_summary()
    counts = summary["deferred"]["experts"]
    benefit = draw_load(summary).axes[1]
    assert bars(benefit) == [
        (0, 0, counts["ann"]["fixed"]),
        (0, 0, -counts["ann"]["worsened"]),
        (1, 0, counts["bob"]["fixed"]),
        (1, 0, -counts["bob"]["worsened"]),
    ]
    assert counts["ann"]["fixed"] > 0 and f"+{counts['ann']['fixed']}" in texts(benefit)


def test_outcomes_fill_the_bar_of_each_expert(make_summary):
    summary = make_summary(rate=0.4)
    counts = summary["deferred"]["experts"]["ann"]
    assert counts["unanswered"] > 0 and counts["worsened"] > 0
    found = [length for row, _, length in bars(draw_load(summary).axes[2]) if row == 0]
    kinds = [counts["fixed"], unchanged(counts), counts["unanswered"], counts["worsened"]]
    assert found == pytest.approx([number / counts["deferred"] for number in kinds])
    assert sum(found) == pytest.approx(1)


def test_outcomes_differ_in_hatch_or_lightness():
    looks = set()
    for colour, hatch, _ in OUTCOMES.values():
        red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
        looks.add((hatch, (0.3 * red + 0.59 * green + 0.11 * blue) // 64))
    assert len(looks) == 4


def test_where_nothing_was_deferred_the_figure_says_so(make_summary):
    for axes in draw_load(make_summary(rate=0)).axes:
        assert "nothing was deferred" in texts(axes)
        assert not axes.patches


@pytest.mark.parametrize("experts", [("ann",), tuple("abcdefgh"), ("a" * 80, "$x$")])
def test_any_experts_can_be_drawn(make_summary, experts, drawn_figures):
    figure = draw_load(make_summary(experts=experts))
    assert len(figure.axes[0].patches) == len(experts)
    assert to_png(figure).startswith(b"\x89PNG")


def test_errors_by_score_are_those_of_the_summary(make_summary):
    summary = make_summary()
    rows = [row for row in summary["location"]["by_score"] if row["voxels"]]
    numbers, errors, _ = draw_location(summary).axes
    assert [patch.get_height() for patch in numbers.patches] == [row["voxels"] for row in rows]
    assert [patch.get_height() for patch in errors.patches] == [row["model_wrong"] / row["voxels"] for row in rows]
    total = summary["deferred"]["total"]
    level = next(line for line in errors.lines if line.get_label() == "all voxels").get_ydata()[0]
    assert level == total["model_wrong"] / total["voxels"]


def test_the_error_rate_of_all_voxels_is_written_beside_the_bars_and_not_over_them(make_summary):
    figure = draw_location(make_summary())
    _, errors, _ = figure.axes
    (label,) = (text for text in errors.texts if text.get_text().startswith("all:"))
    figure.canvas.draw()
    assert label.get_window_extent().x0 >= errors.get_window_extent().x1


def test_bins_of_few_voxels_are_pale(make_summary):
    summary = make_summary()
    summary["location"]["by_score"][19] = {"from": 0.95, "to": 1.0, "voxels": 29, "model_wrong": 29}
    assert draw_location(summary).axes[1].patches[-1].get_alpha() < 0.5


def test_rates_by_distance_are_those_of_the_summary(make_summary):
    summary = make_summary()
    bands = summary["location"]["by_distance"]
    axes = draw_location(summary).axes[2]
    expected = [row[key] / row["voxels"] for row in bands if row["voxels"] for key in ("deferred", "model_wrong")]
    assert [patch.get_height() for patch in axes.patches] == expected
    labels = [label.get_text().split("\n")[0] for label in axes.get_xticklabels()]
    assert labels == ["0–1", "1–2", "2–3", "3–5", "5–10", "> 10"]
    assert "–" in texts(axes)  # no voxel is that far away


def test_distances_are_given_in_their_unit(make_summary):
    assert "(pixels)" in draw_location(make_summary(), unit="pixels").axes[2].get_xlabel()
    assert "(mm)" in draw_location(make_summary()).axes[2].get_xlabel()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_never_exceed_one_on_the_axis(make_summary, rate):
    axes = draw_location(make_summary(rate=rate)).axes[2]
    assert max(axes.get_yticks()) <= 1
    assert np.isfinite(axes.get_ylim()).all()
