"""nnU-Net's plans for models that learned from several raters, see :mod:`.managers`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.agreement_maps import MultiRaterModel
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.multi_rater.ordinal_head import OrdinalChannels
from nnunetv2_deferral.nnunet.managers import FirstHeadsLabelManager, StockPlansManager, configuration_name
from nnunetv2_deferral.schema import Boolean, Text, validate

# The block that the trainer adds to the plans of a model.
MULTI_RATER_KEY = "multi_rater"


class _Block(TypedDict):
    trainer: Text
    raters: Annotated[list[Text], Field(min_length=2)]
    has_regions: Boolean
    segmentation_layer: NotRequired[Text]


def multi_rater_block(plans: Mapping[str, Any]) -> dict[str, Any]:
    """What the trainer wrote about raters and network to the plans of a model.

    Raises:
        InputError: If there is no such block, or it is not valid.
    """
    named = f'the plans "{plans.get("plans_name")}" of this model'
    if MULTI_RATER_KEY not in plans:
        raise InputError(
            f'{named} have no "{MULTI_RATER_KEY}" block, which is written in training. Was plans.json in the model '
            "folder replaced by the plans of the dataset?"
        )
    block: dict[str, Any] = plans[MULTI_RATER_KEY]
    validate(block, _Block, f'"{MULTI_RATER_KEY}" in {named}')
    return block


class MultiRaterPlansManager(PlansManager):
    """The plans of a model with an ordinal head.

    Attributes:
        prediction: How a predictor uses the model, see :class:`.DeferralPlansManager`.
    """

    prediction: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def adopt(cls, plans_manager: PlansManager) -> MultiRaterPlansManager:
        """Convert a stock manager, to which nnU-Net already has references, to this class in place."""
        plans_manager.__class__ = cls
        return plans_manager

    @property
    def block(self) -> dict[str, Any]:
        """See :func:`multi_rater_block`."""
        return multi_rater_block(self.plans)

    def stock(self) -> PlansManager:
        """A manager of the same plans without channels of levels, for functions of nnU-Net."""
        return StockPlansManager(self.plans)

    def channels(self, labels: LabelManager) -> OrdinalChannels:
        """The output channels, given the stock label manager."""
        return OrdinalChannels(labels.num_segmentation_heads, labels.has_regions, len(self.block["raters"]))

    def get_label_manager(self, dataset_json: dict[str, Any], **kwargs: Any) -> FirstHeadsLabelManager:
        """A label manager that counts the channels of the levels."""
        stock = super().get_label_manager(dataset_json, **kwargs)
        return FirstHeadsLabelManager(stock, self.channels(stock).total)

    def model(self, configuration_manager: ConfigurationManager) -> MultiRaterModel:
        """The identity of the model."""
        return MultiRaterModel(
            dataset=self.dataset_name,
            plans=self.plans_name,
            configuration=configuration_name(self, configuration_manager),
            trainer=self.block["trainer"],
            raters=tuple(self.block["raters"]),
        )
