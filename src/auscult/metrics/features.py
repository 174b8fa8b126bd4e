"""Features of the clips of a corpus, by one backend under one policy: computed once a content, and streamed in one order.

Data flow: corpus -> digest of each file's bytes -> what the cache does not hold: decode, level, embed -> shards -> the
features of all clips in the order of their samples' digests. File names, the order of a listing, a lossless container and the
number of workers change nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import soundfile as sf
import xxhash

from ..corpus import Clip, Corpus, Skipped
from ..corpus.archive import open_audio_bytes
from ..engine import HERE, Engine
from ..errors import CorpusError
from ..folders import Progress, file_digest, no_progress
from ..storage import in_order
from ..storage.remote import READERS
from ..store import SKIPPED_SCHEMA
from .cache import Kept, ShardWriter, gather, open_cache, survey
from .embeddings import Backend
from .featureset import CLIP_SCHEMA, FeatureSet
from .inference import AS_IS, AudioPolicy, Input, answers

__all__ = ["AudioPolicy", "FeatureSet", "default_cache", "embed_sounds", "extract", "probe_rates"]

FloatArray = npt.NDArray[np.float32]


def default_cache() -> Path:
    """Where features are kept if nobody says otherwise: ``auscult/features`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "auscult" / "features"


def extract(
    corpus: Corpus,
    backend: Backend,
    *,
    cache: Path,
    policy: AudioPolicy = AS_IS,
    engine: Engine = HERE,
    progress: Progress = no_progress,
) -> FeatureSet:
    """Features of every clip of a corpus: from the cache where it has them, computed and kept there otherwise.

    Clips are known by the digest of their bytes and their stretch: a file that changed is computed anew, one that was renamed
    is not, and contents that occur twice are computed once and count twice. Silent clips count like any other. What cannot
    be decoded, is shorter than a frame or lasts over half an hour is in ``skipped``, and tried again next time.

    Parameters
    ----------
    corpus
        See ``auscult.corpus.open_corpus``.
    backend
        See :func:`~auscult.metrics.embeddings.load_backend`.
    cache
        Folder of all caches; see :func:`default_cache`. Several processes may use it at once.
    policy
        What is done to the audio first.
    engine
        With one worker the backend works in this process, with as many threads as it likes; with several, each loads the
        backend (it must be one of ``BACKENDS``, or picklable), and a script must guard its entry by
        ``if __name__ == "__main__"``. Its device is taken for that of the backend: features of a GPU and of a processor are
        kept apart. A quarter of its memory may hold features; more lie in a file.
    progress
        Called with (clips read, None, what), then with (clips done, clips to do, what).

    Raises
    ------
    CorpusError
        The source as a whole cannot be read, or a file changed meanwhile.
    ModelError
        The backend returned something else than it promises, such as NaN; the message names the clip.
    StorageError
        A place denies, cannot be reached, or is full.
    """
    clips, skipped = _keyed_clips(corpus, progress)
    folder = open_cache(cache, backend.spec, str(policy), engine.device)
    wanted: dict[str, Clip] = {}
    for clip, key in clips:
        wanted.setdefault(key, clip)
    kept = survey(folder, wanted.keys())
    todo = [Input(key, clip.path, clip) for key, clip in wanted.items() if key not in kept]
    reasons = _embed_missing(iter(todo), len(todo), folder, kept, backend, policy, engine, progress)
    skipped += [_skip(clip, reasons[key]) for clip, key in clips if key in reasons]
    rows = [_row(clip, key, kept[key]) for clip, key in clips if key not in reasons]
    return _feature_set(rows, skipped, folder, kept, backend, policy, engine)


def embed_sounds(
    sounds: Iterable[tuple[str, str, FloatArray]],
    backend: Backend,
    *,
    cache: Path,
    policy: AudioPolicy = AS_IS,
    engine: Engine = HERE,
    progress: Progress = no_progress,
) -> FeatureSet:
    """Features of sounds that lie in no file, such as noise and silence, under the same policy and cached alike.

    Parameters
    ----------
    sounds
        (clip_id, key, samples): samples (time,) float32, finite, at ``backend.sample_rate_hz``. The key says how the sound was
        made; a digest of the samples is added to it, so that it cannot be stale.
    backend, cache, policy, engine, progress
        See :func:`extract`.

    Raises
    ------
    ValueError
        Samples are not of this kind, or a clip id occurs twice.
    ModelError, StorageError
        See :func:`extract`.

    Examples
    --------
    >>> import tempfile
    >>> from auscult.descriptors import DescriptorSpec
    >>> from auscult.metrics.embeddings import Embedded
    >>> peak = Backend(
    ...     DescriptorSpec("peak", 1), sample_rate_hz=8000, dimension=1, shortest_samples=1, frechet="fd", frame="the clip",
    ...     embed=lambda samples: Embedded(samples.max(keepdims=True)[None]),
    ... )
    >>> sounds = [("b", "ramp", np.arange(4, dtype=np.float32)), ("a", "silence", np.zeros(4, np.float32))]
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     found = embed_sounds(sounds, peak, cache=Path(cache))
    >>> found.clips["clip_id"].to_pylist(), found.features().tolist()
    (['b', 'a'], [[3.0], [0.0]])
    """
    # apart, since all of it is checked before the first
    folder = open_cache(cache, backend.spec, str(policy), engine.device) / "sounds"
    folder.mkdir(exist_ok=True)
    kept = survey(folder)
    clips: dict[str, str] = {}

    def missing() -> Iterator[Input]:
        under_way: set[str] = set()
        for clip_id, name, samples in sounds:
            _check_sound(clip_id, samples, clips)
            clips[clip_id] = key = f"{name}:{xxhash.xxh3_128_hexdigest(np.ascontiguousarray(samples).data)}"
            if key not in kept and key not in under_way:
                under_way.add(key)
                yield Input(key, clip_id, samples)

    reasons = _embed_missing(missing(), None, folder, kept, backend, policy, engine, progress)
    named = [(Clip(clip_id, ""), key) for clip_id, key in clips.items()]
    skipped = [_skip(clip, reasons[key]) for clip, key in named if key in reasons]
    rows = [_row(clip, key, kept[key]) for clip, key in named if key not in reasons]
    return _feature_set(rows, skipped, folder, kept, backend, policy, engine)


def probe_rates(corpus: Corpus) -> Counter[int | None]:
    """How many clips have which native rate in Hz, by their headers alone; None: the header cannot be read without decoding.

    Cheap, beside embedding: sets of unequal rates are to be refused before it, not after.
    """
    rates: Counter[int | None] = Counter()
    for item in corpus:
        if isinstance(item, Clip):
            rates[_native_rate(item.path)] += 1
    return rates


def _native_rate(path: str) -> int | None:
    try:
        source = open_audio_bytes(path)
        if isinstance(source, str) and not os.path.isfile(source):
            return None
        return int(sf.info(source).samplerate)
    except (OSError, CorpusError, sf.LibsndfileError):
        return None


# --- contents ---------------------------------------------------------------------------------------------------------


def _keyed_clips(corpus: Corpus, progress: Progress) -> tuple[list[tuple[Clip, str]], list[dict[str, Any]]]:
    """The clips of a corpus, each with the key of its content; and rows of what was passed over."""
    clips: list[tuple[Clip, str]] = []
    skipped: list[dict[str, Any]] = []
    # the library of Hugging Face data sets is not made for several threads
    threads = 1 if any(source.startswith("hf:") for source in corpus.sources) else READERS
    for done, (item, digest) in enumerate(in_order(partial(_digested, known={}), corpus, threads=threads), 1):
        if isinstance(item, Skipped):
            skipped.append({"path": item.path, "reason": item.reason, "kind": item.kind, "clip_id": item.clip_id})
        else:
            clips.append((item, _key(digest, item)))
        progress(done, None, "reading clips")
    return clips, skipped


def _digested(item: Clip | Skipped, known: dict[str, str]) -> tuple[Clip | Skipped, str]:
    """With the SHA-256 of the bytes that a clip lies in, as ``AudioStream`` will have it; ``known`` holds those of files of
    which more than one stretch may be asked for."""
    if isinstance(item, Skipped):
        return item, ""
    if item.path in known:
        return item, known[item.path]
    try:
        source = open_audio_bytes(item.path)
        if isinstance(source, io.BytesIO):
            return item, hashlib.sha256(source.getbuffer()).hexdigest()
        if os.path.exists(source) and not os.path.isfile(source):
            return Skipped(item.path, "is not a file (a folder, a pipe or a device)", clip_id=item.clip_id), ""
        digest = file_digest(Path(source))
        if item.start_s or item.duration_s is not None:
            known[item.path] = digest
        return item, digest
    except (OSError, CorpusError) as error:
        reason = f"cannot be opened ({getattr(error, 'strerror', None) or error})"
        return Skipped(item.path, reason, clip_id=item.clip_id), ""


def _key(sha256: str, clip: Clip) -> str:
    """A whole file has its digest as its key, a stretch of one also where it lies."""
    if not clip.start_s and clip.duration_s is None:
        return sha256
    return f"{sha256}@{clip.start_s!r}+{'' if clip.duration_s is None else repr(clip.duration_s)}"


def _check_sound(clip_id: str, samples: FloatArray, clips: dict[str, str]) -> None:
    if clip_id in clips:
        raise ValueError(f"the clip id {clip_id!r} occurs twice; give each sound its own")
    if samples.ndim != 1 or samples.dtype != np.float32 or not np.isfinite(samples).all():
        raise ValueError(
            f"{clip_id}: expected finite samples (time,) float32, got {samples.dtype} of shape {samples.shape}"
            + ("" if samples.dtype != np.float32 or samples.ndim != 1 else " with NaN or infinity")
        )


# --- what is missing ------------------------------------------------------------------------------------------------


def _embed_missing(
    inputs: Iterator[Input],
    total: int | None,
    folder: Path,
    kept: dict[str, Kept],
    backend: Backend,
    policy: AudioPolicy,
    engine: Engine,
    progress: Progress,
) -> dict[str, str]:
    """Embed what is missing into shards, which ``kept`` then names; returns the reasons of what has no features, by key."""
    what = f"embedding with {backend.spec.name}"
    reasons: dict[str, str] = {}
    writer = ShardWriter(folder, kept)
    if total:
        progress(0, total, what)
    try:
        for done, answer in enumerate(answers(inputs, backend, policy, engine), 1):
            if answer.reason is not None:
                reasons[answer.key] = answer.reason
            else:
                assert answer.frames is not None
                writer.add(answer.key, answer.facts, answer.frames, answer.logits)
            progress(done, total, what)
    finally:
        writer.flush()  # after Ctrl-C or an error, too: nothing that was computed is lost
    return reasons


# --- the result -------------------------------------------------------------------------------------------------------


def _skip(clip: Clip, reason: str) -> dict[str, Any]:
    return {"path": clip.path, "reason": reason, "kind": "unreadable", "clip_id": clip.clip_id}


def _row(clip: Clip, key: str, kept: Kept) -> dict[str, Any]:
    known = {"caption": clip.caption, "labels": list(clip.labels), "start_s": clip.start_s}
    return {"key": key, "clip_id": clip.clip_id, "path": clip.path, **known, **kept.facts, "n_frames": kept.n_frames}


def _feature_set(
    rows: list[dict[str, Any]],
    skipped: list[dict[str, Any]],
    folder: Path,
    kept: dict[str, Kept],
    backend: Backend,
    policy: AudioPolicy,
    engine: Engine,
) -> FeatureSet:
    rows.sort(key=lambda row: (row["sample_digest"], row["key"], row["clip_id"]))
    keys = list(dict.fromkeys(row["key"] for row in rows))
    found = gather(
        folder,
        kept,
        keys,
        dimension=backend.dimension,
        classes=backend.classes,
        memory_bytes=engine.memory_bytes // 4,
    )
    place_of = {key: place for place, key in enumerate(keys)}
    places = np.array([place_of[row["key"]] for row in rows], np.int64)
    return FeatureSet(
        spec=str(backend.spec),
        policy=policy,
        clips=pa.Table.from_pylist(rows, CLIP_SCHEMA),
        skipped=pa.Table.from_pylist(sorted(skipped, key=lambda row: (row["path"], row["clip_id"] or "")), SKIPPED_SCHEMA),
        dimension=backend.dimension,
        _stored=found.frames,
        _starts=found.starts[places],
        _logits=None if found.logits is None else found.logits[places],
    )
