"""gcompris: the picture dictionary of the children's software GCompris, 1,090 words in 45 languages, without its
pictures.

From the Debian package gcompris-qt-data (GPL-3+): an installed one, a given folder or .deb, or one fetched by the
user's apt-get. Some languages write nouns with their article ("der Knochen").
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from ccr_dist.data.corpora.formats.rcc import files
from ccr_dist.data.corpora.recipes.base import register
from ccr_dist.data.corpora.recipes.captions import safe_key
from ccr_dist.data.corpora.recipes.debian import package_files
from ccr_dist.data.corpora.recipes.lexicon import Dictionary, Entry, Lexicon
from ccr_dist.data.media.text import has_text
from ccr_dist.errors import ConfigError, DataError

PACKAGE, INSIDE, FILE = "gcompris-qt-data", "usr/share/gcompris-qt/rcc", "lang.rcc"
_CONTENT = re.compile(r".*/content-([A-Za-z_@]+)\.json")


@register("gcompris")
class GCompris(Lexicon):
    """The words of GCompris."""

    kind: Literal["gcompris"]
    languages: tuple[str, ...] = Field(
        description="language tags as in the columns (pt-BR for the program's pt_BR); English is always included"
    )
    source: str | None = Field(
        None,
        description="folder of the program's .rcc files, or the .deb; default: the installed package, otherwise"
        " `apt-get download`",
    )
    shard_rows: int = Field(1000, gt=0)

    about: ClassVar[str] = "texts only: 1,090 words in 45 languages (GCompris)"

    def reads(self) -> list[Path]:
        return [*([] if self.source is None else [Path(self.source)]), *self.apart_from]

    def dictionary(self) -> Dictionary:
        folder, version = package_files(PACKAGE, INSIDE, self.source)
        there = words_of(folder / FILE)
        languages = ("en", *(lang for lang in self.languages if lang != "en"))
        if unknown := [lang for lang in languages if lang not in there]:
            raise ConfigError(
                f"languages: {folder / FILE} has no words in {', '.join(unknown)}; it has {', '.join(sorted(there))}"
            )
        entries = []
        for name, english in there["en"].items():
            if not has_text(english):
                continue
            texts = {lang: [text.strip()] for lang in languages if has_text(text := there[lang].get(name, ""))}
            entries.append(Entry(safe_key(name.rpartition(".")[0]), texts))
        about = {
            "author": "people: GCompris's authors and translators",
            "package": PACKAGE,
            "version": version,
            "licence": "GPL-3.0-or-later",
            "url": "https://gcompris.net",
        }
        return Dictionary(entries, languages, {"keep_apart": self.keep_apart}, about)


def words_of(path: Path) -> dict[str, dict[str, str]]:
    """Read the words of the activity `lang`.

    Args:
        path: Its `.rcc`.

    Returns:
        By language tag (`pt_BR` becomes `pt-BR`): word by the name of its sound file, as `bone.ogg`.

    Raises:
        ConfigError: There is no such file.
        DataError: It is not as expected.
    """
    if not path.is_file():
        raise ConfigError(f"source: {path} is not there; expected the program's folder of .rcc files")
    found: dict[str, dict[str, str]] = {}
    for name, data in files(path):
        if match := _CONTENT.fullmatch(name):
            try:
                content = json.loads(data)
            except ValueError as e:
                raise DataError(f"{path}: {name}: not valid JSON ({e})") from e
            if not isinstance(content, dict) or not all(isinstance(word, str) for word in content.values()):
                raise DataError(f"{path}: {name}: expected an object of words by name")
            found[re.sub("[_@]", "-", match[1])] = content
    if "en" not in found:
        raise DataError(
            f"{path}: no English words (expected content-en.json in it); found {', '.join(found) or 'none'}"
        )
    return found
