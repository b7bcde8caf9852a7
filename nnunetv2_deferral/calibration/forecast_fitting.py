"""Fitting of the forests that predict the Dice of a case, on validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.failure import agreement
from nnunetv2_deferral.evaluation.overlap import overlap
from nnunetv2_deferral.forecast.features import FEATURES
from nnunetv2_deferral.forecast.forest import DiceForecast, Forest, Tree, features_of_classes
from nnunetv2_deferral.parts import in_order

FEWEST_CASES = 10
_PARTS = 5  # of the groups, held back in turn to check forests


class ForecastFit:
    """Accumulates, case by case, features and Dice of each class.

    The networks must not have been trained on the cases. Cases in which a class is in neither mask have no Dice of it
    and are left out.
    """

    def __init__(self, files: DatasetFiles) -> None:
        """Start without cases; those to come are of this dataset."""
        self.names, self._regions = files.class_names, files.regions
        self._has_regions = files.label_manager.has_regions
        self._found: dict[str, tuple[str, list[tuple[np.ndarray, float]]]] = {}

    def update(self, case: EvaluatedCase, group: str) -> None:
        """Add a case of a group."""
        features = features_of_classes(case.prediction.softmax, has_regions=self._has_regions)
        dice = [scores["Dice"] for scores in overlap(case.reference, case.model, self._regions, case.valid).values()]
        self._found[case.name] = group, list(zip(features, map(float, dice), strict=True))

    @classmethod
    def merged(cls, parts: Sequence[ForecastFit], cases: Sequence[str]) -> ForecastFit:
        """What was accumulated over the cases of all parts, which are these, in this order."""
        merged = copy(parts[0])
        merged._found = in_order([part._found for part in parts], cases)
        return merged

    def forecast(self) -> tuple[DiceForecast, dict[str, Any]]:
        """The forests, and for each class how well forests fitted on other groups predict the Dice.

        Returns:
            The forecast, and by class `cases`, `mean_absolute_error`, `pearson` and `spearman` of groups held back in
            turn (NaN if the Dice is constant).

        Raises:
            InputError: If a class has a Dice in fewer than 10 cases.
        """
        forests, report = {}, {}
        for place, name in enumerate(self.names):
            every = [(*of_classes[place], group) for group, of_classes in self._found.values()]
            known = [each for each in every if not np.isnan(each[1])]
            features, dice = (np.array([each[row] for each in known]) for row in range(2))
            if len(dice) < FEWEST_CASES:
                raise InputError(
                    f"the Dice of {name} is defined in {len(dice)} cases, but predicting it requires at least "
                    f"{FEWEST_CASES}"
                )
            forests[name] = fit_forest(features, dice)
            report[name] = held_back(features, dice, [group for *_, group in known])
        return DiceForecast(forests), report


def fit_forest(features: np.ndarray, dice: np.ndarray) -> Forest:
    """Fit a random forest with scikit-learn's defaults on standardised features.

    Args:
        features: float64 (N, 5).
        dice: float64 (N,), in [0, 1].

    Raises:
        InputError: If there are fewer than 10 cases.
    """
    from sklearn.ensemble import RandomForestRegressor  # imported here because it is slow to import

    if len(dice) < FEWEST_CASES:
        raise InputError(f"predicting the Dice requires at least {FEWEST_CASES} cases, got {len(dice)}")
    mean, scale = features.mean(0), features.std(0)
    scale[scale == 0] = 1.0
    standardised = ((features - mean) / scale).astype(np.float32)
    fitted = RandomForestRegressor(random_state=0).fit(standardised, dice)
    return Forest(mean, scale, tuple(_plain(each.tree_) for each in fitted.estimators_))


def held_back(features: np.ndarray, dice: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """How well the Dice of groups is predicted by forests fitted on the other groups.

    Groups are held back in five parts, or one by one if few cases are left otherwise. Where even then too few are left,
    they are not predicted, and not among the `cases`.
    """
    order = {name: place for place, name in enumerate(sorted(set(groups)))}
    of_case = np.array([order[group] for group in groups])
    if len(dice) - np.bincount(of_case % _PARTS).max() >= FEWEST_CASES:
        of_case %= _PARTS
    predicted = np.full(len(dice), np.nan)
    for place in np.unique(of_case):
        held = of_case == place
        if (~held).sum() >= FEWEST_CASES:
            forest = fit_forest(features[~held], dice[~held])
            predicted[held] = [forest.predict(each) for each in features[held]]
    known = ~np.isnan(predicted)
    return {"cases": int(known.sum()), **agreement(predicted[known], dice[known])}


def text(report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines on the forecast for the terminal."""

    def shown(value: float | None) -> str:
        return "–" if value is None or np.isnan(value) else f"{value:.2f}"

    def line(name: str, found: Mapping[str, Any]) -> str:
        if not found["cases"]:
            return f"  predicted Dice of {name}: not checked, because too few cases are left if patients are held out"
        found_in = f"in {found['cases']} cases of held-out patients"
        if not (found["spearman"] or 0) > 0:  # NaN, too
            found_in += ": it does not distinguish good masks from bad ones"
        return (
            f"  predicted Dice of {name}: wrong by {shown(found['mean_absolute_error'])} on average, Spearman "
            f"{shown(found['spearman'])}, {found_in}"
        )

    return [line(name, found) for name, found in report.items()]


def _plain(tree: Any) -> Tree:
    """A tree of scikit-learn as plain arrays."""
    leaves = tree.children_left == tree.children_right
    return Tree(
        feature=np.where(leaves, 0, tree.feature).clip(0, len(FEATURES) - 1).astype(np.int64),
        threshold=np.where(leaves, 0.0, tree.threshold).astype(np.float64),
        left=np.where(leaves, -1, tree.children_left).astype(np.int64),
        right=np.where(leaves, -1, tree.children_right).astype(np.int64),
        value=tree.value.reshape(-1).astype(np.float64).clip(0, 1),
    )
