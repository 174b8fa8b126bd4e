"""A finished datastore: what it holds, the neighbors kept for its own pairs, and retrieval for a free prompt.

STORE/card.json            what keys are made by, counts, digests, the report on neighbors; written last
      pairs.parquet        one row a pair: clip_id, path, start_s, duration_s, caption, labels, sha256, sample_digest,
                         cluster_id
      keys.npy             (n, d) float32 of unit length, one a pair
      center.npy           (d,) what was taken off the keys (only where sounds are compared with sounds)
      neighbors.parquet    clip_id, rows (of pairs.parquet; -1: none), similarity; the most similar first
      skipped.parquet      inputs that are in no pair, and why
      stores/pairs         the descriptor store that it was built of, unless one was given
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import StoreError
from ...folders import read_card
from ...search.exact import DoubleArray, FloatArray, IntArray, unit_rows
from .encoding import Texts, centered, load_texts
from .report import RetrievalReport, retrieval_report
from .search import Exclusion, Groups, caption_numbers, nearest, normalized_caption

KIND = "datastore"
PAIRS, KEYS, CENTER, NEIGHBORS, SKIPPED = "pairs.parquet", "keys.npy", "center.npy", "neighbors.parquet", "skipped.parquet"


@dataclass(frozen=True)
class Retrieved:
    """Pairs found for one query, the most similar first.

    Attributes
    ----------
    rows
        (k,) rows of ``Datastore.pairs``.
    similarity
        (k,) cosines with the query.
    ids, captions, paths, starts_s, durations_s
        Of each pair: the clip's id, its caption, where its sound lies.
    """

    rows: IntArray
    similarity: DoubleArray
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    paths: tuple[str, ...]
    starts_s: tuple[float, ...]
    durations_s: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Datastore:
    """A datastore in memory; see the module's docstring for its files.

    Attributes
    ----------
    path
        Its folder.
    card
        Content of ``card.json``.
    pairs
        The table of pairs.
    keys
        (n, d) float32 of unit length.
    center
        (d,) what vectors are freed of before they are compared, or None.
    neighbor_rows, neighbor_similarity
        (n, m) the neighbors kept for each pair, without itself, its duplicates and equal captions; -1 and NaN where it has
        fewer.
    device
        Of the text encoder, which is loaded when the first text comes.
    """

    path: Path
    card: dict[str, Any]
    pairs: pa.Table
    keys: FloatArray
    center: FloatArray | None
    neighbor_rows: npt.NDArray[np.int32]
    neighbor_similarity: DoubleArray
    device: str = "cpu"

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> Datastore:
        """Read a datastore.

        Raises
        ------
        StoreError
            There is none, its build was stopped, or a file is missing or damaged.
        """
        folder = Path(path)
        card = read_card(folder, KIND)
        try:
            pairs, neighbors = pq.read_table(folder / PAIRS), pq.read_table(folder / NEIGHBORS)
            keys = np.load(folder / KEYS, allow_pickle=False)
            center = np.load(folder / CENTER, allow_pickle=False) if CENTER in card["files"] else None
            rows, similarity = (_matrix(neighbors[name]) for name in ("rows", "similarity"))
        except (OSError, ValueError, EOFError, KeyError, pa.ArrowException) as error:
            raise StoreError(f"{folder}: cannot be read ({error}); build the datastore again, with --overwrite") from error
        if "sample_digest" not in pairs.column_names:
            raise StoreError(f"{folder}: does not say of which audio its pairs are; build it again, with --overwrite")
        lengths = {card["counts"]["pairs"], pairs.num_rows, len(keys), len(rows), len(similarity)}
        if len(lengths) > 1:
            raise StoreError(f"{folder}: its files are of different builds ({lengths} rows); build it again, with --overwrite")
        return cls(folder, card, pairs, keys, center, rows, similarity, device)

    def __len__(self) -> int:
        return int(self.pairs.num_rows)

    def __contains__(self, clip_id: object) -> bool:
        return clip_id in self._row

    @property
    def texts_spec(self) -> str | None:
        """What vectors of texts it is asked with are made by, as ``str`` of a spec; None if it cannot be asked with texts."""
        found: str | None = self.card["encoders"]["text"]
        return found

    def row(self, clip_id: str) -> int:
        """Where a clip is in ``pairs`` and ``keys``.

        Raises
        ------
        ValueError
            It is not in the datastore; the message says why, if that is known.
        """
        if clip_id in self._row:
            return self._row[clip_id]
        skipped = pq.read_table(self.path / SKIPPED) if (self.path / SKIPPED).is_file() else pa.table({"clip_id": []})
        why = [row["reason"] for row in skipped.to_pylist() if row["clip_id"] == clip_id]
        reason = f"it was left out: {why[0]}" if why else f"it holds {len(self):,} clips, such as {self.pairs['clip_id'][0]}"
        raise ValueError(f"{self.path}: clip {clip_id!r} is not in this datastore; {reason}")

    def of_audio(self, digest: str) -> tuple[str, ...]:
        """Ids of the clips of this very audio: of one ``sample_digest``, whatever they are called or their files' format."""
        return self._of_audio.get(digest, ())

    def neighbors(self, clip_id: str, k: int | None = None) -> Retrieved:
        """The neighbors kept for a clip, at most k of them; fewer where too much was excluded.

        Raises
        ------
        ValueError
            It is not in the datastore, or k is more than are kept.
        """
        row, kept = self.row(clip_id), self.neighbor_rows.shape[1]
        if k is not None and not 0 <= k <= kept:
            raise ValueError(f"k should be from 0 to {kept}, the neighbors that {self.path} keeps, got {k}")
        return self._retrieved(self.neighbor_rows[row, :k], self.neighbor_similarity[row, :k])

    def pairs_of(self, clip_ids: Sequence[str]) -> Retrieved:
        """Given clips as if they had been retrieved, in their order, with similarities of NaN.

        Raises
        ------
        ValueError
            One is not in the datastore.
        """
        rows = np.array([self.row(clip_id) for clip_id in clip_ids], np.int64)
        return self._retrieved(rows, np.full(len(rows), np.nan))

    def retrieve(
        self,
        queries: Sequence[str] | FloatArray,
        k: int,
        *,
        exclude: Exclusion | Sequence[Exclusion] | None = None,
    ) -> list[Retrieved]:
        """The k most similar pairs of each query.

        Parameters
        ----------
        queries
            Texts; or vectors (m, d) as the encoder of the keys makes them, of any length but zero.
        k
            How many; 0 retrieves nothing.
        exclude
            What must not be retrieved, for all queries or for each; without it, for texts, pairs of an equal caption. Give
            ``Exclusion(captions=False)`` to see those as well.

        Returns
        -------
        list of Retrieved
            One a query.

        Raises
        ------
        ValueError
            k is below 0 or more than are left, a text is empty, vectors are of another length or not finite, a target is not in
            the datastore, or it compares sounds with sounds and was asked with texts.
        """
        texts = None if isinstance(queries, np.ndarray) else list(queries)
        if k < 0:
            raise ValueError(f"k should be at least 0, got {k}")
        each = _for_each(exclude, len(queries))
        hidden = [self.hidden(one, None if texts is None else texts[number]) for number, one in enumerate(each)]
        for number, rows in enumerate(hidden):
            if k > len(self) - len(rows):
                raise ValueError(
                    f"k={k} is more than this datastore can give: of its {len(self):,} pairs {len(rows):,} are excluded for "
                    f"query {number}; take k of at most {len(self) - len(rows)}, or a larger datastore"
                )
        if k == 0 or not each:
            return [self._retrieved(np.zeros(0, np.int64), np.zeros(0)) for _ in each]
        vectors = self._vectors(queries) if isinstance(queries, np.ndarray) else self.encode(list(queries))
        found = nearest(self.keys, vectors, k, hidden=hidden.__getitem__, key_norms=self._key_norms)
        return [self._retrieved(rows, cosines) for rows, cosines in zip(found.index, found.similarity, strict=True)]

    def encode(self, texts: list[str]) -> FloatArray:
        """Vectors of texts that keys can be compared with: (n, d) float32 of unit length.

        Raises
        ------
        ValueError
            A text is empty, or the keys are of sounds alone.
        """
        if self.texts_spec is None:
            raise ValueError(
                f"{self.path}: its keys are sounds described by {self.card['encoders']['audio']}, which has no vectors of "
                "texts; use the neighbors of a clip, give vectors of sounds, or build with --model hashed --key text, or CLAP"
            )
        for number, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"query {number}: expected a text with words in it, got {text!r}")
        return self._texts.embed(texts)

    def hidden(self, exclusion: Exclusion, query: str | None = None) -> IntArray:
        """Rows that an exclusion hides from a query."""
        targets = np.array([self.row(clip_id) for clip_id in exclusion.clip_ids], np.int64)
        rows = self._clusters.like(targets) if exclusion.clusters else targets
        if not exclusion.captions:
            return np.unique(rows)
        same = [self._captions.like(targets)]
        for text in (*exclusion.texts, *(() if query is None else (query,))):
            same.append(self._captions.members(self._caption_numbers.get(normalized_caption(text), -1)))
        return np.unique(np.concatenate([rows, *same]))

    def report(self) -> RetrievalReport:
        """What the kept neighbors are like; see :class:`RetrievalReport`."""
        return retrieval_report(
            self.neighbor_rows,
            self.neighbor_similarity,
            clusters=self._clusters.of,
            captions=self._captions.of,
            labels=[labels or [] for labels in self.pairs["labels"].to_pylist()],
        )

    def _vectors(self, vectors: FloatArray) -> FloatArray:
        if vectors.ndim != 2 or vectors.shape[1] != self.keys.shape[1]:
            raise ValueError(
                f"expected vectors of shape (n, {self.keys.shape[1]}), as {self.texts_spec or self.card['encoders']['audio']} "
                f"makes them, got {vectors.shape}; were they made by another encoder?"
            )
        vectors = vectors.astype(np.float32, copy=False)
        return unit_rows(vectors)[0] if self.center is None else centered(vectors, self.center)

    def _retrieved(self, rows: npt.NDArray[np.integer], similarity: DoubleArray) -> Retrieved:
        there: IntArray = rows[rows >= 0].astype(np.int64)
        found = {name: tuple(column[row] for row in there.tolist()) for name, column in self._columns.items()}
        return Retrieved(
            there,
            similarity[rows >= 0],
            found["clip_id"],
            found["caption"],
            found["path"],
            found["start_s"],
            found["duration_s"],
        )

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        return {name: self.pairs[name].to_pylist() for name in ("clip_id", "caption", "path", "start_s", "duration_s")}

    @cached_property
    def _row(self) -> dict[str, int]:
        return {clip_id: row for row, clip_id in enumerate(self._columns["clip_id"])}

    @cached_property
    def _of_audio(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for digest, clip_id in zip(self.pairs["sample_digest"].to_pylist(), self._columns["clip_id"], strict=True):
            if digest:
                found[digest] = (*found.get(digest, ()), clip_id)
        return found

    @cached_property
    def _texts(self) -> Texts:
        assert self.texts_spec is not None
        return load_texts(self.texts_spec, self.device)

    @cached_property
    def _key_norms(self) -> DoubleArray:
        return unit_rows(self.keys)[1]

    @cached_property
    def _clusters(self) -> Groups:
        return Groups.make(self.pairs["cluster_id"].to_numpy())

    @cached_property
    def _caption_numbers(self) -> dict[str, int]:
        return caption_numbers(self._columns["caption"])

    @cached_property
    def _captions(self) -> Groups:
        return Groups.of_captions(self._columns["caption"])


def _for_each(exclude: Exclusion | Sequence[Exclusion] | None, n: int) -> list[Exclusion]:
    """One exclusion for each of n queries."""
    if exclude is None or isinstance(exclude, Exclusion):
        return [exclude or Exclusion()] * n
    if len(exclude) != n:
        raise ValueError(f"expected an exclusion for each of {n} queries, or one for all, got {len(exclude)}")
    return list(exclude)


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column of lists of one length as (n, m)."""
    values = column.combine_chunks()
    flat: npt.NDArray[Any] = values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(values), values.type.list_size)
