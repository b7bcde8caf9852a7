import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from nnunetv2_deferral.decision.assignment import route_within_limits
from nnunetv2_deferral.decision.gains import expected_gain
from nnunetv2_deferral.decision.kept_gains import KeptGains, are_few
from nnunetv2_deferral.decision.region_routing import route_regions
from nnunetv2_deferral.errors import InputError

GAINS = st.floats(-1, 1, width=32)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=GAINS))
def test_gains_come_back_to_half_a_step_where_any_is_positive(gains):
    found = KeptGains.of(gains).gains(gains.shape[1:])
    helps = (gains > 0).any(axis=0)
    np.testing.assert_array_equal((found > 0)[:, helps], (gains > 0)[:, helps])
    largest = gains.max(initial=0)
    np.testing.assert_allclose(found[:, helps], np.maximum(gains, -largest)[:, helps], atol=largest / 32767, rtol=1e-6)
    assert not (found > 0)[:, ~helps].any()


def test_elsewhere_stands_the_median_of_what_is_finite_and_nobody_stays_nobody():
    gains = np.array([[1, -0.1, -0.3, -0.2, -np.inf], [-np.inf] * 5], dtype=np.float32)
    found = KeptGains.of(gains).gains((5,))
    np.testing.assert_allclose(found[0], [1, -0.2, -0.2, -0.2, -np.inf])
    assert np.isneginf(found[1]).all()


def test_a_small_structure_does_not_hide_differences_within_a_large_one():
    """A voxel of a structure of a million voxels is worth 10^-5 of one of a structure that is hardly there."""
    generator = np.random.default_rng(0)
    gains = np.full((2, 40, 50), -np.inf, dtype=np.float32)
    gains[0] = generator.uniform(1e-7, 1e-6, (40, 50))
    gains[:, 39, 49] = 0.05
    found = KeptGains.of(gains).gains((40, 50))
    np.testing.assert_allclose(found, gains, rtol=0.02)
    chosen = route_within_limits(found, budget=0.2, capacities=None) > 0
    assert chosen[:20].any() and chosen[20:].any()
    assert gains[0][chosen].sum() == pytest.approx(np.sort(gains[0].ravel())[-400:].sum(), rel=1e-3)


def test_regions_do_not_grow_to_where_nothing_was_predicted():
    gains = np.full((2, 1, 16, 16), -1e-3, dtype=np.float32)
    gains[0, 0, 4:12, 4:12] = 1
    gains[1, 0, 5, 5] = 0.5
    gains[:, 0, 8, 4:12] = -np.inf
    kept = KeptGains.of(gains)
    route = route_regions(kept.gains((1, 16, 16)), spacing_mm=(1, 1, 1), budget=0.9, min_diameter_mm=4)
    assert route.any() and not route[np.isneginf(gains[0])].any()
    np.testing.assert_array_equal(np.isneginf(kept.gains((1, 16, 16))), np.isneginf(gains))


def test_large_maps_are_gone_through_in_pieces():
    gains = np.full((3, 400_000), -0.5, dtype=np.float32)
    gains[1, [0, 99_999, 399_999]] = 0.5, 0.25, 1
    kept = KeptGains.of(gains)
    assert kept.distances.tolist() == [1, 99_999, 300_000]
    np.testing.assert_allclose(kept.gains((400, 1000)).reshape(gains.shape), gains, atol=1 / 32767)


@pytest.mark.parametrize("diameter", [3, 6, 9])
def test_regions_are_nearly_those_of_all_gains(diameter):
    """Around the border of a disc, where the model is unsure by how much it varies."""
    y, x = np.mgrid[:64, :64] - 31.5
    generator = np.random.default_rng(1)
    noise = [ndimage.gaussian_filter(generator.normal(size=(64, 64)), 2) for _ in range(2)]
    gains = np.stack([0.8 * np.exp(-((np.hypot(y, x) - 20) ** 2) / 8) - 0.2 + each for each in noise])[:, None]
    gains = gains.astype(np.float32)
    rule = {"spacing_mm": (1, 1, 1), "budget": 0.1, "min_diameter_mm": diameter}
    exact = expected_gain(gains, route_regions(gains, **rule))
    again = expected_gain(gains, route_regions(KeptGains.of(gains).gains(gains.shape[1:]), **rule))
    assert again == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("shape", [(0,), (5, 4)])
def test_where_asking_helps_nowhere_nothing_is_kept(shape):
    kept = KeptGains.of(np.full((2, *shape), -1, dtype=np.float32))
    assert kept.distances.size == 0 and kept.largest == 0
    np.testing.assert_array_equal(kept.gains(shape), np.full((2, *shape), -1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"largest": np.float32(np.inf)}, "the largest gain must be finite"),
        ({"largest": np.float32(-1)}, "not negative, .* got -1"),
        ({"elsewhere": np.array([0, 1], dtype=np.float32)}, "others not positive, got"),
        ({"elsewhere": np.array([0, np.nan], dtype=np.float32)}, "others not positive, got"),
        ({"elsewhere": np.zeros(3, dtype=np.float32)}, "not those of kept gains"),
        ({"distances": np.array([1, 20], dtype=np.uint32)}, "voxels are not within"),
        ({"distances": np.array([1, 0], dtype=np.uint32)}, "voxels are not within"),
        ({"distances": np.array([1], dtype=np.uint32)}, "not those of kept gains"),
        ({"steps": np.ones((2, 2), dtype=np.float32)}, "not those of kept gains"),
        ({"nobody": np.ones(2, dtype=np.uint8)}, r"not those of kept gains of a map of shape \(3,\)"),
    ],
)
def test_what_cannot_be_gains_of_the_map_is_refused(change, said):
    kept = KeptGains.of(np.array([[1, 0, 0.5], [0, 0, 1]], dtype=np.float32))
    changed = kept._replace(**{key: np.asarray(value) for key, value in change.items()})
    with pytest.raises(InputError, match=said):
        changed.gains((3,))


def test_gains_are_kept_unless_a_large_volume_gains_nearly_everywhere():
    gains = np.full((2, 100, 300, 400), -1, dtype=np.float32)
    assert are_few(gains)
    gains[1, :8] = 1
    assert are_few(gains)
    gains[0, 50:60] = 1
    assert not are_few(gains)
    assert are_few(gains[:, :, :40, :40])
    assert are_few(gains[:, :0])
