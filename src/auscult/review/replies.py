"""How the review server answers: JSON, files of the page, and ranges of bytes that are made as they are sent."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


def json_response(content: Any, status: int = 200) -> Response:
    """``content`` as JSON that no cache keeps; NaN, which is none, is an error here and not in the browser."""
    encoded = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(encoded, status, headers={"Cache-Control": "no-store"}, media_type="application/json")


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


def page_file(request: Request, files: dict[str, PageFile], name: str) -> Response:
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

    async def rest() -> AsyncIterator[bytes]:
        yield begun
        limiter = request.app.state.decoding  # or Starlette would decode in the threads that verdicts need
        while (piece := await anyio.to_thread.run_sync(next, pieces, None, limiter=limiter)) is not None:
            yield piece

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
