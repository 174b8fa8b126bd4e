"""A long-tail study in words: what its rows are called, and what it found, hoped for or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .arms import BOTH, NAMES
from .results import OWN_CLASS


def called(row: Mapping[str, Any]) -> str:
    """What a row's way is called in tables.

    >>> called({"model": "both", "k": 3, "swapped": True, "guided": False, "unseen": False})
    "sounds and captions, k = 3, another prompt's pairs"
    """
    parts = [NAMES[row["model"]]]
    parts += [f"k = {row['k']}"] if row["k"] else []
    parts += ["another prompt's pairs"] * row["swapped"] + ["guided away from its pairs"] * row["guided"]
    parts += ["unseen classes not in the datastore"] * row["unseen"]
    return ", ".join(parts)


def sentence(content: Mapping[str, Any]) -> str:
    """What the study found, in a few sentences, whether it is what was hoped for or not."""
    shown = content["config"]["retrieval"]["shown"]
    return " ".join(
        filter(None, [_said_of_quality(content, shown), _said_of_copies(content, shown), _said_of_guidance(content, shown)])
    )


def _said_of_quality(content: Mapping[str, Any], k: int) -> str:
    """Of unseen classes and of the rarest seen ones: better than without pairs, worse, or not to be told."""
    rows = {
        row["bin"]: row
        for row in content["quality"]
        if row["metric"] == OWN_CLASS and row["model"] == BOTH and row["k"] == k and not row["guided"] and not row["unseen"]
    }
    found = []
    for name, row in rows.items():
        if name == "all" or row.get("value") is None:
            continue
        gain = row["beyond_plain"]
        verdict = "more" if gain["low"] > 0 else "fewer" if gain["high"] < 0 else "no clear difference"
        what = "unseen classes" if name == "0" else f"{name} training clips"
        found.append((verdict, f"{what} {_points(gain)}"))
    told = {"more": "more", "fewer": "fewer", "no clear difference": "no clear difference in"}
    parts = [
        f"{told[verdict]} clips that sound like their class for {', '.join(text for other, text in found if other == verdict)}"
        for verdict in told
        if any(other == verdict for other, _ in found)
    ]
    return f"Beside {k} pairs, the model makes {'; '.join(parts)}." if parts else ""


def _points(gain: Mapping[str, Any]) -> str:
    return f"({100 * gain['value']:+.0f} points [{100 * gain['low']:+.0f}, {100 * gain['high']:+.0f}])"


def _said_of_copies(content: Mapping[str, Any], k: int) -> str:
    name = content["copying"][0]["descriptor"]
    rows = {row["way"]: row for row in content["copying"] if row["descriptor"] == name}
    ways = ("plain-training", f"both-training-k{k}", f"both-training-k{k}-swapped", f"id-training-k{k}")
    plain, both, swapped, by_id = (rows[way] for way in ways)
    if both["rate"] is None:
        return f"By {name} nothing can be said of copies: there are too few null clips."
    by_chance, shown, other = (_percent(row["flagged_kinds"]["reference"]["rate"]) for row in (plain, both, swapped))
    own = [_percent(row["flagged_kinds"]["its"]["rate"]) for row in (plain, both, swapped)]
    parts = [
        f"By {name}, {shown} of its clips from training captions are flagged as copies of a pair that was shown, where "
        f"{by_chance} of those without pairs match one that they would have been shown, and {other} match a pair of another "
        "prompt if they are shown these",
        f"{own[1]} are flagged as copies of their prompt's clip ({own[0]} without pairs, {own[2]} with another prompt's)",
    ]
    if by_id.get("copied"):
        allowed, excluded = (_percent(row["copied"]["flagged_kinds"]["its"]["rate"]) for row in (by_id, both))
        parts.append(
            f"where the clip has a duplicate, {allowed} are copies of it if duplicates may be shown, and {excluded} if not"
        )
    levels = [one["level"] for one in content["audits"] if one["descriptor"] == name and one["level"] is not None]
    told = f" Of clips that copy nothing, {_percent(max(levels))} would be flagged." if levels else ""
    return "; ".join(parts) + "." + told


def _said_of_guidance(content: Mapping[str, Any], k: int) -> str:
    name = content["copying"][0]["descriptor"]
    rates = {row["way"]: row["rate"] for row in content["copying"] if row["descriptor"] == name}
    guided = rates.get(f"id-training-k{k}-guided")
    before = rates.get(f"id-training-k{k}")
    if guided is None or before is None:
        return ""
    what = "With duplicates allowed, guidance away from what was shown takes the flagged clips"
    cost = [
        f"{called} from {shown(plain)} to {shown(other)}"
        for metric, called, shown in (
            (OWN_CLASS, "clips that sound like their class", _percent),
            ("fd_per_clip", "a clip's Fréchet distance", "{:.3g}".format),
        )
        for plain, other in [[_mean(content, metric, f"both-held-out-k{k}{end}") for end in ("", "-guided")]]
        if plain is not None and other is not None
    ]
    paid = f" It costs, with held-out captions and duplicates out: {'; '.join(cost)}." if cost else ""
    return f"{what} from {_percent(before)} to {_percent(guided)}.{paid}"


def _mean(content: Mapping[str, Any], metric: str, way: str) -> float | None:
    """Of all classes; None where it was not measured."""
    rows = content["quality"]
    return next((row["value"] for row in rows if (row["metric"], row["way"], row["bin"]) == (metric, way, "all")), None)


def _percent(rate: float | None) -> str:
    return "an unknown share" if rate is None else f"{rate:.0%}".replace("%", " %")
