"""Reading and checking of experts' masks on disk.

    <folder>/<expert>/<case><file_ending>

such as `expertsTr` of a dataset, whose `dataset.json` declares `"experts": ["ann", "bob"]`, or the answers simulated
for an evaluation. Cases that an expert did not annotate are absent; voxels that an expert left out have the dataset's
ignore label. In the folder of a review with two readers for each region, what they settled counts (`readings.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import state_of
from nnunetv2_deferral.geometry import geometry_differences
from nnunetv2_deferral.image_files import MaskReader, read_values
from nnunetv2_deferral.labels import MISSING, unknown_labels
from nnunetv2_deferral.names import RESERVED_NAMES, REVIEW_NAME, check_expert_names, spelling
from nnunetv2_deferral.readings import ReadingRules, Settled, digests, read_settled
from nnunetv2_deferral.text import listed

if TYPE_CHECKING:
    from nnunetv2_deferral.dataset import DatasetFiles

FOLDER = "expertsTr"
DATASET_KEY = "experts"


def declared_raters(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """The experts declared under `"experts"` in a dataset.json, in this order; empty if there are none.

    Raises:
        InputError: If the value is not a list of distinct, valid names, see :func:`.check_expert_names`.
    """
    declared = dataset_json.get(DATASET_KEY, [])
    where = f'"{DATASET_KEY}" in dataset.json'
    if not isinstance(declared, list):
        raise InputError(f"{where} must be a list of names, one for each folder in {FOLDER}; got {declared!r}")
    return check_expert_names(declared, where)


def expert_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder `<expert>/<case>`, sorted; empty if there is none.

    Without hidden ones and what a review keeps beside them.
    """
    names = [path.name for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
    return sorted(name for name in names if name not in RESERVED_NAMES)


def undeclared_raters(dataset: Path, declared: Collection[str]) -> str | None:
    """A sentence on experts with masks whom dataset.json does not declare, and who are therefore not used.

    Args:
        dataset: The raw folder of the dataset; it need not have masks of experts.
        declared: The experts declared in its dataset.json.

    Returns:
        The sentence, or None if there are none.
    """
    folder = dataset / FOLDER
    names = [name for name in expert_folders(folder) if name not in declared and any((folder / name).iterdir())]
    if not names:
        return None
    return (
        f"{FOLDER} of {dataset.name} has masks of {listed(names)}, which are not used, because dataset.json does not "
        f'declare them. To use them, add "{DATASET_KEY}": {json.dumps([*declared, *names])}'
    )


@dataclass(frozen=True, kw_only=True)
class ExpertMasks:
    """A folder of experts' masks.

    Attributes:
        folder: The folder, with files `<expert>/<case><file_ending>`.
        experts: The names of the J experts in routing order.
        file_ending: The dataset's file ending.
        reader: nnU-Net's reader for these files.
        label_values: All labels including background, without the ignore label.
        ignore_label: The label of voxels that an expert left out, or None.
    """

    folder: Path
    experts: tuple[str, ...]
    file_ending: str
    reader: MaskReader
    label_values: tuple[int, ...]
    ignore_label: int | None = None

    @classmethod
    def of(cls, folder: Path, experts: Sequence[str], files: DatasetFiles) -> ExpertMasks:
        """The masks in a folder, in the format of the label files of a dataset."""
        return cls(
            folder=folder,
            experts=tuple(experts),
            file_ending=files.file_ending,
            reader=files.reader,
            label_values=files.label_values,
            ignore_label=files.label_manager.ignore_label,
        )

    @cached_property
    def rules(self) -> ReadingRules | None:
        """The rules of a review with two readers for each region; None of other masks.

        Raises:
            InputError: If they cannot be read.
        """
        return ReadingRules.of(self.folder)

    @property
    def is_review(self) -> bool:
        """Whether the masks are of the review page: where an expert was not asked, they have the model's labels."""
        return (self.folder / REVIEW_NAME).is_file()

    def check_answers(self, asked: Mapping[str, Sequence[str]]) -> None:
        """Refuse a folder that does not have the answers to the questions of a prediction.

        Single masks may be missing, and in the folder of a review experts who have not answered yet or had no regions
        on the worklist; their voxels count as unanswered.

        Args:
            asked: For each predicted case, the experts to whom voxels are routed.

        Raises:
            InputError: If files are not used (see :meth:`unused`), an expert who is asked has no masks at all, or none
                of the masks is of a case about which its expert is asked.
        """
        if unused := self.unused(list(asked)):
            raise InputError(f"experts' files that would not be used ({len(unused)}): {listed(unused, 10)}")
        experts = [expert for expert in self.experts if any(expert in names for names in asked.values())]
        empty = [str(self.folder / expert) for expert in experts if not self.cases(expert)]
        if empty and not self.is_review:
            there = sorted(path.name for path in self.folder.glob("*") if path.is_dir())
            raise InputError(
                f"voxels are routed to experts without masks: no *{self.file_ending} in {', '.join(empty)} "
                f"(existing folders: {', '.join(there) or 'none'})"
            )
        pairs = [(expert, case) for case, names in asked.items() for expert in names if expert in self.experts]
        has_settled = self.rules is not None and any(self.cases(expert) for expert in self.experts)
        if pairs and not has_settled and not any(self.file(*pair).is_file() for pair in pairs):
            raise InputError(f"{self.folder} has no mask of any expert for a case with voxels routed to this expert")

    def unused(self, cases: Collection[str]) -> list[str]:
        """Files in the experts' folders that look like masks of the cases, but are not read as such.

        These are files with another ending than the dataset's, and names of experts or cases that differ only in upper
        and lower case or in their Unicode normalization. Hidden files and JSON files, which accompany .tif, are not
        meant.

        Args:
            cases: The cases that are looked for; masks of other cases are not meant.

        Returns:
            One phrase per file, which starts with its path.
        """
        known, spelled = set(cases), {spelling(case): case for case in cases}
        found = []
        for expert in self.experts:
            folder = self.folder / expert
            if not folder.is_dir():
                folders = sorted(path for path in self.folder.glob("*") if path.is_dir())
                alike = [path for path in folders if spelling(path.name) == spelling(expert)]
                found += [f"{path} (not spelled {expert})" for path in alike]
                continue
            for file in sorted(folder.iterdir()):
                if file.name.startswith(".") or file.suffix == ".json" or not file.is_file():
                    continue
                case = file.name.removesuffix(self.file_ending)
                if case == file.name:
                    found.append(f"{file} (not {self.file_ending})")
                elif case not in known and spelling(case) in spelled:
                    found.append(f"{file} (not spelled {spelled[spelling(case)]})")
        return found

    def file(self, expert: str, case: str) -> Path:
        """The file of an expert's mask for a case; it need not exist."""
        return self.folder / expert / f"{case}{self.file_ending}"

    def cases(self, expert: str) -> list[str]:
        """The cases that an expert annotated, sorted; empty if there is no such folder."""
        files = self.folder.joinpath(expert).glob(f"*{self.file_ending}")
        return sorted(file.name.removesuffix(self.file_ending) for file in files if not file.name.startswith("."))

    def read(self, expert: str, case: str, properties: Mapping[str, Any] | None = None) -> np.ndarray | None:
        """The labels of an expert for a case, or None if there are none.

        Args:
            expert: The name of the expert.
            case: The case identifier.
            properties: nnU-Net's properties of the case's image or mask, against which the geometry is checked; None
                for no check.

        Returns:
            int16 in the axis order of nnU-Net's readers, (Z, Y, X) or (1, Y, X); `MISSING` where the expert left a
            voxel out.

        Raises:
            InputError: If the file is incomplete or cannot be read, contains labels that are not in dataset.json, or
                has another geometry; the message names the file and its faults.
        """
        file = self.file(expert, case)
        if not file.is_file():
            return None
        values, found = read_values(file, self.reader)
        unknown = unknown_labels(values, (*self.label_values, self.ignore_label))
        faults = [f"contains labels that are not in dataset.json: {unknown}"] if unknown else []
        if properties is not None:
            faults += geometry_differences(found, properties, values.shape)
        if faults:
            raise InputError(f"{file}: {'; '.join(faults)}")
        labels = values.astype(np.int16)
        if self.ignore_label is not None:
            labels[labels == self.ignore_label] = MISSING
        return labels

    def answers(
        self,
        case: str,
        shape: Sequence[int],
        properties: Mapping[str, Any] | None = None,
        *,
        as_settled: bool = True,
    ) -> np.ndarray:
        """The labels of all experts for a case, int16 (J, *S), `MISSING` where an expert has none.

        Args:
            case: The case identifier.
            shape: The shape S of the case.
            properties: See :meth:`read`.
            as_settled: Whether all experts have the settled labels where a review asked two readers, so that no reading
                counts against what was decided.

        Raises:
            InputError: See :meth:`read` and :meth:`settled`; also if the shape of a mask is not `shape`.
        """
        answers = np.full((len(self.experts), *shape), MISSING, dtype=np.int16)
        for answer, expert in zip(answers, self.experts, strict=True):
            labels = self.read(expert, case, properties)
            if labels is None:
                continue
            if labels.shape != tuple(shape):
                raise InputError(f"{self.file(expert, case)}: shape {labels.shape} instead of {tuple(shape)}")
            answer[...] = labels
        if as_settled and (settled := self.settled(case)) is not None:
            if settled.labels.shape != tuple(shape):
                raise InputError(f"{self.folder}: {case} was settled with shape {settled.labels.shape}, not {shape}")
            asked = settled.route > 0
            answers[:, asked] = settled.labels[asked]
        return answers

    @property
    def state(self) -> str:
        """A hash of the names, sizes and times of the masks, also of those of an adjudicator."""
        names = [*self.experts, *([self.rules.adjudicator] if self.rules and self.rules.adjudicator else [])]
        return state_of(self.folder / name for name in names)

    def settled(self, case: str) -> Settled | None:
        """What two readers for each region and an adjudicator settled; None without such a review, or without masks.

        Raises:
            InputError: If its file is missing or damaged, or a mask was written or replaced since.
        """
        rules = self.rules
        if rules is None:
            return None
        settled = read_settled(self.folder, case)
        experts = self.experts if settled is None else settled.experts
        names = dict.fromkeys([*experts, *([rules.adjudicator] if rules.adjudicator else [])])
        now = digests({name: self.file(name, case) for name in names})
        if now != (dict(settled.masks) if settled else {}):
            changed = [name for name in names if now.get(name) != (settled.masks.get(name) if settled else None)]
            raise InputError(
                f"{self.file(changed[0], case)} was written after its regions were settled. Restart the review to "
                "settle them again"
            )
        return settled
