"""The operations of the review page and their permissions, independent of HTTP."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import without_nan
from nnunetv2_deferral.readings import ReadingRules, readings_summary
from nnunetv2_deferral.review.access import Person
from nnunetv2_deferral.review.case_list import CaseList
from nnunetv2_deferral.review.edits import Edit, RefusedError, apply_edit, check_whole_mask, parse_edit, runs_between
from nnunetv2_deferral.review.masks import write_answers, write_mask
from nnunetv2_deferral.review.remarks import MAX_COMMENT, Remarks, flags_in_file, parse_remarks, regions_not_told
from nnunetv2_deferral.review.results import case_result, fused_mask
from nnunetv2_deferral.review.settling import Settling
from nnunetv2_deferral.review.store import Draft, ReviewStore
from nnunetv2_deferral.review.study import Asked, ReviewedCase, Study
from nnunetv2_deferral.review.upload import read_uploaded_mask
from nnunetv2_deferral.review.windows import windows_of
from nnunetv2_deferral.review.work_times import effort_of

SLACK_SECONDS = 5.0
READINGS = ("reading1", "reading2")
"""The volumes of both readings of disputed regions, in an order that does not tell who read."""
# Bytes of the JSON of a save: in all, and for each voxel asked about, whose run has three numbers of up to 12 digits.
# Remarks have up to 20 comments of 300 characters, which JSON may write with 6 bytes each.
BYTES_PER_SAVE, BYTES_PER_VOXEL = 4096 + 20 * 6 * 400, 48


class Upload(NamedTuple):
    """What is kept of an upload: its key, the answered regions, and a digest of the file."""

    key: str
    done: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class Blinding:
    """What experts do not see.

    Attributes:
        show_scores: Whether experts see reference and scores of a case that they have submitted.
        blind_start: Whether experts start from an empty mask and see the model's mask only after they have submitted.
    """

    show_scores: bool = False
    blind_start: bool = False


class Review:
    """A review.

    Attributes:
        study: The predictions, images and references.
        store: The answers.
        blinding: What experts do not see.
        settling: What readers agree on; None if one expert reads each region.
    """

    def __init__(
        self,
        study: Study,
        store: ReviewStore,
        blinding: Blinding = Blinding(),
        rules: ReadingRules | None = None,
    ) -> None:
        """Open the review; with two readers for each region, `rules` tell when they agree.

        Raises:
            InputError: If the review was begun with another number of readers or with other rules.
        """
        self.study, self.store, self.blinding = study, store, blinding
        self.settling = Settling.begin(study, store, rules)
        if self.settling:
            study.then = self.settling.renew
        self._cases = CaseList(study, store, self.settling)
        self._locks: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)
        self._seen: dict[tuple[str, str], float] = {}

    @property
    def people(self) -> tuple[str, ...]:
        """The names of all who answer: the experts in routing order, and the adjudicator if there is one."""
        return (*self.study.experts, *([self.adjudicator] if self.adjudicator else []))

    @property
    def adjudicator(self) -> str | None:
        """The name of the person who decides where readers differ; None if there is none."""
        return self._cases.adjudicator

    def listing(self, person: Person) -> list[dict[str, Any]]:
        """The cases that a person works with.

        For the coordinator all cases by name. For an expert the cases with regions to answer, in the order of the best
        rank of these regions on the worklist, or without a worklist, of their total expected gain. For the adjudicator
        the cases that all experts have submitted and about which they differ.
        """
        return self._cases.cases(person)

    def check_begun(self) -> None:
        """Refuse to continue a review whose answers refer to other regions because the worklist differs.

        The cases with answers that are not submitted are read for that; of submitted ones, the number of voxels is
        compared with the worklist's. What readers have submitted is settled anew where masks have changed since.

        Raises:
            InputError: Naming the first such draft, or a file that cannot be read. Nothing is changed.
        """
        now = f"the worklist {self.study.worklist.folder}" if self.study.worklist else "no worklist"
        known, experts = set(self.study.predictions.cases), self.study.experts
        begun = [(expert, name) for expert, name in self.store.begun() if expert in experts and name in known]
        if self.study.is_bound:
            self.study.read(dict.fromkeys(of[1] for of in begun if not self.store.is_submitted(*of)))
        infos = self.study.infos
        for expert, name in begun:
            draft, place = self.store.draft(expert, name), experts.index(expert)
            if draft is None:
                continue
            if not self.study.is_bound or not draft.listed:
                is_other = bool(draft.listed) or self.study.is_bound
            elif name in infos and infos[name].listings[place]:
                is_other = draft.listed != infos[name].listings[place]
            else:
                is_other = name in infos and draft.labels.size != infos[name].voxels[place]
            if is_other:
                other = "with other regions" + (" of a worklist" if self.settling is None else "")
                started = other if draft.listed else "without a worklist"
                raise InputError(
                    f"{self.store.draft_file(expert, name)}: the answers of {expert} to {name} were started "
                    f"{started}, but now there is {now}. Use the same worklist as before or choose another folder (-o)"
                )
        if self.settling:
            submitted = self.store.submitted_cases(self.people)
            self.study.read(self.settling.recall(case for case in submitted if case in known))

    def progress(self) -> dict[str, int]:
        """How many `cases` there are, and how many can be reviewed because they have been `read` or are listed."""
        return {"read": len(self.study.infos), "cases": len(self.study.predictions.cases)}

    def details(self, person: Person, name: str) -> dict[str, Any]:
        """The data of a case that the page needs before it loads volumes."""
        case = self._visible(person, name)
        image, files = self.study.image(name), self.study.predictions.files
        colour = self.study.is_colour(name)
        channels = files.content.get("channel_names", {})
        names = ["RGB"] if colour else [str(channels.get(str(place), place)) for place in range(len(image))]
        content: dict[str, Any] = {
            "case": name,
            "shape": case.model.shape,
            "spacing": case.orientation.spacing_mm,
            "named": case.orientation.named,
            "oblique": case.orientation.oblique_degrees,
            "colour": colour,
            "channels": names,
            "windows": windows_of(
                names, files.content.get("windows", {}), colour=colour, eight_bits=image.dtype == np.uint8
            ),
            "kind": str(image.dtype),
            "labels": [{"label": label, "name": name} for label, name in files.label_names.items()],
            "experts": self.study.experts,
            "has_reference": self.study.info(name).reference is not None and self._sees_scores(person),
            "blind": person.expert is not None and self._is_blind(person.expert, name),
        }
        if person.expert is not None:
            asked, draft = self._asked(case, person.expert), self._draft(person.expert, case)
            self._seen[person.expert, name] = time.monotonic()
            content |= {
                "number": self.people.index(person.expert) + 1,
                "decides": person.expert == self.adjudicator,
                "regions": asked.listing,
                "revision": draft.revision,
                "done": draft.done,
                "seconds": draft.seconds,
                "remarks": draft.remarks,
                "submitted": self.store.is_submitted(person.expert, name),
                "reopened": self.store.reopened(person.expert, name),
                "endings": files.reader.supported_file_endings,
            }
        else:
            content["flags"] = self._flags(case)
        return content

    def volume(self, person: Person, name: str, which: str) -> np.ndarray:
        """A volume (Z, Y, X), or one channel of the image.

        Raises:
            RefusedError: If it does not exist, or the person may not see it (yet).
        """
        case = self._visible(person, name)
        if which.startswith("image"):
            image, channel = self.study.image(name), which.removeprefix("image")
            if channel not in map(str, range(len(image))):
                raise RefusedError(404, "No such channel.")
            return image[int(channel)]
        if which == "model":
            return case.model if person.expert is None else self._shown(case, person.expert)
        if which == "route" and person.expert is None:
            return case.route
        if which == "regions" and person.expert is not None:
            return self._asked(case, person.expert).regions
        if which in READINGS and self.settling and person.expert == self.adjudicator:
            return self.settling.blinded(case)[READINGS.index(which)]
        if which == "labels" and person.expert is not None:
            return self._mask(case, person.expert, self._shown(case, person.expert))
        if which == "fused" or (which == "reference" and self._sees_scores(person)):
            self._check_may_see_result(person, name)
            if which == "fused":
                found: np.ndarray | None = fused_mask(
                    self.study, self.store, case, has_two_readers=self.settling is not None
                )
            else:
                found = self.study.reference(name)
            if found is not None:
                return found.astype(np.uint8)
        raise RefusedError(404, "No such volume.")

    def result(self, person: Person, name: str) -> dict[str, Any]:
        """The result of a case for step 3: scores, changes and experts."""
        case = self._visible(person, name)
        self._check_may_see_result(person, name)
        found = case_result(
            self.study, self.store, case, scores=self._sees_scores(person), has_two_readers=self.settling is not None
        )
        if self.settling and person.expert is not None:  # the sizes of regions would tell who read them
            found["experts"] = [each for each in found["experts"] if each["expert"] == person.expert]
        if person.expert is None:
            found["people"] = [self._made(each, name) for each in self.people]
            if self.settling:
                regions = self.settling.regions(name)
                found["readings"] = {
                    "rules": vars(self.settling.rules),
                    "regions": regions,
                    **readings_summary(regions),
                }
        return without_nan(found)

    def _made(self, name: str, case: str) -> dict[str, Any]:
        """What the coordinator sees of a person's work on a case: whether it is submitted, and why it was reopened."""
        return {
            "name": name,
            "submitted": self.store.is_submitted(name, case),
            "reopened": self.store.reopened(name, case),
        }

    def totals(self, person: Person) -> dict[str, Any]:
        """Minutes and voxels of each expert over all cases, for the coordinator."""
        if person.expert is not None:
            raise RefusedError(403, "Only the coordinator can see the totals of all experts.")
        return without_nan(self._cases.totals())

    def max_save_bytes(self, person: Person, name: str) -> int:
        """The largest size of the body of a save.

        Raises:
            RefusedError: If the person cannot answer this case.
        """
        _, _, asked = self._answerable(person, name)
        return BYTES_PER_SAVE + BYTES_PER_VOXEL * asked.voxels.size

    def save(self, person: Person, name: str, content: Any) -> dict[str, Any]:
        """Save an edit.

        Raises:
            RefusedError: If any part of it is not allowed; nothing is changed then.
        """
        expert, case, asked = self._answerable(person, name)
        edit = parse_edit(content, asked.voxels.size)
        with self._locks[expert, name]:
            draft = self._draft(expert, case)
            if edit.revision + 1 == draft.revision and edit.key == draft.key:
                if draft.request not in ("", edit.digest):
                    raise RefusedError(409, "Something else was saved under the key of this save. Reload the page.")
                return _receipt(draft)  # a repeated request whose first response was lost
            self._check_open(expert, name, edit.revision, draft)
            labels = apply_edit(
                edit, draft.labels, asked.voxels, case.model.shape, self.study.labels, len(asked.listing)
            )
            remarks = draft.remarks
            if edit.remarks is not None:
                remarks = parse_remarks(edit.remarks, case.model.shape, len(asked.listing))
            seconds = draft.seconds + self._worked(expert, name, edit.seconds)
            return self._keep(expert, case, asked, draft, labels, edit, seconds, "saved", remarks)

    def upload(self, person: Person, name: str, revision: int, key: str, file_name: str, body: bytes) -> dict[str, Any]:
        """Save a mask drawn in another program; all regions count as answered.

        Raises:
            RefusedError: If the file is invalid or does not match the case; nothing is changed then.
        """
        expert, case, asked = self._answerable(person, name)
        with self._locks[expert, name]:
            draft = self._draft(expert, case)
            self._check_open(expert, name, revision, draft)
            mask = read_uploaded_mask(body, file_name, case, self.study.predictions.files)
            if (ignore := self._ignore_label) is not None:
                outside = np.ones(mask.size, dtype=bool)
                outside[asked.voxels] = False
                left_out = outside.reshape(mask.shape) & (mask == ignore)
                mask = np.where(left_out, self._shown(case, expert), mask)
            labels = check_whole_mask(mask, self._shown(case, expert), asked.voxels, self.study.labels)
            everything = tuple(range(1, len(asked.listing) + 1))
            edit = Upload(key=key, done=everything, digest=hashlib.sha256(body).hexdigest())
            seconds = draft.seconds + self._worked(expert, name, float("inf"))
            remarks: Remarks = {"confidence": {}, "flags": draft.remarks["flags"]}
            return self._keep(expert, case, asked, draft, labels, edit, seconds, "uploaded", remarks)

    def submit(self, person: Person, name: str, revision: int) -> None:
        """Write the saved answers as the expert's mask; afterwards they cannot be changed.

        Raises:
            RefusedError: If regions are not answered, or `revision` is not the last one.
        """
        expert, case, asked = self._answerable(person, name)
        decides = expert == self.adjudicator
        with self._locks[expert, name]:
            draft = self._draft(expert, case)
            self._check_open(expert, name, revision, draft)
            still_open = len(asked.listing) - len(draft.done)
            if still_open:
                raise RefusedError(409, f"{still_open} of {len(asked.listing)} regions have no answer yet.")
            regions = asked.regions
            untold = np.isin(regions, regions_not_told(draft.remarks))
            changed = draft.labels != case.model.ravel()[asked.voxels]
            record = {
                "regions": len(asked.listing),
                "voxels": int(asked.voxels.size),
                "left_out_voxels": 0 if decides else case.left_out[self.study.experts.index(expert)],
                "changed_voxels": int((changed & ~untold.ravel()[asked.voxels]).sum()),
                "cannot_tell_voxels": int(untold.sum()),
                "confidence": draft.remarks["confidence"],
                "flags": flags_in_file(draft.remarks["flags"], case.orientation, case.model.shape),
                "minutes": round(draft.seconds / 60, 2),
                "effort": effort_of(
                    self.study.predictions,
                    name,
                    case.orientation.to_file(regions),
                    np.unique(asked.numbers[changed]).size,
                ),
                "revisions": draft.revision,
                "blind_start": draft.blind,
                "show_scores": self.blinding.show_scores,
                "listed": self._binding(asked),
            }
            ignore = self._ignore_label
            base = case.model if ignore is None else np.full_like(case.model, ignore)
            mask = np.where(untold, base, self._mask(case, expert, base))
            files = self.study.predictions.files
            with self._changing(case):
                self.store.submit(expert, name, lambda file: write_answers(mask, case, file, files), record)

    def reopen(self, person: Person, name: str, expert: str, reason: str) -> None:
        """Let an expert change a case that they have submitted.

        The submitted mask is kept aside. A decision of the adjudicator on the case is reopened, too, because it refers
        to what was submitted.

        Raises:
            RefusedError: If the person is not the coordinator, the case has not been submitted, or there is no reason.
        """
        if person.expert is not None:
            raise RefusedError(403, "Only the coordinator can reopen a case.")
        case = self._visible(person, name)
        reason = " ".join(reason.split())
        if not 0 < len(reason) <= MAX_COMMENT:
            raise RefusedError(400, f"Reopening a case needs a reason of 1 to {MAX_COMMENT} characters.")
        if expert not in self.people:
            raise RefusedError(409, f"There is nobody called {expert}.")
        with self._locks[expert, name], self._changing(case):
            if not self.store.is_submitted(expert, name):
                raise RefusedError(409, f"{expert} has not submitted this case.")
            self.store.reopen(expert, name, reason)

    def _changing(self, case: ReviewedCase) -> AbstractContextManager[None]:
        return self.settling.changing(case) if self.settling else nullcontext()

    def write_download(self, person: Person, name: str, what: str, file: Path) -> None:
        """Write a download in the dataset's format: `mask` (the person's own current mask), `regions` or `fused`."""
        case = self._visible(person, name)
        if what == "mask" and person.expert is not None:
            mask = self._mask(case, person.expert, self._shown(case, person.expert))
        elif what == "regions" and person.expert is not None:
            mask = self._asked(case, person.expert).regions
        elif what == "fused":
            mask = self.volume(person, name, "fused")
        else:
            raise RefusedError(404, "No such file.")
        write_mask(mask, case, file, self.study.predictions.files)

    @property
    def _ignore_label(self) -> int | None:
        return self.study.predictions.files.label_manager.ignore_label

    def _sees_scores(self, person: Person) -> bool:
        return person.expert is None or self.blinding.show_scores

    def _is_blind(self, expert: str, name: str) -> bool:
        return self.blinding.blind_start and not self.store.is_submitted(expert, name)

    def _shown(self, case: ReviewedCase, expert: str) -> np.ndarray:
        """The model's mask as the expert sees it: empty while the expert is blind to it."""
        return np.zeros_like(case.model) if self._is_blind(expert, case.name) else case.model

    def _visible(self, person: Person, name: str) -> ReviewedCase:
        case = self.study.case(name)
        if person.expert is None:
            return case
        if person.expert == self.adjudicator:
            is_asked = self._cases.is_to_be_decided(name)
        else:
            is_asked = self.study.info(name).voxels[self.study.experts.index(person.expert)] > 0
        if not is_asked:
            raise RefusedError(404, "No such case.")
        return case

    def _asked(self, case: ReviewedCase, expert: str) -> Asked:
        if self.settling and expert == self.adjudicator:
            return self.study.questions(case, self.settling.disputed(case.name))
        return self.study.asked(case.name, expert)

    def _answerable(self, person: Person, name: str) -> tuple[str, ReviewedCase, Asked]:
        if person.expert is None:
            raise RefusedError(403, "The coordinator cannot answer regions.")
        case = self._visible(person, name)
        return person.expert, case, self._asked(case, person.expert)

    def _check_may_see_result(self, person: Person, name: str) -> None:
        if person.expert is not None and not self.store.is_submitted(person.expert, name):
            raise RefusedError(403, "The result is available once you have submitted this case.")

    def _check_open(self, expert: str, name: str, revision: int, draft: Draft) -> None:
        if self.store.is_submitted(expert, name):
            raise RefusedError(409, "This case has been submitted and can no longer be changed.")
        if revision != draft.revision:
            raise RefusedError(
                409,
                "This case has been changed in another tab or window "
                f"(it is at revision {draft.revision}, this page at {revision}).",
            )

    def _draft(self, expert: str, case: ReviewedCase) -> Draft:
        """The saved draft, or the model's labels as revision 0."""
        draft = self.store.draft(expert, case.name)
        if draft is None:
            asked = self._asked(case, expert)
            return Draft(
                revision=0,
                key="",
                digest=case.digest,
                labels=self._shown(case, expert).ravel()[asked.voxels],
                done=(),
                seconds=0.0,
                listed=self._binding(asked),
                blind=self.blinding.blind_start,
            )
        if draft.listed != self._binding(self._asked(case, expert)):
            if expert == self.adjudicator and not self.store.is_submitted(expert, case.name):
                self.store.set_aside(expert, case.name, "the readings have changed")
                return self._draft(expert, case)
            raise RefusedError(
                409, "The regions of this case have changed since you began. Ask the coordinator what to do."
            )
        if draft.digest != case.digest:
            raise RefusedError(
                409, "The predictions have changed since this review was started. Ask the coordinator to restore them."
            )
        return draft

    def _binding(self, asked: Asked) -> str:
        """What a draft records of its regions, if these depend on more than the predictions."""
        return asked.digest if self.study.is_bound else ""

    def _flags(self, case: ReviewedCase) -> list[dict[str, Any]]:
        """The flags of all experts in a case, also of those who have not submitted it."""
        drafts = {expert: self.store.draft(expert, case.name) for expert in self.people}
        return [
            {"expert": expert, **flag} for expert, draft in drafts.items() if draft for flag in draft.remarks["flags"]
        ]

    def _mask(self, case: ReviewedCase, expert: str, base: np.ndarray) -> np.ndarray:
        mask = base.copy()
        mask.ravel()[self._asked(case, expert).voxels] = self._draft(expert, case).labels
        return mask

    def _keep(
        self,
        expert: str,
        case: ReviewedCase,
        asked: Asked,
        draft: Draft,
        labels: np.ndarray,
        edit: Edit | Upload,
        seconds: float,
        event: str,
        remarks: Remarks,
    ) -> dict[str, Any]:
        runs = runs_between(draft.labels, labels, asked.voxels)
        kept = Draft(
            revision=draft.revision + 1,
            key=edit.key,
            digest=case.digest,
            labels=labels,
            done=edit.done,
            seconds=seconds,
            listed=self._binding(asked),
            request=edit.digest,
            remarks=remarks,
            blind=draft.blind and self.blinding.blind_start and not self.store.reopened(expert, case.name),
        )
        self.store.save(expert, case.name, kept, event, runs)
        return _receipt(kept)

    def _worked(self, expert: str, name: str, seconds: float) -> float:
        """The working time, limited to the time since the last request of the page."""
        now = time.monotonic()
        longest = now - self._seen.get((expert, name), now) + SLACK_SECONDS
        self._seen[expert, name] = now
        return min(seconds, longest)


def _receipt(draft: Draft) -> dict[str, Any]:
    return {"revision": draft.revision, "done": draft.done, "seconds": draft.seconds}
