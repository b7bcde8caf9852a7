"""What the readers of a review agree on, case by case, from their submitted masks."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.labels import MISSING
from nnunetv2_deferral.names import spelling
from nnunetv2_deferral.raters import ExpertMasks
from nnunetv2_deferral.readings import (
    OUTCOMES,
    ReadingRules,
    RegionReadings,
    Settled,
    digests,
    disputed_in,
    read_settled,
    settle,
)
from nnunetv2_deferral.review.access import COORDINATOR
from nnunetv2_deferral.review.remarks import CANNOT_TELL
from nnunetv2_deferral.review.store import ReviewStore
from nnunetv2_deferral.review.study import ReviewedCase, Study

logger = logging.getLogger(__name__)


class Settling:
    """The settled labels of a review with two readers for each region.

    Attributes:
        rules: When readers agree, and who decides if they do not.
    """

    def __init__(self, study: Study, store: ReviewStore, rules: ReadingRules) -> None:
        self.rules = rules
        self._study, self._store = study, store
        self._names = (*study.experts, *([rules.adjudicator] if rules.adjudicator else []))
        self._regions: dict[str, list[RegionReadings]] = {}
        self._changing: Counter[str] = Counter()  # by case, how many submissions are being written
        self._lock = threading.Lock()
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)

    @classmethod
    def begin(cls, study: Study, store: ReviewStore, rules: ReadingRules | None) -> Settling | None:
        """Begin or continue a review; None if one expert reads each region.

        Raises:
            InputError: If the adjudicator is one of the readers, or the review was begun with another number of readers
                or with other rules.
        """
        begun = ReadingRules.of(store.folder)
        if study.readers_per_region == 1:
            if begun is not None:
                raise InputError(f"{store.folder} is a review with 2 readers for each region (-readers_per_region 2)")
            return None
        rules = rules or ReadingRules()
        if rules.adjudicator == COORDINATOR.name:
            raise InputError(
                f"{rules.adjudicator} is the name of the link that shows everything; choose another -adjudicator"
            )
        if rules.adjudicator is not None and spelling(rules.adjudicator) in map(spelling, study.experts):
            raise InputError(
                f"the adjudicator {rules.adjudicator} is one of the readers ({', '.join(study.experts)}); name "
                "someone else, who then gets a link of their own (-adjudicator)"
            )
        if begun is None and store.has_answers():
            raise InputError(
                f"{store.folder} is a review with one reader for each region; choose another folder (-o) for one with "
                f"{study.readers_per_region}"
            )
        rules.begin(store.folder, has_answers=store.has_answers())
        return cls(study, store, rules)

    def regions(self, case: str) -> list[RegionReadings]:
        """The readings of the regions of a case; none before it has been read, unless it was settled before."""
        return self._regions.get(case, [])

    def disputed(self, case: str) -> list[int]:
        """The numbers of the regions about which both readers have answered differently."""
        return disputed_in(self.regions(case))

    def recall(self, cases: Iterable[str]) -> list[str]:
        """Take up what was settled before of some cases; returns those that must be settled anew."""
        stale = []
        for case in cases:
            settled = self._recalled(case)
            if settled is None or settled.masks != self._digests(case):
                stale.append(case)
            else:
                self._regions[case] = settled.regions
        return stale

    @contextmanager
    def changing(self, case: ReviewedCase) -> Iterator[None]:
        """While the masks of a case change; it is settled anew at the end."""
        with self._lock:
            self._changing[case.name] += 1
        try:
            yield
        finally:
            self.renew(case)
            with self._lock:
                self._changing[case.name] -= 1

    def is_settled(self, case: str) -> bool:
        """Whether what is known of a case is that of its present masks."""
        return not self._changing[case]

    def renew(self, case: ReviewedCase) -> None:
        """Settle a case anew if its masks, its regions or the rules have changed since.

        A decision on other regions than those that are now disputed is reopened. If a mask cannot be read or a file not
        be written, this is logged; the case is then not settled, or again at the next start.
        """
        with self._locks[case.name]:
            try:
                self._renew(case)
            except (InputError, OSError):
                logger.exception("%s could not be settled", case.name)
                self._regions[case.name] = []

    def _renew(self, case: ReviewedCase) -> None:
        settled, masks, basis = self._recalled(case.name), self._digests(case.name), self._basis(case)
        if settled is None or (settled.masks, settled.basis) != (masks, basis):
            before = [] if settled is None else settled.regions
            settled = self._settle(case, masks, basis)
            if self._reopen_if_stale(case, settled):
                settled = self._settle(case, self._digests(case.name), basis)
            if settled.regions != before and any(map(_is_answered, (*before, *settled.regions))):
                self._store.note_settled(case.name, settled.regions)
            settled.write(self._store.folder, case.name)
        self._regions[case.name] = settled.regions

    def _reopen_if_stale(self, case: ReviewedCase, settled: Settled) -> bool:
        """Reopen the adjudicator's decision if it was on other regions."""
        name = self.rules.adjudicator
        if name is None or not self._store.is_submitted(name, case.name):
            return False
        decided_on = (self._store.record(name, case.name) or {}).get("listed")
        if decided_on is None or decided_on == self._study.questions(case, disputed_in(settled.regions)).digest:
            return False
        self._store.reopen(name, case.name, "the readings have changed")
        self._store.set_aside(name, case.name, "the readings have changed")
        return True

    def _basis(self, case: ReviewedCase) -> str:
        content = hashlib.sha256(f"{case.digest} {case.readers} {vars(self.rules)}".encode())
        content.update(case.regions.tobytes())
        return content.hexdigest()

    def _recalled(self, case: str) -> Settled | None:
        try:
            return read_settled(self._store.folder, case)
        except InputError as error:  # it follows from the masks, and is written anew
            logger.warning("%s", error)
            return None

    def _digests(self, case: str) -> dict[str, str]:
        return digests({name: self._store.mask_file(name, case) for name in self._names})

    def blinded(self, case: ReviewedCase) -> tuple[np.ndarray, np.ndarray]:
        """Both readings of the disputed regions, uint8 (Z, Y, X), 0 elsewhere.

        The order of the readers is drawn for each region, so that it does not tell who read.
        """
        first, second = self._readings(case)
        swapped = np.zeros(len(case.readers) + 1, dtype=bool)
        for number in range(1, len(case.readers) + 1):
            swapped[number] = hashlib.sha256(f"{case.name} {number}".encode()).digest()[0] & 1
        is_swapped = swapped[case.regions]
        shown = np.isin(case.regions, self.disputed(case.name))
        volumes = []
        for labels in (np.where(is_swapped, second, first), np.where(is_swapped, first, second)):
            volume = np.zeros(case.model.shape, dtype=np.uint8)
            volume[case.route > 0] = np.where(shown, np.maximum(labels, 0), 0)
            volumes.append(volume)
        return volumes[0], volumes[1]

    def _settle(self, case: ReviewedCase, masks: dict[str, str], basis: str) -> Settled:
        first, second = self._readings(case)
        experts = self._study.experts
        names = [(experts[one - 1], experts[two - 1]) for one, two in case.readers]
        found = settle(first, second, np.full_like(first, MISSING), case.regions, case.gain, names, self.rules)
        disputed = disputed_in(found.regions)
        if disputed and self.rules.adjudicator:
            decided = self._labels(case, self.rules.adjudicator, disputed)
            found = settle(first, second, decided, case.regions, case.gain, names, self.rules)
        inside, to_file = case.route > 0, case.orientation.to_file
        labels, outcomes = np.full(case.route.shape, MISSING, np.int16), np.zeros(case.route.shape, np.uint8)
        labels[inside], outcomes[inside] = found.labels, found.outcomes
        return Settled(
            experts=experts,
            labels=np.ascontiguousarray(to_file(labels)),
            outcomes=np.ascontiguousarray(to_file(outcomes)),
            route=np.ascontiguousarray(to_file(case.route)),
            regions=found.regions,
            masks=masks,
            basis=basis,
        )

    def _readings(self, case: ReviewedCase) -> tuple[np.ndarray, np.ndarray]:
        """The labels (V,) of the first and of the second reader of each voxel."""
        readers = np.array([(0, 0), *case.readers], dtype=np.int64)[case.regions]
        readings = np.full((2, case.regions.size), MISSING, dtype=np.int16)
        for number, expert in enumerate(self._study.experts, start=1):
            is_asked = number == readers.T
            if is_asked.any():
                labels = self._labels(case, expert, case.of_reader(number))
                for reading, own in zip(readings, is_asked, strict=True):
                    reading[own] = labels[own]
        return readings[0], readings[1]

    def _labels(self, case: ReviewedCase, name: str, asked: list[int]) -> np.ndarray:
        """The submitted labels (V,) of a person who was asked about some regions.

        They are :data:`.MISSING` without a mask, and where the person could not tell; a region in which the mask was
        changed by hand since has an answer.
        """
        masks = ExpertMasks.of(self._store.folder, (name,), self._study.predictions.files)
        values = masks.read(name, case.name, case.properties)
        if values is None:
            return np.full(case.regions.size, MISSING, dtype=np.int16)
        turned = case.orientation.to_canonical(values)
        if turned.shape != case.route.shape:
            raise InputError(f"{masks.file(name, case.name)}: shape {values.shape} does not match the case")
        self._check_draft(case, name, asked)
        inside = case.route > 0
        labels = turned[inside].copy()
        if self._study.predictions.files.label_manager.ignore_label is not None:
            return labels  # where the person could not tell, the mask has this label
        record = self._store.record(name, case.name) or {}
        untold = [int(number) for number, said in record.get("confidence", {}).items() if said == CANNOT_TELL]
        if untold:
            numbers, is_models = self._study.questions(case, asked).regions[inside], labels == case.model[inside]
            for number in untold:
                where = numbers == number
                if is_models[where].all():  # as it was submitted
                    labels[where] = MISSING
        return labels

    def _check_draft(self, case: ReviewedCase, name: str, asked: list[int]) -> None:
        """Refuse a mask that was drawn for other predictions or, by a reader, for other regions."""
        draft = self._store.draft(name, case.name)
        if draft is None:  # from another program
            return
        is_other = name in self._study.experts and draft.listed != self._study.questions(case, asked).digest
        if draft.digest != case.digest or is_other:
            raise InputError(
                f"{self._store.mask_file(name, case.name)} was submitted for other predictions or another worklist. "
                "Restore these, or choose another folder (-o)"
            )


def _is_answered(region: RegionReadings) -> bool:
    return region["outcome"] != OUTCOMES[0] or region["disputed"]
