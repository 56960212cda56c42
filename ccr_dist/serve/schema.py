"""What the API answers, as OpenAPI describes it."""

from __future__ import annotations

from pydantic import BaseModel, Field


class IndexInfo(BaseModel):
    """A served index."""

    index: int = Field(description="its number, for the parameter `index` of other calls")
    name: str
    model: str = Field(description="name of the model that made it")
    digest: str = Field(description="of that model")
    languages: list[str] = Field(description="that the model was trained to be asked in")
    any_language: bool = Field(description="the model reads queries in other languages, too")
    items: int
    dtype: str = Field(description="of the stored vectors")
    english: list[str] = Field(description="languages whose queries can be asked by way of English")


class Bounds(BaseModel):
    """What a request may hold."""

    text: int = Field(description="characters of a query")
    hits: int = Field(description="of one answer")
    bytes: int = Field(description="of a picture that is sent")


class Info(BaseModel):
    """What this server has."""

    version: str = Field(description="of ccr-dist")
    started: str = Field(description="changes when the server starts: pictures may be kept until then")
    indexes: list[IndexInfo]
    limits: Bounds


class Label(BaseModel):
    """What items can be chosen by."""

    name: str
    values: dict[str, int] = Field(description="value -> how many items have it; the most frequent ones")


class Found(BaseModel):
    """An item that was found."""

    rank: int = Field(description="from 1")
    score: float
    number: int = Field(description="of the item in its index")
    key: str
    name: str = Field(description="of its file, for people")


class Answer(BaseModel):
    """What was found."""

    index: int
    query: str | None = Field(description="null: a picture was asked with")
    lang: str | None = Field(description="language in which the query was understood")
    detected: bool = Field(description="the language was not given")
    sure: bool = Field(description="whether the detection is sure")
    notes: list[str] = Field(description="for people: a language that was not trained, a query that was cut")
    hits: list[Found]


class ItemInfo(BaseModel):
    """An item of an index."""

    index: int
    number: int
    key: str
    name: str
    kind: str = Field(description="image or video")
    captions: dict[str, list[str]] = Field(description="language -> texts; empty where the index has none")
    labels: dict[str, str] = Field(description="column -> value")


class Token(BaseModel):
    """What a page gives to get a session."""

    token: str = Field(max_length=1000)
