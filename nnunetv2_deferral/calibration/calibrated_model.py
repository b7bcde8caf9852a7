"""The model that is calibrated: its settings, and what it has predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_deferral.dataset import read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.nnunet.managers import MODEL_KEY
from nnunetv2_deferral.predictions import PredictionFolder, StockFolder
from nnunetv2_deferral.raters import declared_raters
from nnunetv2_deferral.routing import ONE_VS_ALL
from nnunetv2_deferral.settings import PLANS_KEY, DeferralSettings, resolve_settings


@dataclass(frozen=True, kw_only=True)
class CalibratedModel:
    """A trained model that is calibrated: a deferral network, or a stock network with experts.

    Attributes:
        experiment: Dataset, configuration and folds.
        method: Trainer and plans.
        plans: The content of its plans.json.
        settings: The settings of the deferral network, or of the experts of a stock network.
    """

    experiment: Experiment
    method: Method
    plans: Mapping[str, Any]
    settings: DeferralSettings

    @classmethod
    def of(
        cls, experiment: Experiment, method: Method, experts: str | None = None, *, may_be_stock: bool = True
    ) -> CalibratedModel:
        """Read the plans of a trained model.

        Args:
            experiment: Dataset, configuration and folds.
            method: Trainer and plans.
            experts: The set of simulated experts of a stock network; None for the raters of the dataset.
            may_be_stock: Whether a stock network will do.

        Raises:
            InputError: If the plans cannot be read, or it is a stock network that will not do or that has no experts.
        """
        plans = read_plans_json(experiment.model(method) / "plans.json")
        if MODEL_KEY in plans:
            settings = resolve_settings(plans[PLANS_KEY])
        elif not may_be_stock:
            raise InputError(
                f"{experiment.model(method)} is a stock network, which is calibrated on its final validations (-f), "
                "not on predictions (-i)"
            )
        else:  # which may have been trained with the plans of a deferral network
            settings = _settings_of_stock(experiment, method, experts)
        return cls(experiment=experiment, method=method, plans=plans, settings=settings)

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.experiment.model(self.method)

    @property
    def dataset_json(self) -> Path:
        """The dataset.json of the model."""
        return self.folder / "dataset.json"

    @property
    def is_stock(self) -> bool:
        """Whether it is a stock network."""
        return MODEL_KEY not in self.plans

    def validation(self, fold: int) -> PredictionFolder | StockFolder:
        """The final validation of a fold."""
        folder = self.experiment.validation(self.method, fold)
        if self.is_stock:
            return StockFolder.open(folder, self.dataset_json, self.settings)
        opened = PredictionFolder.open(folder, self.dataset_json)
        self.check_made(opened)
        return opened

    def check_made(self, predictions: PredictionFolder) -> None:
        """Refuse the predictions of another model.

        Raises:
            InputError: Naming the folder and all differences.
        """
        identity = predictions.index["model"] | {"objective": predictions.settings.objective}
        expected = {
            "dataset": self.experiment.dataset,
            "plans": self.method.plans,
            "configuration": self.experiment.configuration,
            "trainer": self.method.trainer,
            "experts": list(self.settings.expert_names),
            "objective": self.settings.objective,
        }
        differing = [f"{key}: {identity.get(key)}" for key, value in expected.items() if identity.get(key) != value]
        if differing:
            raise InputError(
                f"{predictions.folder} contains the deferral maps of another model ({'; '.join(differing)})"
            )


def _settings_of_stock(experiment: Experiment, method: Method, experts: str | None) -> DeferralSettings:
    raters = declared_raters(experiment.dataset_json)
    if experts is None and not raters:
        raise InputError(
            f"{experiment.model(method)} is a stock network, and the dataset.json of {experiment.dataset} declares no "
            "experts: declare raters with masks in expertsTr, or name a set of simulated experts (-experts)"
        )
    block = {"objective": ONE_VS_ALL, **({} if experts is None else {"experts": experts})}
    return resolve_settings(block, raters=raters)
