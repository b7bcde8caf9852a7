"""The masks of single folds from one prediction by all of them, or of the mirrored predictions of one.

nnU-Net predicts a case by one fold after the other and passes on the mean of their logits only. While a recording is
on, the segmentation logits of each fold are also written to a temporary file in the output folder; the worker that
exports the case reads them one fold at a time, so that memory does not grow with the number of folds. On disk they take
2 bytes for each fold, class and voxel of the preprocessed case, for the cases that wait for their export.

A single fold is mirrored along each combination of axes, of which nnU-Net passes on the mean, too. There each
combination is predicted once more by itself, since nnU-Net adds them up tile by tile.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import wraps
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_deferral import maps
from nnunetv2_deferral.environment import ENVIRONMENT_FOLDS
from nnunetv2_deferral.errors import InputError, refusals_named
from nnunetv2_deferral.files import scratch_folder
from nnunetv2_deferral.folds import EnsembleIdentity, FoldsFolder, files_of_case, mirrored_name
from nnunetv2_deferral.nnunet.case_geometry import CaseGeometry
from nnunetv2_deferral.nnunet.managers import DeferralPlansManager, configuration_name
from nnunetv2_deferral.nnunet.multi_rater_plans import MultiRaterPlansManager
from nnunetv2_deferral.uncertainty import MutualInformation

# How nnU-Net's trainers predict in their final validation, along all axes that they mirror.
FINAL_CHECKPOINT = "checkpoint_final.pth"
BEST_CHECKPOINT = "checkpoint_best.pth"  # the best one on the validation cases of its fold
VALIDATION_STEP = 0.5  # in tiles


@dataclass(frozen=True)
class StoredFolds:
    """The segmentation logits of each fold for a preprocessed case, in a folder of temporary files.

    Attributes:
        folder: The folder.
        ensemble: The ensemble, with the names of the folds.
    """

    folder: Path
    ensemble: EnsembleIdentity

    def write(self, place: int, logits: Tensor) -> None:
        """Write the logits (K, *S) of the fold at a place in the ensemble.

        Raises:
            InputError: If the operating system refuses, as when the disk is full.
        """
        with refusals_named(self.folder, "written to"):
            np.save(self._file(place), logits.numpy())

    def read(self, place: int) -> np.ndarray:
        """The logits of the fold at that place, in the dtype in which they were predicted."""
        found: np.ndarray = np.load(self._file(place))
        return found

    def remove(self) -> None:
        """Delete the files, once the case is exported."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, place: int) -> Path:
        return self.folder / f"{place}.npy"


class FoldsConfiguration(ConfigurationManager):
    """The configuration of a case, with the logits of its folds.

    The configuration is what nnU-Net passes from a predictor to the export of each case, in this or another process.
    """

    def __init__(self, stock: ConfigurationManager, stored: StoredFolds) -> None:
        """Add the logits of a case to a configuration."""
        super().__init__(stock.configuration)
        self.stored = stored


@dataclass
class FoldRecording:
    """Records the logits of each fold of a predictor, case by case.

    Attributes:
        predictor: The predictor.
        ensemble: The ensemble, with the names of the predictor's folds or mirrored predictions.
        folder: A folder for temporary files.
    """

    predictor: nnUNetPredictor
    ensemble: EnsembleIdentity
    folder: Path
    _mirrorings: tuple[tuple[int, ...], ...] = field(init=False)
    _cases: int = 0
    _folds: int = 0
    _stock: ConfigurationManager = field(init=False)
    _stored: StoredFolds | None = None

    def __post_init__(self) -> None:
        self._stock = self.predictor.configuration_manager
        labels = stock_plans(self.predictor.plans_manager).get_label_manager(self.predictor.dataset_json)
        self._heads: int = labels.num_segmentation_heads
        self._mirrorings = _mirrorings(self.predictor) if len(self.predictor.list_of_parameters) == 1 else ()

    @contextmanager
    def case(self) -> Iterator[None]:
        """While a case is predicted: its folds are recorded, and its export finds them."""
        self._stored = StoredFolds(self.folder / str(self._cases), self.ensemble)
        self._cases, self._folds = self._cases + 1, 0
        self._stored.folder.mkdir()
        try:
            yield
        finally:
            # A new object for each case, because the last one may not have been sent to its worker yet.
            self.predictor.configuration_manager = FoldsConfiguration(self._stock, self._stored)
            self._stored = None

    def predict(self, stock: Callable[..., Any], image: Tensor) -> Any:
        """The logits of the next fold for the case, by nnU-Net's function, which are recorded.

        Of a single fold, those of each combination of axes are recorded in their place.
        """
        logits = stock(self.predictor, image)
        if self._stored is None:
            return logits
        if not self._mirrorings:
            logits = logits.to("cpu")  # where nnU-Net sends them next
            self._write(self._stored, logits)
        for axes in self._mirrorings:
            self.predictor.deferral_mirroring = axes
            try:
                self._write(self._stored, stock(self.predictor, image).to("cpu"))
            finally:
                del self.predictor.deferral_mirroring
        return logits

    def _write(self, stored: StoredFolds, logits: Tensor) -> None:
        stored.write(self._folds, logits[: self._heads])
        self._folds += 1

    def end(self) -> None:
        """Leave the predictor as it was."""
        self.predictor.configuration_manager = self._stock
        del self.predictor.deferral_recording


@contextmanager
def recordings(predictor: nnUNetPredictor) -> Iterator[None]:
    """While a predictor goes through its cases: :func:`begin_recording` has an effect, which ends here."""
    with ExitStack() as stack:
        predictor.deferral_recordings = stack
        try:
            yield
        finally:
            del predictor.deferral_recordings


def begin_recording(predictor: nnUNetPredictor, ensemble: EnsembleIdentity, outputs: Sequence[Path]) -> None:
    """Record the folds of all cases that a predictor goes through now; their temporary files are beside the outputs.

    Args:
        predictor: The predictor.
        ensemble: Its ensemble.
        outputs: The files of the masks without their endings; nothing is recorded without any.
    """
    stack: ExitStack | None = getattr(predictor, "deferral_recordings", None)
    if stack is None or not outputs:
        return
    folder = outputs[0].parent / maps.FOLDER
    with refusals_named(folder, "written to"):
        folder.mkdir(parents=True, exist_ok=True)
        scratch = stack.enter_context(scratch_folder(folder))
    recording = predictor.deferral_recording = FoldRecording(predictor, ensemble, scratch)
    stack.callback(recording.end)


def lists_with_folds(
    stock: Callable[..., Any], predictor: nnUNetPredictor, called: dict[str, Any], folds: Sequence[str]
) -> Any:
    """nnU-Net's lists of what to predict; continued, also of cases with a mask but without those of their folds.

    Args:
        stock: nnU-Net's `_manage_input_and_output_lists`.
        predictor: The predictor.
        called: Its arguments, without the predictor.
        folds: The names of the folds.
    """
    lists = stock(predictor, **called)
    if called["overwrite"] or lists[1] is None:
        return lists
    with redirect_stdout(StringIO()):
        everything = stock(predictor, **(called | {"overwrite": True}))
    missing, ending = set(lists[1]), predictor.dataset_json["file_ending"]

    def incomplete(output: Path) -> bool:
        return not all(file.is_file() for file in files_of_case(output.parent, folds, output.name, ending))

    places = [place for place, file in enumerate(everything[1]) if file in missing or incomplete(Path(file))]
    if again := len(places) - len(missing):
        print(f"{again} cases have a mask but lack masks of single folds: they are predicted as well")
    return tuple([each[place] for place in places] for each in everything)


def write_folds(
    stored: StoredFolds,
    geometry: CaseGeometry,
    dataset_json: dict[str, Any],
    file: Path,
    *,
    with_probabilities: bool,
    num_threads: int,
) -> None:
    """Write the masks of the folds of a case and their mutual information, and delete the logits.

    A mask is what nnU-Net's export makes of the fold's logits, and so what a prediction by this fold alone is. The
    mutual information is that of the probabilities that such predictions would save.

    Args:
        stored: The logits of the folds.
        geometry: The geometry of the preprocessed case, with nnU-Net's own plans.
        dataset_json: The content of the model's dataset.json.
        file: The file of the ensemble's mask, without its ending.
        with_probabilities: Whether probabilities are saved, of which nnU-Net then forms the mask.
        num_threads: The number of threads for nnU-Net's functions.
    """
    plans, properties = geometry.plans_manager, geometry.properties
    labels = plans.get_label_manager(dataset_json)
    folder = FoldsFolder(
        folder=file.parent,
        file_ending=dataset_json["file_ending"],
        writer=plans.image_reader_writer_class(),
        ensemble=stored.ensemble,
    )
    folder.enter()
    information = MutualInformation(has_regions=labels.has_regions)
    for place, fold in enumerate(stored.ensemble.folds):
        logits = geometry.resampled(torch.from_numpy(stored.read(place)))
        found = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, plans, geometry.without_resampling(), labels, properties, with_probabilities, num_threads
        )
        folder.write_mask(file.name, fold, found[0] if with_probabilities else found, properties)
        del found
        information.add(np.asarray(labels.apply_inference_nonlin(torch.from_numpy(logits))))
    # Where the image was cropped, all folds say background.
    folder.write_information(file.name, geometry.in_image(information.result()[None], [0.0])[0], properties)
    stored.remove()


def stock_plans(plans_manager: PlansManager) -> PlansManager:
    """The plans as nnU-Net's own manager, which knows the segmentation channels only."""
    if isinstance(plans_manager, DeferralPlansManager | MultiRaterPlansManager):
        return plans_manager.stock()
    return plans_manager


def ensemble_of(predictor: nnUNetPredictor) -> EnsembleIdentity:
    """The ensemble of a predictor, whose masks of folds, or of one fold's mirrored predictions, are wanted.

    Raises:
        InputError: If it has one fold and does not mirror, or the names of its folds are unknown.
    """
    (names, _), number = _loaded(predictor), len(predictor.list_of_parameters)
    mirrorings = _mirrorings(predictor)
    if number < 2 and len(mirrorings) < 2:
        raise InputError(
            f"the masks of folds and their mutual information ({ENVIRONMENT_FOLDS}=1, nnUNetv2_deferral_uncertainty) "
            "require at least two folds (-f), or one with mirroring, got "
            f"{' '.join(names) or number} without mirroring, which always agrees with itself"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"each fold can be given only once (-f), but {', '.join(twice)} was given several times")
    if len(names) != number:
        raise InputError(
            f"the predictor has {number} folds, but their names are {', '.join(names) or 'unknown'}. In Python, call "
            "nnunetv2_deferral.nnunet.hooks.install() before initialize_from_trained_model_folder"
        )
    plans, prediction = predictor.plans_manager, prediction_of(predictor)
    if number > 1:
        del prediction["folds"]  # the members
    return EnsembleIdentity(
        dataset=plans.dataset_name,
        plans=plans.plans_name,
        configuration=configuration_name(plans, predictor.configuration_manager),
        trainer=predictor.trainer_name,
        folds=names if number > 1 else tuple(map(mirrored_name, mirrorings)),
        prediction=prediction,
    )


def _mirrorings(predictor: nnUNetPredictor) -> tuple[tuple[int, ...], ...]:
    """The combinations of axes along which a predictor mirrors, none of them first; as in nnU-Net."""
    axes = (predictor.allowed_mirroring_axes or ()) if predictor.use_mirroring else ()
    return tuple(chosen for number in range(len(axes) + 1) for chosen in combinations(axes, number))


def prediction_of(predictor: nnUNetPredictor) -> dict[str, Any]:
    """How a predictor uses its model, as far as it is known; see :func:`.maps.check_prediction`."""
    folds, checkpoint = _loaded(predictor)
    mirroring = bool(predictor.use_mirroring and predictor.allowed_mirroring_axes)
    found: dict[str, Any] = {"mirroring": mirroring, "step_size": float(predictor.tile_step_size)}
    if folds:
        found["folds"] = sorted(folds)
    if checkpoint is not None:
        found["checkpoint"] = checkpoint
    return found


def unlike_validation(predictor: nnUNetPredictor) -> list[str]:
    """How a prediction differs from the final validation of a training, one phrase each; empty if it does not."""
    checkpoint, found = _loaded(predictor)[1], []
    if checkpoint not in (None, FINAL_CHECKPOINT):
        found.append(f"by {checkpoint}")
    if predictor.allowed_mirroring_axes and not predictor.use_mirroring:
        found.append("without mirroring")
    if predictor.tile_step_size != VALIDATION_STEP:
        found.append(f"in steps of {predictor.tile_step_size:g} of a tile")
    return found


def _loaded(predictor: nnUNetPredictor) -> tuple[tuple[str, ...], str | None]:
    """The names of folds and checkpoint, as noted when the model was loaded; empty and None if they are not known.

    nnU-Net's commands load our trainer, and thus this, only with the model.
    """
    if (noted := getattr(predictor, "deferral_folds", None)) is not None:
        return tuple(noted), getattr(predictor, "deferral_checkpoint", None)
    if not Path(sys.argv[0]).name.startswith("nnUNetv2_predict"):
        return (), None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-f", nargs="+", default=range(5))  # as nnU-Net's
    parser.add_argument("-chk", default=FINAL_CHECKPOINT)
    parser.add_argument("-c")  # which would be taken for a short -chk
    given = parser.parse_known_args(sys.argv[1:])[0]
    return _texts(given.f), given.chk


def _texts(folds: Sequence[Any]) -> tuple[str, ...]:
    """The names of folds, of which nnU-Net has the number in the name of the folder."""
    return tuple(fold if fold == "all" else str(int(fold)) for fold in folds)


def note_folds(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Of `nnUNetPredictor.initialize_from_trained_model_folder`: note which folds and checkpoint were loaded."""

    @wraps(stock)
    def initialize_from_trained_model_folder(
        self: nnUNetPredictor,
        model_training_output_dir: str,
        use_folds: Any,
        checkpoint_name: str = "checkpoint_final.pth",
    ) -> None:
        if use_folds is None:
            use_folds = self.auto_detect_available_folds(model_training_output_dir, checkpoint_name)
        stock(self, model_training_output_dir, use_folds, checkpoint_name)
        self.deferral_folds = _texts([use_folds] if isinstance(use_folds, str) else use_folds)
        self.deferral_checkpoint = checkpoint_name

    return initialize_from_trained_model_folder


def record_cases(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Of `nnUNetPredictor.predict_logits_from_preprocessed_data`: record each case while a recording is on."""

    @wraps(stock)
    def predict_logits_from_preprocessed_data(self: nnUNetPredictor, data: Tensor) -> Any:
        recording: FoldRecording | None = getattr(self, "deferral_recording", None)
        if recording is None:
            return stock(self, data)
        with recording.case():
            return stock(self, data)

    return predict_logits_from_preprocessed_data


def record_folds(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Of `nnUNetPredictor.predict_sliding_window_return_logits`: record what a fold predicts for a case."""

    @wraps(stock)
    def predict_sliding_window_return_logits(self: nnUNetPredictor, input_image: Tensor) -> Any:
        recording: FoldRecording | None = getattr(self, "deferral_recording", None)
        return stock(self, input_image) if recording is None else recording.predict(stock, input_image)

    return predict_sliding_window_return_logits


def mirror_once(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Of `nnUNetPredictor._internal_maybe_mirror_and_predict`: one combination of axes while it is recorded."""

    @wraps(stock)
    def _internal_maybe_mirror_and_predict(self: nnUNetPredictor, x: Tensor) -> Any:
        axes: tuple[int, ...] | None = getattr(self, "deferral_mirroring", None)
        if axes is None:
            return stock(self, x)
        of_batch = [axis + 2 for axis in axes]
        return torch.flip(self.network(torch.flip(x, of_batch)), of_batch)

    return _internal_maybe_mirror_and_predict
