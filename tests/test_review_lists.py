"""From decisions on clusters and pairs to what is kept and dropped, and into the report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import soundfile as sf

from auscult.corpus import open_corpus
from auscult.duplicates import DedupConfig, Duplicates, deduplicate
from auscult.report import write_report
from auscult.review.fields import cluster_key
from auscult.review.lists import reviewed_lists, write_reviewed_lists
from auscult.review.verdicts import VerdictStore
from conftest import sound

RATE = 16_000


@pytest.fixture
def dedup(write_sounds, tmp_path: Path) -> Duplicates:
    """24 clips; the first three stand there three times each, under other gains."""
    folder = write_sounds("corpus", 24, duration_s=3.0)
    for number in range(3):
        for copy, gain in (("b", 0.5), ("c", 0.25)):
            sf.write(folder / f"000{number}{copy}.wav", gain * sound(number, 3.0), RATE)
    return deduplicate(open_corpus(folder), output=tmp_path / "dedup", config=DedupConfig(duration_s=3.0, tau=0.505))


def clusters(dedup: Duplicates) -> list[list[str]]:
    rows = dedup.clusters().to_pylist()
    return [[row["clip_id"] for row in rows if row["cluster_id"] == n] for n in range(rows[-1]["cluster_id"] + 1)]


def names(dedup: Duplicates, file: str) -> set[str]:
    return {Path(line).name for line in (dedup.path / file).read_text("utf-8").splitlines()}


def test_decisions_change_the_lists_and_leave_the_machines_alone(dedup: Duplicates) -> None:
    one, two, three = clusters(dedup)
    machine = names(dedup, "drop.txt")
    assert len(machine) == 6
    with VerdictStore.open(dedup.path) as store:
        store.add_cluster(cluster_key(one), reviewer="ann", decision="all_one", groups=[one], kept=[one[2]])
        store.add_cluster(cluster_key(two), reviewer="ann", decision="split", groups=[two[:2], two[2:]], kept=[two[0], two[2]])
        reviewed = reviewed_lists(dedup, store)
    write_reviewed_lists(dedup, reviewed)
    assert set(reviewed.decisions.values()) == {"all_one", "split"}
    expected = {*one[:2], two[1], *three[1:]}  # the kept clip changed; one clip is no copy; the third as the machine has it
    assert reviewed.dropped == expected == names(dedup, "drop.reviewed.txt")
    assert names(dedup, "keep.reviewed.txt") == (names(dedup, "keep.txt") | machine) - expected
    assert names(dedup, "drop.txt") == machine


def test_what_reviewers_disagree_on_is_kept(dedup: Duplicates) -> None:
    one, two, _ = clusters(dedup)
    with VerdictStore.open(dedup.path) as store:
        for reviewer, decision, groups in (("ann", "all_one", [one]), ("bob", "not_duplicates", [[clip] for clip in one])):
            store.add_cluster(
                cluster_key(one), reviewer=reviewer, decision=decision, groups=groups, kept=[group[0] for group in groups]
            )
        for reviewer in ("ann", "bob", "cleo"):  # said in another order, and two of three are most
            groups = [two[::-1]] if reviewer != "cleo" else [[clip] for clip in two]
            decision = "all_one" if reviewer != "cleo" else "not_duplicates"
            store.add_cluster(
                cluster_key(two), reviewer=reviewer, decision=decision, groups=groups, kept=[group[-1] for group in groups]
            )
        reviewed = reviewed_lists(dedup, store)
    assert sorted(reviewed.decisions.values()) == ["all_one", "disputed"]
    assert not reviewed.dropped & set(one)
    assert reviewed.dropped >= set(two[1:])


def test_a_close_pair_called_a_copy_is_dropped_once(dedup: Duplicates) -> None:
    """With tau out of reach only identical clips count, and the closest pairs wait for a person."""
    corpus = open_corpus(Path(dedup.card["inputs"]["corpus"]["source"][0]))
    found = deduplicate(corpus, output=dedup.path.parent / "open", config=DedupConfig(duration_s=3.0))
    waiting = [row for row in found.pairs().to_pylist() if not row["duplicate"]]
    assert waiting
    with VerdictStore.open(found.path) as store:
        for row in waiting[:3]:
            store.add(row["first_id"], row["second_id"], reviewer="ann", verdict="replication")
        reviewed = reviewed_lists(found, store)
    assert reviewed.joined
    for kept, dropped in reviewed.joined:
        assert dropped in reviewed.dropped
        assert kept not in reviewed.dropped
    page = write_report(found.path).read_text("utf-8")
    assert "more pairs to be copies" in page
    assert (found.path / "drop.reviewed.txt").read_text("utf-8")


def test_leakage_drops_only_what_a_group_shares_with_the_other_set(write_sounds, tmp_path: Path) -> None:
    train, test = write_sounds("train", 20, duration_s=3.0), write_sounds("test", 4, first=100, duration_s=3.0)
    sf.write(train / "leak.wav", 0.5 * sound(101, 3.0), RATE)
    found = deduplicate(
        open_corpus(train), against=open_corpus(test), output=tmp_path / "leak", config=DedupConfig(duration_s=3.0, tau=0.505)
    )
    [rows] = clusters(found)
    with VerdictStore.open(found.path) as store:
        assert reviewed_lists(found, store).dropped == {"leak.wav"}
        store.add_cluster(
            cluster_key(rows), reviewer="ann", decision="not_duplicates", groups=[[clip] for clip in rows], kept=rows
        )
        assert reviewed_lists(found, store).dropped == set()


def test_report_states_the_review_of_clusters(dedup: Duplicates) -> None:
    one, *_ = clusters(dedup)
    assert "Reviewed." not in write_report(dedup.path).read_text("utf-8")
    with VerdictStore.open(dedup.path) as store:
        store.add_cluster(cluster_key(one), reviewer="ann", decision="all_one", groups=[one], kept=[one[0]])
    page = write_report(dedup.path).read_text("utf-8")
    assert "1 of 3 clusters" in page
    assert "all one</span>" in page


def test_the_report_shows_what_people_decided(dedup: Duplicates) -> None:
    one, two, _ = clusters(dedup)
    with VerdictStore.open(dedup.path) as store:
        store.add_cluster(cluster_key(one), reviewer="ann", decision="all_one", groups=[one], kept=[one[2]])
        store.add_cluster(
            cluster_key(two), reviewer="ann", decision="not_duplicates", groups=[[clip] for clip in two], kept=two
        )
    page = write_report(dedup.path).read_text("utf-8")
    assert (
        '<p class="verdict">People decided on 2 of 3 clusters: 4 of 30 clips can be dropped; the machine alone proposed 6.</p>'
    ) in page
    shown = re.findall(r'<span class="role">(keep|drop)</span> <span class="path">(.*?)</span>', page)
    roles = {clip: role for role, clip in shown}
    kept, dropped = names(dedup, "keep.reviewed.txt"), names(dedup, "drop.reviewed.txt")
    assert {clip for clip, role in roles.items() if role == "drop"} == dropped
    assert {clip for clip, role in roles.items() if role == "keep"} <= kept
    assert page.count("people keep it; the machine:") == 3  # the third of the first cluster, two of the second
    assert page.count("people drop it; the machine:") == 1
