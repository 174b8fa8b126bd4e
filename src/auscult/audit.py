"""Corridor 1: does this set of generated clips replicate its training clips?

Data flow: three corpora -> three stores of one descriptor -> similarities, less the background bias -> top matches of
each generated clip -> threshold -> a folder of tables, a card and a report.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .calibration import Threshold, fixed_threshold, gap_threshold, matched_threshold
from .corpus import Corpus
from .descriptors import Descriptor, load_descriptor
from .errors import CorpusError, DescriptorMismatchError
from .folders import Progress, building, is_folder_of, no_progress, read_card, write_card, write_table
from .indexing import index
from .search import DoubleArray, IntArray, top_k
from .similarity import BACKGROUND_K, BETA, background_bias
from .store import KIND as STORE_KIND
from .store import SKIPPED_SCHEMA, DescriptorStore, Vectors, check_same_spec

log = logging.getLogger(__name__)

KIND = "audit"
MATCHES, QUERIES, TRAINING, SKIPPED = "matches.parquet", "queries.parquet", "training.parquet", "skipped.parquet"
Source = Corpus | DescriptorStore


@dataclass(frozen=True)
class AuditConfig:
    """Settings of an audit; the defaults are the audit paper's, except tau, which it read off its histograms.

    Attributes
    ----------
    descriptor
        Name of the descriptor, for sources that are not stores yet.
    duration_s
        Window of the descriptor in seconds; None: its default (10.242 for ``mel``).
    k
        Matches listed for each generated clip.
    beta, background_k
        Weight and number of neighbours of the background normalization.
    tau
        A number (the paper: 0.5005 for ``mel`` at 10.242 s against 1,000 AudioSet clips); ``"gap"``, read off the two
        histograms; or ``"match:AUDIT"``, to flag as many clips as another audit did.
    background_sample
        Without a background set, this many training clips take its place.
    training_sample
        Training clips whose own top-1 scores make the training-to-training histogram.
    seed
        Of the two samples.
    """

    descriptor: str = "mel"
    duration_s: float | None = None
    k: int = 5
    beta: float = BETA
    background_k: int = BACKGROUND_K
    tau: str | float = "gap"
    background_sample: int = 1000
    training_sample: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1 or self.background_k < 1:
            raise ValueError(f"k and background_k should be at least 1, got {self.k} and {self.background_k}")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta should be from 0 to 1, got {self.beta}")
        parse_tau(self.tau)


@dataclass(frozen=True)
class Audit:
    """A finished audit on disk: ``path`` of its folder and its ``card``."""

    path: Path
    card: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Audit:
        """Open a finished audit; a ``StoreError`` says if there is none."""
        return cls(Path(path), read_card(Path(path), KIND))

    def matches(self) -> pa.Table:
        """The best matches of each generated clip, best first; columns as in the design."""
        return pq.read_table(self.path / MATCHES)

    def queries(self) -> pa.Table:
        """One row for each generated clip."""
        return pq.read_table(self.path / QUERIES)

    def training(self) -> pa.Table:
        """Top-1 score of training clips against each other (``reference_id, nearest_id, score``)."""
        return pq.read_table(self.path / TRAINING)


@dataclass(frozen=True)
class Comparison:
    """What comparing three sets of vectors gives: tables and threshold, nothing on disk."""

    matches: pa.Table
    queries: pa.Table
    training: pa.Table
    threshold: Threshold
    warnings: tuple[str, ...]


def audit(
    generated: Source,
    references: Source,
    background: Source | None = None,
    *,
    output: str | Path,
    config: AuditConfig | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress = no_progress,
    finish: Callable[[Path], object] | None = None,
) -> Audit:
    """Audit generated clips against training clips, and write the result as a folder.

    Parameters
    ----------
    generated, references
        Corpora, or stores of one descriptor.
    background
        Unrelated clips for the score normalization. Without it a sample of the references serves, which is weaker: a
        clip with many near-copies in the training set then looks ordinary.
    output
        Folder of the result. A run that was stopped is continued.
    config
        Settings.
    workers
        Processes for describing.
    overwrite
        Replace a finished audit in ``output``.
    progress
        Called with what is being done.
    finish
        Called with the folder before it gets its final name (the command line writes the report there).

    Raises
    ------
    CorpusError
        A corpus is empty or cannot be read.
    DescriptorMismatchError
        The stores were made with unequal descriptors.
    OutputFolderError
        The output folder holds something else.
    """
    config = config or AuditConfig()
    started = time.time()
    sources = {"generated": generated, "references": references, "background": background}
    present = {role: source for role, source in sources.items() if source is not None}
    descriptor = choose_descriptor(present, config.descriptor, config.duration_s)
    with building(Path(output), KIND, overwrite=overwrite) as folder:
        stores = describe_sources(present, folder / "stores", descriptor, workers=workers, progress=progress)
        vectors = {role: store.load() for role, store in stores.items()}
        comparison = compare(
            vectors["generated"], vectors["references"], vectors.get("background"), config=config, progress=progress
        )
        write_table(folder / MATCHES, comparison.matches)
        write_table(folder / QUERIES, comparison.queries)
        write_table(folder / TRAINING, comparison.training)
        write_table(folder / SKIPPED, skipped_table(stores))
        flagged = int(np.count_nonzero(comparison.queries["flagged"].to_numpy(zero_copy_only=False)))
        write_card(
            folder,
            KIND,
            {
                "config": dataclasses.asdict(config),
                "descriptor": str(descriptor.spec),
                "inputs": {role: input_facts(store) for role, store in stores.items()},
                "counts": {
                    "generated": comparison.queries.num_rows,
                    "compared": comparison.queries.num_rows - comparison.queries["score"].null_count,
                    "flagged": flagged,
                    "skipped": sum(store.card["counts"]["skipped"] for store in stores.values()),
                },
                "threshold": dataclasses.asdict(comparison.threshold),
                "warnings": [*input_warnings(stores), *comparison.warnings],
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - started, 1),
            },
        )
        if finish is not None:
            finish(folder)
    return Audit.open(output)


# --- inputs ---------------------------------------------------------------------------------------------------------


def choose_descriptor(sources: dict[str, Source], name: str, duration_s: float | None) -> Descriptor:
    """The descriptor of the stores among the sources; if there are none, the configured one.

    Raises
    ------
    DescriptorMismatchError
        The stores are unequal, or not what was asked for.
    """
    stores = {role: source for role, source in sources.items() if isinstance(source, DescriptorStore)}
    parameters = {} if duration_s is None else {"duration_s": duration_s}
    if not stores:
        return load_descriptor(name, **parameters)
    spec = check_same_spec(stores)
    for key, value in parameters.items():
        if dict(spec.parameters).get(key, value) != value:
            raise DescriptorMismatchError(f"{key}={value} was asked for, but the given stores hold {spec}")
    return load_descriptor(spec)


def describe_sources(
    sources: dict[str, Source], folder: Path, descriptor: Descriptor, *, workers: int, progress: Progress
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

            stores[role] = index(source, folder / role, descriptor=descriptor, workers=workers, progress=described)
        counts = stores[role].card["counts"]
        if counts["windows"] == 0:
            raise CorpusError(
                f"{role}: no clip to compare in {', '.join(stores[role].card['source'])} "
                f"({counts['clips']} clips, all silent; {counts['skipped']} unreadable, {counts['not_audio']} not audio)"
            )
    return stores


def input_facts(store: DescriptorStore) -> dict[str, Any]:
    """What a card says of an input: where it came from, how much there was, and its digest."""
    keys = ("source", "counts", "flags", "audio_s", "padding_share", "content_sha256")
    return {key: store.card[key] for key in keys}


def input_warnings(stores: dict[str, DescriptorStore]) -> list[str]:
    """The stores' own warnings, each with its role."""
    return [f"{role}: {warning}" for role, store in stores.items() for warning in store.card["warnings"]]


def skipped_table(stores: dict[str, DescriptorStore]) -> pa.Table:
    """The inputs' skipped tables as one, with the role of the input."""
    tables = []
    for role, store in stores.items():
        table = store.skipped().cast(SKIPPED_SCHEMA)
        tables.append(table.append_column("role", pa.array([role] * table.num_rows, pa.string())))
    return pa.concat_tables(tables)


def source_of(text: str, *, audio_root: str | None = None, encoding: str = "utf-8") -> Source:
    """What SRC on the command line means: a store if the folder is one, else a corpus."""
    from .corpus import open_corpus

    if is_folder_of(Path(text), STORE_KIND):
        return DescriptorStore.open(text)
    return open_corpus(text, audio_root=audio_root, encoding=encoding)


# --- comparing ------------------------------------------------------------------------------------------------------


def compare(
    generated: Vectors,
    references: Vectors,
    background: Vectors | None = None,
    *,
    config: AuditConfig,
    progress: Progress = no_progress,
) -> Comparison:
    """Compare vectors in memory: normalized top matches, the training set's own top-1 scores, and tau.

    A clip's score with another is the largest over their windows. A generated clip is never matched with itself (the
    same stretch of the same file), should the sets overlap.
    """
    warnings = []
    rng = np.random.default_rng(config.seed)
    if background is None:
        rows = _sample(references.clips.num_rows, config.background_sample, rng)
        background = references.subset(rows)
        warnings.append(
            f"No background set was given; {len(rows)} training clips took its place, which is weaker: a training clip with "
            "many near-copies looks ordinary. Give --background with unrelated sound."
        )
    shared = _shared_audio(background, references) if background.clips is not references.clips else 0
    if shared and not warnings:
        warnings.append(f"{shared} background clips are also training clips; that hides copies of them.")

    normalized = _Normalizer(references, background, config)
    best = normalized.best_matches(generated, config.k, progress)
    sample = references.subset(np.sort(_sample(references.clips.num_rows, config.training_sample, rng)))
    own = normalized.best_matches(sample, 1, progress)
    own_top = own.top_score(sample.clips.num_rows)
    top = best.top_score(generated.clips.num_rows)
    threshold = _threshold(config, top[np.isfinite(top)], own_top[np.isfinite(own_top)])
    if not threshold.separated:
        warnings.append(threshold.explanation)
    return Comparison(
        _matches_table(best, generated, references, threshold.tau, str(references.spec)),
        _queries_table(best, generated, references, threshold.tau),
        _training_table(own, sample, references),
        threshold,
        tuple(warnings),
    )


@dataclass(frozen=True)
class _Best:
    """Matches at the level of clips, ordered by query, then score. All arrays (p,); ``query`` and ``reference`` are rows of
    the clip tables, ``*_start_s`` where the best windows start."""

    query: IntArray
    reference: IntArray
    rank: IntArray
    similarity: DoubleArray
    bias: DoubleArray
    query_start_s: DoubleArray
    reference_start_s: DoubleArray

    @property
    def score(self) -> DoubleArray:
        return self.similarity - self.bias

    def top_score(self, n_queries: int) -> DoubleArray:
        """(n,) score of each query's best match; NaN without one."""
        top = np.full(n_queries, np.nan)
        first = self.rank == 1
        top[self.query[first]] = self.score[first]
        return top


class _Normalizer:
    """The references and the background, prepared once for several sets of queries."""

    def __init__(self, references: Vectors, background: Vectors, config: AuditConfig) -> None:
        self.references, self.background, self.config = references, background, config
        order = np.lexsort((references.start_s, references.clip_ids[references.clip]))
        self.rank = np.empty(len(order), np.int64)
        self.rank[order] = np.arange(len(order))

    def best_matches(self, queries: Vectors, k: int, progress: Progress) -> _Best:
        mine, theirs = _same_place(queries, self.references)
        found = top_k(
            queries.vectors,
            self.references.vectors,
            k=k,
            exclude=(mine[queries.clip], theirs[self.references.clip]),
            distinct=self.references.clip,
            rank=self.rank,
            progress=progress,
        )
        # neither the query itself nor what it matches best may count as background
        audio = _same_audio(queries, self.references, self.background)
        suspect = np.where(found.index[:, 0] >= 0, audio[1][self.references.clip[found.index[:, 0]]], -1)
        excluded = np.stack([audio[0][queries.clip], suspect], axis=1)
        bias = background_bias(
            queries.vectors,
            self.background.vectors,
            k=self.config.background_k,
            beta=self.config.beta,
            exclude=(excluded, audio[2][self.background.clip]),
        )
        return self._by_clip(queries, found.index, found.similarity, bias, k)

    def _by_clip(self, queries: Vectors, found: IntArray, similarity: DoubleArray, bias: DoubleArray, k: int) -> _Best:
        """From windows to clips: the best pair of windows speaks for a pair of clips."""
        row, column = np.nonzero(found >= 0)
        window = found[row, column]
        query, reference = queries.clip[row], self.references.clip[window]
        score = similarity[row, column] - bias[row]
        order = np.lexsort((self.rank[window], -score, query))
        pair = query[order] * (int(self.references.clips.num_rows) + 1) + reference[order]
        order = order[np.sort(np.unique(pair, return_index=True)[1])]  # the first of each pair of clips is its best
        rank = _rank_in_group(query[order])
        order, rank = order[rank <= k], rank[rank <= k]
        return _Best(
            query[order],
            reference[order],
            rank,
            similarity[row, column][order],
            bias[row][order],
            queries.start_s[row][order],
            self.references.start_s[window][order],
        )


def _rank_in_group(groups: IntArray) -> IntArray:
    """1, 2, 3 ... within each run of equal values."""
    starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(groups) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(groups)])
    return np.arange(len(groups)) - np.repeat(starts, lengths) + 1


def _sample(n: int, wanted: int, rng: np.random.Generator) -> IntArray:
    return np.arange(n) if n <= wanted else np.sort(rng.choice(n, wanted, replace=False))


def _codes(*columns: list[Any]) -> list[IntArray]:
    """Equal values get equal numbers, across all columns; None gets -1."""
    numbers: dict[Any, int] = {}
    return [
        np.array([-1 if value is None else numbers.setdefault(value, len(numbers)) for value in column], np.int64)
        for column in columns
    ]


def _same_place(*sets: Vectors) -> list[IntArray]:
    """Clips that are the same stretch of the same file, whatever their ids."""
    return _codes(*(list(zip(v.clips["path"].to_pylist(), v.clips["start_s"].to_pylist(), strict=True)) for v in sets))


def _same_audio(*sets: Vectors) -> list[IntArray]:
    """Clips with identical samples."""
    return _codes(*(v.clips["sample_digest"].to_pylist() for v in sets))


def _shared_audio(left: Vectors, right: Vectors) -> int:
    mine, theirs = _same_audio(left, right)
    return int(np.count_nonzero(np.isin(mine, theirs)))


def parse_tau(tau: str | float) -> tuple[str, float | str | None]:
    """``("gap", None)``, ``("fixed", number)`` or ``("match", folder)``.

    Raises
    ------
    ValueError
        It is none of these.
    """
    if isinstance(tau, str):
        if tau == "gap":
            return "gap", None
        if tau.startswith("match:"):
            return "match", tau.removeprefix("match:")
    try:
        return "fixed", fixed_threshold(float(tau)).tau
    except ValueError:
        raise ValueError(f"tau should be a number, 'gap' or 'match:AUDIT', got {tau!r}") from None


def _threshold(config: AuditConfig, generated: DoubleArray, training: DoubleArray) -> Threshold:
    rule, value = parse_tau(config.tau)
    if rule == "fixed":
        return fixed_threshold(float(value or 0.0))
    if rule == "match":
        other = Audit.open(str(value))
        return matched_threshold(generated, min(int(other.card["counts"]["flagged"]), len(generated)))
    return gap_threshold(generated, training)


# --- tables ---------------------------------------------------------------------------------------------------------


def _matches_table(best: _Best, generated: Vectors, references: Vectors, tau: float, spec: str) -> pa.Table:
    query, reference = generated.clips.take(best.query), references.clips.take(best.reference)
    ends = [
        np.minimum(start + window, np.maximum(side["duration_s"].to_numpy(), start))
        for start, window, side in (
            (best.query_start_s, generated.window_s, query),
            (best.reference_start_s, references.window_s, reference),
        )
    ]
    return pa.table(
        {
            "query_id": query["clip_id"],
            "query_path": query["path"],
            "reference_id": reference["clip_id"],
            "reference_path": reference["path"],
            "rank": pa.array(best.rank, pa.int32()),
            "similarity": best.similarity,
            "bias": best.bias,
            "score": best.score,
            "p_value": pa.nulls(len(best.rank), pa.float64()),
            "flagged": best.score >= tau,
            "query_start_s": best.query_start_s,
            "query_end_s": ends[0],
            "reference_start_s": best.reference_start_s,
            "reference_end_s": ends[1],
            "lag_s": best.query_start_s - best.reference_start_s,
            "descriptor": pa.array([spec] * len(best.rank), pa.string()),
            "query_caption": query["caption"],
            "reference_caption": reference["caption"],
            "query_offset_s": query["start_s"],
            "reference_offset_s": reference["start_s"],
        }
    )


def _queries_table(best: _Best, generated: Vectors, references: Vectors, tau: float) -> pa.Table:
    first = np.flatnonzero(best.rank == 1)
    place = np.full(generated.clips.num_rows, -1, np.int64)
    place[best.query[first]] = first
    have = place >= 0

    def column(values: npt.NDArray[Any]) -> pa.Array:
        return pa.array(np.where(have, values[place] if len(values) else 0.0, np.nan), from_pandas=True)

    ids = references.clip_ids
    nearest = [str(ids[best.reference[row]]) if row >= 0 else None for row in place]
    return pa.table(
        {
            "query_id": generated.clips["clip_id"],
            "path": generated.clips["path"],
            "caption": generated.clips["caption"],
            "duration_s": generated.clips["duration_s"],
            "flags": generated.clips["flags"],
            "n_windows": generated.clips["n_windows"],
            "reference_id": pa.array(nearest, pa.string()),
            "similarity": column(best.similarity),
            "bias": column(best.bias),
            "score": column(best.score),
            "flagged": pa.array(have & (np.where(have, best.score[place] if len(first) else 0.0, -np.inf) >= tau)),
        }
    )


def _training_table(own: _Best, sample: Vectors, references: Vectors) -> pa.Table:
    return pa.table(
        {
            "reference_id": sample.clips["clip_id"].take(pa.array(own.query)),
            "nearest_id": references.clips["clip_id"].take(pa.array(own.reference)),
            "score": own.score,
        }
    )
