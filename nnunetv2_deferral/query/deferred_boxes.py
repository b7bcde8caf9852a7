"""The boxes of a round as questions to experts: a folder of masks with deferral maps in which the boxes are deferred.

Worklist, review, fuse and next_dataset work on it as on a prediction. The masks are what is predicted, from which an
annotation starts. Route and expert maps name who is asked. The other maps are those of the model with the strategy
`gain`; with other strategies, probability is the score of the box, at most 1, and the gains of a box sum to a number
that falls from 1 for the first box to 1/n for the last of n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.image_files import write_labels
from nnunetv2_deferral.maps import DeferralFolder, ModelIdentity, lock_of
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.settings import resolve_settings

QUESTIONS = "questions"


def write_questions(
    regions: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, PredictedCase],
    files: DatasetFiles,
    folder: Path,
    *,
    annotator: str,
    model: PredictionFolder | None = None,
) -> None:
    """Write the questions about boxes.

    Args:
        regions: The boxes in their order, with `case`, `box` and `score`, with a model also `expert`.
        predictions: Mask and geometry of each case with boxes.
        files: The dataset.
        folder: The folder of the masks and maps.
        annotator: The expert who is asked without a model.
        model: The predictions of a deferral model whose experts are asked, with its maps; None without one.

    Raises:
        InputError: If a name is not valid, or a file cannot be read or written.
    """
    experts = (annotator,) if model is None else model.experts
    settings = resolve_settings({"experts": list(experts)})
    identity = ModelIdentity(
        dataset=str(files.content.get("name", "unknown")),
        plans="unknown",
        configuration="unknown",
        trainer=None,
        experts=experts,
    )
    deferral = DeferralFolder(
        folder=folder, file_ending=files.file_ending, writer=files.reader, model=identity, settings=settings
    )
    for case, prediction in predictions.items():
        own = [(place, region) for place, region in enumerate(regions) if region["case"] == case]
        maps = _maps(own, len(regions), prediction.model.shape, experts, None if model is None else model.case(case))
        deferral.write(case, maps, prediction.properties)
        mask = folder / f"{case}{files.file_ending}"
        write_labels(prediction.model, mask, files.reader, prediction.properties)
        deferral.note_mask(case, with_probabilities=False)
    lock_of(folder).unlink(missing_ok=True)


def _maps(
    boxes: Sequence[tuple[int, Mapping[str, Any]]],
    number: int,
    shape: Sequence[int],
    experts: Sequence[str],
    predicted: PredictedCase | None,
) -> RoutingMaps:
    """The maps of a case, given its boxes with their places among `number`."""
    route, expert = np.zeros(shape, np.uint8), np.ones(shape, np.uint8)
    probability, gain = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for place, region in boxes:
        inside = tuple(slice(*ends) for ends in region["box"])
        who = 1 + (0 if predicted is None else experts.index(region["expert"]))
        route[inside] = expert[inside] = who
        if predicted is None:
            probability[inside] = min(region["score"], 1.0)
            gain[inside] = (number - place) / number / gain[inside].size
        else:
            probability[inside], gain[inside] = predicted.probability[inside], predicted.gain[inside]
    return RoutingMaps(route, probability, expert, gain)
