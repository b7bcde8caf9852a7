"""What cannot work is refused before anything is trained or predicted, with a message that names the values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from workplace import FLAT, Workplace, predictor_of

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.settings import resolve_settings

PROFILE = {"name": "anna", "foreground": 0.9, "background": 0.9, "boundary": 0.9}


class TestPlans:
    @pytest.mark.parametrize(
        ("trainer", "block", "words"),
        [
            ("nnUNetTrainerDeferral2Experts", {"num_experts": 3}, ["conflict", "trainer says 2", "says 3"]),
            ("nnUNetTrainerDeferral2Experts", {"experts": [PROFILE]}, ["conflict", "trainer says 2", "says 1"]),
            ("nnUNetTrainerDeferral", {"num_experts": 2, "experts": [PROFILE]}, ["conflict", "says 2", "says 1"]),
            ("nnUNetTrainerDeferral", {"experts": "unheard_of"}, ["unheard_of", "standard", "complementary"]),
            (
                "nnUNetTrainerDeferral3Experts",
                {"lower": [0.1, 0.4, 0.1], "upper": [0.3, 0.2, 0.3]},
                ["lower bound 0.4", "expert 2", "upper bound 0.2"],
            ),
            ("nnUNetTrainerDeferral3Experts", {"lower": [0.1, 0.1]}, ["lower has 2 bounds", "3 experts"]),
            ("nnUNetTrainerDeferral", {"experts": [PROFILE | {"foreground": 1.2}]}, ["anna", "foreground", "1.2"]),
            ("nnUNetTrainerDeferral", {"experts": [PROFILE, PROFILE]}, ["same name", "anna"]),
            ("nnUNetTrainerDeferral3Experts", {"lambda_balence": 1}, ["keys: lambda_balence", "lambda_balance"]),
            ("nnUNetTrainerDeferral3Experts", {"lambda_balance": -1}, ["lambda_balance", "-1"]),
            ("nnUNetTrainerDeferral3Experts", {"warmup": 1.5}, ["warmup", "1.5"]),
            ("nnUNetTrainerDeferral3Experts", {"segmentation_loss": "dice"}, ["segmentation_loss", "'dice'", "nnunet"]),
            ("nnUNetTrainerDeferral5Experts", {"experts": "standard"}, ["'standard'", "not for 5"]),
        ],
    )  # fmt: skip
    def test_a_block_that_means_nothing(
        self, workplace: Workplace, trainer: str, block: dict[str, Any], words: list[str]
    ) -> None:
        plans = workplace.derive_plans(FLAT, "Refused", lambda plans: plans.update(deferral=block))
        with pytest.raises(InputError) as refused:
            workplace.trainer(trainer, FLAT, "2d", plans=plans)
        for word in words:
            assert word in str(refused.value)
        assert not workplace.model(FLAT, "2d", trainer, plans).exists()

    def test_plans_without_the_configuration(self, workplace: Workplace) -> None:
        with pytest.raises(RuntimeError, match="3d_fullres not found in plans"):
            workplace.trainer("nnUNetTrainerDeferral3Experts", FLAT, "3d_fullres")

    def test_a_dataset_without_foreground(self, workplace: Workplace) -> None:
        dataset = "Dataset911_FlatWithoutForeground"
        shutil.copytree(
            workplace.preprocessed / FLAT, workplace.preprocessed / dataset, ignore=shutil.ignore_patterns("*_2d")
        )
        for name, change in (("dataset", {"labels": {"background": 0}}), ("nnUNetPlans", {"dataset_name": dataset})):
            file = workplace.preprocessed / dataset / f"{name}.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | change))
        with pytest.raises(ValueError, match=f"{dataset} has no foreground label .*'background': 0"):
            workplace.trainer("nnUNetTrainerDeferral3Experts", dataset, "2d")

    def test_the_command_says_it_without_a_traceback(self, workplace: Workplace) -> None:
        plans = workplace.derive_plans(FLAT, "Refused", lambda plans: plans.update(deferral={"num_experts": 3}))
        done = workplace.command(
            "nnUNetv2_train", FLAT, "2d", 0, "-tr", "nnUNetTrainerDeferral2Experts", "-p", plans, "-device", "cpu",
            fails=True,
        )  # fmt: skip
        assert "Traceback" not in done.stdout
        last = done.stdout.strip().splitlines()[-1]
        assert last.startswith("nnUNetv2_train: error: conflicting numbers of experts: the trainer says 2")


class TestNames:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("nnUNetTrainerDeferral6Experts", ["6Experts", "nnUNetTrainerDeferral5Experts"]),
            ("nnUNetTrainerDeferral0Experts", ["0Experts"]),
            ("nnUNetTrainerDeferral1Experts", ["1Experts", "nnUNetTrainerDeferral1Expert,"]),
            ("nnUNetTrainerDeferral3Experts_noLd", ["_noLd", "_noLB"]),
            ("nnUNetTrainerDeferral3Experts_7epochs", ["_7epochs", "_5epochs"]),
            ("nnUNetTrainerDeferral3Experts_5epochs_10epochs", ["conflict"]),
            ("nnUNetTrainerDeferral3Experts_noSC_noSC", ["repeat"]),
        ],
    )
    @pytest.mark.usefixtures("workplace")
    def test_a_name_of_our_form_that_means_nothing(self, name: str, words: list[str]) -> None:
        with pytest.raises(InputError) as refused:
            recursive_find_trainer_class_by_name(name)
        for word in (name, *words):
            assert word in str(refused.value)

    @pytest.mark.usefixtures("workplace")
    def test_any_other_name_is_left_to_nnunet(self) -> None:
        with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer nnUNetTrainerDifferent"):
            recursive_find_trainer_class_by_name("nnUNetTrainerDifferent")


class TestPrediction:
    def test_into_a_folder_with_another_models_maps(
        self, workplace: Workplace, flat_deferral: Path, flat_prediction: Path, tmp_path: Path
    ) -> None:
        """Refused before the first case; what is there stays as it is."""
        output = tmp_path / "taken"
        shutil.copytree(flat_prediction, output)
        index = output / "deferral" / "deferral.json"
        theirs = json.loads(index.read_text())
        theirs["model"]["trainer"] = "nnUNetTrainerDeferral1Expert"
        index.write_text(json.dumps(theirs))
        before = state_of(output / "deferral")
        masks = {file: file.stat().st_mtime_ns for file in output.glob("*.png")}

        with pytest.raises(InputError) as refused:
            predictor_of(flat_deferral.parent).predict_from_files(
                str(workplace.raw / FLAT / "imagesTs"),
                str(output),
                num_processes_preprocessing=1,
                num_processes_segmentation_export=1,
            )
        for word in (str(output), "nnUNetTrainerDeferral1Expert there", "TinyDeferral3Experts now"):
            assert word in str(refused.value)
        assert state_of(output / "deferral") == before
        assert {file: file.stat().st_mtime_ns for file in output.glob("*.png")} == masks

    def test_one_array_into_a_folder_with_another_models_maps(
        self, workplace: Workplace, flat_deferral: Path, flat_prediction: Path, tmp_path: Path
    ) -> None:
        """The same where nnU-Net does not look at a folder first: an index never speaks for two models."""
        from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

        output = tmp_path / "taken"
        shutil.copytree(flat_prediction, output)
        index = output / "deferral" / "deferral.json"
        index.write_text(index.read_text().replace("TinyDeferral3Experts", "nnUNetTrainerDeferral1Expert"))
        before = index.read_bytes()
        image = NaturalImage2DIO().read_images([str(workplace.raw / FLAT / "imagesTs" / "test_6_0000.png")])
        predictor = predictor_of(flat_deferral.parent)
        with pytest.raises(ValueError, match="another model"):
            predictor.predict_single_npy_array(*image, output_file_truncated=str(output / "new"))
        assert index.read_bytes() == before

    def test_with_a_trainer_for_another_number_of_experts_than_the_model_folder(
        self, flat_deferral: Path, tmp_path: Path
    ) -> None:
        model = copy_of_model(flat_deferral, tmp_path)
        plans = json.loads((model / "plans.json").read_text())
        plans["deferral"] = resolve_settings({"num_experts": 2}).to_dict()
        (model / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(ValueError, match="TinyDeferral3Experts is for 3 experts, but the plans .* have 2"):
            predictor_of(model)

    def test_with_stock_plans_in_the_model_folder(
        self, workplace: Workplace, flat_deferral: Path, tmp_path: Path
    ) -> None:
        model = copy_of_model(flat_deferral, tmp_path)
        shutil.copy(workplace.preprocessed / FLAT / "nnUNetPlans.json", model / "plans.json")
        with pytest.raises(ValueError, match='"nnUNetPlans" .*no "deferral" block'):
            predictor_of(model)

    def test_with_the_plans_of_the_dataset_in_the_model_folder(self, flat_deferral: Path, tmp_path: Path) -> None:
        """They may hold a deferral block, but not what the trainer adds to it."""
        model = copy_of_model(flat_deferral, tmp_path)
        plans = json.loads((model / "plans.json").read_text())
        del plans["deferral_model"]
        (model / "plans.json").write_text(json.dumps(plans))
        with pytest.raises(ValueError, match="plans.json"):
            predictor_of(model)


def state_of(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """When each file below a folder was written, and what it holds."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def copy_of_model(fold: Path, tmp_path: Path) -> Path:
    model = tmp_path / "model"
    shutil.copytree(fold.parent, model, ignore=shutil.ignore_patterns("validation"))
    return model
