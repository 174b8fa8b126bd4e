"""The report: one HTML file with everything in it, made from the folder of an audit or a deduplication alone."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from markupsafe import Markup

from ..audio import read_audio
from ..audit import KIND as AUDIT_KIND
from ..audit import SKIPPED, Audit
from ..duplicates import KIND as DEDUP_KIND
from ..duplicates import Duplicates
from ..errors import AudioDecodeError, StoreError
from ..figures import (
    EXCERPT_RATE_HZ,
    NULL_COLOR,
    QUERY_COLOR,
    REFERENCE_COLOR,
    SPECTROGRAM_RATE_HZ,
    excerpt_mp3,
    frequency_ticks,
    histogram_svg,
    spectrogram_png,
    time_ticks,
)
from ..folders import Progress, no_progress, read_card, write_text
from ..review.fields import pair_id
from ..review.lists import ReviewedLists
from ..review.verified import REPLICATION
from .rendering import render
from .verification import review_warnings, reviewed_clusters, verdicts_by_pair, verification, wide_and_narrow

log = logging.getLogger(__name__)

REPORT = "report.html"
MAX_PAIRS = 50
MAX_CLUSTERS, MAX_MEMBERS = 30, 4
CLOSEST_PAIRS = 10  # shown when nothing is flagged, so that a reader sees what "closest" means here
EXCERPT_S = 12.0
LEAD_S = 3.0  # shown before the matching span
LEAST_SHOWN_S = 0.05  # of a span inside the picture, or it gets no box
MAX_SKIPPED = 100


@dataclass(frozen=True)
class Box:
    """A matching span in a picture, in shares of its width; ``label`` is that of the same span in the other picture."""

    left: float
    width: float
    label: str


@dataclass(frozen=True)
class Excerpt:
    """A stretch of a clip as the page shows it: pictures and sound as data URIs, or why there are none."""

    title: str
    caption: str | None
    role: str
    start_s: float
    duration_s: float
    image: str | None = None
    sound: str | None = None
    missing: str | None = None
    time_ticks: tuple[tuple[str, float], ...] = ()
    boxes: tuple[Box, ...] = ()
    sound_from_s: float = 0.0


def write_report(folder: str | Path, progress: Progress = no_progress) -> Path:
    """Write ``report.html`` into the folder of an audit or a deduplication; returns its path.

    Raises
    ------
    StoreError
        The folder is neither.
    """
    folder = Path(folder)
    card = read_card(folder)
    builders = {AUDIT_KIND: _audit_context, DEDUP_KIND: _dedup_context}
    if card["kind"] not in builders:
        raise StoreError(f"{folder}: a report is made of an audit or a dedup, this is a {card['kind']}")
    context = builders[card["kind"]](folder, card, progress)
    page = render(f"{card['kind']}.html", card=card, frequency_ticks=frequency_ticks(), skipped=_skipped(folder), **context)
    write_text(folder / REPORT, page)
    return folder / REPORT


def _audit_context(folder: Path, card: dict[str, Any], progress: Progress) -> dict[str, Any]:
    audit = Audit(folder, card)
    matches = (
        audit.matches().filter(pa.compute.field("rank") == 1).sort_by([("score", "descending"), ("query_id", "ascending")])
    )
    flagged = int(np.count_nonzero(matches["flagged"].to_numpy(zero_copy_only=False)))
    verdicts = verdicts_by_pair(folder)
    listed = matches.slice(0, flagged or CLOSEST_PAIRS).to_pylist()
    for row in listed:
        row["verdicts"] = verdicts.get(pair_id(row["query_id"], row["reference_id"]), [])
    # verified replications first: they are the finding
    shown = sorted(listed, key=lambda row: -sum(v["verdict"] == REPLICATION for v in row["verdicts"]))[:MAX_PAIRS]
    pairs = []
    for number, row in enumerate(shown, 1):
        pairs.append({"tempo": None, "pitch_semitones": None, **row, **pair_sides(row)})
        progress(number, len(shown), "pairs drawn")
    generated = audit.queries()["score"].drop_null().to_numpy()
    training = audit.training()["score"].to_numpy()
    sets = [("generated to training", QUERY_COLOR, generated), ("training to training", REFERENCE_COLOR, training)]
    if card["calibration"]["null"] == "given":
        sets.append(("null clips to training", NULL_COLOR, audit.null()["score"].to_numpy()))
    histogram = _charts(sets, tau=None if undecided(card) else card["threshold"]["tau"], unit="clips")
    verified = verification(audit)
    machine = audit_verdict(card)
    sentence = machine if verified is None else verified["statistics"]["rate"]["sentence"]
    context = {"pairs": pairs, "flagged": flagged, "histogram": Markup(histogram), "verdict": sentence}
    context |= {"verified": verified, "machine_verdict": machine, "review_warnings": review_warnings(folder)}
    return {**context, "two_stage": "spans" in matches.column_names}


def undecided(card: dict[str, Any]) -> bool:
    """Whether there were too few null clips to flag anything: then an empty list says nothing."""
    threshold = card["threshold"]
    return threshold["rule"] == "fdr" and not threshold["separated"] and not card["counts"]["flagged"]


def audit_verdict(card: dict[str, Any]) -> str:
    """The finding of an audit in a sentence, with its denominator and what was left out."""
    counts, inputs = card["counts"], card["inputs"]
    if undecided(card):
        return (
            f"Not decided: {card['calibration']['null_clips']:,} null scores are too few to flag one of "
            f"{counts['compared']:,} generated clips with at most {card['calibration']['fdr']:.0%} false alarms expected."
        )
    silent = counts["generated"] - counts["compared"]
    unread = inputs["generated"]["counts"]["skipped"]
    left_out = [text for number, text in ((unread, "could not be read"), (silent, "are silent")) if number]
    numbers = [number for number in (unread, silent) if number]
    aside = "; ".join(f"{number:,} more {text}" for number, text in zip(numbers, left_out, strict=True))
    share = f" ({counts['flagged'] / counts['compared']:.1%})" if counts["compared"] else ""
    training = inputs["references"]["counts"]
    missing = f", {training['skipped']:,} training files could not be read" if training["skipped"] else ""
    return (
        f"{counts['flagged']:,} of {counts['compared']:,} generated clips{share} are flagged as possible replicas "
        f"of {_one_of(training['clips'])}" + (f" ({aside}{missing})." if aside else f"{missing}.")
    )


def _one_of(training: int) -> str:
    return "the only training clip" if training == 1 else f"one of {training:,} training clips"


def dedup_verdict(card: dict[str, Any]) -> str:
    """The finding of a deduplication in a sentence."""
    counts = card["counts"]
    skipped = f" {counts['skipped']:,} files could not be read." if counts["skipped"] else ""
    if card["mode"] == "leakage":
        other = card["inputs"]["against"]["counts"]["clips"]
        found = f"{counts['dropped']:,} of {counts['clips']:,} clips"
        return f"{found} have a copy among the {other:,} clips of the other set.{skipped}"
    return (
        f"{counts['clusters']:,} clusters of duplicates hold {counts['in_clusters']:,} of {counts['clips']:,} clips; "
        f"{counts['dropped']:,} can be dropped.{skipped}"
    )


def reviewed_verdict(card: dict[str, Any], reviewed: ReviewedLists) -> str:
    """The finding of a deduplication as people decided it, beside what the machine alone proposed."""
    counts = card["counts"]
    what = "have a copy in the other set and can be dropped" if card["mode"] == "leakage" else "can be dropped"
    return (
        f"People decided on {len(reviewed.decisions):,} of {counts['clusters']:,} clusters: {len(reviewed.dropped):,} of "
        f"{counts['clips']:,} clips {what}; the machine alone proposed {counts['dropped']:,}."
    )


def _dedup_context(folder: Path, card: dict[str, Any], progress: Progress) -> dict[str, Any]:
    dedup = Duplicates(folder, card)
    clusters: dict[int, list[dict[str, Any]]] = {}
    for row in dedup.clusters().to_pylist():
        clusters.setdefault(row["cluster_id"], []).append(row)
    pairs = dedup.pairs().to_pylist()
    best = _best_scores(clusters, pairs)
    verdicts, reviewed = verdicts_by_pair(folder), reviewed_clusters(dedup)
    largest = sorted(clusters.values(), key=lambda rows: (-len(rows), -best[rows[0]["cluster_id"]], rows[0]["cluster_id"]))
    gallery = []
    for number, rows in enumerate(largest[:MAX_CLUSTERS], 1):
        members = []
        for row in rows[:MAX_MEMBERS]:
            keep = row["keep"] if reviewed is None else row["set"] == "against" or row["clip_id"] not in reviewed.dropped
            role = "reference" if keep else "query"
            facts = {f"{role}_path": row["path"], f"{role}_id": row["clip_id"], f"{role}_caption": row["caption"]}
            facts[f"{role}_offset_s"] = row["start_s"]
            changed = keep != row["keep"]  # by people
            members.append(
                {
                    **row,
                    "keep": keep,
                    "changed": changed,
                    "excerpt": _excerpt(facts, role, 0.0, min(row["duration_s"], EXCERPT_S)),
                }
            )
        gallery.append({"members": members, "more": len(rows) - len(members), "rows": rows, "first": rows[0]})
        progress(number, min(len(largest), MAX_CLUSTERS), "clusters drawn")
    starts = _starts(folder)
    open_pairs = [row for row in pairs if not row["duplicate"]]
    for row in open_pairs:
        row["verdicts"] = verdicts.get(pair_id(row["first_id"], row["second_id"]), [])
    top1 = dedup.top1()["score"].drop_null().to_numpy()
    of_some = "" if len(top1) >= card["counts"]["clips"] / 2 else f" ({len(top1):,} clips, drawn at random)"
    histogram = _charts(
        [(f"clip to its nearest other clip{of_some}", REFERENCE_COLOR, top1)], tau=card["threshold"]["tau"], unit="clips"
    )
    return {
        "clusters": gallery,
        "all_clusters": len(largest),
        "open_pairs": [_open_pair(row, starts) for row in open_pairs[:CLOSEST_PAIRS]],
        "histogram": Markup(histogram),
        "verdict": dedup_verdict(card) if reviewed is None else reviewed_verdict(card, reviewed),
        "machine_verdict": dedup_verdict(card),
        "reviewed": reviewed,
        "review_warnings": review_warnings(dedup.path),
    }


def _best_scores(clusters: dict[int, list[dict[str, Any]]], pairs: list[dict[str, Any]]) -> dict[int, float]:
    """Of each cluster the best score of a duplicate pair in it; identical clips have no score, and nothing is closer."""
    cluster_of = {(row["clip_id"], row["path"]): number for number, rows in clusters.items() for row in rows}
    best = dict.fromkeys(clusters, -np.inf)
    for pair in pairs:
        number = cluster_of.get((pair["first_id"], pair["first_path"]))
        if pair["duplicate"] and number is not None:
            best[number] = max(best[number], np.inf if pair["score"] is None else pair["score"])
    return best


def _starts(folder: Path) -> dict[str, float]:
    """Where in its file each clip of the described corpora starts."""
    starts: dict[str, float] = {}
    for store in ("corpus", "against"):
        path = folder / "stores" / store / "clips.parquet"
        if path.is_file():
            table = pq.read_table(path, columns=["clip_id", "start_s"])
            starts |= zip(table["clip_id"].to_pylist(), table["start_s"].to_pylist(), strict=True)
    return starts


def _open_pair(row: dict[str, Any], starts: dict[str, float]) -> dict[str, Any]:
    """A pair that was not counted, with pictures and sound."""
    sides = []
    for end, role in (("first", "query"), ("second", "reference")):
        clip_id = row[f"{end}_id"]
        facts = {f"{role}_path": row[f"{end}_path"], f"{role}_id": clip_id, f"{role}_caption": None}
        facts[f"{role}_offset_s"] = starts.get(clip_id, 0.0)
        sides.append(_excerpt(facts, role, 0.0, EXCERPT_S))
    return {**row, "sides": sides}


def _skipped(folder: Path) -> dict[str, Any]:
    rows = [row for row in pq.read_table(folder / SKIPPED).to_pylist() if row["kind"] != "not_audio"]
    return {"rows": rows[:MAX_SKIPPED], "more": max(0, len(rows) - MAX_SKIPPED)}


def pair_sides(row: dict[str, Any]) -> dict[str, Excerpt]:
    """Both sides of a pair.

    Where spans are known, both show equally long stretches in which the strongest span begins at the same place, and the
    sound starts there.
    """
    if row.get("spans") is None:  # a comparison of whole windows
        return {
            role: _excerpt(row, role, row[f"{role}_start_s"], min(row[f"{role}_end_s"] - row[f"{role}_start_s"], EXCERPT_S))
            for role in ("query", "reference")
        }
    starts = {role: row[f"{role}_start_s"] or 0.0 for role in ("query", "reference")}
    lead = min(LEAD_S, *starts.values())  # as much before the span as both clips have
    sides = {role: _excerpt(row, role, start - lead, EXCERPT_S, sound_from_s=start) for role, start in starts.items()}
    longest = max(side.duration_s for side in sides.values())
    sides = {role: _excerpt(row, role, starts[role] - lead, longest, sound_from_s=starts[role], pad=True) for role in sides}
    return _with_boxes(sides, row["spans"])


def _with_boxes(sides: dict[str, Excerpt], spans: list[dict[str, float]]) -> dict[str, Excerpt]:
    """Both sides with boxes where the spans are in their pictures, numbered alike if there are several to be seen."""
    places = {
        role: [_place(span[f"{role}_start_s"], span[f"{role}_end_s"], side) for span in spans] for role, side in sides.items()
    }
    seen = [number for number in range(len(spans)) if any(places[role][number] for role in places)]
    labels = {number: str(label) if len(seen) > 1 else "" for label, number in enumerate(seen, 1)}
    boxes = {
        role: tuple(Box(*place, labels[number]) for number, place in enumerate(found) if place)
        for role, found in places.items()
    }
    return {role: replace(side, boxes=boxes[role]) for role, side in sides.items()}


def _place(start_s: float, end_s: float, side: Excerpt) -> tuple[float, float] | None:
    """Left edge and width of a span as shares of the picture; None if next to nothing of it is inside."""
    left, right = max(start_s, side.start_s), min(end_s, side.start_s + side.duration_s)
    if right - left < min(LEAST_SHOWN_S, (end_s - start_s) / 2):
        return None
    return (left - side.start_s) / side.duration_s, (right - left) / side.duration_s


def _excerpt(
    row: dict[str, Any], role: str, start_s: float, duration_s: float, *, sound_from_s: float | None = None, pad: bool = False
) -> Excerpt:
    """Decode a stretch for the picture and one for the sound; a file that has gone since is said to be gone."""
    path, offset_s = row[f"{role}_path"], row[f"{role}_offset_s"]
    title, caption = row[f"{role}_id"], row[f"{role}_caption"]
    duration_s = max(duration_s, 0.02)
    sound_from_s = start_s if sound_from_s is None else sound_from_s
    try:
        eye = read_audio(path, sample_rate_hz=SPECTROGRAM_RATE_HZ, start_s=offset_s + start_s, duration_s=duration_s)
        ear = read_audio(path, sample_rate_hz=EXCERPT_RATE_HZ, start_s=offset_s + sound_from_s, duration_s=duration_s)
    except AudioDecodeError as error:
        log.error("%s: %s", path, error)
        return Excerpt(title, caption, role, start_s, duration_s, missing=str(error))
    shown = eye.samples
    if pad:  # one time axis for both sides
        shown = np.pad(shown, (0, max(0, round(duration_s * SPECTROGRAM_RATE_HZ) - len(shown))))
    duration_s = len(shown) / SPECTROGRAM_RATE_HZ
    return Excerpt(
        title,
        caption,
        role,
        start_s,
        duration_s,
        image=_data_uri("image/png", spectrogram_png(shown)),
        sound=_data_uri("audio/mpeg", excerpt_mp3(ear.samples, EXCERPT_RATE_HZ)),
        time_ticks=tuple(time_ticks(duration_s, start_s)),
        sound_from_s=sound_from_s,
    )


def _charts(sets: Sequence[tuple[str, str, npt.NDArray[np.float64]]], **options: Any) -> str:
    wide, narrow = (histogram_svg(sets, narrow=narrow, **options) for narrow in (False, True))
    return wide_and_narrow(wide, narrow)


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
