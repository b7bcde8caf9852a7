"""Conversion of predictions for a preprocessed case to the geometry of its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor


@dataclass(frozen=True)
class CaseGeometry:
    """The geometry of a preprocessed case relative to its image.

    Attributes:
        properties: nnU-Net's properties of the case.
        configuration_manager: The configuration used for prediction.
        plans_manager: Its plans.
    """

    properties: dict[str, Any]
    configuration_manager: ConfigurationManager
    plans_manager: PlansManager

    @property
    def cropped_shape(self) -> tuple[int, ...]:
        """The shape of the case before resampling, in the axis order of preprocessed data."""
        return tuple(self.properties["shape_after_cropping_and_before_resampling"])

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """The spacing of the image."""
        return tuple(float(size) for size in self.properties["spacing"])

    def channels_in_image(self, channels: Tensor, outside: float) -> np.ndarray:
        """Convert (C, *S) of the preprocessed case to the image; float32, with `outside` where it was cropped.

        Resampling, cropping and axis order are reverted as by nnU-Net for probabilities.
        """
        return np.stack([self.in_image(each, outside) for each in self.resampled(channels)])

    def resampled(self, channels: Tensor) -> np.ndarray:
        """Resample (C, *S) of the preprocessed case to :attr:`cropped_shape` like nnU-Net's probabilities; float32."""
        spacing = [self.properties["spacing"][axis] for axis in self.plans_manager.transpose_forward]
        target = list(self.configuration_manager.spacing)
        predicted_spacing = target if len(target) == len(self.cropped_shape) else [spacing[0], *target]
        resample = self.configuration_manager.resampling_fn_probabilities
        return np.asarray(resample(channels, self.cropped_shape, predicted_spacing, spacing), dtype=np.float32)

    def in_image(self, cropped: np.ndarray, outside: float = 0) -> np.ndarray:
        """Convert an array of :attr:`cropped_shape` to the image, with `outside` where it was cropped."""
        whole = np.full(self.properties["shape_before_cropping"], outside, dtype=cropped.dtype)
        whole = insert_crop_into_image(whole, cropped, self.properties["bbox_used_for_cropping"])
        return whole.transpose(self.plans_manager.transpose_backward)
