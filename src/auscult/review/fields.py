"""What goes into the columns of ``review.db``: names of pairs and clusters, and the checks of what reviewers send."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from .schema import WITHDRAWN

MAX_NAME, MAX_NOTE = 64, 2000  # characters
_EVENT_ID = re.compile(r"[0-9A-Za-z._:-]{8,80}")


def pair_id(query_id: str, reference_id: str) -> str:
    """Name of a pair of clips, the same in every audit: 16 hexadecimal digits.

    >>> pair_id("generated/1.wav", "training/7.wav")
    '3e0c9f55f551c8bb'
    """
    return hashlib.sha256(f"{clip_name(query_id)}\0{clip_name(reference_id)}".encode()).hexdigest()[:16]


def cluster_key(clip_ids: Iterable[str]) -> str:
    """Name of a cluster of clips, whatever their order: 16 hexadecimal digits."""
    return hashlib.sha256("\0".join(sorted(clip_name(clip) for clip in clip_ids)).encode()).hexdigest()[:16]


def reviewer_name(name: str) -> str:
    """A reviewer's name as it is stored: without space around it, composed as Unicode's NFC; a ``ValueError`` if unusable."""
    if not isinstance(name, str):
        raise ValueError(f"reviewer should be a name, got {name!r}")  # noqa: TRY004 - a bad argument is a ValueError here
    stripped = unicodedata.normalize("NFC", name.strip())
    if not 1 <= len(stripped) <= MAX_NAME or not stripped.isprintable():
        raise ValueError(f"reviewer should be a name of 1 to {MAX_NAME} visible characters, got {name[:80]!r}")
    return stripped


def one_of(what: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{what} should be one of {', '.join(choices)}, got {value!r}")
    return value


def text_of(what: str, value: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} should be text, got {value!r}")  # noqa: TRY004
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} should be text that UTF-8 can hold, got {value[:80]!r}") from None
    if "\0" in value:
        raise ValueError(f"{what} should be text without NUL, got {value[:80]!r}")
    return value


def clip_name(value: str) -> str:
    if value == "":
        raise ValueError("a clip id should not be empty")
    return text_of("a clip id", value)


def note_text(note: str) -> str:
    if len(text_of("note", note)) > MAX_NOTE:
        raise ValueError(f"note should have at most {MAX_NOTE:,} characters, got {len(note):,}")
    return note


def event_name(value: str | None) -> str:
    if value is None:
        return str(uuid.uuid4())
    if not isinstance(value, str) or not _EVENT_ID.fullmatch(value):
        raise ValueError(f"event_id should be a UUID that the sender made, got {value!r}")
    return value


def now() -> str:
    return time_text(datetime.now(UTC))


def time_text(moment: datetime) -> str:
    """ISO 8601 in UTC, always equally long, so that times compare as texts."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def check_groups(key: str, decision: str, groups: Sequence[Sequence[str]], kept: Sequence[str]) -> None:
    """Groups partition the cluster, and one clip of each is kept."""
    if not isinstance(key, str) or not re.fullmatch(r"[0-9a-f]{16}", key):
        raise ValueError(f"cluster_key should be 16 hexadecimal digits, got {key!r}")
    if decision == WITHDRAWN:
        if groups or kept:
            raise ValueError("a withdrawn decision has no groups and keeps nothing; pass neither")
        return
    members = [clip for group in groups for clip in group]
    if not all(groups) or len(set(members)) != len(members) or cluster_key(members) != key:
        raise ValueError(f"groups should hold each clip of cluster {key} once, got {len(groups)} groups, {len(members)} clips")
    if len(kept) != len(groups) or any(clip not in group for clip, group in zip(kept, groups, strict=True)):
        raise ValueError(f"kept should name one clip of each of the {len(groups)} groups, got {list(kept)[:5]!r}")
    fits = {"all_one": len(groups) == 1, "split": len(groups) > 1, "not_duplicates": len(groups) == len(members)}
    if not fits[decision]:
        raise ValueError(f"{decision} does not go with {len(groups)} groups of {len(members)} clips")


def majority(votes: Counter[str]) -> str:
    """What most reviewers of a pair say.

    ``replication`` if more than half do; ``similar`` or ``different``, whichever is more frequent (equally: ``similar``), if
    more than half say one of these; else ``unsure``.

    Two who both say that it is no copy, one similar and one different, agree on what a rate depends on.

    Examples
    --------
    >>> majority(Counter(["similar", "different"])), majority(Counter(["replication", "similar"]))
    ('similar', 'unsure')
    """
    if 2 * votes["replication"] > votes.total():
        return "replication"
    if 2 * (votes["similar"] + votes["different"]) > votes.total():
        return "different" if votes["different"] > votes["similar"] else "similar"
    return "unsure"
