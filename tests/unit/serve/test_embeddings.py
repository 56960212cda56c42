"""/v1/embeddings as programs for OpenAI's API ask for it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests import serving
from tests.searching import encoded, picture

PLACE = "/v1/embeddings"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving.client(serving.gallery(serving.fill(tmp_path_factory.mktemp("served")))) as found:
        yield found


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def test_texts(client: TestClient) -> None:
    found = client.post(PLACE, json={"model": "colours", "input": ["red", "azul"]}).json()
    rows = np.array([each["embedding"] for each in found["data"]], np.float32)
    assert np.array_equal(rows, serving.Seeing().encode_text(["red", "azul"]))
    assert [each["index"] for each in found["data"]] == [0, 1] and found["object"] == "list"
    assert found["model"] == "colours" and found["usage"].keys() == {"prompt_tokens", "total_tokens"}
    one = client.post(PLACE, json={"model": "colours", "input": "red"}).json()
    assert one["data"] == found["data"][:1]


def test_base64_holds_the_same_bits(client: TestClient) -> None:
    ask = {"model": "colours", "input": ["green"], "encoding_format": "base64"}
    found = client.post(PLACE, json=ask).json()["data"][0]["embedding"]
    row = np.frombuffer(base64.b64decode(found), "<f4")
    assert np.array_equal(row[None], serving.Seeing().encode_text(["green"]))


def test_texts_and_pictures_in_any_order(client: TestClient) -> None:
    data = encoded(picture("cyan", (9, 9)))
    part = {"type": "image_url", "image_url": {"url": url(data)}}
    given = [part, "cyan", {"type": "text", "text": "red"}, url(data)]
    found = client.post(PLACE, json={"model": "colours", "input": given}).json()["data"]
    rows = np.array([each["embedding"] for each in found], np.float32)
    assert np.array_equal(rows[0], rows[3]) and rows[0] @ rows[1] == pytest.approx(1, abs=1e-5)
    assert np.array_equal(rows[2:3], serving.Seeing().encode_text(["red"]))


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "gpt"}, 404, "colours"),
        ({"input": []}, 400, "1 to 256"),
        ({"input": ["red"] * 257}, 400, "1 to 256"),
        ({"input": ["red", " "]}, 400, "empty"),
        ({"input": [1, 2]}, 400, "input"),
        ({"input": [[1, 2]]}, 400, "input"),
        ({"input": "x" * 20_001}, 400, "20,000"),
        ({"encoding_format": "int8"}, 400, "encoding_format"),
        ({"dimensions": 7}, 400, "48"),
        ({"input": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}]}, 400, "fetches nothing"),
        ({"input": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}, 400, "fetches nothing"),
        ({"input": ["data:image/png;base64,%%%"]}, 400, "base64"),
        ({"input": [url(b"no picture")]}, 415, "not a JPEG"),
        ({"input": [url(b"<svg/>", "svg+xml")]}, 415, "SVG"),
        ({"lang": "zz"}, 400, "zz"),
    ],
)
def test_errors_have_openais_form(client: TestClient, change: dict[str, Any], status: int, said: str) -> None:
    found = client.post(PLACE, json={"model": "colours", "input": ["red"], **change})
    assert found.status_code == status
    error = found.json()["error"]
    assert said in error["message"] and error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b'{"model": "colours", "input": "\\ud800 red"}', b"\xff\xfe", b"9" * 5000]
)
def test_damaged_json_is_the_clients_fault(client: TestClient, body: bytes) -> None:
    found = client.post(PLACE, content=body, headers={"content-type": "application/json"})
    assert found.status_code in (200, 400) and client.get("/health").status_code == 200


def test_a_width_that_is_the_models(client: TestClient) -> None:
    assert client.post(PLACE, json={"model": "colours", "input": ["red"], "dimensions": 48}).status_code == 200


def test_models_are_listed(client: TestClient) -> None:
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["colours"]
