"""Figures of plain arrays."""

import numpy as np
import pytest

from nnunetv2_deferral.decision.calibrators import Temperature
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.risk_coverage import augrc, aurc
from nnunetv2_deferral.plots import plot_case, plot_coverage, plot_reliability


def arrays(shape=(20, 24)):
    reference = np.zeros(shape, int)
    reference[..., 4:12, 4:12] = 1
    reference[..., 6:9, 6:9] = 2
    model = np.roll(reference, 3, axis=-1)
    route = np.where(model != reference, np.where(np.arange(shape[-1]) < 10, 1, 2), 0)
    experts = np.stack([reference, np.roll(reference, 1, axis=-2)])
    return {
        "image": reference * 50.0,
        "reference": reference,
        "model": model,
        "experts": experts,
        "route": route,
    }


def texts_of(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("shape", [(20, 24), (1, 20, 24), (3, 20, 24)])
def test_a_case_has_five_panels_and_names_who_was_asked(shape):
    figure = plot_case(**arrays(shape), names=["ann", "bob"], spacing=(2.0,) * len(shape))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("image")
    assert titles[1] == "reference"
    assert titles[2].startswith("model: Dice 0.")
    assert titles[4] == "system: Dice 1.000"
    assert any(text.startswith("routed to ann") for text in texts_of(figure))


def test_dice_is_the_mean_of_the_labels_and_leaves_out_what_is_ignored():
    given = arrays()
    given["experts"][:] = given["reference"]
    assert plot_case(**given).axes[4].get_title() == "system: Dice 1.000"
    given["reference"] = given["reference"].copy()
    given["reference"][given["model"] != given["experts"][0]] = 9
    given["route"] = np.zeros_like(given["route"])
    figure = plot_case(**given, ignore_label=9)
    assert figure.axes[2].get_title() == "model: Dice 1.000"
    assert any("routed to expert1" in text for text in texts_of(figure))


def test_a_case_without_foreground_has_no_dice():
    given = arrays()
    figure = plot_case(**{**given, "reference": np.zeros_like(given["reference"])})
    assert figure.axes[2].get_title() == "model: Dice –"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((20, 23))}, "shapes differ"),
        ({"names": ["ann"]}, "1 names for 2 experts"),
        ({"spacing": (1.0, 1.0, 1.0)}, "spacing of length 3"),
        ({"route": np.full((20, 24), 3)}, r"contains 3, but must lie in \[0, 2\]"),
        ({"experts": np.zeros((2, 20, 23), int)}, "shapes differ"),
    ],
)
def test_arrays_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        plot_case(**(arrays() | change))


@pytest.mark.parametrize(("risk", "area"), [("generalised", augrc), ("selective", aurc)])
def test_curves_have_their_areas_in_the_legend_and_lie_between_optimum_and_random(risk, area):
    random = np.random.default_rng(0)
    wrong = random.random((20, 30)) < 0.2
    scores = {"mine": wrong + 2 * random.random(wrong.shape), "constant": np.ones(wrong.shape)}
    figure = plot_coverage(scores, wrong, risk=risk)
    found = area(scores["mine"], wrong)
    expected = {"mine": found.area, "constant": found.random, "random": found.random, "optimum": found.optimum}
    name = {"generalised": "AUGRC", "selective": "AURC"}[risk]
    assert texts_of(figure) == [f"{key}: {name} {value:.4g}" for key, value in expected.items()]
    (axes,) = figure.axes
    for line in axes.lines:
        drawn = line.get_xydata()
        assert drawn[-1, 0] == 1
        assert drawn[-1, 1] == pytest.approx(wrong.mean())
        measured = np.trapezoid(drawn[:, 1], drawn[:, 0]) if hasattr(np, "trapezoid") else np.trapz(*drawn.T[::-1])
        if risk == "generalised":
            assert measured == pytest.approx(expected[line.get_label().split(":")[0]], rel=0.01)


def test_a_curve_needs_a_score_and_an_item_and_a_risk_there_is():
    with pytest.raises(InputError, match="at least one score"):
        plot_coverage({}, np.zeros(3))
    with pytest.raises(InputError, match="one item"):
        plot_coverage({"a": np.zeros(0)}, np.zeros(0))
    with pytest.raises(InputError, match="got 'relative'"):
        plot_coverage({"a": np.zeros(3)}, np.zeros(3), risk="relative")
    with pytest.raises(InputError, match=r"shapes differ: a \(3,\), losses \(4,\)"):
        plot_coverage({"a": np.zeros(3)}, np.zeros(4))


def head(seed, number=20_000):
    random = np.random.default_rng(seed)
    logits = random.normal(1, 1, number)
    return 1 / (1 + np.exp(-2 * logits)), random.random(number) < 1 / (1 + np.exp(-logits))


def test_reliability_has_a_panel_for_each_head():
    said, right = (np.stack(each) for each in zip(head(0), head(1), strict=True))
    figure = plot_reliability(said, right, names=["model", "ann"], calibrators=[Temperature(2.0)] * 2)
    for axes, name in zip(figure.axes, ("model", "ann"), strict=True):
        title = axes.get_title(loc="left")
        before, after = (float(each) for each in title.removeprefix(f"{name}\nECE ").split(" → "))
        assert before > 0.05 and after < 0.03
    alone = plot_reliability(said, right, names=["model", "ann"])
    assert "→" not in alone.axes[0].get_title(loc="left")


def test_reliability_of_the_least_certain_is_another_one():
    said, right = (np.stack(each) for each in zip(head(0), head(1), strict=True))
    titles = [
        plot_reliability(said, right, names=["model", "ann"], least_certain=some).axes[1].get_title(loc="left")
        for some in (False, True)
    ]
    assert titles[0] != titles[1]


def test_what_is_not_known_does_not_count_in_reliability():
    said, right = (each[None] for each in head(0))
    known = np.arange(said.size)[None] % 2 == 0
    part = plot_reliability(said, np.where(known, right, ~right), names=["model"], known=known)
    whole = plot_reliability(said[known][None], right[known][None], names=["model"])
    assert part.axes[0].get_title(loc="left") == whole.axes[0].get_title(loc="left")


def test_reliability_refuses_what_does_not_fit():
    said, right = (each[None] for each in head(0, 10))
    with pytest.raises(InputError, match="for 2 heads"):
        plot_reliability(said, right, names=["model", "ann"])
    with pytest.raises(InputError, match="right must be bool"):
        plot_reliability(said, right.astype(int), names=["model"])
