"""How well probabilities of methods agree with several raters, where a dataset has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.nnunet.rater_evaluation import RaterInputs, evaluate_raters
from nnunetv2_deferral.raters import FOLDER, declared_raters


def score_against_raters(
    experiment: Experiment, method: Method, *, groups: Mapping[str, Any] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Compare the validation of a method with all raters of the dataset.

    Args:
        experiment: Dataset, configuration and folds.
        method: The method.
        groups: For each case its group, such as its patient; None for each case by itself.
        seed: Seed of the intervals.

    Returns:
        `raters`, `calibration` and `dice` of `nnUNetv2_deferral_evaluate_raters`; empty if dataset.json declares fewer
        than two raters, or the method was validated without probabilities.

    Raises:
        InputError: See :meth:`.RaterInputs.open`, such as of a case that no rater has a mask of.
    """
    folds = [experiment.validation(method, fold) for fold in experiment.folds]
    files = [
        folder / f"{case}.npz"
        for folder, cases in zip(folds, experiment.cases().values(), strict=True)
        for case in cases
    ]
    if len(declared_raters(experiment.dataset_json)) < 2 or not all(file.is_file() for file in files):
        return {}
    opened = [
        RaterInputs.open(
            folder,
            experiment.raw / FOLDER,
            references=experiment.preprocessed / "gt_segmentations",
            dataset_json=experiment.model(method) / "dataset.json",
        )
        for folder in folds
    ]
    summary = evaluate_raters(*opened, groups=groups, bootstrap_seed=seed)
    return {key: summary[key] for key in ("raters", "calibration", "dice")}
