"""Folders that have some of the maps only: what is written, what works with it, and what is said where it does not."""

import json
import re

import numpy as np
import pytest
import torch
from small_prediction import write_mask, write_prediction, write_study
from small_predictor import DATASET_JSON, small_predictor

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands import evaluate, fuse, worklist
from nnunetv2_deferral.defaults import AGGREGATED, MAPS
from nnunetv2_deferral.environment import ENVIRONMENT_MAPS, ENVIRONMENT_MINUTES, maps_wanted
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet import trainer  # noqa: F401  # replaces functions of nnU-Net
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.settings import resolve_settings

TWO, MEASURED = ("route", "gain"), ("route", "probability", "gain")


def test_the_variable_overrides_the_settings_and_the_route_is_always_written():
    assert resolve_settings(None).maps == MAPS
    planned = resolve_settings({"maps": ["gain"]}).maps
    assert maps_wanted(planned, MAPS, {}) == TWO
    assert maps_wanted(planned, MAPS, {ENVIRONMENT_MAPS: "expert  probability"}) == ("route", "probability", "expert")
    assert maps_wanted((), MAPS, {ENVIRONMENT_MAPS: " "}) == ("route",)
    assert resolve_settings(resolve_settings({"maps": ["gain"]}).to_dict()).maps == ("gain",)


def test_a_map_that_there_is_not_is_named():
    with pytest.raises(
        InputError, match="nnUNet_deferral_maps: there is no map gains, all of this model; known are route probab"
    ):
        maps_wanted(MAPS, MAPS, {ENVIRONMENT_MAPS: "route gains all"})
    with pytest.raises(InputError, match=r"maps\[0\] must be 'route', .*'gain' or 'aggregated', got 'gains'"):
        resolve_settings({"maps": ["gains"]})


def test_without_the_spatial_coherence_loss_there_is_no_aggregated_predictor():
    wanted = {"maps": ["route", AGGREGATED]}
    settings = resolve_settings(wanted)
    assert maps_wanted(settings.maps, settings.known_maps, {}) == ("route", AGGREGATED)
    with pytest.raises(InputError, match='maps has "aggregated", but without the spatial-coherence loss'):
        resolve_settings(wanted, overrides={"lambda_coherence": 0.0})
    with pytest.raises(InputError, match="no map aggregated of this model; known are route probability expert gain$"):
        maps_wanted(MAPS, resolve_settings({"lambda_coherence": 0}).known_maps, {ENVIRONMENT_MAPS: AGGREGATED})


def test_the_map_of_the_aggregated_predictor_is_its_probability(tmp_path, monkeypatch):
    predictor = small_predictor()
    (tmp_path / "out").mkdir()
    image = np.random.default_rng(0).integers(1, 9, (2, 32, 32)).astype(np.uint8)
    write_mask(tmp_path / "images" / "c_0000.nii.gz", image, spacing=(1.0, 1.0, 2.5))
    files = [[str(tmp_path / "images" / "c_0000.nii.gz")]], [str(tmp_path / "out" / "c")]
    logits = {}

    def remembered(stock):
        def predict(data, *args, **options):
            logits["c"] = stock(data, *args, **options)
            return logits["c"]

        return predict

    of_data = "predict_logits_from_preprocessed_data"
    monkeypatch.setattr(predictor, of_data, remembered(getattr(predictor, of_data)))
    monkeypatch.setenv(ENVIRONMENT_MAPS, f"route {AGGREGATED}")
    predictor.predict_from_files_sequential(*files)
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(DATASET_JSON))
    found = PredictionFolder.open(tmp_path / "out").case("c").aggregated
    assert np.ptp(found) > 0.01
    expected = torch.sigmoid(logits["c"][-1].float()).numpy()
    assert found == pytest.approx(expected, abs=5e-4)  # half precision


def test_the_aggregated_channel_is_predicted_only_for_its_map(tmp_path, monkeypatch):
    predictor = small_predictor()
    image = np.random.default_rng(0).integers(1, 9, (2, 32, 32)).astype(np.uint8)
    write_mask(tmp_path / "images" / "c_0000.nii.gz", image)
    heads, found = [], []
    stock = predictor.predict_sliding_window_return_logits
    monkeypatch.setattr(
        predictor,
        "predict_sliding_window_return_logits",
        lambda data: heads.append(len(logits := stock(data))) or logits,
    )
    for number, wanted in enumerate((MAPS, (*MAPS, AGGREGATED), MAPS)):
        folder = tmp_path / f"out{number}"
        folder.mkdir()
        monkeypatch.setenv(ENVIRONMENT_MAPS, " ".join(wanted))
        predictor.predict_from_files_sequential(str(tmp_path / "images"), str(folder), save_probabilities=True)
        found.append(PredictionFolder.open(folder).case("c"))
    assert heads == [6, 7, 6]
    for case in found[1:]:
        assert np.array_equal(case.model, found[0].model)
        assert np.array_equal(case.softmax, found[0].softmax)
        assert case.routing == pytest.approx(found[0].routing, abs=2e-3)  # half precision
        assert np.mean(case.route != found[0].route) < 0.01
    assert np.array_equal(found[2].routing, found[0].routing)

    monkeypatch.setenv(ENVIRONMENT_MAPS, AGGREGATED)
    with pytest.raises(InputError, match="was used without the map aggregated, .*: initialize it again"):
        predictor.predict_single_npy_array(
            image[None].astype(np.float32), {"spacing": [1.0, 1.0, 1.0]}, output_file_truncated=str(tmp_path / "one")
        )


@pytest.mark.parametrize("kinds", [("route",), TWO])
def test_a_prediction_writes_what_is_asked_for(tmp_path, monkeypatch, kinds):
    predictor = small_predictor()
    write_mask(tmp_path / "images" / "c_0000.nii.gz", np.random.default_rng(0).integers(0, 9, (2, 32, 32), np.uint8))
    (tmp_path / "out").mkdir()

    def predict():
        predictor.predict_from_files_sequential(
            [[str(tmp_path / "images" / "c_0000.nii.gz")]], [str(tmp_path / "out" / "c")]
        )

    monkeypatch.setenv(ENVIRONMENT_MAPS, "everything")
    with pytest.raises(InputError, match="no map everything"):
        predict()
    monkeypatch.setenv(ENVIRONMENT_MAPS, " ".join(kinds))
    predict()
    written = {folder.name for folder in (tmp_path / "out" / "deferral").iterdir() if folder.is_dir()}
    assert written == {*kinds, "cases"}
    assert json.loads((tmp_path / "out" / "deferral" / "deferral.json").read_text())["maps"] == list(kinds)
    monkeypatch.setenv(ENVIRONMENT_MINUTES, "30")
    with pytest.raises(InputError, match="a limit of minutes requires the maps probability gain, but only route"):
        predict()
    monkeypatch.delenv(ENVIRONMENT_MINUTES)
    monkeypatch.delenv(ENVIRONMENT_MAPS)
    with pytest.raises(InputError, match=f"already contains cases with the maps {' '.join(kinds)}, but route prob"):
        predict()


def test_what_needs_other_maps_says_which_and_how_to_get_them(tmp_path):
    write_prediction(tmp_path, kinds=TWO)
    folder = PredictionFolder.open(tmp_path, needed=("gain",))
    case = folder.case("x")
    assert case.route.shape == case.gain.shape
    assert not case.has("probability")
    expected = re.escape(
        f"{tmp_path} does not have the maps probability, which are needed here: according to "
        f"{maps.index_file(tmp_path)} it was predicted with route gain only (nnUNet_deferral_maps, or maps in the "
        "plans). Predict into another folder with "
        'nnUNet_deferral_maps="route probability gain"'
    )
    for read in (lambda: case.probability, lambda: PredictionFolder.open(tmp_path, needed=("probability", "gain"))):
        with pytest.raises(InputError, match=expected):
            read()
    maps.gain_file(tmp_path, "y", ".nii.gz").unlink()
    with pytest.raises(InputError, match=r"deferral maps are missing \(1\): .*gain"):
        PredictionFolder.open(tmp_path)


def test_a_folder_of_an_earlier_version_has_all_maps(tmp_path):
    write_prediction(tmp_path)
    file = maps.index_file(tmp_path)
    content = json.loads(file.read_text())
    del content["maps"]
    file.write_text(json.dumps(content))
    PredictionFolder.open(tmp_path, needed=MAPS)
    maps.check_kinds(tmp_path, MAPS)


class TestCommands:
    @pytest.fixture
    def study(self, tmp_path):
        def write(kinds):
            write_study(tmp_path)
            for kind in set(MAPS) - set(kinds):
                for case in ("x", "y"):
                    maps.MAP_FILES[kind](tmp_path / "in", case, ".nii.gz").unlink()
            file = maps.index_file(tmp_path / "in")
            file.write_text(json.dumps(json.loads(file.read_text()) | {"maps": list(kinds)}))
            return tmp_path

        return write

    def refused(self, command, words, capsys):
        with pytest.raises(SystemExit) as ended:
            command.main([str(word) for word in words])
        assert ended.value.code == 2
        return capsys.readouterr().err

    def test_the_route_is_enough_to_fuse(self, study, capsys):
        root = study(("route",))
        fuse.main([str(word) for word in ("-i", root / "in", "-experts", root / "experts", "-o", root / "fused")])
        assert len(list((root / "fused").glob("*.nii.gz"))) == 2
        words = ("-i", root / "in", "-ref", root / "labels", "-experts", root / "experts", "-o", root / "ev")
        assert "does not have the maps probability expert gain" in self.refused(evaluate, words, capsys)
        words = ("-i", root / "in", "-o", root / "list", "--no_pictures")
        assert "does not have the maps probability gain" in self.refused(worklist, words, capsys)

    def test_probability_and_gain_are_enough_for_a_list(self, study):
        root = study(MEASURED)
        worklist.main([str(word) for word in ("-i", root / "in", "-o", root / "list", "--no_pictures")])
        assert (root / "list" / "worklist.json").is_file()
