"""Tables of the page docs/results/training.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from result_tables.shared import (
    NONE,
    STOCK,
    Rows,
    benchmark_table,
    markdown_table,
    percent,
    read_json,
    small_print,
)


def stock_and_deferral() -> str:
    """Stock and deferral trainings of 5 epochs, fold 0, of the 2D and the 3D dataset."""
    header = ("dataset", "trainer", "Dice of the model", "Dice of the system", "deferred", "by expert", "experts alone")
    rows: Rows = []
    sources = []
    for name in ("004_3d_fullres", "501_2d"):
        content = read_json(f"compare_{name}_nnUNetDeferralCPUPlans_fold0_5epochs.json")
        rows += [_compared(content, row) for row in content["rows"]]
        sources.append(f"{content['dataset']}: {content['cases']} cases, {content['machine']}, {content['date']}")
    return markdown_table(header, rows) + f"\n\n{small_print('; '.join(sources))}"


def joint_folds() -> str:
    """Stock and deferral trainings on two further folds."""
    return benchmark_table(
        "dataset501_2d_joint_5epochs", {STOCK: "stock", "nnUNetTrainerDeferral3Experts_DC_5epochs": "`_DC`"}
    )


def joint_3d() -> str:
    """Stock and deferral to one expert on the 3D dataset."""
    names = {STOCK: "stock", "nnUNetTrainerDeferral1Expert_DC_5epochs": "`1Expert_DC`"}
    return benchmark_table("dataset004_3d_joint_5epochs", names)


def _compared(content: Mapping[str, Any], row: Mapping[str, Any]) -> Sequence[str]:
    dataset = content["dataset"].split("_")[0]
    if "system" not in row:
        return (dataset, f"`{row['trainer']}`", f"{row['model']:.3f}", *[NONE] * 4)
    shares = ", ".join(percent(share) for share in row["share"].values())
    alone = ", ".join(f"{dice:.3f}" for dice in row["experts"].values())
    scores = (f"{row['model']:.3f}", f"{row['system']:.3f}")
    return (dataset, f"`{row['trainer']}`", *scores, percent(row["rate"]), shares, alone)


TABLES = (stock_and_deferral, joint_folds, joint_3d)
