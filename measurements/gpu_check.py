"""Runs deferral on a GPU beside stock nnU-Net, on generated data, and writes what it costs there.

    make gpu-check                                                            # nothing else is needed
    python measurements/gpu_check.py -device cpu -size 24 -n 2 -o FILE        # tiny, to try the script

Volumes of 144^3 voxels with three labels are generated, planned by nnU-Net (patches of 128^3), and measured by
overhead.py with torch.compile on and off: training step, loader, prediction and peak memory. In addition, on the same
patches: drawing three experts with each error model, and the two largest logits as the head finds them, relative to
topk. Last the export of a resampled case by export.py, which takes place on the CPU. Results are written to
measurements/results/gpu_check.json, or to FILE, with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

HERE = Path(__file__).parent
DATASET, CONFIGURATION = "Dataset999_GpuCheck", "3d_fullres"


def write_dataset(folder: Path, size: int, cases: int = 5) -> None:
    """A raw dataset of nested ellipsoids in noise."""
    import numpy as np
    import SimpleITK as sitk

    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij"))
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for case in range(cases):
        random = np.random.default_rng(case)
        distance = np.sqrt(((places - random.uniform(-0.2, 0.2, (3, 1, 1, 1))) ** 2).sum(0))
        labels = (distance < 0.6).astype(np.uint8) + (distance < 0.3)
        image = (labels + random.normal(0, 0.5, labels.shape)).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "imagesTr" / f"case_{case}_0000.nii.gz"))
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "labelsTr" / f"case_{case}.nii.gz"))
    content = {
        "channel_names": {"0": "image"},
        "labels": {"background": 0, "outer": 1, "inner": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def run(*command: object, **environment: str) -> None:
    """Run a command and stop if it fails."""
    print("+", *command, *(f"[{name}={value}]" for name, value in environment.items()), flush=True)
    subprocess.run(list(map(str, command)), check=True, env=os.environ | environment)


def seconds(function: Callable[[], object], device: str, repeats: int) -> float:
    """Median seconds of a function on the device, after one call that does not count."""
    import torch

    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - start)
    return median(times[1:])


def time_parts(preprocessed: Path, device: str, repeats: int) -> dict[str, float]:
    """Seconds of drawing experts, by error model, and of the two largest logits and topk, on batches as planned."""
    import torch

    from nnunetv2_deferral.expert_sim.batches import simulate_batch
    from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES, expert_set, with_error_model
    from nnunetv2_deferral.network import _two_largest

    shape = tuple(planned(preprocessed))
    places = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, side) for side in shape[1:]], indexing="ij"))
    distance = places.square().sum(0).sqrt()
    labels = ((distance < 0.6).short() + (distance < 0.3)).expand(shape).to(device)
    generator = torch.Generator(device).manual_seed(0)
    found = {}
    for model in ERROR_MODEL_NAMES:
        profiles = with_error_model(expert_set("standard", 3), model)
        draw = lambda profiles=profiles: simulate_batch(labels, profiles, (0, 1, 2), generator=generator)  # noqa: E731
        found[f"draw_{model}"] = seconds(draw, device, repeats)
    logits = torch.randn((shape[0], 3, *shape[1:]), device=device)
    found["two_largest"] = seconds(lambda: _two_largest(logits), device, repeats)
    found["topk"] = seconds(lambda: torch.topk(logits, 2, 1), device, repeats)
    return found


def planned(preprocessed: Path) -> list[int]:
    """The batch size and the edges of the patch."""
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())["configurations"][CONFIGURATION]
    return [plans["batch_size"], *plans["patch_size"]]


def save(file: Path, found: dict[str, Any]) -> None:
    """Write what was found so far, so that it is kept if a later part fails."""
    file.write_text(json.dumps(found, indent=4) + "\n")


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("-size", type=int, default=144, help="edge of the volumes in voxels")
    parser.add_argument("-n", type=int, default=10, help="number of measured steps")
    parser.add_argument("-o", type=Path, default=HERE / "results" / "gpu_check.json", help="file of the results")
    given = parser.parse_args()
    import torch

    from nnunetv2_deferral import trainers
    from nnunetv2_deferral.installed import versions

    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; to try the script, add -device cpu -size 24 -n 2")
    if not given.o.parent.is_dir():
        parser.error(f"the folder of {given.o} does not exist")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folders = {f"nnUNet_{kind}": str(work / kind) for kind in ("raw", "preprocessed", "results")}
        os.environ.update(folders, nnUNet_extTrainer=str(Path(trainers.__file__).parent))
        os.environ.update(nnUNet_n_proc_DA="1", nnUNet_def_n_proc="2")
        write_dataset(work / "raw" / DATASET, given.size)
        plan = ("-d", 999, "-c", CONFIGURATION, "-np", 2, "-npfp", 2)
        run(Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess"), *plan)
        found["patch and batch"] = planned(work / "preprocessed" / DATASET)
        found["steps"], found["versions"] = given.n, versions()
        for compiled in ("f", "t") if given.device == "cuda" else ("f",):  # nnU-Net compiles nothing on a CPU
            file = work / "overhead.json"
            options = ("-d", 999, "-c", CONFIGURATION, "-device", given.device, "-n", given.n, "-images", 2, "-o", file)
            run(sys.executable, HERE / "overhead.py", *options, nnUNet_compile=compiled)
            overhead = json.loads(file.read_text())
            found["compiled" if compiled == "t" else "not compiled"] = {
                key: overhead[key] for key in ("ratios", "measured") if key in overhead
            }
            found |= {key: overhead[key] for key in ("machine", "date")}
            save(given.o, found)
        parts = time_parts(work / "preprocessed" / DATASET, given.device, given.n)
        found["two_largest_by_topk"] = round(parts["two_largest"] / parts["topk"], 3)
        if given.device == "cuda":  # times of a CPU depend on the machine too much
            found["seconds"] = parts
        save(given.o, found)
        file = work / "export.json"
        shapes = ("-predicted", *[given.size * 5 // 4] * 3, "-image", *[given.size * 2] * 3)
        run(sys.executable, HERE / "export.py", *shapes, "-kinds", "deferral", "-o", file)
        found["export"] = json.loads(file.read_text())["ratios"]
    save(given.o, found)
    print(f"\n{given.o}\n{json.dumps(found, indent=4)}")


if __name__ == "__main__":
    main()
