"""What the parsers of all commands have in common, and options of several."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nnunetv2_deferral import __version__, defaults
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.parts import Part
from nnunetv2_deferral.processes import check_processes

PREFIX = "nnUNetv2_deferral_"


class _Formatter(argparse.HelpFormatter):
    """Leaves the lines of the example as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example:") else super()._fill_text(text, width, indent)


class _QuotingParser(argparse.ArgumentParser):
    """Takes the options of other commands as quoted texts, which otherwise look like options of this one."""

    quoted: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if words and words[-1] in self.quoted:
                words[-1] += f"={word}"
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)


def new_parser(name: str, description: str, *example: str, quoted: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """A parser with the options that all commands have; the example is the command's words, in lines."""
    prog = f"{PREFIX}{name}"
    lines = " \\\n      ".join([f"{prog} {example[0]}", *example[1:]]) if example else prog
    parser = _QuotingParser(
        prog=prog, description=description, epilog=f"example:\n  {lines}", formatter_class=_Formatter
    )
    parser.quoted = quoted
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def add_predictions(parser: argparse.ArgumentParser, what: str = "folder of masks and deferral maps") -> None:
    """The folder of predictions that a command reads, `-i`."""
    parser.add_argument("-i", metavar="PREDICTIONS", type=Path, required=True, help=what)


def add_dataset_json(parser: argparse.ArgumentParser) -> None:
    """The model's dataset.json, `-djfile`."""
    words = "the model's dataset.json. Default: in PREDICTIONS, for a validation in its model folder"
    parser.add_argument("-djfile", metavar="DATASET_JSON", type=Path, help=words)


def add_resampling(parser: argparse._ActionsContainer) -> None:
    """What the intervals of scores are resampled by."""
    words = "maps each case to its group (patient), the unit of resampling for the intervals"
    parser.add_argument("-groups", metavar="JSON", type=Path, help=words)
    words = "seed of the bootstrap intervals. Default: %(default)s"
    parser.add_argument("-bootstrap_seed", type=int, default=0, help=words)


def add_evidence(parser: argparse.ArgumentParser) -> None:
    """Whether answers are read as evidence."""
    how = parser.add_mutually_exclusive_group()
    words = "read answers as evidence. Default: if the calibration has an evidence model for the experts who answered, "
    words += "unless they answered on the review page"
    how.add_argument("--evidence", action="store_const", const=True, help=words)
    words = "an answer replaces the model's label"
    how.add_argument("--replace", action="store_const", const=False, dest="evidence", help=words)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The number of processes, `-np`."""
    parser.add_argument("-np", metavar="N", type=int, default=1, help="number of processes. Default: 1")


def add_work_time(parser: argparse.ArgumentParser) -> None:
    """How long people work for a region."""
    add = parser.add_argument
    words = f"working time for looking at a region. Default: {defaults.MINUTES_PER_REGION}"
    add("-minutes_per_region", type=float, metavar="M", help=words)
    words = f"working time for drawing a cm of wrong border. Default: {defaults.MINUTES_PER_CM}"
    add("-minutes_per_cm", type=float, metavar="M", help=words)
    words = "output of nnUNetv2_deferral_review with at least 30 answered regions: fit both to its working times"
    add("-times_from", metavar="REVIEWS", type=Path, help=words)


def add_separate_parts(parser: argparse.ArgumentParser, words: str) -> None:
    """Of a command whose parts need not be put together."""
    add = parser.add_argument
    add("-num_parts", metavar="N", type=int, default=1, help=f"only {words} one of N parts of the cases")
    add("-part_id", metavar="I", type=int, default=0, help="with -num_parts: the part, 0 to N-1")


def add_parts(parser: argparse.ArgumentParser) -> None:
    """Of a command whose parts are put together by `--merge`."""
    add = parser.add_argument
    add_processes(parser)
    words = "process only one of N parts of the cases, in a separate job; see --merge"
    add("-num_parts", metavar="N", type=int, default=1, help=words)
    add("-part_id", metavar="I", type=int, default=0, help="with -num_parts: the part, 0 to N-1")
    words = "merge the results of all parts instead of reading cases; the other options must be those of the parts"
    add("--merge", action="store_true", help=words)


def add_report(parser: argparse._ActionsContainer) -> None:
    """The HTML report, `--report`."""
    words = "also write a self-contained HTML report with figures; a name without a folder is placed in -o"
    parser.add_argument("--report", metavar="HTML", type=Path, help=words)


def report_of(given: argparse.Namespace) -> Path | None:
    """Where the report is written, None for none: a name without a folder is placed in the output folder."""
    file: Path | None = given.report
    return file if file is None or file.parent != Path() else Path(given.o) / file


def part_of(given: argparse.Namespace) -> Part:
    """The part of the cases that a command is for.

    Raises:
        InputError: If the numbers of parts or processes are out of range.
    """
    check_processes(given.np)
    if given.merge and given.num_parts != 1:
        raise InputError("--merge puts all parts together; -num_parts is for each of them")
    return Part(number=given.part_id, of=given.num_parts)
