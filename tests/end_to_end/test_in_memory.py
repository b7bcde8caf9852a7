"""Masks and maps of arrays are those that the commands write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from workplace import FLAT, SOLID, Workplace, predictor_of, read

from nnunetv2_deferral.decision.decide import Decision
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.in_memory import deferral_maps, predict_array
from nnunetv2_deferral.predictions import PredictionFolder


@pytest.fixture
def flat_image(workplace: Workplace) -> tuple[np.ndarray, dict[str, Any]]:
    return NaturalImage2DIO().read_images([str(workplace.raw / FLAT / "imagesTs" / "test_6_0000.png")])


def assert_written(mask: np.ndarray, decision: Decision, folder: Path, case: str, ending: str) -> None:
    """The mask and the maps are those of a case of a prediction folder."""
    written = {
        kind: read(folder / "deferral" / kind / f"{case}{ending}").reshape(mask.shape)
        for kind in ("route", "probability", "expert", "gain")
    }
    assert np.array_equal(mask, read(folder / f"{case}{ending}").reshape(mask.shape))
    maps = decision.maps
    assert np.array_equal(maps.route, written["route"])
    assert np.array_equal(maps.expert, written["expert"])
    entry = PredictionFolder.open(folder).index["cases"][case]
    assert decision.statistics["expected_gain"] == entry["expected_gain"]
    assert float(maps.gain.max()) == entry["largest_gain"]
    scale = 65535 if ending == ".png" else 1  # readers of NIfTI scale integers back themselves
    assert np.abs(maps.probability - written["probability"] / scale).max() < 0.51 / 65535
    steps = written["gain"] if ending == ".png" else written["gain"] / (entry["largest_gain"] / 65535)
    assert np.abs(maps.gain / (entry["largest_gain"] / 65535) - steps).max() < 1.01


def test_a_2d_array_gets_the_maps_that_are_written(
    flat_deferral: Path, flat_prediction: Path, flat_image: tuple[np.ndarray, dict[str, Any]]
) -> None:
    mask, decision = predict_array(predictor_of(flat_deferral.parent), *flat_image)
    assert_written(mask, decision, flat_prediction, "test_6", ".png")
    assert decision.maps.route.any()


@pytest.mark.parametrize("case", ["test_6", "test_7"])
def test_a_3d_array_gets_the_maps_that_are_written(
    workplace: Workplace, solid_deferral: Path, solid_prediction: Path, case: str
) -> None:
    image, properties = SimpleITKIO().read_images([str(workplace.raw / SOLID / "imagesTs" / f"{case}_0000.nii.gz")])
    only_spacing = {"spacing": properties["spacing"]}
    mask, decision = predict_array(predictor_of(solid_deferral.parent), image, only_spacing)
    assert_written(mask, decision, solid_prediction, case, ".nii.gz")
    assert only_spacing == {"spacing": properties["spacing"]}


def test_logits_of_nnunets_own_methods_have_the_same_maps(
    flat_deferral: Path, flat_image: tuple[np.ndarray, dict[str, Any]]
) -> None:
    predictor = predictor_of(flat_deferral.parent)
    expected = predict_array(predictor, *flat_image)[1]
    preprocessor = predictor.configuration_manager.preprocessor_class()
    data, _, properties = preprocessor.run_case_npy(
        flat_image[0],
        None,
        dict(flat_image[1]),
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
    for given in (logits, logits.numpy()):
        found = deferral_maps(predictor, given, properties)
        assert found.statistics == expected.statistics
        for one, other in zip(found.maps, expected.maps, strict=True):
            assert np.array_equal(one, other)


def test_limits_can_be_given_with_the_array(
    flat_deferral: Path, flat_image: tuple[np.ndarray, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = predictor_of(flat_deferral.parent)
    _, decision = predict_array(predictor, *flat_image, limits=Limits(budget=0.05))
    assert decision.statistics["limits"] == {"budget": 0.05, "over": "case"}
    route = decision.maps.route
    assert 0 < np.count_nonzero(route) <= 0.05 * route.size
    monkeypatch.setenv("nnUNet_deferral_budget", "0.05")
    assert np.array_equal(predict_array(predictor, *flat_image)[1].maps.route, route)


def test_what_cannot_be_predicted_is_refused(
    flat_deferral: Path, flat_image: tuple[np.ndarray, dict[str, Any]]
) -> None:
    predictor, (image, properties) = predictor_of(flat_deferral.parent), flat_image
    with pytest.raises(InputError, match=r"axes \(C, Z, Y, X\).*got shape \(40, 48\)"):
        predict_array(predictor, image[0, 0], properties)
    with pytest.raises(InputError, match='"spacing" of three axes, got None'):
        predict_array(predictor, image, {})
    with pytest.raises(InputError, match="requires thresholds fitted on validation cases"):
        predict_array(predictor, image, properties, limits=Limits(budget=0.1, over="dataset"))
    with pytest.raises(InputError, match="each of 3 experts"):
        predict_array(predictor, image, properties, limits=Limits(capacities=(0.1,)))
    with pytest.raises(InputError, match="expected 8 channels"):
        deferral_maps(predictor, np.zeros((3, 1, 40, 48), np.float32), properties)


def test_a_stock_model_is_refused(flat_stock: Path, flat_image: tuple[np.ndarray, dict[str, Any]]) -> None:
    predictor = predictor_of(flat_stock.parent)
    with pytest.raises(InputError, match="not a deferral model: its trainer is TinyStock"):
        predict_array(predictor, *flat_image)
