"""Scores of systems that ask within a budget and read the answers as evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.decision.area import SMALLEST_AREA
from nnunetv2_deferral.evaluation.overlap import Region, overlap, region_mask
from nnunetv2_deferral.evidence.posterior import Candidates, EvidenceModel, dice_weights
from nnunetv2_deferral.evidence.prior import Prior
from nnunetv2_deferral.evidence.structures import Structures


@dataclass(frozen=True, kw_only=True)
class AnsweredCase:
    """The candidates of a case with everybody's labels there, and the model's counts over the whole case.

    Attributes:
        name: The case identifier.
        candidates: The n voxels that may be asked about, without ignored ones.
        answers: int16 (J, n), the experts' labels, :data:`.labels.MISSING` where an expert has none.
        model: int16 (n,), the model's labels.
        truth: int16 (n,), the reference's.
        num_voxels: The number of valid voxels of the case.
        counts: int64 (3, R), for each region the model's true positives, its voxels and the reference's.
        regions: The R labels or regions that are scored.
    """

    name: str
    candidates: Candidates
    answers: np.ndarray
    model: np.ndarray
    truth: np.ndarray
    num_voxels: int
    counts: np.ndarray
    regions: tuple[Region, ...]

    @classmethod
    def of(
        cls,
        case: EvaluatedCase,
        structures: Structures,
        prior: Prior,
        regions: Sequence[Region],
        *,
        including: np.ndarray | None = None,
    ) -> AnsweredCase:
        """Keep what can matter of a case with saved probabilities.

        Args:
            case: The case.
            structures: The structures.
            prior: Their fitted priors.
            regions: The labels or regions that are scored.
            including: Bool of shape S, voxels that are kept in any case unless they are ignored.
        """
        inside = structures.probabilities(case.prediction.softmax)
        logits = prior.logits(inside, case.prediction.spacing)
        logits[:, ~case.valid] = -np.inf  # ignored voxels are no candidates
        areas = inside.reshape(len(inside), -1).sum(1, dtype=np.float64)
        found = Candidates.of(
            logits,
            case.prediction.spacing,
            structures,
            dice_weights(areas, structures.scored, SMALLEST_AREA),
            including=None if including is None else including & case.valid,
        )
        scores = overlap(case.reference, case.model, regions, case.valid).values()
        return cls(
            name=case.name,
            candidates=found,
            answers=found.take(case.answers).astype(np.int16),
            model=found.take(case.model).astype(np.int16),
            truth=found.take(case.reference).astype(np.int16),
            num_voxels=int(np.count_nonzero(case.valid)),
            counts=np.array([[each[key] for each in scores] for key in ("TP", "n_pred", "n_ref")], dtype=np.int64),
            regions=tuple(regions),
        )

    def dice(self, labels: np.ndarray) -> np.ndarray:
        """Dice of each region, float64 (R,), if the candidates' labels are these; NaN where there is no such region."""
        found = np.full(len(self.regions), np.nan)
        for place, region in enumerate(self.regions):
            truth, before, after = (region_mask(each, region) for each in (self.truth, self.model, labels))
            hits, predicted, reference = self.counts[:, place]
            hits += np.count_nonzero(truth & after) - np.count_nonzero(truth & before)
            predicted += np.count_nonzero(after) - np.count_nonzero(before)
            if predicted + reference:
                found[place] = 2 * hits / (predicted + reference)
        return found

    def fused(self, model: EvidenceModel, asked: np.ndarray) -> np.ndarray:
        """The system's labels of the candidates, int16 (n,), after these questions, bool (J, n)."""
        return model.fuse(self.model, self.candidates, self.answers, asked)
