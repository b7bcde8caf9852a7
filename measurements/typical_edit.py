"""Measures the border of a typical edit: of regions in which a reader differs from the reference.

    python measurements/typical_edit.py -d Dataset505_LIDCnodule3D

The dataset in nnUNet_raw has labelsTr, and readers' masks in expertsTr/<reader>. A region is a region as of deferral:
pieces that lie close together. Results are written to measurements/results/typical_edit_<dataset>.json with the machine
and the date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import date
from pathlib import Path

import numpy as np

from nnunetv2_deferral.dataset import DatasetFiles, read_dataset_json
from nnunetv2_deferral.decision.effort import border_lengths_mm
from nnunetv2_deferral.decision.regions import region_labels

RESULTS = Path(__file__).parent / "results"


def borders_cm(dataset: Path) -> list[float]:
    """The length of the border of each region, in cm by the spacing in the files."""
    labels = dataset / "labelsTr"
    ending = read_dataset_json(dataset / "dataset.json")["file_ending"]
    files = DatasetFiles.of(dataset / "dataset.json", next(labels.glob(f"*{ending}")))
    found: list[float] = []
    for case in files.cases(labels):
        reference, properties = files.read(labels / f"{case}{ending}")
        for reader in sorted((dataset / "expertsTr").iterdir()):
            if (file := reader / f"{case}{ending}").is_file():
                regions = region_labels((files.read(file)[0] != reference).astype(np.uint8))
                found += (border_lengths_mm(regions, properties["spacing"]) / 10).tolist()
    return found


def main() -> None:
    """Measure a dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", metavar="DATASET", required=True, help="name of the dataset")
    dataset = parser.parse_args().d
    found = borders_cm(Path(os.environ["nnUNet_raw"]) / dataset)
    low, median, high = np.percentile(found, (25, 50, 75)).round(1).tolist()
    content = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "dataset": dataset,
        "regions": len(found),
        "border_cm": {"median": median, "quartiles": [low, high], "mean": round(float(np.mean(found)), 1)},
    }
    (RESULTS / f"typical_edit_{dataset}.json").write_text(json.dumps(content, indent=4) + "\n")
    print(json.dumps(content, indent=4))


if __name__ == "__main__":
    main()
