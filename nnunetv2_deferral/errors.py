"""Errors in the input, as opposed to faults of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Invalid input: a file, setting or argument.

    The message names the file or argument and the value. Commands and the review server show it in one line; any other
    exception is a fault of the program and is shown with its traceback.

    Example:
        >>> from nnunetv2_deferral import InputError, expert_set
        >>> try:
        ...     expert_set("standard", 4)
        ... except InputError as error:
        ...     print(error)
        expert set 'standard' is defined for 1 to 3 experts, not for 4
    """


@contextmanager
def refusals_named(path: Path, action: str) -> Iterator[None]:
    """Convert errors of the operating system (no permission, disk full, not a folder) to :class:`InputError`.

    Args:
        path: The file or folder that the block works on, for the message.
        action: What the block does to it, as a participle such as `"written"`.

    Raises:
        InputError: In place of an `OSError` with an error number; other exceptions pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise InputError(f"{path} cannot be {action}: {error.strerror}") from error
