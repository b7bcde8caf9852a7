"""Certificates: exact tests, the walk over budgets, and what is refused."""

from functools import partial

import numpy as np
import pytest
from scipy.stats import binom
from small_certificate import certificate

from nnunetv2_deferral.decision.certificate import (
    Certificate,
    certified_budget,
    check_risk,
    groups_needed,
    is_certified,
    last_certified,
)
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.predicted_by import PredictedBy
from nnunetv2_deferral.errors import InputError

AT = {"alpha": 0.1, "confidence": 0.9}


class TestTest:
    def test_takes_as_many_groups_as_the_binomial_says(self):
        assert [groups_needed(violations, **AT) for violations in (0, 1, 2, 5)] == [22, 38, 52, 91]

    @pytest.mark.parametrize("groups", [5, 30, 90])
    def test_errs_as_rarely_as_promised_at_the_worst_rate(self, groups):
        """At a true rate of alpha: the probability of all numbers of violations that certify, exactly."""
        certified = [number for number in range(groups + 1) if is_certified(number, groups, **AT)]
        assert binom.pmf(certified, groups, AT["alpha"]).sum() <= 0.1 + 1e-12
        assert certified == list(range(len(certified)))  # fewer violations are never worse

    def test_of_no_groups_certifies_nothing(self):
        assert not is_certified(0, 0, **AT)


class TestWalk:
    def test_ends_at_the_first_budget_that_is_not_certified(self):
        assert last_certified([0, 0, 9, 0], 30, **AT) == 1

    def test_certifies_nothing_if_its_first_budget_is_not(self):
        assert last_certified([9, 0, 0], 30, **AT) is None

    @pytest.mark.parametrize("rates", [(0.02, 0.05, 0.08, 0.101, 0.12, 0.3), (0.101,) * 6, (0.15, 0.2, 0.3)])
    def test_is_wrong_in_at_most_a_tenth_of_draws(self, rates):
        """2,000 draws of 70 groups that violate at rates that grow as the budget falls, each on top of the one before.

        A draw is wrong if it certifies a budget with a rate above alpha.
        """
        generator, wrong = np.random.default_rng(0), 0
        for _ in range(2000):
            error = generator.random(70)
            place = last_certified([int((error < rate).sum()) for rate in rates], 70, **AT)
            wrong += place is not None and rates[place] > AT["alpha"]
        assert wrong / 2000 <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 2000)


class TestCertificate:
    @pytest.mark.parametrize(
        ("limits", "covered"),
        [
            (Limits(budget=0.01), True),
            (Limits(budget=0.05), True),
            (Limits(budget=0.009), False),
            (Limits(budget=0.01, over="dataset"), False),
            (Limits(budget=0.01, min_region_mm=3), False),
            (Limits(budget=0.01, capacities=(0.01, None)), False),
            (Limits(), False),
        ],
    )
    def test_is_for_its_budget_or_a_larger_one(self, limits, covered):
        assert certificate().covers(limits) == covered
        assert certificate().statement_for(limits).startswith("certified" if covered else "not for these limits")

    def test_says_what_it_promises(self):
        assert certificate().statement == (
            "certified: with 90 % confidence, at most 10 % of groups like those tested have a kept error above 0.2, at "
            "a budget of at least 1 % over each case (1 of 40 groups did, held out from the network of fold 0 and from "
            "calibration)"
        )
        assert "not their ensemble" in certificate(predicted_by=PredictedBy(folds=("0", "1"))).statement

    def test_is_restored(self):
        assert Certificate.from_dict(certificate().to_dict(), "here") == certificate()

    @pytest.mark.parametrize(
        ("key", "value"),
        [("alpha", 1.5), ("alpha", None), ("budget", "0.01"), ("scores", [-1.0]), ("groups", -1), ("grouped", 1)],
    )
    def test_with_other_content_is_refused(self, key, value):
        with pytest.raises(InputError, match=rf"here: {key}"):
            Certificate.from_dict(certificate().to_dict() | {key: value}, "here")

    @pytest.mark.parametrize("values", [(0, 0.1, 0.9), (0.1, 1, 0.9), (0.1, 0.1, 1.0), (0.1, float("nan"), 0.9)])
    def test_of_values_outside_0_and_1_is_refused(self, values):
        with pytest.raises(InputError, match=r"must be in \(0, 1\)"):
            check_risk(*values)


def test_the_walk_from_arrays_ends_at_the_first_budget_with_too_many_violations():
    errors = np.zeros((22, 3))
    walk = partial(certified_budget, kept_error=0.1, alpha=0.1, confidence=0.9)
    assert walk(errors, (0.1, 0.05, 0.01)) == 0.01
    errors[0, 1] = 0.11
    assert walk(errors, (0.1, 0.05, 0.01)) == 0.1  # the last is not tested
    errors[0, 0] = 0.11
    assert walk(errors, (0.1, 0.05, 0.01)) is None
    for budgets, words in (((0.1, 0.05), r"shape \(G, 2\)"), ((0.01, 0.05, 0.1), "from large to small")):
        with pytest.raises(InputError, match=words):
            walk(errors, budgets)
    with pytest.raises(InputError, match="in .0, 1."):
        certified_budget(errors, (0.1, 0.05, 0.01), kept_error=0.0, alpha=0.1)


@pytest.mark.parametrize(
    ("errors", "budgets", "message"),
    [
        (np.full((40, 2), np.nan), (0.02, 0.01), "must be finite"),
        (np.full((40, 2), -0.1), (0.02, 0.01), "at least 0"),
        (np.zeros((40, 2)), (2, 0.01), r"shares of the voxels in \[0, 1\]"),
        (np.zeros((40, 2)), (0.02, float("nan")), "shares of the voxels"),
    ],
)
def test_arrays_that_certify_nothing_are_refused(errors, budgets, message):
    with pytest.raises(InputError, match=message):
        certified_budget(errors, budgets, kept_error=0.1, alpha=0.15)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0}, {"alpha": 1.5}, {"confidence": 1}, {"violations": -1}, {"alpha": float("nan")}]
)
def test_groups_needed_for_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="must be"):
        groups_needed(**({"violations": 0, "alpha": 0.1, "confidence": 0.9} | wrong))
