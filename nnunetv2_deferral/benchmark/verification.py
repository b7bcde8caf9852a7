"""Check that all methods had the same cases, references, plans, data and labels; all problems are reported together.

Whether the references have changed since a validation is checked during scoring, by comparison with nnU-Net's
summary.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_deferral.benchmark.state import Stage, fold_state, other_cases
from nnunetv2_deferral.benchmark.trainers import find_trainer
from nnunetv2_deferral.dataset import read_dataset_json, read_plans_json
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.nnunet.experiment import SPLITS, Experiment, Method
from nnunetv2_deferral.nnunet.multi_rater_plans import MULTI_RATER_KEY
from nnunetv2_deferral.text import differences, listed

# Keys that may differ between the plans of compared methods: names, planners and deferral (including calibration, which
# is fitted after training and not used in final validations).
_FREE_KEYS = {
    *("plans_name", "configurations", "experiment_planner_used", "continue_training"),
    *("deferral", "deferral_model", "deferral_planner_used", CALIBRATION_KEY, MULTI_RATER_KEY),
}
_LABEL_KEYS = ("labels", "regions_class_order", "channel_names", "file_ending")
_SPLIT_SIZES = re.compile(r"This split has (\d+) training and (\d+) validation cases")


def verify(experiment: Experiment, methods: Sequence[Method]) -> None:
    """Refuse methods that cannot be compared.

    Raises:
        InputError: Listing all problems.
    """
    cases = experiment.cases()
    faults = [
        f"{experiment.reference(case)} is missing"
        for names in cases.values()
        for case in names
        if not experiment.reference(case).is_file()
    ]
    faults += _split_faults(experiment, methods)
    sound = []
    for method in methods:
        model = experiment.model(method)
        if not model.is_dir():
            faults.append(_never_trained(method, model))
            continue
        of_model = list(_model_faults(experiment, method))
        sound += [] if of_model else [method]
        states = [fold_state(experiment.fold(method, fold), cases[fold], experiment.file_ending) for fold in cases]
        faults += of_model + [state.problem for state in states if state.stage is not Stage.DONE]
    faults += _differing_models(experiment, sound)
    if faults:
        raise InputError(f"{len(faults)} problem(s), nothing was compared:\n  " + "\n  ".join(faults))


def verify_begun(experiment: Experiment, methods: Sequence[Method]) -> None:
    """Refuse to continue trainings that were started with different splits, plans or labels.

    Raises:
        InputError: Listing all problems.
    """
    cases = experiment.cases()
    faults = _split_faults(experiment, methods)
    for method in methods:
        states = [fold_state(experiment.fold(method, fold), cases[fold], experiment.file_ending) for fold in cases]
        if any(state.stage is not Stage.START for state in states):
            faults += _model_faults(experiment, method)
    if faults:
        raise InputError(f"{len(faults)} problem(s), nothing was trained:\n  " + "\n  ".join(faults))


def _split_faults(experiment: Experiment, methods: Sequence[Method]) -> list[str]:
    """One phrase for each fold that was trained or validated with splits different from splits_final.json."""
    splits = experiment.splits()
    faults = []
    for method in methods:
        for fold in experiment.folds:
            folder = experiment.fold(method, fold)
            sizes = len(splits[fold]["train"]), len(splits[fold]["val"])
            begun = fold_state(folder, splits[fold]["val"], experiment.file_ending).stage is not Stage.START
            used = split_sizes(folder) if begun else None
            if used not in (None, sizes):
                faults.append(
                    f"{folder} was trained with different splits: according to its log with {used[0]} training and "
                    f"{used[1]} validation cases, but fold {fold} of {experiment.preprocessed / SPLITS} has {sizes[0]} "
                    f"and {sizes[1]}"
                )
            if strangers := other_cases(folder, splits[fold]["val"], experiment.file_ending):
                faults.append(
                    f"{folder / 'validation'} has {len(strangers)} cases that are not in the validation of fold {fold} "
                    f"of {experiment.preprocessed / SPLITS}: {listed(strangers)}"
                )
    return faults


def split_sizes(fold: Path) -> tuple[int, int] | None:
    """The numbers of training and validation cases of a fold according to its last log; None if unknown."""
    for log in reversed(training_logs(fold)):
        if found := _SPLIT_SIZES.findall(log.read_text(errors="replace")):
            return int(found[-1][0]), int(found[-1][1])
    return None


def training_logs(fold: Path) -> list[Path]:
    """nnU-Net's logs of a fold, the oldest first."""
    # The names contain the time, in numbers of one or two digits.
    return sorted(fold.glob("training_log_*.txt"), key=lambda log: [int(part) for part in re.findall(r"\d+", log.name)])


def _never_trained(method: Method, model: Path) -> str:
    try:
        find_trainer(method.trainer)
    except InputError as error:
        return str(error)
    return f"{model} does not exist: {method} was not trained on this dataset and configuration (train it with --run)"


def _model_faults(experiment: Experiment, method: Method) -> Iterator[str]:
    """Differences between the plans and labels of a model and the current ones."""
    model, now = experiment.model(method), experiment.preprocessed
    pairs = {"plans.json": now / f"{method.plans}.json", "dataset.json": now / "dataset.json"}
    for name, source in pairs.items():
        try:
            read = read_dataset_json if name == "dataset.json" else read_plans_json
            theirs, ours = read(model / name), read(source)
            compared = [_comparable(content, name, experiment.configuration) for content in (theirs, ours)]
        except InputError as error:
            yield str(error)
            continue
        if differing := differences(*compared):
            yield f"{model / name} differs from {source}: {'; '.join(differing)}"


def _differing_models(experiment: Experiment, methods: Sequence[Method]) -> Iterator[str]:
    """Models whose plans, except for keys that may differ, or data differ from those of the first."""
    first: tuple[Path, Mapping[str, Any]] | None = None
    for method in methods:
        model = experiment.model(method)
        found = _comparable(read_plans_json(model / "plans.json"), "plans.json", experiment.configuration)
        # nnU-Net does not need the fingerprint after planning; a missing one is not an error.
        if (fingerprint := model / "dataset_fingerprint.json").is_file():
            found["the dataset's fingerprint"] = read_json(fingerprint)
        if first is None:
            first = model, found
        elif differing := differences(found, first[1]):
            yield f"the plans or data of {model} differ from those of {first[0]}: {'; '.join(differing)}"


def _comparable(content: Mapping[str, Any], name: str, configuration: str) -> dict[str, Any]:
    """The entries of a plans.json or dataset.json that must be the same for all methods.

    Raises:
        InputError: If plans lack the configuration.
    """
    if name == "dataset.json":
        return {key: content.get(key) for key in _LABEL_KEYS}
    if configuration not in content.get("configurations", {}):
        raise InputError(f"plans {content.get('plans_name')} have no configuration {configuration}")
    try:
        chosen = PlansManager(dict(content)).get_configuration(configuration).configuration
    except Exception as error:  # nnU-Net checks nothing of plans and stumbles over what is missing
        reason = f"nnU-Net cannot read their configuration {configuration}: {error!r}"
        raise InputError(f"plans {content.get('plans_name')}: {reason}") from error
    general = {key: value for key, value in content.items() if key not in _FREE_KEYS}
    return general | {f"{configuration}: {key}": value for key, value in chosen.items()}
