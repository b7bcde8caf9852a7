"""Stock nnU-Net and deferral trained alike on the same fold, through the stock commands, as a table.

    python benchmarks/compare.py -d 501 -c 2d -epochs 5            # plans for two CPU cores (the default), any device
    python benchmarks/compare.py -d 4 -c 3d_fullres -p nnUNetPlans -epochs 1000 -device cuda

The dataset must be in nnUNet_raw; it is planned and preprocessed if it is not yet, and a `splits_final.json` beside
its raw data (folds by patient) is used. A training that is finished is not repeated. The table goes to
benchmarks/results/compare_*.json, with the machine and the date; docs/results.md is written from those by
`python benchmarks/compare.py --table`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
CPU_PLANS = "nnUNetDeferralCPUPlans"
SCRIPTS = Path(sys.executable).parent


def run(*command: object) -> None:
    """Run one of the stock commands and stop at the first that fails."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    subprocess.run([str(SCRIPTS / words[0]), *words[1:]], check=True, stdout=subprocess.DEVNULL)


def prepare(dataset: str, options: argparse.Namespace) -> None:
    """Plan and preprocess what is missing, and take over the folds that come with the data."""
    raw, preprocessed = Path(os.environ["nnUNet_raw"]), Path(os.environ["nnUNet_preprocessed"])
    if not (preprocessed / dataset / "nnUNetPlans.json").is_file():
        run("nnUNetv2_plan_and_preprocess", "-d", options.d, "-c", options.c, "-npfp", 1, "-np", 1)
    for number in options.experts:
        plans = plans_of(number, options)
        if not (preprocessed / dataset / f"{plans}.json").is_file():
            named = ("-num_experts", number, "-overwrite_plans_name", plans)
            run("nnUNetv2_deferral_plan_experiment", "-d", options.d, "-pl", "nnUNetPlannerDeferralCPU", *named)
    splits = raw / dataset / "splits_final.json"
    if splits.is_file() and not (preprocessed / dataset / "splits_final.json").is_file():
        shutil.copyfile(splits, preprocessed / dataset / "splits_final.json")


def plans_of(num_experts: int, options: argparse.Namespace) -> str:
    """The plans for J experts. Those that we plan here name J; stock plans leave it to the trainer."""
    return f"{options.p}{num_experts}Expert" if options.p == CPU_PLANS and num_experts != 3 else options.p


def train(dataset: str, trainer: str, plans: str, options: argparse.Namespace) -> Path:
    """The validation folder of a finished training."""
    fold = Path(os.environ["nnUNet_results"]) / dataset / f"{trainer}__{plans}__{options.c}" / f"fold_{options.f}"
    if not (fold / "validation" / "summary.json").is_file():
        run(
            "nnUNetv2_train",
            options.d,
            options.c,
            options.f,
            "-tr",
            trainer,
            "-p",
            plans,
            "-device",
            options.device,
        )
    return fold / "validation"


def compare(options: argparse.Namespace) -> Path:
    """Train, collect and write."""
    raw = Path(os.environ["nnUNet_raw"])
    dataset = next(folder.name for folder in raw.iterdir() if folder.name.startswith(f"Dataset{int(options.d):03d}_"))
    prepare(dataset, options)
    # 1000 epochs are what both trainers do without a word.
    length = "" if options.epochs == 1000 else f"_{options.epochs}epoch{'s' * (options.epochs > 1)}"
    stock = json.loads((train(dataset, f"nnUNetTrainer{length}", options.p, options) / "summary.json").read_text())
    rows = [{"trainer": "nnUNetTrainer", "model": stock["foreground_mean"]["Dice"]}]
    for number in options.experts:
        trainer = f"nnUNetTrainerDeferral{number}Expert{'s' * (number > 1)}"
        folder = train(dataset, f"{trainer}{length}", plans_of(number, options), options)
        summary = json.loads((folder / "deferral_summary.json").read_text())
        rows.append(
            {
                "trainer": trainer,
                "model": summary["model_everywhere"]["foreground_mean"]["Dice"],
                "system": summary["system"]["foreground_mean"]["Dice"],
                "experts": {k: v["foreground_mean"]["Dice"] for k, v in summary["expert_everywhere"].items()},
                "rate": summary["deferral"]["rate"],
                "share": summary["deferral"]["share"],
            }
        )
    content = {
        "dataset": dataset,
        "configuration": options.c,
        "plans": options.p,
        "fold": options.f,
        "epochs": options.epochs,
        "cases": len(stock["metric_per_case"]),
        "rows": rows,
        "machine": f"{options.device}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {version('torch')}, nnunetv2 {version('nnunetv2')}",
        "date": date.today().isoformat(),
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"compare_{int(options.d):03d}_{options.c}_{options.p}_fold{options.f}_{options.epochs}epochs.json"
    file.write_text(json.dumps(content, indent=4) + "\n")
    return file


def table() -> str:
    """All compared results as Markdown."""
    parts = []
    for file in sorted(RESULTS.glob("compare_*.json")):
        content = json.loads(file.read_text())
        parts.append(
            f"### {content['dataset']}, {content['configuration']}, fold {content['fold']}\n\n"
            f"{content['plans']}, {content['epochs']} epochs of 250 steps each, {content['cases']} validation cases. "
            f"{content['machine']}. {content['date']}.\n\n"
            "| trainer | Dice of the model | Dice of the system | deferred | by expert | experts alone |\n"
            "|---|---|---|---|---|---|\n" + "\n".join(_row(row) for row in content["rows"])
        )
    return "\n\n".join(parts)


def _row(row: dict) -> str:
    def number(value: float | None) -> str:
        return "–" if value is None or math.isnan(value) else f"{value:.3f}"

    rate = "–" if "rate" not in row else f"{row['rate']:.2%}"
    shares = ", ".join(f"{share:.2%}" for share in row.get("share", {}).values()) or "–"
    experts = ", ".join(number(dice) for dice in row.get("experts", {}).values()) or "–"
    return (
        f"| {row['trainer']} | {number(row['model'])} | {number(row.get('system'))} | {rate} | {shares} | {experts} |"
    )


def main() -> None:
    """Compare, or print the table of what was compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", help="dataset id")
    parser.add_argument("-c", default="2d", help="configuration")
    parser.add_argument("-f", type=int, default=0, help="fold")
    parser.add_argument("-p", default=CPU_PLANS, help="plans, the same for all trainers")
    parser.add_argument("-epochs", type=int, default=5, help="a length that stock trainers exist for: 1, 5, 10, 20 ...")
    parser.add_argument("-device", default="cpu")
    parser.add_argument("-experts", type=int, nargs="+", default=[3, 1], help="numbers of experts to compare")
    parser.add_argument("--table", action="store_true", help="only print the table of all results")
    options = parser.parse_args()
    if not options.table:
        if options.d is None:
            parser.error("-d is needed")
        print(compare(options))
    print(table())


if __name__ == "__main__":
    main()
