"""`nnUNetv2_deferral_convert_dataset`: convert a published dataset to nnU-Net's raw format.

The user downloads the dataset and accepts its terms. The modules of :mod:`nnunetv2_deferral.dataset_conversion`
document the expected files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2.paths import nnUNet_raw

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset_conversion.amos22 import find_amos22
from nnunetv2_deferral.dataset_conversion.chaksu import find_chaksu
from nnunetv2_deferral.dataset_conversion.common import Case, DatasetInfo, write_dataset
from nnunetv2_deferral.dataset_conversion.lits import find_lits
from nnunetv2_deferral.dataset_conversion.promise12 import find_promise12
from nnunetv2_deferral.defaults import CONVERTED_DATASETS
from nnunetv2_deferral.errors import InputError


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
    """Write `nnunet_raw/DatasetXXX_<Name>`, completely or not at all.

    Args:
        dataset: One of :data:`.CONVERTED_DATASETS`.
        published_folder: The unpacked dataset; see its module for the expected files.
        dataset_id: An unused dataset id, 1 to 999.
        nnunet_raw: nnU-Net's folder of raw datasets.
        task: Task of AMOS22: 1 for CT only, 2 (default) for CT and MRI.
        ignore_label_geometry: Pair images and segmentations voxel by voxel even if their headers differ in geometry.
        num_processes: Number of worker processes; 1 runs in this process.

    Returns:
        The dataset's folder.

    Raises:
        InputError: If the published folder or a required file is missing.
        InputError: If a dataset with this id exists.
        InputError: For invalid files, listing all of them, and for options that do not apply to the dataset.
    """
    info, cases = _find(dataset, Path(published_folder), task, ignore_label_geometry)
    return write_dataset(info, cases, Path(nnunet_raw), dataset_id, num_processes=num_processes)


def _find(
    dataset: str, folder: Path, task: int | None, ignore_label_geometry: bool
) -> tuple[DatasetInfo, Sequence[Case]]:
    if dataset not in CONVERTED_DATASETS:
        raise InputError(f"unknown dataset {dataset!r}; known datasets: {', '.join(CONVERTED_DATASETS)}")
    if task is not None and dataset != "amos22":
        raise InputError(f"only amos22 has tasks, not {dataset}")
    if dataset == "chaksu":
        if ignore_label_geometry:
            raise InputError("chaksu consists of photographs, whose files have no geometry to ignore")
        return find_chaksu(folder)
    if dataset == "amos22":
        return find_amos22(folder, task=2 if task is None else task, ignore_label_geometry=ignore_label_geometry)
    find = find_promise12 if dataset == "promise12" else find_lits
    return find(folder, ignore_label_geometry=ignore_label_geometry)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.convert_dataset()
    given = parser.parse_args(arguments)
    target = given.o or nnUNet_raw.get()
    if not target:
        parser.error("nnUNet_raw is not set; set it or specify the folder of raw datasets with -o")
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
