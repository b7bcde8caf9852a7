"""Measures the export of a resampled case: processor time, peak memory and size of the files, relative to stock.

    python measurements/export.py                                        # 160x273x273 to 300x512x512, K = J = 3
    python measurements/export.py -predicted 80 136 136 -image 150 256 256

Exported is from logits of the preprocessed case to files, once by nnU-Net's own function and once with deferral maps,
each in a process of its own. Times and memory are those beyond the start of the process, which imports the same in both
cases; of several runs in turn, the least of each counts. The limits compared are none, a budget, and one-vs-all with a
calibration that reads answers as evidence. Results are written to measurements/results/export.json, or to the file
after -o, with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"
CLASSES, EXPERTS = 3, 3
STOCK, KINDS = "stock", ("deferral", "budget", "evidence")


def logits_of(shape: tuple[int, ...]) -> np.ndarray:
    """K + J + 2 smooth channels, float32, with one object; outside of it the model is certain."""
    from scipy import ndimage

    generator = np.random.default_rng(0)
    axes = [np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in shape]
    places = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    distance = np.sqrt((places**2).sum(0))
    coarse = generator.normal(size=(CLASSES + EXPERTS + 2, 12, 12, 12)).astype(np.float32)
    factors = [1, *(size / 12 for size in shape)]
    noise = ndimage.zoom(coarse, factors, order=1)[:, : shape[0], : shape[1], : shape[2]]
    borders = 40 * np.stack((distance - 0.3, 0.3 - distance, 0.15 - distance))
    routing = np.full((EXPERTS + 1, *shape), 4.0, dtype=np.float32)
    routing[0] -= 6 * np.exp(-np.abs(borders[0]) / 4)
    channels = np.concatenate((borders, routing, np.zeros((1, *shape))))
    return (channels + noise).astype(np.float32)


def calibration_of(names: tuple[str, ...]) -> dict[str, object]:
    """A calibration with an evidence model, as it stands in plans.json."""
    from nnunetv2_deferral.decision.calibrators import IDENTITY
    from nnunetv2_deferral.decision.model_calibration import FittedEvidence, ModelCalibration
    from nnunetv2_deferral.evidence.answer_tables import NUM_ZONES, AnswerTables
    from nnunetv2_deferral.evidence.posterior import EvidenceModel
    from nnunetv2_deferral.evidence.prior import Prior
    from nnunetv2_deferral.evidence.structures import Structures

    right = np.array([[0.9, 0.1], [0.1, 0.9]])  # truth, answer
    joint = np.einsum("ta,tb,tc->tabc", right, right, right).reshape(2, -1)
    tables = AnswerTables(np.broadcast_to(joint[None, None], (CLASSES, NUM_ZONES, *joint.shape)).copy())
    model = EvidenceModel(
        structures=Structures(tuple(range(CLASSES))),
        experts=names,
        prior=Prior(((0.0, 0.6, 0.2, 0.2),) * CLASSES, 1.0),
        tables=tables,
    )
    fitted = ModelCalibration(
        experts=names,
        heads=(IDENTITY,) * (len(names) + 1),
        thresholds=(),
        evidence=FittedEvidence(model=model, answered_by=names),
        report={},
    )
    return fitted.to_dict()


def memory_mib(what: str) -> int:
    """The memory of this process; `ru_maxrss` would include that of the process it was forked from."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    return round(int(found[1]) / 1024) if found else 0


def case_of(kind: str, predicted: tuple[int, ...], image: tuple[int, ...]) -> tuple[Any, Any, Any, Any]:
    """The plans, configuration, properties and dataset.json of the case, as nnU-Net passes them to an export."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    from nnunetv2_deferral.decision.model_calibration import CALIBRATION_KEY
    from nnunetv2_deferral.nnunet.managers import MODEL_KEY
    from nnunetv2_deferral.settings import PLANS_KEY, resolve_settings

    spacing = [1.5 * size / whole for size, whole in zip(predicted, image, strict=True)]
    block = {"num_experts": EXPERTS, "objective": "one_vs_all"} | ({"budget": 0.01} if kind == "budget" else {})
    settings = resolve_settings(block)
    plans = PlansManager(
        {
            "dataset_name": "Dataset999_Large",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {},
            PLANS_KEY: settings.to_dict(),
            MODEL_KEY: {"trainer": "T", "has_regions": False},
            **({CALIBRATION_KEY: calibration_of(settings.expert_names)} if kind == "evidence" else {}),
        }
    )
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = ConfigurationManager(
        {
            "architecture": {},
            "spacing": [1.5, 1.5, 1.5],
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling,
        }
    )
    properties = {
        "sitk_stuff": {
            "spacing": tuple(reversed(spacing)),
            "origin": (0.0, 0.0, 0.0),
            "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        },
        "spacing": spacing,
        "shape_before_cropping": image,
        "bbox_used_for_cropping": [[0, size] for size in image],
        "shape_after_cropping_and_before_resampling": image,
    }
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "outer": 1, "inner": 2},
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }
    return plans, configuration, properties, dataset


def export_one(kind: str, logits: Path, image: tuple[int, ...]) -> dict[str, float]:
    """Export the case, whose logits are in a file, beside it and in this process."""
    import torch
    from nnunetv2.inference import export_prediction

    from nnunetv2_deferral.nnunet.export import export_prediction_from_logits
    from nnunetv2_deferral.nnunet.managers import DeferralPlansManager

    torch.set_num_threads(1)
    root, predicted = logits.parent / kind, np.load(logits, mmap_mode="r").shape[1:]
    root.mkdir()
    plans, configuration, properties, dataset = case_of(kind, predicted, image)
    channels = torch.from_numpy(np.load(logits))
    if kind == STOCK:
        channels, export = channels[:CLASSES].clone(), export_prediction.export_prediction_from_logits
    else:
        DeferralPlansManager.adopt(plans)
        export = export_prediction_from_logits
    began, before = time.process_time(), memory_mib("VmRSS")
    export(channels, properties, configuration, plans, dataset, str(root / "case"), False, 1)
    files = [file for file in root.rglob("*") if file.is_file()]
    return {
        "cpu_seconds": round(time.process_time() - began, 2),
        "start_mib": before,
        "peak_mib": memory_mib("VmHWM"),
        "files_mib": round(sum(file.stat().st_size for file in files) / 2**20, 1),
    }


def main() -> None:
    """Measure all kinds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-predicted", type=int, nargs=3, default=[160, 273, 273], help="shape of the preprocessed case")
    parser.add_argument("-image", type=int, nargs=3, default=[300, 512, 512], help="shape of the image")
    parser.add_argument("-kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("-runs", type=int, default=3, help="runs of each kind")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "LOGITS"), help=argparse.SUPPRESS)
    parser.add_argument("-o", type=Path, default=RESULTS / "export.json", help="file of the results")
    given = parser.parse_args()
    predicted, image = tuple(given.predicted), tuple(given.image)
    if given.one is not None:
        kind, logits = given.one
        print(json.dumps(export_one(kind, Path(logits), image)))
        return
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="export_") as name:
        logits = Path(name) / "logits.npy"
        np.save(logits, logits_of(predicted))
        for kind in given.runs * (STOCK, *given.kinds):
            words = ["--one", kind, str(logits), "-image", *map(str, image)]
            run = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
            shutil.rmtree(logits.parent / kind)
            values = json.loads(run.stdout.splitlines()[-1])
            print(kind, values, flush=True)
            found[kind] = {key: min(value, found.get(kind, values)[key]) for key, value in values.items()}
    ratios = {
        kind: {key: round(found[kind][key] / found[STOCK][key], 2) for key in ("cpu_seconds", "peak_mib")}
        for kind in given.kinds
    }
    print(json.dumps(ratios, indent=4))
    content = {
        "runs": given.runs,
        "predicted": predicted,
        "image": image,
        "classes": CLASSES,
        "experts": EXPERTS,
        "found": found,
        "ratios": ratios,
        "machine": {"device": f"CPU, {os.cpu_count()} cores", "machine": platform.machine()},
        "date": date.today().isoformat(),
    }
    given.o.write_text(json.dumps(content, indent=4) + "\n")


if __name__ == "__main__":
    main()
