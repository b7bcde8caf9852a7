"""The directive `command-reference`: every console script of the package, from its argparse parser."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

from console import own_scripts, parser_of
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PREFIX = "nnUNetv2_deferral_"


def label_of(script: str) -> str:
    """The target that pages link to: `[...](#command-fuse)`."""
    return f"command-{script.removeprefix(PREFIX).replace('_', '-')}"


def command_page(script: str) -> str:
    """The section of one command, as MyST Markdown."""
    parser = parser_of(script)
    parser.prog, parser.color = script, False
    with mock.patch.dict(os.environ, {"COLUMNS": "94"}):
        usage = parser.format_usage().removeprefix("usage: ").rstrip()
    lines = [f"({label_of(script)})=", f"## {script}", "", parser.description or "", "", "```text", usage, "```", ""]
    lines += _options(parser)
    for name, task in _tasks(parser).items():
        lines += [f"**{script} {name}**: {_one_line(task.description or '').replace('<', '&lt;')}", "", *_options(task)]
    return "\n".join(lines)


def _tasks(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the tasks of a command that has several."""
    several = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return {name: task for each in several for name, task in each.choices.items()}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    lines = []
    for group in parser._action_groups:
        actions = [
            each
            for each in group._group_actions
            if each.help is not argparse.SUPPRESS
            and each.dest not in ("help", "version")
            and not isinstance(each, argparse._SubParsersAction)
        ]
        if not actions:
            continue
        if group.title not in ("positional arguments", "options"):
            lines += [f"**{_first_upper(group.title or '')}**", ""]
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| `{_invocation(parser, each)}` | {_meaning(parser, each)} |" for each in actions]
        lines.append("")
    return lines


def _invocation(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return _one_line(parser._get_formatter()._format_action_invocation(action))


def _meaning(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    text = _one_line(parser._get_formatter()._expand_help(action)) if action.help else ""
    text = _first_upper(text.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\["))
    return f"**Required.** {text}" if action.required and action.option_strings else text


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


class CommandReference(SphinxDirective):
    """All commands, one section each."""

    def run(self) -> list[nodes.Node]:
        """The sections."""
        return list(self._sections())

    def _sections(self) -> Iterator[nodes.Node]:
        for script in own_scripts():
            container = nodes.Element()
            content = StringList(command_page(script).splitlines(), source=script)
            self.state.nested_parse(content, 0, container, match_titles=True)
            yield from container.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command-reference", CommandReference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
