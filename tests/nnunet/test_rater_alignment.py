"""Raters' masks stay on their images through all of nnU-Net's augmentation, in whatever company and order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from small_dataset import CASES, LABELS, PATCHES, SmallDataset, make_dataset

from nnunetv2_deferral.expert_sim.transform import ExpertsToTargetTransform, SplitRatersTransform
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.nnunet.rater_data import RaterDataset, experts_folder, preprocess_raters, rater_masks
from nnunetv2_deferral.nnunet.transforms import add_experts
from nnunetv2_deferral.settings import resolve_settings

torch.set_num_threads(1)

RATERS = ("twin", "two", "absent")
ALWAYS_RIGHT = {"name": "oracle", "foreground": 1.0, "background": 1.0, "boundary": 1.0}
ALWAYS_WRONG = {"name": "liar", "foreground": 0.0, "background": 0.0, "boundary": 0.0}
KINDS = [(".png", "2d"), (".nii.gz", "2d"), (".nii.gz", "3d_fullres")]
# Of 8 samples each; in slow tests every kind sees more than a hundred.
NUM_BATCHES = {"2d": 20, "3d_fullres": 15}


@pytest.fixture(params=[pytest.param(3, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
def batches(request: pytest.FixtureRequest) -> Callable[..., Iterator[Any]]:
    """The next batches of a loader, of which only a third are used outside of slow tests."""

    def drawn(loader: nnUNetDataLoader, number: int) -> Iterator[Any]:
        np.random.seed(0)
        torch.manual_seed(0)
        for _ in range(max(number // request.param, 2)):
            yield next(loader)

    return drawn


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SmallDataset]:
    """Datasets with a rater who has the reference's files, one who answers 2 everywhere, and one who only saw `a`."""
    made: dict[Any, SmallDataset] = {}

    def get(ending: str, ignore: bool = False) -> SmallDataset:
        if (ending, ignore) not in made:
            root = tmp_path_factory.mktemp("dataset")
            labels = LABELS | {"ignore": 3} if ignore else LABELS
            dataset = make_dataset(root, ending=ending, labels=labels)
            dataset.copy_reference("twin")
            for case in CASES:
                dataset.write_mask("two", case, np.full_like(dataset.reference(case), 2))
            dataset.copy_reference("absent", ["a"])
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("nnUNet_raw", str(root / "raw"))
                for configuration in dataset.plans.available_configurations:
                    preprocess_raters(
                        rater_masks(dataset.plans, dataset.json, RATERS),
                        declared=RATERS,
                        preprocessed=dataset.data(configuration),
                        plans_manager=dataset.plans,
                        configuration=configuration,
                    )
            made[ending, ignore] = dataset
        return made[ending, ignore]

    return get


def training_transforms(configuration: str, **more: Any) -> Any:
    """nnU-Net's own, with every sample turned, scaled and perhaps mirrored instead of one in five."""
    patch = PATCHES[configuration]
    scales = [[1.0] * len(patch), [0.5] * len(patch)]
    pipeline = nnUNetTrainer.get_training_transforms(
        patch, (-np.pi, np.pi), scales, tuple(range(len(patch))), False, foreground_labels=[1, 2], **more
    )
    (spatial,) = (step for step in pipeline.transforms if isinstance(step, SpatialTransform))
    spatial.p_rotation = spatial.p_scaling = 0.8
    return pipeline


def loader_of(
    dataset: SmallDataset,
    configuration: str,
    experts: Sequence[Any],
    pipeline: Any,
    *,
    previous: Path | None = None,
    cases: Sequence[str] | None = None,
) -> nnUNetDataLoader:
    """nnU-Net's loader of the dataset with these experts, as the trainer puts it together."""
    manager = dataset.plans.get_label_manager(dataset.json)
    settings = resolve_settings({"experts": list(experts)}, raters=RATERS)
    folder = str(dataset.data(configuration))
    data = infer_dataset_class(folder)(
        folder, None if cases is None else list(cases), folder_with_segs_from_previous_stage=previous and str(previous)
    )
    if settings.raters:
        data = RaterDataset(data, experts_folder(dataset.data(configuration)), settings.raters)
    transforms = add_experts(pipeline, settings, label_values=manager.all_labels, ignore_label=manager.ignore_label)
    patch = PATCHES[configuration]
    # Larger than the final patch, as nnU-Net cuts it for rotations.
    larger = tuple(int(1.4 * edge) for edge in patch)
    return nnUNetDataLoader(data, 8, larger, patch, manager, oversample_foreground_percent=0.5, transforms=transforms)


@pytest.mark.parametrize(("ending", "configuration"), KINDS)
def test_a_rater_who_is_the_reference_is_it_in_every_augmented_sample(prepare, batches, ending, configuration):
    loader = loader_of(prepare(ending), configuration, ["twin"], training_transforms(configuration))
    patch, seen, number = PATCHES[configuration], set(), 0
    for batch in batches(loader, NUM_BATCHES[configuration]):
        full, half, experts = batch["target"]
        assert experts.dtype == torch.int16
        assert experts.shape == full.shape == (8, 1, *patch)
        assert half.shape == (8, 1, *(edge // 2 for edge in patch))
        assert torch.equal(experts, full)
        seen |= {sample.numpy().tobytes() for sample in full}
        number += len(full)
    # No two samples are alike, or augmentation was not at work.
    assert len(seen) > 0.95 * number


@pytest.mark.parametrize(("ending", "configuration"), KINDS)
@pytest.mark.parametrize("order", [("two", "oracle", "twin"), ("liar", "twin", "oracle", "two"), ("twin", "two")])
def test_raters_and_simulated_experts_come_in_the_order_of_the_panel(prepare, batches, ending, configuration, order):
    profiles = {"oracle": ALWAYS_RIGHT, "liar": ALWAYS_WRONG}
    experts = [profiles.get(name, name) for name in order]
    loader = loader_of(prepare(ending), configuration, experts, training_transforms(configuration))
    for batch in batches(loader, 4):
        reference, found = batch["target"][0], dict(zip(order, batch["target"][-1].movedim(1, 0), strict=True))
        for name in {"twin", "oracle"} & set(order):
            assert torch.equal(found[name], reference[:, 0]), name
        if "liar" in order:
            assert (found["liar"] != reference[:, 0]).all()
        # What lies outside of the image is background to a rater, too.
        assert set(found["two"].unique().tolist()) <= {0, 2}
        assert (found["two"] == 2).float().mean() > 0.5


@pytest.mark.parametrize("is_training", [True, False])
def test_a_case_that_a_rater_did_not_annotate_stays_missing(prepare, batches, is_training):
    for configuration in ("2d", "3d_fullres"):
        pipeline = training_transforms(configuration) if is_training else nnUNetTrainer.get_validation_transforms(None)
        loader = loader_of(prepare(".nii.gz"), configuration, ["absent", "two"], pipeline)
        for batch in batches(loader, 6):
            for case, reference, (absent, two) in zip(
                batch["keys"], batch["target"][0][:, 0], batch["target"][-1], strict=True
            ):
                if case == "a":
                    assert torch.equal(absent, reference)
                else:
                    assert (absent[two == 2] == MISSING).all()
                    assert (absent == MISSING).any()


def test_outside_of_the_image_an_absent_rater_is_as_missing_as_inside(prepare, batches):
    loader = loader_of(prepare(".nii.gz"), "2d", ["absent", "two"], training_transforms("2d"), cases=["b", "c"])
    for batch in batches(loader, 6):
        assert (batch["target"][-1][:, 0] == MISSING).all()


@pytest.mark.parametrize(("ending", "configuration"), [(".png", "2d"), (".nii.gz", "3d_fullres")])
def test_what_a_rater_left_out_is_missing_in_the_batch_and_the_rest_is_the_reference(
    prepare, batches, ending, configuration
):
    loader = loader_of(prepare(ending, ignore=True), configuration, ["twin"], training_transforms(configuration))
    left_out, total = 0, 0
    for batch in batches(loader, 8):
        reference, experts = batch["target"][0], batch["target"][-1]
        assert set(experts.unique().tolist()) <= {MISSING, 0, 1, 2}
        differs = experts != torch.where(reference == 3, MISSING, reference)
        # Where a label meets what was left out, resampling may have given the voxel to either.
        assert differs.float().mean() < 0.02
        left_out, total = left_out + int((experts == MISSING).sum()), total + experts.numel()
    assert 0.05 < left_out / total < 0.6


def test_with_regions_raters_still_answer_labels(prepare, batches):
    pipeline = training_transforms("2d", regions=[(1, 2), (2,)])
    for batch in batches(loader_of(prepare(".nii.gz"), "2d", ["two", "twin"], pipeline), 6):
        regions, twin = batch["target"][0], batch["target"][-1][:, 1]
        assert regions.shape[1] == 2
        assert torch.equal(twin > 0, regions[:, 0])
        assert torch.equal(twin == 2, regions[:, 1])


def test_dummy_2d_augmentation_of_volumes_carries_the_raters_along(prepare, batches):
    patch = PATCHES["3d_fullres"]
    pipeline = nnUNetTrainer.get_training_transforms(patch, (-np.pi, np.pi), None, (0, 1, 2), True)
    for step in pipeline.transforms:
        if isinstance(step, SpatialTransform):
            step.p_rotation = step.p_scaling = 1
    for batch in batches(loader_of(prepare(".nii.gz"), "3d_fullres", ["two", "twin"], pipeline), 6):
        reference, experts = batch["target"]
        assert torch.equal(experts[:, 1], reference[:, 0])


class TestCascade:
    """Behind reference and raters, nnU-Net stacks the segmentation of the previous stage and moves it to the image."""

    @pytest.fixture
    def previous(self, prepare, tmp_path: Path) -> Path:
        """The reference itself as what the previous stage predicted, so that it is known where it must be."""
        dataset = prepare(".nii.gz")
        folder = str(dataset.data("3d_fullres"))
        for case in CASES:
            reference = infer_dataset_class(folder)(folder, [case])[case][1][:][0]
            nnUNetDatasetBlosc2.save_seg(np.where(reference == -1, 0, reference), str(tmp_path / case))
        return tmp_path

    @pytest.mark.parametrize("experts", [["two", "absent"], ["two", ALWAYS_WRONG], ["two", ALWAYS_RIGHT, "twin"]])
    def test_in_training_the_previous_stage_goes_to_the_image_and_no_rater(self, prepare, batches, previous, experts):
        pipeline = training_transforms("3d_fullres", is_cascaded=True)
        for step in pipeline.transforms:
            # What nnU-Net does to the previous stage's mask alone would hide whose it is.
            if isinstance(step, RandomTransform) and "channel_idx" in vars(step.transform):
                step.apply_probability = 0
        self.check(
            batches(loader_of(prepare(".nii.gz"), "3d_fullres", experts, pipeline, previous=previous), 6), experts
        )

    @pytest.mark.parametrize("experts", [["two", "absent"], ["two", ALWAYS_RIGHT, "twin"]])
    def test_in_validation_too(self, prepare, batches, previous, experts):
        pipeline = nnUNetTrainer.get_validation_transforms(None, is_cascaded=True, foreground_labels=[1, 2])
        self.check(
            batches(loader_of(prepare(".nii.gz"), "3d_fullres", experts, pipeline, previous=previous), 6), experts
        )

    def check(self, drawn: Iterator[Any], experts: list[Any]) -> None:
        for batch in drawn:
            reference, found = batch["target"][0][:, 0], batch["target"][-1]
            assert batch["target"][0].shape[1] == 1
            assert batch["data"].shape[1] == 1 + 2
            for channel, label in ((1, 1), (2, 2)):
                assert torch.equal(batch["data"][:, channel] > 0, reference == label)
            assert found.shape[1] == len(experts)
            assert set(found[:, 0].unique().tolist()) <= {0, 2}
            if "twin" in experts:
                assert torch.equal(found[:, 2], reference)


class TestTransforms:
    """The two steps by themselves."""

    def test_raters_are_taken_out_between_the_reference_and_the_previous_stage(self):
        stack = torch.arange(5, dtype=torch.int16).view(5, 1, 1).expand(5, 2, 3).clone()
        stack[1, 0, 0] = -1
        stack[2, 0, 0] = MISSING
        split = SplitRatersTransform(3)(image=torch.zeros(1, 2, 3), segmentation=stack)
        assert split["segmentation"][:, 1, 1].tolist() == [0, 4]
        assert split["raters"][:, 1, 1].tolist() == [1, 2, 3]
        assert split["raters"][:, 0, 0].tolist() == [0, MISSING, 3]
        assert split["raters"].dtype == torch.int16

    @pytest.mark.parametrize(
        ("order", "expected"),
        [(None, [1, 2, 3]), ([0, 1, 2], [1, 2, 3]), ([2, 0, 1], [3, 1, 2]), ([1, 2, 0], [2, 3, 1])],
    )
    def test_raters_and_experts_are_put_into_the_order_of_the_panel(self, order, expected):
        def plane(*values):
            return torch.tensor(values, dtype=torch.int16).view(-1, 1, 1)

        sample = {"segmentation": plane(0), "raters": plane(1, 2), "experts": plane(3)}
        result = ExpertsToTargetTransform(order)(**sample)
        assert sorted(result) == ["segmentation"]
        assert result["segmentation"][-1].flatten().tolist() == expected

    def test_raters_alone_are_enough(self):
        raters = torch.ones(2, 1, 1, dtype=torch.int16)
        result = ExpertsToTargetTransform([1, 0])(segmentation=torch.zeros(1, 1, 1), raters=raters)
        assert result["segmentation"][-1].shape == (2, 1, 1)
