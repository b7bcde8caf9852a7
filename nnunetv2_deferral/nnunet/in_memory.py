"""Prediction of masks and deferral maps for arrays, without files.

For arrays, nnU-Net's `nnUNetPredictor` returns only masks (and probabilities). The functions here also return the maps
that `nnUNetv2_predict` writes:

- instead of `predict_single_npy_array`: :func:`predict_array`;
- instead of `predict_from_list_of_npy_arrays`: :func:`predict_array` for each image;
- after `predict_logits_from_preprocessed_data`: :func:`deferral_maps` of the logits, for images preprocessed by
  `get_data_iterator_from_raw_npy_data` or a custom pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunetv2_deferral.decision.decide import Decision
from nnunetv2_deferral.decision.limits import Limits, refuse_minutes
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.case_geometry import CaseGeometry
from nnunetv2_deferral.nnunet.export import check_limits, decide_case, effective_limits
from nnunetv2_deferral.nnunet.managers import DeferralLabelManager, DeferralPlansManager


def predict_array(
    predictor: nnUNetPredictor,
    image: np.ndarray,
    properties: Mapping[str, Any],
    *,
    previous_stage: np.ndarray | None = None,
    limits: Limits | None = None,
) -> tuple[np.ndarray, Decision]:
    """Predict the mask and the deferral maps of an image in memory.

    Args:
        predictor: nnU-Net's predictor, initialized with a deferral model (`initialize_from_trained_model_folder`).
        image: Floating point (C, Z, Y, X), or (C, 1, Y, X) in 2D, in the axis order of nnU-Net's readers.
        properties: Properties of the image from nnU-Net's readers; `"spacing"` of Z, Y and X in mm is sufficient. Not
            modified.
        previous_stage: For the second stage of a cascade, the label map (Z, Y, X) of the first.
        limits: The limits on deferral; None for those of the environment or the model's settings.

    Returns:
        The model's label map, uint8 or uint16 (Z, Y, X), and the decision, whose `maps` have the same shape.

    Raises:
        InputError: If the predictor's model is not a deferral model, the image does not have four axes, the spacing is
            missing, or the model cannot meet the limits.

    Example:
        Given `predictor = nnUNetPredictor(...)` after `predictor.initialize_from_trained_model_folder(...)`, and an
        `image` of shape (1, 3, 40, 48):

        >>> from nnunetv2_deferral import Limits, predict_array
        >>> mask, decision = predict_array(predictor, image, {"spacing": [5.0, 1.0, 1.0]}, limits=Limits(budget=0.02))
        >>> mask.shape, decision.maps.route.shape
        ((3, 40, 48), (3, 40, 48))
        >>> float((decision.maps.route > 0).mean()) <= 0.02
        True
    """
    _managers(predictor, limits)
    if image.ndim != 4:
        raise InputError(f"an image must have the axes (C, Z, Y, X), or (C, 1, Y, X) in 2D, got shape {image.shape}")
    if len(properties.get("spacing", ())) != 3:
        raise InputError(f'properties must have a "spacing" of three axes, got {properties.get("spacing")}')
    preprocessed = next(
        PreprocessAdapterFromNpy(
            [image],
            [previous_stage],
            [dict(properties)],
            [None],
            predictor.plans_manager,
            predictor.dataset_json,
            predictor.configuration_manager,
            num_threads_in_multithreaded=1,
            verbose=predictor.verbose_preprocessing,
        )
    )
    logits = predictor.predict_logits_from_preprocessed_data(preprocessed["data"]).cpu()
    found = preprocessed["data_properties"]
    case = _ResampledCase.of(predictor, logits, found, limits)
    return case.mask(predictor.dataset_json), case.decision()


def deferral_maps(
    predictor: nnUNetPredictor,
    logits: np.ndarray | Tensor,
    properties: dict[str, Any],
    *,
    limits: Limits | None = None,
) -> Decision:
    """Compute the deferral maps from logits, in the geometry of the image, as `nnUNetv2_predict` writes them.

    Args:
        predictor: The predictor that computed the logits.
        logits: (K + L + J + 2, *S) of the preprocessed image, from `predict_logits_from_preprocessed_data`.
        properties: nnU-Net's properties of the preprocessed image (`"data_properties"` of its data iterators).
        limits: The limits on deferral; None for those of the environment or the model's settings.

    Raises:
        InputError: If the predictor's model is not a deferral model, the number of channels is another, or the
            model cannot meet the limits.
    """
    return _ResampledCase.of(predictor, logits, properties, limits).decision()


@dataclass(frozen=True, kw_only=True)
class _ResampledCase:
    """A case whose segmentation logits were resampled, once for mask and maps.

    Attributes:
        segmentation: The segmentation logits, float32 (K, *S), before cropping was undone.
        routing: The routing logits of the preprocessed case.
        labels: The model's label manager.
        geometry: The geometry of the preprocessed case.
        plans_manager: The model's plans.
        limits: The limits on deferral; None for those of the environment or the model's settings.
    """

    segmentation: np.ndarray
    routing: Tensor
    labels: DeferralLabelManager
    geometry: CaseGeometry
    plans_manager: DeferralPlansManager
    limits: Limits | None

    @classmethod
    def of(
        cls,
        predictor: nnUNetPredictor,
        logits: np.ndarray | Tensor,
        properties: dict[str, Any],
        limits: Limits | None,
    ) -> _ResampledCase:
        plans_manager, labels = _managers(predictor, limits)
        parts = labels.layout.split(torch.as_tensor(logits).cpu(), dim=0)
        geometry = CaseGeometry(properties, predictor.configuration_manager, plans_manager)
        return cls(
            segmentation=geometry.resampled(parts.segmentation),
            routing=parts.routing,
            labels=labels,
            geometry=geometry,
            plans_manager=plans_manager,
            limits=limits,
        )

    def mask(self, dataset_json: dict[str, Any]) -> np.ndarray:
        """The label map, computed by nnU-Net."""
        stock = self.plans_manager.stock()
        mask: np.ndarray = convert_predicted_logits_to_segmentation_with_correct_shape(
            self.segmentation,
            stock,
            self.geometry.without_resampling(),
            stock.get_label_manager(dataset_json),
            self.geometry.properties,
        )
        return mask

    def decision(self) -> Decision:
        """The deferral maps."""
        return decide_case(
            self.segmentation, self.routing, self.labels, self.geometry, self.plans_manager, self.limits
        )[1]


def _managers(predictor: nnUNetPredictor, limits: Limits | None) -> tuple[DeferralPlansManager, DeferralLabelManager]:
    """The managers of the predictor's model, which must be a deferral model that can meet the limits.

    Raises:
        InputError: If it is not.
    """
    plans_manager = predictor.plans_manager
    if not isinstance(plans_manager, DeferralPlansManager):
        raise InputError(
            "the predictor is not initialized"
            if plans_manager is None
            else f"the predictor's model is not a deferral model: its trainer is {predictor.trainer_name}"
        )
    check_limits(plans_manager, limits)
    refuse_minutes(effective_limits(plans_manager.settings) if limits is None else limits)
    return plans_manager, plans_manager.get_label_manager(predictor.dataset_json)
