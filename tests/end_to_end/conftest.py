"""The fixtures of :mod:`workplace`, for all tests here."""

import pytest
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

MODELS = frozenset(name for name in __all__ if name != "workplace")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whoever uses one of the models above does so in one and the same process, which trains it."""
    if MODELS.intersection(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.xdist_group("trained models"))
