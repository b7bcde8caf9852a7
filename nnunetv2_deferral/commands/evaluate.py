"""`nnUNetv2_deferral_evaluate`: evaluate predictions of a deferral model against references, with expert answers."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_deferral import __version__
from nnunetv2_deferral.answers import (
    ExpertAnswers,
    ReviewIndex,
    evidence_of,
    experts_of_set,
    trained_with,
)
from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.commands import parsers
from nnunetv2_deferral.dataset import read_groups, same_cases
from nnunetv2_deferral.defaults import BUDGETS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evaluation.evaluation import Evaluation
from nnunetv2_deferral.evaluation.kept_errors import CertificateCheck
from nnunetv2_deferral.evaluation.summary import SUMMARY_NAME
from nnunetv2_deferral.evaluation.surfaces import check_tolerance
from nnunetv2_deferral.evidence.posterior import EvidenceModel
from nnunetv2_deferral.expert_sim.profiles import EXPERT_SETS, with_error_model
from nnunetv2_deferral.experts import Rater, profiles_of, raters_of
from nnunetv2_deferral.files import write_json, written_whole
from nnunetv2_deferral.maps import PREDICTED_DICE
from nnunetv2_deferral.parts import Part, fingerprint, read_parts
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.processes import map_cases
from nnunetv2_deferral.raters import REVIEW_NAME, ExpertMasks
from nnunetv2_deferral.report.evaluation_page import write_evaluation_page
from nnunetv2_deferral.report.evaluation_text import budget_rows, case_rows, evaluation_text
from nnunetv2_deferral.report.paper import write_paper
from nnunetv2_deferral.report.strips import case_pictures
from nnunetv2_deferral.routing import ONE_VS_ALL
from nnunetv2_deferral.schema import read_validated_json

_PIECES_PER_PROCESS = 4
FIGURES = "figures"  # folder in the output folder


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """The inputs of an evaluation.

    Attributes:
        predictions: The predictions.
        references: The folder of the references, with the same file names as the predictions.
        experts: The experts' answers.
        has_probabilities: Whether the model's probabilities (npz) exist for all cases.
        fold_folders: Folders with the masks of single folds; may be empty.
        has_routing: Whether routing probabilities of a one-vs-all model exist for all cases.
        evidence: How answers are read as evidence; None if they replace the model's labels.
    """

    predictions: PredictionFolder
    references: Path
    experts: ExpertAnswers
    has_probabilities: bool
    fold_folders: tuple[Path, ...] = ()
    has_routing: bool = False
    evidence: EvidenceModel | None = None

    def read(self, case: str) -> EvaluatedCase:
        """Read a case.

        Raises:
            InputError: If a file is missing or cannot be read, or its shape or geometry differs from the prediction's.
        """
        saved = {"softmax": self.has_probabilities, "routing": self.has_routing}
        prediction = self.predictions.case(case).without(*(what for what, of_all in saved.items() if not of_all))
        reference, *folds = (self._read_like(folder, prediction) for folder in (self.references, *self.fold_folders))
        return EvaluatedCase(
            prediction=prediction,
            reference=reference,
            answers=self.experts.answers(case, reference, prediction.properties),
            ignore_label=self.predictions.files.label_manager.ignore_label,
            fold_masks=np.stack(folds) if folds else None,
            evidence=self.evidence,
        )

    def _read_like(self, folder: Path, prediction: PredictedCase) -> np.ndarray:
        """The label map of a predicted case in another folder."""
        file = folder / self.predictions.mask_file(prediction.name).name
        return self.predictions.files.read_like(file, prediction.model, prediction.properties)


def open_inputs(
    predictions: Path,
    references: Path,
    *,
    experts: str | None = None,
    seed: int | None = None,
    error_model: str | None = None,
    simulated: Sequence[str] = (),
    dataset_json: Path | None = None,
    fold_folders: Sequence[Path] = (),
    evidence: bool | None = None,
) -> EvaluationInputs:
    """Find all inputs of an evaluation and check them before anything is computed.

    Args:
        predictions: A folder of predictions by a deferral model.
        references: The folder of reference label files.
        experts: A folder `<expert>/<case>`, the name of a set of simulated experts, or None for the simulated experts
            that the model was trained with.
        seed: Seed of simulated experts; None for that of the model's settings.
        error_model: Error model of all simulated experts; None for those of their profiles.
        simulated: With a folder of masks, the experts of the training who are simulated nevertheless.
        dataset_json: See :meth:`.PredictionFolder.open`.
        fold_folders: Folders with the masks predicted by single folds, one per fold.
        evidence: Whether answers are read as evidence or replace the model's labels; None for the default, see
            :func:`.evidence_of`.

    Raises:
        InputError: For predictions without maps, cases without a reference or any expert's mask, or experts that do
            not match the model's.
    """
    folder = PredictionFolder.open(predictions, dataset_json)
    if not references.is_dir():
        raise InputError(f"the folder of references {references} does not exist")
    same_cases(f"predicted cases without a reference in {references}", folder.cases, folder.files.cases(references))
    for each in fold_folders:
        same_cases(f"predicted cases without a mask in {each}", folder.cases, folder.files.cases(each))
    has_probabilities = [folder.softmax_file(case).is_file() for case in folder.cases]
    has_routing = [folder.routing_file(case).is_file() for case in folder.cases]
    answering = _answering(folder, experts, simulated, seed, error_model)
    return EvaluationInputs(
        predictions=folder,
        references=references,
        experts=answering,
        evidence=evidence_of(
            folder,
            None if answering.masks is None else answering.masks.folder,
            answering.identities,
            wanted=evidence,
        ),
        has_probabilities=all(has_probabilities),
        fold_folders=tuple(fold_folders),
        # The other objective gives probabilities of routes, which have no observable frequency.
        has_routing=all(has_routing) and folder.settings.objective == ONE_VS_ALL,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluatedPart:
    """What was found in some of the cases.

    Attributes:
        evaluation: Their evaluation.
        check: The comparison of the calibration's certificate with them; None without a certificate.
    """

    evaluation: Evaluation
    check: CertificateCheck | None

    @classmethod
    def merged(cls, parts: Iterable[EvaluatedPart], cases: Sequence[str]) -> EvaluatedPart:
        """The same for the cases of all parts, of which two are held in memory at a time.

        Args:
            parts: The parts.
            cases: Their cases, in the order that they shall have.
        """

        def both(first: EvaluatedPart, second: EvaluatedPart) -> EvaluatedPart:
            checks = [part.check for part in (first, second) if part.check is not None]
            return cls(
                evaluation=Evaluation.merged([first.evaluation, second.evaluation], cases),
                check=CertificateCheck.merged(checks) if checks else None,
            )

        return reduce(both, parts)


def evaluate(
    inputs: EvaluationInputs,
    *,
    budgets: Sequence[float] = BUDGETS,
    groups: Mapping[str, Any] | None = None,
    domains: Mapping[str, Any] | None = None,
    bootstrap_seed: int = 0,
    surface_tolerance: float | None = None,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Evaluate all cases, with one case in memory at a time and process.

    Args:
        inputs: The inputs.
        budgets: The budgets at which rankings are compared.
        groups: For each case its group in the bootstrap, such as its patient; None for each case by itself.
        domains: For each case its domain, such as its hospital; None for no comparison of domains.
        bootstrap_seed: Seed of the bootstrap.
        surface_tolerance: See :func:`.summarize_deferral`.
        num_processes: 1 runs in this process, more in as many spawned ones.

    Returns:
        The content of `deferral_summary.json`, see docs/reference/evaluation.md.
    """
    cases = inputs.predictions.cases
    found = evaluate_cases(
        inputs,
        cases,
        groups=groups,
        domains=domains,
        surface_tolerance=surface_tolerance,
        num_processes=num_processes,
    )
    return summarize(inputs, found, budgets=budgets, groups=groups, domains=domains, bootstrap_seed=bootstrap_seed)


def evaluate_cases(
    inputs: EvaluationInputs,
    cases: Sequence[str],
    *,
    groups: Mapping[str, Any] | None = None,
    domains: Mapping[str, Any] | None = None,
    surface_tolerance: float | None = None,
    num_processes: int = 1,
) -> EvaluatedPart:
    """Evaluate some of the cases; arguments as those of :func:`evaluate`."""
    work = partial(_evaluate_one_by_one, inputs, groups, domains, surface_tolerance)
    if min(num_processes, len(cases)) <= 1:
        return work(cases, shown=True)
    # More pieces than processes, since cases differ in size; not one for each case, since statistics are large.
    number = min(len(cases), num_processes * _PIECES_PER_PROCESS)
    pieces = [Part(number=place, of=number).cases(cases) for place in range(number)]
    found = map_cases(work, pieces, num_processes, description="Evaluating", size=len)
    return EvaluatedPart.merged(found, cases)


def _evaluate_one_by_one(
    inputs: EvaluationInputs,
    groups: Mapping[str, Any] | None,
    domains: Mapping[str, Any] | None,
    surface_tolerance: float | None,
    cases: Sequence[str],
    *,
    shown: bool = False,
) -> EvaluatedPart:
    folder = inputs.predictions
    calibration = folder.calibration
    evaluation = Evaluation(
        folder.files.regions,
        inputs.experts.names,
        has_regions=folder.files.label_manager.has_regions,
        calibration=None if calibration is None else calibration.heads,
        confidence=None if calibration is None else calibration.confidence,
        surface_tolerance=surface_tolerance,
    )
    certificate = None if calibration is None else calibration.certificate
    check = None if certificate is None else CertificateCheck(certificate, groups)
    for name in tqdm(cases, desc="Evaluating", unit="case", disable=not shown):
        case = inputs.read(name)
        evaluation.update(
            case,
            None if domains is None else str(domains[name]),
            predicted_dice=folder.index["cases"][name].get(PREDICTED_DICE),
        )
        if check is not None:
            check.update(case, folder.limits(name))
    return EvaluatedPart(evaluation=evaluation, check=check)


def summarize(
    inputs: EvaluationInputs,
    found: EvaluatedPart,
    *,
    budgets: Sequence[float] = BUDGETS,
    groups: Mapping[str, Any] | None = None,
    domains: Mapping[str, Any] | None = None,
    bootstrap_seed: int = 0,
) -> dict[str, Any]:
    """The content of `deferral_summary.json`, given what was found in all cases; otherwise as :func:`evaluate`."""
    folder, experts = inputs.predictions, inputs.experts
    summary = found.evaluation.summary(budgets=budgets, groups=groups, seed=bootstrap_seed)
    limits: dict[str, set[float | None]] = {}
    for case, domain in (domains or {}).items():
        limits.setdefault(str(domain), set()).add(folder.limits(case).budget)
    for name, found_there in (summary["domains"] or {}).items():
        found_there["budget"] = next(iter(limits[name])) if len(limits[name]) == 1 else None
    return summary | {
        "experts": experts.to_dict(),
        "answers": "replace" if inputs.evidence is None else "evidence",
        "certificate": None if found.check is None else found.check.summary(),
        "review": None if experts.masks is None else review_effort(experts.masks.folder, experts.names, folder.cases),
        "model_identity": folder.index["model"],
        "unit": folder.files.unit,
        "versions": _versions(),
    }


def same_for_all_parts(
    inputs: EvaluationInputs,
    *,
    groups: Mapping[str, Any] | None,
    domains: Mapping[str, Any] | None,
    surface_tolerance: float | None,
) -> dict[str, Any]:
    """What all parts of an evaluation must have in common, as JSON."""
    folder = inputs.predictions
    return {
        "predictions": folder.index["model"],
        "cases": fingerprint(folder.index["cases"]),
        "references": str(inputs.references),
        "experts": inputs.experts.to_dict(),
        "answers": "replace" if inputs.evidence is None else "evidence",
        "probabilities": inputs.has_probabilities,
        "routing probabilities": inputs.has_routing,
        "tolerance of surfaces": surface_tolerance,
        "folds": [str(each) for each in inputs.fold_folders],
        "groups": None if groups is None else fingerprint(groups),
        "domains": None if domains is None else fingerprint(domains),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {"nnunetv2_deferral": __version__, "nnunetv2": version("nnunetv2")}


def review_effort(experts: Path, names: Sequence[str], cases: Sequence[str]) -> dict[str, Any] | None:
    """The experts' effort, if their answers were given on the review page.

    Args:
        experts: The folder of the experts' masks.
        names: The names of the experts.
        cases: The evaluated cases.

    Returns:
        For each expert the number of these `cases` submitted, their `regions`, the `voxels` asked about,
        `changed_voxels`, `cannot_tell_voxels`, the `minutes` worked, and `flags`, the places that the expert flagged
        outside of their regions (`case`, `voxel` [x, y, z], `comment`); None if the folder has no review.json.

    Raises:
        InputError: If review.json cannot be read or is not as :class:`ReviewIndex`.
    """
    index = experts / REVIEW_NAME
    if not index.is_file():
        return None
    records = read_validated_json(index, ReviewIndex)["cases"]
    made = {name: {case: records[case][name] for case in cases if name in records.get(case, {})} for name in names}
    keys = ("regions", "voxels", "changed_voxels", "cannot_tell_voxels", "minutes")
    return {
        name: {
            "cases": len(found),
            **{key: sum(record.get(key, 0) for record in found.values()) for key in keys},
            "flags": [
                {"case": case, "voxel": flag["voxel"], "comment": flag["comment"]}
                for case, record in found.items()
                for flag in record.get("flags", ())
            ],
        }
        for name, found in made.items()
    }


def write_results(summary: Mapping[str, Any], output: Path) -> list[Path]:
    """Write `deferral_summary.json`, `cases.csv` and `budgets.csv` atomically; returns the files."""
    write_json(summary, output / SUMMARY_NAME)
    tables = {"cases.csv": case_rows(summary), "budgets.csv": budget_rows(summary)}
    with written_whole(output) as scratch:
        for name, rows in tables.items():
            with (scratch / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    return [output / SUMMARY_NAME, *(output / name for name in tables)]


def write_report(summary: Mapping[str, Any], inputs: EvaluationInputs, file: Path, images: Path | None = None) -> None:
    """Write the HTML report of an evaluation; with a folder of images it shows a few cases, which are read again.

    Raises:
        InputError: If an image cannot be read or does not match its case.
    """
    cases = None if images is None else case_pictures(summary, inputs.predictions, inputs.read, images)
    write_evaluation_page(summary, file, cases=cases, unit=inputs.predictions.files.unit)


def _answering(
    folder: PredictionFolder, experts: str | None, simulated: Sequence[str], seed: int | None, error_model: str | None
) -> ExpertAnswers:
    if experts is not None and experts not in EXPERT_SETS:
        return _experts_of_folder(folder, Path(experts), simulated, seed, error_model)
    if simulated:
        raise InputError("-simulated requires a folder of masks (-experts), in addition to which experts are simulated")
    profiles = trained_with(folder) if experts is None else experts_of_set(folder.settings, experts)
    if raters_of(profiles):
        raise InputError(
            f"this model was trained with raters ({', '.join(folder.experts)}); specify the folder of their masks with "
            "-experts"
        )
    return ExpertAnswers.of_model(folder, with_error_model(profiles_of(profiles), error_model), seed=seed)


def _experts_of_folder(
    folder: PredictionFolder, experts: Path, simulated: Sequence[str], seed: int | None, error_model: str | None
) -> ExpertAnswers:
    """The experts with masks in a folder; nobody is simulated who is not named."""
    if not experts.is_dir():
        raise InputError(f"{experts} is neither a folder nor a set of simulated experts ({', '.join(EXPERT_SETS)})")
    if error_model is not None and not simulated:
        raise InputError(f"-error_model {error_model} is for simulated experts, but those in {experts} are not")
    profiles = {profile.name: profile for profile in profiles_of(trained_with(folder))}
    if strangers := [name for name in simulated if name not in profiles]:
        raise InputError(
            f"cannot simulate {', '.join(strangers)}: the simulated experts of the training are "
            f"{', '.join(profiles) or 'none'}"
        )
    chosen = with_error_model([profiles[name] for name in folder.experts if name in simulated], error_model)
    by_name = {profile.name: profile for profile in chosen}
    answering = tuple(by_name.get(name) or Rater(name) for name in folder.experts)
    masks = ExpertMasks.of(experts, raters_of(answering), folder.files)
    if doubled := [name for name in simulated if ExpertMasks.of(experts, (name,), folder.files).cases(name)]:
        raise InputError(f"{', '.join(doubled)} cannot be simulated: there are masks in {experts}")
    asked = {case: [name for name in folder.asked(case) if name in masks.experts] for case in folder.cases}
    try:
        masks.check_answers(asked)
    except InputError as error:
        known = [name for name in profiles if name not in simulated]
        hint = f" (experts without masks can be simulated with -simulated: {', '.join(known)})" if known else ""
        raise InputError(f"{error}{hint}") from error
    if not by_name:
        answered = [case for case in asked if any(masks.file(name, case).is_file() for name in masks.experts)]
        routed = [case for case, names in asked.items() if names]
        same_cases(f"cases with deferred voxels but without any expert's mask in {experts}", routed, answered)
    return ExpertAnswers.of_model(folder, answering, masks=experts, seed=seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; invalid input gives one line on stderr and exit code 2."""
    parser = parsers.evaluate()
    given = parser.parse_args(arguments)
    try:
        if not all(0 <= budget <= 1 for budget in given.budgets):
            raise InputError(f"budgets must be shares of the voxels in [0, 1], got {given.budgets}")
        if given.surface_tolerance is not None:
            check_tolerance(given.surface_tolerance)
        inputs = open_inputs(
            given.i,
            given.ref,
            experts=given.experts,
            seed=given.seed,
            error_model=given.error_model,
            simulated=given.simulated,
            dataset_json=given.djfile,
            fold_folders=given.folds,
            evidence=given.evidence,
        )
        if given.images is not None:
            if given.report is None:
                raise InputError("-images are only used in a report; specify --report FILE as well")
            inputs.predictions.files.check_images(given.images, inputs.predictions.cases)
        cases = inputs.predictions.cases
        groups = None if given.groups is None else read_groups(given.groups, cases)
        domains = None if given.domains is None else read_groups(given.domains, cases, kind="domain")
        common = same_for_all_parts(inputs, groups=groups, domains=domains, surface_tolerance=given.surface_tolerance)
        part = parsers.part_of(given)
        if given.merge:
            found = EvaluatedPart.merged(read_parts(given.o, common), cases)
        else:
            found = evaluate_cases(
                inputs,
                part.cases(cases),
                groups=groups,
                domains=domains,
                surface_tolerance=given.surface_tolerance,
                num_processes=given.np,
            )
            if part.of > 1:
                print(part.write(found, given.o, common))
                return
        summary = summarize(
            inputs,
            found,
            budgets=given.budgets,
            groups=groups,
            domains=domains,
            bootstrap_seed=given.bootstrap_seed,
        )
        files = write_results(summary, given.o)
        if given.report is not None:
            report = given.report if given.report.parent != Path() else given.o / given.report
            write_report(summary, inputs, report, given.images)
            files.append(report)
        if given.figures:
            files += write_paper(summary, given.o / FIGURES, given.figures, unit=summary["unit"])
    except InputError as error:
        parser.error(str(error))
    print(evaluation_text(summary))
    if profiles := profiles_of(inputs.experts.experts):
        print(f"  simulated experts: {', '.join(profile.name for profile in profiles)}")
    if not inputs.has_probabilities:
        print("  max softmax and entropy omitted: not all cases have probabilities (--save_probabilities, --npz)")
    print("\n".join(f"  {file}" for file in files))
