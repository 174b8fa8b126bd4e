"""Describe clips: in this process, or in several with one thread each; in the order of the input whatever happens."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .audio import SILENT_PEAK, AudioStream, Window, cut_windows
from .corpus import Clip, Skipped
from .corpus.archive import container
from .descriptors import Descriptor, load_descriptor, on_device
from .engine import Engine
from .errors import AudioDecodeError
from .processes import map_in_processes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Described:
    """What a worker returns for one input: its row (a clip's or a skip's), and its vectors."""

    row: dict[str, Any]
    skipped: bool
    starts: list[float]
    vectors: npt.NDArray[Any]


Item = tuple[Clip | Skipped, str, str]


def describe_all(pending: Iterator[Item], descriptor: Descriptor, engine: Engine) -> Iterator[Described]:
    """Describe in the order of the input; with workers, a bounded number of batches is under way.

    Raises
    ------
    CorpusError
        A node of the cluster does not see the files.
    ClusterError
        The cluster cannot be reached, or cannot start what describes.
    """
    if engine.ray is None and engine.workers == 1:
        descriptor = on_device(descriptor, engine.device)
        for item in pending:
            yield describe_item(item, descriptor)
        return
    yield from map_in_processes(
        partial(_loaded, str(descriptor.spec)),
        pending,
        engine,
        crashed=lambda item: _crashed(item, descriptor),
        unread=_unread,
        gpus=engine.device.startswith("cuda") and hasattr(descriptor, "on"),
    )


def _loaded(spec: str, device: str) -> Callable[[Item], Described]:
    descriptor = on_device(load_descriptor(spec), device)
    return lambda item: describe_item(item, descriptor)


def _crashed(item: Item, descriptor: Descriptor) -> Described:
    log.warning("%s: the decoder crashed", item[0].path)
    return _skip(item, "the decoder crashed on this file", descriptor)


def _unread(item: Item, described: Described) -> str | None:
    return container(item[0].path) if described.skipped and isinstance(item[0], Clip) else None


def describe_item(entry: Item, descriptor: Descriptor) -> Described:
    item, key, state = entry
    if isinstance(item, Skipped):
        return _skip(entry, item.reason, descriptor, item.kind)
    stream = AudioStream(
        item.path,
        sample_rate_hz=descriptor.sample_rate_hz,
        start_s=item.start_s,
        duration_s=item.duration_s,
        digest=True,
    )
    starts: list[float] = []
    vectors = [np.zeros((0, descriptor.dimension), descriptor.dtype)]
    padding = 0
    windows = cut_windows(
        iter(stream),
        window_samples=descriptor.window_samples,
        sample_rate_hz=descriptor.sample_rate_hz,
        tail=descriptor.tail,
    )
    try:
        for batch in iter(lambda: list(itertools.islice(windows, 16)), []):
            sounding = [window for window in batch if _is_sounding(window)]
            if sounding:
                starts += [window.start_s for window in sounding]
                vectors.append(descriptor.describe(np.stack([window.samples for window in sounding])))
            if descriptor.tail == "move":  # where the tail is padded, it is not compared
                padding += sum(descriptor.window_samples - window.valid for window in sounding)
    except AudioDecodeError as error:
        return _skip(entry, str(error), descriptor)
    facts = stream.facts
    assert facts is not None
    flags = list(facts.flags)
    if not starts and "silent" not in flags:  # its channels cancel out, or it is shorter than a sample at our rate
        flags.append("silent")
    row = {
        "clip_id": item.clip_id,
        "path": item.path,
        "start_s": item.start_s,
        "duration_s": facts.duration_s,
        "caption": item.caption,
        "labels": list(item.labels),
        "sha256": facts.sha256,
        "sample_digest": facts.sample_digest,
        "sample_rate_hz": facts.sample_rate_hz,
        "channels": facts.channels,
        "peak": facts.peak,
        "flags": flags,
        "n_windows": len(starts),
        "padding_s": padding / descriptor.sample_rate_hz,
        "key": key,
        "state": state,
    }
    return Described(row, False, starts, np.concatenate(vectors))


def _is_sounding(window: Window) -> bool:
    """Silence has no spectrum to compare, so a silent window gets no vector and can match nothing."""
    return bool(np.abs(window.samples).max() >= SILENT_PEAK)


def _skip(entry: Item, reason: str, descriptor: Descriptor, kind: str = "unreadable") -> Described:
    item, key, state = entry
    row = {"path": item.path, "reason": reason, "kind": kind, "clip_id": item.clip_id, "key": key, "state": state}
    return Described(row, True, [], np.zeros((0, descriptor.dimension), descriptor.dtype))
