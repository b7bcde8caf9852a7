"""The deferral summary of a fold's final validation, over seeded simulated experts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nnunetv2_deferral import maps
from nnunetv2_deferral.evaluation.summary import Case, summarize_deferral
from nnunetv2_deferral.expert_sim.simulate import case_generator, simulate_panel
from nnunetv2_deferral.files import write_json

if TYPE_CHECKING:
    from nnunetv2_deferral.nnunet.trainer import DeferralTrainer


def summarize_validation(trainer: DeferralTrainer) -> dict[str, Any]:
    """Score the validation folder of a fold and write its `deferral_summary.json`.

    The experts are those that `nnUNetv2_deferral_simulate_experts` draws with the same profiles and seed.

    Returns:
        The summary, see :func:`summarize_deferral`.
    """
    labels, settings = trainer.label_manager, trainer.settings
    folder = Path(trainer.output_folder) / "validation"
    summary = summarize_deferral(
        _cases(trainer, folder),
        labels.foreground_regions if labels.has_regions else labels.foreground_labels,
        settings.expert_names,
        labels.ignore_label,
    )
    summary["experts"] = {
        "seed": settings.evaluation_seed,
        "boundary_width": settings.boundary_width,
        "profiles": [profile.to_dict() for profile in settings.experts],
    }
    write_json(summary, folder / "deferral_summary.json")
    return summary


def _cases(trainer: DeferralTrainer, folder: Path) -> Iterator[Case]:
    settings, labels = trainer.settings, trainer.label_manager
    reader = trainer.plans_manager.image_reader_writer_class()
    ending = trainer.dataset_json["file_ending"]
    references = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    for case in sorted(trainer.do_split()[1]):

        def read(file: Path) -> np.ndarray:
            return np.rint(reader.read_seg(str(file))[0][0]).astype(np.int64)

        reference = read(references / f"{case}{ending}")
        # nnU-Net's 2D images have an axis of length 1, across which there is no label change.
        flat = torch.from_numpy(reference[0] if reference.shape[0] == 1 else reference)
        experts = simulate_panel(
            flat,
            settings.experts,
            [int(value) for value in labels.all_labels],
            boundary_width=settings.boundary_width,
            ignore_label=labels.ignore_label,
            generator=[case_generator(settings.evaluation_seed, case, name) for name in settings.expert_names],
        )
        yield Case(
            case,
            reference,
            read(folder / f"{case}{ending}"),
            experts.numpy().astype(np.int64).reshape(-1, *reference.shape),
            read(maps.route_file(folder, case, ending)).astype(np.uint8),
        )
