"""From a corpus to what a step of training needs: clips decoded once, latents and conditions computed once.

Everything that is computed lies in the cache of the training folder as plain arrays that are mapped, not read: a run that
is killed finds it there again. The name of a part of the cache holds a digest of everything it was made from, so a part is
never taken for one of other clips or settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..audio import read_audio
from ..corpus import Clip, Skipped, open_corpus
from ..errors import AudioDecodeError, CorpusError
from ..folders import Progress, no_progress, write_text
from ..inputs import shortened, size_and_time
from .autoencoder import to_latents
from .cached_arrays import BATCH, IntArray, cached, computed
from .conditioning import Tokens, padded
from .mel import MelSpec, log_mel, prepare_waveform
from .training_config import DataConfig

Listed = list[tuple[int, Clip | Skipped]]


@dataclass(frozen=True)
class Clips:
    """Decoded clips, all of one length.

    Attributes
    ----------
    ids, captions, paths
        Of each clip.
    waves
        (N, samples) float32, mapped from the cache: mean 0, peak 0.5, silence behind the end of a shorter clip.
    digests
        Of the decoded samples: equal for equal audio, whatever the format.
    silent, cut, padded
        How many are silent, were longer than the model's sounds, or shorter.
    skipped
        Inputs that could not be used, and why.
    sources
        Number of the source of each clip.
    """

    ids: tuple[str, ...]
    captions: tuple[str, ...]
    paths: tuple[str, ...]
    waves: npt.NDArray[np.float32]
    digests: tuple[str, ...]
    silent: tuple[str, ...]
    cut: int
    padded: int
    skipped: tuple[tuple[str, str], ...]
    sources: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


def duration_samples(duration_s: float, spec: MelSpec, fold: int) -> int:
    """Samples of the model's sounds: ``duration_s`` rounded so that the codec can halve the frames.

    Examples
    --------
    >>> duration_samples(5.12, MelSpec(hop_length=320), 8) / 16000
    5.12
    >>> duration_samples(5.0, MelSpec(), 32) / 16000  # 500 frames become 512
    5.12
    """
    frames = max(1, round(duration_s * spec.sample_rate_hz / spec.hop_length / fold)) * fold
    return frames * spec.hop_length


def list_clips(data: DataConfig) -> Listed:
    """What the corpora say of their clips, with the number of the corpus (0: train, 1: validation); no sound is decoded.

    Raises
    ------
    CorpusError
        A corpus cannot be read, a clip has no caption, two have one id, or there is none at all.
    """
    items = list(_items(_sources(data), data))
    clips, where = [clip for _, clip in items if isinstance(clip, Clip)], ", ".join(_sources(data))
    if not items:
        raise CorpusError(f"{where}: no clip to train on was found here")
    if nameless := [clip.clip_id for clip in clips if not (clip.caption or "").strip()]:
        raise CorpusError(
            f"{where}: {len(nameless):,} of {len(clips):,} clips have no caption ({shortened(nameless)}); training needs one "
            "for each: give a manifest with a column 'caption'"
        )
    return items


def read_clips(
    items: Listed, data: DataConfig, spec: MelSpec, samples: int, cache: Path, *, progress: Progress = no_progress
) -> Clips:
    """Decode the clips of :func:`list_clips` once.

    Raises
    ------
    CorpusError
        More clips than ``data.max_unreadable`` cannot be read, or none is left. The message names the first of them; no other
        clip ever stands in for one.
    """
    numbered = [(number, clip) for number, clip in items if isinstance(clip, Clip)]
    where = ", ".join(_sources(data))
    key = [(number, c.clip_id, c.path, c.start_s, c.duration_s, c.caption, size_and_time(c)) for number, c in numbered]
    passed_over = [(item.path, item.reason) for _, item in items if isinstance(item, Skipped)]

    def usable(folder: Path) -> bool:  # a disk or a network may have failed for a moment: what could not be read is tried again
        failed = {path for path, _ in json.loads((folder / "clips.json").read_text("utf-8"))["skipped"]}
        return not any(_reads(clip, spec.sample_rate_hz) for _, clip in numbered if clip.path in failed)

    made_from = [key, passed_over, spec.sample_rate_hz, samples]
    with cached(cache, "clips", made_from, usable=usable) as (folder, fresh):
        if fresh:
            _decode(items, spec.sample_rate_hz, samples, folder, progress)
        facts = json.loads((folder / "clips.json").read_text("utf-8"))
        waves = np.load(folder / "waves.npy", mmap_mode="r")
    skipped = tuple((path, reason) for path, reason in facts["skipped"])
    if len(skipped) > data.max_unreadable:
        named = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
        more = f"; and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
        raise CorpusError(
            f"{where}: {len(skipped):,} of {len(items):,} clips cannot be read ({named}{more}); repair them, take them out of "
            f"the corpus, or allow for them: [data] max_unreadable = {len(skipped)}"
        )
    if not facts["ids"]:
        raise CorpusError(f"{where}: no clip to train on was found here")
    tuples = {name: tuple(facts[name]) for name in ("ids", "captions", "paths", "digests", "silent", "sources")}
    return Clips(**tuples, waves=waves[: len(facts["ids"])], cut=facts["cut"], padded=facts["padded"], skipped=skipped)


def _sources(data: DataConfig) -> list[str]:
    return [data.train, data.validation] if data.validation else [data.train]


def _items(sources: Sequence[str], data: DataConfig) -> Iterator[tuple[int, Clip | Skipped]]:
    """Clips and unreadable inputs of the sources, with the number of the source."""
    seen: dict[str, int] = {}
    for number, source in enumerate(sources):
        for item in open_corpus(source, audio_root=data.audio_root, encoding=data.encoding):
            if isinstance(item, Clip):
                if seen.setdefault(item.clip_id, number) != number:
                    raise CorpusError(
                        f"{source}: the clip {item.clip_id!r} is in {sources[seen[item.clip_id]]} as well; what is held out "
                        "must not be trained on, and different clips need different ids"
                    )
                yield number, item
            elif item.kind == "unreadable":
                yield number, item


def _decode(items: Listed, rate_hz: int, samples: int, folder: Path, progress: Progress) -> None:
    """Write ``waves.npy`` (one row for each readable clip) and ``clips.json``."""
    waves = np.lib.format.open_memmap(folder / "waves.npy", mode="w+", dtype=np.float32, shape=(max(len(items), 1), samples))
    facts: dict[str, Any] = {"ids": [], "captions": [], "paths": [], "digests": [], "silent": [], "skipped": [], "sources": []}
    facts |= {"cut": 0, "padded": 0}
    for done, (number, item) in enumerate(items, 1):
        progress(done, len(items), "decoding")
        if isinstance(item, Skipped):
            facts["skipped"].append([item.path, item.reason])
            continue
        try:
            audio = read_audio(item.path, sample_rate_hz=rate_hz, start_s=item.start_s, duration_s=item.duration_s)
        except AudioDecodeError as error:
            facts["skipped"].append([item.path, str(error)])
            continue
        wave = prepare_waveform(torch.from_numpy(audio.samples[:samples])).numpy()
        waves[len(facts["ids"]), : len(wave)] = wave
        facts["cut"] += len(audio.samples) > samples + rate_hz // 100  # a hundredth of a second is a codec's padding
        facts["padded"] += len(audio.samples) < samples
        row = {"ids": item.clip_id, "captions": (item.caption or "").strip(), "paths": item.path, "sources": number}
        for name, value in {**row, "digests": audio.facts.sample_digest}.items():
            facts[name].append(value)
        if "silent" in audio.facts.flags:
            facts["silent"].append(item.clip_id)
    waves.flush()
    write_text(folder / "clips.json", json.dumps(facts))


def _reads(clip: Clip, rate_hz: int) -> bool:
    try:
        read_audio(clip.path, sample_rate_hz=rate_hz, start_s=clip.start_s, duration_s=clip.duration_s)
    except AudioDecodeError:
        return False
    return True


def clips_key(clips: Clips) -> list[Any]:
    """What latents and tokens of clips follow from."""
    return [clips.ids, clips.digests, clips.waves.shape]


def mels_of(waves: npt.NDArray[np.float32], spec: MelSpec, rows: Sequence[int] | IntArray) -> torch.Tensor:
    """Raw log-mels (n, 1, samples / hop_length, n_mels) of some rows of mapped waveforms."""
    frames = waves.shape[1] // spec.hop_length  # padded as Tacotron pads, there is one more
    parts = [
        log_mel(torch.from_numpy(np.array(waves[rows[start : start + BATCH]])), spec) for start in range(0, len(rows), BATCH)
    ]
    return torch.cat(parts)[:, :, :frames]


def latents_of(
    clips: Clips, codec: Any, spec: MelSpec, cache: Path, made_from: Any, *, progress: Progress = no_progress
) -> torch.Tensor:
    """Latents (N, C, F, M) float32 of all clips, mapped from the cache.

    ``made_from`` names the codec: what its weights follow from.
    """

    def batch(rows: IntArray) -> dict[str, npt.NDArray[Any]]:
        with torch.no_grad():
            latents = to_latents(codec, mels_of(clips.waves, spec, rows).to(next(_tensors(codec)).device))
        return {"latents": latents.float().cpu().numpy()}

    key = [clips_key(clips), spec.to_dict(), made_from]
    return computed(cache, "latents", key, len(clips), batch, progress=progress)["latents"]


def text_tokens(
    texts: Sequence[str], encoders: Any, cache: Path, made_from: Any, *, progress: Progress = no_progress
) -> Tokens:
    """Tokens (N, L, D) of captions, mapped from the cache."""

    def batch(rows: IntArray) -> dict[str, npt.NDArray[Any]]:
        values, mask = encoders.captions([texts[row] for row in rows])
        return {"values": values.float().cpu().numpy(), "mask": mask.cpu().numpy()}

    arrays = computed(cache, "captions", [list(texts), made_from], len(texts), batch, progress=progress)
    return Tokens(arrays["values"], arrays["mask"])


def written_tokens(
    texts: Sequence[str], encoders: Any, cache: Path, made_from: Any, *, progress: Progress = no_progress
) -> Tokens:
    """Tokens (N, 8, D) that AudioLDM 2's language model writes for prompts, mapped from the cache."""

    def batch(rows: IntArray) -> dict[str, npt.NDArray[Any]]:
        prompts = [texts[row] for row in rows]
        values, mask = encoders.written(prompts, encoders.captions(prompts))
        return {"values": values.float().cpu().numpy(), "mask": mask.cpu().numpy()}

    arrays = computed(cache, "written", [list(texts), made_from], len(texts), batch, progress=progress)
    return Tokens(arrays["values"], arrays["mask"])


def prompt_vectors(
    texts: Sequence[str], encoders: Any, cache: Path, made_from: Any, *, progress: Progress = no_progress
) -> torch.Tensor:
    """Unit vectors (N, D) of prompts, mapped from the cache."""

    def batch(rows: IntArray) -> dict[str, npt.NDArray[Any]]:
        return {"vectors": encoders.prompts([texts[row] for row in rows]).float().cpu().numpy()}

    return computed(cache, "prompts", [list(texts), made_from], len(texts), batch, progress=progress)["vectors"]


def audio_tokens(
    waves: Callable[[int], npt.NDArray[np.float32]],
    count: int,
    spec: MelSpec,
    samples: int,
    encoders: Any,
    cache: Path,
    made_from: Any,
    *,
    progress: Progress = no_progress,
) -> Tokens:
    """Tokens (N, n, D) of sounds of at most ``samples`` samples, mapped from the cache; ``waves`` gives a sound by number."""
    length = encoders.audio_tokens([np.zeros(samples, np.float32)], spec.sample_rate_hz).values.shape[1]

    def batch(rows: IntArray) -> dict[str, npt.NDArray[Any]]:
        values, mask = padded(encoders.audio_tokens([waves(int(row)) for row in rows], spec.sample_rate_hz), length)
        return {"values": values.float().cpu().numpy(), "mask": mask.cpu().numpy()}

    key = [made_from, spec.sample_rate_hz, samples]
    arrays = computed(cache, "sounds", key, count, batch, progress=progress)
    return Tokens(arrays["values"], arrays["mask"])


def _tensors(module: Any) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
