"""Whether the files under review are those that were compared: by the digests that the folder's stores hold."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from ..folders import file_digest

LARGEST = 64 << 20  # bytes; a digest of more takes longer than a reviewer should wait


class Originals:
    """The files of an audit or a deduplication; any thread may ask. Each is digested once, and again if it is written to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[tuple[str, int, int], bool] = {}

    @cached_property
    def _digests(self) -> dict[str, set[str]]:
        digests: dict[str, set[str]] = defaultdict(set)
        for table in sorted(self._folder.glob("stores/*/clips.parquet")):
            if "sha256" in pq.read_schema(table).names:
                columns = pq.read_table(table, columns=["path", "sha256"])
                for path, digest in zip(columns["path"].to_pylist(), columns["sha256"].to_pylist(), strict=True):
                    if digest is not None:
                        digests[path].add(digest)
        return dict(digests)

    def changed(self, path: str) -> bool:
        """Whether a file is another than then; False where that is not known.

        It is not known of members of tars and rows of data sets, of files of more than 64 MB, which have no other mark, and of
        files in a store that lies elsewhere; nor of a file that cannot be read.
        """
        expected = self._digests.get(path)
        if expected is None:
            return False
        try:
            file = Path(path)
            status = file.stat()
            if not file.is_file() or status.st_size > LARGEST:
                return False
            key = path, status.st_size, status.st_mtime_ns
            if key not in self._found:
                self._found[key] = file_digest(file) not in expected
        except OSError:
            return False
        return self._found[key]
