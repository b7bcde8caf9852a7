"""A log of requests: one JSON object per line, without anything that may identify a patient."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nnunetv2_deferral.errors import InputError, refusals_named
from nnunetv2_deferral.review.access import Access

logger = logging.getLogger(__name__)


class AccessLog:
    """Middleware that appends one line for each request to a file.

    A line has the `time`, the `client` address, the `person` (None without a session), the `method`, the `route`
    (`/api/cases/{case}/save`, never the name of a case, which may be a patient's), the `status` and the `milliseconds`.
    The file is opened for each line, so that it can be moved away at any time.
    """

    def __init__(self, app: ASGIApp, file: Path, access: Access, routes: Sequence[BaseRoute]) -> None:
        self._app, self._file, self._access = app, file, access
        self._paths = {route.endpoint: route.path for route in routes if isinstance(route, Route)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = 500, time.monotonic()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            person = self._access.person(Headers(scope=scope).get("cookie", ""))
            line = {
                "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                "client": (scope.get("client") or [None])[0],
                "person": None if person is None else person.name,
                "method": scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other",
                "route": self._paths.get(scope["endpoint"], "other") if "endpoint" in scope else "other",
                "status": status,
                "milliseconds": round(1000 * (time.monotonic() - begun), 1),
            }
            try:
                append_line(self._file, json.dumps(line) + "\n")
            except InputError as error:  # of a full disk, which must not keep anybody from their answers
                logger.warning("%s", error)


def append_line(file: Path, line: str = "") -> None:
    """Append a line to a file, which is made if necessary; without a line, find out whether that is possible.

    Raises:
        InputError: If it cannot be written to.
    """
    with refusals_named(file, "written to"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(line)
