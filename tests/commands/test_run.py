"""`nnUNetv2_deferral_run`: the commands of its jobs, and what it refuses before any of them runs."""

import json
import os

import pytest

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands.run import main
from nnunetv2_deferral.jobs.steps import Plan

MODEL = "-d Dataset901_Made -c 2d -f 0 -tr nnUNetTrainerDeferral -device cpu"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    model = tmp_path / "results" / "Dataset901_Made" / "nnUNetTrainerDeferral__nnUNetPlans__2d"
    model.mkdir(parents=True)
    labels = {"background": 0, "rim": 1}
    content = {"labels": labels, "channel_names": {"0": "red"}, "numTraining": 1, "file_ending": ".png"}
    (model / "dataset.json").write_text(json.dumps(content))
    monkeypatch.setattr("nnunetv2.utilities.file_path_utilities.nnUNet_results", str(tmp_path / "results"))
    (tmp_path / "images").mkdir()
    for case in "abcde":
        (tmp_path / "images" / f"{case}_0000.png").touch()
    return tmp_path


def plan(root, steps, num_parts=2, **options):
    words = {step: tuple(options.get(step, "").split()) for step in ("predict", "evaluate", "worklist")}
    return Plan(images=root / "images", output=root / "out", steps=steps, num_parts=num_parts, options=words)


def after_name(words):
    return list(words[1:])


def test_predictions_are_nnunets_own_with_its_own_parts(folders):
    ((first, second),) = plan(folders, ("predict",), predict=MODEL).jobs("predict")
    common = ["-i", str(folders / "images"), "-o", str(folders / "out/predictions"), *MODEL.split()]
    assert first.words[0].endswith("nnUNetv2_predict")
    assert after_name(first.words) == [*common, "-num_parts", "2", "-part_id", "0", "--continue_prediction"]
    masks = {case: folders / "out/predictions" / f"{case}.png" for case in "abcde"}
    entries = {case: maps.case_file(folders / "out/predictions", case) for case in "abcde"}
    assert list(first.outputs) == [file for case in "ace" for file in (masks[case], entries[case])]
    assert list(second.outputs) == [file for case in "bd" for file in (masks[case], entries[case])]


@pytest.mark.parametrize(("step", "last"), [("evaluate", []), ("worklist", ["--overwrite"])])
def test_parts_are_merged_by_a_last_job(folders, step, last):
    parts, (merge,) = plan(folders, (step,), **{step: "-np 2"}).jobs(step)
    folder = folders / "out" / {"evaluate": "evaluation"}.get(step, step)
    common = ["-i", str(folders / "out/predictions"), "-o", str(folder), "-np", "2"]
    assert [after_name(job.words) for job in parts] == [
        [*common, "-num_parts", "2", "-part_id", str(number)] for number in range(2)
    ]
    assert [job.outputs for job in parts] == [(folder / f"parts/part_{number}_of_2.pkl.gz",) for number in range(2)]
    assert after_name(merge.words) == [*common, "--merge", *last]
    assert len({job.reads for job in (*parts, merge)}) == 1
    ((only,),) = plan(folders, (step,), num_parts=1).jobs(step)
    assert after_name(only.words) == [*common[:4], *last]


@pytest.mark.parametrize("changed", ["out/predictions/deferral/cases/a.json", "labels/a.png", "groups.json"])
def test_what_a_step_reads_is_part_of_its_jobs(folders, changed):
    for name in ("out/predictions/deferral/cases/a.json", "labels/a.png", "groups.json", "images/notes.txt"):
        (folders / name).parent.mkdir(parents=True, exist_ok=True)
        (folders / name).write_text("{}")
    options = f"-ref {folders / 'labels'} -groups {folders / 'groups.json'}"

    def reads():
        return plan(folders, ("evaluate",), evaluate=options).jobs("evaluate")[0][0].reads

    before = reads()
    (folders / "images/notes.txt").write_text("not read")
    assert reads() == before
    os.utime(folders / changed, (1, 1))
    assert reads() != before


def test_parts_of_another_number_are_cleared(folders):
    kept, gone = (folders / "out/worklist/parts" / f"part_0_of_{of}.pkl.gz" for of in (2, 3))
    kept.parent.mkdir(parents=True)
    for file in (kept, gone):
        file.touch()
    plan(folders, ("worklist",)).clear("worklist")
    assert (kept.exists(), gone.exists()) == (True, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-predict", "-c 2d"], "options for predict: -d is required"),
        (["-predict", "-d Dataset901_Made -c 3d_fullres"], "nnUNetTrainer__nnUNetPlans__3d_fullres does not exist"),
        (["-predict", "-d 77 -c 2d"], "nnU-Net does not find dataset 77"),
        (["-predict", MODEL.replace("-f 0", "-f '0")], "options for predict cannot be read: No closing quotation"),
        (["-predict", f"{MODEL} -num_parts 3"], "-num_parts of predict is set by this command"),
        (["-steps", "worklist", "predict"], "steps must be some of predict, evaluate, worklist, in this order"),
        (["-steps", "predict", "-predict", MODEL, "-worklist", "-np 2"], "worklist are given, but it is not one of"),
        (["-predict", MODEL, "-worklist", "-regions 2"], "options for worklist: unrecognized arguments: -regions 2"),
        (["-predict", MODEL, "-worklist", "-images i -o out"], "-o of worklist is set by this command"),
        (["-predict", MODEL, "-worklist"], "argument -worklist: expected one argument"),
        (["-steps", "evaluate"], "options for evaluate: the following arguments are required: -ref"),
        (["-predict", MODEL, "-jobs", "0"], "at least one job must run at once (-jobs), got 0"),
        (["-predict", MODEL, "-num_parts", "0"], "the number of parts must be at least 1, got 0"),
        (["-predict", MODEL, "-executor", "submitit_local", "-job", "x"], "must be given as KEY=VALUE, got 'x'"),
    ],
)
def test_what_would_fail_in_every_job_is_refused_first(folders, capsys, monkeypatch, words, message):
    monkeypatch.setattr("nnunetv2_deferral.commands.run.run_plan", None)
    with pytest.raises(SystemExit) as ended:
        main(["-i", str(folders / "images"), "-o", str(folders / "out"), *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (folders / "out" / "predictions").exists()


def test_a_folder_without_images_is_refused(folders, capsys):
    with pytest.raises(SystemExit):
        main(["-i", str(folders / "results"), "-o", str(folders / "out"), "-predict", MODEL])
    assert "results has no images <case>_0000.png" in capsys.readouterr().err
