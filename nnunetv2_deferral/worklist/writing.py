"""Writing a worklist: the list of regions, a picture of each, and masks with numbered regions."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.decision.effort import WorkTime, check_work_limits
from nnunetv2_deferral.decision.gains import gain_text
from nnunetv2_deferral.defaults import MEASURED_BY
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.experts import names_of, remark_on_simulated
from nnunetv2_deferral.files import (
    begin_publication,
    end_publication,
    read_json,
    unfinished_files,
    write_json,
    written_whole,
)
from nnunetv2_deferral.image_files import check_written
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.maps import PREDICTED_DICE, other_masks_text
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.processes import map_cases
from nnunetv2_deferral.report.overlays import RegionView, draw_region
from nnunetv2_deferral.schema import Text, validate
from nnunetv2_deferral.text import fingerprint, plural
from nnunetv2_deferral.worklist import items as regions
from nnunetv2_deferral.worklist import viewers as desktop
from nnunetv2_deferral.worklist.items import JSON_NAME, MASKS, ListedRegion, Place
from nnunetv2_deferral.worklist.table import choose_rows, region_rows, totals


class _Files(TypedDict):
    files: list[Text]


CSV_NAME, PICTURES = "worklist.csv", "pictures"
_FOLDERS = (PICTURES, MASKS, desktop.FOLDER)
ROWS_SHOWN, CASES_SHOWN = 10, 5


def write_worklist(
    predictions: Path,
    output: Path,
    *,
    images: Path | None,
    time: WorkTime | None = None,
    times: Mapping[str, Any] | None = None,
    max_regions: int | None = None,
    max_minutes: float | None = None,
    dataset_json: Path | None = None,
    viewers: Path | None = None,
    overwrite: bool = False,
    num_processes: int = 1,
    find: Callable[[PredictionFolder], Iterable[np.ndarray]] | None = None,
) -> dict[str, Any]:
    """Write the worklist of predictions, with one case in memory at a time and process.

    Args:
        predictions: A folder of predictions by a deferral model.
        output: Output folder for list, pictures and masks, which appear together once all are complete.
        images: The folder of the images; None for no pictures.
        time: Working time of regions; None for the defaults.
        times: What to record of how it was found; None if it was not fitted.
        max_regions: See :func:`.choose`.
        max_minutes: See :func:`.choose`.
        dataset_json: See :meth:`.PredictionFolder.open`.
        viewers: The folder of the images, to write files for 3D Slicer and MITK, too (:mod:`.viewers`); None for
            none.
        overwrite: Replace an existing worklist in `output`: the files that it names, no others. What a killed process
            left of one is replaced in any case.
        num_processes: 1 runs in this process, more in this one and spawned ones.
        find: Gives what :func:`.region_rows` found in all cases of the folder, in parts; None to find it.

    Returns:
        The content of worklist.json, see docs/reference/files.md.

    Raises:
        InputError: For predictions without deferral maps, cases without an image, files that cannot be read or do not
            match their case, images without a size in mm for viewers, invalid limits, or an output folder that
            already has a worklist.
    """
    time = time or WorkTime()
    check_work_limits(max_regions, max_minutes)
    folder = PredictionFolder.open(predictions, dataset_json, needed=MEASURED_BY)
    if images is not None:
        folder.files.check_images(images, folder.cases)
    if viewers is not None:
        if folder.files.unit != "mm":
            raise InputError(f"viewers require images with sizes in mm, which {folder.files.file_ending} does not have")
        folder.files.check_images(viewers, folder.cases)
    replaced = _replaced(output, overwrite=overwrite)
    if find is None:
        table = region_rows(folder, folder.cases, time, num_processes=num_processes)
    else:
        table = np.concatenate(list(find(folder)))
    chosen = choose_rows(table, max_regions=max_regions, max_minutes=max_minutes)
    limits = {"max_regions": max_regions, "max_minutes": max_minutes}
    content: dict[str, Any] = {
        "arguments": {"predictions": str(predictions), "images": images and str(images)} | asdict(time) | limits,
        "times": None if times is None else dict(times),
        "unit": folder.files.unit,
        "gain_unit": folder.gain_unit,
        "model": folder.index["model"],
        "simulated": list(names_of(folder.settings.profiles)),
        "versions": versions(),
        "totals": _totals(folder, table, chosen),
        "check_first": check_first(folder),
    }
    with written_whole(output) as scratch:
        write = partial(_write_case, folder, time, images, scratch)
        cases = sorted(_by_case(folder, chosen).items())
        content["other_masks"] = [case for case, _ in cases if folder.has_other_mask(case)]
        rows = [
            row
            for of_case in map_cases(write, cases, num_processes, description="Masks and pictures")
            for row in of_case
        ]
        content["regions"] = rows = sorted(rows, key=lambda row: row["rank"])
        if viewers is not None:
            shown = {case: folder.files.image_file(viewers, case) for case, _ in cases}
            desktop.write_viewers(rows, shown, folder.files.class_names, scratch / desktop.FOLDER)
        content["files"] = sorted(str(file.relative_to(scratch)) for file in scratch.rglob("*") if file.is_file())
        with (scratch / CSV_NAME).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([regions.columns(folder.files.unit), *map(regions.cells, rows)])
        write_json(content, scratch / JSON_NAME)
        _publish(scratch, output, content["files"], replaced)
    end_publication(output)
    return content


def same_for_all_parts(folder: PredictionFolder, time: WorkTime) -> dict[str, Any]:
    """What all parts of a worklist must have in common, as JSON."""
    return {
        "predictions": folder.index["model"],
        "cases": fingerprint(folder.index["cases"]),
        "time": asdict(time) | {"by": "border"},  # in version 0.1.0 by the longest side
        "versions": versions(),
    }


def summary(content: dict[str, Any], output: Path) -> str:
    """The first rows, the totals and the files written, as text for the terminal."""
    rows, sums = content["regions"], content["totals"]
    listed, deferred = sums["listed"], sums["deferred"]
    lines = []
    if rows:
        wide = {key: max(len(row[key]) for row in [*rows[:ROWS_SHOWN], {key: key}]) for key in ("case", "expert")}
        head = f"{'rank':>5}  {'case':<{wide['case']}}  {'expert':<{wide['expert']}}"
        lines.append(f"{head}  {content['gain_unit']:>8}  {'minutes':>7}  {'voxels':>8}  size")
        for row in rows[:ROWS_SHOWN]:
            who = f"{row['rank']:>5}  {row['case']:<{wide['case']}}  {row['expert']:<{wide['expert']}}"
            numbers = f"{row['expected_gain']:>+8.4f}  {row['minutes']:>7.1f}  {row['voxels']:>8}"
            lines.append(f"{who}  {numbers}  {_size_text(row, content['unit'])}")
        lines += [f"{'...':>5}"] * (len(rows) > ROWS_SHOWN)
    if deferred["regions"]:
        lines.append(
            f"{listed['regions']} of {plural(deferred['regions'], 'region')} in {listed['minutes']:.1f} of "
            f"{deferred['minutes']:.1f} minutes, for {listed['expected_gain']:.4f} of {deferred['expected_gain']:.4f} "
            f"{content['gain_unit']}, summed over {plural(sums['predicted_cases'], 'case')}"
        )
        for name, of in sums["experts"].items():
            numbers = f"{of['listed']['regions']} of {plural(of['deferred']['regions'], 'region')}"
            lines.append(f"  {name}: {numbers}, {of['listed']['minutes']:.1f} minutes")
    else:
        lines.append(f"nothing is deferred in {plural(sums['predicted_cases'], 'case')}; the worklist is empty")
    if remark := remark_on_simulated(content["simulated"]):
        lines.append(remark)
    if others := content["other_masks"]:
        lines.append(f"CAUTION: {other_masks_text(others)}")
    if first := content["check_first"][:CASES_SHOWN]:
        cases = ", ".join(f"{each['case']} ({each['mean']:.2f})" for each in first)
        lines.append(f"check these cases first (lowest predicted Dice): {cases}")
    folders = sorted({Path(file).parts[0] for file in content["files"]})
    return "\n".join([*lines, *(f"  {output / name}" for name in (CSV_NAME, JSON_NAME, *folders))])


def check_first(folder: PredictionFolder) -> list[dict[str, Any]]:
    """The cases in ascending order of their predicted Dice, the mean over classes; empty if none was predicted."""
    found = []
    for case, entry in folder.index["cases"].items():
        if predicted := entry.get(PREDICTED_DICE):
            mean = math.fsum(predicted.values()) / len(predicted)
            found.append({"case": case, "mean": mean, PREDICTED_DICE: predicted})
    return sorted(found, key=lambda each: (each["mean"], each["case"]))


def _row(each: ListedRegion, folder: PredictionFolder, *, pictures: bool) -> dict[str, Any]:
    item, expert = each.item, folder.experts[each.item.region.expert - 1]
    names, objective = folder.files.label_names, folder.settings.objective
    return regions.to_row(
        each,
        expert=expert,
        unit=folder.files.unit,
        why=regions.reason(item, expert, names, objective),
        picture=f"{PICTURES}/{each.rank:04d}_{item.case}_{expert}.png" if pictures else None,
        mask=regions.mask_name(expert, folder.mask_file(item.case).name),
    )


def _totals(folder: PredictionFolder, table: np.ndarray, chosen: np.ndarray) -> dict[str, Any]:
    both = {"listed": chosen, "deferred": table}
    experts = {
        name: {key: totals(of[of["expert"] == place]) for key, of in both.items()}
        for place, name in enumerate(folder.experts, start=1)
    }
    everything = {key: totals(of) for key, of in both.items()}
    return {"predicted_cases": len(folder.cases)} | everything | {"experts": experts}


def _by_case(folder: PredictionFolder, chosen: np.ndarray) -> dict[str, list[tuple[int, Place]]]:
    """By case the numbers and places of its listed regions."""
    masks = zip(chosen["case"].tolist(), chosen["expert"].tolist(), strict=True)
    found: dict[str, list[tuple[int, Place]]] = {}
    for row, place in zip(chosen, regions.places(masks, chosen["minutes"].tolist()), strict=True):
        found.setdefault(folder.cases[row["case"]], []).append((int(row["number"]), place))
    return found


def _write_case(
    folder: PredictionFolder,
    time: WorkTime,
    images: Path | None,
    scratch: Path,
    listed_in: tuple[str, Sequence[tuple[int, Place]]],
) -> list[dict[str, Any]]:
    """Write the masks of a case and, with a folder of images, the pictures of its regions; returns their rows."""
    name, numbers = listed_in
    case = folder.case(name)
    items = regions.find_items(case, time, unit=folder.files.unit)
    listed = [ListedRegion(item=items[number - 1], **place._asdict()) for number, place in numbers]
    rows = [_row(each, folder, pictures=images is not None) for each in listed]
    masks = regions.region_masks(case.route, listed)
    files = {each.item.region.expert: scratch / row["mask"] for each, row in zip(listed, rows, strict=True)}
    for expert, mask in masks.items():
        write_numbered_mask(folder.files, mask, files[expert], case.properties, fewer="list fewer (-max_regions)")
    if images is None:
        return rows
    (scratch / PICTURES).mkdir(exist_ok=True)
    turn, spacing = case.orientation.to_canonical, case.orientation.spacing_mm
    image, model = turn(_read_image(folder, images, case)), turn(case.model)
    masks = {expert: turn(mask) for expert, mask in masks.items()}
    for each, row in zip(listed, rows, strict=True):
        region = each.item.region
        depth = int(regions.to_canonical([region.centre], case)[0, 0])
        gain = f"{gain_text(row['expected_gain'], folder.gain_unit)} in {row['minutes']:.1f} minutes"
        size = f"{plural(row['voxels'], 'voxel')}, {_size_text(row, folder.files.unit)}"
        view = RegionView(
            image=image[depth],
            model=model[depth],
            region=masks[region.expert][depth] == each.label,
            aspect=spacing[1] / spacing[2],
            place=region.expert - 1,
            title=f"{each.rank}. {case.name}: ask {row['expert']}",
            slice_name=f"slice {depth + 1} of {len(image)}" if len(image) > 1 else "whole image",
            caption=(f"{gain}; {size}; centre (z, y, x) = {region.centre}", row["why"]),
            sides="RLAP" if case.orientation.named else "",
        )
        draw_region(view).savefig(scratch / row["picture"], dpi=100, facecolor="white")
    return rows


def _read_image(folder: PredictionFolder, images: Path, case: PredictedCase) -> np.ndarray:
    file = folder.files.image_file(images, case.name)
    image = folder.files.read_image([file])[0]
    if image.shape != case.model.shape:
        raise InputError(f"{file} has shape {image.shape}, but the mask of the case has {case.model.shape}")
    return image


def write_numbered_mask(
    files: DatasetFiles, mask: np.ndarray, file: Path, properties: dict[str, Any], *, fewer: str
) -> None:
    """Write a mask of numbered regions in the format of a dataset's masks.

    Args:
        files: The dataset.
        mask: uint32 of the shape of the image: 0, or the number of a region.
        file: The file, whose folder is created.
        properties: nnU-Net's properties of the image or mask.
        fewer: How to get fewer regions, for the message.

    Raises:
        InputError: If the format cannot hold so many regions, or the file cannot be written completely.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    reader, numbers = files.reader, int(mask.max())
    is_small = numbers < 255  # from 255 on nnU-Net writes two bytes per voxel, which some formats do not support
    try:
        reader.write_seg(mask, str(file), properties)
        check_written(file, file)
        fits = is_small or np.array_equal(reader.read_seg(str(file))[0][0], mask)
    except Exception:  # what a writer or reader raises that cannot do two bytes a voxel
        if is_small:
            raise
        fits = False
    if not fits:
        raise InputError(
            f"nnU-Net's {files.file_ending} masks cannot represent the {numbers} regions of "
            f"{file.parent.name}/{file.name}; {fewer}"
        )


def _size_text(row: dict[str, Any], unit: str) -> str:
    return f"{' x '.join(f'{side:.4g}' for side in row[f'size_{unit}'] if side is not None)} {unit}"


def _replaced(output: Path, *, overwrite: bool) -> list[str]:
    """The files of an existing or half-published worklist that may be replaced; empty if there is none."""
    unfinished = unfinished_files(output)
    taken = [name for name in (JSON_NAME, CSV_NAME, *_FOLDERS) if (output / name).exists()]
    if taken and not overwrite and (not unfinished or JSON_NAME in taken):
        raise InputError(
            f"{output} already has {', '.join(taken)}; choose another folder (-o) or replace the worklist (--overwrite)"
        )
    files = list(map(Path, unfinished))
    if (old := output / JSON_NAME).is_file():
        content = read_json(old)
        validate(content, _Files, f"{old} is not a valid worklist and is not replaced")
        files += map(Path, content["files"])
    return sorted(
        {str(file) for file in files if file.parts[:1] in [(name,) for name in _FOLDERS] and ".." not in file.parts}
    )


def _publish(scratch: Path, output: Path, files: Sequence[str], replaced: Sequence[str]) -> None:
    """Move pictures and masks to the output folder, replacing the old ones.

    The old list is removed first and the new one published last, after this function, so that there is no list beside
    files of another. In between, the names of all files are on disk.
    """
    if others := [file for file in files if file not in replaced and (output / file).exists()]:
        raise InputError(f"{output} has files that do not belong to a worklist: {', '.join(others[:5])}")
    begin_publication(output, {*files, *replaced})
    for name in (JSON_NAME, CSV_NAME, *replaced):
        if not (output / name).is_dir():
            (output / name).unlink(missing_ok=True)
    for name in files:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).replace(output / name)
    for name in _FOLDERS:
        shutil.rmtree(scratch / name, ignore_errors=True)
