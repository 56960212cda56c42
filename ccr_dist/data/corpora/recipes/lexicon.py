"""What recipes of dictionaries have in common: rows of words or names with their translations, without pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ccr_dist.data.corpora.recipes.apart import Apart, TextRecipe
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, RecipeRow
from ccr_dist.errors import DataError


@dataclass(frozen=True)
class Entry:
    """An entry of a dictionary.

    Attributes:
        key: Its key.
        texts: Texts by language.
        names: The English names whose concepts decide whether it is kept apart; default: its English texts.
    """

    key: str
    texts: dict[str, list[str]]
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Dictionary:
    """What a recipe of a dictionary found in its source.

    Attributes:
        entries: The entries.
        languages: The languages of the columns.
        plan: Whatever decides the bytes besides the texts themselves.
        provenance: Author, licence, versions.
        notes: Lines for the user.
    """

    entries: Sequence[Entry]
    languages: Sequence[str]
    plan: dict[str, Any]
    provenance: dict[str, Any]
    notes: Iterable[str] = field(default_factory=tuple)


class Lexicon(TextRecipe):
    """Base of recipes of dictionaries: a subclass says what `dictionary` is."""

    def dictionary(self) -> Dictionary:
        """Read the source. Raises ConfigError and DataError as `material` does."""
        raise TypeError(f"{type(self).__name__} must define dictionary()")

    def material(self) -> Material:
        found = self.dictionary()
        apart = Apart(self)
        kept = [entry for entry in found.entries if not apart.leaves_out(entry.texts, entry.names or entry.texts["en"])]
        if not kept:
            raise DataError(f"{self.name}: no entries are left of {len(found.entries)}: {'; '.join(apart.notes())}")
        digest = hashlib.sha256()
        for entry in kept:
            digest.update(json.dumps([entry.key, sorted(entry.texts.items())], ensure_ascii=False).encode() + b"\n")
        plan = {**found.plan, "entries": digest.hexdigest(), "split": self.split, **apart.plan()}
        columns = [
            ColumnSpec(f"caption.{lang}", "texts", "json", {**plan, "language": lang}, found.provenance)
            for lang in found.languages
        ]
        rows = [
            RecipeRow(self.split, entry.key, {f"caption.{lang}": texts for lang, texts in entry.texts.items()})
            for entry in kept
        ]
        notes = [*found.notes, *apart.notes()]
        covered = {lang: sum(lang in entry.texts for entry in kept) for lang in found.languages}
        if few := [f"{lang} {n}" for lang, n in covered.items() if n < len(kept)]:
            notes.append(f"texts for fewer than the {len(kept)} rows: {', '.join(few)}")
        return Material(plan, columns, rows, notes, parallel=False)
