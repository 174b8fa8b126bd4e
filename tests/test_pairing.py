"""Pairs come from a table alone: names and order of files change nothing, and whatever is unpaired is named."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from auscult.corpus import open_corpus
from auscult.errors import ManifestError
from auscult.metrics.addressing import prompts_by_system
from auscult.metrics.intervals import derangement, unlike_partners
from auscult.metrics.pairing import pair_captions, pair_references, read_prompts


def clips_at(folder: Path, names: list[str], captions: list[str | None] | None = None) -> pa.Table:
    """The columns of ``FeatureSet.clips`` that pairing reads."""
    paths = pa.array([str(folder / name) for name in names], pa.string())
    known = pa.array(captions or [None] * len(names), pa.string())
    return pa.table({"clip_id": pa.array(names, pa.string()), "path": paths, "caption": known})


@pytest.fixture
def prompts_of(tmp_path: Path) -> Callable[..., object]:
    def write(text: str, name: str = "prompts.csv"):
        (tmp_path / name).write_text(text)
        return read_prompts(tmp_path / name)

    return write


def test_captions_follow_the_rows_of_the_clips_whatever_the_order_of_the_table(tmp_path: Path, prompts_of) -> None:
    names = ["b.wav", "a.wav", "c.wav"]
    lines = ["a.wav,an owl", "b.wav,a bell", "c.wav,rain"]
    for turned in (lines, lines[::-1]):
        prompts = prompts_of("\n".join(["path,caption", *turned]))
        assert pair_captions(clips_at(tmp_path, names), prompts) == ["a bell", "an owl", "rain"]
        order = [2, 0, 1]
        assert pair_captions(clips_at(tmp_path, names).take(order), prompts) == ["rain", "a bell", "an owl"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_says_the_same(tmp_path: Path, kind: str) -> None:
    rows = [{"clip_id": "1", "caption": "a, b", "reference": "r1", "labels": "Owl;Rain"}, {"clip_id": "2", "caption": "c"}]
    rows = [{"reference": "r2", "labels": "", **row} for row in rows]
    place = tmp_path / f"prompts.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), place)
    elif kind == "jsonl":
        place.write_text("\n".join(map(json.dumps, rows)))
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        lines = [mark.join(f'"{row[name]}"' for name in rows[0]) for row in rows]
        place.write_text("\n".join([mark.join(rows[0]), *lines]))
    prompts = read_prompts(place)
    assert [(p.clip_id, p.caption, p.reference, p.labels) for p in prompts.rows] == [
        ("1", "a, b", "r1", ("Owl", "Rain")),
        ("2", "c", "r2", ()),
    ]


def test_paths_are_relative_to_the_table_or_to_the_audio_root(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "p.csv").write_text("path,caption\nx/1.wav,one\n")
    here = read_prompts(tmp_path / "tables" / "p.csv")
    assert pair_captions(clips_at(tmp_path / "tables", ["x/1.wav"]), here) == ["one"]
    there = read_prompts(tmp_path / "tables" / "p.csv", audio_root=tmp_path)
    assert pair_captions(clips_at(tmp_path, ["x/1.wav"]), there) == ["one"]
    with pytest.raises(ManifestError, match="there is one with the clip_id 'x/1.wav'.*column 'clip_id'"):
        pair_captions(clips_at(tmp_path, ["x/1.wav"]), here)  # an equal name elsewhere is another clip


def test_references_by_id_and_by_path(tmp_path: Path, prompts_of) -> None:
    """Planted: generated clip k stems from reference order[k]; names of files say otherwise."""
    names = [f"{n}.wav" for n in range(20)]
    order = np.random.default_rng(0).permutation(20)
    generated, reference = clips_at(tmp_path / "gen", names), clips_at(tmp_path / "ref", names)
    by_id = prompts_of("\n".join(["clip_id,reference", *(f"{n}.wav,{order[n]}.wav" for n in range(20))]))
    np.testing.assert_array_equal(pair_references(generated, reference, by_id), order)
    by_path = prompts_of("\n".join(["path,reference", *(f"gen/{n}.wav,{tmp_path}/ref/{order[n]}.wav" for n in range(20))]))
    found = pair_references(generated, reference, by_path)
    np.testing.assert_array_equal(found, order)
    assert found.dtype == np.int64
    turned = np.random.default_rng(1).permutation(20)
    np.testing.assert_array_equal(pair_references(generated.take(turned), reference, by_id), order[turned])
    rows = pair_references(generated, reference.take(turned), by_id)
    np.testing.assert_array_equal(turned[rows], order)


def test_several_generated_clips_may_have_one_reference(tmp_path: Path, prompts_of) -> None:
    prompts = prompts_of("clip_id,reference\na,r\nb,r\n")
    rows = pair_references(clips_at(tmp_path, ["a", "b"]), clips_at(tmp_path, ["q", "r"]), prompts)
    assert rows.tolist() == [1, 1]


def test_a_corpus_with_captions_needs_no_table(tmp_path: Path) -> None:
    assert pair_captions(clips_at(tmp_path, ["a", "b"], ["owl", "rain"])) == ["owl", "rain"]
    with pytest.raises(ManifestError, match="1 of 2 generated clips have no caption: 'b'"):
        pair_captions(clips_at(tmp_path, ["a", "b"], ["owl", None]))


def test_a_clip_without_a_prompt_is_counted_and_named(tmp_path: Path, prompts_of) -> None:
    prompts = prompts_of("clip_id,caption,reference\na,owl,r\n")
    clips = clips_at(tmp_path, ["a", *"bcdef"])
    with pytest.raises(ManifestError, match="5 of 6 generated clips have no caption: 'b', 'c', 'd' and 2 more"):
        pair_captions(clips, prompts)
    with pytest.raises(ManifestError, match="5 of 6 generated clips have no reference"):
        pair_references(clips, clips_at(tmp_path, ["r"]), prompts)


def test_a_prompt_without_a_clip_is_named_with_what_may_be_meant(tmp_path: Path, prompts_of) -> None:
    prompts = prompts_of("clip_id,caption\nowl-01,owl\nowl-2,owl\n")
    with pytest.raises(ManifestError, match=r"prompts.csv, line 3: .* no clip 'owl-2'; did you mean 'owl-02'"):
        pair_captions(clips_at(tmp_path, ["owl-01", "owl-02"]), prompts)


def test_prompts_of_skipped_clips_are_no_error(tmp_path: Path, prompts_of) -> None:
    prompts = prompts_of("clip_id,caption,reference\na,owl,r\nbroken,rain,r\n")
    lost = clips_at(tmp_path, ["broken"])
    assert pair_captions(clips_at(tmp_path, ["a"]), prompts, skipped=lost) == ["owl"]
    assert pair_references(clips_at(tmp_path, ["a"]), clips_at(tmp_path, ["r"]), prompts, skipped=lost).tolist() == [0]
    with pytest.raises(ManifestError, match="no clip 'broken'"):
        pair_captions(clips_at(tmp_path, ["a"]), prompts)


def test_a_reference_that_is_not_there_or_was_skipped_is_named(tmp_path: Path, prompts_of) -> None:
    prompts = prompts_of("clip_id,reference\na,ref-10\n")
    with pytest.raises(ManifestError, match=r"line 2: the reference set holds no clip 'ref-10'; did you mean 'ref-01'"):
        pair_references(clips_at(tmp_path, ["a"]), clips_at(tmp_path, ["ref-01", "other"]), prompts)
    with pytest.raises(ManifestError, match="'ref-10' was skipped and has no features"):
        pair_references(
            clips_at(tmp_path, ["a"]),
            clips_at(tmp_path, ["ref-01"]),
            prompts,
            skipped_references=clips_at(tmp_path, ["ref-10"]),
        )


def test_one_clip_named_twice_must_have_one_caption(tmp_path: Path, prompts_of) -> None:
    clips = clips_at(tmp_path, ["a"])
    assert pair_captions(clips, prompts_of("clip_id,caption\na,owl\na,owl\n")) == ["owl"]
    with pytest.raises(ManifestError, match=r"line 3: 'a' has the caption 'rain', but 'owl' in prompts.csv, line 2"):
        pair_captions(clips, prompts_of("clip_id,caption\na,owl\na,rain\n"))
    with pytest.raises(ManifestError, match="'a' has the reference 's', but 'r'"):
        pair_references(clips, clips_at(tmp_path, ["r", "s"]), prompts_of("clip_id,reference\na,r\na,s\n"))


def test_what_may_mean_two_clips_is_refused(tmp_path: Path, prompts_of) -> None:
    stretches = pa.table({"clip_id": ["x", "y"], "path": [str(tmp_path / "long.wav")] * 2, "caption": ["", ""]})
    with pytest.raises(ManifestError, match=r"2 generated clips lie in .*long.wav; name .* clip_id"):
        pair_captions(stretches, prompts_of("path,caption\nlong.wav,owl\n"))
    assert pair_captions(stretches, prompts_of("clip_id,path,caption\ny,long.wav,owl\nx,long.wav,rain\n")) == ["rain", "owl"]
    # "b.wav" is the id of one clip, and the path of another
    crossed = pa.table({"clip_id": ["a.wav", "b.wav"], "path": [str(tmp_path / "b.wav"), str(tmp_path / "c.wav")]})
    with pytest.raises(ManifestError, match="'b.wav' is the id of one reference clip, and .*b.wav is another"):
        pair_references(clips_at(tmp_path, ["g"]), crossed, prompts_of("clip_id,reference\ng,b.wav\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("caption\nowl\n", "names no generated clip; expected a column 'clip_id' or 'path', the row has caption"),
        ("clip_id,caption\n,owl\n", "line 2: names no generated clip"),
        ("clip_id,caption\n", "holds no rows"),
    ],
)
def test_a_table_that_pairs_nothing_is_refused(prompts_of, text: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        prompts_of(text)


def test_missing_columns_and_files_are_named(tmp_path: Path, prompts_of) -> None:
    prompts = prompts_of("clip_id,labels\na,Owl\n")
    with pytest.raises(ManifestError, match="no 'caption' column; it has clip_id, labels"):
        pair_captions(clips_at(tmp_path, ["a"]), prompts)
    with pytest.raises(ManifestError, match="no 'reference' column.*never paired by their names"):
        pair_references(clips_at(tmp_path, ["a"]), clips_at(tmp_path, ["a"]), prompts)
    with pytest.raises(ManifestError, match="missing.csv: cannot be read"):
        read_prompts(tmp_path / "missing.csv")
    with pytest.raises(ManifestError, match="expected a table of prompts"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("n", [2, 3, 10, 1000])
def test_a_derangement_moves_everything_and_its_seed_repeats(n: int) -> None:
    for seed in range(20):
        order = derangement(n, seed=seed)
        assert sorted(order.tolist()) == list(range(n))
        assert not (order == np.arange(n)).any()
        np.testing.assert_array_equal(order, derangement(n, seed=seed))


def test_every_derangement_is_as_likely() -> None:
    """Of 4 there are 9; over 4500 seeds each is expected 500 times, give or take 5 standard deviations of a binomial."""
    counts = Counter(tuple(derangement(4, seed=seed).tolist()) for seed in range(4500))
    assert len(counts) == 9
    assert all(abs(count - 500) < 5 * math.sqrt(500 * 8 / 9) for count in counts.values())


@pytest.mark.parametrize("n", [0, 1])
def test_what_cannot_be_deranged_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        derangement(n, seed=0)


@pytest.mark.parametrize("most", [1, 3, 10])
def test_unlike_partners_are_never_alike_and_everybody_is_a_partner_once(most: int) -> None:
    """Values that occur up to ``most`` times each, at random places; the commonest up to half of all."""
    rng = np.random.default_rng(most)
    for seed in range(50):
        times = rng.integers(1, most + 1, size=8)
        times[0] = rng.integers(1, times[1:].sum() + 1)
        values = rng.permutation(np.repeat(np.arange(8), times)).tolist()
        order = unlike_partners(values, seed=seed)
        assert order is not None
        assert sorted(order.tolist()) == list(range(len(values)))
        assert all(values[place] != values[partner] for place, partner in enumerate(order.tolist()))
        np.testing.assert_array_equal(order, unlike_partners(values, seed=seed))


def test_where_one_value_has_more_than_half_there_are_no_unlike_partners() -> None:
    assert unlike_partners(["rain"] * 3 + ["dog"] * 3, seed=0) is not None
    for values in (["rain"] * 4 + ["dog"] * 3, ["rain"] * 5, ["rain"], []):
        assert unlike_partners(values, seed=0) is None


def test_the_partner_of_a_caption_is_not_its_neighbor_in_the_alphabet() -> None:
    """Of 10 different captions any of the other 9 is as likely a partner; over 900 seeds 100 each, within 5 deviations."""
    captions = [f"a dog barks {n} times" for n in range(10)]
    counts = Counter(int(unlike_partners(captions, seed=seed)[4]) for seed in range(900))
    assert set(counts) == set(range(10)) - {4}
    assert all(abs(count - 100) < 5 * math.sqrt(100 * 8 / 9) for count in counts.values())


@pytest.mark.parametrize("systems", [("a",), ("a", "b")])
def test_a_foreign_id_beside_a_path_does_not_keep_the_path_from_leading_to_a_clip(
    tmp_path: Path, prompts_of, systems: tuple[str, ...]
) -> None:
    for system in "ab":
        (tmp_path / system).mkdir()
        for n in range(2):
            (tmp_path / system / f"{n}.wav").touch()
    corpora = {name: open_corpus(tmp_path / name) for name in systems}
    found = prompts_by_system(prompts_of("path,clip_id\n0.wav,x0\n1.wav,x1\n"), corpora)
    for name in systems:
        assert [row.path for row in found[name].rows] == [str(tmp_path / name / f"{n}.wav") for n in range(2)]


def test_a_path_beside_the_id_of_one_system_leads_to_no_other(tmp_path: Path, prompts_of) -> None:
    for system in "ab":
        (tmp_path / system).mkdir()
        (tmp_path / system / f"{system}.wav").touch()
        (tmp_path / system / "0.wav").touch()
    corpora = {name: open_corpus(tmp_path / name) for name in "ab"}
    found = prompts_by_system(prompts_of("path,clip_id\n0.wav,\n0.wav,a.wav\n"), corpora)
    assert [(row.path, row.clip_id) for row in found["b"].rows] == [(str(tmp_path / "b" / "0.wav"), None)]
    assert [row.clip_id for row in found["a"].rows] == [None, "a.wav"]
