"""Where a search of hours stands, kept on disk, so that a second start goes on from there."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..folders import atomic_file
from .blocks import Block

EVERY_S = 60.0  # of work that a kill may cost

Arrays = dict[str, npt.NDArray[Any]]


class Checkpoint:
    """The state of a search over blocks of references: what was found in the first of them.

    Parameters
    ----------
    path
        The file, or None to keep nothing. What identifies the search (inputs, settings) belongs into its name or folder:
        a file that is there is believed.
    blocks
        The references. A state that does not end where one of them ends was made with others, and is not used.
    """

    def __init__(self, path: Path | None, blocks: Sequence[Block]) -> None:
        self.path, self.blocks, self.saved_at = path, blocks, time.monotonic()

    def restore(self, empty: Arrays) -> tuple[int, Arrays]:
        """Blocks done and the arrays found in them; 0 and ``empty``, whose names and shapes they have, if there is nothing."""
        if self.path is None or not self.path.is_file():
            return 0, empty
        try:
            with open(self.path, "rb") as handle, np.load(handle, allow_pickle=False) as kept:
                stop = int(kept["stop"])
                arrays = {name: kept[name].astype(array.dtype) for name, array in empty.items()}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return 0, empty  # a disk's damage costs the time of that search, no more
        done = next((at for at, block in enumerate(self.blocks, 1) if block.stop == stop), 0)
        if not done or any(arrays[name].shape != array.shape for name, array in empty.items()):
            return 0, empty
        return done, arrays

    def keep(self, done: int, arrays: Arrays) -> None:
        """Write the state if the last time is `EVERY_S` ago, or if this was the last of several blocks."""
        last = done == len(self.blocks) > 1
        if self.path is None or not (last or time.monotonic() - self.saved_at >= EVERY_S):
            return
        with atomic_file(self.path) as handle:
            np.savez(handle, allow_pickle=False, stop=np.int64(self.blocks[done - 1].stop), **arrays)
        self.saved_at = time.monotonic()
