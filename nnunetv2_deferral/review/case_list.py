"""The list of cases and what everybody has done of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nnunetv2_deferral.readings import readings_summary
from nnunetv2_deferral.review.access import Person
from nnunetv2_deferral.review.remarks import regions_in_doubt, regions_not_told
from nnunetv2_deferral.review.results import total_of, total_result
from nnunetv2_deferral.review.settling import Settling
from nnunetv2_deferral.review.store import ReviewStore
from nnunetv2_deferral.review.study import CaseInfo, Study


class CaseList:
    """The list of cases of a review.

    Attributes:
        study: The predictions.
        store: The answers.
        settling: What readers agree on; None if one expert reads each region.
    """

    def __init__(self, study: Study, store: ReviewStore, settling: Settling | None) -> None:
        self.study, self.store, self.settling = study, store, settling

    @property
    def adjudicator(self) -> str | None:
        """The name of the person who decides where readers differ; None if there is none."""
        return self.settling.rules.adjudicator if self.settling else None

    def is_to_be_decided(self, name: str) -> bool:
        """Whether readers differ about a case that they have all submitted."""
        if self.settling is None or not self.settling.is_settled(name) or not self.settling.disputed(name):
            return False
        voxels = self.study.info(name).voxels
        asked = [expert for expert, number in zip(self.study.experts, voxels, strict=True) if number]
        return all(self.store.is_submitted(expert, name) for expert in asked)

    def cases(self, person: Person) -> list[dict[str, Any]]:
        """The cases that a person works with, see :meth:`.Review.listing`."""
        if self.settling and person.expert == self.adjudicator:
            to_be_decided = (info for info in self.study.infos.values() if self.is_to_be_decided(info.name))
            return [self._decision(self.settling, info) for info in to_be_decided]
        entries = []
        for info in self._in_order(person):
            experts = [
                self._status(place, info)
                for place, expert in enumerate(self.study.experts)
                if person.expert in (None, expert)
            ]
            if person.expert is None or experts[0]["voxels"]:
                entry = _entry(info, experts, info.rate if person.expert is None else experts[0]["share"])
                if person.expert is None:
                    entry["other_mask"] = info.other_mask
                if person.expert is None and self.settling:
                    entry["readings"] = readings_summary(self.settling.regions(info.name))
                    if self.is_to_be_decided(info.name):
                        entry["adjudication"] = self._adjudication(self.settling, info)
                entries.append(entry)
        return entries

    def totals(self) -> dict[str, Any]:
        """Minutes and voxels of each expert, and of the adjudicator, over all cases."""
        found = total_result(self.study, self.store)
        if self.settling and self.adjudicator:
            asked = [info for info in self.study.infos.values() if self.is_to_be_decided(info.name)]
            made = [self.store.record(self.adjudicator, info.name) for info in asked]
            submitted = [record for record in made if record is not None]
            voxels = sum(self._adjudication(self.settling, info)["voxels"] for info in asked)
            found["experts"].append(
                total_of(self.adjudicator, len(asked), voxels, submitted, num_submitted=len(submitted))
            )
        return found

    def _in_order(self, person: Person) -> list[CaseInfo]:
        infos = list(self.study.infos.values())
        if person.expert is None:
            return infos
        place = self.study.experts.index(person.expert)
        return sorted(infos, key=lambda info: (info.ranks[place] or 0, -info.gains[place], info.name))

    def _status(self, place: int, info: CaseInfo) -> dict[str, Any]:
        """The status of an expert."""
        voxels = info.voxels[place]
        return {
            "voxels": voxels,
            "share": info.shares[place],
            "regions": info.regions[place],
            "left_out": info.left_out[place],
            "gain": info.gains[place],
            **self._answered(self.study.experts[place], info.name, is_asked=voxels > 0),
        }

    def _decision(self, settling: Settling, info: CaseInfo) -> dict[str, Any]:
        status = self._adjudication(settling, info)
        return _entry(info, [status], status["share"])

    def _adjudication(self, settling: Settling, info: CaseInfo) -> dict[str, Any]:
        """The status of the adjudicator."""
        disputed = [each["voxels"] for each in settling.regions(info.name) if each["disputed"]]
        return {
            "voxels": sum(disputed),
            "share": sum(disputed) / int(np.prod(info.shape)) if info.shape else 0.0,
            "regions": len(disputed),
            "left_out": 0,
            "gain": math.fsum(each["gain"] for each in settling.regions(info.name) if each["disputed"]),
            **self._answered(str(settling.rules.adjudicator), info.name, is_asked=True),
        }

    def _answered(self, expert: str, name: str, *, is_asked: bool) -> dict[str, Any]:
        draft = self.store.draft(expert, name) if is_asked else None
        return {
            "expert": expert,
            "done": len(draft.done) if draft else 0,
            "flags": len(draft.remarks["flags"]) if draft else 0,
            "cannot_tell": len(regions_not_told(draft.remarks)) if draft else 0,
            "in_doubt": regions_in_doubt(draft.remarks) if draft else 0,
            "minutes": draft.seconds / 60 if draft else 0.0,
            "submitted": self.store.is_submitted(expert, name),
        }


def _entry(info: CaseInfo, experts: list[dict[str, Any]], rate: float) -> dict[str, Any]:
    left_out = sum(each["left_out"] for each in experts)
    return {"case": info.name, "shape": info.shape, "rate": rate, "left_out": left_out, "experts": experts}
