"""Which networks predicted the cases that a calibration or certificate is from, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.schema import Boolean, Integer, Number, Text
from nnunetv2_deferral.text import differences, named_folds

_FOLDS = "folds"  # in what a prediction notes


class NotedPrediction(TypedDict):
    """Types of what is noted of a prediction; other keys are not checked."""

    folds: NotRequired[list[Integer | Text]]
    checkpoint: NotRequired[Text]
    mirroring: NotRequired[Boolean]
    step_size: NotRequired[Number]


@dataclass(frozen=True, kw_only=True)
class PredictedBy:
    """Networks, and how they predicted.

    Attributes:
        folds: The names of the networks' folds.
        prediction: If all cases were predicted by all of these networks, and not each by the final validation of its
            fold: how, as far as it is known (`folds`, `checkpoint`, `mirroring`, `step_size`).
    """

    folds: tuple[str, ...]
    prediction: Mapping[str, Any] | None = None

    @classmethod
    def noted(cls, content: Mapping[str, Any]) -> PredictedBy:
        """From `folds` and `prediction` in the report of a calibration; without folds if it is of an earlier version.

        Example:
            >>> PredictedBy.noted({"folds": [0, 1]}).networks
            'the networks (one for each case, not their ensemble) of folds 0 and 1'
        """
        return cls(folds=tuple(map(str, content.get(_FOLDS, ()))), prediction=content.get("prediction"))

    def to_dict(self) -> dict[str, Any]:
        """The entries of :meth:`noted`, JSON-ready; folds with a number are numbers."""
        folds = [int(fold) if fold.isdigit() else fold for fold in self.folds]
        return {_FOLDS: folds} | ({} if self.prediction is None else {"prediction": dict(self.prediction)})

    @property
    def networks(self) -> str:
        """Such as `the network of fold 0` or `the ensemble of folds 0 and 1`."""
        several = "networks (one for each case, not their ensemble)" if self.prediction is None else "ensemble"
        return _named(self.folds, several)

    @property
    def words(self) -> str:
        """Such as `final validations of folds 0 and 1`; of predictions also how they were made."""
        if self.prediction is None:
            return f"final validations of {named_folds(self.folds)}" if self.folds else "final validations"
        how = ", ".join(f"{key} {value}" for key, value in sorted(self.prediction.items()) if key != _FOLDS)
        return f"predictions by {self.networks}{f' ({how})' if how else ''}"

    def others(self, folds: Sequence[str]) -> list[str]:
        """Those of these folds that are not among its own; none if its own are not known."""
        return [fold for fold in folds if self.folds and fold not in self.folds]

    def unlike(self, prediction: Mapping[str, Any], *, ensemble: bool = False) -> str:
        """What other networks made a prediction, or in what other manner, in words; empty if no difference is known.

        Args:
            prediction: As far as it is known, as :attr:`prediction`.
            ensemble: Whether it is that of an ensemble, even if its folds are not known.

        Example:
            >>> PredictedBy(folds=("all",), prediction={}).unlike({"folds": ["0", "1"]})
            'the ensemble of folds 0 and 1'
        """
        folds = tuple(map(str, prediction.get(_FOLDS, ())))
        if self.prediction is None:
            if others := self.others(folds):
                return _named(others, "networks")
            return "an ensemble" if ensemble or len(folds) > 1 else ""
        if folds and sorted(folds) != sorted(self.folds):
            return _named(folds, "ensemble")
        found = differing_predictions({key: prediction[key] for key in prediction.keys() - {_FOLDS}}, self.prediction)
        return f"predictions whose {' and '.join(found)}" if found else ""


def differing_predictions(there: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """One phrase for each entry that two predictions both have and that differs; others are not known of one."""
    there = there or {}
    common = there.keys() & now.keys()
    return differences({key: there[key] for key in common}, {key: now[key] for key in common})


def _named(folds: Sequence[str], several: str) -> str:
    return f"the {'network' if len(folds) == 1 else several} of {named_folds(folds)}"
