"""Work on many cases in parts: in processes of one machine, or in jobs whose results one call merges.

Cases are shared out as by nnU-Net's `-num_parts N -part_id I`: part I has every N-th case, from the I-th on. What a
part found lies in `<output>/parts/` as a compressed pickle, of which only arrays and objects of this package are read.
"""

from __future__ import annotations

import gzip
import importlib
import io
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import written_whole
from nnunetv2_deferral.text import differences, listed

Value = TypeVar("Value")

FOLDER = "parts"
_PIECES_PER_PROCESS = 4
_NAMED = re.compile(r"part_(\d+)_of_(\d+)\.pkl\.gz")
# What pickles of arrays name; NumPy 2 renamed `core`.
_ARRAYS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
    ),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of several parts of the cases.

    Attributes:
        number: From 0 to `of` - 1.
        of: The number of parts, at least 1.

    Raises:
        InputError: If the numbers are out of range.
    """

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if self.of < 1:
            raise InputError(f"the number of parts must be at least 1, got {self.of}")
        if not 0 <= self.number < self.of:
            raise InputError(f"{self.of} parts are numbered 0 to {self.of - 1}, got {self.number}")

    def cases(self, cases: Sequence[Value]) -> tuple[Value, ...]:
        """Its cases; none if there are fewer cases than parts."""
        return tuple(cases[self.number :: self.of])

    def file(self, output: Path) -> Path:
        """The file of what it found."""
        return output / FOLDER / f"part_{self.number}_of_{self.of}.pkl.gz"

    def folder(self, output: Path) -> Path:
        """The folder of the files that it made, if it made any, until they are merged."""
        return output / FOLDER / f"part_{self.number}_of_{self.of}"

    def write(self, content: Any, output: Path, arguments: Mapping[str, Any]) -> Path:
        """Write atomically what it found.

        Args:
            content: What it found: arrays, objects of this package and Python's own.
            output: The output folder of the command.
            arguments: What must be the same for all parts, as JSON; see :func:`read_parts`.
        """
        file = self.file(output)
        with written_whole(file.parent) as scratch, gzip.open(scratch / file.name, "wb", compresslevel=1) as stream:
            pickle.dump({"arguments": dict(arguments), "content": content}, stream)
        return file


def pieces(cases: Sequence[Value], num_processes: int) -> list[tuple[Value, ...]]:
    """The cases shared out for several processes; all in one piece for one process.

    There are more pieces than processes, since cases differ in size, but not one for each case, since what is found in
    them may be large.
    """
    if min(num_processes, len(cases)) <= 1:
        return [tuple(cases)]
    number = min(len(cases), num_processes * _PIECES_PER_PROCESS)
    return [Part(number=place, of=number).cases(cases) for place in range(number)]


def is_part(file: Path, output: Path) -> bool:
    """Whether a file is what a part found, in the output folder of the command."""
    return file.parent == output / FOLDER and _NAMED.fullmatch(file.name) is not None


def read_parts(output: Path, arguments: Mapping[str, Any]) -> Iterator[Any]:
    """What all parts found, one after the other, in their order.

    Args:
        output: The output folder of the command.
        arguments: What must be the same for all parts and this call, as JSON.

    Raises:
        InputError: If there are no parts, parts of several numbers, some are missing or damaged, or one was made with
            other arguments; the message names the files.
    """
    folder = output / FOLDER
    found = [(match, file) for file in sorted(folder.glob("*.pkl.gz")) if (match := _NAMED.fullmatch(file.name))]
    numbers = sorted({int(match[2]) for match, _ in found})
    if len(numbers) != 1:
        what = f"parts of {' and of '.join(map(str, numbers))}" if numbers else "no parts"
        raise InputError(f"{folder} has {what}; make all parts with the same N (-num_parts N -part_id 0 ... N-1)")
    parts = [Part(number=number, of=numbers[0]) for number in range(numbers[0])]
    if missing := [str(part.number) for part in parts if not part.file(output).is_file()]:
        raise InputError(f"{folder} lacks {len(missing)} of {numbers[0]} parts: {listed(missing, 10)}")
    for part in parts:
        file = part.file(output)
        try:
            with gzip.open(file, "rb") as stream:
                content = _Unpickler(io.BytesIO(stream.read())).load()
            made_with, content = content["arguments"], content["content"]
        except Exception as error:  # damaged pickles fail in many ways
            raise InputError(f"{file} cannot be read: {error}; make this part again") from error
        if made_with != dict(arguments):
            which = "; ".join(differences(made_with, arguments))
            raise InputError(f"{file} was made with different arguments ({which}); make it again")
        yield content


def remove_parts(output: Path) -> None:
    """Remove the parts of the output folder of a command, once they are merged."""
    folder = output / FOLDER
    for file in folder.glob("*"):
        if _NAMED.fullmatch(file.name):
            file.unlink(missing_ok=True)
        elif file.is_dir() and _NAMED.fullmatch(f"{file.name}.pkl.gz"):
            shutil.rmtree(file)
    with suppress(OSError):  # of other files in it
        folder.rmdir()


def in_order(parts: Sequence[Mapping[str, Value]], cases: Sequence[str]) -> dict[str, Value]:
    """What several parts found for their cases, in the order of `cases`, without those of which no part has any."""
    found = {case: value for part in parts for case, value in part.items()}
    return {case: found[case] for case in cases if case in found}


class _Unpickler(pickle.Unpickler):
    """Reads arrays and objects of this package only, so that a file from elsewhere cannot run a program."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAYS:
            return super().find_class(module, name)
        if module.startswith(f"{__package__}."):
            found = getattr(importlib.import_module(module), name, None)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")
