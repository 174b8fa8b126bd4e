"""Whether scores of several systems may be compared, and which of them is the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .glossary import Count, Metric
from .scores import Score

UNEQUAL = 1.1  # ratio of counts from which on a metric that depends on them is not compared


def best_of(scores: Sequence[Score | None]) -> int | None:
    """Place of the score whose interval lies on the better side of all others; None if there is none such.

    Examples
    --------
    >>> ends = [(1.0, 0.9, 1.1), (1.4, 1.2, 1.6), (2.0, 1.5, 2.5)]
    >>> best_of([Score("fad", "x", *three, higher_is_better=False) for three in ends])
    0
    >>> best_of([Score("is", "x", *three, higher_is_better=True) for three in ends]) is None
    True
    """
    there = [(place, score) for place, score in enumerate(scores) if score is not None and score.value is not None]
    if len(there) < 2 or there[0][1].higher_is_better is None:
        return None
    sign = 1.0 if there[0][1].higher_is_better else -1.0
    spans: list[tuple[float, float, int]] = []
    for place, score in there:
        if score.low is None or score.high is None:
            return None  # who knows how far it reaches
        worse, better = sorted((sign * score.low, sign * score.high))
        spans.append((worse, better, place))
    spans.sort()
    return spans[-1][2] if all(spans[-1][0] > better for _, better, _ in spans[:-1]) else None


def unlike(metric: Metric, scored: Mapping[str, Score | None]) -> list[str]:
    """Sentences about what keeps systems from being compared by this metric, given their scores by name; none: nothing."""
    scores = {name: score for name, score in scored.items() if score is not None and score.value is not None}
    backends = {name: score.backend for name, score in scores.items()}
    sentences = []
    if len(set(backends.values())) > 1:
        sentences.append(f"Not comparable: computed with unlike backends ({_listed(backends)}).")
    for setting in dict.fromkeys(setting for score in scores.values() for setting in score.settings):
        values = {name: score.settings.get(setting, "not known") for name, score in scores.items()}
        if len(set(values.values())) > 1:
            sentences.append(f"Not comparable: measured with unlike {setting} ({_listed(values)}).")
    for kind, of in (("clips", "n_reference"), ("frames", "n_reference_frames")):
        references = {name: getattr(score, of) for name, score in scores.items()}
        if len(set(references.values())) > 1:
            sentences.append(f"Not comparable: unequal numbers of reference {kind} ({_listed(references)}).")
            break
    counts = _counts(scores, metric.changes_with)
    if counts and max(counts.values()) > UNEQUAL * max(min(counts.values()), 1):
        what = metric.changes_with if all(score.n_generated_frames is not None for score in scores.values()) else "clips"
        shown = {name: f"{count:,.0f}" if count >= 100 or count % 1 == 0 else f"{count:.3g}" for name, count in counts.items()}
        sentences.append(f"Not comparable: it changes with the number of generated {what} ({_listed(shown)}).")
    return sentences


def _counts(scores: Mapping[str, Score], kind: Count | None) -> dict[str, float]:
    """What a metric changes with, of each system. Scores that do not know their frames are counted by their clips."""
    clips = {name: score.n_generated for name, score in scores.items()}
    frames = {name: score.n_generated_frames for name, score in scores.items()}
    known = {name: count for name, count in frames.items() if count is not None}
    if kind is None or (kind == "frames a clip" and len(known) < len(frames)):
        return {}
    if kind == "clips" or len(known) < len(frames):
        return {name: float(count) for name, count in clips.items()}
    return {name: count / (max(clips[name], 1) if kind == "frames a clip" else 1) for name, count in known.items()}


def _listed(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in facts.items())
