"""stamps56: the stamps of Tux Paint, mostly photographs cut out of their background, with human captions in more than
56 languages.

From the Debian package tuxpaint-stamps-default (GPL-2, pictures and texts): an installed one, a given folder or .deb,
or one fetched by the user's apt-get. Mirrored and flipped copies and alphabets are left out; of a stamp in both
formats, the PNG is taken, not the SVG. `description.folders` names the folders that a stamp is in ("apes, mammals,
animals"): a weak description without the stamp's own name.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, package_version, register
from ccr_dist.data.corpora.recipes.debian import package_files
from ccr_dist.data.corpora.recipes.pictures import Picture, render
from ccr_dist.data.table.splits import concept, split_of
from ccr_dist.errors import ConfigError, DataError

PACKAGE = "tuxpaint-stamps-default"
INSIDE = "usr/share/tuxpaint/stamps"
_CAPTION = re.compile(r"^([A-Za-z_]+(?:@[a-z]+)?)\.utf8=(.*)$")


@register("stamps56")
class Stamps56(Recipe):
    """Tux Paint's stamps with captions in many languages."""

    kind: Literal["stamps56"]
    languages: tuple[str, ...] = Field(
        description="language tags as in the columns (pt-BR for Tux Paint's pt_BR); English is always included"
    )
    source: str | None = Field(
        None, description="folder of stamps, or the .deb; default: the installed package, otherwise `apt-get download`"
    )
    shard_rows: int = Field(64, gt=0)
    picture: Picture = Picture(format="jpg", crop=True)

    about: ClassVar[str] = "Tux Paint stamps with captions in 56 languages"

    def reads(self) -> list[Path]:
        return [] if self.source is None else [Path(self.source)]

    def material(self) -> Material:
        root, version = package_files(PACKAGE, INSIDE, self.source, cache="stamps56")
        resvg, rows, digest = package_version("resvg-py"), [], hashlib.sha256()
        notes: list[str] = []
        covered = dict.fromkeys(self.languages, 0)
        for path, captions in stamps(root, notes):
            name = path.relative_to(root)
            digest.update(f"{name}\0{path.stat().st_size}\0{sorted(captions.items())}\n".encode())
            what = concept(captions["en"])
            columns: dict[str, Any] = {
                "image": functools.partial(render, str(path), self.picture),
                "label.concept": what,
            }
            columns |= {f"caption.{lang}": [text] for lang, text in captions.items() if lang == "en" or lang in covered}
            for lang in covered.keys() & captions.keys():
                covered[lang] += 1
            folders = ", ".join(part.replace("_", " ") for part in reversed(name.parent.parts))
            columns["description.folders"] = [folders] if folders else None
            key = re.sub(r"[^A-Za-z0-9_]+", "-", str(name.with_suffix("")))
            rows.append(RecipeRow(split_of(what), key, columns))
        if not rows:
            raise DataError(f"{root}: no stamps there (expected NAME.png or NAME.svg with NAME.txt in sub-folders)")
        if nothing := [lang for lang, n in covered.items() if n == 0]:
            raise ConfigError(
                f"languages: {root} has no captions in {', '.join(nothing)} (tags are spelt like pt-BR, sr-latin)"
            )
        if few := [f"{lang} {n}" for lang, n in covered.items() if n < 0.95 * len(rows)]:
            notes.append(f"captions for less than 95 % of the {len(rows)} rows: {', '.join(few)}")
        source = {"stamps": digest.hexdigest()}
        return Material(source, self._columns(source, version, resvg), rows, notes)

    def _columns(self, source: dict[str, Any], version: str, resvg: str) -> list[ColumnSpec]:
        about = {"package": PACKAGE, "version": version, "licence": "GPL-2.0", "url": "https://tuxpaint.org"}
        text = {"author": "people: Tux Paint's contributors and translators", **about}
        image = {**about, **self.picture.provenance()}
        specs = [
            ColumnSpec(
                "image",
                "image",
                self.picture.format,
                {**source, "resvg-py": resvg, "picture": self.picture.model_dump()},
                image,
            ),
            ColumnSpec("label.concept", "label", "json", {**source, "concept": "of caption.en"}, text),
            ColumnSpec("description.folders", "texts", "json", {**source, "from": "the stamp's folders"}, text),
        ]
        languages = ("en", *(lang for lang in self.languages if lang != "en"))
        return specs + [ColumnSpec(f"caption.{x}", "texts", "json", {**source, "language": x}, text) for x in languages]


def stamps(root: Path, notes: list[str]) -> list[tuple[Path, dict[str, str]]]:
    """Find the stamps with an English caption.

    Args:
        root: Folder of stamps.
        notes: Gets a line on pictures that are left out.

    Returns:
        Sorted list of (picture, caption by language).
    """
    found, untold, without = [], 0, []
    for path in sorted([*root.rglob("*.png"), *root.rglob("*.svg")]):
        if "alphabets" in path.parts or path.stem.endswith(("_mirror", "_flip")):
            continue
        if path.suffix == ".svg" and path.with_suffix(".png").exists():
            continue
        text = path.with_suffix(".txt")
        captions = read_captions(text) if text.exists() else {}
        if "en" in captions:
            found.append((path, captions))
        else:
            untold += 1
            without.append(path.stem)
    if untold:
        notes.append(
            f"{untold} pictures without an English caption are left out:"
            f" {', '.join(without[:8])}{', ...' if untold > 8 else ''}"
        )
    return found


def read_captions(path: Path) -> dict[str, str]:
    """Read a stamp's text file: line 1 is English, the others are `locale.utf8=caption`.

    Args:
        path: The file.

    Returns:
        Caption by language tag; `pt_BR` becomes `pt-BR`.

    Raises:
        DataError: The file is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 ({e})") from e
    captions = {"en": lines[0].strip()} if lines else {}
    for line in lines[1:]:
        if match := _CAPTION.match(line):
            captions[re.sub("[_@]", "-", match[1])] = match[2].strip()
    return {lang: text for lang, text in captions.items() if text}
