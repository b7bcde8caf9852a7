"""Measures processor time and memory of answers as evidence on one large case, step by step.

    python measurements/evidence_memory.py                      # 10^7 and 10^8 voxels
    python measurements/evidence_memory.py -voxels 1000000

The case has one foreground class; the model is unsure in 2 % of the voxels, scattered over the whole image, so that
nothing can be left out. Three experts are asked in two rounds, two at most about a voxel. Steps run in a process of
their own for each size; memory is what they take at most besides their input, the probabilities. Results are written
to measurements/results/ with the machine and the date; no step may take more than 2 GiB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nnunetv2_deferral.decision.gains import find_candidates
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.evidence.questions import Policy, ask

RESULTS = Path(__file__).parent / "results"
LIMIT_MIB = 2 * 1024
EXPERTS = {"ann": 0.95, "bob": 0.9, "cat": 0.8}
UNSURE, BUDGET = 0.02, 0.005  # shares of the voxels
Found = TypeVar("Found")


def probabilities_of(voxels: int) -> np.ndarray:
    """Foreground and background, float32 (2, z, 512, 512), with as many voxels at least."""
    generator = np.random.default_rng(0)
    shape = (-(-voxels // 512**2), 512, 512)
    found = np.empty((2, *shape), dtype=np.float32)
    for inside, outside in zip(found[1], found[0], strict=True):
        unsure = generator.random((512, 512)) < UNSURE
        inside[...] = np.where(unsure, generator.random((512, 512)), 1e-5)
        np.subtract(1, inside, out=outside)
    return found


def steps(voxels: int) -> dict[str, Any]:
    """Seconds of a processor and MiB of each step."""
    said = probabilities_of(voxels)
    before = peak_mib()
    model = EvidenceModel.simple(EXPERTS)
    found: dict[str, Any] = {"voxels": said[0].size}

    def timed(name: str, work: Callable[[], Found]) -> Found:
        begin = time.process_time()
        result = work()
        found[name] = {"seconds": round(time.process_time() - begin, 1), "peak_mib": round(peak_mib() - before)}
        return result

    case = timed("prior and candidates", lambda: find_candidates(model, said, spacing_mm=(1.0, 1.0, 1.0)))
    found["candidates"] = case.index.size
    generator = np.random.default_rng(1)
    answers = (generator.random((len(EXPERTS), case.index.size)) < 0.5).astype(np.int16)
    nobody = np.zeros(answers.shape, dtype=bool)
    timed("value", lambda: model.values(case, answers, nobody))
    budget = int(BUDGET * said[0].size)
    rounds, _ = timed("rounds", lambda: ask(model, [(case, answers)], Policy(rounds=2, most=2), budget=budget))
    timed("posterior", lambda: model.posterior(case, answers, rounds[-1][0]))
    return found


def peak_mib() -> float:
    """The peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and write the results; exits with an error if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-voxels", type=int, nargs="+", default=[10**7, 10**8])
    sizes = []
    for voxels in parser.parse_args().voxels:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sizes.append(pool.apply(steps, (voxels,)))
        print(json.dumps(sizes[-1], indent=4), flush=True)
    machine = {
        "device": f"CPU, {os.cpu_count()} cores",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    content = {"sizes": sizes, "limit_mib": LIMIT_MIB, "machine": machine, "date": date.today().isoformat()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "evidence_memory.json").write_text(json.dumps(content, indent=4) + "\n")
    most = max(step["peak_mib"] for size in sizes for step in size.values() if isinstance(step, dict))
    if most > LIMIT_MIB:
        raise SystemExit(f"{most} MiB exceed the limit of {LIMIT_MIB} MiB")


if __name__ == "__main__":
    main()
