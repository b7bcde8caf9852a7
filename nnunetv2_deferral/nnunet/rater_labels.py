"""How much raters labelled in the training cases of a fold, and to whom a model must not defer.

    <model>/fold_k/deferral_raters.json     numbers of labelled cases and voxels, and the raters without any

Nothing is learned about a rater without labels, whose routing logits would be arbitrary. nnU-Net has one plans.json for
all folds of a model and averages the logits of their networks, so a rater without labels in one fold is unavailable in
all predictions of the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.schema import Text, read_validated_json
from nnunetv2_deferral.settings import DeferralSettings

NAME = "deferral_raters.json"
# Fewer labelled cases than either are reported in the log.
_FEW_CASES, _FEW_SHARE = 5, 0.1


class _Labels(TypedDict):
    without_labels: list[Text]


@dataclass(frozen=True, kw_only=True)
class RaterLabels:
    """What raters labelled in the training cases of a fold.

    Attributes:
        fold: The fold, a number or `"all"`.
        num_cases: The number of training cases.
        cases: For each rater, the number of training cases with at least one labelled voxel.
        voxels: For each rater, the number of labelled voxels in the training cases.
    """

    fold: int | str
    num_cases: int
    cases: Mapping[str, int]
    voxels: Mapping[str, int]

    @classmethod
    def count(
        cls,
        labelled: Mapping[str, Mapping[str, int]],
        *,
        raters: Sequence[str],
        cases: Sequence[str],
        fold: int | str,
    ) -> RaterLabels:
        """Count the labels of raters.

        Args:
            labelled: From :func:`.rater_data.labelled_voxels`.
            raters: The raters to count for.
            cases: The training cases of the fold.
            fold: The fold.
        """
        numbers = {rater: [labelled[case][rater] for case in cases if case in labelled] for rater in raters}
        return cls(
            fold=fold,
            num_cases=len(cases),
            cases={rater: sum(number > 0 for number in found) for rater, found in numbers.items()},
            voxels={rater: sum(found) for rater, found in numbers.items()},
        )

    @property
    def without(self) -> tuple[str, ...]:
        """The raters without any label."""
        return tuple(rater for rater, number in self.cases.items() if not number)

    def statements(self) -> Iterator[str]:
        """One sentence for each rater without labels or with labels in few cases."""
        for rater, number in self.cases.items():
            if not number:
                yield (
                    f"WARNING: {rater} has no label in the {self.num_cases} training cases of fold {self.fold} (no "
                    f"mask, or only ignored voxels). Nothing can be learned about {rater}, so nothing is routed to "
                    f"{rater}"
                )
            elif number < min(self.num_cases, max(_FEW_CASES, _FEW_SHARE * self.num_cases)):
                yield (
                    f"{rater} has labels in only {number} of the {self.num_cases} training cases of fold {self.fold} "
                    f"({self.voxels[rater]} voxels)"
                )

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-ready data."""
        return {
            "fold": self.fold,
            "training_cases": self.num_cases,
            "labelled": {rater: {"cases": self.cases[rater], "voxels": self.voxels[rater]} for rater in self.cases},
            "without_labels": list(self.without),
        }


def cases_of_two(
    labelled: Mapping[str, Mapping[str, int]], *, raters: Sequence[str], cases: Sequence[str], fold: int | str
) -> int:
    """The number of training cases in which at least two raters labelled any voxel.

    Args:
        labelled: From :func:`.rater_data.labelled_voxels`.
        raters: The raters.
        cases: The training cases of the fold.
        fold: The fold.

    Raises:
        InputError: If there is none, so that nothing can be learned about how far raters agree.
    """
    by_case = [[rater for rater in raters if labelled[case][rater]] for case in cases if case in labelled]
    number = sum(len(each) > 1 for each in by_case)
    if not number:
        counts = ", ".join(f"{rater} {sum(rater in each for each in by_case)}" for rater in raters)
        raise InputError(
            f"no training case of fold {fold} was labelled by two of the raters (labelled cases of {len(by_case)}: "
            f"{counts}), so nothing can be learned about their agreement"
        )
    return number


def raters_without_labels(fold: Path) -> tuple[str, ...]:
    """The raters without labels in the training of a fold, according to its file; none if there is no such file.

    Args:
        fold: The folder of the fold.

    Raises:
        InputError: If the file cannot be read or does not name them.
    """
    file = fold / NAME
    return tuple(read_validated_json(file, _Labels)["without_labels"]) if file.is_file() else ()


def without_raters(settings: DeferralSettings, raters: Collection[str], *, why: str) -> DeferralSettings:
    """The settings with further raters unavailable.

    Args:
        settings: The settings.
        raters: Names; those that are not experts of the settings are ignored.
        why: The reason, for the message.

    Raises:
        InputError: If no expert is available then.
    """
    further = [name for name in settings.expert_names if name in raters and name not in settings.unavailable]
    unavailable = (*settings.unavailable, *further)
    if len(unavailable) == settings.num_experts:
        planned = f" ({', '.join(settings.unavailable)} unavailable in the plans)" if settings.unavailable else ""
        raise InputError(f"there is no expert to defer to{planned}: {why}")
    return replace(settings, unavailable=unavailable)


def settings_of_all_folds(settings: DeferralSettings, labels: RaterLabels, model: Path) -> DeferralSettings:
    """The settings for the plans of a model folder: raters without labels in this or another fold are unavailable.

    Args:
        settings: The settings of the fold that `labels` are of.
        labels: The labels of this fold, which take precedence over its file.
        model: The model folder.

    Raises:
        InputError: If no expert is available then.
    """
    folds = {path.name: raters_without_labels(path) for path in sorted(model.glob("fold_*")) if path.is_dir()}
    folds[f"fold_{labels.fold}"] = labels.without
    why = "; ".join(
        f"no labels of {', '.join(names)} in the training of {fold}" for fold, names in folds.items() if names
    )
    unknown = [name for names in folds.values() for name in names]
    return without_raters(settings, unknown, why=f"{why} of {model}, whose plans hold for all its folds")
