"""The fixture of a made-up nnU-Net workplace."""

import json
from pathlib import Path

import pytest
from made_up_workplace import CASES, LABELS, SPLITS, Workplace, disc, write, write_plans


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """A preprocessed dataset of six 2D cases in two folds, with plans, and nothing trained."""
    here = Workplace(tmp_path)
    here.use(monkeypatch)
    monkeypatch.delenv("nnUNet_extTrainer", raising=False)
    for folder in (here.preprocessed / "gt_segmentations", here.preprocessed / "nnUNetPlans_2d", here.raw):
        folder.mkdir(parents=True)
    content = {"channel_names": {"0": "image"}, "labels": LABELS, "numTraining": 6, "file_ending": ".png"}
    for folder in (here.preprocessed, here.raw):
        (folder / "dataset.json").write_text(json.dumps(content))
    (here.preprocessed / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1]] * 6}))
    (here.preprocessed / "splits_final.json").write_text(json.dumps(SPLITS))
    write_plans(here, "nnUNetPlans")
    for number, case in enumerate(CASES):
        write(here.preprocessed / "gt_segmentations" / f"{case}.png", disc(number))
        (here.preprocessed / "nnUNetPlans_2d" / f"{case}.pkl").write_bytes(b"")
    return here
