"""Writing that survives a killed process, a power cut and a full disk."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


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
