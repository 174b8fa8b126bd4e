"""What SOURCE means on the command line: a folder, a manifest, tars or a data set, opened as one corpus."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import CorpusError, ManifestError
from ..storage import Place, Url, place_of, stat
from ..storage.remote import check_bucket, is_folder
from .archive import dataset_clips, is_saved_dataset, is_webdataset, webdataset_clips
from .clip import Clip, Skipped
from .folder import AUDIO_SUFFIXES, folder_clips
from .manifest import MANIFEST_SUFFIXES, manifest_clips
from .remote import url_clips


@dataclass(frozen=True)
class Corpus:
    """One or several sources, read anew at each iteration so that nothing but the current clip is in memory.

    Attributes
    ----------
    sources
        Folders, manifests, single audio files, URLs of any of these or of a tar, ``hf:NAME[:SPLIT]``.
    audio_root
        Folder that a manifest's paths are relative to (AudioCaps: the folder of audio named by ``youtube_id``).
    encoding
        Of text manifests.
    """

    sources: tuple[str, ...]
    audio_root: str | None = None
    encoding: str = "utf-8"

    def __iter__(self) -> Iterator[Clip | Skipped]:
        earlier: set[bytes] = set()  # ids of the sources before this one
        for source in self.sources:
            seen: set[bytes] = set()
            for item in _source_items(source, self.audio_root, self.encoding):
                if isinstance(item, Clip):
                    item = _told_apart(item, source, earlier)
                    if (key := _hash(item.clip_id)) in seen:
                        raise ManifestError(
                            f"{source}: the clip id {item.clip_id!r} occurs twice; ids must be unique, "
                            "add a clip_id column that tells the rows apart"
                        )
                    seen.add(key)
                yield item
            earlier |= seen


def _hash(clip_id: str) -> bytes:
    """Eight bytes instead of the string: a million ids cost about 70 MB less."""
    return hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _told_apart(clip: Clip, source: str, earlier: set[bytes]) -> Clip:
    """Put as much of the source's name before an id as tells it from the ids of earlier sources: usually nothing."""
    place = place_of(source)
    while _hash(clip.clip_id) in earlier and place.name:
        clip = replace(clip, clip_id=f"{place.name}/{clip.clip_id}")
        place = place.parent
    return clip


def open_corpus(
    sources: str | Path | Sequence[str | Path], *, audio_root: str | Path | None = None, encoding: str = "utf-8"
) -> Corpus:
    """Name the sources of a corpus, and check that they exist.

    Raises
    ------
    CorpusError
        A source does not exist or is of no known kind.
    """
    listed = [sources] if isinstance(sources, (str, Path)) else list(sources)
    if not listed:
        raise ValueError("expected at least one source")
    root = None if audio_root is None else _absolute(audio_root)
    if root is not None and not (is_folder(root) if isinstance(root, Url) else os.path.isdir(root)):
        raise CorpusError(f"{audio_root}: the audio root is no folder")
    try:
        "".encode(encoding)
    except LookupError:
        raise ValueError(f"unknown encoding {encoding!r}; expected utf-8, latin-1, cp1252, ...") from None
    for source in listed:
        if not str(source).strip():
            raise CorpusError("a source is empty; expected a folder, a manifest, an audio file, a URL or hf:NAME[:SPLIT]")
    places = tuple(map(_absolute, listed))
    for place in places:
        _source_kind(place)
    return Corpus(places, root, encoding)


def _absolute(source: str | Path) -> str:
    """Absolute, because the paths of the clips must still be found when a report is rebuilt from elsewhere."""
    if str(source).startswith("hf:"):
        return str(source)
    place = place_of(source)
    return place if isinstance(place, Url) else os.path.abspath(place)


def _source_kind(source: str) -> str:
    if source.startswith("hf:"):
        return "dataset"
    place = place_of(source)
    if isinstance(place, Url):
        return _url_kind(place)
    if place.is_dir():
        if is_saved_dataset(place):
            return "dataset"
        return "webdataset" if is_webdataset(place) else "folder"
    if not place.exists():
        raise CorpusError(f"{source}: does not exist")
    return _file_kind(place)


def _url_kind(url: Url) -> str:
    """What lies at an address. Where the suffix says that it is a file, one request is enough."""
    if stat(url) is not None:
        return "webdataset" if url.suffix.lower() == ".tar" else _file_kind(url)
    if is_folder(url):
        return "webdataset" if is_webdataset(url) else "folder"
    check_bucket(url)
    raise CorpusError(f"{url}: does not exist")


def _file_kind(place: Place) -> str:
    if place.suffix.lower() in MANIFEST_SUFFIXES:
        return "manifest"
    if place.suffix.lower() in AUDIO_SUFFIXES:
        return "file"
    raise CorpusError(f"{place}: expected a folder, a manifest (.csv, .jsonl, .parquet), an audio file or hf:NAME[:SPLIT]")


def _source_items(source: str, audio_root: str | None, encoding: str) -> Iterator[Clip | Skipped]:
    kind, place = _source_kind(source), place_of(source)
    if kind == "dataset":
        return dataset_clips(source.removeprefix("hf:"))
    if kind == "webdataset":
        return webdataset_clips(place)
    if kind == "manifest":
        return manifest_clips(place, audio_root=None if audio_root is None else place_of(audio_root), encoding=encoding)
    if kind == "file":
        return iter([Clip(clip_id=place.name, path=place if isinstance(place, Url) else str(place))])
    return url_clips(place) if isinstance(place, Url) else folder_clips(place)
