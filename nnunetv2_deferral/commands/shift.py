"""`nnUNetv2_deferral_shift`: copies of images as another scanner or protocol might have taken them.

OUT/images/<case>_0000...                   the images themselves, domain ID
OUT/images/<case>_<kind><level>_0000...     shifted
OUT/labels, OUT/experts                     references and experts' masks under all of these names
OUT/domains.json, OUT/groups.json           for the evaluation: the domain of each case, and the case it is made of
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunetv2_deferral.answers import SIMULATION_NAME
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import DatasetFiles, read_groups, same_cases
from nnunetv2_deferral.defaults import OWN_DOMAIN, SHIFT_KINDS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import new_folder, write_json
from nnunetv2_deferral.image_files import check_file, read_itk, write_itk
from nnunetv2_deferral.image_shifts import LEVELS, SHIFTS, shift_image
from nnunetv2_deferral.processes import check_processes, map_cases
from nnunetv2_deferral.raters import ExpertMasks, expert_folders
from nnunetv2_deferral.readings import ReadingRules
from nnunetv2_deferral.text import plural

ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".png", ".bmp")  # which SimpleITK reads and writes with their geometry


@dataclass(frozen=True)
class _Job:
    """Arguments common to all cases; pickled for the workers."""

    images: Path
    files: DatasetFiles
    kinds: tuple[str, ...]
    levels: tuple[int, ...]
    seed: int

    def domains(self) -> dict[str, str]:
        """The domain of each suffix of a case's name."""
        shifts = {f"_{kind}{level}": f"{kind} {level}" for kind in self.kinds for level in self.levels}
        return {"": OWN_DOMAIN, **shifts}


def shift_images(
    images: Path,
    output: Path,
    *,
    kinds: Sequence[str] = SHIFT_KINDS,
    levels: Sequence[int] = LEVELS,
    seed: int = 0,
    dataset_json: Path | None = None,
    references: Path | None = None,
    experts: Path | None = None,
    groups: Path | None = None,
    num_processes: int = 1,
) -> list[str]:
    """Write shifted copies of the images of a folder, and what their evaluation requires.

    Args:
        images: Folder of images, `<case>_0000<file_ending>` and so on.
        output: The output folder; it must not exist or be empty.
        kinds: Of :data:`.image_shifts.SHIFTS`.
        levels: Of 1, 2 and 3.
        seed: Random seed; with the names of case, kind and level it determines a shift.
        dataset_json: The dataset.json of the images; None for the one beside the folder.
        references: Folder of reference masks, to be copied under all names; None for none.
        experts: Folder `<expert>/<case>` of experts' masks, to be copied; None for none.
        groups: JSON that maps each case to its group (patient); None for each case by itself.
        num_processes: Number of worker processes; 1 runs in this process.

    Returns:
        The names of all cases, sorted.

    Raises:
        InputError: If a kind or level is unknown, an input is missing or cannot be read, images have an ending that
            SimpleITK does not write, a case has no reference, names would be those of other cases, or the output
            folder is not empty. Nothing is left in it then.
    """
    file = dataset_json or images.parent / "dataset.json"
    if not images.is_dir():
        raise InputError(f"the folder of images {images} does not exist")
    if not file.is_file():
        raise InputError(f"there is no {file}; specify the dataset.json of the images with -djfile")
    if unknown := [kind for kind in kinds if kind not in SHIFTS]:
        raise InputError(f"unknown shifts {', '.join(unknown)}; known are {', '.join(SHIFTS)}")
    if wrong := [level for level in levels if level not in LEVELS]:
        raise InputError(f"levels must be among {', '.join(map(str, LEVELS))}, got {', '.join(map(str, wrong))}")
    check_processes(num_processes)
    first = next((each for each in sorted(images.iterdir()) if each.is_file()), None)
    files = DatasetFiles.of(file, first or images)
    if files.file_ending not in ENDINGS:
        can = ", ".join(ENDINGS)
        raise InputError(f"{file}: images with the ending {files.file_ending} cannot be shifted, only {can}")
    cases = sorted({name[: -len("_0000")] for name in files.cases(images) if name[-5:] == "_0000"})
    if not cases:
        raise InputError(f"{images} has no images <case>_0000{files.file_ending}")
    job = _Job(images, files, tuple(dict.fromkeys(kinds)), tuple(dict.fromkeys(levels)), seed)
    made = {f"{case}{suffix}": case for case in cases for suffix in job.domains()}
    if len(made) != len(cases) * len(job.domains()):
        raise InputError(f"{images} has cases with the names of shifted ones, such as <case>_{job.kinds[0]}1")
    if references is not None:
        same_cases(f"cases without a reference in {references}", cases, files.cases(references))
    group = {case: case for case in cases} if groups is None else read_groups(groups, cases)
    copied = [*_masks(references, cases, files), *_expert_masks(experts, cases, files)]
    for mask, _, _ in copied:
        check_file(mask)
    with new_folder(output) as scratch:
        target = scratch / "images"
        target.mkdir()
        list(map_cases(partial(_shift_case, job, target), cases, num_processes, description="Shifting"))
        for mask, place, case in copied:
            for suffix in job.domains():
                _copy(mask, scratch / place / f"{case}{suffix}{files.file_ending}")
        if experts is not None and (record := experts / SIMULATION_NAME).is_file():
            shutil.copyfile(record, scratch / "experts" / SIMULATION_NAME)
        domains = {f"{case}{suffix}": domain for case in cases for suffix, domain in job.domains().items()}
        write_json(domains, scratch / "domains.json")
        write_json({name: group[case] for name, case in made.items()}, scratch / "groups.json")
    return sorted(made)


def _masks(folder: Path | None, cases: Sequence[str], files: DatasetFiles) -> list[tuple[Path, str, str]]:
    """Each mask with its place below the output folder and its case."""
    return [] if folder is None else [(folder / f"{case}{files.file_ending}", "labels", case) for case in cases]


def _expert_masks(folder: Path | None, cases: Sequence[str], files: DatasetFiles) -> list[tuple[Path, str, str]]:
    if folder is None:
        return []
    if ReadingRules.of(folder) is not None:
        raise InputError(f"{folder} is a review with two readers; give the masks of single experts, or fused masks")
    names = expert_folders(folder)
    if not names:
        raise InputError(f"{folder} has no folders of experts' masks, <expert>/<case>{files.file_ending}")
    masks = ExpertMasks.of(folder, names, files)
    pairs = [(name, case) for name in names for case in cases]
    return [
        (masks.file(name, case), f"experts/{name}", case) for name, case in pairs if masks.file(name, case).is_file()
    ]


def _shift_case(job: _Job, target: Path, case: str) -> None:
    """Write the image of a case, and all its shifted copies."""
    channels = job.files.image_files(job.images, case)
    originals = [read_itk(file) for file in channels]
    for file in channels:
        _copy(file, target / file.name)
    image = np.concatenate([_channels(original) for original in originals])
    spacing = originals[0].GetSpacing()[::-1]
    for kind in job.kinds:
        for level in job.levels:
            # The same in every process and at every order of cases.
            generator = np.random.default_rng([job.seed, zlib.crc32(f"{case} {kind} {level}".encode())])
            shifted = shift_image(image, kind, level, spacing=spacing, generator=generator)
            start = 0
            for file, original in zip(channels, originals, strict=True):
                end = start + original.GetNumberOfComponentsPerPixel()
                channel = file.name.removeprefix(case)
                _write(shifted[start:end], original, target / f"{case}_{kind}{level}{channel}")
                start = end


def _channels(image: sitk.Image) -> np.ndarray:
    """The components of an image as channels, float32 (C, *S)."""
    values = sitk.GetArrayFromImage(image).astype(np.float32)
    return np.moveaxis(values, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else values[None]


def _write(channels: np.ndarray, original: sitk.Image, file: Path) -> None:
    """Write channels with the geometry and the type of the original, rounded and clipped if that is an integer."""
    dtype: Any = sitk.GetArrayViewFromImage(original).dtype
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        channels = np.rint(channels).clip(limits.min, limits.max)
    several = original.GetNumberOfComponentsPerPixel() > 1
    values = np.moveaxis(channels, 0, -1) if several else channels[0]
    image = sitk.GetImageFromArray(values.astype(dtype), isVector=several)
    image.CopyInformation(original)
    write_itk(image, file)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.shift()
    given = parser.parse_args(arguments)
    try:
        cases = shift_images(
            given.i,
            given.o,
            kinds=given.kinds,
            levels=given.levels,
            seed=given.seed,
            dataset_json=given.djfile,
            references=given.ref,
            experts=given.experts,
            groups=given.groups,
            num_processes=given.np,
        )
    except InputError as error:
        parser.error(str(error))
    print(f"{plural(len(cases), 'case')} in {given.o / 'images'}. Predict them and compare the domains:")
    print(f"  nnUNetv2_predict -i {given.o / 'images'} -o predictions ...")
    more = f" -experts {given.o / 'experts'}" if given.experts is not None else ""
    labels = given.o / "labels" if given.ref is not None else "LABELS"
    print(
        f"  nnUNetv2_deferral_evaluate -i predictions -ref {labels}{more} -domains {given.o / 'domains.json'} "
        f"-groups {given.o / 'groups.json'} -o evaluation --report report.html"
    )
