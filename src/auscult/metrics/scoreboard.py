"""Several systems side by side: the table of their scores, and that table as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..inputs import listed
from .comparing import best_of, unlike
from .glossary import BRACKETS, Metric, metric_of
from .scores import Score, SystemResult

FEW_SYSTEMS = 4  # up to here metrics are the rows, since there are more of those, and names are longer than numbers
ARROWS = {True: "↑", False: "↓", None: ""}
NONE = "-"
NO_BRACKET = (
    "Where a bracket is missing (-), the score has none: half of the reference is too few clips for it, noise and silence are "
    "too much alike throughout, its clips are not paired, or it comes from an audit"
)
CSV_COLUMNS = (
    *("system", "metric", "backend", "value", "low", "high", "higher_is_better", *BRACKETS),
    *("n_generated", "n_reference", "n_generated_frames", "n_reference_frames", "reason", "note", "settings"),
)


@dataclass(frozen=True)
class Cell:
    """A system's score as the tables show it: value, interval, whether it is the best, and numbers of footnotes."""

    value: str
    interval: str = ""
    best: bool = False
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Row:
    """A metric over all systems; ``backend`` is the short name, ``brackets`` as in ``Board.brackets``."""

    key: str
    metric: Metric
    arrow: str
    backend: str
    cells: tuple[Cell, ...]
    brackets: tuple[str, ...]
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Board:
    """The table before it is written as Markdown or HTML.

    Attributes
    ----------
    systems
        Names, in the order given.
    rows
        Metrics of quality, then those of memorization.
    brackets
        Those that any score has, of ``BRACKETS``.
    footnotes
        Number 1 first: why a score is missing, and what to know of one.
    """

    systems: tuple[str, ...]
    rows: tuple[Row, ...]
    brackets: tuple[str, ...]
    footnotes: tuple[str, ...]

    @property
    def metrics_as_rows(self) -> bool:
        """Whether metrics are the rows of the written table, else systems are."""
        return len(self.systems) <= FEW_SYSTEMS


@dataclass
class _Footnotes:
    """Sentences by number, each once."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        """The number of a sentence, a new one if it is new."""
        text = text[0].upper() + text[1:].rstrip(".") + "."
        if text not in self.texts:
            self.texts.append(text)
        return 1 + self.texts.index(text)


def board(results: Sequence[SystemResult]) -> Board:
    """The table of several systems.

    The best value of a metric is marked only where the interval of its system overlaps that of no other, there are two
    systems at least, and all were measured alike: with the same backend and settings, against as many reference clips and
    frames, and, where the metric depends on it (``Metric.changes_with``), with about as many generated clips or frames. Else
    a footnote says what is unlike.

    Raises
    ------
    ValueError
        There is no system, or two of one name.
    """
    names = tuple(result.name for result in results)
    if not names:
        raise ValueError("expected at least one system to show, got none")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two systems are called {twice!r}; give each its own name")
    keys = list(dict.fromkeys(key for result in results for key in result.scores))
    keys.sort(key=lambda key: _any(results, key).memorization)  # stable: else the order given
    brackets = tuple(
        name for name in BRACKETS if any(getattr(s, name) is not None for result in results for s in result.scores.values())
    )
    footnotes = _Footnotes()
    rows = tuple(_row(key, results, brackets, footnotes) for key in keys)
    return Board(names, rows, brackets, tuple(footnotes.texts))


def scoreboard_markdown(results: Sequence[SystemResult]) -> str:
    """The table as Markdown (GitHub's tables), with legend and footnotes; names are escaped.

    Up to ``FEW_SYSTEMS`` systems, metrics are the rows and the brackets the last columns; beyond, systems are the rows and
    the brackets the last rows.
    """
    table = board(results)
    head = ["metric", *map(escaped, table.systems), *(f"*{name}*" for name in table.brackets)]
    lines = [[_heading(row), *map(_cell, row.cells), *(text or NONE for text in row.brackets)] for row in table.rows]
    if not table.metrics_as_rows:
        head, *lines = (list(column) for column in zip(head, *lines, strict=True))
        head[0] = "system"
    text = markdown_lines(head, lines)
    notes = [f"[{number}] {escaped(note)}" for number, note in enumerate(table.footnotes, 1)]
    return "\n".join([*text, "", legend(table), *(f"\n{note}" for note in notes)]) + "\n"


def scoreboard_csv(results: Sequence[SystemResult]) -> str:
    """One line for each score of each system, at full precision; empty where there is none."""
    board(results)  # its checks
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in results:
        for score in result.scores.values():
            facts = {"system": result.name, **score.to_json()}
            facts["settings"] = "; ".join(f"{name}: {value}" for name, value in score.settings.items())
            writer.writerow(["" if facts[column] is None else facts[column] for column in CSV_COLUMNS])
    return text.getvalue()


def legend(table: Board, *, best: str = "Bold") -> str:
    """What arrows, square brackets, the mark of the best and the bracket columns mean, in one line of plain text."""
    parts = [f"↑ higher is better, ↓ lower is better; in square brackets {_ends(table)}."]
    if len(table.systems) > 1:
        parts.append(f"{best}: best, by an interval that overlaps no other system's.")
    if table.brackets:
        text = "; ".join(f"{name}: {BRACKETS[name]}" for name in table.brackets)
        parts.append(f"{text[0].upper()}{text[1:]}.")
    if table.brackets and any(not text for row in table.rows for text in row.brackets):
        parts.append(f"{NO_BRACKET}.")
    return " ".join(parts)


def _ends(table: Board) -> str:
    """What the numbers in square brackets are, of the metrics that are in the table."""
    drawn = [row for row in table.rows if any(cell.interval for cell in row.cells)]
    names = list(dict.fromkeys(row.metric.name.partition(",")[0] for row in drawn if row.metric.spread))
    spread = "the range in which 95 % of other samples of this size would score; endlessly many clips may score outside it"
    if not names or all(row.metric.spread for row in drawn):
        return spread if names else "the 95 % interval"
    return f"the 95 % interval, or by {listed(names)} {spread}"


def format_score(
    value: float, low: float | None = None, high: float | None = None, *, percent: bool = False
) -> tuple[str, str]:
    """Value and interval in as many decimals as the interval's half width has in two digits; without one, in three digits.

    Examples
    --------
    >>> format_score(1.2345, 1.104, 1.3612)
    ('1.23', '[1.10, 1.36]')
    >>> format_score(0.0523)
    ('0.0523', '')
    >>> format_score(0.25, 0.1, 0.4, percent=True)
    ('25 %', '[10, 40]')
    """
    scale, unit = (100.0, " %") if percent else (1.0, "")
    half = 0.0 if low is None or high is None else scale * (high - low) / 2
    shown = [scale * number for number in (value, low, high) if number is not None]
    if half > 0:
        decimals = max(0, 1 - math.floor(math.log10(half)))
    else:
        largest = max(map(abs, shown))
        decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    texts = [_number(number, decimals) for number in shown]
    return texts[0] + unit, f"[{texts[1]}, {texts[2]}]" if len(texts) == 3 else ""


def _number(value: float, decimals: int) -> str:
    if decimals > 6:  # zeros that nobody counts; between ends that all but coincide, three digits tell as much
        return f"{value:.2e}" if 0 < abs(value) < 1e-4 else f"{value:.3g}"
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


# --- rows -----------------------------------------------------------------------------------------------------------


def _any(results: Sequence[SystemResult], key: str) -> Metric:
    """What the scores of a key are of."""
    return metric_of(next(result.scores[key] for result in results if key in result.scores).metric)


def _row(key: str, results: Sequence[SystemResult], brackets: Sequence[str], footnotes: _Footnotes) -> Row:
    scores = [result.scores.get(key) for result in results]
    found = [score for score in scores if score is not None]
    metric = metric_of(found[0].metric)
    backend = found[0].backend.partition("/")[0]
    odd = unlike(metric, {result.name: score for result, score in zip(results, scores, strict=True)})
    common = {score.note for score in scores if score is not None} if None not in scores and len(scores) > 1 else set()
    own = [found[0].note] if len(common) == 1 and found[0].note else []
    notes = tuple(footnotes.number(text) for text in (*own, *odd))
    best = None if odd else best_of(scores)
    cells = tuple(_cell_of(score, metric, place == best, bool(own), footnotes) for place, score in enumerate(scores))
    texts = tuple(_bracket([getattr(score, name) for score in found], metric) for name in brackets)
    return Row(key, metric, ARROWS[found[0].higher_is_better], backend, cells, texts, notes)


def _cell_of(score: Score | None, metric: Metric, best: bool, noted: bool, footnotes: _Footnotes) -> Cell:
    if score is None:
        return Cell(NONE, notes=(footnotes.number("Not measured for this system."),))
    texts = [text for text in (score.reason, "" if noted else score.note) if text]
    notes = tuple(footnotes.number(text) for text in texts)
    if score.value is None:
        return Cell(NONE, notes=notes)
    value, interval = format_score(score.value, score.low, score.high, percent=metric.percent)
    return Cell(value, interval, best, notes)


def _bracket(values: Iterable[float | None], metric: Metric) -> str:
    """One bracket over all systems: a number, or from the least to the largest where they differ."""
    texts = list(dict.fromkeys(format_score(v, percent=metric.percent)[0] for v in sorted(v for v in values if v is not None)))
    return texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}" if texts else ""


# --- Markdown -------------------------------------------------------------------------------------------------------


def _heading(row: Row) -> str:
    parts = [escaped(row.metric.name), f"({escaped(row.backend)})" if row.backend else "", row.arrow]
    return " ".join(filter(None, parts)) + _marks(row.notes)


def _cell(cell: Cell) -> str:
    text = " ".join(filter(None, (cell.value, cell.interval)))
    return (f"**{text}**" if cell.best else text) + _marks(cell.notes)


def _marks(notes: Sequence[int]) -> str:
    return "".join(f" <sup>{number}</sup>" for number in notes)


def markdown_lines(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """A table of texts that are Markdown already, the first column to the left and the others to the right."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(line)} |" for line in (head, ruler, *lines)]


def escaped(text: str) -> str:
    """Text that means only itself in a Markdown table."""
    plain = " ".join(text.split())
    marked = re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", plain.replace("&", "&amp;"))
    return marked.replace("<", "&lt;").replace(">", "&gt;")
