"""What is to be done for a store: what its shards answer for, what the source holds now, and what has changed between them."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .corpus import Clip, Corpus, Skipped
from .corpus.archive import container
from .descriptors import Descriptor
from .errors import DescriptorMismatchError
from .folders import CARD
from .storage import Folder, Url
from .storage.remote import stat_all
from .store import Part, damaged, list_parts, open_store, part_order, read_parts

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


class Known(NamedTuple):
    """What a finished shard says of an input: its state then, whether it was skipped, and the number of the shard."""

    state: str
    skipped: bool
    number: int


@dataclass
class Shards:
    """The finished shards of a store.

    ``known``: by key, everything that they answer for, later ones superseding earlier ones; ``newer``: by key, the number of
    the shard that this run has written for an input that was known; ``stale``: numbers of those that hold rows which a later
    one answers for; ``superseded``: names of those that another of the same number is in the place of: they were about to be
    deleted when a run was killed, or came in late from a writer that was taken for dead.
    """

    names: list[str] = field(default_factory=list)
    known: dict[str, Known] = field(default_factory=dict)
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
                self.known[row["key"]] = Known(row["state"], skipped, number)

    def wrote(self, number: int, part: Part) -> None:
        """Take down which rows of shards that were there the new one replaces."""
        for row in (*part.clips, *part.skipped):
            if row["key"] in self.known:
                self.stale.add(self.newer.get(row["key"], self.known[row["key"]].number))
                self.newer[row["key"]] = number

    def answers(self, number: int, key: str) -> bool:
        """Whether no other shard than this one answers for a known input."""
        return number == self.newer.get(key, self.known[key].number)


def survey(folder: Folder, descriptor: Descriptor, dtype: str) -> Shards:
    """Read what the finished shards answer for.

    Raises
    ------
    DescriptorMismatchError
        They were made with other settings.
    """
    shards = Shards(list_parts(folder))
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
class Plan:
    """How many inputs are to be described, the keys of the store that are no longer in the source, and both in words."""

    todo: int
    gone: set[str]
    changes: Changes

    def vanished(self, known: dict[str, Known], keep: bool) -> list[str]:
        """Keys of the clips that are no longer in the source and kept."""
        return sorted(key for key in self.gone if keep and not known[key].skipped)


def nothing_to_do(folder: Folder, plan: Plan, shards: Shards, keep_vanished: bool) -> bool:
    """Whether the store is whole, undamaged in its tables, and already says what has vanished."""
    vanished = plan.vanished(shards.known, keep_vanished)
    if plan.todo or shards.superseded or len(plan.gone) > len(vanished) or not folder.exists(CARD):
        return False
    card = open_store(folder).card
    whole = card["vanished_sha256"] == digest_of_names(vanished) and sorted(card["parts"]) == sorted(shards.names)
    return whole and not damaged(folder, card["tables"])


def digest_of_names(names: list[str]) -> str:
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
    found = dict(zip((url.full for url in urls), stat_all(urls), strict=True))  # several may be shown as one address
    for item in items:
        seen: Iterable[int] | None = None
        if isinstance(item, Clip):
            seen = item.seen or (found.get(item.path.full) if isinstance(item.path, Url) else _seen_on_disk(item.path))
        yield item, _state(item, seen)


def _seen_on_disk(path: str) -> tuple[int, int] | None:
    if isinstance(path, Url):
        return None
    try:
        status = os.stat(container(path))
    except OSError:
        return None  # missing, or not a file (hf:...)
    return status.st_size, status.st_mtime_ns


def pending_inputs(
    corpus: Iterable[Clip | Skipped], known: dict[str, Known], retry_skipped: bool
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


def make_plan(corpus: Corpus, known: dict[str, Known], retry_skipped: bool) -> Plan:
    """What is to be done."""
    gone = set(known)
    seen = {True: 0, False: 0}  # clips, and what is none

    def noted() -> Iterator[Clip | Skipped]:
        for item in corpus:
            seen[isinstance(item, Clip)] += 1
            gone.discard(_key(item))
            yield item

    if not known:
        return Plan(sum(1 for _ in noted()), gone, Changes(seen[True], 0, 0, 0, 0))
    todo, new, changed, retried = 0, 0, 0, 0
    for item, key, state in pending_inputs(noted(), known, retry_skipped):
        todo += 1
        if isinstance(item, Clip):
            before = known.get(key)
            new += before is None
            changed += before is not None and before.state != state
            retried += before is not None and before.state == state
    vanished = sum(key.startswith("clip:") and not known[key].skipped for key in gone)
    return Plan(todo, gone, Changes(new, changed, retried, seen[True] - new - changed - retried, vanished))
