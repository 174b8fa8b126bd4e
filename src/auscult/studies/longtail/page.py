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
from ..flagging import SENSITIVITY_IS
from ..rates import percent
from ..sets import read_manifest
from .arms import ALL, AUDIO, BOTH, ID, NAMES, ON_TRAINING, PLAIN, SETS, Run, runs_of
from .config import LongtailConfig
from .copying import KIND_NAMES, KINDS, SeedAudit, Seen
from .figures import shares_svg
from .reading import rows_of
from .results import METRICS, OWN_CLASS
from .takes import origin
from .wording import called, sentence, short, unchanged

GREEN, PURPLE = "#15803d", "#7e22ce"
COLORS = {PLAIN: NULL_COLOR, AUDIO: REFERENCE_COLOR, BOTH: QUERY_COLOR, ID: PURPLE, "real": GREEN}
SHORT_KINDS = {
    "own": "its prompt's clip",
    "own_shown": "the same, duplicate shown",
    "own_recording": "another take of its recording",
    "own_recording_shown": "another take, shown",
    "reference": "another shown pair",
    "other": "another clip",
}
AGAINST_K = {
    "pairs": "another pair that was shown",
    "own_shown": "the prompt's clip, whose duplicate was shown",
    "its": "the prompt's clip, whether a duplicate of it was shown or not",
}
KIND_COLORS = {
    "own": QUERY_COLOR,
    "own_shown": PURPLE,
    "own_recording": "#a16207",
    "own_recording_shown": "#0e7490",
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
    # those that stand among all other shown pairs, or beside what there is by itself, have columns of their own
    single = [kind for kind in KINDS if kind not in ("reference", "own_shown")]
    told = [kind for kind in single if any(row["flagged_kinds"][kind]["flagged"] for row in content["copying"])]
    page = render(
        "longtail.html",
        card={"warnings": content["warnings"], "versions": package_versions()},
        verdict=sentence(content),
        review_warnings=(),
        content=content,
        names=names,
        bins=bins,
        beside=[
            (kind, AGAINST_K[kind]) for kind in ("pairs", "own_shown") if kind == "pairs" or content["config"]["tail"]["copies"]
        ],
        kinds=[(kind, KIND_NAMES[kind]) for kind in told],
        unflagged=[KIND_NAMES[kind] for kind in single if kind not in told],
        called=called,
        tail=_tail(content, bins),
        by_chance={row["bin"]: row["chance"] for row in content["real"]},
        against_k=[
            (name, what, picture)
            for name in names
            for kind, what in AGAINST_K.items()
            if (picture := _against_k(content, name, kind)) is not None
        ],
        matched=[(name, picture) for name in names if (picture := _matched(content, name)) is not None],
        by_way={row["way"]: called(row) for row in content["copying"]},
        percent=percent,
        sensitivity=SENSITIVITY_IS,
        unchanged=[row["way"] for row in content["guided"] if unchanged(content, row["way"])],
        measured=_measured(content),
        copied=[row for row in content["copying"] if row.get("copied") and not row["guided"] and not row["swapped"]],
        prompts_copied=", ".join(f"{one['prompts_copied']} of {one['counts']['prompts']}" for one in content["sets"]),
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
    """Clips that sound like their class against training frequency: lines of each kind of model, real clips, and chance."""
    k = content["config"]["retrieval"]["shown"]
    places = [name for name in bins if name != "all"]
    series = []
    for model in NAMES:
        rows = {
            row["bin"]: row
            for row in content["quality"]
            if (row["metric"], row["model"], row["guided"], row["closed"]) == (OWN_CLASS, model, False, False)
            and row["k"] in (0, k)
        }
        series.append(_series(NAMES[model].split(", ")[-1], COLORS[model], [rows.get(name, {}) for name in places]))
    closed = [row for row in content["quality"] if row["closed"] and row["metric"] == OWN_CLASS and row["bin"] == "0"]
    if closed:
        label = "class in no pair"
        series.append(_series(label, "#a16207", [closed[0] if name == "0" else {} for name in places]))
    real = {row["bin"]: row for row in content["real"]}
    series.append(_series("real clips", COLORS["real"], [real.get(name, {}) for name in places]))
    by_chance = tuple(real[name]["chance"] if name in real else None for name in places)
    series.append(Series("by chance", "#9ca3af", by_chance, by_chance, by_chance))
    labels = [f"{name}\n(unseen)" if name == "0" else name for name in places]
    return rates_picture(labels, series, label="training clips of the class", of="own class")


def _against_k(content: Mapping[str, Any], name: str, kind: str) -> Markup | None:
    """Flagged as copies of what was shown, or of the prompt's clip, against k; beside each what the model without pairs has by
    itself, which for the prompt's clip is the same at every k. Only where duplicates are allowed can one of the prompt's clip
    be shown. None where no audit can tell, or no clip has a near-duplicate.
    """
    if kind == "own_shown" and not content["config"]["tail"]["copies"]:
        return None
    ks = content["config"]["retrieval"]["k"]
    rows = {
        (row["model"], row["k"]): row for row in content["copying"] if row["descriptor"] == name and row["way"] == _usual(row)
    }
    series = []
    models = ((BOTH, QUERY_COLOR, "#fdba74"), (ID, PURPLE, "#d8b4fe"))
    for model, color, pale in models[kind == "own_shown" :]:
        excluded = "duplicates in" if model == ID else "duplicates out"
        there = [rows[model, k] for k in ks]
        series.append(_series(excluded, color, [row["flagged_kinds"][kind] for row in there]))
        if kind != "its":
            plain = [row["by_itself"]["flagged_kinds"][kind] for row in there]
            series.append(_series(f"by itself, {excluded}", pale, plain))
    if kind == "its":
        series.append(_series("no pairs", NULL_COLOR, [rows[PLAIN, 0]["flagged_kinds"][kind]] * len(ks)))
    if all(rate is None for one in series for rate in one.rates):
        return None
    return rates_picture([str(k) for k in ks], series, label="pairs shown", of="flagged")


def _usual(row: Mapping[str, Any]) -> str:
    """The way of a row's model, k and training captions where nothing is swapped or guided."""
    return Run(0, row["model"], ON_TRAINING, row["k"]).way


def _matched(content: Mapping[str, Any], name: str) -> Markup | None:
    """What the nearest clip is of each way's clips, those that are flagged in full color; None where no audit can tell."""
    k = content["config"]["retrieval"]["shown"]
    rows = [
        row
        for row in content["copying"]
        if row["descriptor"] == name and row["prompts"] == ON_TRAINING and row["k"] in (0, k) and row["rate"] is not None
    ]
    if not rows:
        return None
    parts, sure = [], []
    for kind in KINDS:
        shares = [row["nearest_kinds"][kind]["rate"] for row in rows]
        if any(shares):
            parts.append((SHORT_KINDS[kind], KIND_COLORS[kind], shares))
            sure.append([row["flagged_kinds"][kind]["rate"] for row in rows])
    label = f"clips whose nearest is, by {name} (in full color: flagged)"
    names = [short(row) for row in rows]
    return Markup(
        wide_and_narrow(*(shares_svg(names, parts, label=label, sure=sure, narrow=narrow) for narrow in (False, True)))
    )


def _series(label: str, color: str, rows: Sequence[Mapping[str, Any]]) -> Series:
    keys = ("rate" if any("rate" in row for row in rows) else "value", "low", "high")
    return Series(
        label, color, *(tuple(row.get(key) if row.get(keys[0]) is not None else None for row in rows) for key in keys)
    )


# --- tables and sounds ------------------------------------------------------------------------------------------------


def _measured(content: Mapping[str, Any]) -> dict[str, str]:
    """Names of the metrics that there are values of."""
    there = {row["metric"] for row in content["quality"] if row["value"] is not None}
    return {metric: name for metric, name in METRICS.items() if metric in there}


def _side_by_side(content: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Each way that guidance has a counterpart of, beside it: flagged, nearness to pairs, and the metrics of all bins."""
    found = []
    for fact in content["guided"]:
        usual = fact["way"].removesuffix("-guided")
        for way in (usual, fact["way"]):
            of = {"model": fact["model"], "k": fact["k"], "swapped": False, "guided": way != usual, "closed": False}
            line: dict[str, Any] = {
                "way": way,
                "name": called(of),
                "prompts": fact["prompts"],
                "fired": fact["fired"] if way != usual else None,
            }
            line["flagged"] = [
                next(row for row in content["copying"] if (row["way"], row["descriptor"]) == (way, name)) for name in names
            ]
            line["nearer"] = [row for row in content["nearer"] if row["way"] == way]
            measured = [row for row in content["quality"] if row["value"] is not None]
            line["quality"] = [row for row in measured if row["way"] == way and row["bin"] == "all"]
            found.append(line)
    return found


def _heard(folder: Path, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Of the first seed and each way at the usual k: the clip with the highest score, its prompt's clip, the pair that it was
    shown and is nearest to, and the nearest clip where that is another."""
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
        sides = [("generated", _side(made, clips[best.own], "query"))]
        sides += [(what, _side(made, clips[one], "reference")) for what, one in compared_with(best)]
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


def compared_with(one: Seen) -> list[tuple[str, str]]:
    """What a clip is seen and heard beside: its prompt's clip, one pair that was shown, and the nearest where that is neither.

    Examples
    --------
    >>> compared_with(Seen("x", "a", "dog", ("b", "c"), "c#copy-2", 1.0, False))
    [("its prompt's clip", 'a'), ('the pair it is nearest to', 'c')]
    >>> compared_with(Seen("x", "a", "dog", ("b", "c"), "d", 1.0, False))
    [("its prompt's clip", 'a'), ('the first pair that it was shown', 'b'), ('the clip it is nearest to', 'd')]
    """
    near = None if one.match is None else origin(one.match)
    found = [("its prompt's clip", one.own)]
    if one.shown:
        pair = next((pair for pair in one.shown if origin(pair) == near), None)
        found.append(
            ("the first pair that it was shown", one.shown[0]) if pair is None else ("the pair it is nearest to", pair)
        )
    if one.match is not None and near not in {origin(there) for _, there in found}:
        found.append(("the clip it is nearest to", one.match))
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
