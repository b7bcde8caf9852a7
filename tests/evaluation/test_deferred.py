import numpy as np
import pytest

from nnunetv2_deferral.evaluation.deferred import EXPERT_KEYS, TOTAL_KEYS, add_counts, count_deferred
from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.labels import MISSING

NAMES = ("ann", "bob")


def random_case(seed, shape=(5, 6)):
    generator = np.random.default_rng(seed)
    reference, model = generator.integers(0, 3, (2, *shape))
    experts = generator.integers(0, 3, (2, *shape))
    experts[generator.random(experts.shape) < 0.3] = MISSING
    return reference, model, experts, generator.integers(0, 3, shape).astype(np.uint8)


def slow_counts(reference, model, experts, route, valid):
    total, by_expert = dict.fromkeys(TOTAL_KEYS, 0), {name: dict.fromkeys(EXPERT_KEYS, 0) for name in NAMES}
    system = fuse_masks(model, experts, route)
    for voxel in np.ndindex(reference.shape):
        if valid is not None and not valid[voxel]:
            continue
        model_right, system_right = (mask[voxel] == reference[voxel] for mask in (model, system))
        total["voxels"] += 1
        total["model_wrong"] += not model_right
        asked = route[voxel]
        if not asked:
            continue
        for counted in (total, by_expert[NAMES[asked - 1]]):
            counted["deferred"] += 1
            counted["deferred_model_wrong"] += not model_right
            counted["fixed"] += system_right and not model_right
            counted["worsened"] += model_right and not system_right
            counted["unanswered"] += experts[asked - 1][voxel] == MISSING
    return {"total": total, "experts": by_expert}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_counts_equal_a_loop_over_the_fused_mask(seed, masked):
    case = random_case(seed)
    valid = np.random.default_rng(seed).random((5, 6)) < 0.6 if masked else None
    assert count_deferred(*case, NAMES, valid) == slow_counts(*case, valid)


def test_a_small_example():
    found = count_deferred(
        reference=np.array([1, 1, 1, 1, 1, 1]),
        model=np.array([0, 0, 1, 1, 0, 0]),
        experts=np.array([[1, 0, 0, MISSING, 1, 1]]),
        route=np.array([1, 1, 1, 1, 0, 0]),
        names=["ann"],
        valid=np.array([True] * 5 + [False]),
    )
    expected = {"deferred": 4, "deferred_model_wrong": 2, "fixed": 1, "worsened": 1, "unanswered": 1}
    assert found["experts"] == {"ann": expected}
    assert found["total"] == {"voxels": 5, "model_wrong": 3, **expected}
    assert all(type(number) is int for number in found["total"].values())


@pytest.mark.parametrize("seed", range(3))
def test_counts_of_cases_add_up_to_those_of_their_voxels_together(seed):
    case = random_case(seed, (40,))
    parts = [count_deferred(*(array[..., part] for array in case), NAMES) for part in (slice(13), slice(13, None))]
    whole = count_deferred(*case, NAMES)
    assert add_counts(parts, NAMES) == whole
    assert add_counts([add_counts(parts[:1], NAMES), *parts[1:]], NAMES) == whole
    order = np.random.default_rng(seed).permutation(40)
    assert count_deferred(*(array[..., order] for array in case), NAMES) == whole


def test_adding_changes_none_of_the_parts():
    part = count_deferred(*random_case(0), NAMES)
    before = {"total": dict(part["total"]), "experts": {name: dict(part["experts"][name]) for name in NAMES}}
    add_counts([part, part], NAMES)
    assert part == before


def test_without_voxels_or_cases_all_numbers_are_zero():
    nothing = add_counts([], NAMES)
    assert set(nothing["total"].values()) == {0}
    assert count_deferred(*random_case(0), NAMES, np.zeros((5, 6), bool)) == nothing
    empty = [array[..., :0] for array in random_case(0)]
    assert count_deferred(*empty, NAMES) == nothing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": np.zeros(4, int)}, r"reference \(4,\)"),
        ({"experts": np.zeros((2, 4), int)}, r"experts \(4,\)"),
        ({"names": ["ann"]}, r"names must be 2 distinct names, one per expert, got \['ann'\]"),
        ({"names": ["ann", "ann"]}, "distinct names"),
        ({"route": np.array([0, 1, 3])}, r"routes must lie in \[0, 2\] for 2 experts, got 0 to 3"),
        ({"route": np.array([0, -1, 1])}, "got -1 to 1"),
        ({"valid": np.ones(3, int)}, "valid must be bool"),
    ],
)
def test_what_cannot_be_counted_is_named(changes, message):
    case = {
        "reference": np.zeros(3, int),
        "model": np.zeros(3, int),
        "experts": np.zeros((2, 3), int),
        "route": np.zeros(3, int),
        "names": NAMES,
    }
    with pytest.raises(ValueError, match=message):
        count_deferred(**(case | changes))


def test_counts_of_other_experts_do_not_add_up():
    with pytest.raises(ValueError, match=r"\['ann', 'bob'\], not \['ann'\]"):
        add_counts([count_deferred(*random_case(0), NAMES)], ["ann"])
