"""From a clip to its features: decode, bring to one rate and level, embed, check; in this process or in several."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import soxr
import xxhash
from threadpoolctl import threadpool_limits

from ..audio import SILENT_PEAK, AudioFacts, AudioStream
from ..corpus import Clip
from ..corpus.archive import container
from ..descriptors import DescriptorSpec
from ..engine import Engine
from ..errors import AudioDecodeError, CorpusError, ModelError
from ..processes import map_in_processes
from .cache import FACTS
from .embeddings import BACKENDS, Backend, load_backend

FloatArray = npt.NDArray[np.float32]
Loudness = Literal["as_is", "peak"]

PEAK = 10 ** (-1 / 20)  # -1 dBFS
LONGEST_S = 1800.0  # backends want a clip as a whole; half an hour at 48 kHz takes 350 MB
NUMPY_ONLY = frozenset({"logmel"})  # one thread each, as a worker has: the last bits of a product depend on their number


@dataclass(frozen=True)
class AudioPolicy:
    """What is done to audio before it is embedded. Channels are always averaged.

    Attributes
    ----------
    rate_hz
        All audio is brought to this rate first, which limits its band, and then to the backend's; None: to the backend's at
        once. Resampling alone moves a Frechet distance, so sets of unequal native rates need one rate for all.
    loudness
        ``as_is``, or ``peak``: each clip's largest sample at -1 dBFS. Silence stays silence.
    """

    rate_hz: int | None = None
    loudness: Loudness = "as_is"

    def __post_init__(self) -> None:
        if self.rate_hz is not None and self.rate_hz < 1:
            raise ValueError(f"rate_hz should be a positive rate in Hz, or None for the backend's own; got {self.rate_hz}")
        if self.loudness not in get_args(Loudness):
            raise ValueError(f"loudness should be one of {', '.join(get_args(Loudness))}; got {self.loudness!r}")


AS_IS = AudioPolicy()


@dataclass(frozen=True)
class Input:
    """A content to be embedded: a clip, or samples. ``name`` is for messages."""

    key: str
    name: str
    source: Clip | FloatArray


@dataclass(frozen=True)
class Answer:
    """What came of an input: features, or the reason why there are none."""

    key: str
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    frames: FloatArray | None = None
    logits: FloatArray | None = None


def answers(inputs: Iterator[Input], backend: Backend, policy: AudioPolicy, engine: Engine) -> Iterator[Answer]:
    """Embed inputs, in their order: in this process with one worker, otherwise in as many as the engine has.

    Raises
    ------
    CorpusError
        A file changed between its digest and its decoding.
    ModelError
        The backend returned something else than it promises; the message names the input.
    ValueError
        There are to be several workers, and the backend cannot be sent to them.
    """
    if engine.ray is None and engine.workers == 1:
        with threadpool_limits(1) if backend.spec.name in NUMPY_ONLY else nullcontext():
            for one in inputs:
                yield _embed_input(one, backend, policy)
        return
    first = next(inputs, None)
    if first is None:  # no process has to load a model to find that out
        return
    yield from map_in_processes(
        partial(_loaded, _sendable(backend), policy),
        itertools.chain([first], inputs),
        engine,
        crashed=lambda one: Answer(one.key, "the process that decoded and embedded it crashed"),
        unread=_unread,
        gpus=engine.device.startswith("cuda"),
    )


def _sendable(backend: Backend) -> DescriptorSpec | bytes:
    """What a worker gets of a backend: its spec, to load it by; or all of it, if it is none of ours."""
    if backend.spec.name in BACKENDS:
        return backend.spec
    try:
        return pickle.dumps(backend)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"backend {backend.spec.name!r} cannot be sent to workers ({error}); use one worker") from error


def _loaded(sent: DescriptorSpec | bytes, policy: AudioPolicy, device: str) -> Callable[[Input], Answer]:
    backend: Backend = pickle.loads(sent) if isinstance(sent, bytes) else load_backend(sent, device=device)
    threadpool_limits(1)  # again: torch's threads are there only now
    return lambda one: _embed_input(one, backend, policy)


def _unread(one: Input, answer: Answer) -> str | None:
    return container(one.source.path) if answer.reason is not None and isinstance(one.source, Clip) else None


def _embed_input(one: Input, backend: Backend, policy: AudioPolicy) -> Answer:
    rate_hz = backend.sample_rate_hz
    try:
        if isinstance(one.source, Clip):
            samples, facts = _decoded(one.source, policy.rate_hz or rate_hz)
            if facts.sha256 != one.key[:64]:
                raise CorpusError(
                    f"{one.name}: changed while it was read; give the same command again when nothing writes to it"
                )
        else:
            samples, facts = one.source, _facts_of_sound(one.source, rate_hz)
            if policy.rate_hz is not None:
                samples = _resampled(samples, rate_hz, policy.rate_hz)
    except AudioDecodeError as error:
        return Answer(one.key, str(error))
    if policy.rate_hz is not None:
        samples = _resampled(samples, policy.rate_hz, rate_hz)
    if len(samples) < backend.shortest_samples:
        shortest_s = backend.shortest_samples / rate_hz
        return Answer(
            one.key,
            f"lasts {len(samples) / rate_hz:.3f} s ({len(samples):,} samples at {rate_hz:,} Hz), and {backend.spec.name} needs "
            f"{shortest_s:.3f} s ({backend.shortest_samples:,} samples)",
        )
    try:
        embedded = backend.embed(_leveled(samples, policy.loudness))
    except ModelError as error:  # a backend does not know which clip it was given
        raise ModelError(f"{one.name}: {error}") from error
    _check_shape(one.name, "features", embedded.frames, (max(1, len(embedded.frames)), backend.dimension))
    if (embedded.logits is not None) != bool(backend.classes):
        raise ModelError(f"{one.name}: the backend {backend.spec} should give {backend.classes} logits, and none if it is 0")
    if embedded.logits is not None:
        _check_shape(one.name, "logits", embedded.logits, (backend.classes,))
    return Answer(one.key, None, {name: getattr(facts, name) for name, _ in FACTS}, embedded.frames, embedded.logits)


def _decoded(clip: Clip, rate_hz: int) -> tuple[FloatArray, AudioFacts]:
    stream = AudioStream(clip.path, sample_rate_hz=rate_hz, start_s=clip.start_s, duration_s=clip.duration_s, digest=True)
    pieces: list[FloatArray] = []
    length = 0
    for piece in stream:
        pieces.append(piece)
        length += len(piece)
        if length > LONGEST_S * rate_hz:
            raise AudioDecodeError(f"lasts over {LONGEST_S / 60:g} minutes, which is too long for a clip; cut it")
    assert stream.facts is not None  # set when iteration ended
    return np.concatenate(pieces), stream.facts


def _resampled(samples: FloatArray, from_hz: int, to_hz: int) -> FloatArray:
    return samples if from_hz == to_hz else soxr.resample(samples, from_hz, to_hz, quality="HQ")


def _leveled(samples: FloatArray, loudness: Loudness) -> FloatArray:
    peak = float(np.abs(samples).max(initial=0.0))
    if loudness == "as_is" or peak < SILENT_PEAK:
        return samples
    return samples * np.float32(PEAK / peak)


def _facts_of_sound(samples: FloatArray, rate_hz: int) -> AudioFacts:
    digest = xxhash.xxh3_128_hexdigest(np.ascontiguousarray(samples).data)
    peak = float(np.abs(samples).max(initial=0.0))
    return AudioFacts(rate_hz, 1, len(samples) / rate_hz, peak, None, digest, ("silent",) if peak < SILENT_PEAK else ())


def _check_shape(name: str, what: str, values: FloatArray, shape: tuple[int, ...]) -> None:
    if values.shape != shape or values.dtype != np.float32:
        raise ModelError(f"{name}: expected {what} of shape {shape} float32, got {values.shape} {values.dtype}")
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise ModelError(
            f"{name}: {bad} of {values.size} {what} are NaN or infinite; the model overflows on this clip, or its weights are "
            "damaged"
        )
