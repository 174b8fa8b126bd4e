"""Corridor 2: which clips of a corpus are copies of each other, and which of them to keep.

Data flow: store -> identical files by digest -> self-join of the others under the audit paper's symmetric rule -> graph ->
connected components -> for each, one clip to keep and what to drop for it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .audit import Source, choose_descriptor, describe_sources, input_facts, input_warnings, skipped_table
from .calibration import MIN_SCORES, Threshold, fixed_threshold, gap_threshold
from .folders import Progress, building, no_progress, read_card, write_card, write_table, write_text
from .search import DoubleArray, IntArray, self_join, top_k
from .similarity import BACKGROUND_K, BETA, background_bias
from .store import Vectors

KIND = "dedup"
CLUSTERS, PAIRS, TOP1, SKIPPED = "clusters.parquet", "pairs.parquet", "top1.parquet", "skipped.parquet"
KeepPolicy = Literal["longest", "highest_rate", "best_captioned", "first"]
POLICIES = ("longest", "highest_rate", "best_captioned", "first")


@dataclass(frozen=True)
class DedupConfig:
    """Settings of a deduplication.

    Attributes
    ----------
    descriptor, duration_s, beta, background_k, background_sample, seed
        As in ``AuditConfig``.
    tau
        A number (the paper: 0.5025 for ``mel`` at 10.242 s), or ``"gap"``: read off the top-1 scores; if they show no gap,
        only identical clips count as duplicates, and the closest pairs are listed for review.
    keep
        Which clip of a cluster stays: ``longest``, ``highest_rate``, ``best_captioned`` (most distinct words) or ``first``.
    coverage
        Share of a long recording's windows that must match before it counts as a duplicate of the other.
    """

    descriptor: str = "mel"
    duration_s: float | None = None
    beta: float = BETA
    background_k: int = BACKGROUND_K
    background_sample: int = 1000
    tau: str | float = "gap"
    keep: KeepPolicy = "longest"
    coverage: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep not in POLICIES:
            raise ValueError(f"keep should be one of {', '.join(POLICIES)}, got {self.keep!r}")
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage should be above 0 and at most 1, got {self.coverage}")
        if self.tau != "gap":
            try:
                fixed_threshold(float(self.tau))
            except ValueError:
                raise ValueError(f"tau should be a number or 'gap', got {self.tau!r}") from None


@dataclass(frozen=True)
class Duplicates:
    """A finished deduplication on disk: ``path`` of its folder and its ``card``."""

    path: Path
    card: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Duplicates:
        """Open a finished deduplication; a ``StoreError`` says if there is none."""
        return cls(Path(path), read_card(Path(path), KIND))

    def clusters(self) -> pa.Table:
        """One row for each clip that is in a cluster."""
        return pq.read_table(self.path / CLUSTERS)

    def pairs(self) -> pa.Table:
        """Pairs of similar clips; ``duplicate`` tells those that count."""
        return pq.read_table(self.path / PAIRS)

    def top1(self) -> pa.Table:
        """Each clip's largest score with another clip (``clip_id, score``); of identical clips, one stands for all."""
        return pq.read_table(self.path / TOP1)


@dataclass(frozen=True)
class _Pair:
    """Two clips (rows of the clip table) that resemble each other.

    ``score`` is the smaller of the two normalized scores; ``coverage`` the share of the first's and of the second's windows
    that the other matches; ``kind`` is ``bit_identical``, ``sample_identical`` or ``similar``.
    """

    first: int
    second: int
    similarity: float
    score: float | None
    coverage: tuple[float, float]
    kind: str
    duplicate: bool


def deduplicate(
    corpus: Source,
    *,
    output: str | Path,
    against: Source | None = None,
    background: Source | None = None,
    config: DedupConfig | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress = no_progress,
    finish: Callable[[Path], object] | None = None,
) -> Duplicates:
    """Find the duplicates of a corpus, or the clips of a corpus that leak into another one.

    Parameters
    ----------
    corpus
        The clips to clean, as a corpus or a store.
    output
        Folder of the result. A run that was stopped is continued.
    against
        Another set (a test set, a benchmark). Then only pairs across the two count, and what is dropped are the clips of
        ``corpus``.
    background
        Unrelated clips for the score normalization; without it, a sample of the corpus.
    config, workers, overwrite, progress, finish
        As in ``audit``.

    Raises
    ------
    CorpusError, DescriptorMismatchError, OutputFolderError
        As in ``audit``.
    """
    config = config or DedupConfig()
    started = time.time()
    sources = {"corpus": corpus, "against": against, "background": background}
    present = {role: source for role, source in sources.items() if source is not None}
    descriptor = choose_descriptor(present, config.descriptor, config.duration_s)
    with building(Path(output), KIND, overwrite=overwrite) as folder:
        stores = describe_sources(present, folder / "stores", descriptor, workers=workers, progress=progress)
        vectors = {role: store.load() for role, store in stores.items()}
        joint, n_corpus = _joined(vectors["corpus"], vectors.get("against"))
        threshold, pairs, top1 = find_pairs(joint, n_corpus, vectors.get("background"), config=config, progress=progress)
        rows = cluster_rows(joint.clips, pairs, n_corpus, config)
        dropped = {row["clip_id"] for row in rows if not row["keep"]}
        write_table(folder / PAIRS, _pairs_table(pairs, joint.clips))
        write_table(folder / TOP1, top1)
        write_table(folder / CLUSTERS, pa.Table.from_pylist(rows, CLUSTER_SCHEMA))
        write_table(folder / SKIPPED, skipped_table(stores))
        lists_hold = _write_lists(folder, vectors["corpus"].clips, dropped)
        warnings = input_warnings(stores)
        if background is None:
            warnings.append(
                "No background set was given; clips of the corpus itself took its place. Clips with many copies then look "
                "more ordinary than they are: give --background with unrelated sound."
            )
        if not threshold.separated:
            warnings.append(
                f"{threshold.explanation} Only identical clips were counted as duplicates; look at the pairs, or give --tau."
            )
        write_card(
            folder,
            KIND,
            {
                "config": dataclasses.asdict(config),
                "mode": "leakage" if against is not None else "duplicates",
                "descriptor": str(descriptor.spec),
                "inputs": {role: input_facts(store) for role, store in stores.items()},
                "counts": {
                    "clips": n_corpus,
                    "clusters": len({row["cluster_id"] for row in rows}),
                    "in_clusters": len(rows),
                    "chained": len({row["cluster_id"] for row in rows if row["chained"]}),
                    "captions_differ": len({row["cluster_id"] for row in rows if row["captions_differ"]}),
                    "dropped": len(dropped),
                    "bit_identical_pairs": sum(pair.kind == "bit_identical" for pair in pairs),
                    "sample_identical_pairs": sum(pair.kind == "sample_identical" for pair in pairs),
                    "similar_pairs": sum(pair.kind == "similar" and pair.duplicate for pair in pairs),
                    "skipped": sum(store.card["counts"]["skipped"] for store in stores.values()),
                },
                "lists_hold": lists_hold,
                "threshold": dataclasses.asdict(threshold),
                "warnings": warnings,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(time.time() - started, 1),
            },
        )
        if finish is not None:
            finish(folder)
    return Duplicates.open(output)


def _joined(corpus: Vectors, against: Vectors | None) -> tuple[Vectors, int]:
    """Both sets as one, the corpus first, and how many clips are the corpus's."""
    n = corpus.clips.num_rows
    if against is None:
        return corpus, n
    joint = Vectors(
        np.concatenate([corpus.vectors, against.vectors]),
        np.concatenate([corpus.clip, against.clip + n]),
        np.concatenate([corpus.start_s, against.start_s]),
        pa.concat_tables([corpus.clips, against.clips]),
        corpus.window_s,
        corpus.spec,
    )
    return joint, n


# --- pairs ----------------------------------------------------------------------------------------------------------


def find_pairs(
    joint: Vectors,
    n_corpus: int,
    background: Vectors | None,
    *,
    config: DedupConfig,
    progress: Progress = no_progress,
) -> tuple[Threshold, list[_Pair], pa.Table]:
    """The pairs of clips that are identical, or similar by the symmetric rule; and every clip's top-1 score.

    Rule (the audit paper's): ``s_hat(i, j) > tau`` and ``s_hat(j, i) > tau``, itself excluded by identity. Clips with identical
    samples are settled by their digests first, and one of each group stands for it in the search.
    """
    n = joint.clips.num_rows
    crossing = n_corpus < n
    identical, spokesman = _identical_pairs(joint.clips, n_corpus)
    speakers = joint.subset(np.flatnonzero(spokesman == np.arange(n)))
    rows = np.flatnonzero(spokesman == np.arange(n))  # rows of the clip table, in the order of speakers' clips
    side = (rows >= n_corpus).astype(np.int64)
    bias, top = _bias_and_top(speakers, side if crossing else None, background, config, progress)
    threshold = _dedup_threshold(config, top[np.isfinite(top)])
    found = self_join(speakers.vectors, threshold=threshold.tau, bias=bias, groups=speakers.clip, progress=progress)
    pairs = list(identical)
    for (first, second), (similarity, score, coverage) in _by_clip(
        speakers, found.first, found.second, found.similarity, bias
    ).items():
        if crossing and side[first] == side[second]:
            continue
        covers = max(coverage) >= config.coverage
        pairs.append(
            _Pair(
                int(rows[first]),
                int(rows[second]),
                similarity,
                score,
                coverage,
                "similar",
                threshold.separated and covers,
            )
        )
    top1 = pa.table({"clip_id": speakers.clips["clip_id"], "score": pa.array(top, from_pandas=True)})
    return threshold, pairs, top1


def _identical_pairs(clips: pa.Table, n_corpus: int) -> tuple[list[_Pair], IntArray]:
    """Pairs (first of its group, other) of identical clips, and for each clip the row that speaks for it."""
    n = clips.num_rows
    digests, hashes = clips["sample_digest"].to_pylist(), clips["sha256"].to_pylist()
    stretches = list(zip(clips["start_s"].to_pylist(), clips["duration_s"].to_pylist(), strict=True))
    spokesman = np.arange(n)
    groups: dict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        groups[digest].append(row)
    pairs = []
    for members in groups.values():
        sides = [[row for row in members if row < n_corpus], [row for row in members if row >= n_corpus]]
        if n_corpus < n:  # across two sets, each has a spokesman of its own
            pairings = [(first, second) for first in sides[0] for second in sides[1]]
        else:
            pairings = [(members[0], other) for other in members[1:]]
        for side in sides:
            for row in side:
                spokesman[row] = side[0]
        for first, second in pairings:
            same_file = hashes[first] == hashes[second] and stretches[first] == stretches[second]
            kind = "bit_identical" if same_file else "sample_identical"
            pairs.append(_Pair(first, second, 1.0, None, (1.0, 1.0), kind, True))
    return pairs, spokesman


def _bias_and_top(
    speakers: Vectors, side: IntArray | None, background: Vectors | None, config: DedupConfig, progress: Progress
) -> tuple[DoubleArray, DoubleArray]:
    """Background bias of each vector, and the top-1 score of each clip (across the sets, if there are two; NaN: none)."""
    groups = speakers.clip if side is None else side[speakers.clip]
    top = top_k(speakers.vectors, speakers.vectors, k=1, exclude=(groups, groups), progress=progress)
    best = top.index[:, 0]
    clips = speakers.clip
    if background is None:
        rng = np.random.default_rng(config.seed)
        n = speakers.clips.num_rows
        chosen = np.sort(rng.choice(n, min(n, config.background_sample), replace=False))
        background, background_clips = speakers.subset(chosen), chosen
        owners = background_clips[background.clip]
    else:
        owners = np.full(len(background), -1, np.int64)
    # neither the clip itself nor what it resembles most may count as its background
    suspect = np.where(best >= 0, clips[best], -1)
    bias = background_bias(
        speakers.vectors,
        background.vectors,
        k=config.background_k,
        beta=config.beta,
        exclude=(np.stack([clips, suspect], axis=1), owners),
    )
    # the symmetric rule subtracts the larger bias of the two
    score = top.similarity[:, 0] - np.maximum(bias, bias[np.maximum(best, 0)])
    tops = np.full(speakers.clips.num_rows, np.nan)
    np.fmax.at(tops, clips[best >= 0], score[best >= 0])
    return bias, tops


def _dedup_threshold(config: DedupConfig, top: DoubleArray) -> Threshold:
    if config.tau != "gap":
        return fixed_threshold(float(config.tau))
    if len(top) < MIN_SCORES:
        return Threshold(
            float(top.max(initial=0.0)),
            "gap",
            False,
            f"{len(top)} clips are too few for a histogram ({MIN_SCORES} are needed).",
        )
    return gap_threshold(np.zeros(0), top)


def _by_clip(
    vectors: Vectors, first: IntArray, second: IntArray, similarity: DoubleArray, bias: DoubleArray
) -> dict[tuple[int, int], tuple[float, float, tuple[float, float]]]:
    """From pairs of windows to pairs of clips: best similarity, its score, and how much of each clip is matched."""
    windows: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (left, right) in enumerate(zip(vectors.clip[first], vectors.clip[second], strict=True)):
        windows[(int(left), int(right))].append(number)
    n_windows = np.bincount(vectors.clip, minlength=vectors.clips.num_rows)
    score = similarity - np.maximum(bias[first], bias[second])
    result = {}
    for (left, right), numbers in windows.items():
        best = max(numbers, key=lambda number: (score[number], -number))
        coverage = (
            len(set(first[numbers].tolist())) / int(n_windows[left]),
            len(set(second[numbers].tolist())) / int(n_windows[right]),
        )
        result[(left, right)] = (float(similarity[best]), float(score[best]), coverage)
    return result


# --- clusters -------------------------------------------------------------------------------------------------------

CLUSTER_SCHEMA = pa.schema(
    [
        ("cluster_id", pa.int64()),
        ("clip_id", pa.string()),
        ("path", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),
        ("similarity_to_kept", pa.float64()),
        ("kept_clip_id", pa.string()),
        ("chained", pa.bool_()),
        ("captions_differ", pa.bool_()),
        ("caption", pa.string()),
        ("start_s", pa.float64()),
        ("duration_s", pa.float64()),
        ("sample_rate_hz", pa.int32()),
        ("set", pa.string()),
    ]
)


def cluster_rows(clips: pa.Table, pairs: Iterable[_Pair], n_corpus: int, config: DedupConfig) -> list[dict[str, Any]]:
    """Connected components of the duplicate pairs, and what to keep of each.

    In a component the best clip by the policy is kept, and every clip that is itself similar to it (and covered by it) is
    dropped. What remains, linked to it only through others, is not thrown away: the best of it is kept in turn, and the
    component is marked as chained. Across two sets, the other set's clips are kept and the corpus's are dropped.
    """
    n = clips.num_rows
    duplicates = [pair for pair in pairs if pair.duplicate]
    if not duplicates:
        return []
    links = _links(duplicates)
    first, second = [pair.first for pair in duplicates], [pair.second for pair in duplicates]
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    members: dict[int, list[int]] = defaultdict(list)
    for row in sorted(links):
        members[int(label[row])].append(row)
    facts = clips.to_pylist()
    rows = []
    for cluster_id, component in enumerate(members.values()):
        order = sorted(component, key=lambda row: (row < n_corpus < n, *_preference(facts[row], config.keep), row))
        rows += _component_rows(cluster_id, order, links, facts, n_corpus, config)
    return rows


def _links(pairs: list[_Pair]) -> dict[int, dict[int, _Pair]]:
    """``links[row][other]``. Clips that are identical to a spokesman share its pairs."""
    links: dict[int, dict[int, _Pair]] = defaultdict(dict)
    copies: dict[int, list[_Pair]] = defaultdict(list)
    for pair in pairs:
        links[pair.first][pair.second] = links[pair.second][pair.first] = pair
        if pair.kind != "similar":
            copies[pair.first].append(pair)
    for spokesman, identical in copies.items():
        for pair in identical:
            for other, link in list(links[spokesman].items()):
                if other != pair.second:
                    kind = link.kind if link.kind == "similar" else pair.kind
                    coverage = link.coverage if link.first == spokesman else link.coverage[::-1]
                    same = _Pair(pair.second, other, link.similarity, link.score, coverage, kind, True)
                    links[pair.second].setdefault(other, same)
                    links[other].setdefault(pair.second, same)
    return links


def _preference(clip: dict[str, Any], policy: KeepPolicy) -> tuple[float, ...]:
    """Sorts the clip to keep first."""
    words = len(set((clip["caption"] or "").lower().split()))
    longest, rate = -round(clip["duration_s"], 3), -clip["sample_rate_hz"]
    return {
        "longest": (longest, rate, -words),
        "highest_rate": (rate, longest, -words),
        "best_captioned": (-words, longest, rate),
        "first": (),
    }[policy]


def _component_rows(
    cluster_id: int,
    order: list[int],
    links: dict[int, dict[int, _Pair]],
    facts: list[dict[str, Any]],
    n_corpus: int,
    config: DedupConfig,
) -> list[dict[str, Any]]:
    crossing = n_corpus < len(facts)
    decisions: list[tuple[int, int | None]] = []  # (row, the row it is dropped for)
    remaining, kept = list(order), []
    while remaining:
        keeper = remaining.pop(0)
        kept.append(keeper)
        decisions.append((keeper, None))
        dropped = [
            row
            for row in remaining
            if (pair := links[keeper].get(row)) is not None
            and _coverage_of(pair, row) >= config.coverage
            and not (crossing and row >= n_corpus)
        ]
        decisions += [(row, keeper) for row in dropped]
        remaining = [row for row in remaining if row not in set(dropped)]
    chained = len(kept) > 1 and not crossing
    captions = {(facts[row]["caption"] or "").strip().lower() for row in order}
    rows = []
    for row, keeper_row in decisions:
        clip = facts[row]
        pair = None if keeper_row is None else links[keeper_row][row]
        rows.append(
            {
                "cluster_id": cluster_id,
                "clip_id": clip["clip_id"],
                "path": clip["path"],
                "keep": keeper_row is None,
                "reason": _reason(row, keeper_row, pair, kept, facts, n_corpus, config.keep),
                "similarity_to_kept": None if pair is None else pair.similarity,
                "kept_clip_id": None if keeper_row is None else facts[keeper_row]["clip_id"],
                "chained": chained,
                "captions_differ": len(captions) > 1,
                "caption": clip["caption"],
                "start_s": clip["start_s"],
                "duration_s": clip["duration_s"],
                "sample_rate_hz": clip["sample_rate_hz"],
                "set": "against" if row >= n_corpus else "corpus",
            }
        )
    return rows


def _coverage_of(pair: _Pair, row: int) -> float:
    return pair.coverage[0] if pair.first == row else pair.coverage[1]


def _reason(
    row: int,
    keeper: int | None,
    pair: _Pair | None,
    kept: list[int],
    facts: list[dict[str, Any]],
    n_corpus: int,
    policy: str,
) -> str:
    if keeper is not None and pair is not None:
        return f"{pair.kind.replace('_', '-')} to {facts[keeper]['clip_id']}"
    if row >= n_corpus:
        return "the other set's"
    if row == kept[0]:
        return f"kept: {policy.replace('_', ' ')}"
    return f"kept: in the cluster through others, not itself a copy of {facts[kept[0]]['clip_id']}"


# --- files ----------------------------------------------------------------------------------------------------------


def _pairs_table(pairs: list[_Pair], clips: pa.Table) -> pa.Table:
    order = sorted(pairs, key=lambda pair: (-(pair.score if pair.score is not None else 2.0), pair.first, pair.second))
    ids, paths = clips["clip_id"].to_pylist(), clips["path"].to_pylist()
    return pa.table(
        {
            "first_id": pa.array([ids[pair.first] for pair in order], pa.string()),
            "first_path": pa.array([paths[pair.first] for pair in order], pa.string()),
            "second_id": pa.array([ids[pair.second] for pair in order], pa.string()),
            "second_path": pa.array([paths[pair.second] for pair in order], pa.string()),
            "similarity": pa.array([pair.similarity for pair in order], pa.float64()),
            "score": pa.array([pair.score for pair in order], pa.float64()),
            "first_coverage": pa.array([pair.coverage[0] for pair in order], pa.float64()),
            "second_coverage": pa.array([pair.coverage[1] for pair in order], pa.float64()),
            "kind": pa.array([pair.kind for pair in order], pa.string()),
            "duplicate": pa.array([pair.duplicate for pair in order], pa.bool_()),
        }
    )


def _write_lists(folder: Path, clips: pa.Table, dropped: set[str]) -> str:
    """Write ``keep.txt`` and ``drop.txt``: paths, one a line; clip ids where several clips share a file."""
    ids, paths = clips["clip_id"].to_pylist(), clips["path"].to_pylist()
    names, holds = (paths, "path") if len(set(paths)) == len(paths) else (ids, "clip_id")
    for file, wanted in (("keep.txt", False), ("drop.txt", True)):
        lines = [name.replace("\n", "\\n") for clip_id, name in zip(ids, names, strict=True) if (clip_id in dropped) == wanted]
        write_text(folder / file, "".join(f"{line}\n" for line in lines))
    return holds
