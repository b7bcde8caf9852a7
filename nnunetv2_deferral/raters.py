"""Masks of real experts on disk: which there are, whether they fit their images, and their labels for a case.

    <folder>/<expert>/<case><file_ending>

such as `expertsTr` of a dataset, whose `dataset.json` declares `"experts": ["ann", "bob"]`, or the answers that were
simulated for an evaluation. A case that an expert did not annotate is simply absent; where a mask holds the dataset's
ignore label, the expert has left the voxel out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.geometry import geometry_differences
from nnunetv2_deferral.labels import MISSING, unknown_labels
from nnunetv2_deferral.names import check_expert_names

if TYPE_CHECKING:
    from nnunetv2_deferral.dataset import DatasetFiles

FOLDER = "expertsTr"
DATASET_KEY = "experts"
REVIEW_NAME = "review.json"  # in a folder of experts that the review page fills


class MaskReader(Protocol):
    """What of nnU-Net's reader-writers masks are read with."""

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict[str, Any]]:
        """The mask (1, *S) and its properties."""


def declared_raters(dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """The experts that a dataset.json declares under `"experts"`, in this order; empty if it declares none.

    Raises:
        InputError: If what stands there is not a list of different names that can be folders.
    """
    declared = dataset_json.get(DATASET_KEY, [])
    where = f'"{DATASET_KEY}" in dataset.json'
    if not isinstance(declared, list):
        raise InputError(f"{where} must be a list of names, one for each folder in {FOLDER}; got {declared!r}")
    return check_expert_names(declared, where)


@dataclass(frozen=True, kw_only=True)
class ExpertMasks:
    """A folder of experts' masks and how to read it.

    Attributes:
        folder: `<folder>/<expert>/<case><file_ending>`.
        experts: The names of the J experts in routing order.
        file_ending: The dataset's.
        reader: nnU-Net's reader for these files.
        label_values: All labels with background, without the ignore label.
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
        """The masks in a folder, read as the label files of a dataset are."""
        return cls(
            folder=folder,
            experts=tuple(experts),
            file_ending=files.file_ending,
            reader=files.reader,
            label_values=files.label_values,
            ignore_label=files.label_manager.ignore_label,
        )

    def check_asked(self, experts: Sequence[str]) -> None:
        """Refuse experts who were asked and have no masks at all.

        In the folder of a review they have not answered yet, or nothing of theirs was on its worklist; their voxels
        are then unanswered.

        Raises:
            InputError: Naming their folders, and those that are there.
        """
        if (self.folder / REVIEW_NAME).is_file():
            return
        empty = [str(self.folder / expert) for expert in experts if not self.cases(expert)]
        if empty:
            there = sorted(path.name for path in self.folder.glob("*") if path.is_dir())
            raise InputError(
                f"voxels are routed to experts without masks: no *{self.file_ending} in {', '.join(empty)} "
                f"(folders there: {', '.join(there) or 'none'})"
            )

    def file(self, expert: str, case: str) -> Path:
        """Where the mask of an expert for a case is, if there is one."""
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
            properties: nnU-Net's properties of the case's image or mask, to compare the geometry with, or None.

        Returns:
            int16 in the axis order of nnU-Net's readers, (Z, Y, X) or (1, Y, X); `MISSING` where the expert left a
            voxel out.

        Raises:
            InputError: If the file cannot be read, has labels that are not in dataset.json, or another geometry; the
                message names the file and all that is wrong with it.
        """
        file = self.file(expert, case)
        if not file.is_file():
            return None
        try:
            values, found = self.reader.read_seg(str(file))
        except Exception as error:  # readers fail in their own ways on a file that is cut short or of another kind
            raise InputError(f"{file} cannot be read: {error}") from error
        faults = list(self._label_faults(values))
        if properties is not None:
            faults += geometry_differences(found, properties)
        if faults:
            raise InputError(f"{file}: {'; '.join(faults)}")
        labels = np.rint(values[0]).astype(np.int16)
        if self.ignore_label is not None:
            labels[labels == self.ignore_label] = MISSING
        return labels

    def answers(self, case: str, shape: Sequence[int], properties: Mapping[str, Any] | None = None) -> np.ndarray:
        """The labels of all experts for a case, (J, *S) int16, `MISSING` where one has none.

        Raises:
            InputError: See :meth:`read`; also for a mask of another shape than `shape`.
        """
        answers = np.full((len(self.experts), *shape), MISSING, dtype=np.int16)
        for answer, expert in zip(answers, self.experts, strict=True):
            labels = self.read(expert, case, properties)
            if labels is None:
                continue
            if labels.shape != tuple(shape):
                raise InputError(f"{self.file(expert, case)}: shape {labels.shape} instead of {tuple(shape)}")
            answer[...] = labels
        return answers

    def _label_faults(self, values: np.ndarray) -> Iterator[str]:
        if values.ndim != 4 or values.shape[0] != 1:
            yield f"no label map of one channel, nnU-Net reads shape {values.shape}"
            return
        if unknown := unknown_labels(values, (*self.label_values, self.ignore_label)):
            yield f"holds labels that are not in dataset.json: {unknown}"
