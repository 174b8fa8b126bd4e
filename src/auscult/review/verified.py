"""An audit's tables and the verdicts on its pairs, joined: which clips are verified, in which strata, and the rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from .estimate import Interval, Rate, Tally, stratified_rate
from .intervals import Share, share
from .verdicts import Sample, pair_id

REPLICATION, UNSURE = "replication", "unsure"


@dataclass(frozen=True)
class Verified:
    """What the verdicts say of an audit's generated clips.

    Attributes
    ----------
    tallies
        Flagged clips first, then the strata of the random sample from the highest scores down, then what was not sampled.
    extra
        Replications found beyond the sample in sampled strata.
    clips
        Verdict of each clip: ``replication`` if a listed pair of it is one, else that of its best match.
    weights
        Sampling weight of each clip that was verified in a census or a random sample: how many clips it stands for.
    notes
        What a reader has to know.
    """

    tallies: tuple[Tally, ...]
    extra: int
    clips: dict[str, str]
    weights: dict[str, float]
    notes: tuple[str, ...]

    @property
    def flagged(self) -> Tally:
        """The flagged clips."""
        return self.tallies[0]


def verified_clips(
    queries: pa.Table, verdicts: Mapping[str, str], *, matches: pa.Table | None = None, samples: Sequence[Sample] = ()
) -> Verified:
    """Sort an audit's generated clips into strata, and count the verdicts on them.

    A sample's pairs lie in random order, so only what is reviewed **without a gap from the start** of a stratum is a random
    part of it: a reviewer may skip what is hard. That longest prefix counts as the sample; verdicts after a skipped pair
    are not lost, replications among them enter the lower bound, and a note says how many wait for the skipped pair. Of
    several samples the one with the most verdicts in its prefixes counts.

    Parameters
    ----------
    queries
        ``query_id, reference_id, score, flagged``, one row a generated clip; clips without a score had nothing to be
        compared with, are no part of the population, and a note counts them.
    verdicts
        Verdict of each pair by its id (``VerdictStore.consensus``).
    matches
        ``query_id, reference_id``: the listed pairs; with them a clip also counts as a replication if not its best match
        but a lower one is.
    samples
        Random samples of the unflagged clips' best pairs.

    Raises
    ------
    ValueError
        A sample was drawn for another audit, or before the threshold changed.
    """
    flagged = dict(zip(queries["query_id"].to_pylist(), queries["flagged"].to_pylist(), strict=True))
    best = {
        query: pair_id(query, reference)
        for query, reference, score in zip(
            *(queries[c].to_pylist() for c in ("query_id", "reference_id", "score")), strict=True
        )
        if reference is not None and (score is not None or flagged[query])
    }
    clips = _clip_verdicts(best, verdicts, matches)
    chosen = [query for query in best if flagged[query]]
    rest = [query for query in best if not flagged[query]]
    tallies = [_tally("flagged", len(chosen), chosen, clips, random=False)]
    weights = {query: 1.0 for query in chosen if query in clips} if tallies[0].census else {}
    notes, extra, covered, sampled = [], 0, 0, set[str]()
    if missing := len(flagged) - len(best):
        notes.append(f"{missing:,} generated clips had nothing to be compared with; they are not counted.")
    everything = bool(rest) and all(query in clips for query in rest)  # then no sample has anything to add
    drawn = None if everything else _most_verified(samples, {best[query]: query for query in rest}, clips, notes)
    if drawn is not None:
        names, parts, sizes, waiting = drawn
        strata = [_tally(*row, clips, random=True) for row in zip(names, sizes, parts, strict=True)]
        tallies += strata
        sampled = {query for part in parts for query in part}
        weights |= {q: t.size / t.verified for t, part in zip(strata, parts, strict=True) for q in part}
        if waiting:
            notes.append(f"{waiting:,} verdicts on the sample lie after a pair without one and do not count yet: decide it.")
        covered = sum(sizes)
    beyond = [query for query in rest if query in clips and query not in sampled]
    if covered < len(rest):
        name, seen = ("not flagged, not sampled", []) if covered else ("not flagged", beyond)
        tallies.append(_tally(name, len(rest) - covered, seen, clips, random=False))
    if covered and beyond:
        found = sum(clips[query] == REPLICATION for query in beyond)
        extra = min(found, sum(tally.size - tally.verified for tally in tallies if tally.sampled))
        notes.append(
            f"{len(beyond):,} verdicts on unflagged clips outside of the sample were not given at random; only the "
            f"{extra:,} replications among them count, in the lower end."
        )
    return Verified(tuple(tallies), extra, clips, weights, tuple(notes))


def _clip_verdicts(best: Mapping[str, str], verdicts: Mapping[str, str], matches: pa.Table | None) -> dict[str, str]:
    clips = {query: verdicts[pair] for query, pair in best.items() if pair in verdicts}
    if matches is not None:
        pairs: Iterable[tuple[str, str]] = zip(
            matches["query_id"].to_pylist(), matches["reference_id"].to_pylist(), strict=True
        )
        for query, reference in pairs:
            if query in best and verdicts.get(pair_id(query, reference)) == REPLICATION:
                clips[query] = REPLICATION
    return clips


def _tally(name: str, size: int, queries: Sequence[str], clips: Mapping[str, str], *, random: bool) -> Tally:
    found = [clips[query] for query in queries if query in clips]
    return Tally(name, size, len(found), found.count(REPLICATION), found.count(UNSURE), random)


def _most_verified(
    samples: Sequence[Sample], by_pair: Mapping[str, str], clips: Mapping[str, str], notes: list[str]
) -> tuple[list[str], list[list[str]], list[int], int] | None:
    """The sample with the most verdicts from its start on; None if no sample has one.

    Samples drawn for another audit are left out with a note, so that a new one can take the place of an old one.

    Raises
    ------
    ValueError
        No sample fits.
    """
    fitting, problems = [], []
    for sample in samples:
        try:
            fitting.append(_prefixes(sample, by_pair, clips))
        except ValueError as error:
            problems.append(str(error))
    if problems and not fitting:
        raise ValueError(problems[-1])
    if problems:
        notes.append(f"{len(problems):,} older samples no longer fit this audit and do not count.")
    best = max(fitting, key=lambda found: sum(map(len, found[1])), default=None)
    return best if best is not None and any(best[1]) else None


def _prefixes(
    sample: Sample, by_pair: Mapping[str, str], clips: Mapping[str, str]
) -> tuple[list[str], list[list[str]], list[int], int]:
    """Names, clips verified from the start on, and sizes of the sample's strata; and how many verdicts lie beyond a gap."""
    parts: list[list[str]] = []
    waiting = 0
    if (size := sum(stratum.size for stratum in sample.strata)) > len(by_pair):
        raise ValueError(f"the sample was drawn from {size:,} clips, but {len(by_pair):,} are not flagged; draw a new sample")
    for number in range(len(sample.strata)):
        order = [pair for stratum, _, pair in sorted(sample.rows) if stratum == number]
        if strange := [pair for pair in order if pair not in by_pair]:
            raise ValueError(
                f"sample {sample.sample_id}: {len(strange)} of its pairs, for example {strange[0]}, are not best matches of "
                "unflagged clips of this audit; it was drawn before the audit changed: draw a new sample"
            )
        decided = [by_pair[pair] in clips for pair in order]
        length = decided.index(False) if False in decided else len(decided)
        waiting += sum(decided[length:])
        parts.append([by_pair[pair] for pair in order[:length]])
    names = [f"not flagged, scores {s.lowest:.4g} to {s.highest:.4g}" for s in sample.strata]
    return names, parts, [stratum.size for stratum in sample.strata], waiting


def audit_rate(
    queries: pa.Table,
    verdicts: Mapping[str, str],
    *,
    matches: pa.Table | None = None,
    samples: Sequence[Sample] = (),
    level: float = 0.95,
    interval: Interval = "exact",
) -> Rate:
    """The verified replication rate of an audit: :func:`verified_clips`, then :func:`stratified_rate`."""
    verified = verified_clips(queries, verdicts, matches=matches, samples=samples)
    return stratified_rate(verified.tallies, extra=verified.extra, level=level, interval=interval, notes=verified.notes)


def precision(flagged: Tally, *, level: float = 0.95) -> Share:
    """Share of what a threshold flags that people find to be a replication.

    The interval is for the threshold on clips such as these, so it stays open when all flagged clips are verified
    (Clopper-Pearson). Where only part of them is, chosen otherwise than at random, it is what the rest could make of these
    clips' own share at worst and at best.

    Raises
    ------
    ValueError
        None is verified.

    Examples
    --------
    >>> precision(Tally("flagged", 178, 178, 31)).text
    '17.4 % (95 % interval 12.2 % to 23.8 %; 31 of 178)'
    """
    if not flagged.verified:
        raise ValueError(f"{flagged.name}: none of the {flagged.size:,} clips is verified; verify some first")
    value = share(flagged.replications, flagged.verified, unsure=flagged.unsure, level=level)
    if flagged.census or flagged.random:
        return value
    no = flagged.verified - flagged.replications - flagged.unsure
    low, high = flagged.replications / flagged.size, 1 - no / flagged.size
    return Share(value.value, min(low, value.low), max(high, value.high), value.successes, value.trials, value.unsure, level)
