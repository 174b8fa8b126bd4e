"""Scores, the table of several systems in its three forms, and the figure of the long tail."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.metrics.comparing import best_of
from auscult.metrics.embeddings import load_backend
from auscult.metrics.features import FeatureSet, embed_sounds
from auscult.metrics.glossary import BRACKETS, METRICS
from auscult.metrics.intervals import Interval
from auscult.metrics.longtail import long_tail
from auscult.metrics.measuring import FAMILIES, Task, measure
from auscult.metrics.panels import long_tail_csv, long_tail_panel, long_tail_svg, panel_markdown
from auscult.metrics.scoreboard import (
    FEW_SYSTEMS,
    board,
    format_score,
    legend,
    scoreboard_csv,
    scoreboard_markdown,
)
from auscult.metrics.scoreboard_page import scoreboard_html
from auscult.metrics.scores import Score, SystemResult

HOSTILE = "<b>|x` [a](b) *_$y$\n&amp; \\"


def fad(value: float, low: float | None = None, high: float | None = None, **facts) -> Score:
    facts = {"higher_is_better": False, "n_generated": 100, "n_reference": 240, **facts}
    return Score("fad", facts.pop("backend", "vggish/1(digest='ab')"), value, low, high, **facts)


def system(name: str, *scores: Score, **facts) -> SystemResult:
    return SystemResult(name, {score.key: score for score in scores}, **facts)


def several(count: int) -> list[SystemResult]:
    """Systems with a score of each kind: with brackets, in percent, refused, and one that only the first has."""
    return [
        system(
            HOSTILE if number == 1 else f"system {number}",
            fad(3.0 + number, 2.9 + number, 3.2 + number, floor=0.25, noise=30.0, silence=40.0),
            Score("clap_score", "clap/1()", 0.3, 0.28, 0.32, True, 0.35, 0.01, 0.0, 0.05 + 0.01 * number, 100, 240),
            Score.refused("fad_infinity", "vggish/1()", "100 frames are too few", n_generated=100, n_reference=240),
            Score("share_over_tau", "mel/1()", 0.1, 0.05, 0.2, False, n_generated=100, n_reference=900, note="Over tau = 3."),
            *([Score("is", "ast/1()", 7.0, 6.0, 8.0, True)] if number == 0 else []),
            facts={"counts": {"clips": 100 + number}, "policy": {"rate_hz": 16_000}},
            warnings=("3 clips are silent.",) if number < 2 else (),
        )
        for number in range(count)
    ]


# --- scores ---------------------------------------------------------------------------------------------------------


def test_json_round_trip() -> None:
    for result in several(3):
        again = SystemResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
        assert again == dataclasses.replace(result, facts=dict(result.facts))
        assert list(again.scores) == list(result.scores)


def test_intervals_without_ends_and_keys() -> None:
    score = Score.of("kl_sigmoid", "ast/1(weights='x')", Interval(0.5))
    assert (score.key, score.low, score.high, score.higher_is_better) == ("kl_sigmoid_ast", None, None, False)
    assert Score.of("verified_rate", "mel/1()", Interval(0.1, 0.0, 0.2)).key == "verified_rate"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"value": math.nan}, "fad_x: value should be finite, got nan; give None, and the reason"),
        ({"value": 1.0, "noise": math.inf}, "fad_x: noise should be finite"),
        ({"value": None}, "expected a value or the reason"),
        ({"value": 1.0, "reason": "too few"}, "expected a value or the reason"),
        ({"value": 1.0, "low": 0.5}, "both ends of its interval or none"),
        ({"value": 1.0, "low": 1.5, "high": 0.5}, "from its low to its high end, got 1.5 to 0.5"),
    ],
)
def test_scores_that_cannot_be_are_refused(fields, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Score("fad", "x", **fields)


def test_json_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="Score: unknown field 'vaule'"):
        Score.from_json({"metric": "fad", "backend": "x", "vaule": 1.0})
    with pytest.raises(ValueError, match="SystemResult: no field 'scores'"):
        SystemResult.from_json({"name": "a"})


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((1.2345, 1.104, 1.3612), ("1.23", "[1.10, 1.36]")),
        ((1234.5, 1100.0, 1400.0), ("1234", "[1100, 1400]")),  # half to even
        ((-0.0001, -0.12, 0.14), ("0.00", "[-0.12, 0.14]")),  # no minus before nothing
        ((0.5, 0.5, 0.5), ("0.500", "[0.500, 0.500]")),
        ((3.21e-9,), ("3.21e-09", "")),
        ((0.0,), ("0", "")),
        ((38.456,), ("38.5", "")),
    ],
)
def test_digits_follow_the_interval(numbers, expected) -> None:
    assert format_score(*numbers) == expected


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e4, 1e4), st.floats(1e-4, 1e3), st.floats(1e-4, 1e3))
def test_printed_ends_are_those_of_the_interval(value: float, down: float, up: float) -> None:
    text, interval = format_score(value, value - down, value + up)
    half = (down + up) / 2
    for printed, meant in zip([text, *interval[1:-1].split(", ")], (value, value - down, value + up), strict=True):
        # two digits of the half width: rounding hides at most a twentieth of it
        assert abs(float(printed) - meant) <= half / 20 + 0.5 * (half >= 10)


# --- the best -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=5), st.booleans())
def test_the_best_is_the_one_that_beats_every_other_interval(spans, higher: bool) -> None:
    scores = [fad(low + width / 2, low, low + width, higher_is_better=higher) for low, width in spans]
    winners = [
        place
        for place, one in enumerate(scores)
        if len(scores) > 1
        and all(one.low > other.high if higher else one.high < other.low for other in scores if other is not one)
    ]
    assert best_of(scores) == (winners[0] if winners else None)


def test_nothing_is_best_without_an_interval_a_side_or_a_rival() -> None:
    good, bad = fad(1.0, 0.9, 1.1), fad(5.0, 4.0, 6.0)
    assert best_of([bad, None, good]) == 2
    assert best_of([good, fad(5.0)]) is None
    assert best_of([good, None, Score.refused("fad", "x", "too few")]) is None
    assert best_of([dataclasses.replace(one, higher_is_better=None) for one in (good, bad)]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "vggish/1(digest='cd')"}, "unlike backends (a: vggish/1(digest='ab'), b: vggish/1(digest='cd'))"),
        ({"n_reference": 120}, "unequal numbers of reference clips (a: 240, b: 120)"),
        ({"n_generated": 150}, "changes with the number of generated clips (a: 100, b: 150)"),
        ({"settings": {"tau": 0.3}}, "measured with unlike tau (a: not known, b: 0.3)"),
        ({"n_reference_frames": 480}, "unequal numbers of reference frames (a: None, b: 480)"),
    ],
)
def test_what_was_not_measured_alike_has_no_best(change, message: str) -> None:
    alike = board([system("a", fad(1.0, 0.9, 1.1)), system("b", fad(5.0, 4.0, 6.0))])
    assert [cell.best for cell in alike.rows[0].cells] == [True, False]
    assert alike.footnotes == ()
    unlike = board([system("a", fad(1.0, 0.9, 1.1)), system("b", fad(5.0, 4.0, 6.0, **change))])
    assert not any(cell.best for cell in unlike.rows[0].cells)
    assert message in unlike.footnotes[unlike.rows[0].notes[0] - 1]


def test_unequal_references_are_named_once() -> None:
    """Of unequal clips the frames are unequal, too, which says no more."""
    small, large = ({"n_reference": n, "n_reference_frames": 9 * n} for n in (240, 120))
    table = board([system("a", fad(1.0, 0.9, 1.1, **small)), system("b", fad(5.0, 4.0, 6.0, **large))])
    assert [note for note in table.footnotes if "reference" in note] == [
        "Not comparable: unequal numbers of reference clips (a: 240, b: 120)."
    ]


@pytest.mark.parametrize(("metric", "comparable"), [("fad_per_clip", True), ("fad", False)])
def test_frames_that_one_system_does_not_know(metric: str, comparable: bool) -> None:
    """Frames a clip are then not known either, and frames are taken to go with the clips."""
    few = Score(metric, "x", 1.0, 0.9, 1.1, False, n_generated=100, n_generated_frames=900)
    many = Score(metric, "x", 5.0, 4.0, 6.0, False, n_generated=200)
    table = board([system("few", few), system("many", many)])
    assert table.rows[0].cells[0].best == comparable
    assert any("number of generated clips (few: 100, many: 200)" in note for note in table.footnotes) != comparable


def test_a_few_clips_more_or_less_do_not_matter() -> None:
    table = board([system("a", fad(1.0, 0.9, 1.1)), system("b", fad(5.0, 4.0, 6.0, n_generated=95))])
    assert table.rows[0].cells[0].best


@pytest.mark.parametrize(
    ("metric", "frames", "comparable"),
    [
        ("fad", (200, 2000), False),
        ("fd", (1000, 1050), True),
        ("kad", (200, 2000), True),  # unbiased, whatever the number
        ("precision", (200, 2000), True),  # a clip is the mean of its frames
        ("fad_per_clip", (200, 2000), False),
    ],
)
def test_frames_are_what_a_metric_of_frames_changes_with(metric: str, frames: tuple[int, int], comparable: bool) -> None:
    low, high = (
        Score(metric, "x", *ends, True, n_generated=100, n_generated_frames=count)
        for ends, count in zip(((1.0, 0.9, 1.1), (5.0, 4.0, 6.0)), frames, strict=True)
    )
    table = board([system("short", low), system("long", high)])
    assert table.rows[0].cells[1].best == comparable
    shown = ("2", "20") if metric == "fad_per_clip" else ("200", "2,000")
    assert any(f"(short: {shown[0]}, long: {shown[1]})" in note for note in table.footnotes) != comparable


@pytest.mark.parametrize("metric", ["fad_infinity", "fd_infinity"])
def test_an_extrapolation_of_few_clips_is_not_compared_with_one_of_many(metric: str) -> None:
    ends = {"few": (5.0, 4.0, 6.0, 64), "many": (1.0, 0.9, 1.1, 400)}
    table = board([system(name, Score(metric, "x", *three, False, n_generated=n)) for name, (*three, n) in ends.items()])
    assert not any(cell.best for cell in table.rows[0].cells)
    assert any("number of generated clips (few: 64, many: 400)" in note for note in table.footnotes)


def test_as_many_clips_of_another_length_are_not_compared_by_a_metric_of_frames(tmp_path: Path) -> None:
    """Two samples of one kind of noise, in clips of 2 s and of 8 s: the longer ones would be "better" by their length alone."""
    backend, rng = load_backend("logmel"), np.random.default_rng(0)

    def noises(count: int, duration_s: int) -> FeatureSet:
        made = 0.1 * rng.standard_normal((count, duration_s * 16_000)).astype(np.float32)
        return embed_sounds([(str(n), f"{duration_s}-{n}", one) for n, one in enumerate(made)], backend, cache=tmp_path)

    reference = noises(60, 4)
    family = next(family for family in FAMILIES if "fd" in family.metrics)
    short, long = (
        measure(Task(backend, noises(40, duration_s), reference, resamples=20), family, None, None, "logmel")["fd"]
        for duration_s in (2, 8)
    )
    assert (short.n_generated, short.n_generated_frames, short.n_reference_frames) == (40, 120, 420)
    assert (long.n_generated, long.n_generated_frames) == (40, 600)
    assert short.low > long.high
    table = board([system("2 s", short), system("8 s", long)])
    assert not any(cell.best for cell in table.rows[0].cells)
    assert "changes with the number of generated frames (2 s: 120, 8 s: 600)" in table.footnotes[0]
    assert SystemResult.from_json(system("a", short).to_json()).scores["fd_logmel"] == short
    row = next(csv.DictReader(io.StringIO(scoreboard_csv([system("a", short)]))))
    assert (row["n_generated_frames"], row["n_reference_frames"]) == ("120", "420")


# --- the table ------------------------------------------------------------------------------------------------------


def test_rows_notes_and_brackets() -> None:
    table = board(several(2))
    assert [row.key for row in table.rows] == [
        *("fad_vggish", "clap_score_clap", "fad_infinity_vggish", "is_ast", "share_over_tau")  # memorization comes last
    ]
    rows = {row.key: row for row in table.rows}
    assert table.brackets == tuple(BRACKETS)
    assert rows["fad_vggish"].brackets == ("0.250", "30.0", "40.0", "")
    assert rows["clap_score_clap"].brackets[3] == "0.0500 to 0.0600"  # each system's own pairs
    assert [table.footnotes[n - 1] for n in rows["share_over_tau"].notes] == ["Over tau = 3."]  # once, not in each cell
    assert rows["share_over_tau"].cells[0].value == "10.0 %"
    assert rows["share_over_tau"].backend == "mel"
    assert [table.footnotes[n - 1] for n in rows["is_ast"].cells[1].notes] == ["Not measured for this system."]
    assert {cell.value for cell in rows["fad_infinity_vggish"].cells} == {"-"}
    assert [table.footnotes[n - 1] for n in rows["fad_infinity_vggish"].cells[0].notes] == ["100 frames are too few."]


def test_legend_promises_an_interval_only_where_there_is_one() -> None:
    """About a biased value lies the spread of the draws, which need not hold the truth."""
    ends = (1.0, 0.9, 1.1)
    scores = [Score(metric, "x", *ends) for metric in ("fad", "fad_infinity", "is", "kad", "precision")]
    spread = "the range in which 95 % of other samples of this size would score; endlessly many clips may score outside it."
    assert f"in square brackets the 95 % interval, or by FAD and IS {spread}" in legend(board([system("a", *scores)]))
    assert f"in square brackets the 95 % interval, or by FAD {spread}" in legend(board([system("a", scores[1], scores[3])]))
    assert f"in square brackets {spread}" in legend(board([system("a", *scores[:3])]))
    assert "in square brackets the 95 % interval." in legend(board([system("a", *scores[3:], Score("fad", "x", 1.0))]))


def test_legend_says_what_each_bracket_is() -> None:
    text = legend(board(several(1)))
    assert "; ".join(f"{name}: {said}" for name, said in BRACKETS.items())[1:] in text  # capitals and all
    assert "Floor: real audio" in text
    assert "KL has 0" in text


def test_systems_need_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="two systems are called 'a'"):
        board([system("a", fad(1.0)), system("a", fad(2.0))])
    with pytest.raises(ValueError, match="at least one system"):
        scoreboard_csv([])


def markdown_rows(text: str) -> list[list[str]]:
    """Oracle: the cells of a GitHub table, which a bare pipe ends."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("count", [1, 2, FEW_SYSTEMS, FEW_SYSTEMS + 1])
def test_markdown_is_a_table_whatever_the_names(count: int) -> None:
    results = several(count)
    text = scoreboard_markdown(results)
    rows = markdown_rows(text)
    assert len({len(row) for row in rows}) == 1
    systems, metrics = count, 5
    if count <= FEW_SYSTEMS:
        assert (len(rows) - 2, len(rows[0])) == (metrics, 1 + systems + len(BRACKETS))
    else:
        assert (len(rows) - 2, len(rows[0])) == (systems + len(BRACKETS), 1 + metrics)
    assert "<b>" not in text
    assert "3.0" in text
    assert ("**" in text) == (count > 1)  # FAD 3.00 [2.90, 3.20] is apart from 4.00 [3.90, 4.20]
    notes = set(re.findall(r"<sup>(\d+)</sup>", text))
    assert notes == set(re.findall(r"^\[(\d+)\]", text, re.M))


def test_csv_holds_every_score_at_full_precision() -> None:
    results = several(3)
    rows = list(csv.DictReader(io.StringIO(scoreboard_csv(results))))
    assert len(rows) == sum(len(result.scores) for result in results)
    expected = [(result.name, score) for result in results for score in result.scores.values()]
    for row, (name, score) in zip(rows, expected, strict=True):
        assert row["system"] == name
        for column in ("value", "low", "high", *BRACKETS):
            assert (float(row[column]) if row[column] else None) == getattr(score, column)
        assert row["reason"] == (score.reason or "")


# --- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Oracle: what a browser would see of tables, links, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[int]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.add(tag)
        if tag not in {"meta", "br", "path", "use", "rect"}:
            self.open.append(tag)
        self.ids += [str(given["id"])] if given.get("id") else []
        self.links += [str(given["href"])] if tag == "a" else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append(0)
        elif tag in {"td", "th"}:
            self.tables[-1][-1] += int(given.get("colspan") or 1)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"meta", "br", "path", "use", "rect"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def tails() -> dict[str, object]:
    labels = [("common",), ("common",), ("rare",), ("rare",), ("unseen",)]
    frequency = {"common": 800, "rare": 3}
    return {
        "_a$b$": long_tail([0.4, 0.5, 0.2, 0.3, 0.1], labels, frequency),
        HOSTILE: long_tail([0.3, 0.6, 0.2, 0.1, 0.2], labels, frequency),
    }


@pytest.mark.parametrize("count", [1, 2, FEW_SYSTEMS + 1])
def test_page_is_whole_escaped_and_self_contained(count: int) -> None:
    results = several(count)
    card = {"warnings": ["The reference holds 4 duplicates."], "seed": 17, "config": {"metrics": ["fad", "kl"]}}
    text = scoreboard_html(results, card, [long_tail_panel(tails(), label="CLAP score")])
    page = Page(text)
    assert page.open == []
    for widths in page.tables:
        assert len(set(widths)) == 1  # every row of a table is as wide as the others
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    for said in ("The reference holds 4 duplicates.", "3 clips are silent.", "100 frames are too few.", "17", "16,000"):
        assert said in page.text
    for metric in ("fad", "clap_score", "share_over_tau"):
        assert METRICS[metric].explanation in page.text
    assert METRICS["kad"].explanation not in page.text
    assert page.text.count("3 clips are silent.") == 1  # of two systems in one sentence
    if count > 1:
        assert "<b>|x` [a](b)" in page.text
        assert "system 0 is best by 1" in page.text


def test_every_metric_is_explained_in_one_sentence() -> None:
    for metric in METRICS.values():
        assert metric.explanation.endswith(".")
        assert ". " not in metric.explanation


# --- the long tail's figure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", [False, True])
def test_figure_shows_counts_systems_and_empty_bins(narrow: bool) -> None:
    svg = long_tail_svg(tails(), label="CLAP score", narrow=narrow)
    root = ElementTree.fromstring(svg)
    texts = [(node.text or "").strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]
    joined = " ".join(texts)
    assert texts.count("no class") == 4  # of seven bins, three hold classes
    assert "a$b$" in joined  # neither a formula nor left out
    assert "<b>|x`" in joined
    columns = texts[texts.index("clips") - 7 : texts.index("clips")]
    assert columns == ["1", "2", "0", "0", "0", "0", "2"]
    assert svg == long_tail_svg(tails(), label="CLAP score", narrow=narrow)


def test_long_names_keep_both_ends_in_the_legend() -> None:
    one = next(iter(tails().values()))
    names = [f"runs/a-folder-with-a-long-name/and-another-one/seed-{seed}" for seed in (1, 2)]
    svg = long_tail_svg(dict.fromkeys(names, one), label="x", narrow=True)
    assert all(re.search(rf"runs/a-folder\S*…\S*seed-{seed}<", svg) for seed in (1, 2))


def test_wide_and_narrow_figures_share_no_id() -> None:
    panel = long_tail_panel(tails(), label="CLAP score")
    wide, narrow = (set(re.findall(r' id="([^"]+)"', svg)) for svg in (panel.wide, panel.narrow))
    assert wide
    assert not wide & narrow


def test_numbers_of_the_figure() -> None:
    panel = long_tail_panel(tails(), label="CLAP score")
    assert panel.head == ("training clips", "classes", "clips", "_a$b$", HOSTILE)
    rows = {row[0]: row[1:] for row in panel.rows}
    assert rows["0"] == ("1", "1", "0.100", "0.200")
    assert rows["30-49"] == ("0", "0", "-", "-")
    assert rows["500+"][2].startswith("0.45")
    assert "Fewer than 10 clips lie in 0, 1-9 and 500+" in panel.text


def test_long_tail_as_markdown_and_csv() -> None:
    results = tails()
    rows = markdown_rows(panel_markdown(long_tail_panel(results, label="CLAP score")))
    assert {len(row) for row in rows} == {5}
    assert rows[2] == ["0", "1", "1", "0.100", "0.200"]
    lines = list(csv.DictReader(io.StringIO(long_tail_csv(results))))
    assert len(lines) == 14
    expected = [(name, one) for name, result in results.items() for one in result.bins]
    for line, (name, one) in zip(lines, expected, strict=True):
        assert (line["system"], line["bin"]) == (name, one.name)
        for column in ("value", "low", "high", "below"):
            assert (float(line[column]) if line[column] else None) == getattr(one, column)


def test_unlike_bins_are_not_drawn_together() -> None:
    other = long_tail([0.1], [("a",)], {"a": 4}, edges=(5,))
    with pytest.raises(ValueError, match="unlike bins"):
        long_tail_svg({**tails(), "other": other}, label="x")
