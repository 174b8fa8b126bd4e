"""Describe a corpus into a store: in several processes, resumable after any kill, and incremental.

Data flow: corpus -> (clip) -> worker: decode, cut, describe -> (rows, vectors) -> shard of 256 inputs -> disk.
The shards follow the order of the corpus, whatever the number of workers, so a run that was killed and continued writes
the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .corpus import Clip, Corpus, Skipped
from .corpus.archive import container
from .corpus.folder import printable
from .describing import BATCH, describe_all
from .descriptors import Descriptor
from .engine import HERE, Engine
from .errors import DescriptorMismatchError, OutputFolderError
from .folders import CARD, Progress, no_progress, remove_stale_temporaries
from .storage import Folder, Url, open_folder, read_folder_card, writing
from .storage.folder import file_digest_in, write_folder_card, writing_file
from .storage.lease import LEASE
from .storage.remote import stat_all
from .store import (
    CLIP_SCHEMA,
    CLIPS,
    KIND,
    PARTS,
    SKIPPED,
    SKIPPED_SCHEMA,
    DescriptorStore,
    Part,
    checked_table,
    damaged,
    digest_in,
    list_parts,
    open_store,
    part_order,
    read_part,
    read_parts,
    write_part,
)

log = logging.getLogger(__name__)

PART_INPUTS = 256  # a kill loses at most this many clips' work
PART_WINDOWS = 4096  # ... or this many vectors: a shard of hour-long recordings must not fill the memory
PADDING_WARNING = 0.25
ASKED_AT_ONCE = 256  # objects whose size and time a storage is asked for together, where no listing told them


@dataclass(frozen=True)
class Changes:
    """What a run has before it: clips that are new, have changed, are tried again or are as they were, and that vanished;
    and the shards that were found damaged and removed, so that their clips are among the new ones."""

    new: int
    changed: int
    retried: int
    unchanged: int
    vanished: int
    repaired: tuple[str, ...] = ()

    @property
    def first_run(self) -> bool:
        """Nothing was known before."""
        return not (self.changed or self.retried or self.unchanged or self.vanished)


def index(
    corpus: Corpus,
    store: str | Path,
    *,
    descriptor: Descriptor,
    engine: Engine = HERE,
    dtype: str | None = None,
    retry_skipped: bool = False,
    keep_vanished: bool = True,
    repair: bool = False,
    progress: Progress = no_progress,
    planned: Callable[[Changes], object] | None = None,
) -> DescriptorStore:
    """Describe a corpus into a store, or bring an existing store up to date.

    Only new and changed clips are described (a file has changed when its path, size, modification time, caption or
    stretch has); clips whose file has vanished are kept and counted in the card.

    Parameters
    ----------
    corpus
        The source; see ``auscult.corpus.open_corpus``.
    store
        Folder of the store, a local path or a URL; created if it does not exist.
    descriptor
        What to compute.
    engine
        Where the work is done. With more than one worker, a script must guard its entry by ``if __name__ == "__main__"``.
    dtype
        How vectors are kept on disk: None for the descriptor's own way, or ``"float16"`` to halve float32.
    retry_skipped
        Try again what could not be read last time.
    keep_vanished
        Keep the descriptors of clips that are no longer in the source.
    repair
        Check the digest of every shard first; remove those that are damaged, and describe their inputs again.
    progress
        Called with (clips done, clips to do, what).
    planned
        Called with what has changed since the last run, before anything is described.

    Raises
    ------
    OutputFolderError
        The folder holds something else.
    DescriptorMismatchError
        The store was made with another descriptor.
    CorpusError
        The source as a whole cannot be read.
    StoreError
        Another process is writing to the store, or a shard of it is damaged.
    StorageError
        A place denies, cannot be reached, or is full.
    """
    if dtype not in {None, descriptor.dtype} and (dtype, descriptor.dtype) != ("float16", "float32"):
        raise ValueError(f"dtype should be {descriptor.dtype} for {descriptor.spec}, or float16 for float32; got {dtype!r}")
    dtype = dtype or descriptor.dtype
    folder = open_folder(store)
    _check_folder(folder)
    shards = _Shards() if repair else _survey(folder, descriptor, dtype)
    plan = None if repair else _plan(corpus, shards.known, retry_skipped)
    if plan is not None and _nothing_to_do(folder, plan, shards, keep_vanished):
        if planned is not None:
            planned(plan.changes)
        return open_store(folder)
    _make(folder)
    with writing(folder) as still_ours:
        removed = _remove_damaged(folder) if repair else ()
        if plan is None or list_parts(folder) != shards.names:  # another process was writing until now
            shards = _survey(folder, descriptor, dtype)
            plan = _plan(corpus, shards.known, retry_skipped)
        if planned is not None:
            planned(replace(plan.changes, repaired=removed))
        if _nothing_to_do(folder, plan, shards, keep_vanished):
            return open_store(folder)
        folder.delete(CARD)  # until it is back, the store counts as incomplete
        for name in shards.superseded:
            folder.delete(f"{PARTS}/{name}")
        pending = _pending(corpus, shards.known, retry_skipped)
        progress(0, plan.todo, "described")
        where = engine if plan.todo >= 4 * BATCH else HERE
        _write_parts(folder, pending, shards, descriptor, where, dtype, plan.todo, progress, still_ours)
        vanished = plan.vanished(shards.known, keep_vanished)
        _drop_rows(folder, shards, plan.gone - set(vanished), descriptor, still_ours)
        _finish(folder, corpus, descriptor, dtype, vanished, still_ours)
    return open_store(folder)


def _check_folder(folder: Folder) -> None:
    """Refuse a folder that is no store."""
    if isinstance(folder.place, Path) and folder.place.exists() and not folder.place.is_dir():
        raise OutputFolderError(f"{folder.place}: holds something that is not a descriptor store; choose another -o")
    names = {entry.name for entry in folder.list()} - {LEASE, CLIPS, SKIPPED}
    if isinstance(folder.place, Path) and not names and folder.place.is_dir():
        names = {path.name for path in folder.place.iterdir()} - {CLIPS, SKIPPED}  # hidden files are somebody's, too
    # at a URL the last shard takes its folder along
    if names and PARTS not in names and not (CARD in names and read_folder_card(folder)["kind"] == KIND):
        raise OutputFolderError(f"{folder.place}: holds something that is not a descriptor store; choose another -o")


def _make(folder: Folder) -> None:
    try:
        folder.below(PARTS).make()
    except OSError as error:
        raise OutputFolderError(f"{folder.place}: cannot be made ({error.strerror})") from error
    if isinstance(folder.place, Path):
        for place in (folder.place, folder.place / PARTS):
            remove_stale_temporaries(place)


def _remove_damaged(folder: Folder) -> tuple[str, ...]:
    """Delete the shards whose bytes are not those that were written, and return their names."""
    problems = damaged(folder, {f"{PARTS}/{name}": digest_in(name) for name in list_parts(folder)})
    if problems:
        folder.delete(CARD)  # first: with it, a store would count as whole without them
    for name, problem in problems.items():
        log.warning("%s: %s: %s; its inputs are described again", folder.place, name, problem)
        folder.delete(name)
    return tuple(problems)


# --- what is known, and what is to be done --------------------------------------------------------------------------


class _Known(NamedTuple):
    """What a finished shard says of an input: its state then, whether it was skipped, and the number of the shard."""

    state: str
    skipped: bool
    number: int


@dataclass
class _Shards:
    """The finished shards of a store.

    ``known``: by key, everything that they answer for, later ones superseding earlier ones; ``newer``: by key, the number of
    the shard that this run has written for an input that was known; ``stale``: numbers of those that hold rows which a later
    one answers for; ``superseded``: names of those that were about to be deleted when a run was killed, another of the same
    number being in their place.
    """

    names: list[str] = field(default_factory=list)
    known: dict[str, _Known] = field(default_factory=dict)
    newer: dict[str, int] = field(default_factory=dict)
    stale: set[int] = field(default_factory=set)
    superseded: list[str] = field(default_factory=list)

    def found(self, number: int, part: Part) -> None:
        """Take down what a shard that was there answers for."""
        for rows, skipped in ((part.clips, False), (part.skipped, True)):
            for row in rows:
                before = self.known.get(row["key"])
                if before is not None:
                    self.stale.add(before.number)
                self.known[row["key"]] = _Known(row["state"], skipped, number)

    def wrote(self, number: int, part: Part) -> None:
        """Take down which rows of shards that were there the new one replaces."""
        for row in (*part.clips, *part.skipped):
            if row["key"] in self.known:
                self.stale.add(self.newer.get(row["key"], self.known[row["key"]].number))
                self.newer[row["key"]] = number

    def answers(self, number: int, key: str) -> bool:
        """Whether no other shard than this one answers for a known input."""
        return number == self.newer.get(key, self.known[key].number)


def _survey(folder: Folder, descriptor: Descriptor, dtype: str) -> _Shards:
    """Read what the finished shards answer for.

    Raises
    ------
    DescriptorMismatchError
        They were made with other settings.
    """
    shards = _Shards(list_parts(folder))
    for number, twins in itertools.groupby(read_parts(folder, shards.names), key=lambda read: part_order(read[0]).number):
        # a shard is rewritten, to drop rows, by writing the new one and then deleting the old one
        name, part = min(twins, key=lambda read: len(read[1].clips) + len(read[1].skipped))
        shards.superseded += [other for other in shards.names if other != name and part_order(other).number == number]
        if (part.spec, part.dtype) != (str(descriptor.spec), dtype):
            raise DescriptorMismatchError(
                f"{folder.place}: described with {part.spec} in {part.dtype}, asked for {descriptor.spec} in {dtype}; "
                "choose another -o, or the same settings"
            )
        shards.found(number, part)
    return shards


@dataclass(frozen=True)
class _Plan:
    """How many inputs are to be described, the keys of the store that are no longer in the source, and both in words."""

    todo: int
    gone: set[str]
    changes: Changes

    def vanished(self, known: dict[str, _Known], keep: bool) -> list[str]:
        """Keys of the clips that are no longer in the source and kept."""
        return sorted(key for key in self.gone if keep and not known[key].skipped)


def _nothing_to_do(folder: Folder, plan: _Plan, shards: _Shards, keep_vanished: bool) -> bool:
    """Whether the store is whole, undamaged in its tables, and already says what has vanished."""
    vanished = plan.vanished(shards.known, keep_vanished)
    if plan.todo or len(plan.gone) > len(vanished) or not folder.exists(CARD):
        return False
    card = open_store(folder).card
    whole = card["vanished_sha256"] == _digest_of(vanished) and sorted(card["parts"]) == sorted(shards.names)
    return whole and not damaged(folder, card["tables"])


def _digest_of(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def _key(item: Clip | Skipped) -> str:
    """Names an input within its corpus."""
    return f"clip:{item.clip_id}" if isinstance(item, Clip) else f"skipped:{item.path}:{item.reason}"


def _state(item: Clip | Skipped, seen: Iterable[int] | None) -> str:
    """A digest that changes when the input does; ``seen``: size and time of the file that a clip lies in."""
    if isinstance(item, Skipped):
        facts: list[Any] = [item.path, item.reason, item.kind]
    else:
        facts = [item.path, item.start_s, item.duration_s, item.caption, item.labels, None if seen is None else list(seen)]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()


def _with_states(corpus: Iterable[Clip | Skipped]) -> Iterator[tuple[Clip | Skipped, str]]:
    """Every input with its state. Of objects at URLs it is known from the listing, else several are asked for at once."""
    waiting: list[Clip | Skipped] = []
    for item in corpus:
        local = isinstance(item, Skipped) or item.seen is not None or not isinstance(item.path, Url)
        if local and not waiting:
            yield item, _state(item, None if isinstance(item, Skipped) else item.seen or _seen_on_disk(item.path))
            continue
        waiting.append(item)
        if len(waiting) == ASKED_AT_ONCE:
            yield from _asked(waiting)
            waiting = []
    yield from _asked(waiting)


def _asked(items: list[Clip | Skipped]) -> Iterator[tuple[Clip | Skipped, str]]:
    urls = [item.path for item in items if isinstance(item, Clip) and item.seen is None and isinstance(item.path, Url)]
    found = dict(zip(urls, stat_all(urls), strict=True))
    for item in items:
        seen: Iterable[int] | None = None
        if isinstance(item, Clip):
            seen = item.seen or (found.get(item.path) if isinstance(item.path, Url) else _seen_on_disk(item.path))
        yield item, _state(item, seen)


def _seen_on_disk(path: str) -> tuple[int, int] | None:
    if isinstance(path, Url):
        return None
    try:
        status = os.stat(container(path))
    except OSError:
        return None  # missing, or not a file (hf:...)
    return status.st_size, status.st_mtime_ns


def _pending(
    corpus: Iterable[Clip | Skipped], known: dict[str, _Known], retry_skipped: bool
) -> Iterator[tuple[Clip | Skipped, str, str]]:
    """What is new or has changed, as (item, key, state), in the order of the corpus."""
    unreadable: set[str] = set()  # what a source names twice for the same reason counts once, whenever a run was killed
    for item, state in _with_states(corpus):
        key = _key(item)
        if isinstance(item, Skipped):
            if key in unreadable:
                continue
            unreadable.add(key)
        before = known.get(key)
        if before is None or before.state != state or (retry_skipped and before.skipped):
            yield item, key, state


def _plan(corpus: Corpus, known: dict[str, _Known], retry_skipped: bool) -> _Plan:
    """What is to be done."""
    gone = set(known)
    seen = {True: 0, False: 0}  # clips, and what is none

    def noted() -> Iterator[Clip | Skipped]:
        for item in corpus:
            seen[isinstance(item, Clip)] += 1
            gone.discard(_key(item))
            yield item

    if not known:
        return _Plan(sum(1 for _ in noted()), gone, Changes(seen[True], 0, 0, 0, 0))
    todo, new, changed, retried = 0, 0, 0, 0
    for item, key, state in _pending(noted(), known, retry_skipped):
        todo += 1
        if isinstance(item, Clip):
            before = known.get(key)
            new += before is None
            changed += before is not None and before.state != state
            retried += before is not None and before.state == state
    vanished = sum(key.startswith("clip:") and not known[key].skipped for key in gone)
    return _Plan(todo, gone, Changes(new, changed, retried, seen[True] - new - changed - retried, vanished))


# --- describing -----------------------------------------------------------------------------------------------------


def _write_parts(
    folder: Folder,
    pending: Iterator[tuple[Clip | Skipped, str, str]],
    shards: _Shards,
    descriptor: Descriptor,
    engine: Engine,
    dtype: str,
    todo: int,
    progress: Progress,
    still_ours: Callable[[], None],
) -> None:
    numbers = {part_order(name).number for name in shards.names}
    following = itertools.count(1 + max(numbers, default=-1))
    gaps = sorted(set(range(max(numbers, default=0))) - numbers)
    results = describe_all(pending, descriptor, engine)
    done = 0
    while True:
        part, owners, starts, vectors, n_windows = Part([], []), [], [], [], 0
        for described in results:
            (part.skipped if described.skipped else part.clips).append(described.row)
            owners += [described.row["clip_id"]] * len(described.starts)
            starts += described.starts
            vectors.append(described.vectors.astype(dtype, copy=False))
            n_windows += len(described.starts)
            done += 1
            progress(done, todo, "described")
            if len(part.clips) + len(part.skipped) >= PART_INPUTS or n_windows >= PART_WINDOWS:
                break
        if not part.clips and not part.skipped:
            return
        matrix = np.concatenate(vectors) if vectors else np.zeros((0, descriptor.dimension), dtype)
        # A shard that was lost is made anew in its place, so that a mended store is equal to one that was never damaged.
        # But what supersedes rows of other shards has to come after them.
        superseding = any(row["key"] in shards.known for row in (*part.clips, *part.skipped))
        number = gaps.pop(0) if gaps and not superseding else next(following)
        still_ours()
        write_part(folder, number, part, owners, starts, matrix, descriptor.spec)
        shards.wrote(number, part)


# --- finishing ------------------------------------------------------------------------------------------------------


def _drop_rows(folder: Folder, shards: _Shards, gone: set[str], descriptor: Descriptor, still_ours: Callable[[], None]) -> None:
    """Rewrite the shards that hold rows which a later shard answers for (a file that changed), or which are ``gone``."""
    stale = shards.stale | {shards.known[key].number for key in gone}
    for name in list_parts(folder) if stale else ():
        number = part_order(name).number
        if number not in stale:
            continue
        part = read_part(folder, name)
        clips, skipped = (
            [row for row in rows if row["key"] not in gone and shards.answers(number, row["key"])]
            for rows in (part.clips, part.skipped)
        )
        still_ours()
        if clips or skipped:
            _rewrite(folder, name, Part(clips, skipped), descriptor)
        folder.delete(f"{PARTS}/{name}")


def _rewrite(folder: Folder, name: str, part: Part, descriptor: Descriptor) -> None:
    """Write the shard anew with the vectors of the rows in ``part`` only."""
    table = checked_table(folder, f"{PARTS}/{name}", digest_in(name))
    wanted = {row["clip_id"] for row in part.clips}
    owners = table["clip_id"].to_pylist()
    rows = [number for number, owner in enumerate(owners) if owner in wanted]
    column = table["vector"].combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(owners), descriptor.dimension)[rows]
    starts = table["start_s"].to_numpy()[rows].tolist()
    number = part_order(name).number
    write_part(folder, number, part, [owners[row] for row in rows], starts, vectors, descriptor.spec)


def _finish(
    folder: Folder,
    corpus: Corpus,
    descriptor: Descriptor,
    dtype: str,
    vanished: list[str],
    still_ours: Callable[[], None],
) -> None:
    """Gather the shards' rows into the tables, then write the card that declares the store whole."""
    durations: list[float] = []
    counts = {"clips": 0, "windows": 0, "skipped": 0, "not_audio": 0, "vanished": len(vanished)}
    flags: dict[str, int] = {}
    padding_s = 0.0
    content: list[str] = []
    parts: dict[str, int] = {}
    still_ours()
    with (
        writing_file(folder, CLIPS) as clips_file,
        writing_file(folder, SKIPPED) as skipped_file,
        pq.ParquetWriter(clips_file, CLIP_SCHEMA, compression="zstd") as clips,
        pq.ParquetWriter(skipped_file, SKIPPED_SCHEMA, compression="zstd") as skipped,
    ):
        for name, part in read_parts(folder, list_parts(folder)):
            parts[name] = sum(row["n_windows"] for row in part.clips)
            clips.write_table(pa.Table.from_pylist(part.clips, CLIP_SCHEMA))
            skipped.write_table(pa.Table.from_pylist(part.skipped, SKIPPED_SCHEMA))
            counts["clips"] += len(part.clips)
            counts["not_audio"] += sum(row["kind"] == "not_audio" for row in part.skipped)
            counts["skipped"] += sum(row["kind"] != "not_audio" for row in part.skipped)
            counts["windows"] += parts[name]
            for row in part.clips:
                padding_s += row["padding_s"]
                durations.append(row["duration_s"])
                content.append(
                    hashlib.sha256(
                        f"{row['clip_id']}\0{row['sha256']}\0{row['start_s']}\0{row['duration_s']}".encode()
                    ).hexdigest()
                )
                for flag in row["flags"]:
                    flags[flag] = flags.get(flag, 0) + 1
    window_s = descriptor.window_samples / descriptor.sample_rate_hz
    padding_share = round(padding_s / (counts["windows"] * window_s), 4) if counts["windows"] else 0.0
    if descriptor.tail != "move":
        padding_share = 0.0  # padding is not compared
    still_ours()
    write_folder_card(
        folder,
        KIND,
        {
            "spec": str(descriptor.spec),
            "dimension": descriptor.dimension,
            "dtype": dtype,
            "window_s": window_s,
            "source": [printable(source) for source in corpus.sources],
            "counts": counts,
            "flags": dict(sorted(flags.items())),
            "audio_s": round(sum(durations), 3),
            "padding_share": padding_share,
            "vanished": [key.partition(":")[2] for key in vanished[:100]],
            "vanished_sha256": _digest_of(vanished),
            "warnings": _warnings(padding_share, window_s, durations, vanished),
            "content_sha256": _digest_of(sorted(content)),  # whatever the order in which the clips came in
            "tables": {name: file_digest_in(folder, name) for name in (CLIPS, SKIPPED)},
            "parts": parts,
        },
    )


def _warnings(padding_share: float, window_s: float, durations: list[float], vanished: list[str]) -> list[str]:
    warnings = []
    if padding_share > PADDING_WARNING:
        warnings.append(padding_warning(f"{padding_share:.0%} of what was described", window_s, durations))
    if vanished:
        some = "1 clip of the store is" if len(vanished) == 1 else f"{len(vanished):,} clips of the store are"
        warnings.append(f"{some} no longer in the source; descriptors are kept")
    return warnings


def padding_warning(what: str, window_s: float, durations: Iterable[float]) -> str:
    """That ``what`` is padding, and the window that would suit clips of these ``durations`` (s)."""
    better = float(np.median([duration for duration in durations if duration < window_s]))
    return (
        f"{what} is padding: most clips are shorter than the window of {window_s:g} s. "
        f"Padding looks alike in every clip and blurs the comparison; describe with --duration {max(better, 0.1):.3g}"
    )
