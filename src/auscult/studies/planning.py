"""What can be told of a study before it begins: the clips that it will have, and what they are too few for."""

from __future__ import annotations

from pathlib import Path

from ..corpus import Clip
from ..errors import CorpusError
from ..folders import CARD
from .config import POOL, SOUNDS, StudyAudits, StudyData
from .flagging import is_undecided, too_few_null_clips
from .making import CLIPS, SOURCE, check_group, clips_of
from .sets import read_manifest, read_pool


def pool_of(data: StudyData, most: int, folder: Path) -> list[Clip]:
    """The clips of the source: as they are written down, which counts where they have gone since, or as they will be.

    Parameters
    ----------
    most
        So many are synthesized, where they are.
    folder
        Of the study; it need not be there.

    Raises
    ------
    CorpusError, ValueError
        The source cannot be used.
    """
    if (folder / SOURCE / CARD).is_file():
        return read_manifest(folder / SOURCE / CLIPS)
    if data.source == SOUNDS:
        return [Clip(f"{SOUNDS}-{number:04d}", "") for number in range(most)]
    clips = read_pool(data.source, audio_root=data.audio_root, encoding=data.encoding)
    check_group(data, [clip.clip_id for clip in clips])
    return clips


def clips_in(source: str) -> int | None:
    """How many clips a source has; None: it has gone, as it may once all of it is described."""
    try:
        return sum(1 for _ in clips_of(source))
    except CorpusError:
        return None


def null_warnings(data: StudyData, audits: StudyAudits, pool: int) -> list[str]:
    """Which audits will have too few null clips for the level, with a source of so many clips; some may yet be left out."""
    null = pool if data.null == POOL else audits.null_clips if data.null == SOUNDS else clips_in(data.null)
    if null is None:
        return []
    return [too_few_null_clips(audits, name, null) for name in audits.compared_by if is_undecided(audits, name, null)]
