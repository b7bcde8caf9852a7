r"""Choice of boxes over many images: class-stratified, with noise that decays over the rounds (ClaSP PE).

Each image gives candidates: for each class disjoint boxes with the highest noisy scores of the class, and boxes with
the highest noisy score over all classes. From the candidates of all images a share `STRATIFIED` of the boxes is taken
class by class, the rest by the score over all classes. The noisy score is

.. math:: \log \bar U + G / \beta_t, \qquad \beta_t = 100^{t / (T - 1)}

with the mean :math:`\bar U` of a map over the box, standard Gumbel noise G and round t of T: in the first round boxes
are drawn with probabilities proportional to their scores, in the last they are nearly sorted by them.

Source: Class-stratified Scheduled Power Predictive Entropy (ClaSP PE) in nnActive. Where a class has fewer candidates
than its share, the rest of the share is chosen by the score over all classes, so that the number of boxes is always the
one asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.query.patches import Box, Grid
from nnunetv2_deferral.text import plural

STRATIFIED = 0.66
"""The share of the boxes that is chosen class by class."""

LAST_BETA = 100.0
START_IMAGES = 2
"""In how many images, at least, a start set has boxes of each class."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A box that may be asked about.

    Attributes:
        case: The case.
        box: The box.
        by_class: The place of the class by whose map it was found, None for the map over all classes.
        score: The mean of this map over the box.
        value: The noisy score, by which candidates are sorted.
        minutes: The working time of the box, with the strategy `gain`; else None.
    """

    case: str
    box: Box
    by_class: int | None
    score: float
    value: float
    minutes: float | None = None


@dataclass(frozen=True)
class Choice:
    """The boxes to ask about.

    Attributes:
        chosen: The candidates, those of the classes first, each part in descending order of value.
        missing: For each class how many boxes fewer than its share there were; they are chosen by the score over all
            classes instead.
    """

    chosen: tuple[Candidate, ...]
    missing: tuple[int, ...]


def beta_of_round(number: int, rounds: int) -> float:
    """The inverse scale of the noise, 1 in the first round to 100 in the last.

    Args:
        number: The round t, in [0, rounds - 1].
        rounds: The number T of rounds, at least 1.

    Returns:
        100^(t / (T - 1)), and 1 if there is one round only.

    Raises:
        InputError: If either is out of range.

    Example:
        >>> [round(beta_of_round(number, 5), 2) for number in range(5)]
        [1.0, 3.16, 10.0, 31.62, 100.0]
    """
    if rounds < 1:
        raise InputError(f"the number of rounds must be at least 1, got {rounds}")
    if not 0 <= number < rounds:
        raise InputError(f"the round must be between 0 and {rounds - 1} with {rounds} rounds, got {number}")
    return float(LAST_BETA ** (number / (rounds - 1))) if rounds > 1 else 1.0


def disjoint_boxes(
    case: str,
    grid: Grid,
    by_class: Iterable[np.ndarray],
    overall: np.ndarray,
    *,
    number: int,
    beta: float,
    random: np.random.Generator,
    taken: Sequence[Box] = (),
) -> list[Candidate]:
    """The candidates of one image: disjoint boxes, which overlap nothing that is annotated.

    Classes come in random order; each gives at most max(1, int(0.66 n / (C + 1))) boxes. Boxes whose score is 0, where
    the class does not occur, are no candidates of the class.

    Args:
        case: The name of the image.
        grid: The positions of boxes in it, G.
        by_class: For each of the C classes its mean scores at these positions (:meth:`.Grid.means`), float of shape G,
            not negative. No arrays for a strategy without classes.
        overall: The mean scores over all classes, alike.
        number: The number n of boxes to be chosen over all images.
        beta: Inverse scale of the noise; infinity for none.
        random: The generator.
        taken: Boxes that are annotated.

    Returns:
        The candidates; empty if there is no room. There are up to n of all classes together, because these also replace
        candidates of classes that are too few.

    Raises:
        InputError: If a score is negative or not finite.
    """
    scores = [*by_class]
    free = grid.free(taken)
    most = max(1, int(STRATIFIED * number / (len(scores) + 1)))
    found = []
    for place in [*random.permutation(len(scores)), None]:
        of = overall if place is None else scores[place]
        if not np.isfinite(of).all() or of.min(initial=0) < 0:
            raise InputError(f"scores of {case} must be finite and not negative")
        noise = random.gumbel(size=grid.positions)
        with np.errstate(divide="ignore"):
            values = np.log(of) + noise / beta
        allowed = free if place is None else free & (of > 0)
        for at in grid.greedy(values, allowed, number if place is None else most, noise):
            box = grid.box(at)
            free[grid.overlapping(box)] = False
            found.append(
                Candidate(
                    case=case,
                    box=box,
                    by_class=None if place is None else int(place),
                    score=float(of[at]),
                    value=float(values[at]),
                )
            )
    return found


def shares_of_classes(number: int, classes: int, random: np.random.Generator) -> list[int]:
    """How many of `number` boxes each class gets: int(0.66 number) in equal parts, the remainder to random classes."""
    if not classes:
        return []
    each, more = divmod(int(STRATIFIED * number), classes)
    shares = np.full(classes, each)
    shares[random.permutation(classes)[:more]] += 1
    return [int(share) for share in shares]


def choose_boxes(
    candidates: Sequence[Candidate], *, number: int, classes: int, random: np.random.Generator, start: bool = False
) -> Choice:
    """Choose from the candidates of all images.

    Args:
        candidates: From :func:`disjoint_boxes`, of any number of images.
        number: How many boxes to choose, n.
        classes: The number C of classes; 0 for a strategy without classes.
        random: The generator, for the remainder of equal shares.
        start: Whether this is a start set: each class then gets at least two boxes, in at least two images if there are
            candidates in two.

    Raises:
        InputError: If `number` is not positive, too small for a start set, or larger than the number of candidates.
    """
    if number < 1:
        raise InputError(f"the number of boxes must be at least 1, got {number}")
    if start and number < START_IMAGES * classes:
        raise InputError(
            f"the first round needs at least {START_IMAGES} boxes for each of "
            f"{plural(classes, 'class', 'classes')}, got {plural(number, 'box', 'boxes')}"
        )
    # Ties, such as of equal scores without noise, are broken by name and place, so that the choice is reproducible.
    ordered = sorted(candidates, key=by_value)
    shares = shares_of_classes(number, classes, random)
    if start:
        shares = [max(share, START_IMAGES) for share in shares]
    chosen: list[Candidate] = []
    missing = []
    for place, share in enumerate(shares):
        found = [each for each in ordered if each.by_class == place]
        if start:
            found = _several_images_first(found)
        chosen += sorted(found[:share], key=by_value)
        missing.append(max(share - len(found), 0))
    rest = number - len(chosen)
    by_all = [each for each in ordered if each.by_class is None]
    chosen += by_all[:rest]
    if len(by_all) < rest:
        # Candidates of classes beyond their shares are all that is left.
        used = set(map(id, chosen))
        chosen += [each for each in ordered if id(each) not in used][: rest - len(by_all)]
    if len(chosen) < number:
        raise InputError(
            f"{number} boxes were asked for, but only {len(candidates)} that do not overlap each other or annotated "
            "ones were found"
        )
    return Choice(tuple(chosen), tuple(missing))


def by_value(candidate: Candidate) -> tuple[float, str, Box]:
    """The key by which candidates are sorted: descending values, ties by name and place."""
    return -candidate.value, candidate.case, candidate.box


def _several_images_first(ordered: Sequence[Candidate]) -> list[Candidate]:
    """The best candidate of each of the first two images before all others."""
    best: dict[str, Candidate] = {}
    for each in ordered:
        best.setdefault(each.case, each)
    first = list(best.values())[:START_IMAGES]
    return [*first, *(each for each in ordered if not any(each is other for other in first))]
