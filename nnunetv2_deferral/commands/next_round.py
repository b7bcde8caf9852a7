"""`nnUNetv2_deferral_next_round`: decide what to ask next, given the answers to a prediction's questions.

The output is a folder of predictions as the input, whose route holds the new questions, and with the earlier questions
and answers beside it. Worklist, review, fuse, evaluate and further rounds take it like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral import maps
from nnunetv2_deferral.answers import evidence_of, who_answered
from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.decision.limits import check_budget
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import Candidates, EarlierAnswers, EvidenceModel
from nnunetv2_deferral.evidence.questions import cut_at
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.fusion import asked_experts
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.predictions import PredictionFolder, copied_predictions, noted_mask
from nnunetv2_deferral.raters import ExpertMasks


class _Valued(NamedTuple):
    """A case after its questions were answered.

    Attributes:
        answered: All questions about it until now, with their answers.
        candidates: int64 (n,), flat indices of the voxels that may be asked about, ascending.
        value: float32 (n,), the value of asking the best expert next.
        expert: uint8 (n,) in [1, J], that expert.
    """

    answered: EarlierAnswers
    candidates: np.ndarray
    value: np.ndarray
    expert: np.ndarray


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
        InputError: If the predictions have no evidence model of the experts who answered, or masks that changed since
            they were made, no question was answered, a mask does not match its case, `output` exists, or an option is
            out of range.
    """
    check_budget(budget)
    folder = PredictionFolder.open(predictions, dataset_json, needed=("probability", "expert"))
    if not 1 <= most <= len(folder.experts):
        raise InputError(f"the experts per voxel must be from 1 to {len(folder.experts)}, got {most}")
    folder.check_masks("Ask again about predictions as they were made")
    masks = ExpertMasks.of(answers, folder.experts, folder.files)
    masks.check_answers({case: folder.asked(case) for case in folder.cases})
    model = evidence_of(folder, answers, who_answered(answers, folder.experts), wanted=True)
    if model is None:  # excluded because it is wanted
        raise InputError(f"{folder.index_file} has no evidence model")
    number = int(folder.index.get("round", 1)) + 1
    valued: dict[str, _Valued] = {}
    voxels = 0
    for name in tqdm(folder.cases, desc="Valuing", unit="case"):
        case = folder.case(name)
        labels = masks.answers(name, case.route.shape, case.properties)
        valued[name] = _value(case, labels, model.in_round(2), most, np.array(folder.settings.available))
        voxels += case.model.size
    known = [each.answered for each in valued.values()]
    earlier = sum(int(each.asked.sum()) for each in known)
    unanswered = sum(int((each.asked & (each.answers == MISSING)).sum()) for each in known)
    if earlier and unanswered == earlier:
        raise InputError(f"{answers} has no answer to any of the {earlier} questions of {folder.index_file}")
    room = int(budget * voxels)
    cut = cut_at([each.value[None] for each in valued.values()], room)
    asked = 0
    with copied_predictions(folder, output) as scratch:
        written = maps.DeferralFolder(
            folder=scratch,
            file_ending=folder.files.file_ending,
            writer=folder.files.reader,
            model=folder.identity,
            settings=folder.settings,
            calibration=folder.calibration,
            prediction=folder.prediction,
        )
        for name, found in tqdm(valued.items(), desc="Asking", unit="case"):
            case = folder.case(name)
            decided = _decide(case, found, cut, room - asked)
            gain = float(decided.gain[decided.route > 0].sum(dtype=np.float64))
            statistics = {"round": number, "expected_gain": gain} | noted_mask(folder, name)
            written.write(name, decided, dict(case.properties), statistics, prior=case.prior, answered=found.answered)
            asked += int(np.count_nonzero(decided.route))
        write_json(maps.read_model(scratch) | {"round": number}, maps.index_file(scratch))
    return {"round": number, "earlier": earlier, "questions": asked, "unanswered": unanswered}


def _value(case: PredictedCase, labels: np.ndarray, model: EvidenceModel, most: int, available: np.ndarray) -> _Valued:
    """Value the questions that may be asked next, given the experts' label maps (J, *S)."""
    before, flat = case.answered, labels.reshape(len(labels), -1)
    wanted = case.route > 0
    if before is not None:
        wanted |= before.where(wanted.shape)
    voxels = np.flatnonzero(wanted)
    asked = asked_experts(case.route.reshape(-1)[voxels], len(labels))
    given = np.where(asked, flat[:, voxels], MISSING).astype(np.int16)
    if before is not None:
        given, asked = before.added_to(voxels, given, asked)
    answered = EarlierAnswers(voxels, asked, given)
    candidates = Candidates.of(case.prior, case.spacing, model.structures, including=wanted)
    nobody = np.full((len(labels), candidates.index.size), MISSING, dtype=np.int16)
    given, asked = answered.added_to(candidates.index, nobody, np.zeros(nobody.shape, dtype=bool))
    values = model.values(candidates, given, asked, most=most, available=available)
    return _Valued(answered, candidates.index, values.max(0), (values.argmax(0) + 1).astype(np.uint8))


def _decide(case: PredictedCase, found: _Valued, cut: float, room: int) -> RoutingMaps:
    """Ask what is worth the cut, but no more voxels than there is room for, which may be fewer where values tie."""
    route, gain = np.zeros(case.model.size, np.uint8), np.zeros(case.model.size, np.float32)
    preferred = case.expert.copy()
    worth = found.value > 0
    chosen = np.flatnonzero(worth & (found.value >= cut))[:room]
    route[found.candidates[chosen]] = found.expert[chosen]
    gain[found.candidates] = found.value
    preferred.reshape(-1)[found.candidates[worth]] = found.expert[worth]
    shape = case.model.shape
    return RoutingMaps(route.reshape(shape), case.probability, preferred, gain.reshape(shape))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.next_round()
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
