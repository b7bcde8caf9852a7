"""What was answered of a case: the labels of the voxels that somebody was asked about and did answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnunetv2_deferral.answers import check_all_shown
from nnunetv2_deferral.arrays import of_experts
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.names import REVIEW_NAME
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.query.deferred_boxes import QUESTIONS
from nnunetv2_deferral.query.ensemble import dataset_json_of
from nnunetv2_deferral.query.rounds import JSON_NAME, MASKS, QueryRound
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.text import listed

REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class AnsweredQuestions:
    """The answers to the questions about a case.

    Attributes:
        labels: int16 of shape S, `MISSING` where nobody was asked or answered.
        properties: nnU-Net's properties of the image.
        by: The number of voxels that each expert answered.
        asked: The number of voxels that somebody was asked about.
        contradicted: The number of voxels with different answers, which are `MISSING`.
        sources: Where the questions come from.
    """

    labels: np.ndarray
    properties: dict[str, Any]
    by: dict[str, int]
    asked: int
    contradicted: int
    sources: tuple[str, ...]


class Answers(Protocol):
    """Questions about cases and their answers."""

    @property
    def files(self) -> DatasetFiles:
        """The dataset of the questions."""

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases with questions, sorted."""

    def read(self, case: str) -> AnsweredQuestions:
        """The answers for a case."""


@dataclass(frozen=True, kw_only=True)
class RoundAnswers:
    """The answers to rounds of queries: masks `<answers>/<case>`, or `<answers>/<expert>/<case>` of some experts.

    Where experts answered a voxel differently, it counts as not answered. Cases without a mask are not answered.

    Attributes:
        rounds: The rounds.
        files: The dataset, from the dataset.json of the first round.
        answers: The folder of the masks.
        experts: The experts with masks; empty if the masks are in the folder itself.
    """

    rounds: tuple[QueryRound, ...]
    files: DatasetFiles
    answers: Path
    experts: tuple[str, ...]

    @classmethod
    def open(cls, rounds: Sequence[QueryRound], answers: Path, dataset_json: Path | None = None) -> RoundAnswers:
        """Open the answers to rounds.

        Args:
            rounds: The rounds, at least one.
            answers: The folder of the masks.
            dataset_json: The dataset.json of the masks; None for that of the first round.

        Raises:
            InputError: If a mask of a round is missing, or the folder has no mask of any case that was asked about, or
                masks both in itself and of experts.
        """
        first = rounds[0]
        names = sorted({case for each in rounds for case in each.boxes})
        if not names:
            raise InputError(f"{first.folder} asks about nothing")
        description = dataset_json_of(first.folder, dataset_json)
        example = next((file for each in rounds for file in sorted((each.folder / MASKS).glob("*"))), None)
        if example is None:
            raise InputError(f"{first.folder / MASKS} has no masks of the boxes")
        found = cls(rounds=tuple(rounds), files=DatasetFiles.of(description, example), answers=answers, experts=())
        for each in rounds:
            if lacking := [str(file) for case in each.boxes if not (file := found._box_mask(each, case)).is_file()]:
                raise InputError(f"masks of boxes are missing ({len(lacking)}): {listed(lacking)}")
        if not answers.is_dir():
            raise InputError(f"the folder of answers {answers} does not exist")
        if (answers / REVIEW_NAME).is_file():
            raise InputError(
                f"{answers} has the answers of a review. What they are answers to is in the folder {QUESTIONS} of the "
                f"round that was reviewed: -i {first.folder / QUESTIONS}"
            )
        itself = any(found._file(answers, case).is_file() for case in names)
        folders = sorted(path for path in answers.iterdir() if path.is_dir())
        experts = tuple(path.name for path in folders if any(found._file(path, case).is_file() for case in names))
        if itself and experts:
            raise InputError(
                f"{answers} has masks both in itself and of {', '.join(experts)}; give one folder <case> or "
                "<expert>/<case>"
            )
        if not itself and not experts:
            ending = found.files.file_ending
            raise InputError(
                f"{answers} has no mask <case>{ending} or <expert>/<case>{ending} of a case that was asked about "
                f"({listed(names)})"
            )
        return cls(rounds=found.rounds, files=found.files, answers=answers, experts=experts)

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases with boxes, sorted."""
        return tuple(sorted({case for each in self.rounds for case in each.boxes}))

    def read(self, case: str) -> AnsweredQuestions:
        """The answers within the boxes of a case.

        Raises:
            InputError: If a mask does not match the masks of the boxes in shape or geometry, or has unknown labels, or
                a mask of boxes is not that of query.json.
        """
        asking = [each for each in self.rounds if case in each.boxes]
        boxes, properties = self.files.read_values(self._box_mask(asking[0], case))
        asked = np.zeros(boxes.shape, dtype=bool)
        for each in asking:
            inside = each.mask(case, boxes.shape)
            if not np.array_equal(self.files.read_values(self._box_mask(each, case))[0] > 0, inside):
                raise InputError(f"{self._box_mask(each, case)} does not show the boxes of {each.folder / JSON_NAME}")
            asked |= inside
        names = self.experts or (REFERENCE,)
        given = np.stack([self._given(name, case, boxes, properties) for name in names])
        given[:, ~asked] = MISSING
        return _agreed(given, names, int(asked.sum()), properties, tuple(str(each.folder) for each in asking))

    def _given(self, name: str, case: str, like: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
        if self.experts:
            masks = ExpertMasks.of(self.answers, self.experts, self.files)
            found = masks.read(name, case, properties)
            if found is not None and found.shape != like.shape:
                raise InputError(f"{masks.file(name, case)}: shape {found.shape} instead of {like.shape}")
            return np.full(like.shape, MISSING, dtype=np.int16) if found is None else found
        file = self._file(self.answers, case)
        if not file.is_file():
            return np.full(like.shape, MISSING, dtype=np.int16)
        labels = self.files.read_like(file, like, properties).astype(np.int16)
        if (ignore := self.files.label_manager.ignore_label) is not None:
            labels[labels == ignore] = MISSING
        return labels

    def _box_mask(self, each: QueryRound, case: str) -> Path:
        return self._file(each.folder / MASKS, case)

    def _file(self, folder: Path, case: str) -> Path:
        return folder / f"{case}{self.files.file_ending}"


@dataclass(frozen=True, kw_only=True)
class RoutedAnswers:
    """The experts' answers to the questions of a deferral model: of each deferred voxel that of the expert asked.

    Attributes:
        folder: The predictions.
        masks: The experts' masks.
    """

    folder: PredictionFolder
    masks: ExpertMasks

    @classmethod
    def open(cls, predictions: Path, experts: Path, dataset_json: Path | None = None) -> RoutedAnswers:
        """Open predictions and answers.

        Raises:
            InputError: If there are no deferral maps, the answers are not those to its questions, or voxels of a review
                have the model's label because nobody answered them.
        """
        folder = PredictionFolder.open(predictions, dataset_json)
        masks = ExpertMasks.of(experts, folder.experts, folder.files)
        masks.check_answers({case: folder.asked(case) for case in folder.cases})
        if (experts / REVIEW_NAME).is_file():
            check_all_shown(folder, experts, use="used for training")
        return cls(folder=folder, masks=masks)

    @property
    def files(self) -> DatasetFiles:
        """The dataset of the predictions."""
        return self.folder.files

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases with deferred voxels, sorted."""
        return tuple(case for case in self.folder.cases if self.folder.asked(case))

    def read(self, case: str) -> AnsweredQuestions:
        """The answers for the deferred voxels of a case.

        Raises:
            InputError: If a file cannot be read or does not match.
        """
        predicted = self.folder.case(case)
        given = self.masks.answers(case, predicted.model.shape, predicted.properties)
        asked = predicted.route > 0
        labels = np.where(asked, of_experts(given, np.maximum(predicted.route, 1)), MISSING).astype(np.int16)
        counts = {
            name: int(((predicted.route == place) & (labels != MISSING)).sum())
            for place, name in enumerate(self.folder.experts, start=1)
        }
        return AnsweredQuestions(
            labels=labels,
            properties=predicted.properties,
            by={name: number for name, number in counts.items() if number},
            asked=int(asked.sum()),
            contradicted=0,
            sources=(str(self.folder.folder),),
        )


def _agreed(
    given: np.ndarray, names: Sequence[str], asked: int, properties: dict[str, Any], sources: tuple[str, ...]
) -> AnsweredQuestions:
    """What all experts (J, *S) who answered a voxel agree on."""
    labels = given.max(0)  # MISSING is below all labels
    differs = ((given != MISSING) & (given != labels)).any(0)
    labels[differs] = MISSING
    counts = {name: int((each != MISSING).sum()) for name, each in zip(names, given, strict=True)}
    return AnsweredQuestions(
        labels=labels,
        properties=properties,
        by={name: number for name, number in counts.items() if number},
        asked=asked,
        contradicted=int(differs.sum()),
        sources=sources,
    )
