"""A budget of minutes over all cases: what is kept, what is left out, and what a killed choice leaves."""

import json
import shutil

import numpy as np
import pytest
from scattered import SHAPES, scattered_route
from small_prediction import GEOMETRY, WrittenCase, deferral_folder, read_mask, write_mask, write_prediction

from nnunetv2_deferral import maps, minutes
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.minutes import keep_minutes
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.worklist.table import choose_rows, region_rows

TIME = WorkTime(minutes_per_region=0.5, minutes_per_cm=0.3)
CASES = ("x", "y", "z")


def write_decided(folder, budget, ending=".nii.gz"):
    """A prediction with many regions whose limit of minutes is not kept yet."""
    write_prediction(folder, ending=ending, cases=())  # dataset.json
    deferral, shape = deferral_folder(folder, ending, ("ann", "bob")), SHAPES[ending]
    for seed, case in enumerate(CASES):
        random = np.random.default_rng(seed)
        predicted = WrittenCase(
            model=random.integers(0, 3, shape).astype(np.uint8),
            route=scattered_route(random, shape),
            probability=random.random(shape, dtype=np.float32),
            expert=random.integers(1, 3, shape).astype(np.uint8),
            gain=random.random(shape, dtype=np.float32) / 100,
        )
        statistics = {"limits": {"minutes": budget}, "expected_gain": 1.0}
        deferral.write(case, predicted.maps, GEOMETRY, statistics)
        write_mask(folder / f"{case}{ending}", predicted.model)
    return folder


def routes_of(folder, ending=".nii.gz"):
    return {case: read_mask(maps.route_file(folder, case, ending)) for case in CASES}


def state_of(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(("ending", "budget"), [(".nii.gz", 20.0), (".png", 100.0)])
def test_the_regions_are_those_of_a_worklist_of_so_many_minutes(tmp_path, ending, budget):
    folder = write_decided(tmp_path / "in", budget, ending)
    opened, before = PredictionFolder.open(folder, undecided=True), routes_of(folder, ending)
    table = region_rows(opened, opened.cases, TIME, num_processes=1)
    rows = choose_rows(table, max_regions=None, max_minutes=budget)
    kept = keep_minutes(folder, budget, TIME)
    assert 3 < len(rows) == kept.regions < kept.of_regions == len(table)
    assert kept.minutes == pytest.approx(rows["minutes"].sum())
    assert 0.9 * budget < kept.minutes <= budget < kept.of_minutes
    for place, (case, route) in enumerate(routes_of(folder, ending).items()):
        numbers = rows["number"][rows["case"] == place]
        expected = np.where(np.isin(region_labels(before[case]), numbers), before[case], 0)
        assert np.array_equal(route, expected)
        assert 0 < (route > 0).sum() < (before[case] > 0).sum()


def test_the_entries_say_what_is_left(tmp_path):
    folder = write_decided(tmp_path / "in", 20.0)
    kept = keep_minutes(folder, 20.0, TIME)
    opened = PredictionFolder.open(folder)
    entries = opened.index["cases"]
    assert sum(entry["minutes"] for entry in entries.values()) == pytest.approx(kept.minutes)
    assert kept.voxels == sum((route > 0).sum() for route in routes_of(folder).values())
    for case, entry in entries.items():
        found = opened.case(case)
        assert opened.limits(case).minutes == 20
        assert entry["time"] == {"minutes_per_region": 0.5, "minutes_per_cm": 0.3}
        assert entry["deferral_rate"] == pytest.approx((found.route > 0).mean())
        assert entry["share"]["ann"] == pytest.approx((found.route == 1).mean())
        # Before it was 1, which a part of the regions cannot exceed.
        assert entry["expected_gain"] == pytest.approx(min(found.gain[found.route > 0].sum(dtype=float), 1))


def test_where_there_is_time_for_all_nothing_else_changes(tmp_path):
    folder = write_decided(tmp_path / "in", 1e6)
    before = state_of(folder)
    kept = keep_minutes(folder, 1e6, TIME)
    assert kept.regions == kept.of_regions
    changed = {name for name, content in state_of(folder).items() if content != before[name]}
    assert changed == {maps.case_file(folder, case).relative_to(folder) for case in CASES}
    assert PredictionFolder.open(folder).index["cases"]["x"]["expected_gain"] == 1.0


def test_without_any_time_nobody_is_asked(tmp_path):
    folder = write_decided(tmp_path / "in", 0.0)
    assert keep_minutes(folder, 0.0, TIME)[0] == 0
    assert PredictionFolder.open(folder).asked() == ()


def test_until_the_minutes_are_kept_a_folder_is_not_read(tmp_path):
    folder = write_decided(tmp_path / "in", 20.0)
    with pytest.raises(InputError, match=r"does not keep its limit of minutes in 3 cases \(x, y, z\).*_route -minutes"):
        PredictionFolder.open(folder)


@pytest.mark.parametrize("what", ["write_labels", "write_json"])
def test_a_choice_that_was_killed_is_refused_and_can_be_repeated(tmp_path, monkeypatch, what):
    folder = write_decided(tmp_path / "in", 20.0)
    shutil.copytree(folder, tmp_path / "whole")
    wanted = keep_minutes(tmp_path / "whole", 20.0, TIME)
    stock, calls = getattr(minutes, what), []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        stock(*arguments)

    monkeypatch.setattr(minutes, what, killed)
    with pytest.raises(KeyboardInterrupt):
        keep_minutes(folder, 20.0, TIME)
    monkeypatch.undo()
    with pytest.raises(InputError, match="does not keep its limit of minutes in 2 cases"):
        PredictionFolder.open(folder)
    again = keep_minutes(folder, 20.0, TIME)
    assert (again.regions, again.minutes, again.voxels) == (wanted.regions, wanted.minutes, wanted.voxels)
    left, right = routes_of(folder), routes_of(tmp_path / "whole")
    assert all(np.array_equal(left[case], right[case]) for case in CASES)
    for case in CASES:
        one, other = (json.loads(maps.case_file(each, case).read_text()) for each in (folder, tmp_path / "whole"))
        assert one == other


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_budget_that_cannot_be_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="max_minutes must be finite and at least 0"):
        keep_minutes(write_decided(tmp_path / "in", 20.0), value, TIME)
