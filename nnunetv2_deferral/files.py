"""Writing files whole or not at all."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A scratch folder whose files move into `folder` if, and only if, the block ends without an error.

    It lies inside `folder`, so that moving is renaming, and its name starts with a dot.
    """
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
