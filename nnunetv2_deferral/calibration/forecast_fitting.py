"""Fitting of the forests that predict the Dice of a case, on validation cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nnunetv2_deferral.calibration.validation_cases import ValidationCases
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.failure import agreement
from nnunetv2_deferral.evaluation.overlap import overlap
from nnunetv2_deferral.forecast.features import FEATURES
from nnunetv2_deferral.forecast.forest import DiceForecast, Forest, Tree, features_of_classes

FEWEST_CASES = 10
_PARTS = 5  # of the groups, held back in turn to check forests


class ForecastFit:
    """Accumulates, case by case, features and Dice of each class.

    The networks must not have been trained on the cases. Cases in which a class is in neither mask have no Dice of it
    and are left out.
    """

    def __init__(self, cases: ValidationCases, names: Sequence[str]) -> None:
        """Start without cases; `names` are those of the foreground classes or regions."""
        self._cases = cases
        self.names = tuple(names)
        self._features: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self._dice: dict[str, list[float]] = {name: [] for name in names}
        self._groups: dict[str, list[str]] = {name: [] for name in names}

    def update(self, case: EvaluatedCase) -> None:
        """Add a case."""
        manager, regions = self._cases.files.label_manager, self._cases.files.regions
        features = features_of_classes(case.prediction.softmax, has_regions=manager.has_regions)
        dice = [scores["Dice"] for scores in overlap(case.reference, case.model, regions, case.valid).values()]
        for name, each, value in zip(self.names, features, dice, strict=True):
            if not np.isnan(value):
                self._features[name].append(each)
                self._dice[name].append(float(value))
                self._groups[name].append(self._cases.group(case.name))

    def forecast(self) -> tuple[DiceForecast, dict[str, Any]]:
        """The forests, and for each class how well forests fitted on other groups predict the Dice.

        Returns:
            The forecast, and by class `cases`, `mean_absolute_error`, `pearson` and `spearman` of groups held back in
            turn (NaN if the Dice is constant).

        Raises:
            InputError: If a class has a Dice in fewer than 10 cases.
        """
        forests, report = {}, {}
        for name in self.names:
            features, dice = np.array(self._features[name]), np.array(self._dice[name])
            if len(dice) < FEWEST_CASES:
                raise InputError(
                    f"the Dice of {name} is defined in {len(dice)} validation cases, but predicting it takes at least "
                    f"{FEWEST_CASES}"
                )
            forests[name] = fit_forest(features, dice)
            report[name] = held_back(features, dice, self._groups[name])
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
        raise InputError(f"predicting the Dice takes at least {FEWEST_CASES} cases, got {len(dice)}")
    mean, scale = features.mean(0), features.std(0)
    scale[scale == 0] = 1.0
    standardised = ((features - mean) / scale).astype(np.float32)
    fitted = RandomForestRegressor(random_state=0).fit(standardised, dice)
    return Forest(mean, scale, tuple(_plain(each.tree_) for each in fitted.estimators_))


def held_back(features: np.ndarray, dice: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    """How well the Dice of groups is predicted by forests fitted on the other groups."""
    names = sorted(set(groups))
    part = {name: place % _PARTS for place, name in enumerate(names)}
    of_case = np.array([part[group] for group in groups])
    predicted = np.full(len(dice), np.nan)
    for place in range(min(_PARTS, len(names))):
        held = of_case == place
        if (~held).sum() >= FEWEST_CASES:
            forest = fit_forest(features[~held], dice[~held])
            predicted[held] = [forest.predict(each) for each in features[held]]
    known = ~np.isnan(predicted)
    return {"cases": len(dice), **agreement(predicted[known], dice[known])}


def text(report: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines on the forecast for the terminal."""

    def shown(value: float | None) -> str:
        return "–" if value is None or np.isnan(value) else f"{value:.2f}"

    return [
        f"  predicted Dice of {name}: wrong by {shown(found['mean_absolute_error'])} on average, Spearman "
        f"{shown(found['spearman'])}, in {found['cases']} cases of patients held back"
        for name, found in report.items()
    ]


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
