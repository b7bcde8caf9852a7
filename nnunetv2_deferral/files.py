"""Atomic and durable file operations.

`write_json` and `written_whole` move files into place once they are complete. `write_durably` and `AppendOnlyLog` also
survive a killed process, a power failure and a full disk, at the cost of waiting for the disk. `begin_publication`
records the files of a result before they move to their places, so that a call killed meanwhile can be repeated.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from nnunetv2_deferral.errors import InputError, refusals_named

fcntl: Any = None
with suppress(ImportError):  # Windows does not have it
    fcntl = importlib.import_module("fcntl")

UNFINISHED = ".unfinished_files.json"
"""In an output folder while files move to it: their names. A call that finds it may replace what was left of them."""

_cleared: set[Path] = set()


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are moved into `folder` if and only if the block ends without an error.

    It is a hidden subfolder of `folder`, so that moving is a rename.

    Raises:
        InputError: If the operating system refuses to write there.
    """
    with refusals_named(folder, "written to"):
        folder.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder) as scratch:
            yield scratch
            for file in sorted(scratch.iterdir()):
                file.replace(folder / file.name)


@contextmanager
def new_folder(output: Path, *, replaced: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `output` if and only if the block ends without an error.

    Args:
        output: The new folder.
        replaced: Whether a folder that is there is replaced, with all that is in it; otherwise it must be empty.

    Raises:
        InputError: If `output` is not empty, or the operating system refuses to write there.
    """
    scratch, old = (output.with_name(f".{output.name}.{word}") for word in ("unfinished", "replaced"))
    if old.exists() and not output.exists():  # of a call that was killed in between
        old.rename(output)
    if output.exists() and not replaced and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is not empty; choose a new folder (-o)")
    for left in (scratch, old):  # of a call that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        with refusals_named(output, "written to"):
            scratch.mkdir(parents=True)
            yield scratch
            if output.exists():
                output.rename(old)
            scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if old.exists() and not output.exists():
            old.rename(output)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked(file: Path) -> Iterator[IO[bytes] | None]:
    """Hold a lock, which processes that inherit the open file hold until they end; None where there are no such locks.

    Args:
        file: An empty file, which is made.

    Raises:
        BlockingIOError: If another process holds it.
    """
    if fcntl is None:
        yield None
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock


def without_nan(content: Any) -> Any:
    """The same data with None for every number that is not finite, because JSON has no NaN or infinity."""
    if isinstance(content, Mapping):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(content: Any, file: Path) -> None:
    """Write `content` atomically as indented JSON.

    Raises:
        InputError: If the operating system refuses to write there.
    """
    with written_whole(file.parent) as scratch:
        (scratch / file.name).write_text(json.dumps(content, indent=4) + "\n")


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        InputError: If it is missing or not valid JSON; the message names it.
    """
    if not file.is_file():
        raise InputError(f"{file} is missing")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def state_of(paths: Iterable[Path]) -> str:
    """A hash of the names, sizes and times of all files of these files and folders; other paths have none."""
    state = hashlib.sha256()
    for path in paths:
        for file in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
            if file.is_file():
                found = file.stat()
                state.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return state.hexdigest()


def begin_publication(folder: Path, names: Iterable[str]) -> None:
    """Record durably that files of one result are about to move to a folder; they may replace existing ones.

    Args:
        folder: The output folder.
        names: The paths of the old and the new files relative to it.

    Raises:
        InputError: If the operating system refuses to write there.
    """
    with refusals_named(folder, "written to"):
        write_json_durably({"files": sorted(names)}, folder / UNFINISHED)


def end_publication(folder: Path) -> None:
    """Delete the record of :func:`begin_publication`, because all files are in their places."""
    (folder / UNFINISHED).unlink(missing_ok=True)


def unfinished_files(folder: Path) -> list[str]:
    """The files of a result whose publication has not ended; empty if there is none.

    Raises:
        InputError: If the record cannot be read or has another content; the message names it.
    """
    file = folder / UNFINISHED
    if not file.is_file():
        return []
    content = read_json(file)
    names = content.get("files") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{file} must list names under files; delete the file and what was left of the result")
    return names


def make_private_folder(folder: Path, root: Path) -> None:
    """Make a folder below `root`, and all in between, that only their owner can enter; `root` must exist."""
    if folder != root:
        make_private_folder(folder.parent, root)
        folder.mkdir(mode=0o700, exist_ok=True)


def write_durably(
    file: Path, fill: Callable[[Path], None], *, before: Callable[[], None] | None = None, private: bool = False
) -> None:
    """Write a file atomically and return once it is on disk.

    Args:
        file: The file; an existing one is replaced.
        fill: Writes the content to the path it is given, which has the same name; other files that it writes to the
            same folder are moved along.
        before: Called once the new content is on disk, before the file is renamed; if it raises, `file` is unchanged.
        private: Whether the files may be read by their owner only.

    Raises:
        OSError: If the disk is full or fails; then nothing has changed.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(file.parent) as scratch:
        written = scratch / file.name
        fill(written)
        companions = [other for other in sorted(scratch.iterdir()) if other != written]
        for each in (*companions, written):
            if private:
                each.chmod(0o600)
            with each.open("rb+") as stream:
                os.fsync(stream.fileno())
        if before is not None:
            before()
        for each in (*companions, written):
            each.replace(file.parent / each.name)
    sync_folder(file.parent)


def write_json_durably(content: Any, file: Path, *, private: bool = False) -> None:
    """:func:`write_durably` for JSON; `private` files are readable by their owner only.

    Raises:
        OSError: See :func:`write_durably`.
    """

    def fill(target: Path) -> None:
        target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    write_durably(file, fill, private=private)


class AppendOnlyLog:
    """An append-only file of JSON lines, written by one process from any thread; readable by its owner only."""

    def __init__(self, file: Path) -> None:
        """Open the log; an incomplete last line, left by a killed process and never confirmed, is removed."""
        self.file = file
        self._lock = threading.Lock()
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            content = file.read_bytes()
            end = content.rfind(b"\n") + 1
            if end != len(content):
                os.truncate(file, end)
        else:
            file.touch(mode=0o600)
            sync_folder(file.parent)

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry and return once it is on disk.

        Raises:
            OSError: If the disk is full or fails; then the log is unchanged.
        """
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        # Unbuffered, because what is left in a buffer after an error would be written when the file is closed.
        with self._lock, self.file.open("ab", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[stream.write(rest) :]
                os.fsync(stream.fileno())
            except OSError:
                with suppress(OSError):
                    os.truncate(self.file, end)
                raise

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries, oldest first.

        Raises:
            InputError: If a line is not JSON; the message names file and line.
        """
        with self.file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(
                        f"{self.file}, line {number} is damaged: {error}. Restore a backup or remove the line"
                    ) from error


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder inside `folder`, deleted at the end; those of processes that were killed are deleted, too.

    Its owner holds a lock on it, which the operating system releases when the process ends, however it ends: a scratch
    folder whose lock is free belongs to nobody. On a shared file system locks may be known to one machine only, so that
    each machine deletes its own only, which have its name. Where folders cannot be locked, none are deleted.
    """
    prefix = f".unfinished_{re.sub('[^A-Za-z0-9]', '-', platform.node())}_"
    if folder not in _cleared:  # once per process, because folders may hold thousands of files
        _cleared.add(folder)
        for left in folder.glob(f"{prefix}????????"):
            with _lock(left) as locked:
                if locked:
                    shutil.rmtree(left, ignore_errors=True)
    while True:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as name, _lock(Path(name)) as locked:
            # Another process may have found the new folder before it was locked, and is deleting it.
            if locked is not False and Path(name).is_dir():
                yield Path(name)
                return


@contextmanager
def _lock(folder: Path) -> Iterator[bool | None]:
    """Try to lock a folder; gives whether that worked, or None if folders cannot be locked here."""
    locked: bool | None = None
    if fcntl is None:
        yield locked
        return
    with ExitStack() as stack:
        try:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except (BlockingIOError, FileNotFoundError):  # another process has locked it or deleted it
            locked = False
        except OSError:
            locked = None
        yield locked


def sync_folder(folder: Path) -> None:
    """Make a rename durable; does nothing on systems that cannot sync a folder (Windows)."""
    with suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
