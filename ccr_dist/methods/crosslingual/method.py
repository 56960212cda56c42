"""Base class of the methods with a front end before the frozen text tower."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from ccr_dist.config import ENGLISH, MethodOptions
from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.losses.context import Context
from ccr_dist.methods.alignment import towards_english, towards_pictures
from ccr_dist.methods.base import Method
from ccr_dist.methods.crosslingual.options import CrossLingualOptions
from ccr_dist.methods.features import at_least_one, encode_visual, english, frozen, precise
from ccr_dist.models.frontend import Tokens, build_frontend


class CrossLingual(Method):
    """Base class; its `net` holds "front_end"."""

    Options: ClassVar[type[MethodOptions]] = CrossLingualOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError without target languages, with English among them, or with a backbone whose text tower has no
        adapter slots.
        """
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
        needs = self.options.training_stages()[stage].needs
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
        options, target = self.options, precise(outputs["global"])
        terms: dict[str, Tensor] = {}
        if stage == "cla" or options.keep_english:
            terms |= towards_english(options, target, outputs["english"], ctx)
        if stage == "cma":
            terms |= towards_pictures(options, target, outputs["visual"], batch, ctx)
        return terms
