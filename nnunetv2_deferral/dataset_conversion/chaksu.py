"""Chákṣu IMAGE: optic disc and cup in fundus photographs, outlined by five doctors; 1009 training and 336 test images.

Expected files:

    Train/1.0_Original_Fundus_Images/<device>/<image>.jpg or .png
    Train/3.0_Doctors_Annotations_Binary_OD_OC/Expert 1/<device>/Disc/<image>.tif     and so on to Expert 5
    Train/3.0_Doctors_Annotations_Binary_OD_OC/Expert 1/<device>/Cup/<image>.tif
    Test/ ...                                                                         the same, optional

with the devices Bosch, Forus and Remidio. `Train/Train`, which some unpackers create, is also accepted.

Sources: figshare 20123135 (https://doi.org/10.6084/m9.figshare.20123135), the article
(https://doi.org/10.1038/s41597-023-01943-4), and public loaders of the database, which agree on these names and report
that upper and lower case vary (`Cup`, `cup`; `.JPG`, `.jpg`), that "Remidio" is sometimes misspelt "Remedio", and that
expert 4's files for three images have names like `22glsusp`. The latter two were reported for the fused masks in
`4.0_OD_CO_Fusion_Images`, which are not read: there disc and cup are grey values of one image, sometimes a JPEG.

Assumed without access to the data: the masks in 3.0 are white on black and nearly binary (those in 5.0 are),
photographs are stored upright like the masks regardless of their EXIF tags, and a doctor who did not annotate an image
has no file for it, or an empty disc.

Some photographs show the same patient (`P11_image_1`, `P11_image_2`), which nnU-Net's random folds do not take into
account.

Output: labels 1 (rim: the disc without the cup) and 2 (cup), where a doctor's cup is part of the disc; each doctor's
labels in `experts{Tr,Ts}/expert1` to `expert5`; and their consensus in `labels{Tr,Ts}`, see :func:`consensus`. Cases
are named `<device>_<image>`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skimage import io

from nnunetv2_deferral.dataset_conversion.common import DatasetInfo, raise_faults, require_folder, visible_files
from nnunetv2_deferral.dataset_conversion.staple import staple
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.image_files import check_file, reason_of

logger = logging.getLogger(__name__)

EXPERTS = tuple(f"expert{number}" for number in range(1, 6))
RIM, CUP = 1, 2
INFO = DatasetInfo(
    name="Chaksu",
    channel_names={"0": "R", "1": "G", "2": "B"},
    labels={"background": 0, "optic_disc_rim": RIM, "optic_cup": CUP},
    file_ending=".png",
    reference="https://doi.org/10.6084/m9.figshare.20123135",
    licence="CC BY 4.0",
    num_published=1009,
    experts=EXPERTS,
)

_HALVES = {"Train": "Tr", "Test": "Ts"}
_PHOTOGRAPHS = "1.0_Original_Fundus_Images"
_MASKS = "3.0_Doctors_Annotations_Binary_OD_OC"
_DEVICES = {"bosch": "Bosch", "forus": "Forus", "remidio": "Remidio", "remedio": "Remidio"}
_EXPERT = re.compile(r"expert[ _]?([1-5])", re.IGNORECASE)
_PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")

_MOST_GREY = 0.1
"""Tolerated number of grey pixels, as at edges after compression, relative to the number of marked pixels."""


@dataclass(frozen=True, kw_only=True)
class FundusCase:
    """A photograph and the doctors' masks.

    Attributes:
        name: Case identifier.
        split: `"Tr"` or `"Ts"`.
        image: The file of the photograph.
        masks: Files of disc and cup by expert; experts without files are omitted.
    """

    name: str
    split: str
    image: Path
    masks: Mapping[str, tuple[Path, Path]]

    def faults(self) -> list[str]:
        """Masks that cannot be read, are not binary or have another size; photographs without any marked pixel.

        Raises:
            InputError: If the photograph cannot be read or is not an RGB image.
        """
        return self._load()[2]

    def write(self, folder: Path) -> None:
        """Write the photograph, the doctors' labels and their consensus as PNG."""
        photograph, labels, faults = self._load()
        raise_faults(faults)
        _save(photograph, folder / f"images{self.split}" / f"{self.name}_0000.png")
        for expert, label in labels.items():
            _save(label, folder / f"experts{self.split}" / expert / f"{self.name}.png")
        _save(consensus(list(labels.values())), folder / f"labels{self.split}" / f"{self.name}.png")

    def _load(self) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
        """The photograph, (Y, X, 3) uint8, the non-empty labels (Y, X) uint8 by expert, and problems."""
        photograph = _read(self.image)
        if photograph.ndim != 3 or photograph.shape[-1] not in (3, 4) or photograph.dtype != np.uint8:
            raise InputError(f"{self.image} is not an 8-bit RGB image: shape {photograph.shape}, {photograph.dtype}")
        labels, faults = {}, []
        for expert, files in self.masks.items():
            try:
                disc, cup = (_read_mask(file, photograph.shape[:2]) for file in files)
            except InputError as error:
                faults.append(str(error))
                continue
            label = np.where(cup, CUP, np.where(disc, RIM, 0)).astype(np.uint8)
            if label.any():
                labels[expert] = label
        if not labels and not faults:
            faults.append(f"all masks of {self.image} are empty")
        return photograph[..., :3], labels, faults


def find_chaksu(folder: Path) -> tuple[DatasetInfo, list[FundusCase]]:
    """Find the photographs and the doctors' masks.

    Args:
        folder: The folder with `Train` and `Test`.

    Raises:
        InputError: If the folder, `Train`, or the folders of photographs or masks do not exist, photographs have no
            masks, files have the same name, or the folders of a mask are not those of a known doctor, device and
            structure; the message lists all such files.
    """
    require_folder(folder)
    faults: list[str] = []
    cases: list[FundusCase] = []
    for half, split in _HALVES.items():
        root = folder / half
        if split == "Ts" and not root.is_dir():
            logger.warning("%s has no test set.", folder)
            continue
        root = root / half if (root / half).is_dir() else root
        for part in (_PHOTOGRAPHS, _MASKS):
            if not (root / part).is_dir():
                raise InputError(f"the folder {root / part} does not exist. Does {folder} contain Train and Test?")
        cases += _find_half(root, split, faults)
    raise_faults(faults)
    if not any(case.split == "Tr" for case in cases):
        raise InputError(f"there are no photographs in {folder / 'Train'}")
    return INFO, cases


def consensus(labels: Sequence[np.ndarray]) -> np.ndarray:
    """The consensus of several annotators by STAPLE, see :func:`.staple`.

    Disc and cup are estimated separately, as in the database's own fused masks; joint estimation (MultiLabelSTAPLE) can
    leave pixels undecided. The cup is restricted to the disc.

    Args:
        labels: Label maps (Y, X) with values 0, RIM and CUP; at least one.

    Returns:
        uint8 (Y, X) with values 0, RIM and CUP.
    """
    disc = staple([label != 0 for label in labels])
    cup = staple([label == CUP for label in labels])
    return np.where(disc & cup, CUP, np.where(disc, RIM, 0)).astype(np.uint8)


def _find_half(root: Path, split: str, faults: list[str]) -> Iterator[FundusCase]:
    photographs: dict[tuple[str, str], Path] = {}
    for file in _pictures(root / _PHOTOGRAPHS):
        device = _DEVICES.get(file.parent.name.lower())
        if device is None:
            faults.append(f"{file} is not in the folder of a known device")
        elif photographs.setdefault((device, file.stem.lower()), file) != file:
            faults.append(f"{photographs[device, file.stem.lower()]} and {file} have the same name")
    masks = _find_masks(root / _MASKS, photographs, faults)
    for (device, stem), file in photographs.items():
        complete = {}
        for expert in EXPERTS:
            found = masks.get((device, stem, expert), {})
            if len(found) == 1:
                only = next(iter(found.values()))
                logger.warning("%s has no mask of the other structure; %s is omitted.", only, expert)
            elif found:
                complete[expert] = (found["disc"], found["cup"])
        if not complete:
            faults.append(f"{file} has no masks")
        yield FundusCase(name=f"{device}_{file.stem}", split=split, image=file, masks=complete)


def _find_masks(
    folder: Path, photographs: Mapping[tuple[str, str], Path], faults: list[str]
) -> dict[tuple[str, str, str], dict[str, Path]]:
    """Files by (device, lower-case name of the photograph, expert), then by `"disc"` or `"cup"`."""
    masks: dict[tuple[str, str, str], dict[str, Path]] = {}
    for file in _pictures(folder):
        place = _place(file.relative_to(folder).parts[:-1])
        if place is None:
            faults.append(f"{file} is not in a folder such as {folder / 'Expert 1' / 'Bosch' / 'Disc'}")
            continue
        expert, device, structure = place
        stem = file.stem.lower()
        if (device, stem) not in photographs:
            stem = stem.removesuffix("glsusp")
        if (device, stem) not in photographs:
            logger.warning("%s has no photograph.", file)
            continue
        found = masks.setdefault((device, stem, expert), {})
        if found.setdefault(structure, file) != file:
            faults.append(f"{found[structure]} and {file} are masks of the same structure")
    return masks


def _place(folders: Sequence[str]) -> tuple[str, str, str] | None:
    """Expert, device and structure according to a file's folders, or None if one is unknown."""
    if len(folders) != 3:
        return None
    expert, device, structure = _EXPERT.fullmatch(folders[0]), _DEVICES.get(folders[1].lower()), folders[2].lower()
    if expert is None or device is None or structure not in ("disc", "cup"):
        return None
    return f"expert{expert[1]}", device, structure


def _pictures(folder: Path) -> Iterator[Path]:
    return (file for file in visible_files(folder) if file.suffix.lower() in _PICTURES)


def _read(file: Path) -> np.ndarray:
    check_file(file)
    try:
        return np.asarray(io.imread(str(file)))
    except Exception as error:  # readers of pictures fail in their own ways on damaged files
        raise InputError(f"{file} cannot be read: {reason_of(error)}") from error


def _read_mask(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mask, white on black or 1 on 0, as bool (Y, X).

    Raises:
        InputError: If it cannot be read, is not a binary mask, or its shape is not `shape`.
    """
    mask = _read(file)
    if mask.ndim == 3:
        if (mask[..., :3] != mask[..., :1]).any():
            raise InputError(f"{file} is a colour image, not a mask")
        mask = mask[..., 0]
    if mask.shape != shape:
        raise InputError(f"{file} has shape {mask.shape}, but its photograph has {shape}")
    if mask.dtype == bool or mask.max() <= 1:
        return mask.astype(bool)
    white = np.iinfo(mask.dtype).max if np.issubdtype(mask.dtype, np.integer) else mask.max()
    marked, grey = mask > white / 2, (mask > white / 4) & (mask < 3 * white / 4)
    if not marked.any() or grey.sum() > _MOST_GREY * marked.sum():
        values, counts = np.unique(mask[grey] if grey.any() else mask[mask > 0], return_counts=True)
        raise InputError(f"{file} is not a binary mask: {counts.max()} pixels have value {values[counts.argmax()]:g}")
    return marked


def _save(picture: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    io.imsave(str(file), picture, check_contrast=False)
