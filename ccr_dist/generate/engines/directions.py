"""Tells sequence-to-sequence models the language to translate into, by family of models.

A model that is not told translates into some language or into none, and its output does not show it. Every direction is
therefore looked up in the tokenizer's tokens and the model's config, and refused if it is not found there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ccr_dist.errors import EngineError
from ccr_dist.generate.text import languages

# families with one token per language
CODED = ("m2m_100", "mbart", "nllb-moe", "plbart", "seamless_m4t", "seamless_m4t_v2")
_PREFIXED = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
_MARK = {"marian": re.compile(r">>([^<>]+)<<"), "t5": re.compile(r"<2([A-Za-z_-]+)>")}
_TASK = re.compile(r"translation_([A-Za-z_-]+?)_to_([A-Za-z_-]+)")


@dataclass(frozen=True)
class Direction:
    """How a model is told its direction.

    Attributes:
        prefix: Put before each text.
        source: The model's code of the source language, if it uses codes.
        target: The model's code of the target language, if it uses codes.
        ids: Token ids of these codes.
        doubt: Why the direction could not be verified; None if it is certain.
    """

    prefix: str = ""
    source: str | None = None
    target: str | None = None
    ids: dict[str, int] = field(default_factory=dict)
    doubt: str | None = None


def direct(tokenizer: Any, config: Any, *, source: str, target: str, prefix: str | None, model: str) -> Direction:
    """Find out how to tell a model its direction.

    Args:
        tokenizer: The model's tokenizer.
        config: The model's config.
        source: Source language: the model's own code, or a BCP 47 tag.
        target: Target language, likewise.
        prefix: The prefix that the user gave, or None.
        model: Name of the model, for messages.

    Raises:
        EngineError: The model does not know a language, was trained for another direction, or needs a prefix that is
            neither given nor found. Names the codes, marks or prefixes that it has.
    """
    family = config.model_type
    if family in CODED:
        return _coded(tokenizer, source, target, prefix or "", model)
    if family == "marian":
        _check_fixed(tokenizer.init_kwargs, source, target, model)
        marks = _marks(_MARK["marian"], tokenizer.get_vocab())
        return Direction(_prefix(prefix, marks, target, model, ">>{}<< ") if marks else prefix or "")
    if family == "fsmt":
        langs = getattr(config, "langs", None) or ["", ""]
        _check_fixed({"source_lang": langs[0], "target_lang": langs[1]}, source, target, model)
        return Direction(prefix or "")
    if family in _PREFIXED:
        return _prefixed(tokenizer, config, source, target, prefix, model)
    if hasattr(tokenizer, "src_lang"):
        return _coded(tokenizer, source, target, prefix or "", model)
    return Direction(
        prefix or "",
        doubt=None if prefix else f"nothing in {model} (a model of the family {family!r}) says its direction",
    )


def _coded(tokenizer: Any, source: str, target: str, prefix: str, model: str) -> Direction:
    codes = _codes(tokenizer)
    if not hasattr(tokenizer, "src_lang") or not codes:
        raise EngineError(
            f"engine 'transformers': {model!r} translates between many languages, but its tokenizer"
            f" ({type(tokenizer).__name__}) has no tokens for them, so it cannot be told the direction; take the"
            " tokenizer that came with the model"
        )
    found = {
        role: _code(sorted(codes), wanted, role, model) for role, wanted in (("source", source), ("target", target))
    }
    return Direction(prefix, found["source"], found["target"], {code: codes[code] for code in found.values()})


def _codes(tokenizer: Any) -> dict[str, int]:
    """Token ids by language code, among added and special tokens only: "pt" may also be an ordinary piece of text."""
    added = {str(token): number for token, number in tokenizer.get_added_vocab().items()}
    special = set(map(str, tokenizer.all_special_tokens)) | set(
        map(str, getattr(tokenizer, "_extra_special_tokens", ()) or ())
    )
    for token in special - added.keys():
        number = tokenizer.convert_tokens_to_ids(token)
        if number is not None and number != tokenizer.unk_token_id:
            added[token] = int(number)
    if named := getattr(tokenizer, "lang_code_to_token", None):  # M2M100: en -> __en__
        ids = getattr(tokenizer, "lang_token_to_id", {}) or added
        return {code: int(ids[token]) for code, token in named.items() if token in ids}
    return {
        token: number
        for token, number in added.items()
        if re.fullmatch(r"[a-z]{2,3}(_[A-Za-z]{2,4})?|__[a-z_]+__", token)
    }


def _code(codes: list[str], wanted: str, role: str, model: str) -> str:
    code, candidates = languages.choose(wanted, codes)
    if code is None:
        among = (
            f"several of its codes may be meant ({', '.join(candidates)}); say which"
            if candidates
            else "it does not know it"
        )
        raise EngineError(
            f"engine 'transformers': {model!r}: {role} language {wanted!r}: {among}: set {role}_code. It has:"
            f" {', '.join(codes[:300])}"
        )
    return code


def _marks(pattern: re.Pattern[str], tokens: Iterable[str]) -> dict[str, str]:
    """The token that asks for a language, by language code."""
    return {match.group(1): token for token in sorted(tokens) if (match := pattern.fullmatch(token))}


def _prefix(given: str | None, marks: dict[str, str], target: str, model: str, form: str) -> str:
    """A prefix with the mark of the target language: the one found, or the given one if its mark is right."""
    mark, _ = languages.choose(target, marks)
    asked = re.search("|".join(map(re.escape, sorted(marks.values(), key=len, reverse=True))), given or "")
    if given is None and mark is not None:
        return f"{marks[mark]} "
    shown = ", ".join(list(marks.values())[:300])
    if given is None:
        raise EngineError(
            f"engine 'transformers': {model!r} translates into several languages and has no mark for {target!r} (or"
            f" more than one); set prefix to one of its marks and a space. It has: {shown}"
        )
    if asked is None:
        raise EngineError(
            f"engine 'transformers': {model!r} translates into several languages, and the prefix {given!r} has none of"
            f" its marks, such as {form.format(mark or next(iter(marks)))!r}. It has: {shown}"
        )
    said = next(code for code, token in marks.items() if token == asked.group())
    if mark is not None and languages.known(said) and not languages.same(said, target):
        raise EngineError(
            f"engine 'transformers': the prefix {given!r} asks {model!r} for {said!r}, and --to is {target!r}"
        )
    return given


def _check_fixed(told: dict[str, Any], source: str, target: str, model: str) -> None:
    """Refuse a model that was trained for one other direction, as its tokenizer says.

    Names of groups of languages (ROMANCE, gmw) and unknown tags are not checked.
    """
    for role, wanted in (("source", source), ("target", target)):
        made_for = str(told.get(f"{role}_lang") or "")
        if languages.known(made_for) and languages.known(wanted) and not languages.near(made_for, wanted):
            raise EngineError(
                f"engine 'transformers': {model!r} is made for {told.get('source_lang')} -> {told.get('target_lang')},"
                f" and {source} -> {target} is asked for; take a model for it"
            )


def _prefixed(tokenizer: Any, config: Any, source: str, target: str, prefix: str | None, model: str) -> Direction:
    if marks := _marks(_MARK["t5"], tokenizer.get_vocab()):  # MADLAD-400
        return Direction(_prefix(prefix, marks, target, model, "<2{}> "))
    tasks = {}
    for name, task in (getattr(config, "task_specific_params", None) or {}).items():
        if (match := _TASK.fullmatch(name)) and isinstance(task, dict) and task.get("prefix"):
            tasks[match.groups()] = str(task["prefix"])
    if not tasks and prefix is None:
        raise EngineError(
            f"engine 'transformers': {model!r} is a T5, which is told the direction by a prefix, and its config names"
            " none. Set the prefix that its model card gives, such as 'prefix=translate English to German: '; or an"
            f" empty one, \"prefix=''\", if it was trained on {source} -> {target} alone, without a prefix"
        )
    if not tasks:
        return Direction(
            prefix or "", doubt=None if prefix else f"{model} is a T5, and is given no prefix to tell it the direction"
        )
    for (one, other), text in tasks.items():
        if languages.same(one, source) and languages.same(other, target) and prefix in (None, text):
            return Direction(text)
    if prefix is None:
        raise EngineError(
            f"engine 'transformers': {model!r} is told the direction by a prefix; its config has none for {source} ->"
            f" {target}, but for: {', '.join(f'{a} -> {b} ({text!r})' for (a, b), text in sorted(tasks.items()))}; if"
            " it knows yours, set prefix"
        )
    named = [pair for pair, text in tasks.items() if text.strip() == prefix.strip()]
    if named and not languages.same(named[0][1], target):
        raise EngineError(
            f"engine 'transformers': the prefix {prefix!r} asks {model!r} for {named[0][1]!r}, and --to is {target!r}"
        )
    return Direction(prefix)
