"""Whether all methods saw the same: cases, references, plans, data and labels. All faults are found before any is told.

That the references were the same when each method was validated is seen later, when masks are scored: what comes out
must be what nnU-Net wrote into summary.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_deferral.benchmark.state import Stage, fold_state, other_cases
from nnunetv2_deferral.benchmark.trainers import find_trainer
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json
from nnunetv2_deferral.nnunet.experiment import SPLITS, Experiment, Method
from nnunetv2_deferral.text import differences, listed

# What may differ between plans of methods that are compared: their names, who planned, and the deferral itself (also
# its calibration, which comes after training and which no final validation uses).
_FREE_KEYS = {
    *("plans_name", "configurations", "experiment_planner_used", "continue_training"),
    *("deferral", "deferral_model", "deferral_planner_used", CALIBRATION_KEY),
}
_LABEL_KEYS = ("labels", "regions_class_order", "channel_names", "file_ending")
_SPLIT_SIZES = re.compile(r"This split has (\d+) training and (\d+) validation cases")


def verify(experiment: Experiment, methods: Sequence[Method]) -> None:
    """Refuse methods that cannot be compared.

    Raises:
        InputError: With all faults.
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
        raise InputError(f"{len(faults)} fault(s), so there is nothing to compare:\n  " + "\n  ".join(faults))


def verify_begun(experiment: Experiment, methods: Sequence[Method]) -> None:
    """Refuse to add to trainings that were begun on other splits, plans or labels than there are now.

    Raises:
        InputError: With all faults.
    """
    cases = experiment.cases()
    faults = _split_faults(experiment, methods)
    for method in methods:
        states = [fold_state(experiment.fold(method, fold), cases[fold], experiment.file_ending) for fold in cases]
        if any(state.stage is not Stage.START for state in states):
            faults += _model_faults(experiment, method)
    if faults:
        raise InputError(f"{len(faults)} fault(s), nothing was trained:\n  " + "\n  ".join(faults))


def _split_faults(experiment: Experiment, methods: Sequence[Method]) -> list[str]:
    """Folds that were trained or validated with other splits than splits_final.json has now, one phrase each."""
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
                    f"{folder} was trained with other splits: {used[0]} training and {used[1]} validation cases "
                    f"by its log, but fold {fold} of {experiment.preprocessed / SPLITS} has {sizes[0]} and {sizes[1]}"
                )
            if strangers := other_cases(folder, splits[fold]["val"], experiment.file_ending):
                faults.append(
                    f"{folder / 'validation'} has {len(strangers)} cases that are not in the validation of fold {fold} "
                    f"of {experiment.preprocessed / SPLITS}: {listed(strangers)}"
                )
    return faults


def split_sizes(fold: Path) -> tuple[int, int] | None:
    """How many cases a fold was trained and validated with, as its last log has it; None where no log says."""
    for log in reversed(training_logs(fold)):
        if found := _SPLIT_SIZES.findall(log.read_text(errors="replace")):
            return int(found[-1][0]), int(found[-1][1])
    return None


def training_logs(fold: Path) -> list[Path]:
    """nnU-Net's logs of a fold, the oldest first."""
    # The names hold the time with numbers of one or two digits.
    return sorted(fold.glob("training_log_*.txt"), key=lambda log: [int(part) for part in re.findall(r"\d+", log.name)])


def _never_trained(method: Method, model: Path) -> str:
    try:
        find_trainer(method.trainer)
    except InputError as error:
        return str(error)
    return f"there is no {model}: {method} was not trained on this dataset and configuration (--run trains it)"


def _model_faults(experiment: Experiment, method: Method) -> Iterator[str]:
    """In what the plans and labels of a model differ from those that lie ready now."""
    model, now = experiment.model(method), experiment.preprocessed
    pairs = {"plans.json": now / f"{method.plans}.json", "dataset.json": now / "dataset.json"}
    for name, source in pairs.items():
        try:
            theirs, ours = read_json(model / name), read_json(source)
            compared = [_comparable(content, name, experiment.configuration) for content in (theirs, ours)]
        except InputError as error:
            yield str(error)
            continue
        if differing := differences(*compared):
            yield f"{model / name} differs from {source}: {'; '.join(differing)}"


def _differing_models(experiment: Experiment, methods: Sequence[Method]) -> Iterator[str]:
    """Models whose plans, apart from what may differ, or whose data are not those of the first."""
    first: tuple[Path, Mapping[str, Any]] | None = None
    for method in methods:
        model = experiment.model(method)
        found = _comparable(read_json(model / "plans.json"), "plans.json", experiment.configuration)
        # The fingerprint is of no use to nnU-Net after planning; where it was removed nothing is said.
        if (fingerprint := model / "dataset_fingerprint.json").is_file():
            found["the dataset's fingerprint"] = read_json(fingerprint)
        if first is None:
            first = model, found
        elif differing := differences(found, first[1]):
            yield f"{model} was trained on other plans or data than {first[0]}: {'; '.join(differing)}"


def _comparable(content: Mapping[str, Any], name: str, configuration: str) -> dict[str, Any]:
    """What must be the same for all methods, of a plans.json or a dataset.json.

    Raises:
        InputError: For plans without the configuration.
    """
    if name == "dataset.json":
        return {key: content.get(key) for key in _LABEL_KEYS}
    if configuration not in content.get("configurations", {}):
        raise InputError(f"plans {content.get('plans_name')} have no configuration {configuration}")
    chosen = PlansManager(dict(content)).get_configuration(configuration).configuration
    general = {key: value for key, value in content.items() if key not in _FREE_KEYS}
    return general | {f"{configuration}: {key}": value for key, value in chosen.items()}
