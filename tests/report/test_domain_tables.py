"""Domains in sentences."""

import pytest

from nnunetv2_deferral.report.domain_tables import domains_text


def domain(learned, entropy):
    rows = {"learned": learned, "entropy": entropy}
    return {
        "Dice": {"system - model_everywhere": {"estimate": 0.1}},
        "budgets": {name: [{"budget": 0.01, "Dice": dice}] for name, dice in rows.items()},
    }


@pytest.mark.parametrize(
    ("far", "said"),
    [
        (domain(0.8001, 0.8), "in every domain. These are means, whose differences have no intervals."),
        (domain(0.8, 0.8), "no higher Dice than the best one that needs no training in far (0.800; "),
    ],
)
def test_a_higher_mean_is_not_told_as_a_difference_that_was_shown(far, said):
    assert said in domains_text({"domains": {"ID": domain(0.91, 0.9), "far": far}})
