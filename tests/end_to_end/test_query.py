"""A round of queries through the stock commands: predict, ask, answer, train on from the former network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from workplace import FLAT, Workplace, preprocess, read

NEXT = "Dataset903_Next"


@pytest.mark.slow
def test_answers_to_a_query_are_what_the_next_network_is_trained_on(
    workplace: Workplace, flat_deferral: Path, flat_prediction: Path, tmp_path: Path
) -> None:
    raw = workplace.raw / FLAT
    asked = workplace.command(
        "nnUNetv2_deferral_query", "-i", flat_prediction, "-o", tmp_path / "round", "-n", 6, "-patch", 12, 12,
        "--next_dataset", NEXT, "-answers", raw / "labelsTs", "-images", raw / "imagesTs",
    )  # fmt: skip
    assert "6 boxes in 2 cases by claspe" in asked.stdout
    assert f"{NEXT}: 2 cases" in asked.stdout
    for case in ("test_6", "test_7"):
        inside = read(tmp_path / "round" / "masks" / f"{case}.png") > 0
        labels = read(workplace.raw / NEXT / "labelsTr" / f"{case}.png")
        assert inside.sum() >= 2 * 144
        assert np.array_equal(labels, np.where(inside, read(raw / "labelsTs" / f"{case}.png"), 3))

    gain = workplace.command(
        "nnUNetv2_deferral_query", "-i", flat_prediction, "-o", tmp_path / "gain", "-n", 4, "-patch", 12, 12,
        "-strategy", "gain", "-round", 1, "-annotated", tmp_path / "round",
    )  # fmt: skip
    assert "  score 0." in gain.stdout  # of the paper's objective

    workplace.command("nnUNetv2_extract_fingerprint", "-d", NEXT[7:10], "-np", 1)
    workplace.command(
        "nnUNetv2_move_plans_between_datasets", "-s", FLAT, "-t", NEXT, "-sp", "nnUNetPlans", "-tp", "nnUNetPlans"
    )
    preprocess(workplace, NEXT)
    weights = flat_deferral / "checkpoint_final.pth"
    fold = workplace.train(NEXT, "2d", 0, "TinyDeferral3Experts", "-pretrained_weights", weights)
    splits = json.loads((workplace.preprocessed / NEXT / "splits_final.json").read_text())
    assert sorted(case for split in splits for case in split["val"]) == ["test_6", "test_7"]
    assert [file.stem for file in (fold / "validation").glob("*.png")] == splits[0]["val"]
