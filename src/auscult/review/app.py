"""The review server: routes, ranges of bytes, and a start that says where it listens.

Nothing in an address is ever a path: pairs and clips are asked for by names made of digests, files of the page by names
that were listed at the start. What decodes or waits for the disk runs in threads, so that the others are answered meanwhile.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import AudioDecodeError, StoreError
from .desk import ROLES, ChangedError, Desk, ForbiddenError, NotHereError, Role
from .listening import PORT, listen
from .media import ClipAudio, close_files
from .replies import PageFile, cached, digest, json_response, page_file, page_files, ranged
from .security import LOOPBACK, Guard

if TYPE_CHECKING:
    import uvicorn

STATIC = Path(__file__).parent / "static"
CHUNK = 1 << 18  # bytes decoded and sent at once
DECODING_THREADS = max(4, os.cpu_count() or 1)  # of the 40 that Starlette has: sounds never keep a verdict waiting
ID = "{name:str}"

T = TypeVar("T")

logger = logging.getLogger(__name__)


def create_app(
    folder: str | Path,
    *,
    reviewer: str | None = None,
    token: str | None = None,
    allowed_hosts: Iterable[str] = LOOPBACK,
    **options: Any,
) -> Starlette:
    """The review of an audit or a deduplication as an ASGI application.

    Parameters
    ----------
    folder
        Of the audit or the deduplication; verdicts go to ``review.db`` there.
    reviewer
        Who reviews where the page does not say; by default the login name, or, where a token lets others in, nobody: the
        page asks.
    token, allowed_hosts
        As :class:`~auscult.review.security.Guard` takes them.
    options
        As :class:`~auscult.review.desk.Desk` takes them.

    Raises
    ------
    StoreError
        The folder is neither, or lists nothing to review.
    ValueError
        An argument is out of range.
    """
    return _app(_desk(folder, reviewer, options), token, allowed_hosts, named=reviewer is not None or token is None)


def _desk(folder: str | Path, reviewer: str | None, options: Mapping[str, Any]) -> Desk:
    return Desk(Path(folder), reviewer=login_name() if reviewer is None else reviewer, **options)


def _app(desk: Desk, token: str | None, allowed_hosts: Iterable[str], *, named: bool) -> Starlette:
    files = page_files(STATIC)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=desk.warm, daemon=True).start()
        yield
        await run_in_threadpool(desk.close)
        close_files()

    app = Starlette(
        routes=_routes(desk, files, named=named),
        middleware=[Middleware(Guard, allowed_hosts=tuple(allowed_hosts), token=token)],
        exception_handlers={
            HTTPException: _failed,
            NotHereError: _failed,
            ForbiddenError: _failed,
            ChangedError: _failed,
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


def _routes(desk: Desk, files: dict[str, PageFile], *, named: bool) -> list[Route]:
    async def page(request: Request) -> Response:
        return page_file(request, files, "index.html")

    async def static(request: Request) -> Response:
        return page_file(request, files, request.path_params["name"])

    async def favicon(request: Request) -> Response:
        return Response(status_code=204)

    async def session(request: Request) -> Response:
        return await _answer(lambda: desk.session() | ({} if named else {"reviewer": None}))

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
        name = request.path_params["name"]
        if not await run_in_threadpool(desk.compared, name):  # digests of both files, with what else reads files
            await _decoded(request, lambda: desk.compare(name))
        asked = request.query_params.get("reviewer")
        return json_response(await _decoded(request, lambda: desk.pair(name, reviewer=asked)))

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
        asked = request.query_params.get("reviewer")
        return json_response(await _decoded(request, lambda: desk.cluster(request.path_params["name"], reviewer=asked)))

    async def decide(request: Request) -> Response:
        event = await _event(request, named=named)
        return await _answer(lambda: desk.decide(event), status=201)

    async def decide_cluster(request: Request) -> Response:
        event = await _event(request, named=named)
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
    try:
        return await anyio.to_thread.run_sync(work, limiter=request.app.state.decoding)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error


async def _answer(work: Callable[[], Any], *, status: int = 200) -> Response:
    """What ``work`` returns as JSON; an argument that it refuses is the asker's mistake."""
    try:
        content = await run_in_threadpool(work)
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    return json_response(content, status)


async def _failed(request: Request, error: Exception) -> Response:
    """Errors as ``{"error": one line}``, with the words of decoders only for those who may see paths."""
    if isinstance(error, HTTPException):
        return json_response({"error": error.detail}, error.status_code)
    if isinstance(error, NotHereError):
        return json_response({"error": str(error)}, 404)
    if isinstance(error, ChangedError):
        return json_response({"error": str(error)}, 409)
    if isinstance(error, ForbiddenError):
        return json_response({"error": str(error)}, 403)
    if isinstance(error, AudioDecodeError):
        return json_response({"error": cast(Desk, request.app.state.desk).explain(error)}, 404)
    logger.error("review: %s", error)
    return json_response({"error": "the server's disk or database failed; what it printed says why"}, 503)


async def _event(request: Request, *, named: bool) -> dict[str, Any]:
    try:
        event = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(event, dict):
        raise HTTPException(400, f"the body should be an object, got {type(event).__name__}")
    if not named and event.get("reviewer") is None:
        raise HTTPException(400, "reviewer should say who decides; this server was started without a name")
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


async def _picture(request: Request, drawn: Callable[[], bytes]) -> Response:
    try:
        content = await _decoded(request, drawn)
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


# --- serving --------------------------------------------------------------------------------------------------------


def server_config(app: Starlette) -> uvicorn.Config:
    """How uvicorn serves the review."""
    import uvicorn

    from .connections import Connection

    return uvicorn.Config(
        app,
        http=Connection,
        backlog=64,  # accepted at once: asyncio opens so many before it asks whether there is room for them
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,
        ws="none",
    )


def serve(
    folder: str | Path,
    *,
    host: str | None = None,
    port: int = PORT,
    ready: Callable[[str], None] = lambda url: None,
    reviewer: str | None = None,
    **options: Any,
) -> None:
    """Serve the review of a folder until it is interrupted.

    Parameters
    ----------
    folder, reviewer, options
        As :func:`create_app` takes them. With a ``host`` and a reviewer, or blind, only that reviewer may decide.
    host, port
        As :func:`listen` takes them; port 0 is any free one.
    ready
        Called with the address once requests are accepted.

    Raises
    ------
    AuscultError
        It cannot listen there, or there is nothing to review.
    """
    # what is wrong with the folder or the name is told before a port that is taken hides it
    blind = bool(options.get("blind"))
    fixed = blind or (host is not None and reviewer is not None)
    desk = _desk(folder, reviewer, {"reviewer_fixed": fixed} | options)
    try:
        place = listen(host, port)
    except BaseException:
        desk.close()
        raise
    import uvicorn

    app = _app(desk, place.token, place.allowed_hosts, named=reviewer is not None or host is None or blind)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready(place.url)

    Server(server_config(app)).run(sockets=[place.socket])
