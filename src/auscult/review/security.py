"""Who may ask the review server what: an ASGI layer in front of it that trusts nothing that a browser was talked into.

A local server can be reached by every page that the same browser has open. So a request must name a host that is meant
(DNS rebinding), must not come from another site, and what changes something must come from our own page, as JSON. A
server that others can reach demands a token on top. Every response, errors included, forbids the browser to run or
load anything but our own files.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
ANY_ADDRESS = "*"  # of allowed hosts: any IP address, but no name, since rebinding needs a name
MAX_BODY = 64 * 1024  # bytes: a note fits, a flood does not
MAX_BODIES = {"/api/clusters": 1024 * 1024}  # the clips of a cluster by name, twice: several thousand
BODY_S = 10.0  # a body takes at most
COOKIE = "auscult_review"

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "media-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
SAFE_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class Refusal:
    """Why a request is not answered: an HTTP ``status`` and what the asker can do about it."""

    status: int
    reason: str


class Guard:
    """The ASGI application ``app`` behind the rules of this module.

    Parameters
    ----------
    app
        What answers the requests that pass.
    allowed_hosts
        Values of the ``Host`` header that are meant, ``NAME`` (any port) or ``NAME:PORT``; ``*`` as the name stands for any
        IP address.
    token
        Secret without which nothing is answered; ``/?token=SECRET`` exchanges it for a cookie. None: no token is demanded.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: Iterable[str] = LOOPBACK, token: str | None = None) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, with the safe headers whatever the answer is."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = header_map(scope)
        begun = False

        async def safe_send(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": _with_safe_headers(message.get("headers", ()))}
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is None and self._token is not None:
            given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [None])[0]
            if given is not None and scope["path"] == "/" and _same(given, self._token):
                await _respond(safe_send, 303, "", {"location": "/", "set-cookie": self._cookie(headers)})
                return
            if not _same(_cookie_of(headers, cookie_name(headers)), self._token):
                refusal = Refusal(401, "a token is wanted: open the address that `auscult review` printed, with its ?token=")
        if refusal is None and scope["method"] not in {"GET", "HEAD"}:
            body, refusal = await _small_body(headers, receive, MAX_BODIES.get(scope["path"], MAX_BODY))
            receive = _replay(body, receive)
        if refusal is not None:
            await _respond(
                safe_send, refusal.status, refusal.reason, {"connection": "close"} if refusal.status == 408 else None
            )
            return
        try:
            await self._app(scope, receive, safe_send)
        except Exception:
            if not begun:  # or the server above us would answer, without the headers
                await _respond(safe_send, 500, "the review server failed; what it printed says why")
            raise

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Refusal | None:
        """Why the request line and headers alone are refused, cheapest first; None if they are not."""
        host = headers.get("host", "").lower()
        if not host_allowed(host, self._hosts):
            return Refusal(421, f"this server does not answer for that host; it answers for {', '.join(sorted(self._hosts))}")
        site = headers.get("sec-fetch-site", "none")
        if site == "cross-site" or (site == "same-site" and headers.get("sec-fetch-mode") != "navigate"):
            return Refusal(403, "another site asked for this; type or paste the address into the browser instead")
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}":
            return Refusal(403, "another origin asked for this")
        method = scope["method"]
        if method in {"GET", "HEAD"}:
            return None
        if method != "POST":
            return Refusal(405, "only GET, HEAD and POST are answered")
        if origin is None:
            return Refusal(403, f"a POST needs the header Origin: http://{host}")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return Refusal(415, "a POST needs Content-Type: application/json")
        return None

    def _cookie(self, headers: dict[str, str]) -> str:
        return f"{cookie_name(headers)}={self._token}; Path=/; HttpOnly; SameSite=Strict"


def host_allowed(host: str, allowed: frozenset[str]) -> bool:
    """Whether the ``Host`` header ``host`` (lower case) is among those ``allowed`` (see :class:`Guard`).

    >>> host_allowed("127.0.0.1:8765", frozenset({"127.0.0.1:8765"}))
    True
    >>> host_allowed("rebound.example:8765", frozenset({"127.0.0.1", "*:8765"}))
    False
    >>> host_allowed("10.0.0.7:8765", frozenset({"*:8765"})), host_allowed("[::1]:8765", frozenset({"[::1]"}))
    (True, True)
    """
    name, port = split_host(host)
    names = {name} | ({ANY_ADDRESS} if _is_address(name) else set())
    return name not in {"", ANY_ADDRESS} and not allowed.isdisjoint(names | {f"{one}:{port or '80'}" for one in names})


def split_host(host: str) -> tuple[str, str]:
    """``NAME[:PORT]`` as its name and its port (empty if there is none); IPv6 addresses keep their brackets."""
    if host.startswith("["):
        name, bracket, rest = host.partition("]")
        return name + bracket, rest.removeprefix(":")
    name, _, port = host.partition(":")
    return name, port


def header_map(scope: Scope) -> dict[str, str]:
    """Headers by lower-case name; one that comes twice (``Host``, say) joins its values, so that neither passes."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        separator = "; " if name == "cookie" else ", "
        headers[name] = f"{headers[name]}{separator}{value}" if name in headers else value
    return headers


def cookie_name(headers: MutableMapping[str, str]) -> str:
    """Name of the token's cookie. Browsers share cookies between the ports of a host, so it holds the port."""
    port = split_host(headers.get("host", ""))[1]
    return f"{COOKIE}_{port if port.isdigit() else '80'}"


def _cookie_of(headers: dict[str, str], name: str) -> str:
    """The value of a cookie, the last of several; whatever the other cookies of this host look like."""
    pairs = (pair.partition("=") for pair in headers.get("cookie", "").split(";"))
    return dict[str, str]((key.strip(), value.strip()) for key, _, value in pairs).get(name, "")


def _same(given: str, wanted: str) -> bool:
    """Equality in a time that does not tell how much of ``given`` is right."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode("utf-8"))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _with_safe_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    own = {name.encode(): value.encode() for name, value in SAFE_HEADERS.items()}
    return [(name, value) for name, value in headers if name.lower() not in own] + list(own.items())


async def _small_body(headers: dict[str, str], receive: Receive, limit: int) -> tuple[bytes, Refusal | None]:
    """The whole body if it is small and soon here; counted, since what a client says of its length need not be true."""
    stated = headers.get("content-length", "0")
    if stated.isdigit() and int(stated) > limit:
        return b"", _too_large(limit)
    try:
        async with asyncio.timeout(BODY_S):
            return await _counted_body(receive, limit)
    except TimeoutError:
        return b"", Refusal(408, "the request took too long to arrive")


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"a body may have {limit:,} bytes")


async def _counted_body(receive: Receive, limit: int) -> tuple[bytes, Refusal | None]:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"", Refusal(400, "the request ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return b"", _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts), None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that hands out a body that was already read, then goes on as before."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _respond(send: Any, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    content = json.dumps({"error": text}).encode() if text else b""
    own = {"content-type": "application/json", "content-length": str(len(content)), "cache-control": "no-store"}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in {**own, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
