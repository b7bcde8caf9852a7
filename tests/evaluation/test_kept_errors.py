"""Kept errors on cases small enough to count, and certificates compared with other cases."""

from dataclasses import replace

import numpy as np
import pytest
from small_certificate import certificate

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.evaluation.kept_errors import CertificateCheck, KeptErrors, case_score, outcome
from nnunetv2_deferral.evidence.posterior import EarlierAnswers

WITHIN = Limits(budget=0.1)


def case(name, model, reference, route=None, gain=None, ignore_label=None, answered=None):
    model, reference = np.array([model]), np.array([reference])
    prediction = PredictedCase(
        name,
        model=model,
        route=np.zeros(model.shape, np.uint8) if route is None else np.array([route], np.uint8),
        gain=np.ones(model.shape, np.float32) if gain is None else np.array([gain], np.float32),
        answered=answered,
    )
    return EvaluatedCase(prediction=prediction, reference=reference, answers=reference[None], ignore_label=ignore_label)


def ungrouped(**other):
    """Of cases with scores from 1 to 2, and few foreground voxels."""
    return certificate(**{"grouped": False, "median_foreground": 4.0, "scores": tuple(np.linspace(1, 2, 40))} | other)


class TestKeptErrors:
    def test_are_wrong_voxels_that_nobody_is_asked_about_per_foreground_voxel(self):
        errors = KeptErrors()
        found = case("a", [0, 1, 1, 2, 0], [1, 1, 2, 2, 0])  # wrong at 0 and 2; four of foreground
        routes = np.array([[[0, 0, 0, 0, 0]], [[1, 0, 0, 0, 0]], [[1, 1, 1, 1, 1]]], bool)
        errors.update("a", found, found.prediction.gain, routes)
        assert errors.values(errors.median_foreground).tolist() == [[0.5], [0.25], [0.0]]

    def test_of_a_group_are_those_of_all_its_cases(self):
        errors, nobody = KeptErrors(), np.zeros((1, 1, 4), bool)
        for group, name, reference in (("p", "a", [1, 1, 1, 0]), ("p", "b", [1, 0, 0, 0]), ("q", "c", [1, 1, 0, 0])):
            found = case(name, [0, 0, 0, 0], reference, gain=[0, 0, 0, len(name + group)])
            errors.update(group, found, found.prediction.gain, nobody)
        assert errors.values(1.0).tolist() == [[1.0, 1.0]]
        assert errors.median_foreground == 3.0

    def test_without_foreground_are_divided_by_the_median(self):
        errors, nobody = KeptErrors(), np.zeros((1, 1, 4), bool)
        for name, model, reference in (("a", [1, 1, 0, 0], [0, 0, 0, 0]), ("b", [1, 1, 1, 0], [1, 1, 1, 1])):
            found = case(name, model, reference)
            errors.update(name, found, found.prediction.gain, nobody)
        assert errors.median_foreground == 4.0
        assert errors.values(4.0).tolist() == [[0.5, 0.25]]

    def test_do_not_count_ignored_voxels(self):
        errors = KeptErrors()
        found = case("a", [0, 0, 1, 0], [1, 9, 1, 9], ignore_label=9)
        errors.update("a", found, found.prediction.gain, np.zeros((1, 1, 4), bool))
        assert errors.values(1.0).tolist() == [[0.5]]

    def test_score_of_a_case_sums_its_larger_gains(self):
        assert case_score(np.array([[0.0, 0.05, 0.1, 1.0]])) == pytest.approx(1.1)
        assert case_score(np.zeros((2, 2))) == 0


class TestCheck:
    def check(self, violations, gains, **other):
        """The check of 40 cases, of which the first ones have a kept error of 1."""
        check = CertificateCheck(ungrouped(**other), None)
        for number, gain in enumerate(gains):
            model = [0, 0] if number < violations else [0, 1]
            check.update(case(f"c{number}", model, [0, 1], gain=[0, gain]), WITHIN)
        return check.summary()

    def test_promise_is_kept_by_cases_like_those_tested(self):
        found = self.check(2, np.linspace(1.01, 2.01, 40))
        assert (found["verdict"], found["violations"], found["groups"], found["rate"]) == ("kept", 2, 40, 0.05)
        assert found["p_scores"] > 0.9
        assert outcome(found).startswith("here 2 of 40 cases (5.0%) do; the promise is kept")

    def test_promise_is_broken_by_more_violations_than_chance_explains(self):
        found = self.check(12, np.linspace(1, 2, 40))
        assert found["verdict"] == "broken"
        assert found["p_violations"] < 0.001
        assert self.check(6, np.linspace(1, 2, 40))["verdict"] == "kept"  # 15 %, p = 0.2

    def test_more_violations_than_promised_are_not_called_kept(self):
        found = self.check(6, np.linspace(1, 2, 40))
        said = outcome(found)
        assert found["rate"] > found["alpha"] == 0.1
        assert said.startswith("here 6 of 40 cases (15.0%) do; more than promised, but not more than chance explains")
        assert f"(p = {found['p_violations']:.2g})" in said
        assert "kept" not in said
        assert "more than promised" in outcome(self.check(1, [1.0]))  # the only case there is
        assert "promise is kept" in outcome(self.check(4, np.linspace(1, 2, 40)))

    @pytest.mark.parametrize("violations", [0, 12])
    def test_promise_is_void_for_cases_with_other_gains(self, violations):
        found = self.check(violations, np.linspace(4, 6, 40))
        assert found["verdict"] == "void"
        assert "void here" in outcome(found)

    def test_draws_of_the_same_kind_are_rarely_void(self):
        generator, void = np.random.default_rng(0), 0
        for _ in range(200):
            scores = tuple(generator.gamma(2, size=60))
            check = CertificateCheck(ungrouped(scores=scores), None)
            for number, gain in enumerate(generator.gamma(2, size=20)):
                check.update(case(f"c{number}", [0, 1], [0, 1], gain=[0, gain]), WITHIN)
            void += check.summary()["verdict"] == "void"
        assert void / 200 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)

    def test_counts_cases_if_it_was_tested_on_cases_whatever_their_groups(self):
        check = CertificateCheck(ungrouped(), {"a": "p", "b": "p"})
        for name in ("a", "b"):
            check.update(case(name, [0, 0], [0, 1]), WITHIN)
        found = CertificateCheck.merged([check]).summary()
        assert (found["unit"], found["groups"], found["violations"]) == ("cases", 2, 2)

    def test_counts_groups_and_needs_them_if_it_was_tested_on_them(self):
        check = CertificateCheck(ungrouped(grouped=True), {"a": "p", "b": "p"})
        for name in ("a", "b"):
            check.update(case(name, [0, 0], [0, 1]), WITHIN)
        assert (check.summary()["groups"], check.summary()["violations"]) == (1, 1)
        check = CertificateCheck(ungrouped(grouped=True), None)
        check.update(case("a", [0, 0], [0, 1]), WITHIN)
        assert "-groups" in check.summary()["unchecked"]
        assert "not compared with these cases: it was tested on groups" in outcome(check.summary())

    def test_is_not_made_for_networks_of_folds_that_were_not_tested(self):
        for folds, tested in ((["0"], True), ([], True), (["1"], False), (["0", "1"], False)):
            check = CertificateCheck(ungrouped(), None, {"folds": folds})
            check.update(case("a", [0, 1], [0, 1]), WITHIN)
            if tested:
                assert check.summary()["unchecked"] is None
            else:
                assert (
                    check.summary()["unchecked"]
                    == "it was tested on the network of fold 0, not on the network of fold 1"
                )

    def test_is_not_made_with_cases_that_it_was_tested_on(self):
        check = CertificateCheck(ungrouped(), None, seen={"b"})
        check.update(case("a", [0, 1], [0, 1]), WITHIN)
        assert check.summary()["unchecked"] is None
        check.update(case("b", [0, 1], [0, 1]), WITHIN)
        assert "on some of these cases" in check.summary()["unchecked"]

    def test_is_not_made_for_other_limits_or_a_later_round(self):
        check = CertificateCheck(ungrouped(), None)
        check.update(case("a", [0, 1], [0, 1]), WITHIN)
        check.update(case("b", [0, 1], [0, 1]), Limits(budget=0.001))
        assert "{'budget': 0.001, 'over': 'case'}" in check.summary()["unchecked"]
        check.update(case("c", [0, 1], [0, 1]), replace(WITHIN, minutes=30))
        assert "'minutes': 30" in check.summary()["unchecked"]
        earlier = EarlierAnswers(np.array([1]), np.array([[True]]), np.array([[1]], np.int16))
        check = CertificateCheck(ungrouped(), None)
        check.update(case("a", [0, 1], [0, 1], answered=earlier), WITHIN)
        assert "one round" in check.summary()["unchecked"]
