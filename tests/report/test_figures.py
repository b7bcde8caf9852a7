import io

import numpy as np
import pytest
from matplotlib.image import imread

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.report.figures import draw_case, draw_overview, to_png
from nnunetv2_deferral.report.views import CaseView, error_kinds, fullest_slice, telling_part

NAN = float("nan")


def make_case(name, reference, model, answers, route, *, ignore_label=None, **how):
    prediction = PredictedCase(name, model=model, route=route, **how)
    return EvaluatedCase(prediction=prediction, reference=reference, answers=answers, ignore_label=ignore_label)


def make_view(shape=(12, 16), *, route=None, num_experts=2, spacing=None, model_dice=0.5, valid=None, **changes):
    reference = np.zeros(shape, np.int64)
    reference[..., 3:9, 4:12] = 1
    model = np.roll(reference, 2, axis=-1)
    if route is None:
        route = (reference != model).astype(np.uint8)
    arrays = {"image": np.random.default_rng(0).normal(size=shape)} | changes
    answers, properties = np.stack([reference] * num_experts), spacing and {"spacing": spacing}
    if valid is not None:
        reference = np.where(valid, reference, 9)
    case = make_case("case_0", reference, model, answers, route, properties=properties, ignore_label=9)
    return CaseView(case=case, model_dice=model_dice, system_dice=1.0, **arrays)


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def legend(figure):
    return [text.get_text() for key in reversed(figure.legends) for text in key.get_texts()]


def test_errors_are_told_apart_by_kind():
    reference, answer = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 0, 1, 2])
    kinds = {kind: where.tolist() for kind, where in error_kinds(reference, answer).items()}
    assert kinds == {
        "added": [False, True, False, False, False, False],
        "missed": [False, False, False, True, False, False],
        "confused": [False, False, False, False, True, False],
    }


def test_the_slice_with_the_most_deferred_voxels_is_shown():
    route = np.zeros((5, 4, 4), np.uint8)
    route[1, 0, 0], route[3, :2, 0] = 1, 2
    assert fullest_slice(route) == 3


def test_without_deferral_the_middle_slice_is_shown():
    assert fullest_slice(np.zeros((5, 4, 4), np.uint8)) == 2


def test_the_slice_is_chosen_by_the_first_that_has_anything():
    nothing, wrong = np.zeros((4, 2, 2), np.uint8), np.zeros((4, 2, 2), bool)
    wrong[3, 0, 0] = True
    assert fullest_slice(nothing, wrong) == 3


def test_a_small_finding_is_shown_large_and_whole():
    marked = np.zeros((200, 300), bool)
    marked[50:70, 280:290] = True
    rows, columns = telling_part(marked)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (40, 40)
    assert marked[rows, columns].sum() == marked.sum()
    assert rows.start <= 45 and columns.stop == 300


def test_a_large_finding_is_shown_in_the_whole_image():
    marked = np.zeros((60, 60), bool)
    marked[10:45, 10:45] = True
    assert telling_part(marked) == telling_part(np.zeros((60, 60), bool)) == (slice(0, 60), slice(0, 60))


def test_voxels_that_do_not_count_are_neither_drawn_nor_counted():
    valid = np.ones((12, 16), bool)
    valid[:6] = False
    route = np.zeros((12, 16), np.uint8)
    route[:9] = 1
    figure = draw_case(make_view(route=route, valid=valid), ["ann", "bob"])
    assert titles(figure)[3] == "deferred: 50.0 %"
    layer = figure.axes[3].get_images()[1].get_array()
    assert not layer[:6].any() and layer[6:9, :, 3].all()


def test_a_case_shows_both_dice_and_the_share_of_each_expert():
    route = np.zeros((12, 16), np.uint8)
    route[:3], route[3:4, :8] = 1, 2
    figure = draw_case(make_view(route=route), ["ann", "bob"])
    assert titles(figure) == ["image", "reference", "model: Dice 0.500", "deferred: 29.2 %", "system: Dice 1.000"]
    assert legend(figure)[:2] == ["routed to ann (25.0 %)", "routed to bob (4.2 %)"]


def test_undefined_dice_is_a_dash():
    assert "model: Dice –" in titles(draw_case(make_view(model_dice=NAN), ["ann", "bob"]))


def test_experts_differ_in_more_than_colour():
    figure = draw_case(make_view(num_experts=5), list("abcde"))
    hatches = [patch.get_hatch() for patch in figure.legends[-1].get_patches()][:5]
    assert len(set(hatches)) == 5


def test_voxels_keep_their_true_proportions():
    figure = draw_case(make_view((3, 12, 16), spacing=(5.0, 3.0, 1.5)), ["ann", "bob"])
    assert all(axes.get_aspect() == 2.0 for axes in figure.axes)


def test_a_volume_of_one_slice_is_drawn_like_an_image(drawn_figures):
    flat, deep = make_view(), make_view((1, 12, 16))
    assert to_png(draw_case(flat, ["a", "b"])) == to_png(draw_case(deep, ["a", "b"]))


def test_a_constant_image_and_no_foreground_can_be_drawn(drawn_figures):
    empty = np.zeros((8, 8), np.int64)
    case = make_case("empty", empty, empty, empty[None], empty.astype(np.uint8))
    view = CaseView(case=case, image=empty, model_dice=NAN, system_dice=NAN)
    assert to_png(draw_case(view, ["ann"])).startswith(b"\x89PNG")


def test_the_overview_has_a_row_for_each_case_and_a_modest_width(full_resolution):
    figure = draw_overview([make_view(), make_view()], ["ann", "bob"])
    assert len(figure.axes) == 10
    assert titles(figure)[0] == "case_0"
    assert 1300 <= imread(io.BytesIO(to_png(figure))).shape[1] <= 1500


def test_an_overview_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one case"):
        draw_overview([], ["ann"])


def test_a_route_to_an_expert_without_a_name_is_refused():
    view = make_view(route=np.full((12, 16), 2, np.uint8))
    with pytest.raises(ValueError, match="case_0 has voxels routed to expert 2, but only 1"):
        draw_case(view, ["ann"])


def test_eight_experts_all_look_different():
    patches = draw_case(make_view(num_experts=8), list("abcdefgh")).legends[-1].get_patches()[:8]
    assert len({(patch.get_facecolor(), patch.get_hatch()) for patch in patches}) == 8


def test_a_long_legend_has_several_rows():
    experts = [f"the radiologist number {number}" for number in range(8)]
    figure = draw_case(make_view(num_experts=8), experts)
    figure.canvas.draw()
    boxes = [key.get_window_extent().transformed(figure.transFigure.inverted()) for key in figure.legends]
    assert all(box.x0 >= 0 and box.x1 <= 1 and box.y0 >= 0 for box in boxes)
    assert boxes[0].y1 <= boxes[1].y0
    assert len(draw_case(make_view(), ["ann", "bob"]).legends) == 1


def test_names_are_no_mathematics(drawn_figures):
    figure = draw_case(make_view(), ["$x_", "b$"])
    assert to_png(figure).startswith(b"\x89PNG")
    assert r"routed to \$x_" in legend(figure)[0]


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(12, 16\) do not match an image of shape \(2, 2\)"):
        make_view(image=np.zeros((2, 2)))
