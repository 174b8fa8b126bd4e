"""Where a search of hours stands, kept on disk, so that a second start goes on from there."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..folders import atomic_file

EVERY_S = 60.0  # of work that a kill may cost
DIGEST_BYTES = 32

Arrays = dict[str, npt.NDArray[Any]]


class Checkpoint:
    """The state of a search that is done in steps: what was found in the first of them.

    Parameters
    ----------
    path
        The file, or None to keep nothing. What identifies the search (inputs, settings) belongs into its name or folder:
        a file that is there is believed.
    stops
        Where each step ends (rows, pairs), increasing. A state that does not end at one of them was made in other steps, and
        is not used.
    layout
        Whole numbers that say what the steps are, where ``stops`` alone do not: a state that was made with others is not used.
    """

    def __init__(self, path: Path | None, stops: Sequence[int], layout: Sequence[int] = ()) -> None:
        self.path, self.stops, self.saved_at = path, stops, time.monotonic()
        self.layout = np.array(layout, np.int64)

    def restore(self, empty: Arrays) -> tuple[int, Arrays]:
        """Steps done and the arrays found in them; 0 and ``empty``, if there is nothing, or nothing that is whole.

        They have the names and types of those in ``empty``, and their shapes, if these are not empty, too.
        """
        if self.path is None or not self.path.is_file():
            return 0, empty
        try:
            content = _undamaged(self.path)
            if content is None:
                return 0, empty
            with np.load(content, allow_pickle=False) as kept:
                stop, layout = int(kept["stop"]), kept["layout"]
                arrays = {name: kept[name].astype(array.dtype) for name, array in empty.items()}
        except (OSError, KeyError):
            return 0, empty  # what cannot be read costs the time of that search, no more
        fits = all(arrays[name].shape == array.shape or array.size == 0 for name, array in empty.items())
        if stop not in self.stops or not fits or not np.array_equal(layout, self.layout):
            return 0, empty
        return self.stops.index(stop) + 1, arrays

    def keep(self, done: int, arrays: Arrays) -> None:
        """Write the state if the last time is `EVERY_S` ago, or if this was the last of several steps."""
        last = done == len(self.stops) > 1
        if self.path is None or not (last or time.monotonic() - self.saved_at >= EVERY_S):
            return
        whole = io.BytesIO()
        np.savez(whole, allow_pickle=False, stop=np.int64(self.stops[done - 1]), layout=self.layout, **arrays)
        content = whole.getbuffer()
        with atomic_file(self.path) as handle:
            handle.write(content)
            handle.write(_digest(content))
        self.saved_at = time.monotonic()


def _undamaged(path: Path) -> io.BytesIO | None:
    """What was written, or None if the file is not what was written.

    The digest after the arrays decides: a damaged archive may fail in any of a dozen ways, or give fewer rows without a word.
    """
    content = memoryview(path.read_bytes())
    content, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    return io.BytesIO(content) if _digest(content) == digest else None


def _digest(content: memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
