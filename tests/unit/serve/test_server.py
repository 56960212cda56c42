"""The command `serve`, up to the moment when it answers: what it refuses, and what it says then."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ccr_dist
from ccr_dist.cli import app
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.serve import server
from ccr_dist.serve.server import listening, names_of, opened_galleries
from tests import serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.fill(tmp_path_factory.mktemp("served"))


def said(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["serve", *words])
    return done.exit_code, done.stderr


def test_a_port_in_use() -> None:
    with listening("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"port {port} of 127.0.0.1 is in use.*--port"),
            listening("127.0.0.1", port),
        ):
            pass
    with listening("127.0.0.1", port):  # it is free again
        pass


@pytest.mark.parametrize(
    ("host", "text"), [("no.such.host.invalid", "expected an address"), ("192.0.2.1", "no such address")]
)
def test_a_host_that_is_not_this_machine(host: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if host.endswith("invalid"):
        error = socket.gaierror(-2, "Name or service not known")

        def nowhere(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    with pytest.raises(ConfigError, match=text), listening(host, 0):
        pass


def test_a_host_without_a_token(tmp_path: Path) -> None:
    code, text = said(str(tmp_path), "--host", "0.0.0.0")
    assert code == 2 and "--token-file" in text
    code, text = said(str(tmp_path), "--token-file", str(tmp_path / "none"))
    assert code == 5 and "none" in text


def test_no_index(tmp_path: Path) -> None:
    code, text = said(str(tmp_path), "--port", "0")
    assert code == DataError.exit_code and "not an index" in text and "ccr-dist index" in text


@pytest.mark.parametrize("module", ["uvicorn", "fastapi"])
def test_an_extra_that_is_missing(module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    code, text = said(str(folder / "index"), "--port", "0")
    assert code == 2 and f"needs {module}" in text and "ccr-dist[serve]" in text


def test_models_are_loaded_once_and_from_where_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []

    def load(path: Path, device: str) -> serving.Seeing:
        loaded.append(path)
        return serving.Seeing(seed="x" if path.name == "other" else "")

    monkeypatch.setattr(ccr_dist, "load", load, raising=False)
    index = folder / "index"
    with pytest.raises(ConfigError, match=r"model colours is not at None any more.*--model"):
        opened_galleries([index])
    found = opened_galleries([index, index], [Path("m"), Path("m")])
    assert [gallery.place for gallery in found] == [0, 1] and loaded == [Path("m")]
    with pytest.raises(ConfigError, match="an index of the model colours"):
        opened_galleries([index], [Path("other")])
    with pytest.raises(ConfigError, match="2 given for 1"):
        opened_galleries([index], [Path("m"), Path("m")])


def test_names_tell_indexes_apart() -> None:
    assert names_of([Path("/a/emoji"), Path("/b/emoji"), Path("/b/photos")]) == ["a/emoji", "b/emoji", "photos"]


def test_addresses() -> None:
    with listening("127.0.0.1", 0) as one:
        assert server._address("127.0.0.1", one) == f"http://127.0.0.1:{one.getsockname()[1]}/"
        assert server._address("::1", one).startswith("http://[::1]:")
        assert socket.gethostname() in server._address("0.0.0.0", one)
