"""The files of a review.

    REVIEWS/<expert>/<case><file_ending>      submitted masks, in the layout of `expertsTr`
    REVIEWS/review.json                       regions, voxels and minutes of each submitted mask
    REVIEWS/settled/                          what two readers for each region agree on (readings.py)
    REVIEWS/.review/drafts/<expert>/<case>.npz    answers not yet submitted
    REVIEWS/.review/drafts/<expert>/<case>.npz.previous    the revision before, restored if the last one is damaged
    REVIEWS/.review/drafts/<expert>/<case>.npz.damaged_1   damaged files that were replaced, never read
    REVIEWS/.review/reopened/<expert>/<n>_<case>...    masks and drafts before a case was reopened, never read
    REVIEWS/.review/log.jsonl                 every change, one JSON object per line, append-only
    REVIEWS/.review/access.json               the links of the experts (access.py)
    REVIEWS/.review/server.lock               held by the server that writes to this folder

A change is first written completely to a temporary file, then logged, then put in place by renaming; each step is
synced to disk. A draft on disk is therefore always in the log. If a server is killed between the last two steps, the
next one records in the log that the change was not kept.

Everything in .review is readable by the owner of the server only; masks and review.json are for everyone.

A draft that is damaged is replaced by the previous revision. The log records this, too: of the entries of an expert and
case, those with a higher revision than a later "not kept" or "restored" are void.
"""

from __future__ import annotations

import io
import json
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from filelock import FileLock, Timeout
from pydantic import Field, Strict
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.errors import InputError, refusals_named
from nnunetv2_deferral.files import (
    AppendOnlyLog,
    make_private_folder,
    read_json,
    sync_folder,
    write_durably,
    write_json_durably,
)
from nnunetv2_deferral.names import REVIEW_NAME
from nnunetv2_deferral.readings import FOLDER, INDEX_KEY, RULES_NAME, ReadingRules
from nnunetv2_deferral.review.remarks import NO_REMARKS, Remarks
from nnunetv2_deferral.schema import Boolean, Count, NonNegative, Text, validate

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
        request: Digest of the content of the last save; empty in drafts of older versions.
        remarks: Confidence and flags.
        blind: Whether all answers were given without sight of the model's mask.
    """

    revision: int
    key: str
    digest: str
    labels: np.ndarray
    done: tuple[int, ...]
    seconds: float
    listed: str = ""
    request: str = ""
    remarks: Remarks = field(default_factory=lambda: NO_REMARKS)
    blind: bool = False


class _Meta(TypedDict):
    revision: Count
    key: Text
    digest: Text
    done: list[Count]
    seconds: NonNegative
    listed: NotRequired[Text]
    request: NotRequired[Text]
    remarks: NotRequired[Remarks]
    blind: NotRequired[Boolean]


class _Changed(TypedDict):
    event: Text
    expert: Text
    case: Text
    revision: Count


class _Submitted(TypedDict):
    event: Text
    expert: Text
    case: Text
    record: dict[Text, Any]


class _PutAside(TypedDict):
    event: Text
    time: Text
    reason: Text
    kept_as: Annotated[str, Strict(), Field(pattern=r"^[0-9]+_[^/\\]+$")]


class _DamagedError(Exception):
    """A draft cannot be read; the message is the reason."""


class ReviewStore:
    """The folder of a review, used by one server at a time.

    Attributes:
        folder: The folder REVIEWS.
        log: The log of changes.
    """

    def __init__(self, folder: Path, file_ending: str) -> None:
        """Open the folder; creates it if necessary.

        Raises:
            InputError: If another server is using it, or its state is damaged beyond repair.
        """
        self.folder, self._ending = folder, file_ending
        self._draft_locks: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)
        self._reopened: defaultdict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
        self.hidden = folder / HIDDEN
        with refusals_named(folder, "written to"):
            folder.mkdir(parents=True, exist_ok=True)
            make_private_folder(self.hidden, folder)
            with suppress(PermissionError):  # of another owner, who has chosen
                self.hidden.chmod(0o700)
        self._lock = FileLock(self.hidden / "server.lock", timeout=0, mode=0o600)
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(f"{folder} is in use by another nnUNetv2_deferral_review") from None
        try:
            with refusals_named(folder, "written to"):
                self.log = AppendOnlyLog(self.hidden / "log.jsonl")
                self._records = self._recover()
                self._rules = self._rules_of_readings()
                self._write_index()
        except BaseException:
            self.close()
            raise

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
        """The saved answers; None if there are none. If the file is damaged, the previous revision is restored.

        Raises:
            InputError: If the file cannot be read, or neither it nor the previous revision is undamaged.
        """
        return self._find_draft(expert, case)[0]

    def _find_draft(self, expert: str, case: str) -> tuple[Draft | None, bool]:
        """The saved answers, and whether these are the previous revision, which was just restored."""
        file = self.draft_file(expert, case)
        try:
            return _read_draft(file), False
        except FileNotFoundError:
            return None, False
        except OSError as error:
            raise InputError(f"{file} cannot be read: {error.strerror}") from error
        except _DamagedError:
            pass
        with self._draft_locks[expert, case]:
            try:
                return _read_draft(file), False  # another thread has just restored it
            except _DamagedError as error:
                return self._restore(expert, case, str(error)), True

    def _restore(self, expert: str, case: str, reason: str) -> Draft:
        """Replace a damaged draft by the previous revision, and keep it aside."""
        file = self.draft_file(expert, case)
        previous = _previous(file)
        try:
            draft = _read_draft(previous)
        except (OSError, _DamagedError) as error:
            raise InputError(
                f"{file} is damaged ({reason}), and {previous.name}, the revision before it, is missing or damaged "
                f"too. Restore the file from a backup, or delete both: {expert} then starts {case} again"
            ) from error
        number = 1
        while (aside := file.with_name(f"{file.name}.damaged_{number}")).exists():
            number += 1

        def fill(target: Path) -> None:
            target.with_name(aside.name).write_bytes(file.read_bytes())
            target.write_bytes(previous.read_bytes())

        entry = {"revision": draft.revision, "reason": reason, "kept_as": aside.name}
        write_durably(file, fill, before=lambda: self._append("restored", expert, case, entry), private=True)
        logger.warning(
            "%s was damaged (%s): revision %d is restored; the damaged file is kept as %s",
            file,
            reason,
            draft.revision,
            aside.name,
        )
        return draft

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
            "request": draft.request,
            "remarks": draft.remarks,
            "blind": draft.blind,
        }
        entry = {
            "revision": draft.revision,
            "done": list(draft.done),
            "seconds": round(draft.seconds, 1),
            "runs": runs,
            "remarks": draft.remarks,
            "blind": draft.blind,
        }

        file = self.draft_file(expert, case)

        def fill(target: Path) -> None:
            with target.open("wb") as stream:
                np.savez_compressed(stream, labels=draft.labels, meta=np.array(json.dumps(meta)))
            _previous(target).write_bytes((file if file.is_file() else target).read_bytes())

        with self._draft_locks[expert, case]:
            make_private_folder(file.parent, self.hidden)
            write_durably(file, fill, before=lambda: self._append(event, expert, case, entry), private=True)

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
        if reopened := self.reopened(expert, case):
            entry["reopened"] = reopened
        write_durably(
            self.mask_file(expert, case),
            write,
            before=lambda: self._append("submitted", expert, case, {"record": entry}),
        )
        self._records[expert, case] = entry
        self._try_to_write_index()

    def reopen(self, expert: str, case: str, reason: str) -> None:
        """Keep a submitted mask aside, so that the expert can go on from their draft.

        Raises:
            OSError: If the disk is full or fails; nothing is changed then.
        """
        entry = {"time": _now(), "reason": reason}
        self._put_aside("reopened", expert, case, self.mask_file(expert, case), {"reason": reason})
        self._reopened[expert, case].append(entry)
        self._records.pop((expert, case), None)
        self._try_to_write_index()

    def set_aside(self, expert: str, case: str, reason: str) -> None:
        """Keep a draft aside, so that the person starts the case again; nothing happens if there is none.

        Raises:
            OSError: If the disk is full or fails; nothing is changed then.
        """
        file = self.draft_file(expert, case)
        if file.is_file():
            self._put_aside("set aside", expert, case, file, {"reason": reason})

    def reopened(self, expert: str, case: str) -> list[dict[str, str]]:
        """When and why (`time`, `reason`) a submitted case was reopened, in order."""
        return list(self._reopened.get((expert, case), ()))

    def begun(self) -> list[tuple[str, str]]:
        """The experts and cases with saved answers, submitted or not, sorted."""
        drafts = (self.hidden / "drafts").glob("*/*.npz")
        return sorted((file.parent.name, file.name.removesuffix(".npz")) for file in drafts)

    def submitted_cases(self, people: Iterable[str]) -> list[str]:
        """The cases of which somebody has submitted a mask, or another program has written one, sorted."""
        files = [file for name in people for file in (self.folder / name).glob(f"*{self._ending}")]
        return sorted({file.name.removesuffix(self._ending) for file in files if not file.name.startswith(".")})

    def has_answers(self) -> bool:
        """Whether anybody has saved or submitted something."""
        return any((self.hidden / "drafts").glob("*/*.npz")) or bool(self._records)

    def _put_aside(self, event: str, expert: str, case: str, file: Path, entry: Mapping[str, Any]) -> None:
        folder = self.hidden / "reopened" / expert
        make_private_folder(folder, self.hidden)
        number = 1 + max((int(path.name.partition("_")[0]) for path in folder.glob("[0-9]*_*")), default=0)
        draft = self.draft(expert, case) if event == "reopened" else None
        revision = draft.revision if draft else 0
        logged = {"revision": revision, "kept_as": f"{number}_{file.name}", **entry}
        self._append(event, expert, case, logged)
        try:
            _move_aside(file, folder / f"{number}_{file.name}")
        except OSError:
            self._append(f"not {event}", expert, case, {"revision": revision})
            raise

    def _try_to_write_index(self) -> None:
        try:
            self._write_index()
        except OSError as error:  # the masks are in place and logged, and the index follows from the log
            logger.warning("%s is out of date until the next submission or start: %s", REVIEW_NAME, error)

    def note_settled(self, case: str, regions: Sequence[Mapping[str, Any]]) -> None:
        """Log what became of the regions that two read.

        Raises:
            OSError: If the disk is full or fails.
        """
        self.log.append({"time": _now(), "event": "settled", "case": case, "regions": list(regions)})

    def _append(self, event: str, expert: str, case: str, entry: Mapping[str, Any]) -> None:
        self.log.append({"time": _now(), "event": event, "expert": expert, "case": case, **entry})

    def _recover(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The logged records of existing submitted masks; also completes or logs what a killed server began."""
        revisions: dict[tuple[str, str], int] = {}
        records = {}
        aside: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # by the kind of event
        before: dict[tuple[str, str], dict[str, Any] | None] = {}  # the records of reopened cases
        for number, entry in enumerate(self.log.entries(), start=1):
            if isinstance(entry, dict) and entry.get("event") == "settled":  # which follows from the masks
                continue
            kind = _Submitted if isinstance(entry, dict) and entry.get("event") == "submitted" else _Changed
            validate(entry, kind, f"{self.log.file}, line {number}")
            of = entry["expert"], entry["case"]
            if kind is _Submitted:
                records[of] = entry["record"]
                aside[of].pop("reopened", None)
                continue
            revisions[of] = entry["revision"]
            event = entry["event"]
            if event in ("reopened", "set aside"):
                validate(entry, _PutAside, f"{self.log.file}, line {number}")
                aside[of][event] = entry["kept_as"]
            elif event in ("not reopened", "not set aside"):
                aside[of].pop(event.removeprefix("not "), None)
            else:
                aside[of].pop("set aside", None)
            if event == "reopened":
                before[of] = records.pop(of, None)
                self._reopened[of].append({"time": entry["time"], "reason": entry["reason"]})
            elif event == "not reopened":
                del self._reopened[of][-1:]
                if (record := before.pop(of, None)) is not None:
                    records[of] = record
        for (expert, case), events in aside.items():
            files = {"reopened": self.mask_file(expert, case), "set aside": self.draft_file(expert, case)}
            for event, name in events.items():
                target = self.hidden / "reopened" / expert / name
                if files[event].is_file() and not target.exists():
                    _move_aside(files[event], target)
        for (expert, case), revision in revisions.items():
            draft, restored = self._find_draft(expert, case)
            kept = draft.revision if draft else 0
            if kept < revision and not restored:
                self._append("not kept", expert, case, {"revision": kept})
        return {of: record for of, record in records.items() if self.is_submitted(*of)}

    def _write_index(self) -> None:
        if (self.folder / FOLDER / RULES_NAME).is_file():  # else they are in the index, which is large
            self._rules = self._rules_of_readings()
        cases: dict[str, dict[str, Any]] = {}
        for (expert, case), record in sorted(self._records.items(), key=lambda item: item[0][::-1]):
            cases.setdefault(case, {})[expert] = record
        write_json_durably({**self._rules, "cases": cases}, self.folder / REVIEW_NAME)

    def _rules_of_readings(self) -> dict[str, Any]:
        """The rules of a review with two readers, also if one of the files that have them is damaged."""
        with suppress(InputError):
            rules = ReadingRules.of(self.folder)
            return {} if rules is None else {INDEX_KEY: vars(rules)}
        with suppress(InputError):
            return {key: value for key, value in read_json(self.folder / REVIEW_NAME).items() if key == INDEX_KEY}
        return {}


def _move_aside(file: Path, target: Path) -> None:
    """Move a file, and the revision before if it is a draft; on disk when this returns."""
    previous = _previous(file)
    if previous.is_file():
        previous.replace(_previous(target))
    file.replace(target)
    sync_folder(target.parent)
    sync_folder(file.parent)


def _previous(file: Path) -> Path:
    """The file with the revision before a draft's; the same revision if it is the first."""
    return file.with_name(f"{file.name}.previous")


def _read_draft(file: Path) -> Draft:
    """The draft in a file.

    Raises:
        OSError: If the file is missing, or the operating system cannot read it.
        _DamagedError: If its content is damaged.
    """
    content = file.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            labels, meta = arrays["labels"], json.loads(str(arrays["meta"]))
        validate(meta, _Meta, "its description")
        if labels.dtype != np.uint8 or labels.ndim != 1:
            raise _DamagedError(f"it has labels of type {labels.dtype} and shape {labels.shape}")
        return Draft(labels=labels, done=tuple(meta.pop("done")), **meta)
    except (_DamagedError, MemoryError):
        raise
    except Exception as error:  # zip files fail in many ways: struct.error, zlib.error, EOFError, BadZipFile, ...
        raise _DamagedError(str(error) or type(error).__name__) from error


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
