"""Measures what answers do to surfaces, besides the Dice: HD95 and the normalised surface distance of model and system.

    python measurements/surfaces.py -i VALIDATION -ref nnUNet_raw/DatasetX/labelsTr -name 501_2d [-surface_tolerance 1]

The validation folder of a deferral training is evaluated as by `nnUNetv2_deferral_evaluate -surface_tolerance`, with
simulated experts of each error model. Results are written to measurements/results/surfaces_<name>.json with the machine
and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from datetime import date
from pathlib import Path

from nnunetv2_deferral.commands import evaluate
from nnunetv2_deferral.evaluation.summary import SUMMARY_NAME
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES
from nnunetv2_deferral.files import read_json, write_json

RESULTS = Path(__file__).parent / "results"
SCORES = ("Dice", "HD95", "NSD")


def evaluated(options: argparse.Namespace, error_model: str) -> dict[str, object]:
    """Scores, means over cases and labels, of model and system with experts of an error model."""
    with tempfile.TemporaryDirectory() as output:
        given = {
            "-i": options.i,
            "-ref": options.ref,
            "-o": output,
            "-error_model": error_model,
            "-surface_tolerance": options.surface_tolerance,
        }
        evaluate.main([str(each) for pair in given.items() for each in pair])
        summary = read_json(Path(output, SUMMARY_NAME))
    of = {part: summary[part]["foreground_mean"] for part in ("model_everywhere", "system")}
    return {
        "cases": len(summary["deferral"]["per_case"]),
        "unit": summary["unit"],
        "trainer": summary["model_identity"]["trainer"],
        "rate": summary["deferral"]["rate"],
        **{part: {score: scores[score] for score in SCORES} for part, scores in of.items()},
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", type=Path, required=True, help="validation folder of a deferral training")
    parser.add_argument("-ref", type=Path, required=True, help="folder of the references")
    parser.add_argument("-name", required=True, help="of the file in measurements/results")
    parser.add_argument("-surface_tolerance", type=float, default=1.0)
    options = parser.parse_args()
    content = {
        "found": {error_model: evaluated(options, error_model) for error_model in ERROR_MODEL_NAMES},
        "tolerance": options.surface_tolerance,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU needed",
        "date": date.today().isoformat(),
    }
    write_json(content, RESULTS / f"surfaces_{options.name}.json")
    print(json.dumps(content, indent=4))


if __name__ == "__main__":
    main()
