import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from nnunetv2_deferral.decision.kept_gains import KeptGains
from nnunetv2_deferral.errors import InputError

GAINS = st.floats(-1, 1, width=32)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=GAINS))
def test_gains_come_back_to_half_a_step_and_none_is_lost(gains):
    found = KeptGains.of(gains).gains(gains.shape[1:])
    np.testing.assert_array_equal(found > 0, gains > 0)
    np.testing.assert_allclose(found, np.maximum(gains, 0), atol=gains.max(initial=0) / 65535, rtol=1e-6)


def test_large_maps_are_gone_through_in_pieces():
    gains = np.zeros((3, 400_000), dtype=np.float32)
    gains[1, [0, 99_999, 399_999]] = 0.5, 0.25, 1
    kept = KeptGains.of(gains)
    assert kept.distances.tolist() == [1, 99_999, 300_000]
    np.testing.assert_allclose(kept.gains((400, 1000)).reshape(gains.shape), gains, atol=1 / 65535)


@pytest.mark.parametrize("shape", [(0,), (5, 4)])
def test_where_nobody_helps_nothing_is_kept(shape):
    kept = KeptGains.of(np.full((2, *shape), -1, dtype=np.float32))
    assert kept.distances.size == 0 and kept.largest == 0
    np.testing.assert_array_equal(kept.gains(shape), np.zeros((2, *shape)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"largest": np.float32(np.inf)}, "the largest gain is inf"),
        ({"largest": np.float32(-1)}, "the largest gain is -1"),
        ({"distances": np.array([1, 20], dtype=np.uint32)}, "voxels are not within"),
        ({"distances": np.array([1, 0], dtype=np.uint32)}, "voxels are not within"),
        ({"distances": np.array([1], dtype=np.uint32)}, "not those of kept gains"),
        ({"steps": np.ones((2, 2), dtype=np.float32)}, "not those of kept gains"),
    ],
)
def test_what_cannot_be_gains_of_the_map_is_refused(change, said):
    kept = KeptGains.of(np.array([[1, 0, 0.5], [0, 0, 1]], dtype=np.float32))
    changed = kept._replace(**{key: np.asarray(value) for key, value in change.items()})
    with pytest.raises(InputError, match=said):
        changed.gains((3,))
