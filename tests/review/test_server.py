"""Requests: what is answered, and what is refused whole, leaving the disk as it was."""

import contextlib
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
from skimage import io
from small_review import PORT, running, write_pictures, write_volumes

from nnunetv2_deferral.fusion import fuse_masks
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.review import server
from nnunetv2_deferral.review.server import STATIC
from nnunetv2_deferral.review.service import BYTES_PER_SAVE

CASE = "case_a"
SAVE = f"/api/cases/{CASE}/save"


def own_voxels(browser, case=CASE):
    return np.flatnonzero(browser.volume(case, "regions", np.uint16))


def answer_all(browser, case=CASE, label=1):
    """Label all asked voxels and submit."""
    details = browser.get(f"/api/cases/{case}").json()
    runs = [[int(voxel), 1, label] for voxel in own_voxels(browser, case)]
    saved = browser.save(case, details["revision"], runs, [region["number"] for region in details["regions"]])
    assert saved.status_code == 200, saved.text
    submitted = browser.post(f"/api/cases/{case}/submit", json={"revision": saved.json()["revision"]})
    assert submitted.status_code == 200, submitted.text


def masks_of(folders, predictions):
    files = predictions.files
    return ExpertMasks(
        folder=folders.reviews,
        experts=predictions.experts,
        file_ending=files.file_ending,
        reader=files.reader,
        label_values=files.label_values,
        ignore_label=files.label_manager.ignore_label,
    )


# What ends up on disk


def test_a_submitted_mask_is_read_as_a_mask_of_the_expert_and_keeps_the_geometry(served):
    answer_all(served.browser("ann"))
    predictions = PredictionFolder.open(served.folders.predictions)
    masks = masks_of(served.folders, predictions)
    assert masks.cases("ann") == [CASE]
    assert masks.cases("bob") == []
    predicted = predictions.case(CASE)
    model, properties = predicted.model, predicted.properties
    assert np.array_equal(masks.read("ann", CASE, properties), np.where(predictions.case(CASE).route == 1, 1, model))
    ours, theirs = (
        sitk.ReadImage(str(folder / f"{CASE}.nii.gz"))
        for folder in (served.folders.reviews / "ann", served.folders.predictions)
    )
    # NIfTI holds 32-bit numbers; what SimpleITK reads from them differs in the ninth digit when written again.
    assert ours.GetDirection() == pytest.approx(theirs.GetDirection(), abs=1e-7)
    assert ours.GetOrigin() == pytest.approx(theirs.GetOrigin(), abs=1e-5)
    assert ours.GetSpacing() == pytest.approx(theirs.GetSpacing(), abs=1e-6)


def test_with_an_ignore_label_the_expert_has_no_label_where_they_were_not_asked(tmp_path, serve):
    served = serve(write_volumes(tmp_path, labels={"background": 0, "nodule": 1, "ignore": 2}))
    answer_all(served.browser("ann"))
    predictions = PredictionFolder.open(served.folders.predictions)
    properties = predictions.case(CASE).properties
    labels = masks_of(served.folders, predictions).read("ann", CASE, properties)
    assert np.array_equal(labels == MISSING, predictions.case(CASE).route != 1)


@pytest.mark.parametrize("ignore", [True, False])
def test_a_region_that_the_expert_cannot_tell_has_no_answer_and_keeps_the_label_of_the_model(tmp_path, serve, ignore):
    labels = {"background": 0, "nodule": 1} | ({"ignore": 2} if ignore else {})
    served = serve(write_volumes(tmp_path, labels=labels))
    ann = served.browser("ann")
    regions, model = ann.volume(CASE, "regions", np.uint16), ann.volume(CASE, "model")
    runs = [[int(voxel), 1, 1] for voxel in own_voxels(ann)]
    remarks = {"confidence": {"1": "low", "2": "cannot tell"}, "flags": []}
    content = GOOD | {"runs": runs, "done": [1, 2], "remarks": remarks}
    assert ann.post(SAVE, json=content).status_code == 200
    assert ann.get("/api/cases").json()[0]["experts"][0]["cannot_tell"] == 1
    assert ann.get("/api/cases").json()[0]["experts"][0]["in_doubt"] == 1
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1}).status_code == 200
    fused = ann.volume(CASE, "fused")
    assert np.array_equal(fused, np.where(regions == 1, 1, model))
    untold = int((regions == 2).sum())
    assert ann.get(f"/api/cases/{CASE}/result").json()["unanswered_voxels"] == 96 + (
        untold if ignore else 0
    )  # 96 of bob
    record = json.loads((served.folders.reviews / "review.json").read_text())["cases"][CASE]["ann"]
    assert record["confidence"] == {"1": "low", "2": "cannot tell"}
    assert record["cannot_tell_voxels"] == untold
    assert record["changed_voxels"] == int((model[regions == 1] != 1).sum())


def test_a_flag_is_seen_by_the_coordinator_at_once_and_is_kept_in_the_coordinates_of_the_file(served):
    ann, chief = served.browser("ann"), served.browser("coordinator")
    place = [4, 1, 2]
    remarks = {"confidence": {}, "flags": [{"at": place, "comment": "a second nodule?"}]}
    assert ann.post(SAVE, json=GOOD | {"remarks": remarks}).status_code == 200
    assert ann.save(CASE, 1, done=[1, 2], key="l" * 16).status_code == 200  # leaves the remarks as they are
    assert ann.get(f"/api/cases/{CASE}").json()["remarks"] == remarks
    assert chief.get("/api/cases").json()[0]["experts"][0]["flags"] == 1
    assert chief.get(f"/api/cases/{CASE}").json()["flags"] == [{"expert": "ann", **remarks["flags"][0]}]
    assert "flags" not in served.browser("bob").get(f"/api/cases/{CASE}").json()
    ann.post(f"/api/cases/{CASE}/submit", json={"revision": 2})
    (flag,) = json.loads((served.folders.reviews / "review.json").read_text())["cases"][CASE]["ann"]["flags"]
    case = served.review.study.case(CASE)
    marked = np.zeros(case.model.shape, np.uint8)
    marked[tuple(place)] = 1
    assert np.argwhere(case.orientation.to_file(marked)).tolist() == [flag["voxel"][::-1]]
    file = sitk.ReadImage(str(served.folders.predictions / f"{CASE}.nii.gz"))
    assert flag["mm"] == pytest.approx(file.TransformIndexToPhysicalPoint(flag["voxel"]), abs=0.01)
    assert flag["comment"] == "a second nodule?"


def test_the_page_is_told_the_limits_of_flags_that_the_server_keeps(served):
    ann = served.browser("ann")
    most = ann.get("/api/me").json()["limits"]
    flags, comment = most["flags"], most["comment"]
    for number, length, status in ((flags + 1, 1, 400), (1, comment + 1, 400), (flags, comment, 200)):
        remarks = {"confidence": {}, "flags": [{"at": [4, 1, 2], "comment": "x" * length}] * number}
        assert ann.post(SAVE, json=GOOD | {"remarks": remarks}).status_code == status


def test_cases_are_reviewed_as_soon_as_they_have_been_read(served, monkeypatch):
    ann, study = served.browser("ann"), served.review.study
    monkeypatch.setattr(study, "_infos", {})
    monkeypatch.setattr(study, "_read", set())
    assert ann.get("/api/progress").json() == {"read": 0, "cases": 2}
    assert ann.get("/api/cases").json() == []
    for case, status in ((CASE, 503), ("case_c", 404)):
        assert ann.get(f"/api/cases/{case}").status_code == status
        assert ann.save(case, 0).status_code == status
    study.read(study.waiting, wanted=iter([True, False]).__next__)
    assert ann.get("/api/progress").json() == {"read": 1, "cases": 2}
    assert [entry["case"] for entry in ann.get("/api/cases").json()] == [CASE]
    assert ann.save(CASE, 0).status_code == 200


def test_an_unfinished_review_does_not_look_like_a_mask(served):
    ann = served.browser("ann")
    assert ann.save(CASE, 0, [[int(own_voxels(ann)[0]), 1, 1]]).status_code == 200
    predictions = PredictionFolder.open(served.folders.predictions)
    assert masks_of(served.folders, predictions).cases("ann") == []
    assert list(served.folders.reviews.rglob("*.nii.gz")) == []


@pytest.mark.parametrize("colour", [False, True])
def test_a_picture_is_reviewed_like_a_volume(tmp_path, serve, colour):
    served = serve(write_pictures(tmp_path, colour=colour))
    ann = served.browser("ann")
    details = ann.get("/api/cases/photo").json()
    assert details["channels"] == (["RGB"] if colour else ["CT"])
    assert details["colour"] is colour
    image = io.imread(served.folders.images / "photo_0000.png")
    first = image[..., 0] if colour else image
    assert np.array_equal(ann.volume("photo", "image0").reshape(first.shape), first)
    answer_all(ann, "photo")
    mask = io.imread(served.folders.reviews / "ann" / "photo.png")
    model = io.imread(served.folders.predictions / "photo.png")
    route = io.imread(served.folders.predictions / "deferral" / "route" / "photo.png")
    assert np.array_equal(mask, np.where(route == 1, 1, model))


def test_the_result_is_that_of_the_rule_of_fusion(served):
    answer_all(served.browser("ann"))
    chief = served.browser("coordinator")
    result = chief.get(f"/api/cases/{CASE}/result").json()
    predictions = PredictionFolder.open(served.folders.predictions)
    predicted = predictions.case(CASE)
    model, properties = predicted.model, predicted.properties
    answers = masks_of(served.folders, predictions).answers(CASE, model.shape, properties)
    fused = fuse_masks(model, answers, predictions.case(CASE).route)
    reference, _ = predictions.files.read(served.folders.references / f"{CASE}.nii.gz")

    def dice(mask):
        return 2 * (mask * reference).sum() / (mask.sum() + reference.sum())

    assert result["scores"] == [
        {"region": "nodule", "model": pytest.approx(dice(model)), "system": pytest.approx(dice(fused))}
    ]
    assert result["changed_voxels"] == (fused != model).sum()
    assert result["unanswered_voxels"] == (predictions.case(CASE).route == 2).sum()
    totals = chief.get("/api/totals").json()["experts"]
    assert [(row["submitted"], row["cases"]) for row in totals] == [(1, 2), (0, 2)]


def test_without_references_there_are_no_scores(tmp_path, serve):
    served = serve(write_volumes(tmp_path), references=False)
    result = served.browser("coordinator").get(f"/api/cases/{CASE}/result").json()
    assert result["scores"] is None


# Who may see what


def test_without_a_link_nothing_but_the_empty_page_is_seen(served):
    stranger = served.browser()
    assert stranger.get("/").status_code == 200
    for path in ("/api/me", "/api/cases", f"/api/cases/{CASE}", f"/api/cases/{CASE}/volumes/image0"):
        assert stranger.get(path).status_code == 401
    assert stranger.post("/api/enter", json={"secret": "guess"}).status_code == 403
    assert stranger.post("/api/enter", json={"secret": None}).status_code == 403


def test_the_cookie_cannot_be_read_by_scripts_nor_sent_by_other_sites_and_is_not_the_secret(served):
    secret = {person.name: link for person, link in served.access.links()}["ann"].partition("=")[2]
    answer = served.browser().post("/api/enter", json={"secret": secret})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert secret not in cookie


def test_links_work_again_after_a_restart_and_are_readable_by_their_owner_only(tmp_path, serve):
    folders = write_volumes(tmp_path)
    first = serve(folders)
    links = first.access.links()
    first.review.store.close()
    assert serve(folders).access.links() == links
    assert (folders.reviews / ".review" / "access.json").stat().st_mode & 0o077 == 0
    assert len({link for _, link in links}) == 3


def test_an_expert_sees_only_what_is_routed_to_them(served):
    ann = served.browser("ann")
    assert [status["expert"] for entry in ann.get("/api/cases").json() for status in entry["experts"]] == ["ann", "ann"]
    assert ann.get(f"/api/cases/{CASE}/volumes/route").status_code == 404
    assert ann.get("/api/totals").status_code == 403
    route = served.review.study.case(CASE).route
    assert np.array_equal(own_voxels(ann), np.flatnonzero(route == 1))


def test_the_reference_and_the_result_are_not_sent_to_an_expert_who_has_not_submitted(served):
    ann, bob = served.browser("ann"), served.browser("bob")
    answer_all(ann)
    for path in ("volumes/fused", "result", "download/fused"):
        assert bob.get(f"/api/cases/{CASE}/{path}").status_code == 403, path
        assert ann.get(f"/api/cases/case_b/{path}").status_code == 403, path
        assert ann.get(f"/api/cases/{CASE}/{path}").status_code == 200, path


@pytest.mark.parametrize("show_scores", [False, True])
def test_experts_see_reference_and_scores_only_on_request_and_the_coordinator_always(tmp_path, serve, show_scores):
    served = serve(write_volumes(tmp_path), show_scores=show_scores)
    ann, chief = served.browser("ann"), served.browser("coordinator")
    assert ann.get(f"/api/cases/{CASE}/volumes/reference").status_code in (403, 404)
    answer_all(ann)
    seen = {"ann": (ann, show_scores), "coordinator": (chief, True)}
    for name, (browser, expected) in seen.items():
        assert browser.get(f"/api/cases/{CASE}").json()["has_reference"] == expected, name
        assert (browser.get(f"/api/cases/{CASE}/volumes/reference").status_code == 200) == expected, name
        result = browser.get(f"/api/cases/{CASE}/result").json()
        assert (result["scores"] is not None) == expected, name
        assert ("corrected_voxels" in result) == expected, name
    record = json.loads((served.folders.reviews / "review.json").read_text())["cases"][CASE]["ann"]
    assert (record["show_scores"], record["blind_start"]) == (show_scores, False)


def test_with_a_blind_start_the_mask_of_the_model_is_seen_after_submission_only(tmp_path, serve):
    folders = write_volumes(tmp_path)
    served = serve(folders, blind_start=True)
    ann, chief = served.browser("ann"), served.browser("coordinator")
    model = chief.volume(CASE, "model")
    assert model.any()
    file = tmp_path / "download.nii.gz"
    for path in ("volumes/model", "volumes/labels"):
        assert not ann.volume(CASE, path.partition("/")[2]).any()
    file.write_bytes(ann.get(f"/api/cases/{CASE}/download/mask").content)
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(file))).any()
    answer_all(ann)
    assert np.array_equal(ann.volume(CASE, "model"), model)
    assert [entry["blind"] for entry in served.review.store.log.entries() if entry["event"] == "saved"] == [True]
    assert ann.save("case_b", 0).status_code == 200
    served.review.store.close()
    sighted = serve(folders).browser("ann")
    assert np.array_equal(sighted.volume("case_b", "model"), model)
    sighted.save("case_b", 1, done=[1, 2], key="l" * 16)
    assert sighted.post("/api/cases/case_b/submit", json={"revision": 2}).status_code == 200
    records = json.loads((folders.reviews / "review.json").read_text())["cases"]
    assert [records[case]["ann"]["blind_start"] for case in (CASE, "case_b")] == [True, False]


@pytest.mark.parametrize(
    "name", ["nobody", "..", "../case_a", "..%2fcase_a", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "case_a.nii.gz", "case_a%00"]
)
def test_case_names_come_from_the_listing(served, name):
    assert served.browser("coordinator").get(f"/api/cases/{name}").status_code == 404


@pytest.mark.parametrize("path", ["../server.py", "..%2fserver.py", "%2e%2e/server.py"])
def test_only_files_of_the_page_are_served(served, path):
    assert served.browser("ann").get(f"/static/{path}").status_code == 404


@pytest.mark.parametrize("which", ["image1", "image-1", "image", "image²", "labels", "regions", "secrets"])
def test_unknown_volumes_and_those_of_experts_are_not_found_for_the_coordinator(served, which):
    assert served.browser("coordinator").get(f"/api/cases/{CASE}/volumes/{which}").status_code == 404


# Requests that are not the page's own


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80", ""])
def test_other_names_of_this_machine_are_refused(served, host):
    assert served.browser("ann").get("/api/me", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": f"https://127.0.0.1:{PORT}"},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_changes_sent_by_other_pages_are_refused(served, snapshot, headers):
    ann = served.browser("ann")
    before = snapshot(served.folders.reviews)
    content = {"revision": 0, "runs": [], "done": [], "key": "k" * 16, "seconds": 0}
    assert ann.post(SAVE, json=content, headers=headers).status_code == 403
    assert snapshot(served.folders.reviews) == before


def test_a_page_that_takes_itself_for_someone_else_is_refused(served):
    browser = served.browser("ann")
    browser.enter("bob")
    browser.name = "ann"
    answer = browser.save(CASE, 0)
    assert answer.status_code == 409
    assert "signed in as bob" in answer.json()["reason"]


def test_every_answer_forbids_foreign_and_inline_code(served):
    ann = served.browser("ann")
    for path in ("/", "/static/app.js", "/api/me", "/api/nothing", "/static/nothing"):
        policy = ann.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy


def test_the_page_has_no_inline_code_and_names_no_other_machine():
    page = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert re.findall(r"\son\w+=|<style|\sstyle=", page) == []
    for file in [*STATIC.glob("*.js"), *STATIC.glob("*.css"), STATIC / "index.html"]:
        assert re.findall(r"https?://|@import|innerHTML|eval\(", file.read_text()) == [], file.name


# Edits

GOOD = {"revision": 0, "runs": [], "done": [], "key": "k" * 16, "seconds": 1}


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"runs": "outside"}, 422, "outside your regions"),
        ({"runs": "partly outside"}, 422, "outside your regions"),
        ({"runs": "other expert"}, 422, "outside your regions"),
        ({"runs": [[10**9, 1, 1]]}, 422, "outside the volume"),
        ({"runs": [[0, 10**12, 1]]}, 422, "outside the volume"),
        ({"runs": [[5, 0, 1]]}, 422, "at least one voxel"),
        ({"runs": "overlapping"}, 422, "must not overlap"),
        ({"runs": "unknown label"}, 422, "no label 7"),
        ({"runs": [[1, 2]]}, 400, "runs must be"),
        ({"runs": [[1, 2, True]]}, 400, "runs must be"),
        ({"runs": [[-1, 2, 1]]}, 400, "runs must be"),
        ({"runs": [[1.5, 2, 1]]}, 400, "runs must be"),
        ({"runs": None}, 400, "runs must be"),
        ({"runs": [1, 2, 3]}, 400, "runs must be"),
        ({"runs": [[1, 2, [3]]]}, 400, "runs must be"),
        ({"runs": [[2**53, 1, 1]]}, 400, "runs must be"),
        ({"runs": [[10**4000, 1, 1]]}, 400, "runs must be"),
        ({"runs": [[0, 2**53 - 1, 1]]}, 422, "outside the volume"),
        ({"runs": [[5, 1, 2**53 - 1]]}, 422, "no label 9007199254740991"),
        ({"runs": [[5, 1, 1]] * 63}, 422, "There are 63 runs, but you are asked about 62 voxels."),
        ({"done": [10**4000]}, 400, "done must be"),
        ({"done": [2**53 - 1]}, 422, "There are 2 regions"),
        ({"revision": 10**4000}, 400, "revision must be a whole number, got 1000"),
        ({"revision": float("inf")}, 400, "revision must be a whole number, got inf"),
        ({"seconds": 10**4000}, 400, "seconds must be"),
        ({"seconds": float("nan")}, 400, "seconds must be"),
        ({"done": [99]}, 422, "There are 2 regions"),
        ({"done": [0]}, 422, "There are 2 regions"),
        ({"done": ["1"]}, 400, "done must be"),
        ({"remarks": {"confidence": {"1": "sure"}, "flags": []}}, 400, "remarks: confidence.1 must be"),
        ({"remarks": {"confidence": {"0": "high"}, "flags": []}}, 400, "remarks: confidence.0"),
        ({"remarks": {"confidence": {"3": "high"}, "flags": []}}, 422, "a confidence is given for region 3"),
        ({"remarks": {"confidence": {}}}, 400, "remarks: flags is missing"),
        ({"remarks": {"confidence": {}, "flags": [{"at": [1, 2], "comment": ""}]}}, 400, "remarks: flags[0].at"),
        ({"remarks": {"confidence": {}, "flags": [{"at": [1, 2, -1], "comment": ""}]}}, 400, "remarks: flags[0].at[2]"),
        ({"remarks": {"confidence": {}, "flags": [{"at": [0, 0, 99], "comment": ""}]}}, 422, "column 100"),
        ({"remarks": {"confidence": {}, "flags": [{"at": [0, 0, 0], "comment": "x" * 301}]}}, 400, "comment"),
        ({"remarks": {"confidence": {}, "flags": [{"at": [0, 0, 0], "comment": ""}] * 21}}, 400, "remarks: flags"),
        ({"remarks": []}, 400, "remarks"),
        ({"revision": 3}, 409, "another tab or window"),
        ({"revision": "0"}, 400, "revision must be"),
        ({"key": ""}, 400, "key must be"),
        ({"seconds": -1}, 400, "seconds must be"),
        ({"seconds": 1e9}, 400, "seconds must be"),
        ({"seconds": None}, 400, "seconds must be"),
    ],
)
def test_a_bad_edit_is_refused_whole_with_its_reason(served, snapshot, change, status, reason):
    ann = served.browser("ann")
    own, bobs = own_voxels(ann), own_voxels(served.browser("bob"))
    named = {
        "outside": [[0, 1, 1]],
        "partly outside": [[int(own[0]), 1, 1], [int(own[-1]), 2, 1]],
        "other expert": [[int(bobs[0]), 1, 1]],
        "overlapping": [[int(own[0]), 2, 1], [int(own[1]), 1, 1]],
        "unknown label": [[int(own[0]), 1, 7]],
    }
    runs = change.get("runs", [])
    content = GOOD | change | {"runs": named.get(runs, runs) if isinstance(runs, str) else runs}
    before = snapshot(served.folders.reviews)
    answer = ann.post(SAVE, content=json.dumps(content))
    assert answer.status_code == status
    assert reason in answer.json()["reason"]
    assert len(answer.json()["reason"]) < 200
    assert snapshot(served.folders.reviews) == before


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 5000])
def test_what_is_no_edit_is_refused(served, snapshot, body):
    before = snapshot(served.folders.reviews)
    assert served.browser("ann").post(SAVE, content=body).status_code == 400
    assert snapshot(served.folders.reviews) == before


LONG = "9" * 5000  # Python refuses to convert more than 4,300 digits


@pytest.mark.parametrize("field", ["revision", "seconds", "runs", "done"])
def test_numbers_with_thousands_of_digits_are_refused(served, snapshot, field):
    ann = served.browser("ann")
    before = snapshot(served.folders.reviews)
    value = {"runs": f"[[{LONG}, 1, 1]]", "done": f"[{LONG}]"}.get(field, LONG)
    answer = ann.post(SAVE, content=json.dumps(GOOD | {field: "HERE"}).replace('"HERE"', value))
    assert (answer.status_code, answer.json()["reason"]) == (400, "The request contains a number that is too long.")
    assert snapshot(served.folders.reviews) == before


def test_numbers_with_thousands_of_digits_are_refused_everywhere_else(served, snapshot):
    ann = served.browser("ann")
    before = snapshot(served.folders.reviews)
    assert ann.get(f"/api/cases/{CASE}/volumes/image{LONG}").status_code == 404
    for refused, reason in [
        (ann.post(f"/api/cases/{CASE}/upload?revision={LONG}&key=k&name=m.nii.gz"), "revision must be"),
        (ann.post(f"/api/cases/{CASE}/submit", json={"revision": 10**3000}), "revision must be"),
        (ann.post(f"/api/cases/{CASE}/submit", json={"revision": -1}), "revision must be"),
        (ann.post(SAVE, content=b"{}", headers={"content-length": LONG}), "Content-Length must be"),
        (ann.post(SAVE, content=b"{}", headers={"content-length": "+2"}), "Content-Length must be"),
    ]:
        assert refused.status_code == 400
        assert reason in refused.json()["reason"]
    assert snapshot(served.folders.reviews) == before


def test_a_request_with_two_kinds_of_length_is_refused(served):
    both = {"transfer-encoding": "chunked", "content-length": "2"}
    answer = served.browser("ann").post(SAVE, content=b"{}", headers=both)
    assert (answer.status_code, answer.json()["reason"]) == (
        400,
        "The request has both a Content-Length and a Transfer-Encoding.",
    )


@pytest.mark.parametrize("path", ["/api/enter", "/api/me", SAVE])
@pytest.mark.parametrize("length", ["", "Content-Length: 5\r\n"])
@pytest.mark.parametrize(
    "body",
    [b"zz\r\nabc\r\n", b"-1\r\n\r\n", b"5\r\nab\r\n0\r\n\r\nxx", b"f" * 24 + b"\r\nabc", b"5;" + b"x" * 70000],
    ids=["no number", "negative", "wrong length", "huge", "long extension"],
)
def test_a_malformed_chunk_is_answered_400_and_closed_without_a_traceback(malformed_to, caplog, path, length, body):
    host = malformed_to
    with socket.create_connection(tuple(host.split(":")), timeout=60) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n{length}Transfer-Encoding: chunked"
        client.sendall(f"{head}\r\n\r\n".encode() + body)
        answer = client.recv(4096)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(4096):
                pass
    assert answer.split(b" ", 2)[1] in (b"400", b"401", b"405", b"411")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.fixture(scope="module")
def malformed_to(tmp_path_factory):
    """The address of a server."""
    with running(write_volumes(tmp_path_factory.mktemp("served"))) as links:
        yield next(iter(links.values())).split("/")[2]


def test_a_save_with_more_than_could_be_changed_is_refused_before_it_is_read(served, snapshot):
    ann = served.browser("ann")
    before = snapshot(served.folders.reviews)
    answer = ann.post(SAVE, content=json.dumps(GOOD | {"runs": [[int(own_voxels(ann)[0]), 1, 1]] * 20_000}))
    assert answer.status_code == 413
    assert f"at most {BYTES_PER_SAVE + 48 * 62} are allowed" in answer.json()["reason"]
    assert snapshot(served.folders.reviews) == before


def test_a_save_of_every_voxel_on_its_own_fits(served):
    ann = served.browser("ann")
    runs = [[int(voxel), 1, place % 2] for place, voxel in enumerate(own_voxels(ann))]
    assert ann.post(SAVE, content=json.dumps(GOOD | {"runs": runs, "done": [1, 2]}, indent=1)).status_code == 200


def test_requests_that_are_too_long_or_shorter_than_announced_are_refused(served, snapshot, monkeypatch):
    ann = served.browser("ann")
    before = snapshot(served.folders.reviews)
    assert ann.post(SAVE, content=b"{}", headers={"content-length": "99"}).status_code == 400
    assert ann.post(SAVE, content=b"{}" * 9, headers={"content-length": "3"}).status_code == 400
    assert ann.post(SAVE, content=iter([b"{}"])).status_code == 411
    monkeypatch.setattr(server, "MAX_SAVE_BYTES", 10)
    assert ann.post(SAVE, content=b" " * 11).status_code == 413
    assert snapshot(served.folders.reviews) == before


def test_the_second_of_two_tabs_is_refused_and_the_first_goes_on(served):
    first, second = served.browser("ann"), served.browser("ann")
    voxel = int(own_voxels(first)[0])
    assert first.save(CASE, 0, [[voxel, 1, 1]], key="a" * 16).json()["revision"] == 1
    refused = second.save(CASE, 0, [[voxel, 1, 0]], key="b" * 16)
    assert refused.status_code == 409
    assert "another tab or window" in refused.json()["reason"]
    assert first.volume(CASE, "labels")[voxel] == 1
    assert first.save(CASE, 1, key="c" * 16).json()["revision"] == 2


def test_a_save_whose_answer_was_lost_can_be_sent_again(served):
    ann = served.browser("ann")
    run = [[int(own_voxels(ann)[0]), 1, 1]]
    first = ann.save(CASE, 0, run)
    assert ann.save(CASE, 0, run).json() == first.json()
    assert len(list(served.review.store.log.entries())) == 1


@pytest.mark.parametrize("change", ["runs", "done", "seconds"])
def test_the_key_of_an_earlier_save_with_other_content_is_refused(served, snapshot, change):
    ann = served.browser("ann")
    first, second = own_voxels(ann)[:2].tolist()
    content = GOOD | {"runs": [[first, 1, 1], [second, 1, 1]]}
    assert ann.post(SAVE, json=content).json()["revision"] == 1
    before = snapshot(served.folders.reviews)
    other = content | {"runs": {"runs": [[first, 1, 1]]}, "done": {"done": [1]}, "seconds": {"seconds": 0}}[change]
    refused = ann.post(SAVE, json=other)
    assert refused.status_code == 409
    assert "Something else was saved" in refused.json()["reason"]
    assert snapshot(served.folders.reviews) == before
    assert ann.post(SAVE, json=content).json()["revision"] == 1


def test_working_time_cannot_exceed_the_time_that_has_passed(served):
    ann = served.browser("ann")
    ann.get(f"/api/cases/{CASE}")
    assert ann.save(CASE, 0, seconds=3000).json()["seconds"] < 60


def test_a_case_with_open_regions_cannot_be_submitted(served, snapshot):
    ann = served.browser("ann")
    ann.save(CASE, 0, done=[1])
    before = snapshot(served.folders.reviews)
    answer = ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1})
    assert answer.status_code == 409
    assert "1 of 2 regions" in answer.json()["reason"]
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": True}).status_code == 400
    assert snapshot(served.folders.reviews) == before


def test_a_submitted_case_cannot_be_changed(served, snapshot):
    ann = served.browser("ann")
    answer_all(ann)
    before = snapshot(served.folders.reviews)
    for answer in (ann.save(CASE, 1, key="z" * 16), ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1})):
        assert answer.status_code == 409
        assert "can no longer be changed" in answer.json()["reason"]
    assert snapshot(served.folders.reviews) == before


def test_the_coordinator_gives_no_answers(served, snapshot):
    chief = served.browser("coordinator")
    before = snapshot(served.folders.reviews)
    assert chief.save(CASE, 0).status_code == 403
    assert chief.post(f"/api/cases/{CASE}/submit", json={"revision": 0}).status_code == 403
    assert snapshot(served.folders.reviews) == before


def test_inputs_are_never_written(served, snapshot):
    folders = served.folders
    before = [snapshot(folder) for folder in (folders.predictions, folders.images, folders.references)]
    answer_all(served.browser("ann"))
    served.browser("coordinator").get(f"/api/cases/{CASE}/result")
    assert [snapshot(folder) for folder in (folders.predictions, folders.images, folders.references)] == before


# Several at once


def test_of_many_tabs_that_save_at_once_exactly_one_succeeds(served):
    tabs = [served.browser("ann") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda i: tabs[i].save(CASE, 0, key=f"{i:016}").status_code, range(6)))
    assert sorted(statuses) == [200, *[409] * 5]
    assert [entry["revision"] for entry in served.review.store.log.entries()] == [1]


def test_two_experts_save_at_once_and_nothing_of_either_is_lost(served):
    people = {name: served.browser(name) for name in ("ann", "bob")}
    voxels = {name: own_voxels(browser) for name, browser in people.items()}

    def work(name):
        for revision in range(10):
            runs = [[int(voxels[name][revision]), 1, 1]]
            assert people[name].save(CASE, revision, runs, key=f"{revision:016}").status_code == 200

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, people))
    for name, browser in people.items():
        assert browser.volume(CASE, "labels")[voxels[name][:10]].all()
    revisions = [(entry["expert"], entry["revision"]) for entry in served.review.store.log.entries()]
    assert sorted(revisions) == [(name, revision) for name in ("ann", "bob") for revision in range(1, 11)]


def test_a_planted_error_is_not_called_a_damaged_file(served, monkeypatch):
    def broken(*_arguments):
        return np.ones(2) + np.ones(3)

    monkeypatch.setattr("nnunetv2_deferral.review.service.case_result", broken)
    answer_all(served.browser("ann"))
    refused = served.browser("ann").get(f"/api/cases/{CASE}/result")
    assert (refused.status_code, refused.text) == (500, "Internal Server Error")  # the traceback is the server's
