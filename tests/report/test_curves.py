import math

import numpy as np
import pytest

from nnunetv2_deferral.report.curves import band_points, curve_points, draw_curves, same_curve
from nnunetv2_deferral.report.figures import to_png
from nnunetv2_deferral.report.style import spread


def line(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def operating_point(axes):
    container = next(each for each in axes.containers if each.get_label() == "operating point")
    return container.lines[0].get_xydata()[0]


def test_curves_are_those_of_the_summary(make_summary):
    summary = make_summary()
    left, right = draw_curves(summary).axes
    for axes, names in (
        (left, ["learned", "max_softmax", "random", "oracle"]),
        (right, ["learned", "learned, always ann", "learned, always bob"]),
    ):
        for name in names:
            drawn = dict(line(axes, name).get_xydata())
            curve = dict(zip(summary["curve"]["budget"], summary["curve"]["Dice"][name], strict=True))
            assert {share: curve[share] for share in drawn if share in curve} == {
                share: drawn[share] for share in drawn if share in curve
            }
            assert len(drawn) > 20


def test_the_rate_of_the_model_is_on_every_curve(make_summary):
    summary = make_summary(rate=0.7)
    rate = summary["deferral"]["rate"]
    shares, dice = curve_points(summary, "oracle")
    assert dice[shares.index(rate)] == summary["budgets"]["oracle"][-1]["Dice"]
    assert shares == sorted(shares) and shares[0] > 0


def test_the_operating_point_is_rate_and_dice_of_the_system(make_summary):
    summary = make_summary()
    expected = (summary["deferral"]["rate"], summary["intervals"]["Dice"]["system"]["estimate"])
    for axes in draw_curves(summary).axes:
        assert tuple(operating_point(axes)) == expected


def test_a_model_that_defers_nothing_stands_at_the_left_edge(make_summary):
    figure = draw_curves(make_summary(rate=0))
    axes = figure.axes[0]
    assert operating_point(axes)[0] == axes.get_xlim()[0]
    assert "0 % deferred (drawn at the left edge)" in figure.legends[0].get_texts()[0].get_text()


@pytest.mark.parametrize("rate", [0.0, 0.01, 1.0])
def test_the_operating_point_is_inside_of_both_panels_with_its_interval(make_summary, rate):
    summary = make_summary(rate=rate)
    summary["intervals"]["Dice"]["system"] |= {"low": 0.2, "high": 1.0}
    for axes in draw_curves(summary).axes:
        x, y = operating_point(axes)
        assert axes.get_xlim()[0] <= x <= axes.get_xlim()[1]
        assert axes.get_ylim()[0] <= 0.2 <= y <= 1.0 <= axes.get_ylim()[1]


def test_the_band_is_the_interval_at_the_budgets(make_summary):
    summary = make_summary()
    band = draw_curves(summary).axes[0].collections[0].get_paths()[0].vertices
    for row in summary["budgets"]["learned"]:
        for edge in ("low", "high"):
            assert np.isclose(band, (row["budget"], row[edge])).all(1).any()


def test_a_single_case_has_no_band(make_summary):
    summary = make_summary(num_cases=1)
    assert band_points(summary) == []
    assert all("interval" not in text.get_text() for text in draw_curves(summary).legends[0].get_texts())


def test_everyone_alone_is_a_level_or_named_at_the_edge(make_summary):
    summary = make_summary()
    left, right = draw_curves(summary).axes
    assert line(left, "model alone").get_ydata()[0] == summary["intervals"]["Dice"]["model_everywhere"]["estimate"]
    for name in ("ann", "bob"):
        assert any(f"{name} alone" in text for text in texts(right))


def test_an_expert_far_from_all_curves_is_named_with_the_number(make_summary):
    summary = make_summary()
    summary["intervals"]["Dice"]["ann"]["estimate"] = 0.012
    assert "↓ ann alone: 0.012" in texts(draw_curves(summary).axes[1])


def test_rankings_that_are_the_same_are_drawn_once(make_summary):
    summary = make_summary()
    for part in (summary["curve"]["Dice"], summary["budgets"]):
        part["entropy"] = part["max_softmax"]
    assert same_curve(summary, "max_softmax", "entropy")
    assert not same_curve(summary, "max_softmax", "oracle")
    left = draw_curves(summary).axes[0]
    assert "max softmax, entropy" in texts(left)
    assert "entropy" not in [line.get_label() for line in left.lines]


def test_without_probabilities_there_are_no_curves_of_uncertainty(make_summary):
    left = draw_curves(make_summary(with_probabilities=False)).axes[0]
    assert {"learned", "random", "oracle", "model alone"} <= set(texts(left))
    assert not any("softmax" in text for text in texts(left))


def test_rankings_differ_in_grey(make_summary):
    left, right = draw_curves(make_summary(experts=[f"e{number}" for number in range(8)])).axes
    for axes in (left, right):
        drawn = [line for line in axes.lines if line.get_label() in ("learned", "max_softmax", "random", "oracle")
                 or line.get_label().startswith("learned, always")]  # fmt: skip
        looks = {(line.get_marker(), str(line._dash_pattern), line.get_linewidth()) for line in drawn}
        assert len(looks) == len(drawn) > 3


def test_undefined_dice_can_be_drawn(make_summary, drawn_figures):
    summary = make_summary(empty=True)
    assert math.isnan(summary["intervals"]["Dice"]["model_everywhere"]["estimate"])
    assert to_png(draw_curves(summary)).startswith(b"\x89PNG")


def test_labels_are_moved_apart_and_stay_within():
    found = spread([0.5, 0.5, 0.1, 0.99, 1.2], apart=0.1, low=0, high=1)
    assert found[2] == 0.1
    assert max(found) <= 1 and found.index(max(found)) == 4
    assert np.diff(sorted(found)).min() >= 0.1 - 1e-9


def test_labels_that_do_not_fit_share_the_room():
    found = spread([0.5] * 11, apart=0.5, low=0, high=1)
    np.testing.assert_allclose(sorted(found), np.linspace(0, 1, 11), atol=1e-9)
