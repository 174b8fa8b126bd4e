"""The review server against pages and people that it should not answer."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from auscult.errors import AuscultError
from auscult.review import app as review_app
from auscult.review import connections, security
from auscult.review.app import create_app, server_config
from auscult.review.listening import listen
from auscult.review.replies import page_files
from auscult.review.security import MAX_BODY, SAFE_HEADERS, host_allowed
from auscult.review.verdicts import VerdictStore, pair_id
from review_folders import write_audit

HOST = "127.0.0.1:8765"
ORIGIN = f"http://{HOST}"
PAIR = pair_id("query-clip-0", "reference-clip-0-1")
EVENT = {"event_id": "event-00000001", "pair_id": PAIR, "reviewer": "ann", "verdict": "replication", "note": ""}
TOKEN = "a-token-that-is-secret"
COOKIES = f"auscult_review_8765={TOKEN}; auscult_review_8765=x"  # the later of two counts


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return write_audit(tmp_path / "audit")


def client(audit: Path, **options: object) -> TestClient:
    options = {"allowed_hosts": (HOST, "localhost:8765", "[::1]:8765"), **options}
    app = create_app(audit, reviewer="ann", **options)  # type: ignore[arg-type]
    return TestClient(app, base_url=ORIGIN, follow_redirects=False, raise_server_exceptions=False)


@pytest.fixture
def web(audit: Path) -> Iterator[TestClient]:
    with client(audit) as opened:
        yield opened


def stored(audit: Path) -> int:
    with VerdictStore.open(audit) as store:
        return store.history().num_rows


# --- where it listens -----------------------------------------------------------------------------------------------


def test_it_listens_on_this_machine_only() -> None:
    place = listen(port=0)
    with place.socket:
        assert place.socket.getsockname()[0] == "127.0.0.1"
        assert place.token is None
        port = place.socket.getsockname()[1]
        assert place.url == f"http://127.0.0.1:{port}/"
        assert set(place.allowed_hosts) == {f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_host_brings_a_token(host: str) -> None:
    tokens = set()
    for _ in range(2):
        place = listen(host, 0)
        with place.socket:
            assert place.token is not None
            assert len(place.token) >= 32
            assert place.url.endswith(f"/?token={place.token}")
            tokens.add(place.token)
            any_address = f"*:{place.socket.getsockname()[1]}" in place.allowed_hosts
            assert any_address == (host == "0.0.0.0")
    assert len(tokens) == 2


def test_an_address_of_another_machine_is_said_to_be_one() -> None:
    with pytest.raises(AuscultError, match="cannot listen on 192.0.2.7"):  # reserved for documentation
        listen("192.0.2.7", 0)


# --- which names it answers to (DNS rebinding) ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8766", "127.0.0.1.evil.example:8765",
     "localhost.evil.example:8765", "evil@127.0.0.1:8765", "127.0.0.1:8765@evil.example", "127.0.0.2:8765", "10.0.0.7:8765",
     "[::2]:8765", "0.0.0.0:8765", "", ":8765", "*:8765",
      "2130706433:8765", "127.1:8765", "localhost.:8765", "[::1]x:8765", "127.0.0.1:8765:1"],
)  # fmt: skip
def test_other_hosts_are_refused(web: TestClient, host: str) -> None:
    for address in ("/", "/api/session", f"/media/{PAIR}/query/audio.wav"):
        answer = web.get(address, headers={"Host": host})
        assert answer.status_code == 421, address
        assert set(answer.json()) == {"error"}


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "LOCALHOST:8765", "[::1]:8765"])
def test_its_own_names_are_answered(web: TestClient, host: str) -> None:
    assert web.get("/api/session", headers={"Host": host}).status_code == 200
    posted = web.post("/api/verdicts", json=EVENT, headers={"Host": host, "Origin": f"http://{host.lower()}"})
    assert posted.status_code == 201


def test_any_address_is_no_name() -> None:
    allowed = frozenset({"*:8765"})
    for host in ("10.0.0.7:8765", "[fe80::1]:8765", "127.0.0.1:8765"):
        assert host_allowed(host, allowed)
    for host in ("evil.example:8765", "localhost:8765", "10.0.0.7:80", "10.0.0.7", "*:8765", "", "[]:8765"):
        assert not host_allowed(host, allowed), host


def test_two_host_lines_are_refused(web: TestClient) -> None:
    assert web.get("/api/session", headers=[("Host", HOST), ("Host", "evil.example")]).status_code == 421


# --- who asks (cross-site requests) ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": ORIGIN}, 201),
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}, 201),
        ({}, 403),  # no origin
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "http://127.0.0.1:3000"}, 403),  # another local server
        ({"Origin": "https://127.0.0.1:8765"}, 403),
        ({"Origin": f"{ORIGIN}.evil.example"}, 403),
        ({"Origin": f"{ORIGIN}/"}, 403),
        ({"Origin": "http://localhost:8765"}, 403),  # not the name that was asked
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_only_our_own_page_changes_something(web: TestClient, audit: Path, headers: dict[str, str], status: int) -> None:
    assert web.post("/api/verdicts", json=EVENT, headers=headers).status_code == status
    assert stored(audit) == (status == 201)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", ""]
)
def test_what_a_form_can_send_is_refused(web: TestClient, audit: Path, kind: str) -> None:

    answer = web.post("/api/verdicts", content=json.dumps(EVENT), headers={"Origin": ORIGIN, "Content-Type": kind})
    assert answer.status_code == 415
    assert stored(audit) == 0


def test_json_may_name_its_charset(web: TestClient) -> None:

    headers = {"Origin": ORIGIN, "Content-Type": "Application/JSON; charset=utf-8"}
    assert web.post("/api/verdicts", content=json.dumps(EVENT), headers=headers).status_code == 201


def test_other_sites_see_nothing(web: TestClient) -> None:
    for address in ("/", "/api/session", f"/api/pairs/{PAIR}", f"/media/{PAIR}/query/audio.wav", "/static/icon.svg"):
        for mode in ("no-cors", "cors", "navigate"):
            headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode}
            assert web.get(address, headers=headers).status_code == 403, address
        same_site = {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}  # a page of another local server
        assert web.get(address, headers=same_site).status_code == 403
        assert web.get(address, headers={"Origin": "http://evil.example"}).status_code == 403
    for site in ("none", "same-origin"):
        assert web.get("/api/session", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_refused(web: TestClient, method: str) -> None:
    for address in ("/", "/api/verdicts"):
        answer = web.request(method, address, headers={"Origin": ORIGIN, "Content-Type": "application/json"}, content=b"{}")
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in answer.headers


def test_reading_changes_nothing(web: TestClient, audit: Path) -> None:
    assert web.get("/api/verdicts", params=EVENT).status_code == 405
    assert web.post("/api/session", json={}, headers={"Origin": ORIGIN}).status_code == 405
    assert stored(audit) == 0


# --- how much -------------------------------------------------------------------------------------------------------


def test_bodies_are_small(web: TestClient, audit: Path) -> None:
    headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
    filler = b'{"x": "' + b"y" * (MAX_BODY - 9) + b'"}'
    assert len(filler) == MAX_BODY
    assert web.post("/api/verdicts", content=filler, headers=headers).status_code == 400  # read, and no verdict
    assert web.post("/api/verdicts", content=filler + b" ", headers=headers).status_code == 413

    def pieces() -> Iterator[bytes]:  # without Content-Length
        for _ in range(100):
            yield b" " * 1024

    assert web.post("/api/verdicts", content=pieces(), headers=headers).status_code == 413
    lying = {**headers, "Content-Length": "10"}
    assert web.post("/api/verdicts", content=filler + b" ", headers=lying).status_code == 413
    assert stored(audit) == 0


def test_the_decision_on_a_large_cluster_fits(web: TestClient) -> None:
    clips = [f"freesound/field-recordings/2019/collection-0007/take-{number:06d}.wav" for number in range(2000)]
    event = {"event_id": "e" * 10, "cluster_key": "none", "decision": "not_duplicates", "groups": [[one] for one in clips]}
    event |= {"kept": clips, "reviewer": "ann", "note": ""}
    headers = {"Origin": ORIGIN}
    assert web.post("/api/clusters", json=event, headers=headers).json()["error"].startswith("no such cluster")  # it was read
    assert web.post("/api/verdicts", json=event, headers=headers).status_code == 413
    assert web.post("/api/clusters", json={**event, "note": "x" * (1 << 20)}, headers=headers).status_code == 413


@contextmanager
def running(audit: Path) -> Iterator[int]:
    """The port of a server like the command's."""
    place = listen(port=0)
    server = uvicorn.Server(server_config(create_app(audit, reviewer="ann", allowed_hosts=place.allowed_hosts)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place.socket]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield place.socket.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def open_ones(held: list[socket.socket]) -> int:
    """How many connections the server has not closed."""
    left = 0
    for one in held:
        one.setblocking(False)
        try:
            left += one.recv(1) != b""
        except BlockingIOError:
            left += 1
        except OSError:
            pass
    return left


def test_half_requests_shut_nobody_out(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS", 20)
    monkeypatch.setattr(connections, "REQUEST_S", 3.0)
    with running(audit) as port, ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(60)]
        with suppress(OSError):
            for one in held:
                one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX:")
        began = time.monotonic()
        assert raw(port, "/api/session").startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began < 2
        assert open_ones(held) <= 20
        while open_ones(held) and time.monotonic() - began < 8:
            time.sleep(0.1)
        assert open_ones(held) == 0


def test_half_a_request_after_a_whole_one_is_not_waited_for(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    with running(audit) as port, socket.create_connection(("127.0.0.1", port), 10) as one:
        one.sendall(f"GET /favicon.ico HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        assert one.recv(65_536).startswith(b"HTTP/1.1 204")
        one.sendall(b"GET / HTTP/1.1\r\nX:")
        one.settimeout(5)
        with suppress(ConnectionError):
            assert one.recv(1) == b""


def test_a_body_that_does_not_come_is_not_waited_for(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "BODY_S", 0.5)
    with running(audit) as port, socket.create_connection(("127.0.0.1", port), 10) as one:
        address = f"127.0.0.1:{port}"
        headers = f"Host: {address}\r\nOrigin: http://{address}\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
        one.sendall(f"POST /api/verdicts HTTP/1.1\r\n{headers}\r\n{{".encode())
        one.settimeout(5)
        answer = b""
        while part := one.recv(65_536):
            answer += part
        assert answer.startswith(b"HTTP/1.1 408")
    assert stored(audit) == 0


# --- the token ------------------------------------------------------------------------------------------------------


def test_without_the_token_nothing_is_answered(audit: Path) -> None:
    addresses = ["/", "/api/session", "/api/queue", f"/api/pairs/{PAIR}", f"/media/{PAIR}/query/audio.wav", "/static/icon.svg",
                 "/nothing", "/?token=", "/?token=wrong", f"/?token={TOKEN[:-1]}", f"/?token={TOKEN}x", f"/?Token={TOKEN}",
                 f"/api/session?token={TOKEN}", "/?token=%ff%fe", "/?token=\u00e9"]  # fmt: skip
    with client(audit, token=TOKEN) as web:
        for address in addresses:
            answer = web.get(address)
            assert answer.status_code == 401, address
            assert "set-cookie" not in answer.headers
            assert TOKEN not in answer.text
        assert web.post("/api/verdicts", json=EVENT, headers={"Origin": ORIGIN}).status_code == 401
        for cookie in ("", "auscult_review_8765=", "auscult_review_8765=wrong", f"auscult_review_80={TOKEN}",
                       f"x={TOKEN}",
                       'auscult_review_8765="', "auscult_review_8765=%ff", COOKIES):  # fmt: skip
            assert web.get("/api/session", headers={"Cookie": cookie}).status_code == 401, cookie
    assert stored(audit) == 0


def test_the_token_becomes_a_cookie(audit: Path) -> None:
    with client(audit, token=TOKEN) as web:
        answer = web.get(f"/?token={TOKEN}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert re.fullmatch(rf"auscult_review_8765={TOKEN}; Path=/; HttpOnly; SameSite=Strict", cookie)
        assert web.get("/api/session").status_code == 200
        assert web.post("/api/verdicts", json=EVENT, headers={"Origin": ORIGIN}).status_code == 201
        assert TOKEN not in web.get("/api/session").text
        # a cookie does not help another site or another name
        assert web.get("/api/session", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert web.get("/api/session", headers={"Host": "evil.example:8765"}).status_code == 421
        assert web.get(f"/?token={TOKEN}", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


@pytest.mark.parametrize(
    "others",
    ["theme", 'prefs={"a":1}', "path=/x", "version=3", "a(b)=1", "s=a b", 'other="2|1:0|x"', "=", "", "auscult_review_80=x"],
)
def test_cookies_of_other_programs_do_not_hide_ours(audit: Path, others: str) -> None:
    with client(audit, token=TOKEN) as web:
        for cookies in (f"{others}; auscult_review_8765={TOKEN}", f"auscult_review_8765={TOKEN};{others}"):
            assert web.get("/api/session", headers={"Cookie": cookies}).status_code == 200, cookies


def test_who_is_let_in_is_asked_for_a_name(audit: Path) -> None:
    app = create_app(audit, token=TOKEN, allowed_hosts=(HOST,))
    with TestClient(app, base_url=ORIGIN, headers={"Cookie": f"auscult_review_8765={TOKEN}", "Origin": ORIGIN}) as web:
        assert web.get("/api/session").json()["reviewer"] is None
        nobody = {name: value for name, value in EVENT.items() if name != "reviewer"}
        for event in (nobody, {**nobody, "reviewer": None}):
            assert web.post("/api/verdicts", json=event).status_code == 400
            assert web.post("/api/clusters", json=event).status_code == 400
        assert web.post("/api/verdicts", json=EVENT).status_code == 201
    with TestClient(create_app(audit, allowed_hosts=(HOST,)), base_url=ORIGIN) as web:
        assert web.get("/api/session").json()["reviewer"] == review_app.login_name()


def test_the_token_is_compared_in_constant_time(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    honest = security.hmac.compare_digest

    def recorded(given: bytes, wanted: bytes) -> bool:
        compared.append((given, wanted))
        return honest(given, wanted)

    monkeypatch.setattr(security.hmac, "compare_digest", recorded)
    with client(audit, token=TOKEN) as web:
        web.get("/api/session", headers={"Cookie": "auscult_review_8765=guess"})
    assert compared == [(b"guess", TOKEN.encode())]


# --- what comes back ------------------------------------------------------------------------------------------------


def test_every_answer_carries_the_headers(audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
              "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")  # fmt: skip
    assert SAFE_HEADERS["content-security-policy"] == policy
    with client(audit) as web:
        desk = web.app.state.desk  # type: ignore[attr-defined]
        monkeypatch.setattr(desk, "stats", lambda: 1 / 0)  # a mistake of ours
        answers = {
            web.get("/"),
            web.get("/api/session"),
            web.get(f"/media/{PAIR}/query/audio.wav", headers={"Range": "bytes=0-9"}),
            web.get(f"/media/{PAIR}/query/audio.wav", headers={"Range": "bytes=99999999-"}),
            web.get(f"/media/{PAIR}/query/spectrogram.png"),
            web.head("/api/session"),
            web.get("/nothing"),
            web.get("/api/session/"),
            web.get("/api/session", headers={"Host": "evil.example"}),
            web.get("/api/session", headers={"Sec-Fetch-Site": "cross-site"}),
            web.post("/api/verdicts", json=EVENT),
            web.post("/api/verdicts", json={}, headers={"Origin": ORIGIN}),
            web.request("PUT", "/"),
            web.get("/api/stats"),
        }
        statuses = {answer.status_code for answer in answers}
        assert statuses >= {200, 206, 400, 403, 404, 405, 416, 421, 500}
        for answer in answers:
            for name, value in SAFE_HEADERS.items():
                assert answer.headers.get_list(name) == [value], (answer.request.url, name)
            assert not [name for name in answer.headers if name.startswith("access-control-")]
        failed = web.get("/api/stats")
        assert failed.json()["error"].startswith("the review server failed")
        assert "ZeroDivision" not in failed.text
    with client(audit, token=TOKEN) as web:
        for answer in (web.get("/"), web.get(f"/?token={TOKEN}")):
            assert answer.headers["content-security-policy"] == policy
            assert answer.headers["referrer-policy"] == "no-referrer"  # the token is in the address


# --- paths ----------------------------------------------------------------------------------------------------------

CLIMBS = ["../app.py", "../../cli.py", "..%2fapp.py", "%2e%2e/app.py", "%2e%2e%2fapp.py", "%252e%252e%252fapp.py",
          "..%5capp.py",
          "..\\app.py", "....//app.py", "%2fetc%2fpasswd", "/etc/passwd", "//etc/passwd", "%00", "app.css%00.py", "..;/app.py",
          "%c0%ae%c0%ae%c0%afapp.py", "．．/app.py", "file:///etc/passwd", ".", "..", "", "C:%5cwindows%5cwin.ini"]  # fmt: skip


def raw(app_port: int, target: str) -> bytes:
    """An answer to a request line that no client library has tidied up."""
    with socket.create_connection(("127.0.0.1", app_port), timeout=10) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{app_port}\r\nConnection: close\r\n\r\n".encode())
        parts = []
        while part := connection.recv(65_536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's folder with a link that leads out of it, and a secret beside it."""
    static = tmp_path / "outer" / "static"
    static.mkdir(parents=True)
    (static / "index.html").write_text("<!doctype html><title>page</title>")
    (static / "page.js").write_text("'own file'")
    (tmp_path / "outer" / "app.py").write_text("TOP SECRET")
    (static / "link.js").symlink_to(tmp_path / "outer" / "app.py")
    (static / "inner").symlink_to(tmp_path / "outer")
    (static / "folder").mkdir()
    (static / "folder" / "app.py").write_text("TOP SECRET")
    monkeypatch.setattr(review_app, "STATIC", static)
    return static


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_only_listed_files_of_the_page_are_served(audit: Path, planted: Path) -> None:
    assert set(page_files(planted)) == {"index.html", "page.js"}
    place = listen(port=0)
    port = place.socket.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(audit, allowed_hosts=place.allowed_hosts), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place.socket]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        assert b"own file" in raw(port, "/static/page.js")
        names = [*CLIMBS, "link.js", "inner/app.py", "inner%2fapp.py", "folder", "folder/app.py", "static/page.js"]
        bases = ("/static/", "/", "/media/", f"/media/{PAIR}/", "/media/clip/", "/api/pairs/", "/api/clusters/")
        for base in bases:
            for name in names:
                if base + name in {"/", "/static/page.js"}:
                    continue
                answer = raw(port, base + name)
                assert b"SECRET" not in answer, base + name
                assert b"root:" not in answer, base + name
                status = int(answer.split(b" ", 2)[1])
                assert status in {400, 404, 405, 307}, (base + name, status)
        for name in CLIMBS[:14]:
            for file in ("audio.wav", "spectrogram.png"):
                assert raw(port, f"/media/{name}/query/{file}").split(b" ", 2)[1] in {b"404", b"400"}
                assert raw(port, f"/media/{PAIR}/{name}/{file}").split(b" ", 2)[1] in {b"404", b"400"}
    finally:
        server.should_exit = True
        thread.join(10)


def test_sound_is_of_the_audit_whatever_a_query_says(web: TestClient, audit: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.wav"
    outside.write_bytes(b"RIFF" + struct.pack("<I", 36) + b"WAVE" + b"SECRET" * 10)
    address = f"/media/{PAIR}/query/audio.wav"
    usual = web.get(address).content
    for query in (f"path={outside}", f"file={outside}", f"query_path={outside}", "offset_s=9", f"clip={outside}"):
        assert web.get(f"{address}?{query}").content == usual
    event = {**EVENT, "query_path": str(outside), "query_id": "x", "reference_id": "y"}
    assert web.post("/api/verdicts", json=event, headers={"Origin": ORIGIN}).status_code == 201
    with VerdictStore.open(audit) as store:
        assert store.history()["query_id"].to_pylist() == ["query-clip-0"]
