"""Scores per class and frequency bin against plain loops and planted truth; AudioSet's files and their join to AudioCaps."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.errors import TableError
from auscult.metrics.audioset import join_audiocaps, read_audioset_segments, read_class_names
from auscult.metrics.intervals import resampled_counts
from auscult.metrics.longtail import EDGES, LongTail, label_frequency, long_tail

# --- bins -----------------------------------------------------------------------------------------------------------


def by_hand(values, labels, frequency, edges) -> list[float | None]:
    """Oracle: the definition, in loops over dictionaries."""
    per_class: dict[str, list[float]] = {}
    for value, one in zip(values, labels, strict=True):
        for label in set(one):
            per_class.setdefault(label, []).append(value)
    limits = [0, *edges, math.inf]
    answer = []
    for least, below in itertools.pairwise(limits):
        means = [sum(found) / len(found) for label, found in per_class.items() if least <= frequency.get(label, 0) < below]
        answer.append(sum(means) / len(means) if means else None)
    return answer


@st.composite
def evaluations(draw):
    names = ["a", "b", "c", "d", "e"]
    labels = draw(st.lists(st.lists(st.sampled_from(names), max_size=3), min_size=1, max_size=12).filter(any))
    values = [draw(st.floats(-1, 1)) for _ in labels]
    frequency = {name: draw(st.sampled_from([0, 1, 9, 10, 29, 30, 99, 100, 499, 500, 10_000])) for name in names}
    return values, labels, frequency


@settings(max_examples=60, deadline=None)
@given(evaluations())
def test_bins_equal_the_definition(evaluation) -> None:
    values, labels, frequency = evaluation
    found = long_tail(values, labels, frequency, resamples=0)
    for one, expected in zip(found.bins, by_hand(values, labels, frequency, EDGES), strict=True):
        assert one.value == (None if expected is None else pytest.approx(expected, abs=1e-12))  # sums in another order
        carrying = [c.label for c in found.classes if one.least <= c.frequency < (one.below or math.inf)]
        assert one.classes == len(carrying)
        assert one.clips == sum(any(label in carrying for label in clip) for clip in labels)
    assert found.unlabeled == sum(not one for one in labels)


def test_edges_belong_to_the_upper_bin_and_unseen_classes_have_their_own() -> None:
    frequency = {"one": 1, "nine": 9, "ten": 10, "last": 499, "head": 500}
    labels = [(name,) for name in ("unseen", *frequency)]
    found = {one.name: one.value for one in long_tail(np.arange(6.0), labels, frequency).bins}
    assert found == {"0": 0.0, "1-9": 1.5, "10-29": 3.0, "30-49": None, "50-99": None, "100-499": 4.0, "500+": 5.0}


def test_a_frequent_class_of_a_bin_weighs_no_more_than_a_rare_one() -> None:
    """Macro: 99 clips at 0 of one class and one clip at 1 of another make one half, not a hundredth."""
    labels = [("common",)] * 99 + [("rare",)]
    found = long_tail([0.0] * 99 + [1.0], labels, {"common": 800, "rare": 700}, resamples=0)
    assert found.bins[-1].value == 0.5
    assert (found.bins[-1].classes, found.bins[-1].clips) == (2, 100)


def test_planted_fall_towards_the_tail_is_recovered_with_its_interval() -> None:
    rng = np.random.default_rng(5)
    frequency = {f"class {number}": count for number, count in enumerate([0, 0, 5, 5, 20, 40, 80, 300, 900, 900])}
    truth = {name: 0.1 + 0.05 * math.log10(1 + count) for name, count in frequency.items()}
    labels = [(name,) for name in frequency for _ in range(40)]
    values = np.array([truth[one[0]] for one in labels]) + 0.05 * rng.standard_normal(len(labels))
    found = long_tail(values, labels, frequency)
    means = [one.value for one in found.bins]
    assert means == sorted(means)
    for one in found.bins:
        inside = [name for name, count in frequency.items() if one.least <= count < (one.below or math.inf)]
        planted = np.mean([truth[name] for name in inside])
        assert one.low < one.value < one.high
        # two standard errors of the mean of 40 or 80 values of spread 0.05 either side, give or take
        assert one.high - one.low == pytest.approx(4 * 0.05 / math.sqrt(one.clips), rel=0.35)
        assert abs(one.value - planted) < 4 * 0.05 / math.sqrt(one.clips)


def test_the_interval_equals_draws_made_one_by_one() -> None:
    """Oracle for what becomes of a class without clips in a draw: clips really repeated, classes really left out."""
    labels = [("a",), ("a", "b"), ("b",), ("c",), ("c",), ("d",)]
    values = [0.1, 0.9, 0.4, 0.3, 0.8, 0.6]
    frequency = {"a": 3, "b": 4, "c": 70, "d": 0}
    found = long_tail(values, labels, frequency, resamples=50, seed=7)
    draws = []
    for counts in resampled_counts(6, resamples=50, seed=7):
        rows = np.repeat(np.arange(6), counts)
        draws.append(by_hand([values[row] for row in rows], [labels[row] for row in rows], frequency, EDGES))
    for number in (1, 4):
        own = [draw[number] for draw in draws if draw[number] is not None]
        low, high = np.percentile(own, [2.5, 97.5], method="nearest")
        assert (found.bins[number].low, found.bins[number].high) == (pytest.approx(low), pytest.approx(high))
    assert any(draw[4] is None for draw in draws)  # there were such draws
    assert found.bins[0].value == 0.6
    assert found.bins[0].low is None  # a single clip has no spread


def test_order_of_clips_and_labels_changes_no_value() -> None:
    rng = np.random.default_rng(0)
    labels = [tuple(rng.choice(["a", "b", "c", "d"], size=rng.integers(0, 4), replace=False)) for _ in range(30)]
    values, frequency = rng.random(30), {"a": 1, "b": 12, "c": 50}
    order = rng.permutation(30)
    first = long_tail(values, labels, frequency, resamples=0)
    again = long_tail(values[order], [labels[row][::-1] for row in order], frequency, resamples=0)
    assert [one.value for one in again.bins] == pytest.approx([one.value for one in first.bins], abs=1e-12, nan_ok=True)
    assert [(c.label, c.clips) for c in again.classes] == [(c.label, c.clips) for c in first.classes]
    assert long_tail(values, labels, frequency, seed=3) == long_tail(values, labels, frequency, seed=3)


def test_json_round_trip() -> None:
    found = long_tail([0.5, 0.3, 0.1], [("Dog",), ("Dog", "Theremin"), ()], {"Dog": 700})
    assert LongTail.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.1], [("a",), ("b",)], {}), r"labels of each clip, got \(1,\) and 2 clips"),
        (([], [], {}), "at least one clip"),
        (([0.1, float("nan")], [("a",), ("a",)], {}), "clip 1 has the value nan; leave out"),
        (([0.1], ["Dog"], {}), "clip 0 has the labels 'Dog'; expected a sequence"),
        (([0.1], [()], {}), "none of the 1 clips has a label"),
        (([0.1], [("/m/0bt9lr",)], {"Dog": 3}), "'/m/0bt9lr'.*'Dog'.*ids where the other has names"),
        (([0.1], [("a",)], {"a": -1}), "whole number of training clips, got -1"),
    ],
)
def test_wrong_input_is_explained(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        long_tail(*arguments)


@pytest.mark.parametrize("edges", [(), (10, 1), (1, 1, 10), (0, 10)])
def test_edges_that_make_no_bins_are_refused(edges) -> None:
    with pytest.raises(ValueError, match="edges should be rising"):
        long_tail([0.1], [("a",)], {"a": 1}, edges=edges)


def test_label_frequency_counts_clips() -> None:
    assert label_frequency([("b", "a", "b"), ("a",), ()]) == {"a": 2, "b": 1}


# --- AudioSet and AudioCaps -----------------------------------------------------------------------------------------

SEGMENTS = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=4, num_segs=4, num_unique_labels=3, num_positive_labels=5
# YTID, start_seconds, end_seconds, positive_labels
--ab_cd, 20.000, 30.000, "/m/dog,/m/bark"
r1nicOVtvkQ, 130.000, 140.000, "/m/dog"
#notacomment-really-but-no-id-begins-so, 0.000, 10.000, "/m/dog"
Zzz, 0.000, 7.500, "/t/dd1"
"""
CLASSES = 'index,mid,display_name\n0,/m/dog,Dog\n1,/m/bark,"Bark, woof"\n2,/t/dd1,Noise\n'
CAPTIONS = (
    'audiocap_id,youtube_id,start_time,caption\n1,--ab_cd,20,A dog barks\n2,--ab_cd,20,"Barks, loudly"\n3,r1nicOVtvkQ,130,Dog\n'
    "4,gone,0,Gone\n5,r1nicOVtvkQ,131,Another start\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "balanced_train_segments.csv").write_text(SEGMENTS)
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    ontology = [{"id": "/m/dog", "name": "Dog"}, {"id": "/m/bark", "name": "Bark, woof"}, {"id": "/t/dd1", "name": "Noise"}]
    (tmp_path / "ontology.json").write_text(json.dumps(ontology))
    (tmp_path / "captions.csv").write_text(CAPTIONS)
    return tmp_path


@pytest.mark.parametrize("names", ["class_labels_indices.csv", "ontology.json"])
def test_segments_as_they_are_published(folder: Path, names: str) -> None:
    assert read_audioset_segments([folder / "balanced_train_segments.csv"], folder / names) == {
        ("--ab_cd", 20.0): ("Dog", "Bark, woof"),
        ("r1nicOVtvkQ", 130.0): ("Dog",),
        ("Zzz", 0.0): ("Noise",),
    }


def test_captions_are_joined_by_video_and_start_and_what_is_missing_is_named(folder: Path) -> None:
    segments = read_audioset_segments([folder / "balanced_train_segments.csv"], folder / "ontology.json")
    joined = join_audiocaps(folder / "captions.csv", segments)
    assert joined.labels == {"1": ("Dog", "Bark, woof"), "2": ("Dog", "Bark, woof"), "3": ("Dog",)}
    assert joined.missing == ("4", "5")
    assert joined.warning is not None
    assert "2 of 5 AudioCaps rows have no AudioSet segment" in joined.warning
    assert "audiocap_id 4, 5" in joined.warning
    # two captions of one clip are one training clip
    assert label_frequency(joined.clip_labels()) == {"Dog": 2, "Bark, woof": 1}


def test_real_captions_are_read_to_the_last_row(audiocaps: Path) -> None:
    """Segments planted for every third clip of AudioCaps' own test file; the other rows are named as missing."""
    import csv

    with open(audiocaps / "test.csv", newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    segments = {(row["youtube_id"], float(row["start_time"])): ("Dog",) for row in rows[::3]}
    joined = join_audiocaps(audiocaps / "test.csv", segments)
    with_label = {row["audiocap_id"] for row in rows if (row["youtube_id"], float(row["start_time"])) in segments}
    assert joined.labels.keys() == with_label
    assert len(joined.labels) + len(joined.missing) == len(rows) == 4875
    assert len(joined.clip_labels()) == len(segments)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", CAPTIONS, "expected a line of AudioSet's segments .* got 'audiocap_id,youtube_id"),
        ("strong.csv", "s9d-2nhuJCQ_30000\t2.627\t7.237\t/m/053hz1\n", "line 1: expected a line.*strong labels"),
        ("names.csv", CLASSES, "line 1: expected a line of AudioSet's segments"),
        ("ids.csv", 'a, 0.0, 10.0, "/m/dog,/m/cat,/m/cow"\n', r"2 classes .*no name.* /m/cat \(ids.csv, line 1\)"),
        ("two.csv", 'a, 0.0, 10.0, "/m/dog"\na, 0.0, 10.0, "/m/bark"\n', "line 2: a from 0 s has the labels.*one release"),
        ("ends.csv", 'a, 10.0, 0.0, "/m/dog"\n', "should start before it ends"),
        ("text.csv", 'a, zero, 10.0, "/m/dog"\n', "expected seconds, got 'zero'"),
    ],
)
def test_wrong_segment_files_are_explained(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(TableError, match=message):
        read_audioset_segments([folder / name], folder / "class_labels_indices.csv")


def test_wrong_class_and_caption_files_are_explained(folder: Path) -> None:
    with pytest.raises(TableError, match=r"expected AudioSet's class_labels_indices.csv .*'audiocap_id,"):
        read_class_names(folder / "captions.csv")
    (folder / "other.json").write_text('{"id": "/m/dog"}')
    with pytest.raises(TableError, match="objects with id and name"):
        read_class_names(folder / "other.json")
    with pytest.raises(TableError, match="cannot be read"):
        read_class_names(folder / "nowhere.csv")
    with pytest.raises(TableError, match="expected AudioCaps' columns"):
        join_audiocaps(folder / "class_labels_indices.csv", {})
    with pytest.raises(TableError, match="none of its 5 rows is among the 1 segments.*--ab_cd from 20 s.*unbalanced"):
        join_audiocaps(folder / "captions.csv", {("--ab_cd", 0.0): ("Dog",)})
    (folder / "twice.csv").write_text(CAPTIONS + "3,Zzz,0,Again\n")
    with pytest.raises(TableError, match="line 7: the audiocap_id 3 is there twice"):
        join_audiocaps(folder / "twice.csv", {})
    with pytest.raises(ValueError, match="expected a list of segment files"):
        read_audioset_segments("one.csv", {})
