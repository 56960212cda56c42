"""What happens to every request, whatever it asks for: is it for us and from somebody who may ask, is it small and
quick enough, which headers has the answer, what is counted and what is logged.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ccr_dist.serve.access import Access
from ccr_dist.serve.limits import Limits, Refused
from ccr_dist.serve.metrics import Metrics
from ccr_dist.serve.public_text import line

Scope = dict[str, Any]
Message = dict[str, Any]
Log = Callable[[str], None]

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_SMALL = 4096  # bytes
OPEN = ("/health", "/api/session")  # to everybody, beside the files of the page, in which nothing is of an index


class Guard:
    """Middleware around all routes.

    Args:
        app: what answers.
        access: who may ask.
        limits: `body` and `body_s` of them.
        metrics: counts requests.
        public: paths of the page's own files.
        log: takes the line of each request.
    """

    def __init__(
        self,
        app: Any,
        *,
        access: Access,
        limits: Limits,
        metrics: Metrics,
        public: frozenset[str],
        log: Log | None,
    ) -> None:
        self._app, self._access, self._limits, self._metrics = app, access, limits, metrics
        self._public, self._log = public, log

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message.get("headers", [])}
                more = [(k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in given]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, _Body(receive, scope, self._limits).receive, answer)
        except Refused as refused:
            if status:  # the answer has begun: nothing more can be said
                raise
            await _say(answer, refused)
        finally:
            self._count(scope, status or 500, time.perf_counter() - begun)

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if not self._access.knows(headers.get("host", "")):
            raise Refused(421, "this server has another name; `ccr-dist serve --name NAME` makes it answer to one")
        public = path in self._public
        if not public and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refused(403, "pages of other sites may not ask here")
        if not public and path not in OPEN and not self._access.lets_in(headers):
            raise Refused(401, "a token is needed: `Authorization: Bearer TOKEN`", {"www-authenticate": "Bearer"})

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        if self._log:
            asked = self._access.hides(f"{scope['method']} {scope['path']}")
            self._log(f"{line(asked)} {status} {1000 * seconds:.0f} ms")


class _Body:
    """The body of a request, counted and timed while it arrives."""

    def __init__(self, receive: Any, scope: Scope, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._most = _SMALL if scope["path"] in OPEN else limits.body  # of those who have not shown a token, little
        self._bytes, self._until = 0, 0.0
        self._complete = False
        for name, value in scope["headers"]:
            if name == b"content-length" and (len(value) > 18 or int(value) > self._most):
                raise self._too_large()

    async def receive(self) -> Message:
        if self._complete:  # what comes now is the end of the connection
            return await self._receive()
        self._until = self._until or time.monotonic() + self._limits.body_s
        try:
            async with asyncio.timeout(max(0.0, self._until - time.monotonic())):
                message: Message = await self._receive()
        except TimeoutError:
            raise Refused(408, "the request took too long to arrive", {"connection": "close"}) from None
        self._bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._bytes > self._most:
            raise self._too_large()
        return message

    def _too_large(self) -> Refused:
        return Refused(413, f"the request is larger than {self._most:,} bytes", {"connection": "close"})


async def _say(send: Any, refused: Refused) -> None:
    body = json.dumps({"detail": refused.detail}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **(refused.headers or {})}
    head = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": head})
    await send({"type": "http.response.body", "body": body})


def to_stderr(text: str) -> None:
    """A line of the log. A log that nobody reads any more does not stop the server."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return
