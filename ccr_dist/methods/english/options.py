"""Options of `english`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ccr_dist.config import MethodOptions, Stage
from ccr_dist.methods.registry import register_options


@register_options("english")
class EnglishOptions(MethodOptions):
    name: Literal["english"]
    train: Literal["heads", "text", "all"] = Field(
        "heads",
        description=(
            "projection heads of a dual encoder, the text encoder (and a CLIP's temperature), or every parameter"
        ),
    )
    scale: Literal["learned"] | float = Field(
        "learned", description="factor of the cosines: the trained temperature of the backbone, or a fixed number"
    )
    positives: Literal["group", "diagonal"] = Field(
        "group", description="positives: all rows of a group, or only the row itself, as released"
    )

    def training_stages(self) -> dict[str, Stage]:
        text = "source_feature" if self.train == "heads" else "source_text"
        part = {"heads": "projection heads", "text": "the text encoder", "all": "the whole backbone"}[self.train]
        frozen = frozenset() if self.train == "all" else frozenset({"visual"})
        about = f"{part}: InfoNCE of pictures and English captions"
        return {"english": Stage(frozenset({"visual", text}), about, frozen)}
