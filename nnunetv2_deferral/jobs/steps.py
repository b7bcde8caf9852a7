"""The jobs of each step: nnU-Net's prediction, the evaluation and the worklist, as commands with their parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.utils import get_identifiers_from_splitted_dataset_folder

from nnunetv2_deferral import maps, parts
from nnunetv2_deferral.dataset import read_dataset_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import state_of
from nnunetv2_deferral.installed import find_script
from nnunetv2_deferral.jobs.job import Job
from nnunetv2_deferral.parts import Part

PREDICT, EVALUATE, WORKLIST = "predict", "evaluate", "worklist"
STEPS = (PREDICT, EVALUATE, WORKLIST)
_SET_HERE = ("-i", "-o", "-num_parts", "-part_id", "--merge", "--continue_prediction", "--overwrite")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done with a folder of images.

    Attributes:
        images: The folder of the images.
        output: The output folder, for `predictions`, `evaluation`, `worklist` and `jobs`.
        steps: The steps, in the order of :data:`STEPS`.
        num_parts: The number of parts of the cases.
        options: For each step the options of its command.

    Raises:
        InputError: If a step is unknown or twice, or options are given that are set here or for no step.
    """

    images: Path
    output: Path
    steps: tuple[str, ...]
    num_parts: int
    options: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        Part(of=self.num_parts)
        if list(self.steps) != [step for step in STEPS if step in self.steps]:
            raise InputError(f"steps must be some of {', '.join(STEPS)}, in this order, got {', '.join(self.steps)}")
        for step, words in self.options.items():
            if words and step not in self.steps:
                raise InputError(f"options for {step} are given, but it is not one of the steps (-steps)")
            if taken := [word for word in words if word in _SET_HERE]:
                raise InputError(f"{taken[0]} of {step} is set by this command")

    @property
    def predictions(self) -> Path:
        """The folder of the predictions."""
        return self._folder(PREDICT)

    def jobs(self, step: str) -> list[list[Job]]:
        """The jobs of a step, in groups of which each needs the one before.

        The jobs of a step that reads files are those of the present state of these files: of the predictions, and of
        all files and folders among its options.

        Args:
            step: The step.

        Raises:
            InputError: If the model of a prediction does not exist, or there are no images.
        """
        if step == PREDICT:
            return [self._predict()]
        folder = self._folder(step)
        words = [find_script(f"nnUNetv2_deferral_{step}"), "-i", str(self.predictions), "-o", str(folder)]
        words += self.options[step]
        reads = state_of([self.predictions, *map(Path, self.options[step])])
        # Its folder is this command's own.
        last = ["--overwrite"] if step == WORKLIST else []
        if self.num_parts == 1:
            return [[self._job(step, Part(), [*words, *last], reads)]]
        each = [self._job(step, part, [*words, *_of(part)], reads, outputs=[part.file(folder)]) for part in self._parts]
        return [each, [self._job(f"{step}_merge", Part(), [*words, "--merge", *last], reads)]]

    def clear(self, step: str) -> None:
        """Delete what parts of another number left of a step."""
        folder = self._folder(step)
        own = {part.file(folder) for part in self._parts}
        for file in set(folder.glob(f"{parts.FOLDER}/*.pkl.gz")) - own:
            file.unlink()

    @property
    def _parts(self) -> list[Part]:
        return [Part(number=number, of=self.num_parts) for number in range(self.num_parts)]

    def _folder(self, step: str) -> Path:
        return self.output / {PREDICT: "predictions", EVALUATE: "evaluation"}.get(step, step)

    def _predict(self) -> list[Job]:
        words = self.options[PREDICT]
        ending = self._file_ending(words)
        cases = [str(case) for case in get_identifiers_from_splitted_dataset_folder(str(self.images), ending)]
        if not cases:
            raise InputError(f"{self.images} has no images <case>_0000{ending}")
        command = [find_script("nnUNetv2_predict"), "-i", str(self.images), "-o", str(self.predictions), *words]
        jobs = []
        for part in self._parts:
            outputs = [
                file
                for case in part.cases(cases)
                for file in (self.predictions / f"{case}{ending}", maps.case_file(self.predictions, case))
            ]
            how = [*command, *_of(part), "--continue_prediction"]
            jobs.append(self._job(PREDICT, part, how, "", outputs=outputs))
        return jobs

    def _file_ending(self, words: Sequence[str]) -> str:
        """The ending of the files of the model's dataset."""
        # Not argparse, which reads `-device` as `-d evice` unless it knows all options.
        following = dict(pairwise(words))
        if missing := [option for option in ("-d", "-c") if option not in following]:
            raise InputError(f"options for {PREDICT}: {', '.join(missing)} is required")
        names = (following.get("-tr", "nnUNetTrainer"), following.get("-p", "nnUNetPlans"), following["-c"])
        try:
            model = Path(get_output_folder(following["-d"], *names))
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"nnU-Net does not find dataset {following['-d']}: {error}") from error
        if not model.is_dir():
            raise InputError(f"the model {model} does not exist")
        return str(read_dataset_json(model / "dataset.json")["file_ending"])

    def _job(self, step: str, part: Part, words: Sequence[str], reads: str, *, outputs: Sequence[Path] = ()) -> Job:
        return Job(
            step=step,
            number=part.number,
            of=part.of,
            words=tuple(words),
            folder=self.output / "jobs",
            outputs=tuple(outputs),
            reads=reads,
        )


def _of(part: Part) -> list[str]:
    return [] if part.of == 1 else ["-num_parts", str(part.of), "-part_id", str(part.number)]


def refuse(message: str) -> NoReturn:
    """Stands in for `ArgumentParser.error`, which ends the process."""
    raise InputError(message)
