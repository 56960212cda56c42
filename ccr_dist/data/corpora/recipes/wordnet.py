"""wordnet: English nouns with their glosses from Princeton WordNet 3.0, without pictures.

From the Debian package wordnet-base (WordNet licence): an installed one, a given folder or .deb, or one fetched by the
user's apt-get. A row is a synset: its first name and its gloss without examples are two texts of `caption.en`. Names of
single persons, places and events (instances) are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from ccr_dist.data.corpora.recipes.base import register
from ccr_dist.data.corpora.recipes.debian import package_files
from ccr_dist.data.corpora.recipes.lexicon import Dictionary, Entry, Lexicon
from ccr_dist.errors import ConfigError, DataError

PACKAGE, INSIDE = "wordnet-base", "usr/share/wordnet"
# The lexicographers' files of nouns, in the order of their numbers, from 3 on (lexnames(5WN)).
CATEGORIES = (
    *("Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling"),
    *("food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process"),
    *("quantity", "relation", "shape", "state", "substance", "time"),
)
_FIRST = 3
_EXAMPLE = re.compile(r'[;:,]?\s*"')


@register("wordnet")
class WordNet(Lexicon):
    """Nouns with glosses."""

    kind: Literal["wordnet"]
    source: str | None = Field(
        None,
        description="folder with data.noun, or the .deb; default: the installed package, otherwise `apt-get download`",
    )
    categories: tuple[str, ...] | None = Field(
        None, description=f"only nouns of these lexicographers' files: {', '.join(CATEGORIES)}; null: all"
    )
    texts: tuple[Literal["name", "gloss"], ...] = Field(("name", "gloss"), min_length=1)
    shard_rows: int = Field(1000, gt=0)

    about: ClassVar[str] = "texts only: English nouns with glosses (WordNet 3.0)"

    def reads(self) -> list[Path]:
        return [*([] if self.source is None else [Path(self.source)]), *self.apart_from]

    def dictionary(self) -> Dictionary:
        folder, version = package_files(PACKAGE, INSIDE, self.source)
        if unknown := set(self.categories or ()) - set(CATEGORIES):
            raise ConfigError(
                f"categories: expected some of {', '.join(CATEGORIES)}; found {', '.join(sorted(unknown))}"
            )
        entries, instances = [], 0
        for synset in nouns(folder / "data.noun"):
            if self.categories is not None and synset.category not in self.categories:
                continue
            if synset.instance:
                instances += 1
                continue
            said = {"name": synset.names[0], "gloss": synset.gloss}
            chosen = [said[each] for each in self.texts if said[each]]
            if chosen:
                entries.append(Entry(f"n{synset.offset}", {"en": chosen}, (*synset.names, synset.gloss)))
        notes = [f"{instances} names of single persons, places and events are left out"] if instances else []
        plan = {"categories": self.categories, "texts": self.texts, "keep_apart": self.keep_apart}
        about = {
            "author": "people: Princeton University",
            "package": PACKAGE,
            "version": version,
            "licence": "WordNet-3.0",
            "url": "https://wordnet.princeton.edu",
        }
        return Dictionary(entries, ("en",), plan, about, notes)


class Synset(NamedTuple):
    """A noun.

    Attributes:
        offset: Its number in the file, eight digits.
        category: Its lexicographers' file.
        names: Its names, in WordNet's order.
        gloss: What it means, without examples.
        instance: Whether it is a single person, place or event.
    """

    offset: str
    category: str
    names: tuple[str, ...]
    gloss: str
    instance: bool


def nouns(path: Path) -> Iterator[Synset]:
    """Read `data.noun`.

    Raises:
        ConfigError: There is no such file.
        DataError: It is not as expected; names file and line.
    """
    if not path.is_file():
        raise ConfigError(f"source: {path} is not there; expected WordNet's folder with data.noun")
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if line.startswith("  "):  # the licence
                continue
            head, _, gloss = line.partition(" | ")
            fields = head.split()
            try:
                count, category = int(fields[3], 16), CATEGORIES[int(fields[1]) - _FIRST]
                names = tuple(name.replace("_", " ") for name in fields[4 : 4 + 2 * count : 2])
                pointers = fields[5 + 2 * count :: 4]
                if fields[2] != "n" or len(names) < count or len(pointers) < int(fields[4 + 2 * count]):
                    raise ValueError("fields are missing")
            except (IndexError, ValueError) as e:
                raise DataError(f"{path}:{number}: not a line of WordNet's data.noun ({e})") from e
            yield Synset(fields[0], category, names, _EXAMPLE.split(gloss.strip())[0].strip(" ;"), "@i" in pointers)
