"""AudioSet's labels for AudioCaps' clips: segment files, names of classes, and the join of both by video and start."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TableError

Segment = tuple[str, float]  # id of the video, start in seconds

CLASS_COLUMNS = ("mid", "display_name")
AUDIOCAPS_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
_SHOWN = 3  # examples in a message


@dataclass(frozen=True)
class Joined:
    """AudioCaps' rows with the labels of their segments.

    Attributes
    ----------
    labels
        By ``audiocap_id``, in the order of the file; rows without a segment are not in it.
    segment
        Video and start of each row, those without a segment among them; rows that share one are captions of one clip.
    missing
        Ids of the rows that have no segment.
    """

    labels: Mapping[str, tuple[str, ...]]
    segment: Mapping[str, Segment]
    missing: tuple[str, ...]

    def clip_labels(self) -> list[tuple[str, ...]]:
        """Labels of each clip once, however many captions it has: what training frequencies are counted from."""
        return list({self.segment[row]: labels for row, labels in self.labels.items()}.values())

    @property
    def warning(self) -> str | None:
        """How many rows have no labels, in a sentence; None if all have."""
        if not self.missing:
            return None
        return (
            f"{len(self.missing):,} of {len(self.segment):,} AudioCaps rows have no AudioSet segment and so no labels "
            f"(audiocap_id {', '.join(self.missing[:_SHOWN])}{' ...' if len(self.missing) > _SHOWN else ''})."
        )


def read_class_names(path: str | Path) -> dict[str, str]:
    """Names of AudioSet's classes by their ids.

    Parameters
    ----------
    path
        ``class_labels_indices.csv`` (``index,mid,display_name``) or ``ontology.json`` (a list of objects with ``id`` and
        ``name``).

    Raises
    ------
    TableError
        The file is neither.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        return _ontology(path)
    rows = _rows(path)
    header = [name.strip() for name in next(rows, (0, []))[1]]
    if any(column not in header for column in CLASS_COLUMNS):
        raise TableError(
            f"{path}: expected AudioSet's class_labels_indices.csv (index,mid,display_name) or ontology.json, its first line "
            f"is {','.join(header)[:80]!r}"
        )
    mid, name = (header.index(column) for column in CLASS_COLUMNS)
    names = {}
    for line, row in rows:
        if len(row) != len(header) or not row[mid] or not row[name]:
            raise TableError(f"{path}, line {line}: expected {len(header)} fields, an id and a name among them, got {row}")
        names[row[mid]] = row[name]
    return names


def read_audioset_segments(
    paths: Sequence[str | Path], class_names: str | Path | Mapping[str, str]
) -> dict[Segment, tuple[str, ...]]:
    """Labels of AudioSet's segments.

    Parameters
    ----------
    paths
        ``balanced_train_segments.csv``, ``unbalanced_train_segments.csv``, ``eval_segments.csv``, as published: lines that
        begin with ``#`` are comments, the others ``YTID, start_seconds, end_seconds, "mid,mid"``.
    class_names
        File that :func:`read_class_names` reads, or what it returned.

    Returns
    -------
    dict
        Names of the labels, in the order of the file, by video and start in seconds.

    Raises
    ------
    TableError
        A file is not of this kind, names a class that has no name, or contradicts another about a segment.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "segments.csv"
    >>> _ = path.write_text('# YTID, start_seconds, end_seconds, positive_labels\\n-0x, 30.000, 40.000, "/m/a,/m/b"\\n')
    >>> read_audioset_segments([path], {"/m/a": "Dog", "/m/b": "Bark"})
    {('-0x', 30.0): ('Dog', 'Bark')}
    """
    if isinstance(paths, (str, Path)):
        raise ValueError(f"expected a list of segment files, got {paths!r}")  # noqa: TRY004 - a bad argument is a ValueError here
    names = class_names if isinstance(class_names, Mapping) else read_class_names(class_names)
    segments: dict[Segment, tuple[str, ...]] = {}
    unknown: dict[str, str] = {}
    for path in map(Path, paths):
        for line, row in _rows(path):
            segment, mids = _segment(path, line, row)
            unknown |= {mid: f"{path.name}, line {line}" for mid in mids if mid not in names and mid not in unknown}
            labels = tuple(names.get(mid, "") for mid in mids)
            if set(segments.setdefault(segment, labels)) != set(labels):
                raise TableError(
                    f"{path}, line {line}: {segment[0]} from {segment[1]:g} s has the labels {labels}, but {segments[segment]} "
                    "in an earlier line; give files of one release of AudioSet"
                )
    if unknown:
        listed = ", ".join(f"{mid} ({where})" for mid, where in list(unknown.items())[:_SHOWN])
        raise TableError(
            f"{len(unknown):,} classes of the segments have no name, for example {listed}; give the class_labels_indices.csv "
            f"or ontology.json of the same release (this one names {len(names):,} classes)"
        )
    return segments


def join_audiocaps(path: str | Path, segments: Mapping[Segment, tuple[str, ...]]) -> Joined:
    """Find the labels of AudioCaps' rows by video and start.

    Parameters
    ----------
    path
        AudioCaps' CSV: ``audiocap_id,youtube_id,start_time,caption``, start in seconds.
    segments
        From :func:`read_audioset_segments`.

    Raises
    ------
    TableError
        The file is no such CSV, names a row twice, or no row has a segment.
    """
    path = Path(path)
    rows = _rows(path, comments=False, spaced=False)
    header = next(rows, (0, []))[1]
    if any(column not in header for column in AUDIOCAPS_COLUMNS[:3]):
        raise TableError(
            f"{path}: expected AudioCaps' columns {','.join(AUDIOCAPS_COLUMNS)}, its first line is {','.join(header)[:80]!r}"
        )
    row_id, video, start = (header.index(column) for column in AUDIOCAPS_COLUMNS[:3])
    segment: dict[str, Segment] = {}
    for line, row in rows:
        if len(row) != len(header):
            raise TableError(f"{path}, line {line}: expected {len(header)} fields, got {len(row)}; is a quote missing?")
        if row[row_id] in segment:
            raise TableError(f"{path}, line {line}: the audiocap_id {row[row_id]} is there twice")
        segment[row[row_id]] = row[video], _seconds(row[start], f"{path}, line {line}")
    labels = {row: segments[where] for row, where in segment.items() if where in segments}
    if segment and not labels:
        some = next(iter(segment.values()))
        raise TableError(
            f"{path}: none of its {len(segment):,} rows is among the {len(segments):,} segments (the first is {some[0]} from "
            f"{some[1]:g} s); AudioCaps was drawn from AudioSet's training segments: give the unbalanced ones, too"
        )
    return Joined(labels, segment, tuple(row for row in segment if row not in labels))


def _segment(path: Path, line: int, row: list[str]) -> tuple[Segment, list[str]]:
    """Video and start, and the ids of the classes, of a line of a segment file."""
    mids = [mid.strip() for mid in row[3].split(",")] if len(row) == 4 else []
    if not row[0] or not mids or not all(mid.startswith(("/m/", "/t/", "/g/")) for mid in mids):
        raise TableError(
            f'{path}, line {line}: expected a line of AudioSet\'s segments (YTID, start_seconds, end_seconds, "mid,mid"), got '
            f"{','.join(row)[:80]!r}; the files with strong labels, and CSVs of AudioCaps, are of another kind"
        )
    where = f"{path}, line {line}"
    begin, end = (_seconds(field, where) for field in row[1:3])
    if begin >= end:
        raise TableError(f"{where}: a segment should start before it ends, got {begin:g} to {end:g} s")
    return (row[0], begin), mids


def _seconds(text: str, where: str) -> float:
    try:
        return round(float(text), 3)
    except ValueError:
        raise TableError(f"{where}: expected seconds, got {text!r}") from None


def _rows(path: Path, *, comments: bool = True, spaced: bool = True) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of a CSV, without comments and empty lines; in AudioSet's a space follows each comma."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, skipinitialspace=spaced, strict=True)
            for row in reader:
                if row and not (comments and row[0].lstrip().startswith("#")):
                    yield reader.line_num, [field.strip() for field in row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from error


def _ontology(path: Path) -> dict[str, str]:
    try:
        content: Any = json.loads(path.read_text("utf-8"))
        return {entry["id"]: entry["name"] for entry in content}
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise TableError(f"{path}: expected AudioSet's ontology.json, objects with id and name ({error!r})") from error
