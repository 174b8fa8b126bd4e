"""Clips of a manifest: CSV, JSON Lines or Parquet, with a ``path`` column; and AudioCaps's own CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..errors import ManifestError, StorageError
from ..storage import Place, Url, fetch, is_url, join
from .clip import Clip, Skipped
from .folder import AUDIO_SUFFIXES, is_utf8, printable, walk
from .remote import walk_url

MANIFEST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"})
AUDIOCAPS_COLUMNS = frozenset({"audiocap_id", "youtube_id", "start_time", "caption"})
CAPTION_COLUMNS = ("caption", "captions", "text")
PATH_COLUMNS = ("path", "location", "file_name")

MAX_CAPTION = 100_000  # characters; a caption lives in a table's row, not in a file of its own
MAX_SECONDS = 10_000_000  # four months

Row = Mapping[str, Any]


def manifest_clips(manifest: Place, *, audio_root: Place | None = None, encoding: str = "utf-8") -> Iterator[Clip | Skipped]:
    """Yield the clips of a manifest, row by row.

    Parameters
    ----------
    manifest
        CSV, TSV, JSON Lines or Parquet, at a path or a URL. Columns: ``path`` and optionally ``clip_id, caption, labels,
        start_s, duration_s``. Relative paths resolve against the manifest's folder and may not climb out of it; a path may be
        a URL.
    audio_root
        Folder of audio named by ``youtube_id``, for AudioCaps's CSV, whose clips have no path.
    encoding
        Of a text manifest.

    Raises
    ------
    ManifestError
        A needed column is missing, a row cannot be parsed, or the text is not in ``encoding``.
    """
    rows = manifest_rows(manifest, encoding)
    first = next(rows, None)
    if first is None:
        return
    columns = set(first[1])
    if columns >= AUDIOCAPS_COLUMNS and not columns & set(PATH_COLUMNS):
        yield from _audiocaps_clips(manifest, first, rows, audio_root)
        return
    _check_columns(manifest, columns)
    yield _clip_of(manifest, *first, audio_root)
    for number, row in rows:
        yield _clip_of(manifest, number, row, audio_root)


def manifest_rows(manifest: Place, encoding: str = "utf-8") -> Iterator[tuple[int, Row]]:
    """Yield ``(line number, row)`` of a CSV, TSV, JSON Lines or Parquet table, whatever its columns are.

    Raises
    ------
    ManifestError
        A row cannot be parsed, or the text is not in ``encoding``.
    """
    suffix = manifest.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(manifest)
        elif suffix in {".jsonl", ".ndjson"}:
            yield from _json_rows(manifest, encoding)
        else:
            yield from _csv_rows(manifest, encoding, "\t" if suffix == ".tsv" else ",")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{manifest}: not {encoding} (byte 0x{error.object[error.start]:02x}); save it as UTF-8 "
            "or name its encoding with --encoding (latin-1, cp1252, ...)"
        ) from error


def _opened(manifest: Place) -> IO[bytes]:
    """Open a manifest; one at a URL is fetched first."""
    if not isinstance(manifest, Url):
        return open(manifest, "rb")
    content = fetch(manifest)
    return io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")


def _csv_rows(manifest: Place, encoding: str, delimiter: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 24))  # Python's default refuses captions over 131,072 characters
    with _opened(manifest) as handle, io.TextIOWrapper(handle, encoding=_with_bom(encoding), newline="") as text:
        reader = csv.DictReader(text, delimiter=delimiter, strict=True)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise ManifestError(f"{manifest}, line {reader.line_num}: not valid CSV ({error})") from error
            if row is None:
                return
            if None in row or None in row.values():
                raise ManifestError(
                    f"{manifest}, line {reader.line_num}: expected {len(reader.fieldnames or [])} fields; "
                    "quote fields that hold a comma"
                )
            yield reader.line_num, row


def _with_bom(encoding: str) -> str:
    """UTF-8 with or without a byte order mark."""
    return "utf-8-sig" if encoding.lower() in {"utf-8", "utf8"} else encoding


def _json_rows(manifest: Place, encoding: str) -> Iterator[tuple[int, Row]]:
    with _opened(manifest) as handle, io.TextIOWrapper(handle, encoding=_with_bom(encoding)) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ManifestError(f"{manifest}, line {number}: not valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise ManifestError(f"{manifest}, line {number}: expected an object, got {type(row).__name__}")
            yield number, row


def _parquet_rows(manifest: Place) -> Iterator[tuple[int, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with _opened(manifest) as handle, pq.ParquetFile(handle) as parquet:
            for batch in parquet.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowInvalid as error:
        raise ManifestError(f"{manifest}: not a Parquet file ({error})") from error


def _check_columns(manifest: Place, columns: set[str]) -> None:
    if not columns & set(PATH_COLUMNS):
        raise ManifestError(
            f"{manifest}: no 'path' column; it has {', '.join(sorted(map(str, columns)))}. Rename the column that "
            "names the audio files to 'path'"
        )


def _clip_of(manifest: Place, number: int, row: Row, audio_root: Place | None) -> Clip | Skipped:
    where = f"{manifest.name}, line {number}"
    name = next((row[key] for key in PATH_COLUMNS if row.get(key)), None)
    if not isinstance(name, str) or not name.strip():
        return Skipped(str(manifest), f"{where}: the path is empty")
    root = audio_root or manifest.parent
    clip_id = next((str(row[key]) for key in ("clip_id", "id") if row.get(key) not in (None, "")), None)
    caption = caption_of(row)
    if not all(is_utf8(text) for text in (name, clip_id or "", caption or "")) or "\x00" in name:
        return Skipped(printable(name.replace("\x00", "\\x00")), f"{where}: holds characters that are no text")
    try:
        path, inside = resolved_path(name, root)
    except StorageError as error:  # an address that cannot be read without showing its credentials
        raise ManifestError(f"{where}: {error}") from None
    clip_id = clip_id or (str(path) if is_url(name) else name)  # of an address, what shows no credentials
    if caption is not None and len(caption) > MAX_CAPTION:
        return Skipped(
            path, f"{where}: a caption of {len(caption):,} characters; at most {MAX_CAPTION:,} are taken", clip_id=clip_id
        )
    if not inside:
        return Skipped(path, f"{where}: climbs out of {root}; write it as an absolute path if it is meant", clip_id=clip_id)
    return Clip(
        clip_id=clip_id,
        path=path,
        start_s=_seconds(row, "start_s", where) or 0.0,
        duration_s=_seconds(row, "duration_s", where),
        caption=caption,
        labels=labels_of(row.get("labels")),
    )


def resolved_path(name: str, root: Place) -> tuple[str, bool]:
    """Where a manifest's path leads, and whether it stays below ``root`` or is absolute."""
    if is_url(name):
        return Url(name), True
    if isinstance(root, Url):
        path = os.path.normpath(name.lstrip("/"))
        return join(root, path), path.split("/")[0] != ".."  # type: ignore[return-value]  # of a Url it is one
    path = os.path.normpath(name if os.path.isabs(name) else root / name)
    return path, os.path.isabs(name) or Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))


def _seconds(row: Row, key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ManifestError(f"{where}: {key} should be seconds, got {value!r}") from None
    least = "above 0" if key == "duration_s" else "from 0"
    if not 0 <= seconds <= MAX_SECONDS or (key == "duration_s" and seconds == 0):
        raise ManifestError(f"{where}: {key} should be a number of seconds {least} to {MAX_SECONDS:,}, got {value!r}")
    return seconds


def caption_of(row: Row) -> str | None:
    """The caption of a row; of several, the first."""
    value = next((row[key] for key in CAPTION_COLUMNS if row.get(key)), None)
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return None if value is None else str(value)


def labels_of(value: Any) -> tuple[str, ...]:
    """Labels from a list, or from text with commas or semicolons between them."""
    if value is None or value == "":
        return ()
    parts = value.replace(";", ",").split(",") if isinstance(value, str) else value
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    return tuple(printable(str(part)).strip() for part in parts if str(part).strip())


def _audiocaps_clips(
    manifest: Place, first: tuple[int, Row], rest: Iterator[tuple[int, Row]], audio_root: Place | None
) -> Iterator[Clip | Skipped]:
    """AudioCaps rows: one clip for each (youtube_id, start_time); of several captions the first is kept."""
    if audio_root is None:
        raise ManifestError(f"{manifest}: AudioCaps's CSV names no files; give --audio-root FOLDER (audio named by youtube_id)")
    files: dict[str, str] = {}
    for name, path in _audio_below(audio_root):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in AUDIO_SUFFIXES:
            files.setdefault(stem, path)
    seen: set[str] = set()
    for number, row in _chained(first, rest):
        youtube_id, start = str(row["youtube_id"]), str(row["start_time"])
        clip_id = f"{youtube_id}_{start}"
        if clip_id in seen:
            continue
        seen.add(clip_id)
        # the names that the usual downloaders give: ID, YID, ID_START, ID_START(ms), YID_START
        names = (clip_id, youtube_id, f"Y{youtube_id}", f"Y{clip_id}", f"{clip_id}000")
        found = next((files[name] for name in names if name in files), None)
        if found is None:
            yield Skipped(
                youtube_id,
                f"no audio named {youtube_id}.* below {audio_root} ({manifest.name}, line {number})",
                clip_id=clip_id,
            )
        else:
            yield Clip(clip_id=clip_id, path=found, caption=caption_of(row))


def _audio_below(root: Place) -> Iterator[tuple[str, str]]:
    if isinstance(root, Url):
        return ((entry.name, url) for _, url, entry in walk_url(root))
    return ((entry.name, entry.path) for _, entry in walk(root))


def _chained(first: tuple[int, Row], rest: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    yield first
    yield from rest
