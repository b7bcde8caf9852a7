"""Two experts for each region and an adjudicator, through the requests of the page, to the fused masks."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from small_review import open_review, write_volumes

from nnunetv2_deferral.answers import check_all_shown
from nnunetv2_deferral.commands import shift
from nnunetv2_deferral.commands.evaluate import main as evaluate
from nnunetv2_deferral.commands.fuse import fuse_folder
from nnunetv2_deferral.commands.worklist import write_worklist
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import ExpertMasks, expert_folders
from nnunetv2_deferral.readings import ReadingRules, read_settled
from nnunetv2_deferral.report.evaluation_tables import readings_table
from nnunetv2_deferral.review.store import ReviewStore

CASE = "case_a"
RULES = ReadingRules(adjudicator="eve")


@pytest.fixture
def folders(tmp_path):
    """Two regions routed to ann and one to bob."""
    return write_volumes(tmp_path, cases=(CASE,), gains={CASE: (0.003, 0.002, 0.001)})


def answer(browser, labels, case=CASE, *, submit=True, confidence=None):
    """Answer every region with the label given for it and submit; `labels` by number of the region in the browser."""
    details = browser.get(f"/api/cases/{case}").json()
    regions = browser.volume(case, "regions", np.uint16)
    runs = [[int(voxel), 1, labels[int(regions[voxel])]] for voxel in np.flatnonzero(regions)]
    content = {"revision": details["revision"], "runs": runs, "done": [row["number"] for row in details["regions"]]}
    content |= {"key": f"key of {details['revision']:10d}", "seconds": 1}
    if confidence:
        content["remarks"] = {"confidence": confidence, "flags": []}
    saved = browser.post(f"/api/cases/{case}/save", json=content)
    assert saved.status_code == 200, saved.text
    if submit:
        sent = browser.post(f"/api/cases/{case}/submit", json={"revision": saved.json()["revision"]})
        assert sent.status_code == 200, sent.text


def reopen(browser, expert, reason="looked at the wrong lesion"):
    return browser.post(f"/api/cases/{CASE}/reopen", json={"expert": expert, "reason": reason})


def outcomes(served):
    found = served.browser("coordinator").get(f"/api/cases/{CASE}/result").json()["readings"]
    return [row["outcome"] for row in found["regions"]]


def test_both_experts_are_asked_about_every_region_and_nobody_is_told_of_the_other(folders, serve):
    served = serve(folders, rules=RULES)
    route = served.review.study.case(CASE).route.ravel() > 0
    volumes = [served.browser(name).volume(CASE, "regions", np.uint16) for name in ("ann", "bob")]
    assert all(np.array_equal(volume > 0, route) for volume in volumes)
    assert np.array_equal(*volumes)  # numbered by gain for both
    ann = served.browser("ann")
    (entry,) = ann.get("/api/cases").json()
    assert [each["expert"] for each in entry["experts"]] == ["ann"]
    assert "readings" not in entry
    assert ann.get(f"/api/cases/{CASE}/volumes/reading1").status_code == 404
    (entry,) = served.browser("coordinator").get("/api/cases").json()
    assert entry["rate"] == pytest.approx(route.mean())  # and not twice of it


def test_where_they_agree_the_answer_is_theirs_and_elsewhere_the_adjudicator_decides(folders, serve, capsys):
    served = serve(folders, rules=RULES)
    eve, chief = served.browser("eve"), served.browser("coordinator")
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 0})
    assert outcomes(served) == ["single"] * 3
    assert eve.get("/api/cases").json() == []
    assert eve.get(f"/api/cases/{CASE}").status_code == 404
    answer(served.browser("bob"), {1: 1, 2: 0, 3: 1})
    assert sorted(outcomes(served)) == ["agreed", "open", "open"]
    (entry,) = eve.get("/api/cases").json()
    assert entry["experts"][0] | {"share": 0, "gain": 0} == entry["experts"][0] | {
        "share": 0, "gain": 0, "expert": "eve", "regions": 2, "done": 0, "submitted": False
    }  # fmt: skip
    (listed,) = chief.get("/api/cases").json()
    assert listed["readings"]["disputed"] == 2
    assert not listed["adjudication"]["submitted"]

    details = eve.get(f"/api/cases/{CASE}").json()
    assert details["decides"]
    disputed = eve.volume(CASE, "regions", np.uint16)
    one, two = (eve.volume(CASE, f"reading{number}") for number in (1, 2))
    assert ((one + two)[disputed > 0] == 1).all()  # one says 1, the other 0
    assert not (one + two)[disputed == 0].any()

    answer(eve, {1: 1, 2: 1})
    assert sorted(outcomes(served)) == ["adjudicated", "adjudicated", "agreed"]
    study = served.review.study.case(CASE)
    fused = np.where(study.route > 0, 1, study.model)
    assert np.array_equal(chief.volume(CASE, "fused"), fused.ravel())
    served.review.store.close()
    report = fuse_folder(folders.predictions, folders.reviews, folders.reviews.parent / "fused")
    assert report["cases"][CASE]["readings"]["outcomes"] == {"open": 0, "single": 0, "agreed": 1, "adjudicated": 2}
    assert report["cases"][CASE]["unanswered"] == {}
    written, _ = PredictionFolder.open(folders.predictions).files.read(folders.reviews.parent / "fused/case_a.nii.gz")
    assert np.array_equal(study.orientation.to_canonical(written), fused)

    folder = [str(each) for each in (folders.predictions, folders.references, folders.reviews)]
    output = folders.reviews.parent / "evaluation"
    evaluate(["-i", folder[0], "-ref", folder[1], "-experts", folder[2], "-o", str(output)])
    found = json.loads((output / "deferral_summary.json").read_text())
    assert found["readings"]["all"]["outcomes"] == {"open": 0, "single": 0, "agreed": 1, "adjudicated": 2}
    assert found["readings"]["pairs"][0]["readers"] == ["ann", "bob"]
    assert "regions with two readers: 0 open, 0 single, 1 agreed, 2 adjudicated" in capsys.readouterr().out
    (row, total) = readings_table(found).rows
    assert row[:3] == ["ann and bob", "3", "0"]
    assert total[0] == "all"


def test_the_log_has_the_agreement_of_each_region_whenever_it_changes(folders, serve, capsys):
    served = serve(folders, rules=RULES)
    assert "maps: 0case" not in capsys.readouterr().err  # there are no answers to settle yet
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 0})
    answer(served.browser("bob"), {1: 1, 2: 0, 3: 1})
    answer(served.browser("eve"), {1: 1, 2: 1})
    served.browser("coordinator").get("/api/cases")
    served.review.store.close()
    served = serve(folders, rules=RULES)
    entries = [entry for entry in served.review.store.log.entries() if entry["event"] == "settled"]
    assert [sorted(each["outcome"] for each in entry["regions"]) for entry in entries] == [
        ["single", "single", "single"],
        ["agreed", "open", "open"],
        ["adjudicated", "adjudicated", "agreed"],
    ]
    last = entries[-1]
    assert last["case"] == CASE and {"number", "readers", "difference", "dice", "kappa"} <= last["regions"][0].keys()
    assert sorted(each["dice"] for each in last["regions"]) == [0, 0, 1]
    assert {entry["time"] for entry in entries}


def test_without_an_adjudicator_disputes_stay_open_and_keep_the_label_of_the_model(folders, serve):
    served = serve(folders, rules=ReadingRules(max_difference=0.5))
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 1})
    answer(served.browser("bob"), {1: 0, 2: 0, 3: 0})
    assert outcomes(served) == ["open"] * 3
    study = served.review.study.case(CASE)
    assert np.array_equal(served.browser("coordinator").volume(CASE, "fused"), study.model.ravel())


@pytest.mark.parametrize("ignore", [True, False])
def test_a_reader_who_cannot_tell_leaves_the_region_to_the_other(tmp_path, serve, ignore):
    labels = {"background": 0, "nodule": 1} | ({"ignore": 2} if ignore else {})
    served = serve(write_volumes(tmp_path, cases=(CASE,), labels=labels), rules=RULES)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 1}, confidence={"2": "cannot tell"})
    answer(served.browser("bob"), {1: 1, 2: 0, 3: 1})
    assert sorted(outcomes(served)) == ["agreed", "agreed", "single"]
    regions = served.browser("bob").volume(CASE, "regions", np.uint16)
    assert not served.browser("coordinator").volume(CASE, "fused")[regions == 2].any()


def test_the_coordinator_reopens_with_a_reason_and_the_decision_is_reopened_too(folders, serve):
    served = serve(folders, rules=RULES)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 1})
    answer(served.browser("bob"), {1: 1, 2: 1, 3: 0})
    answer(served.browser("eve"), {1: 0})
    chief, ann = served.browser("coordinator"), served.browser("ann")
    before = (folders.reviews / "bob" / f"{CASE}.nii.gz").read_bytes()
    assert reopen(ann, "ann").status_code == 403
    assert reopen(served.browser("eve"), "ann").status_code == 403
    assert reopen(chief, "bob", "  ").status_code == 400
    assert reopen(chief, "zoe").status_code == 409
    assert reopen(chief, "bob").status_code == 200
    assert reopen(chief, "bob").status_code == 409
    assert not (folders.reviews / "bob" / f"{CASE}.nii.gz").exists()
    assert (served.review.store.hidden / "reopened/bob/1_case_a.nii.gz").read_bytes() == before
    assert served.browser("eve").get("/api/cases").json() == []
    assert outcomes(served) == ["single"] * 3
    bob = served.browser("bob")
    assert bob.get(f"/api/cases/{CASE}").json()["done"] == [1, 2, 3]  # goes on from what was answered
    answer(bob, {1: 0, 2: 1, 3: 1})
    assert sorted(outcomes(served)) == ["agreed", "agreed", "open"]
    index = json.loads((folders.reviews / "review.json").read_text())["cases"][CASE]
    assert [each["reason"] for each in index["bob"]["reopened"]] == ["looked at the wrong lesion"]
    assert "reopened" not in index["ann"]
    eve = served.browser("eve")
    assert eve.get(f"/api/cases/{CASE}").json()["done"] == []  # the former decision was on another region
    answer(eve, {1: 1})
    assert sorted(outcomes(served)) == ["adjudicated", "agreed", "agreed"]
    people = chief.get(f"/api/cases/{CASE}/result").json()["people"]
    assert [(each["name"], len(each["reopened"])) for each in people] == [("ann", 0), ("bob", 1), ("eve", 1)]


def test_a_case_of_one_reader_is_reopened_as_well(folders, serve):
    served = serve(folders)
    ann = served.browser("ann")
    answer(ann, {1: 1, 2: 1})
    assert reopen(served.browser("coordinator"), "ann").status_code == 200
    answer(ann, {1: 0, 2: 0})
    assert not served.browser("coordinator").volume(CASE, "fused")[ann.volume(CASE, "regions", np.uint16) > 0].any()


def test_what_a_killed_server_began_to_reopen_is_completed_at_the_next_start(folders, serve, monkeypatch):
    served = serve(folders, rules=RULES)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 1})

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("nnunetv2_deferral.review.store._move_aside", killed)
        with pytest.raises(SystemExit):
            served.review.store.reopen("ann", CASE, "why not")
    served.review.store.close()
    assert (folders.reviews / "ann" / f"{CASE}.nii.gz").is_file()
    review = open_review(folders, rules=RULES)
    try:
        assert not review.store.is_submitted("ann", CASE)
        assert review.store.record("ann", CASE) is None
        assert [each["reason"] for each in review.store.reopened("ann", CASE)] == ["why not"]
        assert (review.store.hidden / "reopened/ann/1_case_a.nii.gz").is_file()
        assert [row["outcome"] for row in review.settling.regions(CASE)] == ["open"] * 3
    finally:
        review.store.close()


def test_without_its_folder_of_what_was_settled_a_review_is_refused_until_it_is_settled_anew(folders, serve, tmp_path):
    served = serve(folders, rules=RULES)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 0})
    answer(served.browser("bob"), {1: 1, 2: 1, 3: 0})
    served.review.store.close()
    settled = folders.reviews / "settled"
    before = (settled / f"{CASE}.npz").read_bytes()
    shutil.rmtree(settled)
    with pytest.raises(InputError, match=f"{CASE}.* was written after its regions were settled. Restart the review"):
        fuse_folder(folders.predictions, folders.reviews, tmp_path / "fused")
    with pytest.raises(InputError, match="2 readers for each region"):
        open_review(folders)
    open_review(folders, rules=RULES).store.close()
    assert (settled / f"{CASE}.npz").read_bytes() == before
    fuse_folder(folders.predictions, folders.reviews, tmp_path / "fused")


def test_damaged_rules_of_readings_are_not_lost_from_the_index(folders, serve):
    served = serve(folders, rules=RULES)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 0})
    served.review.store.close()
    rules = folders.reviews / "settled" / "readings.json"
    rules.write_text("{")
    ReviewStore(folders.reviews, ".nii.gz").close()  # writes the index anew
    with pytest.raises(InputError, match=r"readings\.json"):
        ReadingRules.of(folders.reviews)
    rules.unlink()
    assert ReadingRules.of(folders.reviews) == RULES


def test_a_mask_that_was_replaced_is_refused_until_it_is_settled_anew(folders, serve):
    served = serve(folders, rules=RULES)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 1})
    answer(served.browser("bob"), {1: 1, 2: 1, 3: 1})
    served.review.store.close()
    file = folders.reviews / "bob" / f"{CASE}.nii.gz"
    file.write_bytes((folders.predictions / f"{CASE}.nii.gz").read_bytes())
    fused = folders.reviews.parent / "fused"
    with pytest.raises(InputError, match=r"bob/case_a.nii.gz was written after its regions were settled"):
        fuse_folder(folders.predictions, folders.reviews, fused)
    open_review(folders, rules=RULES).store.close()
    assert "adjudicated" not in {row["outcome"] for row in read_settled(folders.reviews, CASE).regions}
    fuse_folder(folders.predictions, folders.reviews, fused)


@pytest.mark.parametrize(
    ("begun", "now", "message"),
    [
        (None, RULES, "is a review with one reader for each region"),
        (RULES, None, "is a review with 2 readers for each region"),
        (RULES, ReadingRules(adjudicator="zoe"), "started with adjudicator 'eve', now 'zoe'"),
        (None, ReadingRules(adjudicator="Bob"), "the adjudicator Bob is one of the readers"),
        (None, ReadingRules(adjudicator="coordinator"), "is the name of the link that shows everything"),
    ],
)
def test_a_review_cannot_change_its_readers(folders, serve, begun, now, message):
    served = serve(folders, rules=begun)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 1}, submit=False)
    served.review.store.close()
    with pytest.raises(InputError, match=message):
        open_review(folders, rules=now)
    ReviewStore(folders.reviews, ".nii.gz").close()  # it was released


def test_with_a_worklist_both_read_what_is_listed(tmp_path, serve):
    folders = write_volumes(tmp_path, cases=(CASE,), gains={CASE: (0.003, 0.002, 0.001)})
    write_worklist(folders.predictions, tmp_path / "list", images=None, max_regions=2)
    served = serve(folders, worklist=tmp_path / "list", rules=RULES)
    ann, bob = served.browser("ann"), served.browser("bob")
    assert [row["rank"] for row in bob.get(f"/api/cases/{CASE}").json()["regions"]] == [1, 2]
    answer(ann, {1: 1, 2: 1})
    answer(bob, {1: 1, 2: 1})
    assert outcomes(served) == ["agreed"] * 2


@pytest.mark.parametrize("listed", [False, True])
def test_a_review_goes_on_where_it_was(tmp_path, serve, listed):
    folders = write_volumes(tmp_path, cases=(CASE, "case_b"))
    if listed:
        write_worklist(folders.predictions, tmp_path / "list", images=None)
    options = {"rules": RULES, "worklist": tmp_path / "list" if listed else None}
    served = serve(folders, **options)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 1})
    answer(served.browser("bob"), {1: 1, 2: 1, 3: 0})
    answer(served.browser("bob"), {1: 1, 2: 1, 3: 0}, case="case_b", submit=False)
    answer(served.browser("eve"), {1: 0}, submit=False)
    before = sorted(outcomes(served))
    served.review.store.close()
    again = serve(folders, **options)
    assert sorted(outcomes(again)) == before == ["agreed", "agreed", "open"]
    assert again.browser("bob").get("/api/cases/case_b").json()["done"] == [1, 2, 3]
    eve = again.browser("eve")
    assert [entry["experts"][0]["done"] for entry in eve.get("/api/cases").json()] == [1]
    answer(eve, {1: 1})
    assert sorted(outcomes(again)) == ["adjudicated", "agreed", "agreed"]


def submit_all(served, ann, bob, eve=None):
    answer(served.browser("ann"), ann)
    answer(served.browser("bob"), bob)
    if eve:
        answer(served.browser("eve"), eve)


def write_mask_of(folders, name, change):
    """Replace a submitted mask by hand; `change` gets the mask and the route, in the orientation of the file."""
    predictions = PredictionFolder.open(folders.predictions)
    file = folders.reviews / name / f"{CASE}.nii.gz"
    mask, properties = predictions.files.read(file)
    route = predictions.case(CASE).route
    predictions.files.reader.write_seg(change(mask, route).astype(np.uint8), str(file), properties)


@pytest.mark.parametrize("ignore", [True, False])
def test_an_answer_drawn_by_hand_counts_where_the_reader_could_not_tell_before(tmp_path, serve, ignore):
    labels = {"background": 0, "nodule": 1} | ({"ignore": 2} if ignore else {})
    folders = write_volumes(tmp_path, cases=(CASE,), labels=labels, gains={CASE: (0.003, 0.002, 0.001)})
    served = serve(folders, rules=RULES)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 1}, confidence={"1": "cannot tell", "3": "cannot tell"})
    answer(served.browser("bob"), {1: 1, 2: 1, 3: 1})
    assert sorted(outcomes(served)) == ["agreed", "single", "single"]
    served.review.store.close()

    def drawn(mask, route):
        """The lower of the regions that the model routes to ann."""
        return np.where((route == 1) & (np.indices(route.shape)[1] > 10), 0, mask)

    write_mask_of(folders, "ann", drawn)
    assert sorted(outcomes(serve(folders, rules=RULES))) == ["agreed", "open", "single"]


def test_a_decision_on_other_regions_than_the_disputed_ones_is_reopened(folders, serve):
    served = serve(folders, rules=RULES)
    submit_all(served, {1: 1, 2: 1, 3: 1}, {1: 1, 2: 1, 3: 0}, {1: 1})
    served.review.store.close()
    write_mask_of(folders, "bob", lambda mask, route: np.where(route == 1, 0, np.where(route == 2, 1, mask)))
    again = serve(folders, rules=RULES)
    assert sorted(outcomes(again)) == ["agreed", "open", "open"]
    people = again.browser("coordinator").get(f"/api/cases/{CASE}/result").json()["people"]
    assert [each["reason"] for each in people[2]["reopened"]] == ["the readings have changed"]
    answer(again.browser("eve"), {1: 1, 2: 1})
    assert sorted(outcomes(again)) == ["adjudicated", "adjudicated", "agreed"]


def test_answers_of_an_adjudicator_who_has_not_submitted_are_set_aside_if_the_readings_change(folders, serve):
    served = serve(folders, rules=RULES)
    submit_all(served, {1: 1, 2: 1, 3: 1}, {1: 1, 2: 1, 3: 0})
    answer(served.browser("eve"), {1: 1}, submit=False)
    served.review.store.close()
    write_mask_of(folders, "bob", lambda mask, route: np.where(route == 1, 0, np.where(route == 2, 1, mask)))
    eve = serve(folders, rules=RULES).browser("eve")
    assert eve.get(f"/api/cases/{CASE}").json()["done"] == []
    answer(eve, {1: 1, 2: 1})


def test_after_other_predictions_nothing_is_settled(folders, serve, caplog):
    served = serve(folders, rules=RULES)
    submit_all(served, {1: 1, 2: 1, 3: 1}, {1: 1, 2: 1, 3: 0})
    served.review.store.close()
    predictions = PredictionFolder.open(folders.predictions)
    file = folders.predictions / f"{CASE}.nii.gz"
    mask, properties = predictions.files.read(file)
    predictions.files.reader.write_seg((1 - mask).astype(np.uint8), str(file), properties)
    again = serve(folders, rules=RULES)
    assert "was submitted for other predictions or another worklist" in caplog.text
    assert outcomes(again) == []
    assert again.browser("eve").get("/api/cases").json() == []


def test_a_mask_that_cannot_be_read_leaves_its_case_unsettled_and_others_go_on(tmp_path, serve, caplog):
    folders = write_volumes(tmp_path, cases=(CASE, "case_b"))
    served = serve(folders, rules=RULES)
    submit_all(served, {1: 1, 2: 1, 3: 1}, {1: 1, 2: 1, 3: 1})
    served.review.store.close()
    (folders.reviews / "ann" / f"{CASE}.nii.gz").write_bytes(b"nothing")
    again = serve(folders, rules=RULES)
    assert "case_a could not be settled" in caplog.text
    answer(again.browser("ann"), {1: 1, 2: 1, 3: 1}, case="case_b")
    with pytest.raises(InputError, match=f"ann/{CASE}"):
        fuse_folder(folders.predictions, folders.reviews, tmp_path / "fused")


def test_no_reading_counts_against_a_decision_if_the_case_is_routed_anew(folders, serve):
    served = serve(folders, rules=RULES)
    submit_all(served, {1: 1, 2: 1, 3: 0}, {1: 0, 2: 0, 3: 1}, {1: 1, 2: 0, 3: 1})
    predictions = PredictionFolder.open(folders.predictions)
    case = predictions.case(CASE)
    masks = ExpertMasks.of(folders.reviews, ("ann", "bob"), predictions.files)
    answers = masks.answers(CASE, case.route.shape, case.properties)
    asked = case.route > 0
    assert np.array_equal(answers[0][asked], answers[1][asked])
    raw = masks.answers(CASE, case.route.shape, case.properties, as_settled=False)
    assert (raw[0] != raw[1])[asked].all()


def test_all_that_was_read_by_two_can_be_read_as_evidence_and_what_was_not_is_refused(tmp_path, serve):
    folders = write_volumes(tmp_path, cases=(CASE,))
    served = serve(folders, rules=RULES)
    submit_all(served, {1: 1, 2: 1, 3: 1}, {1: 1, 2: 1, 3: 1})
    check_all_shown(PredictionFolder.open(folders.predictions), folders.reviews)
    served.review.store.close()
    write_worklist(folders.predictions, tmp_path / "list", images=None, max_regions=1)
    others = dataclasses.replace(folders, reviews=tmp_path / "others")
    served = serve(others, rules=RULES, worklist=tmp_path / "list")
    submit_all(served, {1: 1}, {1: 1})
    with pytest.raises(InputError, match="were asked about other voxels"):
        check_all_shown(PredictionFolder.open(folders.predictions), others.reviews)


def test_raters_of_a_review_are_its_readers_with_their_own_readings(folders, serve):
    served = serve(folders, rules=RULES)
    submit_all(served, {1: 1, 2: 1, 3: 0}, {1: 0, 2: 0, 3: 1}, {1: 1, 2: 0, 3: 1})
    with pytest.raises(InputError, match="is a review with two readers"):
        shift._expert_masks(folders.reviews, [CASE], PredictionFolder.open(folders.predictions).files)
    assert expert_folders(folders.reviews) == ["ann", "bob", "eve"]


def test_after_reopening_an_answer_is_not_called_blind(folders, serve):
    served = serve(folders, blind_start=True)
    answer(served.browser("ann"), {1: 1, 2: 1})
    assert reopen(served.browser("coordinator"), "ann").status_code == 200
    ann = served.browser("ann")
    assert [each["reason"] for each in ann.get(f"/api/cases/{CASE}").json()["reopened"]] == [
        "looked at the wrong lesion"
    ]
    answer(ann, {1: 0, 2: 0})
    record = json.loads((folders.reviews / "review.json").read_text())["cases"][CASE]["ann"]
    assert record["blind_start"] is False


def test_a_mask_put_in_place_by_hand_after_reopening_stays(folders, serve):
    served = serve(folders)
    answer(served.browser("ann"), {1: 1, 2: 1})
    file = folders.reviews / "ann" / f"{CASE}.nii.gz"
    before = file.read_bytes()
    assert reopen(served.browser("coordinator"), "ann").status_code == 200
    served.review.store.close()
    file.write_bytes(before)
    serve(folders)
    assert file.read_bytes() == before


def test_a_reopening_that_fails_changes_nothing(folders, serve, monkeypatch):
    served = serve(folders, rules=RULES)
    answer(served.browser("ann"), {1: 1, 2: 1, 3: 1})

    def fails(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nnunetv2_deferral.review.store._move_aside", fails)
        assert reopen(served.browser("coordinator"), "ann").status_code == 507
    served.review.store.close()
    again = serve(folders, rules=RULES)
    assert again.review.store.is_submitted("ann", CASE)
    assert again.review.store.record("ann", CASE)["regions"] == 3
    assert again.review.store.reopened("ann", CASE) == []


def test_a_result_does_not_tell_an_adjudicator_or_a_reader_who_read_what(folders, serve):
    served = serve(folders, rules=RULES)
    submit_all(served, {1: 1, 2: 1, 3: 0}, {1: 0, 2: 0, 3: 1}, {1: 1, 2: 0, 3: 1})
    result = f"/api/cases/{CASE}/result"
    assert [each["expert"] for each in served.browser("ann").get(result).json()["experts"]] == ["ann"]
    found = served.browser("eve").get(result).json()
    assert found["experts"] == []
    assert "readings" not in found
    totals = served.browser("coordinator").get("/api/totals").json()["experts"]
    assert [(each["expert"], each["cases"], each["submitted"]) for each in totals][2] == ("eve", 1, 1)


def test_rules_can_be_corrected_before_anybody_has_answered(folders, serve):
    serve(folders, rules=ReadingRules(adjudicator="evve")).review.store.close()
    assert serve(folders, rules=RULES).review.adjudicator == "eve"
