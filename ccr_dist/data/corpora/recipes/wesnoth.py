"""wesnoth: units of the game Battle for Wesnoth with human descriptions of about 80 words, translated by people into
many languages.

From the Debian package wesnoth-1.16-data: an installed one, a given folder or .deb, or one fetched by the user's
apt-get. The descriptions are lore and only partly say what is seen. A unit's picture is its portrait, otherwise its
sprite (72 pixels, in the magenta that the game replaces by a player's colour). A picture that several units share goes
to the one that it is named after, or to none, so that no picture is in two rows; or with `shared: all` to all of them,
and `label.shown` says which rows show the same.
"""

from __future__ import annotations

import functools
import gettext
import hashlib
import re
import struct
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from ccr_dist.data.corpora.formats.wml import Text, blocks
from ccr_dist.data.corpora.recipes.base import ColumnSpec, Material, Recipe, RecipeRow, register
from ccr_dist.data.corpora.recipes.debian import package_files
from ccr_dist.data.corpora.recipes.pictures import Picture, render
from ccr_dist.data.media.text import has_text
from ccr_dist.data.table.splits import concept, split_of
from ccr_dist.errors import ConfigError, DataError

PACKAGE, INSIDE = "wesnoth-1.16-data", "usr/share/games/wesnoth/1.16"
NOTE = "descriptions are lore, only partly visual"
_PICTURE = re.compile(r"([^~{:,]+?\.(?:png|jpg|webp))(?:[~{:,].*)?", re.DOTALL)  # without functions that change it


@register("wesnoth")
class Wesnoth(Recipe):
    """Units of Battle for Wesnoth: long descriptions in many languages."""

    kind: Literal["wesnoth"]
    languages: tuple[str, ...] = Field(
        description="language tags as in the columns (pt-BR for the game's pt_BR); English is always included"
    )
    source: str | None = Field(
        None,
        description="folder of the game's data (it has data/ and locale/), or the .deb; default: the installed package,"
        " otherwise `apt-get download`",
    )
    pictures: Literal["both", "portraits", "sprites"] = Field(
        "both", description="both: the portrait of a unit, otherwise its sprite"
    )
    shared: Literal["owner", "all"] = Field(
        "owner",
        description="a picture of several units belongs to the one that it is named after, or to all (`split: test`"
        " only); name label.shown as the run's `group` then, so that all of them are right",
    )
    split: Literal["concept", "test"] = Field(
        "concept", description="draw splits by the units' names as all recipes do, or put all units into test"
    )
    shard_rows: int = Field(64, gt=0)
    picture: Picture = Picture(format="jpg", crop=True)

    about: ClassVar[str] = "game units with descriptions of 80 words in 12 languages; lore, only partly visual"

    def reads(self) -> list[Path]:
        return [] if self.source is None else [Path(self.source)]

    @model_validator(mode="after")
    def _no_picture_in_two_splits(self) -> Self:
        if self.shared == "all" and self.split == "concept":
            raise ValueError("shared: all would put one picture into several splits; set `split: test`")
        return self

    def material(self) -> Material:
        root, version = package_files(PACKAGE, INSIDE, self.source)
        notes: list[str] = []
        found = units(root, notes)
        shown = pictures(found, root, self.pictures, shared=self.shared == "all")
        others = tuple(lang for lang in self.languages if lang != "en")
        translate = Translations(root, others)
        rows, digest, covered = [], hashlib.sha256(), Counter(dict.fromkeys(others, 0))
        for unit in found:
            texts = {"en": _one_line(unit.description.text)}
            texts |= {lang: _one_line(text) for lang in others if (text := translate(lang, unit.description))}
            covered.update(texts.keys() - {"en"})
            what = concept(unit.name)
            columns: dict[str, Any] = {f"caption.{lang}": [text] for lang, text in texts.items()}
            columns["label.concept"] = what
            kind, path = shown.get(unit.key, (None, None))
            if path is not None:
                columns |= {"image": functools.partial(render, str(path), self.picture), "label.picture": kind}
                if self.shared == "all":
                    columns["label.shown"] = str(path.relative_to(root))
            seen = None if path is None else (str(path.relative_to(root)), path.stat().st_size)
            digest.update(f"{unit.key}\0{what}\0{sorted(texts.items())}\0{seen}\n".encode())
            rows.append(RecipeRow("test" if self.split == "test" else split_of(what), unit.key, columns))
        kinds = Counter(kind for kind, _ in shown.values())
        none = len(rows) - len(shown)
        notes.append(f"pictures: {kinds['portrait']} portraits, {kinds['sprite']} sprites, {none} units without")
        if few := [f"{lang} {covered[lang]}" for lang in others if covered[lang] < len(rows)]:
            notes.append(f"descriptions for fewer than the {len(rows)} rows: {', '.join(few)}")
        source = {"units": digest.hexdigest()}
        if self.shared == "all":
            notes.append(
                f"{len(shown) - len({path for _, path in shown.values()})} units show a picture of another one"
            )
            source["shared"] = "all"
        return Material({**source, "pictures": self.pictures}, self._columns(source, version, others), rows, notes)

    def _columns(self, source: dict[str, Any], version: str, others: tuple[str, ...]) -> list[ColumnSpec]:
        about = {
            "package": PACKAGE,
            "version": version,
            "licence": "GPL-2.0-or-later",
            "url": "https://www.wesnoth.org",
            "note": NOTE,
        }
        art = {**about, "note": "licence of the package; those of single pictures were not checked"}
        text = {"author": "people: Wesnoth's authors and translators", **about}
        plan = {**source, "picture": self.picture.model_dump()}
        specs = [
            ColumnSpec("image", "image", self.picture.format, plan, {**art, **self.picture.provenance()}),
            ColumnSpec("label.concept", "label", "json", {**source, "concept": "of the unit's name"}, text),
            ColumnSpec("label.picture", "label", "json", {**source, "is": "portrait or sprite"}, about),
        ]
        if self.shared == "all":
            specs.append(ColumnSpec("label.shown", "label", "json", {**source, "is": "the picture's path"}, about))
        return specs + [
            ColumnSpec(f"caption.{x}", "texts", "json", {**source, "language": x}, text) for x in ("en", *others)
        ]


class Unit(NamedTuple):
    """A unit that has a description.

    Attributes:
        key: Its key.
        name: Its English name.
        description: Its English description.
        file: Name of the file that defines it, without the suffix.
        portrait: Path of its portrait as the game writes it; "" if there is none.
        sprite: Path of its sprite.
    """

    key: str
    name: str
    description: Text
    file: str
    portrait: str
    sprite: str


def units(root: Path, notes: list[str]) -> list[Unit]:
    """Find the units with a description of their own.

    Args:
        root: Folder of the game's data.
        notes: Gets a line on units that are left out.

    Returns:
        The units in the order of their files.

    Raises:
        DataError: There are none, or a file cannot be read.
    """
    found: list[Unit] = []
    seen: dict[str, str] = {}
    without, repeated = [], []
    for path in sorted((root / "data/core/units").rglob("*.cfg")):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            raise DataError(f"{path}: not UTF-8 ({e})") from e
        for block in blocks(text, "unit_type", str(path)):
            values = block.values
            name = values.get("id", Text("")).text.strip()
            described = values.get("description", Text(""))
            if not name:
                raise DataError(f"{path}:{block.line}: a unit_type without an id")
            if described.domain is None or not has_text(described.text) or "DEPRECATED_UNIT" in block.macros:
                without.append(name)
            elif described.text in seen:
                repeated.append(f"{name} (as {seen[described.text]})")
            else:
                seen[described.text] = name
                title = values.get("name", Text(name)).text.rpartition("^")[2]  # `female^Elvish Shaman`
                art = [values.get(key, Text("")).text for key in ("profile", "image")]
                key = re.sub(r"[^A-Za-z0-9_]+", "-", name)
                found.append(Unit(key, title, described, path.stem, *art))
    if not found:
        raise DataError(f"{root}: no units there (expected data/core/units/*/*.cfg with [unit_type] and a description)")
    for what, names in (
        ("without a description, or deprecated", without),
        ("with another one's description", repeated),
    ):
        if names:
            more = ", ..." if len(names) > 8 else ""
            notes.append(f"{len(names)} units {what} are left out: {', '.join(names[:8])}{more}")
    return found


def pictures(found: list[Unit], root: Path, which: str, *, shared: bool = False) -> dict[str, tuple[str, Path]]:
    """Choose a picture of each unit.

    Args:
        found: The units.
        root: Folder of the game's data.
        which: both, portraits or sprites.
        shared: A picture may belong to several units; otherwise to one at most.

    Returns:
        By the unit's key ("portrait" or "sprite", path), for units that have one.
    """
    chosen: dict[str, tuple[str, Path]] = {}
    for kind, left_out in (("portrait", "sprites"), ("sprite", "portraits")):
        if which == left_out:
            continue
        wanted: defaultdict[Path, list[Unit]] = defaultdict(list)
        for unit in found:
            match = _PICTURE.fullmatch(unit.portrait if kind == "portrait" else unit.sprite)
            path = root / "data/core/images" / match[1].strip() if match else None
            if path is not None and path.is_file():
                wanted[path].append(unit)
        for path, sharing in wanted.items():
            named = [unit for unit in sharing if _plain(unit.file) == _plain(path.stem)]
            owners = sharing if shared or len(sharing) == 1 else named
            for owner in owners if shared or len(owners) == 1 else ():
                chosen.setdefault(owner.key, (kind, path))
    return chosen


class Translations:
    """The game's translations.

    Args:
        root: Folder of the game's data.
        languages: Language tags as in columns.

    Raises:
        ConfigError: The game has no such language.
    """

    def __init__(self, root: Path, languages: tuple[str, ...]) -> None:
        there = {re.sub("[_@]", "-", path.name): path / "LC_MESSAGES" for path in sorted((root / "locale").glob("*"))}
        if unknown := [lang for lang in languages if lang not in there]:
            raise ConfigError(
                f"languages: {root} has no translations into {', '.join(unknown)}; it has {', '.join(there) or 'none'}"
            )
        self._folders = there
        self._opened: dict[Path, gettext.NullTranslations] = {}

    def __call__(self, lang: str, text: Text) -> str:
        """The translation of a text; "" if there is none. Raises DataError for a damaged file."""
        path = self._folders[lang] / f"{text.domain}.mo"
        if path not in self._opened:
            self._opened[path] = _catalogue(path)
        return self._opened[path].gettext(text.text)


class _Untranslated(gettext.NullTranslations):
    def gettext(self, message: str) -> str:
        return ""


def _catalogue(path: Path) -> gettext.NullTranslations:
    if not path.exists():
        return _Untranslated()
    try:
        with path.open("rb") as file:
            translations = gettext.GNUTranslations(file)
    except (OSError, UnicodeDecodeError, struct.error, ValueError) as e:
        raise DataError(f"{path}: not a file of translations ({type(e).__name__}: {e})") from e
    translations.add_fallback(_Untranslated())
    return translations


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _one_line(text: str) -> str:
    return " ".join(text.split())
