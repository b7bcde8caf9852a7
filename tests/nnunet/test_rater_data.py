"""Raters' masks on their way from files to batches: preprocessed as nnU-Net preprocesses, read by patch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from scipy.ndimage import binary_dilation
from small_dataset import CASES, LABELS, PATCHES, SmallDataset, make_dataset, preprocess

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.nnunet.rater_data import (
    RaterDataset,
    dataset_raters,
    experts_folder,
    labelled_voxels,
    preprocess_raters,
    rater_masks,
    raw_dataset,
)

CONFIGURATIONS = ("2d", "3d_fullres")
KINDS = [(".nii.gz", "2d"), (".nii.gz", "3d_fullres"), (".png", "2d")]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset of volumes and one of slices, planned and preprocessed, to be copied."""
    roots = {}
    for ending in (".nii.gz", ".png"):
        roots[ending] = tmp_path_factory.mktemp("dataset")
        make_dataset(roots[ending], ending=ending)
    return roots


@pytest.fixture
def make(originals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of a dataset for a test, with nnU-Net's folders set to it."""

    def copy(ending: str = ".nii.gz") -> SmallDataset:
        return opened(shutil.copytree(originals[ending], tmp_path / "nnunet"), monkeypatch)

    return copy


def opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> SmallDataset:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    for variable, folder in (("nnUNet_raw", "raw"), ("nnUNet_preprocessed", "preprocessed")):
        monkeypatch.setenv(variable, str(root / folder))
    (preprocessed,) = (root / "preprocessed").iterdir()
    plans = PlansManager(str(preprocessed / "nnUNetPlans.json"))
    return SmallDataset(raw=root / "raw" / preprocessed.name, preprocessed=preprocessed, plans=plans)


def run(dataset: SmallDataset, raters: tuple[str, ...], configuration: str = "2d", **how) -> list[str]:
    """Preprocess the masks of these raters, who are declared."""
    masks = rater_masks(dataset.plans, dataset.json, raters)
    return preprocess_raters(
        masks,
        declared=raters,
        preprocessed=dataset.data(configuration),
        plans_manager=dataset.plans,
        configuration=configuration,
        **how,
    )


def stored(dataset: SmallDataset, configuration: str, case: str) -> np.ndarray:
    return blosc2.open(str(experts_folder(dataset.data(configuration)) / f"{case}.b2nd"))[:]


def segmentation(dataset: SmallDataset, configuration: str, case: str) -> np.ndarray:
    """nnU-Net's own preprocessed reference, what lies outside the image as background."""
    folder = str(dataset.data(configuration))
    values = infer_dataset_class(folder)(folder, [case])[case][1][:][0]
    return np.where(values == -1, 0, values)


def written(dataset: SmallDataset, configuration: str = "2d") -> dict[str, int]:
    """When each of the preprocessed masks was written, empty if none has been."""
    return {file.stem: file.stat().st_mtime_ns for file in experts_folder(dataset.data(configuration)).glob("*.b2nd")}


class TestLikeTheReference:
    @pytest.mark.parametrize(("ending", "configuration"), KINDS)
    def test_a_rater_with_the_references_file_ends_up_voxel_for_voxel_as_the_reference(
        self, make, ending, configuration
    ):
        dataset = make(ending)
        dataset.copy_reference("twin")
        assert run(dataset, ("twin",), configuration) == list(CASES)
        for case in CASES:
            found, expected = stored(dataset, configuration, case), segmentation(dataset, configuration, case)
            assert found.dtype == np.int16
            assert found.shape == (1, *expected.shape)
            assert set(np.unique(expected)) == {0, 1, 2}
            np.testing.assert_array_equal(found[0], expected)

    @pytest.mark.parametrize("configuration", CONFIGURATIONS)
    def test_beside_what_lies_outside_of_the_image_a_voxel_in_a_thousand_may_differ(
        self, tmp_path, monkeypatch, configuration
    ):
        """nnU-Net resamples the reference with -1 as a label of its own, so that -1 and 0 share the vote for 0."""
        make_dataset(tmp_path, configurations=[configuration], with_corners=True)
        dataset = opened(tmp_path, monkeypatch)
        dataset.copy_reference("twin")
        run(dataset, ("twin",), configuration)
        folder = str(dataset.data(configuration))
        for case in CASES:
            found, expected = stored(dataset, configuration, case)[0], segmentation(dataset, configuration, case)
            outside = infer_dataset_class(folder)(folder, [case])[case][1][:][0] == -1
            assert outside.mean() > 0.1
            differs = found != expected
            assert differs.mean() < 1e-3
            assert binary_dilation(outside, np.ones((3, 3, 3)))[differs].all()

    @pytest.mark.parametrize(("ending", "configuration"), KINDS)
    def test_for_which_it_is_cropped_and_resampled_and_a_volume_transposed(self, make, ending, configuration):
        dataset = make(ending)
        folder = str(dataset.data(configuration))
        for case in CASES:
            properties = infer_dataset_class(folder)(folder, [case])[case][3]
            before = tuple(properties["shape_before_cropping"])
            cropped = tuple(properties["shape_after_cropping_and_before_resampling"])
            assert segmentation(dataset, configuration, case).shape != cropped != before
            assert (before[-2:] == dataset.reference(case).shape[-2:]) == (ending == ".png")

    @pytest.mark.parametrize(("ending", "configuration"), KINDS)
    def test_raters_keep_their_order_and_a_case_one_did_not_annotate_is_missing_everywhere(
        self, make, ending, configuration
    ):
        dataset = make(ending)
        dataset.copy_reference("first", ["a"])
        dataset.copy_reference("second")
        for case in CASES:
            dataset.write_mask("third", case, np.full_like(dataset.reference(case), 2))
        run(dataset, ("third", "first", "second"), configuration)
        for case in CASES:
            third, first, second = stored(dataset, configuration, case)
            expected = segmentation(dataset, configuration, case)
            assert (third == 2).all()
            np.testing.assert_array_equal(second, expected)
            np.testing.assert_array_equal(first, expected if case == "a" else np.full_like(first, MISSING))

    @pytest.mark.parametrize("configuration", CONFIGURATIONS)
    def test_what_a_rater_left_out_is_resampled_to_missing_and_to_nothing_new(
        self, tmp_path, monkeypatch, configuration
    ):
        make_dataset(tmp_path, labels=LABELS | {"ignore": 3}, configurations=[configuration])
        dataset = opened(tmp_path, monkeypatch)
        dataset.copy_reference("twin")
        run(dataset, ("twin",), configuration)
        for case in CASES:
            found, expected = stored(dataset, configuration, case)[0], segmentation(dataset, configuration, case)
            assert (dataset.reference(case) == 3).any()
            assert set(np.unique(found)) == {MISSING, 0, 1, 2}
            # In the middle between a label and what was left out, either may be right.
            differs = found != np.where(expected == 3, MISSING, expected)
            assert differs.mean() < 0.02
            assert (found[differs] != MISSING).all() and (expected[differs] == 3).all()

    @pytest.mark.distributed
    def test_several_processes_do_the_same(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        assert run(dataset, ("twin",), num_processes=2) == list(CASES)
        for case in CASES:
            np.testing.assert_array_equal(stored(dataset, "2d", case)[0], segmentation(dataset, "2d", case))


class TestUpToDate:
    def test_nothing_is_touched_the_second_time_so_the_folder_may_be_read_only(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        run(dataset, ("twin",))
        before, lock = written(dataset), experts_folder(dataset.data("2d")) / ".lock"
        lock.unlink(missing_ok=True)
        assert run(dataset, ("twin",)) == []
        assert written(dataset) == before
        assert not lock.exists()

    def test_a_mask_that_changed_is_redone_and_only_it(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        run(dataset, ("twin",))
        before = written(dataset)
        dataset.write_mask("twin", "b", np.full_like(dataset.reference("b"), 1))
        assert run(dataset, ("twin",)) == ["b"]
        after = written(dataset)
        assert [case for case in CASES if after[case] != before[case]] == ["b"]
        assert (stored(dataset, "2d", "b") == 1).all()

    def test_a_mask_that_was_added_or_taken_away_is_noticed(self, make):
        dataset = make()
        dataset.copy_reference("twin", ["a", "b"])
        run(dataset, ("twin",))
        dataset.copy_reference("twin", ["c"])
        dataset.mask_file("twin", "a").unlink()
        assert run(dataset, ("twin",)) == ["a", "c"]
        assert (stored(dataset, "2d", "a") == MISSING).all()
        np.testing.assert_array_equal(stored(dataset, "2d", "c")[0], segmentation(dataset, "2d", "c"))

    def test_a_case_that_nnunet_preprocessed_anew_is_redone(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        run(dataset, ("twin",))
        preprocess(dataset, "2d", ["c"])
        assert run(dataset, ("twin",)) == ["c"]

    def test_a_file_that_someone_removed_is_made_again(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        run(dataset, ("twin",))
        (experts_folder(dataset.data("2d")) / "b.b2nd").unlink()
        assert run(dataset, ("twin",)) == ["b"]

    def test_other_raters_or_another_order_make_everything_anew(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        dataset.copy_reference("other", ["a"])
        run(dataset, ("twin",))
        for raters in (("twin", "other"), ("other", "twin")):
            assert run(dataset, raters) == list(CASES)
            assert [bool((channel == MISSING).all()) for channel in stored(dataset, "2d", "b")] == [
                rater == "other" for rater in raters
            ]

    def test_configurations_have_folders_of_their_own(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        run(dataset, ("twin",), "2d")
        assert written(dataset, "3d_fullres") == {}
        assert run(dataset, ("twin",), "3d_fullres") == list(CASES)
        assert run(dataset, ("twin",), "2d") == []

    def test_what_nnunet_finds_in_its_own_folder_is_as_before(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        folder = dataset.data("2d")
        before = sorted(file.name for file in folder.iterdir())
        run(dataset, ("twin",))
        assert sorted(file.name for file in folder.iterdir()) == before
        assert sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder))) == list(CASES)
        assert sorted(file.name for file in experts_folder(folder).iterdir()) == [
            ".lock", "a.b2nd", "b.b2nd", "c.b2nd", "experts.json",
        ]  # fmt: skip


class TestFaults:
    def faulty(self, dataset: SmallDataset) -> list[str]:
        """What is wrong with the masks, two of them of one case; returns what must be said of each."""
        dataset.copy_reference("ann")
        dataset.copy_reference("bob", ["a", "b"])
        labels = dataset.write_mask("ann", "a", np.full_like(dataset.reference("a"), 7), origin=(0, 0, 0))
        other = dataset.write_mask("bob", "a", np.full_like(dataset.reference("a"), 9))
        shape = dataset.write_mask("ann", "c", dataset.reference("c")[1:])
        cut = dataset.mask_file("bob", "b")
        cut.write_bytes(cut.read_bytes()[:50])
        stranger = dataset.write_mask("bob", "d", dataset.reference("a"))
        (dataset.raw / "expertsTr" / "eve").mkdir()
        return [
            f"{labels}: contains labels that are not in dataset.json: 7; origin (0, 0, 0) instead of",
            f"{other}: contains labels that are not in dataset.json: 9",
            f"{shape}: shape (9, 30, 24), but the image has (10, 30, 24)",
            f"{cut} cannot be read",
            f"{stranger}: no preprocessed case has this name",
            f"{dataset.raw / 'expertsTr' / 'eve'} has no masks (*.nii.gz)",
        ]

    @pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.distributed)])
    def test_all_faults_of_all_files_are_listed_and_nothing_is_written(self, make, num_processes):
        dataset = make()
        expected = self.faulty(dataset)
        with pytest.raises(ValueError, match=r"^6 problem\(s\) in the experts' masks of ") as refused:
            run(dataset, ("ann", "bob", "eve"), num_processes=num_processes)
        for fault in expected:
            assert fault in str(refused.value)
        assert [file.name for file in experts_folder(dataset.data("2d")).iterdir()] == [".lock"]

    def test_what_was_there_before_stays_as_it_was(self, make):
        dataset = make()
        dataset.copy_reference("ann")
        run(dataset, ("ann",))
        before, index = written(dataset), experts_folder(dataset.data("2d")) / "experts.json"
        content = index.read_text()
        dataset.write_mask("ann", "a", np.full_like(dataset.reference("a"), 1))
        dataset.write_mask("ann", "b", np.full_like(dataset.reference("b"), 7))
        with pytest.raises(ValueError, match=r"^1 problem\(s\)"):
            run(dataset, ("ann",))
        assert written(dataset) == before
        assert index.read_text() == content
        assert sorted(file.name for file in index.parent.iterdir() if file.is_dir()) == []

    def test_once_they_are_mended_it_goes_on(self, make):
        dataset = make()
        self.faulty(dataset)
        with pytest.raises(InputError):
            run(dataset, ("ann", "bob", "eve"))
        shutil.rmtree(dataset.raw / "expertsTr")
        dataset.copy_reference("ann")
        assert run(dataset, ("ann",)) == list(CASES)


class TestWithoutTheRawDataset:
    def test_what_was_preprocessed_before_is_taken_as_it_is(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        run(dataset, ("twin",))
        content, before = dataset.json, written(dataset)
        shutil.rmtree(dataset.raw)
        assert raw_dataset(dataset.raw.name) is None
        assert rater_masks(dataset.plans, content, ("twin",)) is None
        how = {"preprocessed": dataset.data("2d"), "plans_manager": dataset.plans, "configuration": "2d"}
        assert preprocess_raters(None, declared=("twin",), **how) == []
        assert written(dataset) == before

    @pytest.mark.parametrize("declared", [("twin",), ("twin", "other")])
    def test_what_is_not_there_is_said(self, make, declared):
        dataset = make()
        if len(declared) > 1:
            dataset.copy_reference("twin")
            run(dataset, ("twin",))
        raw = str(dataset.raw.parent)
        shutil.rmtree(dataset.raw)
        how = {"preprocessed": dataset.data("2d"), "plans_manager": dataset.plans, "configuration": "2d"}
        with pytest.raises(ValueError, match=f"{', '.join(declared)} are not preprocessed for 3 of 3 cases") as refused:
            preprocess_raters(None, declared=declared, **how)
        assert "(the first is a)" in str(refused.value)
        assert raw in str(refused.value)

    def test_the_raw_dataset_json_says_who_the_raters_are_while_it_is_there(self, make, monkeypatch):
        dataset = make()
        copied = dataset.json
        dataset.declare("ann", "bob")
        assert dataset_raters(dataset.raw.name, copied) == ("ann", "bob")
        (dataset.raw / "dataset.json").unlink()
        assert dataset_raters(dataset.raw.name, copied | {"experts": ["eve"]}) == ("eve",)
        monkeypatch.delenv("nnUNet_raw")
        assert dataset_raters(dataset.raw.name, copied | {"experts": ["eve"]}) == ("eve",)


class Counting:
    """An array that notes what is read of it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, []

    def __getitem__(self, where):
        part = self.array[where]
        self.read.append(part.size)
        return part


class TestDataset:
    def make_both(self, make, configuration="2d", raters=("twin", "two"), use=None, ending=".nii.gz"):
        """nnU-Net's dataset and ours on it, with the raters `use` of those preprocessed."""
        dataset = make(ending)
        dataset.copy_reference("twin")
        for case in CASES:
            dataset.write_mask("two", case, np.full_like(dataset.reference(case), 2))
        run(dataset, raters, configuration)
        folder = dataset.data(configuration)
        stock = infer_dataset_class(str(folder))(str(folder))
        return dataset, stock, RaterDataset(stock, experts_folder(folder), use or raters)

    @pytest.mark.parametrize("use", [("twin", "two"), ("two", "twin"), ("two",), ("twin",)])
    def test_its_segmentation_is_nnunets_and_then_the_raters_in_the_order_asked_for(self, make, use):
        dataset, stock, ours = self.make_both(make, use=use)
        assert ours.identifiers == stock.identifiers == list(CASES)
        for case in CASES:
            data, own, previous, properties = ours.load_case(case)
            expected = stock.load_case(case)
            assert own.shape == (1 + len(use), *expected[1].shape[1:])
            assert own.dtype == np.int16
            assert previous is None
            assert properties.keys() == expected[3].keys()
            np.testing.assert_array_equal(data[:], expected[0][:])
            everything = own[(slice(None),) * own.ndim]
            np.testing.assert_array_equal(everything[:1], expected[1][:])
            for rater, found in zip(use, everything[1:], strict=True):
                if rater == "two":
                    assert (found == 2).all()
                else:
                    np.testing.assert_array_equal(found, segmentation(dataset, "2d", case))

    def test_only_the_part_that_is_asked_for_is_read(self, make):
        _, _, ours = self.make_both(make, "3d_fullres")
        own = ours.load_case("a")[1]
        own._segmentation, own._experts = Counting(own._segmentation), Counting(own._experts)
        part = own[:, 3:7, 2:4, 5:6]
        assert part.shape == (3, 4, 2, 1)
        assert own._segmentation.read == [8]
        assert own._experts.read == [2 * 8]
        np.testing.assert_array_equal(own[1:2, 3:7, 2:4, 5:6], part[1:2])

    def test_a_case_is_not_read_when_it_is_opened(self, make):
        _, _, ours = self.make_both(make)
        own = ours["a"][1]
        assert isinstance(own._experts, blosc2.NDArray)
        assert own._experts.chunks[0] == own._experts.blocks[0] == 1

    def test_an_open_file_is_not_opened_again_unless_it_was_made_anew(self, make):
        dataset, _, ours = self.make_both(make)
        masks = ours["a"][1]
        everywhere = (slice(None),) * 4
        before = masks[everywhere]
        assert ours["a"][1]._experts is masks._experts
        dataset.write_mask("two", "a", np.zeros_like(dataset.reference("a")))
        assert run(dataset, ("twin", "two")) == ["a"]
        assert (ours["a"][1][everywhere][2] == 0).all()
        np.testing.assert_array_equal(masks[everywhere], before)  # what a running training holds stays whole

    @pytest.mark.parametrize(("ending", "configuration"), KINDS)
    def test_nnunets_loader_cuts_the_same_patch_out_of_all_of_them(self, make, ending, configuration):
        dataset, stock, ours = self.make_both(make, configuration, ending=ending)
        patch = PATCHES[configuration]
        manager = dataset.plans.get_label_manager(dataset.json)
        # One larger than the cases, so that the loader has to pad.
        for size in (patch, tuple(2 * edge for edge in patch)):
            batches = []
            for each in (stock, ours):
                np.random.seed(0)
                loader = nnUNetDataLoader(each, 4, size, size, manager, oversample_foreground_percent=0.5)
                batches.append([next(loader) for _ in range(5)])
            for theirs, own in zip(*batches, strict=True):
                np.testing.assert_array_equal(own["keys"], theirs["keys"])
                np.testing.assert_array_equal(own["data"], theirs["data"])
                assert own["target"].shape == (4, 3, *size)
                np.testing.assert_array_equal(own["target"][:, :1], theirs["target"])
                reference, twin, two = own["target"].movedim(1, 0)
                # The loader pads with -1, and the reference has it where the image is 0.
                np.testing.assert_array_equal(twin.clamp(min=0), reference.clamp(min=0))
                assert set(two.unique().tolist()) <= {-1, 2}
                assert (two == 2).any()

    def test_raters_who_were_not_preprocessed_are_refused(self, make):
        with pytest.raises(ValueError, match=r"experts\.json has no masks of eve, only of twin"):
            self.make_both(make, use=("twin", "eve"))

    def test_the_old_format_of_nnunet_is_read_too(self, make):
        """Datasets that were preprocessed before nnU-Net 2.6 are npz files."""
        dataset = make()
        dataset.copy_reference("twin")
        folder = dataset.data("2d")
        stock = infer_dataset_class(str(folder))(str(folder))
        for case in CASES:
            data, own, _, _ = stock[case]
            np.savez_compressed(folder / f"{case}.npz", data=data[:], seg=own[:])
        for file in folder.glob("*.b2nd"):
            file.unlink()
        assert run(dataset, ("twin",)) == list(CASES)
        npz = infer_dataset_class(str(folder))(str(folder))
        assert type(npz) is not type(stock)
        own = RaterDataset(npz, experts_folder(folder), ("twin",))["b"][1]
        reference, twin = own[(slice(None),) * 4]
        np.testing.assert_array_equal(twin, np.where(reference == -1, 0, reference))


def test_the_index_says_what_the_files_were_made_from(make):
    dataset = make()
    dataset.copy_reference("twin", ["a"])
    run(dataset, ("twin",))
    content = json.loads((experts_folder(dataset.data("2d")) / "experts.json").read_text())
    assert content["experts"] == ["twin"]
    assert {case: sorted(files) for case, files in content["cases"].items()} == {
        "a": ["case", "twin"],
        "b": ["case"],
        "c": ["case"],
    }
    assert re.fullmatch(r".*_experts", experts_folder(dataset.data("2d")).name)


class TestLabelledVoxels:
    def test_they_are_counted_where_a_rater_has_a_label(self, make):
        dataset = make()
        dataset.copy_reference("twin", ["a", "b"])
        run(dataset, ("twin",))
        size = segmentation(dataset, "2d", "a").size
        counts = labelled_voxels(dataset.data("2d"))
        assert counts["a"] == {"twin": size}
        assert counts["b"]["twin"] > 0
        assert counts["c"] == {"twin": 0}

    def test_not_where_the_rater_or_the_reference_is_ignored(self, tmp_path, monkeypatch):
        make_dataset(tmp_path, labels={**LABELS, "ignore": 3}, configurations=["2d"])
        dataset = opened(tmp_path, monkeypatch)
        for case in CASES:
            dataset.write_mask("nobody", case, np.full_like(dataset.reference(case), 3))
            # Labels only where the reference is ignored.
            dataset.write_mask("useless", case, np.where(dataset.reference(case) == 3, 1, 3))
            dataset.write_mask("all", case, np.ones_like(dataset.reference(case)))
        run(dataset, ("nobody", "useless", "all"))
        for case, counts in labelled_voxels(dataset.data("2d")).items():
            expected = int((segmentation(dataset, "2d", case) != 3).sum())
            assert counts == {"nobody": 0, "useless": 0, "all": expected}

    def test_a_mask_that_changed_is_counted_anew_and_the_others_are_kept(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        run(dataset, ("twin",))
        before = labelled_voxels(dataset.data("2d"))
        dataset.mask_file("twin", "b").unlink()
        assert run(dataset, ("twin",)) == ["b"]
        assert labelled_voxels(dataset.data("2d")) == before | {"b": {"twin": 0}}

    def test_masks_preprocessed_without_counts_are_preprocessed_again(self, make):
        dataset = make()
        dataset.copy_reference("twin")
        run(dataset, ("twin",))
        expected = labelled_voxels(dataset.data("2d"))
        index = experts_folder(dataset.data("2d")) / "experts.json"
        content = json.loads(index.read_text())
        del content["labelled"]
        index.write_text(json.dumps(content))
        assert run(dataset, ("twin",)) == list(CASES)
        assert labelled_voxels(dataset.data("2d")) == expected
