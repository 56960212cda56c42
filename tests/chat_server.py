"""A server with an OpenAI-compatible chat API that does what the user's text says, for tests of the engine `openai`.

    python chat_server.py FOLDER [HOST]     listens on a free port, written to FOLDER/port; each request is appended
                                            to FOLDER/log.jsonl

A file FOLDER/delay holds seconds that every answer takes.

"500" and "429" always fail; "once 503 …" fails the first time; "hang" is not answered for a minute; "413" is refused;
"401" is a wrong key; "filter" is filtered; "nonsense" is no chat completion; "describe" tells the sizes of the
pictures; any other text comes back in capitals.

For servers of other manners, `serving(behave)` runs one in a thread: `behave(handler, body, number)` answers the
number-th POST.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path()  # set when it runs as a process
seen: set[str] = set()
lock = threading.Lock()


def sizes(content: Any) -> str:
    from PIL import Image

    urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    videos = [part["video_url"]["url"].partition(",")[2].split(",") for part in content if part["type"] == "video_url"]
    data = [url.partition(",")[2] for url in urls] + [frame for video in videos for frame in video]
    return " ".join("{}x{}".format(*Image.open(io.BytesIO(base64.b64decode(one))).size) for one in data)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer(
            200, {"object": "list", "data": [{"id": "toy", "object": "model", "created": 0, "owned_by": "test"}]}
        )

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        with lock, (FOLDER / "log.jsonl").open("a") as log:
            log.write(
                json.dumps({"text": text, "at": time.monotonic(), "body": {**body, "messages": len(body["messages"])}})
                + "\n"
            )
            first = text not in seen
            seen.add(text)
        if (FOLDER / "delay").exists():
            time.sleep(float((FOLDER / "delay").read_text()))
        if text == "hang":
            time.sleep(60)
        if (FOLDER / "down").exists():
            return self.answer(500, {"error": {"message": "down"}})
        if re.fullmatch("[45]..", text):
            return self.answer(int(text), {"error": {"message": f"no: {text}"}})
        if (said := re.match("once ([45]..)", text)) and first:
            return self.answer(int(said[1]), {"error": {"message": "later"}}, **{"Retry-After": "0"})
        if text == "nonsense":
            return self.answer(200, {"hello": "world"})
        answer = sizes(content) if text == "describe" else text.upper()
        finish = "content_filter" if text == "filter" else "length" if "long" in text else "stop"
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": f" {answer}\n"}}
        usage = {"prompt_tokens": 7, "completion_tokens": len(answer.split()), "total_tokens": 0}
        self.answer(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            },
        )


def completion(text: Any, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion as the API describes it."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "toy",
        "choices": [choice],
        "usage": usage,
        **more,
    }


class Odd(BaseHTTPRequestHandler):
    """One that answers as it was told to. `text`: what the user asks in a request."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, body: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.server.models(self)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        self.text = content if isinstance(content, str) else content[-1]["text"]
        with lock:
            self.server.posts.append((self.path, dict(self.headers), body))
            number = len(self.server.posts)
        self.server.behave(self, body, number)


def lists_models(handler: Odd) -> None:
    handler.answer({"object": "list", "data": [{"id": "toy", "object": "model", "created": 0, "owned_by": "test"}]})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    posts: list[tuple[str, dict[str, str], dict[str, Any]]]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are expected."""


@contextmanager
def serving(
    behave: Callable[[Odd, dict[str, Any], int], None], models: Callable[[Odd], None] = lists_models
) -> Iterator[Any]:
    """A running server: `url`, and `posts` (path, headers, body) as they come."""
    server: Any = _Server(("127.0.0.1", 0), Odd)
    server.behave, server.models, server.posts = behave, models, []
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    server = ThreadingHTTPServer((sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1", 0), Handler)
    (FOLDER / "port.new").write_text(str(server.server_port))
    (FOLDER / "port.new").rename(FOLDER / "port")
    server.serve_forever()
