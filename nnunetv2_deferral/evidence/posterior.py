"""The posterior: prior, answers and neighbourhood together, at the voxels where it can matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit

from nnunetv2_deferral.arrays import check_bool
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.answer_tables import NUM_ZONES, AnswerTables, zones
from nnunetv2_deferral.evidence.expected_dice import best_labels, structure_weights
from nnunetv2_deferral.evidence.neighbourhood import SIGMA, neighbour_residuals
from nnunetv2_deferral.evidence.prior import NUM_WEIGHTS, Prior, PriorMap, in_voxels
from nnunetv2_deferral.evidence.structures import Structures
from nnunetv2_deferral.evidence.value import values_of_information
from nnunetv2_deferral.labels import MISSING, unknown_labels

# Beyond this, asking is never worth a question.
CERTAIN = float(logit(0.999))
OWN_EVIDENCE = (0.0, 1.0, 1.0, 0.0)  # (c_0, c_1, c_2, c_3): without the neighbourhood


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The voxels of a case about which experts may be asked: those where a structure's prior is not certain.

    Attributes:
        shape: The shape of the case.
        spacing: Size of a voxel along each axis.
        index: int64 (n,), flat indices, ascending.
        prior: float32 (S, n), logits.
        weights: float64 (S, 2), what a missed and what a false voxel are worth in the mean Dice of the case, see
            :func:`.expected_dice.structure_weights`.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    index: np.ndarray
    prior: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(
        cls,
        prior: PriorMap,
        spacing: Sequence[float],
        structures: Structures,
        *,
        where: np.ndarray | None = None,
        including: np.ndarray | None = None,
    ) -> Candidates:
        """The candidates of a case.

        Args:
            prior: The prior of the case.
            spacing: Size of a voxel along each axis.
            structures: The structures.
            where: Bool of the shape, voxels that may be candidates, as those that are not ignored; None for all.
            including: Bool of the shape, voxels that are candidates in any case; None for none.
        """
        shape = prior.logits.shape[1:]
        uncertain = np.zeros(shape, dtype=bool)
        for logits, scored in zip(prior.logits, structures.scored, strict=True):
            if scored:
                uncertain |= (logits > -CERTAIN) & (logits < CERTAIN)
        if where is not None:
            uncertain &= where
        if including is not None:
            uncertain |= including
        index = np.flatnonzero(uncertain)
        flat = prior.logits.reshape(len(prior.logits), -1)
        return cls(
            shape=shape,
            spacing=tuple(spacing),
            index=index,
            prior=flat[:, index],
            weights=structure_weights(prior, structures),
        )

    def take(self, values: np.ndarray) -> np.ndarray:
        """The values of the candidates, (..., n), from an array that ends with the shape of the case.

        Raises:
            InputError: If the array does not end with the shape of the case.
        """
        if values.shape[values.ndim - len(self.shape) :] != tuple(self.shape):
            raise InputError(f"an array of shape {values.shape} does not end with that of the case, {self.shape}")
        return values.reshape(*values.shape[: values.ndim - len(self.shape)], -1)[..., self.index]

    def put(self, values: np.ndarray, fill: Any) -> np.ndarray:
        """An array that ends with the shape of the case, with `values` (..., n) and `fill` at other voxels."""
        shape = (*values.shape[:-1], int(np.prod(self.shape)))
        # Zeros take no memory where they are not written or read.
        whole = np.full(shape, fill, dtype=values.dtype) if fill else np.zeros(shape, dtype=values.dtype)
        whole[..., self.index] = values
        return whole.reshape(*values.shape[:-1], *self.shape)


class EarlierAnswers(NamedTuple):
    """The questions of earlier rounds about a case, and their answers.

    Attributes:
        voxels: int64 (m,), flat indices of the voxels that were asked about, ascending.
        asked: Bool (J, m), who was asked.
        answers: int16 (J, m), the labels of those who were asked, :data:`.labels.MISSING` where there is none.
    """

    voxels: np.ndarray
    asked: np.ndarray
    answers: np.ndarray

    def only(self, where: np.ndarray) -> EarlierAnswers:
        """The questions about some voxels, bool of the shape of the case."""
        kept = where.reshape(-1)[self.voxels]
        return EarlierAnswers(self.voxels[kept], self.asked[:, kept], self.answers[:, kept])

    def where(self, shape: Sequence[int]) -> np.ndarray:
        """The voxels, bool of the shape of the case."""
        found = np.zeros(shape, dtype=bool)
        found.reshape(-1)[self.voxels] = True
        return found

    def added_to(self, voxels: np.ndarray, answers: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Answers and questions, each (J, n), at ascending voxels (n,) that include all these, together with these."""
        places = np.searchsorted(voxels, self.voxels)
        answers, asked = answers.copy(), asked.copy()
        answers[:, places] = np.where(self.asked, self.answers, answers[:, places])
        asked[:, places] |= self.asked
        return answers, asked


@dataclass(frozen=True, kw_only=True)
class EvidenceModel:
    """All that is needed to read answers as evidence.

    For a case, its :class:`Candidates` are found first (`find_candidates`); all arrays are of these n voxels.

    Attributes:
        structures: The S structures.
        experts: The names of the J experts, in routing order.
        prior: Their priors.
        tables: Their answer tables.
        neighbourhood: (c_0, c_1, c_2, c_3) for each structure after the first round of questions; None for the own
            answers alone, `OWN_EVIDENCE`.
        later: The same after later rounds; None for those of the first.

    Raises:
        InputError: If the parts do not agree on the numbers of structures and experts.

    Example:
        Two answers contradict the model: one from an expert who is mostly right changes the label, the other does not.

        >>> import numpy as np
        >>> from nnunetv2_deferral import EvidenceModel, find_candidates
        >>> model = EvidenceModel.simple({"ann": 0.95, "bob": 0.6})
        >>> foreground = np.array([[0.8, 0.8, 0.8]], dtype=np.float32)
        >>> case = find_candidates(model, np.stack([1 - foreground, foreground]))
        >>> answers = np.zeros((2, 3), dtype=int)
        >>> asked = np.array([[True, False, False], [False, True, False]])  # the third voxel of nobody
        >>> posterior = 1 / (1 + np.exp(-model.posterior(case, answers, asked)))
        >>> posterior.round(2)
        array([[0.17, 0.73, 0.8 ]], dtype=float32)
        >>> model.fuse(np.ones(3, dtype=int), case, answers, asked)
        array([0, 1, 1])
    """

    structures: Structures
    experts: tuple[str, ...]
    prior: Prior
    tables: AnswerTables
    neighbourhood: tuple[tuple[float, ...], ...] | None = None
    later: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        number = len(self.structures.members)
        weights = self.neighbourhood or (OWN_EVIDENCE,) * number
        later = self.later or weights
        rows = {
            "priors": len(self.prior.weights),
            "tables": len(self.tables.joint),
            "neighbourhoods": len(weights),
            "later neighbourhoods": len(later),
        }
        for what, found in rows.items():
            if found != number:
                raise InputError(f"there are {number} structures, but {found} {what}")
        every = (*self.prior.weights, *weights, *later)
        if any(len(row) != NUM_WEIGHTS for row in every) or not np.isfinite(np.array(every)).all():
            raise InputError(f"priors and neighbourhoods must have {NUM_WEIGHTS} finite weights for each structure")
        if not 0 < self.prior.voxel_size < np.inf:
            raise InputError(f"the size of a voxel must be positive and finite, got {self.prior.voxel_size}")
        if self.tables.num_experts != len(self.experts):
            raise InputError(f"there are {len(self.experts)} experts, but the tables are of {self.tables.num_experts}")

    @classmethod
    def simple(cls, right: Mapping[str, float], *, labels: Sequence[int] = (0, 1)) -> EvidenceModel:
        """A model that nothing was fitted for, to try things out.

        Args:
            right: For each expert how often the expert answers right whether a voxel is inside of a structure, in
                (0, 1), independently of the others and of where the voxel is.
            labels: The labels, background first.

        Returns:
            A model whose prior is the probability of the network, in which answers say nothing of other voxels.

        Raises:
            InputError: If there is no expert, or a share is not in (0, 1).
        """
        if not right or not all(0 < share < 1 for share in right.values()):
            raise InputError(f"each expert must be right with a probability in (0, 1), got {dict(right)}")
        structures = Structures(tuple(labels))
        number = len(structures.members)
        digits = np.arange(1 << len(right))[:, None] >> np.arange(len(right))[::-1] & 1  # as in pattern_of
        shares = np.array([*right.values()])
        of_truths = [np.where(digits == truth, shares, 1 - shares).prod(1) for truth in (0, 1)]
        unchanged = (0.0, 1.0, *[0.0] * (NUM_WEIGHTS - 2))
        return cls(
            structures=structures,
            experts=tuple(right),
            prior=Prior((unchanged,) * number, voxel_size=1.0),
            tables=AnswerTables(np.tile(np.stack(of_truths), (number, NUM_ZONES, 1, 1))),
        )

    def prior_of(self, softmax: np.ndarray, spacing: Sequence[float]) -> PriorMap:
        """The prior of a case, from the model's probabilities of classes or regions, float32 (K, *shape)."""
        return self.prior.map_of(self.structures.probabilities(softmax), spacing)

    def in_round(self, number: int) -> EvidenceModel:
        """The model for the answers of rounds 1 to `number`."""
        return self if number == 1 or self.later is None else replace(self, neighbourhood=self.later)

    def features(self, case: Candidates, answers: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """1, L, llr and S of each candidate.

        Args:
            case: The candidates.
            answers: Integer (J, n), the experts' labels, :data:`MISSING` where an expert has none.
            asked: Bool (J, n), who was asked; the labels of others are ignored.

        Returns:
            float32 (S, 4, n). An expert who was asked and has no label does not count.

        Raises:
            InputError: If the candidates are not of these structures or their prior is NaN, `answers` are not integers
                or `asked` not bool of shape (J, n), or an expert who was asked gave a label that is none of these.
        """
        self._check(case, answers, asked)
        answered = asked & (answers != MISSING)
        anyone = answered.any(0)
        found = np.ones((len(case.prior), 4, case.index.size), dtype=np.float32)
        found[:, 1] = case.prior
        sigmas = in_voxels(SIGMA * self.prior.voxel_size, case.shape, case.spacing)
        inside = self.structures.contain(answers)
        for structure, prior in enumerate(case.prior):
            evidence = self.tables.log_ratios(structure, zones(prior), inside[structure], answered)
            found[structure, 2] = evidence
            found[structure, 3] = neighbour_residuals(
                case.shape, case.index, anyone, expit(prior), expit(prior + evidence), sigmas
            )
        return found

    def posterior(self, case: Candidates, answers: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """The logits of being inside each structure, float32 (S, n); arguments and errors as for :meth:`features`.

        The prior where nobody answered and no answered voxel is near.
        """
        features = self.features(case, answers, asked)
        if self.neighbourhood is None:
            return np.asarray(features[:, 1] + features[:, 2])
        known = (asked & (answers != MISSING)).any(0) | (features[:, 3] != 0)
        found = np.einsum("sf,sfn->sn", np.array(self.neighbourhood, dtype=np.float32), features)
        return np.where(known, found, case.prior)

    def values(
        self,
        case: Candidates,
        answers: np.ndarray,
        asked: np.ndarray,
        *,
        most: int = 1,
        available: np.ndarray | None = None,
    ) -> np.ndarray:
        """The expected gain in the mean Dice of the case from asking each expert next, float32 (J, n).

        Args:
            case: The candidates.
            answers: See :meth:`features`.
            asked: See :meth:`features`.
            most: The number of experts that may be asked about a voxel in all.
            available: Bool (J,), who can be asked; None for all.

        Raises:
            InputError: See :meth:`features`; also if `most` is below 1, or `available` is not bool of shape (J,).
        """
        self._check(case, answers, asked)
        if most < 1:
            raise InputError(f"the number of experts of a voxel must be at least 1, got {most}")
        if available is not None:
            check_bool(available=available)
            if available.shape != (len(self.experts),):
                raise InputError(f"available must have shape {(len(self.experts),)} (J,), got {available.shape}")
        posterior = self.posterior(case, answers, asked) if asked.any() else case.prior
        return values_of_information(
            self.tables,
            probability=expit(posterior),
            zone=np.stack([zones(prior) for prior in case.prior]),
            inside=self.structures.contain(answers),
            answered=asked & (answers != MISSING),
            asked=asked,
            weights=case.weights,
            most=most,
            available=available,
        )

    def fuse(self, model: np.ndarray, case: Candidates, answers: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """The labels of the candidates: the best for Dice where somebody answered, the model's elsewhere.

        A voxel is best labelled as inside from a probability somewhat below 1/2 on, see
        :func:`.expected_dice.best_labels`.

        Args:
            model: Integer (n,), the model's labels.
            case: The candidates.
            answers: See :meth:`features`.
            asked: See :meth:`features`.

        Returns:
            (n,), in the dtype of `model`.

        Raises:
            InputError: See :meth:`features`; also if `model` does not consist of integers of shape (n,).
        """
        if model.dtype.kind not in "biu" or model.shape != case.index.shape:
            raise InputError(
                f"the model's labels must be integers of shape {case.index.shape} (n,), got {model.dtype} {model.shape}"
            )
        labels = best_labels(self.structures, self.posterior(case, answers, asked), case.weights)
        answered = (asked & (answers != MISSING)).any(0)
        return np.where(answered, labels, model).astype(model.dtype)

    def _check(self, case: Candidates, answers: np.ndarray, asked: np.ndarray) -> None:
        """Refuse arrays that do not belong together or to this model, see :meth:`features`."""
        voxels, structures = case.index.size, len(self.structures.members)
        if case.prior.shape != (structures, voxels) or np.isnan(case.prior).any():
            raise InputError(
                f"the prior of the candidates must be numbers of shape {(structures, voxels)} (S, n), got shape "
                f"{case.prior.shape}{' with NaN' if np.isnan(case.prior).any() else ''}"
            )
        check_bool(asked=asked)
        for what, array in (("answers", answers), ("asked", asked)):
            if array.shape != (expected := (len(self.experts), voxels)):
                raise InputError(f"{what} must have shape {expected} (J, n), got {array.shape}")
        if answers.dtype.kind not in "iu":
            raise InputError(f"answers must be integers, got dtype {answers.dtype}")
        if unknown := unknown_labels(answers[asked], (*self.structures.labels, MISSING)):
            raise InputError(f"answers have the labels {unknown}, but there are {list(self.structures.labels)}")

    def to_dict(self) -> dict[str, Any]:
        """The model as JSON-ready data; the inverse of :meth:`from_dict`."""
        return {
            "structures": self.structures.to_dict(),
            "experts": list(self.experts),
            "prior": {
                "weights": [list(row) for row in self.prior.weights],
                "voxel_size": self.prior.voxel_size,
            },
            "tables": self.tables.joint.tolist(),
            "neighbourhood": None if self.neighbourhood is None else [list(row) for row in self.neighbourhood],
            "later": None if self.later is None else [list(row) for row in self.later],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EvidenceModel:
        """Restore a model from the data of :meth:`to_dict`."""
        prior, weights, later = content["prior"], content["neighbourhood"], content["later"]
        return cls(
            structures=Structures.from_dict(content["structures"]),
            experts=tuple(content["experts"]),
            prior=Prior(tuple(tuple(map(float, row)) for row in prior["weights"]), float(prior["voxel_size"])),
            tables=AnswerTables(np.array(content["tables"], dtype=np.float64)),
            neighbourhood=None if weights is None else tuple(tuple(map(float, row)) for row in weights),
            later=None if later is None else tuple(tuple(map(float, row)) for row in later),
        )
