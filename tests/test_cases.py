"""Cases in memory: what is checked when it is used, and what of a case counts."""

import numpy as np
import pytest

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING

SHAPE = (2, 3, 4)


def make_maps(**changes):
    maps = {
        "route": np.arange(24).reshape(SHAPE) % 3,
        "probability": np.full(SHAPE, 0.5, np.float32),
        "expert": np.ones(SHAPE, np.int64),
        "gain": np.zeros(SHAPE, np.float32),
    }
    return RoutingMaps(**maps | changes)


def predicted(*, num_experts=2, **changes):
    return PredictedCase(
        "x", model=np.zeros(SHAPE, np.int64), **make_maps(**changes)._asdict(), num_experts=num_experts
    )


class TestPredicted:
    def test_a_decision_and_a_mask_make_a_case(self):
        case = predicted()
        for name, array in make_maps()._asdict().items():
            assert np.array_equal(getattr(case, name), array)
        assert case.route.dtype == case.expert.dtype == np.uint8
        assert case.spacing == (1.0, 1.0, 1.0)
        assert case.orientation.spacing_mm == (1.0, 1.0, 1.0)

    def test_properties_say_how_large_voxels_are(self):
        case = PredictedCase("x", model=np.zeros(SHAPE), properties={"spacing": (999, 1, 2)})
        assert case.spacing == (999.0, 1.0, 2.0)

    @pytest.mark.parametrize("kind", RoutingMaps._fields)
    def test_a_map_of_another_shape(self, kind):
        case = predicted(**{kind: np.ones((2, 3, 5), np.uint8)})
        with pytest.raises(InputError, match=rf"case x: array {kind} has shape \(2, 3, 5\) instead of \(2, 3, 4\)"):
            getattr(case, kind)

    def test_what_does_not_fit_does_no_harm_where_it_is_not_used(self):
        case = predicted(gain=np.full(SHAPE, np.nan))
        assert case.route.shape == SHAPE
        with pytest.raises(InputError, match="case x: array gain contains nan, but must lie in .0, inf."):
            _ = case.gain

    @pytest.mark.parametrize("number", [-1, 3, 256])
    def test_a_route_to_nobody(self, number):
        case = predicted(route=np.full(SHAPE, number))
        with pytest.raises(InputError, match=f"array route contains {number}, but must lie in .0, 2."):
            _ = case.route

    def test_without_a_number_of_experts_there_may_be_any(self):
        case = predicted(route=np.full(SHAPE, 255), num_experts=None)
        assert (case.route == 255).all()
        with pytest.raises(InputError, match="contains 256, but must lie in .0, 255."):
            _ = predicted(route=np.full(SHAPE, 256), num_experts=None).route

    def test_what_is_not_given_is_not_there(self):
        case = PredictedCase("x", model=np.zeros(SHAPE))
        assert case.has("model")
        for name in ("route", "probability", "expert", "gain", "softmax", "routing"):
            assert not case.has(name)
            with pytest.raises(InputError, match=f"case x: array {name} is missing"):
                getattr(case, name)

    def test_empty_arrays_are_no_fault(self):
        nothing = np.zeros((0, 3, 4), np.uint8)
        case = PredictedCase("x", model=nothing, route=nothing, expert=nothing, gain=nothing, num_experts=2)
        assert case.route.size == case.expert.size == case.gain.size == 0


class TestEvaluated:
    def make(self, ignore_label=None):
        return EvaluatedCase(
            prediction=PredictedCase("x", model=np.array([1, 0, 1, 1]), route=np.array([0, 1, 2, 0])),
            reference=np.array([1, 1, 0, 9]),
            answers=np.array([[1, MISSING, 0, 9], [0, 1, 1, 0]]),
            ignore_label=ignore_label,
        )

    def test_model_and_experts_are_right_where_they_agree_with_the_reference(self):
        expected = [[1, 0, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0]]
        assert self.make().right.astype(int).tolist() == expected

    def test_that_is_known_where_there_is_a_label_and_the_reference_is_not_ignored(self):
        assert self.make().known.astype(int).tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
        case = self.make(ignore_label=9)
        assert case.known.astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]]
        assert case.valid.tolist() == [True, True, True, False]

    def test_name_mask_and_route_are_those_of_the_prediction(self):
        case = self.make()
        assert (case.name, case.model.tolist(), case.route.tolist()) == ("x", [1, 0, 1, 1], [0, 1, 2, 0])
