"""Authentication: secret links, session cookies, and checks of every request.

Each expert and the coordinator have a link `http://127.0.0.1:PORT/#enter=SECRET`. Browsers do not send the part after
the # to servers, so the secret does not appear in logs or Referer headers. The page exchanges it once for an HttpOnly
cookie, which is derived from the secret and from which the link cannot be recovered.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import cast

from h11 import LocalProtocolError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import TypedDict

from nnunetv2_deferral.errors import InputError, refusals_named
from nnunetv2_deferral.files import write_json_durably
from nnunetv2_deferral.schema import Text, validate

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
    """A person with a link.

    Attributes:
        name: The displayed name, which requests must state.
        expert: The expert's name; None for the coordinator.
    """

    name: str
    expert: str | None


COORDINATOR = Person("coordinator", None)


class Access:
    """The links of a review. They are stored and remain valid when the server is restarted."""

    def __init__(self, folder: Path, experts: Sequence[str], port: int) -> None:
        """Read the secrets from the hidden folder of a review, and create missing ones.

        Raises:
            InputError: If the file of secrets cannot be read or written.
        """
        self.cookie_name = f"review_{port}"  # browsers share the cookies of 127.0.0.1 among all ports
        people = [COORDINATOR, *(Person(expert, expert) for expert in experts)]
        file = folder / FILE
        known = _read_secrets(file)
        found = [known["coordinator"], *(known["experts"].get(expert, "") for expert in experts)]
        filled = [secret or secrets.token_urlsafe(32) for secret in found]
        if filled != found:
            kept = known["experts"] | dict(zip(experts, filled[1:], strict=True))
            with refusals_named(file, "written"):
                write_json_durably({"coordinator": filled[0], "experts": kept}, file, private=True)
        self._secrets = list(zip(people, filled, strict=True))

    def links(self, origin: str) -> list[tuple[Person, str]]:
        """The link of each person."""
        return [(person, f"{origin}/#enter={secret}") for person, secret in self._secrets]

    def enter(self, secret: str) -> tuple[Person, str] | None:
        """The person with this secret and the value of their cookie; None for an unknown secret."""
        matches = [person for person, known in self._secrets if _same(known, secret)]
        return (matches[0], _cookie(secret)) if matches else None

    def person(self, cookie_header: str) -> Person | None:
        """The person identified by a Cookie header; None if there is none."""
        try:
            morsel = SimpleCookie(cookie_header).get(self.cookie_name)
        except CookieError:
            return None
        matches = [person for person, known in self._secrets if morsel and _same(_cookie(known), morsel.value)]
        return matches[0] if matches else None


class Guard:
    """Middleware that accepts only requests from the page itself, and sets the headers of every response.

    The Host header must be one of the server's own, which prevents DNS rebinding. Requests that change something must
    have the page's own Origin, so that other pages cannot send them, including pages served from other ports of this
    machine, to which SameSite cookies are sent.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            # The body was malformed, so that uvicorn has already answered 400 and closed the connection.
            with suppress(LocalProtocolError):
                await send(message)

        reason = self._fault(scope["method"], Headers(scope=scope))
        app = JSONResponse({"reason": reason}, status_code=403) if reason else self._app
        await app(scope, receive, send_with_headers)

    def _fault(self, method: str, headers: Headers) -> str:
        host = headers.get("host", "")
        if host not in self._hosts:
            return "This server can only be reached under its own address."
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "This request comes from another page."
        if method not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return "This request comes from another page."
        return ""


class _Secrets(TypedDict):
    coordinator: Text
    experts: dict[Text, Text]


def _read_secrets(file: Path) -> _Secrets:
    """The secrets in a file; none if it does not exist. Errors show nothing of its content."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        validate(content, _Secrets, str(file))
        return cast(_Secrets, content)
    except FileNotFoundError:
        return {"coordinator": "", "experts": {}}
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{file} is damaged; delete it to create new links") from None


def _same(first: str, second: str) -> bool:
    return hmac.compare_digest(first.encode(), second.encode())


def _cookie(secret: str) -> str:
    return hmac.new(secret.encode(), b"nnunetv2-deferral review session", hashlib.sha256).hexdigest()
