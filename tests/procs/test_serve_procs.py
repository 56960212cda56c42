"""A server as a process, and clients that mean it no good: nothing leaks, nothing dies."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image

from ccr_dist.errors import ConfigError
from tests import serving
from tests.searching import encoded, picture

pytestmark = pytest.mark.procs
SECRET = "root:x:0:0"
PATIENCE = {"head_s": 4.0, "body_s": 4.0, "read_s": 3.0}


class Served(NamedTuple):
    port: int
    process: subprocess.Popen[str]
    folder: Path
    log: Path

    @property
    def web(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, verify=False)

    def raw(self, data: bytes, *, wait: float = 20) -> bytes:
        """What comes back for these bytes, until the server closes or has answered one request."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            found = b""
            try:
                while part := client.recv(65536):
                    found += part
            except ConnectionResetError:
                pass
            return found

    def lives(self) -> None:
        with self.web as web:
            assert web.get("/api/search", params={"text": "red", "k": 1}).json()["hits"][0]["name"] == "red.png"
        assert self.process.poll() is None


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = serving.fill(tmp_path_factory.mktemp("served"))
    log = folder / "log"
    with serving.process(folder, log, **PATIENCE, body=2_000_000, pixels=1_000_000) as (port, process):
        yield Served(port, process, folder, log)


PATHS = (
    "/../../../../../../etc/passwd", "/..%2f..%2f..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/..%252f..%252fetc%252fpasswd", "//etc/passwd", "/page/../../../etc/passwd", "/app.js/../../server.py", "/%00",
    "/....//....//etc/passwd", "/..%c0%af..%c0%afetc/passwd", "/..\\..\\etc\\passwd", "/server.py", "/../server.py",
    "/api/items/..%2f..%2fetc%2fpasswd/picture", "/api/items/0/../../../etc/passwd", "/api/items/0%00/picture",
    "/api/items/0/picture?size=../../../etc/passwd", "/api/items/0/picture?full=1&index=../../etc", "/index/index.json",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_to_the_disk(served: Served, path: str) -> None:
    found = served.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    assert re.match(rb"HTTP/1.1 4\d\d ", found), found[:200]
    assert SECRET.encode() not in found and b"import" not in found and str(served.folder).encode() not in found


def test_links_that_lead_out_are_not_followed(served: Served, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(picture("blue", (7, 7))))
    place, away = served.folder / "pictures/green.png", tmp_path / "away.png"
    with served.web as web:
        hits = web.get("/api/search", params={"text": "green"}).json()["hits"]
        number = next(hit["number"] for hit in hits if hit["name"] == "green.png")
        place.rename(away)
        try:
            for target in (secret, Path("/etc/passwd"), Path("/dev/zero"), away):
                place.symlink_to(target)
                found = web.get(f"/api/items/{number}/picture", params={"full": 1})
                assert found.status_code == 410 and str(tmp_path) not in found.text
                place.unlink()
            os.mkfifo(place)  # reading it would wait for ever
            assert web.get(f"/api/items/{number}/picture").status_code == 410
            place.unlink()
        finally:
            away.rename(place)
        assert web.get(f"/api/items/{number}/picture", params={"full": 1}).status_code == 200
    served.lives()


def bomb(width: int, height: int) -> bytes:
    """A PNG that is small, and says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * 1_000_000)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_that_would_fill_the_memory(served: Served) -> None:
    fair = io.BytesIO()
    Image.new("RGB", (2000, 1000)).save(fair, "PNG")
    before = memory(served.process.pid)
    with served.web as web:
        for data in (bomb(60_000, 60_000), bomb(1, 2**31 - 1), bomb(2001, 1000), fair.getvalue()):
            found = web.post("/api/search", content=data)
            assert found.status_code in (413, 415), found.text
        for data in (
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"%!PS-Adobe",
            b"<svg/>",
            encoded(picture("red"), "TIFF")[:60],
        ):
            assert web.post("/api/search", content=data).status_code == 415
    assert memory(served.process.pid) - before < 100_000_000
    served.lives()


def memory(process: int) -> int:
    """Bytes that a process has."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_bodies_that_are_too_large(served: Served) -> None:
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 413 " in served.raw(head + b"Content-Length: 999999999999\r\n\r\n")
    assert b" 400 " in served.raw(head + b"Content-Length: 9999999999999999999999999999\r\n\r\n")
    part = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert b" 413 " in served.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + part * 31)
    assert re.match(rb"HTTP/1.1 4|$", served.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 100_000))
    served.lives()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\nx",
        b"GET /api/search?text=%ff%fe&k=\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"DELETE /api/items/0 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ],
    ids=range(11),
)  # fmt: skip
def test_requests_that_are_none(served: Served, data: bytes) -> None:
    found = served.raw(data)
    assert not found or re.match(rb"HTTP/1.1 4\d\d ", found), found[:100]


@pytest.mark.parametrize(
    "body", ["{", "[]", "null", '{"model": {}}', "[" * 50_000, '{"model": "colours", "input": 1e999}']
)
def test_malformed_json(served: Served, body: str) -> None:
    with served.web as web:
        found = web.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert found.status_code == 400 and "error" in found.json()


def test_slow_clients_are_ended_and_nobody_waits_for_them(served: Served) -> None:
    head = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    starts = {
        "nothing": b"",
        "half a head": b"GET / HTTP/1.1\r\nHost: local",
        "half a body": head + b"x",
        "then half a head": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /",
    }
    clients = [
        (name, socket.create_connection(("127.0.0.1", served.port), timeout=60))
        for name in starts
        for _ in range(4 if name == "half a body" else 20)
    ]
    for name, client in clients:
        client.sendall(starts[name])
    with served.web as web:  # while all of these wait
        assert web.get("/api/search", params={"text": "red", "k": 1}).status_code == 200
        assert web.get("/health").status_code == 200
    ends: dict[str, set[bytes]] = {name: set() for name in starts}
    for name, client in clients:
        found = b""
        try:
            while part := client.recv(4096):
                found += part
        except ConnectionResetError:
            pass
        ends[name].add(found[:12])
        client.close()
    assert ends["nothing"] == ends["half a head"] == {b""}
    assert ends["half a body"] == {b"HTTP/1.1 408"} and ends["then half a head"] == {b"HTTP/1.1 200"}
    served.lives()


def test_a_client_that_drips_is_ended(served: Served) -> None:
    """A byte now and then resets no clock."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as client:
        stop = threading.Event()

        def drip() -> None:
            try:
                for byte in b"GET / HTTP/1.1\r\nX: " + b"y" * 500:
                    client.sendall(bytes([byte]))
                    if stop.wait(0.05):
                        return
            except OSError:
                return

        with ThreadPoolExecutor() as pool:
            pool.submit(drip)
            try:
                assert client.recv(100) == b""
            except ConnectionResetError:
                pass
            finally:
                stop.set()
    served.lives()


def test_a_client_that_does_not_read_is_ended(served: Served) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect(("127.0.0.1", served.port))
        ask = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sendall(ask * 2000)  # what is answered to these fills all buffers in between
        ended = select.poll()
        ended.register(client, 0)
        assert ended.poll(30_000), "the connection is held for ever"
    served.lives()


def test_names_with_markup_and_controls_are_text(served: Served) -> None:
    with served.web as web:
        for name, colour in ((serving.MARKUP, "cyan"), (serving.CONTROLS, "magenta")):
            answer = web.get("/api/search", params={"text": colour, "k": 1})
            assert answer.headers["content-type"] == "application/json"
            (hit,) = answer.json()["hits"]
            assert hit["name"] == name and "\x1b" not in answer.text and "\x07" not in answer.text
            file = web.get(f"/api/items/{hit['number']}/picture", params={"full": 1})
            assert file.status_code == 200 and file.headers["content-type"] == "image/png"
            assert re.fullmatch(r"[ -~]+", file.headers["content-disposition"])


def test_openais_own_client(served: Served) -> None:
    openai = pytest.importorskip("openai")
    web = openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0)
    found = web.embeddings.create(model="colours", input=["red", "azul"])  # as base64, which it asks for by itself
    assert np.array_equal([each.embedding for each in found.data], serving.Seeing().encode_text(["red", "azul"]))
    with pytest.raises(openai.NotFoundError, match="colours"):
        web.embeddings.create(model="other", input="red")
    assert [each.id for each in web.models.list()] == ["colours"]


def test_many_at_once_are_answered_or_refused(served: Served) -> None:
    colours = list(serving.FILES.values())
    with served.web as web, ThreadPoolExecutor(32) as pool:

        def ask(number: int) -> int:
            found = web.get("/api/search", params={"text": colours[number % 6], "k": 1})
            if found.status_code == 200:
                (hit,) = found.json()["hits"]
                assert serving.FILES[hit["name"]] == colours[number % 6]
            return found.status_code

        assert set(pool.map(ask, range(150))) <= {200, 503}
    served.lives()


def test_the_log_holds_no_controls_and_no_queries(served: Served) -> None:
    with served.web as web:
        web.get("/api/search", params={"text": "red", "k": 1, "lang": "en"})
        web.get("/nowhere%0d%0aGET /forged 200%1b[2J")
    served.lives()
    lines = served.log.read_bytes()
    assert b"\x1b" not in lines and b"\r" not in lines and b"text=" not in lines
    assert b"\\u000d\\nGET /forged 200\\u001b[2J 404" in lines and b"\nGET /forged" not in lines


def test_the_token_is_in_no_log_and_connections_are_few(tmp_path: Path) -> None:
    folder = serving.fill(tmp_path)
    served = serving.process(folder, tmp_path / "log", token=serving.TOKEN, connections=10)
    with served as (port, _), httpx.Client(base_url=f"http://127.0.0.1:{port}", verify=False) as web:
        assert web.get("/api/info").status_code == 401
        assert web.post("/api/session", json={"token": serving.TOKEN}).status_code == 204
        assert web.get(f"/api/info?token={serving.TOKEN}").status_code == 200  # by the cookie
        assert web.get(f"/{serving.TOKEN}").status_code == 404
        with contextlib.ExitStack() as stack:  # more connections than it holds are closed at once
            clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(30)]
            ended = select.poll()
            for client in clients:
                ended.register(client, select.POLLIN)
            assert len(ended.poll(20_000)) > 0 and web.get("/api/info").status_code == 200
    log = (tmp_path / "log").read_text()
    assert "/api/session 204" in log and serving.TOKEN not in log


def test_a_port_that_is_taken(served: Served) -> None:
    command = [sys.executable, "-m", "ccr_dist", "serve", str(served.folder / "index"), "--port", str(served.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == ConfigError.exit_code and f"port {served.port} of 127.0.0.1 is in use" in done.stderr
    assert "--port" in done.stderr and "Traceback" not in done.stderr


def test_sigterm_ends_it_while_clients_are_there(tmp_path: Path) -> None:
    folder = serving.fill(tmp_path)
    served = serving.process(folder, tmp_path / "log")
    with served as (port, process), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
