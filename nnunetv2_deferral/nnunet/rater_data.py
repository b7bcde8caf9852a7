"""Raters' masks as training data: preprocessed like the reference, stored beside nnU-Net's files and read by patch.

    <preprocessed>/<dataset>/<data_identifier>/<case>.b2nd, <case>_seg.b2nd     nnU-Net's files
    <preprocessed>/<dataset>/<data_identifier>_experts/<case>.b2nd              (J, *S), one channel per declared rater
    <preprocessed>/<dataset>/<data_identifier>_experts/experts.json             sizes and times of the source files,
                                                                                numbers of labelled voxels

Masks are preprocessed like their case: axes transposed, cropped with the case's bounding box, and resampled with the
configuration's function for segmentations. Nothing is written to folders in which stock nnU-Net looks for cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import blosc2
import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import bounding_box_to_slice
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from filelock import FileLock
from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import (
    comp_blosc2_params,
    infer_dataset_class,
    nnUNetBaseDataset,
    nnUNetDatasetBlosc2,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import distributed
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral import raters
from nnunetv2_deferral.dataset import label_manager, read_dataset_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json, written_whole
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.processes import check_processes, map_cases
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.schema import Count, Text, read_validated_json

_INDEX = "experts.json"


class _Index(TypedDict):
    experts: list[Text]
    cases: NotRequired[dict[Text, dict[Text, list[Count]]]]
    labelled: NotRequired[dict[Text, dict[Text, Count]]]


def raw_dataset(dataset_name: str) -> Path | None:
    """The raw folder of a dataset, or None if it does not exist in nnUNet_raw."""
    root = nnUNet_raw.get()
    folder = Path(root or "", dataset_name)
    return folder if root and folder.is_dir() else None


def dataset_raters(dataset_name: str, dataset_json: Mapping[str, Any]) -> tuple[str, ...]:
    """The raters of a dataset.

    nnU-Net copies dataset.json when planning, but experts may be declared later. Therefore the raw dataset.json takes
    precedence if it exists.

    Raises:
        InputError: See :func:`.raters.declared_raters`.
    """
    raw = raw_dataset(dataset_name)
    file = None if raw is None else raw / "dataset.json"
    if file is None or not file.is_file():
        return raters.declared_raters(dataset_json)
    return raters.declared_raters(read_dataset_json(file))


def undeclared_raters(dataset_name: str, declared: Sequence[str]) -> str | None:
    """A sentence on raters with masks in the raw dataset who are not declared, or None; see `raters`."""
    raw = raw_dataset(dataset_name)
    return None if raw is None else raters.undeclared_raters(raw, declared)


def rater_masks(
    plans_manager: PlansManager, dataset_json: Mapping[str, Any], experts: Sequence[str]
) -> ExpertMasks | None:
    """The raters' masks in the raw folder of a dataset, or None if the folder does not exist."""
    raw = raw_dataset(plans_manager.dataset_name)
    if raw is None:
        return None
    labels = label_manager(dataset_json, f"dataset.json of {plans_manager.dataset_name}")
    return ExpertMasks(
        folder=raw / raters.FOLDER,
        experts=tuple(experts),
        file_ending=dataset_json["file_ending"],
        reader=plans_manager.image_reader_writer_class(),
        label_values=tuple(int(value) for value in labels.all_labels),
        ignore_label=labels.ignore_label,
    )


def experts_folder(preprocessed: Path) -> Path:
    """The folder of the raters' preprocessed masks for a folder of preprocessed cases."""
    return preprocessed.with_name(f"{preprocessed.name}_experts")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Arguments common to all cases; pickled for the workers."""

    masks: ExpertMasks
    preprocessed: Path
    plans: dict[str, Any]
    configuration: str


def preprocess_raters(
    masks: ExpertMasks | None,
    *,
    declared: Sequence[str],
    preprocessed: Path,
    plans_manager: PlansManager,
    configuration: str,
    num_processes: int = 1,
) -> list[str]:
    """Preprocess the raters' masks of all cases, except those that are up to date.

    Args:
        masks: The masks of all declared raters, or None without raw data; masks must then have been preprocessed
            already.
        declared: The raters declared in dataset.json.
        preprocessed: nnU-Net's folder of preprocessed cases.
        plans_manager: The plans of the preprocessed cases.
        configuration: Their configuration.
        num_processes: Worker processes; 1 runs in this process.

    Returns:
        The cases that were preprocessed.

    Raises:
        InputError: If masks are invalid or do not match their images, or are missing without raw data; the message
            lists all problems, and nothing is written.
    """
    check_processes(num_processes)
    folder = experts_folder(preprocessed)
    cases = sorted(infer_dataset_class(str(preprocessed)).get_identifiers(str(preprocessed)))
    if masks is None:
        index, labelled = _read_index(folder, declared)
        missing = [case for case in cases if case not in index or case not in labelled]
        if missing:
            raise InputError(
                f"the masks of {', '.join(declared)} are not preprocessed for {len(missing)} of {len(cases)} cases "
                f"(the first is {missing[0]}), and the raw dataset is not in nnUNet_raw ({nnUNet_raw.get()})"
            )
        return []
    states = {case: _state(masks, preprocessed, case) for case in cases}
    general = list(_general_faults(masks, cases))
    if not general and not _stale(folder, states, declared):
        return []  # nothing is written, so the folder may be read-only
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        stale = _stale(folder, states, declared)  # another process may have preprocessed some in the meantime
        job = _Job(masks=masks, preprocessed=preprocessed, plans=dict(plans_manager.plans), configuration=configuration)
        _, labelled = _read_index(folder, declared)
        with written_whole(folder) as scratch:
            found = _run(job, stale, scratch, num_processes)
            faults = [*general, *(fault for each in found.values() for fault in each.faults)]
            if faults:
                raise InputError(
                    f"{len(faults)} problem(s) in the experts' masks of {masks.folder}:\n  " + "\n  ".join(faults)
                )
        labelled |= {case: each.labelled for case, each in found.items()}
        kept = {case: labelled[case] for case in states}
        write_json({"experts": list(declared), "cases": states, "labelled": kept}, folder / _INDEX)
    return stale


def prepare_raters(trainer: nnUNetTrainer) -> None:
    """Check and preprocess the masks of the raters of a trainer's dataset unless they are up to date."""
    if trainer.local_rank == 0:
        declared = dataset_raters(trainer.plans_manager.dataset_name, trainer.dataset_json)
        done = preprocess_raters(
            rater_masks(trainer.plans_manager, trainer.dataset_json, declared),
            declared=declared,
            preprocessed=Path(trainer.preprocessed_dataset_folder),
            plans_manager=trainer.plans_manager,
            configuration=trainer.configuration_name,
            num_processes=default_num_processes,
        )
        trainer.print_to_log_file(f"Experts' masks: {len(done)} cases preprocessed, the others are up to date")
    if trainer.is_ddp:
        distributed.barrier()


def labelled_voxels(preprocessed: Path) -> dict[str, dict[str, int]]:
    """The number of voxels of each preprocessed case that each declared rater labelled.

    Voxels that the reference ignores are not counted, because nothing can be learned from them.

    Args:
        preprocessed: nnU-Net's folder of preprocessed cases, after :func:`preprocess_raters`.

    Returns:
        For each case the number for each rater.
    """
    file = experts_folder(preprocessed) / _INDEX
    labelled: dict[str, dict[str, int]] | None = read_validated_json(file, _Index).get("labelled")
    if labelled is None:
        raise InputError(f"{file}: labelled is missing; delete the file to preprocess the experts' masks again")
    return labelled


class RaterDataset:
    """nnU-Net's dataset with the raters' masks as additional channels of the segmentations.

    Args:
        dataset: nnU-Net's dataset.
        folder: The folder from :func:`experts_folder`.
        experts: The raters to read, in the order of the channels.
    """

    def __init__(self, dataset: nnUNetBaseDataset, folder: Path, experts: Sequence[str]) -> None:
        self.dataset = dataset
        self.identifiers = dataset.identifiers
        self.folder = folder
        declared: list[str] = read_validated_json(folder / _INDEX, _Index)["experts"]
        if missing := [expert for expert in experts if expert not in declared]:
            raise InputError(f"{folder / _INDEX} has no masks of {', '.join(missing)}, only of {', '.join(declared)}")
        self.channels = None if declared == list(experts) else [declared.index(expert) for expert in experts]

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image, segmentation (1 + J, *S), segmentation of the previous stage, and properties; read on slicing."""
        data, segmentation, previous, properties = self.dataset.load_case(identifier)
        file = self.folder / f"{identifier}.b2nd"
        experts = _opened(str(file), file.stat().st_mtime_ns, **getattr(self.dataset, "mmap_kwargs", {}))
        return data, _Stacked(segmentation, experts, self.channels), previous, properties

    __getitem__ = load_case


# For small patches, opening the file takes longer than reading. An open file takes 0.2 MiB and one file descriptor.
@lru_cache(maxsize=128)
def _opened(file: str, changed: int, **how: Any) -> Any:
    """A file of masks for partial reading, kept open until it is evicted or its modification time `changed`."""
    return blosc2.open(urlpath=file, mode="r", dparams={"nthreads": 1}, **how)


class _Stacked:
    """A segmentation and raters' masks as one array of 1 + J channels, read on slicing."""

    def __init__(self, segmentation: Any, experts: Any, channels: list[int] | None) -> None:
        self._segmentation, self._experts, self._channels = segmentation, experts, channels
        self.shape = (1 + (len(experts) if channels is None else len(channels)), *segmentation.shape[1:])
        self.ndim = len(self.shape)
        self.dtype = segmentation.dtype

    def __getitem__(self, where: tuple[slice, ...]) -> np.ndarray:
        space = (slice(None), *where[1:])
        experts = self._experts[space]
        if self._channels is not None:
            experts = experts[self._channels]
        return np.concatenate((self._segmentation[space], experts), dtype=np.int16, casting="unsafe")[where[0]]


def _read_index(folder: Path, declared: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """By case, the states of the source files and the numbers of labelled voxels; empty if they are of other raters."""
    file = folder / _INDEX
    content = read_validated_json(file, _Index) if file.is_file() else {}
    if content.get("experts") != list(declared):
        return {}, {}
    return content.get("cases", {}), content.get("labelled", {})


def _stale(folder: Path, states: Mapping[str, Any], declared: Sequence[str]) -> list[str]:
    """The cases whose masks are not preprocessed or whose source files have changed."""
    index, labelled = _read_index(folder, declared)
    return [
        case
        for case in states
        if index.get(case) != states[case] or case not in labelled or not (folder / f"{case}.b2nd").is_file()
    ]


def _state(masks: ExpertMasks, preprocessed: Path, case: str) -> dict[str, Any]:
    """Sizes and modification times of the files on which a case's masks depend."""
    files = {expert: masks.file(expert, case) for expert in masks.experts}
    files = {expert: file for expert, file in files.items() if file.is_file()}
    files["case"] = preprocessed / f"{case}.pkl"
    return {name: [file.stat().st_size, file.stat().st_mtime_ns] for name, file in files.items()}


def _general_faults(masks: ExpertMasks, cases: Sequence[str]) -> Iterator[str]:
    for unused in masks.unused(cases):
        yield f"{unused} would not be used"
    for expert in masks.experts:
        annotated = masks.cases(expert)
        if not annotated:
            yield f"{masks.folder / expert} has no masks (*{masks.file_ending})"
        for case in sorted(set(annotated) - set(cases)):
            yield f"{masks.file(expert, case)}: no preprocessed case has this name"


class _Preprocessed(NamedTuple):
    """The result for a case: the problems found, or without any the number of voxels that each rater labelled."""

    faults: list[str]
    labelled: dict[str, int]


def _run(job: _Job, cases: Sequence[str], scratch: Path, num_processes: int) -> dict[str, _Preprocessed]:
    """Preprocess cases into a scratch folder."""
    if not cases:
        return {}
    work = partial(_preprocess_case, job, scratch)
    found = map_cases(work, cases, num_processes, description="Preprocessing experts' masks")
    return dict(zip(cases, found, strict=True))


def _preprocess_case(job: _Job, scratch: Path, case: str) -> _Preprocessed:
    """Write the masks of a case unless there are problems."""
    plans = PlansManager(job.plans)
    configuration = plans.get_configuration(job.configuration)
    properties = load_pickle(str(job.preprocessed / f"{case}.pkl"))
    # The shape from nnU-Net's reader, before axes were transposed.
    shape = [properties["shape_before_cropping"][axis] for axis in plans.transpose_backward]
    faults: list[str] = []
    answers = np.full((len(job.masks.experts), *shape), MISSING, dtype=np.int16)
    for answer, expert in zip(answers, job.masks.experts, strict=True):
        try:
            labels = job.masks.read(expert, case, properties)
            if labels is not None and labels.shape != answer.shape:
                raise InputError(
                    f"{job.masks.file(expert, case)}: shape {labels.shape}, but the image has {answer.shape}"
                )
        except InputError as error:
            faults.append(str(error))
        else:
            answer[...] = answer if labels is None else labels
    if faults:
        return _Preprocessed(faults, {})
    reference = infer_dataset_class(str(job.preprocessed))(str(job.preprocessed), [case])[case][1]
    masks = _like_the_case(answers, properties, plans, configuration, reference.shape[1:])
    blocks, chunks = comp_blosc2_params(masks.shape, tuple(configuration.patch_size), masks.itemsize)
    try:
        nnUNetDatasetBlosc2.save_seg(masks, str(scratch / case), chunks_seg=chunks, blocks_seg=blocks)
        written = np.array_equal(blosc2.open(urlpath=str(scratch / f"{case}.b2nd"), mode="r")[:], masks)
    except (OSError, RuntimeError):  # blosc2 does not say why
        written = False
    if not written:
        raise InputError(f"{scratch.parent / f'{case}.b2nd'} cannot be written completely: is the disk full?")
    labelled = masks != MISSING
    if job.masks.ignore_label is not None:
        labelled &= reference[:1] != job.masks.ignore_label
    counts = labelled.reshape(len(masks), -1).sum(1).tolist()
    return _Preprocessed([], dict(zip(job.masks.experts, counts, strict=True)))


def _like_the_case(
    answers: np.ndarray,
    properties: Mapping[str, Any],
    plans: PlansManager,
    configuration: ConfigurationManager,
    shape: Sequence[int],
) -> np.ndarray:
    """Preprocess masks (J, *S) in the axis order of the reader like their case: int16 (J, *shape)."""
    answers = answers.transpose([0, *(axis + 1 for axis in plans.transpose_forward)])
    box = (slice(None), *bounding_box_to_slice(properties["bbox_used_for_cropping"]))
    spacing = [properties["spacing"][axis] for axis in plans.transpose_forward]
    target = list(configuration.spacing)
    target = target if len(target) == len(shape) else [spacing[0], *target]
    resampled = configuration.resampling_fn_seg(np.ascontiguousarray(answers[box]), shape, spacing, target)
    return np.ascontiguousarray(resampled, dtype=np.int16)
