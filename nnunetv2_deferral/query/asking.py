"""Asking: from a folder of predictions to the boxes to annotate, with one case in memory at a time."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.dataset import DatasetFiles, same_cases
from nnunetv2_deferral.decision.effort import (
    WorkTime,
    best_within_limits,
    border_lengths_mm,
    check_work_limits,
    edit_cm,
    measure,
)
from nnunetv2_deferral.decision.gains import gain_text
from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.defaults import QUERY_EDGE_VOXELS, QUERY_ROUNDS, QUERY_UNITS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import state_of
from nnunetv2_deferral.forecast.features import predicted_classes
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.processes import map_cases
from nnunetv2_deferral.query.choice import Candidate, Choice, by_value, choose_boxes, disjoint_boxes
from nnunetv2_deferral.query.ensemble import Ensemble
from nnunetv2_deferral.query.patches import Box, Grid
from nnunetv2_deferral.query.rounds import QueryRound, boxes_of_rounds, place_of
from nnunetv2_deferral.query.strategies import STRATEGIES, Strategy, maps_of
from nnunetv2_deferral.text import fingerprint

PATCH, _, CASE = QUERY_UNITS
_DEFAULT_TIME = WorkTime()


@dataclass(frozen=True, kw_only=True)
class Query:
    """What to ask for.

    Attributes:
        number: The number n of boxes; with `max_minutes` at most so many.
        strategy: A key of :data:`.STRATEGIES`.
        round_number: The round t, from 0.
        rounds: The number T of rounds that are planned.
        seed: Seed of all random choices, together with the round.
        size: Edges of a box along (z, y, x), or (y, x) for single slices; None for 20 voxels along each axis.
        in_mm: Whether `size` is in mm and not in voxels.
        stride: Distance of neighbouring positions in voxels; None for half of the edges.
        max_minutes: Working time for all boxes, only for the strategy `gain`, whose boxes have an estimated one; None
            for no limit.
        per: Of :data:`.QUERY_UNITS`. Only the strategy `gain` knows of regions, and only patches have a size.
        time: Working time of a box, for the strategy `gain`.

    Raises:
        InputError: If a value is out of range.
    """

    number: int
    strategy: str = "claspe"
    round_number: int = 0
    rounds: int = QUERY_ROUNDS
    seed: int = 0
    size: tuple[float, ...] | None = None
    in_mm: bool = False
    stride: tuple[int, ...] | None = None
    max_minutes: float | None = None
    per: str = PATCH
    time: WorkTime = _DEFAULT_TIME

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InputError(f"unknown strategy {self.strategy!r}; known: {', '.join(STRATEGIES)}")
        if self.number < 1:
            raise InputError(f"the number of boxes (-n) must be at least 1, got {self.number}")
        if self.seed < 0:
            raise InputError(f"the seed must be at least 0, got {self.seed}")
        for name, of in (("edges of a box", self.size), ("the stride", self.stride)):
            if of is not None and (len(of) not in (2, 3) or not all(0 < each < math.inf for each in of)):
                raise InputError(f"{name} must be two or three positive numbers, got {' '.join(map(str, of))}")
        if self.max_minutes is not None and self.how.reads != "gain":
            raise InputError(f"-max_minutes is for the strategy gain, whose boxes have minutes, not {self.strategy}")
        check_work_limits(None, self.max_minutes)
        if self.per not in QUERY_UNITS:
            raise InputError(f"what to ask about must be one of {', '.join(QUERY_UNITS)}, got {self.per!r}")
        if self.per != PATCH and (self.how.reads != "gain" or self.size is not None or self.stride is not None):
            raise InputError(f"-per {self.per} is for the strategy gain, without a size or stride of boxes")
        STRATEGIES[self.strategy].beta(self.round_number, self.rounds)

    @property
    def how(self) -> Strategy:
        """What the strategy does."""
        return STRATEGIES[self.strategy]

    @property
    def beta(self) -> float:
        """The inverse scale of the noise."""
        return self.how.beta(self.round_number, self.rounds)

    def random(self, case: str | None = None) -> np.random.Generator:
        """The generator of a case, the same at every order of cases; without one that of the choice among all."""
        of_case = [] if case is None else [zlib.crc32(case.encode())]
        return np.random.default_rng([self.seed, self.round_number, *of_case])

    def grid(self, prediction: PredictedCase) -> Grid:
        """The positions of boxes in a case.

        Raises:
            InputError: If the box does not fit; the message names the case.
        """
        shape = prediction.model.shape
        is_slice = len(shape) == 3 and shape[0] == 1
        if self.size is None:
            size: tuple[float, ...] = (1 if is_slice else QUERY_EDGE_VOXELS, QUERY_EDGE_VOXELS, QUERY_EDGE_VOXELS)
        else:
            size = (1.0, *self.size) if is_slice and len(self.size) == 2 else self.size
            if self.in_mm and len(size) == len(shape):
                unit = (1.0, *prediction.spacing[1:]) if is_slice and len(self.size) == 2 else prediction.spacing
                size = tuple(max(round(edge / length), 1) for edge, length in zip(size, unit, strict=True))
        edges = tuple(int(each) for each in size)
        stride = self.stride or tuple(max(edge // 2, 1) for edge in edges)
        try:
            return Grid(shape, edges, (1, *stride) if is_slice and len(stride) == 2 else stride)
        except InputError as error:
            raise InputError(f"{prediction.name}: {error}") from error


@dataclass(frozen=True)
class AskedBoxes:
    """The boxes of a query.

    Attributes:
        regions: Rows for query.json in their order.
        predictions: Mask and geometry of the cases with boxes.
        choice: What was chosen.
    """

    regions: list[dict[str, Any]]
    predictions: dict[str, PredictedCase]
    choice: Choice


def scored_boxes(
    source: Ensemble | PredictionFolder,
    query: Query,
    annotated: Sequence[QueryRound],
    cases: Sequence[str],
    *,
    num_processes: int = 1,
) -> list[Candidate]:
    """The boxes of some of the cases that may be asked about.

    Those of a case do not depend on the other cases, so that candidates of parts of the cases can be put together.

    Args:
        source: The predictions; for the strategy `gain` those of a deferral model.
        query: What to ask for.
        annotated: Earlier rounds, whose boxes are not asked about again.
        cases: The cases.
        num_processes: 1 runs in this process, more in this one and spawned ones.

    Raises:
        InputError: For files that cannot be read or do not match, and boxes that do not fit.
    """
    for each in annotated:
        same_cases(f"cases of {each.folder} without a prediction", list(each.boxes), source.cases)
    rounds = tuple(annotated)
    work: Callable[[str], list[Candidate]] = (
        partial(_score_gain, source, query, rounds)
        if isinstance(source, PredictionFolder)
        else partial(_score_probabilities, source, query, rounds)
    )
    return [each for found in map_cases(work, cases, num_processes, description="Scoring") for each in found]


def same_for_all_parts(
    source: Ensemble | PredictionFolder, folders: Sequence[Path], query: Query, annotated: Sequence[QueryRound]
) -> dict[str, Any]:
    """What all parts of a query must have in common, as JSON."""
    if isinstance(source, PredictionFolder):
        decided: Any = source.index["cases"]
    else:
        read = (
            path(case)
            for each in source.folders
            for case in source.cases
            for path in (each.mask_file, each.softmax_file)
        )
        decided = [list(source.cases), state_of(read)]
    return json.loads(json.dumps(asdict(query))) | {
        "predictions": [str(folder) for folder in folders],
        "cases": fingerprint(decided),
        "annotated": {str(each.folder): fingerprint(each.boxes) for each in annotated},
        "versions": versions(),
    }


def _score_probabilities(
    ensemble: Ensemble, query: Query, annotated: Sequence[QueryRound], case: str
) -> list[Candidate]:
    found = ensemble.read(case)
    by_class, overall = maps_of(query.strategy, found.probabilities, ensemble.files)
    grid, taken = query.grid(found.prediction), _boxes_within(annotated, found.prediction)
    return disjoint_boxes(
        case,
        grid,
        map(grid.means, by_class),
        grid.means(overall),
        number=query.number,
        beta=query.beta,
        random=query.random(case),
        taken=taken,
    )


def _score_gain(folder: PredictionFolder, query: Query, annotated: Sequence[QueryRound], name: str) -> list[Candidate]:
    case = folder.case(name)
    files, taken = folder.files, _boxes_within(annotated, case)
    if query.per != PATCH:
        return list(_regions_of(case, query.per, files, query.time, taken))
    grid = query.grid(case)
    minutes = _minutes(grid.means(case.probability), grid.size, case, files, query.time)
    # Sums of float64 leave tiny negative numbers where all is 0.
    gains = np.maximum(grid.means(case.gain), 0) * math.prod(grid.size) / minutes
    found = disjoint_boxes(
        name, grid, [], gains, number=query.number, beta=query.beta, random=query.random(name), taken=taken
    )
    return [replace(each, minutes=_minutes_of_box(each.box, case, files, query.time)) for each in found]


def ask_probabilities(
    ensemble: Ensemble, query: Query, candidates: Sequence[Candidate], annotated: Sequence[QueryRound] = ()
) -> AskedBoxes:
    """Choose boxes by a strategy that reads probabilities.

    Args:
        ensemble: The predictions.
        query: What to ask for.
        candidates: Those of all cases, see :func:`scored_boxes`.
        annotated: Earlier rounds. A first round without any is a start set, see :func:`.choose_boxes`.

    Raises:
        InputError: For files that cannot be read, and more boxes than there is room for.
    """
    files, names = ensemble.files, ensemble.files.class_names
    classes = len(names) if query.how.by_class else 0
    start = bool(classes) and query.round_number == 0 and not annotated
    choice = choose_boxes(candidates, number=query.number, classes=classes, random=query.random(), start=start)

    def described(case: str, boxes: Sequence[Candidate]) -> tuple[PredictedCase, list[dict[str, Any]]]:
        found = ensemble.read(case)
        predicted = [*predicted_classes(found.probabilities, has_regions=files.label_manager.has_regions)]
        rows = []
        for each in boxes:
            shares = {name: float(where[each.box.slices].mean()) for name, where in zip(names, predicted, strict=True)}
            by = None if each.by_class is None else names[each.by_class]
            rows.append({"class": by, "predicted": shares, "why": _why(query.strategy, by, each.score, shares)})
        return found.prediction, rows

    return _described(choice, described)


def ask_gain(folder: PredictionFolder, query: Query, candidates: Sequence[Candidate]) -> AskedBoxes:
    """Choose the boxes with the highest expected gain per minute, by the maps of a deferral model.

    With a limit of minutes, a box that no longer fits is skipped, shorter ones after it may still be chosen, and boxes
    without any expected gain are not.

    Each row also has `expected_gain`, the sum of the gain map over the box, `minutes` of work, and the `expert` with
    the largest part of the gain.

    Args:
        folder: The predictions.
        query: What to ask for.
        candidates: See :func:`ask_probabilities`.

    Raises:
        InputError: See :func:`ask_probabilities`; also if no box fits in the minutes.
    """
    if query.max_minutes is None:
        choice = choose_boxes(candidates, number=query.number, classes=0, random=query.random())
    else:
        choice = _within_minutes(candidates, query.number, query.max_minutes)

    def described(name: str, boxes: Sequence[Candidate]) -> tuple[PredictedCase, list[dict[str, Any]]]:
        case, rows = folder.case(name), []
        for each in boxes:
            gain, expert = case.gain[each.box.slices], case.expert[each.box.slices]
            parts = np.bincount(expert.reshape(-1), weights=gain.reshape(-1), minlength=len(folder.experts) + 1)[1:]
            who = folder.experts[int(parts.argmax())]
            minutes = each.minutes or 0.0  # boxes of this strategy have a working time
            total = float(gain.sum(dtype=np.float64))
            why = f"{gain_text(total, folder.gain_unit)} in {minutes:.1f} minutes; {who} is expected to add most"
            rows.append({"class": None, "expected_gain": total, "minutes": minutes, "expert": who, "why": why})
        return case, rows

    return _described(choice, described)


def open_rounds(folders: Sequence[Path]) -> list[QueryRound]:
    """Earlier rounds.

    Raises:
        InputError: If a folder is given twice or has no valid query.json.
    """
    if len({folder.resolve() for folder in folders}) != len(folders):
        raise InputError(f"rounds must be distinct, got {', '.join(map(str, folders))}")
    return [QueryRound.read(folder) for folder in folders]


def _described(
    choice: Choice, describe: Callable[[str, Sequence[Candidate]], tuple[PredictedCase, list[dict[str, Any]]]]
) -> AskedBoxes:
    """Rows of the chosen boxes, in the order of the choice, with what `describe` says of those of a case."""
    by_case: dict[str, list[int]] = {}
    for place, each in enumerate(choice.chosen):
        by_case.setdefault(each.case, []).append(place)
    rows: dict[int, dict[str, Any]] = {}
    predictions = {}
    for case, places in sorted(by_case.items()):
        prediction, found = describe(case, [choice.chosen[place] for place in places])
        # Without what else was read of the case.
        predictions[case] = PredictedCase(case, model=prediction.model, properties=prediction.properties)
        for label, (place, more) in enumerate(zip(places, found, strict=True), start=1):
            each = choice.chosen[place]
            rows[place] = {
                "rank": place + 1,
                "case": case,
                "label": label,
                **place_of(each.box, prediction),
                "score": each.score,
                "noisy_log_score": each.value if math.isfinite(each.value) else None,
                **more,
            }
    return AskedBoxes([rows[place] for place in range(len(choice.chosen))], predictions, choice)


def _minutes(
    probability: np.ndarray, size: Sequence[int], case: PredictedCase, files: DatasetFiles, time: WorkTime
) -> np.ndarray:
    """The working time of boxes of a size with these mean deferral probabilities, as of regions."""
    border = border_lengths_mm(np.ones(size, dtype=np.int8), case.spacing).item() if files.unit == "mm" else None
    return time.minutes(edit_cm(np.maximum(probability, 0), border))


def _regions_of(
    case: PredictedCase, per: str, files: DatasetFiles, time: WorkTime, taken: Sequence[Box]
) -> Iterator[Candidate]:
    """The boxes of the deferred regions of a case, or the whole case if any is, with the minutes of their regions.

    Boxes overlap neither each other nor those that are taken; of those that overlap, the best stays.
    """
    labels = region_labels(case.route)
    spacing = case.spacing if files.unit == "mm" else None
    work = measure(labels, case.gain, case.probability, time, spacing_mm=spacing).minutes
    places = ndimage.find_objects(labels)
    if per == CASE and places:
        places, work = [tuple(slice(0, length) for length in labels.shape)], work.sum(keepdims=True)
    found = []
    for number, (place, minutes) in enumerate(zip(places, work.tolist(), strict=True), start=1):
        box = Box(tuple(each.start for each in place), tuple(each.stop for each in place))
        deferred = labels[place] > 0 if per == CASE else labels[place] == number
        if (score := float(case.gain[place][deferred].sum(dtype=np.float64)) / minutes) > 0:
            found.append(
                Candidate(case=case.name, box=box, by_class=None, score=score, value=math.log(score), minutes=minutes)
            )
    kept = list(taken)
    for candidate in sorted(found, key=by_value):
        if not any(candidate.box.overlaps(other) for other in kept):
            kept.append(candidate.box)
            yield candidate


def _minutes_of_box(box: Box, case: PredictedCase, files: DatasetFiles, time: WorkTime) -> float:
    size = [stop - start for start, stop in zip(*box, strict=True)]
    mean = case.probability[box.slices].mean(dtype=np.float64, keepdims=True)
    return float(_minutes(mean, size, case, files, time).item())


def _within_minutes(candidates: Sequence[Candidate], number: int, most: float) -> Choice:
    """The boxes that the minutes are best spent on."""
    useful = sorted((each for each in candidates if each.score > 0), key=by_value)
    minutes = np.array([each.minutes for each in useful], dtype=np.float64)
    ranks = -np.arange(len(useful), dtype=np.float64)
    chosen = best_within_limits(ranks, minutes, max_regions=number, max_minutes=most)
    if not chosen:
        least = f"the shortest takes {minutes.min():.2g}" if useful else "no box has an expected gain"
        raise InputError(f"no box fits in {most:g} minutes: {least}")
    return Choice(tuple(useful[place] for place in chosen), ())


def _boxes_within(rounds: Sequence[QueryRound], prediction: PredictedCase) -> tuple[Box, ...]:
    for each in rounds:
        each.mask(prediction.name, prediction.model.shape)
    return boxes_of_rounds(rounds, prediction.name)


def _why(strategy: str, by: str | None, score: float, shares: Mapping[str, float]) -> str:
    if strategy == "random":
        reason = "drawn at random from all places"
    elif strategy == "random_foreground":
        reason = "drawn at random from all places" if by is None else f"drawn at random for its voxels of {by}"
    elif by is None:
        reason = f"mean entropy of the box {score:.3g} nats"
    else:
        reason = f"chosen for {by}: mean probability of {by} times entropy {score:.3g} nats"
    found = [f"{name} ({share:.1%})".replace("%", " %") for name, share in shares.items() if share > 0]
    return f"{reason}; predicted in it: {', '.join(found) or 'background only'}"
