"""Texts in one language -> the same in another one by a language model that is asked to. Dedicated systems: `translate.py`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from ccr_dist.data.decode import texts_of
from ccr_dist.data.table import Dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.engines.base import make_translator, translators
from ccr_dist.generate.engines.generator import Generation, Generator, Request, generators, make_generator
from ccr_dist.generate.filters import judge
from ccr_dist.generate.processor import Outcome, Processor
from ccr_dist.generate.prompts import Prompt, load_prompt, plan_of
from ccr_dist.generate.requests import Asked, Asker, Generate
from ccr_dist.generate.translate import Translate

FIELDS = ("text", "source_language", "target_language")
_QUOTES = {'"': '"', "“": "”", "„": "“", "«": "»", "「": "」"}

# As models know them. The codes of Crossmodal-3600 and those of the benchmarks here; a prompt file can name any other language itself.
LANGUAGES = {
    **{"ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek"},
    **{"en": "English", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fil": "Filipino"},
    **{"fr": "French", "ga": "Irish", "gl": "Galician", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian"},
    **{"id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian"},
    **{"mi": "Maori", "ms": "Malay", "nb": "Norwegian Bokmål", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese"},
    **{"pt_BR": "Brazilian Portuguese", "quz": "Cusco Quechua", "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian"},
    **{"sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian"},
    **{"ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese", "zh-Hans": "Simplified Chinese", "zh-Hant": "Traditional Chinese"},
}


@dataclass(frozen=True)
class AskTranslations:
    """One request a caption that is not blank."""

    prompt: Prompt
    column: str
    fields: dict[str, str]

    def __call__(self, key: str, values: dict[str, Any]) -> Asked | None:
        value = values[self.column]
        if value is None:
            return None
        captions = [" ".join(caption.split()) for caption in texts_of(value)]
        ((name, view),) = self.prompt.views.items()
        requests = []
        for i, caption in enumerate(captions):
            if caption:
                system, text = self.prompt.fill(name, {**self.fields, "text": caption})
                requests.append(Request(f"{key}/{i}", text, system, max_tokens=view.max_tokens))
        return Asked(tuple(requests), captions)


class LlmTranslate(Generate):
    """(n captions) -> (n translations), aligned; blank captions stay "" and are not sent, null rows stay null.

    A translation that a filter drops is "". Counters: `captions`, `empty`, `unchanged`, as `Translate`, and the filters' reasons.
    """

    kind = "texts"

    def __init__(self, engine: Generator, source: str, target: str, column: str = "caption.en", *, prompt: str = "translate") -> None:
        super().__init__(engine)
        self.prompt = load_prompt(prompt, FIELDS)
        if len(self.prompt.views) != 1 or not self.prompt.uses("text"):
            raise ConfigError(f"prompt {prompt!r}: to translate it needs one view, with the field {{text}}")
        if any(view.list for view in self.prompt.views.values()):
            raise ConfigError(f"prompt {prompt!r}: a translation is no list; leave out list: true")
        self.inputs = (column,)
        self._fields = {
            field: _language(code, prompt)
            for field, code in (("source_language", source), ("target_language", target))
            if self.prompt.uses(field)
        }
        self._direction = {"source": source, "target": target}

    def check(self, dataset: Dataset) -> None:
        column = dataset.column(self.inputs[0])
        if column.kind not in ("texts", "views"):
            raise DataError(f"{column.folder}: a {column.kind} column; translate takes texts or views")

    def plan(self) -> dict[str, Any]:
        return {"processor": "llm-translate", "engine": self.engine.identity(), "prompt": plan_of(self.prompt), **self._direction}

    def asker(self) -> Asker:
        return AskTranslations(self.prompt, self.inputs[0], self._fields)

    def outcome(self, about: list[str], answers: list[Generation]) -> Outcome:
        (view,) = self.prompt.views.values()
        given = iter(answers)
        translations: list[str] = []
        counts = {"captions": len(about)}
        for caption in about:
            if not caption:
                translations.append("")
                continue
            answer = next(given)
            kept, how = judge(_bare(answer.text, caption), answer.finish, self.prompt.filters, max_words=view.max_words)
            translations.append(" ".join((kept or "").split()))
            for reason, happened in (
                ("empty", not kept),
                (how, kept is None),
                ("cut", kept is not None and how == "length"),
                ("unchanged", kept == caption),
            ):
                if happened:
                    counts[reason] = counts.get(reason, 0) + 1
        return Outcome(translations, counts=counts)


def make_translation(
    engine: str, source: str, target: str, options: dict[str, Any], column: str, *, prompt: str | None = None
) -> Processor:
    """The job that translates `column` with a translation engine, or with a generation engine that is asked by `prompt`.

    `transformers` is a dedicated translation model, `transformers-llm` a language model. ConfigError for an unknown engine or option.
    """
    llms = {f"{name}-llm" if name in translators.names() else name: name for name in generators.names()}
    if engine in llms:
        return LlmTranslate(make_generator(llms[engine], options), source, target, column, prompt=prompt or "translate")
    if engine not in translators.names():
        names = [*translators.names(), *llms]
        near = difflib.get_close_matches(engine, names, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ConfigError(f"unknown translation engine {engine!r}{hint} There are: {', '.join(names)}")
    if prompt is not None:
        raise ConfigError(f"--prompt is for language models ({', '.join(llms)}); {engine!r} is a translation system")
    return Translate(make_translator(engine, source, target, options), column)


def _language(code: str, prompt: str) -> str:
    if code not in LANGUAGES:
        raise ConfigError(
            f"language {code!r}: the prompt {prompt!r} needs its name; known are {', '.join(sorted(LANGUAGES))}. "
            "For others write a prompt file (--prompt FILE.yaml) that names the language itself"
        )
    return LANGUAGES[code]


def _bare(text: str, caption: str) -> str:
    """Without the quotation marks that models like to put around a translation."""
    text = text.strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and caption[0] not in _QUOTES and text[0] not in text[1:-1]:
        return text[1:-1].strip()
    return text
