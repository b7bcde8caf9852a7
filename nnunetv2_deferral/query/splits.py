"""Splits for cross-validation of datasets in which classes are rare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from itertools import permutations, product

from nnunetv2_deferral.defaults import FOLDS
from nnunetv2_deferral.errors import InputError


def splits_with_classes(
    classes: Mapping[str, Collection[str]], groups: Mapping[str, str] | None = None, *, folds: int = FOLDS
) -> list[dict[str, list[str]]]:
    """Splits in which each class is in the validation of as many folds as possible.

    A class that is in at least two folds is in the training of every fold. The groups with the rarest class are
    assigned first, each to the fold with the fewest groups that have this class, then with the fewest groups; there is
    no chance in it. Then groups are exchanged as long as this brings a class into a second fold.

    Args:
        classes: For each case the names of the classes that are annotated in it.
        groups: For each case its group, such as its patient, which is not divided; None for each case by itself.
        folds: The number of folds, reduced to the number of groups if there are fewer.

    Returns:
        The content of splits_final.json: `train` and `val` of each fold, sorted.

    Raises:
        InputError: If there are fewer than two groups or folds.

    Example:
        >>> splits_with_classes({"a": ["core"], "b": [], "c": ["core"], "d": []}, folds=2)[0]
        {'train': ['c', 'd'], 'val': ['a', 'b']}
    """
    if folds < 2:
        raise InputError(f"folds must be at least 2, got {folds}")
    members: dict[str, list[str]] = {}
    for case in sorted(classes):
        members.setdefault(case if groups is None else str(groups[case]), []).append(case)
    if len(members) < 2:
        raise InputError(
            f"a dataset needs at least two cases (patients) for training and validation, got {len(members)}"
        )
    within = {group: {name for case in cases for name in classes[case]} for group, cases in members.items()}
    frequency = {name: sum(name in found for found in within.values()) for found in within.values() for name in found}
    parts: list[list[str]] = [[] for _ in range(min(folds, len(members)))]
    left = set(members)
    for name in [*sorted(frequency, key=lambda name: (frequency[name], name)), None]:
        for group in sorted(group for group in left if name is None or name in within[group]):
            part = min(parts, key=lambda part: (sum(name in within[other] for other in part), len(part)))
            part.append(group)
            left.remove(group)
    _exchange(parts, within)
    return [
        {
            "train": sorted(case for other in parts if other is not part for group in other for case in members[group]),
            "val": sorted(case for group in part for case in members[group]),
        }
        for part in parts
    ]


def _exchange(parts: list[list[str]], within: Mapping[str, set[str]]) -> None:
    """Exchange groups of two folds as long as this brings further classes into a second fold."""

    def alone() -> set[str]:
        number = Counter(name for part in parts for name in set().union(*(within[group] for group in part)))
        groups = Counter(name for part in parts for group in part for name in within[group])
        return {name for name in number if number[name] == 1 < groups[name]}

    lonely = alone()
    for here, there in permutations(range(len(parts)), 2):
        for one, other in product(range(len(parts[here])), range(len(parts[there]))):
            if not lonely:
                return
            if not within[parts[here][one]] & lonely:
                continue
            _swap(parts, (here, one), (there, other))
            if len(found := alone()) < len(lonely):
                lonely = found
            else:
                _swap(parts, (here, one), (there, other))


def _swap(parts: list[list[str]], first: tuple[int, int], second: tuple[int, int]) -> None:
    (a, b), (c, d) = first, second
    parts[a][b], parts[c][d] = parts[c][d], parts[a][b]


def folds_with(splits: list[dict[str, list[str]]], classes: Mapping[str, Collection[str]]) -> dict[str, int]:
    """For each class in how many folds it is in the validation."""
    names = {name for found in classes.values() for name in found}
    return {
        name: sum(any(name in classes[case] for case in split["val"]) for split in splits) for name in sorted(names)
    }
