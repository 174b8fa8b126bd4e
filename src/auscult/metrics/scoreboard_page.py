"""The page of an evaluation: the table, its figures, what each score is, and what all was computed from, in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ..inputs import listed
from ..report.rendering import render
from ..report.verification import wide_and_narrow
from .glossary import METRICS
from .panels import Panel
from .scoreboard import Board, board, legend
from .scores import SystemResult

_NOT_SETTINGS = ("warnings", "title", "systems", "kind")


def scoreboard_html(results: Sequence[SystemResult], card: Mapping[str, Any], figures: Sequence[Panel] = ()) -> str:
    """The page of one or several systems, self-contained and without scripts.

    Parameters
    ----------
    results
        The systems, in the order of the table.
    card
        How it was made, nested as JSON can hold it; shown as a table, except for ``warnings`` (sentences about all systems,
        shown on top), ``title`` (of the page), ``systems`` and ``kind``.
    figures
        Shown below the table.

    Raises
    ------
    ValueError
        There is no system, or two of one name.
    """
    table = board(results)
    told = dict.fromkeys(text for result in results for text in result.warnings)
    concerned = {text: [result.name for result in results if text in result.warnings] for text in told}
    own = [f"{listed(names)}: {text}" if len(results) > 1 else text for text, names in concerned.items()]
    known = {row.key: METRICS[metric] for row in table.rows if (metric := _metric_of(row.key, results)) in METRICS}
    return render(
        "scoreboard.html",
        card={"warnings": [*card.get("warnings", ()), *own]},
        title=str(card.get("title", "Evaluation of generated audio")),
        verdict=sentence(table, results),
        review_warnings=(),
        table=table,
        legend=legend(table, best="On green"),
        explanations=list(dict.fromkeys((one.name, one.explanation) for one in known.values())),
        panels=[(one, Markup(wide_and_narrow(one.wide, one.narrow))) for one in figures],
        facts=facts_table(results),
        settings=list(flattened({key: value for key, value in card.items() if key not in _NOT_SETTINGS}).items()),
    )


def sentence(table: Board, results: Sequence[SystemResult]) -> str:
    """What the page shows, in a sentence or two."""
    given = {key for result in results for key, score in result.scores.items() if score.value is not None}
    if not given:
        return f"{listed(list(table.systems))}: no score could be given; the footnotes say why."
    if len(table.systems) == 1:
        share = f"{len(given)} of {len(table.rows)}" if len(given) < len(table.rows) else str(len(given))
        return f"{table.systems[0]}: {share} score{'' if share == '1' else 's'}."
    best = {name: [row.metric.name for row in table.rows if row.cells[place].best] for place, name in enumerate(table.systems)}
    told = [f"{name} is best by {len(metrics)}" for name, metrics in best.items() if metrics]
    apart = sum(map(len, best.values()))
    if not told:
        return f"{len(table.systems)} systems, {len(table.rows)} scores: by none of them is one system surely the best."
    rest = len(table.rows) - apart
    return f"{', '.join(told)} of {len(table.rows)} scores" + (f"; the other {rest} tell no best apart." if rest else ".")


def facts_table(results: Sequence[SystemResult]) -> list[tuple[str, list[str]]]:
    """What each system was computed from: (name of the fact, one text for each system, or a single one if all agree)."""
    flat = [flattened(result.facts) for result in results]
    rows = []
    for name in dict.fromkeys(name for facts in flat for name in facts):
        texts = [facts.get(name, "") for facts in flat]
        rows.append((name, texts[:1] if len(set(texts)) == 1 else texts))
    return rows


def flattened(content: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Nested facts as one level of texts.

    Examples
    --------
    >>> flattened({"counts": {"clips": 12000, "skipped": 0}, "seeds": [1, 2], "gpu": None})
    {'counts, clips': '12,000', 'counts, skipped': '0', 'seeds': '1, 2', 'gpu': 'none'}
    """
    flat: dict[str, str] = {}
    for key, value in content.items():
        name = f"{above}, {key}" if above else str(key)
        if isinstance(value, Mapping):
            flat |= flattened(value, name) if value else {name: "none"}
        else:
            flat[name.replace("_", " ")] = _text(value)
    return flat


def _text(value: Any) -> str:
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _metric_of(key: str, results: Sequence[SystemResult]) -> str:
    return next(result.scores[key].metric for result in results if key in result.scores)
