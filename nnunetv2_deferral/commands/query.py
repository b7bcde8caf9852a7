"""`nnUNetv2_deferral_query`: choose which boxes of which images to annotate next."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.commands.next_dataset import next_dataset, nnunet_folders
from nnunetv2_deferral.commands.next_dataset import summary as dataset_summary
from nnunetv2_deferral.decision.effort import check_work_limits
from nnunetv2_deferral.defaults import ANNOTATOR, MAPS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.names import check_expert_names
from nnunetv2_deferral.parts import Part, read_parts
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.query.asking import (
    Query,
    ask_gain,
    ask_probabilities,
    open_rounds,
    same_for_all_parts,
    scored_boxes,
)
from nnunetv2_deferral.query.deferred_boxes import QUESTIONS
from nnunetv2_deferral.query.ensemble import Ensemble
from nnunetv2_deferral.query.next_dataset import check_new_dataset
from nnunetv2_deferral.query.rounds import JSON_NAME, MASKS, check_output, write_round
from nnunetv2_deferral.review.work_times import chosen_time

ROWS_SHOWN = 10


def query_part(
    part: Part,
    folders: Sequence[Path],
    output: Path,
    query: Query,
    *,
    annotated: Sequence[Path] = (),
    dataset_json: Path | None = None,
    overwrite: bool = False,
    num_processes: int = 1,
) -> Path:
    """Write which boxes of a part of the cases may be asked about; returns the file.

    The arguments are those of :func:`query_folders`.
    """
    check_output(output, overwrite=overwrite)
    source, rounds = _open(folders, query, dataset_json), open_rounds(annotated)
    found = scored_boxes(source, query, rounds, part.cases(source.cases), num_processes=num_processes)
    return part.write(found, output, same_for_all_parts(source, folders, query, rounds))


def query_folders(
    folders: Sequence[Path],
    output: Path,
    query: Query,
    *,
    annotated: Sequence[Path] = (),
    dataset_json: Path | None = None,
    overwrite: bool = False,
    num_processes: int = 1,
    merge: bool = False,
    annotator: str = ANNOTATOR,
) -> dict[str, Any]:
    """Choose boxes and write them as a round.

    Args:
        folders: Folders of predictions of the same cases, one per fold, with saved probabilities; for the strategy
            `gain` one folder with deferral maps.
        output: The folder of the round.
        query: What to ask for.
        annotated: The folders of earlier rounds.
        dataset_json: The dataset.json of the model; None for the one in the first folder.
        overwrite: Replace a round in `output`.
        num_processes: 1 runs in this process, more in this one and spawned ones.
        merge: Choose from what the parts in `output` found, which the round replaces.
        annotator: The name of the expert who is asked; with the strategy `gain`, the model's experts are.

    Returns:
        The content of query.json, see docs/reference/files.md.

    Raises:
        InputError: For invalid input; nothing is then written.
    """
    check_output(output, overwrite=overwrite)
    check_expert_names([annotator], "-annotator")
    source, rounds = _open(folders, query, dataset_json), open_rounds(annotated)
    if merge:
        parts = read_parts(output, same_for_all_parts(source, folders, query, rounds))
        candidates = [each for found in parts for each in found]
    else:
        candidates = scored_boxes(source, query, rounds, source.cases, num_processes=num_processes)
    files = source.files
    if isinstance(source, PredictionFolder):
        asked = ask_gain(source, query, candidates)
    else:
        asked = ask_probabilities(source, query, candidates, rounds)
    names = files.class_names if query.how.by_class else ()
    missing = dict(zip(names, asked.choice.missing, strict=True))
    content = {
        "strategy": query.strategy,
        "round": query.round_number,
        "rounds": query.rounds,
        "number": query.number,
        "max_minutes": query.max_minutes,
        "per": query.per,
        "beta": query.beta if math.isfinite(query.beta) else None,
        "seed": query.seed,
        "box": None if query.size is None else list(query.size),
        "box_unit": "mm" if query.in_mm else "voxels",
        "stride": "half of the edges" if query.stride is None else list(query.stride),
        "predictions": [str(folder) for folder in folders],
        "single_network": len(folders) == 1,
        "annotated": [str(folder) for folder in annotated],
        "unit": files.unit,
        "missing_of_class": {name: number for name, number in missing.items() if number},
        "versions": versions(),
    }
    model = source if isinstance(source, PredictionFolder) else None
    return write_round(content, asked.regions, asked.predictions, files, output, annotator=annotator, model=model)


def _open(folders: Sequence[Path], query: Query, dataset_json: Path | None) -> Ensemble | PredictionFolder:
    """The predictions that a strategy reads."""
    if query.how.reads != "gain":
        return Ensemble.open(folders, dataset_json)
    if len(folders) != 1:
        raise InputError(f"the strategy {query.strategy} reads the maps of one folder, got {len(folders)}")
    return PredictionFolder.open(folders[0], dataset_json, needed=MAPS)


def summary(content: dict[str, Any], output: Path) -> str:
    """The first boxes, how they were chosen and where they were written, as text for the terminal."""
    rows = content["regions"]
    wide = max(len(row["case"]) for row in rows)
    lines = [f"{'rank':>5}  {'case':<{wide}}  {'box (z, y, x)':<24}  why"]
    for row in rows[:ROWS_SHOWN]:
        box = " ".join(f"{start}:{stop}" for start, stop in row["box"])
        lines.append(f"{row['rank']:>5}  {row['case']:<{wide}}  {box:<24}  {row['why']}")
    lines += [f"{'...':>5}"] * (len(rows) > ROWS_SHOWN)
    cases = len({row["case"] for row in rows})
    lines.append(
        f"{len(rows)} boxes in {cases} cases by {content['strategy']}, round {content['round']} of "
        f"{content['rounds']}, seed {content['seed']}"
    )
    if content["strategy"] == "gain":
        lines.append(f"  {sum(row['minutes'] for row in rows):.1f} minutes of work")
    chosen = Counter(row["class"] for row in rows)
    if len(chosen) > 1 or None not in chosen:
        numbers = [f"{'all classes' if name is None else name}: {number}" for name, number in chosen.items()]
        lines.append(f"  chosen for {', '.join(numbers)}")
    for name, number in content["missing_of_class"].items():
        lines.append(f"  {name} has {number} boxes fewer than its share; others were chosen from all classes instead")
    if content["single_network"] and content["strategy"] in ("claspe", "entropy"):
        lines.append("  from one network only: several folds (-i FOLD_0 FOLD_1 ...) show more of the uncertainty")
    return "\n".join(
        [*lines, f"  {output / JSON_NAME}", f"  {output / MASKS}", f"  {output / QUESTIONS}, for worklist and review"]
    )


def _study(given: Namespace) -> tuple[str, Path, Path] | None:
    """Name, masks and images of the dataset that is to be written, too; None for none."""
    if given.next_dataset is None:
        if given.answers is not None or given.images is not None:
            raise InputError("-answers and -images are for a dataset: --next_dataset DatasetXXX_Name")
        return None
    if given.answers is None or given.images is None:
        raise InputError("--next_dataset needs the masks (-answers) and the images (-images)")
    check_new_dataset(given.next_dataset, nnunet_folders())
    return given.next_dataset, given.answers, given.images


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.query()
    given = parser.parse_args(arguments)
    try:
        in_mm = given.patch_mm is not None
        size = given.patch_mm if in_mm else given.patch
        time, fitted = chosen_time(given.times_from, given.minutes_per_region, given.minutes_per_cm)
        number = given.n
        if number is None:
            if given.max_minutes is None:
                raise InputError("specify the number of boxes (-n), or with the strategy gain -max_minutes")
            check_work_limits(None, given.max_minutes)
            number = sys.maxsize  # the minutes are the limit
        asked = Query(
            number=number,
            strategy=given.strategy,
            round_number=given.round,
            rounds=given.rounds,
            seed=given.seed,
            size=None if size is None else tuple(size),
            in_mm=in_mm,
            stride=None if given.stride is None else tuple(given.stride),
            max_minutes=given.max_minutes,
            per=given.per,
            time=time,
        )
        study, part = _study(given), parsers.part_of(given)
        options = {
            "annotated": given.annotated,
            "dataset_json": given.djfile,
            "overwrite": given.overwrite,
            "num_processes": given.np,
        }
        if part.of > 1:
            print(query_part(part, given.i, given.o, asked, **options))
            return
        content = query_folders(given.i, given.o, asked, merge=given.merge, annotator=given.annotator, **options)
        if fitted is not None:
            print(f"working time: {fitted}")
        print(summary(content, given.o))
        if study is not None:
            name, answers, images = study
            print(dataset_summary(next_dataset(name, [*given.annotated, given.o], answers, images)))
    except InputError as error:
        parser.error(str(error))
