"""Comparison of nested data whose numbers may differ by rounding."""

import math
from collections.abc import Mapping


def assert_close(found, expected, *, where="", tolerance=1e-9):
    """Fails where dictionaries have other keys, lists other lengths, or values differ by more than rounding."""
    if isinstance(expected, Mapping):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_close(found[key], expected[key], where=f"{where}/{key}", tolerance=tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, where=f"{where}/{place}", tolerance=tolerance)
    elif isinstance(expected, float) and isinstance(found, float):
        both_nan = math.isnan(found) and math.isnan(expected)
        assert both_nan or math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance), (where, found, expected)
    else:
        assert found == expected, (where, found, expected)
