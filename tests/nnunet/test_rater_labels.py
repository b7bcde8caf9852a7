"""Raters without labels in the training cases of a fold."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.nnunet.rater_labels import (
    NAME,
    RaterLabels,
    cases_of_two,
    raters_without_labels,
    settings_of_all_folds,
    without_raters,
)
from nnunetv2_deferral.settings import DeferralSettings, resolve_settings

LABELLED = {
    "a": {"ann": 10, "bob": 0, "cid": 4},
    "b": {"ann": 20, "bob": 0, "cid": 0},
    "c": {"ann": 30, "bob": 5, "cid": 0},
}


def count(cases: list[str], raters: tuple[str, ...] = ("ann", "bob", "cid"), fold: int = 0) -> RaterLabels:
    return RaterLabels.count(LABELLED, raters=raters, cases=cases, fold=fold)


def panel(**block: object) -> DeferralSettings:
    return resolve_settings({"experts": ["ann", "bob", "cid"], **block})


def test_only_training_cases_and_the_raters_asked_for_are_counted() -> None:
    labels = count(["a", "b"], ("ann", "bob"))
    assert labels.cases == {"ann": 2, "bob": 0}
    assert labels.voxels == {"ann": 30, "bob": 0}
    assert labels.without == ("bob",)


def test_a_rater_without_labels_is_named_with_the_fold() -> None:
    (line,) = (line for line in count(["a", "b"]).statements() if "bob" in line)
    assert line.startswith("WARNING: bob has no label in the 2 training cases of fold 0")
    assert line.endswith("nothing is routed to bob")


@pytest.mark.parametrize(
    ("labelled", "num_cases", "reported"), [(4, 8, True), (5, 8, False), (9, 100, True), (10, 100, False)]
)
def test_fewer_than_five_cases_or_a_tenth_are_reported(labelled: int, num_cases: int, reported: bool) -> None:
    found = {str(case): {"ann": 7 * (case < labelled)} for case in range(num_cases)}
    labels = RaterLabels.count(found, raters=["ann"], cases=list(found), fold=3)
    expected = f"ann has labels in only {labelled} of the {num_cases} training cases of fold 3 ({7 * labelled} voxels)"
    assert list(labels.statements()) == [expected] * reported


def test_labels_in_all_of_few_cases_are_not_reported() -> None:
    assert list(count(["a", "b", "c"], ("ann",)).statements()) == []


def test_a_rater_without_labels_becomes_unavailable_besides_those_in_the_plans() -> None:
    assert without_raters(panel(unavailable=["cid"]), ["ann", "eve"], why="").unavailable == ("cid", "ann")
    assert without_raters(panel(unavailable=["cid"]), ["cid"], why="") == panel(unavailable=["cid"])


def test_with_nobody_left_the_reason_is_given() -> None:
    with pytest.raises(InputError, match=r"no expert to defer to \(cid unavailable in the plans\): no labels of ann"):
        without_raters(panel(unavailable=["cid"]), ["ann", "bob"], why="no labels of ann, bob")


def record(model: Path, labels: RaterLabels) -> None:
    write_json(labels.to_dict(), model / f"fold_{labels.fold}" / NAME)


def test_a_fold_without_a_file_has_no_raters_without_labels(tmp_path: Path) -> None:
    assert raters_without_labels(tmp_path) == ()
    record(tmp_path, count(["a", "b"]))
    assert raters_without_labels(tmp_path / "fold_0") == ("bob",)


def test_in_the_plans_of_a_model_raters_are_unavailable_whom_any_fold_does_not_know(tmp_path: Path) -> None:
    record(tmp_path, count(["a", "b"]))
    found = settings_of_all_folds(panel(), count(["a", "c"], fold=1), tmp_path)
    assert found.unavailable == ("bob",)


def test_a_fold_trained_again_with_labels_no_longer_counts(tmp_path: Path) -> None:
    record(tmp_path, count(["a", "b"]))
    assert settings_of_all_folds(panel(), count(["a", "c"], fold=0), tmp_path).unavailable == ()


def test_folds_that_together_know_nobody_are_refused(tmp_path: Path) -> None:
    settings = resolve_settings({"experts": ["bob", "cid"]})
    record(tmp_path, count(["a", "b"], ("bob", "cid")))
    with pytest.raises(InputError, match="no labels of bob in the training of fold_0; no labels of cid in .*fold_1"):
        settings_of_all_folds(settings, count(["b", "c"], ("bob", "cid"), fold=1), tmp_path)


def test_agreement_is_learned_from_cases_that_two_raters_labelled() -> None:
    raters = ("ann", "bob", "cid")
    assert cases_of_two(LABELLED, raters=raters, cases=["a", "b", "c", "not preprocessed"], fold=0) == 2
    message = r"no training case of fold 0 was labelled by two .*\(labelled cases of 1: ann 1, bob 0, cid 0\)"
    with pytest.raises(InputError, match=message):
        cases_of_two(LABELLED, raters=raters, cases=["b"], fold=0)
