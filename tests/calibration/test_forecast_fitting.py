"""From validation cases to forests that predict the Dice."""

import json

import numpy as np
import pytest
from small_prediction import write_mask

from nnunetv2_deferral.calibration.forecast_fitting import ForecastFit, text
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.errors import InputError

SHAPE = (1, 24, 24)


@pytest.fixture(scope="module")
def fit_of(tmp_path_factory):
    """A fit of a network whose entropy tells how much of the mask is wrong, given the number of cases."""
    root = tmp_path_factory.mktemp("dataset")
    content = {"labels": {"background": 0, "core": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    write_mask(root / "example.nii.gz", np.zeros((2, 2, 2), dtype=np.uint8))
    files = DatasetFiles.of(root / "dataset.json", root / "example.nii.gz")

    def fit(number, *, empty=0, places=None):
        found = ForecastFit(files)
        for place in range(number) if places is None else places:
            random = np.random.default_rng(place)
            wrong = random.uniform(0, 0.5)
            reference = np.zeros(SHAPE, dtype=np.int64)
            reference[:, 4:20, 4:20] = place >= empty
            flipped = (random.random(SHAPE) < wrong) & (reference > 0)
            model = np.where(flipped, 0, reference)
            certain = 1 - 0.9 * wrong
            softmax = np.stack([np.where(model == 0, certain, 1 - certain), np.where(model == 1, certain, 1 - certain)])
            prediction = PredictedCase(f"case_{place}", model=model, softmax=softmax.astype(np.float32))
            answers = reference[np.newaxis].astype(np.int16)
            case = EvaluatedCase(prediction=prediction, reference=reference, answers=answers)
            found.update(case, case.name)
        return found

    return fit


def test_the_dice_of_cases_held_back_is_predicted(fit_of):
    forecast, report = fit_of(30).forecast()
    assert list(forecast.classes) == ["core"]
    assert report["core"]["cases"] == 30
    assert report["core"]["spearman"] > 0.9
    assert report["core"]["mean_absolute_error"] < 0.05
    (line,) = text(report)
    assert line.startswith("  predicted Dice of core: wrong by 0.0")
    assert line.endswith("in 30 cases of held-out patients")
    report["core"]["spearman"] = -0.5
    assert text(report)[0].endswith(
        "Spearman -0.50, in 30 cases of held-out patients: it does not distinguish good masks from bad ones"
    )


def test_with_few_cases_one_after_the_other_is_held_back(fit_of):
    _, report = fit_of(11).forecast()
    assert report["core"]["cases"] == 11
    (line,) = text(report)
    assert " in 11 cases of held-out patients" in line
    _, report = fit_of(10).forecast()
    assert report["core"]["cases"] == 0
    assert text(report) == [
        "  predicted Dice of core: not checked, because too few cases are left if patients are held out"
    ]


def test_cases_without_the_class_do_not_count(fit_of):
    with pytest.raises(InputError, match="the Dice of core is defined in 9 cases, but .* at least 10"):
        fit_of(12, empty=3).forecast()


def test_parts_in_any_order_give_the_forests_of_all_cases(fit_of):
    parts = [fit_of(12, places=range(start, 12, 3)) for start in (2, 0, 1)]
    merged = ForecastFit.merged(parts, [f"case_{place}" for place in range(12)])
    (forest, report), (expected, report_expected) = merged.forecast(), fit_of(12).forecast()
    assert forest.to_dict() == expected.to_dict()
    assert report == report_expected
