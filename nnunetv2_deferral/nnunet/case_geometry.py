"""Conversion of predictions for a preprocessed case to the geometry of its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.preprocessing.resampling.resample_torch import resample_torch_fornnunet
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

# The options of nnU-Net's default function with which it interpolates linearly.
_LINEAR = {"is_seg": False, "order": 1, "order_z": 0}


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

    def without_resampling(self) -> ConfigurationManager:
        """The configuration, for functions of nnU-Net that get logits that were resampled before."""
        unchanged = {"resampling_fn_probabilities": "no_resampling_hack", "resampling_fn_probabilities_kwargs": {}}
        return ConfigurationManager({**self.configuration_manager.configuration, **unchanged})

    def resampled(self, channels: Tensor) -> np.ndarray:
        """Resample (C, *S) of the preprocessed case to :attr:`cropped_shape`, as nnU-Net resamples logits; float32."""
        resample = self.configuration_manager.resampling_fn_probabilities
        return np.asarray(resample(channels, self.cropped_shape, *self._spacings), dtype=np.float32)

    def resampled_fast(self, channels: Tensor) -> np.ndarray:
        """As :meth:`resampled`, equal up to rounding, several times faster where plans use nnU-Net's default.

        That default is linear interpolation by scikit-image; nnU-Net's PyTorch function does the same.
        """
        configuration = self.configuration_manager.configuration
        options = dict(configuration["resampling_fn_probabilities_kwargs"])
        default = configuration["resampling_fn_probabilities"] == resample_data_or_seg_to_shape.__name__
        if not default or {key: options.pop(key, None) for key in _LINEAR} != _LINEAR:
            return self.resampled(channels)
        threads = torch.get_num_threads()
        found = resample_torch_fornnunet(
            channels.float(), self.cropped_shape, *self._spacings, num_threads=threads, **options
        )
        return np.asarray(found, dtype=np.float32)

    def in_image(self, cropped: np.ndarray, outside: Sequence[float]) -> np.ndarray:
        """Convert channels (C, *S) of :attr:`cropped_shape` to the image, with values `outside` where it was cropped.

        They are not copied if neither cropping nor the order of axes changes anything.
        """
        whole, order = tuple(self.properties["shape_before_cropping"]), self.plans_manager.transpose_backward
        if cropped.shape[1:] == whole and list(order) == sorted(order):
            return cropped
        found = np.empty((len(cropped), *(whole[axis] for axis in order)), dtype=cropped.dtype)
        box = tuple(slice(*limits) for limits in self.properties["bbox_used_for_cropping"])
        for channel, value, into in zip(cropped, outside, found, strict=True):
            into[...] = value
            into.transpose(np.argsort(order))[box] = channel
        return found

    @property
    def _spacings(self) -> tuple[list[float], list[float]]:
        """The spacings of the preprocessed case and of the image, in the axis order of preprocessed data."""
        spacing = [self.properties["spacing"][axis] for axis in self.plans_manager.transpose_forward]
        target = list(self.configuration_manager.spacing)
        return target if len(target) == len(self.cropped_shape) else [spacing[0], *target], spacing
