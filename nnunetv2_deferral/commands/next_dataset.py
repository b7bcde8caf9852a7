"""`nnUNetv2_deferral_next_dataset`: make the answers to questions the training data of the next dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import full_dataset_name
from nnunetv2_deferral.query.answered import Answers, RoundAnswers, RoutedAnswers
from nnunetv2_deferral.query.asking import open_rounds
from nnunetv2_deferral.query.next_dataset import (
    PROVENANCE,
    BaseDataset,
    NnunetFolders,
    check_new_dataset,
    write_next_dataset,
)
from nnunetv2_deferral.query.rounds import JSON_NAME
from nnunetv2_deferral.text import listed


def nnunet_folders() -> NnunetFolders:
    """nnU-Net's folders.

    Raises:
        InputError: If a variable of nnU-Net is not set.
    """
    roots = {"nnUNet_raw": nnUNet_raw, "nnUNet_preprocessed": nnUNet_preprocessed}
    if unset := [name for name, path in roots.items() if not path.is_set()]:
        raise InputError(f"{', '.join(unset)} must be set, as for nnU-Net's own commands")
    return NnunetFolders(raw=Path(nnUNet_raw), preprocessed=Path(nnUNet_preprocessed))


def next_dataset(
    name: str,
    questions: Sequence[Path],
    answers: Path,
    images: Path,
    *,
    base: str | None = None,
    groups: Path | None = None,
    dataset_json: Path | None = None,
) -> dict[str, Any]:
    """Write the dataset of what is answered.

    Args:
        name: `DatasetXXX_Name`.
        questions: Folders of rounds of queries, or one folder of predictions by a deferral model.
        answers: The folder of the masks, see :class:`.RoundAnswers` and :class:`.RoutedAnswers`.
        images: The folder of the images.
        base: Number or name of a dataset whose cases are taken over.
        groups: A JSON file that maps each case to its group (patient).
        dataset_json: The dataset.json of the questions; None for the one beside them.

    Returns:
        The content of provenance.json.

    Raises:
        InputError: For invalid input; nothing is then written.
    """
    folders = nnunet_folders()
    check_new_dataset(name, folders)
    opened = open_answers(questions, answers, dataset_json)
    taken = None if base is None else BaseDataset.open(folders.raw / full_dataset_name(base))
    cases = [*opened.cases, *(() if taken is None else taken.cases)]
    found = None if groups is None else {case: str(group) for case, group in read_groups(groups, cases).items()}
    return write_next_dataset(name, opened, images, folders, base=taken, groups=found)


def open_answers(questions: Sequence[Path], answers: Path, dataset_json: Path | None = None) -> Answers:
    """The answers to rounds of queries, or to the questions of one folder of predictions.

    Raises:
        InputError: If the folders are neither, or the answers do not belong to them.
    """
    rounds = [folder for folder in questions if (folder / JSON_NAME).is_file()]
    if len(rounds) == len(questions):
        return RoundAnswers.open(open_rounds(questions), answers, dataset_json)
    if rounds or len(questions) > 1:
        others = [str(folder) for folder in questions if folder not in rounds]
        raise InputError(
            f"{', '.join(others)} has no {JSON_NAME}: -i takes rounds of nnUNetv2_deferral_query, or one folder of "
            "predictions by a deferral model"
        )
    return RoutedAnswers.open(questions[0], answers, dataset_json)


def summary(content: dict[str, Any]) -> str:
    """What is in the dataset and how to go on, as text for the terminal."""
    cases = content["cases"]
    answered = {case: entry for case, entry in cases.items() if not entry["base"]}
    total = sum(entry["answered_voxels"] for entry in answered.values())
    lines = [f"{content['dataset']}: {len(cases)} cases, {total} answered voxels in {len(answered)} of them"]
    if content["base"] is not None:
        replaced = sum(entry["replaced_voxels_of_base"] for entry in answered.values())
        lines.append(f"  {len(cases) - len(answered)} cases as in {content['base']}; {replaced} of its labels replaced")
    if content["not_answered"]:
        lines.append(f"  left out, because nothing was answered: {listed(content['not_answered'])}")
    if contradicted := sum(entry["contradicted_voxels"] for entry in answered.values()):
        lines.append(f"  {contradicted} voxels are ignored, because experts answered them differently")
    for name, found in content["classes"].items():
        if not found["cases"]:
            lines.append(f"  no voxel of {name} is annotated: a network cannot learn it from this dataset")
        elif found["folds"] < 2:
            lines.append(f"  {name} is in the validation of {found['folds']} fold only")
    number = content["dataset"].removeprefix("Dataset")[:3]
    return "\n".join(
        [*lines, f"  who answered what: {PROVENANCE}", f"  next: nnUNetv2_plan_and_preprocess -d {int(number)}"]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.next_dataset()
    given = parser.parse_args(arguments)
    try:
        content = next_dataset(
            given.o,
            given.i,
            given.answers,
            given.images,
            base=given.base,
            groups=given.groups,
            dataset_json=given.djfile,
        )
    except InputError as error:
        parser.error(str(error))
    print(summary(content))
