"""What goes into a corridor: corpora or stores, brought to stores of one descriptor, and what a card says of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from .corpus import Clip, Corpus, open_corpus
from .corpus.folder import printable
from .descriptors import Descriptor, load_descriptor
from .descriptors.base import check_request
from .engine import Engine
from .errors import CorpusError, DescriptorMismatchError, StoreError
from .folders import CARD, SCRATCH, Progress, package_versions
from .indexing import index, padding_warning
from .storage import is_url, open_folder, place_of, read_folder_card
from .store import CLIPS, PARTS, SKIPPED_SCHEMA, DescriptorStore, check_same_spec, list_parts
from .store import KIND as STORE_KIND

DEFAULT_DESCRIPTOR = "contrast"
Source = Corpus | DescriptorStore


@dataclass(frozen=True)
class StoredClips(Corpus):
    """The clips that a store was made of, to be described by another descriptor: their audio is read where it was then."""

    store: DescriptorStore | None = None

    @classmethod
    def of(cls, store: DescriptorStore) -> StoredClips:
        """The clips of a store, under the names of its own sources."""
        return cls(tuple(store.card["source"]), store=store)

    def __iter__(self) -> Iterator[Clip]:
        columns = ("clip_id", "path", "start_s", "duration_s", "caption")
        assert self.store is not None
        for row in self.store.clips().select([*columns, "labels"]).to_pylist():
            yield Clip(**{name: row[name] for name in columns}, labels=tuple(row["labels"] or ()))


def choose_descriptor(sources: dict[str, Source], name: str | None, duration_s: float | None) -> Descriptor:
    """The descriptor of the stores among the sources; if there are none, the configured one (None: ``contrast``).

    Raises
    ------
    ValueError
        There is no such descriptor, or it has no such settings.
    DescriptorMismatchError
        The stores are unequal, or not what was asked for.
    """
    check_request(name, duration_s)
    stores = {role: source for role, source in sources.items() if isinstance(source, DescriptorStore)}
    parameters = {} if duration_s is None else {"duration_s": duration_s}
    if not stores:
        return load_descriptor(name or DEFAULT_DESCRIPTOR, **parameters)
    spec = check_same_spec(stores)
    asked = {"descriptor": name, **parameters}
    for key, value in asked.items():
        if value not in {None, {"descriptor": spec.name, **dict(spec.parameters)}.get(key)}:
            what = f"{key}={value}"
            if key == "descriptor" and parameters:  # it may have been implied
                what = f"duration_s={duration_s}, a setting of mel only,"
            raise DescriptorMismatchError(f"{what} was asked for, but the given stores hold {spec}")
    return load_descriptor(spec)


def stored_descriptor(sources: dict[str, Source]) -> str | None:
    """Name of the descriptor of the first store among the sources, if there is one."""
    return next((source.spec.name for source in sources.values() if isinstance(source, DescriptorStore)), None)


def task_sources(sources: dict[str, Source]) -> dict[str, Any]:
    """What the sources are, so that a stopped run is continued only with the same ones."""
    return {
        role: [str(source.path), source.card["content_sha256"]]
        if isinstance(source, DescriptorStore)
        else [*map(printable, source.sources), source.audio_root, source.encoding]
        for role, source in sources.items()
    }


def clips_digest(source: Source) -> str:
    """What the clips of a source are: their ids, paths, stretches, captions, and the sizes and times of their files.

    A store answers with the digest of its content. Files are not read.
    """
    if isinstance(source, DescriptorStore):
        return str(source.card["content_sha256"])
    digest = hashlib.sha256()
    for item in source:
        facts: tuple[Any, ...] = (item.path,)
        if isinstance(item, Clip):
            facts = (item.clip_id, item.path, item.start_s, item.duration_s, item.caption, size_and_time(item))
        digest.update(repr(facts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def size_and_time(clip: Clip) -> tuple[int, int] | None:
    """Of the file or the archive that a clip lies in; of what is not on a disk, as a listing told them."""
    for path in (clip.path, clip.path.rpartition("::")[0]):
        with suppress(OSError, ValueError):
            found = os.stat(path)
            return found.st_size, found.st_mtime_ns
    return clip.seen


def describe_sources(
    sources: dict[str, Source], folder: Path, descriptor: Descriptor, *, engine: Engine, progress: Progress
) -> dict[str, DescriptorStore]:
    """Open each source's store, describing the corpora into ``folder / role`` first.

    Raises
    ------
    CorpusError
        A source has no clip that can be described.
    """
    stores = {}
    for role, source in sources.items():
        if isinstance(source, DescriptorStore):
            stores[role] = source
        else:

            def described(done: int, total: int | None, what: str, role: str = role) -> None:
                progress(done, total, f"{role} {what}")

            stores[role] = index(
                source, folder / role, descriptor=descriptor, engine=engine, keep_vanished=False, progress=described
            )
        counts = stores[role].card["counts"]
        if counts["windows"] == 0:
            why = f"no clip to compare in {', '.join(stores[role].card['source'])}; {_why(stores[role])}"
            if not isinstance(source, DescriptorStore):
                shutil.rmtree(folder / role)  # nothing to go on from
            raise CorpusError(f"{role}: {why}")
    return stores


def _why(store: DescriptorStore) -> str:
    """Why a store holds nothing to compare."""
    counts = store.card["counts"]
    if counts["clips"]:
        return f"its {counts['clips']} clips are all silent"
    unreadable = [row for row in store.skipped().to_pylist() if row["kind"] != "not_audio"]
    if unreadable:
        first = unreadable[0]
        return (
            f"{len(unreadable)} files could not be read, the first: {first['path']}: {first['reason']}. "
            "If a manifest's paths are relative to another folder, give --audio-root"
        )
    return f"it holds no audio ({counts['not_audio']} other files)" if counts["not_audio"] else "it is empty: it names no clip"


def input_facts(store: DescriptorStore) -> dict[str, Any]:
    """What a card says of an input: where it came from, how much there was, and its digest."""
    keys = ("source", "counts", "flags", "audio_s", "padding_share", "content_sha256")
    return {key: store.card[key] for key in keys}


def input_warnings(stores: dict[str, DescriptorStore], *, padding: bool = True) -> list[str]:
    """The stores' own warnings, each with its role; that of padding, which most inputs share, as one sentence for all.

    ``padding=False`` leaves the latter out, for what compares no sounds.
    """
    warnings, shares, durations = [], [], []
    for role, store in stores.items():
        share, window_s = store.card["padding_share"], store.card["window_s"]
        for warning in store.card["warnings"]:
            if not warning.startswith(f"{share:.0%} of what was described is padding"):
                warnings.append(f"{role}: {warning}")
                continue
            shares.append(f"{share:.0%} of {role}")
            durations += store.clips()["duration_s"].to_pylist()
    if shares and padding:
        warnings.insert(0, padding_warning(listed(shares), window_s, durations))
    return warnings


def listed(items: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def shortened(items: Sequence[str], most: int = 3) -> str:
    """The first of many names, and how many there are, for messages.

    Examples
    --------
    >>> shortened(["a", "b"]), shortened(["a", "b", "c", "d", "e"])
    ('a, b', 'a, b, c and 2 more')
    """
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest:,} more" if rest > 0 else "")


@contextmanager
def scratch(engine: Engine, folder: Path, stores: dict[str, DescriptorStore]) -> Iterator[Engine]:
    """The engine with a place below ``folder`` where searches keep their state, for these very inputs; it goes in the end."""
    held = {role: [str(store.spec), store.card["tables"][CLIPS], store.part_names] for role, store in sorted(stores.items())}
    digest = hashlib.sha256(json.dumps([package_versions(), held]).encode()).hexdigest()
    yield dataclasses.replace(engine, scratch=folder / SCRATCH / digest[:16])
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)


def skipped_table(stores: dict[str, DescriptorStore]) -> pa.Table:
    """The inputs' skipped tables as one, with the role of the input."""
    tables = []
    for role, store in stores.items():
        table = store.skipped().cast(SKIPPED_SCHEMA)
        tables.append(table.append_column("role", pa.array([role] * table.num_rows, pa.string())))
    return pa.concat_tables(tables)


def source_of(text: str, *, audio_root: str | None = None, encoding: str = "utf-8") -> Source:
    """What SRC on the command line means: a store if the folder (a path or a URL) is one, else a corpus."""
    if is_store(text):
        return DescriptorStore.open(text)
    return open_corpus(text, audio_root=audio_root, encoding=encoding)


def is_store(text: str) -> bool:
    """Whether a source is a folder (a path or a URL) that holds descriptors."""
    if text.startswith("hf:"):
        return False
    folder = open_folder(place_of(text))
    entries = {entry.name: entry for entry in folder.list()}
    if PARTS in entries and entries[PARTS].is_folder and (not is_url(text) or list_parts(folder)):
        return True
    try:
        return CARD in entries and read_folder_card(folder)["kind"] == STORE_KIND
    except StoreError:
        return False
