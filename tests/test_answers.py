"""Who answers for whole cases: raters from disk and simulated experts, in the order of the routes."""

import json
import re

import numpy as np
import pytest
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from small_dataset import write_mask

from nnunetv2_deferral.answers import ExpertAnswers
from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.expert_sim.simulate import simulate_case
from nnunetv2_deferral.experts import Rater
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.raters import ExpertMasks

LABELS = (0, 1, 2)
SHAPE = (5, 12, 14)


def profile(name, accuracy=0.7):
    return ExpertProfile(name=name, foreground=accuracy, background=accuracy, boundary=accuracy)


def reference():
    labels = np.zeros(SHAPE, dtype=np.int64)
    labels[1:4, 2:9, 3:10] = 1
    labels[2, 4:7, 5:8] = 2
    return labels


def masks_of(folder, *raters, **more):
    how = {"file_ending": ".nii.gz", "reader": SimpleITKIO(), "label_values": LABELS}
    return ExpertMasks(folder=folder, experts=raters, **how, **more)


def write(folder, rater, case, mask, **geometry):
    (folder / rater).mkdir(exist_ok=True)
    write_mask(folder / rater / f"{case}.nii.gz", mask, **geometry)


def simulated(profiles, seed=3, case="x", **more):
    return simulate_case(torch.from_numpy(reference()), profiles, LABELS, seed=seed, case=case, **more).numpy()


def test_raters_and_simulated_experts_answer_in_the_order_of_the_routes(tmp_path):
    write(tmp_path, "ann", "x", np.full(SHAPE, 1))
    write(tmp_path, "bob", "x", np.full(SHAPE, 2))
    sim = [profile("sim1"), profile("sim2", 0.4)]
    experts = ExpertAnswers(
        experts=(sim[0], Rater("bob"), sim[1], Rater("ann")),
        label_values=LABELS,
        masks=masks_of(tmp_path, "bob", "ann"),
        seed=3,
    )
    assert experts.names == ("sim1", "bob", "sim2", "ann")
    answers = experts.answers("x", reference())
    assert answers.dtype == np.int16
    expected = simulated(sim)
    assert (expected[0] != expected[1]).any()
    assert np.array_equal(answers[0], expected[0])
    assert (answers[1] == 2).all()
    assert np.array_equal(answers[2], expected[1])
    assert (answers[3] == 1).all()


def test_a_rater_without_a_mask_for_the_case_is_missing_and_nobody_else(tmp_path):
    write(tmp_path, "ann", "y", reference())
    write(tmp_path, "bob", "x", reference())
    experts = ExpertAnswers(
        experts=(Rater("ann"), profile("sim"), Rater("bob")),
        label_values=LABELS,
        masks=masks_of(tmp_path, "ann", "bob"),
        seed=3,
    )
    answers = experts.answers("x", reference())
    assert (answers[0] == MISSING).all()
    assert np.array_equal(answers[1], simulated([profile("sim")])[0])
    assert np.array_equal(answers[2], reference())


def test_simulated_experts_depend_on_seed_and_case_and_not_on_the_company(tmp_path):
    write(tmp_path, "ann", "x", reference())
    alone = ExpertAnswers(experts=(profile("sim"),), label_values=LABELS, seed=3)
    together = ExpertAnswers(
        experts=(Rater("ann"), profile("sim")), label_values=LABELS, masks=masks_of(tmp_path, "ann"), seed=3
    )
    assert np.array_equal(alone.answers("x", reference())[0], together.answers("x", reference())[1])
    assert not np.array_equal(alone.answers("x", reference()), alone.answers("y", reference()))
    other = ExpertAnswers(experts=(profile("sim"),), label_values=LABELS, seed=4)
    assert not np.array_equal(alone.answers("x", reference()), other.answers("x", reference()))


def test_the_width_of_the_band_and_the_ignore_label_reach_the_simulated_experts():
    labels = reference()
    labels[0] = 3
    sharp = ExpertProfile(name="sim", foreground=1, background=1, boundary=0)
    for width in (0, 2):
        experts = ExpertAnswers(experts=(sharp,), label_values=LABELS, ignore_label=3, boundary_width=width)
        answers = experts.answers("x", labels)[0]
        assert (answers[0] == 3).all()
        assert (answers[1:] != labels[1:]).any() == (width > 0)


def test_experts_with_voxels_in_mm_take_the_spacing_of_the_image():
    sharp = ExpertProfile(name="sim", foreground=1, background=1, boundary=0)
    named = {"experts": (sharp,), "label_values": LABELS}
    scaled = ExpertAnswers(**named, expert_voxel_mm=2.0)
    for spacing, width in (((2, 2, 2), 2), ((4, 4, 4), 1)):
        expected = ExpertAnswers(**named, boundary_width=width).answers("x", reference())
        assert np.array_equal(scaled.answers("x", reference(), {"spacing": spacing}), expected)
    assert scaled.to_dict()["expert_voxel_mm"] == 2
    with pytest.raises(ValueError, match="x: experts with voxels of 2.0 mm need the spacing"):
        scaled.answers("x", reference())


def test_a_band_of_less_than_half_a_voxel_is_said_once(caplog):
    sharp = ExpertProfile(name="sim", foreground=1, background=1, boundary=0)
    experts = ExpertAnswers(experts=(sharp,), label_values=LABELS, boundary_width=3, expert_voxel_mm=0.1)
    for case, spacing in (("x", (2, 0.6, 2)), ("y", (2, 0.7, 0.7)), ("z", (3, 3, 3))):
        answers = experts.answers(case, reference(), {"spacing": spacing})[0]
        assert np.array_equal(answers, reference()) == (case != "x")
    (said,) = [record.message for record in caplog.records]
    assert "have no border zone where voxels are larger than 0.6 mm along each axis: a band of 3 voxels" in said


def test_of_answers_simulated_before_the_voxels_are_those_recorded(tmp_path):
    write(tmp_path, "ann", "x", reference())
    record = {"experts": [profile("ann").to_json()], "seed": 3, "boundary_width": 1}
    (tmp_path / "simulation.json").write_text(json.dumps(record))
    named = {"experts": (Rater("ann"),), "label_values": LABELS, "masks": masks_of(tmp_path, "ann")}
    assert "expert_voxel_mm" not in ExpertAnswers(**named, expert_voxel_mm=1.0).to_dict()
    (tmp_path / "simulation.json").write_text(json.dumps(record | {"expert_voxel_mm": 2.0}))
    assert ExpertAnswers(**named).to_dict()["expert_voxel_mm"] == 2


def test_what_a_rater_left_out_is_missing(tmp_path):
    mask = reference()
    mask[:, :4] = 3
    write(tmp_path, "ann", "x", mask)
    experts = ExpertAnswers(
        experts=(Rater("ann"),), label_values=LABELS, ignore_label=3, masks=masks_of(tmp_path, "ann", ignore_label=3)
    )
    answers = experts.answers("x", reference())[0]
    assert (answers[:, :4] == MISSING).all()
    assert np.array_equal(answers[:, 4:], mask[:, 4:])


def test_a_mask_that_does_not_fit_is_refused(tmp_path):
    write(tmp_path, "images", "x", reference())
    properties = SimpleITKIO().read_seg(str(tmp_path / "images" / "x.nii.gz"))[1]
    write(tmp_path, "ann", "x", reference(), origin=(0, 0, 0))
    experts = ExpertAnswers(experts=(Rater("ann"),), label_values=LABELS, masks=masks_of(tmp_path, "ann"))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'ann' / 'x.nii.gz'}: origin (0, 0, 0)")):
        experts.answers("x", reference(), properties)
    write(tmp_path, "ann", "x", reference()[:-1])
    with pytest.raises(ValueError, match=r"ann/x.nii.gz: shape \(4, 12, 14\) instead of \(5, 12, 14\)"):
        experts.answers("x", reference())


@pytest.mark.parametrize("raters", [None, (), ("bob", "ann"), ("ann",), ("ann", "bob", "eve")])
def test_masks_of_others_than_the_named_experts_are_refused(tmp_path, raters):
    masks = None if raters is None else masks_of(tmp_path, *raters)
    with pytest.raises(ValueError, match="the experts are ann, bob, but the masks are of"):
        ExpertAnswers(experts=(Rater("ann"), profile("sim"), Rater("bob")), label_values=LABELS, masks=masks)
