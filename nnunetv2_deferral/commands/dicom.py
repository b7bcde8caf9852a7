"""`nnUNetv2_deferral_dicom`: from DICOM series to images, from predictions to DICOM, and back to experts' masks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.review.work_times import chosen_time
from nnunetv2_deferral.text import counted, listed

# Packages of the extra `dicom`, imported nowhere else.
EXTRA = ("highdicom", "pydicom")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input and a missing extra give one line on stderr and exit code 2."""
    parser = parsers.dicom()
    given = parser.parse_args(arguments)
    tasks = {"import": import_series, "export": export, "answers": answers}
    try:
        print("\n".join(tasks[given.task](given)))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        parser.error(f"{package} is not installed. Install the extra: pip install 'nnunetv2-deferral[dicom]'")
    except InputError as error:
        parser.error(str(error))


def import_series(given: argparse.Namespace) -> list[str]:
    """Write series as images; returns lines for the terminal."""
    from nnunetv2_deferral.dicom.importing import import_series

    done = import_series(
        given.i,
        given.o,
        wanted=given.series,
        prefix=given.prefix,
        file_ending=given.ending,
        skip_refused=given.skip_refused,
    )
    lines = [f"{len(done.cases)} series in {given.o}, mapped in {given.o / 'dicom.json'}"]
    for case, series in sorted(done.cases.items()):
        spacing = " x ".join(f"{size:.4g}" for size in series.properties["spacing"])
        lines.append(f"  {case}  {series.modality}, {' x '.join(map(str, series.shape))} voxels of {spacing} mm")
        if series.acquisitions > 1:
            lines.append(f"    of {series.acquisitions} acquisitions (AcquisitionNumber): check that it is one volume")
    if done.left_out:
        lines.append(f"left out: {counted(done.left_out)}")
    if done.refused:
        lines.append(f"CAUTION: {len(done.refused)} series are refused and left out:")
        lines += [f"  {why}" for why in done.refused]
    return lines


def export(given: argparse.Namespace) -> list[str]:
    """Write predictions as DICOM objects; returns lines for the terminal."""
    from nnunetv2_deferral.dicom.exporting import export_predictions
    from nnunetv2_deferral.maps import other_masks_text

    time, fitted = chosen_time(given.times_from, given.minutes_per_region, given.minutes_per_cm)
    done = export_predictions(
        given.i,
        given.map,
        given.dicom,
        given.o,
        what=given.what,
        kind=given.type,
        codes=given.codes,
        dataset_json=given.djfile,
        time=time,
    )
    lines = [
        f"{sum(map(len, done.files.values()))} objects of {len(done.files)} cases in {given.o}, each <case>/<what>.dcm"
    ]
    if fitted is not None:
        lines.append(f"working time: {fitted}")
    if done.unasked:
        lines.append(f"nothing to ask, no review.dcm: {listed(done.unasked)}")
    if done.other_masks:
        lines.append(f"CAUTION: {other_masks_text(done.other_masks)}")
    lines.append("All say that they are for investigational use only.")
    return lines


def answers(given: argparse.Namespace) -> list[str]:
    """Write edited segmentations as an expert's masks; returns lines for the terminal."""
    from nnunetv2_deferral.dicom.returned import REPORT_NAME, read_answers

    done = read_answers(
        given.i,
        given.map,
        given.seg,
        given.expert,
        given.o,
        codes=given.codes,
        dataset_json=given.djfile,
        overwrite=given.overwrite,
    )
    lines = [f"{len(done)} masks in {given.o / given.expert}; {given.o / REPORT_NAME} has the numbers"]
    for case, answer in done.items():
        lines.append(
            f"  {case}: {answer.answered_voxels} of {answer.voxels} voxels in {answer.regions} regions answered, "
            f"{answer.changed_voxels} changed"
        )
        if answer.changed_outside:
            lines.append(f"    left out: {answer.changed_outside} voxels changed outside of {given.expert}'s regions")
        if not answer.tracked:
            lines.append(
                "    CAUTION: its segments have no tracking IDs of the export, so it is not known whether they were "
                "edited from these predictions"
            )
    return lines
