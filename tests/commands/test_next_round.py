"""Answers read as evidence from files, and further rounds of questions."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small_prediction import GEOMETRY, LABELS, deferral_folder, read_mask, write_mask

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands import fuse, parsers, route
from nnunetv2_deferral.commands.next_round import main
from nnunetv2_deferral.decision.calibrators import IDENTITY
from nnunetv2_deferral.decision.decide import decide
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.model_calibration import FittedEvidence, ModelCalibration
from nnunetv2_deferral.evaluation.folders import evaluate
from nnunetv2_deferral.evaluation.inputs import open_inputs
from nnunetv2_deferral.evidence.answer_tables import NUM_ZONES, AnswerTables
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.evidence.prior import Prior
from nnunetv2_deferral.evidence.structures import Structures
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.review.results import case_result
from nnunetv2_deferral.review.store import ReviewStore
from nnunetv2_deferral.review.study import Study
from nnunetv2_deferral.routing import routing_rule

EXPERTS, CASES, SHAPE = ("ann", "bob"), ("x", "y"), (4, 12, 14)
BUDGET = 0.05


def evidence_model() -> EvidenceModel:
    """Ann is right in 85 % of the voxels and Bob in 80 %, for each of the three labels."""
    right = np.array([0.85, 0.8])
    digits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    joint = np.stack([np.where(digits == truth, right, 1 - right).prod(1) for truth in (0, 1)])
    return EvidenceModel(
        structures=Structures((0, 1, 2)),
        experts=EXPERTS,
        prior=Prior(((0.0, 1.0, 0.0, 0.0),) * 3, 1.0),
        tables=AnswerTables(np.tile(joint, (3, NUM_ZONES, 1, 1))),
        neighbourhood=((0.0, 1.0, 0.9, 0.1),) * 3,
        later=((0.0, 1.0, 0.9, 0.2),) * 3,
    )


@pytest.fixture
def root(tmp_path):
    """A prediction `in` that was decided with an evidence model, `labels`, and the answers `experts`."""
    calibration = ModelCalibration(
        experts=EXPERTS,
        heads=(IDENTITY,) * 3,
        evidence=FittedEvidence(model=evidence_model(), answered_by=EXPERTS),
    )
    folder = tmp_path / "in"
    deferral = replace(deferral_folder(folder, ".nii.gz", EXPERTS), calibration=calibration)
    for number, case in enumerate(CASES):
        generator = np.random.default_rng(number)
        truth = generator.integers(0, 3, SHAPE)
        softmax = generator.dirichlet((0.6, 0.6, 0.6), SHAPE).astype(np.float32).transpose(3, 0, 1, 2)
        right = generator.random((3, *SHAPE), dtype=np.float32)
        decision = decide(
            right,
            rule=routing_rule("one_vs_all", costs=(0.0, 0.0)),
            limits=Limits(budget=BUDGET),
            spacing_mm=GEOMETRY["spacing"],
            calibration=calibration,
            softmax=softmax,
        )
        deferral.write(case, decision.maps, GEOMETRY, gains=decision.gains, prior=decision.prior)
        write_mask(folder / f"{case}.nii.gz", softmax.argmax(0).astype(np.uint8))
        write_mask(tmp_path / "labels" / f"{case}.nii.gz", truth.astype(np.uint8))
        for expert, share in zip(EXPERTS, (0.85, 0.8), strict=True):
            wrong = generator.random(SHAPE) > share
            answer = np.where(wrong, generator.integers(0, 3, SHAPE), truth)
            write_mask(tmp_path / "experts" / expert / f"{case}.nii.gz", answer.astype(np.uint8))
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "file_ending": ".nii.gz"}))
    return tmp_path


def run(root, *more, source="in", output="out", budget=BUDGET):
    main([str(word) for word in ("-i", root / source, "-answers", root / "experts", "-o", root / output,
                                 "-budget", budget, *more)])  # fmt: skip


def refused(capsys, *arguments, **options):
    with pytest.raises(SystemExit) as ended:
        run(*arguments, **options)
    assert ended.value.code == 2
    return capsys.readouterr().err.split(f"{parsers.next_round().prog}: error: ")[1]


def answers_of(root, case):
    return np.stack([read_mask(root / "experts" / expert / f"{case}.nii.gz") for expert in EXPERTS])


def test_fused_masks_have_the_most_probable_labels(root):
    report = fuse.fuse_folder(root / "in", root / "experts", root / "fused")
    assert report["answers"] == "evidence"
    for case in CASES:
        predicted = PredictionFolder.open(root / "in").case(case)
        answers, route, own = answers_of(root, case), predicted.route, predicted.model
        prior, fused = predicted.prior.logits, read_mask(root / "fused" / f"{case}.nii.gz")
        np.testing.assert_array_equal(fused[route == 0], own[route == 0])
        overruled = 0
        for place in np.argwhere(route > 0):
            at = tuple(place)
            expert = route[at] - 1
            said = answers[(expert, *at)]
            right = (0.85, 0.8)[expert]
            ratio = np.where(np.arange(3) == said, np.log(right / (1 - right)), np.log((1 - right) / right))
            # The neighbourhood counts little here: the label is clear where two are not nearly equal.
            posterior = np.sort(prior[(slice(None), *at)] + 0.9 * ratio)
            if posterior[-1] - posterior[-2] > 1:
                assert fused[at] == np.argmax(prior[(slice(None), *at)] + 0.9 * ratio)
            overruled += fused[at] != said
        assert report["cases"][case]["overruled"] == overruled


def test_replaced_labels_are_those_of_the_experts(root):
    report = fuse.fuse_folder(root / "in", root / "experts", root / "fused", evidence=False)
    assert report["answers"] == "replace"
    for case in CASES:
        predicted = PredictionFolder.open(root / "in").case(case)
        expected = np.take_along_axis(
            np.concatenate([predicted.model[None], answers_of(root, case)]), predicted.route[None].astype(int), 0
        )[0]
        np.testing.assert_array_equal(read_mask(root / "fused" / f"{case}.nii.gz"), expected)


def test_answers_of_other_experts_are_not_read_as_evidence(root, caplog, capsys):
    profile = {"name": "ann", "boundary": 0.9, "foreground": 0.9, "background": 0.9}
    (root / "experts" / "simulation.json").write_text(json.dumps({"experts": [profile]}))
    report = fuse.fuse_folder(root / "in", root / "experts", root / "fused")
    assert report["answers"] == "replace"
    assert "ann (simulated, independent), bob" in caplog.text
    assert "fitted on the answers of ann, bob" in caplog.text
    assert "fitted on the answers of ann, bob" in refused(capsys, root)
    (root / "experts" / "simulation.json").write_text(json.dumps({"experts": [{"name": "ann"}]}))
    with pytest.raises(Exception, match=r"simulation\.json"):
        fuse.fuse_folder(root / "in", root / "experts", root / "other")


def test_on_the_review_page_the_experts_word_is_final_unless_chosen_otherwise(root):
    folder = PredictionFolder.open(root / "in")
    routed = {c: {e: int((folder.case(c).route == n).sum()) for n, e in enumerate(EXPERTS, 1)} for c in CASES}
    records = {
        c: {e: {"voxels": n, "regions": 1, "changed_voxels": 0, "minutes": 0.5} for e, n in found.items()}
        for c, found in routed.items()
    }
    review = root / "experts" / "review.json"
    review.write_text(json.dumps({"cases": records}))
    assert fuse.fuse_folder(root / "in", root / "experts", root / "a")["answers"] == "replace"
    assert fuse.fuse_folder(root / "in", root / "experts", root / "b", evidence=True)["answers"] == "evidence"
    records["x"]["ann"]["voxels"] -= 1
    review.write_text(json.dumps({"cases": records}))
    with pytest.raises(
        Exception, match=f"ann was shown {routed['x']['ann'] - 1} voxels of x, but {routed['x']['ann']}"
    ):
        fuse.fuse_folder(root / "in", root / "experts", root / "c", evidence=True)
    records["x"]["ann"] |= {"voxels": routed["x"]["ann"], "cannot_tell_voxels": 3}
    review.write_text(json.dumps({"cases": records}))
    with pytest.raises(Exception, match='ann marked 3 voxels of x as "cannot tell"'):
        fuse.fuse_folder(root / "in", root / "experts", root / "c", evidence=True)


def test_the_review_says_how_many_answers_would_be_overruled(root):
    # Few questions are those that every answer decides.
    route.route_folder(root / "in", root / "more", limits=Limits(budget=0.5))
    report = fuse.fuse_folder(root / "more", root / "experts", root / "fused")["cases"]
    for case in CASES:
        write_mask(root / "images" / f"{case}_0000.nii.gz", np.zeros(SHAPE, np.uint8))
    study = Study(PredictionFolder.open(root / "more"), root / "images", None)
    study.read(study.waiting)
    store = ReviewStore(root / "experts", ".nii.gz")
    found = {case: case_result(study, store, study.case(case), scores=False)["overruled_voxels"] for case in CASES}
    store.close()
    assert found == {case: report[case]["overruled"] for case in CASES}
    assert max(found.values()) > 0


def test_the_next_round_asks_others_within_the_budget_and_keeps_the_answers(root, capsys):
    index = maps.index_file(root / "in")
    index.write_text(json.dumps(json.loads(index.read_text()) | {"prediction": {"folds": ["1"]}}))
    run(root, "-most", 2)
    first, second = PredictionFolder.open(root / "in"), PredictionFolder.open(root / "out")
    assert second.index["round"] == 2
    assert second.prediction == {"folds": ["1"]}
    asked = 0
    for case in CASES:
        before, after = first.case(case), second.case(case)
        np.testing.assert_array_equal(after.model, before.model)
        np.testing.assert_array_equal(after.prior.logits, before.prior.logits)
        index = np.flatnonzero(before.route)
        np.testing.assert_array_equal(after.answered.voxels, index)
        experts = before.route.ravel()[index] == np.array([[1], [2]])
        np.testing.assert_array_equal(after.answered.asked, experts)
        labels = answers_of(root, case).reshape(2, -1)[:, index]
        np.testing.assert_array_equal(after.answered.answers, np.where(experts, labels, MISSING))
        assert (after.gain[after.route > 0] > 0).all()
        asked += np.count_nonzero(after.route)
    voxels = len(CASES) * np.prod(SHAPE)
    assert 0.9 * BUDGET * voxels < asked <= BUDGET * voxels
    assert f"round 2: {asked} questions" in capsys.readouterr().out


def test_the_second_expert_is_another_than_the_first(root):
    run(root, "-most", 2, budget=1)
    for case in CASES:
        before, after = (PredictionFolder.open(root / name).case(case).route for name in ("in", "out"))
        both = (after > 0) & (before > 0)
        assert both.any()
        assert (after[both] != before[both]).all()


def test_with_one_expert_per_voxel_nobody_is_asked_twice_about_one(root):
    run(root)
    for case in CASES:
        before, after = (PredictionFolder.open(root / name).case(case) for name in ("in", "out"))
        assert not ((before.route > 0) & (after.route > 0)).any()


def test_answers_of_earlier_rounds_count_in_later_ones(root):
    run(root, "-most", 2)
    run(root, "-most", 2, source="out", output="third")
    third = PredictionFolder.open(root / "third")
    assert third.index["round"] == 3
    asked = [PredictionFolder.open(root / name).case("x").route > 0 for name in ("in", "out")]
    assert third.case("x").answered.asked.sum() == sum(int(each.sum()) for each in asked)
    fused = fuse.fuse_folder(root / "third", root / "experts", root / "fused")
    inputs = open_inputs(root / "third", root / "labels", experts=str(root / "experts"))
    summary = evaluate(inputs, budgets=(0.01,))
    assert summary["answers"] == "evidence"
    total = sum(each["deferred"] for each in fused["cases"].values())
    total += sum(int(third.case(case).answered.asked.sum()) for case in CASES)
    assert summary["deferral"]["questions"] == pytest.approx(total / (len(CASES) * np.prod(SHAPE)))
    dice = [summary[part]["foreground_mean"]["Dice"] for part in ("model_everywhere", "system")]
    assert dice[1] > dice[0]
    # What was answered stays answered, whatever the folder of answers says now.
    for case in CASES:
        write_mask(root / "experts" / "ann" / f"{case}.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
        write_mask(root / "experts" / "bob" / f"{case}.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    fuse.fuse_folder(root / "third", root / "experts", root / "again")
    for case in CASES:
        new = third.case(case).route > 0
        once, again = (read_mask(root / name / f"{case}.nii.gz") for name in ("fused", "again"))
        index = third.case(case).answered.voxels
        far = np.ones(SHAPE, dtype=bool)
        far[new] = False
        agree = (once == again).ravel()[index][far.ravel()[index]]
        assert agree.mean() > 0.9  # answers around them changed


class TestRefusals:
    def test_other_limits_for_the_questions_of_a_later_round(self, root, capsys):
        """They follow from answers that the first round's gains know nothing of."""
        run(root)
        with pytest.raises(SystemExit):
            route.main(["-i", str(root / "out"), "-o", str(root / "routed"), "-budget", "0.1"])
        assert "deferral.json belongs to round 2 of questions" in capsys.readouterr().err
        assert not (root / "routed").exists()

    def test_predictions_without_evidence(self, root, capsys):
        file = maps.index_file(root / "in")
        file.write_text(json.dumps(json.loads(file.read_text()) | {"calibration": None}))
        said = refused(capsys, root)
        assert "deferral.json has no evidence model" in said
        assert "nnUNetv2_deferral_calibrate" in said

    @pytest.mark.parametrize(("options", "message"), [
        ({"budget": 2}, "a budget must be a share of the voxels in [0, 1], got 2"),
        ({"more": ("-most", 3)}, "the experts per voxel must be from 1 to 2, got 3"),
    ])  # fmt: skip
    def test_options_out_of_range(self, root, capsys, options, message):
        more = options.pop("more", ())
        assert message in refused(capsys, root, *more, **options)

    def test_predictions_that_changed(self, root, capsys):
        file = maps.index_file(root / "in").parent / "cases" / "x.json"
        noted = {"mask": maps.mask_checksum(root / "in" / "x.nii.gz")}
        file.write_text(json.dumps(json.loads(file.read_text()) | noted))
        run(root, output="before")
        write_mask(root / "in" / "x.nii.gz", np.zeros(SHAPE, np.uint8))
        assert "in: 1 case has a mask other than the one predicted with the maps (x)" in refused(capsys, root)
        assert not (root / "out").exists()

    def test_answers_of_a_review_of_another_round(self, root, capsys):
        """What it asked about are other voxels than those of the open round."""
        run(root, "-most", 2)
        first = PredictionFolder.open(root / "in")
        shown = {
            case: {
                expert: {
                    "voxels": int((first.case(case).route == number).sum()),
                    "regions": 1,
                    "changed_voxels": 0,
                    "minutes": 0.5,
                }
                for number, expert in enumerate(EXPERTS, 1)
            }
            for case in CASES
        }
        (root / "experts" / "review.json").write_text(json.dumps({"cases": shown}))
        run(root, output="again")
        said = refused(capsys, root, source="out", output="third")
        assert "was shown" in said
        assert "of these very predictions, and of their round of questions" in said
        assert not (root / "third").exists()

    def test_answers_of_a_folder_without_masks(self, root, capsys):
        (root / "experts").rename(root / "elsewhere")
        assert "voxels are routed to experts without masks" in refused(capsys, root)

    def test_an_output_folder_with_files(self, root, capsys):
        (root / "out").mkdir()
        (root / "out" / "mine.txt").write_text("mine")
        assert "out is not empty" in refused(capsys, root)
        assert (root / "out" / "mine.txt").read_text() == "mine"

    def test_damaged_files_are_named(self, root, capsys):
        run(root)
        file = maps.answered_file(root / "out", "x")
        content = dict(np.load(file))
        np.savez_compressed(file, **content | {"voxels": content["voxels"][::-1]})
        with pytest.raises(Exception, match=r"answered.x\.npz contains indices that are not ascending"):
            fuse.fuse_folder(root / "out", root / "experts", root / "fused")
        file = maps.prior_file(root / "in", "y")
        file.write_bytes(file.read_bytes()[:200])
        assert "prior/y.npz cannot be read" in refused(capsys, root, output="other").replace("\\", "/")
        assert not (root / "other").exists()
