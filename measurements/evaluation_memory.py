"""Measures time and memory of the evaluation of a large dataset: risk-coverage and budgets of 10^8 voxels.

    python measurements/evaluation_memory.py
    python measurements/evaluation_memory.py -cases 1 -voxels 100000000      # in one case

Cases are generated one after the other: a reference with two labels in blocks, a model and an expert with random
errors, and a score that is correlated with the model's errors and almost unique at each voxel. Reported are the CPU
seconds of the process (without the generation of cases), their ratio to sorting the same number of scores with
numpy.argsort, a million at a time, and the peak memory of the process, which must not exceed 2 GiB. Results are written
to measurements/results/ with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
from collections.abc import Callable
from datetime import date
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from nnunetv2_deferral.evaluation.budgets import BudgetStatistics, recovered_gain
from nnunetv2_deferral.evaluation.oracle import OracleStatistics
from nnunetv2_deferral.evaluation.risk_coverage import risk_coverage_of_voxels
from nnunetv2_deferral.evaluation.score_bins import ScoreHistogram

RESULTS = Path(__file__).parent / "results"
LIMIT_MIB = 2048
REGIONS = (1, 2)
BLOCK = 4096
PIECE = 2**20


def draw_case(voxels: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Labels of the reference, the model and the expert (uint8) and the model's score (float32), all (voxels,)."""
    case = {name: np.empty(voxels, np.uint8) for name in ("reference", "model", "answer")}
    case["scores"] = np.empty(voxels, np.float32)
    for start in range(0, voxels, PIECE):  # in pieces, to limit the memory of temporary arrays
        reference, model, answer, scores = (array[start : start + PIECE] for array in case.values())
        blocks = generator.choice(3, size=-(-reference.size // BLOCK), p=(0.9, 0.08, 0.02))
        reference[:] = np.repeat(blocks, BLOCK)[: reference.size]
        scores[:] = generator.random(scores.size, dtype=np.float32) ** 4
        for labels, risk in ((model, scores / 5), (answer, 0.02)):
            wrong = generator.random(labels.size, dtype=np.float32) < risk
            labels[:] = np.where(wrong, (reference + 1) % 3, reference)
    return case


class Stopwatch:
    """CPU seconds of the process by task."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, what: str, call: Callable, *arguments: Any, **options: Any) -> Any:
        """Call a function, add its time to the total of the task, and return its result."""
        start = process_time()
        result = call(*arguments, **options)
        self.seconds[what] = self.seconds.get(what, 0.0) + process_time() - start
        return result


def peak_memory_mib() -> float:
    """The peak memory of the process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def score_all(options: argparse.Namespace, watch: Stopwatch) -> dict[str, float]:
    """Evaluate all cases, one at a time; returns a few results for inspection."""
    histogram = ScoreHistogram()
    budgets = {"score": BudgetStatistics(REGIONS), "oracle": OracleStatistics(REGIONS)}
    generator = np.random.default_rng(0)
    for number in range(options.cases):
        case = draw_case(options.voxels, generator)
        wrong = case["model"] != case["reference"]
        watch.time("risk_coverage", histogram.update, case["scores"], wrong)
        watch.time("budgets_score", budgets["score"].update, f"case{number}", **case)
        known = {"reference": case["reference"], "model": case["model"], "answers": case["answer"][None]}
        watch.time("budgets_oracle", budgets["oracle"].update, f"case{number}", **known)
        if number == 0:
            watch.time("argsort", np.argsort, case["scores"][:PIECE])
    found = watch.time("risk_coverage", risk_coverage_of_voxels, histogram)
    area, *_ = (watch.time("risk_coverage", part) for part in (found.augrc, found.aurc, found.curve))
    dice = {}
    for name, ranking in budgets.items():
        results = watch.time(f"budgets_{name}", ranking.at, (0, 0.01))
        dice[name] = [each.foreground_mean for each in results]
    return {
        "AUGRC": area.area,
        "AUGRC_optimum": area.optimum,
        "Dice_0": dice["score"][0],
        "Dice_1_percent": dice["score"][1],
        "recovered_1_percent": recovered_gain(dice["score"][1], dice["score"][0], dice["oracle"][1]),
    }


def main() -> None:
    """Measure and write the results; exits with an error if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-cases", type=int, default=24)
    parser.add_argument("-voxels", type=int, default=256 * 256 * 64, help="voxels per case")
    options = parser.parse_args()
    before, watch = peak_memory_mib(), Stopwatch()
    found = score_all(options, watch)
    number = options.cases * options.voxels
    argsort = watch.seconds.pop("argsort") * number / min(PIECE, options.voxels)
    content = {
        "what": f"{number} voxels in {options.cases} cases, {len(REGIONS)} regions",
        "ratios_to_argsort": {what: round(seconds / argsort, 3) for what, seconds in watch.seconds.items()},
        "seconds_of_one_core": {what: round(seconds, 1) for what, seconds in watch.seconds.items()},
        "million_voxels_per_second": {
            what: round(number / seconds / 1e6, 1) for what, seconds in watch.seconds.items()
        },
        "memory_mib": {
            "after_imports": round(before),
            "peak": round(peak_memory_mib()),
            "limit": LIMIT_MIB,
        },
        "results": {name: round(value, 5) for name, value in found.items()},
        "machine": {
            "device": f"CPU, {os.cpu_count()} cores",
            "machine": platform.machine(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "date": date.today().isoformat(),
    }
    file = RESULTS / f"evaluation_memory_{options.cases}x{options.voxels}.json"
    RESULTS.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=4) + "\n")
    print(f"\n{file}\n{json.dumps(content, indent=4)}")
    if peak_memory_mib() > LIMIT_MIB:
        raise SystemExit(f"peak memory {peak_memory_mib():.0f} MiB exceeds the limit of {LIMIT_MIB} MiB")


if __name__ == "__main__":
    main()
