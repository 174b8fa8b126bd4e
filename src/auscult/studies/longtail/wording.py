"""A long-tail study in words: what its rows are called, and what it found, hoped for or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..rates import percent
from .arms import AUDIO, BOTH, ID, NAMES, ON_HELD_OUT, ON_TRAINING, PLAIN
from .results import OWN_CLASS

LEVEL = 0.05  # at most this p-value is told as a change


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
    """Of all classes, more clips than without pairs, fewer, or not to be told; behind that the bins, which only explore."""
    rows = {
        row["bin"]: row
        for row in content["quality"]
        if row["metric"] == OWN_CLASS and row["model"] == BOTH and row["k"] == k and not row["guided"] and not row["closed"]
    }
    gains = {name: row["beyond_plain"] for name, row in rows.items() if row["value"] is not None}
    if "all" not in gains:
        return ""
    whole = gains.pop("all")
    if word := verdict(whole):
        said = f"Beside {k} pairs, {word} clips sound like their class ({_points(whole)})"
    else:
        without = _mean(content, OWN_CLASS, f"{PLAIN}-{ON_HELD_OUT}")
        said = (
            f"Whether pairs help clips to sound like their class cannot be told: {_share(rows['all']['value'])} do beside {k} "
            f"pairs, {_share(without)} without any, and {_share(content['chance'])} would by chance"
        )
    found = [f"{word} of {_classes(name)} ({_points(gain)})" for name, gain in gains.items() if (word := verdict(gain))]
    bins = (
        f"bin by bin, which explores and tests nothing, {' and '.join(found)}"
        if found
        else "no bin of frequency tells a difference by itself"
    )
    return f"{said}; {bins}."


def _points(gain: Mapping[str, Any]) -> str:
    """A difference of two shares.

    >>> _points({"value": -0.123})
    '-12 points'
    """
    return f"{100 * gain['value']:+.0f} points"


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
        seen = next((one["rate"] for one in content["sensitivity"] if one["descriptor"] == row["descriptor"]), None)
        return (
            f"The audit by {row['descriptor']} flags no clip of {copied['clips']:,} as a copy of a pair that was shown "
            f"(95 %: at most {_share(copied['high'])}); of real clips behind the models' codec it flags {_share(seen)}."
        )
    beyond = copied["low"] > by_itself["high"]
    return (
        f"The audit by {row['descriptor']} flags {_share(copied['rate'])} of clips as copies of a pair that was shown, "
        f"{'beyond' if beyond else 'which cannot be told from'} the {_share(by_itself['rate'])} that match these pairs by "
        "themselves."
    )


def _said_of_guidance(content: Mapping[str, Any], k: int) -> str:
    """What guidance changed beside the pairs at ``k``: in copies of them, and in how clips sound. Both are of one model."""
    rows = {row["way"]: row for row in content["guided"]}
    made, held_out = (rows[f"{BOTH}-{prompts}-k{k}-guided"] for prompts in (ON_TRAINING, ON_HELD_OUT))
    beside = f"Beside {k} pairs, guidance"
    if not any(row["fired"]["flagged"] for row in (made, held_out)):
        return f"{beside} never acted."
    acted = " and ".join(
        f"{row['fired']['flagged']:,} of {row['fired']['clips']:,} clips from {row['prompts']} captions"
        for row in (made, held_out)
    )
    if all(unchanged(content, row["way"]) for row in (made, held_out)):
        return f"{beside} acted on {acted}, and changed none."
    told = [_said_of_changes(made["changed"]), _said_of_change_in_quality(held_out["beyond_unguided"])]
    return f"{beside} acted on {acted}: {', and '.join(filter(None, told))}."


def _said_of_changes(changed: Mapping[str, Mapping[str, Any] | None]) -> str:
    """Fewer copies of what was shown, more, or not to be told, by the first audit that can tell."""
    found = next(((name, one) for name, one in changed.items() if one is not None), None)
    if found is None:
        return "of copies nothing can be said"
    name, one = found
    counts = f"{one['no_longer']} no longer flagged, {one['only_now']} only now, by {name}, p = {one['p_value']:.2g}"
    if one["p_value"] > LEVEL or sum(net is not None for net in one["by_seed"]) < 2:
        return f"whether there are fewer copies of what was shown cannot be told ({counts})"
    return f"there are {'fewer' if one['no_longer'] > one['only_now'] else 'more'} copies of what was shown ({counts})"


def _said_of_change_in_quality(gain: Mapping[str, Any]) -> str:
    if gain["value"] is None:
        return ""
    if word := verdict(gain):
        return f"{word} clips sound like their class ({_points(gain)})"
    ends = f"{100 * gain['low']:+.0f} to {100 * gain['high']:+.0f} points"
    return f"whether more or fewer sound like their class cannot be told (95 %: {ends})"


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
