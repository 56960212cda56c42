"""Turns requests into the body of a chat completion: messages, media, sampling."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ccr_dist.generate.engines.chat import shrunk
from ccr_dist.generate.engines.generator import Request, request_seed
from ccr_dist.generate.engines.openai_options import OpenAiOptions

if TYPE_CHECKING:
    from PIL.Image import Image

_CONTROL_TEXT = "Say yes."


@dataclass(frozen=True)
class ChatItem:
    """A rendered request.

    Attributes:
        body: The arguments of a chat completion.
        id: The request's id.
    """

    body: dict[str, Any]
    id: str


@dataclass(frozen=True)
class ChatRenderer:
    """Turns a request into a ChatItem; can be pickled."""

    options: OpenAiOptions

    def __call__(self, request: Request) -> ChatItem:
        options = self.options
        content: list[dict[str, Any]] = [
            _image(_data_url(image, "png")) for image in shrunk(request.images, options.max_pixels)
        ]
        frames = shrunk(request.frames, options.max_pixels)
        if options.video and frames:
            content.append(_video(_base64(frame, "jpeg") for frame in frames))
        else:
            content += [_image(_data_url(frame, "png")) for frame in frames]
        system = [{"role": "system", "content": request.system}] if request.system else []
        asked = [*content, {"type": "text", "text": request.text}] if content else request.text
        body: dict[str, Any] = {
            "model": options.model,
            "messages": [*system, {"role": "user", "content": asked}],
            "max_tokens": request.max_tokens,
            "temperature": options.temperature,
        }
        if options.temperature:
            body |= {"top_p": options.top_p, "seed": request_seed(options.seed, request.id)}
        if options.stop:
            body["stop"] = list(options.stop)
        if request.schema:
            schema = {"name": "answer", "schema": request.schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        further: dict[str, Any] = {}
        if options.temperature and options.top_k:
            further["top_k"] = options.top_k
        if options.repetition_penalty != 1:
            further["repetition_penalty"] = options.repetition_penalty
        if options.chat_template_kwargs:
            further["chat_template_kwargs"] = options.chat_template_kwargs
        body, further = self._without_omitted(body), self._without_omitted(further)
        if further:  # not in OpenAI's own API, but in vLLM's
            body["extra_body"] = further
        return ChatItem(body, request.id)

    def _without_omitted(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in parameters.items() if name not in self.options.omit}


def control_body(body: dict[str, Any]) -> dict[str, Any]:
    """A small request of the same form: the same settings and as many media, but a trivial question.

    A server that accepts requests of this form at all answers it.

    Args:
        body: The body of a request.
    """
    from PIL import Image

    grey, asked = Image.new("RGB", (64, 64), "grey"), body["messages"][-1]["content"]
    content: Any = _CONTROL_TEXT
    if not isinstance(asked, str):
        media = [part for part in asked if part["type"] != "text"]
        content = [
            _image(_data_url(grey, "png")) if part["type"] == "image_url" else _video([_base64(grey, "jpeg")])
            for part in media
        ]
        content.append({"type": "text", "text": _CONTROL_TEXT})
    return {**body, "messages": [{"role": "user", "content": content}]}


def first_question() -> Request:
    """A request for a server that does not list its models."""
    return Request("first", _CONTROL_TEXT, max_tokens=16)


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _video(jpegs: Iterable[str]) -> dict[str, Any]:
    """Frames as a list of Base64 JPEGs: the form in which vLLM's server takes frames without a container."""
    return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(jpegs)}"}}


def _data_url(image: Image, kind: str) -> str:
    return f"data:image/{kind};base64,{_base64(image, kind)}"


def _base64(image: Image, kind: str) -> str:
    data = io.BytesIO()
    image.save(data, kind, compress_level=1, quality=95)  # each format uses one of the two
    return base64.b64encode(data.getvalue()).decode()
