r"""The value of information: the expected gain in Dice of asking an expert next.

Of a structure, a missed voxel is worth M in the mean Dice of a case, and a false one F. With the current probability q
of being inside and the answers b that are already known, a voxel is labelled y = [q > t], with the threshold t of
:func:`.expected_dice.thresholds`. If the experts in T answer a, its probability is

.. math:: q_a = \frac{q P(a \mid 1, b)}{q P(a \mid 1, b) + (1 - q) P(a \mid 0, b)}

and it is labelled y_a = [q_a > t], which is expected to add

.. math:: \sum_a (y_a - y) \, (q P(a \mid 1, b) M - (1 - q) P(a \mid 0, b) F)

This is 0 where no answer could change the label, and counts as 0 where it is negative, since t looks ahead to a better
mask than M and F. An expert is valued by the best set T of experts left, the expert included, per question: two answers
may turn a label that one cannot.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from nnunetv2_deferral.evidence.answer_tables import AnswerTables, by_combination, pattern_of
from nnunetv2_deferral.evidence.expected_dice import thresholds


def values_of_information(
    tables: AnswerTables,
    *,
    probability: np.ndarray,
    zone: np.ndarray,
    inside: np.ndarray,
    answered: np.ndarray,
    asked: np.ndarray,
    weights: np.ndarray,
    most: int,
    available: np.ndarray | None = None,
) -> np.ndarray:
    """The value of asking each expert next, per question.

    Args:
        tables: The answer tables of S structures and J experts.
        probability: Real (S, n), q with all that is known.
        zone: int (S, n), the zones of the prior.
        inside: Bool (S, J, n), whether the experts' labels are inside; ignored where not answered.
        answered: Bool (J, n), whose answers are known.
        asked: Bool (J, n), who was asked, whether an answer came or not.
        weights: float (S, 2), M and F of each structure; 0 for one without Dice.
        most: The number k of experts that may be asked about a voxel in all.
        available: Bool (J,), who can be asked; None for all.

    Returns:
        float32 (J, n), in units of the weights, not negative; 0 for experts who were asked, cannot be asked, or whose
        answer, alone or with others, would change no label.
    """
    experts, voxels = asked.shape
    can = np.ones(experts, dtype=bool) if available is None else available
    found = np.zeros((experts, voxels), dtype=np.float32)
    weighted, least = np.flatnonzero(weights.any(1)), thresholds(weights)
    done = asked.sum(0)
    for knowing, together in by_combination(answered):
        for questioned, place in by_combination(asked[:, together]):
            where = together[place]
            left = [expert for expert in range(experts) if can[expert] and expert not in questioned]
            room = min(most - int(done[where[0]]), len(left))
            for size in range(1, room + 1):
                for chosen in combinations(left, size):
                    gain = np.zeros(where.size)
                    for structure in weighted:
                        gain += _gain(
                            tables,
                            int(structure),
                            weights[structure],
                            float(least[structure]),
                            probability[structure, where].astype(np.float64),
                            zone[structure, where],
                            pattern_of(inside[structure][list(knowing)][:, where]),
                            knowing,
                            chosen,
                        )
                    gain /= size
                    for expert in chosen:
                        found[expert, where] = np.maximum(found[expert, where], gain)
    # Rounding may leave a trace where no answer changes the label.
    smallest = 1e-9 * float(weights.max(initial=0))
    found[found <= smallest] = 0
    return found


def _gain(
    tables: AnswerTables,
    structure: int,
    weights: np.ndarray,
    threshold: float,
    probability: np.ndarray,
    zone: np.ndarray,
    known: np.ndarray,
    knowing: tuple[int, ...],
    chosen: tuple[int, ...],
) -> np.ndarray:
    """The expected gain from asking the chosen experts about one structure, (n,)."""
    joint = tables.of((*knowing, *chosen))[structure]
    likelihood = joint.reshape(*joint.shape[:2], 1 << len(knowing), 1 << len(chosen))
    likelihood = likelihood / likelihood.sum(-1, keepdims=True)
    rows = likelihood.transpose(3, 1, 0, 2).reshape(1 << len(chosen), 2, -1)  # of zones and known answers
    row = zone * np.intp(1 << len(knowing)) + known
    labelled, found = probability > threshold, np.zeros(probability.shape)
    for outside_row, inside_row in rows:  # one answer at a time: arrays of all are large, and slow along a short axis
        inside, outside = probability * inside_row[row], (1 - probability) * outside_row[row]
        turned = np.subtract(inside * (1 - threshold) > outside * threshold, labelled, dtype=np.int8)
        found += turned * (weights[0] * inside - weights[1] * outside)
    return found
