"""The report of the demo: table.json, table.md, overview.png, pictures of cases and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_deferral import maps
from nnunetv2_deferral.cases import EvaluatedCase
from nnunetv2_deferral.demo.data import DATASET_NAME
from nnunetv2_deferral.evaluation.deferred import add_counts, count_deferred
from nnunetv2_deferral.evaluation.summary import summarize_deferral
from nnunetv2_deferral.files import without_nan, write_json, written_whole
from nnunetv2_deferral.image_files import write_labels
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.report import figures
from nnunetv2_deferral.report.page import Commands, Note, Page, Picture, Section, SideBySide, write_page
from nnunetv2_deferral.report.tables import (
    dice_by_case,
    markdown_tables,
    percent_text,
    result_table,
    result_tables,
    score_text,
    telling_order,
)
from nnunetv2_deferral.report.views import CaseView

REGIONS = (1,)
NUM_OVERVIEW = 3


@dataclass(frozen=True)
class DemoFiles:
    """The files of a demo.

    Attributes:
        out: The output folder, absolute.
        deferral_trainer: Name of the trainer of the deferral network.
        plans: Name of the plans.
    """

    out: Path
    deferral_trainer: str
    plans: str

    @property
    def logs(self) -> Path:
        """The output of the commands."""
        return self.out / "logs"

    @property
    def images(self) -> Path:
        """The test images."""
        return self.out / "nnUNet_raw" / DATASET_NAME / "imagesTs"

    @property
    def labels(self) -> Path:
        """The references of the test cases."""
        return self.out / "nnUNet_raw" / DATASET_NAME / "labelsTs"

    @property
    def dataset_json(self) -> Path:
        """The dataset.json of the dataset."""
        return self.out / "nnUNet_raw" / DATASET_NAME / "dataset.json"

    @property
    def experts(self) -> Path:
        """The simulated experts' answers, one folder per expert."""
        return self.out / "experts"

    def checkpoint(self, trainer: str) -> Path:
        """The final checkpoint of a training."""
        return self._fold(trainer) / "checkpoint_final.pth"

    @property
    def progress(self) -> Path:
        """The progress figure of the deferral training."""
        return self._fold(self.deferral_trainer) / "deferral_progress.png"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.out / "report.html"

    @property
    def table_json(self) -> Path:
        """The numbers of the report."""
        return self.out / "table.json"

    def prediction(self, name: str) -> Path:
        """The masks of the test cases: `deferral` (the model alone, with its maps) or `system` (fused)."""
        return self.out / "predictions" / name

    def _fold(self, trainer: str) -> Path:
        return self.out / "nnUNet_results" / DATASET_NAME / f"{trainer}__{self.plans}__2d" / "fold_0"


def write_report(files: DemoFiles, *, steps: Sequence[tuple[str, Sequence[str]]], epochs: int, budget: float) -> None:
    """Score the test cases, fuse the masks, and write the report with its tables and pictures.

    Args:
        files: The files of the demo.
        steps: Title and command line of each step, for the report.
        epochs: Number of training epochs of the network.
        budget: Share of the voxels of each case that could be deferred.
    """
    predictions = PredictionFolder.open(files.prediction("deferral"))
    experts, cases = predictions.experts, _read_cases(files, predictions)
    summary = summarize_deferral(cases, REGIONS, experts)
    counted = [count_deferred(case.reference, case.model, case.answers, case.route, experts) for case in cases]
    table = result_table(summary, add_counts(counted, experts)["total"])
    write_json(without_nan(table), files.table_json)
    (files.out / "table.md").write_text(markdown_tables(table) + "\n", encoding="utf-8")
    _write_fused(files, predictions, cases)
    model, system = dice_by_case(summary["model_everywhere"]), dice_by_case(summary["system"])
    views = {case.name: _view(files, predictions, case, model[case.name], system[case.name]) for case in cases}
    order = telling_order(model, system)
    overview = figures.draw_overview([views[case] for case, _ in order[:NUM_OVERVIEW]], experts)
    (files.out / "overview.png").write_bytes(figures.to_png(overview))
    pictures = [_case_picture(files, views[case], why, experts) for case, why in order]
    write_page(_page(files, table, pictures, steps=steps, epochs=epochs, budget=budget), files.report)


def _read_cases(files: DemoFiles, predictions: PredictionFolder) -> list[EvaluatedCase]:
    masks = ExpertMasks.of(files.experts, predictions.experts, predictions.files)
    cases = []
    for prediction in map(predictions.case, predictions.cases):
        model, properties = prediction.model, prediction.properties
        reference = files.labels / predictions.mask_file(prediction.name).name
        cases.append(
            EvaluatedCase(
                prediction=prediction,
                reference=predictions.files.read_like(reference, model, properties),
                answers=masks.answers(prediction.name, model.shape, properties),
            )
        )
    return cases


def _write_fused(files: DemoFiles, predictions: PredictionFolder, cases: Sequence[EvaluatedCase]) -> None:
    for case in cases:
        system = case.system
        file = files.prediction("system") / predictions.mask_file(case.name).name
        write_labels(system, file, predictions.files.reader, case.prediction.properties)


def _view(
    files: DemoFiles, predictions: PredictionFolder, case: EvaluatedCase, model_dice: float, system_dice: float
) -> CaseView:
    image = predictions.files.read_image([predictions.files.image_file(files.images, case.name)])[0]
    return CaseView(case=case, image=image, model_dice=model_dice, system_dice=system_dice)


def _case_picture(files: DemoFiles, view: CaseView, why: str, experts: Sequence[str]) -> Picture:
    png = figures.to_png(figures.draw_case(view, experts), dpi=100)
    with written_whole(files.out / "cases") as scratch:
        (scratch / f"{view.case.name}.png").write_bytes(png)
    title = f"{view.case.name}: {why}" if why else view.case.name
    rates = maps.deferral_rates(view.case.route, experts)
    asked = ", ".join(f"{name} {percent_text(share)}" for name, share in rates["share"].items())
    return Picture(
        png=png,
        title=title,
        caption=f"Dice of the model {score_text(view.model_dice)}, of the system {score_text(view.system_dice)}; "
        f"{percent_text(rates['deferral_rate'])} of the voxels deferred ({asked}).",
    )


def _page(
    files: DemoFiles,
    table: dict[str, Any],
    pictures: Sequence[Picture],
    *,
    steps: Sequence[tuple[str, Sequence[str]]],
    epochs: int,
    budget: float,
) -> Page:
    progress = Picture(
        png=files.progress.read_bytes(),
        title="Training of the deferral network",
        caption="Losses, pseudo Dice of model and system, and share of voxels deferred, by epoch.",
    )
    return Page(
        title="Learning to defer: a demonstration",
        introduction=(
            "A segmentation network was trained by stock nnU-Net, and then, without changing it, a head that decides "
            "for each voxel whether to keep the network's label or to ask one of three experts. The system is the "
            "model's mask with the experts' labels where voxels were deferred. Everything ran with nnU-Net's commands "
            "on this computer.",
            "The data are generated and the experts are simulated. Each image shows a blob. A veil hides part of its "
            "border, and there the reference border was displaced at random, independently of the image. The image "
            "shows where the border is uncertain, but not where it lies, so no network can predict it. The simulated "
            "experts can, because their answers are derived from the reference.",
        ),
        sections=(
            _numbers(table, num_cases=len(pictures), epochs=epochs, budget=budget),
            Section(
                heading="Cases",
                parts=(
                    "From left to right: image, reference (yellow), the model's mask with its errors, routing (black "
                    "line: the model's mask), and the fused mask with the remaining errors.",
                    *pictures,
                ),
            ),
            Section(heading="Training", parts=(progress,)),
            Section(
                heading="Commands",
                parts=(
                    f"The demo ran these commands; their output is in {files.logs.name}/ beside this page.",
                    Commands("\n".join(_shown(files, arguments) for _, arguments in steps)),
                ),
            ),
            Section(
                heading="Using your own data",
                parts=(
                    "Put your dataset into nnUNet_raw in nnU-Net's format, for example as number 501, and tell nnU-Net "
                    "where the trainers are (the doctor prints the command). In training, experts are simulated from "
                    "your labels. The predicted deferral maps are in out/deferral beside the masks.",
                    Commands(_OWN_DATA),
                ),
            ),
        ),
    )


def _numbers(table: dict[str, Any], *, num_cases: int, epochs: int, budget: float) -> Section:
    return Section(
        heading="Results",
        parts=(
            SideBySide(result_tables(table)),
            Note(
                f"Test cases: {num_cases}. The network was trained for {epochs} epochs, the head for one. At most "
                f"{budget:.0%} of the voxels of a case could be deferred, those with the highest expected gain. The "
                "model alone is the network without experts: stock nnU-Net. Unlike people, the simulated experts err "
                "independently in each voxel, with fixed accuracies. An expert alone labels every voxel of every image."
            ),
            Note("This demonstrates the pipeline; it is not evidence that deferral helps on your data."),
        ),
    )


_OWN_DATA = """nnUNetv2_deferral_doctor
nnUNetv2_plan_and_preprocess -d 501 --verify_dataset_integrity
nnUNetv2_train 501 2d 0 -tr nnUNetTrainerDeferral3Experts
nnUNetv2_predict -d 501 -c 2d -f 0 -tr nnUNetTrainerDeferral3Experts -i imagesTs -o out"""


def _shown(files: DemoFiles, arguments: Sequence[str]) -> str:
    """A command line as a person would type it in the output folder."""
    return " ".join(argument.replace(f"{files.out}/", "") for argument in arguments)
