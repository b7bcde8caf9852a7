"""Splits that keep rare classes in several folds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.query.splits import folds_with, splits_with_classes

NAMES = st.lists(st.sets(st.sampled_from("pqr")), min_size=2, max_size=12)


@settings(max_examples=60, deadline=None)
@given(NAMES, st.integers(2, 5))
def test_each_case_is_in_the_validation_of_one_fold_and_no_fold_is_empty(found, folds):
    classes = {f"case_{place:02d}": each for place, each in enumerate(found)}
    splits = splits_with_classes(classes, folds=folds)
    assert len(splits) == min(folds, len(classes))
    assert sorted(case for split in splits for case in split["val"]) == sorted(classes)
    for split in splits:
        assert split["val"]
        assert sorted(split["train"] + split["val"]) == sorted(classes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.sampled_from("pq")), min_size=2, max_size=12), st.integers(2, 5))
def test_a_class_that_is_in_two_cases_is_in_the_training_of_every_fold(found, folds):
    classes = {f"case_{place:02d}": each for place, each in enumerate(found)}
    splits = splits_with_classes(classes, folds=folds)
    for name, number in folds_with(splits, classes).items():
        if sum(name in each for each in found) >= 2:
            assert number >= 2
            assert all(any(name in classes[case] for case in split["train"]) for split in splits)


def test_a_class_that_its_neighbours_drew_into_one_fold_is_exchanged():
    classes = {"case_0": "pr", "case_1": "p", "case_2": "qr", "case_3": "q"}
    assert folds_with(splits_with_classes(classes, folds=2), classes) == {"p": 2, "q": 2, "r": 2}


def test_the_cases_of_a_patient_stay_together():
    classes = {f"case_{place}": ["core"] for place in range(8)}
    groups = {case: f"patient_{int(case[-1]) // 2}" for case in classes}
    for split in splits_with_classes(classes, groups):
        assert not {groups[case] for case in split["train"]} & {groups[case] for case in split["val"]}


@pytest.mark.parametrize("classes", [{}, {"a": ["core"]}])
def test_fewer_than_two_cases_are_refused(classes):
    with pytest.raises(InputError, match="at least two cases"):
        splits_with_classes(classes)
