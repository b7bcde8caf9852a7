"""The masks of single folds and their mutual information, from one prediction by all folds."""

import copy
import json
import re
from copy import deepcopy

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from small_prediction import reader_of, write_mask
from small_predictor import DATASET_JSON, small_predictor

from nnunetv2_deferral import agreement_maps, folds, maps
from nnunetv2_deferral.environment import ENVIRONMENT_FOLDS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet import fold_export, trainer  # noqa: F401  # replaces functions of nnU-Net
from nnunetv2_deferral.nnunet.fold_export import prediction_of, unlike_validation
from nnunetv2_deferral.nnunet.multi_rater_naming import multi_rater_class
from nnunetv2_deferral.uncertainty import entropy

CASES, FOLDS = ("c0", "c1"), ("0", "1", "all")
REGIONS = DATASET_JSON | {
    "labels": {"background": 0, "whole": [1, 2], "core": 2},
    "regions_class_order": [1, 2],
}


def stock_predictor(dataset_json, made_by=nnUNetTrainer, **blocks):
    """The same plans, with the network of another trainer, nnU-Net's own if none is given."""
    with_head = small_predictor()
    stock = {key: value for key, value in with_head.plans_manager.plans.items() if not key.startswith("deferral")}
    plans = PlansManager(stock | blocks)
    configuration = plans.get_configuration("2d")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = made_by.build_network_architecture(plans, configuration, 1, 2, False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    weights = [network.state_dict()]
    predictor.manual_initialization(network, plans, configuration, weights, dataset_json, made_by.__name__, (0, 1))
    return predictor


def multi_rater_predictor():
    """A predictor that learned from several raters, without deferral."""
    name = "nnUNetTrainerMultiRater"
    block = {"trainer": name, "raters": ["ann", "bob"], "has_regions": False}
    return stock_predictor(DATASET_JSON, multi_rater_class(name), multi_rater=block)


def with_folds(predictor):
    """Further folds, whose weights differ a little."""
    (first,) = predictor.list_of_parameters
    generator = torch.Generator().manual_seed(0)
    predictor.list_of_parameters = [
        {name: value + 0.5 * number * torch.randn(value.shape, generator=generator) for name, value in first.items()}
        for number in range(len(FOLDS))
    ]
    predictor.deferral_folds = FOLDS
    return predictor


@pytest.fixture(scope="module")
def predictors():
    torch.set_num_threads(1)
    return {
        "deferral": with_folds(small_predictor()),
        "stock": with_folds(stock_predictor(DATASET_JSON)),
        "regions": with_folds(stock_predictor(REGIONS)),
        "several raters": with_folds(multi_rater_predictor()),
    }


@pytest.fixture
def images(tmp_path):
    """Images that nnU-Net crops and resamples."""
    for number, case in enumerate(CASES):
        image = np.random.default_rng(number).integers(1, 200, (2, 24, 30)).astype(np.uint8)
        image[:, :3] = 0
        write_mask(tmp_path / "images" / f"{case}_0000.nii.gz", image)
    return tmp_path / "images"


def predict(predictor, images, output, **how):
    output.mkdir(exist_ok=True)
    files = [[str(images / f"{case}_0000.nii.gz")] for case in CASES]  # nnU-Net forks processes to list a folder
    predictor.predict_from_files_sequential(files, [str(output / case) for case in CASES], **how)
    return output


def alone(predictor, place):
    """The predictor of one fold."""
    single = deepcopy(predictor)
    single.list_of_parameters = single.list_of_parameters[place : place + 1]
    return single


@pytest.mark.parametrize(
    ("model", "mirrored", "saved"), [("deferral", True, False), ("stock", False, True), ("regions", True, True)]
)
def test_each_folds_mask_is_what_it_predicts_alone(predictors, images, tmp_path, monkeypatch, model, mirrored, saved):
    predictor = predictors[model]
    monkeypatch.setattr(predictor, "use_mirroring", mirrored)
    how = {"save_probabilities": saved}
    plain = predict(predictor, images, tmp_path / "plain", **how)
    assert not folds.read_folds(plain)
    singles = [
        predict(alone(predictor, place), images, tmp_path / fold, save_probabilities=saved)
        for place, fold in enumerate(FOLDS)
    ]
    monkeypatch.setenv(ENVIRONMENT_FOLDS, "1")
    found = predict(predictor, images, tmp_path / "out", **how)
    assert folds.read_folds(found) == FOLDS
    assert not list(found.rglob(".unfinished*"))
    for case in CASES:
        name = f"{case}.nii.gz"
        assert (found / name).read_bytes() == (plain / name).read_bytes()
        masks = [(single / name).read_bytes() for single in singles]
        assert [(folds.fold_folder(found, fold) / name).read_bytes() for fold in FOLDS] == masks
        assert len(set(masks)) == len(FOLDS)
        if saved:
            regions = model == "regions"
            values, _ = reader_of(".nii.gz").read_seg(str(folds.information_file(found, case, ".nii.gz")))
            each = [np.load(single / f"{case}.npz")["probabilities"].astype(np.float64) for single in singles]
            expected = information_of(each, regions)
            assert expected.max() > 0.05
            np.testing.assert_allclose(values[0], expected, atol=1e-5)


@pytest.mark.parametrize("model", ["deferral", "regions"])
def test_of_a_single_fold_each_mirrored_prediction_has_its_mask(predictors, images, tmp_path, monkeypatch, model):
    predictor = alone(predictors[model], 1)
    monkeypatch.setattr(predictor, "deferral_folds", ("1",))
    plain = predict(predictor, images, tmp_path / "plain")
    monkeypatch.setattr(predictor, "use_mirroring", False)
    unmirrored = predict(predictor, images, tmp_path / "unmirrored", save_probabilities=True)
    monkeypatch.setattr(predictor, "use_mirroring", True)
    monkeypatch.setenv(ENVIRONMENT_FOLDS, "1")
    names = ("unmirrored", "mirrored_0", "mirrored_1", "mirrored_0_1")
    logits = {name: [] for name in names}
    write = fold_export.StoredFolds.write
    monkeypatch.setattr(
        fold_export.StoredFolds,
        "write",
        lambda self, place, each: (logits[names[place]].append(each), write(self, place, each)),
    )
    found = predict(predictor, images, tmp_path / "out")
    assert folds.read_folds(found) == names
    assert json.loads(folds.index_file(found).read_text())["prediction"]["folds"] == ["1"]
    for case in CASES:
        name = f"{case}.nii.gz"
        assert (found / name).read_bytes() == (plain / name).read_bytes()
        masks = [(folds.fold_folder(found, each) / name).read_bytes() for each in names]
        assert masks[0] == (unmirrored / name).read_bytes()
        assert len(set(masks)) == len(names)
        assert folds.information_file(found, case, ".nii.gz").is_file()
    # Their mean is what nnU-Net predicts with mirroring.
    monkeypatch.setenv(ENVIRONMENT_FOLDS, "0")
    data = torch.randn((1, 2, 24, 30), generator=torch.Generator().manual_seed(0))
    predictor.deferral_recording = fold_export.FoldRecording(predictor, fold_export.ensemble_of(predictor), tmp_path)
    whole = predictor.predict_logits_from_preprocessed_data(data)
    each = [logits[name][-1] for name in names]
    torch.testing.assert_close(torch.stack(each).float().mean(0), whole[: len(each[0])].float(), atol=0.02, rtol=0.01)


def information_of(each, regions):
    """Of probabilities (K, *S) of each network, voxel by voxel as it is defined."""
    if not regions:
        mean = entropy(np.mean(each, 0), has_regions=False)
        return (mean - np.mean([entropy(one, has_regions=False) for one in each], 0)) / np.log(len(each[0]))
    return np.max([information_of([np.stack((one[k], 1 - one[k])) for one in each], False) for k in range(2)], 0)


def test_a_continued_prediction_makes_up_for_missing_masks_of_folds(predictors, images, tmp_path, monkeypatch, capsys):
    predictor, output = predictors["stock"], tmp_path / "out"
    monkeypatch.setenv(ENVIRONMENT_FOLDS, "1")
    predict(predictor, images, output)
    lost = folds.fold_mask_file(output, "1", "c0", ".nii.gz")
    there = lost.read_bytes()
    lost.unlink()
    kept = (output / "c1.nii.gz").stat().st_mtime_ns
    predict(predictor, images, output, overwrite=False)
    assert "1 cases have a mask but lack masks of single folds" in capsys.readouterr().out
    assert lost.read_bytes() == there
    assert (output / "c1.nii.gz").stat().st_mtime_ns == kept
    predict(predictor, images, output, overwrite=False)
    assert "lack masks" not in capsys.readouterr().out


def test_what_cannot_be_recorded_is_refused_before_a_case_is_predicted(predictors, images, tmp_path, monkeypatch):
    predictor = predictors["stock"]

    def refused(message, predictor=predictor):
        with pytest.raises(InputError, match=message):
            predict(predictor, images, tmp_path / "out")
        assert not list((tmp_path / "out").glob("*.nii.gz"))

    monkeypatch.setenv(ENVIRONMENT_FOLDS, "yes")
    refused("nnUNet_deferral_folds must be 1 or 0, got 'yes'")
    monkeypatch.setenv(ENVIRONMENT_FOLDS, "1")
    single = alone(predictor, 0)
    monkeypatch.setattr(single, "use_mirroring", False)
    refused("require at least two folds .-f., or one with mirroring, got 0 1 all without mirroring", single)
    monkeypatch.setattr(predictor, "deferral_folds", ("0", "1"))
    refused("has 3 folds, but their names are 0, 1. In Python, call")
    monkeypatch.setattr(predictor, "deferral_folds", ("0", "1", "1"))
    refused("each fold can be given only once .-f., but 1 was given several times")
    monkeypatch.delattr(predictor, "deferral_folds")
    refused("their names are unknown")
    monkeypatch.setattr("sys.argv", ["nnUNetv2_predict", "-device", "cpu", "-f", "3", "02", "all", "-npp", "1"])
    predict(predictor, images, tmp_path / "out")
    assert folds.read_folds(tmp_path / "out") == ("3", "2", "all")


def test_a_folder_has_the_masks_of_the_same_folds_only(predictors, images, tmp_path, monkeypatch):
    predictor, output = predictors["stock"], tmp_path / "out"
    monkeypatch.setenv(ENVIRONMENT_FOLDS, "1")
    predict(predictor, images, output)
    monkeypatch.setattr(predictor, "deferral_folds", ("0", "1", "2"))
    with pytest.raises(InputError, match=r'folds is \["0", "1", "all"\], not \["0", "1", "2"\]\). Use another'):
        predict(predictor, images, output)
    monkeypatch.setenv(ENVIRONMENT_FOLDS, "0")
    with pytest.raises(InputError, match="these are predicted without"):
        predict(predictor, images, output)
    folds.index_file(output).write_text('{"ensemble": {"folds": ["../x", "1"]}}')
    with pytest.raises(InputError, match=r"folds.json: .*ensemble.folds\[0\]"):
        folds.read_folds(output)


OTHER_MANNERS = [
    ("deferral_checkpoint", "checkpoint_best.pth", 'checkpoint is "checkpoint_final.pth", not "checkpoint_best.pth"'),
    ("use_mirroring", False, "mirroring is true, not false"),
    ("tile_step_size", 0.9, "step_size is 0.5, not 0.9"),
]


@pytest.mark.parametrize("model", ["stock", "deferral", "several raters"])
def test_a_folder_is_not_continued_by_other_networks_or_in_another_manner(
    predictors, images, tmp_path, monkeypatch, model
):
    predictor, output = predictors[model], tmp_path / "out"
    monkeypatch.setattr(predictor, "deferral_checkpoint", "checkpoint_final.pth", raising=False)
    of_module = {"stock": folds, "deferral": maps, "several raters": agreement_maps}
    index = of_module[model].index_file(output)
    if model == "stock":
        monkeypatch.setenv(ENVIRONMENT_FOLDS, "1")

    def continued():
        (output / "c1.nii.gz").unlink(missing_ok=True)
        predict(predictor, images, output, overwrite=False)

    continued()
    for attribute, value, message in OTHER_MANNERS:
        with monkeypatch.context() as other:
            other.setattr(predictor, attribute, value)
            with pytest.raises(InputError, match=re.escape(message)):
                continued()
    if model != "stock":
        monkeypatch.setattr(predictor, "deferral_folds", ("0", "1", "2"))
        with pytest.raises(InputError, match=r'a different way .folds is \["0", "1", "all"\], not \["0", "1", "2"\]'):
            continued()
    # A folder of an earlier version does not say how it was predicted, and is not made to.
    content = json.loads(index.read_text())
    del content["prediction"]
    index.write_text(json.dumps(content))
    monkeypatch.setattr(predictor, "tile_step_size", 0.9)
    continued()
    assert (output / "c1.nii.gz").is_file()
    assert json.loads(index.read_text()) == content


def test_nnunets_command_is_asked_for_the_checkpoint(predictors, monkeypatch):
    monkeypatch.delattr(predictors["stock"], "deferral_folds")
    monkeypatch.setattr("sys.argv", ["nnUNetv2_predict", "-f", "3", "all", "-chk", "checkpoint_best.pth", "-c", "2d"])
    assert prediction_of(predictors["stock"]) == {
        "folds": ["3", "all"],
        "checkpoint": "checkpoint_best.pth",
        "mirroring": True,
        "step_size": 0.5,
    }
    monkeypatch.setattr("sys.argv", ["nnUNetv2_predict", "-c", "2d", "-f", "0", "--c"])
    assert prediction_of(predictors["stock"])["checkpoint"] == "checkpoint_final.pth"
    monkeypatch.setattr("sys.argv", ["script.py"])
    assert prediction_of(predictors["stock"]) == {"mirroring": True, "step_size": 0.5}


def test_what_differs_from_a_final_validation_is_told(predictors):
    predictor = copy.copy(predictors["stock"])
    assert unlike_validation(predictor) == []
    predictor.deferral_folds, predictor.deferral_checkpoint = (0,), "checkpoint_final.pth"
    assert unlike_validation(predictor) == []
    predictor.deferral_checkpoint, predictor.use_mirroring, predictor.tile_step_size = "checkpoint_best.pth", False, 0.7
    assert unlike_validation(predictor) == ["by checkpoint_best.pth", "without mirroring", "in steps of 0.7 of a tile"]
    predictor.allowed_mirroring_axes = None  # as in its training
    assert "without mirroring" not in unlike_validation(predictor)


def test_a_full_disk_is_named_and_leaves_nothing(predictors, images, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(ENVIRONMENT_FOLDS, "1")
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match="cannot be written to: No space left on device"):
        predict(predictors["stock"], images, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
    assert not list((tmp_path / "out").rglob(".unfinished*"))
    assert not hasattr(predictors["stock"], "deferral_recording")
