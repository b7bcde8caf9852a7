"""`nnUNetv2_deferral_evaluate_raters`: calibration of any nnU-Net predictions to several raters.

A command of its own, because `nnUNetv2_deferral_evaluate` is about questions to experts and their answers, and needs
the deferral maps of a deferral model.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.rater_calibration import BOX, IMAGE
from nnunetv2_deferral.files import write_json, written_whole
from nnunetv2_deferral.nnunet.rater_evaluation import RaterInputs, evaluate_raters

SUMMARY, CASES = "rater_calibration.json", "rater_calibration.csv"


def write_results(summary: Mapping[str, Any], output: Path) -> list[Path]:
    """Write `rater_calibration.json` and `rater_calibration.csv` atomically; returns the files."""
    write_json(summary, output / SUMMARY)
    rows = [
        {"case": case, "structure": structure} | values
        for case, structures in summary["per_case"].items()
        for structure, values in structures.items()
    ]
    with written_whole(output) as scratch, (scratch / CASES).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [output / SUMMARY, output / CASES]


def rater_text(summary: Mapping[str, Any]) -> str:
    """The summary as lines for the terminal."""
    raters = ", ".join(f"{name} ({number})" for name, number in summary["raters"].items())
    unit = "cases" if summary["groups"] is None else "groups"
    lines = [f"{summary['cases']} cases, raters {raters}; 95 % intervals over {unit}"]
    for structure, readings in summary["calibration"].items():
        lines.append(f"structure {structure}")
        for whom, words in (("reference", "Dice, reference"), ("raters", "Dice, mean of raters")):
            if whom in summary["dice"][structure]:
                lines.append(f"  {words:<44} {_interval(summary['dice'][structure][whom])}")
        for reading, found in readings.items():
            rows = (
                (f"ECE of {reading}, whole image", found[IMAGE]["ece"]),
                (f"ECE of {reading}, box of the foreground", found[BOX]["ece"]),
                (f"ECE of {reading}, box, by rater", found["curvas_ece"]),
                (f"Brier score of {reading}, box", found[BOX]["brier"]),
            )
            lines += [f"  {words:<44} {_interval(interval)}" for words, interval in rows]
    return "\n".join(lines)


def _interval(found: Mapping[str, float]) -> str:
    estimate, low, high = (
        "–" if math.isnan(found[key]) else f"{found[key]:.4f}" for key in ("estimate", "low", "high")
    )
    return f"{estimate}  [{low}, {high}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.evaluate_raters()
    given = parser.parse_args(arguments)
    try:
        inputs = RaterInputs.open(given.i, given.raters, references=given.ref, dataset_json=given.djfile)
        groups = None if given.groups is None else read_groups(given.groups, inputs.predictions.cases)
        summary = evaluate_raters(inputs, groups=groups, bootstrap_seed=given.bootstrap_seed)
        files = write_results(summary, given.o)
    except InputError as error:
        parser.error(str(error))
    print(rater_text(summary))
    print("\n".join(f"  {file}" for file in files))
