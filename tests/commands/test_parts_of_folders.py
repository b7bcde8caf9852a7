"""Parts of folders that have more than maps, or fewer maps: the same result as a single call, or refused before."""

import json
import shutil

import numpy as np
import pytest
from close_to import assert_close
from small_prediction import GEOMETRY, reader_of, write_study

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands import evaluate, query, worklist
from nnunetv2_deferral.defaults import MAPS
from nnunetv2_deferral.folds import EnsembleIdentity, FoldsFolder
from nnunetv2_deferral.predictions import PredictionFolder

COMMANDS = {
    "evaluate": (evaluate, ("-ref", "labels", "-experts", "experts"), "deferral_summary.json"),
    "worklist": (worklist, ("--no_pictures", "-max_regions", "3"), "worklist.json"),
    "query": (query, ("-strategy", "gain", "-n", "4", "-patch", "2", "3", "4"), "query.json"),
}
PER_PART = ["-num_parts", "2", "-part_id"]


def call(root, name, *more):
    command, words, result = COMMANDS[name]
    here = [str(root / word) if word in ("labels", "experts") else word for word in words]
    command.main(["-i", str(root / "in"), "-o", str(root / "out"), *here, *more])
    file = root / "out" / result
    return json.loads(file.read_text()) if file.is_file() else None


def write_folds(root):
    """Masks of two folds and their mutual information, as they are predicted with the ensemble."""
    folder = PredictionFolder.open(root / "in")
    ensemble = EnsembleIdentity(dataset="D", plans="P", configuration="2d", trainer="T", folds=("0", "1"))
    written = FoldsFolder(folder=root / "in", file_ending=".nii.gz", writer=reader_of(".nii.gz"), ensemble=ensemble)
    written.enter()
    for name in folder.cases:
        case = folder.case(name)
        for fold in ensemble.folds:
            written.write_mask(name, fold, np.roll(case.model, int(fold), -1).astype(np.uint8), GEOMETRY)
        written.write_information(name, case.probability, GEOMETRY)


@pytest.mark.parametrize("name", COMMANDS)
def test_parts_of_a_folder_with_masks_of_folds_are_one_call(tmp_path, name):
    write_study(tmp_path)
    write_folds(tmp_path)
    whole = call(tmp_path, name)
    shutil.rmtree(tmp_path / "out")
    for part in ("1", "0"):
        assert call(tmp_path, name, *PER_PART, part) is None
    assert_close(call(tmp_path, name, "--merge"), whole)
    if name == "evaluate":
        assert {"fold_disagreement", "mutual_information, mean"} <= whole["failure_detection"].keys()


@pytest.mark.parametrize(("changed", "named"), [("labels", "references"), ("experts/ann", "experts' masks")])
def test_parts_from_before_references_or_answers_changed_are_refused(tmp_path, capsys, changed, named):
    write_study(tmp_path)
    for part in ("0", "1"):
        call(tmp_path, "evaluate", *PER_PART, part)
    next((tmp_path / changed).iterdir()).touch()
    with pytest.raises(SystemExit):
        call(tmp_path, "evaluate", "--merge")
    assert f"(state of the {named} is " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_processes_of_a_folder_with_masks_of_folds_are_one_call(tmp_path, name):
    write_study(tmp_path)
    write_folds(tmp_path)
    whole = call(tmp_path, name)
    shutil.rmtree(tmp_path / "out")
    assert_close(call(tmp_path, name, "-np", "2"), whole)


@pytest.mark.parametrize("kinds", [("route",), ("route", "gain")])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_needs_a_map_that_was_not_written_says_so_before_any_part(tmp_path, capsys, name, kinds):
    write_study(tmp_path)
    for kind in set(MAPS) - set(kinds):
        shutil.rmtree(tmp_path / "in" / "deferral" / kind)
    index = maps.index_file(tmp_path / "in")
    index.write_text(json.dumps(json.loads(index.read_text()) | {"maps": list(kinds)}))
    needed = ("probability", "gain") if name == "worklist" else MAPS
    lacking = " ".join(kind for kind in needed if kind not in kinds)
    for words in ([*PER_PART, "0"], ["-np", "2"], ["--merge"]):
        with pytest.raises(SystemExit) as ended:
            call(tmp_path, name, *words)
        assert ended.value.code == 2
        said = capsys.readouterr()
        assert f"does not have the maps {lacking}, which are needed here" in said.err
        assert f"according to {index} it was predicted with {' '.join(kinds)} only" in said.err
        assert not said.out
        assert not (tmp_path / "out").exists()


def test_a_query_by_the_score_of_the_papers_objective_does_not_call_it_dice(tmp_path, capsys):
    write_study(tmp_path)
    index = maps.index_file(tmp_path / "in")
    content = json.loads(index.read_text())
    for objective, is_dice in (("collaboration", False), ("one_vs_all", True)):
        content["settings"]["objective"] = objective
        index.write_text(json.dumps(content))
        found = call(tmp_path, "query", "--overwrite")
        assert ("Dice" in json.dumps(found) + capsys.readouterr().out.replace(str(tmp_path), "")) == is_dice
        assert all(("score 0." in row["why"]) != is_dice for row in found["regions"])
