"""The errors that auscult raises about the world (files, folders, extras).

A bad argument is a ``ValueError``; everything here is about data that turned out not to be what was promised.
Messages say what was expected, what was found, in which item, and what to do.
"""

from __future__ import annotations

from typing import Any


class AuscultError(Exception):
    """Root of all errors of auscult; the command line prints its message on one line and exits with 2."""


class AudioDecodeError(AuscultError):
    """A file cannot be decoded to audio."""


class CorpusError(AuscultError):
    """A source of clips (folder, manifest, archive, data set) cannot be read as a whole."""


class ManifestError(CorpusError):
    """A manifest lacks a column, names a clip twice, or is not written in the stated encoding."""


class StoreError(AuscultError):
    """A descriptor store is incomplete, corrupted, or busy."""


class StorageError(AuscultError):
    """A place where files lie (a bucket, a host, a disk) denies, is not there, cannot be reached, or is full."""


class DescriptorMismatchError(AuscultError):
    """Descriptors that were computed with different settings were about to be compared."""


class OutputFolderError(AuscultError):
    """An output folder holds something else, or cannot be written."""


class TableError(AuscultError):
    """A table of results (predictions, truth) lacks a column or holds a value that cannot be meant."""


class ModelError(AuscultError):
    """A model cannot be found or loaded, or is not what its folder says."""


class GateError(AuscultError):
    """A check between two stages of training failed; what would follow could not be trusted.

    ``gates`` are the results that there were then, passed ones included.
    """

    def __init__(self, message: str, gates: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.gates = gates


class MissingExtraError(AuscultError):
    """An optional dependency is needed for this input."""

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs an optional dependency: pip install 'auscult[{extra}]'")
        self._arguments = extra, needed_for

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return type(self), self._arguments  # or a worker could not send it: by default it is rebuilt from its message


class ClusterError(AuscultError):
    """A Ray cluster cannot be reached, runs other versions, or has lost what the work needs."""
