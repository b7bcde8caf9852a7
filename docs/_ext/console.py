"""The argparse parsers of console scripts, found without running the scripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]


class _Parsed(BaseException):
    """Ends a script as soon as its arguments are parsed; no `except Exception` of the script catches it."""

    def __init__(self, parser: argparse.ArgumentParser, given: argparse.Namespace | None) -> None:
        super().__init__()
        self.parser = parser
        self.given = given


def own_scripts() -> tuple[str, ...]:
    """The console scripts of this package, as setup.cfg lists them, sorted."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options.entry_points"]["console_scripts"].splitlines()
    return tuple(sorted(line.split("=")[0].strip() for line in lines if line.strip()))


@cache
def installed_scripts() -> tuple[str, ...]:
    """All installed console scripts whose names begin with nnUNetv2_, sorted."""
    return tuple(
        sorted(each.name for each in entry_points(group="console_scripts") if each.name.startswith("nnUNetv2"))
    )


def parser_of(script: str) -> argparse.ArgumentParser:
    """The parser that a console script builds.

    Raises:
        ValueError: If there is no such script, or it parses nothing.
    """
    return _run(script, (), parse=False).parser


def parse(script: str, arguments: Sequence[str]) -> argparse.Namespace:
    """What a console script would make of its arguments; it ends there.

    Raises:
        ValueError: If there is no such script, or its parser refuses the arguments; the message is the parser's.
    """
    given = _run(script, arguments, parse=True).given
    assert given is not None
    return given


def _run(script: str, arguments: Sequence[str], *, parse: bool) -> _Parsed:
    found = entry_points(group="console_scripts", name=script)
    if not found:
        raise ValueError(f"there is no command {script}")
    main = next(iter(found)).load()
    with _stopped_by_parsing(parse=parse), mock.patch.object(sys, "argv", [script, *arguments]):
        try:
            main()
        except _Parsed as parsed:
            return parsed
    raise ValueError(f"{script} did not parse any arguments")


@contextmanager
def _stopped_by_parsing(*, parse: bool) -> Iterator[None]:
    real = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        raise _Parsed(self, real(self, args, namespace) if parse else None)

    def error(self: argparse.ArgumentParser, message: str) -> Any:
        raise ValueError(message)

    patch = mock.patch.multiple(argparse.ArgumentParser, parse_args=parse_args, error=error)
    with patch:
        yield
