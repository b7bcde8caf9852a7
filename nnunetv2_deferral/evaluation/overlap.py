"""Overlap of label maps, nested as in nnU-Net's summary.json, with Sensitivity in addition to Dice and IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Region = int | tuple[int, ...]
CaseMetrics = dict[str, dict[str, float]]


def overlap(
    reference: np.ndarray, prediction: np.ndarray, regions: Sequence[Region], valid: np.ndarray | None = None
) -> CaseMetrics:
    """Dice, IoU and Sensitivity of each label or region, over the voxels that count.

    Args:
        reference: Label map, integer, any shape.
        prediction: Label map of the same shape.
        regions: The labels, or tuples of labels, to score.
        valid: Bool of the same shape, the voxels that count, or None for all.

    Returns:
        For each region, keyed as in nnU-Net's summaries, the three scores and TP, FP, FN, TN, n_pred, n_ref. Dice and
        IoU are NaN if neither map has the region, Sensitivity if the reference does not have it.
    """
    metrics = {}
    for region in regions:
        truth, found = (region_mask(labels, region) for labels in (reference, prediction))
        if valid is not None:
            truth, found = truth & valid, found & valid
        tp = int(np.count_nonzero(truth & found))
        fp, fn = int(np.count_nonzero(found)) - tp, int(np.count_nonzero(truth)) - tp
        tn = int(reference.size if valid is None else np.count_nonzero(valid)) - tp - fp - fn
        metrics[region_key(region)] = {
            "Dice": _ratio(2 * tp, 2 * tp + fp + fn),
            "IoU": _ratio(tp, tp + fp + fn),
            "Sensitivity": _ratio(tp, tp + fn),
            "TP": tp,
            "FP": fp,
            "FN": fn,
            "TN": tn,
            "n_pred": tp + fp,
            "n_ref": tp + fn,
        }
    return metrics


def region_mask(labels: np.ndarray, region: Region) -> np.ndarray:
    """The voxels of a label, or of any label of a region: bool of the shape of `labels`."""
    members = region if isinstance(region, tuple | list) else (region,)
    return np.logical_or.reduce([labels == member for member in members])


def region_key(region: Region) -> str:
    """The key of a label or region in nnU-Net's summaries."""
    return str(region)


def summarize(cases: Mapping[str, CaseMetrics]) -> dict[str, Any]:
    """Means over cases, nested as in nnU-Net; undefined (NaN) scores are ignored and their number is reported.

    Returns:
        `{"mean": {region: scores}, "foreground_mean": scores, "metric_per_case": [...]}`, where each `scores` in
        `mean` also has `n_undefined`, the number of cases with an undefined Dice, and with scores of surfaces
        `n_undefined_HD95`. A mean without values is NaN.
    """
    regions = list(next(iter(cases.values()), {}))
    mean = {}
    for region in regions:
        rows = [metrics[region] for metrics in cases.values()]
        mean[region] = {key: _mean([row[key] for row in rows]) for key in rows[0]}
        mean[region]["n_undefined"] = _undefined([row["Dice"] for row in rows])
        if "HD95" in rows[0]:
            mean[region]["n_undefined_HD95"] = _undefined([row["HD95"] for row in rows])
    keys = [key for key in next(iter(mean.values()), {}) if not key.startswith("n_undefined")]
    return {
        "foreground_mean": {key: _mean([scores[key] for scores in mean.values()]) for key in keys},
        "mean": mean,
        "metric_per_case": [{"case": case, "metrics": metrics} for case, metrics in cases.items()],
    }


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")


def _undefined(values: Sequence[float]) -> int:
    return sum(int(np.isnan(value)) for value in values)


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
