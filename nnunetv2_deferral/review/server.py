"""The server of the review page: Starlette on 127.0.0.1, alone or behind a proxy on the same machine.

Concurrency. There is one process with one event loop; `ReviewStore` locks the folder, so that no second server can
write to it. Requests are read on the event loop and processed in Starlette's threads. Changes of one expert's answers
to one case are made under a separate lock and state the revision that they are based on: of two tabs, the second to
save is refused. Reading requires no lock, because files are replaced by renaming. The log has one lock.

Limits. A save may have 48 bytes per voxel asked about, at most 32 MiB, and an upload 256 MiB, both with an exact
Content-Length. The most recently used cases are kept in memory. There are no WebSockets, no cookies other than the
session's, and no requests to other machines.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import logging
import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.review.access import Access, Guard, Person
from nnunetv2_deferral.review.access_log import AccessLog, append_line
from nnunetv2_deferral.review.edits import RefusedError, is_count
from nnunetv2_deferral.review.remarks import MAX_COMMENT, MAX_FLAGS
from nnunetv2_deferral.review.service import Review

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
MAX_PORT = 65535
MAX_SAVE_BYTES = 32 * 2**20
MAX_UPLOAD_BYTES = 256 * 2**20
PERSON_HEADER = "x-review-person"
"""The person whom the page acts for, stated in each request, in case another link is opened in the same browser."""


def create_app(review: Review, access: Access, log: Path | None = None) -> Starlette:
    """The application, which can only be reached under the addresses of `access`; `log` as by :class:`.AccessLog`.

    Raises:
        InputError: If the log cannot be written to.
    """
    handlers = _Handlers(review, access)
    case = "/api/cases/{case}"
    routes = [
        Route("/", handlers.page),
        Route("/health", handlers.health),
        Route("/api/enter", handlers.enter, methods=["POST"]),
        Route("/api/me", handlers.me),
        Route("/api/cases", handlers.cases),
        Route("/api/progress", handlers.progress),
        Route("/api/totals", handlers.totals),
        Route(case, handlers.details),
        Route(f"{case}/volumes/{{which}}", handlers.volume),
        Route(f"{case}/result", handlers.result),
        Route(f"{case}/download/{{what}}", handlers.download),
        Route(f"{case}/save", handlers.save, methods=["POST"]),
        Route(f"{case}/upload", handlers.upload, methods=["POST"]),
        Route(f"{case}/submit", handlers.submit, methods=["POST"]),
        Route(f"{case}/reopen", handlers.reopen, methods=["POST"]),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    middleware = [Middleware(Guard, address=access.address)]
    if log is not None:
        append_line(log)  # before the first request
        middleware.insert(0, Middleware(AccessLog, file=log, access=access, routes=routes))
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            RefusedError: _refuse,
            OSError: _disk_failed,
            InputError: _unreadable,
            HTTPException: _not_found,
        },
    )


def listen(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; from now on no other program gets the port.

    Raises:
        InputError: If the port is not from 1 to 65535, is in use, or may not be used.
    """
    if not 1 <= port <= MAX_PORT:
        raise InputError(f"the port must be from 1 to {MAX_PORT}, got {port} (--port)")
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        reason = "is in use by another program" if error.errno == errno.EADDRINUSE else f"failed: {error.strerror}"
        raise InputError(f"port {port} on 127.0.0.1 {reason}; choose another one (--port)") from error


def serve(
    app: Starlette,
    listening: socket.socket,
    meanwhile: Callable[[Callable[[], bool]], None],
    *,
    proxy: str | None = None,
) -> None:
    """Serve on a socket of :func:`listen` until interrupted, or until what is done meanwhile fails.

    Args:
        app: The application.
        listening: The socket.
        meanwhile: Called in another thread with a function that tells whether the server still runs.
        proxy: The address of a proxy, whose X-Forwarded-For is believed; None to believe nobody's.

    Raises:
        InputError: The one of `meanwhile`.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=proxy is not None,
        forwarded_allow_ips=proxy or "",
        http="h11",
        ws="none",
    )
    server, failed = uvicorn.Server(config), []

    def work() -> None:
        try:
            meanwhile(lambda: not server.should_exit)
        except Exception as error:  # raised below, in the thread of the caller
            failed.append(error)
            server.should_exit = True

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    with suppress(KeyboardInterrupt):  # which uvicorn raises again once it has shut down
        server.run(sockets=[listening])
    server.should_exit = True
    thread.join()
    if failed:
        raise failed[0]


class _Handlers:
    """The request handlers, one method per route."""

    def __init__(self, review: Review, access: Access) -> None:
        self._review, self._access = review, access

    async def page(self, request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def health(self, request: Request) -> Response:
        """For monitoring, without a link: that the server answers, and how many cases it has read."""
        return JSONResponse({"status": "ok", **self._review.progress()})

    async def enter(self, request: Request) -> Response:
        content = _parse_json(await _read_body(request, 4096))
        entered = self._access.enter(content["secret"]) if isinstance(content.get("secret"), str) else None
        if entered is None:
            raise RefusedError(403, "This link is not valid or has expired. Ask for a new one.")
        person, cookie = entered
        response = JSONResponse(self._introduce(person))
        path, secure = self._access.address.of_cookie(request.headers["host"])
        response.set_cookie(
            self._access.cookie_name, cookie, httponly=True, samesite="strict", path=path, secure=secure
        )
        return response

    async def me(self, request: Request) -> Response:
        return JSONResponse(self._introduce(self._person(request, named=False)))

    def _introduce(self, person: Person) -> dict[str, Any]:
        role = "coordinator" if person.expert is None else "expert"
        return {
            "name": person.name,
            "role": role,
            "gain_unit": self._review.study.predictions.gain_unit,
            "limits": {"flags": MAX_FLAGS, "comment": MAX_COMMENT},
        }

    async def cases(self, request: Request) -> Response:
        return await self._answer(self._review.listing, self._person(request))

    async def progress(self, request: Request) -> Response:
        self._person(request)
        return JSONResponse(self._review.progress())

    async def totals(self, request: Request) -> Response:
        return await self._answer(self._review.totals, self._person(request))

    async def details(self, request: Request) -> Response:
        return await self._answer(self._review.details, self._person(request), request.path_params["case"])

    async def result(self, request: Request) -> Response:
        return await self._answer(self._review.result, self._person(request), request.path_params["case"])

    async def volume(self, request: Request) -> Response:
        person, case, which = self._person(request), request.path_params["case"], request.path_params["which"]

        def pack() -> tuple[bytes, dict[str, str]]:
            content = self._review.volume(person, case, which).tobytes()
            if which.startswith("image"):
                return content, {}
            return gzip.compress(content, compresslevel=1), {"Content-Encoding": "gzip"}

        content, headers = await run_in_threadpool(pack)
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def download(self, request: Request) -> Response:
        # Downloads are links, which cannot send the header; the cookie and the case are still checked.
        person = self._person(request, named=False)
        case, what = request.path_params["case"], request.path_params["what"]
        name = f"{case}_{what}{self._review.study.predictions.files.file_ending}"

        def write() -> bytes:
            with tempfile.TemporaryDirectory(prefix="review_download_") as folder:
                file = Path(folder) / f"mask{self._review.study.predictions.files.file_ending}"
                self._review.write_download(person, case, what, file)
                return file.read_bytes()

        content = await run_in_threadpool(write)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def save(self, request: Request) -> Response:
        person = self._person(request)
        case = request.path_params["case"]
        limit = await run_in_threadpool(self._review.max_save_bytes, person, case)
        body = await _read_body(request, min(limit, MAX_SAVE_BYTES))
        return await self._answer(lambda: self._review.save(person, case, _parse_json(body)))

    async def upload(self, request: Request) -> Response:
        person = self._person(request)
        revision, key, file_name = (request.query_params.get(name, "") for name in ("revision", "key", "name"))
        based_on = _parse_count(revision)
        if based_on is None:
            raise RefusedError(400, "revision must be a whole number.")
        body = await _read_body(request, MAX_UPLOAD_BYTES)
        if hashlib.sha256(body).hexdigest() != request.headers.get("x-content-sha256", ""):
            raise RefusedError(400, "The file was damaged in transfer. Try again.")
        case = request.path_params["case"]
        return await self._answer(self._review.upload, person, case, based_on, key[:64], file_name, body)

    async def submit(self, request: Request) -> Response:
        person = self._person(request)
        revision = _parse_json(await _read_body(request, 4096)).get("revision")
        if not is_count(revision):
            raise RefusedError(400, "revision must be a whole number.")
        return await self._answer(self._review.submit, person, request.path_params["case"], revision)

    async def reopen(self, request: Request) -> Response:
        person = self._person(request)
        content = _parse_json(await _read_body(request, 4096))
        expert, reason = content.get("expert"), content.get("reason")
        if not isinstance(expert, str) or not isinstance(reason, str):
            raise RefusedError(400, "expert and reason must be strings.")
        return await self._answer(self._review.reopen, person, request.path_params["case"], expert, reason)

    def _person(self, request: Request, *, named: bool = True) -> Person:
        person = self._access.person(request.headers.get("cookie", ""))
        if person is None:
            raise RefusedError(401, "Open your personal link. If it has expired, ask for a new one.")
        if named and unquote(request.headers.get(PERSON_HEADER, "")) != person.name:
            raise RefusedError(
                409, f"This browser is now signed in as {person.name}. Reload to continue as {person.name}."
            )
        return person

    async def _answer(self, work: Callable[..., Any], *arguments: Any) -> Response:
        return JSONResponse(await run_in_threadpool(work, *arguments))


async def _read_body(request: Request, limit: int) -> bytes:
    """Read the body of a request.

    Raises:
        RefusedError: If there is no Content-Length, it exceeds the limit, it differs from the length of the body, or
            there is a Transfer-Encoding beside it.
    """
    content_length = request.headers.get("content-length")
    if content_length is None:
        raise RefusedError(411, "The request has no Content-Length.")
    if "transfer-encoding" in request.headers:
        raise RefusedError(400, "The request has both a Content-Length and a Transfer-Encoding.")
    announced = _parse_count(content_length)
    if announced is None:
        raise RefusedError(400, "Content-Length must be a whole number.")
    if announced > limit:
        raise RefusedError(413, f"The request has {announced} bytes; at most {limit} are allowed.")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > announced:
                break
    except ClientDisconnect:
        raise RefusedError(400, "The request is incomplete.") from None
    if len(body) != announced:
        raise RefusedError(400, f"The request has {len(body)} bytes, but its Content-Length is {announced}.")
    return bytes(body)


def _parse_count(text: str) -> int | None:
    """A whole number of a header or query; None if it is not one or has more digits than any that is needed."""
    return int(text) if len(text) <= 15 and text.isascii() and text.isdigit() else None


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise RefusedError(400, "The request is not JSON.") from None
    except ValueError:  # Python converts no integers of more than 4,300 digits
        raise RefusedError(400, "The request contains a number that is too long.") from None
    if not isinstance(content, dict):
        raise RefusedError(400, "The request is not a JSON object.")
    return content


async def _refuse(_: Request, error: Exception) -> Response:
    status, reason = (error.status, error.reason) if isinstance(error, RefusedError) else (500, str(error))
    return JSONResponse({"reason": reason}, status_code=status)


async def _not_found(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"reason": "Not found."}, status_code=status)


async def _unreadable(_: Request, error: Exception) -> Response:
    logger.error("%s", error)
    return JSONResponse({"reason": f"A file of this review cannot be used: {error}"}, status_code=500)


async def _disk_failed(_: Request, error: Exception) -> Response:
    logger.error("Not saved: %s", error)
    cause = getattr(error, "strerror", None) or "the disk failed"
    reason = f"Nothing was saved: {cause}. Free some disk space, then continue."
    return JSONResponse({"reason": reason}, status_code=507)
