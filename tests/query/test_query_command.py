"""nnUNetv2_deferral_query on small folders of predictions."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
from small_ensemble import SHAPE, write_ensemble
from small_prediction import GEOMETRY, deferral_folder, read_mask, write_mask, write_prediction

from nnunetv2_deferral.cases import PredictedCase
from nnunetv2_deferral.commands import fuse, worklist
from nnunetv2_deferral.commands.query import main
from nnunetv2_deferral.decision.effort import WorkTime, border_lengths_mm, edit_cm
from nnunetv2_deferral.defaults import MAPS
from nnunetv2_deferral.predictions import PredictionFolder, files_of_masks
from nnunetv2_deferral.query.deferred_boxes import write_questions
from nnunetv2_deferral.query.patches import Box
from nnunetv2_deferral.query.rounds import QueryRound
from nnunetv2_deferral.worklist.items import find_items

BOX = ("-patch", "2", "3", "4")


def ask(root, folders, output="round", *more, n=12, box=BOX):
    number = [] if n is None else ["-n", str(n)]
    main(["-i", *map(str, folders), "-o", str(root / output), *number, *box, *map(str, more)])
    return json.loads((root / output / "query.json").read_text())


def refused(capsys, root, folders, *more, **how):
    with pytest.raises(SystemExit) as ended:
        ask(root, folders, *more, **how)
    assert ended.value.code == 2
    assert not (root / "round").exists()
    return capsys.readouterr().err.splitlines()[-1]


def boxes(content):
    found = {}
    for each in content["regions"]:
        starts, stops = zip(*each["box"], strict=True)
        found.setdefault(each["case"], []).append(Box(starts, stops))
    return found


@pytest.mark.parametrize("strategy", ["claspe", "entropy", "random", "random_foreground"])
def test_each_strategy_gives_as_many_disjoint_boxes_as_asked_for(tmp_path, strategy):
    content = ask(tmp_path, write_ensemble(tmp_path), "round", "-strategy", strategy)
    assert len(content["regions"]) == 12
    for of_case in boxes(content).values():
        assert not any(first.overlaps(second) for first, second in combinations(of_case, 2))
    assert content["single_network"] is False
    assert content["beta"] == (None if strategy == "entropy" else 1)


def test_the_masks_hold_the_boxes_where_query_json_says(tmp_path):
    content = ask(tmp_path, write_ensemble(tmp_path))
    written = [file for file in content["files"] if not file.startswith("questions/")]
    assert set(written) == {"dataset.json", *(f"masks/{case}.nii.gz" for case in boxes(content))}
    for case in boxes(content):
        expected = np.zeros(SHAPE, dtype=int)
        for region in content["regions"]:
            if region["case"] == case:
                expected[tuple(slice(*ends) for ends in region["box"])] = region["label"]
        assert np.array_equal(read_mask(tmp_path / "round" / "masks" / f"{case}.nii.gz"), expected)
        assert np.array_equal(QueryRound.read(tmp_path / "round").mask(case, SHAPE), expected > 0)


def test_the_boxes_are_questions_that_worklist_fuse_and_next_dataset_understand(tmp_path):
    folders = write_ensemble(tmp_path)
    content = ask(tmp_path, folders, "round", "-annotator", "ann", n=6)
    questions = tmp_path / "round" / "questions"
    assert content["files"] == sorted(
        str(file.relative_to(tmp_path / "round"))
        for file in (tmp_path / "round").rglob("*")
        if file.is_file() and file.name != "query.json"
    )
    found, rounds = PredictionFolder.open(questions, needed=MAPS), QueryRound.read(tmp_path / "round")
    assert (found.experts, set(found.cases)) == (("ann",), set(boxes(content)))
    for case in found.cases:
        assert np.array_equal(found.case(case).route, rounds.mask(case, SHAPE))
        assert not found.has_other_mask(case)
        mean = np.mean([np.load(folder / f"{case}.npz")["probabilities"] for folder in folders], axis=0)
        assert np.array_equal(found.case(case).model, mean.argmax(0))
    for place, region in enumerate(content["regions"]):
        case, inside = found.case(region["case"]), tuple(slice(*ends) for ends in region["box"])
        assert case.gain[inside].sum() == pytest.approx(1 - place / 6, rel=1e-3)
        assert case.probability[inside] == pytest.approx(np.full((2, 3, 4), region["score"]), abs=1e-4)
    worklist.main(["-i", str(questions), "-o", str(tmp_path / "list"), "--no_pictures"])
    assert len(json.loads((tmp_path / "list" / "worklist.json").read_text())["regions"]) >= 1
    for case in found.cases:
        write_mask(tmp_path / "answers" / "ann" / f"{case}.nii.gz", np.full(SHAPE, 2, np.uint8))
        write_mask(tmp_path / "images" / f"{case}_0000.nii.gz", np.zeros(SHAPE, np.uint8))
    answers = ["-experts", str(tmp_path / "answers")]
    fuse.main(["-i", str(questions), *answers, "-o", str(tmp_path / "fused")])
    for case in found.cases:
        where = rounds.mask(case, SHAPE)
        expected = np.where(where, 2, found.case(case).model)
        assert np.array_equal(read_mask(tmp_path / "fused" / f"{case}.nii.gz"), expected)


def test_labels_above_255_stay_what_they_are_in_the_questions(tmp_path):
    (folder,) = write_ensemble(tmp_path, folds=["fold_0"], cases=["x"])
    mask = np.arange(math.prod(SHAPE)).reshape(SHAPE) % 300
    predictions = {"x": PredictedCase("x", model=mask, properties=GEOMETRY)}
    region = {"case": "x", "box": [[0, 2], [0, 3], [0, 4]], "score": 0.5}
    write_questions(
        [region], predictions, files_of_masks(folder, folder / "dataset.json"), tmp_path / "out", annotator="ann"
    )
    assert np.array_equal(read_mask(tmp_path / "out" / "x.nii.gz"), mask)


def test_with_gain_the_models_experts_are_asked_and_its_maps_are_kept(tmp_path):
    written = write_prediction(tmp_path / "in")
    content = ask(tmp_path, [tmp_path / "in"], "round", "-strategy", "gain", n=4)
    found = PredictionFolder.open(tmp_path / "round" / "questions")
    assert found.experts == ("ann", "bob")
    for region in content["regions"]:
        case, inside = found.case(region["case"]), tuple(slice(*ends) for ends in region["box"])
        assert (case.route[inside] == 1 + ["ann", "bob"].index(region["expert"])).all()
        assert case.gain[inside] == pytest.approx(written[region["case"]].gain[inside], abs=1e-6)
        assert np.array_equal(case.model, written[region["case"]].model)


def test_world_coordinates_are_those_of_itk(tmp_path):
    import SimpleITK as sitk

    content = ask(tmp_path, write_ensemble(tmp_path))
    region = content["regions"][0]
    image = sitk.ReadImage(str(tmp_path / "round" / "masks" / f"{region['case']}.nii.gz"))
    corners = [(start, stop - 1) for start, stop in reversed(region["box"])]
    points = [
        image.TransformIndexToPhysicalPoint([x, y, z]) for x in corners[0] for y in corners[1] for z in corners[2]
    ]
    found = np.array([np.min(points, axis=0), np.max(points, axis=0)]).T
    assert np.allclose(found, region["box_world"], atol=1e-3)


def test_scores_are_means_of_the_ensemble_over_the_box(tmp_path):
    folders = write_ensemble(tmp_path)
    content = ask(tmp_path, folders)
    names = [None, "rim", "core"]
    for region in content["regions"]:
        p = np.mean([np.load(folder / f"{region['case']}.npz")["probabilities"] for folder in folders], axis=0)
        score = -(p * np.log(np.maximum(p, 1e-30))).sum(0)
        if region["class"] is not None:
            score = score * p[names.index(region["class"])]
        inside = tuple(slice(*ends) for ends in region["box"])
        assert region["score"] == pytest.approx(float(score[inside].mean()), rel=1e-4)
        for name in ("rim", "core"):
            share = (p.argmax(0) == names.index(name))[inside].mean()
            assert region["predicted"][name] == pytest.approx(share)


def test_the_same_seed_and_round_give_the_same_files_and_others_do_not(tmp_path):
    folders = write_ensemble(tmp_path)
    first, again = (ask(tmp_path, folders, f"round_{place}") for place in range(2))
    assert first == again
    assert boxes(ask(tmp_path, folders, "other", "-seed", 1)) != boxes(first)
    assert boxes(ask(tmp_path, folders, "later", "-round", 1)) != boxes(first)


def test_what_earlier_rounds_asked_is_not_asked_again(tmp_path):
    folders = write_ensemble(tmp_path)
    first = ask(tmp_path, folders, "round_0")
    second = ask(tmp_path, folders, "round_1", "-round", 1, "-annotated", tmp_path / "round_0")
    for case, found in boxes(second).items():
        assert not any(box.overlaps(other) for box in found for other in boxes(first).get(case, ()))


def test_a_class_that_is_never_predicted_gives_its_share_to_all_and_says_so(tmp_path, capsys):
    content = ask(tmp_path, write_ensemble(tmp_path, absent=[2]), "round", "-round", 1)
    assert content["missing_of_class"] == {"core": 3}
    assert len(content["regions"]) == 12
    assert "core has 3 boxes fewer than its share" in capsys.readouterr().out


def test_one_folder_works_and_is_said_to_be_one(tmp_path, capsys):
    content = ask(tmp_path, write_ensemble(tmp_path, folds=["fold_0"]))
    assert content["single_network"] is True
    assert "from one network only" in capsys.readouterr().out


def test_regions_are_asked_about_like_classes(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    content = ask(tmp_path, write_ensemble(tmp_path, labels=labels, regions_class_order=[1, 2]))
    assert {each["class"] for each in content["regions"]} == {"whole", "core", None}


def test_edges_in_mm_are_rounded_to_voxels(tmp_path):
    content = ask(tmp_path, write_ensemble(tmp_path), box=("-patch_mm", "5", "3.3", "2.8"))  # 2.5 x 1.1 x 0.7 mm
    assert all([stop - start for start, stop in each["box"]] == [2, 3, 4] for each in content["regions"])


def test_slices_take_two_edges(tmp_path):
    content = ask(tmp_path, write_ensemble(tmp_path, shape=(1, 20, 20)), box=("-patch", "4", "5"))
    assert all([stop - start for start, stop in each["box"]] == [1, 4, 5] for each in content["regions"])


def test_gain_asks_where_the_deferral_maps_expect_most_and_says_whom(tmp_path):
    written = write_prediction(tmp_path / "in")
    content = ask(tmp_path, [tmp_path / "in"], "round", "-strategy", "gain", "-stride", 1, 1, 1, n=1)
    (region,) = content["regions"]
    best = max(
        float(case.gain[z : z + 2, y : y + 3, x : x + 4].sum())
        for case in written.values()
        for z in range(3)
        for y in range(4)
        for x in range(4)
    )
    assert region["expected_gain"] == pytest.approx(best, rel=1e-3)
    inside = tuple(slice(*ends) for ends in region["box"])
    case = written[region["case"]]
    parts = [case.gain[inside][case.expert[inside] == place].sum() for place in (1, 2)]
    assert region["expert"] == ("ann", "bob")[int(np.argmax(parts))]
    border = border_lengths_mm(np.ones((2, 3, 4), np.int8), GEOMETRY["spacing"]).item()
    minutes = WorkTime().minutes(edit_cm(case.probability[inside].mean(dtype=float), border))
    assert region["minutes"] == pytest.approx(minutes, rel=1e-3)


def test_boxes_are_asked_about_until_the_time_is_spent(tmp_path, capsys):
    write_prediction(tmp_path / "in")
    everything = ask(tmp_path, [tmp_path / "in"], "all", "-strategy", "gain", n=5)["regions"]
    first, second, *rest = (each["minutes"] for each in everything)
    most = first + max(second, *rest) - 1e-6
    fitting, left = [everything[0]], most - first
    for each in everything[1:]:
        if each["minutes"] <= left:
            fitting.append(each)
            left -= each["minutes"]
    content = ask(tmp_path, [tmp_path / "in"], "some", "-strategy", "gain", "-max_minutes", most, n=None)
    assert [(each["case"], each["box"]) for each in content["regions"]] == [
        (each["case"], each["box"]) for each in fitting
    ]
    assert content["max_minutes"] == most
    assert f"{sum(each['minutes'] for each in fitting):.1f} minutes of work" in capsys.readouterr().out
    one = ask(tmp_path, [tmp_path / "in"], "one", "-strategy", "gain", "-max_minutes", 999, n=1)
    assert len(one["regions"]) == 1
    more = ("-strategy", "gain", "-minutes_per_region", 3, "-minutes_per_cm", 0)
    own = ask(tmp_path, [tmp_path / "in"], "own", *more, n=2)
    assert {each["minutes"] for each in own["regions"]} == {3}


def test_whole_regions_and_cases_can_be_asked_about(tmp_path):
    written = write_prediction(tmp_path / "in")
    for route in (each.route for each in written.values()):
        route[:] = 0
    written["x"].route[0, :2, :2], written["x"].route[3, 5, 6], written["y"].route[1:3, 2:4, 3] = 1, 2, 1
    for case, maps in written.items():
        deferral_folder(tmp_path / "in", ".nii.gz", ("ann", "bob")).write(case, maps.maps, GEOMETRY)
    folders, how = [tmp_path / "in"], ("-strategy", "gain", "-per")
    rows = ask(tmp_path, folders, "regions", *how, "region", box=(), n=3)["regions"]
    places = {("x", 0, 0, 0), ("x", 3, 5, 6), ("y", 1, 2, 3)}
    assert {(row["case"], *(start for start, _ in row["box"])) for row in rows} == places
    opened = PredictionFolder.open(tmp_path / "in")
    found = [item for case in written for item in find_items(opened.case(case), WorkTime(), unit="mm")]
    items = {(item.case, item.region.box): item for item in found}
    for row in rows:
        item = items[row["case"], tuple(map(tuple, row["box"]))]
        assert row["minutes"] == pytest.approx(item.minutes)
        assert row["expected_gain"] == pytest.approx(item.expected_gain)
    content = ask(tmp_path, folders, "cases", *how, "case", box=(), n=2)
    assert content["per"] == "case"
    for row in content["regions"]:
        assert row["box"] == [[0, 4], [0, 6], [0, 7]]
        assert row["minutes"] == pytest.approx(sum(item.minutes for item in items.values() if item.case == row["case"]))
    with pytest.raises(SystemExit):
        ask(tmp_path, folders, "rest", *how, "region", "-annotated", tmp_path / "cases", box=(), n=1)


def test_a_round_is_replaced_only_if_asked_for_and_only_a_round(tmp_path, capsys):
    folders = write_ensemble(tmp_path)
    ask(tmp_path, folders)
    with pytest.raises(SystemExit):
        ask(tmp_path, folders)
    assert "is not empty" in capsys.readouterr().err
    assert ask(tmp_path, folders, "round", "--overwrite", "-seed", 5)["seed"] == 5
    (tmp_path / "round" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        ask(tmp_path, folders, "round", "--overwrite")
    assert "notes.txt" in capsys.readouterr().err
    assert (tmp_path / "round" / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        ask(tmp_path, folders, "other", "--overwrite")
    assert "has files but no query.json" in capsys.readouterr().err


class TestParts:
    """Cases in several processes or jobs."""

    @pytest.mark.parametrize("strategy", ["claspe", "random_foreground", "gain"])
    def test_merged_parts_are_the_round_of_a_single_call(self, tmp_path, capsys, strategy):
        folders = write_ensemble(tmp_path)
        if strategy == "gain":
            write_prediction(tmp_path / "in")
            folders = [tmp_path / "in"]
        more = ("-strategy", strategy, "-seed", 3)
        single = ask(tmp_path, folders, "single", *more, n=4)
        words = [str(word) for word in ("-i", *folders, "-o", tmp_path / "round", "-n", 4, *BOX, *more)]
        for number in (3, 0, 2, 1):  # one more than cases
            main([*words, "-num_parts", "4", "-part_id", str(number)])
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "round" / "parts" / "part_1_of_4.pkl.gz")
        assert ask(tmp_path, folders, "round", *more, "--merge", n=4) == single
        assert not (tmp_path / "round" / "parts").exists()

    @pytest.mark.slow
    def test_several_processes_choose_as_one(self, tmp_path):
        folders = write_ensemble(tmp_path)
        assert ask(tmp_path, folders, "several", "-np", 2) == ask(tmp_path, folders, "single")

    def test_a_round_stays_until_its_parts_are_merged(self, tmp_path, capsys):
        folders = write_ensemble(tmp_path)
        before = ask(tmp_path, folders)
        words = [str(word) for word in ("-i", *folders, "-o", tmp_path / "round", "-n", 12, *BOX, "-seed", 5)]
        with pytest.raises(SystemExit):
            main([*words, "-num_parts", "2", "-part_id", "0"])
        assert "is not empty" in capsys.readouterr().err
        for number in (0, 1):
            main([*words, "--overwrite", "-num_parts", "2", "-part_id", str(number)])
        assert json.loads((tmp_path / "round" / "query.json").read_text()) == before
        assert ask(tmp_path, folders, "round", "--overwrite", "-seed", 5, "--merge")["seed"] == 5

    def test_parts_that_are_missing_damaged_or_of_another_query_are_named(self, tmp_path, capsys):
        folders = write_ensemble(tmp_path)

        def refusal(*more):
            with pytest.raises(SystemExit) as ended:
                ask(tmp_path, folders, "round", *more)
            assert ended.value.code == 2
            return capsys.readouterr().err.splitlines()[-1]

        words = [str(word) for word in ("-i", *folders, "-o", tmp_path / "round", "-n", 12, *BOX)]
        assert "parts has no parts" in refusal("--merge")
        main([*words, "-num_parts", "2", "-part_id", "0"])
        assert "lacks 1 of 2 parts: 1" in refusal("--merge")
        main([*words, "-num_parts", "2", "-part_id", "1"])
        assert "part_0_of_2.pkl.gz was made with different arguments (seed is 0" in refusal("--merge", "-seed", 1)
        file = tmp_path / "round" / "parts" / "part_1_of_2.pkl.gz"
        file.write_bytes(file.read_bytes()[:-20])
        assert f"{file} cannot be read" in refusal("--merge")
        assert "--merge puts all parts together" in refusal("--merge", "-num_parts", 2)
        assert "2 parts are numbered 0 to 1, got 2" in refusal("-num_parts", 2, "-part_id", 2)


class TestRefused:
    """Each with exit code 2, one line that names the fault, and nothing written."""

    def test_predictions_without_probabilities(self, tmp_path, capsys):
        folders = write_ensemble(tmp_path)
        (folders[1] / "y.npz").unlink()
        assert "fold_1/y.npz. Predict with --save_probabilities" in refused(capsys, tmp_path, folders)

    def test_a_dataset_of_one_class(self, tmp_path, capsys):
        folders = write_ensemble(tmp_path, labels={"background": 0})
        assert "has no class but the background" in refused(capsys, tmp_path, folders)

    def test_a_box_that_is_larger_than_an_image(self, tmp_path, capsys):
        error = refused(capsys, tmp_path, write_ensemble(tmp_path), box=("-patch", "2", "13", "4"))
        assert "x: the box of (2, 13, 4) voxels is larger than the image of (6, 12, 14)" in error

    def test_more_boxes_than_there_are(self, tmp_path, capsys):
        error = refused(capsys, tmp_path, write_ensemble(tmp_path), n=500)
        assert "500 boxes were asked for, but only" in error

    def test_folds_of_other_cases(self, tmp_path, capsys):
        folders = write_ensemble(tmp_path, folds=["a"]) + write_ensemble(tmp_path, folds=["b"], cases=["x", "y"])
        assert f"cases of {folders[0]} that are not in {folders[1]} (1): z" in refused(capsys, tmp_path, folders)

    def test_folds_of_another_shape(self, tmp_path, capsys):
        folders = write_ensemble(tmp_path, folds=["a"]) + write_ensemble(tmp_path, folds=["b"], shape=(6, 12, 13))
        assert "b/x.npz has shape (3, 6, 12, 13), but 3 classes" in refused(capsys, tmp_path, folders)

    @pytest.mark.parametrize(
        ("more", "n", "fault"),
        [
            (["-strategy", "entropy", "-max_minutes", "9"], 3, "-max_minutes is for the strategy gain"),
            (["-strategy", "gain"], None, "specify the number of boxes (-n), or"),
            (["-strategy", "gain", "-max_minutes", "nan"], None, "max_minutes must be finite and at least 0, got nan"),
            (["-per", "case"], 3, "-per case is for the strategy gain"),
            (["-strategy", "gain", "-per", "region"], 3, "without a size or stride of boxes"),
            (["-strategy", "gain", "-max_minutes", "0.1"], None, "no box fits in 0.1 minutes: the shortest takes 0."),
        ],
    )
    def test_minutes_that_cannot_be_spent(self, tmp_path, capsys, more, n, fault):
        write_prediction(tmp_path / "in")
        assert fault in refused(capsys, tmp_path, [tmp_path / "in"], "round", *more, n=n)

    def test_a_file_that_was_cut_short(self, tmp_path, capsys):
        folders = write_ensemble(tmp_path)
        file = folders[1] / "y.npz"
        file.write_bytes(file.read_bytes()[:-200])
        assert f"{file} cannot be read" in refused(capsys, tmp_path, folders)

    def test_numbers_that_are_no_probabilities(self, tmp_path, capsys):
        folders = write_ensemble(tmp_path)
        np.savez_compressed(folders[1] / "y.npz", probabilities=np.full((3, *SHAPE), 2, dtype=np.float32))
        assert "y.npz: probabilities must lie in [0, 1], got 2 to 2" in refused(capsys, tmp_path, folders)

    def test_a_round_out_of_range(self, tmp_path, capsys):
        assert "round must be between 0 and 4" in refused(
            capsys, tmp_path, write_ensemble(tmp_path), "round", "-round", 5
        )

    def test_a_start_set_without_two_boxes_a_class(self, tmp_path, capsys):
        assert "at least 2 boxes for each of 2 classes" in refused(capsys, tmp_path, write_ensemble(tmp_path), n=3)

    def test_an_annotator_whose_name_is_none(self, tmp_path, capsys):
        error = refused(capsys, tmp_path, write_ensemble(tmp_path), "round", "-annotator", "a/b")
        assert "-annotator" in error

    def test_the_same_folder_twice(self, tmp_path, capsys):
        folders = write_ensemble(tmp_path)
        assert "must be distinct" in refused(capsys, tmp_path, [folders[0], folders[0]])

    def test_maps_of_several_folders(self, tmp_path, capsys):
        error = refused(capsys, tmp_path, write_ensemble(tmp_path), "round", "-strategy", "gain")
        assert "reads the maps of one folder, got 2" in error

    def test_gain_without_deferral_maps(self, tmp_path, capsys):
        error = refused(capsys, tmp_path, write_ensemble(tmp_path)[:1], "round", "-strategy", "gain")
        assert "has no deferral maps" in error

    @pytest.mark.parametrize(
        ("regions", "fault"),
        [
            ([{"case": "q", "box": [[0, 1], [0, 1], [0, 1]], "label": 1}], "without a prediction (1): q"),
            ([{"case": "x", "box": [[0, 1], [0, 99], [0, 1]], "label": 1}], "is not within the image of x"),
            ([{"case": "x", "box": [[1, 1], [0, 9], [0, 1]], "label": 1}], "must be three pairs start < stop"),
            ([{"case": "x", "box": "all", "label": 1}], "must be a list"),
        ],
    )
    def test_an_earlier_round_that_does_not_fit(self, tmp_path, capsys, regions, fault):
        folders = write_ensemble(tmp_path)
        (tmp_path / "before").mkdir()
        (tmp_path / "before" / "query.json").write_text(json.dumps({"regions": regions}))
        assert fault in refused(capsys, tmp_path, folders, "round", "-annotated", tmp_path / "before")
