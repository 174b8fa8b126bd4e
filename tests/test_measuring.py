"""From features to scores: what a family refuses, what it holds at once, and what changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from auscult.descriptors import DescriptorSpec
from auscult.metrics import coverage, families, frechet
from auscult.metrics.brackets import Brackets, Stand, halve
from auscult.metrics.embeddings import Backend, Embedded
from auscult.metrics.families import Known
from auscult.metrics.features import AudioPolicy
from auscult.metrics.featureset import CLIP_SCHEMA, FeatureSet
from auscult.metrics.glossary import METRICS
from auscult.metrics.intervals import Interval
from auscult.metrics.measuring import FAMILIES, Family, Task, measure, names, per_clip
from auscult.metrics.request import EvaluateConfig, asked
from auscult.metrics.variety import different_sounds
from auscult.store import SKIPPED_SCHEMA

DIMENSION = 6


def backend(*, frechet: str = "fd", **settings: Any) -> Backend:
    def unused(samples: np.ndarray) -> Embedded:
        raise AssertionError("the features are planted")

    return Backend(
        DescriptorSpec("planted", 1), 16_000, settings.pop("dimension", DIMENSION), 1, frechet, "planted", unused, **settings
    )


def planted(
    frames: Sequence[np.ndarray],
    *,
    container: str = "wav",
    flags: Sequence[Sequence[str]] | None = None,
    logits: np.ndarray | None = None,
) -> FeatureSet:
    """A set of clips of these frames, in the order given."""
    counts = [len(one) for one in frames]
    rows = [
        {
            "key": hashlib.sha256(f"{container} {one.tobytes().hex()}".encode()).hexdigest(),
            "clip_id": f"{n}.{container}",
            "path": f"{n}.{container}",
            "start_s": 0.0,
            "labels": [],
            "sample_digest": hashlib.sha256(one.tobytes()).hexdigest(),
            "duration_s": 1.0,
            "sample_rate_hz": 16_000,
            "channels": 1,
            "peak": 1.0,
            "flags": list(flags[n]) if flags else [],
            "n_frames": len(one),
        }
        for n, one in enumerate(frames)
    ]
    return FeatureSet(
        spec="planted/1()",
        policy=AudioPolicy(),
        clips=pa.Table.from_pylist(rows, CLIP_SCHEMA),
        skipped=pa.Table.from_pylist([], SKIPPED_SCHEMA),
        dimension=frames[0].shape[1],
        _stored=np.concatenate(frames).astype(np.float32),
        _starts=np.cumsum([0, *counts[:-1]]),
        _logits=logits,
    )


def sounds(seed: int, n_clips: int, *, n_frames: int = 3, d: int = DIMENSION, shift: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(shift, 1, d) + 0.3 * rng.normal(size=(n_frames, d))).astype(np.float32) for _ in range(n_clips)]


def family(metric: str) -> Family:
    return next(one for one in FAMILIES if metric in one.metrics)


def scores(metric: str, task: Task) -> dict[str, Interval]:
    return family(metric).measure(task)


def test_a_copy_in_another_container_is_the_same_clip_to_the_kernel_distance() -> None:
    """Its file has another digest, its samples the same: it is not compared with itself."""
    frames = sounds(0, 30)
    real = planted([*frames, *sounds(1, 30)])
    one, other = (Task(backend(), planted(frames, container=kind), real, resamples=9) for kind in ("wav", "flac"))
    assert set(one.generated.clips["key"].to_pylist()) <= set(real.clips["key"].to_pylist())
    assert not set(other.generated.clips["key"].to_pylist()) & set(real.clips["key"].to_pylist())
    assert scores("kad", one) == scores("kad", other)


def test_a_set_with_copies_against_itself_has_no_distance() -> None:
    """Each copy has its partner in the other set, and is not compared with that."""
    frames = [*sounds(0, 20), *sounds(0, 5), *sounds(0, 1)]
    found = scores("kad", Task(backend(), planted(frames), planted(frames), resamples=9))["kad"]
    assert (found.value, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-9)
    other = planted([*sounds(1, 20), *sounds(0, 1)])  # of two copies in the one set and one in the other, one is left
    numbers = families._numbered(planted(frames), other)[1][::3].tolist()
    assert numbers == [*range(26, 46), 0]


# --- sounds that are one ----------------------------------------------------------------------------------------------


def real_with_a_quiet_clip() -> tuple[list[np.ndarray], np.ndarray]:
    """Sixty various clips and a nearly silent one, far from them all, so that its neighbors are, too."""
    quiet = np.full((3, DIMENSION), -20, np.float32)
    return [*sounds(10, 60), quiet], quiet


def precision(generated: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """Of the clips' means, whatever they are."""
    return coverage.precision(*(np.array([clip.mean(axis=0) for clip in frames]) for frames in (generated, reference)))


def dithered(scale: float) -> list[np.ndarray]:
    rng, (_, quiet) = np.random.default_rng(11), real_with_a_quiet_clip()
    return [quiet + scale * rng.normal(size=DIMENSION).astype(np.float32) for _ in range(40)]


def test_dithered_silence_has_no_precision() -> None:
    """Its features differ a little. Without the refusal it would have a precision of 1."""
    real = planted(real_with_a_quiet_clip()[0])
    assert precision(dithered(0.01), real_with_a_quiet_clip()[0]) == 1
    with pytest.raises(ValueError, match="to planted the 40 generated clips are one and the same sound"):
        scores("precision", Task(backend(), planted(dithered(0.01)), real))


def test_a_reference_of_one_sound_has_no_neighborhoods() -> None:
    various, silence = planted(sounds(12, 40)), planted([np.zeros((3, DIMENSION), np.float32)] * 12)
    for generated in (various, silence):
        with pytest.raises(ValueError, match="to planted the 12 clips of the reference are one and the same sound"):
            scores("precision", Task(backend(), generated, silence))


def test_near_silence_that_features_tell_apart_is_known_by_its_flags() -> None:
    various, real = dithered(1.0), planted(real_with_a_quiet_clip()[0])
    assert precision(various, real_with_a_quiet_clip()[0]) == 1
    loud = [[]] * 5
    with pytest.raises(ValueError, match=r"35 of 40 generated clips are silent or nearly so .* 0 of 61 of the reference"):
        scores("precision", Task(backend(), planted(various, flags=[["near_silent"]] * 35 + loud), real))
    # a set that is half loud, or whose reference is as quiet, is what it is
    half = planted(various, flags=[["near_silent"], []] * 20)
    assert scores("precision", Task(backend(), half, real))["precision"].value == 1
    quiet = planted(real_with_a_quiet_clip()[0], flags=[["near_silent"]] * 40 + [[]] * 21)
    assert scores("precision", Task(backend(), planted(various, flags=[["silent"]] * 40), quiet))["precision"].value == 1


@pytest.mark.parametrize(("off", "sounds_there"), [(0.1, 1), (0.2, 2), (0.5, 2)])
def test_nearly_equal_is_a_twentieth_of_the_distance_to_a_neighbor(off: float, sounds_there: int) -> None:
    real = np.arange(400.0)[:, None]  # the fifth neighbor of most is 3 away
    assert different_sounds(np.array([[0.0], [off]] * 20), real, 5) == sounds_there


@pytest.mark.parametrize("spread", [1.0, 0.3])
def test_a_set_of_real_sounds_is_never_taken_for_one(spread: float) -> None:
    """Nor one whose clips are much more alike than the reference's, nor one of copies of six sounds."""
    real = planted(sounds(12, 80))
    alike = [(spread * clip).astype(np.float32) for clip in sounds(13, 40)]
    for frames in (alike, alike[:6] * 7):
        found = scores("precision", Task(backend(), planted(frames), real))
        assert 0 < found["precision"].value <= 1
    with pytest.raises(ValueError, match="only 5 different sounds"):
        scores("precision", Task(backend(), planted(alike[:5] * 8), real))


# --- single clips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frechet", ["fad", "fd"])
def test_distances_of_clips_are_called_as_the_backend_calls_them(frechet: str) -> None:
    task = Task(backend(frechet=frechet), planted(sounds(0, 8)), planted(sounds(1, 8)), resamples=5)
    assert names(family("fad_per_clip"), task.backend) == (f"{frechet}_per_clip",)
    assert list(scores("fad_per_clip", task)) == list(per_clip(task, distances=True)) == [f"{frechet}_per_clip"]
    assert METRICS[f"{frechet}_per_clip"].name == f"{frechet.upper()} per clip"
    for asked_for in ("fad_per_clip", "fd_per_clip"):
        assert asked(f"{frechet}_per_clip", EvaluateConfig(metrics=(asked_for,)), optional=True)


def test_a_clip_of_one_frame_leaves_the_others_their_distances() -> None:
    frames = sounds(0, 9)
    frames[4] = frames[4][:1]
    task = Task(backend(), planted(frames), planted(sounds(1, 20)))
    found = per_clip(task, distances=True)["fd_per_clip"]
    assert found.keys() == {f"{n}.wav" for n in range(9)} - {"4.wav"}
    without = replace(task, generated=planted(frames).subset([n for n in range(9) if n != 4]), known=Known())
    assert per_clip(without, distances=True)["fd_per_clip"] == found
    with pytest.raises(ValueError, match="1 of 9 clips have a single frame"):
        scores("fad_per_clip", task)


def test_clips_or_a_reference_of_single_frames_have_no_distances() -> None:
    single = planted(sounds(0, 5, n_frames=1))
    assert per_clip(Task(backend(), single, planted(sounds(1, 20))), distances=True) == {}
    assert per_clip(Task(backend(), planted(sounds(1, 20)), single.subset([0])), distances=True) == {}
    assert len(per_clip(Task(backend(), planted(sounds(1, 20)), single), distances=True)["fd_per_clip"]) == 20


def test_distances_of_clips_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    real = frechet.frechet_per_clip
    monkeypatch.setattr(frechet, "frechet_per_clip", lambda *given: (computed.append(len(given[0])), real(*given))[1])
    task = Task(backend(), planted(sounds(0, 8)), planted(sounds(1, 20)))
    mean = scores("fad_per_clip", task)["fd_per_clip"].value
    assert mean == pytest.approx(np.mean(list(per_clip(task, distances=True)["fd_per_clip"].values())))
    assert computed == [24]
    swapped = replace(task, generated=task.reference, reference=task.generated)  # a bracket's sets are not the task's
    assert scores("fad_per_clip", swapped)["fd_per_clip"].value != mean
    assert computed == [24, 60]


# --- captions and memory ----------------------------------------------------------------------------------------------


def reader(read: list[list[str]]) -> Backend:
    """Embeds captions by their length, and notes what it was given."""

    def embed_texts(captions: list[str]) -> np.ndarray:
        read.append(captions)
        return np.array([np.eye(DIMENSION)[len(caption) % DIMENSION] for caption in captions], np.float32)

    return backend(frechet="fad", embed_texts=embed_texts)


def test_captions_are_read_once() -> None:
    """By the score, its five brackets and the scores of single clips together."""
    read: list[list[str]] = []
    real = planted(sounds(0, 6))
    stand = Stand(planted(sounds(1, 4)), np.arange(4))
    brackets = Brackets(stand, stand, halve(6, 0))
    task = Task(reader(read), planted(sounds(2, 6)), real, captions=["a", "bb", "ccc", "a", "bb", "dddd"])
    found = measure(task, family("clap_score"), brackets, ["own"] * 6, "planted")["clap_score"]
    assert None not in (found.value, found.floor, found.noise, found.silence, found.shuffled)
    assert np.mean(list(per_clip(task, distances=False)["clap_score"].values())) == pytest.approx(found.value)
    assert read == [["a", "bb", "ccc", "dddd"], ["own"]]


def test_what_is_held_at_once_is_bounded_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [3, 1, 5, 2, 2, 4]
    frames = [sounds(n, 1, n_frames=length)[0] for n, length in enumerate(lengths)]
    captions, real = ["a", "bb", "ccc", "a", "bb", "dddd"], planted(sounds(9, 20))

    def measured() -> list[dict[str, dict[str, float]]]:
        return [per_clip(Task(reader([]), planted(frames), real, captions=captions), distances=True)]

    whole = measured()
    held: list[int] = []
    monkeypatch.setattr(families, "HELD_BYTES", 4 * DIMENSION * 5)
    plain = FeatureSet.features
    monkeypatch.setattr(FeatureSet, "features", lambda one: (held.append(int(one.frame_counts.sum())), plain(one))[1])
    assert measured() == whole
    assert max(held) == 5 and len(held) > 4


def test_precision_holds_the_means_of_few_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that would have been drawn of all means."""
    one, other = sounds(0, 40), sounds(1, 40)
    task = Task(backend(), planted(one), planted(other))
    monkeypatch.setattr(coverage, "MOST_FRAMES", 25)
    means = [np.array([clip.mean(axis=0, dtype=np.float64) for clip in frames]) for frames in (one, other)]
    assert scores("precision", task)["density"].value == pytest.approx(coverage.density(*means, k=5))


@pytest.mark.parametrize(("n_clips", "frames", "reason"), [(1, 60, "at least 2 reference clips"), (6, 1, "7 reference frames")])
def test_an_extrapolation_needs_the_reference_that_the_distance_needs(n_clips: int, frames: int, reason: str) -> None:
    task = Task(backend(), planted(sounds(0, 600, n_frames=1)), planted(sounds(1, n_clips, n_frames=frames)))
    for metric in ("fd", "fd_infinity"):
        assert reason in str(measure(task, family(metric), None, None, "planted")[metric].reason)


def test_an_end_that_is_no_number_costs_one_metric_alone() -> None:
    wrong = Family(
        ("precision", "density"), lambda task: {"precision": Interval(1.0, 0.5, 1.0), "density": Interval(1.0, 0.0, np.inf)}
    )
    task = Task(backend(), planted(sounds(0, 9)), planted(sounds(1, 9)))
    found = measure(task, wrong, None, None, "planted")
    assert (found["precision"].value, found["precision"].high) == (1.0, 1.0)
    assert found["density"].value is None and "high should be finite, got inf" in str(found["density"].reason)


@pytest.mark.parametrize("metric", ["fad", "kad"])
@pytest.mark.parametrize("few", ["generated", "reference"])
def test_distances_of_fewer_than_six_clips_have_no_interval(metric: str, few: str) -> None:
    """Of two equal systems of 2 clips the intervals would lie apart in most samples."""
    for n_clips, there in ((2, False), (5, False), (6, True)):
        sets = {"generated": sounds(0, 30), "reference": sounds(1, 30), few: sounds(2, n_clips, n_frames=10)}
        task = Task(backend(frechet="fad"), **{name: planted(one) for name, one in sets.items()}, resamples=20)
        score = measure(task, family(metric), None, None, "planted")[metric]
        assert score.value is not None and (score.low is not None, score.high is not None) == (there, there)


def test_the_note_on_the_floor_stands_where_there_is_one() -> None:
    stand = Stand(planted(sounds(2, 20)), np.arange(20))
    for frames, there in ((1, False), (3, True)):  # of six clips of a frame there is no covariance
        real = planted(sounds(1, 12, n_frames=frames))
        task = Task(backend(), planted(sounds(0, 12)), real)
        found = measure(task, family("fd"), Brackets(stand, stand, halve(12, 0)), None, "planted")["fd"]
        assert (found.floor is not None, "floor is of halves of 6 clips" in found.note) == (there, there)
