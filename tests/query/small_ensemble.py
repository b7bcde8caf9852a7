"""Folders of predictions with saved probabilities, as `nnUNetv2_predict --save_probabilities` writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from small_prediction import LABELS, write_mask

SHAPE = (6, 12, 14)
CASES = ("x", "y", "z")


def write_ensemble(
    root: Path,
    *,
    folds: Sequence[str] = ("fold_0", "fold_1"),
    cases: Sequence[str] = CASES,
    labels: Mapping[str, Any] = LABELS,
    shape: tuple[int, ...] = SHAPE,
    absent: Sequence[int] = (),
    **content: Any,
) -> list[Path]:
    """Random probabilities of each label, the mask of the highest, and dataset.json, in a folder of each fold."""
    foreground = [value for name, value in labels.items() if name not in ("background", "ignore")]
    has_regions = any(isinstance(value, list) for value in foreground)
    for number, fold in enumerate(folds):
        folder = root / fold
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"} | content))
        for place, case in enumerate(cases):
            random = np.random.default_rng([number, place])
            found = random.random((len(foreground) + (not has_regions), *shape)) ** 3
            found[list(absent)] = 0
            if not has_regions:
                found /= found.sum(0)
            mask = (found[0] > 0.5).astype(np.uint8) if has_regions else found.argmax(0).astype(np.uint8)
            write_mask(folder / f"{case}.nii.gz", mask)
            np.savez_compressed(folder / f"{case}.npz", probabilities=found.astype(np.float16).astype(np.float32))
    return [root / fold for fold in folds]
