"""Scores of quality over the models of an arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t as student

Row = dict[str, Any]
QUALITY_INTERVAL = (
    "Scores of quality are means over the models; their intervals are Student's, of the mean over the models, and with one "
    "model those of its clips drawn again and again. A distance's interval ends at 0. Where a model has no score, the others' "
    "mean is shown, with how many they are."
)
DISTANCES = ("fd_", "fad_", "kad_")


def mean_scores(scores: Sequence[Mapping[str, Row]]) -> Row:
    """Means over the models that have a score, see ``QUALITY_INTERVAL``."""
    found: Row = {}
    for key in dict.fromkeys(key for one in scores for key in one):
        known = [one[key] for one in scores if key in one and one[key]["value"] is not None]
        if not known:
            continue
        values = [one["value"] for one in known]
        mean, low, high = float(np.mean(values)), known[0]["low"], known[0]["high"]
        if len(values) > 1:
            half = float(student.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
            low, high = mean - half, mean + half
            low = max(low, min(0.0, mean)) if key.startswith(DISTANCES) else low  # an estimate may be below 0, no distance is
        each = [one[key]["value"] if key in one else None for one in scores]
        found[key] = {"value": mean, "low": low, "high": high, "models": len(values), "by_seed": each}
    return found


def distance_key(rows: Sequence[Row]) -> str | None:
    """The distance to real sound that all rows have: FD, or else KAD."""
    fd = quality_key(rows, lambda key: key.startswith(DISTANCES[:2]))
    return fd or quality_key(rows, lambda key: key.startswith(DISTANCES[2:]))


def quality_key(rows: Sequence[Row], wanted: Callable[[str], bool]) -> str | None:
    """The first score of quality that all rows have, of those that are wanted."""
    keys = [key for key in (rows[0]["quality"] if rows else {}) if all(key in row["quality"] for row in rows)]
    return next((key for key in keys if wanted(key)), None)


def quality_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Scores of quality that any arm has."""
    return list(dict.fromkeys(key for row in rows for key in row["quality"]))
