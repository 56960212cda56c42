"""Prompt files for generation engines, by name (`prompts/`) or path, and the fields in their texts.

    system: You are a careful annotator.
    views:
      detail: {text: "Describe this {media}.", max_tokens: 256}
      objects: {text: "List the objects in this {media}.", max_tokens: 96, list: true}
    filters: {min_words: 2}

The jobs (`describe.py`, `llm_translate.py`) decide which values the fields get for a row.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ccr_dist import yamlfile
from ccr_dist.errors import ConfigError
from ccr_dist.generate.text.filters import Filters
from ccr_dist.resources import PROMPTS

FIELDS = ("media", "captions", "text", "source_language", "target_language")
LIST_SCHEMA = {"type": "array", "items": {"type": "string"}, "minItems": 1}


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class View(_Strict):
    """One question, and how its answer is processed."""

    text: str = Field(min_length=1, description="the question, with fields in braces; other braces are doubled")
    max_tokens: int = Field(256, gt=0, description="most tokens of the answer")
    max_words: int | None = Field(
        None, gt=0, description="at most this many words; a longer answer is truncated after a whole sentence"
    )
    list: bool = Field(False, description="the answer is a JSON array of strings (structured output), kept as one text")


class Prompt(_Strict):
    """A prompt file: its views by name, in order."""

    system: str | None = Field(None, description="the system message of every question")
    views: dict[str, View] = Field(min_length=1)
    filters: Filters = Filters()

    def fill(self, view: str, values: dict[str, str]) -> tuple[str | None, str]:
        """System message and question of a view, with fields filled in."""
        system = None if self.system is None else self.system.format(**values)
        return system, self.views[view].text.format(**values)

    def uses(self, field: str) -> bool:
        """Whether a field occurs in the prompt."""
        return any(field in _fields(text) for text in [self.system or "", *(view.text for view in self.views.values())])


def shipped() -> list[str]:
    """Names of the shipped prompts."""
    return list(PROMPTS.files())


def load_prompt(name: str, allowed: Sequence[str]) -> Prompt:
    """Load a prompt.

    Args:
        name: Name of a shipped prompt, or path of a file (`resources`).
        allowed: Fields that the job fills in.

    Raises:
        ConfigError: The file is missing, or a key or field is unknown; names file, line and the nearest valid one.
    """
    document = yamlfile.load(PROMPTS.find(name))
    prompt = yamlfile.validate(Prompt, document)
    texts: list[tuple[yamlfile.KeyPath, str]] = [
        (("views", view, "text"), about.text) for view, about in prompt.views.items()
    ]
    for place, text in [(("system",), prompt.system or ""), *texts]:
        _check_fields(text, allowed, document.place(place))
    for view in prompt.views:
        if not view.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"{document.place(('views', view))}: view {view!r}: expected letters, digits, - and _")
    return prompt


def _fields(text: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]


def _check_fields(text: str, allowed: Sequence[str], place: str) -> None:
    try:
        names = _fields(text)
    except ValueError as e:
        raise ConfigError(
            f"{place}: {e}; fields are written {{like_this}}, other braces are doubled: {{{{ }}}}"
        ) from None
    for name in names:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, 1, cutoff=0.5)
            known = f"this job knows {', '.join(allowed)}"
            reason = "is a field of another kind of job" if name in FIELDS else "is no field"
            raise ConfigError(f"{place}: {{{name}}} {reason}; " + (f"did you mean {{{near[0]}}}?" if near else known))


def plan_of(prompt: Prompt) -> dict[str, Any]:
    """The prompt for a plan: every text and threshold, but no file name."""
    return prompt.model_dump(mode="json")
