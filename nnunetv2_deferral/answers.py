"""The experts' answers to whole cases in an evaluation: raters from disk, simulated experts by seed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.defaults import BOUNDARY_WIDTH
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.expert_sim.profiles import EXPERT_SETS, ExpertProfile, expert_set
from nnunetv2_deferral.expert_sim.simulate import simulate_case
from nnunetv2_deferral.expert_sim.zones import remark_on_band, spacing_in_voxels_of, warn_once
from nnunetv2_deferral.experts import (
    Expert,
    Rater,
    described,
    experts_from_json,
    experts_to_json,
    names_of,
    profiles_of,
    raters_of,
)
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.names import REVIEW_NAME
from nnunetv2_deferral.predictions import PredictionFolder, StockFolder
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.readings import ReadingRules, settled_file
from nnunetv2_deferral.schema import Count, NonNegative, Text, read_validated_json
from nnunetv2_deferral.settings import DeferralSettings

logger = logging.getLogger(__name__)

SIMULATION_NAME = "simulation.json"  # written by nnUNetv2_deferral_simulate_experts to its folder of masks


class _Simulation(TypedDict):
    experts: list[Text | dict[Text, Any]]
    seed: NotRequired[Count]
    boundary_width: NotRequired[Count]
    expert_voxel_mm: NotRequired[NonNegative | None]


@dataclass(frozen=True, kw_only=True)
class ExpertAnswers:
    """The J experts of an evaluation, and where their answers come from.

    Attributes:
        experts: In routing order.
        label_values: All labels including background, without the ignore label.
        ignore_label: The ignore label or None.
        masks: The raters' masks; None if there is no rater.
        seed: Seed of the simulated experts; together with the names of case and expert it determines their answers.
        boundary_width: Width in voxels of the band in which a simulated expert's boundary accuracy holds.
        expert_voxel_mm: Edge of these voxels; None for those of the image.

    Raises:
        InputError: If the masks are not those of the raters among `experts`, in the same order.
    """

    experts: tuple[Expert, ...]
    label_values: tuple[int, ...]
    ignore_label: int | None = None
    masks: ExpertMasks | None = None
    seed: int = 0
    boundary_width: int = BOUNDARY_WIDTH
    expert_voxel_mm: float | None = None

    def __post_init__(self) -> None:
        named = raters_of(self.experts)
        found = () if self.masks is None else self.masks.experts
        if named and found != named:
            raise InputError(f"the experts are {', '.join(named)}, but the masks are of {', '.join(found) or 'nobody'}")

    @classmethod
    def of_model(
        cls,
        folder: PredictionFolder | StockFolder,
        experts: tuple[Expert, ...],
        *,
        masks: Path | None = None,
        seed: int | None = None,
    ) -> ExpertAnswers:
        """The experts who answer the questions of a model.

        Args:
            folder: The model's predictions.
            experts: In routing order, see :func:`trained_with` and :func:`experts_of_set`.
            masks: The folder `<expert>/<case>` of the raters' masks; None if all experts are simulated.
            seed: Seed of the simulated experts; None for `evaluation_seed` of the model's settings.

        Raises:
            InputError: If there are raters, but `masks` is None or not a folder.
        """
        named = raters_of(experts)
        if named and (masks is None or not masks.is_dir()):
            raise InputError(f"the folder with the masks of {', '.join(named)} does not exist: {masks}")
        settings, files = folder.settings, folder.files
        return cls(
            experts=experts,
            label_values=files.label_values,
            ignore_label=files.label_manager.ignore_label,
            masks=ExpertMasks.of(masks, named, files) if named and masks is not None else None,
            seed=settings.evaluation_seed if seed is None else seed,
            boundary_width=settings.boundary_width,
            expert_voxel_mm=settings.expert_voxel_mm,
        )

    @property
    def identities(self) -> tuple[Expert, ...]:
        """The experts, those whose masks were simulated beforehand as simulated experts, see :func:`who_answered`."""
        if self.masks is None:
            return self.experts
        found = dict(zip(self.names, who_answered(self.masks.folder, self.names), strict=True))
        return tuple(found[each.name] if isinstance(each, Rater) else each for each in self.experts)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the experts in routing order."""
        return names_of(self.experts)

    def to_dict(self) -> dict[str, Any]:
        """The experts, their seed and boundary width as JSON-ready data.

        Of experts simulated beforehand those of simulation.json, unless others are simulated now.
        """
        keys = ("seed", "boundary_width", "expert_voxel_mm")
        content = {key: getattr(self, key) for key in keys}
        if self.masks is not None and len(raters_of(self.experts)) == len(self.experts):
            recorded: Mapping[str, Any] | None = _read_simulation(self.masks.folder)
            if recorded is not None:  # where it says nothing, their voxels were those of the files
                content |= {"expert_voxel_mm": None} | {key: recorded[key] for key in keys if key in recorded}
        known = {key: value for key, value in content.items() if value is not None}
        return {"experts": experts_to_json(self.identities), **known}

    def answers(self, case: str, reference: np.ndarray, properties: Mapping[str, Any] | None = None) -> np.ndarray:
        """The labels of all experts for a case.

        Args:
            case: The case identifier.
            reference: Its reference label map, integer of shape S, from which simulated answers are drawn.
            properties: nnU-Net's properties of the case, against which the geometry of masks is checked; None for no
                check. Simulated experts with voxels in mm need its spacing.

        Returns:
            int16 (J, *S), `MISSING` where an expert has no label.

        Raises:
            InputError: If a mask is invalid, see :meth:`.raters.ExpertMasks.answers`, or the spacing is needed and not
                known.
        """
        answers = np.full((len(self.experts), *reference.shape), MISSING, dtype=np.int16)
        places = [place for place, expert in enumerate(self.experts) if isinstance(expert, Rater)]
        if self.masks is not None and places:
            answers[places] = self.masks.answers(case, reference.shape, properties)
        places = [place for place, expert in enumerate(self.experts) if isinstance(expert, ExpertProfile)]
        if places:
            answers[places] = simulate_case(
                torch.from_numpy(reference),
                profiles_of(self.experts),
                self.label_values,
                seed=self.seed,
                case=case,
                boundary_width=self.boundary_width,
                spacing=self._spacing(case, properties),
                ignore_label=self.ignore_label,
            ).numpy()
        return answers

    def _spacing(self, case: str, properties: Mapping[str, Any] | None) -> tuple[float, ...] | None:
        if self.expert_voxel_mm is None:
            return None
        if properties is None:
            raise InputError(f"{case}: experts with voxels of {self.expert_voxel_mm} mm need the spacing of the image")
        warn_once(remark_on_band(self.boundary_width, self.expert_voxel_mm, properties["spacing"]))
        return spacing_in_voxels_of(self.expert_voxel_mm, properties["spacing"])


def who_answered(folder: Path, names: Sequence[str]) -> tuple[Expert, ...]:
    """The experts whose masks are in a folder.

    Args:
        folder: The folder `<expert>/<case>`.
        names: Their names, in routing order.

    Returns:
        For each name the simulated expert recorded in simulation.json, which `nnUNetv2_deferral_simulate_experts`
        writes, otherwise a rater.

    Raises:
        InputError: If simulation.json is invalid.
    """
    content = _read_simulation(folder)
    if content is None:
        return tuple(map(Rater, names))
    try:
        simulated = {each.name: each for each in experts_from_json(content["experts"])}
    except InputError as error:
        raise InputError(f"{folder / SIMULATION_NAME}: {error}") from error
    return tuple(simulated.get(name) or Rater(name) for name in names)


def _read_simulation(folder: Path) -> _Simulation | None:
    """The simulation.json of a folder of masks; None if there is none."""
    record = folder / SIMULATION_NAME
    return cast(_Simulation, read_validated_json(record, _Simulation)) if record.is_file() else None


def evidence_of(
    folder: PredictionFolder, answers: Path | None, experts: Sequence[Expert], *, wanted: bool | None = None
) -> EvidenceModel | None:
    """How answers to the questions of a prediction are read as evidence; None if they replace the model's labels.

    Args:
        folder: The model's predictions.
        answers: The folder of the experts' masks; None if all experts are simulated.
        experts: Who answers, see :attr:`ExpertAnswers.identities`.
        wanted: True for evidence, False for replacement, None for evidence if the model has an evidence model of these
            experts, unless they answered on the review page: there the expert's word is final.

    Raises:
        InputError: If evidence is wanted, but there is no evidence model of these experts, or experts were not shown
            all voxels that were routed to them.
    """
    reviewed = answers is not None and (answers / REVIEW_NAME).is_file()
    if wanted is False or (wanted is None and reviewed):
        return None
    fitted = None if folder.calibration is None else folder.calibration.evidence
    if fitted is None:
        if wanted:
            raise InputError(
                f"{folder.index_file} has no evidence model. Calibrate the model (nnUNetv2_deferral_calibrate) and "
                "predict again"
            )
        return None
    if not fitted.applies_to(experts_to_json(experts)):
        words = (
            f"the answers are those of {described(experts)}, but the evidence model of {folder.index_file} was fitted "
            f"on the answers of {described(experts_from_json(fitted.answered_by))}"
        )
        if wanted:
            raise InputError(words)
        logger.warning("answers replace the model's labels: %s", words)
        return None
    if reviewed and answers is not None:
        check_all_shown(folder, answers)
    return fitted.model


Confidence: TypeAlias = Literal["high", "medium", "low"]  # that experts state on the review page


class _ReviewFlag(TypedDict):
    voxel: list[Count]
    comment: Text


class _ReviewRecord(TypedDict):
    regions: Count
    voxels: Count
    changed_voxels: Count
    minutes: NonNegative
    cannot_tell_voxels: NotRequired[Count]
    confidence: NotRequired[dict[Text, Text]]
    flags: NotRequired[list[_ReviewFlag]]


class ReviewIndex(TypedDict):
    """Types and ranges of what is read of a review.json: a record per case and expert; other keys are ignored."""

    cases: dict[Text, dict[Text, _ReviewRecord]]


def check_all_shown(folder: PredictionFolder, answers: Path, *, use: str = "read as evidence") -> None:
    """Refuse a review in which voxels have the model's label because nobody answered them.

    These are voxels that a worklist left out, and without an ignore label those that an expert could not tell.

    Args:
        folder: The predictions.
        answers: The folder of the review.
        use: What the answers cannot be then, for the message.

    Raises:
        InputError: Naming the review, expert and case.
    """
    if ReadingRules.of(answers) is not None:
        _check_all_read(folder, answers, use)
        return
    without_ignore_label = folder.files.label_manager.ignore_label is None
    index = answers / REVIEW_NAME
    for case, records in read_validated_json(index, ReviewIndex)["cases"].items():
        if case not in folder.cases:
            continue
        route = folder.case(case).route
        for number, expert in enumerate(folder.experts, start=1):
            routed = int((route == number).sum())
            if expert in records and records[expert]["voxels"] != routed:
                raise InputError(
                    f"{index}: {expert} was shown {records[expert]['voxels']} voxels of {case}, but {routed} are "
                    f"routed to this expert, so the answers cannot be {use}. The review must be of all regions "
                    "(without a worklist) of these very predictions, and of their round of questions"
                )
            untold = records.get(expert, {}).get("cannot_tell_voxels", 0)
            if untold and without_ignore_label:
                raise InputError(
                    f'{index}: {expert} marked {untold} voxels of {case} as "cannot tell". They have the model\'s '
                    f"label because the dataset has no ignore label, so the answers cannot be {use}"
                )


def _check_all_read(folder: PredictionFolder, answers: Path, use: str) -> None:
    """Refuse a review with two readers for each region that was not asked about all that is routed.

    What a reader could not tell is not settled, with or without an ignore label.
    """
    masks = ExpertMasks.of(answers, folder.experts, folder.files)
    for case in folder.cases:
        settled = masks.settled(case)
        if settled is None:
            continue
        route = folder.case(case).route
        if route.shape != settled.route.shape or (route != settled.route).any():
            raise InputError(
                f"{settled_file(answers, case)}: the readers were asked about other voxels than {folder.folder} routes "
                f"to experts, so the answers cannot be {use}. Review without a worklist"
            )


def trained_with(folder: PredictionFolder) -> tuple[Expert, ...]:
    """The experts that a model was trained with, in routing order."""
    return folder.settings.experts


def experts_of_set(settings: DeferralSettings, name: str) -> tuple[ExpertProfile, ...]:
    """The simulated experts of a named set, as many as the model has experts.

    Raises:
        InputError: If the set is unknown, or its experts' names differ from the model's.
    """
    if name not in EXPERT_SETS:
        raise InputError(f"unknown set of simulated experts {name!r}; known sets: {', '.join(EXPERT_SETS)}")
    profiles = expert_set(name, settings.num_experts)
    if (names := tuple(profile.name for profile in profiles)) != settings.expert_names:
        raise InputError(
            f"the model's experts are {', '.join(settings.expert_names)}, those of set {name} {', '.join(names)}"
        )
    return profiles
