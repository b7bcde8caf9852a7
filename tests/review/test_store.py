"""Nothing that was saved is lost: full disks, killed servers, two servers, files that are there already."""

import contextlib
import errno
import json
import os
import re
import resource
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from own_process import OwnProcess
from small_review import free_port, write_pictures, write_volumes
from waiting import wait_for

from nnunetv2_deferral import files, readings
from nnunetv2_deferral.commands.review import main
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import AppendOnlyLog, write_durably
from nnunetv2_deferral.review.store import ReviewStore

CASE = "case_a"
httpx = pytest.importorskip("httpx")  # `small_review` has said what is missing


def without_index(files):
    """The index is made from the log again at every start."""
    return {name: content for name, content in files.items() if name != "review.json"}


def own_voxels(browser):
    return np.flatnonzero(browser.volume(CASE, "regions", np.uint16))


def test_the_index_is_not_read_again_at_each_submission(served, monkeypatch):
    ann = served.browser("ann")
    ann.save(CASE, 0, [], [1, 2])

    def read(*_arguments):
        raise AssertionError("review.json was read")

    monkeypatch.setattr(readings, "read_validated_json", read)
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1}).status_code == 200
    assert list(json.loads((served.folders.reviews / "review.json").read_text())["cases"]) == [CASE]


class FullDisk:
    """Lets some more syncs succeed and fails from then on, as a disk does that fills up."""

    def __init__(self, monkeypatch):
        self.left = None
        genuine = os.fsync

        def fsync(handle):
            if self.left is not None:
                if self.left == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.left -= 1
            genuine(handle)

        monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize("successes", [0, 1])
def test_on_a_full_disk_a_save_is_refused_and_everything_stays_as_it_was(served, snapshot, monkeypatch, successes):
    ann, disk = served.browser("ann"), FullDisk(monkeypatch)
    voxels = own_voxels(ann)
    assert ann.save(CASE, 0, [[int(voxels[0]), 1, 1]]).status_code == 200
    before = snapshot(served.folders.reviews)
    disk.left = successes
    refused = ann.save(CASE, 1, [[int(voxels[1]), 1, 1]], key="n" * 16)
    assert refused.status_code == 507
    assert "No space left" in refused.json()["reason"]
    assert snapshot(served.folders.reviews) == before
    disk.left = None
    assert ann.save(CASE, 1, [[int(voxels[1]), 1, 1]], key="n" * 16).json()["revision"] == 2


@pytest.mark.parametrize("successes", [0, 1])
def test_on_a_full_disk_a_case_is_not_submitted(served, snapshot, monkeypatch, successes):
    ann, disk = served.browser("ann"), FullDisk(monkeypatch)
    ann.save(CASE, 0, done=[1, 2])
    before = snapshot(served.folders.reviews)
    disk.left = successes
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1}).status_code == 507
    assert snapshot(served.folders.reviews) == before
    disk.left = None
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1}).status_code == 200


def write_empty(genuine, seg, file, properties):
    Path(file).touch()


def write_cut(genuine, seg, file, properties):
    genuine(seg, file, properties)
    content = Path(file).read_bytes()
    Path(file).write_bytes(content[: len(content) // 2])


def write_nothing(genuine, seg, file, properties):
    pass


def write_something_else(genuine, seg, file, properties):
    genuine(np.zeros_like(seg), file, properties)


def fail_as_itk(genuine, seg, file, properties):
    write_cut(genuine, seg, file, properties)
    raise RuntimeError("Exception thrown in SimpleITK WriteImage: File cannot be written")


@pytest.mark.parametrize("write", [write_empty, write_cut, write_nothing, write_something_else, fail_as_itk])
@pytest.mark.parametrize(("make", "case"), [(write_volumes, CASE), (write_pictures, "photo")])
def test_a_mask_that_was_not_written_completely_is_not_submitted_and_locks_nothing(
    tmp_path, serve, snapshot, monkeypatch, make, case, write
):
    served = serve(make(tmp_path))
    ann = served.browser("ann")
    done = [region["number"] for region in ann.get(f"/api/cases/{case}").json()["regions"]]
    assert ann.save(case, 0, done=done).status_code == 200
    before = snapshot(served.folders.reviews)
    reader = type(served.review.study.predictions.files.reader)
    with monkeypatch.context() as patch:
        genuine = reader.write_seg
        patch.setattr(reader, "write_seg", lambda self, *how: write(partial(genuine, self), *how))
        refused = ann.post(f"/api/cases/{case}/submit", json={"revision": 1})
    assert refused.status_code == 507
    assert "could not be written completely. Free some disk space" in refused.json()["reason"]
    assert snapshot(served.folders.reviews) == before
    assert not (served.folders.reviews / "ann").is_dir() or not list((served.folders.reviews / "ann").iterdir())
    assert ann.get(f"/api/cases/{case}").json()["submitted"] is False
    assert ann.save(case, 1, done=done, key="n" * 16).json()["revision"] == 2
    assert ann.post(f"/api/cases/{case}/submit", json={"revision": 2}).status_code == 200
    assert ann.get(f"/api/cases/{case}/result").status_code == 200


def test_a_submitted_case_whose_mask_was_deleted_is_open_again_with_its_answers(tmp_path, serve):
    """As docs/how-to/review.md says."""
    served = serve(write_volumes(tmp_path))
    ann = served.browser("ann")
    voxel = int(own_voxels(ann)[0])
    ann.save(CASE, 0, [[voxel, 1, 1]], [1, 2])
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1}).status_code == 200
    served.review.store.close()
    served.review.store.mask_file("ann", CASE).unlink()
    again = serve(served.folders)
    assert json.loads((served.folders.reviews / "review.json").read_text()) == {"cases": {}}
    ann = again.browser("ann")
    details = ann.get(f"/api/cases/{CASE}").json()
    assert (details["revision"], details["submitted"]) == (1, False)
    assert ann.volume(CASE, "labels")[voxel] == 1
    assert ann.save(CASE, 1, [[voxel, 1, 0]], [1, 2], key="n" * 16).status_code == 200
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 2}).status_code == 200
    assert json.loads((served.folders.reviews / "review.json").read_text())["cases"][CASE]["ann"]["revisions"] == 2


def test_when_writing_itself_fails_nothing_is_left(tmp_path):
    """With a real limit of the operating system on the size of files."""
    target = tmp_path / "x"
    target.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(OSError, match="large"):
            write_durably(target, lambda file: file.write_bytes(b"n" * 100_000) and None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("length", [200, 10_000, 1_000_000])
def test_an_entry_that_does_not_fit_on_the_disk_leaves_the_log_as_it_was(length, tmp_path):
    log = AppendOnlyLog(tmp_path / "log.jsonl")
    log.append({"n": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(OSError, match="large"):
            log.append({"n": "x" * length})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    log.append({"n": 2})
    assert list(log.entries()) == [{"n": 1}, {"n": 2}]


def test_the_log_alone_gives_the_answers_back(served):
    ann = served.browser("ann")
    voxels = own_voxels(ann)
    random = np.random.default_rng(1)
    for revision in range(6):
        runs = [[int(voxel), 1, int(random.integers(2))] for voxel in voxels if random.random() < 0.3]
        assert ann.save(CASE, revision, runs, key=f"{revision:016}").status_code == 200
    labels = served.review.study.case(CASE).model.ravel().copy()
    for entry in served.review.store.log.entries():
        for start, length, label in entry["runs"]:
            labels[start : start + length] = label
    assert np.array_equal(labels, ann.volume(CASE, "labels"))


def test_the_log_only_grows(served):
    ann, file = served.browser("ann"), served.review.store.log.file
    content = b""
    for revision in range(3):
        ann.save(CASE, revision, key=f"{revision:016}")
        assert file.read_bytes().startswith(content)
        assert len(file.read_bytes()) > len(content)
        content = file.read_bytes()
    entry = json.loads(content.splitlines()[-1])
    assert (entry["event"], entry["expert"], entry["case"], entry["revision"]) == ("saved", "ann", CASE, 3)


def test_a_torn_last_line_of_a_killed_server_is_dropped(tmp_path):
    file = tmp_path / "log.jsonl"
    AppendOnlyLog(file).append({"n": 1})
    with file.open("ab") as stream:
        stream.write(b'{"n": 2, "ru')
    log = AppendOnlyLog(file)
    log.append({"n": 3})
    assert list(log.entries()) == [{"n": 1}, {"n": 3}]


def test_a_change_that_was_logged_but_not_kept_is_noted(served):
    ann = served.browser("ann")
    ann.save(CASE, 0)
    store = served.review.store
    store.log.append({"event": "saved", "expert": "ann", "case": CASE, "revision": 2, "runs": []})
    store.close()
    again = ReviewStore(served.folders.reviews, ".nii.gz")
    last = list(again.log.entries())[-1]
    again.close()
    assert (last["event"], last["revision"]) == ("not kept", 1)


def flip(position):
    def damage(content):
        place = position % len(content)
        return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]

    return damage


DAMAGES = {
    "empty": lambda content: b"",
    "cut after 1 byte": lambda content: content[:1],
    "cut in half": lambda content: content[: len(content) // 2],
    "cut before the last byte": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"no draft",
    "an array": lambda content: b"\x93NUMPY" + content,
    **{f"byte {place} flipped": flip(place) for place in (0, 60, 80, 120, -150, -60, -20, -9, -4)},
}


def saved_twice(served):
    """Two revisions of ann's answers; gives the draft's file and the labels of each revision."""
    ann, voxels, labels = served.browser("ann"), own_voxels(served.browser("ann")), []
    for revision in range(2):
        assert ann.save(CASE, revision, [[int(voxels[revision]), 1, 1]], [revision + 1]).status_code == 200
        labels.append(ann.volume(CASE, "labels"))
    return served.review.store.draft_file("ann", CASE), labels


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_draft_is_replaced_by_the_revision_before_and_kept_aside(served, serve, caplog, damage):
    file, labels = saved_twice(served)
    served.review.store.close()
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    again = serve(served.folders)
    again.review.check_begun()
    assert f"{file} was damaged" in caplog.text
    assert "revision 1 is restored; the damaged file is kept as case_a.npz.damaged_1" in caplog.text
    assert (file.parent / "case_a.npz.damaged_1").read_bytes() == damaged
    last = list(again.review.store.log.entries())[-1]
    assert (last["event"], last["revision"], last["kept_as"]) == ("restored", 1, "case_a.npz.damaged_1")
    ann = again.browser("ann")
    details = ann.get(f"/api/cases/{CASE}").json()
    assert (details["revision"], details["done"]) == (1, [1])
    assert np.array_equal(ann.volume(CASE, "labels"), labels[0])
    assert ann.save(CASE, 1, key="n" * 16).json()["revision"] == 2


def test_a_flipped_byte_never_changes_an_answer(served):
    file, labels = saved_twice(served)
    good, earlier = file.read_bytes(), file.with_name("case_a.npz.previous").read_bytes()
    voxels = own_voxels(served.browser("ann"))
    for place in range(0, len(good), 11):
        file.write_bytes(flip(place)(good))
        draft = served.review.store.draft("ann", CASE)
        assert draft.revision == (1 if file.read_bytes() == earlier else 2)
        assert np.array_equal(draft.labels, labels[draft.revision - 1][voxels])


def test_a_draft_that_is_damaged_while_it_is_served_is_restored_once(served):
    file, labels = saved_twice(served)
    file.write_bytes(b"")
    tabs = [served.browser("ann") for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert {tab.status_code for tab in pool.map(lambda tab: tab.get(f"/api/cases/{CASE}"), tabs)} == {200}
    assert np.array_equal(tabs[0].volume(CASE, "labels"), labels[0])
    assert [entry["event"] for entry in served.review.store.log.entries()] == ["saved", "saved", "restored"]


def test_every_damaged_draft_is_kept(served):
    file, _ = saved_twice(served)
    for text in (b"first", b"second"):
        file.write_bytes(text)
        assert served.review.store.draft("ann", CASE).revision == 1
    assert [(file.parent / f"case_a.npz.damaged_{number}").read_bytes() for number in (1, 2)] == [b"first", b"second"]


def test_the_first_revision_is_restored_too(served):
    ann = served.browser("ann")
    ann.save(CASE, 0, done=[1])
    served.review.store.draft_file("ann", CASE).write_bytes(b"")
    assert ann.get(f"/api/cases/{CASE}").json()["done"] == [1]


def test_without_an_undamaged_revision_the_error_says_what_to_do_and_nothing_is_changed(served, snapshot):
    file, _ = saved_twice(served)
    served.review.store.close()
    for each in (file, file.with_name("case_a.npz.previous")):
        each.write_bytes(each.read_bytes()[:100])
    before = snapshot(served.folders.reviews)
    with pytest.raises(InputError, match=r"case_a.npz is damaged .*, and case_a.npz.previous.* delete both: ann then"):
        ReviewStore(served.folders.reviews, ".nii.gz")
    assert snapshot(served.folders.reviews) == before
    for each in (file, file.with_name("case_a.npz.previous")):
        each.unlink()
    again = ReviewStore(served.folders.reviews, ".nii.gz")
    assert again.draft("ann", CASE) is None
    again.close()


def test_a_draft_that_the_system_does_not_let_be_read_is_not_taken_for_damaged(served, monkeypatch):
    file, _ = saved_twice(served)

    def refuse(_self):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(type(file), "read_bytes", refuse)
        with pytest.raises(InputError, match="case_a.npz cannot be read: Too many open files"):
            served.review.store.draft("ann", CASE)
    assert served.review.store.draft("ann", CASE).revision == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [(b"{", "line 3 is damaged"), (b"[]", "line 3: the content must be an object"),
     (b'{"event":"saved","expert":"ann","case":"x"}', "line 3: revision is missing")],
)  # fmt: skip
def test_a_damaged_line_of_the_log_is_named(served, line, message):
    saved_twice(served)
    served.review.store.close()
    with served.review.store.log.file.open("ab") as stream:
        stream.write(line + b"\n")
    with pytest.raises(InputError, match=message):
        ReviewStore(served.folders.reviews, ".nii.gz")


@pytest.mark.parametrize("umask", [0o022, 0o002])
def test_answers_log_and_links_are_readable_by_their_owner_only_and_results_by_everyone(tmp_path, serve, umask):
    before = os.umask(umask)
    try:
        served = serve(write_volumes(tmp_path))
        ann = served.browser("ann")
        ann.save(CASE, 0, done=[1, 2])
        ann.save(CASE, 1, key="n" * 16, done=[1, 2])
        served.review.store.draft_file("ann", CASE).write_bytes(b"")
        assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1}).status_code == 200
    finally:
        os.umask(before)
    modes = {
        str(path.relative_to(served.folders.reviews)): path.stat().st_mode & 0o777
        for path in served.folders.reviews.rglob("*")
    }
    drafts = ".review/drafts/ann"
    assert modes == {
        ".review": 0o700,
        ".review/drafts": 0o700,
        drafts: 0o700,
        **{f"{drafts}/case_a.npz{ending}": 0o600 for ending in ("", ".previous", ".damaged_1")},
        **{f".review/{name}": 0o600 for name in ("log.jsonl", "access.json", "server.lock")},
        "ann": 0o777 & ~umask,
        "ann/case_a.nii.gz": 0o666 & ~umask,
        "review.json": 0o666 & ~umask,
    }


def test_the_state_of_a_review_that_others_could_read_is_closed_to_them(served):
    served.review.store.close()
    served.review.store.hidden.chmod(0o755)
    ReviewStore(served.folders.reviews, ".nii.gz").close()
    assert served.review.store.hidden.stat().st_mode & 0o777 == 0o700


def test_two_servers_cannot_have_one_folder(served):
    with pytest.raises(ValueError, match="in use by another"):
        ReviewStore(served.folders.reviews, ".nii.gz")


def test_a_mask_that_is_there_already_is_never_replaced(served, snapshot):
    target = served.folders.reviews / "ann" / f"{CASE}.nii.gz"
    target.parent.mkdir()
    target.write_bytes((served.folders.predictions / f"{CASE}.nii.gz").read_bytes())
    ann = served.browser("ann")
    before = snapshot(served.folders.reviews)
    assert ann.save(CASE, 0).status_code == 409
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 0}).status_code == 409
    assert snapshot(served.folders.reviews) == before


def test_answers_to_other_predictions_are_not_mixed_in(tmp_path, serve):
    folders = write_volumes(tmp_path)
    first = serve(folders)
    first.browser("ann").save(CASE, 0)
    first.review.store.close()
    route = folders.predictions / "deferral" / "route"
    (route / f"{CASE}.nii.gz").write_bytes((route / "case_b.nii.gz").read_bytes())
    model = folders.predictions / f"{CASE}.nii.gz"
    second = serve(folders)
    reader = second.review.study.predictions.files.reader
    values, properties = reader.read_seg(str(model))
    reader.write_seg(1 - values[0], str(model), properties)
    second.review.store.close()
    answer = serve(folders).browser("ann").save(CASE, 1, key="z" * 16)
    assert answer.status_code == 409
    assert "predictions have changed" in answer.json()["reason"]


@contextlib.contextmanager
def running_command(folders, port, folder):
    """The command in a process of its own; gives it and the secret of ann."""
    options = ["-i", folders.predictions, "-images", folders.images, "-ref", folders.references]
    arguments = [*options, "-o", folders.reviews, "--port", port]
    with OwnProcess(main, [str(argument) for argument in arguments], folder=folder) as process:
        found = re.compile(r"^ *ann\s.*#enter=(\S+)$", re.MULTILINE)
        wait_for(lambda: found.search(process.printed), alive=process.runs)
        yield process, found.search(process.printed)[1]


def sign_in(port, secret):
    origin = f"http://127.0.0.1:{port}"
    client = httpx.Client(base_url=origin, headers={"origin": origin, "x-review-person": "ann"}, trust_env=False)

    def entered():
        try:
            answer = client.post("/api/enter", json={"secret": secret})
        except httpx.ConnectError:
            return False
        assert answer.status_code == 200
        return True

    wait_for(entered)
    wait_for(lambda: len(set(client.get("/api/progress").json().values())) == 1)
    return client


def test_a_killed_server_has_kept_all_that_it_confirmed(tmp_path):
    folders = write_volumes(tmp_path)
    port = free_port()
    random = np.random.default_rng(0)
    revision, expected = 0, None
    for _ in range(3):
        with running_command(folders, port, tmp_path) as (process, secret):
            client = sign_in(port, secret)
            details = client.get(f"/api/cases/{CASE}").json()
            # A save that was cut off may have been kept without an answer, but never half of it.
            assert details["revision"] in (revision, revision + 1)
            labels = np.frombuffer(client.get(f"/api/cases/{CASE}/volumes/labels").content, dtype=np.uint8)
            if expected is not None:
                assert any(np.array_equal(labels, version) for version in expected)
            regions = np.frombuffer(client.get(f"/api/cases/{CASE}/volumes/regions").content, dtype=np.uint16)
            voxels, revision, current = np.flatnonzero(regions), details["revision"], labels.copy()
            timer = subprocess.Popen(["sh", "-c", f"sleep {random.uniform(0.1, 0.4):.2f}; kill -9 {process.pid}"])
            while True:
                new = current.copy()
                new[voxels] = random.integers(0, 2, voxels.size)
                runs = [[int(voxel), 1, int(new[voxel])] for voxel in voxels]
                body = {"revision": revision, "runs": runs, "done": [], "key": os.urandom(8).hex(), "seconds": 0}
                expected = (current, new)
                try:
                    answer = client.post(f"/api/cases/{CASE}/save", json=body)
                except httpx.TransportError:
                    break
                assert answer.status_code == 200
                revision, current = answer.json()["revision"], new
            client.close()
            timer.wait()
            process.wait()
    assert revision > 3
    entries = [json.loads(line) for line in (folders.reviews / ".review" / "log.jsonl").read_text().splitlines()]
    saved = [entry["revision"] for entry in entries if entry["event"] == "saved"]
    assert set(range(1, revision + 1)) <= set(saved)


def test_an_upload_that_breaks_off_changes_nothing(tmp_path, snapshot):
    folders = write_volumes(tmp_path)
    port = free_port()
    with running_command(folders, port, tmp_path) as (_, secret):
        client = sign_in(port, secret)
        before = snapshot(folders.reviews)
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = (
                f"POST /api/cases/{CASE}/upload?revision=0&key={'k' * 16}&name=m.nii.gz HTTP/1.1\r\n"
                f"Host: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\nX-Review-Person: ann\r\n"
                f"Cookie: {cookie}\r\nContent-Length: 5000\r\n\r\n"
            )
            connection.sendall(head.encode() + b"x" * 100)
        time.sleep(0.3)
        assert client.get("/api/me").status_code == 200
        client.close()
        assert snapshot(folders.reviews) == before
