"""Small cases, each a square that a model draws with errors; of three domains."""

import numpy as np

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase


def make_case(number, errors, *, confident=None):
    """A square that the model draws with this share of errors, most of which the score finds.

    `confident` is the model's probability of its own labels, if it has any.
    """
    generator = np.random.default_rng(number)
    reference = np.zeros((1, 24, 24), dtype=int)
    reference[:, 6:16, 7:17] = 1
    model = np.where(generator.random(reference.shape) < errors, 1 - reference, reference)
    answers = np.stack([np.where(generator.random(reference.shape) < 0.05, 1 - reference, reference)] * 2)
    score = np.clip(0.5 * (model != reference) + 0.4 * generator.random(reference.shape), 0, 1).astype(np.float32)
    right = np.concatenate((model[None], answers)) == reference
    softmax = None if confident is None else np.where(np.stack([1 - model, model]), confident, 1 - confident)
    prediction = PredictedCase(
        f"case_{number}",
        model=model,
        route=(score > 0.45).astype(np.uint8),
        probability=score,
        gain=score,
        expert=np.ones(reference.shape, dtype=np.uint8),
        properties={"spacing": (1.0, 1.0, 1.0)},
        routing=np.where(right, 0.9, 0.6).astype(np.float32),
        softmax=softmax,
    )
    return EvaluatedCase(prediction=prediction, reference=reference, answers=answers)


CASES = [make_case(number, errors) for number, errors in enumerate((0.02, 0.2, 0.03, 0.25, 0.04))]
DOMAINS = ["ID", "far", "ID", "far", "near"]
