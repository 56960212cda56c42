"""Who may ask: tokens, names of the server, pages of other sites; and what every answer says to browsers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from ccr_dist.errors import ConfigError
from ccr_dist.serve.access import Access, chosen_token, is_loopback
from ccr_dist.serve.public_text import disposition, line, message, shown
from tests import serving
from tests.serving import TOKEN

BEARER = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.fill(tmp_path_factory.mktemp("served"))


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def client(folder: Path, lines: list[str]) -> Iterator[TestClient]:
    access = Access("127.0.0.1", token=TOKEN)
    with serving.client(serving.gallery(folder), access=access, log=lines.append) as found:
        yield found


PLACES = (
    "/api/info",
    "/api/search?text=red",
    "/api/items/0",
    "/api/items/0/picture",
    "/v1/models",
    "/metrics",
    "/openapi.json",
)


@pytest.mark.parametrize("place", PLACES)
def test_all_of_an_index_needs_the_token(client: TestClient, place: str) -> None:
    assert client.get(place).status_code == 401
    for wrong in ("Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é"):
        assert client.get(place, headers={"authorization": wrong.encode("latin-1")}).status_code == 401
    assert client.get(place, headers=BEARER).status_code == 200


def test_the_page_itself_has_nothing_to_hide(client: TestClient) -> None:
    for place in ("/", "/app.js", "/style.css", "/icon.svg", "/health"):
        assert client.get(place).status_code == 200


def test_a_page_gives_the_token_once(client: TestClient, lines: list[str]) -> None:
    assert client.post("/api/session", json={"token": "wrong"}).status_code == 401
    assert not client.cookies
    given = client.post("/api/session", json={"token": TOKEN})
    cookie = given.headers["set-cookie"]
    assert given.status_code == 204 and "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    assert client.get("/api/info").status_code == 200
    client.cookies.clear()
    assert client.get("/api/info", headers={"cookie": "ccr-dist-session="}).status_code == 401
    client.get(f"/{TOKEN}")
    assert len(lines) == 5 and not any(TOKEN in each for each in lines)


def test_before_the_token_little_is_read(client: TestClient) -> None:
    assert client.post("/api/session", content=b"x" * 5000).status_code == 413
    assert client.post("/api/session", content=iter([b"x" * 3000] * 2)).status_code == 413


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost@evil", "[::2]", "a:b:c"]
)
def test_a_name_that_was_led_here_is_refused(folder: Path, host: str) -> None:
    with serving.client(serving.gallery(folder)) as client:
        assert client.get("/api/info", headers={"host": host}).status_code == 421
        assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "127.0.0.9", "[::1]:8000", "localhost."]
)
def test_names_of_this_machine(folder: Path, host: str) -> None:
    with serving.client(serving.gallery(folder)) as client:
        assert client.get("/api/info", headers={"host": host}).status_code == 200


def test_names_elsewhere() -> None:
    access = Access("0.0.0.0", names=("Pictures.example",), token=TOKEN)
    assert [access.knows(name) for name in ("pictures.example:80", "10.1.2.3:8000", "[fe80::1]", "evil.example")] == [
        True, True, True, False,
    ]  # fmt: skip


def test_pages_of_other_sites_may_not_ask(folder: Path) -> None:
    with serving.client(serving.gallery(folder)) as client:
        for site in ("cross-site", "same-site"):
            assert client.get("/api/search?text=red", headers={"sec-fetch-site": site}).status_code == 403
            assert client.get("/", headers={"sec-fetch-site": site}).status_code == 200  # a link leads here
        assert client.get("/api/search?text=red", headers={"sec-fetch-site": "same-origin"}).status_code == 200
        asked = client.options(
            "/api/search", headers={"origin": "http://evil.example", "access-control-request-method": "POST"}
        )
        assert not [name for name in asked.headers if name.startswith("access-control")]


@pytest.mark.parametrize("place", ["/", "/app.js", "/api/info", "/api/items/0/picture", "/nowhere", "/api/items/x"])
def test_headers_of_every_answer(folder: Path, place: str) -> None:
    with serving.client(serving.gallery(folder)) as client:
        headers = client.get(place).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy and "script-src 'unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin" and headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in headers and "server" not in headers


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.3.2.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("box", False),
    ],
)
def test_other_hosts_need_a_decision(host: str, alone: bool, tmp_path: Path) -> None:
    assert is_loopback(host) is alone
    if alone:
        assert chosen_token(host, token=None, file=None, none=False) is None
    else:
        with pytest.raises(ConfigError, match=r"--token-file.*--no-token"):
            chosen_token(host, token=None, file=None, none=False)
    assert chosen_token(host, token=None, file=None, none=True) is None
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\nmore\n")
    assert chosen_token(host, token=None, file=file, none=False) == TOKEN


@pytest.mark.parametrize("text", ["", "short", "sixteen letters é", "with space in the middle"])
def test_tokens_that_are_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    for given in ({"token": text or "x", "file": None}, {"token": None, "file": file}):
        with pytest.raises(ConfigError, match="at least 16"):
            chosen_token("127.0.0.1", **given, none=False)
    with pytest.raises(ConfigError, match="give one of them"):
        chosen_token("127.0.0.1", token=TOKEN, file=file, none=False)


def test_text_on_its_way_out() -> None:
    assert shown("a\ud800b") == "a\ufffdb" and shown("😀 é") == "😀 é"
    assert line("a\nb\x1b[2J\x85" + "x" * 500).startswith("a\\nb\\u001b[2J\\u0085x") and len(line("x" * 500)) == 201
    assert message(ValueError("/home/me/models/dasd: not 'here' in ~/x/y.json, see a/b")) == (
        "dasd: not 'here' in y.json, see a/b"
    )
    assert disposition("a/b\r\nSet-Cookie: x\ud800.png", attached=True) == (
        "attachment; filename*=UTF-8''b%0D%0ASet-Cookie%3A%20x%EF%BF%BD.png"
    )
