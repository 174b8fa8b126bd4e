"""Clips inside WebDataset tars and Hugging Face data sets, and how to open any clip's audio again from its path."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import CorpusError, MissingExtraError, StorageError
from ..storage import Entry, Place, RemoteFolder, Url, fetch, is_url, stat
from ..storage.remote import open_range
from ..storage.url import TAR_MEMBER
from .clip import Clip, Skipped
from .folder import AUDIO_SUFFIXES, is_utf8, printable, walk
from .remote import walk_url

TAR_SEPARATOR = "::"
_TEXT_SUFFIXES = (".txt", ".caption", ".text")


def is_webdataset(place: Place) -> bool:
    """Whether a folder holds tars and no audio of its own, or ``place`` is a tar itself."""
    if isinstance(place, Url):
        tars = bool(_remote_tars(place))
        names: Iterator[str] = (name for name, _, _ in walk_url(place))
    else:
        tars = bool(_tars(place))
        names = (name for name, _ in walk(place))
    return tars and not any(os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES for name in names)


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if path.is_file()) if folder.is_dir() else []


def _remote_tars(url: Url) -> list[tuple[Url, Entry]]:
    folder = RemoteFolder(url)
    return [(folder.below(entry.name).place, entry) for entry in folder.list() if entry.name.endswith(".tar")]


def webdataset_clips(place: Place) -> Iterator[Clip | Skipped]:
    """Yield the clips of a folder of WebDataset tars, in the order of the tars, or of a single tar at a URL.

    A sample is the run of members that share a key (the name up to its first dot after the last slash): its audio
    member, and optionally ``.json`` (``caption`` or ``text``, ``labels``) or ``.txt`` with the caption.
    """
    if not isinstance(place, Url):
        for path in _tars(place):
            yield from _tar_clips(path, None)
        return
    if place.suffix.lower() == ".tar" and (status := stat(place)) is not None:
        yield from _tar_clips(place, (status.size, status.mtime_ns))
        return
    for url, entry in _remote_tars(place):
        yield from _tar_clips(url, (entry.size, entry.mtime_ns))


def _tar_clips(tar: Place, seen: tuple[int, int] | None) -> Iterator[Clip | Skipped]:
    try:
        with _opened(tar) as archive:
            for item in _samples(tar, archive):
                yield replace(item, seen=seen) if isinstance(item, Clip) else item
    except (tarfile.TarError, EOFError) as error:
        yield Skipped(str(tar), f"the tar cannot be read to its end ({error})")


@contextmanager
def _opened(tar: Place) -> Iterator[tarfile.TarFile]:
    """Open a tar; of one at a URL, what lies between the headers is not fetched where it is long."""
    if not isinstance(tar, Url):
        with tarfile.open(tar) as archive:
            yield archive
        return
    with open_range(tar) as handle, tarfile.open(fileobj=handle, mode="r:") as archive:
        yield archive


def _samples(tar: Place, archive: tarfile.TarFile) -> Iterator[Clip | Skipped]:
    key: str | None = None
    members: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        if not member.isfile():
            continue
        head, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        sample = f"{head}/{stem}" if head else stem
        if sample != key:
            if key is not None:
                yield _sample_clip(tar, archive, key, members)
            key, members = sample, {}
        members["." + suffix.lower()] = member
    if key is not None:
        yield _sample_clip(tar, archive, key, members)


def _sample_clip(tar: Place, archive: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]) -> Clip | Skipped:
    audio = next((member for suffix, member in members.items() if "." + suffix.rpartition(".")[2] in AUDIO_SUFFIXES), None)
    if audio is None:
        return Skipped(f"{tar}{TAR_SEPARATOR}{printable(key)}", "the sample has no audio member", "not_audio")
    if not is_utf8(audio.name):
        return Skipped(f"{tar}{TAR_SEPARATOR}{printable(audio.name)}", "the member's name is not valid UTF-8")
    facts: Any = {}
    text = next((members[suffix] for suffix in _TEXT_SUFFIXES if suffix in members), None)
    try:
        if ".json" in members:
            facts = json.loads(_member_bytes(archive, members[".json"]))
        elif text is not None:
            facts = {"caption": _member_bytes(archive, text).decode("utf-8").strip()}
        if not isinstance(facts, dict):
            return Skipped(f"{tar}{TAR_SEPARATOR}{audio.name}", "its JSON member is no object")
    except ValueError as error:
        return Skipped(f"{tar}{TAR_SEPARATOR}{audio.name}", f"its JSON or text member cannot be read ({error})")
    caption = facts.get("caption") or facts.get("text") or None
    labels = facts.get("labels") or facts.get("tags") or ()
    path = f"{tar}{TAR_SEPARATOR}{audio.name}"
    if isinstance(tar, Url):  # where its bytes lie goes along, so that no worker has to list the tar again
        path = Url(f"{tar.full}{TAR_SEPARATOR}{audio.name}", (audio.offset_data, audio.size))
    return Clip(
        clip_id=f"{tar.name}/{audio.name}",
        path=path,
        caption=None if caption is None else str(caption[0] if isinstance(caption, list) else caption),
        labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
    )


def _member_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    handle = archive.extractfile(member)
    if handle is None:
        raise ValueError(f"{member.name} is no plain file")
    return handle.read()


def container(path: str) -> str:
    """The file that a clip's path lies in: itself, or its tar."""
    if is_url(path):
        return _remote_container(Url(path))
    if TAR_SEPARATOR not in path or os.path.exists(path):
        return path
    head, suffix, _ = path.rpartition(f".tar{TAR_SEPARATOR}")
    return f"{head}.tar" if suffix else path


def _remote_container(url: Url) -> Url:
    """The tar at a URL that a clip lies in, or the clip's own address."""
    found = TAR_MEMBER.fullmatch(url.full)
    return Url(found[1]) if found else url


@lru_cache(maxsize=4)
def _tar_offsets(tar: str, mtime_ns: int) -> dict[str, tuple[int, int]]:
    """Where each member's bytes lie; one pass over the tar's headers, kept for the next clips of the same tar.

    Of a damaged tar, the members before the damage.
    """
    offsets = {}
    with suppress(tarfile.TarError, EOFError), _opened(tar if isinstance(tar, Url) else Path(tar)) as archive:
        for member in archive:
            if member.isfile():
                offsets[member.name] = (member.offset_data, member.size)
    return offsets


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder was written by ``Dataset.save_to_disk`` of Hugging Face datasets."""
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def dataset_clips(name: str) -> Iterator[Clip | Skipped]:
    """Yield the clips of a Hugging Face data set: ``NAME[:SPLIT]`` on the hub or a folder saved on disk."""
    dataset = _dataset(name)
    _audio_column(name, dataset)  # refuse a data set without audio before the first clip
    text = next((column for column in ("caption", "captions", "text") if column in dataset.column_names), None)
    facts = dataset.select_columns([text]) if text else None
    for row in range(len(dataset)):
        caption = facts[row][text] if facts is not None else None
        if isinstance(caption, list):
            caption = caption[0] if caption else None
        yield Clip(clip_id=f"{row}", path=f"hf:{name}#{row}", caption=None if caption is None else str(caption))


@lru_cache(maxsize=4)
def _dataset(name: str) -> Any:
    """Load ``NAME[:SPLIT]`` with its audio left encoded: we decode from the bytes ourselves."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("hub", f"the data set {name!r}") from None
    place, _, split = name.partition(":")
    try:
        if os.path.isdir(place):
            data = datasets.load_from_disk(place)
            if isinstance(data, datasets.DatasetDict):
                data = data[split or next(iter(data))]
        else:
            data = datasets.load_dataset(place, split=split or "train")
    except Exception as error:
        raise CorpusError(f"hf:{name}: cannot be loaded ({type(error).__name__}: {error})") from error
    for column, feature in data.features.items():
        if isinstance(feature, datasets.Audio):
            data = data.cast_column(column, datasets.Audio(decode=False))
    return data


def _audio_column(name: str, dataset: Any) -> str:
    import datasets

    columns = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Audio)]
    if not columns:
        raise CorpusError(f"hf:{name}: no audio column; it has {', '.join(dataset.column_names)}")
    return str(columns[0])


def open_audio_bytes(path: str) -> str | io.BytesIO:
    """Turn a clip's ``path`` into what a decoder opens: a file name, or the bytes of an object, tar member or data set row.

    Of a large object, the name of a temporary file that lasts as long as this name is held.

    Raises
    ------
    CorpusError
        The member or row does not exist.
    OSError
        The tar cannot be read, or the object is not there.
    StorageError
        The storage of a URL denies or cannot be reached: no fault of the clip.
    """
    if is_url(path):
        return _opened_url(Url(path))
    if path.startswith("hf:"):
        name, _, row = path[3:].rpartition("#")
        dataset = _dataset(name)
        value = dataset[int(row)][_audio_column(name, dataset)]
        if not value or not (value.get("bytes") or value.get("path")):
            raise CorpusError("the row holds no audio")
        return io.BytesIO(value["bytes"]) if value.get("bytes") else str(value["path"])
    tar = container(path)
    if tar != path:
        member = path[len(tar) + len(TAR_SEPARATOR) :]
        try:
            offset, size = _tar_offsets(tar, os.stat(tar).st_mtime_ns)[member]
        except KeyError:
            raise CorpusError(f"{tar}: has no member {member!r}") from None
        with open(tar, "rb") as handle:
            handle.seek(offset)
            return io.BytesIO(handle.read(size))
    return path


def _opened_url(url: Url) -> str | io.BytesIO:
    tar = _remote_container(url)
    if tar != url and url.span is None:
        status = stat(tar)
        if status is None:
            raise CorpusError(f"{tar}: does not exist")
        member = url.full[len(tar.full) + len(TAR_SEPARATOR) :]
        try:
            span = _tar_offsets(tar, status.mtime_ns)[member]
        except KeyError:
            raise CorpusError(f"{tar}: has no member {member!r}") from None
        url = Url(url.full, span)
    try:
        content = fetch(Url(tar.full, url.span))
    except StorageError as error:
        if url.scheme not in {"http", "https"}:
            raise
        raise CorpusError(str(error)) from None  # every server for itself: what one denies is one clip's failure
    return io.BytesIO(content) if isinstance(content, bytes) else content
