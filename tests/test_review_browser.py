"""The review in a real browser: headless Chromium goes through pairs and clusters by keyboard and mouse.

With AUSCULT_SCREENSHOTS=FOLDER, the screens are saved there for the documentation.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import uvicorn

from auscult.audit import AuditConfig, audit
from auscult.corpus import open_corpus
from auscult.duplicates import DedupConfig, deduplicate
from auscult.review.app import create_app, listen
from auscult.review.verdicts import VerdictStore
from conftest import sound

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="no browser here: install chromium and chromedriver (Debian: chromium-driver)"
)

PAIRS = 22
LAG_S, LENGTH_S, RATE_HZ = 0.5, 3.0, 16_000
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
WIDE, PHONE = (1280, 720), (390, 844)
SAME_MOMENT_S = 0.05  # what a switch between the two may be off
STRONGEST_SPAN = """return fetch('/api/pairs/' + document.getElementById('pair').dataset.shown)
    .then(answer => answer.json()).then(pair => pair.spans[pair.strongest]).then(span => {})"""
PICTURE = """const asked = new URL(document.querySelector('#query-plot img').src).searchParams;
    const [start, end, scale] = [+asked.get('start'), +asked.get('end'), asked.get('scale')]; return """
SERVER = """
import sys
from auscult.review.app import serve
options = eval(sys.argv[3])
serve(sys.argv[1], port=int(sys.argv[2]), reviewer="ada", ready=lambda url: print(url, flush=True), **options)
"""


# --- folders under review, a server, a browser ------------------------------------------------------------------------


def _write(folder: Path, clips: dict[str, tuple[np.ndarray, str]]) -> Path:
    folder.mkdir()
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as text:
        rows = csv.writer(text)
        rows.writerow(["path", "caption"])
        for name, (samples, caption) in clips.items():
            sf.write(folder / name, samples, RATE_HZ)
            rows.writerow([name, caption])
    return folder / "manifest.csv"


def _later(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sound half a second later and at half its level, after a little noise."""
    ahead = 1e-3 * rng.standard_normal(round(LAG_S * RATE_HZ)).astype(np.float32)
    return np.concatenate([ahead, 0.5 * samples])[: len(samples)]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit in which every query is a training clip that starts later."""
    root = tmp_path_factory.mktemp("audited")
    rng = np.random.default_rng(0)
    training = {f"training-{n:02d}.wav": (sound(n, LENGTH_S), f"Recording {n} from the garden") for n in range(PAIRS)}
    copies = [_later(samples, rng) for samples, _ in training.values()]
    generated = {f"generated-{n:02d}.wav": (copy, HOSTILE if n % 7 == 3 else f"A sound, {n}") for n, copy in enumerate(copies)}
    corpora = [open_corpus(_write(root / name, clips)) for name, clips in (("generated", generated), ("training", training))]
    audit(*corpora, output=root / "audit", config=AuditConfig(tau=35.0))
    return root / "audit"


@pytest.fixture(scope="module")
def deduplicated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deduplication with a cluster of four, one of two, and clips of their own."""
    root = tmp_path_factory.mktemp("deduplicated")
    clips = {f"clip-{n:02d}.wav": (sound(n, LENGTH_S), f"Clip {n}") for n in range(14)}
    clips |= {f"again-{n}.wav": (clips["clip-00.wav"][0] * level, HOSTILE) for n, level in enumerate((0.8, 0.6, 0.4))}
    clips["twin.wav"] = (clips["clip-01.wav"][0] * 0.7, "A twin")
    deduplicate(
        open_corpus(_write(root / "clips", clips)), output=root / "dedup", config=DedupConfig(duration_s=LENGTH_S, tau=0.9995)
    )
    return root / "dedup"


class Reviewed:
    """What is on the disk of a folder under review."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def verdicts(self, reviewer: str = "ada") -> dict[str, dict[str, Any]]:
        """The latest verdicts on the disk, by pair."""
        store = VerdictStore.open(self.folder)
        try:
            return {row["pair_id"]: row for row in store.latest(reviewer).to_pylist() if row["verdict"] != "withdrawn"}
        finally:
            store.close()

    def clusters(self) -> list[dict[str, Any]]:
        store = VerdictStore.open(self.folder)
        try:
            latest = store.latest_clusters()
            return latest.to_pylist() if isinstance(latest, pa.Table) else list(latest)
        finally:
            store.close()


class Apart(Reviewed):
    """``auscult review`` in a process of its own, so that it can be killed."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        super().__init__(folder)
        self.options, self.port = options, 0
        self.start()

    def start(self) -> None:
        arguments = [sys.executable, "-c", SERVER, str(self.folder), str(self.port), repr(self.options)]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http"), "the server did not start"
        self.port = int(self.url.rstrip("/").rsplit(":", 1)[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Near(Reviewed):
    """A server in this process: up at once."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        super().__init__(folder)
        place = listen(port=0)
        app = create_app(folder, reviewer="ada", allowed_hosts=place.allowed_hosts, **options)
        self.url = place.url
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [place.socket]})
        self.thread.start()

    def kill(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Near | Apart]]:
    """Serve a copy of a folder, so that each test begins without verdicts; ``apart``: by a process of its own."""
    servers: list[Near | Apart] = []

    def start(folder: Path, *, apart: bool = False, **options: Any) -> Near | Apart:
        shutil.copytree(folder, tmp_path / folder.name)
        servers.append((Apart if apart else Near)(tmp_path / folder.name, options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


class Page:
    """What a reviewer does: opens, presses, clicks, looks."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def size(self, width: int, height: int, *, touch: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if touch else 1, "mobile": touch}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, url: str) -> None:
        self.driver.get(url)
        self.ready()

    def ready(self) -> None:
        """Wait until a pair, a cluster or the summary stands."""
        self.until(
            "const shown = document.querySelector('main section:not([hidden])');"
            "return shown && (shown.id === 'summary' || shown.dataset.shown)"
        )

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, script: str, *arguments: Any, timeout_s: float = 10.0) -> Any:
        return WebDriverWait(self.driver, timeout_s, poll_frequency=0.01).until(lambda _: self.run(script, *arguments), script)

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(key).perform()

    def click(self, selector: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector)).strip()

    @property
    def shown(self) -> str:
        return str(self.run("return document.querySelector('main section:not([hidden])').dataset.shown ?? ''"))

    def seen(self) -> None:
        """Wait until the pair shown may be decided: nobody decides on what was not there for a moment."""
        self.until(
            "const s = document.querySelector('main section:not([hidden])');"
            "return s.id !== 'pair' || (s.dataset.shown && s.dataset.decidable === s.dataset.shown)"
        )

    def decide(self, key: str) -> str:
        """Press a verdict's key, wait for what comes next; returns the pair decided."""
        self.seen()
        before = self.shown
        self.press(key)
        self.until(
            "const s = document.querySelector('main section:not([hidden])');"
            "return s.id === 'summary' || (s.dataset.shown !== arguments[0] && s.getAttribute('aria-busy') !== 'true')",
            before,
        )
        return before

    def sound(self, role: str) -> dict[str, Any]:
        script = """const sound = document.getElementById(arguments[0] + '-audio');
            return {time: sound.currentTime, paused: sound.paused, volume: sound.volume}"""
        return dict(self.run(script, role))

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("AUSCULT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.until("return ![...document.images].some(i => i.offsetParent && !i.complete)")
            self.until(
                "return [...document.querySelectorAll('#members li')].slice(0, 4).every(card => card.querySelector('img'))"
            )
            self.driver.save_screenshot(str(Path(folder) / f"review-{name}.png"))

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def overflow(self) -> int:
        return int(self.run("return document.scrollingElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ("headless=new", "no-sandbox", "disable-gpu", "autoplay-policy=no-user-gesture-required", "disable-dev-shm-usage")
    for flag in (*flags, "window-size=1280,860"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver: Any) -> Iterator[Page]:
    page = Page(driver)
    page.size(*WIDE)
    page.errors()
    yield page
    for handle in driver.window_handles[1:]:
        driver.switch_to.window(handle)
        driver.close()
    driver.switch_to.window(driver.window_handles[0])
    driver.get("about:blank")


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_a_whole_review_by_keyboard_is_saved_fast_and_ends_in_a_summary(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited, apart=True)
    page.open(server.url)
    assert page.text("#progress") == f"0 of {PAIRS} decided"
    names = {"a": "replication", "s": "similar", "d": "different", "f": "unsure"}
    wanted = {}
    for number in range(20):
        key = "asdf"[number % 4]
        wanted[page.decide(key)] = names[key]
        assert page.text("#progress") == f"{number + 1} of {PAIRS} decided"
        assert len(server.verdicts()) == number + 1  # saved before the next pair shows
    assert {pair: row["verdict"] for pair, row in server.verdicts().items()} == wanted
    assert "per minute" in page.text("#pace") and "left" in page.text("#pace")
    times = page.run("return performance.getEntriesByName('next-pair').map(entry => entry.duration)")
    assert len(times) == 20
    assert np.median(times) < 150, times  # ms, from the key to both pictures; the median, since other tests share the machine
    for _ in range(2):
        page.decide("a")
    assert page.text("#summary-title") == f"All {PAIRS} pairs are decided"
    counts = page.run("return [...document.querySelectorAll('#summary-counts li')].map(item => item.textContent)")
    assert counts == ["7 replication", "5 similar", "5 different", "5 unsure"]
    assert f"auscult report {server.folder}" in page.text("#summary-next")
    page.screenshot("summary")
    assert page.errors() == []


def test_a_review_by_mouse(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    page.open(server.url)
    first = page.shown
    page.click("#play-reference")
    page.until("return document.getElementById('reference-audio').currentTime > 0.05")
    page.click("#toggle")
    assert page.sound("reference")["paused"]
    plot = page.driver.find_element(By.ID, "query-plot")
    ActionChains(page.driver, duration=0).move_to_element_with_offset(plot, 0, 0).click().perform()
    middle = page.run("return parseFloat(document.querySelector('#query-plot .playhead').style.left)")
    assert middle == pytest.approx(50, abs=0.5)  # a click in the middle of the picture puts the playhead there
    page.click("#zoom-in")
    page.until("return document.querySelector('#query-plot img').src.includes('start=') && !document.querySelector('.waiting')")
    page.click("[data-verdict=similar]")
    page.until("return document.getElementById('pair').dataset.shown !== arguments[0]", first)
    assert {row["verdict"] for row in server.verdicts().values()} == {"similar"}
    page.click("#previous")
    page.until("return document.getElementById('pair').dataset.shown === arguments[0]", first)
    assert page.run("return document.querySelector('[data-verdict=similar]').getAttribute('aria-pressed')") == "true"
    page.click("#undo")
    page.until("return document.getElementById('progress').textContent.startsWith('0 of')")
    assert server.verdicts() == {}
    assert page.errors() == []


def test_both_pictures_share_one_axis_shifted_by_the_lag(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    place = page.run(
        """const box = selector => document.querySelector(selector).getBoundingClientRect();
        const sides = ['query', 'reference'];
        return {spans: sides.map(role => box(`#${role}-plot .span.strongest`)).map(box => [box.left, box.right]),
                images: sides.map(role => box(`#${role}-plot img`)).map(box => [box.left, box.width]),
                width: document.querySelector('#query-plot').clientWidth};"""
    )
    assert place["spans"][0] == pytest.approx(place["spans"][1], abs=12)  # px; boxes above each other (a frame is 32 ms)
    (query_left, query_width), (reference_left, reference_width) = place["images"]
    assert query_width == pytest.approx(reference_width, rel=0.01)  # the same seconds per pixel, both 3 s long
    shift_s = (reference_left - query_left) / query_width * LENGTH_S
    assert shift_s == pytest.approx(LAG_S, abs=0.07)
    assert place["width"] == pytest.approx(query_width * (LENGTH_S + shift_s) / LENGTH_S, rel=0.01)  # all of both is shown


def test_sound_plays_and_switches_at_the_same_moment(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    lag_s = page.run(STRONGEST_SPAN.format("span.query_start_s - span.reference_start_s"))
    page.press("1")
    page.until("return document.getElementById('query-audio').currentTime > 0.8")
    switched = """
        const [from, to] = [...arguments].map(role => document.getElementById(role + '-audio'));
        const before = from.currentTime;
        document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Tab', bubbles: true}));
        return [before, to.currentTime, from.paused, to.paused];"""
    page.run("document.body.focus()")
    page.press(Keys.TAB)  # a real key; then the same by script, so that no time passes between the two readings
    page.until("return !document.getElementById('reference-audio').paused")
    sounds = page.sound("query"), page.sound("reference")
    assert sounds[0]["paused"] and not sounds[1]["paused"]
    start = sounds[1]["time"]
    page.until("return document.getElementById('reference-audio').currentTime > arguments[0] + 0.2", start)
    before, after, left, entered = page.run(
        switched.replace("document.dispatch", "document.body.dispatch"), "reference", "query"
    )
    assert left and not entered
    assert after - lag_s == pytest.approx(before, abs=SAME_MOMENT_S)
    heads = page.run(
        "return [...document.querySelectorAll('#player .playhead')].map(head => head.getBoundingClientRect().left)"
    )
    assert heads[0] == pytest.approx(heads[1], abs=2)  # px: one playhead over both
    assert page.sound("reference")["volume"] < 0.6 and page.sound("query")["volume"] == 1  # copies are 6 dB below originals
    page.click("#match")
    assert page.sound("reference")["volume"] == 1
    page.press(" ")
    assert page.sound("query")["paused"]
    assert page.errors() == []


def test_a_loop_stays_inside_its_span(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    page.run("document.getElementById('query-audio').playbackRate = 4")  # several rounds in little time
    start, end = page.run(STRONGEST_SPAN.format("[span.query_start_s, span.query_end_s]"))
    page.press("l")
    page.until(
        "return document.getElementById('loop').getAttribute('aria-pressed') === 'true'"
        " && !document.getElementById('query-audio').paused"
    )
    page.run(
        "const sound = document.getElementById('query-audio');"
        "window.heard = []; window.reader = setInterval(() => heard.push(sound.currentTime), 5)"
    )
    page.until("return heard.filter((time, at) => at && time < heard[at - 1] - 0.5).length >= 2")  # twice around
    heard = np.array(page.run("clearInterval(reader); return heard"))
    assert heard.min() > start - 0.05 and heard.max() < end + 4 * 0.03  # a frame of the screen at four times the speed
    assert heard.max() > end - 0.4  # and it goes up to the end
    assert page.errors() == []


def test_the_difference_is_explained_and_plays(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    page.press("3")
    page.until("return document.getElementById('difference-audio').currentTime > 0.05")
    assert "the same waveform" in page.text("#hint") and "dB" in page.text("#hint")  # the copies are exact, at half the level
    assert page.errors() == []


def test_a_reload_resumes_and_notes_are_kept(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    page.open(server.url)
    page.press("n")
    page.press(*"a d, too")  # keys in a note decide nothing
    assert server.verdicts() == {}
    page.press(Keys.ESCAPE)
    first = page.decide("f")
    second = page.decide("a")
    assert server.verdicts()[first]["note"] == "a d, too"
    third = page.shown
    page.driver.refresh()
    page.ready()
    assert page.shown == third
    assert page.text("#progress").startswith("2 of")
    page.click("#queue summary")
    page.click("#undecided")  # all pairs, decided ones too
    page.until("return document.getElementById('pair').dataset.shown && !document.getElementById('previous').disabled")
    assert page.shown == third
    page.press(Keys.ARROW_LEFT)
    page.until("return document.getElementById('pair').dataset.shown === arguments[0]", second)
    page.press(Keys.ARROW_LEFT)
    page.until("return document.getElementById('pair').dataset.shown === arguments[0]", first)
    assert page.run("return document.getElementById('note').value") == "a d, too"
    page.press("n", "!", Keys.ESCAPE)  # changed after the verdict
    page.until("return document.getElementById('said').textContent === 'Saved: note.'")
    assert server.verdicts()[first] == server.verdicts()[first] | {"note": "a d, too!", "verdict": "unsure"}
    page.press("u")
    page.until("return document.getElementById('progress').textContent.startsWith('1 of')")
    assert set(server.verdicts()) == {second}
    assert page.errors() == []


def test_quick_presses_decide_one_pair(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    page.open(server.url)
    first = page.shown
    page.seen()
    ActionChains(page.driver, duration=0).send_keys("ssss").perform()
    page.until("return document.getElementById('pair').dataset.shown !== arguments[0]", first)
    page.seen()
    assert set(server.verdicts()) == {first}
    second = page.shown
    page.decide("a")
    assert set(server.verdicts()) == {first, second}
    assert page.errors() == []


def test_undo_brings_a_changed_verdict_back_with_its_note(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    page.open(server.url)
    page.press("n", *"heard twice", Keys.ESCAPE)
    first = page.decide("a")
    page.press(Keys.ARROW_LEFT)
    page.until("return document.getElementById('pair').dataset.shown === arguments[0]", first)
    page.press("n", *"?!", Keys.ESCAPE)
    page.until("return document.getElementById('said').textContent === 'Saved: note.'")
    page.decide("d")
    assert server.verdicts()[first]["verdict"] == "different"
    page.press("u")
    page.until("return document.getElementById('said').textContent === 'Undone: this pair is “replication” again.'")
    assert server.verdicts()[first] == server.verdicts()[first] | {"verdict": "replication", "note": "heard twice?!"}
    assert page.text("#progress").startswith("1 of")
    page.press("u")
    page.until("return document.getElementById('said').textContent.includes('undecided again')")
    assert server.verdicts() == {}
    assert page.errors() == []


def test_what_the_server_refuses_can_be_changed_and_sent_again(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    page.open(server.url)
    first = page.shown
    page.seen()
    page.run("document.getElementById('note').value = 'x'.repeat(2001)")
    page.press("a")
    page.until("return document.getElementById('banner-text').textContent.includes('at most 2,000 characters')")
    assert page.shown == first and server.verdicts() == {}
    page.screenshot("refused")
    page.run("document.getElementById('note').value = 'shorter'")
    page.decide("a")
    assert page.run("return document.getElementById('banner').hidden")
    assert server.verdicts()[first]["note"] == "shorter"
    assert [error for error in page.errors() if "400" not in error] == []


def test_a_file_that_changed_is_said_to_have_changed(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    second = page.run("return fetch('/api/queue?reviewer=ada').then(r => r.json()).then(q => q.pairs.at(-1))")
    page.run(
        """const [id, fetched] = [arguments[0], window.fetch];
        window.fetch = async (url, ...rest) => {
            const answer = await fetched(url, ...rest);
            if (rest[0]?.method === 'POST')
                return new Response('{"error": "The file has changed."}', {status: 409});
            if (!String(url).startsWith('/api/pairs/' + id)) return answer;
            const pair = await answer.json();
            pair.query.changed = true;
            pair.query.changed_text = 'This file has changed since the audit.';
            return new Response(JSON.stringify(pair));
        };""",
        second,
    )
    for _ in range(PAIRS - 1):
        before = page.shown
        page.press(Keys.ARROW_RIGHT)
        page.until("return document.getElementById('pair').dataset.shown !== arguments[0]", before)
    assert page.shown == second
    assert page.text("#query-plot .altered") == "This file has changed since the audit."
    assert page.run("return document.querySelector('#reference-plot .altered').hidden")
    page.seen()
    page.press("s")
    page.until("return document.getElementById('banner-text').textContent.includes('The file has changed.')")
    page.screenshot("changed")
    assert page.shown == second
    assert page.text("#progress").startswith("0 of")
    assert page.errors() == []


def test_the_queue_knows_what_was_decided_last(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    found = page.run(
        """return Promise.all([import('/static/queue.js'), import('/static/words.js')]).then(([{Queue}, {minutes}]) => {
            const decided = new Map([['a', 'similar'], ['b', 'unsure'], ['c', 'similar']]);
            const times = new Map([['a', '2024-01-02'], ['b', '2024-01-03'], ['c', '2024-01-01']]);
            const queue = new Queue(['a', 'b', 'c', 'd'], decided, true, times);
            const found = [];
            while (queue.latest) { found.push(queue.latest); queue.mark(queue.latest, null); }
            return [found, minutes(0.4)]; })"""
    )
    assert found == [["b", "a", "c"], "under a minute"]
    page.press("u")
    assert "Untick “undecided only”" in page.text("#said")
    assert page.errors() == []


def test_what_the_session_fixes_and_what_could_not_be_flagged(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    script = """const fetched = window.fetch;
        window.fetch = async (url, ...rest) => {
            const answer = await fetched(url, ...rest);
            if (url !== '/api/session') return answer;
            const session = await answer.json();
            return new Response(JSON.stringify({...session, reviewer_fixed: true, flagged_count: 0, rule: 'fdr'}));
        };"""
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        page.open(server.url)
        page.run("localStorage.setItem('auscult.reviewer.ada', 'mallory')")
        page.open(server.url)
        assert page.run(
            "return document.getElementById('reviewer').disabled && document.getElementById('reviewer-change').hidden"
        )
        assert page.text("#reviewer-name") == "ada"
        page.run("localStorage.clear()")
        page.until("return document.getElementById('facts').textContent.includes('score')")
        flagged = page.run("return fetch('/api/pairs/' + arguments[0]).then(r => r.json()).then(p => p.flagged)", page.shown)
        assert ("τ: none" in page.text("#facts")) == (not flagged)
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert page.errors() == []


@pytest.mark.parametrize("blind", [False, True])
def test_a_second_reader_is_not_sent_to_find_one(audited: Path, serve: Any, page: Page, blind: bool) -> None:
    server = serve(audited, blind=blind)
    with VerdictStore.open(server.folder) as store:
        for row in pq.read_table(server.folder / "matches.parquet", filters=[("rank", "=", 1)]).to_pylist():
            store.add(row["query_id"], row["reference_id"], reviewer="ada", verdict="similar")
        store.add(row["query_id"], row["reference_id"], reviewer="bob", verdict="similar")
    page.open(server.url)
    advice = "return document.getElementById('summary-next').textContent.includes('Have a second person')"
    if blind:
        time.sleep(0.5)
        assert page.run(advice)
    else:
        page.until(f"return !({advice[7:]})")
    assert page.errors() == []


def test_two_tabs_lose_no_verdict(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    page.open(server.url)
    driver = page.driver
    one = driver.current_window_handle
    driver.switch_to.new_window("tab")
    page.size(*WIDE)
    page.open(server.url)
    two = driver.current_window_handle
    wanted = {}
    for round_ in range(3):
        for tab, key, verdict in ((one, "a", "replication"), (two, "d", "different")):
            driver.switch_to.window(tab)
            wanted[page.decide(key)] = verdict
            assert {pair: row["verdict"] for pair, row in server.verdicts().items()} == wanted, round_
    assert page.errors() == []


def test_what_a_killed_server_missed_is_kept_and_saved_once(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited, apart=True)
    page.open(server.url)
    page.decide("a")
    pair = page.shown
    page.seen()
    server.kill()
    page.press("s")
    page.until("return !document.getElementById('banner').hidden")
    assert page.text("#banner-text").startswith("Not saved: “similar”")
    page.screenshot("not-saved")
    page.press("r")  # still away
    page.until("return !document.getElementById('banner').hidden")
    page.press("a", Keys.ARROW_RIGHT)  # and nothing else happens until that is settled
    assert page.shown == pair
    server.start()
    page.press("r")
    page.until("return document.getElementById('pair').dataset.shown !== arguments[0]", pair)
    assert page.run("return document.getElementById('banner').hidden")
    assert server.verdicts()[pair]["verdict"] == "similar"
    store = VerdictStore.open(server.folder)
    assert len(store.history()) == 2
    store.close()
    assert [error for error in page.errors() if "net::ERR_" not in error] == []  # what the network said of the absence is right


def test_blind_shows_no_score_and_no_path(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited, blind=True).url)
    words = page.run("return document.getElementById('pair').innerText")
    assert "withheld" in words
    for telling in ("score 1", "flagged", "τ", ".wav", "similarity"):
        assert telling not in words
    page.decide("a")
    assert page.errors() == []


def test_a_hostile_caption_is_text(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    for _ in range(PAIRS):
        if page.text("#query-caption") == HOSTILE:
            break
        pair = page.shown
        page.press(Keys.ARROW_RIGHT)
        page.until("return document.getElementById('pair').dataset.shown !== arguments[0]", pair)
    assert page.text("#query-caption") == HOSTILE
    assert page.run("return document.querySelectorAll('q img, q script').length") == 0
    assert "broken" not in page.driver.title
    assert page.errors() == []


def test_focus_moves_by_keys_and_help_tells_how(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    active = "return document.activeElement.id || document.activeElement.tagName"
    page.press(Keys.TAB)
    assert page.run(active) == "BODY"  # it switched sounds
    assert "reference" in page.text("#said")
    page.press(Keys.ESCAPE)
    assert page.run(active) == "play-query"
    reached = set()
    for _ in range(40):
        page.press(Keys.TAB)
        reached.add(page.run(active))
        if page.run(
            "return document.activeElement === document.body || document.getElementById('player') === document.activeElement"
        ):
            break
    unnamed = page.run(
        "return [...document.querySelectorAll('button, input, select, textarea')]"
        ".filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert {"swap", "loop", "zoom-in", "scale", "note", "next"} <= reached
    assert unnamed == []
    page.press(Keys.ESCAPE, "?")
    page.until("return document.getElementById('help').open")
    assert "Esc" in page.text("#help")
    page.screenshot("help")
    page.press("a")  # decides nothing behind the dialog
    page.press(Keys.ESCAPE)
    page.until("return !document.getElementById('help').open")
    assert page.text("#progress").startswith("0 of")
    assert page.errors() == []


def test_another_reviewer_has_own_verdicts(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    page.open(server.url)
    first = page.decide("a")
    page.click("#queue summary")
    page.click("#reviewer")
    page.until("return document.getElementById('naming').open")
    page.press(*"bea", Keys.ENTER)
    page.until("return document.getElementById('progress').textContent.startsWith('0 of')")
    page.until("return document.getElementById('pair').dataset.shown === arguments[0]", first)
    page.decide("d")
    assert {row["verdict"] for row in server.verdicts("bea").values()} == {"different"}
    assert {row["verdict"] for row in server.verdicts("ada").values()} == {"replication"}
    page.driver.refresh()
    page.ready()
    assert page.text("#reviewer-name") == "bea"
    assert page.errors() == []


def test_zoom_asks_for_the_pictures_of_the_stretch(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    assert page.run(PICTURE + "[start, end, scale]") == [0, LENGTH_S, "mel"]
    page.press("2", " ", "+", "+")
    page.until(PICTURE + "end - start < 1 && scale === 'mel'")
    page.press("m")
    page.until(PICTURE + "end - start < 1 && scale === 'linear'")
    page.press("0")
    page.until(PICTURE + "end - start === arguments[0]", LENGTH_S)
    plot = page.driver.find_element(By.ID, "query-plot")
    drag = ActionChains(page.driver, duration=50).move_to_element_with_offset(plot, -200, 0).click_and_hold()
    drag.move_by_offset(300, 0).release().perform()
    page.until(PICTURE + "end - start < 1")  # the stretch dragged over
    page.press("0")
    page.until(PICTURE + "end - start === arguments[0]", LENGTH_S)
    wheel = {"type": "mouseWheel", "x": 640, "y": 200, "deltaX": 0, "deltaY": -480}
    page.driver.execute_cdp_cmd("Input.dispatchMouseEvent", wheel)
    page.until(PICTURE + "end - start < 1")
    assert page.errors() == []


@pytest.mark.parametrize(("size", "name"), [(WIDE, "pair"), (PHONE, "phone")])
def test_a_pair_fits_the_screen(audited: Path, serve: Any, page: Page, size: tuple[int, int], name: str) -> None:
    page.size(*size, touch=size == PHONE)
    page.open(serve(audited).url)
    page.press("1")
    page.until("return document.getElementById('query-audio').currentTime > 1.2")
    page.press(" ")
    page.screenshot(name)
    assert page.overflow() == 0
    height = page.run("return document.scrollingElement.scrollHeight")
    assert size != WIDE or height <= size[1]  # a whole pair without scrolling
    bottom = page.run("return document.querySelector('[data-verdict=unsure]').getBoundingClientRect().bottom")
    assert bottom <= size[1]  # verdicts are in reach
    assert page.errors() == []


def test_another_candidate_is_decided_aside(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    page.open(server.url)
    first = page.shown
    page.click("#others button")
    page.until("return document.getElementById('pair').dataset.shown !== arguments[0]", first)
    other = page.decide("d")
    assert page.shown == first  # back in the queue, which is still undecided
    assert set(server.verdicts()) == {other}
    assert page.errors() == []


def test_the_queue_in_another_order(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    wanted = page.run("return fetch('/api/queue?reviewer=ada&order=random&set=listed').then(r => r.json()).then(q => q.pairs)")
    assert wanted[0] != page.shown  # by score another one is first
    page.click("#queue summary")
    page.run(
        "const order = document.getElementById('order'); order.value = 'random';"
        "order.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    page.until("return document.getElementById('pair').dataset.shown === arguments[0]", wanted[0])
    page.decide("a")
    assert page.shown == wanted[1]
    page.driver.refresh()
    page.ready()
    assert page.shown == wanted[1]
    assert page.errors() == []


def test_the_drawn_sample_is_a_queue_of_its_own(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited, sample=4)
    page.open(server.url)
    page.click("#queue summary")
    page.run(
        "const set = document.getElementById('set'); set.value = 'sample';"
        "set.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    page.until("return document.getElementById('progress').textContent === '0 of 4 decided'")
    page.ready()
    wanted = page.run("return fetch('/api/queue?reviewer=ada&set=sample').then(r => r.json()).then(q => q.pairs)")
    page.until("return document.getElementById('pair').dataset.shown === arguments[0]", wanted[0])
    assert [page.decide("d") for _ in range(4)] == wanted
    assert page.text("#summary-title") == "All 4 pairs are decided"
    assert set(server.verdicts()) == set(wanted)
    assert page.errors() == []


def test_a_file_that_is_gone_is_said_to_be_gone(audited: Path, serve: Any, page: Page) -> None:
    server = serve(audited)
    paths = pq.read_table(server.folder / "matches.parquet", filters=[("rank", "=", 1)])["query_path"].to_pylist()
    away = [Path(path) for path in paths]
    try:
        for path in away:
            path.rename(path.with_suffix(".away"))
        page.open(server.url)
        assert page.text("#query-plot .missing").startswith("No picture, no sound:")
        assert page.run("return document.querySelectorAll('#reference-plot img').length") == 1
        page.press(" ")
        page.until("return document.getElementById('reference-audio').currentTime > 0")
        page.seen()
        page.press("a")
        page.until("return document.getElementById('said').textContent.includes('only “unsure”')")
        page.screenshot("gone")
        page.decide("f")
        assert {row["verdict"] for row in server.verdicts().values()} == {"unsure"}
    finally:
        for path in away:
            path.with_suffix(".away").rename(path)
    assert page.errors() == []


def test_the_clocks_of_both_sounds_map_onto_each_other(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    spans = [(1.0, 2.0, 5.0, 6.1), (4.0, 5.0, 0.5, 1.6)]  # two spans at lags of their own; the query plays 10 % slower
    names = ("query_start_s", "query_end_s", "reference_start_s", "reference_end_s")
    pair = {"query": {"duration_s": 6}, "reference": {"duration_s": 3600}, "tempo": 1.1, "lag_s": 3.5, "strongest": 1}
    pair["spans"] = [dict(zip(names, span, strict=True)) for span in spans]
    found = page.run(
        """return import('/static/alignment.js').then(({alignmentOf, counterpart, firstView, toAxis}) => {
            const a = alignmentOf(arguments[0]);
            return {moments: [1.5, 4.5, 3].map(time => counterpart(a, 'query', time)),
                    back: [1.5, 4.5, 3].map(time => counterpart(a, 'reference', counterpart(a, 'query', time))),
                    axis: toAxis(a, 'reference', 0.5), full: a.full, view: firstView(a)}; })""",
        pair,
    )
    assert found["moments"] == pytest.approx([5.55, 1.05, 0.5 - 1.1])  # by the span one is in; outside, by the strongest
    assert found["back"] == pytest.approx([1.5, 4.5, 3])
    assert found["axis"] == 4.0  # where the strongest span begins, the pictures meet
    assert found["full"] == [0, 3603.5]
    assert found["view"] == pytest.approx([0, 6.6])  # of an hour, what surrounds the query is shown first


PLAYER = """
return Promise.all([import('/static/player.js'), import('/static/alignment.js')]).then(([{Player}, {alignmentOf}]) => {
    class Fake {
        constructor(length) { Object.assign(this, {duration: length, time: 0, paused: true, seeks: 0, heard: {}}); }
        addEventListener(kind, act) { (this.heard[kind] ??= []).push(act); }
        getAttribute() { return this.src ?? null; }
        hasAttribute() { return Boolean(this.src); }
        removeAttribute() { this.src = null; }
        load() {}
        get currentTime() { return this.time; }
        set currentTime(time) { this.seeks += 1; this.time = Math.min(Math.max(time, 0), this.duration || Infinity); }
        play() { this.paused = false; return Promise.resolve(); }
        pause() { this.paused = true; }
        end() { this.time = this.duration; this.paused = true; for (const act of this.heard.ended) act(); }
    }
    const names = ['query_start_s', 'query_end_s', 'reference_start_s', 'reference_end_s'];
    const made = (spans, strongest) => {
        const s = {query: new Fake(10), reference: new Fake(20), difference: new Fake(2)};
        const p = new Player(s, () => {});
        spans = spans.map((times) => Object.fromEntries(names.map((name, at) => [name, times[at]])));
        const side = (role, duration_s) => ({duration_s, audio: role, missing: null});
        p.load(alignmentOf({pair_id: 'x', spans, strongest, tempo: 1, lag_s: 0, level_db: {}, difference_db: -20,
            query: side('query', 10),
            reference: side('reference', 20), difference: {start_s: spans[strongest].query_start_s}}));
        return {s, p};
    };
    SCRIPT
});"""


def test_a_loop_keeps_the_clock_of_its_span(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    found = page.run(
        PLAYER.replace(
            "SCRIPT",
            """
            const {s, p} = made([[1, 3, 1, 3], [1, 3, 11, 13]], 1); // a repeat: both hold at the same moment of the query
            s.query.time = 2; p.toggleLoop(); const first = p.loop.reference_start_s;
            p.swap(); const there = s.reference.time; p.frame();
            const stays = s.reference.time; p.swap(); const back = s.query.time;
            p.toggleLoop(); p.seek('reference', 2); p.toggleLoop(); const second = p.loop.reference_start_s;
            p.swap(); const other = s.query.time; p.swap(); // the weaker one is looped
            return {first, there, stays, back, second, other, again: s.reference.time};""",
        )
    )
    assert found == {"first": 11, "there": 12, "stays": 12, "back": 2, "second": 1, "other": 2, "again": 2}


def test_a_loop_ends_where_the_difference_has_none_of_it(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    found = page.run(
        PLAYER.replace(
            "SCRIPT",
            """
            const tried = (spans, length, loaded) => {
                const {s, p} = made(spans, 0), d = s.difference;
                d.duration = loaded ? length : NaN;
                s.query.time = 7; p.toggleLoop(); p.play('difference');
                if (!loaded) { d.duration = length; d.time = Math.min(d.time, length); }
                for (let frame = 0; frame < 50; frame += 1) { p.frame(); if (d.time >= length - 1e-9) d.end(); }
                return {loop: Boolean(p.loop), seeks: d.seeks, time: d.time, paused: d.paused};
            };
            return [tried([[1, 3, 1, 3], [6, 8, 9, 11]], 2, true), tried([[1, 3, 1, 3], [6, 8, 9, 11]], 2, false),
                    tried([[8, 9, 8, 9], [6, 7.5, 9, 10.5]], 1, true), tried([[6, 8, 6, 8]], 2, true)];""",
        )
    )
    assert [one["loop"] for one in found] == [False, False, False, True]
    assert all(one["seeks"] < 5 and not one["paused"] for one in found)
    assert [one["time"] for one in found[:3]] == [0, 0, 0]


def test_times_are_readable_at_every_zoom(audited: Path, serve: Any, page: Page) -> None:
    page.open(serve(audited).url)
    words = page.run(
        """return import('/static/words.js').then(({seconds, timeTicks}) => [
            seconds(4.254), seconds(1200), seconds(3599.999, 2, 2), seconds(900.83, 2, 2),
            ...arguments[0].map(([start, end]) => timeTicks(start, end, 3).map(tick => tick[0]).join(' | '))])""",
        [[0, 3], [899.9, 902], [900, 901], [0, 0.03], [-2, 3603]],
    )
    assert words[:4] == ["4.25 s", "20:00", "1:00:00.00", "15:00.83"]
    assert words[4:] == [
        "0 s | 1 s | 2 s",
        "15:00 | 15:01",
        "15:00.0 | 15:00.5",
        "0 s | 0.01 s | 0.02 s",
        "0 s | 30:00 | 1:00:00",
    ]


# --- clusters ---------------------------------------------------------------------------------------------------------


def test_a_cluster_is_split_and_its_kept_clip_changed(deduplicated: Path, serve: Any, page: Page) -> None:
    server = serve(deduplicated)
    page.open(server.url)
    assert page.text("#progress") == "0 of 2 decided"
    if page.run("return document.querySelectorAll('#members li').length") != 4:
        page.press("]")
        page.until("return document.querySelectorAll('#members li').length === 4")
    key = page.shown
    names = page.run("return [...document.querySelectorAll('#members .path')].map(path => path.title)")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "s")  # the third clip begins a group of its own
    page.press(Keys.ARROW_RIGHT, "k")  # of which the fourth is kept
    page.press(" ")
    page.until("return document.getElementById('member-audio').currentTime > 0.05")
    assert page.text("#cluster-facts") == "4 clips in 2 groups; 2 kept, 2 dropped"
    page.screenshot("cluster")
    page.press(Keys.ENTER)
    page.until("return document.getElementById('said').textContent === 'Saved: a split.'")
    row = next(row for row in server.clusters() if row["cluster_key"] == key)
    listed = [json.loads(row[name]) if isinstance(row[name], str) else row[name] for name in ("groups", "kept")]
    paths = dict(
        zip(*[pq.read_table(server.folder / "clusters.parquet")[name].to_pylist() for name in ("clip_id", "path")], strict=True)
    )
    groups = [[paths[clip] for clip in group] for group in listed[0]]
    assert row["decision"] == "split"
    assert sorted(map(sorted, groups)) == sorted([sorted(names[:2]), sorted(names[2:])])
    assert {paths[clip] for clip in listed[1]} == {names[0], names[3]}
    page.press("u")
    page.until("return document.getElementById('said').textContent.startsWith('Undone')")
    assert page.shown == key
    page.until("return document.getElementById('progress').textContent.startsWith('0 of')")
    page.decide("a")
    page.decide("d")
    assert sorted(row["decision"] for row in server.clusters() if row["decision"] != "withdrawn") == [
        "all_one",
        "not_duplicates",
    ]
    assert page.text("#summary-title") == "All 2 clusters are decided"
    assert page.errors() == []


def test_undo_brings_a_changed_decision_back(deduplicated: Path, serve: Any, page: Page) -> None:
    server = serve(deduplicated)
    page.open(server.url)
    first = page.decide("a")
    page.press("[")
    page.until("return document.getElementById('cluster').dataset.shown === arguments[0]", first)
    page.decide("d")
    assert [row["decision"] for row in server.clusters()] == ["not_duplicates"]
    page.press("u")
    page.until("return document.getElementById('said').textContent === 'Undone: this cluster is “all one” again.'")
    assert [row["decision"] for row in server.clusters()] == ["all_one"]
    assert page.errors() == []


def test_clusters_fit_a_phone(deduplicated: Path, serve: Any, page: Page) -> None:
    page.size(*PHONE, touch=True)
    page.open(serve(deduplicated).url)
    page.screenshot("cluster-phone")
    assert page.overflow() == 0
    assert (
        page.run("return document.querySelector('[data-decision=not_duplicates]').getBoundingClientRect().bottom") <= PHONE[1]
    )
    assert page.run("return document.querySelectorAll('#members img[src=x], #members script').length") == 0
    assert page.errors() == []


def test_a_cluster_of_hundreds_is_drawn_as_one_scrolls(deduplicated: Path, serve: Any, page: Page, tmp_path: Path) -> None:
    """Rows of a large cluster are planted in the table: making hundreds of copies would take longer than looking at them."""
    large = tmp_path / "planted" / "large"
    shutil.copytree(deduplicated, large)
    rows = pq.read_table(large / "clusters.parquet")
    first = rows.slice(0, 1).to_pylist()[0]
    many = [first | {"clip_id": f"planted-{n}", "keep": n == 0, "similarity_to_kept": 1 - n / 1000} for n in range(300)]
    pq.write_table(pa.Table.from_pylist(many, rows.schema), large / "clusters.parquet")
    page.open(serve(large).url)
    assert page.run("return document.querySelectorAll('#members li').length") < 120
    assert page.run("return document.querySelectorAll('#members img').length") < 60
    page.press(Keys.END)
    page.until("return document.activeElement.dataset.place === '299'")
    page.until("return document.activeElement.querySelector('img')?.complete")
    assert page.run("return document.querySelectorAll('#members img').length") < 200
    page.press("s", Keys.ENTER)
    page.until("return document.getElementById('said').textContent === 'Saved: a split.'")
    assert page.errors() == []
