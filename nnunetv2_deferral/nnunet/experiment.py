"""Methods, datasets and folds to be compared, and their locations in nnU-Net's folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from typing_extensions import TypedDict

from nnunetv2_deferral.dataset import read_dataset_json, read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.nnunet.managers import MODEL_KEY
from nnunetv2_deferral.schema import Text, read_validated_json
from nnunetv2_deferral.text import named_folds

SPLITS = "splits_final.json"


class Split(TypedDict):
    """The training and validation cases of a fold."""

    train: list[Text]
    val: list[Text]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A trainer with plans."""

    trainer: str
    plans: str

    def __str__(self) -> str:
        return f"{self.trainer} on {self.plans}"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Dataset, configuration and folds on which methods are compared.

    Attributes:
        dataset: Full name, `DatasetXXX_Name`.
        configuration: Such as `2d`.
        folds: Folds of splits_final.json.
        raw: The dataset's folder in nnUNet_raw; need not exist for simulated experts.
        preprocessed: The dataset's folder in nnUNet_preprocessed.
        results: The dataset's folder in nnUNet_results; need not exist.
    """

    dataset: str
    configuration: str
    folds: tuple[int, ...]
    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def find(cls, dataset: str | int, configuration: str, folds: Sequence[int] | None) -> Experiment:
        """The experiment on a dataset in nnU-Net's folders.

        Args:
            dataset: Its id or name.
            configuration: The configuration.
            folds: The folds; None if they do not matter.

        Raises:
            InputError: If a variable of nnU-Net is not set, the dataset is unknown or not preprocessed, or folds are
                negative or not distinct.
        """
        roots = {"nnUNet_raw": nnUNet_raw, "nnUNet_preprocessed": nnUNet_preprocessed, "nnUNet_results": nnUNet_results}
        if unset := [name for name, path in roots.items() if not path.is_set()]:
            raise InputError(f"{', '.join(unset)} must be set, as for nnU-Net's own commands")
        if folds is not None and (not folds or len(set(folds)) != len(folds) or min(folds) < 0):
            raise InputError(f"folds (-f) must be distinct numbers >= 0, got {list(folds)}")
        name = full_dataset_name(dataset)
        here = cls(
            dataset=name,
            configuration=configuration,
            folds=tuple(folds or ()),
            raw=Path(nnUNet_raw, name),
            preprocessed=Path(nnUNet_preprocessed, name),
            results=Path(nnUNet_results, name),
        )
        if not (here.preprocessed / "dataset.json").is_file():
            raise InputError(
                f"{here.preprocessed} has no dataset.json: plan and preprocess the dataset first "
                f"(nnUNetv2_plan_and_preprocess -d {name.split('_')[0].removeprefix('Dataset')} -c {configuration})"
            )
        return here

    def model(self, method: Method) -> Path:
        """The folder of a model, for all folds."""
        return self.results / f"{method.trainer}__{method.plans}__{self.configuration}"

    def fold(self, method: Method, fold: int) -> Path:
        """The folder of a fold of a model."""
        return self.model(method) / f"fold_{fold}"

    def validation(self, method: Method, fold: int) -> Path:
        """The folder of a fold's validation masks."""
        return self.fold(method, fold) / "validation"

    def check_trained(self, method: Method) -> None:
        """Refuse a model that does not exist.

        Raises:
            InputError: Naming the models that exist.
        """
        model = self.model(method)
        if not model.is_dir():
            models = sorted(folder.name for folder in self.results.glob(f"*__*__{self.configuration}"))
            raise InputError(f"{model} does not exist; trained are {', '.join(models) or 'no models'}")

    def check_validated(self, method: Method) -> None:
        """Refuse a model without a validation of all folds.

        Raises:
            InputError: Naming the folds that have one, or the models that exist.
        """
        self.check_trained(method)
        model = self.model(method)
        there = sorted(folder.parent.name.removeprefix("fold_") for folder in model.glob("fold_*/validation"))
        if lacking := [str(fold) for fold in self.folds if str(fold) not in there]:
            raise InputError(
                f"{model} has no validation of {named_folds(lacking)} (-f); there is one of {named_folds(there)}"
            )

    def reference(self, case: str) -> Path:
        """The label file of a case."""
        return self.references / f"{case}{self.file_ending}"

    @property
    def references(self) -> Path:
        """The folder of the label files of all cases of the training set."""
        return self.preprocessed / "gt_segmentations"

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        """The dataset.json that trainings read."""
        return read_dataset_json(self.preprocessed / "dataset.json")

    @property
    def file_ending(self) -> str:
        """The dataset's file ending."""
        return self.dataset_json["file_ending"]

    def splits(self) -> list[Split]:
        """The content of splits_final.json.

        Raises:
            InputError: If the file is missing, invalid, or lacks a fold.
        """
        file = self.preprocessed / SPLITS
        splits: list[Split] = read_validated_json(file, list[Split])
        if lacking := [str(fold) for fold in self.folds if fold >= len(splits)]:
            raise InputError(f"{file} has {len(splits)} folds, but not {named_folds(lacking)}")
        return splits

    def training_cases(self, fold: str) -> list[str]:
        """The cases that the network of a fold, or of `all`, is trained on, sorted.

        Raises:
            InputError: See :meth:`splits`; also if there are no references of training cases, or no such fold.
        """
        if fold == "all":
            files = self.references.glob(f"*{self.file_ending}")
            if not (cases := sorted(file.name.removesuffix(self.file_ending) for file in files)):
                raise InputError(
                    f"{self.references} has no *{self.file_ending}, so that it is not known which cases the network of "
                    'fold "all" was trained on'
                )
            return cases
        if not fold.isdecimal():
            raise InputError(f'a fold must be a number or "all", got {fold!r}')
        return sorted(replace(self, folds=(int(fold),)).splits()[int(fold)]["train"])

    def validation_cases(self, fold: str) -> list[str]:
        """The validation cases of a fold with a number, sorted.

        Raises:
            InputError: See :meth:`splits`.
        """
        return replace(self, folds=(int(fold),)).cases()[int(fold)]

    def cases(self) -> dict[int, list[str]]:
        """The validation cases of each fold, sorted.

        Raises:
            InputError: See :meth:`splits`, and if a case is in the validation of two folds.
        """
        splits = self.splits()
        cases = {fold: sorted(splits[fold]["val"]) for fold in self.folds}
        seen: dict[str, int] = {}
        for fold, names in cases.items():
            for case in names:
                if case in seen:
                    raise InputError(
                        f"{self.preprocessed / SPLITS}: {case} is in the validation of fold {seen[case]} and of fold "
                        f"{fold}. Choose folds (-f) without common cases"
                    )
                seen[case] = fold
        return cases


def fold_numbers(words: Sequence[str | int], *, instead: str = "") -> list[int]:
    """The folds of an option `-f`.

    Args:
        words: The words of the option.
        instead: What numbers of folds are good for, for who gives "all"; empty for nothing more.

    Raises:
        InputError: If one is "all", which has no validation cases of its own, or not a number.
    """
    if "all" in words:
        raise InputError(
            'fold "all" has no validation of its own: its network is trained on all cases. Give numbers of folds (-f '
            f"0 1 2 3 4), which are validated on cases that they were not trained on{instead}"
        )
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise InputError(f"folds (-f) must be numbers, got {' '.join(map(str, words))}") from error


def plans_names(preprocessed: Path) -> list[str]:
    """The names of the plans in a dataset's folder of nnUNet_preprocessed, sorted; empty if there are none."""
    others = ("dataset.json", "dataset_fingerprint.json", SPLITS)
    return sorted(file.stem for file in preprocessed.glob("*.json") if file.name not in others)


def full_dataset_name(dataset: str | int) -> str:
    """The full name, `DatasetXXX_Name`, of a dataset given by id or name.

    Raises:
        InputError: If nnU-Net does not find the dataset.
    """
    try:
        return str(maybe_convert_to_dataset_name(int(dataset) if str(dataset).isdigit() else dataset))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(f"unknown dataset {dataset}: {error}") from error


def is_deferral_model(model: Path) -> bool:
    """Whether a model folder belongs to a deferral model, according to its plans.

    Raises:
        InputError: If the plans cannot be read.
    """
    return MODEL_KEY in read_plans_json(model / "plans.json")
