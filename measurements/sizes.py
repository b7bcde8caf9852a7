"""Measures the size of each file that a prediction writes for a case, in 2D and in 3D.

    python measurements/sizes.py

A case is exported from logits of the preprocessed case as nnUNetv2_predict does with `--save_probabilities`, a
calibration that reads answers as evidence, and `nnUNet_deferral_folds=1` for five folds. It is that of
measurements/export.py, one object with smooth noise; how far real maps are compressed depends on the images. Results
are written to measurements/results/sizes.json with the date.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
from export import CLASSES, EXPERTS, RESULTS, case_of, logits_of

FOLDS = 5
# Shape of the preprocessed case and of the image, and the file ending.
CASES = {
    "2D": ((1, 512, 512), (1, 512, 512), ".png"),
    "3D": ((80, 128, 128), (150, 256, 256), ".nii.gz"),
}


def export_with_folds(name: str, root: Path) -> dict[str, int]:
    """Export one of the cases; returns the size of each of its files in bytes."""
    import torch
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    from nnunetv2_deferral.folds import EnsembleIdentity
    from nnunetv2_deferral.nnunet.export import export_prediction_from_logits
    from nnunetv2_deferral.nnunet.fold_export import FoldsConfiguration, StoredFolds
    from nnunetv2_deferral.nnunet.managers import DeferralPlansManager

    predicted, image, ending = CASES[name]
    plans, configuration, properties, dataset = case_of("evidence", predicted, image)
    if ending == ".png":
        plans.plans["image_reader_writer"] = NaturalImage2DIO.__name__
    dataset["file_ending"] = ending
    DeferralPlansManager.adopt(plans)
    logits = torch.from_numpy(logits_of(predicted)).half()
    names = tuple(str(fold) for fold in range(FOLDS))
    ensemble = EnsembleIdentity(dataset="D", plans="P", configuration="C", trainer="T", folds=names)
    stored = StoredFolds(root / "logits", ensemble)
    stored.folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for place in range(FOLDS):
        shifted = logits[:CLASSES].float() + 0.5 * torch.randn(CLASSES, 1, 1, 1, generator=generator)
        stored.write(place, shifted.half())
    output = root / "out"
    output.mkdir()
    export_prediction_from_logits(
        logits, properties, FoldsConfiguration(configuration, stored), plans, dataset, str(output / "case"), True, 1
    )
    kinds = {
        "mask": f"case{ending}",
        "probabilities": "case.npz",
        **{kind: f"deferral/{kind}/case{ending}" for kind in ("route", "probability", "expert", "gain")},
        "gains": "deferral/gains/case.npz",
        "prior": "deferral/prior/case.npz",
        "routing": "deferral/routing/case.npz",
        "mutual_information": f"deferral/mutual_information/case{ending}",
        "fold": f"deferral/folds/0/case{ending}",
    }
    return {kind: (output / file).stat().st_size for kind, file in kinds.items()}


def main() -> None:
    """Measure both cases and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no_results", action="store_true", help="only print")
    given = parser.parse_args()
    found = {}
    for name, (_, image, ending) in CASES.items():
        with tempfile.TemporaryDirectory(prefix="sizes_") as folder:
            sizes = export_with_folds(name, Path(folder))
        found[name] = {"image": image, "file_ending": ending, "voxels": int(np.prod(image)), "bytes": sizes}
        print(name, sizes, flush=True)
    if given.no_results:
        return
    content = {
        "classes": CLASSES,
        "experts": EXPERTS,
        "cases": found,
        "date": date.today().isoformat(),
    }
    (RESULTS / "sizes.json").write_text(json.dumps(content, indent=4) + "\n")


if __name__ == "__main__":
    main()
