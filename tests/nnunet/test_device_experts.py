import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_deferral.environment import ENVIRONMENT_SIMULATE_ON, simulates_on_device
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.device_experts import DeviceExperts
from nnunetv2_deferral.nnunet.transforms import add_experts
from nnunetv2_deferral.settings import resolve_settings

CPU = torch.device("cpu")
SCALES = [[1.0, 1.0], [0.5, 0.5]]
PERFECT = {"name": "perfect", "foreground": 1, "background": 1, "boundary": 1}
HOPELESS = {"name": "hopeless", "foreground": 0, "background": 0, "boundary": 0}
HALF = {"name": "half", "foreground": 0.5, "background": 0.5, "boundary": 0.5}


def sample(labels=None, raters=0):
    if labels is None:
        labels = torch.randint(0, 3, (1, 48, 48), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    masks = torch.stack([(labels[0] + 1 + rater) % 3 for rater in range(raters)]) if raters else labels[:0]
    return {"image": torch.randn(1, 48, 48), "segmentation": torch.cat((labels, masks))}


def target_of(pipeline, experts, *, ignore_label=None, **given):
    settings = resolve_settings({"experts": experts})
    pipeline = add_experts(pipeline, settings, label_values=[0, 1, 2], ignore_label=ignore_label, on_device=True)
    *targets, last = pipeline(**sample(**given))["segmentation"]
    drawn = DeviceExperts(settings, CPU, label_values=[0, 1, 2], ignore_label=ignore_label)
    return targets, last, drawn(last[None])[0]


def training_pipeline(**options):
    return nnUNetTrainer.get_training_transforms((32, 32), (-0.5, 0.5), SCALES, (0, 1), False, **options)


@pytest.fixture
def validation_pipeline():
    return nnUNetTrainer.get_validation_transforms(None)


def test_a_sample_has_the_label_map_from_which_experts_are_drawn():
    targets, last, experts = target_of(training_pipeline(), [PERFECT, HOPELESS])
    assert (last.dtype, last.shape) == (torch.int16, (1, 32, 32))
    assert torch.equal(last, targets[0])
    assert torch.equal(experts[0], targets[0][0])
    assert not (experts[1] == targets[0][0]).any()


def test_experts_answer_labels_where_the_target_is_regions():
    targets, _, experts = target_of(training_pipeline(regions=[(1, 2), (2,)]), [PERFECT])
    assert torch.equal(experts[0] > 0, targets[0][0])
    assert torch.equal(experts[0] == 2, targets[0][1])


def test_raters_and_simulated_experts_are_in_the_order_of_the_settings(validation_pipeline):
    (target,), last, experts = target_of(validation_pipeline, ["ann", PERFECT, "bob"], raters=2)
    assert last.shape == (3, 48, 48)
    assert experts.dtype == torch.int16
    for expert, shift in zip(experts, (1, 0, 2), strict=True):
        assert torch.equal(expert, ((target + shift) % 3)[0])


def test_what_is_outside_the_image_is_background_and_what_is_ignored_stays_so(validation_pipeline):
    labels = torch.ones(1, 48, 48, dtype=torch.int16)
    labels[0, :4], labels[0, 40:] = -1, 9
    _, last, experts = target_of(validation_pipeline, [PERFECT, HALF], ignore_label=9, labels=labels)
    assert torch.equal(experts[0], last[0])
    assert experts[0].unique_consecutive(dim=0)[:, 0].tolist() == [0, 1, 9]
    assert (experts[1, 40:] == 9).all()


def test_an_unknown_label_is_refused_in_the_loader(validation_pipeline):
    with pytest.raises(InputError, match=r"contains \[5\], which are not among the label values \[0, 1, 2\]"):
        target_of(validation_pipeline, [HALF], labels=torch.full((1, 48, 48), 5, dtype=torch.int16))


def test_numpys_seed_and_the_rank_govern_the_draws_and_change_nothing_else():
    settings, labels = resolve_settings({"experts": [HALF]}), torch.ones(1, 1, 30, 30, dtype=torch.int16)

    def drawn(seed, rank=0):
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1]
        draws = DeviceExperts(settings, CPU, label_values=(0, 1), ignore_label=None, rank=rank)
        answers = torch.stack([draws(labels) for _ in range(2)])
        assert torch.equal(before[0], torch.get_rng_state())
        np.testing.assert_array_equal(before[1], np.random.get_state()[1])
        return answers

    first = drawn(0)
    assert torch.equal(first, drawn(0))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, drawn(1))
    assert not torch.equal(first, drawn(0, rank=1))


def test_experts_are_drawn_on_gpus_unless_the_environment_says_otherwise():
    assert [simulates_on_device(kind, {}) for kind in ("cuda", "cpu", "mps")] == [True, False, False]
    for value, expected in (("loader", False), ("device", True)):
        said = {ENVIRONMENT_SIMULATE_ON: value}
        assert simulates_on_device("cuda", said) == simulates_on_device("cpu", said) == expected
    with pytest.raises(InputError, match="simulate_on must be loader or device, got 'gpu'"):
        simulates_on_device("cuda", {ENVIRONMENT_SIMULATE_ON: "gpu"})
    with pytest.raises(InputError, match="unknown environment variable nnUNet_deferral_simulate;"):
        simulates_on_device("cuda", {"nnUNet_deferral_simulate": "device"})
