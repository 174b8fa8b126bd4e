"""What the review server says: the session, the queue, a pair, a cluster, as plain values that JSON can hold.

A blind reviewer's answers are made of fields that do not tell what the audit thinks; the others are added for those who may
see them, so that a field that is new stays here unless someone puts it among the open ones.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np

from ..audit import KIND as AUDIT_KIND
from ..errors import AudioDecodeError, AuscultError, StoreError
from ..figures import SCALES, frequency_ticks
from .clusters import ClusterMember, ReviewClusters
from .fields import reviewer_name
from .ledger import Ledger
from .media import ClipAudio, clip_of, difference, difference_wav, levels, open_clip, spectrogram
from .originals import Originals
from .queue import ORDERS, load_pairs, order_pairs, other_pairs, pair_row
from .sampling import draw_sample
from .verdicts import WITHDRAWN, Sample, VerdictStore

Role = Literal["query", "reference"]
ROLES: tuple[Role, ...] = ("query", "reference")
SETS = ("listed", "sample")
BLIND_ORDER = "random"  # the other orders tell which pairs the audit takes for copies
SPAN_FIELDS = ("query_start_s", "query_end_s", "reference_start_s", "reference_end_s")
TELLING_FIELDS = ("score", "similarity", "bias", "p_value", "flagged", "rank")
KEPT_SOUNDS = 64  # differences of pairs, up to a minute each: 6 MB at the most
UNREADABLE = "this sound cannot be read; what the server printed says why"


logger = logging.getLogger(__name__)


class NotHereError(AuscultError):
    """No such pair, cluster or clip in this review."""


class ForbiddenError(AuscultError):
    """This review is another reviewer's."""


class ChangedError(AuscultError):
    """A file is not the one that was compared."""


class Desk:
    """One folder under review. Any thread may call any method; those that decode sound take their time.

    Parameters
    ----------
    folder
        Of an audit or a deduplication.
    reviewer
        Who reviews where a request does not say.
    reviewer_fixed
        Whether nobody else may, or see what anybody else decided; by default in a blind review.
    blind
        Whether scores, p-values, flags, ranks, paths, clip ids and orders that tell stay here.
    order
        Of the queue where a request does not say.
    controls, sample
        How many control pairs to mix in, and how many unflagged clips to draw; 0 for none. By default the controls that were
        made before.
    seed
        Of what is random.
    unreviewed
        Whether the page should begin with what its reviewer has not decided.

    Raises
    ------
    StoreError
        The folder is neither an audit nor a deduplication, or has nothing to review.
    ValueError
        An argument is out of range.
    """

    def __init__(
        self,
        folder: Path,
        *,
        reviewer: str,
        reviewer_fixed: bool | None = None,
        blind: bool = False,
        order: str = "score",
        controls: int | None = None,
        sample: int = 0,
        seed: int = 0,
        unreviewed: bool = True,
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"order should be one of {', '.join(ORDERS)}, got {order!r}")
        if (controls or 0) < 0 or sample < 0:
            raise ValueError(f"controls and sample count pairs, got {controls} and {sample}")
        self.folder, self.blind, self.seed, self.unreviewed = folder, blind, seed, unreviewed
        self.reviewer = reviewer_name(reviewer)
        self.reviewer_fixed = blind if reviewer_fixed is None else reviewer_fixed
        self.order = BLIND_ORDER if blind else order
        self.pairs = load_pairs(folder)
        self.clusters = ReviewClusters.load(folder, self.pairs.kind)
        if not len(self.pairs) and not len(self.clusters):
            raise StoreError(f"{folder}: nothing to review, it lists no pair; see {folder / 'report.html'}")
        self.store = VerdictStore.open(folder)
        self.sample = self._sample(sample)
        made = len(self.pairs.controls)
        self.controls = bool(made if controls is None else controls)
        if controls is not None and controls > made:
            from .controls import make_controls  # only here: what it needs takes a while to load

            self.store.add_controls(make_controls(folder, controls, seed=seed))
            self.pairs = load_pairs(folder)
        self.ledger = Ledger(self.store)
        self.originals = Originals(folder)
        self._compared: set[str] = set()
        what = "audit" if self.pairs.kind == AUDIT_KIND else "deduplication"
        self.changed_words = f"this file has changed since the {what}"
        self._orders: dict[tuple[str, bool], list[str]] = {}
        self._sounds: OrderedDict[str, tuple[dict[str, Any], bytes | None]] = OrderedDict()
        self._lock = Lock()

    def close(self) -> None:
        """Finish what is being written, and close the database."""
        self.ledger.close()
        self.store.close()

    def _sample(self, wanted: int) -> Sample | None:
        if wanted:
            return self.store.add_sample(draw_sample(self.pairs, wanted, seed=self.seed))
        drawn = self.store.samples()
        return drawn[-1] if drawn else None

    def warm(self) -> None:
        """Read what the first pair needs beyond the columns of the queue, before it is asked for."""
        for pair in self.pairs.pair_ids[:1]:
            other_pairs(self.pairs, pair)
        self.pairs.every_row  # noqa: B018 - reads it

    def explain(self, error: Exception) -> str:
        """Why a sound cannot be read; a decoder's own words may hold a path, which not everyone may see."""
        if self.blind or self.controls:
            logger.error("review: %s", error)
            return UNREADABLE
        return str(error)

    # --- session and queue ---

    def session(self) -> dict[str, Any]:
        """What the page shows around the pairs."""
        card = self.pairs.card
        open_fields = {
            "kind": self.pairs.kind,
            "title": self.folder.resolve().name,
            "folder": str(self.folder),
            "reviewer": self.reviewer,
            "reviewer_fixed": self.reviewer_fixed,
            "blind": self.blind,
            "order": self.order,
            "orders": [BLIND_ORDER] if self.blind else list(ORDERS),
            "unreviewed": self.unreviewed,
            "sample": None if self.sample is None else len(self.sample.pair_ids),
            "clusters": len(self.clusters),
            "frequency_ticks": {scale: frequency_ticks(scale) for scale in SCALES},
        }
        counts = {"pairs": len(self._ordered(self.order, sampled=False))}
        if self.blind:
            return {**open_fields, "counts": counts}
        counts |= {name: count for name, count in card["counts"].items() if isinstance(count, int)}
        rule = card["threshold"].get("rule")
        return {**open_fields, "tau": finite(self.pairs.tau), "rule": rule, "descriptor": card["descriptor"], "counts": counts}

    def queue(
        self, *, reviewer: str | None = None, order: str | None = None, which: str = "listed", unreviewed: bool = True
    ) -> dict[str, Any]:
        """The pairs in their order, what the reviewer decided, and where the first undecided pair stands."""
        if which not in SETS:
            raise ValueError(f"set should be one of {', '.join(SETS)}, got {which!r}")
        order = order or self.order
        if order not in ORDERS:
            raise ValueError(f"order should be one of {', '.join(ORDERS)}, got {order!r}")
        ordered = self._ordered(BLIND_ORDER if self.blind else order, sampled=which == "sample")
        decided = self.ledger.refreshed(self._name(reviewer))
        listed = [pair for pair in ordered if pair not in decided] if unreviewed else ordered
        known = {pair: decided[pair].verdict for pair in ordered if pair in decided}
        position = next((at for at, pair in enumerate(listed) if pair not in decided), len(listed))
        return {"pairs": listed, "decided": known, "position": position}

    def _ordered(self, order: str, *, sampled: bool) -> list[str]:
        """An order as long as the server runs, computed once: controls must not wander between two requests."""
        if sampled and self.sample is None:
            raise ValueError("no sample was drawn; start with `auscult review FOLDER --sample 200`")
        key = order, sampled
        if key not in self._orders:
            sample = self.sample if sampled else None
            if sample is not None and self.blind:
                sample = without_telling_order(sample, self.seed)
            self._orders[key] = order_pairs(self.pairs, order=order, seed=self.seed, sample=sample, controls=self.controls)
        return self._orders[key]

    def _name(self, reviewer: str | None) -> str:
        name = self.reviewer if reviewer is None else reviewer_name(reviewer)
        if self.reviewer_fixed and name != self.reviewer:
            raise ForbiddenError(
                f"this review is {self.reviewer}'s; whoever else reviews should start their own with `--reviewer NAME`"
            )
        return name

    # --- one pair ---

    def row(self, pair: str) -> dict[str, Any]:
        """All that is known of a pair; of those that this review lists, and of no other."""
        try:
            return pair_row(self.pairs, pair)
        except StoreError as error:
            raise NotHereError("no such pair here; reload the page") from error

    def compared(self, pair: str) -> bool:
        """Whether the files of a pair were compared with those of the audit; if not, :meth:`compare` reads them whole."""
        return pair in self._compared

    def compare(self, pair: str) -> list[Role]:
        """Sides of a pair whose files have changed since the audit."""
        row = self.row(pair)
        changed = [role for role in ROLES if self.originals.changed(row[f"{role}_path"])]
        self._compared.add(pair)
        return changed

    def pair(self, pair: str, *, reviewer: str | None = None) -> dict[str, Any]:
        """What the page shows of a pair."""
        row = self.row(pair)
        spans = row.get("spans") or [row]
        spans = [{name: finite(span[name]) for name in SPAN_FIELDS} | {"evidence": span.get("evidence")} for span in spans]
        spans = [span for span in spans if None not in [span[name] for name in SPAN_FIELDS]]
        strongest = max(range(len(spans)), key=lambda at: spans[at]["evidence"] or 0.0, default=None)
        mine = self.ledger.decided(self._name(reviewer)).get(pair)
        answer: dict[str, Any] = {
            "pair_id": pair,
            "kind": self.pairs.kind,
            "lag_s": finite(row["lag_s"]),
            "tempo": finite(row["tempo"]),
            "pitch_semitones": finite(row["pitch_semitones"]),
            "spans": [{name: span[name] for name in SPAN_FIELDS} for span in spans],
            "strongest": strongest,
            "verdict": None if mine is None else mine.verdict,
            "note": "" if mine is None else mine.note,
            "level_db": {"query": None, "reference": None},
            "difference_url": f"/api/pairs/{pair}/difference",
            "others": [],
        }
        for role in ROLES:
            answer[role] = self._side(row, pair, role)
        if not (answer["query"]["missing"] or answer["reference"]["missing"]):
            found = levels(row)
            answer["level_db"] = {"query": round(found.query_db, 2), "reference": round(found.reference_db, 2)}
        with self._lock:
            ready = self._sounds.get(pair)
        if ready is not None:
            answer |= ready[0]
        if self.blind:
            return answer
        if not self.controls:  # a control has no other matches, so none are shown beside any pair
            answer["others"] = other_pairs(self.pairs, pair)
        answer |= {name: finite(row.get(name)) for name in TELLING_FIELDS}
        return {**answer, "tau": finite(self.pairs.tau), "descriptor": row["descriptor"]}

    def _side(self, row: Mapping[str, Any], pair: str, role: Role) -> dict[str, Any]:
        side: dict[str, Any] = {
            "duration_s": finite(row[f"{role}_duration_s"]),
            "sample_rate_hz": None,
            "audio": f"/media/{pair}/{role}/audio.wav",
            "spectrogram": f"/media/{pair}/{role}/spectrogram.png",
            "missing": None,
            "changed": self.originals.changed(row[f"{role}_path"]),
            "caption": row[f"{role}_caption"],
        }
        side["changed_text"] = self.changed_words if side["changed"] else None
        side |= self._sound(lambda: clip_of(row, role))
        if self.blind:
            return side
        return {**side, "id": row[f"{role}_id"], "path": row[f"{role}_display_path"]}

    def _sound(self, opened: Any) -> dict[str, Any]:
        """Length and rate of a clip as it will be heard, or why it will not be."""
        try:
            clip: ClipAudio = opened()
        except (AuscultError, OSError) as error:
            return {"missing": self.explain(error)}
        return {"duration_s": clip.duration_s, "sample_rate_hz": clip.sample_rate_hz}

    def audio(self, pair: str, role: Role) -> ClipAudio:
        """One side of a pair, to be streamed."""
        return clip_of(self.row(pair), role)

    def picture(self, pair: str, role: Role, **view: Any) -> bytes:
        """A stretch of one side of a pair as a PNG; ``view`` as :func:`draw` takes it."""
        row = self.row(pair)
        return draw(row[f"{role}_path"], float(row[f"{role}_offset_s"]), row[f"{role}_duration_s"], **view)

    def difference(self, pair: str) -> tuple[dict[str, Any], bytes | None]:
        """What is left of the query without the reference: what the page says of it, and its sound (None: it means nothing)."""
        with self._lock:
            if pair in self._sounds:
                self._sounds.move_to_end(pair)
                return self._sounds[pair]
        row = self.row(pair)
        try:
            found = difference(row)
        except (AudioDecodeError, OSError) as error:
            return {"difference_db": None, "difference": {"start_s": None, "reason": self.explain(error)}}, None
        sound = None if found.samples is None else difference_wav(found)
        facts = {"start_s": finite(found.query_start_s), "reason": found.reason}
        facts |= {"gain": finite(found.gain), "lag_s": finite(found.lag_s), "speed": finite(found.speed)}
        answer = {"difference_db": None if sound is None else finite(found.residual_db), "difference": facts}
        with self._lock:
            self._sounds[pair] = answer, sound
            while len(self._sounds) > KEPT_SOUNDS:
                self._sounds.popitem(last=False)
        return answer, sound

    def decide(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Store a verdict; when this returns, it is on the disk. Of changed files one may only be unsure."""
        row = self.row(text(event, "pair_id"))
        if event.get("verdict") not in {"unsure", WITHDRAWN} and (changed := self.compare(row["pair_id"])):
            raise ChangedError(f"{' and '.join(changed)}: {self.changed_words}; only unsure can be said of it")
        reviewer = self._name(text(event, "reviewer", self.reviewer))
        return self.ledger.decide(
            row["query_id"],
            row["reference_id"],
            reviewer=reviewer,
            verdict=text(event, "verdict"),
            note=text(event, "note", ""),
            event_id=text(event, "event_id"),
        )

    # --- clusters ---

    def cluster_list(self, *, reviewer: str | None = None) -> dict[str, Any]:
        """The clusters of a deduplication, the least similar first: they need a look most."""
        decided = self.ledger.clusters(self._name(reviewer))
        listed = []
        for key in sorted(self.clusters.keys) if self.blind else self.clusters.keys:
            mine = decided.get(key)
            one = {"cluster_key": key, "size": len(self.clusters.members(key))}
            one["decision"] = None if mine is None else mine["decision"]
            if not self.blind:
                one["similarity"] = finite(self.clusters.lowest_similarity(key))
            listed.append(one)
        return {"clusters": listed}

    def cluster(self, key: str, *, reviewer: str | None = None) -> dict[str, Any]:
        """The members of a cluster, the kept one first, and what the reviewer decided."""
        if key not in self.clusters:
            raise NotHereError("no such cluster here; reload the page")
        mine = self.ledger.clusters(self._name(reviewer)).get(key)
        members = self.clusters.members(key)
        if self.blind:
            members = [members[0], *sorted(members[1:], key=lambda member: member.clip_key)]
        named = {member.clip_id: member.clip_key if self.blind else member.clip_id for member in members}
        return {
            "cluster_key": key,
            "decision": None if mine is None else mine["decision"],
            "groups": None if mine is None else [[named[clip] for clip in group] for group in mine["groups"]],
            "kept": None if mine is None else [named[clip] for clip in mine["kept"]],
            "note": "" if mine is None else mine["note"],
            "members": [self._member(member) for member in members],
        }

    def _member(self, member: ClusterMember) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "clip_id": member.clip_key,  # a blind reviewer groups clips by a name that says nothing
            "clip_key": member.clip_key,
            "caption": member.caption,
            "duration_s": finite(member.duration_s),
            "sample_rate_hz": None,
            "kept": member.keep,
            "audio": f"/media/clip/{member.clip_key}/audio.wav",
            "spectrogram": f"/media/clip/{member.clip_key}/spectrogram.png",
            "missing": None,
        }
        answer |= self._sound(lambda: open_clip(member.path, member.start_s, member.duration_s))
        if self.blind:
            return answer
        telling = {"path": member.path, "similarity": finite(member.similarity), "reason": member.reason}
        return {**answer, **telling, "clip_id": member.clip_id}

    def clip_audio(self, clip_key: str) -> ClipAudio:
        """A clip of a cluster, to be streamed."""
        clip = self._clip(clip_key)
        return open_clip(clip.path, clip.start_s, clip.duration_s)

    def clip_picture(self, clip_key: str, **view: Any) -> bytes:
        """A stretch of a clip of a cluster as a PNG."""
        clip = self._clip(clip_key)
        return draw(clip.path, clip.start_s, clip.duration_s, **view)

    def _clip(self, clip_key: str) -> ClusterMember:
        try:
            return self.clusters.clip(clip_key)
        except KeyError:
            raise NotHereError("no such clip here; reload the page") from None

    def decide_cluster(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Store a decision on a cluster; when this returns, it is on the disk."""
        key = text(event, "cluster_key")
        if key not in self.clusters:
            raise NotHereError("no such cluster here; reload the page")
        ids = {name: member.clip_id for member in self.clusters.members(key) for name in (member.clip_key, member.clip_id)}
        return self.ledger.decide_cluster(
            key,
            reviewer=self._name(text(event, "reviewer", self.reviewer)),
            decision=text(event, "decision"),
            groups=[named(group, ids, "groups") for group in sequence(event.get("groups", ()), "groups")],
            kept=named(event.get("kept", ()), ids, "kept"),
            note=text(event, "note", ""),
            event_id=text(event, "event_id"),
        )

    # --- statistics ---

    def stats(self) -> dict[str, Any]:
        """What the verdicts so far say; to blind reviewers only how many there are, since precision tells which are flagged.

        Where the reviewer is fixed, only what that one decided counts.
        """
        from .statistics import Here, review_statistics

        return review_statistics(
            self.folder,
            self.store,
            counts_only=self.blind or self.controls or self.reviewer_fixed,
            only=self.reviewer if self.reviewer_fixed else None,
            here=Here(self.pairs.every_row, self.clusters),
        )


# --- values ---------------------------------------------------------------------------------------------------------


def finite(value: Any) -> Any:
    """A number as JSON can hold it: what is not finite becomes None."""
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def text(event: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A field of a request that should be text; a ``ValueError`` if it is not."""
    value = event.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        got = "nothing" if value is None else type(value).__name__
        raise ValueError(f"{name} should be text, got {got}")  # noqa: TRY004 - a bad argument is a ValueError here
    return value


def sequence(value: Any, name: str) -> Sequence[Any]:
    """A field of a request that should be a list; a ``ValueError`` if it is not."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} should be a list, got {type(value).__name__}")  # noqa: TRY004
    return value


def named(names: Any, ids: Mapping[str, str], what: str) -> list[str]:
    """Clip ids of what a request names, by id or by key."""
    listed = sequence(names, what)
    unknown = [name for name in listed if not isinstance(name, str) or name not in ids]
    if unknown:
        raise ValueError(f"{what} should hold clips of this cluster, got {str(unknown[0])[:80]!r}")
    return [ids[name] for name in listed]


def draw(
    path: str, offset_s: float, duration_s: float | None, *, scale: str, start_s: float, end_s: float | None, width: int
) -> bytes:
    """A stretch of a clip, in seconds of the clip, as a PNG; without an end it goes to the clip's."""
    if scale not in SCALES:
        raise ValueError(f"scale should be one of {', '.join(SCALES)}, got {scale!r}")
    if end_s is None:
        end_s = open_clip(path, offset_s, duration_s).duration_s
    return spectrogram(path, offset_s, start_s, end_s, scale=scale, width=width, clip_duration=duration_s)


def without_telling_order(sample: Sample, seed: int) -> Sample:
    """A sample whose strata take turns at random: in the order of drawing, a place may tell how high its score is.

    Within a stratum the places stay in order, so any part of it is still a random sample.
    """
    rng = np.random.default_rng([seed, 2])
    waiting: dict[int, list[tuple[int, int, str]]] = {}
    for row in sample.rows:
        waiting.setdefault(row[0], []).append(row)
    turns = rng.permutation([stratum for stratum, _, _ in sample.rows]).tolist()
    rows = {stratum: iter(these) for stratum, these in waiting.items()}
    return replace(sample, rows=tuple(next(rows[stratum]) for stratum in turns))
