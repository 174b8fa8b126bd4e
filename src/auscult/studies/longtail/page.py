"""The report of a long-tail study: one HTML file with figures of copying and of quality, tables, and clips to hear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...configuration import flat_values, make_config
from ...corpus import Clip
from ...figures import NULL_COLOR, QUERY_COLOR, REFERENCE_COLOR, frequency_ticks
from ...folders import Progress, no_progress, package_versions, write_text
from ...report.page import REPORT, pair_sides
from ...report.rendering import render
from ...report.verification import wide_and_narrow
from ..figures import Series, rates_picture
from ..sets import read_manifest
from .arms import ALL, AUDIO, BOTH, ID, NAMES, ON_TRAINING, PLAIN, SETS, Run, runs_of
from .config import LongtailConfig
from .copying import KIND_NAMES, KINDS, SeedAudit
from .figures import shares_svg
from .reading import rows_of
from .results import METRICS, OWN_CLASS
from .takes import origin
from .wording import called, sentence

GREEN, PURPLE = "#15803d", "#7e22ce"
COLORS = {PLAIN: NULL_COLOR, AUDIO: REFERENCE_COLOR, BOTH: QUERY_COLOR, ID: PURPLE, "real": GREEN}
SHORT_KINDS = {
    "own": "its prompt's clip",
    "own_shown": "the same, duplicate shown",
    "own_recording": "another take of its recording",
    "reference": "a shown pair",
    "other": "another clip",
}
KIND_COLORS = {
    "own": QUERY_COLOR,
    "own_shown": PURPLE,
    "own_recording": "#a16207",
    "reference": REFERENCE_COLOR,
    "other": "#9ca3af",
}


def write_longtail_page(folder: Path, content: Mapping[str, Any], progress: Progress = no_progress) -> Path:
    """Write ``report.html`` of a study; returns its path.

    Parameters
    ----------
    folder
        Of the study.
    content
        What its card holds.
    """
    progress(0, 1, "writing the report")
    names = list(dict.fromkeys(row["descriptor"] for row in content["copying"]))
    bins = list(dict.fromkeys(row["bin"] for row in content["quality"]))
    page = render(
        "longtail.html",
        card={"warnings": content["warnings"], "versions": package_versions()},
        verdict=sentence(content),
        review_warnings=(),
        content=content,
        names=names,
        bins=bins,
        kinds=[(kind, KIND_NAMES[kind]) for kind in KINDS],
        called=called,
        metrics=METRICS,
        tail=_tail(content, bins),
        against_k=[(name, _against_k(content, name)) for name in names],
        matched=[(name, _matched(content, name)) for name in names],
        copied=[row for row in content["copying"] if row.get("copied") and not row["guided"] and not row["swapped"]],
        compared=_side_by_side(content, names),
        heard=_heard(folder, content, names[0]),
        settings=list(flat_values(content["config"]).items()),
        frequency_ticks=frequency_ticks(),
    )
    write_text(folder / REPORT, page)
    progress(1, 1, "writing the report")
    return folder / REPORT


# --- figures ----------------------------------------------------------------------------------------------------------


def _tail(content: Mapping[str, Any], bins: Sequence[str]) -> Markup:
    """Clips that sound like their class against training frequency, a line for each kind of model, and the real clips'."""
    k = content["config"]["retrieval"]["shown"]
    places = [name for name in bins if name != "all"]
    series = []
    for model in NAMES:
        rows = {
            row["bin"]: row
            for row in content["quality"]
            if (row["metric"], row["model"], row["guided"], row["unseen"]) == (OWN_CLASS, model, False, False)
            and row["k"] in (0, k)
        }
        series.append(_series(NAMES[model], COLORS[model], [rows.get(name, {}) for name in places]))
    closed = [row for row in content["quality"] if row["unseen"] and row["metric"] == OWN_CLASS]
    if closed:
        label = "sounds and captions, class in no pair"
        series.append(_series(label, "#a16207", [closed[0] if name == "0" else {} for name in places]))
    real = {row["bin"]: row for row in content["real"]}
    series.append(_series("real clips, other recordings", COLORS["real"], [real.get(name, {}) for name in places]))
    labels = [f"{name}\n(unseen)" if name == "0" else name for name in places]
    of = f"sounds like its class (chance {content['chance']:.0%})"
    return rates_picture(labels, series, label="training clips of the class", of=of)


def _against_k(content: Mapping[str, Any], name: str) -> Markup:
    """Flagged as copies of what was shown, and of the prompt's clip, against k; at 0 the model without pairs."""
    ks = content["config"]["retrieval"]["k"]
    rows = {
        (row["model"], row["k"]): row for row in content["copying"] if row["descriptor"] == name and row["way"] == _usual(row)
    }
    plain = rows[PLAIN, 0]["flagged_kinds"]
    series = []
    for model, color, other in ((BOTH, QUERY_COLOR, REFERENCE_COLOR), (ID, PURPLE, GREEN)):
        some = [rows[model, k]["flagged_kinds"] for k in ks]
        excluded = "(duplicates in)" if model == ID else "(duplicates out)"
        series.append(_series(f"its prompt's clip {excluded}", color, [plain["its"], *(row["its"] for row in some)]))
        series.append(_series(f"a shown pair {excluded}", other, [plain["reference"], *(row["reference"] for row in some)]))
    return rates_picture(["none", *map(str, ks)], series, label="pairs shown", of=f"flagged by {name} as a copy of")


def _usual(row: Mapping[str, Any]) -> str:
    """The way of a row's model, k and training captions where nothing is swapped or guided."""
    return Run(0, row["model"], ON_TRAINING, row["k"]).way


def _matched(content: Mapping[str, Any], name: str) -> Markup:
    """What the nearest clip is of each way's clips; those that are flagged in full color."""
    k = content["config"]["retrieval"]["shown"]
    rows = [
        row for row in content["copying"] if row["descriptor"] == name and row["prompts"] == ON_TRAINING and row["k"] in (0, k)
    ]
    parts, sure = [], []
    for kind in KINDS:
        parts.append((SHORT_KINDS[kind], KIND_COLORS[kind], [row["nearest_kinds"][kind]["rate"] or 0.0 for row in rows]))
        sure.append([row["flagged_kinds"][kind]["rate"] or 0.0 for row in rows])
    label = f"clips whose nearest is, by {name} (in full color: flagged)"
    short = [_short(row) for row in rows]
    return Markup(
        wide_and_narrow(*(shares_svg(short, parts, label=label, sure=sure, narrow=narrow) for narrow in (False, True)))
    )


def _short(row: Mapping[str, Any]) -> str:
    names = {PLAIN: "no pairs", AUDIO: "sounds", BOTH: "pairs", ID: "duplicates allowed"}
    return names[row["model"]] + ", swapped" * row["swapped"] + ", guided" * row["guided"]


def _series(label: str, color: str, rows: Sequence[Mapping[str, Any]]) -> Series:
    keys = ("rate" if any("rate" in row for row in rows) else "value", "low", "high")
    return Series(
        label, color, *(tuple(row.get(key) if row.get(keys[0]) is not None else None for row in rows) for key in keys)
    )


# --- tables and sounds ------------------------------------------------------------------------------------------------


def _side_by_side(content: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Each way that guidance has a counterpart of, beside it: flagged, nearness to pairs, and the metrics of all bins."""
    found = []
    for fact in content["guided"]:
        usual = fact["way"].removesuffix("-guided")
        for way in (usual, fact["way"]):
            of = {"model": fact["model"], "k": fact["k"], "swapped": False, "guided": way != usual, "unseen": False}
            line: dict[str, Any] = {
                "name": called(of),
                "prompts": fact["prompts"],
                "fired": fact["fired"] if way != usual else None,
            }
            line["flagged"] = [
                next(row for row in content["copying"] if (row["way"], row["descriptor"]) == (way, name)) for name in names
            ]
            line["nearer"] = [row for row in content["nearer"] if row["way"] == way]
            line["quality"] = [row for row in content["quality"] if row["way"] == way and row["bin"] == "all"]
            found.append(line)
    return found


def _heard(folder: Path, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Of the first seed and each way at the usual k: the clip with the highest score, its prompt's clip, and the pair that it
    was shown and is nearest to."""
    config = make_config(LongtailConfig, dict(content["config"]))
    seed, k = config.seeds[0], config.retrieval.shown
    clips = {clip.clip_id: clip for clip in read_manifest(folder / SETS / f"s{seed}" / ALL)}
    audit = SeedAudit.open(config, folder, seed, name)
    found = []
    for way in runs_of(config, seed):
        if way.prompts != ON_TRAINING or way.k not in (0, k):
            continue
        rows = rows_of(folder, way)
        seen = [one for one in audit.seen(way, rows) if one.score is not None]
        if not seen:
            continue
        best = max(seen, key=lambda one: (one.score or 0.0, one.clip_id))
        row = next(row for row in rows if f"{way.way}/{row['clip_id']}" == best.clip_id)
        made = replace(
            clips[best.own], clip_id=best.clip_id, path=str(folder / "generated" / way.name / row["path"]), start_s=0.0
        )
        shown = (
            best.match
            if best.match and origin(best.match) in {origin(one) for one in best.shown}
            else next(iter(best.shown), None)
        )
        sides = [("generated", _side(made, clips[best.own], "query"))]
        sides.append(("its prompt's clip", _side(made, clips[best.own], "reference")))
        if shown is not None:
            what = "the pair it is nearest to" if shown == best.match else "the first pair that it was shown"
            sides.append((what, _side(made, clips[shown], "reference")))
        found.append(
            {
                "title": called(_facts(way)),
                "score": best.score,
                "flagged": best.flagged,
                "kind": KIND_NAMES[best.kind or "other"],
                "sides": sides,
            }
        )
    return found


def _facts(way: Run) -> dict[str, Any]:
    return vars(way)


def _side(query: Clip, reference: Clip, role: str) -> Any:
    """What is seen and heard of one clip of a pair, from its beginning."""
    row: dict[str, Any] = {"spans": None}
    for name, clip in (("query", query), ("reference", reference)):
        length = clip.duration_s or 10.0
        row |= {f"{name}_id": clip.clip_id, f"{name}_path": clip.path, f"{name}_caption": clip.caption}
        row |= {f"{name}_offset_s": clip.start_s, f"{name}_start_s": 0.0, f"{name}_end_s": length}
    return pair_sides(row)[role]
