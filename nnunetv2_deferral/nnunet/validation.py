"""The deferral summary of a fold's final validation, with raters and seeded simulated experts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_deferral import agreement_maps, maps
from nnunetv2_deferral.answers import ExpertAnswers
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.summary import SUMMARY_NAME, summarize_deferral
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.nnunet.export import model_identity
from nnunetv2_deferral.nnunet.managers import DeferralPlansManager
from nnunetv2_deferral.nnunet.multi_rater_export import agreement_model
from nnunetv2_deferral.nnunet.rater_data import rater_masks
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.settings import DeferralSettings


def discard_maps_of_another_model(trainer: nnUNetTrainer, plans_manager: DeferralPlansManager) -> None:
    """Remove maps of another model, or fewer maps, of an earlier training from the validation folder of a fold."""
    folder, model = _folder(trainer), model_identity(plans_manager, trainer.configuration_manager)
    try:
        maps.check_folder(folder, model)
        maps.check_kinds(folder, plans_manager.settings.known_maps)
        raters = agreement_model(plans_manager, trainer.configuration_manager)
        agreement_maps.check_folder(folder, raters, beside_deferral=True)
    except InputError as error:
        trainer.print_to_log_file(f"Removing {folder / maps.FOLDER}: {error}")
        shutil.rmtree(folder / maps.FOLDER)


def summarize_validation(trainer: nnUNetTrainer, settings: DeferralSettings) -> dict[str, Any] | None:
    """Score the validation folder of a fold and write its `deferral_summary.json`.

    Simulated answers are the same as those of `nnUNetv2_deferral_simulate_experts` with the same profiles and seed.

    Returns:
        The summary, see :func:`.summarize_deferral`, or None if there are raters but the raw dataset does not exist.
    """
    masks = rater_masks(trainer.plans_manager, trainer.dataset_json, settings.raters)
    if settings.raters and masks is None:
        return None
    predictions = PredictionFolder.open(_folder(trainer))
    files = predictions.files
    experts = ExpertAnswers(
        experts=settings.experts,
        label_values=files.label_values,
        ignore_label=files.label_manager.ignore_label,
        masks=masks,
        seed=settings.evaluation_seed,
        boundary_width=settings.boundary_width,
        expert_voxel_mm=settings.expert_voxel_mm,
    )
    references = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    summary = summarize_deferral(
        _cases(predictions, sorted(trainer.do_split()[1]), references, experts),
        files.regions,
        settings.expert_names,
    )
    summary["experts"] = experts.to_dict()
    write_json(summary, predictions.folder / SUMMARY_NAME)
    return summary


def _folder(trainer: nnUNetTrainer) -> Path:
    return Path(trainer.output_folder) / "validation"


def _cases(
    predictions: PredictionFolder, names: Sequence[str], references: Path, experts: ExpertAnswers
) -> Iterator[EvaluatedCase]:
    for name in names:
        reference, properties = predictions.files.read(references / predictions.mask_file(name).name)
        yield EvaluatedCase(
            prediction=predictions.case(name),
            reference=reference,
            # The geometry of masks was checked when they were preprocessed.
            answers=experts.answers(name, reference, properties if experts.expert_voxel_mm is not None else None),
            ignore_label=predictions.files.label_manager.ignore_label,
        )
