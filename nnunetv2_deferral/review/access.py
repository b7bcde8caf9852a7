"""Authentication: secret links, session cookies, and checks of every request.

Each expert and the coordinator have a link `http://127.0.0.1:PORT/#enter=SECRET`. Browsers do not send the part after
the # to servers, so the secret does not appear in logs or Referer headers. The page exchanges it once for an HttpOnly
cookie, which is derived from the secret and from which the link cannot be recovered. A link that has expired or was
revoked, and every session begun with it, is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from h11 import LocalProtocolError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.errors import InputError, refusals_named
from nnunetv2_deferral.files import write_json_durably
from nnunetv2_deferral.schema import Text, validate

FILE = "access.json"
_MOST_DAYS = 3650
_PORTS = {"http": 80, "https": 443}

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


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the page is reached.

    Attributes:
        port: The port on 127.0.0.1.
        public_url: The address under which a proxy on this machine serves it, such as
            `https://review.example.org/lung`; None without a proxy.

    Raises:
        InputError: If the public address is not one.
    """

    port: int
    public_url: str | None = None

    def __post_init__(self) -> None:
        _ = self._public

    @cached_property
    def _public(self) -> tuple[str, str, str] | None:
        """Scheme, host and path of the public address, as browsers state them: in lower case, no port of its scheme."""
        if self.public_url is None:
            return None
        refusal = f"{self.public_url!r} is not an address such as https://review.example.org/lung (--public_url)"
        try:
            parts = urlsplit(self.public_url.strip())
            port, name = parts.port, (parts.hostname or "").encode("idna").decode()
        except ValueError:  # also of names that are no host names
            raise InputError(refusal) from None
        if parts.scheme not in _PORTS or not name or parts.username is not None or parts.query or parts.fragment:
            raise InputError(refusal)
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*/?", parts.path):
            raise InputError(f"{refusal}: its path may have letters, digits and . _ ~ - only")
        host = f"[{name}]" if ":" in name else name
        if port is not None and port != _PORTS[parts.scheme]:
            host += f":{port}"
        return parts.scheme, host, parts.path.rstrip("/") + "/"

    @property
    def url(self) -> str:
        """The address that links begin with, with a slash at its end."""
        if self._public is None:
            return f"http://127.0.0.1:{self.port}/"
        scheme, host, path = self._public
        return f"{scheme}://{host}{path}"

    @property
    def origins(self) -> dict[str, str]:
        """The origin of the page's own requests by the Host that they state."""
        origins = {host: f"http://{host}" for host in (f"127.0.0.1:{self.port}", f"localhost:{self.port}")}
        if self._public is not None:
            scheme, host, _ = self._public
            origins[host] = f"{scheme}://{host}"
        return origins

    def of_cookie(self, host: str) -> tuple[str, bool]:
        """The path of a cookie for a browser that states this Host, and whether it is sent over https only."""
        if self._public is None or host.lower() != self._public[1]:
            return "/", False
        return self._public[2], self._public[0] == "https"


class Access:
    """The links of a review. They are stored and remain valid when the server is restarted, until they expire."""

    def __init__(
        self,
        folder: Path,
        people: Sequence[str],
        address: Address,
        *,
        valid_days: float | None = None,
        revoked: Sequence[str] = (),
    ) -> None:
        """Read the secrets from the hidden folder of a review, and create those that are missing or have expired.

        Args:
            folder: The hidden folder.
            people: The names of all who answer.
            address: Where the page is reached.
            valid_days: The number of days after which a link expires; None for links that do not.
            revoked: The names of people who get a new link in place of the one they have.

        Raises:
            InputError: If the file of secrets cannot be read or written, the days are out of range, or the link of
                somebody unknown is to be revoked.
        """
        if valid_days is not None and not 0 < valid_days <= _MOST_DAYS:
            raise InputError(f"links must be valid for more than 0 and at most {_MOST_DAYS} days, got {valid_days:g}")
        self.address = address
        self.cookie_name = f"review_{address.port}"  # browsers share the cookies of 127.0.0.1 among all ports
        everyone = [COORDINATOR, *(Person(name, name) for name in people)]
        names = [person.name for person in everyone]
        if strangers := [name for name in revoked if name not in names]:
            raise InputError(f"there is no link of {', '.join(strangers)} to revoke; links have {', '.join(names)}")
        file, now = folder / FILE, datetime.now(timezone.utc)
        known = _read_secrets(file)
        before = {"coordinator": known["coordinator"], **known["experts"]}
        self._expires = {name: datetime.fromisoformat(time) for name, time in known.get("expires", {}).items()}
        for name in names:
            if name in revoked or not before.get(name) or self._has_expired(name):
                before[name] = secrets.token_urlsafe(32)
                self._expires.pop(name, None)
            if valid_days is not None:
                end = now + timedelta(days=valid_days)
                self._expires[name] = min(end, self._expires.get(name, end))  # later starts do not extend a link
        self._secrets = [(person, before[person.name]) for person in everyone]
        content: dict[str, Any] = {
            "coordinator": before.pop("coordinator"),
            "experts": before,
        }
        if self._expires:
            content["expires"] = {name: time.isoformat() for name, time in sorted(self._expires.items())}
        if content != known:
            with refusals_named(file, "written"):
                write_json_durably(content, file, private=True)

    def links(self) -> list[tuple[Person, str]]:
        """The link of each person."""
        return [(person, f"{self.address.url}#enter={secret}") for person, secret in self._secrets]

    def expires(self, person: Person) -> datetime | None:
        """When a person's link expires; None if it does not."""
        return self._expires.get(person.name)

    def enter(self, secret: str) -> tuple[Person, str] | None:
        """The person with this secret and the value of their cookie; None for an unknown secret, or an expired one."""
        matches = [person for person, known in self._secrets if _same(known, secret)]
        return (matches[0], _cookie(secret)) if matches and not self._has_expired(matches[0].name) else None

    def _has_expired(self, name: str) -> bool:
        return name in self._expires and self._expires[name] <= datetime.now(timezone.utc)

    def person(self, cookie_header: str) -> Person | None:
        """The person identified by a Cookie header; None if there is none, or their link has expired."""
        try:
            morsel = SimpleCookie(cookie_header).get(self.cookie_name)
        except CookieError:
            return None
        matches = [person for person, known in self._secrets if morsel and _same(_cookie(known), morsel.value)]
        return matches[0] if matches and not self._has_expired(matches[0].name) else None


class Guard:
    """Middleware that accepts only requests from the page itself, and sets the headers of every response.

    The Host header must be one of the page's own, which prevents DNS rebinding. Requests that change something must
    have the page's own Origin, so that other pages cannot send them, including pages served from other ports of this
    machine, to which SameSite cookies are sent.
    """

    def __init__(self, app: ASGIApp, address: Address) -> None:
        self._app, self._origins = app, address.origins

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

        reason = self._fault(scope["method"], scope["path"], Headers(scope=scope))
        app = JSONResponse({"reason": reason}, status_code=403) if reason else self._app
        await app(scope, receive, send_with_headers)

    def _fault(self, method: str, path: str, headers: Headers) -> str:
        host = headers.get("host", "").lower()
        if host not in self._origins:
            return "This server can only be reached under its own address."
        # A personal link may be clicked on another page, such as that of a mail; the page itself has no data.
        is_page = method in ("GET", "HEAD") and path == "/"
        if not is_page and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "This request comes from another page."
        if method not in ("GET", "HEAD") and headers.get("origin") != self._origins[host]:
            return "This request comes from another page."
        return ""


class _Secrets(TypedDict):
    coordinator: Text
    experts: dict[Text, Text]
    expires: NotRequired[dict[Text, Text]]


def _read_secrets(file: Path) -> _Secrets:
    """The secrets in a file; none if it does not exist. Errors show nothing of its content."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        validate(content, _Secrets, str(file))
        for time in content.get("expires", {}).values():
            if datetime.fromisoformat(time).tzinfo is None:
                raise ValueError("a time without zone")
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
