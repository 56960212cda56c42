"""The application: routes of the page, of the API, and of those who watch the server."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from ccr_dist import __version__
from ccr_dist.serve import api, embeddings, schema
from ccr_dist.serve.access import Access
from ccr_dist.serve.gallery import Gallery
from ccr_dist.serve.guard import Guard, Log
from ccr_dist.serve.limits import Limits, Refused
from ccr_dist.serve.metrics import Metrics
from ccr_dist.serve.model_queue import ModelQueue
from ccr_dist.serve.thumbnails import Thumbnails

PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def create_app(
    galleries: Sequence[Gallery], *, access: Access, limits: Limits | None = None, log: Log | None = None
) -> Guard:
    """The ASGI application of some indexes.

    Args:
        galleries: the indexes, by their places.
        access: who may ask.
        limits: of requests; None: the usual ones.
        log: takes a line for each request.
    """
    limits, metrics = limits or Limits(), Metrics()
    queue = ModelQueue(limits, metrics)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        queue.start()
        try:
            yield
        finally:
            await queue.stop()

    service = api.Service(list(galleries), queue, limits, Thumbnails(limits, metrics), secrets.token_hex(4))
    app = FastAPI(
        title="ccr-dist", version=__version__, lifespan=life, docs_url=None, redoc_url=None,
        description="Search in indexes of pictures with texts of many languages.",
    )  # fmt: skip
    app.include_router(api.router(service))
    app.include_router(embeddings.router(service))
    app.add_exception_handler(RequestValidationError, _invalid)
    files = _page_routes(app)
    _watching(app, queue, metrics)

    @app.post("/api/session", status_code=204)
    async def session(given: schema.Token, response: Response) -> None:
        """For the page: gives it a cookie in exchange for the token."""
        cookie = access.cookie(given.token)
        if cookie is None:
            raise Refused(401, "this is not the token of this server")
        response.headers["set-cookie"] = cookie

    return Guard(app, access=access, limits=limits, metrics=metrics, public=files, log=log)


def _watching(app: FastAPI, queue: ModelQueue, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the server answers questions."""
        return JSONResponse({"status": "ok"}) if queue.working else JSONResponse({"status": "stopped"}, 503)

    @app.get("/metrics", response_class=Response)
    async def measured() -> Response:
        """Numbers for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _page_routes(app: FastAPI) -> frozenset[str]:
    """Routes of the page's files, which are read once: no path of a request leads to the disk. Returns their paths."""
    paths = set()
    for file in sorted(PAGE.iterdir()):
        if (kind := _TYPES.get(file.suffix)) is None:
            continue
        path = "/" if file.name == "index.html" else f"/{file.name}"
        app.add_api_route(path, _sends(file.read_bytes(), kind), include_in_schema=False, response_class=Response)
        paths.add(path)
    return frozenset(paths)


def _sends(data: bytes, kind: str) -> Any:
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "no-cache"}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=kind, headers=headers)

    return send


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a request, without repeating what was sent."""
    assert isinstance(error, RequestValidationError)
    found = [f"{'.'.join(str(part) for part in each['loc'][-2:])}: {each['msg']}" for each in error.errors()]
    return JSONResponse({"detail": "; ".join(found)[:2000]}, 422)
