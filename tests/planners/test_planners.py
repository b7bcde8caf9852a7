"""The planners: what they write is nnU-Net's, plus the block, minus the memory of the head."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_deferral.planners import PLANNERS
from nnunetv2_deferral.planners.cpu import nnUNetPlannerDeferralCPU
from nnunetv2_deferral.planners.deferral import (
    default_deferral_block,
    head_feature_map_elements,
    nnUNetPlannerDeferral,
    nnUNetPlannerDeferralResEncM,
    settle_deferral_block,
)
from nnunetv2_deferral.settings import resolve_settings

FLAT = "Dataset001_Flat"
SOLID = "Dataset002_Solid"
ARCHITECTURE = ("network_class_name", "arch_kwargs", "_kw_requires_import")


@pytest.fixture
def nnunet(tmp_path, monkeypatch):
    """nnUNet_raw and nnUNet_preprocessed with a 2D (png) and a 3D (nii.gz) dataset, fingerprints included."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    write_dataset(tmp_path, FLAT, shape=(32, 32), ending=".png")
    write_dataset(tmp_path, SOLID, shape=(12, 16, 14), ending=".nii.gz")
    return tmp_path / "nnUNet_preprocessed"


def write_dataset(root: Path, name: str, *, shape: tuple[int, ...], ending: str, planned_shape=None) -> None:
    """A raw dataset of one case and the fingerprint of a thousand of shape `planned_shape`."""
    raw, preprocessed = root / "nnUNet_raw" / name, root / "nnUNet_preprocessed" / name
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    image = SimpleITK.GetImageFromArray(np.zeros(shape, dtype=np.uint8))
    SimpleITK.WriteImage(image, str(raw / "imagesTr" / f"case_0000{ending}"))
    SimpleITK.WriteImage(image, str(raw / "labelsTr" / f"case{ending}"))
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": 1000,
        "file_ending": ending,
        # Listed, so that nnU-Net starts no pool of processes to find the files: that takes longer than planning.
        "dataset": {"case": {"images": [f"imagesTr/case_0000{ending}"], "label": f"labelsTr/case{ending}"}},
    }
    (raw / "dataset.json").write_text(json.dumps(dataset))
    is_flat = len(shape) == 2
    statistics = ("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std")
    fingerprint = {
        "spacings": [[999.0, 1.0, 1.0] if is_flat else [1.5, 1.0, 1.0]],
        "shapes_after_crop": [[1, *shape] if is_flat else list(planned_shape or shape)],
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": dict.fromkeys(statistics, 1.0)},
    }
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))


def plan(planner: type, dataset: str, **kwargs) -> dict:
    """Plan, and read the plans file back."""
    instance = planner(dataset, **kwargs)
    instance.plan_experiment()
    return json.loads(plans_file(instance).read_text())


def plans_file(instance: ExperimentPlanner) -> Path:
    folder = Path(instance.raw_dataset_folder).parents[1] / "nnUNet_preprocessed"
    return folder / instance.dataset_name / f"{instance.plans_identifier}.json"


def identifiers(plans: dict) -> dict[str, str]:
    return {name: configuration["data_identifier"] for name, configuration in plans["configurations"].items()}


def edit(file: Path, **values) -> None:
    """Change the values of the "deferral" block as a person would."""
    plans = json.loads(file.read_text())
    plans["deferral"].update(values)
    file.write_text(json.dumps(plans))


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize("dataset", [FLAT, SOLID])
def test_nnunet_reads_the_plans_and_builds_the_network_from_classes_of_its_own(nnunet, name, dataset):
    written = plan(PLANNERS[name], dataset)

    assert written["plans_name"] == PLANNERS[name].default_plans_name
    assert written["deferral_planner_used"] == name
    plans = PlansManager(written)
    assert plans.experiment_planner_class.__module__.startswith("nnunetv2.")
    assert plans.image_reader_writer_class.__module__.startswith("nnunetv2.")
    assert plans.label_manager_class.__module__.startswith("nnunetv2.")
    assert set(written["configurations"]) == ({"2d"} if dataset == FLAT else {"2d", "3d_fullres"})
    for configuration_name in written["configurations"]:
        configuration = plans.get_configuration(configuration_name)
        assert configuration.preprocessor_class.__module__.startswith("nnunetv2.")
        assert configuration.resampling_fn_data.func.__module__.startswith("nnunetv2.")
        assert configuration.network_arch_class_name.startswith("dynamic_network_architectures.")
        architecture = configuration.configuration["architecture"]
        network = get_network_from_plans(*(architecture[key] for key in ARCHITECTURE), 1, 2, allow_init=False)
        assert network.decoder.seg_layers[-1].out_channels == 2


def test_apart_from_block_and_names_small_data_is_planned_as_nnunet_plans_it(nnunet):
    stock = plan(ExperimentPlanner, FLAT)
    ours = plan(nnUNetPlannerDeferral, FLAT)
    assert set(ours) == set(stock) | {"deferral", "deferral_planner_used"}
    for plans in (stock, ours):
        del plans["configurations"]["2d"]["batch_size"]
    assert ours["configurations"] == stock["configurations"]
    assert ours["experiment_planner_used"] == stock["experiment_planner_used"] == "ExperimentPlanner"


@pytest.mark.parametrize("num_experts", [1, 2, 3, 4, 5])
def test_the_written_block_is_one_vs_all_with_the_default_settings_and_names_the_expert_set(nnunet, num_experts):
    block = plan(nnUNetPlannerDeferral, FLAT, num_experts=num_experts)["deferral"]
    assert block["num_experts"] == num_experts
    assert block["experts"] == ("standard" if num_experts <= 3 else "scalability")
    assert resolve_settings(block) == resolve_settings({"objective": "one_vs_all"}, num_experts=num_experts)


def test_every_setting_stands_in_the_block(nnunet):
    block = plan(nnUNetPlannerDeferral, FLAT, num_experts=3, experts="complementary")["deferral"]
    settings = resolve_settings({"experts": "complementary", "objective": "one_vs_all"}, num_experts=3)
    assert set(block) == set(settings.to_dict())
    assert resolve_settings(block) == settings


@pytest.mark.parametrize(("dataset", "patch_size"), [(FLAT, (32, 32)), (SOLID, (16, 16, 16))])
def test_the_estimate_is_nnunets_and_the_channels_of_the_head_at_full_resolution(nnunet, dataset, patch_size):
    configurations = plan(ExperimentPlanner, dataset)["configurations"]
    architecture = configurations["2d" if dataset == FLAT else "3d_fullres"]["architecture"]
    arguments = (patch_size, 1, 2, *(architecture[key] for key in ARCHITECTURE))
    ours = nnUNetPlannerDeferral(dataset, num_experts=3).static_estimate_VRAM_usage(*arguments)
    stock = ExperimentPlanner(dataset).static_estimate_VRAM_usage(*arguments)
    two_hidden_layers_routing_and_aggregated = 2 * resolve_settings(None).head_channels + 4 + 1
    assert ours - stock == two_hidden_layers_routing_and_aggregated * np.prod(patch_size)


def test_the_head_grows_with_experts_and_hidden_channels():
    small = resolve_settings({"head_channels": 8}, num_experts=1)
    large = resolve_settings({"head_channels": 16}, num_experts=5)
    assert head_feature_map_elements((10, 10), small) == (16 + 3) * 100
    assert head_feature_map_elements((10, 10), large) == (32 + 7) * 100


def test_a_wider_head_in_the_block_leaves_room_for_fewer_cases(nnunet):
    planner = nnUNetPlannerDeferralCPU
    usual = plan(planner, FLAT)["configurations"]["2d"]
    edit(nnunet / FLAT / "nnUNetDeferralCPUPlans.json", head_channels=512)
    wide = plan(planner, FLAT)
    assert wide["deferral"]["head_channels"] == 512
    assert wide["configurations"]["2d"]["batch_size"] < usual["batch_size"]


@pytest.mark.parametrize("planner", [nnUNetPlannerDeferral, nnUNetPlannerDeferralResEncM, nnUNetPlannerDeferralCPU])
def test_the_data_of_stock_plans_is_shared(nnunet, planner):
    plan(ExperimentPlanner, SOLID)
    assert identifiers(plan(planner, SOLID)) == {"2d": "nnUNetPlans_2d", "3d_fullres": "nnUNetPlans_3d_fullres"}


def test_without_stock_plans_the_data_is_our_own(nnunet):
    own = {name: f"nnUNetDeferralResEncUNetMPlans_{name}" for name in ("2d", "3d_fullres")}
    assert identifiers(plan(nnUNetPlannerDeferralResEncM, SOLID)) == own


def test_another_target_spacing_takes_data_of_its_own(nnunet):
    plan(ExperimentPlanner, SOLID)
    plans = plan(nnUNetPlannerDeferralResEncM, SOLID, overwrite_target_spacing=[2.0, 1.0, 1.0])
    assert identifiers(plans) == {"2d": "nnUNetPlans_2d", "3d_fullres": "nnUNetDeferralResEncUNetMPlans_3d_fullres"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spacing", [1.0, 1.1]),
        ("normalization_schemes", ["ZScoreNormalization"]),
        ("use_mask_for_norm", [True]),
        ("preprocessor_name", "MyPreprocessor"),
        ("resampling_fn_data", "resample_torch_fornnunet"),
        ("resampling_fn_data_kwargs", {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}),
        ("resampling_fn_seg", "resample_torch_fornnunet"),
        ("resampling_fn_seg_kwargs", {"is_seg": True, "order": 0, "order_z": 0, "force_separate_z": None}),
    ],
)
def test_data_is_not_shared_with_a_configuration_that_preprocesses_otherwise(nnunet, key, value):
    stock = plan(ExperimentPlanner, FLAT)
    stock["configurations"]["2d"][key] = value
    (nnunet / FLAT / "nnUNetPlans.json").write_text(json.dumps(stock))
    assert identifiers(plan(nnUNetPlannerDeferral, FLAT)) == {"2d": "nnUNetDeferralPlans_2d"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transpose_forward", [1, 0, 2]),
        ("image_reader_writer", "SimpleITKIO"),
        ("foreground_intensity_properties_per_channel", {"0": {"mean": 7.0}}),
    ],
)
def test_data_is_not_shared_with_plans_that_read_the_images_otherwise(nnunet, key, value):
    stock = plan(ExperimentPlanner, FLAT)
    (nnunet / FLAT / "nnUNetPlans.json").write_text(json.dumps(stock | {key: value}))
    assert identifiers(plan(nnUNetPlannerDeferral, FLAT)) == {"2d": "nnUNetDeferralPlans_2d"}


def test_another_patch_or_batch_size_does_not_hinder_sharing(nnunet):
    stock = plan(ExperimentPlanner, FLAT)
    stock["configurations"]["2d"] |= {"patch_size": [32, 32], "batch_size": 99}
    (nnunet / FLAT / "nnUNetPlans.json").write_text(json.dumps(stock))
    assert identifiers(plan(nnUNetPlannerDeferral, FLAT)) == {"2d": "nnUNetPlans_2d"}


def test_cpu_plans_are_small_even_for_large_volumes(nnunet):
    write_dataset(nnunet.parent, "Dataset003_Large", shape=(8, 8, 8), planned_shape=(80, 160, 160), ending=".nii.gz")
    planner = nnUNetPlannerDeferralCPU("Dataset003_Large")
    configurations = planner.plan_experiment()["configurations"]
    assert set(configurations) == {"2d", "3d_fullres"}
    for configuration in configurations.values():
        architecture = configuration["architecture"]
        features = architecture["arch_kwargs"]["features_per_stage"]
        assert features[0] == 16 and max(features) <= 128
        elements = planner.static_estimate_VRAM_usage(
            configuration["patch_size"], 1, 2, *(architecture[key] for key in ARCHITECTURE)
        )
        assert configuration["batch_size"] >= 2
        assert elements * configuration["batch_size"] <= 25e6


def test_a_block_that_a_person_edited_is_kept_and_the_difference_told(nnunet):
    plan(nnUNetPlannerDeferral, FLAT)
    edit(nnunet / FLAT / "nnUNetDeferralPlans.json", lambda_balance=2.0)
    planner = nnUNetPlannerDeferral(FLAT)
    assert planner.deferral.kept == ("lambda_balance is 2.0, not 5.0",)
    assert plan(nnUNetPlannerDeferral, FLAT)["deferral"]["lambda_balance"] == 2.0
    assert plan(nnUNetPlannerDeferral, FLAT, overwrite_deferral=True)["deferral"]["lambda_balance"] == 5.0


def test_a_block_shortened_to_what_matters_stays_short(nnunet):
    plan(nnUNetPlannerDeferral, FLAT)
    file = nnunet / FLAT / "nnUNetDeferralPlans.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"deferral": {"num_experts": 2}}))
    assert nnUNetPlannerDeferral(FLAT).deferral.kept == ('objective is "collaboration", not "one_vs_all"',)
    assert plan(nnUNetPlannerDeferral, FLAT)["deferral"] == {"num_experts": 2}


def test_experts_that_a_person_listed_are_kept(nnunet):
    plan(nnUNetPlannerDeferral, FLAT, num_experts=2)
    experts = resolve_settings({"experts": "complementary"}, num_experts=2).to_dict()["experts"]
    edit(nnunet / FLAT / "nnUNetDeferralPlans.json", experts=experts)
    assert nnUNetPlannerDeferral(FLAT, num_experts=2).deferral.kept == ("experts differ",)
    assert plan(nnUNetPlannerDeferral, FLAT)["deferral"]["experts"] == experts


def test_plans_for_another_number_of_experts_are_refused_naming_both(nnunet):
    plan(nnUNetPlannerDeferral, FLAT, num_experts=2)
    with pytest.raises(ValueError, match="is for 2 experts, but 3 were requested"):
        nnUNetPlannerDeferral(FLAT, num_experts=3)
    assert plan(nnUNetPlannerDeferral, FLAT)["deferral"]["num_experts"] == 2
    rewritten = plan(nnUNetPlannerDeferral, FLAT, num_experts=3, overwrite_deferral=True)
    assert rewritten["deferral"]["num_experts"] == 3


def test_plans_that_are_not_ours_are_never_overwritten(nnunet):
    plan(ExperimentPlanner, FLAT)
    before = (nnunet / FLAT / "nnUNetPlans.json").read_text()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="nnUNetPlans.json exists and has no"):
            nnUNetPlannerDeferral(FLAT, plans_name="nnUNetPlans", overwrite_deferral=overwrite)
    assert (nnunet / FLAT / "nnUNetPlans.json").read_text() == before


def test_an_invalid_block_is_refused_naming_the_file_unless_overwritten(nnunet):
    plan(nnUNetPlannerDeferral, FLAT)
    edit(nnunet / FLAT / "nnUNetDeferralPlans.json", lambda_balanse=1.0)
    with pytest.raises(ValueError, match=r"nnUNetDeferralPlans.json.*lambda_balanse"):
        nnUNetPlannerDeferral(FLAT)
    assert "lambda_balanse" not in plan(nnUNetPlannerDeferral, FLAT, overwrite_deferral=True)["deferral"]


def test_unknown_expert_sets_and_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'experienced'"):
        settle_deferral_block(tmp_path / "new.json", experts="experienced")
    with pytest.raises(ValueError, match="not for 4"):
        default_deferral_block(num_experts=4, experts="standard")
    with pytest.raises(ValueError, match="not for 0"):
        settle_deferral_block(tmp_path / "new.json", num_experts=0)


def test_a_number_that_is_not_the_datasets_is_said_to_be_that_of_the_option():
    expected = r'-num_experts says 2, but "experts" in dataset.json \(ann, bob, eve\) says 3'
    with pytest.raises(ValueError, match=expected):
        default_deferral_block(num_experts=2, raters=("ann", "bob", "eve"))


def test_another_list_of_raters_than_the_kept_block_has_is_refused(tmp_path):
    file = tmp_path / "plans.json"
    file.write_text(json.dumps({"deferral": {"experts": ["ann", "bob"]}}))
    with pytest.raises(ValueError, match="is for 2 experts, but 1 were requested.*--overwrite_deferral"):
        settle_deferral_block(file, experts=["ann"], raters=("ann", "bob"))
