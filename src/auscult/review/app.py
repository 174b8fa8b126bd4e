"""The review server: routes, ranges of bytes, and a start that says where it listens.

Nothing in an address is ever a path: pairs and clips are asked for by names made of digests, files of the page by names
that were listed at the start. What decodes or waits for the disk runs in threads, so that the others are answered meanwhile.
"""

from __future__ import annotations

import errno
import getpass
import hashlib
import json
import logging
import mimetypes
import os
import re
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from ..errors import AudioDecodeError, AuscultError, StoreError
from .desk import ROLES, Desk, NotHereError, Role
from .media import ClipAudio, close_files
from .security import ANY_ADDRESS, LOOPBACK, Guard

STATIC = Path(__file__).parent / "static"
PORT = 8765
CHUNK = 1 << 18  # bytes decoded and sent at once
DECODING_THREADS = max(4, os.cpu_count() or 1)  # of the 40 that Starlette has: sounds never keep a verdict waiting
WILDCARDS = ("0.0.0.0", "::")
ID = "{name:str}"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)

T = TypeVar("T")

logger = logging.getLogger(__name__)


def create_app(
    folder: str | Path,
    *,
    reviewer: str | None = None,
    blind: bool = False,
    order: str = "score",
    controls: int = 0,
    sample: int = 0,
    seed: int = 0,
    unreviewed: bool = True,
    token: str | None = None,
    allowed_hosts: Iterable[str] = LOOPBACK,
) -> Starlette:
    """The review of an audit or a deduplication as an ASGI application.

    Parameters
    ----------
    folder
        Of the audit or the deduplication; verdicts go to ``review.db`` there.
    reviewer
        Who reviews where the page does not say; the login name by default.
    blind
        Keep scores, p-values, flags, ranks, paths and clip ids on the server, and make every order random.
    order
        Of the queue: ``score``, ``uncertain`` (around tau first) or ``random``.
    controls
        Control pairs to make in ``folder/controls`` and mix in; 0 for none.
    sample
        Unflagged clips to draw for an estimate; 0 for the sample drawn last, if there is one.
    seed
        Of all that is random.
    unreviewed
        Whether the page should begin with what its reviewer has not decided.
    token, allowed_hosts
        As :class:`~auscult.review.security.Guard` takes them.

    Raises
    ------
    StoreError
        The folder is neither, or lists nothing to review.
    ValueError
        An argument is out of range.
    """
    desk = Desk(
        Path(folder),
        reviewer=login_name() if reviewer is None else reviewer,
        blind=blind,
        order=order,
        controls=controls,
        sample=sample,
        seed=seed,
        unreviewed=unreviewed,
    )
    files = page_files(STATIC)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=desk.warm, daemon=True).start()
        yield
        await run_in_threadpool(desk.close)
        close_files()

    app = Starlette(
        routes=_routes(desk, files),
        middleware=[Middleware(Guard, allowed_hosts=tuple(allowed_hosts), token=token)],
        exception_handlers={
            HTTPException: _failed,
            NotHereError: _failed,
            AudioDecodeError: _failed,
            StoreError: _failed,
            OSError: _failed,
        },
        lifespan=lifespan,
    )
    app.state.desk = desk
    app.state.decoding = anyio.CapacityLimiter(DECODING_THREADS)
    return app


def login_name() -> str:
    """Name of who runs this, as far as the system tells."""
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "reviewer"


# --- routes ---------------------------------------------------------------------------------------------------------


def _routes(desk: Desk, files: dict[str, PageFile]) -> list[Route]:
    async def page(request: Request) -> Response:
        return _file(request, files, "index.html")

    async def static(request: Request) -> Response:
        return _file(request, files, request.path_params["name"])

    async def favicon(request: Request) -> Response:
        return Response(status_code=204)

    async def session(request: Request) -> Response:
        return await _answer(desk.session)

    async def queue(request: Request) -> Response:
        asked = request.query_params
        return await _answer(
            lambda: desk.queue(
                reviewer=asked.get("reviewer"),
                order=asked.get("order"),
                which=asked.get("set", "listed"),
                unreviewed=asked.get("unreviewed", "1") not in {"0", "false"},
            )
        )

    async def pair(request: Request) -> Response:
        return await _answer(lambda: desk.pair(request.path_params["name"], reviewer=request.query_params.get("reviewer")))

    async def pair_difference(request: Request) -> Response:
        facts, _ = await _decoded(request, lambda: desk.difference(request.path_params["name"]))
        return json_response(facts)

    async def pair_audio(request: Request) -> Response:
        role = _role(request)
        return await _sound(request, lambda: desk.audio(request.path_params["name"], role))

    async def pair_picture(request: Request) -> Response:
        role, view = _role(request), _view(request)
        return await _picture(request, lambda: desk.picture(request.path_params["name"], role, **view))

    async def difference_sound(request: Request) -> Response:
        facts, sound = await _decoded(request, lambda: desk.difference(request.path_params["name"]))
        if sound is None:
            raise HTTPException(404, facts["difference"]["reason"] or "there is no difference to hear")
        return ranged(request, len(sound), lambda first, last: iter([sound[first : last + 1]]))

    async def clip_audio(request: Request) -> Response:
        return await _sound(request, lambda: desk.clip_audio(request.path_params["name"]))

    async def clip_picture(request: Request) -> Response:
        view = _view(request)
        return await _picture(request, lambda: desk.clip_picture(request.path_params["name"], **view))

    async def clusters(request: Request) -> Response:
        return await _answer(lambda: desk.cluster_list(reviewer=request.query_params.get("reviewer")))

    async def cluster(request: Request) -> Response:
        return await _answer(lambda: desk.cluster(request.path_params["name"], reviewer=request.query_params.get("reviewer")))

    async def decide(request: Request) -> Response:
        event = await _event(request)
        return await _answer(lambda: desk.decide(event), status=201)

    async def decide_cluster(request: Request) -> Response:
        event = await _event(request)
        return await _answer(lambda: desk.decide_cluster(event), status=201)

    async def stats(request: Request) -> Response:
        return await _answer(desk.stats)

    return [
        Route("/", page),
        Route(f"/static/{ID}", static),
        Route("/favicon.ico", favicon),
        Route("/api/session", session),
        Route("/api/queue", queue),
        Route(f"/api/pairs/{ID}", pair),
        Route(f"/api/pairs/{ID}/difference", pair_difference),
        Route("/api/verdicts", decide, methods=["POST"]),
        Route("/api/clusters", clusters),
        Route("/api/clusters", decide_cluster, methods=["POST"]),
        Route(f"/api/clusters/{ID}", cluster),
        Route("/api/stats", stats),
        Route(f"/media/clip/{ID}/audio.wav", clip_audio),
        Route(f"/media/clip/{ID}/spectrogram.png", clip_picture),
        Route(f"/media/{ID}/difference.wav", difference_sound),
        Route(f"/media/{ID}/{{role:str}}/audio.wav", pair_audio),
        Route(f"/media/{ID}/{{role:str}}/spectrogram.png", pair_picture),
    ]


async def _decoded(request: Request, work: Callable[[], T]) -> T:
    """What ``work`` returns, which reads sound: only so many threads at a time do that."""
    return await anyio.to_thread.run_sync(work, limiter=request.app.state.decoding)


async def _answer(work: Callable[[], Any], *, status: int = 200) -> Response:
    """What ``work`` returns as JSON; an argument that it refuses is the asker's mistake."""
    try:
        content = await run_in_threadpool(work)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    return json_response(content, status)


def json_response(content: Any, status: int = 200) -> Response:
    """``content`` as JSON that no cache keeps; NaN, which is none, is an error here and not in the browser."""
    encoded = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(encoded, status, headers={"Cache-Control": "no-store"}, media_type="application/json")


async def _failed(request: Request, error: Exception) -> Response:
    """Errors as ``{"error": one line}``, with the words of decoders only for those who may see paths."""
    if isinstance(error, HTTPException):
        return json_response({"error": error.detail}, error.status_code)
    if isinstance(error, NotHereError):
        return json_response({"error": str(error)}, 404)
    if isinstance(error, AudioDecodeError):
        return json_response({"error": cast(Desk, request.app.state.desk).explain(error)}, 404)
    logger.error("review: %s", error)
    return json_response({"error": "the server's disk or database failed; what it printed says why"}, 503)


async def _event(request: Request) -> dict[str, Any]:
    try:
        event = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(event, dict):
        raise HTTPException(400, f"the body should be an object, got {type(event).__name__}")
    return event


def _role(request: Request) -> Role:
    role = request.path_params["role"]
    if role not in ROLES:
        raise HTTPException(404, f"role should be one of {', '.join(ROLES)}")
    return cast(Role, role)


def _view(request: Request) -> dict[str, Any]:
    """The stretch and size of a picture that an address asks for."""
    asked = request.query_params
    try:
        end = asked.get("end")
        return {
            "scale": asked.get("scale", "mel"),
            "start_s": float(asked.get("start", "0")),
            "end_s": None if end is None else float(end),
            "width": int(asked.get("width", "640")),
        }
    except ValueError:
        raise HTTPException(400, "start and end should be seconds, and width pixels") from None


# --- files, sounds and pictures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PageFile:
    """A file of the page, in memory: its bytes, their type and their digest."""

    content: bytes
    media_type: str
    etag: str


def page_files(folder: Path) -> dict[str, PageFile]:
    """The regular files of a folder by name, read once; links and folders are none of the page's."""
    found = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else ():
        if entry.is_file(follow_symlinks=False):
            content = Path(entry.path).read_bytes()
            kind = mimetypes.guess_type(entry.name)[0] or "application/octet-stream"
            if kind in {"text/javascript", "application/javascript", "application/x-javascript"}:
                kind = "text/javascript"
            charset = "; charset=utf-8" if kind.startswith("text/") or kind.endswith(("xml", "json")) else ""
            found[entry.name] = PageFile(content, kind + charset, digest(content))
    return found


def digest(content: bytes) -> str:
    """An ``ETag`` of a content."""
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _file(request: Request, files: dict[str, PageFile], name: str) -> Response:
    file = files.get(name)
    if file is None:
        raise HTTPException(404, "no such file")
    return cached(request, file.content, file.media_type, etag=file.etag, keep="no-cache")


def cached(request: Request, content: bytes, media_type: str, *, etag: str, keep: str) -> Response:
    """A content, or, to who has it already, only that it has not changed."""
    headers = {"ETag": etag, "Cache-Control": keep}
    if etag in [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(content, headers={**headers, "Content-Type": media_type})


async def _picture(request: Request, drawn: Callable[[], bytes]) -> Response:
    try:
        content = await _decoded(request, drawn)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    except OSError as error:
        raise AudioDecodeError(str(error)) from error
    return cached(request, content, "image/png", etag=digest(content), keep="private, max-age=3600")


async def _sound(request: Request, opened: Callable[[], ClipAudio]) -> Response:
    try:
        clip = await _decoded(request, opened)
        return await _decoded(
            request, lambda: ranged(request, clip.size_bytes, lambda first, last: clip.chunks(first, last, CHUNK))
        )
    except OSError as error:
        raise AudioDecodeError(str(error)) from error


def ranged(request: Request, size: int, chunks: Callable[[int, int], Iterator[bytes]]) -> Response:
    """A WAV of ``size`` bytes, or the range of them that is asked for, in chunks that are made as they are sent.

    The first chunk is made here, before the answer begins: a file that cannot be decoded is then an error and not half an
    answer.
    """
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600", "Content-Type": "audio/wav"}
    try:
        wanted = parse_range(request.headers.get("range"), size)
    except ValueError:
        headers["Content-Range"] = f"bytes */{size}"
        return Response(status_code=416, headers=headers)
    first, last = (0, size - 1) if wanted is None else wanted
    if wanted is not None:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    headers["Content-Length"] = str(last - first + 1)
    status = 200 if wanted is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    pieces = chunks(first, last)
    begun = next(pieces, b"")

    def rest() -> Iterator[bytes]:
        yield begun
        yield from pieces

    return StreamingResponse(rest(), status, headers)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of a ``Range`` header, both included; None if it asks for all.

    What is no range of bytes, and several ranges at once, count as none, as RFC 9110 (section 14.2) allows.

    Raises
    ------
    ValueError
        No byte lies in the range.

    >>> parse_range("bytes=0-99", 1000), parse_range("bytes=990-", 1000), parse_range("bytes=-10", 1000)
    ((0, 99), (990, 999), (990, 999))
    >>> parse_range("bytes=0-5000", 1000), parse_range("bytes=0-1,5-6", 1000), parse_range(None, 1000)
    ((0, 999), None, None)
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        first, last = max(0, size - int(match[2])), size - 1
    else:
        first, last = int(match[1]), min(int(match[2] or size - 1), size - 1)
        if match[2] and int(match[2]) < first:
            return None
    if first > last:
        raise ValueError(f"bytes {first} to {last} of {size}")
    return first, last


# --- serving --------------------------------------------------------------------------------------------------------


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


def serve(
    folder: str | Path,
    *,
    host: str | None = None,
    port: int = PORT,
    ready: Callable[[str], None] = lambda url: None,
    **options: Any,
) -> None:
    """Serve the review of a folder until it is interrupted.

    Parameters
    ----------
    folder, options
        As :func:`create_app` takes them.
    host, port
        As :func:`listen` takes them; port 0 is any free one.
    ready
        Called with the address once requests are accepted.

    Raises
    ------
    AuscultError
        It cannot listen there, or there is nothing to review.
    """
    import uvicorn

    place = listen(host, port)
    try:
        app = create_app(folder, token=place.token, allowed_hosts=place.allowed_hosts, **options)
    except BaseException:
        place.socket.close()
        raise
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=3, ws="none"
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(place.url)

    Server(config).run(sockets=[place.socket])
