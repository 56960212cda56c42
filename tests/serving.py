"""Indexes that are served: in this process by Starlette's client, or by a process of its own.

    python -m tests.serving FOLDER '{"head_s": 1}' [TOKEN]

serves FOLDER/index on a free port, which it prints, with other limits than the usual ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.testclient import TestClient

from ccr_dist.data.media.decode import encode
from ccr_dist.data.table.dataset import create_column, create_dataset
from ccr_dist.search.index import Index
from ccr_dist.search.searcher import Searcher
from ccr_dist.serve.access import Access
from ccr_dist.serve.app import create_app
from ccr_dist.serve.gallery import Gallery
from ccr_dist.serve.limits import Limits
from ccr_dist.serve.server import answer, listening
from tests.searching import Colours, encoded, half, picture, put, see

ROOT = Path(__file__).parents[1]
MARKUP = "<img src=x onerror=alert(1)>.png"
CONTROLS = "bell\x07 and \x1b[31mred\nline.png"
TOKEN = "correct-horse-battery"
# name -> colour; the size makes files of one colour different
FILES = {
    "red.png": "red",
    "green.png": "green",
    "below/blue.png": "blue",
    "yellow é.png": "yellow",
    MARKUP: "cyan",
    CONTROLS: "magenta",
}


class Seeing(Colours):
    """Takes opened pictures, too."""

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        return self.encode_pixels(np.stack([see(image).array for image in images]), counted=False)


def fill(folder: Path) -> Path:
    """FOLDER/pictures, and FOLDER/index of them."""
    for name, colour in FILES.items():
        put(folder / "pictures" / name, encoded(picture(colour, (48, 40))))
    put(folder / "pictures" / "half.png", encoded(half("red", (640, 480))))
    Index.build(folder / "index", Seeing(), folder / "pictures", progress=False)
    return folder


def with_captions(folder: Path, captions: dict[str, list[str]]) -> Path:
    """FOLDER/index of one picture, red, with these captions, by language."""
    dataset = create_dataset(folder / "data", name="one", split="test", keys=[["one"]])
    values: dict[str, tuple[str, str, Any]] = {"image": ("image", "png", encoded(picture("red")))}
    values |= {f"caption.{lang}": ("texts", "json", texts) for lang, texts in captions.items()}
    for name, (kind, extension, value) in values.items():
        column = create_column(dataset, name, kind=kind, extension=extension, plan={"by": "tests"}, provenance={})
        column.commit(0, [encode(kind, value)])
    Index.build(folder / "index", Seeing(), folder / "data", progress=False)
    return folder


def gallery(folder: Path, place: int = 0, name: str = "index", **more: Any) -> Gallery:
    index = Index.open(folder / "index")
    return Gallery(place, name, index, Searcher(index, Seeing(), **more), ["pt"] if more else [])


@contextlib.contextmanager
def client(*galleries: Gallery, limits: Limits | None = None, **options: Any) -> Iterator[TestClient]:
    """A client on this machine."""
    access = options.pop("access", Access("127.0.0.1"))
    app = create_app(galleries, access=access, limits=limits, **options)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as found:
        yield found


def numbers(asked: TestClient, text: str, **more: Any) -> list[str]:
    """Names of what is found for a text."""
    found = asked.get("/api/search", params={"text": text, **more})
    assert found.status_code == 200, found.text
    return [hit["name"] for hit in found.json()["hits"]]


@contextlib.contextmanager
def process(folder: Path, log: Path, *, token: str = "", **limits: Any) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """(port, process) of a server; it is ended as Ctrl-C does, and must end well."""
    command = [sys.executable, "-m", "tests.serving", str(folder), json.dumps(limits), token]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as errors:
        served = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert served.stdout is not None
        port = int(served.stdout.readline())
        assert httpx.get(f"http://127.0.0.1:{port}/health", verify=False, timeout=60).status_code == 200
        yield port, served
        served.send_signal(signal.SIGINT)
        assert served.wait(60) == 0, log.read_text()
    finally:
        served.kill()
        served.wait()


def main(folder: str, limits: str, token: str) -> None:
    from ccr_dist import terminal

    with terminal.guarded(), listening("127.0.0.1", 0) as listener:
        galleries = [gallery(Path(folder))]
        print(listener.getsockname()[1], flush=True)
        answer(
            galleries,
            listener,
            access=Access("127.0.0.1", token=token or None),
            limits=Limits(**json.loads(limits)),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
