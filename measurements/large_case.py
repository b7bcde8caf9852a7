"""Measures time and peak memory of the evaluation and of the review server on one large case.

    python measurements/large_case.py                    # 300x512x512 and half of it
    python measurements/large_case.py -depths 75

The case has blocks of labels, a model with errors, and one expert who is asked about a box in every fourth slice.
Evaluated is with the command, in a process of its own; of the review server, the page's requests are made: case,
volumes, a save of the whole box, and its submission. Results are written to measurements/results/ with the machine and
the date; neither may take more than 3 GiB.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_deferral import maps
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.settings import resolve_settings

RESULTS = Path(__file__).parent / "results"
LIMIT_MIB = 3 * 1024
EXPERT = "ann"
STUFF = {"spacing": (0.7, 0.7, 1.0), "origin": (0.0, 0.0, 0.0), "direction": (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)}
PROPERTIES = {"sitk_stuff": STUFF, "spacing": [1.0, 0.7, 0.7]}


def write_case(root: Path, depth: int) -> int:
    """Write prediction, image, reference and the expert's answer; returns the number of voxels asked about."""
    shape = (depth, 512, 512)
    generator = np.random.default_rng(0)
    reference = np.repeat(np.repeat(generator.integers(0, 3, (depth, 16, 16), np.uint8), 32, 1), 32, 2)
    model = reference.copy()
    model[:, 100:140] = (model[:, 100:140] + 1) % 3
    route = np.zeros(shape, np.uint8)
    route[::4, 90:150, 100:200] = 1
    probability = generator.random(shape, dtype=np.float32)
    for folder in ("images", "labels", f"experts/{EXPERT}", "in"):
        (root / folder).mkdir(parents=True)
    identity = maps.ModelIdentity(
        dataset="Dataset999_Large", plans="nnUNetPlans", configuration="3d_fullres", trainer="T", experts=(EXPERT,)
    )
    folder = maps.DeferralFolder(
        folder=root / "in",
        file_ending=".nii.gz",
        writer=SimpleITKIO(),
        model=identity,
        settings=resolve_settings({"experts": [EXPERT]}),
    )
    folder.write("case", RoutingMaps(route, probability, np.ones(shape, np.uint8), probability * 1e-6), PROPERTIES)
    for array, file in ((model, "in/case"), (reference, "labels/case"), (reference, f"experts/{EXPERT}/case")):
        SimpleITKIO().write_seg(array, str(root / f"{file}.nii.gz"), PROPERTIES)
    image = sitk.GetImageFromArray((model.astype(np.int16) * 200 + 40) - 1000)
    image.SetSpacing(STUFF["spacing"])
    sitk.WriteImage(image, str(root / "images" / "case_0000.nii.gz"))
    labels = {"background": 0, "rim": 1, "core": 2}
    content = {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 1}
    (root / "in" / "dataset.json").write_text(json.dumps(content))
    return int(route.sum())


def script(name: str) -> list[str]:
    """The command of a module."""
    return [sys.executable, "-c", f"import sys; from nnunetv2_deferral.commands.{name} import main; main(sys.argv[1:])"]


def peak_mib(process: subprocess.Popen[str]) -> float:
    """The peak memory of a process so far; 0 once it has ended."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def timed_evaluation(root: Path) -> dict[str, float]:
    """Seconds and peak memory of the evaluation."""
    begin, peak = time.monotonic(), 0.0
    words = ["-i", "in", "-ref", "labels", "-experts", "experts", "-o", "evaluated"]
    with subprocess.Popen([*script("evaluate"), *words], cwd=root, stdout=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:
            peak = max(peak, peak_mib(process))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the evaluation failed with exit code {process.returncode}")
    return {"seconds": round(time.monotonic() - begin, 1), "peak_mib": round(peak)}


def timed_review(root: Path) -> dict[str, Any]:
    """Seconds of the page's requests and the server's peak memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-i", "in", "-images", "images", "-ref", "labels", "-o", "reviews", "--port", str(port)]
    begin = time.monotonic()
    server = subprocess.Popen([*script("review"), *words], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        secret = ""
        for line in server.stdout or ():
            if found := re.search(rf"{EXPERT}\s.*#enter=(\S+)", line):
                secret = found[1]
            if "Ctrl+C" in line:
                break
        took = {"start": time.monotonic() - begin}
        host = f"127.0.0.1:{port}"
        headers = {"Host": host, "Origin": f"http://{host}", "X-Review-Person": EXPERT}

        def request(what: str, method: str, path: str, content: Any = None) -> tuple[bytes, Any]:
            start = time.monotonic()
            body = None if content is None else json.dumps(content)
            while True:
                connection = http.client.HTTPConnection(host, timeout=600)
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                said = answer.read()
                took[what] = time.monotonic() - start
                if answer.status != 503:  # the case is still being read; the page waits, too
                    break
                connection.close()
                time.sleep(0.5)
            if answer.status != 200:
                raise SystemExit(f"{path}: {answer.status} {said[:300]!r}")
            connection.close()
            return said, answer

        for _ in range(100):
            try:
                _, entered = request("enter", "POST", "/api/enter", {"secret": secret})
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        headers["Cookie"] = (entered.getheader("set-cookie") or "").split(";")[0]
        details = json.loads(request("case", "GET", "/api/cases/case")[0])
        for volume in ("image0", "model", "regions", "labels"):
            request(volume, "GET", f"/api/cases/case/volumes/{volume}")
        depth = details["shape"][0]
        runs = [[(z * 512 + y) * 512 + 100, 100, 1] for z in range(0, depth, 4) for y in range(90, 150)]
        done = [*range(1, len(details["regions"]) + 1)]
        save = {"runs": runs, "done": done, "seconds": 1}
        request("first save", "POST", "/api/cases/case/save", save | {"revision": 0, "key": "a" * 16})
        small = {"runs": runs[:1], "done": done, "seconds": 1, "revision": 1, "key": "b" * 16}
        request("next save", "POST", "/api/cases/case/save", small)
        request("submit", "POST", "/api/cases/case/submit", {"revision": 2})
        return {"seconds": {key: round(value, 2) for key, value in took.items()}, "peak_mib": round(peak_mib(server))}
    finally:
        server.terminate()
        server.communicate(timeout=60)


def main() -> None:
    """Measure and write the results; exits with an error if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-depths", type=int, nargs="+", default=[150, 300], help="slices of 512 x 512 voxels")
    sizes = {}
    for depth in parser.parse_args().depths:
        with tempfile.TemporaryDirectory(prefix="large_case_") as name:
            root = Path(name)
            asked = write_case(root, depth)
            found = {"asked_voxels": asked, "evaluate": timed_evaluation(root), "review": timed_review(root)}
            sizes[f"{depth}x512x512"] = found
            print(depth, json.dumps(found), flush=True)
    machine = {
        "device": f"CPU, {os.cpu_count()} cores",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    content = {"sizes": sizes, "limit_mib": LIMIT_MIB, "machine": machine, "date": date.today().isoformat()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "large_case.json").write_text(json.dumps(content, indent=4) + "\n")
    peaks = [found[what]["peak_mib"] for found in sizes.values() for what in ("evaluate", "review")]
    if max(peaks) > LIMIT_MIB:
        raise SystemExit(f"peak memory {max(peaks)} MiB exceeds the limit of {LIMIT_MIB} MiB")


if __name__ == "__main__":
    main()
