import json
import re

import numpy as np
import pytest

from nnunetv2_deferral.evaluation.summary import REPLACED
from nnunetv2_deferral.report.evaluation_page import evaluation_page
from nnunetv2_deferral.report.evaluation_tables import reliability_table
from nnunetv2_deferral.report.figures import to_png
from nnunetv2_deferral.report.page import render_page
from nnunetv2_deferral.report.reliability_figure import bias_text, draw_reliability, error_text, reliability_texts

HEADING = "Reliability of the probabilities"


@pytest.fixture
def make_reliable(make_summary):
    """`make_summary` with routing probabilities."""
    return lambda **options: make_summary(with_routing=True, **options)


def marks(axes, when):
    return [each for each in axes.collections if each.get_label() == when]


def filled(mark):
    return not np.allclose(mark.get_facecolor(), 1)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def with_nothing_known(summary, name):
    """The summary of an expert who never answered."""
    nothing = {"probability": [], "right": [], "voxels": [], "ece": None, "bias": None}
    head = summary["reliability"]["heads"][name]
    for part in head.values():
        part |= {when: None if found is None else nothing for when, found in part.items()}
    return summary


def test_there_is_a_panel_for_the_model_and_for_each_expert(make_reliable):
    figure = draw_reliability(make_reliable(experts=("ann", "bob", "cid")))
    assert [axes.get_label() for axes in figure.axes] == ["model", "ann", "bob", "cid"]


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_points_are_those_of_the_least_certain_voxels_in_the_summary(make_reliable, calibrated):
    summary = make_reliable(calibrated=calibrated)
    for axes, (name, head) in zip(draw_reliability(summary).axes, summary["reliability"]["heads"].items(), strict=True):
        for when, found in head["least_certain"].items():
            drawn = marks(axes, when)
            assert len(drawn) == (found is not None), (name, when)
            if drawn:
                points = list(zip(found["probability"], found["right"], strict=True))
                np.testing.assert_allclose(drawn[0].get_offsets(), points)
                line = next(line for line in axes.lines if line.get_label() == f"{when}, line")
                np.testing.assert_allclose(line.get_xydata(), points)
                low, high = axes.get_xlim()
                assert axes.get_ylim() == (low, high)
                assert low - 1e-9 <= np.min(points) and np.max(points) <= high + 1e-9


def test_before_and_after_differ_without_colour(make_reliable):
    axes = draw_reliability(make_reliable(calibrated=True)).axes[1]
    before, after = (marks(axes, when)[0] for when in ("before", "after"))
    assert filled(after) and not filled(before)
    dashes = {line.get_label(): line.is_dashed() for line in axes.lines}
    assert dashes["before, line"] and not dashes["after, line"]


def test_marks_grow_with_the_number_of_voxels(make_reliable):
    summary = make_reliable()
    found = summary["reliability"]["heads"]["ann"]["least_certain"]["before"]
    found |= {"probability": [0.8, 0.9], "right": [0.7, 0.95], "voxels": [1000, 500]}
    sizes = marks(draw_reliability(summary).axes[1], "before")[0].get_sizes()
    assert sizes[0] == 2 * sizes[1]


def test_titles_have_the_error_before_and_after(make_reliable):
    summary = make_reliable(calibrated=True)
    for axes, (name, head) in zip(draw_reliability(summary).axes, summary["reliability"]["heads"].items(), strict=True):
        before, after = (f"{head['least_certain'][when]['ece']:.4f}" for when in ("before", "after"))
        assert before != after
        assert axes.get_title(loc="left") == f"{name}\nECE {before} → {after}"
    uncalibrated = draw_reliability(make_reliable()).axes[0].get_title(loc="left")
    assert re.fullmatch(r"model\nECE 0\.\d{4}", uncalibrated)


def test_a_head_that_is_nearly_right_is_not_magnified(make_reliable):
    summary = make_reliable()
    found = summary["reliability"]["heads"]["ann"]["least_certain"]["before"]
    found |= {"probability": [0.97, 0.98], "right": [0.971, 0.979], "voxels": [10, 10]}
    low, high = draw_reliability(summary).axes[1].get_xlim()
    assert (low, high) == pytest.approx((0.8, 1))


def test_an_expert_without_answers_is_said_to_have_none(make_reliable):
    summary = with_nothing_known(make_reliable(calibrated=True), "ann")
    model, ann, _ = draw_reliability(summary).axes
    assert "no answers" in texts(ann) and "no answers" not in texts(model)
    assert ann.get_title(loc="left") == "ann\nECE – → –"
    assert "ann" not in reliability_texts(summary)[0]
    assert reliability_table(summary).rows[1] == ["ann", *["–"] * 8]


@pytest.mark.parametrize("experts", [("ann",), tuple("abcdefgh"), ("a" * 80, "$x_")])
def test_panels_of_any_experts_lie_in_the_figure_and_apart(make_reliable, experts, drawn_figures):
    figure = draw_reliability(make_reliable(experts=experts, calibrated=True))
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(box.x0 > 0 and box.x1 < 1 and box.y0 > 0 and box.y1 < 1 for box in boxes)
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert to_png(figure).startswith(b"\x89PNG")


def test_sentences_say_how_often_each_was_right_and_was_said_to_be(make_reliable):
    summary = make_reliable()
    heads = summary["reliability"]["heads"]
    for name, bias in (("model", 0.125), ("ann", 0.0), ("bob", -0.25)):
        heads[name]["least_certain"]["before"] |= {
            "probability": [0.5, 0.5 + bias], "right": [0.5, 0.5], "voxels": [100, 300],
        }  # fmt: skip
    summary["reliability"]["least_certain"] = {"wanted": 0.02, "share": 0.021, "below": 0.96}
    assert reliability_texts(summary)[0] == (
        "Over the 2.1 % of voxels where the model is least certain (predicted probability of being right below "
        "96.0 %): the model is right in 50.0 % (predicted: 59.4 %); ann is right in 50.0 % (predicted: 50.0 %); bob is "
        "right in 50.0 % (predicted: 31.2 %)."
    )


def test_sentences_have_what_was_said_before_calibration_where_that_differs(make_reliable):
    summary = make_reliable(calibrated=True)
    bins = {"probability": [0.9], "right": [0.8], "voxels": [10]}
    for name, after in (("model", 0.81), ("ann", 0.9)):
        head = summary["reliability"]["heads"][name]["least_certain"]
        head["before"] |= bins
        head["after"] |= bins | {"probability": [after]}
    text = reliability_texts(summary)[0]
    assert "the model is right in 80.0 % (predicted: 81.0 %; 90.0 % before calibration);" in text
    assert "ann is right in 80.0 % (predicted: 90.0 %);" in text


def test_what_asking_was_to_gain_and_gained_is_said_where_anything_was_asked(make_reliable):
    summary = make_reliable()
    summary["reliability"]["gain"] = {"promised": 0.176, "kept": -0.031, "voxels": 2996}
    assert reliability_texts(summary)[1] == (
        "Of the 2,996 voxels deferred and answered, the share fixed minus the share worsened was predicted to be "
        "17.6 % and observed to be −3.1 %."
    )
    assert len(reliability_texts(make_reliable(rate=0))) == 1
    # Read as evidence, an answer need not be the system's label, of which "fixed" is said elsewhere.
    assert "the share worsened by answers that replace labels was" in reliability_texts(summary | {REPLACED: {}})[1]


def test_the_table_has_error_and_bias_of_both_parts_before_and_after(make_reliable):
    summary = make_reliable(calibrated=True)
    table = reliability_table(summary)
    assert len(table.head) == 9
    for row, (name, head) in zip(table.rows, summary["reliability"]["heads"].items(), strict=True):
        expected = [name]
        for part in ("least_certain", "all"):
            expected += [error_text(head[part][when]["ece"]) for when in ("before", "after")]
            expected += [bias_text(head[part][when]["bias"]) for when in ("before", "after")]
        assert row == expected
    assert table.head[1:5] == [
        f"least certain\n{what}\n{when}" for what in ("ECE", "bias") for when in ("before", "after")
    ]


def test_the_table_of_a_model_without_calibration_has_nothing_after_it(make_reliable):
    table = reliability_table(make_reliable())
    assert table.head == ["source", "least certain\nECE", "least certain\nbias", "all voxels\nECE", "all voxels\nbias"]
    assert all(len(row) == 5 for row in table.rows)


@pytest.mark.parametrize(
    ("value", "error", "bias"),
    [(None, "–", "–"), (0.0, "0.0000", "0.0000"), (0.00004, "< 0.0001", "0.0000"), (0.01234, "0.0123", "+0.0123")],
)
def test_errors_are_told_from_none_and_biases_have_a_sign(value, error, bias):
    assert (error_text(value), bias_text(value)) == (error, bias)
    assert bias_text(-0.5) == "−0.5000"


def sections(summary):
    return [section.heading for section in evaluation_page(summary).sections]


@pytest.mark.parametrize("options", [{}, {"calibrated": True}, {"rate": 0}, {"empty": True}, {"experts": ("ann",)}])
def test_the_page_has_the_section_and_its_figure_where_there_are_probabilities(make_reliable, options, request):
    summary = make_reliable(**options)
    html = render_page(evaluation_page(summary))
    request.getfixturevalue("drawn_figures")  # of all on the page only this one
    assert to_png(draw_reliability(summary)).startswith(b"\x89PNG")
    assert HEADING in html
    assert html.count("<img") == 4
    assert not re.search(r"\bnan\b|\bNone\b", re.sub(r'src="[^"]*"|<style>.*?</style>', "", html, flags=re.DOTALL))
    assert json.loads(json.dumps(summary["reliability"], allow_nan=False)) == summary["reliability"]


def test_the_page_has_no_such_section_without_probabilities(make_summary):
    summary = make_summary()
    assert summary["reliability"] is None
    assert reliability_table(summary) is None
    assert HEADING not in sections(summary)
    del summary["reliability"]  # as earlier versions wrote it
    assert HEADING not in sections(summary)
