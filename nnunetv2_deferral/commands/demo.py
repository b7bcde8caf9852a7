"""`nnUNetv2_deferral_demo`: the whole pipeline from images to a report, on generated data, in minutes on a CPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.demo.pipeline import COMMAND, NUM_TEST, StepError, run_demo
from nnunetv2_deferral.demo.report import DemoFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.processes import ended_by_signals
from nnunetv2_deferral.report.tables import deferral_rows, score_rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input and failed steps give a message on stderr and a nonzero exit code."""
    parser = parsers.demo()
    given = parser.parse_args(arguments)
    device = given.device if given.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    begin = time.monotonic()
    try:
        with ended_by_signals():
            files = run_demo(Path(given.o), device=device, overwrite=given.overwrite)
    except InputError as error:
        parser.error(str(error))
    except StepError as error:
        sys.exit(f"{COMMAND}: {error}")
    print(f"\nDone in {time.monotonic() - begin:.0f} s on {device}. Results on the {NUM_TEST} test cases:\n")
    table = read_json(files.table_json)
    print(_as_text(score_rows(table)), _as_text(deferral_rows(table)), sep="\n\n")
    print(f"\nReport: {files.report}\n\nNext, for example:\n{_next_commands(files)}")


def _next_commands(files: DemoFiles) -> str:
    """Commands that work on what the demo leaves, without training or predicting anything."""
    folders = f"-i {files.prediction('deferral')} -images {files.images}"
    return "\n".join(
        (
            f"  nnUNetv2_deferral_worklist {folders} -o {files.out / 'worklist'}",
            f"  nnUNetv2_deferral_review {folders} -o {files.out / 'reviews'}",
            f"  nnUNetv2_deferral_route -i {files.prediction('deferral')} -o {files.out / 'routed'} -budget 0.02",
        )
    )


def _as_text(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *numbers in rows:
        columns = (number.rjust(width + 3) for number, width in zip(numbers, widths[1:], strict=True))
        lines.append(f"  {name.ljust(widths[0])}{''.join(columns)}")
    return "\n".join(lines)
