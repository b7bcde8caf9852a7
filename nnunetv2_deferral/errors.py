"""What a user got wrong, as opposed to what this package got wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Bad input: a file, a setting or an argument that cannot be used as it is.

    The message names the file or argument and the value. Commands and the review server show it in one line; any other
    exception is a fault of the program and keeps its traceback.

    Example:
        >>> from nnunetv2_deferral import InputError, expert_set
        >>> try:
        ...     expert_set("standard", 4)
        ... except InputError as error:
        ...     print(error)
        expert set 'standard' has no 4 experts; it has 1 to 3
    """


@contextmanager
def refusals_named(path: Path, action: str) -> Iterator[None]:
    """Turn what the operating system refuses (no permission, no space, not a folder) into an :class:`InputError`.

    Args:
        path: The file or folder that the block works on, for the message.
        action: What is done to it, as a participle: `"written"`.

    Raises:
        InputError: In place of an `OSError` of the operating system; other exceptions pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise InputError(f"{path} cannot be {action}: {error.strerror}") from error
