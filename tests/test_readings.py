"""Two readers and an adjudicator: what is settled, how agreement is measured, what is read back."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.readings import (
    Outcome,
    ReadingRules,
    Settled,
    cohens_kappa,
    digests,
    read_settled,
    readings_summary,
    settle,
    settled_file,
)

READERS = [("ann", "bob"), ("bob", "cem"), ("cem", "ann"), ("ann", "cem"), ("ann", "bob")]


def labels_of(*values):
    return np.array(values, dtype=np.int16)


def settle_five(rules):
    """Regions of four voxels: alike, one voxel apart, all apart, read by one, read by nobody."""
    none = [MISSING] * 4
    first = labels_of(1, 1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, *none, *none)
    second = labels_of(1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 2, 2, 2, 2, *none)
    decided = labels_of(*[0] * 8, *[2] * 12)
    return settle(first, second, decided, np.repeat(np.arange(1, 6), 4), np.ones(20), READERS, rules)


def test_regions_are_agreed_adjudicated_single_or_open():
    found = settle_five(ReadingRules(adjudicator="eve", max_difference=0.25))
    assert [each["outcome"] for each in found.regions] == ["agreed", "agreed", "adjudicated", "single", "open"]
    assert found.labels.tolist() == [1, 1, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, *[MISSING] * 4]
    assert found.outcomes.tolist() == [3] * 8 + [4] * 4 + [2] * 4 + [1] * 4
    assert [each["difference"] for each in found.regions] == [0, 0.25, 1, None, None]
    assert [each["dice"] for each in found.regions] == [1, pytest.approx(6 / 7), 0, None, None]
    assert [tuple(each["readers"]) for each in found.regions] == READERS


def test_a_smaller_difference_is_a_dispute_and_counts_as_decided_or_as_open():
    first, second = labels_of(1, 1, 1, 1), labels_of(1, 1, 1, 0)
    rules = ReadingRules(max_difference=0.2)
    for decided, outcome in ((labels_of(0, 0, 1, 1), Outcome.ADJUDICATED), (labels_of(*[MISSING] * 4), Outcome.OPEN)):
        found = settle(first, second, decided, np.ones(4, int), np.ones(4), READERS[:1], rules)
        assert found.regions[0]["disputed"]
        assert (found.outcomes == outcome).all()
        assert found.labels.tolist() == decided.tolist()


def test_by_dice_the_label_with_the_lowest_dice_counts():
    first, second = labels_of(*[1] * 8, 2, 2, 0, 0), labels_of(*[1] * 8, 2, 0, 0, 0)
    nobody, regions = np.full(12, MISSING, np.int16), np.ones(12, int)
    found = settle(
        first, second, nobody, regions, np.ones(12), READERS[:1], ReadingRules(measure="dice", max_difference=0.3)
    )
    assert found.regions[0]["difference"] == pytest.approx(1 / 3)
    assert found.regions[0]["disputed"]
    background = np.zeros(12, np.int16)
    found = settle(background, background, nobody, regions, np.ones(12), READERS[:1], ReadingRules(measure="dice"))
    assert found.regions[0]["difference"] == 0
    assert found.regions[0]["kappa"] is None  # one and the same label throughout


def test_what_one_reader_left_out_of_a_region_is_taken_from_the_other():
    first, second = labels_of(1, MISSING, 1, 1), labels_of(1, 2, MISSING, 1)
    found = settle(first, second, np.zeros(4, np.int16), np.ones(4, int), np.ones(4), READERS[:1], ReadingRules())
    assert found.labels.tolist() == [1, 2, 1, 1]
    assert found.regions[0]["outcome"] == "agreed"


def test_nothing_is_settled_of_no_regions():
    none = np.zeros(0, np.int16)
    found = settle(none, none, none, none.astype(int), none, [], ReadingRules())
    assert found.regions == []
    assert readings_summary(found.regions) == {
        "outcomes": {"open": 0, "single": 0, "agreed": 0, "adjudicated": 0},
        "disputed": 0,
        "compared": 0,
        "dice": None,
        "kappa": None,
        "difference": None,
    }


def test_a_summary_counts_outcomes_and_averages_what_was_compared():
    found = readings_summary(settle_five(ReadingRules(adjudicator="eve", max_difference=0.25)).regions)
    assert found["outcomes"] == {"open": 1, "single": 1, "agreed": 2, "adjudicated": 1}
    assert (found["disputed"], found["compared"]) == (1, 3)
    assert found["difference"] == pytest.approx(1.25 / 3)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    first = random.integers(0, 4, 50)
    second = np.where(random.random(50) < 0.6, first, random.integers(0, 4, 50))
    assert cohens_kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))


def test_kappa_of_nothing_is_none():
    assert cohens_kappa(np.zeros(0), np.zeros(0)) is None


@pytest.mark.parametrize(("wrong", "message"), [({"max_difference": 1.5}, "1.5"), ({"measure": "hd95"}, "hd95")])
def test_rules_out_of_range_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        ReadingRules(**wrong)


def test_a_review_goes_on_with_its_own_rules_only(tmp_path):
    assert ReadingRules.of(tmp_path) is None
    rules = ReadingRules(adjudicator="eve", max_difference=0.2)
    rules.begin(tmp_path)
    rules.begin(tmp_path)
    assert ReadingRules.of(tmp_path) == rules
    with pytest.raises(InputError, match=r": this review was started with max_difference 0.2, now 0.1"):
        ReadingRules(adjudicator="eve").begin(tmp_path)


def settled_case(**changed):
    arrays = {
        "labels": labels_of(1, MISSING),
        "outcomes": np.array([2, 0], np.uint8),
        "route": np.array([1, 0], np.uint8),
    }
    regions = settle(
        labels_of(1), labels_of(MISSING), labels_of(MISSING), np.ones(1, int), np.ones(1), READERS[:1], ReadingRules()
    )
    return Settled(
        experts=("ann", "bob"), regions=regions.regions, masks={"ann": "0" * 64}, basis="b", **(arrays | changed)
    )


def test_what_is_settled_is_read_as_it_was_written(tmp_path):
    assert read_settled(tmp_path, "a") is None
    settled_case().write(tmp_path, "a")
    read = read_settled(tmp_path, "a")
    assert read.labels.tolist() == [1, MISSING]
    assert read.regions == settled_case().regions
    assert read.masks == {"ann": "0" * 64}


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": np.zeros(3, np.int16)},
        {"outcomes": np.zeros(2, np.int64)},
        {"outcomes": np.array([9, 0], np.uint8)},
        {"route": np.array([3, 0], np.uint8)},
    ],
)
def test_an_implausible_file_is_refused_by_its_name(tmp_path, changed):
    settled_case(**changed).write(tmp_path, "a")
    with pytest.raises(InputError, match=r"a.npz is damaged"):
        read_settled(tmp_path, "a")


def test_a_truncated_file_is_refused_by_its_name(tmp_path):
    settled_case().write(tmp_path, "a")
    file = settled_file(tmp_path, "a")
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"a.npz is damaged"):
        read_settled(tmp_path, "a")


def test_only_existing_files_have_a_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    found = digests({"ann": tmp_path / "a", "bob": tmp_path / "b"})
    assert found == {"ann": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
