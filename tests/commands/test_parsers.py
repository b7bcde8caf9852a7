"""The options of all commands, without what the commands need."""

import importlib
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from nnunetv2_deferral import __version__
from nnunetv2_deferral.commands import parsers, start
from nnunetv2_deferral.planners import PLANNERS

SETUP = Path(__file__).parents[2] / "setup.cfg"


def scripts():
    config = ConfigParser()
    config.read(SETUP)
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    return dict(line.split(" = ") for line in lines if line)


NAMES = [name.removeprefix(parsers.PREFIX) for name in scripts()]


def test_every_script_parses_first_and_has_a_module():
    for name in NAMES:
        assert scripts()[f"{parsers.PREFIX}{name}"] == f"nnunetv2_deferral.commands.start:{name}"
        assert callable(getattr(start, name))
        assert callable(importlib.import_module(f"nnunetv2_deferral.commands.{name}").main)


def test_help_takes_neither_torch_nor_nnunets_training():
    program = """
import sys
from nnunetv2_deferral.commands import parsers, start
for name in sys.argv[1:]:
    getattr(parsers, name)().format_help()
print([each for each in ("torch", "scipy", "SimpleITK", "nnunetv2.training") if each in sys.modules])
"""
    command = [sys.executable, "-c", program, *NAMES]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", NAMES)
def test_the_example_in_the_help_is_one_that_the_command_takes(name, capsys):
    parser = getattr(parsers, name)()
    words = shlex.split(parser.epilog.removeprefix("example:").replace("\\\n", " "))
    assert words.pop(0) == f"{parsers.PREFIX}{name}" == parser.prog
    parser.parse_args(words)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{parser.prog} {__version__}\n"
    assert parser.epilog in parser.format_help()


def test_all_planners_are_named():
    (said,) = [each.help for each in parsers.plan_experiment()._actions if each.dest == "pl"]
    assert set(said.removeprefix("Planner: ").split(". ")[0].split(", ")) == set(PLANNERS)


def test_an_interrupted_command_ends_in_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("nnunetv2_deferral.commands.fuse.main", interrupted)
    monkeypatch.setattr(sys, "argv", ["fuse", "-i", "predictions", "-experts", "answers", "-o", "fused"])
    with pytest.raises(SystemExit) as ended:
        start.fuse()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "\nnnUNetv2_deferral_fuse: interrupted\n"
