"""Measures what the entry of one more case costs in a folder of predictions, and reading all entries.

    python measurements/many_cases.py                      # folders with 10^3, 10^4 and 10^5 cases
    python measurements/many_cases.py -numbers 1000

The entry of a case must not take more than 5 ms, whatever the number of cases. Results are written to
measurements/results/many_cases.json with the machine and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_deferral import maps
from nnunetv2_deferral.settings import resolve_settings

RESULTS = Path(__file__).parent / "results"
LIMIT_MS = 5.0
REPETITIONS = 50


def measure(root: Path, number: int) -> dict[str, float]:
    """Milliseconds of an entry in a folder of so many cases, and seconds of reading them all."""
    settings = resolve_settings({"num_experts": 3})
    identity = maps.ModelIdentity(
        dataset="Dataset999_Many", plans="nnUNetPlans", configuration="2d", trainer="T", experts=settings.expert_names
    )
    folder = maps.DeferralFolder(
        folder=root, file_ending=".nii.gz", writer=SimpleITKIO(), model=identity, settings=settings
    )
    entry = {"deferral_rate": 0.01, "share": dict.fromkeys(settings.expert_names, 0.0), "largest_gain": 0.1}
    folder._enter("first", entry)
    first = maps.case_file(root, "first")
    for place in range(number - 1):
        shutil.copyfile(first, maps.case_file(root, f"case_{place}"))
    times = []
    for place in range(REPETITIONS):
        began = perf_counter()
        folder._enter(f"more_{place}", entry)
        times.append(1000 * (perf_counter() - began))
    began = perf_counter()
    maps.read_index(root)
    return {"entry_ms": round(median(times), 2), "read_all_seconds": round(perf_counter() - began, 2)}


def main() -> None:
    """Measure and write the results; exits with an error if the limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-numbers", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="numbers of cases")
    found = {}
    for number in parser.parse_args().numbers:
        with tempfile.TemporaryDirectory(prefix="many_cases_") as name:
            found[str(number)] = measure(Path(name), number)
        print(number, found[str(number)], flush=True)
    machine = {"device": f"CPU, {os.cpu_count()} cores", "machine": platform.machine()}
    content = {"cases": found, "limit_ms": LIMIT_MS, "machine": machine, "date": date.today().isoformat()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "many_cases.json").write_text(json.dumps(content, indent=4) + "\n")
    slowest = max(each["entry_ms"] for each in found.values())
    if slowest > LIMIT_MS:
        raise SystemExit(f"an entry takes {slowest} ms, more than {LIMIT_MS} ms")


if __name__ == "__main__":
    main()
