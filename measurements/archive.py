"""Measures what an archive takes: two processes against one, the memory of a worklist, and the start of a review.

    python measurements/archive.py                 # 300 volumes of 32 x 128 x 128; a list from 10^5 cases
    python measurements/archive.py -cases 40 -listed 10000
    python measurements/archive.py -reviewed 10000          # only the start of a review of so many small cases

Two processes should be at least 1.6 times as fast as one, starting them included. The list is chosen from 20 regions in
each case, with the entries of all cases in memory; it must not take more than 2 GiB. A review of 10^4 listed cases
should start within 5 seconds once nnU-Net is imported. Results are
written to measurements/results/archive.json and archive_review.json with the machine and the date.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import httpx
import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands.worklist import write_worklist
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.evaluation.folders import evaluate_cases
from nnunetv2_deferral.evaluation.inputs import open_inputs
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.settings import resolve_settings
from nnunetv2_deferral.worklist.items import JSON_NAME
from nnunetv2_deferral.worklist.table import ROW, choose_rows, find_regions, totals

RESULTS = Path(__file__).parent / "results"
SHAPE, DISTINCT = (32, 128, 128), 200
LIMIT_MIB, SPEED_UP, START_SECONDS = 2048, 1.6, 5
STUFF = {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}


def write_predictions(root: Path, number: int) -> None:
    """Predictions and references of so many volumes."""
    settings, writer = resolve_settings({"num_experts": 2}), SimpleITKIO()
    identity = maps.ModelIdentity(
        dataset="Dataset999_Many", plans="nnUNetPlans", configuration="2d", trainer="T", experts=settings.expert_names
    )
    folder = maps.DeferralFolder(
        folder=root / "in", file_ending=".nii.gz", writer=writer, model=identity, settings=settings
    )
    (root / "labels").mkdir()
    (root / "in").mkdir()
    content = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (root / "in" / "dataset.json").write_text(json.dumps(content | {"numTraining": 1}))
    properties = {"sitk_stuff": STUFF, "spacing": [1.0, 1.0, 1.0]}
    generator = np.random.default_rng(0)
    for place in range(number):
        reference = np.zeros(SHAPE, dtype=np.uint8)
        reference[8:24, 40:90, 30 : 80 + place % 20] = 1
        model = np.roll(reference, place % 3, axis=2)
        near = np.clip((model != reference) * 0.5 + generator.random(SHAPE, dtype=np.float32) * 0.4, 0, 1)
        route = np.where(near > 0.85, 1 + place % 2, 0).astype(np.uint8)
        made = RoutingMaps(route, near.astype(np.float32), np.ones(SHAPE, np.uint8), near.astype(np.float32) / 1000)
        folder.write(f"case_{place:05d}", made, properties)
        for where, mask in (("in", model), ("labels", reference)):
            writer.write_seg(mask, str(root / where / f"case_{place:05d}.nii.gz"), properties)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    began = perf_counter()
    work()
    return round(perf_counter() - began, 2)


def listed_from(number: int) -> dict[str, float]:
    """Seconds and peak memory of choosing a list from so many cases; run in a process of its own."""
    entry = {"deferral_rate": 0.01, "share": {"ann": 0.0, "bob": 0.01}, "largest_gain": 0.1, "expected_gain": 0.01}
    index = {f"case_{place:06d}": dict(entry, share=dict(entry["share"])) for place in range(number)}
    generator = np.random.default_rng(0)
    table = np.zeros(20 * number, dtype=ROW)
    table["case"] = np.repeat(np.arange(number), 20)
    table["number"] = np.tile(np.arange(1, 21), number)
    table["expert"] = 1
    table["expected_gain"] = generator.random(len(table))
    table["minutes"] = 0.5 + generator.random(len(table))
    took = seconds(lambda: (choose_rows(table, max_regions=10_000, max_minutes=5_000), totals(table)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cases": len(index), "regions": len(table), "seconds": took, "peak_mib": round(peak)}


def write_small_predictions(root: Path, number: int) -> None:
    """Predictions, images and a worklist of so many volumes of 4 x 32 x 32, with one region each.

    Beyond the first 200, files and rows of a case are those of one of them.
    """
    settings, writer = resolve_settings({"experts": ["ann", "bob"]}), SimpleITKIO()
    identity = maps.ModelIdentity(
        dataset="Dataset999_Many", plans="nnUNetPlans", configuration="2d", trainer="T", experts=settings.expert_names
    )
    (root / "in").mkdir()
    (root / "images").mkdir()
    folder = maps.DeferralFolder(
        folder=root / "in", file_ending=".nii.gz", writer=writer, model=identity, settings=settings
    )
    content = {"labels": {"background": 0, "organ": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    (root / "in" / "dataset.json").write_text(json.dumps(content | {"numTraining": 1}))
    properties = {"sitk_stuff": STUFF, "spacing": [1.0, 1.0, 1.0]}
    generator, shape = np.random.default_rng(0), (4, 32, 32)
    model = np.zeros(shape, np.uint8)
    model[:, 8:20, 8:20] = 1
    for place in range(min(number, DISTINCT)):
        route = np.zeros(shape, np.uint8)
        row, column = generator.integers(2, 20, 2)
        route[1:3, row : row + 4, column : column + 4] = 1 + place % 2
        gain = np.where(route > 0, 1e-3 * generator.random(), 0).astype(np.float32)
        case = f"case_{place:05d}"
        writer.write_seg(model, str(root / "in" / f"{case}.nii.gz"), properties)
        writer.write_seg(model, str(root / "images" / f"{case}_0000.nii.gz"), properties)
        made = RoutingMaps(route, (route > 0).astype(np.float32), np.maximum(route, 1), gain)
        folder.write(case, made, properties)
    write_worklist(root / "in", root / "list", images=None)
    for file in [file for file in root.rglob("case_*") if file.is_file()]:
        for same in range(int(file.name[5:10]) + DISTINCT, number, DISTINCT):
            os.link(file, file.with_name(f"case_{same:05d}{file.name[10:]}"))
    listed = json.loads((root / "list" / JSON_NAME).read_text())
    rows = (
        row | {"case": f"case_{same:05d}"}
        for row in listed["regions"]
        for same in range(int(row["case"][5:]), number, DISTINCT)
    )
    listed["regions"] = [row | {"rank": rank} for rank, row in enumerate(rows, start=1)]
    write_json(listed, root / "list" / JSON_NAME)


def review_start(number: int) -> dict[str, float]:
    """Seconds until a review of so many listed cases is served, and of its first two requests."""
    with tempfile.TemporaryDirectory(prefix="archive_review_") as name:
        root = Path(name)
        write_small_predictions(root, number)
        port, found = 8771, {}
        command = ["-i", root / "in", "-images", root / "images", "-worklist", root / "list", "-o", root / "reviews"]
        executable = Path(sys.executable).parent / "nnUNetv2_deferral_review"
        imports = seconds(
            lambda: subprocess.run([sys.executable, "-c", "import nnunetv2_deferral.review.service"], check=True)
        )
        begun = perf_counter()
        server = subprocess.Popen(
            [str(part) for part in (executable, *command, "--port", port)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert server.stdout is not None
            link = next(line.split()[1] for line in server.stdout if line.startswith("  ann"))
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    client.get("/health")
                    break
                sleep(0.05)
            found["seconds_to_serve"] = round(perf_counter() - begun, 2)
            origin = {"origin": f"http://127.0.0.1:{port}", "x-review-person": "ann"}
            client.post("/api/enter", json={"secret": link.partition("=")[2]}, headers=origin).raise_for_status()
            found["seconds_of_list"] = seconds(lambda: client.get("/api/cases", headers=origin).raise_for_status())
            case = client.get("/api/cases", headers=origin).json()[-1]["case"]
            path = f"/api/cases/{case}"
            found["seconds_of_case"] = seconds(lambda: client.get(path, headers=origin).raise_for_status())
        finally:
            server.terminate()
            server.wait()
    return {"cases": number, "seconds_of_imports": imports, **found}


def of_machine() -> dict[str, Any]:
    """The machine and the date."""
    return {
        "machine": {"device": f"CPU, {os.cpu_count()} cores", "machine": platform.machine()},
        "date": date.today().isoformat(),
    }


def main() -> None:
    """Measure and write the results; exits with an error if a limit is not met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-cases", type=int, default=300, help="volumes to evaluate")
    parser.add_argument("-listed", type=int, default=100_000, help="cases to list regions of")
    parser.add_argument("-reviewed", type=int, default=0, help="only measure the start of a review of so many cases")
    given = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if given.reviewed:
        started = {**review_start(given.reviewed), "limit_seconds": START_SECONDS, **of_machine()}
        (RESULTS / "archive_review.json").write_text(json.dumps(started, indent=4) + "\n")
        print(started)
        if started["seconds_to_serve"] - started["seconds_of_imports"] > START_SECONDS:
            raise SystemExit(f"a review must start within {START_SECONDS} seconds after the imports")
        return
    with get_context("spawn").Pool(1) as pool:
        listed = pool.apply(listed_from, (given.listed,))
    print(listed, flush=True)
    found: dict[str, dict[str, float]] = {"evaluate": {}, "worklist": {}}
    with tempfile.TemporaryDirectory(prefix="archive_") as name:
        root = Path(name)
        write_predictions(root, given.cases)
        inputs = open_inputs(root / "in", root / "labels")
        folder = PredictionFolder.open(root / "in")
        for number, key in ((1, "one"), (2, "two")):
            found["evaluate"][key] = seconds(
                lambda number=number: evaluate_cases(inputs, folder.cases, num_processes=number)
            )
            found["worklist"][key] = seconds(
                lambda number=number: find_regions(folder, folder.cases, WorkTime(), num_processes=number)
            )
            print(found, flush=True)
    for times in found.values():
        times["speed_up"] = round(times["one"] / times["two"], 2)
    content = {
        "volumes": given.cases,
        "shape": SHAPE,
        "processes": found,
        "list": listed,
        "limit_mib": LIMIT_MIB,
        **of_machine(),
    }
    (RESULTS / "archive.json").write_text(json.dumps(content, indent=4) + "\n")
    if listed["peak_mib"] > LIMIT_MIB or found["evaluate"]["speed_up"] < SPEED_UP:
        raise SystemExit(f"more than {LIMIT_MIB} MiB, or less than {SPEED_UP} times as fast: {content}")


if __name__ == "__main__":
    main()
