"""A long-tail study in words: what its rows are called, and what it found, hoped for or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..rates import percent
from .arms import AUDIO, BOTH, ID, NAMES, ON_HELD_OUT, ON_TRAINING, PLAIN
from .results import OWN_CLASS


def called(row: Mapping[str, Any]) -> str:
    """What a row's way is called in tables.

    >>> called({"model": "both", "k": 3, "swapped": True, "guided": False, "closed": False})
    "sounds and captions, k = 3, another prompt's pairs"
    """
    parts = [NAMES[row["model"]]]
    parts += [f"k = {row['k']}"] if row["k"] else []
    parts += ["another prompt's pairs"] * row["swapped"] + ["guided away from its pairs"] * row["guided"]
    parts += ["unseen classes not in the datastore"] * row["closed"]
    return ", ".join(parts)


def short(row: Mapping[str, Any]) -> str:
    """What it is called where there is little room, without its k.

    >>> short({"model": "id", "swapped": False, "guided": True})
    'duplicates allowed, guided'
    """
    names = {PLAIN: "no pairs", AUDIO: "sounds", BOTH: "pairs", ID: "duplicates allowed"}
    return names[row["model"]] + ", swapped" * row["swapped"] + ", guided" * row["guided"]


def sentence(content: Mapping[str, Any]) -> str:
    """What the study found, in three short sentences, whether it is what was hoped for or not."""
    k = content["config"]["retrieval"]["shown"]
    return " ".join(filter(None, [_said_of_quality(content, k), _said_of_copies(content, k), _said_of_guidance(content, k)]))


def verdict(gain: Mapping[str, Any]) -> str | None:
    """``"more"`` or ``"fewer"``, where an interval over two seeds or more says so.

    >>> gains = (0.1, [0.2, 0.4]), (-0.1, [0.2, 0.4]), (0.1, [0.3])
    >>> [verdict({"low": low, "high": 0.5, "by_seed": seeds}) for low, seeds in gains]
    ['more', None, None]
    """
    if sum(one is not None for one in gain["by_seed"]) < 2:
        return None
    return "more" if gain["low"] > 0 else "fewer" if gain["high"] < 0 else None


def _said_of_quality(content: Mapping[str, Any], k: int) -> str:
    """Of unseen classes and of seen ones by frequency: more clips than without pairs, fewer, or not to be told."""
    rows = {
        row["bin"]: row
        for row in content["quality"]
        if row["metric"] == OWN_CLASS and row["model"] == BOTH and row["k"] == k and not row["guided"] and not row["closed"]
    }
    bins = {name: row["beyond_plain"] for name, row in rows.items() if name != "all" and row["value"] is not None}
    if not bins:
        return ""
    found = [(verdict(gain), _classes(name), 100 * gain["value"]) for name, gain in bins.items()]
    told = [f"{word} clips of {name} sound like their class ({points:+.0f} points)" for word, name, points in found if word]
    if told:
        others = " and ".join(name for word, name, _ in found if not word)
        return f"Beside {k} pairs, {', '.join(told)}" + (f"; for {others} no difference can be told." if others else ".")
    beside, without = (_mean(content, OWN_CLASS, f"{way}-{ON_HELD_OUT}{end}") for way, end in ((BOTH, f"-k{k}"), (PLAIN, "")))
    return (
        f"Whether pairs help rare or unseen classes cannot be told: {_share(beside)} of clips sound like their class beside "
        f"{k} pairs, {_share(without)} without any, and {_share(content['chance'])} would by chance."
    )


def _classes(name: str) -> str:
    return "unseen classes" if name == "0" else f"classes of {name} training clips"


def _said_of_copies(content: Mapping[str, Any], k: int) -> str:
    """Whether shown pairs are flagged more often than they are by themselves, by the first audit that can tell."""
    rows = [row for row in content["copying"] if row["way"] == f"{BOTH}-{ON_TRAINING}-k{k}"]
    row = next((row for row in rows if row["rate"] is not None and row["by_itself"]["rate"] is not None), None)
    if row is None:
        return "Of copies nothing can be said: there are too few null clips."
    copied, by_itself = (one["flagged_kinds"]["pairs"] for one in (row, row["by_itself"]))
    if not copied["flagged"]:
        return f"The audit by {row['descriptor']} flags no clip as a copy of a pair that was shown."
    beyond = copied["low"] > by_itself["high"]
    return (
        f"The audit by {row['descriptor']} flags {_share(copied['rate'])} of clips as copies of a pair that was shown, "
        f"{'beyond' if beyond else 'which cannot be told from'} the {_share(by_itself['rate'])} that match these pairs by "
        "themselves."
    )


def _said_of_guidance(content: Mapping[str, Any], k: int) -> str:
    """What guidance did to flagged clips where duplicates may be shown, and to quality."""
    ways = [f"{model}-{prompts}-k{k}" for model, prompts in ((ID, ON_TRAINING), (BOTH, ON_HELD_OUT))]
    if not any(row["fired"]["flagged"] for row in content["guided"]):
        return "Guidance never acted."
    if unchanged(content, f"{ways[0]}-guided"):
        return "Where duplicates may be shown, guidance changed nothing."
    rows = {(row["way"], row["descriptor"]): row for row in content["copying"]}
    for name in dict.fromkeys(row["descriptor"] for row in content["copying"]):
        before, after = (rows[f"{ways[0]}{end}", name]["rate"] for end in ("", "-guided"))
        if before is not None and after is not None:
            break
    else:
        return ""
    quality = [_mean(content, OWN_CLASS, f"{ways[1]}{end}") for end in ("", "-guided")]
    said = f"With guidance, {_share(after)} of clips are flagged instead of {_share(before)} (by {name}, duplicates allowed)"
    if None in quality:
        return said + "."
    return (
        f"{said}, and {_share(quality[1])} of clips from held-out captions sound like their class instead of "
        f"{_share(quality[0])}."
    )


def unchanged(content: Mapping[str, Any], guided: str) -> bool:
    """Whether the clips of a guided way are those without guidance, bit for bit.

    >>> content = {"same_clips": {"a-k1": None, "a-k2": "a-k1", "a-k2-guided": "a-k1", "b": None, "b-guided": None}}
    >>> unchanged(content, "a-k2-guided"), unchanged(content, "b-guided")
    (True, False)
    """
    first = [content["same_clips"].get(way) or way for way in (guided, guided.removesuffix("-guided"))]
    return first[0] == first[1]


def _mean(content: Mapping[str, Any], metric: str, way: str) -> float | None:
    """Of all classes; None where it was not measured."""
    rows = content["quality"]
    return next((row["value"] for row in rows if (row["metric"], row["way"], row["bin"]) == (metric, way, "all")), None)


def _share(rate: float | None) -> str:
    return percent(rate, "an unknown share")
