"""Which regions people should look at first."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scattered import scattered_route
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from nnunetv2_deferral.cases import PredictedCase, Stored
from nnunetv2_deferral.decision.effort import WorkTime, border_lengths_mm
from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.defaults import TYPICAL_BORDER_CM
from nnunetv2_deferral.geometry import orientation_of
from nnunetv2_deferral.report.overlays import RegionView, draw_region
from nnunetv2_deferral.worklist.items import (
    cells,
    choose,
    columns,
    find_items,
    reason,
    region_masks,
    to_canonical,
    to_row,
    to_world,
)
from nnunetv2_deferral.worklist.table import table_of, totals

OBLIQUE = np.linalg.qr(np.array([[0.9, -0.3, 0.2], [0.35, 0.9, -0.1], [-0.1, 0.2, -0.97]]))[0]
ITK = {"spacing": (0.7, 1.1, 2.5), "origin": (-11.0, 3.5, 40.0), "direction": tuple(OBLIQUE.ravel().tolist())}
PIXELS = {"spacing": (999, 1, 1)}
APART = 6  # voxels with five between them, one more than what is looked at together


def case(route, name="x", *, properties=None, **arrays):
    """A case with this route; what is not given is of no interest."""
    route = np.asarray(route, dtype=np.uint8)
    properties = properties or {"sitk_stuff": ITK, "spacing": list(ITK["spacing"][::-1])}
    usual = {
        "model": np.zeros(route.shape, np.int64),
        "expert": np.maximum(route, 1),
        "probability": np.full(route.shape, 0.5, np.float32),
        "gain": np.full(route.shape, 0.01, np.float32),
    }
    return PredictedCase(name, route=route, properties=properties, **usual | arrays)


def find(case, time=WorkTime()):  # noqa: B008
    """The regions of a case in its unit."""
    return find_items(case, time, unit="pixels" if case.properties == PIXELS else "mm")


def picture(*rows, name="x", **how):
    """A 2D case in pixels, a row of digits a row of its route."""
    return case([[[int(digit) for digit in row] for row in rows]], name, properties=PIXELS, **how)


def scattered(*rows, **how):
    """A picture whose digits lie so far apart that each is a region of its own."""
    digits = np.array([list(map(int, row)) for row in rows])
    route = np.zeros([APART * length for length in digits.shape], np.uint8)
    route[::APART, ::APART] = digits
    return case(route[None], properties=PIXELS, **how)


def random_case(seed=0, **how):
    random, shape = np.random.default_rng(seed), (10, 80, 90)
    return case(
        scattered_route(random, shape),
        model=random.integers(0, 3, shape),
        expert=random.integers(1, 3, shape).astype(np.uint8),
        probability=random.random(shape, np.float32),
        gain=random.random(shape, np.float32) / 100,
        **how,
    )


def listing(items, **limits):
    return [(each.item.case, each.item.number) for each in choose(items, **limits)]


class TestRegions:
    def test_the_expected_gain_is_the_sum_of_the_gain_map_and_nothing_deferred_is_lost(self):
        maps = random_case()
        items, labels = find(maps), region_labels(maps.route)
        assert len(items) == labels.max() > 20
        for item in items:
            inside = labels == item.number
            assert item.expected_gain == pytest.approx(maps.gain[inside].sum(dtype=np.float64))
            assert item.probability == pytest.approx(maps.probability[inside].mean(dtype=np.float64))
            assert item.preferred == pytest.approx((maps.expert == maps.route)[inside].mean())
            assert set(np.unique(maps.route[inside])) == {item.region.expert}
            shares = {label: (maps.model[inside] == label).mean() for label in np.unique(maps.model[inside])}
            assert item.labels == pytest.approx(shares)
            assert list(item.labels.values()) == sorted(shares.values(), reverse=True)
        table = table_of(maps, WorkTime(), unit="mm", place=3)
        assert [tuple(row) for row in table.tolist()] == [
            (3, each.number, each.region.expert, each.region.voxels, each.expected_gain, each.minutes) for each in items
        ]
        deferred = totals(table)
        assert deferred["expected_gain"] == pytest.approx(maps.gain[maps.route > 0].sum(dtype=np.float64))
        assert deferred["voxels"] == (maps.route > 0).sum()

    def test_pieces_of_one_expert_that_touch_at_a_corner_are_one_region_of_two_experts_two(self):
        items = find(picture("1000", "0120", *["0000"] * 5, "0001"))
        assert [(item.region.expert, item.region.voxels) for item in items] == [(1, 2), (2, 1), (1, 1)]

    @pytest.mark.parametrize(("gap", "voxels"), [(4, [2]), (5, [1, 1])])
    def test_pieces_of_one_expert_are_one_region_up_to_a_gap_of_four_voxels(self, gap, voxels):
        row, column = picture("1" + "0" * gap + "1"), picture("1", *["0"] * gap, "1")
        corner = picture("10", *["00"] * gap, "01")
        for maps in (row, column, corner, case(np.reshape([1, *[0] * gap, 1], (-1, 1, 1)))):
            items = find(maps)
            assert [item.region.voxels for item in items] == voxels
            assert [item.expected_gain for item in items] == pytest.approx([0.01 * count for count in voxels])

    def test_pieces_of_one_expert_on_both_sides_of_another_are_one_region(self):
        items = find(picture("10201"))
        assert [(item.region.expert, item.region.voxels) for item in items] == [(1, 2), (2, 1)]
        assert [item.region.box[2] for item in items] == [(0, 5), (2, 3)]

    def test_where_nothing_is_deferred_there_is_none(self):
        assert find(picture("000", "000")) == []

    def test_where_nothing_is_deferred_no_other_map_is_read(self):
        unread = dict.fromkeys(("probability", "expert", "gain"), Stored(file=Path("unread"), read=pytest.fail))
        table = table_of(case([[[0, 0]]], **unread), WorkTime(), unit="mm")
        assert totals(table) == {"cases": 0, "regions": 0, "voxels": 0, "minutes": 0, "expected_gain": 0}

    def test_a_region_takes_a_look_and_the_border_that_is_expected_to_be_wrong(self):
        route = np.zeros((5, 10, 30), np.uint8)
        route[1:3, 2:5, 4:24] = 1
        (item,) = find(case(route), WorkTime(minutes_per_region=0.5, minutes_per_cm=0.2))
        assert item.size == pytest.approx((5.0, 3.3, 14.0))
        assert item.border_mm == border_lengths_mm(route.astype(np.int32), (2.5, 1.1, 0.7))
        assert item.minutes == pytest.approx(0.5 + 0.5 * 0.2 * item.border_mm / 10)

    def test_a_single_slice_has_no_thickness_that_counts(self):
        thick = {"sitk_stuff": ITK | {"spacing": (1.0, 1.0, 999.0)}, "spacing": [999.0, 1.0, 1.0]}
        (item,) = find(case([[[0, 1, 1]]], properties=thick))
        assert item.size == (None, 1.0, 2.0)
        assert item.border_mm == border_lengths_mm(np.array([[[0, 1, 1]]]), (1.0, 1.0, 1.0))

    def test_in_pixels_the_probability_alone_makes_a_difference(self):
        items = find(picture("10000011111", "00000011111"), WorkTime(minutes_per_region=0.7))
        assert [(item.minutes, item.border_mm) for item in items] == [(0.7 + 0.5 * 2, None)] * 2
        assert items[1].size == (None, 2, 5)

    def test_maps_that_do_not_fit_or_hold_no_numbers_are_refused(self):
        with pytest.raises(ValueError, match=r"case x: array gain has shape \(1, 2, 3\) instead of \(1, 2, 2\)"):
            find(picture("01", "00", gain=np.zeros((1, 2, 3), np.float32)))
        with pytest.raises(ValueError, match="case x: array gain contains nan, but must lie in .0, inf."):
            find(picture("01", gain=np.array([[[0, math.nan]]], np.float32)))


class TestOrder:
    def test_the_most_gain_per_minute_comes_first(self):
        # Of 11 mm or 0.7 mm a voxel along the last axis, the long region takes longer.
        route, gain = np.zeros((1, 13, 40), np.uint8), np.zeros((1, 13, 40), np.float32)
        route[0, 0, :40], gain[0, 0, 0] = 1, 0.012
        route[0, 6, 0], gain[0, 6, 0] = 2, 0.011
        route[0, 12, 0], gain[0, 12, 0] = 1, 0.02
        items = find(case(route, gain=gain))
        assert listing(items) == [("x", 3), ("x", 2), ("x", 1)]
        assert items[0].expected_gain > items[1].expected_gain
        quick = find(case(route, gain=gain), WorkTime(minutes_per_cm=0))
        assert listing(quick) == [("x", 3), ("x", 1), ("x", 2)]

    def test_ties_are_in_the_order_of_cases_and_first_voxels_whatever_order_they_come_in(self):
        items = [*find(scattered("101", "000", "102", name="b"))]
        items += find(scattered("0201", name="a"))
        expected = [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3), ("b", 4)]
        assert listing(items) == listing(items[::-1]) == expected

    def test_ranks_and_minutes_count_up_and_labels_within_expert_and_case(self):
        items = find(scattered("10201", "00000", "20101", name="b"))
        items += find(scattered("0201", name="a"))
        listed = choose(items)
        assert [each.rank for each in listed] == list(range(1, 9))
        assert [each.cumulative_minutes for each in listed] == pytest.approx(1.15 * np.arange(1, 9))
        assert [(each.item.case, each.item.region.expert, each.label) for each in listed] == [
            ("a", 2, 1), ("a", 1, 1),
            ("b", 1, 1), ("b", 2, 1), ("b", 1, 2), ("b", 2, 2), ("b", 1, 3), ("b", 1, 4),
        ]  # fmt: skip


class TestLimits:
    @pytest.fixture
    def items(self):
        """Regions of 1.2, 3.2 and 1.2 minutes in the order of their gain per minute."""
        gain, probability = (np.zeros((1, 3 * APART, APART), np.float32) for _ in range(2))
        gain[0, ::APART, 0], probability[0, ::APART, 0] = (1.2, 3.0, 0.3), (0.25, 0.75, 0.25)
        time = WorkTime(minutes_per_region=0.2, minutes_per_cm=4 / TYPICAL_BORDER_CM)
        return find(scattered("1", "1", "1", gain=gain, probability=probability), time)

    @pytest.mark.parametrize(
        ("limits", "expected"),
        [
            ({}, [1, 2, 3]),
            ({"max_regions": 2}, [1, 2]),
            ({"max_regions": 0}, []),
            ({"max_regions": 9}, [1, 2, 3]),
            ({"max_minutes": 0}, []),
            ({"max_minutes": 1.19}, []),
            ({"max_minutes": 4.4}, [1, 2]),
            ({"max_minutes": 3}, [1, 3]),
            ({"max_minutes": 5.6}, [1, 2, 3]),
            ({"max_minutes": 3, "max_regions": 1}, [1]),
        ],
    )
    def test_what_does_not_fit_is_left_out_and_shorter_ones_further_down_may_fit(self, items, limits, expected):
        assert [number for _, number in listing(items, **limits)] == expected

    def test_a_limit_that_the_work_just_meets_is_not_exceeded_by_rounding(self):
        items = find(scattered("111"), WorkTime(minutes_per_region=0.1, minutes_per_cm=0))
        assert len(choose(items, max_minutes=0.3)) == 3

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"max_regions": -1}, "max_regions must be at least 0, got -1"),
            ({"max_minutes": -0.5}, "max_minutes must be finite and at least 0, got -0.5"),
            ({"max_minutes": math.inf}, "max_minutes .* got inf"),
            ({"max_minutes": math.nan}, "max_minutes .* got nan"),
        ],
    )
    def test_limits_that_cannot_be_are_refused(self, limits, message):
        with pytest.raises(ValueError, match=message):
            choose([], **limits)

    @pytest.mark.parametrize("value", [-1, 0, math.inf, math.nan])
    def test_a_region_takes_some_time(self, value):
        with pytest.raises(ValueError, match=f"minutes_per_region must be positive and finite, got {value}"):
            WorkTime(minutes_per_region=value)

    @pytest.mark.parametrize("value", [-1, math.inf, math.nan])
    def test_a_centimetre_takes_no_less_than_none(self, value):
        with pytest.raises(ValueError, match=f"minutes_per_cm must be finite and at least 0, got {value}"):
            WorkTime(minutes_per_cm=value)


class TestPlace:
    def test_world_coordinates_are_those_of_simpleitk_also_for_an_oblique_volume(self):
        maps = random_case()
        image = sitk.GetImageFromArray(maps.route)
        image.SetSpacing(ITK["spacing"])
        image.SetOrigin(ITK["origin"])
        image.SetDirection(ITK["direction"])

        def physical(voxel):
            return image.TransformIndexToPhysicalPoint([int(index) for index in voxel[::-1]])

        assert orientation_of({"sitk_stuff": ITK, "spacing": [1, 1, 1]}, maps.route.shape).oblique_degrees > 5
        for item in find(maps):
            assert item.centre_world == pytest.approx(physical(item.region.centre))
            low, high = np.array(item.region.box).T
            corners = [physical(np.where(pick, high - 1, low)) for pick in np.ndindex(2, 2, 2)]
            assert np.allclose(np.array(item.box_world).T, [np.min(corners, 0), np.max(corners, 0)])
            assert maps.route[item.region.centre] == item.region.expert

    def test_nibabels_affine_means_the_same_place(self):
        vectors = OBLIQUE * ITK["spacing"]
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = vectors, ITK["origin"]
        properties = {
            "nibabel_stuff": {"original_affine": np.diag([-1, -1, 1, 1]) @ affine},
            "spacing": [2.5, 1.1, 0.7],
        }
        voxels = [(0, 0, 0), (3, 8, 2)]
        found = to_world(voxels, random_case(properties=properties))
        assert np.allclose(found, to_world(voxels, random_case()))

    def test_in_a_picture_the_world_is_counted_in_pixels(self):
        (item,) = find(picture("0000", "0011", "0011"))
        z, y, x = item.region.centre
        assert item.centre_world == (x, y, z)
        assert item.box_world == ((2, 3), (1, 2), (0, 0))

    def test_a_voxel_is_found_again_in_the_patients_orientation(self):
        maps = random_case()
        number = np.arange(maps.route.size).reshape(maps.route.shape)
        turned = maps.orientation.to_canonical(number)
        assert turned.shape != number.shape or not np.array_equal(turned, number)
        for voxel in [(0, 0, 0), (5, 2, 9), (1, 8, 10)]:
            assert turned[tuple(to_canonical([voxel], maps)[0])] == number[voxel]


class TestMasks:
    def test_a_mask_numbers_the_listed_regions_of_an_expert_in_the_order_of_the_list(self):
        maps = random_case()
        items = find(maps)
        listed = choose(items, max_regions=len(items) // 2)
        masks, labels = region_masks(maps.route, listed), region_labels(maps.route)
        assert sorted(masks) == [1, 2]
        for each in listed:
            mask = masks[each.item.region.expert]
            assert np.array_equal(mask == each.label, labels == each.item.number)
        for expert, mask in masks.items():
            ours = [each.label for each in listed if each.item.region.expert == expert]
            assert ours == list(range(1, len(ours) + 1)) == sorted(set(np.unique(mask)) - {0})

    def test_experts_with_nothing_listed_have_none(self):
        maps = picture("102")
        items = find(maps)
        assert list(region_masks(maps.route, choose(items, max_regions=1))) == [1]
        assert region_masks(maps.route, []) == {}


class TestReason:
    def why(self, maps, names=("background", "rim", "core"), objective="one_vs_all"):
        return reason(find(maps)[0], "ann", dict(enumerate(names)), objective)

    def test_it_tells_the_models_labels_and_the_probability(self):
        maps = picture("1111", model=np.array([[[0, 0, 0, 1]]]), probability=np.full((1, 1, 4), 0.62, np.float32))
        assert self.why(maps) == (
            "The model's labels in the region are background (75 %) and rim (25 %); "
            "mean probability that asking ann helps: 0.62."
        )

    def test_it_knows_a_region_of_one_label(self):
        found = self.why(picture("11", model=np.full((1, 1, 2), 2)))
        assert found.startswith("The model labels the whole region core; ")

    def test_a_label_without_a_name_is_called_by_its_number(self):
        assert "label 7 (50 %)" in self.why(picture("11", model=np.array([[[7, 0]]])))

    def test_only_with_one_vs_all_the_score_is_the_probability_that_asking_helps(self):
        assert "helps" not in self.why(picture("11"), objective="collaboration")
        assert "mean deferral probability: 0.50" in self.why(picture("11"), objective="collaboration")

    def test_it_says_where_the_gain_is_that_of_another_expert(self):
        maps = picture("1111", expert=np.array([[[1, 2, 2, 2]]], np.uint8))
        assert self.why(maps).endswith("; for 75 % of it another expert is preferred, so the gain is an upper bound.")

    def test_shares_are_not_rounded_to_all_or_nothing(self):
        model = np.zeros((1, 1, 500), np.int64)
        model[0, 0, 0] = 1
        assert "background (99 %) and rim (under 1 %)" in self.why(picture("1" * 500, model=model))


class TestRows:
    @pytest.mark.parametrize("unit", ["mm", "pixels"])
    def test_flat_a_row_has_a_cell_for_every_column_and_json_keeps_it(self, unit):
        listed = choose(find(random_case()))[0]
        row = to_row(listed, expert="ann", unit=unit, why="because", picture=None, mask="m")
        flat = dict(zip(columns(unit), cells(row), strict=True))
        item, region = listed.item, listed.item.region
        assert (flat["rank"], flat["case"], flat["why"], flat["picture"], flat["mask"]) == (
            1,
            "x",
            "because",
            None,
            "m",
        )
        assert (flat["box_z_start"], flat["box_z_stop"]) == region.box[0]
        assert (flat["box_x_start"], flat["box_x_stop"]) == region.box[2]
        assert (flat["centre_z"], flat["centre_y"], flat["centre_x"]) == region.centre
        assert flat["box_world_y_high"] == pytest.approx(item.box_world[1][1], abs=1e-4)
        assert flat["centre_world_z"] == pytest.approx(item.centre_world[2], abs=1e-4)
        assert flat[f"size_{unit}_y"] == pytest.approx(item.size[1], abs=1e-4)
        assert flat[f"diameter_{unit}"] == pytest.approx(region.diameter_mm, abs=1e-4)
        assert json.loads(json.dumps(row)) == row


class TestPicture:
    def view(self, **how):
        image = np.random.default_rng(0).random((60, 90))
        region = np.zeros(image.shape, bool)
        region[20:30, 40:60] = True
        usual = {"image": image, "model": region.astype(int), "region": region, "aspect": 1.0, "place": 0}
        return RegionView(
            **usual | {"title": "1. x: ask ann", "slice_name": "whole", "caption": ("Gain", "Why.")} | how
        )

    def test_the_neighbourhood_and_the_whole_slice_stand_side_by_side(self):
        figure = draw_region(self.view())
        assert isinstance(figure.canvas, FigureCanvasAgg)
        part, whole = figure.axes
        assert whole.get_xlim() == (-0.5, 89.5)
        low, high = part.get_xlim()
        assert -0.5 < low < 40 and 60 < high < 89.5
        assert part.get_position().x1 < whole.get_position().x0

    def test_pixels_keep_their_true_shape(self):
        assert {axes.get_aspect() for axes in draw_region(self.view(aspect=2.5)).axes} == {2.5}

    @pytest.mark.parametrize("place", range(8))
    @pytest.mark.parametrize("brightness", [0, 0.5, 1])
    def test_the_region_is_seen_in_grey_whatever_the_expert_and_the_image(self, place, brightness):
        image = np.full((60, 60), brightness)
        image[0, 0], image[0, 1] = 0, 1
        image[1, :2] = image[0, :2]  # so many that the brightness is that of the picture
        region, nothing = np.zeros((60, 60), bool), np.zeros((60, 60), int)
        region[20:30, 40:55] = True
        drawn = self.pixels(self.view(image=image, region=region, model=nothing, place=place)).mean(-1)
        whole = drawn[80:520, 500:920]  # the whole slice without its title
        edge = np.abs(np.diff(whole, axis=0)).max(axis=0)
        assert (edge > 60).sum() > 60

    def test_a_flat_image_one_with_nan_and_a_region_that_is_all_of_it_can_be_drawn(self):
        everything = np.ones((60, 90), bool)
        for image in (np.zeros((60, 90)), np.full((60, 90), np.nan)):
            assert self.pixels(self.view(image=image, region=everything, model=everything.astype(int))).std() > 1

    def test_signs_of_mathematics_in_a_name_are_shown_as_they_are(self):
        self.pixels(self.view(title="1. $x_{: ask $ann", caption=("$a_{", "b$")))

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match=r"1. x: ask ann: image \(60, 90\), mask \(3, 3\) and region"):
            draw_region(self.view(model=np.zeros((3, 3), int)))

    def pixels(self, view):
        figure = draw_region(view)
        figure.canvas.draw()
        return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(float)


@pytest.mark.parametrize("seed", range(3))
def test_the_regions_are_those_that_scipy_finds(seed):
    maps = random_case(seed)
    items = find(maps)
    found = {(item.region.expert, item.region.voxels, item.region.box) for item in items}
    assert len(found) == len(items)
    expected = set()
    for expert in (1, 2):
        voxels = np.argwhere(maps.route == expert)
        pairs = KDTree(voxels).query_pairs(APART - 0.5, p=np.inf, output_type="ndarray").T
        near = coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(len(voxels), len(voxels)))
        number, pieces = connected_components(near, directed=False)
        for members in (voxels[pieces == piece] for piece in range(number)):
            box = tuple(zip(members.min(0).tolist(), (members.max(0) + 1).tolist(), strict=True))
            expected.add((expert, len(members), box))
    assert found == expected


def test_where_raters_often_disagree_two_are_to_be_asked():
    route = [[[1, 1, 0, 0, 0, 0, 0, 0, 2, 2]]]
    disagreement = np.array([[[0.2, 0.4, 1, 1, 1, 1, 1, 1, 0.5, 0.75]]], np.float32)
    first, second = find(case(route, properties=PIXELS, disagreement=disagreement))
    assert (first.disagreement, second.disagreement) == (pytest.approx(0.3), pytest.approx(0.625))
    assert reason(first, "ann", {}, None).endswith("; mean probability that raters disagree: 0.30.")
    assert reason(second, "bob", {}, None).endswith("0.62, so no single answer is right: ask two experts.")
    (without,) = find(case([[[1]]]))
    assert without.disagreement is None
    assert "disagree" not in reason(without, "ann", {}, None)
