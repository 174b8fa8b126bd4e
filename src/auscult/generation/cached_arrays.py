"""A cache of arrays in the training folder: each part is named by a digest of everything that it was made from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..folders import Progress, no_progress, write_text

IntArray = npt.NDArray[np.int64]

BATCH = 16  # rows that are computed at once
_DONE = "done.json"


def computed(
    cache: Path,
    name: str,
    made_from: Any,
    count: int,
    batch: Callable[[IntArray], dict[str, npt.NDArray[Any]]],
    *,
    progress: Progress = no_progress,
) -> dict[str, torch.Tensor]:
    """Arrays of ``count`` rows, computed batch by batch into the cache, or found there; mapped.

    Examples
    --------
    >>> import tempfile
    >>> calls = []
    >>> def squares(rows):
    ...     calls.append(len(rows))
    ...     return {"square": (rows**2).astype(np.float32)[:, None]}
    >>> with tempfile.TemporaryDirectory() as name:
    ...     for _ in range(2):
    ...         found = computed(Path(name), "squares", "up to 20", 20, squares)["square"][:, 0].sum().item()
    >>> found, calls
    (2470.0, [16, 4])
    """
    with cached(cache, name, made_from) as (folder, fresh):
        if fresh:
            arrays: dict[str, Any] = {}
            for start in range(0, count, BATCH):
                rows = np.arange(start, min(start + BATCH, count))
                for part, values in batch(rows).items():
                    if part not in arrays:
                        shape = (count, *values.shape[1:])
                        arrays[part] = np.lib.format.open_memmap(folder / f"{part}.npy", "w+", values.dtype, shape)
                    if not np.isfinite(values).all():
                        raise ValueError(f"{name}: rows {start} to {rows[-1]} are not finite; was a model overflowing?")
                    arrays[part][rows] = values
                progress(int(rows[-1]) + 1, count, f"computing {name}")
            for array in arrays.values():
                array.flush()
        # mapped for writing to memory of its own ("c"), for torch would warn of arrays that it must not write to
        return {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in sorted(folder.glob("*.npy"))}


@contextmanager
def cached(
    cache: Path, name: str, made_from: Any, *, usable: Callable[[Path], bool] = lambda _: True
) -> Iterator[tuple[Path, bool]]:
    """The part of the cache that was made from ``made_from``, and whether the block still has to make it.

    One that is there but not ``usable`` is made anew.
    """
    digest = digest_of(made_from)
    folder = cache / f"{name}-{digest[:16]}"
    if (folder / _DONE).is_file() and usable(folder):
        yield folder, False
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder, True
        write_text(folder / _DONE, json.dumps({"made_from": digest}))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def digest_of(content: Any) -> str:
    """SHA-256 of anything that JSON can hold, hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
