"""The worklist of arrays."""

import numpy as np
import pytest

from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.worklist.listing import choose_regions, find_regions


def maps_with(shape, *places):
    """Maps of places (box, expert, gain of each voxel) where an expert is asked."""
    route, gain = np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
    for box, expert, each in places:
        route[box], gain[box] = expert, each
    return RoutingMaps(route, (route > 0).astype(np.float32), np.maximum(route, 1), gain)


SMALL, LARGE = np.s_[0:2, 0:2], np.s_[10:16, 10:20]


def test_regions_of_a_slice_have_their_expert_gain_and_time():
    maps = maps_with((20, 24), (SMALL, 2, 0.5), (LARGE, 1, 0.25))
    first, second = find_regions(maps, np.ones((20, 24), int), case="a", spacing_mm=(1.0, 2.0))
    assert (first.case, first.region.expert, first.region.voxels, first.expected_gain) == ("a", 2, 4, 2.0)
    assert (second.region.expert, second.region.voxels, second.expected_gain) == (1, 60, 15.0)
    assert second.size == (None, 6.0, 20.0)
    assert 44 < second.border_mm < 2 * (6 + 20)  # corners are rounded
    assert second.minutes == pytest.approx(0.15 + 0.04 * second.border_mm / 10)
    assert second.labels == {1: 1.0}


def test_a_slice_is_a_volume_of_one_slice():
    maps, model = maps_with((20, 24), (SMALL, 1, 0.5)), np.ones((20, 24), int)
    stacked = RoutingMaps(*(each[np.newaxis] for each in maps))
    assert find_regions(maps, model) == find_regions(stacked, model[np.newaxis])


def test_without_a_spacing_every_border_is_that_of_a_typical_edit():
    maps = maps_with((20, 24), (SMALL, 1, 0.5), (LARGE, 1, 0.25))
    found = find_regions(maps, np.ones((20, 24), int), time=WorkTime(minutes_per_region=2.0))
    assert [(each.minutes, each.border_mm) for each in found] == [(4.0, None), (4.0, None)]


def test_the_best_regions_of_several_cases_come_first():
    model = np.zeros((20, 24), int)
    items = [
        item
        for case, gain in (("a", 0.1), ("b", 0.3), ("c", 0.2))
        for item in find_regions(maps_with((20, 24), (SMALL, 1, gain)), model, case=case)
    ]
    assert [each.item.case for each in choose_regions(items, max_regions=2)] == ["b", "c"]
    assert choose_regions(items, max_minutes=0) == []


def test_bad_arrays_are_refused():
    maps = maps_with((20, 24), (SMALL, 1, 0.5))
    with pytest.raises(InputError, match=r"route has shape \(1, 20, 24\) instead of \(1, 20, 23\)"):
        find_regions(maps, np.zeros((20, 23), int))
    with pytest.raises(InputError, match="a case must have shape"):
        find_regions(RoutingMaps(*(each[0] for each in maps)), np.zeros(24, int))
    with pytest.raises(InputError, match="spacing_mm has 3 entries"):
        find_regions(maps, np.zeros((20, 24), int), spacing_mm=(1, 1, 1))
