"""`nnUNetv2_deferral_convert_dataset`: bring a published dataset into nnU-Net's raw format.

Downloading is left to the user, who has to accept the datasets' terms. The modules of
:mod:`nnunetv2_deferral.dataset_conversion` say which files are expected.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_raw

from nnunetv2_deferral.dataset_conversion.amos22 import TASKS, find_amos22
from nnunetv2_deferral.dataset_conversion.chaksu import find_chaksu
from nnunetv2_deferral.dataset_conversion.common import Case, DatasetInfo, write_dataset
from nnunetv2_deferral.dataset_conversion.lits import find_lits
from nnunetv2_deferral.dataset_conversion.promise12 import find_promise12
from nnunetv2_deferral.errors import InputError

DATASETS = ("chaksu", "promise12", "lits", "amos22")


def convert_dataset(
    dataset: str,
    published_folder: str | Path,
    dataset_id: int,
    nnunet_raw: str | Path,
    *,
    task: int | None = None,
    ignore_label_geometry: bool = False,
    num_processes: int = 1,
) -> Path:
    """Write `nnunet_raw/DatasetXXX_<Name>`, wholly or not at all.

    Args:
        dataset: One of :data:`DATASETS`.
        published_folder: Where the dataset was unpacked; see its module for what is expected.
        dataset_id: From 1 to 999, not in use.
        nnunet_raw: nnU-Net's folder of raw datasets.
        task: Of AMOS22: 1 for CT alone, 2 for CT and MRI, which is the default.
        ignore_label_geometry: Pair volumes voxel by voxel where the header of a segmentation has another geometry.
        num_processes: Worker processes; 1 works in this process.

    Returns:
        The dataset's folder.

    Raises:
        InputError: If the published folder, or something without which nothing can be converted, is missing.
        InputError: If there is a dataset with this id.
        InputError: For faulty files, all named, and options that do not go with the dataset.
    """
    info, cases = _find(dataset, Path(published_folder), task, ignore_label_geometry)
    return write_dataset(info, cases, Path(nnunet_raw), dataset_id, num_processes=num_processes)


def _find(
    dataset: str, folder: Path, task: int | None, ignore_label_geometry: bool
) -> tuple[DatasetInfo, Sequence[Case]]:
    if dataset not in DATASETS:
        raise InputError(f"there is no dataset {dataset!r}, only {', '.join(DATASETS)}")
    if task is not None and dataset != "amos22":
        raise InputError(f"only amos22 has tasks, not {dataset}")
    if dataset == "chaksu":
        if ignore_label_geometry:
            raise InputError("photographs have no geometry that could be ignored")
        return find_chaksu(folder)
    if dataset == "amos22":
        return find_amos22(folder, task=2 if task is None else task, ignore_label_geometry=ignore_label_geometry)
    find = find_promise12 if dataset == "promise12" else find_lits
    return find(folder, ignore_label_geometry=ignore_label_geometry)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends with one line on stderr and exit code 2."""
    parser = _parser()
    given = parser.parse_args(arguments)
    target = given.o or nnUNet_raw.get()
    if not target:
        parser.error("nnUNet_raw is not set: set it or say with -o where the dataset shall be")
    try:
        convert_dataset(
            given.dataset,
            given.i,
            given.d,
            target,
            task=given.task,
            ignore_label_geometry=given.ignore_label_geometry,
            num_processes=given.np,
        )
    except InputError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_deferral_convert_dataset",
        description="Bring a published dataset, downloaded and unpacked, into nnU-Net's raw format. All files are "
        "checked first; the dataset appears when it is complete, and nothing is overwritten.",
    )
    add = parser.add_argument
    add("dataset", choices=DATASETS, help="which dataset it is")
    add("-i", metavar="PUBLISHED_FOLDER", required=True, help="folder with the published files")
    add("-d", metavar="ID", type=int, required=True, help="id of the dataset in nnU-Net, 1 to 999")
    add("-o", metavar="NNUNET_RAW", help="folder of raw datasets. Default: the environment variable nnUNet_raw")
    add("-np", metavar="N", type=int, default=1, help="number of processes. Default: 1")
    add("-task", type=int, choices=TASKS, help="amos22: 1 for CT alone, 2 for CT and MRI. Default: 2")
    geometry = (
        "pair segmentations with their images voxel by voxel where their headers disagree on spacing, origin or "
        "direction; some of LiTS' need it"
    )
    add("--ignore_label_geometry", action="store_true", help=geometry)
    return parser
