"""Duration of training and prediction. On CPUs only ratios are reported, because durations depend on other load."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

from pydantic import Field, Strict
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.benchmark.trainers import environment
from nnunetv2_deferral.benchmark.training import TrainingError
from nnunetv2_deferral.benchmark.verification import training_logs
from nnunetv2_deferral.dataset import read_dataset_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.installed import find_script
from nnunetv2_deferral.logged_commands import run_logged
from nnunetv2_deferral.nnunet.experiment import Experiment, Method
from nnunetv2_deferral.schema import Text, read_validated_json
from nnunetv2_deferral.text import listed

_EPOCH_OR_TIME = re.compile(r"Epoch (\d+)\s*$|Epoch time: ([0-9.]+) s", re.MULTILINE)
_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Times:
    """Durations of a method.

    Attributes:
        device: The device of the training: the name of the GPU, or for example `cpu`; empty if unknown or if folds
            differ. CPU trainings on different hosts differ; hosts are not named, because tables are published.
        iterations: Training steps per epoch, 0 if unknown or if folds differ.
        seconds_per_epoch: Median over the epochs of all folds; NaN unless on a GPU.
        epoch_ratio: Seconds per epoch divided by the first method's; NaN if device or iterations differ or are unknown.
        seconds_prediction: Duration of nnUNetv2_predict for the validation images of the first fold, including startup;
            NaN unless measured on a GPU.
        prediction_ratio: Duration of prediction divided by the first method's, in the same run; NaN if not measured.
    """

    device: str = ""
    iterations: int = 0
    seconds_per_epoch: float = _NAN
    epoch_ratio: float = _NAN
    seconds_prediction: float = _NAN
    prediction_ratio: float = _NAN


def method_times(
    experiment: Experiment, methods: Sequence[Method], *, predictions: Sequence[float] | None = None, device: str = ""
) -> list[Times]:
    """The durations of methods, with ratios relative to the first.

    Args:
        experiment: Dataset, configuration and folds.
        methods: The methods.
        predictions: Seconds for each method from :func:`time_predictions`; None if not measured.
        device: The device of these measurements, as in nnU-Net's commands.
    """
    trained = [_training(experiment, method) for method in methods]
    times = []
    for place, (where, seconds) in enumerate(trained):
        same = bool(where.device) and bool(where.iterations) and where == trained[0][0]
        prediction = _NAN if predictions is None else predictions[place]
        times.append(
            Times(
                device=where.device,
                iterations=where.iterations,
                seconds_per_epoch=_NAN if where.device in ("", "cpu", "mps") else seconds,
                epoch_ratio=seconds / trained[0][1] if same else _NAN,
                seconds_prediction=prediction if device == "cuda" else _NAN,
                prediction_ratio=_NAN if predictions is None else prediction / predictions[0],
            )
        )
    return times


def epoch_seconds(fold: Path) -> list[float]:
    """The seconds of each epoch of a fold according to nnU-Net's logs, excluding the first of each log if possible.

    An interrupted training has several logs; for a repeated epoch the last duration counts.
    """
    seconds: dict[int, float] = {}
    for log in training_logs(fold):
        epoch, first, found = -1, -1, {}
        for begun, took in _EPOCH_OR_TIME.findall(log.read_text(errors="replace")):
            if begun:
                epoch = int(begun)
                first = epoch if first < 0 else first
            elif epoch >= 0:
                found[epoch] = float(took)
        # The first epoch includes compilation, filling of caches and startup of workers.
        seconds |= {each: took for each, took in found.items() if each != first or len(found) == 1}
    return list(seconds.values())


def time_predictions(experiment: Experiment, methods: Sequence[Method], *, device: str, logs: Path) -> list[float]:
    """Measure the seconds of nnUNetv2_predict for the validation images of the first fold, once per method.

    This is the wall time of the whole command; for few and small images it is mostly startup.

    Raises:
        InputError: If raw images are missing.
        TrainingError: If a prediction fails.
    """
    fold = experiment.folds[0]
    images = {case: _raw_images(experiment, case) for case in experiment.cases()[fold]}
    if missing := [str(file) for files in images.values() for file in files if not file.is_file()]:
        raise InputError(f"{len(missing)} raw images for timing predictions are missing: {listed(missing, 3)}")
    folder = logs / experiment.dataset
    folder.mkdir(parents=True, exist_ok=True)
    seconds = []
    with tempfile.TemporaryDirectory(prefix="predict_") as scratch:
        source = Path(scratch, "images")
        source.mkdir()
        for case, files in images.items():
            for channel, file in enumerate(files):
                (source / f"{case}_{channel:04d}{experiment.file_ending}").symlink_to(file)
        for number, method in enumerate(methods):
            words = ["-d", experiment.dataset, "-c", experiment.configuration, "-f", str(fold), "-device", device]
            words += ["-tr", method.trainer, "-p", method.plans, "-i", str(source)]
            words += ["-o", str(Path(scratch, str(number)))]
            log = folder / f"predict__{method.trainer}__{method.plans}.log"
            seconds.append(_time([find_script("nnUNetv2_predict"), *words], log))
    return seconds


def _raw_images(experiment: Experiment, case: str) -> list[Path]:
    """The files of a case, one per channel. nnU-Net's own function for this forks processes."""
    content = read_dataset_json(experiment.raw / "dataset.json")
    if "dataset" in content:
        names = content["dataset"].get(case, {}).get("images", [f"images of {case}"])
        return [(experiment.raw / os.path.expandvars(name)).resolve() for name in names]
    if "channel_names" not in content:
        raise InputError(f"{experiment.raw / 'dataset.json'}: channel_names is missing")
    channels = range(len(content["channel_names"]))
    names = [f"{case}_{channel:04d}{experiment.file_ending}" for channel in channels]
    return [(experiment.raw / "imagesTr" / name).resolve() for name in names]


def _time(command: Sequence[str], log: Path) -> float:
    log.unlink(missing_ok=True)
    begin = time.monotonic()
    failure = run_logged(command, log, environment=environment())
    seconds = time.monotonic() - begin
    if failure:
        raise TrainingError(f"nnUNetv2_predict {failure}")
    return seconds


class _Debug(TypedDict):
    """What is read of nnU-Net's debug.json, which holds most numbers as text."""

    gpu_name: NotRequired[Text | None]
    device: Text
    hostname: Text
    num_iterations_per_epoch: Annotated[str, Strict(), Field(pattern=r"^\d{1,9}$")]


class _Setup(NamedTuple):
    """Properties of a fold that determine the duration of its training; empty and 0 if unknown."""

    device: str = ""
    host: str = ""
    iterations: int = 0


def _training(experiment: Experiment, method: Method) -> tuple[_Setup, float]:
    """The common setup of all folds, and the median seconds per epoch; NaN if unknown."""
    folders = [experiment.fold(method, fold) for fold in experiment.folds]
    setups = {_setup(folder) for folder in folders}
    seconds = [took for folder in folders for took in epoch_seconds(folder)]
    return setups.pop() if len(setups) == 1 else _Setup(), median(seconds) if seconds else math.nan


def _setup(fold: Path) -> _Setup:
    """The setup according to nnU-Net's debug.json. Hosts with the same GPU are treated as equal."""
    try:
        debug: _Debug = read_validated_json(fold / "debug.json", _Debug)
        gpu = debug.get("gpu_name")
        device, host = (gpu, "") if gpu else (debug["device"].split(":")[0], debug["hostname"])
        return _Setup(device, host, int(debug["num_iterations_per_epoch"]))
    except InputError:
        return _Setup()
