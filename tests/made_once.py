"""Folders that many tests start from, made once a process and copied from memory."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")

_made: dict[str, tuple[dict[Path, bytes | None], bytes]] = {}


def made_once(folder: Path, key: object, make: Callable[[Path], Made]) -> Made:
    """Call `make` on the folder, or give it the files that the first call with this key made.

    Args:
        folder: Made if it does not exist. Where it already has one of the files, `make` is called.
        key: All that the files depend on; compared by its `repr`.
        make: Fills a folder; its result can be pickled. Neither may depend on where the folder lies.

    Returns:
        The result of `make`, a copy for each call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (name := repr(key)) not in _made:
        with tempfile.TemporaryDirectory() as scratch:
            result = pickle.dumps(make(Path(scratch)))
            found = sorted(Path(scratch).rglob("*"))
            files = {file.relative_to(scratch): file.read_bytes() if file.is_file() else None for file in found}
        _made[name] = files, result
    files, result = _made[name]
    if any(content is not None and (folder / file).exists() for file, content in files.items()):
        return make(folder)
    for file, content in files.items():
        if content is None:
            (folder / file).mkdir(exist_ok=True)
        else:
            (folder / file).write_bytes(content)
    return pickle.loads(result)
