"""cldr: the names of emoji and symbols in Unicode CLDR, as a dictionary of up to 100 languages, without pictures.

From the npm packages cldr-annotations-full and -derived-full (Unicode-3.0). Variants of skin tone are left out. These
names are the captions of `emoji14` and `animoji`; so those whose concepts are held out there are left out by default,
also where such a name is the first part of a longer one ("man: red hair", if "man" is held out).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ccr_dist.data.corpora.recipes.base import register
from ccr_dist.data.corpora.recipes.lexicon import Dictionary, Entry, Lexicon
from ccr_dist.data.corpora.recipes.npm import unpacked
from ccr_dist.data.storage import store
from ccr_dist.errors import ConfigError

VERSION = "48.2.0"
MARKS = re.compile("[:,“”]")  # of CLDR's names, which the names of `emoji14` lack: "woman: red hair"
_PACKAGES = {"cldr-annotations-full": "annotations", "cldr-annotations-derived-full": "annotationsDerived"}
_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")


@register("cldr")
class Cldr(Lexicon):
    """Names of emoji and symbols."""

    kind: Literal["cldr"]
    languages: tuple[str, ...] = Field(description="CLDR locales (en, pt, zh-Hant, ...); English is always included")
    source: Path | None = Field(
        None, description="a node_modules folder that has the packages; default: fetched with `npm pack`"
    )
    keep_apart: bool = Field(True, description="leave out names whose concept is in another split of the corpora")
    shard_rows: int = Field(1000, gt=0)

    about: ClassVar[str] = "texts only: names of emoji and symbols in 100 languages (Unicode CLDR)"

    def dictionary(self) -> Dictionary:
        languages = ("en", *(lang for lang in self.languages if lang != "en"))
        named, _ = names(languages, lambda package: package_folder(package, VERSION, self.source))
        english = {char: name for char, name in named["en"].items() if not _TONES.search(char)}
        every, entries = set(english.values()), []
        for char, name in english.items():
            front = name.partition(":")[0]
            entries.append(
                Entry(
                    "-".join(f"{ord(c):04x}" for c in char),
                    {lang: [found[char]] for lang, found in named.items() if char in found},
                    (name, MARKS.sub("", name), *([front] if front in every else [])),
                )
            )
        plan = {"cldr": VERSION, "keep_apart": self.keep_apart}
        about = {"author": "people, by way of Unicode CLDR", "licence": "Unicode-3.0", "version": VERSION}
        return Dictionary(entries, languages, plan, about)


def package_folder(package: str, version: str, source: Path | None) -> Path:
    """Folder of an npm package: in a node_modules folder, otherwise fetched. Raises ConfigError if it is not there."""
    if source is None:
        return unpacked(
            f"{package}@{version}", instead="or install the packages elsewhere and pass source=.../node_modules"
        )
    if not (folder := source / package).is_dir():
        raise ConfigError(
            f"source: {folder} is not there; `npm install --prefix . {package}@{version}` makes"
            f" ./node_modules/{package}"
        )
    return folder


def names(
    languages: Sequence[str], folder_of: Callable[[str], Path]
) -> tuple[dict[str, dict[str, str]], dict[str, list[str]]]:
    """Read CLDR's names.

    Args:
        languages: CLDR locales.
        folder_of: The folder of an npm package.

    Returns:
        Names by language and emoji, and English keywords by emoji; emoji without U+FE0F.

    Raises:
        ConfigError: CLDR has no such locale.
    """
    keywords: dict[str, list[str]] = {}
    found: dict[str, dict[str, str]] = {lang: {} for lang in languages}
    for package, part in _PACKAGES.items():
        folder = folder_of(package) / part
        for lang, said in found.items():
            path = folder / lang / "annotations.json"
            if not path.exists():
                there = ", ".join(sorted(p.name for p in folder.iterdir()))
                raise ConfigError(f"languages: CLDR's {package} has no names in {lang!r}; it has {there}")
            for char, entry in store.read_json(path)[part]["annotations"].items():
                if entry.get("tts"):
                    said.setdefault(char.replace("\ufe0f", ""), entry["tts"][0].strip())
                if lang == "en" and entry.get("default"):
                    keywords.setdefault(char.replace("\ufe0f", ""), entry["default"])
    return found, keywords
