"""The functions of nnU-Net that this package replaces, and a check that they are unchanged.

nnU-Net has no hooks for writing more than a mask for a case, for what each fold of an ensemble predicts, for checking
an output folder before a prediction starts, or for passing the file of pretrained weights to a trainer. Each
replacement has the signature of the original and delegates to it for everything but our models. Importing the trainer
installs them; no files are changed. In nnU-Net's commands :class:`.InputError` is then shown in one line, as in the
commands of this package.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnUNetTrainer_module

from nnunetv2_deferral import agreement_maps, folds, maps
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.decision.limits import Limits, limits_text, refuse_minutes
from nnunetv2_deferral.defaults import AGGREGATED, MEASURED_BY
from nnunetv2_deferral.environment import ENVIRONMENT_MAPS, folds_wanted, maps_wanted
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.minutes import keep_minutes
from nnunetv2_deferral.network import deferral_head
from nnunetv2_deferral.nnunet.export import (
    check_limits,
    effective_limits,
    export_prediction_from_logits,
    model_identity,
    remarks_on_calibration,
)
from nnunetv2_deferral.nnunet.fold_export import (
    begin_recording,
    ensemble_of,
    lists_with_folds,
    mirror_once,
    note_folds,
    prediction_of,
    record_cases,
    record_folds,
    recordings,
    unlike_validation,
)
from nnunetv2_deferral.nnunet.managers import DeferralPlansManager
from nnunetv2_deferral.nnunet.multi_rater_export import agreement_model
from nnunetv2_deferral.nnunet.multi_rater_plans import MultiRaterPlansManager
from nnunetv2_deferral.text import listed

TESTED_NNUNET = ("2.8", "2.9")


def check_nnunet_version(installed: str | None = None) -> None:
    """Refuse versions of nnunetv2 that the replacements were not tested with.

    Raises:
        InputError: Naming the installed and the supported versions.
    """
    installed = installed or version("nnunetv2")
    low, high = TESTED_NNUNET
    if not _release(low) <= _release(installed) < _release(high):
        raise InputError(
            f"nnunetv2 {installed} is installed, but nnunetv2-deferral requires nnunetv2 >={low},<{high}: "
            f"pip install 'nnunetv2>={low},<{high}'"
        )


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def _check_output_folder(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Check the output folder and the limits before the first case is predicted."""

    @wraps(stock)
    def _manage_input_and_output_lists(self: nnUNetPredictor, *args: Any, **kwargs: Any) -> Any:
        called = inspect.signature(stock).bind(self, *args, **kwargs)
        called.apply_defaults()
        asked = dict(list(called.arguments.items())[1:])
        ensemble = ensemble_of(self) if folds_wanted() else None
        lists = stock(self, **asked) if ensemble is None else lists_with_folds(stock, self, asked, ensemble.folds)
        self.deferral_outputs = [Path(file) for file in lists[1] or ()]
        folders = {file.parent for file in self.deferral_outputs}
        if isinstance(output := asked["output_folder_or_list_of_truncated_output_files"], str):
            folders.add(Path(output))  # also if a continued prediction has nothing left to do
        for folder in folders:
            folds.check_folder(folder, ensemble)
        raters = agreement_model(self.plans_manager, self.configuration_manager)
        if isinstance(self.plans_manager, MultiRaterPlansManager):
            self.plans_manager.prediction = prediction_of(self)
            for folder in folders:
                agreement_maps.check_folder(folder, raters)
                agreement_maps.check_prediction(folder, self.plans_manager.prediction)
        if isinstance(self.plans_manager, DeferralPlansManager):
            check_limits(self.plans_manager)
            settings = self.plans_manager.settings
            limits, kinds = effective_limits(settings), maps_wanted(settings.maps, settings.known_maps)
            if limits.minutes is not None and not set(MEASURED_BY) <= set(kinds):
                raise InputError(
                    f"a limit of minutes requires the maps {' '.join(MEASURED_BY)}, but only {' '.join(kinds)} are to "
                    f"be written ({ENVIRONMENT_MAPS})"
                )
            if limits.minutes is not None and lists[1] is not None:
                _check_all_at_once(asked, self.deferral_outputs, self.dataset_json["file_ending"], limits)
            print(f"Deferral: {limits_text(limits, settings.expert_names)}")
            _show_aggregated(self, AGGREGATED in kinds)
            networks, unusual = len(self.list_of_parameters), unlike_validation(self)
            self.plans_manager.prediction = prediction_of(self)
            for remark in remarks_on_calibration(self.plans_manager, networks, unusual):
                print(remark)
            model = model_identity(self.plans_manager, self.configuration_manager)
            for folder in folders:
                agreement_maps.check_folder(folder, raters, beside_deferral=True)
                maps.check_folder(folder, model)
                maps.check_prediction(folder, self.plans_manager.prediction)
                maps.check_kinds(folder, kinds)
            if limits.minutes is not None:
                for file in self.deferral_outputs:  # of an earlier prediction, whose minutes are no longer kept
                    maps.case_file(file.parent, file.name).unlink(missing_ok=True)
        if ensemble is not None:
            begin_recording(self, ensemble, self.deferral_outputs)
        return lists

    return _manage_input_and_output_lists


def _show_aggregated(predictor: nnUNetPredictor, wanted: bool) -> None:
    """Compute the aggregated channel and keep it in memory only if it is written: of a large CT, it is 0.3 GiB."""
    deferral_head(predictor.network).shows_aggregated = wanted
    predictor.plans_manager.with_aggregated = wanted
    predictor.label_manager = predictor.plans_manager.get_label_manager(predictor.dataset_json)


def _check_all_at_once(called: Mapping[str, Any], outputs: Sequence[Path], ending: str, limits: Limits) -> None:
    """Check that a call predicts all cases of a folder, as a limit of minutes requires.

    Raises:
        InputError: If it does not, or the folder has other cases.
    """
    folders = {file.parent for file in outputs}
    if called["num_parts"] != 1 or not called["overwrite"] or len(folders) > 1:
        refuse_minutes(limits)
    for folder in folders:
        there = {file.stem for file in maps.entries_folder(folder).glob("[!.]*.json")}
        there |= {file.name.removesuffix(ending) for file in folder.glob(f"[!.]*{ending}")}
        if others := sorted(there - {file.name for file in outputs}):
            raise InputError(
                f"{folder} has {len(others)} cases that are not predicted now ({listed(others)}), but the limit of "
                f"{limits.minutes:g} minutes is for all cases of a folder: choose another one"
            )


def _say_what_was_deferred(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Once all cases are predicted, choose their regions if minutes are limited, and print what was deferred."""

    @wraps(stock)
    def predict_from_files(self: nnUNetPredictor, *args: Any, **kwargs: Any) -> Any:
        self.deferral_outputs = []
        with recordings(self):
            results = stock(self, *args, **kwargs)
        if isinstance(self.plans_manager, DeferralPlansManager):
            for folder in sorted({file.parent for file in self.deferral_outputs}):
                minutes = effective_limits(self.plans_manager.settings).minutes
                if minutes is not None:
                    print(keep_minutes(folder, minutes, WorkTime()))
                cases = [file.name for file in self.deferral_outputs if file.parent == folder]
                if text := maps.deferred_text(folder, cases):
                    print(text)
        return results

    return predict_from_files


def _offer_pretrained_weights(stock: Callable[..., Any]) -> Callable[..., Any]:
    """Let a deferral trainer load pretrained weights itself."""

    @wraps(stock)
    def maybe_load_checkpoint(
        nnunet_trainer: Any,
        continue_training: bool,
        validation_only: bool,
        pretrained_weights_file: str | None = None,
    ) -> Any:
        starts_anew = not continue_training and not validation_only
        load = getattr(nnunet_trainer, "load_pretrained_weights", None)
        if starts_anew and pretrained_weights_file is not None and load is not None:
            return load(pretrained_weights_file)
        return stock(nnunet_trainer, continue_training, validation_only, pretrained_weights_file)

    return maybe_load_checkpoint


class Replacement(NamedTuple):
    """A replaced function: its owner and name, its replacement, and the parameters it must have."""

    owner: Any
    name: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    parameters: tuple[str, ...]


_EXPORT_PARAMETERS = (
    "predicted_array_or_file",
    "properties_dict",
    "configuration_manager",
    "plans_manager",
    "dataset_json_dict_or_file",
    "output_file_truncated",
    "save_probabilities",
    "num_threads_torch",
)

_PREDICT_PARAMETERS = (
    "self",
    "list_of_lists_or_source_folder",
    "output_folder_or_list_of_truncated_output_files",
    "save_probabilities",
    "overwrite",
)

REPLACEMENTS = (
    *(
        Replacement(
            module, "export_prediction_from_logits", lambda _stock: export_prediction_from_logits, _EXPORT_PARAMETERS
        )
        for module in (predict_from_raw_data, nnUNetTrainer_module)
    ),
    Replacement(
        nnUNetPredictor,
        "initialize_from_trained_model_folder",
        note_folds,
        ("self", "model_training_output_dir", "use_folds", "checkpoint_name"),
    ),
    Replacement(nnUNetPredictor, "predict_logits_from_preprocessed_data", record_cases, ("self", "data")),
    Replacement(nnUNetPredictor, "predict_sliding_window_return_logits", record_folds, ("self", "input_image")),
    Replacement(nnUNetPredictor, "_internal_maybe_mirror_and_predict", mirror_once, ("self", "x")),
    Replacement(
        nnUNetPredictor,
        "_manage_input_and_output_lists",
        _check_output_folder,
        (
            "self",
            "list_of_lists_or_source_folder",
            "output_folder_or_list_of_truncated_output_files",
            "folder_with_segs_from_prev_stage",
            "overwrite",
            "part_id",
            "num_parts",
            "save_probabilities",
        ),
    ),
    Replacement(
        nnUNetPredictor,
        "predict_from_files",
        _say_what_was_deferred,
        (
            *_PREDICT_PARAMETERS,
            "num_processes_preprocessing",
            "num_processes_segmentation_export",
            "folder_with_segs_from_prev_stage",
            "num_parts",
            "part_id",
        ),
    ),
    Replacement(
        nnUNetPredictor,
        "predict_from_files_sequential",
        _say_what_was_deferred,
        (*_PREDICT_PARAMETERS, "folder_with_segs_from_prev_stage"),
    ),
    Replacement(
        run_training,
        "maybe_load_checkpoint",
        _offer_pretrained_weights,
        ("nnunet_trainer", "continue_training", "validation_only", "pretrained_weights_file"),
    ),
)


def misfits() -> list[str]:
    """The functions of nnU-Net that differ from what the replacements expect, one phrase each; empty if none."""
    found = []
    for replacement in REPLACEMENTS:
        where = f"{replacement.owner.__name__}.{replacement.name}"
        current = getattr(replacement.owner, replacement.name, None)
        if current is None:
            found.append(f"{where} does not exist")
        elif tuple(inspect.signature(current).parameters) != replacement.parameters:
            found.append(f"{where} has the parameters {', '.join(inspect.signature(current).parameters)}")
    return found


def install() -> None:
    """Install the replacements; repeated calls have no effect.

    Raises:
        RuntimeError: If nnU-Net has moved or changed one of the functions.
    """
    if getattr(run_training, "_deferral_installed", False):
        return
    if problems := misfits():
        raise RuntimeError(f"nnunetv2 {version('nnunetv2')} has changed: {'; '.join(problems)}")
    for replacement in REPLACEMENTS:
        stock = getattr(replacement.owner, replacement.name)
        setattr(replacement.owner, replacement.name, replacement.make(stock))
    if Path(sys.argv[0]).name.startswith("nnUNetv2_"):
        sys.excepthook = _one_line(sys.excepthook)
    run_training._deferral_installed = True


def _one_line(hook: Callable[..., Any]) -> Callable[..., Any]:
    """An exception hook that shows invalid input without a traceback, and passes anything else on."""

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, InputError):
            print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        else:
            hook(kind, error, trace)

    return excepthook
