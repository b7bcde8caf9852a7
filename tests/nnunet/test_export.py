"""Maps back in the geometry of the image: resampling, cropping and the order of axes are undone."""

from copy import deepcopy

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits as stock_export
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from small_certificate import certificate
from small_predictor import DATASET_JSON, small_predictor

from nnunetv2_deferral.decision.calibrators import IDENTITY
from nnunetv2_deferral.decision.decide import decide
from nnunetv2_deferral.decision.limits import Limits, warn_of_full_budget
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY, ModelCalibration
from nnunetv2_deferral.environment import ENVIRONMENT
from nnunetv2_deferral.nnunet.case_geometry import CaseGeometry
from nnunetv2_deferral.nnunet.export import check_limits, export_prediction_from_logits, remarks_on_calibration
from nnunetv2_deferral.routing import SoftmaxRule

RESAMPLING = {
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}


def maps_of(routing, properties, configuration, plans, *, voxel_weight=1.0, limits=Limits()):  # noqa: B008 (frozen)
    """The maps of a case, as an export makes them."""
    rule, geometry = SoftmaxRule((True,) * (len(routing) - 1)), CaseGeometry(properties, configuration, plans)
    probabilities = geometry.in_image(
        geometry.resampled_fast(rule.probabilities(routing, dim=0)), [np.nan] * len(routing)
    )
    return decide(
        probabilities, np.float32(voxel_weight), rule=rule, limits=limits, spacing_mm=geometry.spacing_mm
    ).maps


def make_managers(spacing, transpose=(0, 1, 2)):
    plans = {"transpose_forward": list(transpose), "transpose_backward": list(np.argsort(transpose))}
    return ConfigurationManager({"architecture": {}, "spacing": list(spacing), **deepcopy(RESAMPLING)}), PlansManager(
        plans
    )


def make_properties(before, bbox, spacing):
    return {
        "spacing": list(spacing),
        "shape_before_cropping": before,
        "bbox_used_for_cropping": bbox,
        "shape_after_cropping_and_before_resampling": tuple(high - low for low, high in bbox),
    }


def test_what_was_cropped_away_stays_the_models():
    configuration, plans = make_managers((1, 1, 1))
    properties = make_properties((6, 5, 4), [[2, 5], [0, 5], [1, 3]], (1, 1, 1))
    routing = torch.zeros(3, 3, 5, 2)
    routing[2] = 4.0
    route, probability, expert, gain = maps_of(routing, properties, configuration, plans)
    inside = np.zeros((6, 5, 4), bool)
    inside[2:5, 0:5, 1:3] = True
    assert route.dtype == np.uint8
    assert (route[inside] == 2).all()
    assert (route[~inside] == 0).all()
    assert probability.dtype == np.float32
    expected = 1 - 1 / (2 + np.exp(4.0))
    assert probability[inside] == pytest.approx(np.full(inside.sum(), expected), abs=1e-6)
    assert (probability[~inside] == 0).all()
    assert (expert[inside] == 2).all()
    assert (expert[~inside] == 1).all()
    assert gain.dtype == np.float32
    lead = (np.exp(4.0) - 1) / (2 + np.exp(4.0))
    assert gain[inside] == pytest.approx(np.full(inside.sum(), lead), abs=1e-6)
    assert (gain[~inside] == 0).all()


def test_axes_are_put_back_in_the_order_of_the_image():
    configuration, plans = make_managers((1, 1, 1), transpose=(2, 0, 1))
    image_shape = (4, 6, 5)
    transposed = tuple(image_shape[axis] for axis in (2, 0, 1))
    routing = torch.zeros(2, *transposed)
    routing[1, 3, 1, 2] = 9.0
    properties = make_properties(transposed, [[0, size] for size in transposed], (1, 1, 1))
    route, *_ = maps_of(routing, properties, configuration, plans)
    assert route.shape == image_shape
    assert np.argwhere(route).tolist() == [[1, 2, 3]]


def test_a_case_predicted_at_half_the_resolution_is_brought_back_to_its_own():
    configuration, plans = make_managers((2, 2, 2))
    routing = torch.zeros(2, 4, 4, 4)
    routing[1, :2], routing[0, 2:] = 6.0, 6.0
    properties = make_properties((8, 8, 8), [[0, 8]] * 3, (1, 1, 1))
    route, probability, expert, _ = maps_of(routing, properties, configuration, plans)
    assert (route[:3] == 1).all()
    assert (route[5:] == 0).all()
    assert ((probability > 0.5) == (route == 1)).all()
    assert (expert == 1).all()


def test_in_2d_a_case_is_a_stack_of_slices_with_the_spacing_of_the_image_across_them():
    configuration, plans = make_managers((2, 2))
    routing = torch.zeros(2, 3, 4, 4)
    routing[1, 1] = 6.0
    properties = make_properties((3, 8, 8), [[0, 3], [0, 8], [0, 8]], (5, 1, 1))
    route, *_ = maps_of(routing, properties, configuration, plans)
    assert [int(each.max()) for each in route] == [0, 1, 0]
    assert (route[1] == 1).all()


@pytest.mark.parametrize(
    ("spacing", "image"),
    [((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (1.7, 2.3, 1.2)), ((6, 1, 1), (5, 0.7, 0.6)), ((1, 1), (999, 0.6, 0.7))],
    ids=["finer", "coarser", "anisotropic", "slices"],
)
def test_routing_probabilities_are_resampled_as_nnunet_does(spacing, image):
    configuration, plans = make_managers(spacing)
    channels = torch.rand(3, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    ratio = np.array(spacing if len(spacing) == 3 else (image[0], *spacing)) / image
    shape = tuple(np.rint(np.array(channels.shape[1:]) * ratio).astype(int))
    geometry = CaseGeometry(make_properties(shape, [[0, size] for size in shape], image), configuration, plans)
    found = geometry.resampled_fast(channels)
    assert found.shape == (3, *shape)
    np.testing.assert_allclose(found, geometry.resampled(channels.numpy()), atol=1e-5)


def test_probabilities_are_resampled_as_other_plans_want():
    configuration, plans = make_managers((2, 2, 2))
    configuration.configuration["resampling_fn_probabilities_kwargs"]["order"] = 0
    geometry = CaseGeometry(make_properties((8, 8, 8), [[0, 8]] * 3, (1, 1, 1)), configuration, plans)
    channels = torch.rand(1, 4, 4, 4)
    expected = channels.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    np.testing.assert_array_equal(geometry.resampled_fast(channels), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masks_and_probabilities_of_a_resampled_case_are_those_of_nnunet(tmp_path, dtype):
    predictor = small_predictor()
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    logits = torch.randn(7, 3, 9, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    finer = tuple(size / 1.7 for size in configuration.spacing)
    properties = make_properties((3, 16, 15), [[0, 3], [0, 15], [1, 15]], (1.0, *finer))
    properties["sitk_stuff"] = {
        "spacing": (finer[1], finer[0], 1.0),
        "origin": (0.0, 0.0, 0.0),
        "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    }
    for name, channels, manager, export in (
        ("stock", logits[:2].numpy(), plans.stock(), stock_export),
        ("ours", logits.numpy(), plans, export_prediction_from_logits),
    ):
        (tmp_path / name).mkdir()
        export(channels, properties, configuration, manager, DATASET_JSON, str(tmp_path / name / "case"), True)
    ours, stock = (np.load(tmp_path / name / "case.npz")["probabilities"] for name in ("ours", "stock"))
    np.testing.assert_array_equal(ours, stock)
    ours, stock = (sitk.ReadImage(str(tmp_path / name / "case.nii.gz")) for name in ("ours", "stock"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(stock))
    assert len(np.unique(sitk.GetArrayFromImage(stock))) == 2


def test_probabilities_stay_within_zero_and_one_in_half_precision():
    configuration, plans = make_managers((1, 1, 1))
    routing = (torch.randn(4, 2, 3, 3) * 100).half()
    properties = make_properties((2, 3, 3), [[0, 2], [0, 3], [0, 3]], (1, 1, 1))
    _, probability, *_ = maps_of(routing, properties, configuration, plans)
    assert probability.min() >= 0
    assert probability.max() <= 1


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.3])
def test_a_budget_is_a_share_of_the_whole_image(budget):
    configuration, plans = make_managers((1, 1, 1))
    properties = make_properties((6, 5, 4), [[2, 5], [0, 5], [1, 3]], (1, 1, 1))
    routing = torch.randn(3, 3, 5, 2, generator=torch.Generator().manual_seed(0))
    free = maps_of(routing, properties, configuration, plans)
    route, probability, expert, gain = maps_of(routing, properties, configuration, plans, limits=Limits(budget=budget))
    for made, without in zip((probability, expert, gain), free[1:], strict=True):
        assert np.array_equal(made, without)
    deferred = route > 0
    assert deferred.sum() == min(int(budget * 120), np.count_nonzero(gain))
    assert np.array_equal(route[deferred], expert[deferred])
    assert gain[deferred].min(initial=1) >= gain[~deferred].max(initial=0) or budget == 0.3


@pytest.mark.parametrize(("budget", "warned"), [("1", True), ("1.0", True), ("0.01", False), ("0.999", False)])
def test_a_budget_of_one_is_warned_of_once(monkeypatch, caplog, budget, warned):
    warn_of_full_budget.cache_clear()
    monkeypatch.setenv(ENVIRONMENT, budget)
    plans = small_predictor().plans_manager
    for _ in range(2):
        check_limits(plans)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warned
    assert caplog.text.count("for 1 % give 0.01") == warned


def test_a_certificate_is_told_with_the_limits_it_holds_for(monkeypatch):
    plans = small_predictor().plans_manager
    assert remarks_on_calibration(plans, 5) == []
    experts = plans.settings.expert_names
    promise = certificate()
    calibration = ModelCalibration(experts=experts, heads=(IDENTITY,) * (len(experts) + 1), certificate=promise)
    plans.plans[CALIBRATION_KEY] = calibration.to_dict()
    for budget, words in (("0.02", promise.statement), ("0.001", f"not for these limits: {promise.statement}")):
        monkeypatch.setenv(ENVIRONMENT, budget)
        assert remarks_on_calibration(plans, 1) == [words]
        (_, certified) = remarks_on_calibration(plans, 1, ["without mirroring"])
        holds = words == promise.statement
        assert certified == f"{'only if the validations were predicted in the same way: ' if holds else ''}{words}"


def test_networks_of_other_folds_are_told_to_be_others_than_those_that_were_calibrated_and_tested(monkeypatch):
    plans = small_predictor().plans_manager
    experts = plans.settings.expert_names
    promise = certificate()
    calibration = ModelCalibration(
        experts=experts, heads=(IDENTITY,) * (len(experts) + 1), certificate=promise, report={"folds": [0, 1]}
    )
    plans.plans[CALIBRATION_KEY] = calibration.to_dict()
    monkeypatch.setenv(ENVIRONMENT, "0.02")
    plans.prediction = {"folds": ["0"]}
    assert remarks_on_calibration(plans, 1) == [promise.statement]
    plans.prediction = {"folds": ["1"]}
    assert remarks_on_calibration(plans, 1) == [f"not tested for the network of fold 1: {promise.statement}"]
    plans.prediction = {"folds": ["2"]}
    (remark, certified) = remarks_on_calibration(plans, 1)
    assert "predictions of folds 0 and 1, not of fold 2: the probabilities of another network agree less well" in remark
    assert certified == f"not tested for the network of fold 2: {promise.statement}"
    plans.prediction = {}
    assert remarks_on_calibration(plans, 2)[-1] == f"not tested for an ensemble: {promise.statement}"
    plans.prediction = {"folds": ["0", "all", "2"]}
    (_, remark, _) = remarks_on_calibration(plans, 3)
    assert "not of folds all and 2: the probabilities of other networks" in remark


def test_another_manner_is_told_as_it_is_and_then_as_it_was_calibrated():
    plans = small_predictor().plans_manager
    experts, how = plans.settings.expert_names, {"folds": ["all"], "mirroring": True}
    calibration = ModelCalibration(
        experts=experts, heads=(IDENTITY,) * (len(experts) + 1), report={"folds": ["all"], "prediction": how}
    )
    plans.plans[CALIBRATION_KEY] = calibration.to_dict()
    plans.prediction = how | {"mirroring": False}
    (remark,) = remarks_on_calibration(plans, 1, ["without mirroring"])
    assert "the probabilities of predictions whose mirroring is false, not true agree less" in remark


def test_an_ensemble_is_told_to_be_another_than_what_was_calibrated():
    plans = small_predictor().plans_manager
    experts = plans.settings.expert_names
    calibration = ModelCalibration(experts=experts, heads=(IDENTITY,) * (len(experts) + 1))
    plans.plans[CALIBRATION_KEY] = calibration.to_dict()
    assert remarks_on_calibration(plans, 1) == []
    (remark,) = remarks_on_calibration(plans, 5)
    assert "an ensemble of 5" in remark
    (remark,) = remarks_on_calibration(plans, 1, ["by checkpoint_best.pth", "without mirroring"])
    assert "unless these were also predicted by checkpoint_best.pth and without mirroring, the" in remark
