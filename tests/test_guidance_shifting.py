"""References at every shift: planted copies that begin earlier or later are found, with where they begin."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from auscult.guidance.index import ReferenceIndex
from auscult.guidance.shifting import MOST_BYTES, shifted
from auscult.guidance.windows import Layout

STEPS, REST = 12, 5
TIME_FIRST = Layout((STEPS, -1), 0, 0.5)


@dataclass(frozen=True)
class Flat:
    """Vectors as they are."""

    layout: Layout | None = TIME_FIRST
    spec: str = "flat"
    center: bool = True


def index_of(vectors: torch.Tensor, layout: Layout | None = TIME_FIRST) -> tuple[ReferenceIndex, Flat]:
    units = torch.nn.functional.normalize(vectors.flatten(1), dim=1)
    names = tuple("abcdefgh"[: len(units)])
    center = torch.zeros(units.shape[1])
    return ReferenceIndex("flat", names, tuple(name * 2 for name in names), (0.0,) * len(names), units, center), Flat(layout)


@pytest.fixture
def references() -> torch.Tensor:
    return torch.randn(3, STEPS, REST, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("time_axis", [0, 1])
@pytest.mark.parametrize("shift", [-4, -1, 0, 3])
def test_a_copy_at_another_moment_is_found_with_where_it_begins(references: torch.Tensor, shift: int, time_axis: int) -> None:
    moved = torch.zeros_like(references)
    for step in range(STEPS):
        if 0 <= step - shift < STEPS:
            moved[:, step] = references[:, step - shift]
    layout = TIME_FIRST if time_axis == 0 else Layout((REST, -1), 1, 0.5)
    if time_axis == 1:
        references, moved = references.mT, moved.mT
    index, descriptor = index_of(references, layout)
    found = shifted(index, descriptor).nearest(moved.flatten(1))
    whole = shifted(index, descriptor)
    rows = found.rows[:, 0].tolist()
    torch.testing.assert_close(found.similarity[:, 0], torch.ones(3))  # the gap is silent in both
    assert [whole.ids[row] for row in rows] == ["a", "b", "c"]
    assert [whole.captions[row] for row in rows] == ["aa", "bb", "cc"]
    assert [whole.starts_s[row] for row in rows] == [-0.5 * shift] * 3
    alone = index.nearest(moved.flatten(1)).similarity[:, 0]
    assert (alone < 0.6).all() or shift == 0  # without shifts it would be missed


def test_unshifted_references_come_first_and_all_are_of_unit_length(references: torch.Tensor) -> None:
    index, descriptor = index_of(references)
    whole = shifted(index, descriptor)
    assert torch.equal(whole.vectors[:3], index.vectors)
    torch.testing.assert_close(whole.vectors.norm(dim=1), torch.ones(len(whole)))
    assert len(whole) == len(whole.ids) == len(whole.starts_s) == len(whole.captions)


@pytest.mark.parametrize("least", [0.01, 0.3, 0.9])
def test_shifts_that_leave_little_of_a_reference_are_left_out(least: float) -> None:
    references = torch.zeros(1, STEPS, REST)
    references[:, :3] = 1.0  # a sound in the first quarter: moved up by one step, a third of it is cut off
    index, descriptor = index_of(references)
    starts = shifted(index, descriptor, least=least).starts_s
    up = sum(start > 0 for start in starts)
    assert up == {0.01: 2, 0.3: 2, 0.9: 0}[least]  # keeping 2/3 and 1/3
    assert sum(start < 0 for start in starts) == {0.01: STEPS - 1, 0.3: STEPS - 1, 0.9: STEPS - 3}[least]


def test_what_cannot_be_shifted_is_refused(references: torch.Tensor) -> None:
    index, _ = index_of(references)
    with pytest.raises(ValueError, match="no axis of time"):
        shifted(index, Flat(None))
    none = ReferenceIndex("flat", (), (), (), torch.zeros(0, 0))
    assert len(shifted(none, Flat())) == 0
    many = torch.zeros(1, STEPS * REST).expand(MOST_BYTES // (4 * 2 * STEPS * STEPS * REST) + 1, -1)
    big = ReferenceIndex("flat", ("a",) * len(many), (None,) * len(many), (0.0,) * len(many), many)
    with pytest.raises(ValueError, match=r"would take 4 GiB; take fewer references"):
        shifted(big, Flat())
