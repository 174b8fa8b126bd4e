"""Several processes give what one would, in order, and an item that ends its process costs no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import pytest

from auscult.engine import Engine
from auscult.errors import ModelError
from auscult.processes import map_in_processes


def load(fails: str, device: str) -> Callable[[int], str]:
    if fails:
        raise ModelError(fails)
    loaded = f"loaded on {device} by {os.getpid()}"

    def work(item: int) -> str:
        if item == 13:
            os._exit(11)
        if item == 40:
            raise ValueError("forty")
        return f"{item} {loaded}"

    return work


def unread(item: int, result: str) -> str | None:
    return None


def test_results_come_in_order_and_a_crash_costs_one_item() -> None:
    results = list(
        map_in_processes(partial(load, ""), iter(range(40)), Engine(workers=2), crashed=lambda i: f"{i} !", unread=unread)
    )
    assert [int(result.split()[0]) for result in results] == list(range(40))
    assert [result for result in results if "loaded" not in result] == ["13 !"]
    assert all("on cpu by" in result and f"by {os.getpid()}" not in result for result in results if result != "13 !")


@pytest.mark.parametrize(
    ("fails", "item", "error", "message"), [("no weights", 0, ModelError, "no weights"), ("", 40, ValueError, "forty")]
)
def test_errors_of_loading_and_of_working_are_raised_as_themselves(
    fails: str, item: int, error: type[Exception], message: str
) -> None:
    results = map_in_processes(partial(load, fails), iter([item]), Engine(workers=2), crashed=str, unread=unread)
    with pytest.raises(error, match=message):
        list(results)
