"""Layout and writing of the deferral maps beside a folder of predicted masks.

    <folder>/<case>.nii.gz                        the model's mask, written by nnU-Net
    <folder>/deferral/route/<case>.nii.gz         uint8: 0 the model, j expert j
    <folder>/deferral/probability/<case>.nii.gz   in [0, 1]: deferral score
    <folder>/deferral/expert/<case>.nii.gz        uint8: whom to ask if the voxel is deferred, j as above
    <folder>/deferral/gain/<case>.nii.gz          expected gain from asking that expert, in the Dice of the case
    <folder>/deferral/aggregated/<case>.nii.gz    on request, in [0, 1]: probability of the aggregated predictor
    <folder>/deferral/gains/<case>.npz            with the first four: gains of all experts, where any is positive
    <folder>/deferral/prior/<case>.npz            if the calibration reads answers as evidence: prior logits, areas
    <folder>/deferral/answered/<case>.npz         from the second round of questions: the earlier questions and answers
    <folder>/deferral/routing/<case>.npz          with --save_probabilities or --npz: J + 1 probabilities, uncalibrated
    <folder>/deferral/cases/<case>.json           rates, limits, expected gain and predicted Dice of the case
    <folder>/deferral/deferral.json               model with experts, settings, calibration, how it predicted, versions

The maps are in a subfolder because nnU-Net treats every file with the dataset's ending in the folder itself as a case.
Of the first five, `maps` in deferral.json names those that the cases have.
Probabilities and gain are stored as :func:`.image_files.write_values` does, the gain as a share of the case's
`largest_gain`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from filelock import FileLock
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.arrays import count_values
from nnunetv2_deferral.decision.decide import RoutingMaps
from nnunetv2_deferral.decision.gains import gain_unit
from nnunetv2_deferral.decision.kept_gains import KeptGains, are_few
from nnunetv2_deferral.decision.model_calibration import ModelCalibration
from nnunetv2_deferral.decision.predicted_by import NotedPrediction, differing_predictions
from nnunetv2_deferral.defaults import AGGREGATED, MAPS
from nnunetv2_deferral.environment import ENVIRONMENT_MAPS
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.evidence.posterior import EarlierAnswers
from nnunetv2_deferral.evidence.prior import PriorMap, to_steps
from nnunetv2_deferral.expert_sim.profiles import ExpertProfile
from nnunetv2_deferral.files import read_json, write_json, written_whole
from nnunetv2_deferral.image_files import MaskWriter, write_labels, write_values
from nnunetv2_deferral.installed import versions
from nnunetv2_deferral.names import check_expert_names
from nnunetv2_deferral.schema import Boolean, NonNegative, Share, Text, read_validated_json
from nnunetv2_deferral.settings import DeferralSettings, resolve_settings
from nnunetv2_deferral.text import fingerprint, listed, plural, rate_text

FOLDER = "deferral"
PREDICTED_DICE = "predicted_dice"  # in the entry of a case


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Identifies the model behind the maps of a folder, with its experts and the fingerprint of its calibration."""

    dataset: str
    plans: str
    configuration: str
    trainer: str | None
    experts: tuple[str, ...]
    unavailable: tuple[str, ...] = ()
    calibration: str | None = None


def route_file(folder: Path, case: str, file_ending: str) -> Path:
    """The routing map of a case."""
    return folder / FOLDER / "route" / f"{case}{file_ending}"


def probability_file(folder: Path, case: str, file_ending: str) -> Path:
    """The deferral probability of a case."""
    return folder / FOLDER / "probability" / f"{case}{file_ending}"


def expert_file(folder: Path, case: str, file_ending: str) -> Path:
    """The preferred expert for every voxel of a case, deferred or not."""
    return folder / FOLDER / "expert" / f"{case}{file_ending}"


def gain_file(folder: Path, case: str, file_ending: str) -> Path:
    """The expected gain in the Dice of a case from asking the preferred expert about each voxel."""
    return folder / FOLDER / "gain" / f"{case}{file_ending}"


def aggregated_file(folder: Path, case: str, file_ending: str) -> Path:
    """The probability of the aggregated deferral predictor of a case."""
    return folder / FOLDER / AGGREGATED / f"{case}{file_ending}"


# Functions of folder, case and file ending; which of these maps the cases of a folder have is in its deferral.json.
MAP_FILES = dict(
    zip((*MAPS, AGGREGATED), (route_file, probability_file, expert_file, gain_file, aggregated_file), strict=True)
)


def routing_file(folder: Path, case: str) -> Path:
    """The J + 1 routing probabilities that the maps of a case are computed from."""
    return folder / FOLDER / "routing" / f"{case}.npz"


def gains_file(folder: Path, case: str) -> Path:
    """The gains of all experts where asking helps, written beside all four maps."""
    return folder / FOLDER / "gains" / f"{case}.npz"


def prior_file(folder: Path, case: str) -> Path:
    """The prior logits of the structures of a case, from which answers are read as evidence."""
    return folder / FOLDER / "prior" / f"{case}.npz"


def answered_file(folder: Path, case: str) -> Path:
    """The questions and answers of earlier rounds."""
    return folder / FOLDER / "answered" / f"{case}.npz"


def case_file(folder: Path, case: str) -> Path:
    """Rates, limits and further entries of a case."""
    return entries_folder(folder) / f"{case}.json"


def entries_folder(folder: Path) -> Path:
    """The folder of the entries of all cases."""
    return folder / FOLDER / "cases"


def lock_of(folder: Path) -> Path:
    """The file by which processes that write to a folder wait for each other."""
    return folder / FOLDER / ".deferral.json.lock"


def mask_checksum(file: Path) -> str:
    """The checksum of a mask's file that the entry of its case notes, eight hexadecimal digits."""
    return f"{zlib.crc32(file.read_bytes()):08x}"


def index_file(folder: Path) -> Path:
    """The deferral.json of a folder."""
    return folder / FOLDER / "deferral.json"


class _CaseEntry(TypedDict):
    deferral_rate: Share
    share: dict[Text, Share]
    largest_gain: NonNegative
    predicted_dice: NotRequired[dict[Text, Share]]
    model: NotRequired[Text]
    minutes: NotRequired[NonNegative]
    mask: NotRequired[Text]
    probabilities: NotRequired[Boolean]


class _Model(TypedDict):
    experts: Annotated[list[Text], Field(min_length=1)]


class Index(TypedDict):
    """Types and ranges of what is read of a deferral.json; other keys are ignored."""

    model: _Model
    settings: dict[Text, Any]
    maps: NotRequired[list[Literal["route", "probability", "expert", "gain", "aggregated"]]]  # not of earlier versions
    prediction: NotRequired[NotedPrediction]  # likewise
    calibration: NotRequired[dict[Text, Any] | None]
    cases: NotRequired[dict[Text, _CaseEntry]]  # of earlier versions


def read_model(folder: Path) -> dict[str, Any]:
    """The content of a folder's deferral.json: model, settings, calibration and versions.

    Raises:
        InputError: If it is missing, cannot be read, is not as :class:`Index`, or its experts are not valid or differ
            between the model and the settings; the message names file, key and value.
    """
    file = index_file(folder)
    content: dict[str, Any] = read_validated_json(file, Index)
    experts = check_expert_names(content["model"]["experts"], f"{file}: model.experts")
    try:
        named = resolve_settings(content["settings"]).expert_names
    except InputError as error:
        raise InputError(f"{file}: settings: {error}") from error
    if named != experts:
        raise InputError(f"{file}: settings.experts lists {_names(named)}, model.experts {_names(experts)}")
    return content


def read_index(folder: Path, *, undecided: bool = False) -> dict[str, Any]:
    """The content of a folder's deferral.json, with the entries of all cases under `cases`.

    Args:
        folder: The folder.
        undecided: Whether to read it even if its limit of minutes is not kept yet, see :mod:`.minutes`.

    Raises:
        InputError: See :func:`read_model`; also if the entry of a case cannot be read, or is of another model; and if
            regions are yet to be chosen by a limit of minutes.
    """
    content, where = read_model(folder), index_file(folder)
    experts, model = sorted(content["model"]["experts"]), _fingerprint(content["model"])
    earlier: dict[str, Any] = content.get("cases", {})
    entries = {name: (f"{where}: cases.{name}.", entry) for name, entry in earlier.items()}
    for file in sorted(entries_folder(folder).glob("*.json")):
        if not file.name.startswith("."):
            entries[file.stem] = (f"{file}: ", read_validated_json(file, _CaseEntry))
    waiting = [name for name, (_, entry) in entries.items() if "minutes" not in entry and minutes_of(entry) is not None]
    if waiting and not undecided:
        raise InputError(
            f"{folder} does not keep its limit of minutes in {len(waiting)} cases ({listed(waiting)}): the prediction "
            "is still running, was stopped, or was not made by nnUNetv2_predict. Predict again, or choose with "
            "nnUNetv2_deferral_route -minutes"
        )
    for named, entry in entries.values():
        if sorted(entry["share"]) != experts:
            raise InputError(f"{named}share lists {_names(entry['share'])}, {where}: model.experts {_names(experts)}")
        if entry.get("model", model) != model:
            raise InputError(f"{named}the maps are of another model ({entry['model']}) than that of {where} ({model})")
    return content | {"cases": {name: entry for name, (_, entry) in sorted(entries.items())}}


def minutes_of(entry: Mapping[str, Any]) -> float | None:
    """The limit of minutes in the entry of a case, or None."""
    limits = entry.get("limits")
    return limits.get("minutes") if isinstance(limits, Mapping) else None


def _fingerprint(model: Mapping[str, Any]) -> str:
    """Short, to be repeated in the entry of each case, because files may be copied from one folder to another."""
    return fingerprint(model)


def _names(experts: Iterable[str]) -> str:
    return f"the experts {', '.join(experts) or 'none'}"


def check_folder(folder: Path, model: ModelIdentity) -> None:
    """Refuse a folder that contains the deferral maps of another model.

    Raises:
        InputError: Naming the folder and both models.
    """
    file = index_file(folder)
    if not file.is_file():
        return
    theirs, ours = read_model(folder)["model"], _as_json(model)
    if theirs != ours:
        differing = [
            f"{key}: {theirs.get(key)} there, {value} now" for key, value in ours.items() if theirs.get(key) != value
        ]
        raise InputError(
            f"{folder} already contains the deferral maps of another model ({'; '.join(differing)}). Use another "
            f"folder, or remove {file.parent}"
        )


def noted_prediction(there: Mapping[str, Any], prediction: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a folder's index on how its cases are predicted, see :func:`check_prediction`.

    Args:
        there: The content of the index, empty if there is none yet. In a folder of an earlier version it has no such
            entry and gets none, because how its cases were predicted is not known.
        prediction: How the cases are predicted now.
    """
    return {"prediction": dict(prediction)} if prediction and ("prediction" in there or not there) else {}


def check_prediction(folder: Path, prediction: Mapping[str, Any]) -> None:
    """Refuse a folder whose cases the same model predicted in another manner, because it would be mixed.

    Args:
        folder: The folder of the masks.
        prediction: As far as it is known: `folds`, `checkpoint`, `mirroring` and `step_size`.

    Raises:
        InputError: Naming the folder and the difference; see also :func:`read_model`.
    """
    file = index_file(folder)
    if file.is_file() and (differing := differing_predictions(read_model(folder).get("prediction"), prediction)):
        raise in_another_manner(folder, differing)


def in_another_manner(folder: Path, differing: Sequence[str]) -> InputError:
    """What to say of a folder whose cases were predicted in another manner, given the differences."""
    return InputError(
        f"{folder} already contains cases that were predicted in a different way ({'; '.join(differing)}). Use another "
        f"folder, or remove {folder / FOLDER}"
    )


def kinds_of(content: Mapping[str, Any]) -> tuple[str, ...]:
    """The maps that the cases of a folder have, given the content of its deferral.json."""
    return tuple(content.get("maps", MAPS))


def check_kinds(folder: Path, kinds: Sequence[str]) -> None:
    """Refuse a folder whose cases have other maps than those that are to be written, because it would be mixed.

    Raises:
        InputError: Naming the folder and both.
    """
    file = index_file(folder)
    if file.is_file() and (there := kinds_of(read_model(folder))) != tuple(kinds):
        raise InputError(
            f"{folder} already contains cases with the maps {' '.join(there)}, but {' '.join(kinds)} are to be written "
            f"now ({ENVIRONMENT_MAPS}). Use another folder, or remove {file.parent}"
        )


@dataclass(frozen=True, kw_only=True)
class DeferralFolder:
    """Writes the deferral maps of a folder of masks; several processes may write to the same folder.

    Attributes:
        folder: The folder of the masks.
        file_ending: The dataset's file ending, such as `.nii.gz`.
        writer: nnU-Net's reader-writer for this dataset.
        model: The model behind the maps.
        settings: The effective settings of the model.
        calibration: The calibration applied to the maps, or None.
        kinds: The maps to write, some of :data:`MAP_FILES` in their order.
        prediction: How the cases are predicted, see :func:`check_prediction`; empty if that is not known.
    """

    folder: Path
    file_ending: str
    writer: MaskWriter
    model: ModelIdentity
    settings: DeferralSettings
    calibration: ModelCalibration | None = None
    kinds: tuple[str, ...] = MAPS
    prediction: Mapping[str, Any] = field(default_factory=dict)

    def write(
        self,
        case: str,
        maps: RoutingMaps,
        properties: dict[str, Any],
        statistics: Mapping[str, Any] | None = None,
        *,
        gains: np.ndarray | None = None,
        prior: PriorMap | None = None,
        answered: EarlierAnswers | None = None,
        aggregated: np.ndarray | None = None,
    ) -> None:
        """Write the maps of a case, and last its entry, which makes it one of the folder's.

        Args:
            case: The case identifier.
            maps: In the axis order of nnU-Net's writers: (Z, Y, X) or (1, Y, X).
            properties: nnU-Net's properties of the case, including its geometry.
            statistics: What else to note in the entry.
            gains: The gains of all experts, real (J, *S), kept if they :func:`.are_few`; or None.
            prior: The prior, or None.
            answered: The questions and answers of earlier rounds, or None.
            aggregated: The map of the aggregated predictor, in [0, 1] of the shape of the maps; None if it is not one
                of those to write.
        """
        if (
            gains is not None and set(MAPS) <= set(self.kinds) and are_few(gains)
        ):  # another decision needs all of these maps
            _save_arrays(KeptGains.of(gains)._asdict(), gains_file(self.folder, case))
        else:  # what an earlier decision about the case has left would pass for this one's
            gains_file(self.folder, case).unlink(missing_ok=True)
        if prior is not None:
            content = {"prior": to_steps(prior.logits), "areas": prior.areas}
            _save_arrays(content, prior_file(self.folder, case))
        if answered is not None:
            _save_arrays(answered._asdict(), answered_file(self.folder, case))
        where = (self.folder, case, self.file_ending)
        largest_gain = float(maps.gain.max(initial=0))
        write_labels(maps.route, route_file(*where), self.writer, properties)
        if "expert" in self.kinds:
            write_labels(maps.expert, expert_file(*where), self.writer, properties)
        if "probability" in self.kinds:
            write_values(maps.probability, 1, probability_file(*where), self.writer, properties)
        if "gain" in self.kinds:
            write_values(maps.gain, largest_gain, gain_file(*where), self.writer, properties, keep_positive=True)
        if aggregated is not None:
            write_values(aggregated, 1, aggregated_file(*where), self.writer, properties)
        rates = deferral_rates(maps.route, self.model.experts)
        self._enter(case, rates | {"largest_gain": largest_gain} | dict(statistics or {}))

    def note_mask(self, case: str, *, with_probabilities: bool) -> None:
        """Note in the entry of a case what belongs to these maps: its mask, which nnU-Net writes last.

        Args:
            case: The case identifier.
            with_probabilities: Whether probabilities were saved; otherwise those that are there are of an earlier
                prediction.
        """
        file = case_file(self.folder, case)
        noted = {
            "mask": mask_checksum(self.folder / f"{case}{self.file_ending}"),
            "probabilities": with_probabilities,
        }
        write_json(read_json(file) | noted, file)

    def _enter(self, case: str, entry: dict[str, Any]) -> None:
        """Write the entry of a case; the rest is written once, because others may have 10^5 cases there."""
        write_json(entry | {"model": _fingerprint(_as_json(self.model))}, case_file(self.folder, case))
        file = index_file(self.folder)
        content: dict[str, Any] = {
            "model": _as_json(self.model),
            "settings": self.settings.to_dict(),
            "gain_unit": gain_unit(
                self.settings.objective,
                evidence=self.calibration is not None and self.calibration.evidence is not None,
            ),
            # Without the forests, which are large; what they predict is in the entries.
            "calibration": None if self.calibration is None else replace(self.calibration, forecast=None).to_dict(),
            "maps": list(self.kinds),
            "versions": versions("torch"),
        }
        content = json.loads(json.dumps(content))  # to compare
        there = read_json(file) if file.is_file() else {}
        content |= noted_prediction(there, self.prediction)
        if content.items() <= there.items():
            return
        with FileLock(lock_of(self.folder)):
            check_kinds(self.folder, self.kinds)
            check_prediction(self.folder, self.prediction)
            write_json((read_json(file) if file.is_file() else {}) | content, file)


def write_maps(
    folder: Path,
    case: str,
    maps: RoutingMaps,
    properties: dict[str, Any],
    *,
    writer: MaskWriter,
    file_ending: str,
    experts: Sequence[str | ExpertProfile],
    statistics: Mapping[str, Any] | None = None,
    gains: np.ndarray | None = None,
    **settings: Any,
) -> None:
    """Write maps computed from arrays to the files that :class:`.PredictionFolder` and the commands read.

    The mask itself, `<folder>/<case><file_ending>`, must be written with `writer.write_seg`, and the `dataset.json`
    put beside it. `nnUNetv2_predict` writes all of these files itself.

    Args:
        folder: The folder of the masks.
        case: The case identifier.
        maps: From :func:`.decide`, (Z, Y, X) or (1, Y, X).
        properties: nnU-Net's properties of the image or mask, including its geometry.
        writer: nnU-Net's reader-writer for the format, such as `SimpleITKIO()`.
        file_ending: Such as `.nii.gz`.
        experts: The experts in routing order: names of raters, and profiles of simulated experts.
        statistics: What else to note in the entry of the case, such as `decision.statistics`.
        gains: The gains of all experts, `decision.gains`, by which `nnUNetv2_deferral_route` can keep other capacities.
        settings: Further settings of the model, such as `objective="one_vs_all"`.

    Raises:
        InputError: If the folder contains the maps of other experts, or a setting or name is invalid.

    Example:
        Given a `folder`, and the `properties` of an image of shape (4, 6, 7) from nnU-Net's reader:

        >>> import numpy as np
        >>> from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
        >>> from nnunetv2_deferral import decide, routing_rule, write_maps
        >>> a = np.full((2, 4, 6, 7), 0.9, dtype=np.float32)  # of the model and one expert
        >>> a[0, 1, 2:4, 2:4] = 0.3
        >>> decision = decide(a, rule=routing_rule("one_vs_all", costs=(0.0,)))
        >>> nifti = {"writer": SimpleITKIO(), "file_ending": ".nii.gz"}
        >>> write_maps(folder, "case_1", decision.maps, properties, experts=["ann"], objective="one_vs_all", **nifti)
        >>> (folder / "deferral" / "route" / "case_1.nii.gz").is_file()
        True
    """
    block = {"experts": [each if isinstance(each, str) else each.to_json() for each in experts], **settings}
    resolved = resolve_settings(block)
    model = ModelIdentity(
        dataset="unknown", plans="unknown", configuration="unknown", trainer=None, experts=resolved.expert_names
    )
    check_folder(folder, model)
    written = DeferralFolder(folder=folder, file_ending=file_ending, writer=writer, model=model, settings=resolved)
    written.write(case, maps, properties, statistics, gains=gains)


def save_routing(folder: Path, case: str, probabilities: np.ndarray) -> None:
    """Save the routing probabilities of a case as compressed .npz, like nnU-Net's segmentation probabilities.

    Args:
        folder: The folder of the masks.
        case: The case identifier.
        probabilities: float32 (J + 1, *S) before calibration, NaN where nothing was predicted.
    """
    _save_arrays({"probabilities": probabilities}, routing_file(folder, case))


def _save_arrays(content: Mapping[str, np.ndarray], file: Path) -> None:
    arrays: dict[str, Any] = dict(content)
    with written_whole(file.parent) as scratch:
        np.savez_compressed(scratch / file.name, **arrays)


def deferral_rates(route: np.ndarray, experts: Sequence[str]) -> dict[str, Any]:
    """The share of all voxels that is deferred, in total and to each expert.

    Returns:
        `{"deferral_rate": float, "share": {expert: float}}`; all 0 for an empty map.
    """
    counts = count_values(route, len(experts) + 1)
    share = counts / max(route.size, 1)
    return {
        "deferral_rate": float(share[1:].sum()),
        "share": {name: float(value) for name, value in zip(experts, share[1:], strict=True)},
    }


def deferred_text(folder: Path, cases: Iterable[str]) -> str:
    """What was deferred in cases of a folder, as a line for the terminal; empty if none of them has maps.

    Raises:
        InputError: See :func:`read_model`; also if the entry of a case cannot be read.
    """
    files = [file for case in cases if (file := case_file(folder, case)).is_file()]
    entries = [read_validated_json(file, _CaseEntry) for file in files]
    if not entries:
        return ""
    number = len(entries)
    rate = sum(entry["deferral_rate"] for entry in entries) / number
    shares = {
        name: sum(entry["share"].get(name, 0.0) for entry in entries) / number
        for name in read_model(folder)["model"]["experts"]
    }
    asked = ", ".join(f"{name} {rate_text(share)}" for name, share in shares.items())
    return (
        f"Deferred {rate_text(rate)} of the voxels ({asked}), mean of {plural(number, 'case')}. Maps: {folder / FOLDER}"
    )


def other_masks_text(cases: Sequence[str]) -> str:
    """A sentence on cases whose mask is not the one that was predicted with their maps."""
    number = len(cases)
    return (
        f"{number} {'case has' if number == 1 else 'cases have'} a mask other than the one predicted with the maps "
        f"({listed(cases)}), for example after postprocessing, or because an ensemble or another model has written to "
        "the folder"
    )


def _as_json(model: ModelIdentity) -> dict[str, Any]:
    return asdict(model) | {"experts": list(model.experts), "unavailable": list(model.unavailable)}
