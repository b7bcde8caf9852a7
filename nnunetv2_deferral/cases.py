"""One case: the model's prediction, and the reference and answers for its evaluation. Independent of file formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import Candidates, EarlierAnswers, EvidenceModel
from nnunetv2_deferral.evidence.prior import LARGEST_LOGIT, PriorMap
from nnunetv2_deferral.fusion import asked_experts, fuse_masks
from nnunetv2_deferral.geometry import Orientation, orientation_of
from nnunetv2_deferral.labels import MISSING

_ROUNDING = 1e-3  # of probabilities in half precision
_MOST_EXPERTS = np.iinfo(np.uint8).max


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An array in a file.

    Attributes:
        file: The file, for messages.
        read: Reads the array; raises an InputError that names the file if reading fails.
    """

    file: Path
    read: Callable[[], Any]


class PredictedCase:
    """The prediction for a case: the model's mask and the deferral maps.

    Each array is checked, and read if it is a :class:`Stored`, on first access. An array that is missing or has the
    wrong shape or values raises an :exc:`InputError` that names its file, or the case and the array.

    Example:
        >>> case = PredictedCase("case_1", model=np.zeros((1, 2, 2), int), route=np.array([[[0, 1], [2, 0]]]))
        >>> case.route.dtype, case.spacing, case.has("gain")
        (dtype('uint8'), (1.0, 1.0, 1.0), False)
    """

    def __init__(
        self,
        name: str,
        *,
        model: np.ndarray | Stored,
        route: np.ndarray | Stored | None = None,
        probability: np.ndarray | Stored | None = None,
        expert: np.ndarray | Stored | None = None,
        gain: np.ndarray | Stored | None = None,
        gains: np.ndarray | Stored | None = None,
        aggregated: np.ndarray | Stored | None = None,
        softmax: np.ndarray | Stored | None = None,
        routing: np.ndarray | Stored | None = None,
        prior: PriorMap | Stored | None = None,
        answered: EarlierAnswers | Stored | None = None,
        disagreement: np.ndarray | Stored | None = None,
        properties: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
        num_experts: int | None = None,
        mask_of: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """Describe a case; shapes and dtypes of the arrays are those of the properties of this class.

        Args:
            name: The case identifier.
            model: The model's mask.
            route: The route map. With the next three: `**decision.maps._asdict()`.
            probability: The probability map.
            expert: The expert map.
            gain: The gain map.
            gains: The gains of all experts.
            aggregated: The map of the aggregated predictor.
            softmax: The model's probabilities.
            routing: The routing probabilities.
            prior: The prior of the evidence model.
            answered: The questions and answers of earlier rounds.
            disagreement: The probability that raters disagree.
            properties: nnU-Net's properties of the mask, or a function that reads them; None for voxels of size 1.
            num_experts: The number J of experts; None if it is unknown.
            mask_of: Gives the label map of the model's probabilities, with which the mask is compared when they are
                read; None if they may differ.
        """
        self.name = name
        self.num_experts = num_experts
        self._mask_of = mask_of
        self._properties = properties
        self._sources: dict[str, Any] = {
            "model": model,
            "route": route,
            "probability": probability,
            "expert": expert,
            "gain": gain,
            "gains": gains,
            "aggregated": aggregated,
            "softmax": softmax,
            "routing": routing,
            "prior": prior,
            "answered": answered,
            "disagreement": disagreement,
        }

    def has(self, what: str) -> bool:
        """Whether the array of that name exists; only `"model"` and `"route"` always do."""
        source = self._sources[what]
        return source.file.is_file() if isinstance(source, Stored) else source is not None

    def combined(self, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> PredictedCase:
        """A copy of the case with other routing probabilities, if it has any that are stored.

        Args:
            combine: Given routing probabilities and the model's, as those of this class, what takes the place of the
                former.
        """
        found, stored = self.without(), self._sources["routing"]
        if isinstance(stored, Stored):

            def read() -> np.ndarray:  # through a further copy, which does not keep what it read
                return combine(self.without().routing, found.softmax)

            found._sources["routing"] = replace(stored, read=read)
        return found

    def without(self, *names: str) -> PredictedCase:
        """A copy of the case without these arrays."""
        kept: dict[str, Any] = {what: None if what in names else source for what, source in self._sources.items()}
        return PredictedCase(
            self.name, **kept, properties=self._properties, num_experts=self.num_experts, mask_of=self._mask_of
        )

    @cached_property
    def model(self) -> np.ndarray:
        """Integer of shape S, (Z, Y, X) or (1, Y, X) in files: the model's label map."""
        return self._read("model")

    @cached_property
    def properties(self) -> dict[str, Any]:
        """nnU-Net's properties of the mask, including its geometry."""
        found = self._properties() if callable(self._properties) else self._properties
        return {"spacing": [1.0] * self.model.ndim} if found is None else dict(found)

    @cached_property
    def spacing(self) -> tuple[float, ...]:
        """Size of a voxel along each axis of S, in mm, or 1 pixel for formats without a physical size."""
        return tuple(float(size) for size in self.properties["spacing"])

    @cached_property
    def orientation(self) -> Orientation:
        """Orientation of the mask in the patient; the mask must have three axes.

        Raises:
            InputError: Naming the mask, if the directions of its axes are not linearly independent.
        """
        try:
            return orientation_of(self.properties, self.model.shape)
        except InputError as error:
            raise InputError(f"{self._named('model')}: {error}") from error

    @cached_property
    def route(self) -> np.ndarray:
        """uint8 of shape S: 0 the model, j expert j."""
        return self._experts("route", 0)

    @cached_property
    def expert(self) -> np.ndarray:
        """uint8 of shape S in [1, J]: whom to ask about a voxel if it is deferred."""
        return self._experts("expert", 1)

    @cached_property
    def probability(self) -> np.ndarray:
        """float32 of shape S in [0, 1]: the objective's deferral score."""
        return self._within("probability", self._map("probability"), 1)

    @cached_property
    def gain(self) -> np.ndarray:
        """float32 of shape S, not negative: expected gain in the Dice of the case from asking `expert`."""
        return self._within("gain", self._map("gain"), np.inf)

    @cached_property
    def gains(self) -> np.ndarray:
        """float32 (J, *S): expected gain from asking each expert, at most 0 where it would not help."""
        gains = self._read("gains")
        experts = gains.shape[:1] if self.num_experts is None else (self.num_experts,)
        self._check_shape("gains", gains, (*experts, *self.model.shape))
        return gains

    @cached_property
    def aggregated(self) -> np.ndarray:
        """float32 of shape S in [0, 1]: the probability of the aggregated predictor that the voxel is deferred."""
        return self._within("aggregated", self._map("aggregated"), 1)

    @cached_property
    def disagreement(self) -> np.ndarray | None:
        """float32 of shape S in [0, 1]: the probability that raters disagree, the highest of all structures.

        None if the model did not learn it.
        """
        if self._sources["disagreement"] is None:
            return None
        return self._within("disagreement", self._map("disagreement"), 1)

    @cached_property
    def softmax(self) -> np.ndarray:
        """float32 (K, *S): the model's probabilities of classes, or of regions with region-based training."""
        softmax = self._read("softmax")
        self._check_shape("softmax", softmax, (*softmax.shape[:1], *self.model.shape))
        self._within("softmax", softmax, 1)
        if self._mask_of is not None:
            self._check_mask(softmax, self._mask_of)
        return softmax

    @cached_property
    def routing(self) -> np.ndarray:
        """float32 (J + 1, *S): the routing probabilities before calibration, NaN where nothing was predicted."""
        routing = self._read("routing")
        heads = routing.shape[:1] if self.num_experts is None else (self.num_experts + 1,)
        self._check_shape("routing", routing, (*heads, *self.model.shape))
        self._within("routing", np.nan_to_num(routing, nan=0.0), 1)
        return routing

    @cached_property
    def prior(self) -> PriorMap:
        """The prior of the evidence model."""
        logits, areas = self._parts("prior")
        self._check_shape("prior", logits, (*logits.shape[:1], *self.model.shape))
        self._check_shape("prior", areas, logits.shape[:1])
        self._within("prior", areas, np.inf)
        return PriorMap(self._within("prior", logits, LARGEST_LOGIT, -LARGEST_LOGIT), areas)

    @cached_property
    def answered(self) -> EarlierAnswers | None:
        """The questions and answers of earlier rounds; None in the first."""
        if not self.has("answered"):
            return None
        voxels, asked, answers = self._parts("answered")
        experts = asked.shape[:1] if self.num_experts is None else (self.num_experts,)
        for array in (asked, answers):
            self._check_shape("answered", array, (*experts, voxels.size))
        if voxels.size and not (voxels[0] >= 0 and voxels[-1] < self.model.size and (np.diff(voxels) > 0).all()):
            raise InputError(f"{self._named('answered')} contains indices that are not ascending voxels of the case")
        return EarlierAnswers(voxels.astype(np.int64), asked.astype(bool), answers.astype(np.int16))

    @cached_property
    def current(self) -> np.ndarray:
        """The model's label map with the answers of earlier rounds in place of its labels; in the first, the model's.

        Of several answers about a voxel, that of the expert with the highest number counts.
        """
        if self.answered is None:
            return self.model
        labels = self.model.copy()
        for asked, answers in zip(self.answered.asked, self.answered.answers, strict=True):
            given = asked & (answers != MISSING)
            labels.reshape(-1)[self.answered.voxels[given]] = answers[given]
        return labels

    @property
    def predicted(self) -> np.ndarray:
        """Bool of shape S: the voxels with predicted routing probabilities."""
        return ~np.isnan(self.routing[0])

    def _read(self, what: str) -> np.ndarray:
        source = self._sources[what]
        if source is None:
            raise InputError(f"{self._named(what)} is missing")
        return source.read() if isinstance(source, Stored) else np.asarray(source)

    def _parts(self, what: str) -> tuple[np.ndarray, ...]:
        """The arrays of something that consists of several."""
        source = self._sources[what]
        if source is None:
            raise InputError(f"{self._named(what)} is missing")
        return tuple(map(np.asarray, source.read() if isinstance(source, Stored) else source))

    def _check_mask(self, softmax: np.ndarray, mask_of: Callable[[np.ndarray], np.ndarray]) -> None:
        try:
            number = np.count_nonzero(mask_of(softmax) != self.model)
        except InputError as error:
            raise InputError(f"{self._named('softmax')}: {error}") from error
        if number:
            raise InputError(
                f"{self._named('softmax')} does not belong to {self._named('model')}: {number} of {self.model.size} "
                "voxels have a different label. Was the mask changed, or were the probabilities left by an earlier "
                "prediction? Predict with --save_probabilities, or validate with --val --npz"
            )

    def _map(self, what: str) -> np.ndarray:
        found = self._read(what)
        self._check_shape(what, found, self.model.shape)
        return found

    def _within(self, what: str, values: np.ndarray, highest: float, lowest: float = 0) -> np.ndarray:
        """The values, if they lie in [lowest, highest] up to rounding and are finite."""
        for value in (values.min(initial=lowest), values.max(initial=lowest)):
            if not lowest - _ROUNDING <= value <= highest + _ROUNDING or np.isinf(value):  # false for NaN
                raise InputError(f"{self._named(what)} contains {value:g}, but must lie in [{lowest:g}, {highest:g}]")
        return values

    def _experts(self, what: str, lowest: int) -> np.ndarray:
        numbers = self._within(what, self._map(what), self.num_experts or _MOST_EXPERTS, lowest)
        whole = numbers.astype(np.uint8, copy=False)
        if not np.array_equal(whole, numbers):
            raise InputError(f"{self._named(what)} contains numbers that are not whole")
        return whole

    def _check_shape(self, what: str, found: np.ndarray, expected: tuple[int, ...]) -> None:
        if found.shape != expected:
            raise InputError(f"{self._named(what)} has shape {found.shape} instead of {expected}")

    def _named(self, what: str) -> str:
        source = self._sources[what]
        return str(source.file) if isinstance(source, Stored) else f"case {self.name}: array {what}"


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedCase:
    """A predicted case with its reference and the experts' answers.

    Attributes:
        prediction: The model's prediction.
        reference: Reference label map, integer of shape S.
        answers: The experts' label maps, integer (J, *S), :data:`MISSING` where an expert has no label.
        ignore_label: The reference label whose voxels are excluded from evaluation, or None.
        fold_masks: The masks predicted by single folds, integer (F, *S), or None.
        mutual_information: That of the folds' probabilities, float32 of shape S in [0, 1], or None.
        evidence: How answers are read as evidence; None if an answer replaces the model's label.
    """

    prediction: PredictedCase
    reference: np.ndarray
    answers: np.ndarray
    ignore_label: int | None = None
    fold_masks: np.ndarray | None = None
    mutual_information: np.ndarray | None = None
    evidence: EvidenceModel | None = None

    @property
    def name(self) -> str:
        """The case identifier."""
        return self.prediction.name

    @property
    def model(self) -> np.ndarray:
        """The model's label map, integer of shape S."""
        return self.prediction.model

    @property
    def route(self) -> np.ndarray:
        """uint8 of shape S: 0 the model, j expert j."""
        return self.prediction.route

    @cached_property
    def replaced(self) -> np.ndarray:
        """The labels of the system if answers replace labels, see :attr:`PredictedCase.current`."""
        return fuse_masks(self.prediction.current, self.answers, self.route)

    @cached_property
    def system(self) -> np.ndarray:
        """The labels of the system of model and experts, of the shape and dtype of the model's label map."""
        if self.evidence is None:
            return self.replaced
        return fuse_evidence(self.prediction, self.answers, self.evidence)

    @cached_property
    def before(self) -> np.ndarray:
        """The labels of the system before this round of questions: in the first, the model's."""
        if self.prediction.answered is None or self.evidence is None:
            return self.prediction.current
        return fuse_evidence(self.prediction, self.answers, self.evidence, np.zeros_like(self.route))

    @cached_property
    def valid(self) -> np.ndarray:
        """Bool of shape S: all voxels except ignored ones."""
        if self.ignore_label is None:
            return np.ones(self.reference.shape, dtype=bool)
        return self.reference != self.ignore_label

    @property
    def labels(self) -> np.ndarray:
        """The label maps of the model and the experts, integer (J + 1, *S)."""
        return np.concatenate((self.model[None], self.answers))

    @property
    def right(self) -> np.ndarray:
        """Bool (J + 1, *S): whether the model and each expert are right."""
        return self.labels == self.reference

    @property
    def known(self) -> np.ndarray:
        """Bool (J + 1, *S): where :attr:`right` is meaningful, at valid voxels with a label."""
        return self.valid & (self.labels != MISSING)


def fuse_evidence(
    prediction: PredictedCase, answers: np.ndarray, model: EvidenceModel, route: np.ndarray | None = None
) -> np.ndarray:
    """The labels of model and experts if answers are read as evidence.

    Args:
        prediction: A case with route and prior.
        answers: The experts' label maps, integer (J, *S), :data:`MISSING` where an expert has no label.
        model: The evidence model.
        route: Another route than the case's, uint8 of shape S.

    Returns:
        Of the shape and dtype of the model's label map, which is kept where nobody answered.
    """
    route = prediction.route if route is None else route
    earlier = prediction.answered
    wanted = route > 0  # regions may include voxels about which the model is certain
    if earlier is not None:
        wanted |= earlier.where(route.shape)
    case = Candidates.of(prediction.prior, prediction.spacing, model.structures, including=wanted)
    asked, given = asked_experts(case.take(route), len(answers)), case.take(answers)
    if earlier is not None:
        given, asked = earlier.added_to(case.index, given, asked)
        model = model.in_round(2)
    labels = prediction.model.copy()
    labels.reshape(-1)[case.index] = model.fuse(case.take(labels), case, given, asked)
    return labels
