"""Measures what rounds of queries bring: Dice on other patients after each round, by strategy.

    python measurements/query_rounds.py -work FOLDER [-strategies claspe entropy random_foreground gain] [-seeds 0 1]
        [-rounds 3] [-n 6] [-patch 10 10 10] [-start_epochs 8] [-epochs 4] [-o RESULTS]

Works on Dataset004_Hippocampus of nnUNet_raw with the plans nnUNetDeferralCPUPlans, which must be there:

    nnUNetv2_extract_fingerprint -d 4
    nnUNetv2_deferral_plan_experiment -d 4 -pl nnUNetPlannerDeferralCPU -experts standard -num_experts 1

Half of the patients are the pool, the others the test set. Round 0 is the same for all strategies: boxes drawn at
random for the classes of the references (each class at least twice, in two images), and a network trained on them from
scratch. In each further round the network predicts the pool, nnUNetv2_deferral_query chooses boxes by a strategy, the
references answer, --next_dataset makes the next dataset of all boxes so far, and training goes on from the last
checkpoint with -pretrained_weights. All networks are trained with a deferral head (one simulated expert), so that
`gain` has its maps; the head does not change the segmentation. Epochs are of 50 iterations with a batch of 8. All steps
are stock commands and those of this package.

Dice is the mean over classes and test cases. Differences from random_foreground are of the mean over seeds, paired by
case, with bootstrap intervals over patients, which do not include the chance of single trainings. Results are written
after every round, to measurements/results/query_rounds_004_2d.json or to the file after -o.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral.dataset import DatasetFiles
from nnunetv2_deferral.evaluation.bootstrap import bootstrap_difference
from nnunetv2_deferral.evaluation.overlap import overlap
from nnunetv2_deferral.files import write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import preloaded

TIMEOUT_S = 3600  # of one command
SOURCE, PLANS, CONFIGURATION = "Dataset004_Hippocampus", "nnUNetDeferralCPUPlans", "2d"
RESULTS = Path(__file__).parent / "results"
REFERENCE_STRATEGY = "random_foreground"
_TRAINER = """
from nnunetv2_deferral.nnunet.naming import trainer_class


class nnUNetTrainerQueryRounds{epochs}(trainer_class("nnUNetTrainerDeferral1Expert")):
    def __init__(self, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = {epochs}
        self.num_iterations_per_epoch = 50
        self.num_val_iterations_per_epoch = 2
"""


class Study:
    """The folders of a study, and its commands."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.work: Path = given.work.resolve()
        self.raw, self.preprocessed, self.results = (
            Path(os.environ[f"nnUNet_{name}"]) for name in ("raw", "preprocessed", "results")
        )
        source = self.raw / SOURCE
        self.labels = source / "labelsTr"
        example = next(iter(sorted(self.labels.glob("*.nii.gz"))))
        self.files = DatasetFiles.of(source / "dataset.json", example)
        groups = json.loads((source / "groups.json").read_text())
        patients = sorted({str(group) for group in groups.values()})
        np.random.default_rng(0).shuffle(patients)
        pool = set(patients[: len(patients) // 2])
        self.cases = {
            "pool": sorted(case for case, group in groups.items() if str(group) in pool),
            "test": sorted(case for case, group in groups.items() if str(group) not in pool),
        }
        for part, cases in self.cases.items():
            (self.work / part).mkdir(parents=True, exist_ok=True)
            for case in cases:
                file = source / "imagesTr" / f"{case}_0000.nii.gz"
                shutil.copyfile(file, self.work / part / file.name)
        trainers = self.work / "trainers"
        trainers.mkdir(exist_ok=True)
        for epochs in {given.start_epochs, given.epochs}:
            (trainers / f"query_rounds_{epochs}.py").write_text(_TRAINER.format(epochs=epochs))
        ours = Path(__file__).parents[1] / "trainers"
        self.environment = os.environ | {"nnUNet_extTrainer": f"{trainers}:{ours}"}

    def run(self, command: str, *arguments: object) -> None:
        """Run a console script in a fork of a process that has nnU-Net imported, as the tests do."""
        script = Path(sys.executable).with_name(command)
        words, log = [*map(str, arguments)], self.work / "log.txt"
        with log.open("a") as stream:
            print("$", command, *words, file=stream)
        request = {"script": str(script), "arguments": words, "environment": dict(self.environment)}
        if preloaded.run_script(request | {"folder": str(self.work), "output": str(log)}, TIMEOUT_S):
            raise RuntimeError(f"{command} failed, see {log}")

    def train(self, dataset: str, epochs: int, before: str | None) -> None:
        """Train on a dataset with the plans of the source, from scratch or from the network of another dataset."""
        number = int(dataset[7:10])
        self.run("nnUNetv2_extract_fingerprint", "-d", number, "-np", 1)
        self.run("nnUNetv2_move_plans_between_datasets", "-s", SOURCE, "-t", number, "-sp", PLANS, "-tp", PLANS)
        plans = self.preprocessed / dataset / f"{PLANS}.json"
        content = json.loads(plans.read_text())
        content["configurations"][CONFIGURATION]["batch_size"] = 8
        plans.write_text(json.dumps(content))
        self.run("nnUNetv2_preprocess", "-d", number, "-plans_name", PLANS, "-c", CONFIGURATION, "-np", 1)
        going_on = []
        if before is not None:
            going_on = ["-pretrained_weights", self.model(before) / "fold_all" / "checkpoint_final.pth"]
        trainer = f"nnUNetTrainerQueryRounds{epochs}"
        self.run(
            "nnUNetv2_train", number, CONFIGURATION, "all", "-tr", trainer, "-p", PLANS, "-device", "cpu", *going_on
        )

    def model(self, dataset: str) -> Path:
        (found,) = (self.results / dataset).glob(f"nnUNetTrainerQueryRounds*__{PLANS}__{CONFIGURATION}")
        return found

    def predict(self, dataset: str, part: str) -> Path:
        """Predict pool or test set with the network of a dataset."""
        output = self.work / "predictions" / dataset / part
        trainer = self.model(dataset).name.split("__")[0]
        more = ["--save_probabilities"] if part == "pool" else []
        self.run(
            "nnUNetv2_predict", "-d", dataset, "-c", CONFIGURATION, "-f", "all", "-tr", trainer, "-p", PLANS,
            "-i", self.work / part, "-o", output, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta", *more,
        )  # fmt: skip
        return output

    def dice(self, dataset: str) -> dict[str, float]:
        """The mean Dice over classes of each test case."""
        predicted = self.predict(dataset, "test")
        found = {}
        for case in self.cases["test"]:
            masks = [self.files.read(folder / f"{case}.nii.gz")[0] for folder in (predicted, self.labels)]
            by_class = overlap(*masks, self.files.regions)
            found[case] = float(np.mean([np.nan_to_num(scores["Dice"]) for scores in by_class.values()]))
        return found

    def query(self, predictions: Path, output: Path, dataset: str, strategy: str, number: int, seed: int) -> None:
        """One round, answered by the references, and the dataset of all rounds up to it."""
        earlier = [output.with_name(f"round_{place}") for place in range(number)]
        self.run(
            "nnUNetv2_deferral_query", "-i", predictions, "-o", output, "-n", self.given.n, "-round", number,
            "-rounds", self.given.rounds, "-strategy", strategy, "-seed", seed, "-patch", *self.given.patch,
            *(["-annotated", *earlier] if earlier else []),
            "--next_dataset", dataset, "-answers", self.labels, "-images", self.work / "pool",
        )  # fmt: skip

    def start(self, seed: int, dataset: str, output: Path) -> None:
        """Round 0: boxes drawn for the classes of the references, which stand for a prediction."""
        known = self.work / "references"
        if not known.exists():
            known.mkdir()
            shutil.copyfile(self.raw / SOURCE / "dataset.json", known / "dataset.json")
            for case in self.cases["pool"]:
                labels, _ = self.files.read(self.labels / f"{case}.nii.gz")
                shutil.copyfile(self.labels / f"{case}.nii.gz", known / f"{case}.nii.gz")
                certain = np.stack([labels == value for value in self.files.label_values]).astype(np.float32)
                np.savez_compressed(known / f"{case}.npz", probabilities=certain)
        self.query(known, output, dataset, REFERENCE_STRATEGY, 0, seed)


def rounds(study: Study, given: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds of all strategies and seeds, in an order in which interrupted studies are balanced."""
    rows: list[dict[str, Any]] = []
    for place, seed in enumerate(given.seeds):
        first = f"Dataset{given.first_id + 100 * place:03d}_Start{seed}"
        study.start(seed, first, study.work / f"start_{seed}" / "round_0")
        study.train(first, given.start_epochs, None)
        rows.append({"strategy": "start", "seed": seed, "round": 0, "dice": study.dice(first)})
        write(rows, study, given)
        pool = study.predict(first, "pool")
        for number_of, strategy in enumerate(given.strategies):
            folder = study.work / f"{strategy}_{seed}"
            folder.mkdir(exist_ok=True)
            shutil.copytree(study.work / f"start_{seed}" / "round_0", folder / "round_0")
            before, predictions = first, pool
            for number in range(1, given.rounds):
                dataset_id = given.first_id + 100 * place + 10 * (number_of + 1) + number
                dataset = f"Dataset{dataset_id:03d}_{strategy.replace('_', '')}{seed}"
                study.query(predictions, folder / f"round_{number}", dataset, strategy, number, seed)
                study.train(dataset, given.epochs, before)
                rows.append({"strategy": strategy, "seed": seed, "round": number, "dice": study.dice(dataset)})
                write(rows, study, given)
                if number < given.rounds - 1:
                    predictions = study.predict(dataset, "pool")
                before = dataset
    return rows


def write(rows: Sequence[dict[str, Any]], study: Study, given: argparse.Namespace) -> None:
    """The results so far."""
    compared = []
    for number in sorted({row["round"] for row in rows} - {0}):
        of_round = [row for row in rows if row["round"] == number]
        for strategy in given.strategies:
            pairs = [
                (mine, other)
                for mine in of_round
                for other in of_round
                if (mine["strategy"], other["strategy"]) == (strategy, REFERENCE_STRATEGY)
                and mine["seed"] == other["seed"]
            ]
            if not pairs:
                continue
            ours, theirs = (
                np.mean([[pair[side]["dice"][case] for case in study.cases["test"]] for pair in pairs], axis=0)
                for side in range(2)
            )
            entry = {"round": number, "strategy": strategy, "seeds": len(pairs), "dice": float(ours.mean())}
            if strategy != REFERENCE_STRATEGY:
                groups = json.loads((study.raw / SOURCE / "groups.json").read_text())
                found = bootstrap_difference(
                    ours,
                    theirs,
                    generator=np.random.default_rng(0),
                    groups=[str(groups[case]) for case in study.cases["test"]],
                )
                entry["difference"] = found.to_dict()
            compared.append(entry)
    cpu = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    content = {
        "dataset": SOURCE,
        "pool": len(study.cases["pool"]),
        "test": len(study.cases["test"]),
        "arguments": {key: value for key, value in vars(given).items() if key not in ("work", "o")},
        "machine": f"{cpu} cores of a shared {platform.machine().replace('_', '-')} server",
        "date": date.today().isoformat(),
        "compared": compared,
        "rows": [dict(row) | {"mean": float(np.mean(list(row["dice"].values())))} for row in rows],
    }
    write_json(content, given.o)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-work", type=Path, required=True)
    add("-strategies", nargs="+", default=[REFERENCE_STRATEGY, "claspe", "entropy", "gain"])
    add("-seeds", type=int, nargs="+", default=[0, 1])
    add("-rounds", type=int, default=3)
    add("-n", type=int, default=6)
    add("-patch", type=int, nargs="+", default=[10, 10, 10])
    add("-start_epochs", type=int, default=8)
    add("-epochs", type=int, default=4)
    add("-first_id", type=int, default=700, help="ids of the datasets that are made begin here")
    add("-o", type=Path, default=RESULTS / f"query_rounds_004_{CONFIGURATION}.json", help="file of the results")
    given = parser.parse_args()
    server = preloaded.start()
    try:
        rounds(Study(given), given)
    finally:
        if server is not None:
            preloaded.end(server)


if __name__ == "__main__":
    main()
