"""Memorization beside quality: what a finished audit says of the very clips that are evaluated, as scores of the same table."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..audit import MATCHES, QUERIES, Audit
from ..errors import AuscultError, StoreError
from ..folders import REVIEW_DB, damaged_files
from ..planning import digest_of_names
from ..report.page import undecided
from ..review.estimate import PER, Rate
from ..review.intervals import share
from ..review.verdicts import VerdictStore
from ..review.verified import audit_rate
from ..store import DescriptorStore
from .intervals import FEWEST, RESAMPLES, Interval, percentile_interval, resampled_counts
from .scores import Score

DoubleArray = npt.NDArray[np.float64]

COLUMNS = ("mean_similarity", "similarity_95", "share_over_tau", "verified_rate")
UPPER = 95.0  # percentile
_SHOWN = 3  # names in a message


class OtherClipsError(AuscultError):
    """An audit is of other clips than those that are evaluated, so its numbers must not stand beside their scores."""


def replication_columns(audit: str | Path, clips: pa.Table, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Score]:
    """The replication columns of a system, from an audit of its clips.

    ``mean_similarity`` and ``similarity_95`` are the mean and the 95th percentile of the audit's ``score`` column, the top-1
    score of each generated clip by the audit's descriptor after its normalization, over the clips that have one (silent clips
    have none); intervals by drawing clips again. ``share_over_tau`` is the share of these clips that the audit flags, with its
    Clopper-Pearson interval. ``verified_rate`` is the verified replication rate of :func:`~auscult.review.verified.audit_rate`
    as a share; where every clip was looked at, its interval is that of Clopper and Pearson, too, since a table compares
    systems and not these clips of theirs. What else the scores depend on (training and background clips, the normalization, and
    of the share flagged tau) is in their ``settings``, so that systems that were audited otherwise are not compared.

    Parameters
    ----------
    audit
        Folder of a finished audit whose generated clips are these.
    clips
        The evaluated clips: ``clip_id``, ``sample_digest``, and for an audit of a store that lies elsewhere also ``sha256``,
        ``duration_s`` and ``start_s`` (0, if there is no such column).
    resamples, seed
        Of the intervals of mean and percentile, of which there are none with fewer than six clips.

    Returns
    -------
    dict
        By the names of ``COLUMNS``. A score that cannot be given carries the reason. ``backend`` is the audit's descriptor.

    Raises
    ------
    StoreError
        The folder is no finished audit, or its tables are damaged.
    OtherClipsError
        The audit's generated clips are not these; it says how many differ, which, and what to do.
    """
    opened = Audit.open(audit)
    digests = opened.card.get("files", {})  # audits of the first versions have none
    if problems := damaged_files(opened.path, {name: digests[name] for name in (MATCHES, QUERIES) if name in digests}):
        raise StoreError(f"{opened.path}: {problems[0]}; make the audit again")
    _check_same_clips(opened, clips)
    queries = opened.queries()
    scores = queries["score"].drop_null().to_numpy().astype(np.float64)
    silent = queries.num_rows - len(scores)
    aside = f"{silent:,} of {queries.num_rows:,} clips are silent, have no score, and are left out." if silent else ""
    descriptor = str(opened.card["descriptor"])
    facts: dict[str, Any] = {
        "backend": descriptor,
        "n_generated": len(scores),
        "n_reference": int(opened.card["inputs"]["references"]["counts"]["clips"]),
        "settings": _settings(opened.card),
    }
    if not len(scores):
        reason = f"none of the {queries.num_rows:,} clips has a score in the audit: all are silent"
        return {name: Score.refused(name, reason=reason, **facts) for name in COLUMNS}
    found = [*_top_scores(scores, aside, resamples, seed, facts), _flagged(opened, queries, len(scores), aside, facts)]
    return {score.metric: score for score in (*found, _verified(opened, queries, facts))}


def _settings(card: Mapping[str, Any]) -> dict[str, str | float]:
    """What the scores of an audit depend on beside its descriptor. Audits of unlike settings, or of other sets, have others."""
    config, inputs = card.get("config", {}), card["inputs"]
    given = inputs.get("background")
    used = ("candidates",) if str(card["descriptor"]).startswith("contrast/") else ("beta", "background_k", "search")
    sampled = f"{config.get('background_sample')} training clips by seed {config.get('seed')}"
    return {
        "training clips": inputs["references"]["content_sha256"][:12],
        "background": given["content_sha256"][:12] if given else sampled,
        **{name.replace("_", " "): config[name] for name in used if name in config},
    }


def _top_scores(scores: DoubleArray, aside: str, resamples: int, seed: int, facts: dict[str, Any]) -> list[Score]:
    """Mean and 95th percentile of the top-1 scores."""
    draws = [
        (drawn.mean(), np.percentile(drawn, UPPER))
        for counts in resampled_counts(len(scores), resamples=resamples if len(scores) >= FEWEST else 0, seed=seed)
        for drawn in [np.repeat(scores, counts)]
    ]
    values = float(scores.mean()), float(np.percentile(scores, UPPER))
    return [
        Score.of(name, interval=percentile_interval(value, [draw[place] for draw in draws]), note=aside, **facts)
        for place, (name, value) in enumerate(zip(COLUMNS[:2], values, strict=True))
    ]


def _flagged(audit: Audit, queries: pa.Table, compared: int, aside: str, facts: dict[str, Any]) -> Score:
    """Share of the compared clips that the audit flags."""
    name, threshold = "share_over_tau", audit.card["threshold"]
    if undecided(audit.card):
        reason = f"the audit could not decide what to flag: {audit.card['calibration']['null_clips']:,} null scores are too few"
        return Score.refused(name, reason=reason, **facts)
    found = share(int(np.count_nonzero(queries["flagged"].to_numpy(zero_copy_only=False))), compared)
    facts = {**facts, "settings": {**facts["settings"], "tau": float(f"{threshold['tau']:.6g}")}}
    note = f"Flagged over tau = {threshold['tau']:.4g} by the rule '{threshold['rule']}'."
    if not threshold["separated"]:
        note += " The scores show no gap there, so this is a list to listen to and not a finding."
    return Score.of(name, interval=Interval(found.value, found.low, found.high), note=f"{note} {aside}".strip(), **facts)


def _verified(audit: Audit, queries: pa.Table, facts: dict[str, Any]) -> Score:
    """Share of the clips that people found to be replications."""
    name, todo = "verified_rate", f"`auscult review {audit.path.name}` is where people give them"
    if not (audit.path / REVIEW_DB).is_file():
        return Score.refused(name, reason=f"nobody has given a verdict on the audit's pairs; {todo}", **facts)
    with VerdictStore.open(audit.path) as store:
        verdicts, samples = store.consensus(), store.samples()
    try:
        rate = audit_rate(queries, verdicts, matches=audit.matches(), samples=samples)
    except ValueError as error:
        return Score.refused(name, reason=str(error), **facts)
    if not rate.verified:
        return Score.refused(name, reason=f"nobody has given a verdict on a pair that this audit lists; {todo}", **facts)
    low, high = _bounds(rate)
    note = f"{rate.sentence} At worst it is the upper end." if rate.at_least else rate.sentence
    return Score.of(name, interval=Interval(rate.per_10_000 / PER, low, high), note=note, **facts)


def _bounds(rate: Rate) -> tuple[float, float]:
    """Of the rate as a share. After a census nothing is left to infer of these clips, but of the system there is."""
    if rate.interval == "census" and not rate.at_least:
        found = share(rate.replications, rate.clips, unsure=rate.unsure, level=rate.level)
        return found.low, found.high
    return rate.low / PER, rate.high / PER


# --- the same clips -------------------------------------------------------------------------------------------------


def _check_same_clips(audit: Audit, clips: pa.Table) -> None:
    """Refuse an audit of other clips. Clips are the same if their samples are; names and order do not matter."""
    stored = audit.path / "stores" / "generated"
    if not stored.is_dir():  # the audit was made of a store that lies elsewhere; its card holds a digest of the clips
        if _content_digest(clips) != audit.card["inputs"]["generated"]["content_sha256"]:
            raise OtherClipsError(
                f"{audit.path}: its generated clips came from a store and are not the {clips.num_rows:,} that are evaluated, "
                "by id, bytes, start and duration; which differ it cannot tell: audit these clips' own folder or manifest"
            )
        return
    audited = DescriptorStore.open(stored).clips()
    here, there = (table["sample_digest"].to_pylist() for table in (clips, audited))
    if Counter(here) == Counter(there):
        return
    ids, audited_ids = clips["clip_id"].to_pylist(), audited["clip_id"].to_pylist()
    unknown, left = _beyond(ids, here, there), _beyond(audited_ids, there, here)
    parts = [f"{len(unknown):,} evaluated clips are not in it ({_some(unknown)})"] if unknown else []
    parts += [f"{len(left):,} of its clips are not evaluated ({_some(left)})"] if left else []
    raise OtherClipsError(
        f"{audit.path}: its {len(there):,} generated clips are not the {len(here):,} that are evaluated: {', '.join(parts)}. "
        + _advice(unknown, left, set(here) & set(there))
    )


def _advice(unknown: list[str], left: list[str], shared: set[str]) -> str:
    again = set(unknown) & set(left)
    if again:
        return f"{len(again):,} of these have the same id and other samples, so they were generated again: audit them again"
    if not shared:
        return "They share no clip, so this is the audit of another system: give that of these clips"
    if not unknown:
        return "Evaluate all the clips that were audited, or audit these alone"
    return "Audit the clips as they are now"


def _beyond(ids: list[str], digests: list[str], others: list[str]) -> list[str]:
    """Ids of the clips that are not among the others, each of which makes up for one clip only."""
    left = Counter(others)
    found = []
    for clip_id, digest in zip(ids, digests, strict=True):
        if left[digest]:
            left[digest] -= 1
        else:
            found.append(clip_id)
    return found


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (" ..." if len(ids) > _SHOWN else "")


def _content_digest(clips: pa.Table) -> str:
    """Of a set of clips, as the card of a store has it."""
    starts = clips["start_s"].to_pylist() if "start_s" in clips.column_names else [0.0] * clips.num_rows
    rows = zip(
        *(clips[name].to_pylist() for name in ("clip_id", "sha256")), starts, clips["duration_s"].to_pylist(), strict=True
    )
    return digest_of_names(sorted(hashlib.sha256("\0".join(map(str, row)).encode()).hexdigest() for row in rows))
