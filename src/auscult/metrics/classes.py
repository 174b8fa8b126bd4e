"""Which classes generated clips have, and how often each was in training."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..corpus import Clip, open_corpus
from ..corpus.manifest import AUDIOCAPS_COLUMNS
from ..errors import CorpusError
from .addressing import labels_named
from .audioset import Segment, join_audiocaps, read_audioset_segments
from .longtail import label_frequency
from .pairing import Prompts


@dataclass(frozen=True)
class Classes:
    """What scores by class need.

    Attributes
    ----------
    frequency
        Training clips that carry each label.
    labels
        Of generated clips by their id or path, where their own manifests do not say them.
    warnings
        What could not be labeled.
    """

    frequency: Mapping[str, int]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_classes(
    training: str,
    *,
    prompts: Prompts | None = None,
    segments: Sequence[Path] = (),
    class_names: Path | None = None,
    audio_root: str | None = None,
    encoding: str = "utf-8",
) -> Classes:
    """Count the classes of a training set, and find those of the generated clips.

    Parameters
    ----------
    training
        A corpus whose clips have labels (their audio is not read), or AudioCaps's CSV, which has none.
    prompts
        May say the labels of generated clips, or be AudioCaps's CSV, of which they are the ``audiocap_id``.
    segments, class_names
        AudioSet's segment CSVs and its names of classes: where the labels of AudioCaps's clips are.

    Raises
    ------
    CorpusError
        No training clip has a label.
    ValueError
        AudioCaps was given without the files that hold its labels.
    TableError
        A file is not of its kind.
    """
    audiocaps = [name for name in (training, None if prompts is None else prompts.source) if name and is_audiocaps(name)]
    found: dict[Segment, tuple[str, ...]] = {}
    if audiocaps or segments:
        if not segments or class_names is None:
            raise ValueError(
                f"{audiocaps[0] if audiocaps else segments[0]}: AudioCaps's labels are AudioSet's; give the CSV files of its "
                "segments with --audioset, and class_labels_indices.csv or ontology.json with --class-names"
            )
        found = read_audioset_segments(segments, class_names)
    warnings: list[str] = []
    labels = labels_named(prompts)
    if prompts is not None and is_audiocaps(prompts.source):
        joined = join_audiocaps(prompts.source, found)
        labels = dict(joined.labels)
        warnings += filter(None, [joined.warning])
    if is_audiocaps(training):
        joined = join_audiocaps(training, found)
        warnings += filter(None, [joined.warning])
        carried: list[tuple[str, ...]] = joined.clip_labels()
    else:
        carried = [
            clip.labels for clip in open_corpus(training, audio_root=audio_root, encoding=encoding) if isinstance(clip, Clip)
        ]
    if not any(carried):
        raise CorpusError(f"{training}: none of its {len(carried):,} clips has labels; give a manifest with a column labels")
    return Classes(label_frequency(carried), labels, tuple(warnings))


def is_audiocaps(source: str) -> bool:
    """Whether a source is AudioCaps's own CSV."""
    path = Path(source)
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace", newline="") as text:
        return set(next(csv.reader(text), ())) >= AUDIOCAPS_COLUMNS
