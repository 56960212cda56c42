"""An S3 server in a process of its own: moto's, which answers one request after the other and misbehaves when asked to.

    python -m tests.s3_server      prints its port; ends when its stdin is closed

One at a time, since moto itself looks and then writes: its conditional creation would let two of several simultaneous
requests pass, which S3 does not.

POST /faults with [{"method", "contains", "what", "times"}, ...] makes the next requests of a method whose path contains
a text go wrong: `slow` (503 SlowDown, nothing is done), `lost` (it is done, and the answer is 500), `denied` (403),
`late` (the server's clock is a day ahead), `stale` (credentials have expired), `conflict` (409, as for two conditional
requests at once), `unknown` (501, as of a store that knows no conditions), `careless` (the condition is ignored),
`well` (nothing goes wrong). Other programs need not know that it is no real store.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from email.utils import formatdate
from typing import Any

_ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
_ANSWERS = {
    "slow": ("503 Slow Down", _ERROR.format("SlowDown", "Please reduce your request rate.")),
    "lost": ("500 Internal Server Error", _ERROR.format("InternalError", "We encountered an internal error.")),
    "denied": ("403 Forbidden", _ERROR.format("AccessDenied", "Access Denied")),
    "late": ("403 Forbidden", _ERROR.format("RequestTimeTooSkewed", "The difference is too large.")),
    "stale": ("400 Bad Request", _ERROR.format("ExpiredToken", "The provided token has expired.")),
    "conflict": ("409 Conflict", _ERROR.format("ConditionalRequestConflict", "A conflicting operation occurred.")),
    "unknown": ("501 Not Implemented", _ERROR.format("NotImplemented", "A header is not implemented.")),
}


class Faulty:
    """A WSGI application around moto's."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self._inner, self._lock = inner, threading.Lock()
        self._faults: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            if environ["PATH_INFO"] == "/faults":
                self._faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                start("200 OK", [])
                return [b""]
            what = self._due(environ)
            if what == "careless":
                environ.pop("HTTP_IF_NONE_MATCH", None)
            if what in _ANSWERS and what != "lost":
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return self._answer(what, start)
            if what == "lost":
                list(self._inner(environ, lambda *arguments: None))
                return self._answer(what, start)
            return list(self._inner(environ, start))

    def _due(self, environ: dict[str, Any]) -> str | None:
        for fault in self._faults:
            asked = environ["REQUEST_METHOD"] == fault["method"] and fault["contains"] in environ["PATH_INFO"]
            if asked and fault["times"]:
                fault["times"] -= 1
                return fault["what"]
        return None

    @staticmethod
    def _answer(what: str, start: Callable[..., Any]) -> list[bytes]:
        status, text = _ANSWERS[what]
        date = formatdate(time.time() + (86400 if what == "late" else 0), usegmt=True)
        start(status, [("Content-Type", "application/xml"), ("Date", date)])
        return [text.encode()]


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of a server that lives as long as the block. fsspec keeps clients for a process: those of an earlier
    server are forgotten.
    """
    with contextlib.suppress(ImportError):
        from s3fs import S3FileSystem

        S3FileSystem.clear_instance_cache()
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-u", "-m", "tests.s3_server"], text=True, **pipes)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def misbehave(server: str, *faults: tuple[str, str, str, int]) -> None:
    """From now on (method, contains, what, times); none: all is well."""
    names = ("method", "contains", "what", "times")
    data = json.dumps([dict(zip(names, fault, strict=True)) for fault in faults]).encode()
    urllib.request.urlopen(urllib.request.Request(f"{server}/faults", data, method="POST")).read()


def settings(server: str, cache: object) -> dict[str, str]:
    """Variables of the environment with which clients use the server."""
    return {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "CCR_DIST_CACHE": str(cache),
    }


def main() -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    print(server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
