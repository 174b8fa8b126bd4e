"""Eight reviewers at once, and a server that is killed: what was acknowledged is there, once."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from auscult.review.verdicts import VERDICTS, VerdictStore, pair_id
from review_folders import write_audit

REVIEWERS = 8
PATIENCE_S = 120.0

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9")


class Server:
    """`auscult review` as a process of its own, always on the same port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.origin = f"http://127.0.0.1:{self.port}"
        self.process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "auscult", "review", str(self.folder), "--port", str(self.port), "--no-browser"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().startswith(self.origin)
        return process

    def killed(self) -> None:
        """Killed without a warning, and started again."""
        self.end()
        self.process = self._started()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Reviewer(threading.Thread):
    """Decides one pair after the other, and sends each verdict until it is acknowledged."""

    def __init__(self, number: int, origin: str, pairs: list[str]) -> None:
        super().__init__()
        rng = random.Random(number)
        self.reviewer = f"reviewer {number}"
        self.origin = origin
        self.events = [
            {
                "event_id": f"{number:04d}-{place:08d}",
                "pair_id": pair,
                "reviewer": self.reviewer,
                "verdict": rng.choice(VERDICTS),
                "note": f"note {place}",
            }
            for place, pair in enumerate(pairs)
        ]
        self.acknowledged: list[str] = []
        self.counts: list[int] = []
        self.retries = 0

    def run(self) -> None:
        until = time.monotonic() + PATIENCE_S
        with httpx.Client(base_url=self.origin, headers={"Origin": self.origin}, timeout=10) as client:
            for event in self.events:
                while self.events and time.monotonic() < until:
                    try:
                        answer = client.post("/api/verdicts", json=event)
                    except httpx.TransportError:
                        self.retries += 1
                        time.sleep(0.02)
                        continue
                    if answer.status_code == 201:
                        self.acknowledged.append(event["event_id"])
                        self.counts.append(answer.json()["decided"])
                        break
                    raise AssertionError(answer.text)


@pytest.mark.slow  # test_verdicts kills the writer itself, which is quicker
@pytest.mark.parametrize(("each", "kills"), [(200, 3), (1000, 6)])
def test_no_acknowledged_verdict_is_lost_and_none_doubled(tmp_path: Path, each: int, kills: int) -> None:
    folder = write_audit(tmp_path / "audit", each)
    pairs = [pair_id(f"query-clip-{number}", f"reference-clip-{number}-1") for number in range(each)]
    server = Server(folder)
    reviewers = [Reviewer(number, server.origin, random.Random(number).sample(pairs, each)) for number in range(REVIEWERS)]
    wanted = [{event["pair_id"]: event["verdict"] for event in reviewer.events} for reviewer in reviewers]
    rng = random.Random(0)
    total = REVIEWERS * each
    moments = sorted(rng.sample(range(total // 20, total * 19 // 20), kills))
    try:
        for reviewer in reviewers:
            reviewer.start()
        for moment in moments:
            while sum(len(reviewer.acknowledged) for reviewer in reviewers) < moment:
                assert any(reviewer.is_alive() for reviewer in reviewers)
                time.sleep(0.001)
            time.sleep(rng.random() * 0.01)  # anywhere between two commits, or in one
            server.killed()
        for reviewer in reviewers:
            reviewer.join()
    finally:
        for reviewer in reviewers:
            reviewer.events.clear()  # a reviewer that is still waiting stops after this one
        server.end()

    acknowledged = [event for reviewer in reviewers for event in reviewer.acknowledged]
    assert len(acknowledged) == len(set(acknowledged)) == total
    assert sum(reviewer.retries for reviewer in reviewers) >= kills  # the kills met requests
    for reviewer in reviewers:
        # each new verdict is counted, whatever server answers: the count is read from the disk after a start
        assert reviewer.counts == list(range(1, each + 1))
    with VerdictStore.open(folder) as store:
        history = store.history()
        decided = [store.decided(reviewer.reviewer) for reviewer in reviewers]
    assert sorted(history["event_id"].to_pylist()) == sorted(acknowledged)
    assert decided == wanted
