"""Reading and writing files: whole or not at all, and durably where nothing may be lost.

`write_json` and `written_whole` put files in place when they are complete. `write_durably` and `AppendOnlyLog` also
survive a killed process, a power cut and a full disk, at the price of waiting for the disk.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunetv2_deferral.errors import InputError, refusals_named


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `folder` if, and only if, the block ends without an error.

    It lies inside `folder`, so that moving is renaming, and its name starts with a dot.

    Raises:
        InputError: If the operating system refuses to write there.
    """
    with refusals_named(folder, "written to"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=folder) as scratch:
            yield Path(scratch)
            for file in sorted(Path(scratch).iterdir()):
                file.replace(folder / file.name)


def without_nan(content: Any) -> Any:
    """The same data with None for every number that is not finite, which JSON does not know."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(content: Any, file: Path) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with written_whole(file.parent) as scratch:
        (scratch / file.name).write_text(json.dumps(content, indent=4) + "\n")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: If it is missing or cut short; the message names it.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def write_durably(file: Path, fill: Callable[[Path], None], *, before: Callable[[], None] | None = None) -> None:
    """Put a file in place whole or not at all, and only return when the disk has it.

    Args:
        file: Where it shall be; what is there is replaced.
        fill: Writes a file to the path it is given, of the same name; files that it writes beside it come along.
        before: Called when the new content is safely on disk and only its name is missing; if it raises, nothing has
            changed.

    Raises:
        OSError: If the disk is full or fails; then nothing has changed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished_", dir=file.parent) as scratch:
        written = Path(scratch) / file.name
        fill(written)
        companions = [other for other in sorted(Path(scratch).iterdir()) if other != written]
        for each in (*companions, written):
            with each.open("rb+") as stream:
                os.fsync(stream.fileno())
        if before is not None:
            before()
        for each in (*companions, written):
            each.replace(file.parent / each.name)
    _sync_folder(file.parent)


def write_json_durably(content: Any, file: Path, *, private: bool = False) -> None:
    """:func:`write_durably` for JSON; `private` files can be read by their owner only."""

    def fill(target: Path) -> None:
        if private:
            target.touch(mode=0o600)
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    write_durably(file, fill)


class AppendOnlyLog:
    """A file of JSON lines that only grows; one process writes it, from any thread."""

    def __init__(self, file: Path) -> None:
        """Open the log, dropping a last line that a killed process left without its end: it was never confirmed."""
        self.file = file
        self._lock = threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            content = file.read_bytes()
            end = content.rfind(b"\n") + 1
            if end != len(content):
                os.truncate(file, end)
        else:
            file.touch()
            _sync_folder(file.parent)

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry; it is on disk when this returns.

        Raises:
            OSError: If the disk is full or fails; then the log is as before.
        """
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        with self._lock, self.file.open("ab") as stream:
            end = stream.seek(0, os.SEEK_END)
            try:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(self.file, end)
                raise

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, oldest first."""
        with self.file.open(encoding="utf-8") as stream:
            yield from map(json.loads, stream)


def _sync_folder(folder: Path) -> None:
    """Make a renaming last. Systems that cannot sync a folder (Windows) do without."""
    with suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
