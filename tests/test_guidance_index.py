"""The references of guidance: what is nearest, what may be compared, and the index as a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auscult.corpus import Clip, Skipped, open_corpus
from auscult.descriptors import DescriptorSpec
from auscult.descriptors.mel import MelDescriptor
from auscult.errors import AudioDecodeError, DescriptorMismatchError, ModelError, OutputFolderError, StoreError
from auscult.guidance.index import ROWS, VECTORS, ReferenceIndex
from auscult.guidance.windows import DescribedAudio, FloatArray, describe_waves
from auscult.indexing import index as index_corpus
from conftest import sound

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class MelOfSound:
    """The audit's descriptor as a latent descriptor whose latents are the sound itself."""

    seconds: float = 0.5
    center: bool = True
    store_spec: DescriptorSpec | None = MelDescriptor(0.5).spec
    rate_hz = 16_000

    @property
    def window_s(self) -> float:
        return self.seconds

    @property
    def spec(self) -> str:
        return f"mel-of-sound/1(seconds={self.seconds},center={self.center:d})"

    def describe(self, x0: torch.Tensor, step: int = 0) -> torch.Tensor:
        return torch.from_numpy(MelDescriptor(self.seconds).describe(x0.numpy()))

    def of_audio(self, waves: list[FloatArray], rate_hz: int) -> DescribedAudio:
        mel = MelDescriptor(self.seconds)
        return describe_waves(waves, rate_hz, self.rate_hz, mel.window_samples, mel.describe)


def planted(n: int = 30, d: int = 8, seed: int = 0, *, center: bool = False) -> ReferenceIndex:
    vectors = torch.nn.functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=1)
    middle = 0.3 * vectors[0] if center else None
    names = tuple(f"clip {row}" for row in range(n))
    return ReferenceIndex("toy/1()", names, tuple(map(str.upper, names)), (0.0,) * n, vectors, middle)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**16), st.integers(1, 40), st.integers(1, 5), st.integers(1, 8), st.booleans())
def test_nearest_is_what_brute_force_finds(seed: int, n: int, rows: int, k: int, center: bool) -> None:
    index = planted(n, seed=seed, center=center)
    queries = 5 * torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed + 1))
    exact = queries.double().numpy()
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    if index.center is not None:
        exact -= index.center.double().numpy()
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    cosines = exact @ index.vectors.double().numpy().T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, : min(k, n)]
    found = index.nearest(queries, k)
    assert found.similarity.shape == found.rows.shape == (rows, min(k, n))
    np.testing.assert_allclose(found.similarity, np.take_along_axis(cosines, order, 1), atol=3e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines, found.rows.numpy(), 1), found.similarity, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in found.rows.tolist())
    torch.testing.assert_close(index.similarity(queries, found.rows), found.similarity, atol=1e-6, rtol=0)


def test_many_queries_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = planted(), torch.randn(17, 8, generator=torch.Generator().manual_seed(3))
    whole = index.nearest(queries, 3)
    monkeypatch.setattr("auscult.guidance.index._COSINES", 2 * len(index))
    parts = index.nearest(queries, 3)
    assert torch.equal(parts.rows, whole.rows)
    torch.testing.assert_close(parts.similarity, whole.similarity, atol=1e-6, rtol=0)


def test_of_equal_references_the_lower_row_comes_first() -> None:
    index = planted(1000, 64)
    copies = [11, 400, 401, 990]
    vectors = index.vectors.clone()
    vectors[copies] = vectors[11] * (1 + torch.tensor([0, 1e-7, 2e-7, 3e-7]))[:, None]
    queries = vectors[11] + 0.01 * torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    for some in (queries, queries[:1], queries[3:5]):
        assert replace(index, vectors=vectors).nearest(some, 4).rows.tolist() == [copies] * len(some)


def test_similarity_is_differentiable_and_the_references_are_constants() -> None:
    index = planted(center=True)
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[0, 4], [7, 7], [2, 1]])
    assert torch.autograd.gradcheck(lambda given: index.similarity(given, rows), vectors)
    assert not index.vectors.requires_grad
    with pytest.raises(ValueError, match=r"shape \(3, k\), got \(2, 2\)"):
        index.similarity(vectors, rows[:2])


@pytest.mark.parametrize("center", [False, True])
def test_silence_is_similar_to_nothing(center: bool) -> None:
    index = planted(center=center)
    vectors = torch.randn(2, 8, generator=torch.Generator().manual_seed(5))
    vectors[1] = 0
    vectors.requires_grad_()
    assert index.nearest(vectors).similarity[1].item() == 0
    similarity = index.similarity(vectors, torch.tensor([[3], [3]]))
    (gradient,) = torch.autograd.grad(similarity.sum(), vectors)
    assert similarity[1].item() == 0
    assert not gradient[1].any()
    assert gradient[0].any()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (torch.full((2, 8), torch.nan), ModelError, "toy/1.*not finite"),
        (torch.ones(2, 9), ValueError, r"shape \(B, 8\), got \(2, 9\)"),
    ],
)
def test_vectors_that_cannot_be_compared_are_refused(vectors: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        planted().nearest(vectors)
    with pytest.raises(error, match=message):
        planted().similarity(vectors, torch.zeros(2, 1, dtype=torch.long))


def empty() -> ReferenceIndex:
    return ReferenceIndex(MelOfSound().spec, (), (), (), torch.zeros(0, 96))


def test_sounds_of_which_nothing_is_left_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        sf.write(tmp_path / f"{name}.wav", np.zeros(16_000), 16_000)
    with pytest.raises(ValueError, match="got 0 clips, 0 of them silent"):
        ReferenceIndex.from_audio([], MelOfSound())
    with pytest.raises(ValueError, match="got 2 clips, 2 of them silent: guidance by them would never act"):
        ReferenceIndex.from_audio([tmp_path / "a.wav", tmp_path / "b.wav"], MelOfSound())


def test_an_index_is_shown_by_its_counts() -> None:
    index = replace(planted(4), ids=("a", "b", "b", "c"), silent=1)
    start = f"ReferenceIndex({index.spec}: 4 vectors of 3 clips, 1 silent clips left out, "
    assert repr(index).startswith(start) and len(repr(index)) == len(start) + 9
    assert repr(index) != repr(replace(index, ids=("a", "b", "b", "d")))  # what is told apart by it, such as a task's terms


def test_an_empty_index_finds_nothing(tmp_path: Path) -> None:
    index = empty()
    assert len(index) == 0
    assert index.nearest(torch.ones(3, 96), 2).rows.shape == (3, 0)
    assert len(ReferenceIndex.load(index.save(tmp_path / "index"))) == 0
    with pytest.raises(ValueError, match="k should be 1 or more, got 0"):
        planted().nearest(torch.ones(1, 8), 0)


def test_sounds_become_windows_that_overlap_by_half(tmp_path: Path) -> None:
    whole = sound(3, 2.0)
    sf.write(tmp_path / "a.wav", whole, 16_000, subtype="FLOAT")
    sf.write(tmp_path / "b.wav", np.zeros(16_000), 16_000)
    half = np.concatenate([np.zeros(16_000), sound(5, 0.5)]).astype(np.float32)
    sf.write(tmp_path / "c.wav", half, 16_000, subtype="FLOAT")
    calls: list[tuple[int, int | None]] = []
    clips = [Clip("first", str(tmp_path / "a.wav"), caption="rain"), tmp_path / "b.wav", tmp_path / "c.wav"]
    index = ReferenceIndex.from_audio(clips, MelOfSound(), progress=lambda done, total, what: calls.append((done, total)))
    assert index.ids == ("first",) * 7 + (str(tmp_path / "c.wav"),) * 2
    assert index.starts_s == (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 0.75, 1)
    assert index.captions == ("rain",) * 7 + (None,) * 2
    assert index.silent == 1
    assert calls[-1] == (3, 3)
    torch.testing.assert_close(index.vectors.norm(dim=1), torch.ones(9))
    for start in (0, 4000, 16_000):
        found = index.nearest(MelOfSound().describe(torch.from_numpy(whole[None, start : start + 8000])))
        assert index.starts_s[int(found.rows)] == start / 16_000
        assert found.similarity.item() == pytest.approx(1, abs=1e-4)


def test_a_part_of_a_file_is_a_reference_of_its_own(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.wav", sound(3, 2.0), 16_000, subtype="FLOAT")
    path = str(tmp_path / "a.wav")
    index = ReferenceIndex.from_audio([Clip("x", path, 0.5, 0.5), Clip("y", path, 1.0, 0.75)], MelOfSound(center=False))
    expected = MelDescriptor(0.5).describe(sound(3, 2.0)[None, 8000:16_000])[0]
    np.testing.assert_allclose(index.vectors[0], expected / np.linalg.norm(expected), atol=1e-6)
    assert index.ids == ("x", "y", "y")


def test_a_corpus_with_a_sound_that_cannot_be_read_is_refused(tmp_path: Path, write_sounds: Callable[..., Path]) -> None:
    folder = write_sounds("sounds", 3)
    (folder / "readme.md").write_text("no sound")
    index = ReferenceIndex.from_audio(open_corpus(str(folder)), MelOfSound(), captions=["a", "b", "c"])
    assert dict(zip(index.ids, index.captions, strict=True)) == {"0000.wav": "a", "0001.wav": "b", "0002.wav": "c"}
    with pytest.raises(AudioDecodeError, match="would not be protected"):
        ReferenceIndex.from_audio([Skipped("x.wav", "is a pipe")], MelOfSound())
    (folder / "0001.wav").write_bytes(b"no sound")
    with pytest.raises(AudioDecodeError):
        ReferenceIndex.from_audio(open_corpus(str(folder)), MelOfSound())


def test_what_is_said_twice_or_too_seldom_is_refused(write_sounds: Callable[..., Path]) -> None:
    path = write_sounds("sounds", 1) / "0000.wav"
    with pytest.raises(ValueError, match="stands twice"):
        ReferenceIndex.from_audio([path, path], MelOfSound())
    with pytest.raises(ValueError, match="2 captions for 1 clips"):
        ReferenceIndex.from_audio([path], MelOfSound(), captions=["a", "b"])


def test_references_that_cannot_be_told_from_their_mean_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        sf.write(tmp_path / f"{name}.wav", sound(1, 0.5), 16_000, subtype="FLOAT")
    clips = [Clip(name, str(tmp_path / f"{name}.wav")) for name in "ab"]
    with pytest.raises(ValueError, match="2 references cannot be told .* 'a'.*center="):
        ReferenceIndex.from_audio(clips, MelOfSound())
    sf.write(tmp_path / "c.wav", sound(2, 0.5), 16_000, subtype="FLOAT")
    many = ReferenceIndex.from_audio([*clips, Clip("c", str(tmp_path / "c.wav"))], MelOfSound())
    few = ReferenceIndex.from_audio(clips, MelOfSound(), center=many.center)
    torch.testing.assert_close(few.vectors, many.vectors[:2])
    with pytest.raises(ValueError, match=r"expected a center of shape \(96,\), got \(5,\)"):
        ReferenceIndex.from_audio(clips, MelOfSound(), center=torch.ones(5))
    with pytest.raises(ValueError, match="leave the center out"):
        ReferenceIndex.from_audio(clips, MelOfSound(center=False), center=many.center)
    assert len(ReferenceIndex.from_audio(clips, MelOfSound(center=False))) == 2


@pytest.mark.parametrize("center", [False, True])
def test_a_store_gives_the_vectors_that_the_sounds_give(
    tmp_path: Path, write_sounds: Callable[..., Path], center: bool
) -> None:
    folder = write_sounds("sounds", 4, duration_s=0.5)
    sf.write(folder / "silent.wav", np.zeros(8000), 16_000)
    (folder / "captions.csv").write_text(
        "path,caption\n0000.wav,rain\n0001.wav,\n0002.wav,wind\n0003.wav,dog\nsilent.wav,hush\n"
    )
    corpus = open_corpus(str(folder / "captions.csv"))
    store = index_corpus(corpus, tmp_path / "store", descriptor=MelDescriptor(0.5))
    descriptor = MelOfSound(center=center)
    ours = ReferenceIndex.from_store(tmp_path / "store", descriptor)
    theirs = ReferenceIndex.from_audio(corpus, descriptor)
    assert (ours.ids, ours.captions, ours.starts_s) == (theirs.ids, theirs.captions, theirs.starts_s)
    assert ours.captions[0] == "rain"
    assert ours.silent == theirs.silent == 1
    torch.testing.assert_close(ours.vectors, theirs.vectors, atol=1e-4, rtol=0)  # files of 16 bit, decoded twice
    for wrong, message in (
        (MelOfSound(0.7, store_spec=MelDescriptor(0.7).spec), r"holds vectors of mel/1\(duration_s=0.5\).*duration_s=0.7"),
        (MelOfSound(store_spec=None), "vectors of no store"),
    ):
        with pytest.raises(DescriptorMismatchError, match=message):
            ReferenceIndex.from_store(store, wrong)


def test_another_descriptor_is_refused() -> None:
    index = empty()
    index.check(MelOfSound())
    for other in (MelOfSound(center=False), MelOfSound(0.7)):
        with pytest.raises(DescriptorMismatchError, match="described by mel-of-sound"):
            index.check(other)


def test_without_leaves_the_others_as_they_are() -> None:
    index = replace(planted(4, center=True), ids=("a", "b", "b", "c"))
    rest = index.without(["b"])
    assert rest.ids == ("a", "c")
    assert rest.captions == (index.captions[0], index.captions[3])
    assert torch.equal(rest.vectors, index.vectors[[0, 3]])
    assert rest.center is index.center
    with pytest.warns(UserWarning, match="no reference is left in the index"):
        assert len(index.without(index.ids)) == 0
    assert len(empty().without([])) == 0  # it was so before, and says nothing
    with pytest.raises(ValueError, match=r"not in the index: d, e \(2 of 3 clips\)"):
        index.without(["a", "e", "d"])


@pytest.mark.parametrize("center", [False, True])
def test_a_folder_gives_back_what_was_saved(tmp_path: Path, center: bool) -> None:
    index = replace(planted(center=center), silent=2, captions=(None, "ü\u2028\"'") + ("x",) * 28)
    again = ReferenceIndex.load(index.save(tmp_path / "index"))
    assert {name: getattr(again, name) for name in ("spec", "ids", "captions", "starts_s", "silent")} == {
        name: getattr(index, name) for name in ("spec", "ids", "captions", "starts_s", "silent")
    }
    assert torch.equal(again.vectors, index.vectors)
    assert (again.center is None) == (index.center is None)
    if again.center is not None and index.center is not None:
        assert torch.equal(again.center, index.center)
    card = json.loads((tmp_path / "index" / "card.json").read_text("utf-8"))
    assert card["counts"] == {"vectors": 30, "clips": 30, "silent": 2}
    with pytest.raises(OutputFolderError, match="--overwrite"):
        index.save(tmp_path / "index")
    assert len(ReferenceIndex.load(index.without(["clip 3"]).save(tmp_path / "index", overwrite=True))) == 29


@pytest.mark.parametrize("name", [VECTORS, ROWS])
def test_a_damaged_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = planted().save(tmp_path / "index")
    for change in (lambda path: path.write_bytes(path.read_bytes()[:-3]), Path.unlink):
        copy = shutil.copytree(folder, tmp_path / "copy")
        change(copy / name)
        with pytest.raises(StoreError, match=name):
            ReferenceIndex.load(copy)
        shutil.rmtree(copy)
    (folder / "card.json").unlink()
    with pytest.raises(StoreError, match=r"no card\.json"):
        ReferenceIndex.load(folder)


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("auscult.guidance.index.write_card", interrupted)
    with pytest.raises(KeyboardInterrupt):
        planted().save(tmp_path / "index")
    monkeypatch.undo()
    with pytest.raises(StoreError, match="does not exist"):
        ReferenceIndex.load(tmp_path / "index")
    assert len(ReferenceIndex.load(planted().save(tmp_path / "index"))) == 30
