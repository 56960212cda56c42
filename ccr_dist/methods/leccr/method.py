"""Method `leccr`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.retrieval import Fusion
from ccr_dist.losses.context import Context
from ccr_dist.losses.slots import slot_scores
from ccr_dist.methods.base import Method
from ccr_dist.methods.features import at_least_one, image_tokens, nothing_like, precise
from ccr_dist.methods.leccr.augment import RandomPart
from ccr_dist.methods.leccr.captions import words_of
from ccr_dist.methods.leccr.losses import gathered_gradient, loss_terms, vision_is_per_process
from ccr_dist.methods.leccr.network import EnrichedVisual
from ccr_dist.methods.leccr.options import LeccrOptions
from ccr_dist.methods.registry import register_method
from ccr_dist.models import token_counts
from ccr_dist.models.text_encoder import build_text_encoder

ALPHAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # candidates of `alpha: validation`


@register_method("leccr")
class Leccr(Method):
    """Its `net` holds "text", "text_head", "visual" and "temperature"."""

    Options = LeccrOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError when the text encoder cannot be loaded, the backbone has no tokens or no text tower, or the heads
        do not fit.
        """
        options, backbone = self.options, self.backbone
        self.text = self.net["text"] = build_text_encoder(
            options.text_encoder,
            layers=options.text_layers,
            train_from=options.text_train_from,
            rows=options.text_rows,
            dropout=options.dropout,
            pad=options.text_pad,
        )
        if state:
            self.text.check(state["text"])
        self.describer: Any = self.text
        if options.descriptions and options.description_encoder == "frozen":
            self.describer = self.net["describer"] = self.text.frozen_copy()
        width = self.text.width
        if options.descriptions and options.description_encoder == "clip":
            if backbone.tower.fixed_length:
                raise ConfigError(
                    f"method.description_encoder: the text tower of {backbone.name} takes padding for text; choose"
                    " shared or frozen"
                )
            width = backbone.tower.dim
        video = options.visual == "video"
        self.inputs: int = options.frame_width if video else backbone.token_width
        self.visual = self.net["visual"] = EnrichedVisual(
            self.inputs,
            width if options.descriptions else None,
            options.dim,
            width=options.width,
            temporal_blocks=options.temporal_blocks if video else 0,
            slots=options.slots,
            slot_blocks=options.slot_blocks,
            blocks=options.blocks if options.interaction else 0,
            heads=options.heads,
            dropout=options.dropout,
            start=options.slot_start,
            local=options.local > 0,
            means=options.vision > 0,
        )
        self.text_head = self.net["text_head"] = nn.Linear(self.text.width, options.dim)
        self.temperature = self.net["temperature"] = nn.ParameterDict({"tau": torch.full((1,), options.temperature)})
        self.cut_captions = self.filled_contexts = 0
        if self.trains_image:
            backbone.trainable_parameters("all")

    @property
    def trains_image(self) -> bool:
        return self.options.visual == "image" and self.options.train_image

    def state(self) -> dict[str, Any]:
        return {"text": self.text.state()}

    def trainable(self, stage: str) -> list[str]:
        if not self.trains_image:
            return ["net."]
        names = [name for name, _ in self.backbone.named_parameters() if self.backbone.part_of(name) == "image"]
        return ["net.", *(f"backbone.{name}" for name in names)]

    def image_transform(self) -> Callable[..., Tensor]:
        """RandomResizedCrop and a horizontal flip, where the image encoder is trained."""
        plain, least = super().image_transform(), self.options.least_part
        return RandomPart(plain, least) if self.trains_image and least is not None else plain

    @property
    def truncated(self) -> int:
        """Captions and descriptions truncated so far, at `caption_words` or at a limit of tokens."""
        own = self.describer.truncated if self.describer is not self.text else 0
        return self.text.truncated + own + self.cut_captions + self.filled_contexts

    # Encoding.

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        """{"global": (n, dim)}, unit length. Any language, English too, by the one encoder."""
        tokens = self.text.tokenize(self._prepared(at_least_one(texts)), self.options.caption_tokens)
        states = self.text(tokens, self.gradient_checkpointing)
        pooled = self.text.pool(states, tokens.mask, self.options.text_pool)
        return {"global": normalize(precise(self.text_head(pooled)), dim=-1)[: len(texts)]}

    def encode_visual(
        self, visual: Tensor, mask: Tensor | None = None, description: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Pictures (n, 3, H, W), or tokens or frames (n, T, F) with mask (n, T), to {"global": (n, dim), unit length,
        "local": (n, slots, dim)}, the latter where slots are scored.
        """
        found, _ = self._described(visual, mask, description)
        return {name: found[name] for name in ("global", "local") if name in found}

    def _described(
        self, visual: Tensor, mask: Tensor | None, description: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """What `EnrichedVisual` finds, and the mask of its tokens."""
        n = visual.shape[0]
        if not n:
            visual, mask = nothing_like(visual), None
        tokens = self._tokens(visual)
        states, states_mask = self._states(at_least_one(description)) if self.options.descriptions else (None, None)
        found = self.visual(tokens, mask, states, states_mask, self.gradient_checkpointing)
        return {name: value[:n] for name, value in found.items()}, mask if mask is None else mask[:n]

    def _tokens(self, visual: Tensor) -> Tensor:
        if visual.ndim == 3:
            if self.trains_image:
                raise ConfigError(
                    "data.visual is a column of tokens, but `train_image: true` trains the image encoder: name the"
                    " column of pictures"
                )
            if visual.shape[-1] != self.inputs:
                raise ConfigError(
                    f"data.visual holds vectors of width {visual.shape[-1]}; this model was made for {self.inputs}"
                )
            return visual
        if self.options.visual == "video":
            raise ConfigError(
                "data.visual is a column of pictures, but `visual: video` reads frame features, made by `ccr-dist"
                " featurise`"
            )
        return image_tokens(self.backbone, visual, recompute=self.trains_image and self.gradient_checkpointing)

    def _states(self, descriptions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States (n, L, width) of descriptions, n ≥ 1, and their mask. Without gradient, but with dropout in training,
        as released.
        """
        limit = self.options.description_tokens
        with torch.no_grad():
            if self.options.description_encoder == "clip":
                return self._clip_states(descriptions, limit)
            tokens = self.describer.tokenize(descriptions, limit)
            return self.describer(tokens), tokens.mask

    def _clip_states(self, descriptions: Sequence[str], limit: int) -> tuple[Tensor, Tensor]:
        """Every position of the backbone's text tower as if it stood for the text: with CLIP's final norm and
        projection.
        """
        tower = self.backbone.tower
        x, mask, end = tower.embed_native(descriptions)
        # The tower's own tokeniser cuts without a word, so a text that fills the context is counted as cut.
        self.filled_contexts += token_counts.once(int((mask.sum(1) >= min(limit, tower.context_length)).sum()))
        h, mask = tower.states(x, mask)[:, :limit], mask[:, :limit]
        single = h.reshape(-1, 1, tower.width)
        states = tower.finish(single, mask.new_ones(single.shape[:2]), end.new_zeros(len(single)))
        return states.view(*mask.shape, -1), mask

    def _prepared(self, captions: Sequence[str]) -> list[str]:
        options, prepared = self.options, []
        for caption in captions:
            words = words_of(caption, options.caption_marks) if options.caption_clean else caption.split()
            self.cut_captions += token_counts.once(
                options.caption_words is not None and len(words) > options.caption_words
            )
            prepared.append(" ".join(words[: options.caption_words]))
        return prepared

    # Scoring.

    @property
    def visual_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("global",) if self.options.alpha == 1 else ("global", "local")

    def scores(self, text: Mapping[str, Tensor], visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of text j and item i, "global": <x_j, g_i>; "local": max_k <x_j, l_ik>."""
        parts = {"global": text["global"] @ visual["global"].T}
        if "local" in visual:
            parts["local"] = slot_scores(visual["local"], text["global"]).T
        return parts

    def fusions(self) -> list[Fusion]:
        options = self.options
        alphas = ALPHAS if options.alpha == "validation" else (options.alpha,)
        weights = [
            {"global": alpha, "local": round(1 - alpha, 6)} if alpha != 1 else {"global": 1.0} for alpha in alphas
        ]
        return [Fusion(each, options.minmax) for each in weights]

    # Training.

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """visual, english, target (n, dim), unit length; scale (1,), 1 / tau; with descriptions slots (n, K, d), local
        (n, K, dim), and slot_mean and token_mean (n, d), where the loss has terms of them.
        """
        assert batch.visual is not None
        options, n = self.options, len(batch)
        captions = self.encode_text([*batch.source_text, *batch.target_text], batch.lang)["global"]
        found, mask = self._described(batch.visual, batch.visual_mask, batch.description)
        result = {
            "english": captions[:n],
            "target": captions[n:],
            "visual": found["global"],
            "scale": 1 / self.temperature["tau"],
        }
        if options.descriptions:
            result["slots"] = precise(found["slots"])
            if options.local:
                result["local"] = found["local"]
            if options.vision:
                processes = 1 if vision_is_per_process(options) else options.processes
                tokens, slots = (gathered_gradient(found[name], processes) for name in ("tokens", "slots"))
                result["slot_mean"], result["token_mean"] = self.visual.means(tokens, mask, slots, options.vision_axis)
        return result

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        return loss_terms(self.options, batch, outputs, ctx)
