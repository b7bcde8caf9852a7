"""`nnUNetv2_deferral_doctor`: check whether a deferral training would start, and suggest a remedy for each fault."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from nnunetv2_deferral import __version__
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.environment import VARIABLES, check_names
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.installed import trainers_folder

_PACKAGES = ("nnunetv2", "torch", "torchvision", "batchgeneratorsv2", "dynamic-network-architectures", "numpy")
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class Finding(NamedTuple):
    """The result of one check: its name, the state found, and a remedy (None if there is no fault)."""

    name: str
    found: str
    advice: str | None = None


def examine() -> list[Finding]:
    """Check all prerequisites of a training.

    Imports are checked in order of dependency; after the first failure the remaining checks, which depend on it, are
    skipped.
    """
    findings = [*_versions(), *(_folder(name) for name in _FOLDERS), _workers(), _external_trainers(), _variables()]
    for check in (_torchvision, _nnunet_version, _hooks, _lookup, _raters):
        findings.append(_guarded(check))
        if findings[-1].advice is not None:
            break
    return findings


def describe_trainers() -> str:
    """The available trainer names and options."""
    from nnunetv2_deferral.nnunet import multi_rater_naming
    from nnunetv2_deferral.nnunet.naming import LENGTHS, ON, OPTIONS, example_names

    lines = ["trainers (any number of options can be appended to the name):"]
    lines += [f"  {name}" for name in example_names()]
    lines += [f"    _{name:<12} {option.description}" for name, option in OPTIONS.items()]
    lines += [f"    {ON}<trainer>  deferral on another trainer than nnUNetTrainer; last in the name"]
    lines += [f"  {multi_rater_naming.BASE_NAME} (several raters, without deferral; lengths as above)"]
    others = {name: option for name, option in multi_rater_naming.OPTIONS.items() if name not in LENGTHS}
    lines += [f"    _{name:<12} {option.description}" for name, option in others.items()]
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
        return Finding(name, "not set", f"export {name}=/your/folder (nnU-Net requires {', '.join(_FOLDERS)})")
    if name != "nnUNet_results" and not Path(value).is_dir():
        return Finding(name, f"{value} is not a folder", f"create it or correct {name}")
    return Finding(name, value)


def _workers() -> Finding:
    value = os.environ.get("nnUNet_n_proc_DA")
    if value is None:
        return Finding("nnUNet_n_proc_DA", "not set (nnU-Net's default applies)")
    if not value.isdigit():
        return Finding("nnUNet_n_proc_DA", value, "set it to the number of data loading processes, an integer")
    if value == "0":
        return Finding("nnUNet_n_proc_DA", "0", "set it to at least 1; nnU-Net's planning fails with 0")
    return Finding("nnUNet_n_proc_DA", value)


def _external_trainers() -> Finding:
    folder = trainers_folder()
    value = os.environ.get("nnUNet_extTrainer", "")
    listed = [Path(part).resolve() for part in value.split(os.pathsep) if part.strip()]
    advice = f'export nnUNet_extTrainer="{os.pathsep.join([*(str(part) for part in listed), str(folder)])}"'
    if not listed:
        return Finding("nnUNet_extTrainer", "not set", advice)
    if folder not in listed:
        return Finding("nnUNet_extTrainer", f"{value} does not include our trainers", advice)
    return Finding("nnUNet_extTrainer", value)


def _variables() -> Finding:
    """Look for misspelt environment variables of this package, with which trainings and predictions do not start."""
    name = "nnUNet_deferral_*"
    try:
        check_names()
    except InputError as error:
        return Finding(name, str(error), "unset it, or correct its name")
    values = [f"{each}={os.environ[each]}" for each in VARIABLES if each in os.environ]
    return Finding(name, ", ".join(values) or "not set")


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # any failure is a finding
        return Finding(check.__name__.strip("_"), f"{type(error).__name__}: {error}", "see the message")


def _torchvision() -> Finding:
    """Import torchvision, as nnU-Net does to look up any external trainer; incompatible builds fail on import."""
    try:
        import torchvision
    except Exception as error:
        return Finding(
            "torch and torchvision",
            f"are incompatible ({type(error).__name__}: {error})",
            "reinstall both from the same source: pip install --force-reinstall torch torchvision",
        )
    import torch

    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "no GPU: add -device cpu to nnU-Net's commands"
    return Finding("torch and torchvision", f"{torch.__version__} and {torchvision.__version__}; {device}")


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
        return Finding("hooks into nnU-Net", "; ".join(problems), "install a tested version of nnunetv2, see above")
    return Finding("hooks into nnU-Net", f"all {len(hooks.REPLACEMENTS)} replaced names found")


def _lookup() -> Finding:
    """Look up a trainer as nnU-Net's commands do."""
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    name, folder = "nnUNetTrainerDeferral3Experts", str(trainers_folder())
    found = recursive_find_python_class(folder, name, None, folder, cleanup_imports_from_base_folder=True)
    if found is None:
        return Finding("trainer lookup", f"{name} not found in {folder}", "reinstall nnunetv2-deferral")
    return Finding("trainer lookup", f"{name} found in {folder}")


def _raters() -> Finding:
    """Experts with masks whom dataset.json does not declare; no fault, as experts may be simulated on purpose."""
    from nnunetv2_deferral.dataset import read_dataset_json
    from nnunetv2_deferral.raters import FOLDER, declared_raters, undeclared_raters

    remarks = []
    for folder in sorted(Path(os.environ.get("nnUNet_raw", "")).glob(f"Dataset*/{FOLDER}")):
        try:
            declared = declared_raters(read_dataset_json(folder.with_name("dataset.json")))
        except InputError as error:
            remarks.append(str(error))
            continue
        if remark := undeclared_raters(folder.parent, declared):
            remarks.append(remark)
    return Finding("experts' masks", "; ".join(remarks) or "all declared in dataset.json")


def _render(finding: Finding) -> str:
    mark = "ok   " if finding.advice is None else "FAULT"
    line = f"{mark} {finding.name}: {finding.found}"
    return line if finding.advice is None else f"{line}\n      -> {finding.advice}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with code 0 only if a training would start."""
    parser = parsers.doctor()
    if parser.parse_args(arguments).trainers:
        print(trainers_folder())
        return
    findings = examine()
    print("\n".join(_render(finding) for finding in findings))
    faults = [finding for finding in findings if finding.advice is not None]
    if faults:
        print(f"\n{len(faults)} fault(s): training would not start. Follow the advice after the arrows.")
        sys.exit(1)
    print(f"\n{describe_trainers()}\n\nTraining would start, for example with:")
    print("  nnUNetv2_train DATASET 2d 0 -tr nnUNetTrainerDeferral3Experts")
