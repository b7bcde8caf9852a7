import time

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform

from nnunetv2_deferral.expert_sim.profiles import expert_set
from nnunetv2_deferral.expert_sim.transform import ExpertsToTargetTransform, SimulateExpertsTransform

torch.set_num_threads(1)


def make(num_experts=2, **options):
    return SimulateExpertsTransform(
        profiles=expert_set("standard", num_experts), **{"label_values": (0, 1, 2), **options}
    )


def sample(shape=(40, 30), channels=1):
    segmentation = torch.zeros((channels, *shape), dtype=torch.int16)
    segmentation[0, 5:20, 5:20] = 1
    segmentation[0, 15:35, 15:25] = 2
    return {"image": torch.rand(1, *shape), "segmentation": segmentation}


@pytest.fixture(autouse=True)
def keep_global_generators():
    states = torch.get_rng_state(), np.random.get_state()
    yield
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 8)])
def test_experts_are_added_and_the_rest_is_left_as_it_is(shape):
    data = sample(shape, channels=2)
    image, segmentation = data["image"].clone(), data["segmentation"].clone()
    result = make()(**data)
    assert result["experts"].dtype == torch.int16
    assert result["experts"].shape == (2, *shape)
    assert torch.equal(result["image"], image)
    assert torch.equal(result["segmentation"], segmentation)


def test_each_sample_gets_fresh_experts():
    transform, data = make(), sample()
    assert not torch.equal(transform(**data)["experts"], transform(**data)["experts"])


def test_numpy_seeds_govern_the_experts():
    results = []
    for seed in (4, 4, 5):
        np.random.seed(seed)
        results.append(make()(**sample())["experts"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_everything_else_is_drawn_as_it_is_without_experts():
    transform, data = make(), sample()
    np.random.seed(4)
    expected = np.random.random(5), torch.rand(5, generator=torch.manual_seed(4))
    np.random.seed(4)
    torch.manual_seed(4)
    transform(**data)
    assert np.array_equal(np.random.random(5), expected[0])
    assert torch.equal(torch.rand(5), expected[1])


def test_samples_differ_even_if_nothing_else_draws_from_numpy_in_between():
    transform, data = make(), sample()
    np.random.seed(4)
    first = transform(**data)["experts"]
    np.random.seed(4)
    assert not torch.equal(transform(**data)["experts"], first)


def test_what_lies_outside_the_image_is_background():
    data = sample()
    padded = data["segmentation"].clone()
    padded[0, 36:] = -1
    np.random.seed(0)
    expected = make()(**data)["experts"]
    np.random.seed(0)
    assert torch.equal(make()(image=data["image"], segmentation=padded)["experts"], expected)
    assert padded.min() == -1


def test_ignored_voxels_stay_ignored():
    data = sample()
    data["segmentation"][0, :8] = 3
    experts = make(ignore_label=3)(**data)["experts"]
    assert (experts[:, :8] == 3).all()
    assert (experts[:, 8:] != 3).all()


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "got none"),
        ([torch.zeros(1, 4, 4)], "before it is converted to a list for deep supervision; got a list"),
        (torch.zeros(4, 4, dtype=torch.int16), r"got shape \(4, 4\)"),
        (torch.zeros(1, 4, 4), "integer dtype, got torch.float32"),
        (torch.full((1, 4, 4), 7), r"contains \[7\]"),
    ],
)
def test_segmentations_that_no_expert_can_answer_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        make()(image=torch.zeros(1, 4, 4), segmentation=segmentation)


def test_a_transform_without_experts_is_refused():
    with pytest.raises(ValueError, match="at least one expert"):
        SimulateExpertsTransform(profiles=(), label_values=(0, 1))


def test_experts_become_the_last_entry_of_the_target():
    data = make()(**sample())
    experts = data["experts"]
    result = ExpertsToTargetTransform()(**data)
    assert sorted(result) == ["image", "segmentation"]
    assert isinstance(result["segmentation"], list)
    assert result["segmentation"][-1] is experts
    assert result["segmentation"][0].shape == (1, 40, 30)


def test_experts_keep_full_resolution_beside_deep_supervision():
    pipeline = ComposeTransforms(
        [make(), DownsampleSegForDSTransform(ds_scales=((1, 1), (0.5, 0.5))), ExpertsToTargetTransform()]
    )
    segmentation = pipeline(**sample())["segmentation"]
    assert [tuple(scale.shape) for scale in segmentation] == [(1, 40, 30), (1, 20, 15), (2, 40, 30)]


def test_a_target_without_experts_or_segmentation_is_refused():
    with pytest.raises(ValueError, match=r"the sample has no experts, only \['image', 'segmentation'\]"):
        ExpertsToTargetTransform()(**sample())
    with pytest.raises(ValueError, match="the sample has no segmentation"):
        ExpertsToTargetTransform()(experts=torch.zeros(1, 4, 4))


class OneSampleLoader:
    """Yields the experts of one and the same sample, with the number of the worker that drew them."""

    def __init__(self):
        self.transform, self.thread_id = make(), 0

    def set_thread_id(self, thread_id):
        self.thread_id = thread_id

    def __iter__(self):
        return self

    def __next__(self):
        experts = self.transform(**sample())["experts"]
        return {"worker": self.thread_id, "experts": experts.numpy()}  # arrays travel whole, tensors by file descriptor


def draw_in_two_workers(seeds, per_worker=2):
    """The first experts of each of two worker processes of nnU-Net's augmenter."""
    augmenter = NonDetMultiThreadedAugmenter(OneSampleLoader(), None, 2, num_cached=2, seeds=seeds)
    drawn = {0: [], 1: []}
    try:
        late = time.monotonic() + 120  # on a busy machine one worker may start long after the other
        while min(map(len, drawn.values())) < per_worker and time.monotonic() < late:
            batch = next(augmenter)
            drawn[batch["worker"]].append(torch.from_numpy(batch["experts"]))
    finally:
        augmenter._finish()
    return {worker: experts[:per_worker] for worker, experts in drawn.items()}


def test_two_workers_of_the_augmenter_draw_different_experts_though_they_share_torchs_seed():
    torch.manual_seed(0)
    np.random.seed(0)
    drawn = draw_in_two_workers(seeds=None)
    experts = drawn[0] + drawn[1]
    assert len(experts) == 4
    assert all(not torch.equal(experts[i], experts[j]) for i in range(4) for j in range(i))


def test_seeded_workers_draw_the_same_experts_again():
    first, again = draw_in_two_workers(seeds=[1, 2]), draw_in_two_workers(seeds=[1, 2])
    for worker in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(first[worker], again[worker], strict=True))
    assert not torch.equal(first[0][0], first[1][0])
