"""`nnUNetv2_deferral_uncertainty`: predict with any model, and write how much folds or mirrored predictions disagree.

The prediction is nnU-Net's, with the options given. The command is for models of nnU-Net's own trainers, whose
prediction does not import this package; with a deferral model `nnUNet_deferral_folds=1 nnUNetv2_predict` is the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.environment import ENVIRONMENT_FOLDS, variable
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.folds import index_file
from nnunetv2_deferral.nnunet import hooks
from nnunetv2_deferral.text import listed


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.uncertainty()
    words = sys.argv[1:] if arguments is None else list(arguments)
    given = parser.parse_args(words)
    try:
        _check(given)
        hooks.install()
        with _as_nnunets_command(words):
            predict_entry_point()
    except InputError as error:
        parser.error(str(error))
    folder = index_file(given.o).parent
    whose = "folds" if len(given.f) > 1 else "mirrored predictions"
    print(f"Masks of {whose} and mutual information: {folder / 'folds'}, {folder / 'mutual_information'}")


def _check(given: argparse.Namespace) -> None:
    """Refuse what nnU-Net would stop at later, or with a traceback.

    Raises:
        InputError: If folds are given twice, or a single one without mirroring, the part is out of range, or the
            images, the model or a checkpoint do not exist.
    """
    if len(set(given.f)) != len(given.f) or (len(given.f) < 2 and given.disable_tta):
        raise InputError(
            "different folds (-f) are required, at least two or a single one with mirroring (without --disable_tta), "
            f"got {' '.join(given.f)}"
        )
    if not 0 <= given.part_id < given.num_parts:
        raise InputError(f"-part_id must lie in 0 to {given.num_parts - 1}, got {given.part_id}")
    if not given.i.is_dir():
        raise InputError(f"the folder of images {given.i} does not exist")
    try:
        model = Path(get_output_folder(given.d, given.tr, given.p, given.c))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"nnU-Net does not find dataset {given.d}: {error}") from error
    files = [model / f"fold_{fold}" / given.chk for fold in given.f]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise InputError(f"checkpoints are missing ({len(missing)}): {listed(missing)}")


@contextmanager
def _as_nnunets_command(words: Sequence[str]) -> Iterator[None]:
    """Run nnU-Net's own command, with all of its options, for the folds as well."""
    program, sys.argv = sys.argv, ["nnUNetv2_predict", *words]
    try:
        with variable(ENVIRONMENT_FOLDS, "1"):
            yield
    finally:
        sys.argv = program
