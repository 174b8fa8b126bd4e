"""Where the review server listens: on this machine only, or where it is told to, and then with a token."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from dataclasses import dataclass

from ..errors import AuscultError
from .security import ANY_ADDRESS, LOOPBACK

PORT = 8765
WILDCARDS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Listening:
    """A bound socket, and how it is reached: the ``url`` to open (with the token) and the hosts that mean it."""

    socket: socket.socket
    url: str
    allowed_hosts: tuple[str, ...]
    token: str | None


def listen(host: str | None = None, port: int = PORT) -> Listening:
    """Bind to this machine only; to ``host``, if one is given, and then with a token.

    Raises
    ------
    AuscultError
        The port is taken, or the host is none of this machine's.
    """
    name = host or "127.0.0.1"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AuscultError(f"{name}: is no address of this machine ({error.strerror or error})") from error
    try:
        if os.name == "posix":  # elsewhere the option lets two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise AuscultError(
                f"port {port} is taken, perhaps by another `auscult review`; give --port 0 for any free one"
            ) from error
        raise AuscultError(f"cannot listen on {name}, port {port} ({error.strerror or error})") from error
    port = bound.getsockname()[1]
    wildcard = name in WILDCARDS
    names = [*LOOPBACK, *([] if host is None else [socket.gethostname(), ANY_ADDRESS] if wildcard else [bracketed(host)])]
    token = None if host is None else secrets.token_urlsafe(24)
    shown = socket.gethostname() if wildcard else bracketed(name)
    url = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
    return Listening(bound, url, tuple(f"{one.lower()}:{port}" for one in names), token)


def bracketed(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
