"""What the `shards` commands read and make, for pipelines (`ccr_dist/declare.py`). No dataset is opened."""

from __future__ import annotations

from pathlib import Path

from ccr_dist.data.table.names import check_column_name
from ccr_dist.declare import File, Folder, Item, Place, Settings, Table, Uses
from ccr_dist.errors import ConfigError
from ccr_dist.resources import is_path

CONVERSIONS = "expected nrccr, mla or replay"


def captions_of(given: list[str] | None) -> dict[str, str] | None:
    """Language -> member with its captions, from the words of `--caption`. Raises ConfigError."""
    if not given:
        return None
    if bad := [text for text in given if not text.partition("=")[0] or not text.partition("=")[2]]:
        raise ConfigError(f"--caption {bad[0]}: expected LANG=txt or LANG=json:FIELD")
    captions = {text.partition("=")[0]: text.partition("=")[2] for text in given}
    if len(captions) < len(given):
        raise ConfigError("--caption: a language is given twice; a column has one source")
    for lang in captions:
        check_column_name(f"caption.{lang}")
    return captions


def of_table(path: Path) -> Uses:
    """What a command reads that takes only a dataset."""
    return Uses(reads=(Table(str(path)),))


def recipe_file(recipe: str | None, overrides: list[str] | None) -> tuple[Item, ...]:
    """The recipe's file, where the user gave a path."""
    if recipe is None or not is_path(recipe):
        return ()
    return (Settings(recipe, overrides=tuple(overrides or ())),)


def building(recipe: str, overrides: list[str] | None, out: Path) -> Uses:
    """What `shards build` reads and makes."""
    from ccr_dist.data.corpora.recipes.base import load_recipe  # brings NumPy

    files = load_recipe(recipe, overrides or []).reads()
    return Uses(
        reads=(*recipe_file(recipe, overrides), *(Place(str(path)) for path in files)),
        makes=(Table(str(out)),),
    )


def converting(to: str, source: Path, out: Path, column: list[str] | None) -> Uses:
    """What `shards convert` reads and makes."""
    if to not in ("nrccr", "mla", "replay"):
        raise ConfigError(f"{to!r}: {CONVERSIONS}")
    if to == "replay":
        return Uses(reads=(Place(str(source)),), makes=(File(str(out)),))
    return Uses(reads=(*_columns(source, column), Table(str(source))), makes=(Folder(str(out)),))


def indexing(urls: list[str], out: Path, caption: list[str] | None) -> Uses:
    """What `shards index` reads and makes."""
    from ccr_dist.data.corpora.foreign_tars import needed  # brings NumPy

    captions_of(caption)
    return Uses(reads=tuple(map(Place, needed(urls))), makes=(Table(str(out)),))


def exporting(path: Path, out: Path, image: str, caption: str | None, also: list[str] | None) -> Uses:
    """What `shards export` reads and makes."""
    columns = [image, *([] if caption is None else [caption]), *(also or [])]
    return Uses(reads=_columns(path, columns), makes=(Folder(str(out)),))


def pushing(path: Path, url: str, column: list[str] | None) -> Uses:
    """What `shards push` reads and makes."""
    return Uses(
        reads=(Table(str(path)), *_columns(path, column)),
        makes=_columns(url, column) or (Table(url),),
        packages=("fsspec",),
    )


def pulling(url: str, folder: Path, column: list[str] | None) -> Uses:
    """What `shards pull` reads and makes."""
    return Uses(reads=(Table(url),), makes=_columns(folder, column) or (Table(str(folder)),), packages=("fsspec",))


def overlapping(texts: Path, path: Path, column: str, among: str) -> Uses:
    """What `shards overlap` reads."""
    return Uses(reads=(*_columns(texts, [among]), *_columns(path, [column])))


def measuring(path: Path, column: str, human: str | None, source: str | None, back: str | None) -> Uses:
    """What `shards quality` reads."""
    columns = [name for name in (column, human, source, back) if name is not None]
    return Uses(reads=_columns(path, columns), packages=("sacrebleu",))


def _columns(path: Path | str, names: list[str] | None) -> tuple[Table, ...]:
    return tuple(Table(str(path), name) for name in names or ())
