"""Measures the processor time of the review of many large cases: its start, and opening a case.

    python measurements/review_start.py                # 200 cases of 100x512x512 voxels
    python measurements/review_start.py -cases 50

All cases are links to one, a CT of 16 bits with two regions. Measured are the seconds that the server's process
computes until the links are printed (nearly all of it is loading PyTorch and nnU-Net), and what it then computes until
the first case is listed, to open a case that it has in memory, and to open one that it reads. Results are written to
measurements/results/review_start.json with the machine and the date.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from large_case import RESULTS, script
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_deferral import maps
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.review.access import Person
from nnunetv2_deferral.review.service import Review
from nnunetv2_deferral.review.store import ReviewStore
from nnunetv2_deferral.review.study import Study
from nnunetv2_deferral.settings import resolve_settings

SHAPE = (100, 512, 512)
EXPERTS = ("ann", "bob")
STUFF = {"spacing": (0.7, 0.7, 2.5), "origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}
PROPERTIES = {"sitk_stuff": STUFF, "spacing": [2.5, 0.7, 0.7]}
PORT = 18765


def write_cases(root: Path, number: int) -> None:
    """Write one case and links to it."""
    for folder in ("images", "in"):
        (root / folder).mkdir()
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    distance = ((z - 50) / 20) ** 2 + ((y - 250) / 60) ** 2 + ((x - 250) / 70) ** 2
    reference = (distance < 1).astype(np.uint8)
    model = np.roll(reference, 4, axis=2)
    route = np.where(reference != model, np.where(x < 250, 1, 2), 0).astype(np.uint8)
    probability = np.exp(-distance).astype(np.float32)
    identity = maps.ModelIdentity(
        dataset="Dataset999_Many", plans="nnUNetPlans", configuration="3d_fullres", trainer="T", experts=EXPERTS
    )
    folder = maps.DeferralFolder(
        folder=root / "in",
        file_ending=".nii.gz",
        writer=SimpleITKIO(),
        model=identity,
        settings=resolve_settings({"experts": list(EXPERTS)}),
    )
    first = "case_000"
    folder.write(first, RoutingMaps(route, probability, np.maximum(route, 1), probability * 1e-6), PROPERTIES)
    SimpleITKIO().write_seg(model, str(root / "in" / f"{first}.nii.gz"), PROPERTIES)
    noise = np.random.default_rng(0).normal(0, 15, SHAPE)
    image = sitk.GetImageFromArray((100.0 * reference + 40 + noise).astype(np.int16))
    image.SetSpacing(STUFF["spacing"])
    sitk.WriteImage(image, str(root / "images" / f"{first}_0000.nii.gz"))
    content = {"labels": {"background": 0, "lesion": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (root / "in" / "dataset.json").write_text(json.dumps(content | {"numTraining": 1}))
    for file in sorted(root.rglob(f"{first}*")):
        for place in range(1, number):
            other = file.with_name(file.name.replace(first, f"case_{place:03}"))
            if file.suffix == ".json":
                shutil.copyfile(file, other)
            else:
                os.link(file, other)


def seconds_until_links(root: Path) -> float:
    """Seconds of processor time of the server until it has printed its links."""
    words = ["-i", "in", "-images", "images", "-o", "reviews", "--port", str(PORT)]
    with subprocess.Popen(
        [*script("review"), *words], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        for line in server.stdout or ():
            if "Ctrl+C" in line:
                break
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        server.terminate()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_case(review: Review, case: str) -> None:
    """Do what the page asks of the server to open a case."""
    person = Person(EXPERTS[0], EXPERTS[0])
    review.details(person, case)
    for which in ("image0", "model", "regions", "labels"):
        content = review.volume(person, case, which).tobytes()
        if which != "image0":
            gzip.compress(content, compresslevel=1)


def measure(root: Path) -> dict[str, float]:
    """Seconds of processor time."""
    took = {"links": seconds_until_links(root)}

    def timed(what: str, work: Callable[[], Any]) -> None:
        before = time.process_time()
        work()
        took[what] = time.process_time() - before

    predictions = PredictionFolder.open(root / "in")
    study = Study(predictions, root / "images", None)
    store = ReviewStore(root / "answers", ".nii.gz")
    review = Review(study, store)
    first, second = predictions.cases[:2]
    timed("first_listed", lambda: study.read([first]))
    timed("opened_from_memory", lambda: open_case(review, first))
    study._infos[second] = replace(
        study.info(first), name=second, images=study._images[second]
    )  # as a case of a worklist is, before it has been read
    timed("read_and_opened", lambda: open_case(review, second))
    store.close()
    return {what: round(seconds, 2) for what, seconds in took.items()}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-cases", type=int, default=200, help="number of cases")
    number = parser.parse_args().cases
    with tempfile.TemporaryDirectory(prefix="review_start_") as name:
        write_cases(Path(name), number)
        found = measure(Path(name))
    machine = {"device": f"CPU, {os.cpu_count()} cores", "machine": platform.machine()}
    content = {"cases": number, "shape": SHAPE, "cpu_seconds": found, "machine": machine}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(content | {"date": date.today().isoformat()}, indent=4)
    (RESULTS / "review_start.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
