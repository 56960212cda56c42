"""Options that the methods with a query encoder have in common."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ccr_dist.config import MethodOptions, QueryEncoderConfig


class QuerySideOptions(MethodOptions):
    """The encoder, and what it is asked."""

    any_language: ClassVar[bool] = True

    query: QueryEncoderConfig = Field(QueryEncoderConfig(), description="the multilingual sentence encoder")
    english: Literal["backbone", "query"] = Field(
        "backbone", description="English queries: the backbone as it is, or the path of all other languages"
    )


class LinearMapOptions(QuerySideOptions):
    """Where the map ends."""

    space: Literal["features", "shared"] = Field(
        "features", description="the map ends in the backbone's text features, before its head, or in the shared space"
    )
