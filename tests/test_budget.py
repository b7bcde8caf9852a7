"""A budget is never exceeded, and what is deferred within it has the highest scores."""

import numpy as np
import pytest
import torch

from nnunetv2_deferral.budget import ENVIRONMENT, budget_of_environment, route_within_budget
from nnunetv2_deferral.rules import OneVsAllRule, SoftmaxRule
from nnunetv2_deferral.settings import resolve_settings


@pytest.mark.parametrize("budget", [0.0, 0.001, 0.01, 0.123, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_budget_is_never_exceeded_and_takes_the_highest_scores(budget, seed):
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 12, 3))
    score = np.round(generator.random(shape, dtype=np.float32), 1)  # with ties
    expert = generator.integers(1, 4, shape).astype(np.uint8)
    worthwhile = generator.random(shape) < 0.7
    route = route_within_budget(score, expert, worthwhile, budget)
    deferred = route > 0
    assert deferred.sum() == min(int(budget * score.size), worthwhile.sum())
    assert np.array_equal(route[deferred], expert[deferred])
    assert not (deferred & ~worthwhile).any()
    kept = worthwhile & ~deferred
    assert score[deferred].min(initial=1) >= score[kept].max(initial=0)


def test_of_equal_scores_the_same_voxels_are_taken_every_time():
    same = np.full((4, 5), 0.5, np.float32)
    route = route_within_budget(same, np.ones((4, 5), np.uint8), np.ones((4, 5), bool), 0.2)
    assert np.flatnonzero(route).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("budget", [-0.1, 1.5, float("nan")])
def test_what_is_no_share_is_no_budget(budget):
    with pytest.raises(ValueError, match=r"share of the voxels in \[0, 1\]"):
        route_within_budget(np.zeros(3), np.ones(3, np.uint8), np.ones(3, bool), budget)
    with pytest.raises(ValueError, match="deferral settings: budget"):
        resolve_settings({"budget": budget})


def test_the_environment_asks_for_a_budget(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert budget_of_environment() is None
    monkeypatch.setenv(ENVIRONMENT, "0.02")
    assert budget_of_environment() == 0.02
    for wrong in ("2", "-1", "one percent"):
        monkeypatch.setenv(ENVIRONMENT, wrong)
        with pytest.raises(ValueError, match=f"{ENVIRONMENT} is a share .* got '{wrong}'"):
            budget_of_environment()


def test_one_vs_all_finds_only_those_voxels_worthwhile_where_an_expert_is_likelier_right():
    probabilities = torch.tensor([[0.9, 0.5], [0.8, 0.6]])
    assert OneVsAllRule((0.3,), (True,)).worthwhile(probabilities, axis=0).tolist() == [False, True]
    assert SoftmaxRule((True,)).worthwhile(probabilities, axis=0).tolist() == [True, True]
