"""Method `nrccr`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ccr_dist.config import ENGLISH
from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.retrieval import PLAIN, Fusion
from ccr_dist.losses.adversarial import Discriminator, discriminator_loss
from ccr_dist.losses.context import Context
from ccr_dist.methods.base import Method
from ccr_dist.methods.features import at_least_one, encode_visual, frozen, precise
from ccr_dist.methods.nrccr.losses import loss_terms
from ccr_dist.methods.nrccr.network import CommonSpace, SequenceEncoder, Statistics
from ccr_dist.methods.nrccr.options import NrccrOptions
from ccr_dist.methods.registry import register_method
from ccr_dist.models.hf_tower import masked_mean
from ccr_dist.models.subwords import Tokens
from ccr_dist.models.text_encoder import build_text_encoder


@register_method("nrccr")
class Nrccr(Method):
    Options = NrccrOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError without target languages, and when the text encoder cannot be loaded or is not the one of
        `state`.
        """
        options = self.options
        if not self.languages or ENGLISH in self.languages:
            raise ConfigError(
                f"data.targets: method {self.name} learns from machine translations of the captions, and has: "
                f"{', '.join(self.languages) or '(none)'}. Give each target language, but not English, a column; "
                "`ccr-dist translate --back` makes it and the back-translations."
            )
        drop = options.state_dropout
        self.encoder = self.net["encoder"] = build_text_encoder(
            options.encoder, train_from=options.train_from, dropout=drop, pad=options.pad
        )
        if state:
            self.encoder.check(state["encoder"])
        self.max_tokens = min(options.max_tokens, self.encoder.positions)
        attention: dict[str, Any] = {"heads": options.heads, "dropout": drop}
        self.text = self.net["text"] = SequenceEncoder(
            self.encoder.width, options.text_width, self.max_tokens, **attention
        )
        width = options.image_width
        if options.visual == "frames":
            self.net["visual"] = SequenceEncoder(options.frame_width, width, options.max_frames, **attention)
        else:
            self.net["visual"] = nn.Linear(self.backbone.dim, width)
        self.net["text_space"] = CommonSpace(options.text_width, options.dim, options.norm, options.dropout)
        self.net["visual_space"] = CommonSpace(width, options.dim, options.norm, options.dropout)
        self.running: dict[str, Statistics] = {}
        if options.norm == "batch":
            self.running = {side: Statistics(options.dim) for side in ("text", "visual")}
            self.net["running"] = nn.ModuleDict(self.running)
            self.rows_interact = self.keeps_statistics = True
        if options.adversarial:
            # so that the rest of the model starts alike with and without an opponent
            with torch.random.fork_rng(devices=[]):
                self.aux["discriminator"] = Discriminator(self.encoder.width)

    def state(self) -> dict[str, Any]:
        return {"encoder": self.encoder.state()}

    def trainable(self, stage: str) -> list[str]:
        """All but the running statistics."""
        return [f"net.{name}." for name in self.net if name != "running"]

    def auxiliary_lr(self, name: str) -> float:
        return self.options.discriminator_lr

    @property
    def truncated(self) -> int:
        """Texts that were longer than `max_tokens` and lost their ends so far."""
        return self.encoder.truncated

    # Encoding.

    def encode_visual(
        self, visual: Tensor, mask: Tensor | None = None, description: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Frames: (n, T, F) with their mask. ConfigError where they are too many, or no frame features."""
        options = self.options
        if options.visual == "image":
            features = self.net["visual"](frozen(lambda: encode_visual(self.backbone, visual)))
        else:
            if visual.ndim != 3 or visual.shape[-1] != options.frame_width or visual.shape[1] > options.max_frames:
                raise ConfigError(
                    f"data.visual: a batch has the shape {tuple(visual.shape)}, but method.visual 'frames' takes at"
                    f" most {options.max_frames} frames of width {options.frame_width} an item: set method.max_frames"
                    " and method.frame_width, or cache frame features with `ccr-dist featurise --from video --pool"
                    " none`"
                )
            frames = visual if len(visual) else visual.new_zeros(1, 1, options.frame_width)
            there = frames.new_ones(frames.shape[:2]).bool() if mask is None or not len(visual) else mask
            features = self.net["visual"](frames, there)[: len(visual)]
        return {"global": self.net["visual_space"](features, self.running.get("visual"))}

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        """Any language alike. "translated" (n, D), where scores are fused: of the query's translation; of English, the
        query's own.
        """
        found = {"global": self._common(self._read(texts)[0], len(texts))}
        if "translated" in self.text_parts:
            found["translated"] = (
                found["global"] if lang == ENGLISH else self._common(self._read(companion)[0], len(companion))
            )
        return found

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pooled state (n, text_width), embedded tokens and encoder states (n, L, …), and mask (n, L); n ≥ 1."""
        return self._read_tokens(self._tokenize(texts))

    def encode_tokens(self, tokens: Tokens) -> Tensor:
        """(n, D) of tokenised texts, n ≥ 1, padded to `max_tokens` where padding is pooled."""
        return self._common(self._read_tokens(tokens)[0], tokens.ids.shape[0])

    def _read_tokens(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        states = self.encoder(tokens, checkpoint=self.gradient_checkpointing)
        embedded = self.text.embed(states)
        read = self.text.read(embedded, embedded, tokens.mask, residual=True, asking=self._asking(tokens.mask))
        return self._pool(read, tokens.mask), embedded, states, tokens.mask

    def _tokenize(self, texts: Sequence[str]) -> Tokens:
        tokens = self.encoder.tokenize(at_least_one(texts), self.max_tokens)
        if self.options.pooling == "tokens":
            return tokens
        missing = self.max_tokens - tokens.ids.shape[1]
        ids = pad(tokens.ids, (0, missing), value=self.encoder.pieces.pad)
        return tokens._replace(ids=ids, mask=pad(tokens.mask, (0, missing)))

    def _asking(self, mask: Tensor) -> Tensor | None:
        return None if "tokens" in (self.options.pooling, self.options.padding_reads) else mask

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:

        return masked_mean(states, mask if self.options.pooling == "tokens" else mask.new_ones(mask.shape))

    def _common(self, pooled: Tensor, rows: int) -> Tensor:
        return self.net["text_space"](pooled[:rows], self.running.get("text"))

    # Scoring.

    @property
    def text_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("global", "translated") if any(self.options.fusion) else ("global",)

    def scores(self, text: Mapping[str, Tensor], visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cosines of the query and, where scores are fused, of its translation."""
        return {part: super(Nrccr, self).scores({"global": text[part]}, visual)["global"] for part in self.text_parts}

    def fusions(self) -> list[Fusion]:

        return [
            Fusion({"global": 1 - weight, "translated": weight}, minmax=True) if weight else PLAIN
            for weight in self.options.fusion
        ]

    # Training.

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """visual, english, target, teacher, back (n, D), unit length; state_english, state_target (n, width): means of
        encoder states.
        """
        options, n = self.options, len(batch)
        assert batch.visual is not None
        result = {"visual": self.encode_visual(batch.visual, batch.visual_mask)["global"]}
        english, embedded, states, mask = self._read(batch.source_text)
        target, embedded_target, states_target, mask_target = self._read(batch.target_text)
        result |= {"english": self._common(english, n), "target": self._common(target, n)}
        if options.similarity or options.feature:
            read = self.text.read(embedded, embedded_target, mask_target, residual=False, asking=self._asking(mask))
            teacher = self._pool(torch.cat([read, embedded_target], 1), torch.cat([mask, mask_target], 1))
            result["teacher"] = self._common(teacher, n)
        if options.back:
            result["back"] = self._common(self._read(batch.back_text)[0], n)
        if options.adversarial:
            result["state_english"] = self._pool(states, mask)[:n]
            result["state_target"] = self._pool(states_target, mask_target)[:n]
        return result

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        return loss_terms(self.options, batch, outputs, ctx, self.aux)

    def auxiliary_losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        if "discriminator" not in self.aux:
            return {}
        english, target = precise(outputs["state_english"]), precise(outputs["state_target"])
        return {
            "discriminator": ctx.mean(discriminator_loss(self.aux["discriminator"], english[:, :0], english, target))
        }
