"""Several processes give what one would, in order, and an item that ends its process costs no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from auscult.engine import Engine
from auscult.errors import ModelError
from auscult.interrupts import interrupts_noted
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


BUSY = """
import sys, time
from functools import partial
from pathlib import Path

from auscult.engine import Engine
from auscult.interrupts import STOPPED, end_at_second_interrupt, leave
from auscult.processes import map_in_processes


def load(folder, device):
    return partial(work, folder)


def work(folder, item):
    Path(folder, str(item)).touch()
    time.sleep(600)


if __name__ == "__main__":
    end_at_second_interrupt()
    try:
        list(map_in_processes(partial(load, sys.argv[1]), iter(range(99)), Engine(workers=2), crashed=str, unread=str))
    except KeyboardInterrupt:
        print("tidying up", flush=True)
        if sys.argv[2] == "slowly":
            time.sleep(600)
        leave(STOPPED)
"""


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
@pytest.mark.parametrize("tidying", ["quickly", "slowly"])
def test_ctrl_c_ends_the_workers_and_a_second_one_ends_at_once(tmp_path: Path, tidying: str) -> None:
    script, began = tmp_path / "busy.py", tmp_path / "began"
    script.write_text(BUSY)
    began.mkdir()

    def heed_ctrl_c() -> None:  # a shell's background job inherits that it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        [sys.executable, str(script), str(began), tidying],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    ) as process:
        try:
            while process.poll() is None and len(list(began.iterdir())) < 2:  # both workers are at work
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGINT)
            if tidying == "slowly":
                assert process.stdout is not None
                assert process.stdout.readline() == "tidying up\n"
            else:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate(timeout=20)
            assert process.returncode == 130, errors
            until = time.monotonic() + 5
            while _is_there(process.pid) and time.monotonic() < until:
                time.sleep(0.02)
            assert not _is_there(process.pid)  # none of the group
        finally:
            if _is_there(process.pid):
                os.killpg(process.pid, signal.SIGKILL)


NOTED = """
import signal, sys
from auscult.interrupts import end_at_second_interrupt, interrupts_noted

class Swallows:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
end_at_second_interrupt()
with interrupts_noted() as interrupt:
    interrupt.heed("nothing was pressed")
    Swallows()
    print(interrupt.pressed, flush=True)
    if sys.argv[1] == "at work":
        Swallows()
    try:
        interrupt.heed("a note")
    except KeyboardInterrupt as stop:
        print(*stop.__notes__, flush=True)
        Swallows()
print("not ended")
"""


@pytest.mark.parametrize(("second", "said"), [("at work", "True\n"), ("tidying up", "True\na note\n")])
def test_a_noted_ctrl_c_waits_and_a_second_one_ends_at_once(second: str, said: str) -> None:
    """Both are pressed in a ``__del__``, where an exception would be printed and forgotten."""
    done = subprocess.run([sys.executable, "-c", NOTED, second], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, said, "")


def test_a_ctrl_c_that_nobody_heeded_is_heeded_at_the_end() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        reached = []
        with pytest.raises(KeyboardInterrupt), interrupts_noted():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")
        assert reached and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupts_noted() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert not interrupt.pressed  # ignored before, ignored here
    finally:
        signal.signal(signal.SIGINT, before)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
