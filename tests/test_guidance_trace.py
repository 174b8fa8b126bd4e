"""The trace of guidance: what goes in comes out, sums agree with loops over arrays, and the figure shows the rows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.errors import TableError
from auscult.guidance.trace import Trace, TraceRow

STEPS = 20
numbers = st.floats(allow_nan=False) | st.none()
texts = st.text(st.characters(codec="utf-8"), max_size=8)
facts = st.dictionaries(texts, st.booleans() | st.integers(-9, 9) | st.floats(-1e9, 1e9) | texts | st.none(), max_size=3)


def curves(samples: int, *, strength: float, seed: int = 0) -> Trace:
    """Similarities that rise to about 0.9, or, once over the threshold, are pushed back."""
    rng = np.random.default_rng(seed)
    trace = Trace()
    goal = rng.uniform(0.2, 0.95, samples)
    similarity = np.zeros(samples)
    for step in range(STEPS):
        progress = step / (STEPS - 1)
        threshold = 0.4 + 0.1 * progress**2
        similarity += 0.25 * (goal * progress**0.5 - similarity) + rng.normal(0, 0.01, samples)
        fired = similarity > threshold
        sigma = math.inf if step == 0 else 10.0 / step
        rows = [
            TraceRow(
                *(0, step, STEPS, 1000.0 - step, sigma, 1 / (1 + sigma**2), sample),
                similarity=float(similarity[sample]),
                neighbor=f"clip-{sample:03d}",
                neighbor_caption="a dog barks",
                threshold=threshold,
                fired=bool(fired[sample]),
                scale=7.0,
                s1=2.0 * bool(fired[sample]),
                text_norm=float(goal[sample]),
                reason="" if fired[sample] else "below the threshold",
            )
            for sample in range(samples)
        ]
        trace.add(rows)
        similarity = np.where(fired, similarity - strength * (similarity - threshold), similarity)
    return trace


# --- rows -------------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, st.booleans(), texts, texts | st.none(), facts), max_size=6))
def test_a_trace_survives_the_disk(tmp_path_factory: Any, drawn: list[Any]) -> None:
    trace = Trace()
    for step, (similarity, norm, fired, reason, neighbor, said) in enumerate(drawn):
        row = TraceRow(0, step, 9, 1.5, math.inf, 0.0, 3, similarity, neighbor, reason, norm, fired, reason=reason, facts=said)
        trace.add([row])
    back = Trace.read(trace.write(tmp_path_factory.mktemp("trace") / "trace.parquet"))
    assert back.rows == trace.rows
    assert back.to_records() == trace.to_records()


def test_a_table_has_one_typed_column_for_each_field() -> None:
    empty, full = Trace().to_table(), curves(2, strength=0.0).to_table()
    assert empty.schema == full.schema  # also where a column is None throughout
    assert full.num_rows == 2 * STEPS
    assert full.schema.field("similarity").type == pa.float64() and full.schema.field("fired").type == pa.bool_()
    assert full["gradient_norm"].null_count == full.num_rows


def test_rows_are_added_once_and_all_or_none() -> None:
    trace = curves(2, strength=0.0)
    rows = trace.rows
    fresh = replace(rows[0], call=1)
    for wrong in ([fresh, rows[-1]], [fresh, fresh]):
        with pytest.raises(ValueError, match="one row for each step and sample"):
            trace.add(wrong)
        assert trace.rows == rows
    trace.add(iter([fresh]))
    assert trace.rows == (*rows, fresh) and len(trace) == len(rows) + 1
    with pytest.raises(AttributeError):
        trace.rows[0].fired = True  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    [
        {"similarity": np.float32(0.5)},
        {"fired": np.bool_(True)},
        {"sample": np.int64(1)},
        {"neighbor": 7},
        {"facts": {"open": np.float32(1.0)}},
    ],
)
def test_values_of_arrays_are_refused_before_they_cannot_be_written(change: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(change.get("facts", change)))):
        Trace().add([replace(TraceRow(0, 0, 1, 0.0, 1.0, 0.5, 0), **change)])


def test_what_is_no_trace_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("step,similarity\n")
    with pytest.raises(TableError, match="cannot be read as Parquet"):
        Trace.read(tmp_path / "text.parquet")
    table = curves(1, strength=0.0).to_table()
    pq.write_table(table.drop_columns(["threshold"]), tmp_path / "less.parquet")
    with pytest.raises(TableError, match="threshold"):
        Trace.read(tmp_path / "less.parquet")
    pq.write_table(table.append_column("later", pa.array([1] * STEPS)), tmp_path / "more.parquet")
    assert Trace.read(tmp_path / "more.parquet").to_table() == table


# --- summaries --------------------------------------------------------------------------------------------------------


def test_a_summary_is_what_loops_over_arrays_find() -> None:
    trace = curves(6, strength=0.8)
    similarity = np.array([row.similarity for row in trace.rows]).reshape(STEPS, 6)
    fired = np.array([row.fired for row in trace.rows]).reshape(STEPS, 6)
    assert 0 < fired.any(axis=0).sum() < 6
    found = trace.summary()
    assert (found.calls, found.samples, found.steps, found.looked_at) == (1, 6, STEPS, 1.0)
    assert found.fired_samples == fired.any(axis=0).sum() and found.fired_share == fired.any(axis=0).mean()
    assert found.fired_steps == pytest.approx(fired.sum(axis=0).mean())
    assert found.first_similarity == pytest.approx(similarity[0].mean())
    assert found.last_similarity == pytest.approx(similarity[-1].mean())
    assert found.highest_similarity == similarity.max() and found.highest_last_similarity == similarity[-1].max()
    assert found.reasons == (("below the threshold", int((~fired).sum())),)
    for sample, one in enumerate(trace.samples()):
        assert (one.sample, one.steps, one.fired_steps) == (sample, STEPS, fired[:, sample].sum())
        assert (one.neighbor, one.highest_similarity) == (f"clip-{sample:03d}", similarity[:, sample].max())


def test_the_order_of_rows_changes_no_summary() -> None:
    trace, shuffled = curves(4, strength=0.8), Trace()
    shuffled.add([trace.rows[place] for place in np.random.default_rng(1).permutation(len(trace))])
    assert shuffled.rows != trace.rows
    assert shuffled.summary() == trace.summary() and shuffled.samples() == trace.samples()


def test_permuting_the_batch_permutes_the_samples() -> None:
    trace, order = curves(4, strength=0.8), [2, 0, 3, 1]
    moved = Trace()
    moved.add([replace(row, sample=order[row.sample]) for row in trace.rows])
    assert [replace(moved.samples()[order[one.sample]], sample=one.sample) for one in trace.samples()] == trace.samples()


def test_steps_that_were_not_looked_at_count_as_steps_only() -> None:
    trace = Trace()
    seen = [None, 0.5, math.nan, 0.9, 0.7, None]
    trace.add([TraceRow(0, step, 6, 0.0, 1.0, 0.5, 0, value, f"n{step}") for step, value in enumerate(seen)])
    trace.add([TraceRow(1, 0, 6, 0.0, 1.0, 0.5, 0, reason="no references")])
    first, second = trace.samples()
    assert (first.steps, first.first_similarity, first.last_similarity) == (6, 0.5, 0.7)
    assert (first.highest_similarity, first.neighbor) == (0.9, "n3")
    assert (second.first_similarity, second.highest_similarity, second.neighbor) == (None, None, None)
    assert (trace.summary().calls, trace.summary().samples, trace.summary().steps) == (2, 2, 7)
    assert trace.summary().looked_at == pytest.approx(3 / 7)
    assert trace.summary().reasons == (("no references", 1),)


def test_an_empty_trace_has_a_summary_of_nothing() -> None:
    found = Trace().summary()
    assert (found.samples, found.fired_share, found.looked_at, found.first_similarity) == (0, 0.0, 0.0, None)


# --- the figure -------------------------------------------------------------------------------------------------------


def line_through(axes: Any, steps: Any, values: Any) -> Any:
    """The only line of these axes that goes through exactly these points."""
    found = [line for line in axes.lines if np.array_equal(line.get_xydata(), np.column_stack([steps, values]))]
    assert len(found) == 1
    return found[0]


def of_sample(trace: Trace, sample: int) -> list[TraceRow]:
    return [row for row in trace.rows if row.sample == sample]


def test_lines_are_the_rows_and_marks_the_open_gate() -> None:
    trace, plain = curves(3, strength=0.8), curves(3, strength=0.0)
    figure = trace.plot(plain)
    for axes, one in zip(figure.axes, (trace, plain), strict=True):
        line_through(axes, range(STEPS), [row.threshold for row in of_sample(one, 0)])
        for sample in range(3):
            rows = of_sample(one, sample)
            line_through(axes, range(STEPS), [row.similarity for row in rows])
            if fired := [row for row in rows if row.fired]:
                line_through(axes, [row.step for row in fired], [row.similarity for row in fired])
    colors = [
        line_through(axes, range(STEPS), [row.similarity for row in of_sample(one, 1)]).get_color()
        for axes, one in zip(figure.axes, (trace, plain), strict=True)
    ]
    assert colors[0] == colors[1]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_beyond_eight_the_nearest_have_lines_and_the_rest_are_a_band() -> None:
    trace = curves(11, strength=0.0)
    figure = trace.plot()
    ranked = sorted(trace.samples(), key=lambda one: -(one.highest_similarity or 0))
    for one in ranked[:8]:
        line_through(figure.axes[0], range(STEPS), [row.similarity for row in of_sample(trace, one.sample)])
    rest = np.array([[row.similarity for row in of_sample(trace, one.sample)] for one in ranked[8:]])
    (band,) = figure.axes[0].collections
    drawn = {tuple(point) for point in band.get_paths()[0].vertices}
    assert {(float(step), value) for step, value in enumerate(rest.min(axis=0))} <= drawn
    assert {(float(step), value) for step, value in enumerate(rest.max(axis=0))} <= drawn
    assert "3 other samples" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_held_decision_is_marked_on_the_line() -> None:
    trace = Trace()
    held = [TraceRow(0, step, 5, 0.0, 1.0, 0.5, 0, None if step % 2 else 0.1 * step, fired=step == 3) for step in range(5)]
    trace.add(held)
    line_through(trace.plot().axes[0], [3], [0.1 * (2 + 4) / 2])


@pytest.mark.parametrize("width", [500, 1200])
@pytest.mark.parametrize("both", [False, True])
def test_no_text_is_cut_off(tmp_path: Path, width: int, both: bool) -> None:
    from PIL import Image

    trace, plain = curves(12, strength=0.8), curves(12, strength=0.0)
    names = ["_$\\frac{$", "音" * 60, "W" * 80, "new\nline"]
    renamed = Trace()
    renamed.add([replace(row, neighbor=names[row.sample % 4]) for row in trace.rows])
    figure = renamed.plot(plain if both else None, tmp_path / "trace.png", width_px=width)
    with Image.open(tmp_path / "trace.png") as picture:
        assert picture.size == tuple(figure.bbox.size.round()) and picture.size[0] == width
    page = figure.bbox
    texts = [*figure.legends[0].get_texts(), *(t for axes in figure.axes for t in (axes.title, axes._left_title))]
    texts += [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1 for box in boxes)
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".PNG"])
def test_a_figure_is_written_in_the_format_of_its_name(tmp_path: Path, suffix: str) -> None:
    curves(1, strength=0.0).plot(path=tmp_path / f"trace{suffix}")
    start = (tmp_path / f"trace{suffix}").read_bytes()[:5]
    assert start.startswith({".svg": b"<?xml", ".pdf": b"%PDF", ".PNG": b"\x89PNG"}[suffix])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": Path("trace.gif")}, ".png, .svg, .pdf"),
        ({"width_px": 200}, "400 pixels"),
        ({"ids": [(0, 7)]}, "expected ids"),
        ({"ids": [(0, sample) for sample in range(9)]}, "at most 8"),
    ],
)
def test_figures_that_cannot_be_drawn_are_refused(options: dict[str, Any], words: str) -> None:
    samples = 9 if len(options.get("ids", [])) > 1 else 2
    with pytest.raises(ValueError, match=words):
        curves(samples, strength=0.0).plot(**options)


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="none"):
        Trace().plot()
