"""The files of a review.

    REVIEWS/<expert>/<case><file_ending>      submitted masks, in the layout of `expertsTr`
    REVIEWS/review.json                       regions, voxels and minutes of each submitted mask
    REVIEWS/.review/drafts/<expert>/<case>.npz    answers not yet submitted
    REVIEWS/.review/log.jsonl                 every change, one JSON object per line, append-only
    REVIEWS/.review/access.json               the links of the experts (access.py)
    REVIEWS/.review/server.lock               held by the server that writes to this folder

A change is first written completely to a temporary file, then logged, then put in place by renaming; each step is
synced to disk. A draft on disk is therefore always in the log. If a server is killed between the last two steps, the
next one records in the log that the change was not kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import AppendOnlyLog, write_durably, write_json_durably
from nnunetv2_deferral.raters import REVIEW_NAME

logger = logging.getLogger(__name__)

HIDDEN = ".review"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An expert's answers to a case.

    Attributes:
        revision: Number of saves.
        key: The page's identifier of the last save.
        digest: Digest of the model's mask, route and gain that the answers refer to.
        labels: uint8 (V,), the labels of the V voxels that the expert is asked about, in the browser's orientation.
        done: The numbers of the answered regions.
        seconds: Working time.
        listed: With a worklist, a digest of the listed regions of expert and case; else empty.
    """

    revision: int
    key: str
    digest: str
    labels: np.ndarray
    done: tuple[int, ...]
    seconds: float
    listed: str = ""


class ReviewStore:
    """The folder of a review, used by one server at a time.

    Attributes:
        folder: The folder REVIEWS.
        log: The log of changes.
    """

    def __init__(self, folder: Path, file_ending: str) -> None:
        """Open the folder; creates it if necessary.

        Raises:
            InputError: If another server is using it.
        """
        self.folder, self._ending = folder, file_ending
        self.hidden = folder / HIDDEN
        self.hidden.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.hidden / "server.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{folder} is in use by another nnUNetv2_deferral_review") from None
        self.log = AppendOnlyLog(self.hidden / "log.jsonl")
        self._records = self._recover()
        self._write_index()

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()

    def mask_file(self, expert: str, case: str) -> Path:
        """The file of a submitted mask; it need not exist."""
        return self.folder / expert / f"{case}{self._ending}"

    def draft_file(self, expert: str, case: str) -> Path:
        """The file of saved answers; it need not exist."""
        return self.hidden / "drafts" / expert / f"{case}.npz"

    def is_submitted(self, expert: str, case: str) -> bool:
        """Whether there is a submitted mask."""
        return self.mask_file(expert, case).is_file()

    def record(self, expert: str, case: str) -> dict[str, Any] | None:
        """The record of a submitted mask; None if it was not made with the review page or not submitted."""
        return self._records.get((expert, case))

    def draft(self, expert: str, case: str) -> Draft | None:
        """The saved answers; None if there are none.

        Raises:
            InputError: If the file cannot be read.
        """
        file = self.draft_file(expert, case)
        if not file.is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as content:
                meta = json.loads(str(content["meta"]))
                return Draft(labels=content["labels"], done=tuple(meta.pop("done")), **meta)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error

    def save(self, expert: str, case: str, draft: Draft, event: str, runs: list[list[int]]) -> None:
        """Save a draft and log its changes.

        Raises:
            OSError: If the disk is full or fails; nothing is changed then.
        """
        meta = {
            "revision": draft.revision,
            "key": draft.key,
            "digest": draft.digest,
            "done": list(draft.done),
            "seconds": draft.seconds,
            "listed": draft.listed,
        }
        entry = {"revision": draft.revision, "done": list(draft.done), "seconds": round(draft.seconds, 1), "runs": runs}

        def fill(file: Path) -> None:
            with file.open("wb") as stream:
                np.savez_compressed(stream, labels=draft.labels, meta=np.array(json.dumps(meta)))

        write_durably(self.draft_file(expert, case), fill, before=lambda: self._append(event, expert, case, entry))

    def submit(self, expert: str, case: str, write: Callable[[Path], None], record: Mapping[str, Any]) -> None:
        """Write a submitted mask and add it to the index.

        Args:
            expert: The expert.
            case: The case.
            write: Function that writes the mask to a given path.
            record: The entry for the index.

        Raises:
            OSError: If the disk is full or fails; nothing is changed then.
        """
        entry = {**record, "submitted": _now()}
        write_durably(
            self.mask_file(expert, case),
            write,
            before=lambda: self._append("submitted", expert, case, {"record": entry}),
        )
        self._records[expert, case] = entry
        try:
            self._write_index()
        except OSError as error:  # the mask is in place and logged, and the index follows from the log
            logger.warning("%s is out of date until the next submission or start: %s", REVIEW_NAME, error)

    def _append(self, event: str, expert: str, case: str, entry: Mapping[str, Any]) -> None:
        self.log.append({"time": _now(), "event": event, "expert": expert, "case": case, **entry})

    def _recover(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The logged records of existing submitted masks; also logs changes that a killed server did not complete."""
        revisions: dict[tuple[str, str], int] = {}
        records = {}
        for entry in self.log.entries():
            of = entry["expert"], entry["case"]
            if entry["event"] == "submitted":
                records[of] = entry["record"]
            else:
                revisions[of] = entry["revision"]
        for (expert, case), revision in revisions.items():
            draft = self.draft(expert, case)
            kept = draft.revision if draft else 0
            if kept < revision:
                self._append("not kept", expert, case, {"revision": kept})
        return {of: record for of, record in records.items() if self.is_submitted(*of)}

    def _write_index(self) -> None:
        cases: dict[str, dict[str, Any]] = {}
        for (expert, case), record in sorted(self._records.items(), key=lambda item: item[0][::-1]):
            cases.setdefault(case, {})[expert] = record
        write_json_durably({"cases": cases}, self.folder / REVIEW_NAME)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
