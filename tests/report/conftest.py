"""Summaries of made-up evaluations."""

import pickle

import numpy as np
import pytest

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.decision.calibrators import Temperature
from nnunetv2_deferral.evaluation.evaluation import Evaluation
from nnunetv2_deferral.labels import MISSING


def make_case(name, seed, *, num_experts, rate, with_probabilities, empty, labels, with_routing=False):
    generator = np.random.default_rng(seed)
    reference = np.zeros((3, 16, 16), np.int64)
    if not empty:
        reference[:, 3:12, 4:12] = 1
        if labels > 1:
            reference[:, 6:9, 6:9] = 2
    model = np.where(generator.random(reference.shape) < 0.1, 0 if empty else 1 - np.minimum(reference, 1), reference)
    experts = np.stack([reference] * num_experts)
    flipped = generator.random(experts.shape) < 0.03
    experts = np.where(flipped & (not empty), 1 - np.minimum(experts, 1), experts)
    experts[:, 0, :2] = MISSING
    probability = np.clip(0.6 * (model != reference) + 0.3 * generator.random(reference.shape), 0, 1)
    asked = generator.integers(1, num_experts + 1, reference.shape)
    threshold = np.quantile(probability, 1 - rate) if rate < 1 else -1
    route = np.where((probability > threshold) & (rate > 0), asked, 0).astype(np.uint8)
    foreground = np.clip((model > 0) * 0.8 + 0.1 * generator.random(model.shape), 0, 1)
    right = np.concatenate((model[None], experts)) == reference
    routing = np.clip(np.where(right, 0.95, 0.8) + 0.2 * (generator.random(right.shape) - 0.5), 0, 1)
    prediction = PredictedCase(
        name,
        model=model,
        route=route,
        probability=probability.astype(np.float32),
        gain=(probability / 100).astype(np.float32),
        expert=asked,
        properties={"spacing": (2.5, 0.7, 0.7)},
        softmax=np.stack([1 - foreground, foreground]).astype(np.float32) if with_probabilities else None,
        routing=routing.astype(np.float32) if with_routing else None,
    )
    return EvaluatedCase(prediction=prediction, reference=reference, answers=experts)


@pytest.fixture(scope="session")
def summaries():
    """The summaries that were made, pickled, by what they were made of."""
    return {}


@pytest.fixture
def make_summary(summaries):
    """A function that evaluates made-up cases, of which about a tenth of the voxels are wrong, as the command does."""

    def copy_of(**options):
        key = repr(sorted(options.items()))
        if key not in summaries:
            summaries[key] = pickle.dumps(make(**options))
        return pickle.loads(summaries[key])

    def make(
        *, num_cases=4, experts=("ann", "bob"), rate=0.1, with_probabilities=True, empty=False, labels=1, groups=None,
        with_routing=False, calibrated=False,
    ):  # fmt: skip
        maps = [Temperature(1.5)] * (len(experts) + 1) if calibrated else None
        evaluation = Evaluation(tuple(range(1, labels + 1)), experts, calibration=maps)
        for number in range(num_cases):
            evaluation.update(
                make_case(
                    f"case_{number}", number, num_experts=len(experts), rate=rate, empty=empty, labels=labels,
                    with_probabilities=with_probabilities, with_routing=with_routing,
                )
            )  # fmt: skip
        return evaluation.summary(num_resamples=100, groups=groups) | {
            "experts": {"experts": list(experts), "seed": 0, "boundary_width": 2},
            "model_identity": {
                "dataset": "Dataset701_Small",
                "plans": "nnUNetPlans",
                "configuration": "3d_fullres",
                "trainer": "nnUNetTrainerDeferral",
                "experts": list(experts),
            },
            "versions": {"nnunetv2_deferral": "0.1.0", "nnunetv2": "2.8.1"},
        }

    return copy_of
