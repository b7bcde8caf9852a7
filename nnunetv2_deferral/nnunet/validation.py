"""The deferral summary of a fold's final validation, over seeded simulated experts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunetv2_deferral import maps
from nnunetv2_deferral.evaluation.summary import Case, summarize_deferral
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.nnunet.export import model_identity
from nnunetv2_deferral.nnunet.rater_data import rater_masks
from nnunetv2_deferral.panel import Panel

if TYPE_CHECKING:
    from nnunetv2_deferral.nnunet.trainer import DeferralTrainer


def discard_maps_of_another_model(trainer: DeferralTrainer) -> None:
    """Remove the maps of an earlier training of other experts from the validation folder of a fold."""
    folder = Path(trainer.output_folder) / "validation"
    try:
        maps.check_folder(folder, model_identity(trainer.plans_manager, trainer.configuration_manager))
    except ValueError as error:
        trainer.print_to_log_file(f"Removing {folder / maps.FOLDER}: {error}")
        shutil.rmtree(folder / maps.FOLDER)


def summarize_validation(trainer: DeferralTrainer) -> dict[str, Any] | None:
    """Score the validation folder of a fold and write its `deferral_summary.json`.

    Simulated experts are those that `nnUNetv2_deferral_simulate_experts` draws with the same profiles and seed.

    Returns:
        The summary, see :func:`summarize_deferral`, or None where masks of raters are needed and not on this machine.
    """
    labels, settings = trainer.label_manager, trainer.settings
    folder = Path(trainer.output_folder) / "validation"
    masks = rater_masks(trainer.plans_manager, trainer.dataset_json, settings.raters)
    if settings.raters and masks is None:
        return None
    panel = Panel(
        experts=settings.experts,
        label_values=tuple(int(value) for value in labels.all_labels),
        ignore_label=labels.ignore_label,
        masks=masks,
        seed=settings.evaluation_seed,
        boundary_width=settings.boundary_width,
    )
    summary = summarize_deferral(
        _cases(trainer, folder, panel),
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        settings.expert_names,
        labels.ignore_label,
    )
    summary["experts"] = panel.to_dict()
    write_json(summary, folder / "deferral_summary.json")
    return summary


def _cases(trainer: DeferralTrainer, folder: Path, panel: Panel) -> Iterator[Case]:
    reader = trainer.plans_manager.image_reader_writer_class()
    ending = trainer.dataset_json["file_ending"]
    references = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"

    def read(file: Path) -> np.ndarray:
        return np.rint(reader.read_seg(str(file))[0][0]).astype(np.int64)

    for case in sorted(trainer.do_split()[1]):
        reference = read(references / f"{case}{ending}")
        yield Case(
            case,
            reference,
            read(folder / f"{case}{ending}"),
            # Without geometry: the masks were compared with the images when they were preprocessed.
            panel.answers(case, reference),
            read(maps.route_file(folder, case, ending)).astype(np.uint8),
        )
