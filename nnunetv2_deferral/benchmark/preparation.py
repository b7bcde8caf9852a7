"""Checks before training."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_deferral.benchmark.trainers import find_trainer
from nnunetv2_deferral.dataset import read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.nnunet.experiment import SPLITS, Experiment, Method


def prepare(experiment: Experiment, methods: Sequence[Method]) -> None:
    """Check that all methods can be trained, and write nnU-Net's splits if they do not exist yet.

    nnU-Net writes the splits when the first training starts; trainings that start simultaneously would conflict.

    Raises:
        InputError: Listing missing trainers, plans, configurations and preprocessed data.
    """
    faults = _faults(experiment, methods)
    if faults:
        raise InputError(f"{len(faults)} problem(s), nothing was trained:\n  " + "\n  ".join(faults))
    if not (experiment.preprocessed / SPLITS).is_file():
        folder = str(experiment.preprocessed / _data_identifier(experiment, methods[0].plans))
        cases = sorted(infer_dataset_class(folder).get_identifiers(folder))
        write_json(
            [{part: list(map(str, names)) for part, names in fold.items()} for fold in generate_crossval_split(cases)],
            experiment.preprocessed / SPLITS,
        )


def _faults(experiment: Experiment, methods: Sequence[Method]) -> list[str]:
    faults = []
    for trainer in dict.fromkeys(method.trainer for method in methods):
        try:
            find_trainer(trainer)
        except InputError as error:
            faults.append(str(error))
    for plans in dict.fromkeys(method.plans for method in methods):
        try:
            identifier = _data_identifier(experiment, plans)
        except InputError as error:
            faults.append(str(error))
            continue
        folder = experiment.preprocessed / identifier
        if not folder.is_dir() or not any(folder.glob("*.pkl")):
            number = experiment.dataset.split("_")[0].removeprefix("Dataset")
            faults.append(
                f"{folder} has no preprocessed cases (nnUNetv2_preprocess -d {number} -plans_name {plans} "
                f"-c {experiment.configuration})"
            )
    return faults


def _data_identifier(experiment: Experiment, plans: str) -> str:
    """The data identifier of plans.

    Raises:
        InputError: If the plans do not exist or lack the configuration.
    """
    manager = PlansManager(read_plans_json(experiment.preprocessed / f"{plans}.json"))
    if experiment.configuration not in manager.available_configurations:
        raise InputError(
            f"{plans} has no configuration {experiment.configuration}, only "
            f"{', '.join(manager.available_configurations)}"
        )
    return manager.get_configuration(experiment.configuration).data_identifier
