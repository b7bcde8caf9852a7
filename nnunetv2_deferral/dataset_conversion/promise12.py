"""PROMISE12: prostate in T2-weighted MRI, 50 training cases.

Expected files, at any depth below the folder:

    training_data/Case00.mhd  Case00.raw  Case00_segmentation.mhd  Case00_segmentation.raw  ...
    test_data/Case00.mhd ...                 with or without segmentations
    livechallenge_test_data/Case00.mhd ...   with or without segmentations

Sources: the challenge (https://promise12.grand-challenge.org) and Zenodo record 8026660, whose three archives have
these names; nnU-Net v1's `Task024_Promise2012.py` and public loaders of both releases. The older release has the
folders `TrainingData_Part1` to `TrainingData_Part3` and `TestData`. A file belongs to the live challenge or the test
set if the name of a folder below the given one contains "live" or "test", else to the training set. Unpack each archive
into its own folder, because according to public scripts not all archives contain a top-level folder.

Assumed without access to the data: segmentations contain 0 and 1 only (one public script also mentions 2) and are on
the grid of their images; segmentations of the test sets are in the Zenodo release only.

Test cases are named `TestCase00` and `LiveCase00`, because all sets are numbered from `Case00`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from nnunetv2_deferral.dataset_conversion.common import DatasetInfo, visible_files
from nnunetv2_deferral.dataset_conversion.volumes import FILE_ENDING, FoundVolume, VolumeCase, find_volumes

INFO = DatasetInfo(
    name="PROMISE12",
    channel_names={"0": "T2"},
    labels={"background": 0, "prostate": 1},
    file_ending=FILE_ENDING,
    reference="https://zenodo.org/records/8026660",
    licence="see LICENSE.TXT of https://zenodo.org/records/8026660",
    num_published=50,
)

_FILE = re.compile(r"(Case\d+)(_segmentation)?\.mhd", re.IGNORECASE)


def find_promise12(folder: Path, *, ignore_label_geometry: bool = False) -> tuple[DatasetInfo, list[VolumeCase]]:
    """Find the cases below a folder. Arguments and errors as in :func:`.find_volumes`."""
    return find_volumes(INFO, folder, _volumes, example="Case00.mhd", ignore_label_geometry=ignore_label_geometry)


def _volumes(folder: Path) -> Iterator[FoundVolume]:
    for file in visible_files(folder):
        match = _FILE.fullmatch(file.name)
        if match is None:
            continue
        parents = "/".join(file.relative_to(folder).parts[:-1]).lower()
        origin = next((name for name in ("Live", "Test") if name.lower() in parents), "")
        yield FoundVolume(origin + match[1].capitalize(), "Ts" if origin else "Tr", match[2] is not None, file)
