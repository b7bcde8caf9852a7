import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from nnunetv2_deferral.expert_sim.error_models import ERROR_MODELS
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES, expert_set
from nnunetv2_deferral.expert_sim.simulate import case_generator, simulate_experts
from nnunetv2_deferral.expert_sim.zones import boundary_band

torch.set_num_threads(1)

EXPERTS = expert_set("standard", 3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def answer_of(labels, profile, label_values, **options):
    return simulate_experts(labels, (profile,), label_values, **options)[0]


def blocks(shape=(60, 50)):
    labels = torch.zeros(shape, dtype=torch.int64)
    labels[10:40, 10:30] = 1
    labels[20:50, 25:45] = 2
    return labels


@pytest.mark.parametrize("shape", [(60, 50), (60, 50, 6), (60, 50, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_each_expert_gives_one_int16_answer(shape, dtype):
    answers = simulate_experts(blocks(shape).to(dtype), EXPERTS, (0, 1, 2), generator=seeded())
    assert answers.dtype == torch.int16
    assert answers.shape == (3, *shape)
    assert set(answers.unique().tolist()) == {0, 1, 2}


def test_experts_differ_in_accuracy_as_their_profiles_do():
    labels = torch.zeros(200, 200, dtype=torch.int16)
    labels[:, 100:] = 1
    answers = simulate_experts(labels, EXPERTS, (0, 1), generator=seeded(), boundary_width=0)
    accuracies = [(answer == labels)[:, 100:].float().mean().item() for answer in answers]
    assert accuracies == pytest.approx([0.92, 0.85, 0.75], abs=0.015)


def test_the_reference_is_left_as_it_is():
    labels = blocks()
    labels[:5] = 3
    before = labels.clone()
    simulate_experts(labels, EXPERTS, (0, 1, 2), generator=seeded(), ignore_label=3)
    assert torch.equal(labels, before)


def test_experts_with_generators_of_their_own_do_not_depend_on_each_other():
    labels = blocks()
    together = simulate_experts(labels, EXPERTS, (0, 1, 2), generator=[seeded(j) for j in range(3)])
    for j in (2, 0, 1):
        assert torch.equal(together[j], answer_of(labels, EXPERTS[j], (0, 1, 2), generator=seeded(j)))


def test_one_generator_serves_the_experts_in_turn():
    labels, twins = blocks(), (EXPERTS[0], replace(EXPERTS[0], name="twin"))
    first, second = simulate_experts(labels, twins, (0, 1, 2), generator=seeded())
    assert not torch.equal(first, second)
    assert torch.equal(first, answer_of(labels, twins[0], (0, 1, 2), generator=seeded()))


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
def test_ignored_voxels_keep_their_label_and_nobody_else_answers_it(model):
    labels = blocks()
    labels[:, :20] = 3
    profile = replace(EXPERTS[2], error_model=model)
    answer = answer_of(labels, profile, (0, 1, 2), generator=seeded(), ignore_label=3)
    assert torch.equal(answer == 3, labels == 3)


def test_an_ignore_label_that_is_nowhere_changes_nothing():
    plain = answer_of(blocks(), EXPERTS[0], (0, 1, 2), generator=seeded())
    assert torch.equal(plain, answer_of(blocks(), EXPERTS[0], (0, 1, 2), generator=seeded(), ignore_label=3))


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
def test_an_image_that_is_ignored_throughout_stays_so(model):
    labels = torch.full((20, 20), 2)
    profile = replace(EXPERTS[0], error_model=model)
    assert (answer_of(labels, profile, (0, 1), generator=seeded(), ignore_label=2) == 2).all()


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
def test_the_memory_layout_of_the_reference_does_not_matter(model):
    labels = blocks((60, 50, 7)).permute(2, 0, 1)
    labels[:, :5] = 3
    profile = replace(EXPERTS[2], error_model=model)
    answers = [
        answer_of(layout, profile, (0, 1, 2), generator=seeded(), ignore_label=3)
        for layout in (labels, labels.contiguous())
    ]
    assert torch.equal(*answers)


def test_the_width_of_the_band_is_passed_on():
    labels = blocks()
    only_band_errs = replace(EXPERTS[0], foreground=1.0, background=1.0, boundary=0.0)
    answer = answer_of(labels, only_band_errs, (0, 1, 2), generator=seeded(), boundary_width=3)
    assert torch.equal(answer != labels, boundary_band(labels, 3))


def test_the_band_is_worked_out_once_for_all_experts(monkeypatch):
    references = []

    def remember(reference, profile, generator):
        references.append(reference)
        return reference.labels

    monkeypatch.setitem(ERROR_MODELS, "independent", remember)
    simulate_experts(blocks(), EXPERTS, (0, 1, 2), generator=seeded())
    assert len(references) == 3
    assert len({id(reference.band) for reference in references}) == 1


def test_no_experts_and_wrong_numbers_of_generators_are_refused():
    with pytest.raises(ValueError, match="at least one expert"):
        simulate_experts(blocks(), (), (0, 1, 2), generator=seeded())
    with pytest.raises(ValueError, match="got 2 for 3 experts"):
        simulate_experts(blocks(), EXPERTS, (0, 1, 2), generator=[seeded(), seeded()])


def test_datasets_of_one_label_and_unknown_labels_are_refused():
    with pytest.raises(ValueError, match="at least two label values"):
        answer_of(torch.zeros(5, 5, dtype=torch.int16), EXPERTS[0], (0,), generator=seeded())
    with pytest.raises(ValueError, match=r"contains \[2\]"):
        answer_of(blocks(), EXPERTS[0], (0, 1), generator=seeded())


def test_case_generators_differ_by_seed_case_and_expert_and_by_nothing_else():
    def number(*key):
        return torch.rand(1, generator=case_generator(*key), dtype=torch.float64).item()

    keys = [(0, "a", "b"), (1, "a", "b"), (-1, "a", "b"), (0, "ab", ""), (0, "", "ab"), (0, "b", "a"), (0, 'a","b', "")]
    assert len({number(*key) for key in keys}) == len(keys)
    assert number(0, "a", "b") == number(0, "a", "b")


@pytest.mark.distributed
def test_case_generators_are_the_same_in_every_process():
    code = (
        "from nnunetv2_deferral.expert_sim.simulate import case_generator;"
        "print(case_generator(3, 'case_07', 'expert2').initial_seed())"
    )
    environment = {"PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(printed.stdout) == case_generator(3, "case_07", "expert2").initial_seed() == 594750434385639749
