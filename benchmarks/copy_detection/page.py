"""The Markdown page: what was measured, on what, the tables, and what they do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from auscult.folders import package_versions
from auscult.metrics.copy_detection import Interval
from report import machine

from .judging import Judged
from .sets import Benchmark
from .tables import APART, BY_PART, OVERALL, PLACES, cell, costs, facts, markdown, negatives, suspect_rows, table, transfers

Stage = Mapping[str, Mapping[str, Interval]]


def page(
    benchmark: Benchmark,
    judged: Mapping[str, Judged],
    stage: Stage,
    *,
    command: str,
    sounds: str,
    options: Mapping[str, Any],
    fitted: Sequence[str],
    notes: Sequence[str],
) -> str:
    """Put the page together.

    Parameters
    ----------
    judged
        Each system's results.
    stage
        Recall of auscult's first stage by ``all``, ``group`` and ``kind``, then part.
    options
        ``seed``, ``top`` and ``candidates``.
    fitted
        What was fitted on sounds that also occur here, a sentence each.
    """
    sections = [
        _introduction(benchmark, command, sounds, options, [*notes, *(note for one in judged.values() for note in one.notes)]),
        _overall(judged),
        _stage(stage, options["candidates"]),
        _fitted(judged, fitted),
        _negatives(judged),
        _parts(judged),
        _limits(benchmark),
        _made_with(options),
    ]
    return "\n".join(line for section in sections for line in section) + "\n"


def _introduction(
    benchmark: Benchmark, command: str, sounds: str, options: Mapping[str, Any], notes: Sequence[str]
) -> list[str]:
    counts = ", ".join(f"{count} {name}" for name, count in facts(benchmark).items())
    return [
        "# Copy detection",
        "",
        "Written by the command below; nothing on this page is typed by hand.",
        "",
        "```",
        command,
        "```",
        "",
        f"{sounds}: {counts}. Predictions per query in the ranking: {options['top']}. Roles are dealt by source (uploader): no "
        "negative, null or background clip, bed or distractor shares one with a clip that is copied, or with each other. One "
        "ranking of all queries, one threshold. auscult is run as an audit runs it (`auscult.detection.detect` with its "
        "defaults); all systems are asked about the same references. Distractors are synthesized sounds and collages of "
        "recordings that play no other role. Reversed copies count neither as positives nor as negatives and have a table of "
        "their own.",
        "",
        "Intervals: 95 %, bootstrap by source, unless said otherwise. *Located*: the best prediction is right and has spans; "
        "over these, the medians of the onset error (where the copied sound begins in the query) and of the lag error (which "
        "moment of the reference plays), and the mean temporal IoU in the query. *False-positive rate*: of the negatives, at "
        "the threshold; *recall at 1 % false positives* is at another, stricter one, whatever the share of copies. *none*: no "
        "threshold reaches the precision.",
        "",
        *(f"- {note}" for note in notes),
        *([""] if notes else []),
    ]


def _overall(judged: Mapping[str, Judged]) -> list[str]:
    overall = {name: one.parts["all"]["all"] for name, one in judged.items()}
    placed = {name: scores for name, scores in overall.items() if scores["located"].value > 0}
    backwards = {name: one.parts["apart"]["reverse"] for name, one in judged.items() if one.parts["apart"]}
    lines = ["## All queries", "", *table("system", overall, OVERALL), ""]
    if placed:
        lines += [*table("system", placed, PLACES), ""]
    lines += [
        "## Cost",
        "",
        "Of describing and comparing everything; the peak is the whole process's, the sounds of the benchmark included.",
        "",
        *costs(judged),
        "",
        "## A threshold on sources that it was not chosen on",
        "",
        "Sources are halved by a hash. The threshold of 90 % precision of one half, on the queries of the other; the "
        "precision's interval is Wilson's.",
        "",
        *transfers(judged),
        "",
    ]
    if backwards:
        lines += ["## Reversed copies, outside all other numbers", "", *table("system", backwards, APART), ""]
    return lines


def _stage(stage: Stage, candidates: int) -> list[str]:
    lines = [
        "## auscult's first stage",
        "",
        f"Share of the copies whose reference is among the {candidates} candidates that are looked at closely: nothing that "
        "is missing there can be found.",
        "",
    ]
    for by, rows in stage.items():
        lines += [*markdown([{by: part, "among the candidates": cell(share)} for part, share in rows.items()]), ""]
    return lines


def _fitted(judged: Mapping[str, Judged], fitted: Sequence[str]) -> list[str]:
    rows = {name: one.parts["unfitted"]["all"] for name, one in judged.items()}
    return [
        "## What was fitted on these sounds",
        "",
        *(f"- {sentence}" for sentence in fitted),
        "",
        "Queries of all other sources alone, their own threshold (distractors and background as before):",
        "",
        *table("system", rows, OVERALL),
        "",
    ]


def _negatives(judged: Mapping[str, Judged]) -> list[str]:
    lines = [
        "## Negatives",
        "",
        "False-positive rate at each system's threshold, by kind; steady sounds have other takes among the references.",
        "",
        *negatives(judged),
        "",
        "The ten negatives of highest score, to be judged by ear: each is an error, or a copy that the benchmark overlooked.",
        "",
    ]
    for name, one in judged.items():
        lines += [f"### {name}: negatives of highest score", "", *suspect_rows(one), ""]
    return lines


def _parts(judged: Mapping[str, Judged]) -> list[str]:
    titles = {
        "group": "By group",
        "strength": "By strength (*fixed*: kinds with one setting)",
        "kind": "By kind",
    }
    lines = []
    for by, title in titles.items():
        lines += [f"## {title}", ""]
        if by == "group":
            lines += [
                "A part's positives against all negatives; *recall at the threshold*: at the one threshold of the whole "
                "benchmark.",
                "",
            ]
        for name, one in judged.items():
            lines += [f"### {name}", "", *table(by, one.parts[by], BY_PART), ""]
    return lines


def _limits(benchmark: Benchmark) -> list[str]:
    counts = facts(benchmark)
    groups = [truth.group for truth in benchmark.truths if truth.reference_id is not None]
    kinds = {truth.kind for truth in benchmark.truths if truth.group == "verbatim"}
    return [
        "## What this does not show",
        "",
        f"Copies are {counts['positives']} of {len(benchmark.queries)} queries here, and few among the outputs of a model: the "
        f"precision there is lower at the same threshold. There are {counts['references']} references, of which "
        f"{counts['references'] - counts['of them distractors']} are no distractors; a training set has more, and more bring "
        f"more chance matches. {groups.count('verbatim')} of the positives, of {len(kinds)} kinds, are verbatim copies under "
        "another surface, which are the easiest. Negatives are the same unrelated clips many times, transformed each time "
        "anew: their sources, not their number, set the width of the intervals. Rooms are modelled, not recorded; speech and "
        "music laid over a copy are synthesized; stereo is made from mono. Of the protocol, neural vocoders, neural codecs and "
        "partial denoising are missing: they need weights.",
        "",
    ]


def _made_with(options: Mapping[str, Any]) -> list[str]:
    return [
        "## Made with",
        "",
        f"Commit {options['commit']}; seed {options['seed']}; {machine()['processor']}, {machine()['cores']} cores, "
        f"{machine()['memory_gb']} GB; {', '.join(f'{name} {version}' for name, version in package_versions().items())}.",
    ]
