"""Regions, an ignore label, cascades and residual encoders: what else nnU-Net can be trained on, with deferral."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from workplace import FLAT, LABELS, SOLID, Workplace, predictor_of, preprocess, read, variant_of_flat

from nnunetv2_deferral.maps import read_index

TESTED = ("test_6", "test_7")
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}
KINDS = {
    "regions": ("Dataset903_FlatRegions", REGIONS, {"regions_class_order": [1, 2]}),
    "ignore": ("Dataset904_FlatIgnore", LABELS | {"ignore": 3}, {}),
    "both": ("Dataset905_FlatRegionsIgnore", REGIONS | {"ignore": 3}, {"regions_class_order": [1, 2]}),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest, workplace: Workplace) -> tuple[str, str]:
    """The name of a kind of labels, and of a 2D dataset with it."""
    dataset, labels, more = KINDS[request.param]
    return request.param, variant_of_flat(workplace, dataset, labels, **more)


class TestLabels:
    def test_one_step_of_each_sort_has_finite_losses_and_counts(
        self, workplace: Workplace, kind: tuple[str, str]
    ) -> None:
        name, dataset = kind
        trainer = workplace.trainer("TinyDeferral3Experts", dataset, "2d")
        trainer.on_train_start()
        trainer.network.train()
        losses = trainer.train_step(next(trainer.dataloader_train))
        batch = next(trainer.dataloader_val)
        with torch.no_grad():
            counts = trainer.validation_step(batch)
        assert all(np.isfinite(value) for value in losses.values())
        assert losses["routing"] > 0
        assert counts["tp_hard"].shape == (2,)
        assert counts["system_counts"].shape == (3, 2)
        target = batch["target"][0]
        ignored = {"regions": torch.zeros(1), "ignore": target == 3, "both": target[:, -1]}[name].sum()
        assert counts["routed"].sum() == 2 * 32 * 32 - int(ignored)

    def test_experts_answer_labels_and_leave_ignored_voxels(self, workplace: Workplace, kind: tuple[str, str]) -> None:
        trainer = workplace.trainer("TinyDeferral3Experts", kind[1], "2d")
        trainer.on_train_start()
        seen: set[int] = set()
        for _ in range(20):  # not every patch shows the ignore label
            experts = next(trainer.dataloader_train)["target"][-1]
            assert experts.shape == (2, 3, 32, 32)
            seen |= set(experts.unique().tolist())
        assert seen == ({0, 1, 2} if kind[0] == "regions" else {0, 1, 2, 3})

    @pytest.mark.slow
    def test_the_commands_train_validate_and_predict(self, workplace: Workplace, kind: tuple[str, str]) -> None:
        name, dataset = kind
        fold = workplace.train(dataset, "2d", 0, "TinyDeferral3Experts")
        ours, stock = (
            json.loads((fold / "validation" / f"{each}.json").read_text()) for each in ("deferral_summary", "summary")
        )
        assert ours["model_everywhere"]["mean"].keys() == stock["mean"].keys()
        for label, scores in stock["mean"].items():
            for metric in ("Dice", "TP", "FP", "FN", "n_ref"):
                assert ours["model_everywhere"]["mean"][label][metric] == pytest.approx(scores[metric]), metric
        output = workplace.root / f"{name}_prediction"
        workplace.predict(dataset, "2d", "TinyDeferral3Experts", output)
        for case in TESTED:
            assert read(output / f"{case}.png").max() <= 2
            assert read(output / "deferral" / "route" / f"{case}.png").max() <= 3


@pytest.fixture(scope="module")
def residual_plans(workplace: Workplace) -> str:
    """Plans with a small residual encoder."""

    def change(plans: dict[str, Any]) -> None:
        architecture = plans["configurations"]["2d"]["architecture"]
        architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
        architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")

    return workplace.derive_plans(FLAT, "nnUNetResEncTinyPlans", change)


class TestResidualEncoder:
    def test_it_gets_the_head(self, workplace: Workplace, residual_plans: str) -> None:
        trainer = workplace.trainer("TinyDeferral3Experts", FLAT, "2d", plans=residual_plans)
        trainer.on_train_start()
        trainer.network.train()
        before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
        losses = trainer.train_step(next(trainer.dataloader_train))
        assert np.isfinite(losses["loss"])
        assert type(trainer.network).__name__ == "ResidualEncoderUNet"
        last = "decoder.seg_layers.1."
        head = {f"{last}{layer}.weight" for layer in ("segmentation", "routing", "aggregated", "hidden_features")}
        weights = {key for key in before if key.endswith(".conv.weight")}
        assert len(weights) > 10
        for key in weights | head:
            assert not torch.equal(trainer.network.state_dict()[key], before[key]), key

    @pytest.mark.slow
    def test_the_commands_train_and_predict(self, workplace: Workplace, residual_plans: str) -> None:
        workplace.train(FLAT, "2d", 0, "TinyDeferral1Expert", plans=residual_plans)
        output = workplace.root / "residual_prediction"
        workplace.predict(FLAT, "2d", "TinyDeferral1Expert", output, plans=residual_plans)
        index = read_index(output)
        assert sorted(index["cases"]) == list(TESTED)
        assert index["model"]["plans"] == residual_plans


class TestFeatures:
    def test_a_head_on_named_features_is_trained_saved_and_loaded(self, workplace: Workplace) -> None:
        block = {"features_from": "decoder.stages.0"}
        plans = workplace.derive_plans(FLAT, "Features", lambda plans: plans.update(deferral=block))
        trainer = workplace.trainer("TinyDeferral3Experts", FLAT, "2d", plans=plans)
        trainer.on_train_start()
        trainer.network.train()
        trainer.current_epoch = trainer.warmup_epochs
        before = {key: value.clone() for key, value in trainer.network.state_dict().items()}
        batch = next(trainer.dataloader_train)
        trainer.train_step(batch)
        weights = trainer.network.state_dict()
        for key in ("deferral_head.routing.weight", "decoder.seg_layers.1.weight"):
            assert not torch.equal(weights[key], before[key]), key

        model = Path(trainer.output_folder_base)
        assert json.loads((model / "plans.json").read_text())["deferral_model"] == {
            "trainer": "TinyDeferral3Experts",
            "has_regions": False,
            "features_from": "decoder.stages.0",
            "feature_channels": 8,
        }
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        predictor = predictor_of(model)
        trainer.set_deep_supervision_enabled(False)
        trainer.network.eval()
        with torch.no_grad():
            assert torch.equal(predictor.network.eval()(batch["data"]), trainer.network(batch["data"]))


class TestPlansWithExperts:
    def test_the_experts_of_the_plans_are_asked(self, workplace: Workplace) -> None:
        profiles = [
            {"name": "anna", "foreground": 0.9, "background": 0.95, "boundary": 0.8, "error_model": "independent"},
            {"name": "ben", "foreground": 0.6, "background": 0.99, "edge_boost": 0.1, "error_model": "correlated"},
        ]
        block = {"experts": profiles, "lower": [0.0, 0.0], "upper": [1.0, 0.5], "lambda_balance": 0.0}
        plans = workplace.derive_plans(FLAT, "AnnaAndBen", lambda plans: plans.update(deferral=block))
        trainer = workplace.trainer("TinyDeferral", FLAT, "2d", plans=plans)
        assert trainer.settings.expert_names == ("anna", "ben")
        trainer.on_train_start()
        written = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())["deferral"]
        assert written["num_experts"] == 2
        assert written["experts"] == profiles
        assert written["upper"] == [1.0, 0.5]
        assert written["boundary_width"] == 2
        assert next(trainer.dataloader_train)["target"][-1].shape == (2, 2, 32, 32)


@pytest.mark.slow
class TestSlices:
    def test_a_2d_network_predicts_volumes_slice_by_slice(self, workplace: Workplace) -> None:
        fold = workplace.train(SOLID, "2d", 0, "TinyDeferral1Expert")
        output = workplace.root / "slices"
        workplace.predict(SOLID, "2d", "TinyDeferral1Expert", output)
        for folder, cases in ((fold / "validation", ("train_4", "train_5")), (output, TESTED)):
            for case in cases:
                mask, route, probability = (
                    read(folder / part / f"{case}.nii.gz") for part in (".", "deferral/route", "deferral/probability")
                )
                assert mask.shape == route.shape == probability.shape == (28, 24, 20)
                assert 0 <= probability.min() < probability.max() <= 1


@pytest.mark.slow
class TestCascade:
    def test_both_stages_train_validate_and_predict(self, workplace: Workplace) -> None:
        def change(plans: dict[str, Any]) -> None:
            full = plans["configurations"]["3d_fullres"]
            low = deepcopy(full)
            low |= {
                "data_identifier": "Cascade_3d_lowres",
                "spacing": [1.4 * value for value in full["spacing"]],
                "next_stage": "3d_cascade_fullres",
            }
            plans["configurations"] |= {
                "3d_lowres": low,
                "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
            }

        plans = workplace.derive_plans(SOLID, "Cascade", change)
        preprocess(workplace, SOLID, plans)
        low = workplace.train(SOLID, "3d_lowres", "all", "TinyDeferral3Experts", plans=plans)
        handed_on = low.parent / "predicted_next_stage" / "3d_cascade_fullres"
        assert len(list(handed_on.iterdir())) == 6
        full = workplace.train(SOLID, "3d_cascade_fullres", 0, "TinyDeferral3Experts", plans=plans)
        assert (full / "validation" / "deferral_summary.json").is_file()

        first, second = workplace.root / "cascade_low", workplace.root / "cascade_full"
        workplace.predict(SOLID, "3d_lowres", "TinyDeferral3Experts", first, plans=plans, folds=("all",))
        workplace.predict(
            SOLID, "3d_cascade_fullres", "TinyDeferral3Experts", second, "-prev_stage_predictions", first, plans=plans
        )
        for output, configuration in ((first, "3d_lowres"), (second, "3d_cascade_fullres")):
            index = read_index(output)
            assert sorted(index["cases"]) == list(TESTED)
            assert index["model"]["configuration"] == configuration
            for case in TESTED:
                route = read(output / "deferral" / "route" / f"{case}.nii.gz")
                assert route.shape == read(output / f"{case}.nii.gz").shape == (28, 24, 20)
