"""The language of the texts in a subset of a task. mteb names languages by ISO 639-3 and script (deu-Latn)."""

from __future__ import annotations

from typing import Protocol

from ccr_dist.errors import ConfigError
from ccr_dist.generate.text import languages


class HasSubsets(Protocol):
    """What is read of mteb's `TaskMetadata`."""

    name: str

    @property
    def hf_subsets_to_langscripts(self) -> dict[str, list[str]]:
        """Subset -> languages of its texts."""
        ...


def written(tag: str) -> str:
    """A language as mteb writes it: de -> deu-Latn, zh-Hant -> zho-Hant."""
    return f"{languages.three(tag)}-{languages.parse(tag).writing}"


def shortest(tag: str) -> str:
    """A language as this project writes it: deu-Latn -> de, zho-Hans -> zh, zho-Hant -> zh-Hant."""
    one = languages.parse(tag)
    usual = languages.parse(one.language).writing == one.writing
    return one.language if usual else str(one)


def language_of(task: HasSubsets, subset: str) -> str:
    """The language of the texts in a subset.

    Args:
        task: metadata of the task.
        subset: one of its subsets; `default` where it has only one.

    Returns:
        A language tag.

    Raises:
        ConfigError: the subset holds texts of several languages, and nothing says which text is in which.
    """
    tags = task.hf_subsets_to_langscripts[subset]
    found = list(dict.fromkeys(shortest(tag) for tag in tags))
    if subset in found:  # `no` holds nor, nno and nob: Norwegian, as the subset's name says
        found = [subset]
    if len(found) != 1:
        raise ConfigError(
            f"{task.name}, subset {subset}: its texts are in {' and '.join(found)}, and mteb does not say which text is"
            " in which; a retriever has to know the language of each: leave this subset out (--langs)"
        )
    return found[0]
