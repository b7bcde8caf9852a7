"""`nnUNetv2_deferral_route` on folders decides as the functions of the Python API do on arrays."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from small_prediction import GEOMETRY, LABELS, deferral_folder, read_mask, write_mask, write_prediction

from nnunetv2_deferral import Limits, Policy, ask, decide, find_candidates, fit_evidence_model, maps, routing_rule
from nnunetv2_deferral.commands.route import main, route_folder
from nnunetv2_deferral.decision.area import dice_weight
from nnunetv2_deferral.decision.calibrators import IDENTITY
from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY, FittedEvidence, ModelCalibration
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.settings import STOCK_KEY, resolve_settings

EXPERTS, CASES, SHAPE = ("ann", "bob"), ("x", "y"), (4, 12, 14)
SPACING = GEOMETRY["spacing"]


def arrays_of(case):
    """Probabilities of three classes, and of being right of the model and both experts."""
    generator = np.random.default_rng(CASES.index(case))
    softmax = generator.dirichlet((0.6, 0.6, 0.6), SHAPE).astype(np.float32).transpose(3, 0, 1, 2)
    return softmax, generator.random((3, *SHAPE), dtype=np.float32)


def predicted(root, objective, *, calibration=None, saved=True, kept=True):
    """Write predictions to root/in, with saved probabilities or without, and with the gains of all experts or not."""
    settings = resolve_settings({"experts": list(EXPERTS), "objective": objective, "costs": [0.0, 0.1]})
    written = replace(deferral_folder(root / "in", ".nii.gz", EXPERTS), settings=settings, calibration=calibration)
    if calibration is not None:
        written = replace(written, model=replace(written.model, calibration=calibration.fingerprint))
    for case in CASES:
        softmax, right = arrays_of(case)
        weight = dice_weight(softmax, has_regions=False)
        read = None if calibration is None else softmax
        found = decide(right, weight, rule=settings.rule, calibration=calibration, softmax=read, spacing_mm=SPACING)
        written.write(case, found.maps, GEOMETRY, gains=found.gains if kept else None, prior=found.prior)
        write_mask(root / "in" / f"{case}.nii.gz", softmax.argmax(0).astype(np.uint8))
        if saved:
            np.savez_compressed(root / "in" / f"{case}.npz", probabilities=softmax)
            maps.save_routing(root / "in", case, right)
    (root / "in" / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))


def routed(root, objective, *words, **how):
    """The folder that the command makes of a prediction."""
    predicted(root, objective, **how)
    main(["-i", str(root / "in"), "-o", str(root / "out"), *words])
    return PredictionFolder.open(root / "out")


@pytest.mark.parametrize("objective", ["one_vs_all", "collaboration"])
def test_the_maps_are_those_of_decide(tmp_path, objective):
    found = routed(tmp_path, objective, "-budget", "0.1", "-capacities", "none", "0.04")
    assert found.index["gain_unit"] == found.gain_unit == ("Dice" if objective == "one_vs_all" else "score")
    limits, rule = Limits(budget=0.1, capacities=(None, 0.04)), routing_rule(objective, costs=(0.0, 0.1))
    for name in found.cases:
        (softmax, right), case = arrays_of(name), found.case(name)
        weight = dice_weight(softmax, has_regions=False)
        decision = decide(right, weight, rule=rule, limits=limits, spacing_mm=GEOMETRY["spacing"])
        np.testing.assert_array_equal(case.route, decision.maps.route)
        np.testing.assert_array_equal(case.expert, decision.maps.expert)
        np.testing.assert_allclose(case.probability, decision.maps.probability, atol=1 / 65535)
        np.testing.assert_allclose(case.gain, decision.maps.gain, atol=decision.maps.gain.max() / 65535)
        assert found.index["cases"][name]["expected_gain"] == pytest.approx(decision.statistics["expected_gain"])
        assert set(np.unique(case.route)) == {0, 1, 2}


@pytest.mark.parametrize("objective", ["one_vs_all", "collaboration"])
@pytest.mark.parametrize(
    "words",
    ["-budget 0.1", "-capacities 0.05 0.02", "-budget 0.06 -capacities none 0.01"],
)
def test_without_saved_probabilities_other_limits_are_kept_by_the_gains(tmp_path, objective, words):
    """The same questions as with them, again and again."""
    with_them = routed(tmp_path / "saved", objective, *words.split())
    found = routed(tmp_path, objective, *words.split(), saved=False)
    main(["-i", str(tmp_path / "out"), "-o", str(tmp_path / "again"), *words.split()])
    again = PredictionFolder.open(tmp_path / "again")
    for name in found.cases:
        expected = with_them.case(name)
        for case in (found.case(name), again.case(name)):
            np.testing.assert_array_equal(case.route, expected.route)
            np.testing.assert_array_equal(case.expert, expected.expert)
            np.testing.assert_allclose(case.gains, expected.gains, atol=expected.gains.max() / 32767)
        assert found.index["cases"][name]["limits"] == with_them.index["cases"][name]["limits"]
        gain = with_them.index["cases"][name]["expected_gain"]
        assert found.index["cases"][name]["expected_gain"] == pytest.approx(gain, rel=1e-3)


@pytest.mark.parametrize("objective", ["one_vs_all", "collaboration"])
def test_of_folders_of_former_versions_another_budget_is_kept_by_the_maps(tmp_path, objective):
    found = routed(tmp_path, objective, "-budget", "0.1", saved=False, kept=False)
    before = PredictionFolder.open(tmp_path / "in")
    for name in found.cases:
        case, earlier = found.case(name), before.case(name)
        asked = case.route > 0
        np.testing.assert_array_equal(case.route[asked], earlier.expert[asked])
        assert earlier.gain[asked].min() >= earlier.gain[~asked].max()
        for kind in ("probability", "expert", "gain"):
            np.testing.assert_allclose(getattr(case, kind), getattr(earlier, kind), atol=1 / 65535)
        assert not case.has("gains"), "those of one expert per voxel would pass for those of all"


def test_the_gains_of_an_earlier_decision_do_not_stay(tmp_path):
    for kept in (True, False):
        predicted(tmp_path, "one_vs_all", saved=False, kept=kept)
        assert PredictionFolder.open(tmp_path / "in").case("x").has("gains") == kept


def test_with_one_expert_regions_are_nearly_those_of_saved_probabilities(tmp_path):
    """Zeros where asking harms would let regions grow there, and would defer what was not predicted."""
    shape = (4, 24, 24)
    right = np.full((2, *shape), 0.9, dtype=np.float32)
    right[1] = 0.5
    right[0, :, 3:21:2, 3:21] = 0.2  # stripes with gaps in which the expert would harm
    right[:, :, 12:] = np.nan
    rule = routing_rule("one_vs_all", costs=(0.0,))
    written = deferral_folder(tmp_path / "in", ".nii.gz", ("ann",))
    written = replace(written, settings=resolve_settings({"experts": ["ann"], "objective": "one_vs_all"}))
    found = decide(right, rule=rule, spacing_mm=SPACING)
    written.write("x", found.maps, GEOMETRY, gains=found.gains)
    write_mask(tmp_path / "in" / "x.nii.gz", np.zeros(shape, dtype=np.uint8))
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    main(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-budget", "0.9", "-min_region_mm", "6"])
    limits = Limits(budget=0.9, min_region_mm=6)
    expected = decide(right, rule=rule, limits=limits, spacing_mm=SPACING).maps.route
    np.testing.assert_array_equal(PredictionFolder.open(tmp_path / "out").case("x").route, expected)
    assert 0 < expected.mean() < 0.5


def test_what_the_folder_does_not_suffice_for_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        routed(tmp_path, "one_vs_all", "-capacities", "none", "0.04", saved=False, kept=False)
    said = capsys.readouterr().err
    assert str(tmp_path / "in" / "deferral" / "gains" / "x.npz") in said
    assert "capacities require it or probabilities: predict with --save_prob" in said
    with pytest.raises(SystemExit):
        main(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-min_region_mm", "2"])
    assert "a decision without a budget or capacities requires probabilities" in capsys.readouterr().err


def test_a_damaged_file_of_gains_is_named(tmp_path, capsys):
    predicted(tmp_path, "one_vs_all", saved=False)
    file = tmp_path / "in" / "deferral" / "gains" / "x.npz"
    for content in (file.read_bytes()[:40], file.with_name("y.npz").read_bytes()):
        file.write_bytes(content)
        if len(content) > 40:
            np.savez(file, **dict(np.load(file)) | {"largest": np.asarray(np.float32(np.nan))})
        with pytest.raises(SystemExit):
            main(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-budget", "0.1"])
        assert f"error: {file}" in capsys.readouterr().err


def test_gains_of_another_case_are_refused(tmp_path, capsys):
    predicted(tmp_path, "one_vs_all", saved=False)
    file = tmp_path / "in" / "deferral" / "gains" / "x.npz"
    file.write_bytes(file.with_name("y.npz").read_bytes())
    with pytest.raises(SystemExit):
        main(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-budget", "0.1"])
    assert f"{file} belongs to another prediction: it is positive in other places" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("saved", [True, False])
def test_with_evidence_the_questions_are_those_of_ask(tmp_path, saved):
    generator = np.random.default_rng(9)
    said = [arrays_of(case)[0] for case in CASES]
    truths = [generator.integers(0, 3, SHAPE) for _ in CASES]
    answers = [
        np.stack([np.where(generator.random(SHAPE) < share, truth, (truth + 1) % 3) for share in (0.9, 0.8)])
        for truth in truths
    ]
    spacing = SPACING
    model = fit_evidence_model(said, truths, answers, experts=EXPERTS, spacing_mm=[spacing] * 2)
    fitted = FittedEvidence(model=model, answered_by=EXPERTS)
    calibration = ModelCalibration(experts=EXPERTS, heads=(IDENTITY,) * 3, evidence=fitted)
    found = routed(tmp_path, "collaboration", "-budget", "0.05", calibration=calibration, saved=saved)
    assert found.index["gain_unit"] == found.gain_unit == "Dice"
    for name, softmax, given in zip(CASES, said, answers, strict=True):
        case = find_candidates(model, softmax, spacing_mm=spacing)
        (asked,) = ask(model, [(case, case.take(given))], Policy(), budget=int(0.05 * softmax[0].size))[0]
        expected = case.put(np.where(asked[0].any(0), asked[0].argmax(0) + 1, 0), 0)
        route = found.case(name).route
        if saved:
            np.testing.assert_array_equal(route, expected)
        else:  # gains are kept as 16-bit integers, so that values next to each other may tie
            values = case.put(model.values(case, case.take(given), np.zeros((2, case.index.size), bool)).max(0), 0)
            np.testing.assert_allclose(
                np.sort(values[route > 0]), np.sort(values[expected > 0]), atol=values.max() / 32767
            )
        assert found.case(name).has("prior")
        assert np.count_nonzero(expected) == int(0.05 * softmax[0].size)
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / f"{name}.nii.gz"), softmax.argmax(0))


def test_predictions_of_another_model_are_not_routed_as_those_of_a_stock_network(tmp_path):
    model, folder = tmp_path / "model", tmp_path / "in"
    write_prediction(folder)
    model.mkdir()
    plans = {"dataset_name": "Dataset701_Small", "plans_name": "nnUNetPlans", STOCK_KEY: {}, CALIBRATION_KEY: {}}
    (model / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(InputError, match="has the maps of a deferral model, not predictions of the stock network"):
        route_folder(folder, tmp_path / "out", limits=Limits(budget=0.1), model=model)
    shutil.rmtree(folder / maps.FOLDER)
    (folder / "plans.json").write_text(json.dumps(plans | {"plans_name": "Others"}))
    with pytest.raises(InputError, match='was not predicted by .*plans_name is "Others", not "nnUNetPlans"'):
        route_folder(folder, tmp_path / "out", limits=Limits(budget=0.1), model=model)
