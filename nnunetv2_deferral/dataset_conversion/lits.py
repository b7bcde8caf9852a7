"""LiTS: liver and liver tumours in CT, 131 training and 70 test cases.

Expected files, at any depth below the folder, `.nii` or `.nii.gz`:

    Training Batch 1/volume-0.nii     segmentation-0.nii    ...   0 to 27
    Training Batch 2/volume-28.nii    segmentation-28.nii   ...   28 to 130
    LITS-Challenge-Test-Data/test-volume-0.nii              ...   0 to 69, without segmentations

Sources: the challenge (https://competitions.codalab.org/competitions/17094), nnU-Net v1's
`Task029_LiverTumorSegmentationChallenge.py`, and the loaders of kaiko-ai/eva and neuro-ml/amid. The archives unpack
into `media/nas/01_Datasets/CT/LITS/Training Batch 1`; mirrors keep the names of files but not of folders. Therefore
names of folders are ignored.

Known issues of the published headers, which are not corrected: images 28 to 47 have a spacing of 1 mm in all directions
(PatrickChrist/LITS-CHALLENGE#14), and the axes of test volume 59 are in a different order (reported by MedIMeta). Some
segmentations have an identity matrix as geometry, such as the 53rd of MIC-DKFZ/nnUNet#2751 (see also #850). These are
refused unless `ignore_label_geometry` is set, which pairs them with their images voxel by voxel, as all public loaders
do. Check the overlays afterwards (`nnUNetv2_plot_overlay_pngs`).

Assumed without access to the data: in these segmentations only the header is wrong, not the order of the voxels;
segmentations contain 0, 1 (liver) and 2 (tumour) only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from nnunetv2_deferral.dataset_conversion.common import DatasetInfo, visible_files
from nnunetv2_deferral.dataset_conversion.volumes import FILE_ENDING, FoundVolume, VolumeCase, find_volumes

INFO = DatasetInfo(
    name="LiTS",
    channel_names={"0": "CT"},
    labels={"background": 0, "liver": 1, "tumor": 2},
    file_ending=FILE_ENDING,
    reference="https://competitions.codalab.org/competitions/17094",
    licence="CC BY-NC-ND 4.0",
    num_published=131,
)

_FILE = re.compile(r"(test-)?(volume|segmentation)-(\d+)\.nii(\.gz)?", re.IGNORECASE)


def find_lits(folder: Path, *, ignore_label_geometry: bool = False) -> tuple[DatasetInfo, list[VolumeCase]]:
    """Find the cases below a folder: `LiTS_000` is volume 0, `LiTS_test_000` is test volume 0.

    Arguments and errors as in :func:`.find_volumes`.
    """
    return find_volumes(INFO, folder, _volumes, example="volume-0.nii", ignore_label_geometry=ignore_label_geometry)


def _volumes(folder: Path) -> Iterator[FoundVolume]:
    for file in visible_files(folder):
        match = _FILE.fullmatch(file.name)
        if match is not None:
            is_test, number = match[1] is not None, int(match[3])
            name = f"LiTS_test_{number:03d}" if is_test else f"LiTS_{number:03d}"
            yield FoundVolume(name, "Ts" if is_test else "Tr", match[2].lower() == "segmentation", file)
