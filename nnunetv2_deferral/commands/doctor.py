"""`nnUNetv2_deferral_doctor`: would a deferral training start here, and if not, what to do about it."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from nnunetv2_deferral import __version__
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.installed import trainers_folder

_PACKAGES = ("nnunetv2", "torch", "torchvision", "batchgeneratorsv2", "dynamic-network-architectures", "numpy")
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class Finding(NamedTuple):
    """One checked thing: what it is, what was found, and what to do if it is a fault (None if it is well)."""

    name: str
    found: str
    advice: str | None = None


def examine() -> list[Finding]:
    """Check everything that a training needs before it starts.

    Imports come one after the other, so that the first that fails is named; later checks that need it are left out.
    """
    findings = [*_versions(), *(_folder(name) for name in _FOLDERS), _workers(), _external_trainers()]
    for check in (_torchvision, _nnunet_version, _hooks, _lookup):
        findings.append(_guarded(check))
        if findings[-1].advice is not None:
            break
    return findings


def describe_trainers() -> str:
    """What the trainers' names can say."""
    from nnunetv2_deferral.nnunet.naming import OPTIONS, example_names

    lines = ["trainers (any number of options can follow the name):"]
    lines += [f"  {name}" for name in example_names()]
    lines += [f"    _{name:<12} {option.description}" for name, option in OPTIONS.items()]
    return "\n".join(lines)


def _versions() -> list[Finding]:
    findings = [Finding("nnunetv2-deferral", f"{__version__} on Python {platform.python_version()}")]
    for package in _PACKAGES:
        try:
            findings.append(Finding(package, version(package)))
        except PackageNotFoundError:
            findings.append(Finding(package, "not installed", f"pip install {package}"))
    return findings


def _folder(name: str) -> Finding:
    value = os.environ.get(name)
    if not value:
        return Finding(name, "not set", f"export {name}=/your/folder (nnU-Net needs all of {', '.join(_FOLDERS)})")
    if name != "nnUNet_results" and not Path(value).is_dir():
        return Finding(name, f"{value} is no folder", f"create it, or correct {name}")
    return Finding(name, value)


def _workers() -> Finding:
    value = os.environ.get("nnUNet_n_proc_DA")
    if value is None:
        return Finding("nnUNet_n_proc_DA", "not set (nnU-Net chooses)")
    if not value.isdigit():
        return Finding("nnUNet_n_proc_DA", value, "set it to a whole number of data loading processes")
    if value == "0":
        return Finding("nnUNet_n_proc_DA", "0", "set it to at least 1: nnU-Net's planning fails with 0")
    return Finding("nnUNet_n_proc_DA", value)


def _external_trainers() -> Finding:
    folder = trainers_folder()
    value = os.environ.get("nnUNet_extTrainer", "")
    listed = [Path(part).resolve() for part in value.split(os.pathsep) if part.strip()]
    advice = f'export nnUNet_extTrainer="{os.pathsep.join([*(str(part) for part in listed), str(folder)])}"'
    if not listed:
        return Finding("nnUNet_extTrainer", "not set", advice)
    if folder not in listed:
        return Finding("nnUNet_extTrainer", f"{value} does not name our trainers", advice)
    return Finding("nnUNet_extTrainer", value)


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a doctor reports whatever breaks
        return Finding(check.__name__.strip("_"), f"{type(error).__name__}: {error}", "see the message")


def _torchvision() -> Finding:
    """nnU-Net imports torchvision when it looks up any external trainer; builds that do not match break that."""
    try:
        import torchvision
    except Exception as error:
        return Finding(
            "torch and torchvision",
            f"do not fit together ({type(error).__name__}: {error})",
            "reinstall both from one source: pip install --force-reinstall torch torchvision",
        )
    import torch

    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "no GPU: add -device cpu to nnU-Net's commands"
    return Finding("torch and torchvision", f"{torch.__version__} and {torchvision.__version__} fit; {device}")


def _nnunet_version() -> Finding:
    from nnunetv2_deferral.nnunet.hooks import TESTED_NNUNET, check_nnunet_version

    low, high = TESTED_NNUNET
    try:
        check_nnunet_version()
    except InputError as error:
        return Finding("nnU-Net version", str(error), f"pip install 'nnunetv2>={low},<{high}'")
    return Finding("nnU-Net version", f"within >={low},<{high}")


def _hooks() -> Finding:
    from nnunetv2_deferral.nnunet import hooks

    problems = hooks.misfits()
    if problems:
        return Finding("hooks into nnU-Net", "; ".join(problems), "install a tested nnunetv2, see above")
    return Finding("hooks into nnU-Net", f"all {len(hooks.REPLACEMENTS)} replaced names are where they should be")


def _lookup() -> Finding:
    """Find a trainer the way nnU-Net's commands do."""
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    name, folder = "nnUNetTrainerDeferral3Experts", str(trainers_folder())
    found = recursive_find_python_class(folder, name, None, folder, cleanup_imports_from_base_folder=True)
    if found is None:
        return Finding("trainer lookup", f"{name} not found in {folder}", "reinstall nnunetv2-deferral")
    return Finding("trainer lookup", f"{name} found in {folder}")


def _render(finding: Finding) -> str:
    mark = "ok   " if finding.advice is None else "FAULT"
    line = f"{mark} {finding.name}: {finding.found}"
    return line if finding.advice is None else f"{line}\n      -> {finding.advice}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; the exit code is 0 only if a training would start."""
    parser = argparse.ArgumentParser(description="Check whether a deferral training would start on this machine.")
    parser.add_argument(
        "--trainers",
        action="store_true",
        help="only print the folder that nnUNet_extTrainer must name",
    )
    if parser.parse_args(arguments).trainers:
        print(trainers_folder())
        return
    findings = examine()
    print("\n".join(_render(finding) for finding in findings))
    faults = [finding for finding in findings if finding.advice is not None]
    if faults:
        print(f"\n{len(faults)} fault(s): a training would not start. Do what is said behind the arrows.")
        sys.exit(1)
    print(f"\n{describe_trainers()}\n\nA training would start, for example:")
    print("  nnUNetv2_train DATASET 2d 0 -tr nnUNetTrainerDeferral3Experts")
