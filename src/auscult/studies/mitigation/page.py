"""The report of a mitigation study: one HTML file with trade-off, sweeps, traces, spectrograms, and pairs to hear."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...audio import read_audio
from ...audit import Audit
from ...configuration import flat_values
from ...figures import SPECTROGRAM_RATE_HZ, frequency_ticks, spectrogram_png
from ...folders import Progress, no_progress, package_versions, write_text
from ...generation.clips import Row, read_rows
from ...guidance.trace import Trace
from ...report.page import REPORT, pair_sides
from ...report.rendering import render
from ...report.verification import wide_and_narrow
from ..figures import COLORS
from ..sets import read_manifest
from .arms import AUDITS, MADE, SETS, TRACES, TRAINING
from .figures import Point, Value, svg_of, sweep_svg, tradeoff_svg
from .results import distance_key, quality_key

SHOWN = ("none", "full", "full-unshifted", "full-mel-latents")  # arms to see and hear; the last two can be evaded
COLUMNS, COLUMN_PIXELS = 8, 160  # of the sheet
LINES = 4  # of a trace
TRACE_PX = {"wide": 900, "narrow": 420}


def write_mitigation_page(folder: Path, content: Mapping[str, Any], progress: Progress = no_progress) -> Path:
    """Write ``report.html`` of a study; returns its path.

    Parameters
    ----------
    folder
        Of the study.
    content
        What its card holds.
    """
    progress(0, 1, "writing the report")
    names = list(content["arms"][0]["audits"])
    shown = [row for name in SHOWN for row in content["arms"] if row["name"] == name]
    page = render(
        "mitigation.html",
        card={"warnings": content["warnings"], "versions": package_versions()},
        verdict=sentence(content),
        review_warnings=(),
        content=content,
        names=names,
        controlled=any(one["control"] for row in shown for one in row["audits"].values()),
        qualities=list(content["arms"][0]["quality"]),
        tradeoffs=_tradeoffs(content, names[0]),
        sweeps=_sweeps(content),
        trace=_trace(folder, content),
        sheet=_sheet(folder, content, shown),
        heard=_heard(folder, content, shown),
        settings=list(flat_values(content["config"]).items()),
        frequency_ticks=frequency_ticks(),
    )
    write_text(folder / REPORT, page)
    progress(1, 1, "writing the report")
    return folder / REPORT


def sentence(content: Mapping[str, Any]) -> str:
    """What the study found, in a sentence: of no guidance and of full guidance, or what was guided first.

    Examples
    --------
    >>> rate = {"rate": 0.95, "low": 0.8, "high": 1.0}
    >>> rows = [{"name": name, "label": label, "quality": {"fd_logmel": {"value": fd}}, "audits": {"contrast": {"flagged": rate}}}
    ...         for name, label, fd in (("none", "no guidance", 10), ("full", "all three terms", 149))]
    >>> sentence({"arms": rows})
    'By contrast, 95 % of the clips made without guidance are flagged as possible replicas, and 95 % with all three terms; fd_logmel goes from 10 to 149.'
    """  # noqa: E501 - a sentence
    rows = content["arms"]
    plain = next(row for row in rows if row["name"] == "none")
    guided = next((row for row in rows if row["name"] == "full"), next((row for row in rows if row is not plain), None))
    name = next(iter(plain["audits"]))
    told = f"By {name}, {_share(plain['audits'][name]['flagged'])} of the clips made without guidance are flagged as possible "
    told += "replicas"
    if guided is None or name not in guided["audits"]:
        return f"{told}."
    told += f", and {_share(guided['audits'][name]['flagged'])} with {guided['label']}"
    key = quality_key([plain, guided], lambda key: True)
    if key is None:
        return f"{told}."
    before, after = (row["quality"][key]["value"] for row in (plain, guided))
    return f"{told}; {key} goes from {before:.3g} to {after:.3g}."


def _share(flags: Mapping[str, Any]) -> str:
    return "a share that could not be told" if flags["rate"] is None else f"{flags['rate']:.0%}".replace("%", " %")


# --- figures ----------------------------------------------------------------------------------------------------------


def _tradeoffs(content: Mapping[str, Any], name: str) -> list[tuple[str, Markup]]:
    """Rate against the distance to real sound, and against adherence to the prompt where it was measured."""
    rows = [row for row in content["arms"] if name in row["audits"] and row["audits"][name]["flagged"]["rate"] is not None]
    keys = [distance_key(rows), quality_key(rows, lambda key: "clap_score" in key)]
    found = []
    for key in dict.fromkeys(key for key in keys if key):
        points = [
            Point(
                row["label"],
                _value(row["quality"][key]),
                _value(row["audits"][name]["flagged"], "rate"),
                "none" if row["name"] == "none" else "guided" if row["similarity"]["guides"] else "other",
            )
            for row in rows
        ]
        cost = f"{key} ({'higher' if 'clap_score' in key else 'lower'} is better)"
        wide, narrow = (tradeoff_svg(points, cost=cost, rate=f"flagged by {name}", narrow=one) for one in (False, True))
        found.append((key, Markup(wide_and_narrow(wide, narrow))))
    return found


def _sweeps(content: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """For each setting: the rate by each descriptor, and the distance to real sound."""
    found = []
    for knob in dict.fromkeys(point["knob"] for point in content["sweeps"]):
        points = [point for point in content["sweeps"] if point["knob"] == knob]
        rows = [point["arm"] for point in points]
        key = distance_key(rows)
        rates = [
            (f"flagged by {name}", COLORS[name], [_known(row["audits"][name]["flagged"]) for row in rows])
            for name in rows[0]["audits"]
        ]
        costs = [None if key is None else _value(row["quality"][key]) for row in rows]
        shown = [f"{point['value']:g}" if isinstance(point["value"], int | float) else point["value"] for point in points]
        wide, narrow = (
            sweep_svg(shown, rates, costs, knob=_knob(knob), cost=key or "quality", narrow=one) for one in (False, True)
        )
        found.append((_knob(knob), Markup(wide_and_narrow(wide, narrow))))
    return found


def _knob(name: str) -> str:
    return {
        "c1": "c1, despecification",
        "c2": "c2, caption deduplication",
        "c3": "c3, dissimilarity",
        "threshold_low": "low threshold (the high one is 0.1 above)",
        "nearest": "nearest references led away from",
        "every": "looks every so many steps",
        "stop": "stops at this share of the steps",
    }.get(name, name)


def _value(found: Mapping[str, Any], key: str = "value") -> Value:
    return Value(found[key], found["low"], found["high"])


def _known(flags: Mapping[str, Any]) -> Value | None:
    return None if flags["rate"] is None else _value(flags, "rate")


def _trace(folder: Path, content: Mapping[str, Any]) -> Markup | None:
    """Similarity over the steps of the first samples of one model, with guidance and without."""
    import matplotlib as mpl

    seed = content["config"]["seeds"][0]
    arm = next((row["name"] for row in content["arms"] if row["name"] not in ("none",) and row["similarity"]["guides"]), None)
    if arm is None:
        return None
    guided, plain = (_first_trace(folder / TRACES / f"{name}-s{seed}") for name in (arm, "none"))
    ids = [(0, number) for number in range(min(LINES, len({row.sample for row in guided.rows})))]
    drawn = []
    for size, width in TRACE_PX.items():
        with mpl.rc_context({"svg.hashsalt": f"auscult trace {size}", "svg.fonttype": "none"}):
            drawn.append(svg_of(guided.plot(plain, ids=ids, width_px=width)))
    return Markup(wide_and_narrow(*drawn))


def _first_trace(folder: Path) -> Trace:
    """Of the first call, the same clips under every arm."""
    return Trace.read(sorted(folder.glob("*.parquet"))[0])


# --- to see and hear --------------------------------------------------------------------------------------------------


def _sheet(folder: Path, content: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Spectrograms: the training clips of one model, and below each what arms made of its caption from the same noise."""
    seed = content["config"]["seeds"][0]
    made = {row["name"]: read_rows(folder / MADE / f"{row['name']}-s{seed}" / "manifest.jsonl") for row in shown}
    columns = list({row["reference"]: row for row in reversed(made["none"])}.values())[::-1][:COLUMNS]
    clips = {clip.clip_id: clip for clip in read_manifest(next((folder / SETS).glob(f"*-s{seed}")) / TRAINING)}
    real = [clips[row["reference"]] for row in columns]
    duration_s = max(row["samples"] / row["sample_rate_hz"] for row in columns)
    lines = [("training clip", [_picture(Path(clip.path), clip.start_s, duration_s) for clip in real])]
    for row in shown:
        by_id = {one["clip_id"]: one for one in made[row["name"]]}
        files = [folder / MADE / f"{row['name']}-s{seed}" / by_id[one["clip_id"]]["path"] for one in columns]
        lines.append((row["label"], [_picture(file, 0.0, duration_s) for file in files]))
    return [{"label": label, "pictures": pictures} for label, pictures in lines]


def _picture(path: Path, start_s: float, duration_s: float) -> str:
    """A spectrogram as a data URI."""
    samples = read_audio(str(path), sample_rate_hz=SPECTROGRAM_RATE_HZ, start_s=start_s, duration_s=duration_s).samples
    missing = max(0, round(duration_s * SPECTROGRAM_RATE_HZ) - len(samples))
    png = spectrogram_png(samples, width=COLUMN_PIXELS, outside=(0, missing))
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _heard(folder: Path, content: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the first model, the pair with the highest score of each shown arm and the one in the middle."""
    seed, found = content["config"]["seeds"][0], []
    for row in shown:
        name = next(iter(row["audits"]))
        matches = Audit.open(folder / AUDITS / f"{row['name']}-s{seed}-{name}").matches().to_pylist()
        best = sorted((one for one in matches if one["rank"] == 1), key=lambda one: (-one["score"], one["query_id"]))
        picked = [("the highest score", best[0]), ("the middle score", best[len(best) // 2])] if best else []
        pairs: list[Row] = [
            {"what": what, "score": one["score"], "flagged": one["flagged"], **pair_sides(one)} for what, one in picked
        ]
        found.append({"label": row["label"], "audit": f"{row['name']}-s{seed}-{name}", "pairs": pairs})
    return found
