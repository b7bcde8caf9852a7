"""Who is asking: secret links, session cookies, and the checks that every request passes.

Each expert and the coordinator has one link, `http://127.0.0.1:PORT/#enter=SECRET`. What follows the # never leaves
the browser by itself, so the secret is in no log and no Referer; the page exchanges it once for a cookie that scripts
cannot read. The cookie is derived from the secret and cannot be turned back into the link.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json_durably

FILE = "access.json"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Person:
    """Someone with a link.

    Attributes:
        name: Shown on the page, and compared with what the page believes.
        expert: The expert's name, or None for the coordinator.
    """

    name: str
    expert: str | None


COORDINATOR = Person("coordinator", None)


class Access:
    """The links of a review. They are kept, so that they work again when the server is started again."""

    def __init__(self, folder: Path, experts: Sequence[str], port: int) -> None:
        """Read the secrets from the hidden folder of a review, making those that are missing.

        Raises:
            InputError: If the file of secrets cannot be read.
        """
        self.cookie_name = f"review_{port}"  # cookies of 127.0.0.1 are shared by all ports
        people = [COORDINATOR, *(Person(expert, expert) for expert in experts)]
        file = folder / FILE
        known: dict[str, Any] = {"coordinator": "", "experts": {}}
        try:
            known |= json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            found = [str(known["coordinator"]), *(str(known["experts"].get(expert, "")) for expert in experts)]
        except (OSError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{file} cannot be read: {error!r}; without it, new links are made") from error
        filled = [secret or secrets.token_urlsafe(32) for secret in found]
        if filled != found:
            kept = known["experts"] | dict(zip(experts, filled[1:], strict=True))
            write_json_durably({"coordinator": filled[0], "experts": kept}, file, private=True)
        self._secrets = list(zip(people, filled, strict=True))

    def links(self, origin: str) -> list[tuple[Person, str]]:
        """Everyone's link."""
        return [(person, f"{origin}/#enter={secret}") for person, secret in self._secrets]

    def enter(self, secret: str) -> tuple[Person, str] | None:
        """Whose secret it is, and the value of the cookie; None for an unknown secret."""
        matches = [person for person, known in self._secrets if _same(known, secret)]
        return (matches[0], _cookie(secret)) if matches else None

    def person(self, cookie_header: str) -> Person | None:
        """Who sent a Cookie header; None if nobody known."""
        try:
            morsel = SimpleCookie(cookie_header).get(self.cookie_name)
        except CookieError:
            return None
        matches = [person for person, known in self._secrets if morsel and _same(_cookie(known), morsel.value)]
        return matches[0] if matches else None


class Guard:
    """Middleware that lets only requests of the page itself through, and sets the headers of every answer.

    The Host header must be one of ours, so that no foreign name can be pointed at this machine (DNS rebinding); a
    request that changes something must come from a page of ours (Origin), so that no other page can send it, not even
    one served by another port of this machine, for which SameSite cookies are no barrier.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        reason = self._fault(scope["method"], Headers(scope=scope))
        app = JSONResponse({"reason": reason}, status_code=403) if reason else self._app
        await app(scope, receive, send_with_headers)

    def _fault(self, method: str, headers: Headers) -> str:
        host = headers.get("host", "")
        if host not in self._hosts:
            return "This server answers under its own address only."
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "This request comes from another page."
        if method not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return "This request comes from another page."
        return ""


def _same(first: str, second: str) -> bool:
    return hmac.compare_digest(first.encode(), second.encode())


def _cookie(secret: str) -> str:
    return hmac.new(secret.encode(), b"nnunetv2-deferral review session", hashlib.sha256).hexdigest()
