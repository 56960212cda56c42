"""What MLA, DASD and their relatives have in common: other languages enter the frozen English text tower through a
multilingual front end.

A subclass says how a caption passes through the tower (`encode_target`). It inherits the two stages, CLA (cross-lingual
alignment: text only, towards the English feature; MLA calls it NLT) and CMA (cross-modal alignment: towards the
picture; MLA: LE), and the alignment losses. Sources: Zhang et al., MLA, NeurIPS 2022; Cai et al., DASD, AAAI 2025, and
its released code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import FrontEndConfig, MethodOptions
from ccr_dist.errors import ConfigError
from ccr_dist.methods.base import ENGLISH, Method, Stage
from ccr_dist.methods.features import at_least_one, encode_visual, english, frozen, precise

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.data.stream.loader import Batch
    from ccr_dist.losses.context import Context
    from ccr_dist.models.frontend import Tokens


class CrossLingualOptions(MethodOptions):
    """Weights are those of the published objective; 0 leaves a term out."""

    frontend: FrontEndConfig = FrontEndConfig()
    stages: tuple[Literal["cla", "cma"], ...] = Field(("cla", "cma"), description="which of the two are gone through")
    mse: float = Field(1.0, ge=0, description="weight of the squared error to the English feature, mean over D")
    cosine: float = Field(0.0, ge=0, description="weight of 1 - cosine to the English feature (not in the papers)")
    keep_english: bool = Field(False, description="the two terms above stay in CMA")
    contrastive: float = Field(1.0, ge=0, description="weight of the symmetric InfoNCE with pictures in CMA")
    scale: float = Field(100.0, gt=0, description="of the cosines in the InfoNCE, fixed")
    positives: Literal["group", "diagonal"] = Field(
        "group", description="right answers in the InfoNCE: all of a group, or the own row only, as released"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.stages not in (("cla", "cma"), ("cla",), ("cma",)):
            raise ValueError(f"stages are [cla, cma], [cla] or [cma], not [{', '.join(self.stages)}]")
        english = self.mse + self.cosine
        learns = {"cla": english, "cma": self.contrastive or (english and self.keep_english)}
        off = {"cla": "mse and cosine are off", "cma": "contrastive is off, and so are mse and cosine, or keep_english"}
        for stage in self.stages:
            if not learns[stage]:
                raise ValueError(f"stage {stage} would align captions with nothing: {off[stage]}")
        return self


class CrossLingual(Method):
    """Base class; its `net` holds "front_end"."""

    Options: ClassVar[type[MethodOptions]] = CrossLingualOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError without target languages, with English among them, or with a backbone whose text tower has no
        adapter slots.
        """
        from ccr_dist.models.frontend import build_frontend

        options, backbone = self.options, self.backbone
        if not self.languages or ENGLISH in self.languages:
            raise ConfigError(
                f"data.targets: method {self.name} learns other languages from translated captions, and has to learn: "
                f"{', '.join(self.languages) or '(none)'}. Give each target language, but not English, a column; "
                "`ccr-dist translate` makes one from the English captions."
            )
        self.tower = backbone.tower
        self.teacher = backbone  # what English captions and pictures are encoded by, as constants of a step
        self.front_end = build_frontend(
            options.frontend, self.tower, texts=texts, state=state["front_end"] if state else None
        )
        self.net["front_end"] = self.front_end

    @classmethod
    def stages(cls, options: Any) -> dict[str, Stage]:
        cma = {"visual", "target_text"} | ({"source_feature"} if options.keep_english else set())
        both = {
            "cla": Stage(
                frozenset({"source_feature", "target_text"}), "all of net: translated captions towards English features"
            ),
            "cma": Stage(frozenset(cma), "all of net: translated captions towards pictures", frozenset({"visual"})),
        }
        return {name: both[name] for name in options.stages}

    def state(self) -> dict[str, Any]:
        return {"front_end": self.front_end.state()}

    @abstractmethod
    def encode_target(self, tokens: Tokens, lang: str) -> dict[str, Tensor]:
        """Captions of a target language to {"global": (n, D)} and whatever else the method's losses need, n ≥ 1."""

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        """English: the backbone, untouched. ConfigError for a language that was not trained."""
        if lang == ENGLISH:
            return super().encode_text(texts, lang)
        if lang not in self.languages:
            raise ConfigError(
                f"language '{lang}' is asked for, but this {self.name} model was trained for"
                f" {', '.join(self.languages)}"
            )
        found = self.encode_target(self.front_end.tokenize(at_least_one(texts)), lang)
        return {name: value[: len(texts)] for name, value in found.items()}

    @property
    def truncated(self) -> int:
        teacher = self.teacher.truncated if self.teacher is not self.backbone else 0
        return self.backbone.truncated + teacher + self.front_end.truncated

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """`captions` and, without gradient, english (n, D) and visual (n, D) where the stage needs them."""
        result = self.captions(batch)
        needs = self.stages(self.options)[stage].needs
        if "source_feature" in needs:
            result["english"] = frozen(lambda: english(self.teacher, batch))
        if "visual" in needs:
            assert batch.visual is not None
            result["visual"] = self.picture(batch.visual)
        return result

    def captions(self, batch: Batch) -> dict[str, Tensor]:
        """What `encode_target` finds in the target captions of a batch."""
        return self.encode_text(batch.target_text, batch.lang)

    def picture(self, visual: Tensor) -> Tensor:
        """(n, D): what captions are drawn towards in CMA; a constant, unless the method trains the image tower."""
        return frozen(lambda: encode_visual(self.teacher, visual))

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        from torch.nn.functional import cosine_similarity

        options, target = self.options, precise(outputs["global"])
        terms: dict[str, Tensor] = {}
        if stage == "cla" or options.keep_english:
            if options.mse:
                terms["mse"] = options.mse * ctx.mean((target - outputs["english"]).square().mean(-1))
            if options.cosine:
                terms["cosine"] = options.cosine * ctx.mean(1 - cosine_similarity(target, outputs["english"], dim=-1))
        if stage == "cma" and options.contrastive:
            group = batch.group if options.positives == "group" else None
            terms["contrastive"] = options.contrastive * ctx.contrastive(
                target, outputs["visual"], scale=options.scale, group=group
            )
        return terms
