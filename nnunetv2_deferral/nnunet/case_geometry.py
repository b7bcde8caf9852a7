"""From what was predicted for a preprocessed case back to its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor


@dataclass(frozen=True)
class CaseGeometry:
    """How nnU-Net brings what was predicted for a preprocessed case back into its image.

    Attributes:
        properties: nnU-Net's properties of the case.
        configuration_manager: The configuration that was predicted with.
        plans_manager: Its plans.
    """

    properties: dict[str, Any]
    configuration_manager: ConfigurationManager
    plans_manager: PlansManager

    @property
    def cropped_shape(self) -> tuple[int, ...]:
        """The shape of the case before it was resampled, in the axis order of preprocessed data."""
        return tuple(self.properties["shape_after_cropping_and_before_resampling"])

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """The spacing of the image."""
        return tuple(float(size) for size in self.properties["spacing"])

    def channels_in_image(self, channels: Tensor, outside: float) -> np.ndarray:
        """(C, *S) of the preprocessed case in its image; float32, with `outside` for what was cropped away.

        Resampling, cropping and axis order are undone as nnU-Net undoes them for probabilities.
        """
        return np.stack([self.in_image(each, outside) for each in self.resampled(channels)])

    def resampled(self, channels: Tensor) -> np.ndarray:
        """(C, *S) of the preprocessed case in :attr:`cropped_shape`, as nnU-Net resamples probabilities; float32."""
        spacing = [self.properties["spacing"][axis] for axis in self.plans_manager.transpose_forward]
        target = list(self.configuration_manager.spacing)
        predicted_spacing = target if len(target) == len(self.cropped_shape) else [spacing[0], *target]
        resample = self.configuration_manager.resampling_fn_probabilities
        return np.asarray(resample(channels, self.cropped_shape, predicted_spacing, spacing), dtype=np.float32)

    def in_image(self, cropped: np.ndarray, outside: float = 0) -> np.ndarray:
        """An array of :attr:`cropped_shape` in the image, with `outside` for what was cropped away."""
        whole = np.full(self.properties["shape_before_cropping"], outside, dtype=cropped.dtype)
        whole = insert_crop_into_image(whole, cropped, self.properties["bbox_used_for_cropping"])
        return whole.transpose(self.plans_manager.transpose_backward)
