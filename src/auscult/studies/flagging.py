"""What an audit says of each clip by itself, and rates of that over models."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ..audit import Audit
from .config import MATCH, StudyAudits
from .rates import percent, pooled

Row = dict[str, Any]
SEEN = 0.8  # of training clips behind the codec; of a rule that flags fewer, low rates say little
SENSITIVITY_IS = (
    "Sensitivity: the prompts' own training clips, through the model's codec and vocoder and nothing else. They are about as "
    "faithful as the model can be; what the rule misses of these it would miss of its copies."
)


def is_flagged(audits: StudyAudits, name: str, row: Mapping[str, Any]) -> bool:
    """Whether a row of an audit's queries is flagged: by the level, or where a threshold is given, by that.

    Examples
    --------
    >>> row = {"p_value": 0.02, "flagged": True}
    >>> is_flagged(StudyAudits(level=0.01), "mel", row), is_flagged(StudyAudits(tau=("mel=0.5",)), "mel", row)
    (False, True)
    """
    if name in audits.taus():
        return bool(row["flagged"])
    return row["p_value"] is not None and row["p_value"] <= audits.level


def sensitivity_of(audits: StudyAudits, name: str, audit: Audit) -> Row:
    """:func:`counted` of an audit of training clips behind a codec, one of a prompt each."""
    rows, null = audit.queries().to_pylist(), audit.card["calibration"]["null_clips"]
    return counted(audits, name, rows, {row["query_id"]: row["query_id"] for row in rows}, null)


def sees_little(what: str, share: float) -> str:
    """What a reader has to know of an audit (``what``) that flags so small a share of training clips behind a codec."""
    return (
        f"{what}: only {percent(share)} of the training clips that went through the model's codec are flagged. What the rule "
        "misses of these it would miss of copies, so that a low rate says little."
    )


def is_undecided(audits: StudyAudits, name: str, null_clips: int) -> bool:
    """Whether there are too few null clips for the level, so that nothing could be flagged."""
    return name not in audits.taus() and audits.level * (null_clips + 1) < 1


def is_matched(audits: StudyAudits, name: str) -> bool:
    """Whether as many are flagged as by another descriptor: the number of a folder is then that one's, and says nothing new."""
    return str(audits.taus().get(name)).startswith(MATCH)


def counted(
    audits: StudyAudits, name: str, rows: Iterable[Mapping[str, Any]], prompt_of: Mapping[str, str], null_clips: int
) -> Row:
    """How many of these rows of an audit's queries are flagged, and of how many prompts they are.

    Returns
    -------
    dict
        ``flagged``, ``compared``, ``prompts``, ``undecided``.
    """
    rows = [row for row in rows if row["score"] is not None]
    return {
        "flagged": sum(is_flagged(audits, name, row) for row in rows),
        "compared": len(rows),
        "prompts": len({prompt_of[row["query_id"]] for row in rows}),
        "undecided": is_undecided(audits, name, null_clips),
    }


def rate_of(found: Iterable[Row | None]) -> Row:
    """The rate of several models' :func:`counted`, of those that could be decided; no rate where none could."""
    known = [one for one in found if one]
    decided = [one for one in known if not one["undecided"]]
    rate = asdict(pooled([(one["flagged"], one["compared"], one["prompts"]) for one in decided or known]))
    return rate if decided else {**rate, "rate": None, "low": None, "high": None}


def by_seed(found: Iterable[Row]) -> list[float | None]:
    """The rate of each model; None where it could not be decided."""
    return [one["flagged"] / one["compared"] if one["compared"] and not one["undecided"] else None for one in found]


def listed(found: Iterable[Row]) -> int | None:
    """How many clips the audits' own lists have, of the models of :func:`rate_of`; None where none could be decided."""
    decided = [one["listed"] for one in found if not one["undecided"]]
    return sum(decided) if decided else None


def own_nearest(rows: Iterable[Mapping[str, Any]], prompt_of: Mapping[str, str]) -> int:
    """Of how many rows of an audit's queries the nearest training clip is that of their prompt.

    Examples
    --------
    >>> rows = [{"query_id": "0", "reference_id": "a"}, {"query_id": "1", "reference_id": "a"}]
    >>> own_nearest(rows, {"0": "a", "1": "b"})
    1
    """
    return sum(row["reference_id"] == prompt_of[row["query_id"]] for row in rows)


def too_few_null_clips(audits: StudyAudits, name: str, null_clips: int) -> str:
    """What a reader has to know where nothing could be flagged.

    Examples
    --------
    >>> too_few_null_clips(StudyAudits(level=0.03), "mel", 20)
    'mel: 20 null clips are too few to tell what 3 % of them score; it takes 33, or a higher [audits] level. Nothing can be flagged.'
    """  # noqa: E501 - a sentence
    least = math.ceil(1 / audits.level - 1e-9) - 1
    return (
        f"{name}: {null_clips:,} null clips are too few to tell what {percent(audits.level)} of them score; it takes "
        f"{least:,}, or a higher [audits] level. Nothing can be flagged."
    )
