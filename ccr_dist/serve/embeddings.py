"""/v1/embeddings in the form of OpenAI's API: rows of texts and of pictures, for programs that already speak it.

Pictures are data URLs with base64. Nothing is fetched: an address of the web is refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from ccr_dist.models import token_counts
from ccr_dist.serve.api import Service, asked
from ccr_dist.serve.limits import Refused

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_PICTURES = 32  # in one call of a model
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ImageUrl(BaseModel):
    """Where a picture is: in the request."""

    url: str = Field(description="data:image/…;base64,…")


class ImagePart(BaseModel):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(BaseModel):
    """A text."""

    type: Literal["text"]
    text: str


Input = str | Annotated[ImagePart | TextPart, Field(discriminator="type")]


class EmbeddingsRequest(BaseModel):
    """What is to be encoded."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(description="as /v1/models lists it")
    input: Input | list[Input] = Field(description="texts, and pictures as data URLs or as `image_url` parts")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="the width of the model's rows, or nothing")
    user: str | None = None
    lang: str | None = Field(None, max_length=35, description="language of the texts (BCP 47); detected without it")


class Embedding(BaseModel):
    """One row."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="numbers, or base64 of little-endian float32")


class Usage(BaseModel):
    """Tokens that the model received; pictures count none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """The rows, in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


def _route(service: Service) -> type[APIRoute]:
    """Routes that wait for their turn to read a body, and tell errors in the form of OpenAI's API."""

    class Route(APIRoute):
        def get_route_handler(self) -> Any:
            inner = super().get_route_handler()
            return functools.partial(_handled, service, inner)

    return Route


async def _handled(service: Service, inner: Any, request: Request) -> Any:
    try:
        if request.method != "POST":
            return await inner(request)
        async with service.upload():
            return await inner(request)
    except RequestValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:3])
        return _error(400, f"{where}: {first['msg']}" if where else str(first["msg"]), None)
    except HTTPException as refused:
        return _error(refused.status_code, str(refused.detail), refused.headers)


def _error(status: int, message: str, headers: Mapping[str, str] | None) -> JSONResponse:
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return JSONResponse(body, status_code=status, headers=dict(headers or {}))


def router(service: Service) -> APIRouter:
    """The routes below /v1."""
    routes = APIRouter(prefix="/v1", route_class=_route(service))
    served = [gallery.searcher.retriever for gallery in service.galleries]
    retrievers = {retriever.name: retriever for retriever in reversed(served)}

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        """The models of the served indexes."""
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "ccr-dist"} for name in reversed(retrievers)]
        return {"object": "list", "data": data}

    @routes.post("/embeddings")
    async def embeddings(wanted: EmbeddingsRequest) -> EmbeddingsAnswer:
        """Rows of texts and pictures."""
        retriever = retrievers.get(wanted.model)
        if retriever is None:
            raise Refused(404, f"model {wanted.model!r}: there are {', '.join(reversed(retrievers))}")
        given = wanted.input if isinstance(wanted.input, list) else [wanted.input]
        if not 0 < len(given) <= service.limits.inputs:
            raise Refused(400, f"input: expected 1 to {service.limits.inputs} of them")
        texts, pictures = await asyncio.to_thread(_read, service, retriever, given)
        _check_width(wanted.dimensions, retriever, texts=bool(texts), pictures=bool(pictures))
        encode = functools.partial(_encoded, retriever, texts, pictures, wanted.lang)
        rows, tokens = await asked(service.queue.call(encode))
        return EmbeddingsAnswer(
            data=[
                Embedding(index=at, embedding=_as_asked(rows[at], wanted.encoding_format)) for at in range(len(given))
            ],
            model=wanted.model,
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        )

    return routes


def _read(service: Service, retriever: Any, given: Sequence[Any]) -> tuple[dict[int, str], dict[int, np.ndarray]]:
    """Place in the input -> text, and place -> picture (3, H, W) as the model reads it: small, whatever was sent."""
    texts: dict[int, str] = {}
    pictures: dict[int, np.ndarray] = {}
    for at, each in enumerate(given):
        text = None if isinstance(each, ImagePart) else each.text if isinstance(each, TextPart) else each
        if text is not None and not _DATA_URL.match(text):
            texts[at] = service.text(text, service.limits.input)
            continue
        data = _bytes_of(each.image_url.url if text is None else text)
        pictures[at] = retriever.image_transform()(service.picture(data, f"input {at}")).numpy()
    return texts, pictures


def _bytes_of(url: str) -> bytes:
    if not (head := _DATA_URL.match(url)):
        raise Refused(400, "image_url: expected data:image/…;base64,…; this server fetches nothing from addresses")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, "image_url: what follows `base64,` is not base64") from None


def _check_width(dimensions: int | None, retriever: Any, *, texts: bool, pictures: bool) -> None:
    widths = {retriever.text_width} if texts else set()
    widths |= {retriever.visual_width} if pictures else set()
    if dimensions is not None and widths != {dimensions}:
        known = " and ".join(str(width) for width in sorted(widths))
        raise Refused(400, f"dimensions = {dimensions}: rows of this model have {known} numbers and cannot be cut")


def _encoded(
    retriever: Any, texts: dict[int, str], pictures: dict[int, np.ndarray], lang: str | None
) -> tuple[dict[int, np.ndarray], int]:
    """Place -> row, and how many tokens the texts had. In the model's thread, the only one that counts tokens."""
    before = token_counts.tokens
    rows: dict[int, np.ndarray] = {}
    if texts:
        rows |= dict(zip(texts, retriever.encode_text(list(texts.values()), lang), strict=True))
    places = list(pictures)
    for start in range(0, len(places), _PICTURES):
        some = places[start : start + _PICTURES]
        rows |= dict(zip(some, retriever.encode_pixels(np.stack([pictures[at] for at in some])), strict=True))
    return rows, token_counts.tokens - before


def _as_asked(row: np.ndarray, form: str) -> list[float] | str:
    row = np.ascontiguousarray(row, dtype="<f4")
    return base64.b64encode(row.tobytes()).decode() if form == "base64" else [float(value) for value in row]
