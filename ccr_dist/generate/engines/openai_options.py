"""Options of the engine for servers with an OpenAI-compatible chat API."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from ccr_dist.generate.engines.generator import GeneratorOptions

Omitted = Literal["temperature", "top_p", "top_k", "seed", "stop", "repetition_penalty", "response_format"]


class OpenAiOptions(GeneratorOptions):
    """Options of the engine `openai`."""

    base_url: str | None = Field(
        None, description="e.g. http://node7:8000/v1; default: the environment's OPENAI_BASE_URL"
    )
    concurrency: int = Field(64, ge=1, description="most requests in flight; fewer while the server is overloaded")
    timeout_s: float = Field(300, gt=0, description="most seconds of a request, from sending to the whole answer")
    retries: int = Field(
        5,
        ge=0,
        description=(
            "how often a request is sent again that fails while others are answered; half as often one that alone"
            " takes timeout_s"
        ),
    )
    backoff_s: float = Field(
        1,
        gt=0,
        description="seconds before the first retry; later ones wait longer, or as long as the server asks",
    )
    patience_s: float = Field(
        180, gt=0, description="seconds without an answer to any request after which the server counts as gone"
    )
    omit: tuple[Omitted, ...] = Field(
        (), description="parameters that are not sent, since the server refuses them; it uses its own defaults"
    )
    check_model: bool = Field(
        True, description="ask the server for its models first, and refuse a model that it does not list"
    )

    @field_validator("omit", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError("expected http://HOST:PORT/v1 or https://...")
        return value

    def sampling(self) -> dict[str, Any]:
        return super().sampling() | ({"omit": sorted(self.omit)} if self.omit else {})
