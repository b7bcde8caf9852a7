"""Working times of a review: what is recorded of an answer, and the figures fitted to many."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from small_review import write_volumes

from nnunetv2_deferral.commands.worklist import main
from nnunetv2_deferral.decision.effort import WorkTime, border_lengths_mm
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.review.work_times import chosen_time, fit_times

CASE = "case_a"


def write_index(folder, answers, **more):
    """A review with answers (minutes, regions, expected cm, edited regions) of ann, one for each case."""
    folder.mkdir(exist_ok=True)
    cases = {
        f"case_{number}": {
            "ann": {
                "minutes": minutes,
                "regions": regions,
                "effort": {"expected_edit_cm": length, "edited_regions": edited},
                **more,
            }
        }
        for number, (minutes, regions, length, edited) in enumerate(answers)
    }
    (folder / "review.json").write_text(json.dumps({"cases": cases}))
    return folder


def answers_of(look, cm, noise=0.0, number=20):
    """Answers that take so long, with random numbers of regions and lengths."""
    random = np.random.default_rng(0)
    regions, length = random.integers(1, 6, number), random.uniform(2, 60, number)
    minutes = look * regions + cm * length + noise * random.normal(size=number)
    return [(max(m, 0), int(n), cm_, 1) for m, n, cm_ in zip(minutes.tolist(), regions, length.tolist(), strict=True)]


def test_an_answer_records_the_border_that_was_expected_and_what_was_edited(tmp_path, serve):
    served = serve(write_volumes(tmp_path))
    ann = served.browser("ann")
    regions, model = ann.volume(CASE, "regions", np.uint16), ann.volume(CASE, "model")
    voxel = int(np.flatnonzero(regions == 2)[0])
    assert ann.save(CASE, 0, [[voxel, 1, 1 - int(model.ravel()[voxel])]], [1, 2]).status_code == 200
    assert ann.post(f"/api/cases/{CASE}/submit", json={"revision": 1}).status_code == 200
    record = json.loads((served.folders.reviews / "review.json").read_text())["cases"][CASE]["ann"]
    case = PredictionFolder.open(served.folders.predictions).case(CASE)
    # The small prediction is certain of all that it defers.
    length = border_lengths_mm((case.route == 1).astype(np.int32), case.spacing).item() / 10
    assert record["effort"] == {"expected_edit_cm": round(length, 2), "edited_regions": 1}
    with pytest.raises(InputError, match=r"review\.json: working times require at least 30 .* there are 2$"):
        fit_times(served.folders.reviews)


def test_exact_times_are_found_again(tmp_path):
    fitted = fit_times(write_index(tmp_path, answers_of(0.3, 0.07)))
    assert asdict(fitted.time) == pytest.approx({"minutes_per_region": 0.3, "minutes_per_cm": 0.07})
    assert (fitted.r_squared, fitted.mean_error) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert (fitted.answers, fitted.remarks) == (20, ())
    assert str(fitted).startswith(
        "0.3 minutes per region and 0.07 per cm of border, fitted to 65 regions in 20 answers ("
    )


def test_with_noise_they_are_near(tmp_path):
    fitted = fit_times(write_index(tmp_path, answers_of(0.3, 0.07, noise=0.3, number=200)))
    assert asdict(fitted.time) == pytest.approx({"minutes_per_region": 0.3, "minutes_per_cm": 0.07}, rel=0.15)
    assert 0.8 < fitted.r_squared < 1
    assert fitted.mean_error == pytest.approx(0.3 * np.sqrt(2 / np.pi), rel=0.2)


def test_of_few_answers_it_says_so(tmp_path):
    assert "few answers" in str(fit_times(write_index(tmp_path, [(9.0, 15, 60.0, 3), (8.0, 15, 90.0, 3)])))


def test_where_nothing_was_edited_the_time_for_a_cm_is_the_default(tmp_path):
    answers = [(minutes, regions, length, 0) for minutes, regions, length, _ in answers_of(0.2, 0.0)]
    fitted = fit_times(write_index(tmp_path, answers))
    assert asdict(fitted.time) == pytest.approx({"minutes_per_region": 0.2, "minutes_per_cm": 0.04})
    assert "no region was edited" in str(fitted)


def test_where_all_borders_are_as_long_the_time_for_a_cm_is_the_default(tmp_path):
    answers = [(0.5 * regions + 0.04 * 10 * regions, regions, 10.0 * regions, 1) for regions in (2, 3, 4) * 5]
    fitted = fit_times(write_index(tmp_path, answers))
    assert asdict(fitted.time) == pytest.approx({"minutes_per_region": 0.5, "minutes_per_cm": 0.04})
    assert "all borders are about equally long" in str(fitted)


def test_where_lengths_explain_all_the_time_for_a_look_is_the_default(tmp_path):
    fitted = fit_times(write_index(tmp_path, [(0.5 * cm - 0.1 * n, n, cm, 1) for _, n, cm, _ in answers_of(0, 0)]))
    assert fitted.time.minutes_per_region == 0.15
    assert fitted.time.minutes_per_cm > 0.3
    assert "the lengths explain all of the time" in str(fitted)


def test_answers_that_are_other_work_are_left_out_and_counted(tmp_path):
    write_index(tmp_path, answers_of(0.3, 0.07))
    index = json.loads((tmp_path / "review.json").read_text())
    (records,) = ([of["ann"] for of in index["cases"].values()],)
    records[0]["blind_start"], records[0]["minutes"] = True, 99
    records[1]["minutes"] = 99
    del records[2]["effort"]
    (tmp_path / "review.json").write_text(json.dumps(index))
    (tmp_path / ".review").mkdir()
    entries = [{"event": "uploaded", "expert": "ann", "case": "case_1"}, {"event": "saved", "note": '"uploaded"'}]
    log = tmp_path / ".review" / "log.jsonl"
    log.write_text(
        "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries) + '{"event":"uploaded"'
    )
    fitted = fit_times(tmp_path)
    assert fitted.answers == 17
    assert fitted.mean_error == pytest.approx(0, abs=1e-9)
    index["cases"] = {name: index["cases"][name] for name in ("case_0", "case_1", "case_2")}
    (tmp_path / "review.json").write_text(json.dumps(index))
    why = r"there are 0 \(answers left out: 1 of an earlier version, 1 without sight of the model's mask, 1 uploaded\)"
    with pytest.raises(InputError, match=why):
        fit_times(tmp_path)
    log.write_text('{"event":"uploaded"}\n')
    with pytest.raises(InputError, match=r"log\.jsonl cannot be read"):
        fit_times(tmp_path)


def test_a_review_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"review\.json is missing"):
        fit_times(tmp_path)
    write_index(tmp_path, [(-1.0, 40, 3.0, 1)])
    with pytest.raises(InputError, match=r"review\.json: cases\.case_0\.ann\.minutes must be"):
        fit_times(tmp_path)


def test_figures_are_given_or_fitted(tmp_path):
    assert chosen_time(None, None, None) == (WorkTime(), None)
    assert chosen_time(None, 0.5, None) == (WorkTime(minutes_per_region=0.5), None)
    with pytest.raises(InputError, match="-times_from fits the working time, which -minutes_per_cm gives"):
        chosen_time(tmp_path, None, 0.0)


def test_a_worklist_says_what_its_minutes_are_fitted_to(tmp_path, capsys):
    folders = write_volumes(tmp_path, cases=(CASE,))
    write_index(tmp_path / "old", answers_of(0.3, 0.07))
    call = ["-i", folders.predictions, "-o", tmp_path / "list", "--no_pictures", "-times_from", tmp_path / "old"]
    main(list(map(str, call)))
    content = json.loads((tmp_path / "list" / "worklist.json").read_text())
    assert content["arguments"]["minutes_per_cm"] == pytest.approx(0.07)
    assert (content["times"]["from"], content["times"]["answers"]) == (str(tmp_path / "old"), 20)
    for row in content["regions"]:
        assert row["minutes"] == pytest.approx(0.3 + 0.07 * row["probability"] * row["border_mm"] / 10, abs=1e-3)
    assert "working time: 0.3 minutes per region and 0.07 per cm of border" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*map(str, call), "--overwrite", "-minutes_per_region", "1"])
    assert "-times_from fits the working time" in capsys.readouterr().err
