"""nnU-Net's plans and label managers for models with deferral channels.

nnU-Net's predictor allocates as many channels as its label manager has segmentation heads, and passes the plans manager
to worker processes that do not import this package. Therefore the plans manager of a deferral model is converted to a
:class:`DeferralPlansManager`: it is pickled by reference to this module, which the workers then import, and its label
manager reports all channels as heads, but segments from the first K.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_deferral.arrays import highest_in_chunks
from nnunetv2_deferral.channels import ChannelLayout
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY, ModelCalibration
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.head_place import HeadPlace
from nnunetv2_deferral.labels import LabelSpace
from nnunetv2_deferral.multi_rater.ordinal_head import OrdinalChannels
from nnunetv2_deferral.settings import PLANS_KEY, DeferralSettings, resolve_settings

# The entry that the trainer adds to the plans of a model.
MODEL_KEY = "deferral_model"


class QuickLabelManager(LabelManager):
    """nnU-Net's label manager, which segments classes many times faster.

    `numpy.argmax` along the first axis takes about a quarter of nnU-Net's export, and its result 8 bytes per voxel.
    """

    @classmethod
    def of(cls, stock: LabelManager) -> LabelManager:
        """The same manager, quicker if it is nnU-Net's own and not a subclass."""
        if type(stock) is not LabelManager:
            return stock
        found = cls.__new__(cls)
        found.__dict__.update(stock.__dict__)
        return found

    def convert_probabilities_to_segmentation(self, predicted_probabilities: np.ndarray | Tensor) -> Any:
        """As nnU-Net's; of classes uint8, or a longer type if that is too short."""
        values = np.asarray(predicted_probabilities)
        if self.has_regions or len(values) != self.num_segmentation_heads or len(values) < 2:
            return super().convert_probabilities_to_segmentation(predicted_probabilities)
        found = highest_in_chunks(values)
        return found if isinstance(predicted_probabilities, np.ndarray) else torch.from_numpy(found)


class StockPlansManager(PlansManager):
    """nnU-Net's plans manager, with the :class:`QuickLabelManager`."""

    def get_label_manager(self, dataset_json: dict[str, Any], **kwargs: Any) -> LabelManager:
        """nnU-Net's label manager, quicker."""
        return QuickLabelManager.of(super().get_label_manager(dataset_json, **kwargs))


class FirstHeadsLabelManager(LabelManager):
    """Counts further channels as heads, and converts the first K channels like the stock manager."""

    def __init__(self, stock: LabelManager, total: int) -> None:
        """Extend a stock manager.

        Args:
            stock: The stock manager, with K heads.
            total: The number of channels that nnU-Net's predictor must allocate.
        """
        self.__dict__.update(stock.__dict__)
        self._stock = stock
        self._total = total

    @property
    def num_segmentation_heads(self) -> int:
        """The number of channels that nnU-Net's predictor must allocate."""
        return self._total

    def apply_inference_nonlin(self, logits: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """The K segmentation probabilities of (K or more, *S) logits."""
        return self._stock.apply_inference_nonlin(self._segmentation(logits))

    def convert_probabilities_to_segmentation(self, predicted_probabilities: np.ndarray | Tensor) -> Any:
        """The label map of (K or more, *S) probabilities."""
        return self._stock.convert_probabilities_to_segmentation(self._segmentation(predicted_probabilities))

    def convert_logits_to_segmentation(self, predicted_logits: np.ndarray | Tensor) -> Any:
        """The label map of (K or more, *S) logits."""
        return self._stock.convert_logits_to_segmentation(self._segmentation(predicted_logits))

    def _segmentation(self, channels: np.ndarray | Tensor) -> np.ndarray | Tensor:
        return channels[: self._stock.num_segmentation_heads]


class DeferralLabelManager(FirstHeadsLabelManager):
    """Counts the channels of a deferral network."""

    def __init__(self, stock: LabelManager, settings: DeferralSettings, *, with_aggregated: bool) -> None:
        self._layout = settings.layout(
            stock.num_segmentation_heads, has_regions=stock.has_regions, with_aggregated=with_aggregated
        )
        self._ordinal = settings.ordinal_channels(stock.num_segmentation_heads, has_regions=stock.has_regions)
        super().__init__(stock, self._layout.total)

    @property
    def ordinal(self) -> OrdinalChannels | None:
        """The segmentation and the levels of raters; None if the network does not learn them."""
        return self._ordinal

    @property
    def layout(self) -> ChannelLayout:
        """The order of the output channels."""
        return self._layout


class DeferralPlansManager(PlansManager):
    """The plans of a deferral model.

    Attributes:
        prediction: How a predictor uses the model, for the export of its cases; see :func:`.maps.check_prediction`.
        with_aggregated: Whether outputs have the aggregated channel, which `hooks` leaves out of most predictions.
    """

    prediction: Mapping[str, Any] = MappingProxyType({})
    with_aggregated: bool = True

    @classmethod
    def adopt(cls, plans_manager: PlansManager) -> DeferralPlansManager:
        """Convert a stock manager, to which nnU-Net already has references, to this class in place."""
        plans_manager.__class__ = cls
        return plans_manager

    @property
    def settings(self) -> DeferralSettings:
        """The effective settings of the model.

        Raises:
            InputError: If the plans have no deferral block.
        """
        if PLANS_KEY not in self.plans:
            raise InputError(
                f'the plans "{self.plans.get("plans_name")}" of this model have no "{PLANS_KEY}" block, so this is not '
                "a deferral model. Was plans.json in the model folder replaced?"
            )
        return resolve_settings(self.plans[PLANS_KEY])

    @property
    def calibration(self) -> ModelCalibration | None:
        """The model's calibration, or None.

        Raises:
            InputError: If the entry belongs to a model with other experts or is invalid.
        """
        content = self.plans.get(CALIBRATION_KEY)
        return None if content is None else ModelCalibration.from_dict(content, self.settings.expert_names)

    @property
    def trainer_name(self) -> str | None:
        """The trainer of this model, or None if unknown."""
        return self.plans.get(MODEL_KEY, {}).get("trainer")

    @property
    def has_regions(self) -> bool:
        """Whether the model was trained on regions.

        Raises:
            InputError: If the plans are not those of a trained model.
        """
        if MODEL_KEY not in self.plans:
            raise InputError(
                f'the plans "{self.plans.get("plans_name")}" of this model have no "{MODEL_KEY}" entry, which is '
                "written in training. Was plans.json in the model folder replaced by the plans of the dataset?"
            )
        return self.plans[MODEL_KEY]["has_regions"]

    @property
    def head_place(self) -> HeadPlace | None:
        """The place of the head in the network, or None before it is found."""
        return HeadPlace.from_dict(self.plans.get(MODEL_KEY, {}))

    @head_place.setter
    def head_place(self, place: HeadPlace) -> None:
        self.plans[MODEL_KEY].update(place.to_dict())

    def stock(self) -> PlansManager:
        """A manager of the same plans without deferral channels, for functions of nnU-Net."""
        return StockPlansManager(self.plans)

    def get_label_manager(self, dataset_json: dict[str, Any], **kwargs: Any) -> DeferralLabelManager:
        """A label manager that includes the deferral channels."""
        stock = super().get_label_manager(dataset_json, **kwargs)
        return DeferralLabelManager(stock, self.settings, with_aggregated=self.with_aggregated)


def configuration_name(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> str:
    """The name of a configuration in its plans, which nnU-Net does not pass on; "unknown" if it is not there."""
    names = (
        name
        for name in plans_manager.available_configurations
        if plans_manager.get_configuration(name).configuration == configuration_manager.configuration
    )
    return next(names, "unknown")


def label_space(label_manager: LabelManager) -> LabelSpace:
    """The label space, for losses and metrics, of nnU-Net's (stock) label manager."""
    regions = None
    if label_manager.has_regions:
        regions = tuple(_as_labels(region) for region in label_manager.foreground_regions)
    return LabelSpace(label_manager.num_segmentation_heads, regions, label_manager.ignore_label)


def _as_labels(region: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(label) for label in region) if isinstance(region, (tuple, list)) else (int(region),)
