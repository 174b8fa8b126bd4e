"""Clips below a URL: in the same order as below a local folder, one listing at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..errors import StoreError
from ..folders import CARD, TASK
from ..storage import Entry, RemoteFolder, Url, in_order, read_folder_card
from ..storage.remote import READERS
from .clip import Clip, Skipped
from .folder import AUDIO_SUFFIXES, OWN_KINDS, is_utf8, printable


def walk_url(root: Url) -> Iterator[tuple[str, Url, Entry]]:
    """Yield ``(relative path, address, what the listing says)`` of everything below ``root`` that is no folder, sorted by name
    in each folder. Hidden entries and auscult's own folders are passed over.

    Listings are asked for several folders at a time, since each takes a request.
    """
    yield from _walk(RemoteFolder(root), RemoteFolder(root).list(), "")


def _walk(folder: RemoteFolder, entries: list[Entry], prefix: str) -> Iterator[tuple[str, Url, Entry]]:
    below = [folder.below(entry.name) for entry in entries if entry.is_folder]
    listings = in_order(RemoteFolder.list, below, threads=1 if len(below) < 2 else READERS // 4)
    for entry in entries:
        if not entry.is_folder:
            yield prefix + entry.name, folder.below(entry.name).place, entry
            continue
        inside, listing = folder.below(entry.name), next(listings)
        if not _is_ours(inside, listing):
            yield from _walk(inside, listing, f"{prefix}{entry.name}/")


def _is_ours(folder: RemoteFolder, listing: list[Entry]) -> bool:
    """A folder that auscult wrote or is writing, as :func:`auscult.corpus.folder.walk` passes them over."""
    names = {entry.name for entry in listing}
    if CARD in names:
        try:
            return read_folder_card(folder)["kind"] in OWN_KINDS
        except StoreError:
            return False
    if "vectors" in names and any(entry.name.startswith("part-") for entry in folder.below("vectors").list()):
        return True
    return folder.place.name.endswith(".partial") and TASK in names


def url_clips(root: Url) -> Iterator[Clip | Skipped]:
    """Yield a clip for every object below ``root`` with an audio suffix, and the rest as skipped."""
    for relative, url, entry in walk_url(root):
        suffix = os.path.splitext(entry.name)[1].lower()
        if not is_utf8(relative):
            yield Skipped(printable(url), "the name is not valid UTF-8; rename the object")
        elif suffix not in AUDIO_SUFFIXES:
            yield Skipped(url, f"not audio by its suffix ({suffix or 'none'})", "not_audio")
        else:
            yield Clip(clip_id=relative, path=url, seen=(entry.size, entry.mtime_ns))
