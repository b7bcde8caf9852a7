import numpy as np
import pytest

from nnunetv2_deferral import arrays
from nnunetv2_deferral.arrays import highest, highest_in_chunks


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(0,), (1,), (300,), (5, 6, 40)])
def test_the_highest_is_what_numpy_finds_with_ties_and_without_numbers(monkeypatch, channels, shape):
    monkeypatch.setattr(arrays, "CHUNK_VALUES", 64)
    generator = np.random.default_rng(0)
    values = generator.integers(-2, 3, (channels, *shape)).astype(np.float32)  # many ties
    for part in (None, np.nan, np.inf, -np.inf):
        if part is not None:
            values[generator.random(values.shape) < 0.03] = part
        found = highest_in_chunks(values)
        assert found.dtype == np.uint8
        assert np.array_equal(found, values.argmax(0))


def test_an_array_in_another_order_is_taken_too():
    values = np.random.default_rng(1).random((4, 5, 3), dtype=np.float32).transpose(2, 0, 1)
    assert np.array_equal(highest_in_chunks(values), values.argmax(0))
    assert np.array_equal(highest(values), values.argmax(0))


def test_more_channels_than_a_byte_counts_have_a_longer_type():
    values = np.zeros((300, 2), dtype=np.float32)
    values[299, 1] = 1
    assert highest_in_chunks(values).tolist() == [0, 299]
