"""What comes first, and reviews of a worklist: what is asked about, what is kept, and lists that do not fit."""

import hashlib
import json

import numpy as np
import pytest
import SimpleITK as sitk
from made_once import made_once
from small_prediction import deferral_folder
from small_review import EXPERTS, free_port, open_review, write_pictures, write_volumes

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands.fuse import fuse_folder
from nnunetv2_deferral.commands.review import main
from nnunetv2_deferral.commands.worklist import write_worklist
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.review import server
from nnunetv2_deferral.review.masks import write_mask
from nnunetv2_deferral.review.results import fused_mask
from nnunetv2_deferral.review.study import Study
from nnunetv2_deferral.worklist.reading import Worklist

CASE = "case_a"
# Gains of a voxel in ann's regions of 32 and of 30 voxels, and in bob's of 96 voxels. The second is the longer one.
GAINS = {"case_a": (0.0005, 0.0015, 0.002), "case_b": (0.004, 0.0001, 0.0001), "case_c": (0.0035, 0.004, 0.0005)}
SAME_TIME = WorkTime(minutes_per_cm=0)
WITH_IGNORE = {"background": 0, "nodule": 1, "ignore": 2}


def write_list(folders, name="list", **limits):
    """A worklist of the predictions, by default in the order of gains, and its rows."""
    folder, options = folders.predictions.parent / name, {"time": SAME_TIME} | limits

    def make(made):
        return write_worklist(folders.predictions, made, images=None, **options)["regions"]

    files = sorted(file for file in folders.predictions.rglob("*") if file.is_file())
    known = [(file.relative_to(folders.predictions), hashlib.sha256(file.read_bytes()).digest()) for file in files]
    return folder, made_once(folder, ("list", known, options), make)


def voxels_of(browser, case, number=None):
    regions = browser.volume(case, "regions", np.uint16)
    return np.flatnonzero(regions if number is None else regions == number)


def answer(browser, case, label=1, *, submit=True):
    """Label all that is asked about."""
    details = browser.get(f"/api/cases/{case}").json()
    runs = [[int(voxel), 1, label] for voxel in voxels_of(browser, case)]
    done = [region["number"] for region in details["regions"]]
    assert browser.save(case, details["revision"], runs, done).status_code == 200
    if submit:
        sent = browser.post(f"/api/cases/{case}/submit", json={"revision": details["revision"] + 1})
        assert sent.status_code == 200, sent.text


def listed_mask(folders, worklist, expert, case):
    """The labels of the listed regions in the file's order; 0 where there is no mask."""
    predictions = PredictionFolder.open(folders.predictions)
    file = worklist / "masks" / expert / predictions.mask_file(case).name
    return predictions.files.read_values(file)[0] if file.is_file() else np.zeros_like(predictions.case(case).route)


@pytest.fixture
def folders(tmp_path):
    return write_volumes(tmp_path, cases=GAINS, labels=WITH_IGNORE, gains=GAINS)


def test_in_a_later_round_the_answers_of_earlier_ones_are_shown_and_fused(folders):
    predicted = PredictionFolder.open(folders.predictions).case(CASE)
    voxels = np.flatnonzero(predicted.route == 0)[::7]
    answers = np.stack([1 - predicted.model.ravel()[voxels], np.full(voxels.size, MISSING)]).astype(np.int16)
    answers[0, ::3] = MISSING
    file = maps.answered_file(folders.predictions, CASE)
    file.parent.mkdir()
    np.savez_compressed(file, voxels=voxels, asked=np.stack([np.ones(voxels.size, bool)] * 2), answers=answers)
    expected = predicted.model.copy()
    expected.reshape(-1)[voxels[answers[0] != MISSING]] = answers[0][answers[0] != MISSING]
    assert (expected != predicted.model).any()
    review = open_review(folders)
    case = review.study.case(CASE)
    for shown in (case.model, fused_mask(review.study, review.store, case)):
        np.testing.assert_array_equal(case.orientation.to_file(shown), expected)


# Without a worklist


def test_the_cases_of_an_expert_come_by_expected_gain_and_those_of_the_coordinator_by_name(folders, serve):
    served = serve(folders)
    cases = {name: served.browser(name).get("/api/cases").json() for name in ("ann", "bob", "coordinator")}
    assert [entry["case"] for entry in cases["ann"]] == ["case_c", "case_b", "case_a"]
    assert [entry["case"] for entry in cases["bob"]] == ["case_a", "case_c", "case_b"]
    assert [entry["case"] for entry in cases["coordinator"]] == ["case_a", "case_b", "case_c"]
    assert [entry["experts"][0]["gain"] for entry in cases["ann"]] == pytest.approx([0.232, 0.131, 0.061], abs=1e-6)


def test_the_regions_of_a_case_are_numbered_by_expected_gain(folders, serve):
    ann = serve(folders).browser("ann")
    for case, expected in (("case_a", [(30, 0.045), (32, 0.016)]), ("case_b", [(32, 0.128), (30, 0.003)])):
        regions = ann.get(f"/api/cases/{case}").json()["regions"]
        assert [region["number"] for region in regions] == [1, 2]
        assert [region["voxels"] for region in regions] == [voxels for voxels, _ in expected]
        assert [region["gain"] for region in regions] == pytest.approx([gain for _, gain in expected], abs=1e-6)
        assert [region["rank"] for region in regions] == [None, None]
        assert voxels_of(ann, case, 1).size == expected[0][0]


def test_the_coordinator_sees_of_which_cases_the_mask_was_not_predicted_with_the_maps(folders, serve, caplog):
    for case in GAINS:
        deferral_folder(folders.predictions, ".nii.gz", EXPERTS).note_mask(case, with_probabilities=False)
    file = folders.predictions / "case_b.nii.gz"
    mask = sitk.ReadImage(str(file))
    mask[0, 0, 0] = 1 - mask[0, 0, 0]
    sitk.WriteImage(mask, str(file))
    served = serve(folders)
    listing = served.browser("coordinator").get("/api/cases").json()
    assert [entry["case"] for entry in listing if entry["other_mask"]] == ["case_b"]
    assert "other_mask" not in served.browser("ann").get("/api/cases").json()[0]
    (said,) = [each.message for each in caplog.records if "a mask other than" in each.message]
    assert said.startswith("1 case has a mask other than the one predicted with the maps (case_b)")


def test_cases_of_the_same_gain_come_by_name(tmp_path, serve):
    listing = serve(write_volumes(tmp_path)).browser("ann").get("/api/cases").json()
    assert [entry["case"] for entry in listing] == ["case_a", "case_b"]


# With a worklist


def test_cases_and_regions_come_by_rank_where_that_is_not_the_order_of_gain(folders, serve):
    # In case_c the second region gains more, but takes longer.
    time = WorkTime(minutes_per_region=0.001, minutes_per_cm=5)
    worklist, rows = write_list(folders, time=time)
    ann = serve(folders, worklist=worklist).browser("ann")
    rows = [row for row in rows if row["expert"] == "ann"]
    assert [entry["case"] for entry in ann.get("/api/cases").json()] == list(dict.fromkeys(row["case"] for row in rows))
    for case in GAINS:
        regions = ann.get(f"/api/cases/{case}").json()["regions"]
        of_case = [row for row in rows if row["case"] == case]
        assert [region["rank"] for region in regions] == [row["rank"] for row in of_case]
        assert [region["voxels"] for region in regions] == [row["voxels"] for row in of_case]
        assert [region["gain"] for region in regions] == pytest.approx([row["expected_gain"] for row in of_case])
    assert [entry["case"] for entry in ann.get("/api/cases").json()] == ["case_b", "case_c", "case_a"]
    assert [region["voxels"] for region in ann.get("/api/cases/case_c").json()["regions"]] == [32, 30]


def test_an_expert_with_nothing_on_the_list_keeps_nobody_from_fusing(tmp_path, serve):
    folders = write_volumes(tmp_path, cases=GAINS, labels=WITH_IGNORE, gains=GAINS)
    worklist, rows = write_list(folders, max_regions=1)
    (row,) = rows
    answer(serve(folders, worklist=worklist).browser(row["expert"]), row["case"])
    report = fuse_folder(folders.predictions, folders.reviews, tmp_path / "fused")
    other = "bob" if row["expert"] == "ann" else "ann"
    route = PredictionFolder.open(folders.predictions).case(row["case"]).route
    everything = int((route == 1 + ("ann", "bob").index(other)).sum())
    assert report["cases"][row["case"]]["unanswered"].get(other, 0) == everything
    assert report["cases"][row["case"]]["changed"] > 0


@pytest.mark.parametrize("labels", [None, WITH_IGNORE])
def test_only_listed_regions_are_asked_about_and_the_model_stands_elsewhere(tmp_path, serve, labels):
    folders = write_volumes(tmp_path, cases=GAINS, labels=labels, gains=GAINS)
    worklist, rows = write_list(folders, max_regions=4)
    assert {(row["case"], row["expert"]) for row in rows} == {
        ("case_a", "bob"), ("case_b", "ann"), ("case_c", "ann"),
    }  # fmt: skip
    served = serve(folders, worklist=worklist)
    predictions = PredictionFolder.open(folders.predictions)
    for expert, cases in (("ann", ["case_b", "case_c"]), ("bob", ["case_a"])):
        browser = served.browser(expert)
        assert sorted(entry["case"] for entry in browser.get("/api/cases").json()) == cases
        assert browser.get("/api/cases/nothing").status_code == 404
        for case in set(GAINS) - set(cases):
            assert browser.get(f"/api/cases/{case}").status_code == 404
            assert browser.save(case, 0).status_code == 404
        for case in cases:
            turn = served.review.study.case(case).orientation.to_canonical
            expected = turn(listed_mask(folders, worklist, expert, case))
            assert np.array_equal(browser.volume(case, "regions", np.uint16), expected.ravel())
            answer(browser, case)
    report = fuse_folder(folders.predictions, folders.reviews, tmp_path / "fused")
    chief = served.browser("coordinator")
    for case in GAINS:
        model = predictions.case(case).model
        route = predictions.case(case).route
        listed = {expert: listed_mask(folders, worklist, expert, case) > 0 for expert in ("ann", "bob")}
        fused, _ = predictions.files.read(tmp_path / "fused" / f"{case}.nii.gz")
        assert np.array_equal(fused, np.where(listed["ann"] | listed["bob"], 1, model))
        for number, (expert, mine) in enumerate(listed.items(), start=1):
            file = folders.reviews / expert / f"{case}.nii.gz"
            assert file.is_file() == mine.any()
            if mine.any():
                elsewhere = model if labels is None else 2
                assert np.array_equal(predictions.files.read(file)[0], np.where(mine, 1, elsewhere))
            # Without an ignore label, a mask cannot say where its expert was not asked.
            left_out = int(((route == number) & ~mine).sum()) * (labels is not None or not mine.any())
            assert report["cases"][case]["unanswered"].get(expert, 0) == left_out
        result = chief.get(f"/api/cases/{case}/result").json()
        assert result["deferred_voxels"] == (route > 0).sum()
        assert result["left_out_voxels"] == ((route > 0) & ~listed["ann"] & ~listed["bob"]).sum()
        assert result["unanswered_voxels"] == 0
        turn = served.review.study.case(case).orientation.to_canonical
        assert np.array_equal(chief.volume(case, "fused"), turn(fused).ravel())
    entries = {entry["case"]: entry for entry in chief.get("/api/cases").json()}
    assert entries["case_a"]["left_out"] == 62
    assert entries["case_a"]["rate"] == pytest.approx(158 / (6 * 20 * 24))
    record = json.loads((folders.reviews / "review.json").read_text())["cases"]["case_b"]["ann"]
    assert (record["regions"], record["voxels"], record["left_out_voxels"]) == (1, 32, 30)


def test_a_region_that_is_not_listed_cannot_be_changed(folders, serve, snapshot):
    worklist, _ = write_list(folders, max_regions=3)
    served = serve(folders, worklist=worklist)
    ann = served.browser("ann")
    assert len(ann.get("/api/cases/case_b").json()["regions"]) == 1
    case, route = served.review.study.case("case_b"), PredictionFolder.open(folders.predictions).case("case_b").route
    routed = np.flatnonzero(case.orientation.to_canonical(route) == 1)
    not_listed = int(np.setdiff1d(routed, voxels_of(ann, "case_b"))[0])
    before = snapshot(folders.reviews)
    refused = ann.save("case_b", 0, [[not_listed, 1, 1]])
    assert refused.status_code == 422
    assert "outside your regions" in refused.json()["reason"]
    mask = case.model.copy()
    mask.ravel()[not_listed] = 1 - mask.ravel()[not_listed]
    file = folders.predictions.parent / "drawn.nii.gz"
    write_mask(mask, case, file, served.review.study.predictions.files)
    body = file.read_bytes()
    sent = ann.post(
        f"/api/cases/case_b/upload?revision=0&key={'u' * 16}&name=m.nii.gz",
        content=body,
        headers={"x-content-sha256": hashlib.sha256(body).hexdigest()},
    )
    assert sent.status_code == 422
    assert "outside your regions" in sent.json()["reason"]
    assert snapshot(folders.reviews) == before


def test_pictures_have_worklists_too(tmp_path, serve):
    folders = write_pictures(tmp_path)
    worklist, rows = write_list(folders, max_regions=2)
    assert [(row["expert"], row["voxels"]) for row in rows] == [("bob", 24), ("ann", 16)]
    served = serve(folders, worklist=worklist)
    for expert, voxels in (("ann", 16), ("bob", 24)):
        browser = served.browser(expert)
        assert voxels_of(browser, "photo").size == voxels
        answer(browser, "photo")
    fuse_folder(folders.predictions, folders.reviews, tmp_path / "fused")
    predictions = PredictionFolder.open(folders.predictions)
    listed = sum(listed_mask(folders, worklist, expert, "photo") for expert in ("ann", "bob")) > 0
    fused, _ = predictions.files.read(tmp_path / "fused" / "photo.png")
    assert np.array_equal(fused, np.where(listed, 1, predictions.case("photo").model))


# Lists that do not fit


def options(folders, worklist=None):
    named = {"-i": folders.predictions, "-images": folders.images, "-o": folders.reviews, "-worklist": worklist}
    named |= {"--port": free_port()}
    return [str(part) for name, value in named.items() if value is not None for part in (name, value)]


def fails(capsys, arguments, *parts):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    for part in parts:
        assert part in message


def change_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_mask(file, change, folders):
    files = PredictionFolder.open(folders.predictions).files
    values, properties = files.read(file)
    values = change(values)
    files.reader.write_seg(values.astype(np.uint8), str(file), properties)


def test_what_is_no_worklist_is_named(folders, capsys):
    fails(capsys, options(folders, folders.images), f"{folders.images} is not a worklist", "worklist.json")
    fails(
        capsys, options(folders, folders.images / "nowhere"), f"the folder {folders.images / 'nowhere'} does not exist"
    )
    assert not folders.reviews.exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", " cannot be read"),
        ("{", " cannot be read"),
        ("[]", ": the content must be an object"),
        ("{}", ": model is missing; regions is missing"),
        ('{"model": {}}', ": regions is missing"),
        ('{"model": {}, "regions": [{}]}', ": regions[0].case is missing"),
        ('{"model": {}, "regions": 1}', ": regions must be a list, got 1"),
        ('{"model": "T", "regions": []}', ": model must be an object, got 'T'"),
    ],
)
def test_a_damaged_worklist_is_named(folders, capsys, content, fault):
    worklist, _ = write_list(folders)
    (worklist / "worklist.json").write_text(content)
    fails(capsys, options(folders, worklist), f"{worklist / 'worklist.json'}{fault}")
    assert not folders.reviews.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["model"].update(experts=["cat"]), "experts ['cat'] instead of ['ann', 'bob']"),
        (lambda content: content["model"].update(trainer="Other"), "trainer 'Other' instead of 'T'"),
        (lambda content: content["regions"][0].update(case="case_z"), "lists cases that"),
        (lambda content: content["regions"][0].update(case="case_z"), "(1): case_z"),
        (lambda content: content["regions"][0].update(expert="cat"), "lists unknown experts (1): cat"),
        (lambda content: content["regions"][0].update(label=7), "does not number the regions of"),
        (lambda content: content["regions"][0].update(rank="x"), "regions[0].rank must be an integer, got 'x'"),
        (lambda content: content["regions"][0].update(rank=0), "regions[0].rank must be greater than or equal to 1"),
        (lambda content: content["regions"][0].update(label="1"), "regions[0].label must be an integer, got '1'"),
        (lambda content: content["regions"][0].update(voxels=1.5), "regions[0].voxels must be an integer, got 1.5"),
        (lambda content: content["regions"][0].update(voxels=True), "regions[0].voxels must be an integer, got True"),
        (lambda content: content["regions"][0].update(voxels=10**30), "regions[0].voxels must be less than"),
        (lambda content: content["regions"][0].update(expert=None), "regions[0].expert must be a string, got None"),
        (lambda content: content["regions"].append(content["regions"][0]), "does not number the regions of"),
    ],
)  # fmt: skip
def test_a_list_of_other_predictions_is_refused(folders, capsys, change, message):
    worklist, _ = write_list(folders)
    change_json(worklist / "worklist.json", change)
    fails(capsys, options(folders, worklist), str(worklist / "worklist.json"), message)
    assert not folders.reviews.exists()


def add_a_voxel(values):
    values[0, 0, 0] = 1
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_a_voxel, "lists 1 voxels that"),
        (lambda values: np.where(values == 1, 3, values), "has 0 voxels of region 1, but"),
        (lambda values: np.where(np.cumsum(values > 0).reshape(values.shape) == 1, 0, values), "31 voxels of region"),
        (lambda values: values[:-1], "shape (5, 20, 24) instead of (6, 20, 24)"),
        (lambda values: values * 0, "has 0 voxels of region 1"),
    ],
)
def test_masks_that_are_not_those_of_the_list_or_the_route_are_refused(folders, capsys, change, message):
    worklist, _ = write_list(folders)
    mask = worklist / "masks" / "ann" / "case_b.nii.gz"
    change_mask(mask, change, folders)
    fails(capsys, options(folders, worklist), str(mask), message)
    assert not folders.reviews.exists()


def test_a_mask_that_is_missing_damaged_or_lies_elsewhere_is_named(folders, capsys):
    worklist, _ = write_list(folders)
    mask = worklist / "masks" / "ann" / "case_b.nii.gz"
    files = PredictionFolder.open(folders.predictions).files
    values, properties = files.read(mask)
    moved = properties | {"sitk_stuff": properties["sitk_stuff"] | {"origin": (1.0, 2.0, 3.0)}}
    files.reader.write_seg(values.astype(np.uint8), str(mask), moved)
    fails(capsys, options(folders, worklist), str(mask), "origin (1, 2, 3) instead of")
    mask.write_bytes(mask.read_bytes()[:50])
    fails(capsys, options(folders, worklist), str(mask), "cannot be read")
    mask.unlink()
    fails(capsys, options(folders, worklist), f"{mask} is missing")
    assert not folders.reviews.exists()


def test_a_list_of_predictions_whose_routes_are_others_by_now_is_refused(folders, capsys):
    worklist, _ = write_list(folders)
    files = PredictionFolder.open(folders.predictions).files
    route = folders.predictions / "deferral" / "route" / "case_b.nii.gz"
    values, properties = files.read(route)
    files.reader.write_seg(np.where(values == 1, 0, values).astype(np.uint8), str(route), properties)
    mask = worklist / "masks" / "ann" / "case_b.nii.gz"
    fails(capsys, options(folders, worklist), str(mask), "lists 62 voxels that", "does not route to ann")


def test_answers_may_not_lie_in_the_worklist(folders, capsys):
    worklist, _ = write_list(folders)
    arguments = [*options(folders, worklist), "-o", str(worklist / "answers")]
    fails(capsys, arguments, "overlaps the input folder")


# Reviews that go on


@pytest.fixture
def start(monkeypatch):
    """The command, up to where it would serve."""
    ports = []
    monkeypatch.setattr(server, "serve", lambda app, listening, meanwhile, **_: ports.append(listening))

    def command(folders, worklist=None):
        main(options(folders, worklist))
        return len(ports)

    return command


@pytest.mark.parametrize("submit", [False, True])
@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (None, "short", "started without a worklist, but now there is the worklist"),
        (None, "full", "started without a worklist, but now there is the worklist"),
        ("short", None, "started with other regions of a worklist, but now there is no worklist"),
        ("short", "full", "started with other regions of a worklist, but now there is the worklist"),
        ("full", "short", "started with other regions of a worklist, but now there is the worklist"),
    ],
)
def test_a_review_with_answers_goes_on_with_the_same_regions_only(
    folders, serve, capsys, snapshot, start, submit, before, after, message
):
    lists = {
        None: None,
        "short": write_list(folders, "short", max_regions=3)[0],
        "full": write_list(folders, "full")[0],
    }
    served = serve(folders, worklist=lists[before])
    answer(served.browser("ann"), "case_b", submit=submit)
    served.review.store.close()
    kept = snapshot(folders.reviews)
    draft = folders.reviews / ".review" / "drafts" / "ann" / "case_b.npz"
    fails(capsys, options(folders, lists[after]), str(draft), "ann", "case_b", message, str(lists[after] or ""))
    now = snapshot(folders.reviews)
    assert now == kept
    assert start(folders, lists[before]) == 1
    again = serve(folders, worklist=lists[before]).browser("ann")
    details = again.get("/api/cases/case_b").json()
    assert details["submitted"] == submit
    assert details["done"] == [region["number"] for region in details["regions"]]


def test_a_review_without_answers_may_take_any_worklist(folders, start):
    worklist, _ = write_list(folders, max_regions=3)
    for number, each in enumerate((None, worklist, None), start=1):
        assert start(folders, each) == number


def test_a_list_that_adds_regions_of_other_cases_leaves_answers_as_they_are(folders, serve, start, capsys):
    short, _ = write_list(folders, "short", max_regions=1)
    longer, rows = write_list(folders, "longer", max_regions=3)
    assert sum(row["case"] == "case_a" for row in rows) == 1
    served = serve(folders, worklist=short)
    answer(served.browser("bob"), "case_a", submit=False)
    served.review.store.close()
    assert start(folders, longer) == 1
    assert "3 cases, 3 regions of 3 cases listed" in capsys.readouterr().out
    again = serve(folders, worklist=longer)
    assert again.browser("bob").get("/api/cases/case_a").json()["done"] == [1]


def test_it_says_how_much_is_listed_and_for_whom_nothing_is(tmp_path, start, capsys):
    folders = write_volumes(tmp_path, cases=GAINS, gains=GAINS)
    worklist, _ = write_list(folders, max_regions=1)
    start(folders, worklist)
    printed = capsys.readouterr().out
    assert f"3 cases, 1 region of 1 case listed in {worklist}" in printed
    assert "Nothing is listed for ann." in printed
    assert "no ignore label" in printed


def test_listed_cases_can_be_reviewed_before_they_have_been_read(folders, serve, monkeypatch):
    worklist, rows = write_list(folders, max_regions=4)
    predictions = PredictionFolder.open(folders.predictions)
    study = Study(predictions, folders.images, None, Worklist.open(worklist, predictions))
    assert study.waiting == list(dict.fromkeys(row["case"] for row in rows))
    before = study.infos
    assert study.read(study.waiting) is None
    assert study.waiting == []
    for case, info in study.infos.items():
        listed = before[case]
        assert (listed.shape, info.shape) == (None, (6, 24, 20))
        for name in ("asked", "voxels", "regions", "ranks", "images"):
            assert getattr(listed, name) == getattr(info, name), name
        assert listed.gains == pytest.approx(info.gains, abs=1e-6)
        assert listed.rate == pytest.approx(info.rate)
    served = serve(folders, worklist=worklist)
    study = served.review.study
    monkeypatch.setattr(study, "_infos", before)
    monkeypatch.setattr(study, "_read", set())
    ann = served.browser("ann")
    assert ann.get("/api/progress").json() == {"read": 3, "cases": 3}
    (entry, *_) = ann.get("/api/cases").json()
    assert study.waiting  # nothing has been read for the list
    answer(ann, entry["case"])
    assert entry["case"] not in study.waiting


@pytest.mark.parametrize(("seconds", "read"), [(0, 0), (60, 3)])
def test_before_the_links_are_printed_cases_of_a_list_are_read_for_a_few_seconds_only(
    folders, monkeypatch, seconds, read
):
    worklist, _ = write_list(folders, max_regions=4)
    predictions = PredictionFolder.open(folders.predictions)
    study = Study(predictions, folders.images, None, Worklist.open(worklist, predictions))
    listed = len(study.waiting)
    monkeypatch.setattr("nnunetv2_deferral.review.study.READ_FIRST_SECONDS", seconds)
    study.read_first()
    assert listed - len(study.waiting) == min(read, listed)


def test_a_listed_case_that_cannot_be_read_is_named_when_it_is_opened(folders, serve):
    worklist, rows = write_list(folders)
    predictions = PredictionFolder.open(folders.predictions)
    study = Study(predictions, folders.images, None, Worklist.open(worklist, predictions))
    file = maps.route_file(folders.predictions, rows[0]["case"], ".nii.gz")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(InputError, match=rows[0]["case"]):
        study.case(rows[0]["case"])
    assert rows[0]["case"] in study.waiting
