"""Measures the overhead of deferral: stock and deferral trainer in one run, on the same plans and batches.

    python measurements/overhead.py -d 501 -c 2d                  # a preprocessed dataset, nnU-Net's variables set
    python measurements/overhead.py -d 4 -c 3d_fullres -patch 128 128 128 -device cuda
    nnUNet_deferral_simulate_on=device python measurements/overhead.py -d 501 -c 2d -n 40 -what loader
    python measurements/overhead.py -d 4 -c 3d_fullres -what step memory \
        -tr nnUNetTrainerDeferral3Experts_on_nnUNet_Primus_S_Trainer      # relative to that trainer

Measured are the ratios deferral / stock of the duration of a training step, of the data loader and of a prediction from
file to file, and of the peak memory of training. Experts are simulated in the loader on a CPU and in the step on a GPU.
Steps alternate between the two trainers, so that other load on the machine affects both equally, and medians are
compared. Results are written to measurements/results/, or to FILE, with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

TRAINERS = {"stock": "nnUNetTrainer", "deferral": "nnUNetTrainerDeferral3Experts"}
WHAT = ("step", "loader", "prediction", "memory")
RESULTS = Path(__file__).parent / "results"


def make_trainer(kind: str, options: argparse.Namespace):
    """An initialised trainer, with its plans changed according to the options."""
    import torch
    from batchgenerators.utilities.file_and_folder_operations import load_json
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    folder = Path(str(nnUNet_preprocessed), maybe_convert_to_dataset_name(int(options.d)))
    plans = load_json(str(folder / f"{options.p}.json")) | {"continue_training": False}
    configuration = plans["configurations"][options.c]
    if options.patch:
        configuration["patch_size"] = options.patch
    if options.batch_size:
        configuration["batch_size"] = options.batch_size
    trainer_class = recursive_find_trainer_class_by_name(TRAINERS[kind])
    trainer = trainer_class(plans, options.c, 0, load_json(str(folder / "dataset.json")), torch.device(options.device))
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    return trainer


def synchronize(options: argparse.Namespace) -> None:
    """Wait for the GPU, so that wall-clock times are those of complete steps."""
    if options.device == "cuda":
        import torch

        torch.cuda.synchronize()


def time_steps(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a training step and of loading a batch, for each trainer."""
    import numpy as np
    import torch

    os.environ["nnUNet_n_proc_DA"] = "0"
    trainers = {kind: make_trainer(kind, options) for kind in TRAINERS}
    loaders = {kind: trainer.get_dataloaders()[0] for kind, trainer in trainers.items()}
    times: dict[str, list[float]] = {f"{what}_{kind}": [] for what in ("loader", "step") for kind in TRAINERS}
    for trainer in trainers.values():
        trainer.network.train()
    for iteration in range(options.warm + options.n):
        for kind, trainer in trainers.items():
            # Equal seeds give both the same cases and augmentations. Each batch is loaded twice and only the second
            # time counts, because the first trainer to read a case reads it from disk.
            for _ in range(2):
                np.random.seed(iteration)
                torch.manual_seed(iteration)
                start = perf_counter()
                batch = next(loaders[kind])
            loaded = perf_counter()
            synchronize(options)
            stepped = perf_counter()
            if "step" in options.what:
                trainer.train_step(batch)
                synchronize(options)
            if iteration >= options.warm:
                times[f"loader_{kind}"].append(loaded - start)
                times[f"step_{kind}"].append(perf_counter() - stepped)
    return {name: median(values) for name, values in times.items()}


def time_prediction(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of predicting a folder of images from file to file with untrained networks, minimum of three runs."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.paths import nnUNet_raw

    times: dict[str, list[float]] = {}
    trainers = {kind: make_trainer(kind, options) for kind in TRAINERS}
    for trainer in trainers.values():
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        base = Path(trainer.output_folder_base)
        base.mkdir(parents=True, exist_ok=True)
        (base / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
        (base / "dataset.json").write_text(json.dumps(trainer.dataset_json))
        trainer.save_checkpoint(str(base / "fold_0" / "checkpoint_final.pth"))
    dataset = Path(str(nnUNet_raw), next(iter(trainers.values())).plans_manager.dataset_name)
    images = sorted((dataset / "imagesTr").iterdir())[: options.images]
    for _ in range(3):
        for kind, trainer in trainers.items():
            predictor = nnUNetPredictor(device=torch.device(options.device), allow_tqdm=False)
            predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
            with tempfile.TemporaryDirectory() as folder:
                start = perf_counter()
                predictor.predict_from_files(
                    [[str(image)] for image in images],
                    folder,
                    num_processes_preprocessing=1,
                    num_processes_segmentation_export=1,
                )
                times.setdefault(f"prediction_{kind}", []).append(perf_counter() - start)
    return {name: min(values) for name, values in times.items()}


def measure_memory(kind: str, options: argparse.Namespace) -> float:
    """Peak memory in bytes of a few training steps in this process: GPU memory, or on a CPU that of the process."""
    os.environ["nnUNet_n_proc_DA"] = "0"
    trainer = make_trainer(kind, options)
    loader, _ = trainer.get_dataloaders()
    trainer.network.train()
    for _ in range(options.warm + 2):
        trainer.train_step(next(loader))
    if options.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_in_a_process_of_its_own(kind: str) -> float:
    """:func:`measure_memory` in a new process, whose peak memory is not affected by other work."""
    command = [sys.executable, *sys.argv, "--memory-of", kind]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(printed.rsplit("PEAK ", 1)[1])


def describe_machine(options: argparse.Namespace) -> dict[str, object]:
    """The machine and versions of the measurement."""
    import torch

    name = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {os.cpu_count()} cores"
    return {
        "device": name,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="dataset id, preprocessed")
    parser.add_argument("-c", required=True, help="configuration")
    parser.add_argument("-p", default="nnUNetPlans", help="plans")
    parser.add_argument("-tr", default=TRAINERS["deferral"], help="deferral trainer. Default: %(default)s")
    parser.add_argument("-patch", type=int, nargs="+", help="patch size. Default: that of the plans")
    parser.add_argument("-batch_size", type=int, help="batch size. Default: that of the plans")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-n", type=int, default=20, help="number of measured steps")
    parser.add_argument("-warm", type=int, default=3, help="number of warm-up steps")
    parser.add_argument("-images", type=int, default=8, help="number of images to predict")
    parser.add_argument("-what", nargs="+", choices=WHAT, default=WHAT, help="what is measured. Default: all")
    parser.add_argument("-o", type=Path, help="file of the results. Default: in measurements/results")
    parser.add_argument("--memory-of", choices=tuple(TRAINERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, on, base = options.tr.partition("_on_")
    TRAINERS.update(stock=base or TRAINERS["stock"], deferral=options.tr)
    if options.memory_of:
        print(f"PEAK {measure_memory(options.memory_of, options)}")
        return
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        measured: dict[str, float] = {}
        if "memory" in options.what:
            measured |= {f"memory_{kind}": memory_in_a_process_of_its_own(kind) for kind in TRAINERS}
        if {"step", "loader"} & set(options.what):
            measured |= time_steps(options)
        if "prediction" in options.what:
            measured |= time_prediction(options)
    ratios = {what: round(measured[f"{what}_deferral"] / measured[f"{what}_stock"], 3) for what in options.what}
    content = {
        "what": f"Dataset{int(options.d):03d} {options.c} {options.p} patch {options.patch or 'as planned'}",
        "batch_size": options.batch_size or "as planned",
        "trainer": options.tr,
        "ratios": ratios,
        "machine": describe_machine(options),
        "date": date.today().isoformat(),
    }
    if options.device == "cuda":
        content["measured"] = measured
    patch = "" if not options.patch else "_" + "x".join(str(size) for size in options.patch)
    place = "_drawn_in_step" if options.device == "cpu" and os.environ.get("nnUNet_deferral_simulate_on") else ""
    name = f"overhead_{int(options.d):03d}_{options.c}{patch}_{options.device}{place}{on}{base}.json"
    file = options.o or RESULTS / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=4) + "\n")
    print(f"\n{file}\n{json.dumps(content, indent=4)}")


if __name__ == "__main__":
    main()
