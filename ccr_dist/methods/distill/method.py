"""Method `distill`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ccr_dist.config import ENGLISH, MethodOptions
from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.losses.context import Context
from ccr_dist.methods.alignment import towards_english, towards_pictures
from ccr_dist.methods.distill.encoder import keep_trained
from ccr_dist.methods.distill.options import DistillOptions
from ccr_dist.methods.features import at_least_one, precise
from ccr_dist.methods.query_side.method import LinearMap
from ccr_dist.methods.recompute import recompute
from ccr_dist.methods.registry import register_method
from ccr_dist.models.opened import opened


@register_method("distill")
class Distill(LinearMap):
    """`net` holds "map" and, as "query", the encoder, of which only what is trained are parameters."""

    Options = DistillOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError, besides the base's, without target languages, and where the encoder cannot be trained so."""
        if not self.languages:
            raise ConfigError(
                f"data.targets: method {self.name} learns from translated captions, and there are none. Give each"
                " target language a column; `ccr-dist translate` makes one from the English captions."
            )
        super().build(texts, state)
        self.map.reset_parameters()  # a map of zeros gives every caption the same place, and InfoNCE no direction
        keep_trained(self.query, self.options)
        parts = opened(self.query.text)
        self.recomputes = recompute(parts.blocks if parts else (), lambda: self.gradient_checkpointing)
        self.net["query"] = self.query

    def query_identity(self) -> dict[str, Any] | None:
        """None: features of an encoder that is trained cannot be cached."""
        return None

    def starts_from(self, source: MethodOptions) -> tuple[str, ...]:
        """From another `distill`, or from a `map` with an encoder as it was pretrained."""
        if source.name == self.name:
            return ()
        options = self.options
        wanted = {"name": "map", "space": options.space, "centre": "all", "query.prompt": options.query.prompt}
        prompt = getattr(getattr(source, "query", None), "prompt", None)
        there = {key: getattr(source, key, None) for key in ("name", "space", "centre")} | {"query.prompt": prompt}
        if wrong := [key for key, value in wanted.items() if there[key] != value]:
            raise ConfigError(
                f"init_from: a {self.name} starts from a run of `map` with its space and prompt, or of {self.name}, but"
                " there " + ", ".join(f"method.{key} is {there[key]!r} ({wanted[key]!r} is expected)" for key in wrong)
            )
        return ("net.query.",)

    def query_features(self, texts: Sequence[str]) -> Tensor:
        """As the base's, with gradient."""
        return precise(self.query.text_features(at_least_one(texts)))[: len(texts)]

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        if lang == ENGLISH and self.options.english == "backbone":
            return super().encode_text(texts, lang)
        return {"global": self._asked(texts, lang)}

    def _asked(self, texts: Sequence[str], lang: str) -> Tensor:
        """(n, D), n ≥ 0; of no texts it depends on all parameters nevertheless."""
        return self.mapped(self.query_features(at_least_one(texts)), lang)["global"][: len(texts)]

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """`global`, of the translations, and `source`, of the English captions by the same way (n, D); without gradient
        `english` and `visual` (n, D); each where the stage needs it.
        """
        needs = self.options.training_stages()[stage].needs
        result = {"global": self._asked(batch.target_text, batch.lang)}
        if "source_text" in needs:
            result["source"] = self._asked(batch.source_text, ENGLISH)
        return result | self.aims(stage, batch)

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        options = self.options
        terms: dict[str, Tensor] = {}
        for part, weight in (("global", 1.0), ("source", options.source)):
            if part not in outputs:
                continue
            found = precise(outputs[part])
            own: dict[str, Tensor] = {}
            if "english" in outputs:
                own |= towards_english(options, found, outputs["english"], ctx)
            if "visual" in outputs:
                own |= towards_pictures(options, found, outputs["visual"], batch, ctx)
            prefix = "" if part == "global" else f"{part}_"
            terms |= {f"{prefix}{name}": weight * value for name, value in own.items()}
        return terms
