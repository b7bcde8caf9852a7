"""`nnUNetv2_deferral_evaluate`: evaluate predictions of a deferral model against references, with expert answers."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_deferral import folds
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import read_groups
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.folders import EvaluatedPart, evaluate_cases, same_for_all_parts, summarize
from nnunetv2_deferral.evaluation.inputs import EvaluationInputs, open_inputs
from nnunetv2_deferral.evaluation.summary import SUMMARY_NAME
from nnunetv2_deferral.evaluation.surfaces import check_tolerance
from nnunetv2_deferral.experts import profiles_of
from nnunetv2_deferral.files import write_json, written_whole
from nnunetv2_deferral.parts import read_parts
from nnunetv2_deferral.report.evaluation_page import write_evaluation_page
from nnunetv2_deferral.report.evaluation_text import budget_rows, case_rows, evaluation_text
from nnunetv2_deferral.report.paper import write_paper
from nnunetv2_deferral.report.strips import case_pictures

FIGURES = "figures"  # folder in the output folder


def write_results(summary: Mapping[str, Any], output: Path) -> list[Path]:
    """Write `deferral_summary.json`, `cases.csv` and `budgets.csv` atomically; returns the files."""
    write_json(summary, output / SUMMARY_NAME)
    tables = {"cases.csv": case_rows(summary), "budgets.csv": budget_rows(summary)}
    with written_whole(output) as scratch:
        for name, rows in tables.items():
            with (scratch / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    return [output / SUMMARY_NAME, *(output / name for name in tables)]


def write_report(summary: Mapping[str, Any], inputs: EvaluationInputs, file: Path, images: Path | None = None) -> None:
    """Write the HTML report of an evaluation; with a folder of images it shows a few cases, which are read again.

    Raises:
        InputError: If an image cannot be read or does not match its case.
    """
    cases = None if images is None else case_pictures(summary, inputs.predictions, inputs.read, images)
    write_evaluation_page(summary, file, cases=cases, unit=inputs.predictions.files.unit)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.evaluate()
    given = parser.parse_args(arguments)
    try:
        if not all(0 <= budget <= 1 for budget in given.budgets):
            raise InputError(f"budgets must be shares of the voxels in [0, 1], got {given.budgets}")
        if given.surface_tolerance is not None:
            check_tolerance(given.surface_tolerance)
        inputs = open_inputs(
            given.i,
            given.ref,
            experts=given.experts,
            seed=given.seed,
            error_model=given.error_model,
            simulated=given.simulated,
            dataset_json=given.djfile,
            fold_folders=given.folds,
            evidence=given.evidence,
        )
        if given.images is not None:
            if given.report is None:
                raise InputError("-images are only used in a report; specify --report FILE as well")
            inputs.predictions.files.check_images(given.images, inputs.predictions.cases)
        cases = inputs.predictions.cases
        groups = None if given.groups is None else read_groups(given.groups, cases)
        domains = None if given.domains is None else read_groups(given.domains, cases, kind="domain")
        common = same_for_all_parts(inputs, groups=groups, domains=domains, surface_tolerance=given.surface_tolerance)
        part = parsers.part_of(given)
        if given.merge:
            found = EvaluatedPart.merged(read_parts(given.o, common), cases)
        else:
            found = evaluate_cases(
                inputs,
                part.cases(cases),
                groups=groups,
                domains=domains,
                surface_tolerance=given.surface_tolerance,
                num_processes=given.np,
            )
            if part.of > 1:
                print(part.write(found, given.o, common))
                return
        summary = summarize(
            inputs,
            found,
            budgets=given.budgets,
            groups=groups,
            domains=domains,
            bootstrap_seed=given.bootstrap_seed,
        )
        files = write_results(summary, given.o)
        if (report := parsers.report_of(given)) is not None:
            write_report(summary, inputs, report, given.images)
            files.append(report)
        if given.figures:
            files += write_paper(summary, given.o / FIGURES, given.figures, unit=summary["unit"])
    except InputError as error:
        parser.error(str(error))
    print(evaluation_text(summary))
    if profiles := profiles_of(inputs.experts.identities):
        print(f"  simulated experts: {', '.join(f'{each.name} ({each.error_model})' for each in profiles)}")
    if not inputs.has_probabilities:
        print("  max softmax and entropy omitted: not all cases have probabilities (--save_probabilities, --npz)")
    if folds.read_folds(given.i) and not inputs.has_information:
        print("  disagreement between folds omitted: not all cases have masks of folds (nnUNet_deferral_folds=1)")
    print("\n".join(f"  {file}" for file in files))
