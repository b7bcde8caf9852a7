"""`nnUNetv2_deferral_next_round`: decide what to ask next, given the answers to a prediction's questions.

The output is a folder of predictions as the input, whose route holds the new questions, and with the earlier questions
and answers beside it. Worklist, review, fuse, evaluate and further rounds take it like any other.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral import maps
from nnunetv2_deferral.answers import evidence_of, who_answered
from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.decision.area import SMALLEST_AREA
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.decision.limits import check_budget
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import Candidates, EarlierAnswers, EvidenceModel, dice_weights
from nnunetv2_deferral.evidence.questions import cut_at
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.predictions import PredictionFolder, copied_predictions
from nnunetv2_deferral.raters import ExpertMasks

COMMAND = "nnUNetv2_deferral_next_round"


class _Round:
    """What is known about the cases of a prediction after its questions were answered."""

    def __init__(self, folder: PredictionFolder, answers: Path, most: int) -> None:
        experts = who_answered(answers, folder.experts)
        fitted = evidence_of(folder, answers, experts, wanted=True)
        if fitted is None:  # excluded because it is wanted
            raise InputError(f"{folder.index_file} has no evidence model")
        self.folder = folder
        self.masks = ExpertMasks.of(answers, folder.experts, folder.files)
        self.masks.check_answers({case: folder.asked(case) for case in folder.cases})
        self.model: EvidenceModel = fitted.in_round(2)
        self.most = most
        self.available = np.array(folder.settings.available)

    def answered(self, case: PredictedCase) -> EarlierAnswers:
        """All questions about a case until now, with their answers."""
        route, before = case.route, case.answered
        voxels = np.flatnonzero(route)
        if before is not None:
            voxels = np.union1d(voxels, before.voxels)
        labels = self.masks.answers(case.name, route.shape, case.properties).reshape(len(self.folder.experts), -1)
        asked = route.reshape(-1)[voxels] == np.arange(1, len(labels) + 1)[:, None]
        found = EarlierAnswers(voxels, asked, np.where(asked, labels[:, voxels], MISSING).astype(np.int16))
        if before is None:
            return found
        places = np.searchsorted(voxels, before.voxels)
        found.answers[:, places] = np.where(before.asked, before.answers, found.answers[:, places])
        found.asked[:, places] |= before.asked
        return found

    def values(self, case: PredictedCase, answered: EarlierAnswers) -> tuple[Candidates, np.ndarray]:
        """The candidates of a case and the value of asking each expert next, float32 (J, n)."""
        structures, known = self.model.structures, np.zeros(case.model.size, dtype=bool)
        known[answered.voxels] = True
        weights = dice_weights(case.prior.areas, structures.scored, SMALLEST_AREA)
        candidates = Candidates.of(
            case.prior.logits, case.spacing, structures, weights, including=known.reshape(case.model.shape)
        )
        nobody = np.full((len(self.folder.experts), candidates.index.size), MISSING, dtype=np.int16)
        labels, asked = answered.added_to(candidates, nobody, np.zeros(nobody.shape, dtype=bool))
        values = self.model.values(candidates, labels, asked, most=self.most, available=self.available)
        return candidates, values


def next_round(
    predictions: Path,
    answers: Path,
    output: Path,
    *,
    budget: float,
    most: int = 1,
    dataset_json: Path | None = None,
) -> dict[str, float | int]:
    """Decide the next questions about all cases of a prediction.

    Args:
        predictions: A folder of predictions of a model whose calibration reads answers as evidence.
        answers: The folder of the experts' masks, `<expert>/<case>`, with the answers to the prediction's questions.
        output: A new folder for the predictions with the next questions.
        budget: The share of the voxels of all cases, in [0, 1], for these questions. It is never exceeded.
        most: The number of experts that may be asked about a voxel, in all rounds together.
        dataset_json: See :meth:`.PredictionFolder.open`.

    Returns:
        `round`, the number of the new round from 2; `earlier` and `questions`, the numbers of questions asked until now
        and of the new ones; and `unanswered`, the number of earlier questions without an answer.

    Raises:
        InputError: If the predictions have no evidence model of the experts who answered, no question was answered,
            a mask does not match its case, `output` exists, or an option is out of range.
    """
    check_budget(budget)
    folder = PredictionFolder.open(predictions, dataset_json)
    if not 1 <= most <= len(folder.experts):
        raise InputError(f"the experts per voxel must be from 1 to {len(folder.experts)}, got {most}")
    state = _Round(folder, answers, most)
    number = int(folder.index.get("round", 1)) + 1
    best, voxels, earlier, unanswered = [], 0, 0, 0
    for name in tqdm(folder.cases, desc="Valuing", unit="case"):
        case = folder.case(name)
        known = state.answered(case)
        _, values = state.values(case, known)
        best.append(values.max(0)[None])
        voxels += case.model.size
        earlier += int(known.asked.sum())
        unanswered += int((known.asked & (known.answers == MISSING)).sum())
    if earlier and unanswered == earlier:
        raise InputError(f"{answers} has no answer to any of the {earlier} questions of {folder.index_file}")
    room = int(budget * voxels)
    cut = cut_at(best, room)
    asked = 0
    with copied_predictions(folder, output) as scratch:
        written = maps.DeferralFolder(
            folder=scratch,
            file_ending=folder.files.file_ending,
            writer=folder.files.reader,
            model=folder.identity,
            settings=folder.settings,
            calibration=folder.calibration,
        )
        for case, decided, known in _decided(state, cut, room):
            gain = float(decided.gain[decided.route > 0].sum(dtype=np.float64))
            statistics = {"round": number, "expected_gain": gain}
            written.write(case.name, decided, dict(case.properties), statistics, prior=case.prior, answered=known)
            asked += int(np.count_nonzero(decided.route))
        write_json(maps.read_index(scratch) | {"round": number}, maps.index_file(scratch))
    return {"round": number, "earlier": earlier, "questions": asked, "unanswered": unanswered}


def _decided(state: _Round, cut: float, room: int) -> Iterator[tuple[PredictedCase, RoutingMaps, EarlierAnswers]]:
    for name in tqdm(state.folder.cases, desc="Asking", unit="case"):
        case = state.folder.case(name)
        known = state.answered(case)
        candidates, values = state.values(case, known)
        highest, expert = values.max(0), values.argmax(0) + 1
        chosen = np.flatnonzero((highest > 0) & (highest >= cut))[:room]  # values that tie do not exceed the budget
        room -= chosen.size
        route = np.zeros(candidates.index.size, dtype=np.uint8)
        route[chosen] = expert[chosen]
        preferred = case.expert.copy()
        preferred.reshape(-1)[candidates.index[highest > 0]] = expert[highest > 0]
        decided = RoutingMaps(
            candidates.put(route, 0), case.probability, preferred, candidates.put(highest.astype(np.float32), 0)
        )
        yield case, decided, known


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Decide what to ask next, given the answers to a prediction's questions. Requires a calibration "
        "that reads answers as evidence.",
    )
    add = parser.add_argument
    add("-i", metavar="PREDICTIONS", type=Path, required=True, help="folder of masks and deferral maps")
    add("-answers", metavar="EXPERTS", type=Path, required=True, help="folder of the masks of the experts who answered")
    add("-o", metavar="OUT", type=Path, required=True, help="new folder for the predictions with the next questions")
    add("-budget", metavar="B", type=float, required=True, help="share of all voxels to ask about in this round")
    words = "number of experts that may be asked about a voxel in all rounds together. Default: %(default)s"
    add("-most", metavar="K", type=int, default=1, help=words)
    add("-djfile", metavar="DATASET_JSON", type=Path, help="the model's dataset.json. Default: beside PREDICTIONS")
    given = parser.parse_args(arguments)
    try:
        found = next_round(
            given.i, given.answers, given.o, budget=given.budget, most=given.most, dataset_json=given.djfile
        )
    except InputError as error:
        parser.error(str(error))
    print(f"round {found['round']}: {found['questions']} questions, after {found['earlier']} in earlier rounds")
    if found["unanswered"]:
        print(f"  {found['unanswered']} earlier questions had no answer")
    print(f"  {given.o}")
