"""Translates texts with a language model that is asked to. Dedicated translation systems are in `translate.py`."""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.engines.base import make_translator, translators
from ccr_dist.generate.engines.generator import Answer, Generator, Request, generators, make_generator
from ccr_dist.generate.jobs.prompts import Prompt, load_prompt, plan_of
from ccr_dist.generate.jobs.request_stream import Asked, Asker, Generate
from ccr_dist.generate.jobs.translate import Translate, captions_of, check_direction
from ccr_dist.generate.processor import Processor, RowOutcome
from ccr_dist.generate.text import languages
from ccr_dist.generate.text.filters import VERSION, is_long, kept_of, tally

FIELDS = ("text", "source_language", "target_language")
LONGEST = 8000  # most characters of a caption


@dataclass(frozen=True)
class AskTranslations:
    """Makes one request per caption that is not blank; None for a null row.

    Attributes:
        prompt: The prompt.
        column: Column of captions.
        fields: Values of the prompt's fields, without {text}.
    """

    prompt: Prompt
    column: str
    fields: dict[str, str]

    def __call__(self, key: str, values: dict[str, Any]) -> Asked | None:
        if (captions := captions_of(key, values[self.column], LONGEST)) is None:
            return None
        ((name, view),) = self.prompt.views.items()
        requests = []
        for i, caption in enumerate(captions):
            if caption:
                system, text = self.prompt.fill(name, {**self.fields, "text": caption})
                requests.append(Request(f"{key}/{i}", text, system, max_tokens=view.max_tokens))
        return Asked(tuple(requests), captions)


class LlmTranslate(Generate):
    """Turns n captions into n aligned translations. Blank captions stay "" and are not sent; null rows stay null.

    A translation that a filter drops is "". Counters: `captions`, `empty`, `unchanged` and `long`, as for `Translate`;
    reasons of dropped answers, `cut`, and what was removed around answers, as for `Describe`.

    Args:
        engine: A generation engine.
        source: Source language.
        target: Target language.
        column: Column of captions.
        prompt: Name of a shipped prompt, or path of a file.

    Raises:
        ConfigError: The prompt does not fit, or a language is wrong or has no known name that the prompt needs.
    """

    kind = "texts"

    def __init__(
        self, engine: Generator, source: str, target: str, column: str = "caption.en", *, prompt: str = "translate"
    ) -> None:
        super().__init__(engine)
        self.prompt = load_prompt(prompt, FIELDS)
        if len(self.prompt.views) != 1 or not self.prompt.uses("text"):
            raise ConfigError(f"prompt {prompt!r}: to translate it needs one view, with the field {{text}}")
        if any(view.list for view in self.prompt.views.values()):
            raise ConfigError(f"prompt {prompt!r}: a translation is not a list; leave out list: true")
        check_direction(source, target)
        self.inputs = (column,)
        self._fields = {
            field: _language(code, prompt)
            for field, code in (("source_language", source), ("target_language", target))
            if self.prompt.uses(field)
        }
        self._direction = {"source": languages.normal(source), "target": languages.normal(target)}
        self._names = [*languages.titles(target), *filter(None, [languages.name(target)])]

    def check(self, dataset: Dataset) -> None:
        dataset.column(self.inputs[0]).require_kind(("texts", "views"), "translate")

    def plan(self) -> dict[str, Any]:
        return {
            "processor": "llm-translate",
            "engine": self.engine.identity(),
            "prompt": plan_of(self.prompt),
            "filters": VERSION,
            **self._direction,
        }

    def asker(self) -> Asker:
        return AskTranslations(self.prompt, self.inputs[0], self._fields)

    def outcome(self, about: list[str], answers: list[Answer]) -> RowOutcome:
        (view,) = self.prompt.views.values()
        given = iter(answers)
        translations: list[str] = []
        counts: Counter[str] = Counter(captions=len(about))
        for caption in about:
            answer = next(given) if caption else None
            kept: str | None = ""
            if isinstance(answer, DataError):
                counts["failed"] += 1
            elif answer is not None:
                kept, how, removed = kept_of(
                    answer.text,
                    answer.finish,
                    self.prompt.filters,
                    max_words=view.max_words,
                    source=caption,
                    names=self._names,
                )
                counts += tally(removed, kept, how)
            kept = " ".join((kept or "").split())
            translations.append(kept)
            if caption:
                counts += Counter(empty=not kept, unchanged=kept == caption, long=is_long(kept, caption))
        return RowOutcome(translations, counts=dict(counts))


def make_translation(
    engine: str, source: str, target: str, options: dict[str, Any], column: str, *, prompt: str | None = None
) -> Processor:
    """The job that translates a column with a translation engine, or with a generation engine and a prompt.

    Args:
        engine: Name of the engine; `transformers` is a dedicated translation model, `transformers-llm` a language
            model.
        source: Source language.
        target: Target language.
        options: The engine's options.
        column: Column of captions.
        prompt: Prompt for a language model; None: `translate`.

    Raises:
        ConfigError: The engine or an option is unknown or wrong.
        EngineError: The engine is missing, or has no such direction.
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
    name = languages.name(code)
    if name is None:
        raise ConfigError(
            f"language {code!r}: the prompt {prompt!r} needs its name; known are {', '.join(languages.codes())}, each"
            " with a region or script, too (pt-BR, zh-Hant). For others write a prompt file (--prompt FILE.yaml) that"
            " names the language itself"
        )
    return name
