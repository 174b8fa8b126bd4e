"""The report of a mitigation study: one HTML file with trade-off, sweeps, traces, spectrograms, and pairs to hear."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ...audio import read_audio
from ...configuration import flat_values, make_config
from ...figures import SPECTROGRAM_RATE_HZ, frequency_ticks, spectrogram_png, svg_of
from ...folders import Progress, no_progress, package_versions, write_text
from ...generation.clips import read_rows
from ...guidance.trace import Trace
from ...report.page import REPORT
from ...report.rendering import render
from ...report.verification import wide_and_narrow
from ..config import StudyAudits
from ..figures import COLORS
from ..hearing import pairs_to_hear
from ..rates import decimals, percent, with_interval
from ..sets import read_manifest
from .arms import AUDITS, MADE, SETS, TRACES, TRAINING
from .figures import Point, Value, sweep_svg, tradeoff_svg
from .quality import distance_key, quality_key, quality_keys
from .results import unguided

LEVEL = 0.05  # of the sign-flip test, for a difference to be told
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
    names, qualities = list(unguided(content["arms"])["audits"]), quality_keys(content["arms"])
    shown = [row for name in SHOWN for row in content["arms"] if row["name"] == name]
    page = render(
        "mitigation.html",
        card={"warnings": content["warnings"], "versions": package_versions()},
        verdict=sentence(content),
        review_warnings=(),
        content=content,
        names=names,
        plain=unguided(content["arms"]),
        controlled=any(one["control"] for row in shown for one in row["audits"].values()),
        qualities=qualities,
        decimals=decimals_of(content["arms"], names, qualities),
        tradeoffs=_tradeoffs(content, names[0]),
        sweeps=_sweeps(content),
        trace=_trace(folder, content),
        sheet=_sheet(folder, content, shown),
        heard=_heard(folder, content, shown),
        percent=percent,
        settings=list(flat_values(content["config"]).items()),
        frequency_ticks=frequency_ticks(),
    )
    write_text(folder / REPORT, page)
    progress(1, 1, "writing the report")
    return folder / REPORT


def decimals_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str], qualities: Sequence[str]) -> dict[str, int]:
    """With how many decimals scores are printed, by descriptor and by score of quality: alike in a column."""
    medians = {name: [row["audits"][name]["score"]["median"] for row in rows if name in row["audits"]] for name in names}
    values = {key: [row["quality"][key]["value"] for row in rows if key in row["quality"]] for key in qualities}
    return {key: decimals(value for value in found if value is not None) for key, found in {**medians, **values}.items()}


def sentence(content: Mapping[str, Any]) -> str:
    """What the study found: of no guidance and of full guidance, or what was guided first.

    Guidance is said to change what the sign-flip test can tell, which compares prompt by prompt; a control stands beside a rate
    where their intervals meet.

    Examples
    --------
    >>> def row(name, label, fd, rate, low, high, control=0.02, p=None):
    ...     audit = {"flagged": {"rate": rate, "low": low, "high": high}, "null_clips": [240],
    ...              "control": {"rate": control, "low": 0.0, "high": 0.1}}
    ...     return {"name": name, "label": label, "quality": {"fd_logmel": {"value": fd}}, "audits": {"contrast": audit},
    ...             "against_none": {} if p is None else {"contrast": {"p_value": p}}, "never_acted": False}
    >>> none = row("none", "no guidance", 10, 0.95, 0.8, 1.0)
    >>> sentence({"arms": [none, row("full", "all three terms", 149, 0.9, 0.7, 1.0, p=0.5)]})
    'By contrast, 95 % (80 to 100) of the clips made without guidance are flagged as possible replicas. With all three terms these are 90 % (70 to 100): no difference can be told (sign-flip test, p = 0.5). fd_logmel is 10 without guidance and 149 with it.'
    """  # noqa: E501 - a sentence
    rows = content["arms"]
    plain = unguided(rows)
    guided = next((row for row in rows if row["name"] == "full"), next((row for row in rows if row is not plain), None))
    name = next(iter(plain["audits"]))
    own = plain["audits"][name]
    if own["flagged"]["rate"] is None:
        return f"By {name}, how much is flagged could not be told: {min(own['null_clips']):,} null clips are too few."
    told = f"By {name}, {with_interval(own['flagged'])} of the clips made without guidance are flagged as possible replicas"
    told += f"{_beside_control(own)}."
    if guided is None or name not in guided["audits"]:
        return told
    told += f" {_effect(plain, guided, name)}"
    key = quality_key([plain, guided], lambda key: True)
    if key is None or guided["never_acted"]:
        return told
    before, after = (row["quality"][key]["value"] for row in (plain, guided))
    return f"{told} {key} is {before:.3g} without guidance and {after:.3g} with it."


def _above_control(audit: Mapping[str, Any]) -> bool:
    """Whether the intervals tell the rate from its control's; True where there is none."""
    control = audit["control"]
    return control is None or control["rate"] is None or audit["flagged"]["low"] > control["high"]


def _beside_control(audit: Mapping[str, Any]) -> str:
    if _above_control(audit):
        return ""
    return f"; by the intervals this cannot be told from the control's false alarms, {with_interval(audit['control'])}"


def _effect(plain: Mapping[str, Any], guided: Mapping[str, Any], name: str) -> str:
    """What guidance changed, as far as it can be told."""
    before, after, label = plain["audits"][name], guided["audits"][name], guided["label"]
    if guided["never_acted"]:
        return f"With {label} nothing acted: the clips are the same to the last bit."
    if after["flagged"]["rate"] is None:
        return f"With {label} it could not be told: {min(after['null_clips']):,} null clips are too few."
    test, rate = guided["against_none"][name], after["flagged"]["rate"]
    fell = rate < before["flagged"]["rate"]
    same = test is None or test["p_value"] > LEVEL  # intervals of models that differ would hide what all their prompts do
    what = "no difference can be told" if same else "fewer" if fell else "more"
    p = "" if test is None else f" (sign-flip test, p = {test['p_value']:.2g})"
    # where nothing fell, or nothing is above the control to begin with, a control says nothing more
    control = _beside_control(after) if fell and not same else ""
    return f"With {label} these are {with_interval(after['flagged'])}: {what}{p}{control}."


# --- figures ----------------------------------------------------------------------------------------------------------


def _tradeoffs(content: Mapping[str, Any], name: str) -> list[tuple[str, Markup]]:
    """Rate against the distance to real sound, and against adherence to the prompt where it was measured."""
    judged = [name in row["audits"] and row["audits"][name]["flagged"]["rate"] is not None for row in content["arms"]]
    numbered = [(number, row) for number, (row, there) in enumerate(zip(content["arms"], judged, strict=True), 1) if there]
    rows = [row for _, row in numbered]
    keys = [distance_key(rows), quality_key(rows, lambda key: "clap_score" in key)]
    found = []
    for key in dict.fromkeys(key for key in keys if key):
        points = [
            Point(
                row["label"],
                _value(row["quality"][key]),
                _value(row["audits"][name]["flagged"], "rate"),
                "none" if row["name"] == "none" else "guided" if row["similarity"]["guides"] else "other",
                number,
            )
            for number, row in numbered
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
        asked = f"{_knob(knob)}\n(one seed, {rows[0]['clips']} clips)"
        shown = [f"{point['value']:g}" if isinstance(point["value"], int | float) else point["value"] for point in points]
        wide, narrow = (sweep_svg(shown, rates, costs, knob=asked, cost=key or "quality", narrow=one) for one in (False, True))
        found.append((_knob(knob), Markup(wide_and_narrow(wide, narrow))))
    return found


def _knob(name: str) -> str:
    return {
        "c1": "c1, despecification",
        "c2": "c2, caption deduplication",
        "c3": "c3, dissimilarity",
        "threshold_low": "low threshold (high: 0.1 above)",
        "nearest": "nearest references led away from",
        "every": "looks every so many steps",
        "stop": "stops at this share of the steps",
    }.get(name, name)


def _value(found: Mapping[str, Any], key: str = "value") -> Value:
    return Value(found[key], found["low"], found["high"])


def _known(flags: Mapping[str, Any]) -> Value | None:
    return None if flags["rate"] is None else _value(flags, "rate")


def _trace(folder: Path, content: Mapping[str, Any]) -> Markup | None:
    """Similarity over the steps of the first samples of one model, with guidance and without, as both hear it alike."""
    import matplotlib as mpl

    seed = content["config"]["seeds"][0]
    arm = traced_arm(content["arms"])
    if arm is None:
        return None
    guided, plain = (_first_trace(folder / TRACES / f"{name}-s{seed}") for name in (arm, "none"))
    ids = [(0, number) for number in range(min(LINES, len({row.sample for row in guided.rows})))]
    drawn = []
    for size, width in TRACE_PX.items():
        with mpl.rc_context({"svg.hashsalt": f"auscult trace {size}", "svg.fonttype": "none"}):
            drawn.append(svg_of(guided.plot(plain, ids=ids, width_px=width)))
    return Markup(wide_and_narrow(*drawn))


def traced_arm(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The first that guides by the similarity that is traced without guidance, too."""
    alike = (row["name"] for row in rows if row["similarity"]["guides"] and row["similarity"]["comparable"])
    return next(alike, None)


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
    """Of each shown arm, pairs of all models by the first descriptor that judges it."""
    asked, found = make_config(StudyAudits, dict(content["config"]["audits"])), []
    for row in shown:
        name = next(one for one in unguided(content["arms"])["audits"] if one in row["audits"])
        places = [folder / AUDITS / f"{row['name']}-s{seed}-{name}" for seed in content["config"]["seeds"]]
        found.append({"label": f"{row['label']}, by {name}", "pairs": pairs_to_hear(asked, name, places)})
    return found
