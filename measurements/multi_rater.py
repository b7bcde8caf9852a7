"""Compares how a network learns from several raters: ordinal, majority, mean label, a random rater per sample.

    python measurements/multi_rater.py -d 501 -c 2d -f 0 -p nnUNetDeferralCPUPlans [-epochs 5] [-iterations 250]
        [-features 8 -batch_size 4 [-patch 256 256]] [-groups groups.json] [-methods ordinal ...] [--score_only]

Each network is trained by `nnUNetv2_train` on the CPU and validated with --npz; trainings whose validation is complete
are not repeated. Its validation cases are then scored against all raters as `nnUNetv2_deferral_evaluate_raters` does.
nnU-Net's variables must be set, raters declared in dataset.json, and the dataset planned and preprocessed.
Results are written to measurements/results/ with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from nnunetv2_deferral.files import write_json

RESULTS = Path(__file__).parent / "results"
OPTIONS = {
    "ordinal": "",
    "majority": "_majority",
    "meanLabel": "_meanLabel",
    "randomRater": "_randomRater",
    "ordinal_noDice": "_noDice",
    "majority_noDice": "_majority_noDice",
}
# Shorter epochs cannot be named, and nnU-Net would give each network all threads of the machine.
TRAINERS = """
import torch
from nnunetv2_deferral.nnunet.multi_rater_naming import multi_rater_class


class Short:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch = {epochs}, {iterations}
        self.num_val_iterations_per_epoch = 10
        torch.set_num_threads({threads})


"""


def small_plans(options: argparse.Namespace) -> str:
    """The name of plans with a smaller network and batch, on the same preprocessed data, for machines without a GPU."""
    if options.features is None:
        return options.p
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    folder = Path(str(nnUNet_preprocessed), maybe_convert_to_dataset_name(int(options.d)))
    plans = json.loads((folder / f"{options.p}.json").read_text())
    name = f"{options.p}Small{options.features}x{options.batch_size}"
    if options.patch:
        name += f"_{'x'.join(map(str, options.patch))}"
    configuration = plans["configurations"][options.c]
    configuration["batch_size"] = options.batch_size
    configuration["patch_size"] = options.patch or configuration["patch_size"]
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [
        min(options.features * 2**stage, 8 * options.features) for stage in range(network["n_stages"])
    ]
    (folder / f"{name}.json").write_text(json.dumps(plans | {"plans_name": name}, indent=4))
    return name


def trainer_name(method: str, options: argparse.Namespace) -> str:
    return f"Short{options.epochs}x{options.iterations}{method.replace('_', '')}"


def train(options: argparse.Namespace) -> None:
    """Train what has no complete validation yet."""
    from nnunetv2_deferral import trainers

    with tempfile.TemporaryDirectory() as folder:
        text = TRAINERS.format(epochs=options.epochs, iterations=options.iterations, threads=options.threads)
        for method in options.methods:
            base = f'multi_rater_class("nnUNetTrainerMultiRater{OPTIONS[method]}")'
            text += f"class {trainer_name(method, options)}(Short, {base}):\n    pass\n\n\n"
        Path(folder, "short_multi_rater.py").write_text(text)
        places = os.pathsep.join((str(Path(trainers.__file__).parent), folder))
        for method in options.methods:
            if (validation(method, options) / "summary.json").is_file():
                continue
            command = ["nnUNetv2_train", options.d, options.c, str(options.f), "-tr", trainer_name(method, options)]
            subprocess.run(
                [
                    Path(sys.executable).parent / command[0],
                    *command[1:],
                    "-p",
                    options.plans,
                    "-device",
                    "cpu",
                    "--npz",
                ],
                check=True,
                env=os.environ | {"nnUNet_extTrainer": places, "nnUNet_compile": "f"},
            )


def validation(method: str, options: argparse.Namespace) -> Path:
    """The folder of the validation of a training."""
    from nnunetv2.paths import nnUNet_results
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    model = f"{trainer_name(method, options)}__{options.plans}__{options.c}"
    dataset = maybe_convert_to_dataset_name(int(options.d))
    return Path(str(nnUNet_results), dataset, model, f"fold_{options.f}", "validation")


def score(options: argparse.Namespace) -> dict[str, object]:
    """What the evaluation against all raters finds for each method."""
    from nnunetv2.paths import nnUNet_raw

    from nnunetv2_deferral.dataset import read_groups
    from nnunetv2_deferral.nnunet.rater_evaluation import RaterInputs, evaluate_raters

    found: dict[str, object] = {}
    for method in options.methods:
        folder = validation(method, options)
        if not (folder / "summary.json").is_file():
            print(f"{method} is left out: {folder} is not complete")
            continue
        raw = Path(str(nnUNet_raw), folder.parents[2].name)
        inputs = RaterInputs.open(folder, raw / "expertsTr", references=raw / "labelsTr")
        groups = None if options.groups is None else read_groups(options.groups, inputs.predictions.cases)
        summary = evaluate_raters(inputs, groups=groups)
        found[method] = {key: summary[key] for key in ("cases", "raters", "groups", "bins", "calibration", "dice")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True)
    parser.add_argument("-c", default="2d")
    parser.add_argument("-f", type=int, default=0)
    parser.add_argument("-p", default="nnUNetDeferralCPUPlans")
    parser.add_argument("-epochs", type=int, default=5)
    parser.add_argument("-iterations", type=int, default=250)
    parser.add_argument("-features", type=int, help="features of the first stage. Default: those of the plans")
    parser.add_argument("-batch_size", type=int, default=4, help="with -features")
    parser.add_argument("-patch", type=int, nargs="+", help="with -features; divisible by the network's strides")
    parser.add_argument("-threads", type=int, default=1)
    parser.add_argument("-methods", nargs="+", choices=OPTIONS, default=list(OPTIONS)[:4])
    parser.add_argument("-groups", type=Path)
    parser.add_argument("-machine", default=f"{os.cpu_count()} cores, {platform.machine()}", help="for the results")
    parser.add_argument("--score_only", action="store_true")
    options = parser.parse_args()
    options.plans = small_plans(options)
    if not options.score_only:
        train(options)
    content = {
        "dataset": options.d,
        "configuration": options.c,
        "fold": options.f,
        "epochs": options.epochs,
        "iterations": options.iterations,
        "plans": options.plans,
        "date": date.today().isoformat(),
        "machine": options.machine,
        "methods": score(options),
    }
    file = RESULTS / f"multi_rater_{options.d}_{options.c}.json"
    write_json(content, file)
    print(file)


if __name__ == "__main__":
    main()
