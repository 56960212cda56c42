"""What recipes of texts have in common: a split, and what is left out because it belongs to held-out pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ccr_dist.data.corpora.recipes.base import Recipe
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import open_all
from ccr_dist.data.table.overlap import all_texts, words
from ccr_dist.data.table.splits import concept, split_of
from ccr_dist.errors import ConfigError


class TextRecipe(Recipe):
    """Base of recipes of texts without pictures."""

    split: Literal["train", "val", "test"] = "train"
    keep_apart: bool = Field(
        False, description="leave out texts whose concept is in another split of the picture corpora"
    )
    apart_from: tuple[Path, ...] = Field(
        (), description="datasets: leave out rows that say, in any language, what a val or test caption there says"
    )


class Apart:
    """Decides which rows are left out, and counts them.

    Args:
        recipe: Its options.

    Raises:
        ConfigError: `apart_from` has no val or test captions.
        DataError: `apart_from` is no dataset.
    """

    def __init__(self, recipe: TextRecipe) -> None:
        self._split, self._by_rule = recipe.split, recipe.keep_apart
        self._captions: dict[str, set[tuple[str, ...]]] = {}
        self._by_language: dict[str, set[tuple[str, ...]]] = {}  # "pt-BR" is Portuguese, too
        self.by_rule = self.by_caption = 0
        for path in recipe.apart_from:
            held_out = [dataset for dataset in open_all(path) if dataset.split in ("val", "test")]
            columns = [(dataset, name) for dataset in held_out for name in dataset.columns() if _is_human(name)]
            if not columns:
                raise ConfigError(f"apart_from: {path} has no val or test captions; name the folder with its splits")
            for dataset, name in columns:
                said = self._captions.setdefault(name.removeprefix("caption."), set())
                said.update(map(words, all_texts(dataset, name)))
                said.discard(())
        for lang, said in self._captions.items():
            self._by_language.setdefault(_primary(lang), set()).update(said)

    def leaves_out(self, texts: Mapping[str, Sequence[str]], names: Sequence[str]) -> bool:
        """Whether a row is left out.

        Args:
            texts: Its texts by language.
            names: The English names and texts whose concepts decide by the rule.
        """
        if self._by_rule and any(split_of(concept(name)) != self._split for name in names):
            self.by_rule += 1
            return True
        known, nothing = self._by_language, set[tuple[str, ...]]()
        if any(words(text) in known.get(_primary(lang), nothing) for lang, own in texts.items() for text in own):
            self.by_caption += 1
            return True
        return False

    def plan(self) -> dict[str, Any]:
        """What decides which rows are left out because of captions; empty without `apart_from`."""
        if not self._captions:
            return {}
        return {
            "apart_from": store.digest_json([[lang, sorted(said)] for lang, said in sorted(self._captions.items())])
        }

    def notes(self) -> list[str]:
        """Lines for the user: how many were left out, and why."""
        notes = []
        if self.by_rule:
            notes.append(f"{self.by_rule} texts left out: their concepts belong to other splits (keep_apart)")
        if self._captions:
            notes.append(f"{self.by_caption} texts left out: they are captions of val or test (apart_from)")
        return notes


def _primary(lang: str) -> str:
    return lang.partition("-")[0].lower()


def _is_human(column: str) -> bool:
    return column.startswith("caption.") and column.count(".") == 1
