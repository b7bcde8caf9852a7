"""Edits and regions against slow references."""

import numpy as np
import pytest
from scipy import ndimage

from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.review.edits import Edit, RefusedError, apply_edit, parse_edit, runs_between
from nnunetv2_deferral.review.visits import describe_visits, numbered, numbered_by_gain, second_reader

SHAPE = (4, 5, 6)


def random_case(seed):
    random = np.random.default_rng(seed)
    own = random.random(SHAPE) < 0.6
    before, after = (random.integers(0, 3, SHAPE).astype(np.uint8) for _ in range(2))
    return np.flatnonzero(own), before.ravel()[own.ravel()], after.ravel()[own.ravel()]


def edit_of(runs):
    return Edit(revision=0, key="k" * 8, runs=np.array(runs, dtype=np.int64).reshape(-1, 3), done=(), seconds=0)


@pytest.mark.parametrize("seed", range(30))
def test_runs_turn_one_state_into_the_other_and_touch_nothing_else(seed):
    asked, before, after = random_case(seed)
    runs = runs_between(before, after, asked)
    volume = np.full(int(np.prod(SHAPE)), 99)
    volume[asked] = before
    for start, length, label in runs:
        volume[start : start + length] = label
    assert np.array_equal(volume[asked], after)
    assert (np.delete(volume, asked) == 99).all()
    assert np.array_equal(apply_edit(edit_of(runs), before, asked, SHAPE, (0, 1, 2), 1), after)


def is_allowed(runs, asked):
    """Whether every voxel of every run may be changed, voxel by voxel."""
    seen = []
    for start, length, label in runs:
        if length < 1 or label > 2:
            return False
        seen += range(start, start + length)
    return set(seen) <= set(asked.tolist()) and seen == sorted(set(seen))


@pytest.mark.parametrize("seed", range(200))
def test_an_edit_is_taken_if_and_only_if_all_of_it_is_allowed(seed):
    random = np.random.default_rng(1000 + seed)
    asked, before, _ = random_case(seed)
    starts = np.sort(random.choice(asked, 2))
    runs = [[int(start), int(random.integers(0, 3)), int(random.integers(0, 4))] for start in starts]
    if is_allowed(runs, asked):
        changed = apply_edit(edit_of(runs), before, asked, SHAPE, (0, 1, 2), 1)
        assert changed is not before
    else:
        untouched = before.copy()
        with pytest.raises(RefusedError):
            apply_edit(edit_of(runs), before, asked, SHAPE, (0, 1, 2), 1)
        assert np.array_equal(before, untouched)


@pytest.mark.parametrize("seed", range(100))
def test_voxels_that_may_not_be_changed_are_counted_and_the_first_is_named(seed):
    random = np.random.default_rng(2000 + seed)
    asked, before, _ = random_case(seed)
    starts = np.sort(random.choice(int(np.prod(SHAPE)) - 4, 3, replace=False))
    lengths = np.minimum(random.integers(1, 5, 3), np.diff([*starts, 120]))
    voxels = np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
    outside = voxels[~np.isin(voxels, asked)]
    runs = np.stack([starts, lengths, np.ones(3)], axis=1).astype(int).tolist()
    if not outside.size:
        apply_edit(edit_of(runs), before, asked, SHAPE, (0, 1, 2), 1)
        return
    z, y, x = np.unravel_index(outside[0], SHAPE)
    with pytest.raises(RefusedError) as refused:
        apply_edit(edit_of(runs), before, asked, SHAPE, (0, 1, 2), 1)
    assert refused.value.reason == (
        f"{outside.size} of the {voxels.size} changed voxels are outside your regions, "
        f"the first at slice {z + 1}, row {y + 1}, column {x + 1}."
    )


def test_a_run_through_a_huge_volume_is_refused_without_a_list_of_its_voxels():
    size = 2**40
    with pytest.raises(
        RefusedError, match="1099511627773 of the 1099511627776 changed voxels are outside your regions"
    ):
        apply_edit(edit_of([[0, size, 1]]), np.zeros(3, np.uint8), np.arange(3), (2**20, 2**10, 2**10), (0, 1), 1)


def test_edits_with_the_same_content_have_the_same_digest_and_others_another():
    content = {"revision": 0, "key": "k" * 8, "runs": [[1, 2, 1]], "done": [1], "seconds": 2}
    others = [{}, {"runs": [[1, 2, 0]]}, {"runs": []}, {"done": []}, {"seconds": 3}]
    digests = [parse_edit(content | other, 9).digest for other in others]
    assert parse_edit(dict(content), 9).digest == digests[0]
    assert len(set(digests)) == len(others)


def regions_by_gain(mask, gain):
    """All regions of a mask (Z, Y, X), numbered by the gains (V,) of its voxels."""
    labels = region_labels(mask.view(np.uint8))
    regions = np.zeros(mask.shape, dtype=np.uint16)
    regions[mask] = numbered_by_gain(labels[mask], gain, range(1, labels.max(initial=0) + 1))
    return regions


@pytest.mark.parametrize("seed", range(20))
def test_regions_cover_the_mask_by_expected_gain_and_are_described_as_they_are(seed):
    random = np.random.default_rng(seed)
    mask = ndimage.binary_dilation(random.random((9, 40, 40)) < 0.001, iterations=2)
    gain = np.where(mask, random.random(mask.shape), 0)
    regions = regions_by_gain(mask, gain[mask])
    listing = describe_visits(
        np.flatnonzero(regions), regions[regions > 0], gain[mask], regions.shape, spacing_mm=(3, 0.5, 2)
    )
    assert np.array_equal(regions > 0, mask)
    assert [region["number"] for region in listing] == list(range(1, regions.max(initial=0) + 1))
    gains = [region["gain"] for region in listing]
    assert gains == sorted(gains, reverse=True)
    for region in listing:
        inside = regions == region["number"]
        assert inside.sum() == region["voxels"]
        assert gain[inside].sum() == pytest.approx(region["gain"])
        assert inside[tuple(region["centre"])]
        assert inside[region["centre"][0]].sum() == inside.sum(axis=(1, 2)).max()
        of_slice = np.argwhere(inside[region["centre"][0]])
        middle = of_slice.mean(axis=0)
        distances = np.hypot(*((of_slice - middle) * (0.5, 2)).T)
        assert np.hypot(*((region["centre"][1:] - middle) * (0.5, 2))) == pytest.approx(distances.min())
        places = np.argwhere(inside)
        assert [places.min(0).tolist(), places.max(0).tolist()] == region["box"]


@pytest.mark.parametrize(("gap", "number"), [(4, 1), (5, 2)])
def test_pieces_that_are_close_are_one_region(gap, number):
    mask = np.zeros((1, 5, 20), dtype=bool)
    mask[0, 2, 3] = mask[0, 2, 3 + gap + 1] = True
    assert regions_by_gain(mask, np.ones(2)).max() == number


def test_regions_of_the_same_gain_come_in_the_order_of_their_first_voxels():
    mask = np.zeros((20, 20, 20), dtype=bool)
    for place in ((0, 19, 19), (8, 8, 0), (8, 9, 9), (19, 0, 0)):
        mask[place] = True
    assert regions_by_gain(mask, np.full(4, 0.5))[mask].tolist() == [1, 2, 3, 4]
    assert regions_by_gain(mask, np.array([0.5, 0.25, 0.75, 0.5]))[mask].tolist() == [2, 4, 1, 3]


def test_an_empty_mask_has_no_regions():
    regions = regions_by_gain(np.zeros(SHAPE, dtype=bool), np.zeros(0))
    assert not regions.any()
    assert (
        describe_visits(np.zeros(0, int), regions[regions > 0], np.zeros(0), regions.shape, spacing_mm=(1, 1, 1)) == []
    )


def test_only_the_wanted_regions_are_numbered_in_the_order_that_is_asked_for():
    regions, gain = np.array([1, 2, 2, 3, 4]), np.array([5.0, 1.0, 1.0, 9.0, 3.0])
    assert numbered_by_gain(regions, gain, [1, 2, 4]).tolist() == [1, 3, 3, 0, 2]
    assert numbered(regions, [4, 2]).tolist() == [0, 2, 2, 0, 1]
    assert numbered(regions[:0], []).tolist() == []


def test_second_readers_are_others_who_are_available_and_take_turns():
    for first in (1, 2, 4):
        seconds = [second_reader("case", region, first, (1, 2, 4)) for region in range(1, 9)]
        assert sorted(seconds) == sorted(4 * [number for number in (1, 2, 4) if number != first])
    over_cases = {second_reader(f"case_{number}", 1, 1, (1, 2, 3)) for number in range(20)}
    assert over_cases == {2, 3}
