"""Which clips of a corpus make pairs: those with a caption and a sound."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ...corpus import Clip
from ...errors import CorpusError
from ...inputs import Source
from ...search.exact import IntArray
from ...store import DescriptorStore
from ...vectors import Vectors

NO_CAPTION, SILENT = "it has no caption", "it is silent"


def refuse_without_captions(source: Source) -> None:
    """Refuse a corpus of less than two captions before hours of describing; where clips have captions, two are looked at.

    Raises
    ------
    CorpusError
        There are fewer than two.
    """
    if isinstance(source, DescriptorStore):
        return
    clips = captioned = 0
    first = ""
    for clip in source:
        if isinstance(clip, Clip):
            clips += 1
            captioned += not _lacks_caption(clip.caption)
            first = first or (clip.clip_id if _lacks_caption(clip.caption) else "")
        if captioned >= 2:
            return
    if clips:
        raise _too_few(captioned, clips, f"{first}: {NO_CAPTION}" if first else "")


def usable_clips(vectors: Vectors) -> tuple[IntArray, pa.Table]:
    """Rows of the clips that make pairs, and a table of the others with the reason.

    Raises
    ------
    CorpusError
        There are fewer than two.
    """
    heard = np.zeros(vectors.clips.num_rows, np.bool_)
    heard[vectors.clip] = True
    rows, others = [], []
    for row, clip in enumerate(vectors.clips.select(["clip_id", "path", "caption"]).to_pylist()):
        reason = None
        if _lacks_caption(clip["caption"]):
            reason = NO_CAPTION
        elif not heard[row]:
            reason = SILENT
        if reason is None:
            rows.append(row)
        else:
            others.append(
                {"path": clip["path"], "reason": reason, "kind": "no_pair", "clip_id": clip["clip_id"], "role": "pairs"}
            )
    if len(rows) < 2:
        first = f"{others[0]['clip_id']}: {others[0]['reason']}" if others else ""
        raise _too_few(len(rows), vectors.clips.num_rows, first)
    schema = pa.schema([(name, pa.string()) for name in ("path", "reason", "kind", "clip_id", "role")])
    return np.array(rows, np.int64), pa.Table.from_pylist(others, schema)


def _lacks_caption(caption: str | None) -> bool:
    return not (caption or "").strip()


def _too_few(pairs: int, clips: int, first: str) -> CorpusError:
    named = f"; the first: {first}" if first else ""
    return CorpusError(
        f"expected at least two clips with sound and captions, got {pairs} of {clips}{named}. Give a "
        "manifest with a caption column (captions and text are read as well)"
    )
