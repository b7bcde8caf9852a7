"""Reading a folder of predicted masks with their deferral maps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_deferral import agreement_maps, maps
from nnunetv2_deferral.cases import PredictedCase, Stored
from nnunetv2_deferral.dataset import DatasetFiles, read_dataset_json, same_cases
from nnunetv2_deferral.decision.gains import gain_unit
from nnunetv2_deferral.decision.kept_gains import KeptGains
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.defaults import AGGREGATED, MAPS
from nnunetv2_deferral.environment import ENVIRONMENT_MAPS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import EarlierAnswers
from nnunetv2_deferral.evidence.prior import PriorMap, from_steps
from nnunetv2_deferral.files import new_folder, write_json
from nnunetv2_deferral.image_files import integer_scale
from nnunetv2_deferral.settings import DeferralSettings, resolve_settings
from nnunetv2_deferral.text import listed
from nnunetv2_deferral.uncertainty import one_minus_max


@dataclass(frozen=True, kw_only=True)
class MaskFolder:
    """A folder of predicted masks.

    Attributes:
        folder: The folder.
        files: File format and labels of the dataset.
        cases: The cases with a mask, sorted.
    """

    folder: Path
    files: DatasetFiles
    cases: tuple[str, ...]

    def mask_file(self, case: str) -> Path:
        """The file of the model's mask."""
        return self.folder / f"{case}{self.files.file_ending}"

    def softmax_file(self, case: str) -> Path:
        """The file of the model's probabilities, written with `--save_probabilities` or `--npz`."""
        return self.folder / f"{case}.npz"

    def has_softmax(self, case: str) -> bool:
        """Whether the model's probabilities of the prediction were saved."""
        return self.softmax_file(case).is_file()

    def with_softmax(self, case: str) -> PredictedCase:
        """A case with the model's mask and probabilities; its files are read on first access."""
        mask = cache(lambda: self.files.read(self.mask_file(case)))
        return PredictedCase(
            case,
            model=Stored(file=self.mask_file(case), read=lambda: mask()[0]),
            softmax=Stored(file=self.softmax_file(case), read=lambda: read_probabilities(self.softmax_file(case))),
            properties=lambda: mask()[1],
            mask_of=self.files.mask_of,
        )

    def check_softmax(self) -> None:
        """Refuse a folder in which any case has no probabilities.

        Raises:
            InputError: Listing the missing files.
        """
        missing = [str(self.softmax_file(case)) for case in self.cases if not self.has_softmax(case)]
        if missing:
            raise InputError(
                f"probabilities are missing ({len(missing)}): {listed(missing, 10)}. Predict with "
                "--save_probabilities, validate with --npz"
            )


@dataclass(frozen=True, kw_only=True)
class PredictionFolder(MaskFolder):
    """The masks and deferral maps predicted by a model.

    Attributes:
        experts: The names of the experts in routing order.
        index: The content of deferral.json, and under `cases` the entries of all cases.

    Example:
        Given the `folder` of a prediction for the cases x and y by a model with the experts ann and bob:

        >>> from nnunetv2_deferral import PredictionFolder
        >>> predictions = PredictionFolder.open(folder)
        >>> predictions.experts, predictions.cases
        (('ann', 'bob'), ('x', 'y'))
        >>> case = predictions.case("x")
        >>> case.route.shape, case.route.dtype
        ((4, 6, 7), dtype('uint8'))
    """

    experts: tuple[str, ...]
    index: Mapping[str, Any]

    @classmethod
    def open(
        cls,
        folder: Path,
        dataset_json: Path | None = None,
        *,
        undecided: bool = False,
        needed: Sequence[str] = (),
    ) -> PredictionFolder:
        """Open a folder written by `nnUNetv2_predict` or a final validation.

        Args:
            folder: The folder of the masks.
            dataset_json: The dataset.json of the model; None for the one that nnU-Net writes to the folder of a
                prediction, or to the model folder above a validation.
            undecided: See :func:`.maps.read_index`.
            needed: Maps that are read, besides the route.

        Raises:
            InputError: If there are no masks, no deferral maps (a stock model), maps of some cases are missing (the
                message lists the missing files), a map that is needed was not written, or deferral.json or the entry
                of a case is invalid or missing.
        """
        index = maps.index_file(folder)
        if not folder.is_dir():
            raise InputError(f"the folder {folder} does not exist")
        if not index.is_file():
            raise InputError(
                f"{folder} has no deferral maps ({index} is missing): masks of a stock model, of "
                "nnUNetv2_ensemble, nnUNetv2_apply_postprocessing and nnUNetv2_find_best_configuration have none"
            )
        entries = maps.read_index(folder, undecided=undecided)
        files = files_of_masks(folder, dataset_json)
        cases = tuple(files.cases(folder))
        same_cases(f"cases without an entry in {maps.entries_folder(folder)}", cases, list(entries["cases"]))
        present = cache(_names_of_files)  # a look at each of 40,000 files takes seconds
        kinds = maps.kinds_of(entries)
        if absent := [kind for kind in needed if kind not in kinds]:
            raise _not_written(folder, absent, kinds)
        paths = [maps.MAP_FILES[kind] for kind in kinds]
        files_of_maps = (path(folder, case, files.file_ending) for case in cases for path in paths)
        found = cls(folder=folder, files=files, experts=tuple(entries["model"]["experts"]), cases=cases, index=entries)
        of_disagreement = (file for case in cases for file in found.disagreement_files(case))
        every = chain(files_of_maps, of_disagreement)
        if missing := [str(file) for file in every if file.name not in present(file.parent)]:
            raise InputError(f"deferral maps are missing ({len(missing)}): {listed(missing, 10)}")
        return found

    @cached_property
    def settings(self) -> DeferralSettings:
        """The settings of the model."""
        return resolve_settings(self.index["settings"])

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.cases)

    @property
    def index_file(self) -> Path:
        """The deferral.json of the folder."""
        return maps.index_file(self.folder)

    @property
    def prediction(self) -> dict[str, Any]:
        """How the cases were predicted, as far as it is known, see :func:`.maps.check_prediction`."""
        return dict(self.index.get("prediction", {}))

    def limits(self, case: str) -> Limits:
        """The limits on deferral in a case, according to its entry.

        Raises:
            InputError: If they are not valid; the message names the file.
        """
        content = self.index["cases"][case].get("limits", {})
        try:
            capacities = content.get("capacities")
            return Limits(**{**content, "capacities": None if capacities is None else tuple(capacities)})
        except (AttributeError, TypeError, InputError) as error:
            raise InputError(f"{maps.case_file(self.folder, case)}: limits: {error}") from error

    def has_other_mask(self, case: str) -> bool:
        """Whether the mask of a case is another file than was predicted with its maps, as after postprocessing.

        Of maps that were not written by a prediction of nnU-Net, or by an earlier version, this is not known: False.
        """
        noted = self.index["cases"][case].get("mask")
        return noted is not None and noted != maps.mask_checksum(self.mask_file(case))

    def check_masks(self, advice: str) -> None:
        """Refuse masks that are not those predicted with the maps.

        Raises:
            InputError: Naming the folder and the cases, and what to do.
        """
        if others := [case for case in self.cases if self.has_other_mask(case)]:
            raise InputError(f"{self.folder}: {maps.other_masks_text(others)}. {advice}")

    def asked(self, case: str | None = None) -> tuple[str, ...]:
        """The experts to whom any voxel of a case, or of all cases, was routed, according to their entries."""
        shares = [self.index["cases"][name]["share"] for name in (self.cases if case is None else (case,))]
        return tuple(expert for expert in self.experts if any(share[expert] > 0 for share in shares))

    def case(self, name: str) -> PredictedCase:
        """A case; its files are read on first access.

        Raises:
            InputError: If there is no case of that name.
        """
        if name not in self._names:
            raise InputError(f"{self.folder} has no case {name!r}")
        answered, gains = maps.answered_file(self.folder, name), maps.gains_file(self.folder, name)
        softmax, routing = self.softmax_file(name), self.routing_file(name)
        saved = self._has_saved(name)
        mask = cache(lambda: self.files.read(self.mask_file(name)))
        return PredictedCase(
            name,
            model=Stored(file=self.mask_file(name), read=lambda: mask()[0]),
            route=self._map(name, "route", self._values),
            probability=self._map(name, "probability", self.files.read_shares),
            expert=self._map(name, "expert", self._values),
            aggregated=self._map(name, AGGREGATED, self.files.read_shares),
            gain=self._map(name, "gain", lambda file: self._gain(file, name)),
            gains=Stored(file=gains, read=lambda: _kept_gains(gains, mask()[0].shape)),
            softmax=Stored(file=softmax, read=lambda: read_probabilities(softmax)) if saved else None,
            routing=Stored(file=routing, read=lambda: read_probabilities(routing)) if saved else None,
            prior=Stored(file=self.prior_file(name), read=lambda: _prior(self.prior_file(name))),
            answered=Stored(file=answered, read=lambda: _stored(answered, *EarlierAnswers._fields)),
            disagreement=self._disagreement(name),
            properties=lambda: mask()[1],
            num_experts=len(self.experts),
        )

    def routing_file(self, case: str) -> Path:
        """The file of the routing probabilities, written with `--save_probabilities` or `--npz`."""
        return maps.routing_file(self.folder, case)

    def has_softmax(self, case: str) -> bool:
        """Whether the model's probabilities were saved, and not by an earlier prediction than the maps."""
        return super().has_softmax(case) and self._has_saved(case)

    def has_routing(self, case: str) -> bool:
        """The same of the routing probabilities."""
        return self.routing_file(case).is_file() and self._has_saved(case)

    def _has_saved(self, case: str) -> bool:
        saved: bool = self.index["cases"][case].get("probabilities", True)  # not noted by earlier versions
        return saved

    def prior_file(self, case: str) -> Path:
        """The file of the prior logits, written if the model's calibration reads answers as evidence."""
        return maps.prior_file(self.folder, case)

    def disagreement_files(self, case: str) -> list[Path]:
        """The maps of disagreement of a case, one for each structure; none if the model did not learn it."""
        if not self.settings.multi_rater:
            return []
        number = len(self.files.class_names)
        return agreement_maps.map_files(self.folder, agreement_maps.DISAGREEMENT, case, self.files.file_ending, number)

    @property
    def identity(self) -> maps.ModelIdentity:
        """The model that the maps are of."""
        content: dict[str, Any] = dict(self.index["model"])
        names = ("dataset", "plans", "configuration", "trainer", "calibration")
        fields: dict[str, Any] = {key: content.get(key) for key in names}
        unavailable = tuple(content.get("unavailable", ()))
        return maps.ModelIdentity(**fields, experts=self.experts, unavailable=unavailable)

    @property
    def gain_unit(self) -> str:
        """What the gain maps are in, see :func:`.gain_unit`."""
        calibration = self.calibration
        return gain_unit(self.settings.objective, evidence=calibration is not None and calibration.evidence is not None)

    @cached_property
    def calibration(self) -> ModelCalibration | None:
        """The calibration applied to the maps, or None."""
        content = self.index.get("calibration")
        if content is None:
            return None
        return ModelCalibration.from_dict(content, self.experts, f"{maps.index_file(self.folder)}: calibration")

    def _map(self, case: str, kind: str, read: Callable[[Path], np.ndarray]) -> Stored:
        file, kinds = maps.MAP_FILES[kind](self.folder, case, self.files.file_ending), maps.kinds_of(self.index)

        def read_map() -> np.ndarray:
            if kind not in kinds:
                raise _not_written(self.folder, [kind], kinds)
            return read(file)

        return Stored(file=file, read=read_map)

    def _disagreement(self, case: str) -> Stored | None:
        files = self.disagreement_files(case)
        if not files:
            return None
        return Stored(file=files[0], read=lambda: np.max([self.files.read_shares(file) for file in files], axis=0))

    def _values(self, file: Path) -> np.ndarray:
        return self.files.read_values(file)[0]

    def _gain(self, file: Path, case: str) -> np.ndarray:
        values = self.files.read_shares(file)
        if integer_scale(self.files.file_ending, values.shape) is None:
            return values
        return (values * self.index["cases"][case]["largest_gain"]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class StockFolder(MaskFolder):
    """The masks and saved probabilities of a stock network, which knows of no experts.

    Its cases have the routing probabilities of a network that knows its own confidence only: the model is right with
    its largest probability (in region-based training, the smallest of the regions'), and experts always.

    Attributes:
        settings: The experts.
    """

    settings: DeferralSettings

    @classmethod
    def open(cls, folder: Path, dataset_json: Path, settings: DeferralSettings) -> StockFolder:
        """Open a folder of predictions or a final validation.

        Raises:
            InputError: If the folder or its masks do not exist, or a case has no probabilities; the message lists the
                missing files.
        """
        if not folder.is_dir():
            raise InputError(f"the folder {folder} does not exist")
        files = files_of_masks(folder, dataset_json)
        found = cls(folder=folder, files=files, settings=settings, cases=tuple(files.cases(folder)))
        found.check_softmax()
        return found

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the experts in routing order."""
        return self.settings.expert_names

    def routing_file(self, case: str) -> Path:
        """The file from which the routing probabilities are computed."""
        return self.softmax_file(case)

    def has_routing(self, case: str) -> bool:
        """Whether it exists."""
        return self.has_softmax(case)

    def case(self, name: str) -> PredictedCase:
        """A case with mask, probabilities and routing probabilities; its files are read on first access."""
        mask = cache(lambda: self.files.read(self.mask_file(name)))
        probabilities = cache(lambda: read_probabilities(self.softmax_file(name)))
        return PredictedCase(
            name,
            model=Stored(file=self.mask_file(name), read=lambda: mask()[0]),
            softmax=Stored(file=self.softmax_file(name), read=probabilities),
            routing=Stored(file=self.softmax_file(name), read=lambda: self._routing(probabilities())),
            properties=lambda: mask()[1],
            num_experts=len(self.experts),
            mask_of=self.files.mask_of,
        )

    def _routing(self, probabilities: np.ndarray) -> np.ndarray:
        routing = np.ones((len(self.experts) + 1, *probabilities.shape[1:]), dtype=np.float32)
        routing[0] -= one_minus_max(probabilities, has_regions=self.files.label_manager.has_regions)
        return routing


@contextmanager
def copied_predictions(source: PredictionFolder | StockFolder, output: Path) -> Iterator[Path]:
    """A temporary folder with the masks, dataset.json and plans.json of predictions, which becomes `output` at the end.

    Raises:
        InputError: If `output` is not empty.
    """
    with new_folder(output) as scratch:
        for case in source.cases:
            shutil.copy2(source.mask_file(case), scratch)
            _copy_agreement(source, case, scratch)
        write_json(dict(source.files.content), scratch / "dataset.json")
        copied = [source.folder / "plans.json"]
        if source.settings.multi_rater:
            copied.append(agreement_maps.index_file(source.folder))
        for file in copied:
            if file.is_file():
                _copy(file, source.folder, scratch)
        yield scratch


def _copy_agreement(source: PredictionFolder | StockFolder, case: str, output: Path) -> None:
    """Copy the maps of agreement of a case, which do not depend on what is asked."""
    if not source.settings.multi_rater:
        return
    number = len(source.files.class_names)
    for file in agreement_maps.files_of_case(source.folder, case, source.files.file_ending, number):
        if file.is_file():
            _copy(file, source.folder, output)


def _copy(file: Path, folder: Path, output: Path) -> None:
    """Copy a file of a folder to the same place in another one."""
    copied = output / file.relative_to(folder)
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, copied)


def absent_text(file: Path) -> str:
    """What is to be said of a file of probabilities that a prediction does not have."""
    if file.is_file():
        return f"{file} is from an earlier prediction; the last one saved no probabilities"
    return f"{file} is missing"


def noted_mask(source: PredictionFolder | StockFolder, case: str) -> dict[str, str]:
    """What the entry of a case notes of its mask, for the entry of a copy of the mask."""
    entry = source.index["cases"][case] if isinstance(source, PredictionFolder) else {}
    return {"mask": entry["mask"]} if "mask" in entry else {}


def open_masks(folder: Path, dataset_json: Path | None = None) -> MaskFolder:
    """Open a folder of masks that any model of nnU-Net predicted.

    Args:
        folder: The folder of a prediction or a final validation.
        dataset_json: See :meth:`PredictionFolder.open`.

    Raises:
        InputError: If the folder, its masks or a dataset.json does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist")
    files = files_of_masks(folder, dataset_json)
    return MaskFolder(folder=folder, files=files, cases=tuple(files.cases(folder)))


def files_of_masks(folder: Path, dataset_json: Path | None) -> DatasetFiles:
    """How the masks of a folder are read.

    Args:
        folder: The folder.
        dataset_json: See :meth:`PredictionFolder.open`.

    Raises:
        InputError: If there are none with the ending in dataset.json, or there is no dataset.json.
    """
    if dataset_json is None:
        candidates = [folder / "dataset.json", folder.parent.parent / "dataset.json"]
        dataset_json = next((file for file in candidates if file.is_file()), None)
        if dataset_json is None:
            raise InputError(f"there is no dataset.json in {folder}; specify it with -djfile")
    ending = read_dataset_json(dataset_json)["file_ending"]
    masks = (file for file in sorted(folder.glob(f"*{ending}")) if file.is_file() and file.name[0] != ".")
    example = next(masks, None)
    if example is None:
        raise InputError(f"{folder} has no masks with the file ending {ending!r} of {dataset_json}")
    return DatasetFiles.of(dataset_json, example)


def _not_written(folder: Path, absent: Sequence[str], kinds: Sequence[str]) -> InputError:
    """What to say, and what to do, if maps were not asked for."""
    return InputError(
        f"{folder} does not have the maps {' '.join(absent)}, which are needed here: according to "
        f"{maps.index_file(folder)} it was predicted with {' '.join(kinds) or 'none'} only ({ENVIRONMENT_MAPS}, or "
        "maps in the plans). Predict into another folder with "
        f'{ENVIRONMENT_MAPS}="{" ".join(kind for kind in MAPS if kind in {*absent, *kinds})}", or, if it was predicted '
        "with --save_probabilities, make all maps of it with nnUNetv2_deferral_route"
    )


def _kept_gains(file: Path, shape: Sequence[int]) -> np.ndarray:
    kept = KeptGains(*_stored(file, *KeptGains._fields))
    try:
        return kept.gains(shape)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _prior(file: Path) -> PriorMap:
    steps, areas = _stored(file, "prior", "areas")
    if steps.dtype != np.int16:
        raise InputError(f"{file}: prior must be int16, got {steps.dtype}")
    return PriorMap(from_steps(steps), areas)


def read_probabilities(file: Path) -> np.ndarray:
    """The probabilities in a file that nnU-Net saved, float32 (K, *S).

    Raises:
        InputError: If it cannot be read; the message names it.
    """
    (probabilities,) = _stored(file, "probabilities")
    return probabilities.astype(np.float32)


def _stored(file: Path, *keys: str) -> tuple[np.ndarray, ...]:
    try:
        # np.load leaves a file open that it cannot read.
        with file.open("rb") as opened, np.load(opened) as content:
            return tuple(np.asarray(content[key]) for key in keys)
    except Exception as error:  # a truncated zip fails in several ways
        raise InputError(f"{file} cannot be read: {error}") from error


def _names_of_files(folder: Path) -> frozenset[str]:
    """The names of the files of a folder; none if it does not exist."""
    try:
        with os.scandir(folder) as found:
            return frozenset(each.name for each in found if each.is_file())
    except FileNotFoundError:
        return frozenset()
