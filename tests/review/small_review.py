"""Small predictions to review, made as `maps.DeferralFolder` makes them, and a client that acts as a browser would.

Without the packages of the extra [review], the modules that import this are skipped.
"""

import contextlib
import json
import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from made_once import made_once
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io

pytest.importorskip("starlette", reason="the extra [review] is not installed")
pytest.importorskip("httpx", reason="httpx is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra [review] is not installed")

from starlette.testclient import TestClient  # noqa: E402
from waiting import wait_for  # noqa: E402

from nnunetv2_deferral import maps  # noqa: E402
from nnunetv2_deferral.decision.decide import RoutingMaps  # noqa: E402
from nnunetv2_deferral.predictions import PredictionFolder  # noqa: E402
from nnunetv2_deferral.review.access import Access, Address  # noqa: E402
from nnunetv2_deferral.review.server import create_app  # noqa: E402
from nnunetv2_deferral.review.service import Blinding, Review  # noqa: E402
from nnunetv2_deferral.review.store import ReviewStore  # noqa: E402
from nnunetv2_deferral.review.study import Study  # noqa: E402
from nnunetv2_deferral.settings import resolve_settings  # noqa: E402
from nnunetv2_deferral.worklist.reading import Worklist  # noqa: E402

EXPERTS = ("ann", "bob")
PORT = 8765
ORIGIN = f"http://127.0.0.1:{PORT}"
OBLIQUE = (0.0, -0.98, 0.198997, 1.0, 0.0, 0.0, 0.0, 0.198997, 0.98)
GEOMETRY = {"sitk_stuff": {"spacing": (0.7, 0.9, 2.5), "origin": (-11.0, 3.5, 40.0), "direction": OBLIQUE}}


@dataclass(frozen=True)
class Folders:
    """Where the inputs of a review are."""

    predictions: Path
    images: Path
    references: Path
    reviews: Path


def volume_arrays(depth=6, height=20, width=24):
    """Image, model's mask, route and reference (Z, Y, X), in the file's order: two regions for ann, one for bob."""
    z, y, x = np.mgrid[:depth, :height, :width]
    reference = ((y - 9) ** 2 + (x - 10) ** 2 < 36).astype(np.uint8)
    model = np.roll(reference, 2, axis=2)
    model[0] = 0
    route = np.zeros_like(reference)
    route[2:4, 4:8, 5:9] = 1
    route[2:5, 14:16, 8:13] = 1
    route[1:5, 6:12, 16:20] = 2
    image = (1000 * reference.astype(int) - 500 + 10 * z + y).astype(np.int16)
    return image, model, route, reference


def write_case(folders, case, *, image, model, route, reference, ending, writer, properties, gain=None):
    """Write one case to all folders; without a gain, all that is asked about gains the same."""
    model_identity = maps.ModelIdentity(
        dataset="Dataset999_Test", plans="nnUNetPlans", configuration="2d", trainer="T", experts=EXPERTS
    )
    folders.images.mkdir(exist_ok=True)
    folders.references.mkdir(exist_ok=True)
    folders.predictions.mkdir(exist_ok=True)
    if ending == ".png":
        io.imsave(folders.images / f"{case}_0000.png", image, check_contrast=False)
    else:
        file = sitk.GetImageFromArray(image)
        for name in ("Spacing", "Origin", "Direction"):
            getattr(file, f"Set{name}")(properties["sitk_stuff"][name.lower()])
        sitk.WriteImage(file, str(folders.images / f"{case}_0000{ending}"))
    writer.write_seg(model, str(folders.predictions / f"{case}{ending}"), properties)
    writer.write_seg(reference, str(folders.references / f"{case}{ending}"), properties)
    deferral = maps.DeferralFolder(
        folder=folders.predictions,
        file_ending=ending,
        writer=writer,
        model=model_identity,
        settings=resolve_settings({"experts": list(EXPERTS)}),
    )
    gains = np.where(route > 0, 0.001 if gain is None else gain, 0).astype(np.float32)
    deferral.write(case, RoutingMaps(route, (route > 0).astype(np.float32), np.maximum(route, 1), gains), properties)


def write_dataset_json(folders, ending, labels=None):
    """The dataset.json that nnUNetv2_predict leaves beside the masks."""
    content = {
        "labels": labels or {"background": 0, "nodule": 1},
        "channel_names": {"0": "CT"},
        "file_ending": ending,
        "numTraining": 1,
    }
    (folders.predictions / "dataset.json").write_text(json.dumps(content))


def make_folders(root):
    """Folders under `root`."""
    return Folders(*(root / name for name in ("predictions", "images", "labels", "reviews")))


def gain_of(regions):
    """A map of the gains of a voxel in ann's two regions and in bob's, None for none."""
    if regions is None:
        return None
    route, gain = volume_arrays()[2], np.zeros((6, 20, 24), dtype=np.float32)
    gain[:, :12][route[:, :12] == 1], gain[:, 12:][route[:, 12:] == 1], gain[route == 2] = regions
    return gain


def write_volumes(root, *, cases=("case_a", "case_b"), labels=None, properties=None, gains=()):
    """Oblique .nii.gz volumes; `gains` are those of :func:`gain_of` by case."""
    how = (list(cases), labels, properties or GEOMETRY, dict(gains))
    made_once(root, ("volumes", how), lambda made: _write_volumes(make_folders(made), *how))
    return make_folders(root)


def _write_volumes(folders, cases, labels, properties, gains):
    names = ("image", "model", "route", "reference")
    for case in cases:
        arrays = dict(zip(names, volume_arrays(), strict=True))
        write_case(folders, case, **arrays, ending=".nii.gz", writer=SimpleITKIO(), properties=properties,
                   gain=gain_of(gains.get(case)))  # fmt: skip
    write_dataset_json(folders, ".nii.gz", labels)


def write_pictures(root, *, colour=False):
    """One .png."""
    folders = make_folders(root)
    image, model, route, reference = (array[3:4] for array in volume_arrays())
    picture = (image[0] // 8 + 100).astype(np.uint8)
    if colour:
        picture = np.stack([picture, picture // 2, picture // 3], axis=-1)
    arrays = {"image": picture, "model": model, "route": route, "reference": reference}
    write_case(folders, "photo", **arrays, ending=".png", writer=NaturalImage2DIO(), properties={})
    write_dataset_json(folders, ".png")
    return folders


def open_review(folders, *, references=True, worklist=None, rules=None, **blinding):
    """The review of some folders; with rules, of two readers for each region."""
    predictions = PredictionFolder.open(folders.predictions)
    listed = worklist and Worklist.open(worklist, predictions)
    study = Study(predictions, folders.images, folders.references if references else None, listed, 2 if rules else 1)
    store = ReviewStore(folders.reviews, predictions.files.file_ending)
    try:
        review = Review(study, store, Blinding(**blinding), rules)
        review.check_begun()
        study.read(study.waiting)
    except BaseException:
        store.close()
        raise
    return review


class Browser:
    """A browser with a cookie jar of its own."""

    def __init__(self, app, access):
        self._client = TestClient(app, base_url=ORIGIN, raise_server_exceptions=False)
        self._secrets = {person.name: link.partition("=")[2] for person, link in access.links()}
        self.name = ""

    def enter(self, name):
        """Open someone's link."""
        self.name = name
        assert self.post("/api/enter", json={"secret": self._secrets[name]}).status_code == 200
        return self

    def get(self, path, **options):
        headers = {"x-review-person": self.name} | options.pop("headers", {})
        return self._client.get(path, headers=headers, **options)

    def post(self, path, **options):
        headers = {"origin": ORIGIN, "x-review-person": self.name} | options.pop("headers", {})
        return self._client.post(path, headers=headers, **options)

    def save(self, case, revision, runs=(), done=(), key="k" * 16, seconds=1):
        content = {"revision": revision, "runs": list(runs), "done": list(done), "key": key, "seconds": seconds}
        return self.post(f"/api/cases/{case}/save", json=content)

    def volume(self, case, which, dtype=np.uint8):
        answer = self.get(f"/api/cases/{case}/volumes/{which}")
        assert answer.status_code == 200, answer.text
        return np.frombuffer(answer.content, dtype=dtype)


@dataclass
class Served:
    """A review that is being served."""

    folders: Folders
    review: Review
    app: object
    access: Access

    def browser(self, name=None):
        browser = Browser(self.app, self.access)
        return browser.enter(name) if name else browser


def serve_folders(folders, *, log=None, of_access=None, **options):
    """A review of some folders and its application; to be closed by its store."""
    of_access = {"address": Address(port=PORT)} | (of_access or {})
    review = open_review(folders, **options)
    access = Access(review.store.hidden, review.people, **of_access)
    try:
        return Served(folders, review, create_app(review, access, log), access)
    except BaseException:
        review.store.close()
        raise


def free_port():
    """A port for a server that is to be started; none that the system gives to whoever asks for any."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("there is no free port")


@contextlib.contextmanager
def running(folders, **options):
    """A real server on a free port; gives its address and everyone's link."""
    listening = socket.create_server(("127.0.0.1", 0))  # held from now on, so that no other test gets the port
    port = listening.getsockname()[1]
    review = open_review(folders, **options)
    access = Access(review.store.hidden, review.people, Address(port=port))
    server = uvicorn.Server(uvicorn.Config(create_app(review, access), log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started, alive=thread.is_alive)
    try:
        yield {person.name: link for person, link in access.links()}
    finally:
        server.should_exit = True
        thread.join(10)
        review.store.close()
