"""The fixtures of :mod:`workplace`, for all tests here."""

from workplace import (
    flat_deferral,
    flat_deferral_fold_1,
    flat_prediction,
    flat_stock,
    solid_deferral,
    solid_prediction,
    workplace,
)

__all__ = [
    "flat_deferral",
    "flat_deferral_fold_1",
    "flat_prediction",
    "flat_stock",
    "solid_deferral",
    "solid_prediction",
    "workplace",
]
