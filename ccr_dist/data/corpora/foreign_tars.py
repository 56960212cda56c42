"""Foreign tars, which other programs wrote: which files are meant, what is in them, which members make which columns.

`index.py` records them as a dataset. Nothing is written here.
"""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccr_dist.data.media import decode
from ccr_dist.data.storage.tar import ShardIndex
from ccr_dist.data.table.names import check_column_name
from ccr_dist.errors import ConfigError, DataError

PICTURES = "jpg;jpeg;png;webp;gif;bmp;tif;tiff;jfif"
VIDEOS = "mp4;webm;mkv;mov;avi;m4v"
_SHOWN = 10
PARQUET = "`ccr-dist shards build parquet files=[DIR] --out OUT` takes those with pictures in them"
_BRACE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Wanted:
    """A column to be indexed.

    Attributes:
        column: Its name.
        kind: Its kind.
        extension: Extensions of the members that hold its values, as in `jpg;png`.
        field: For texts, the field of a member that holds them (`decode.decode`).
    """

    column: str
    kind: str
    extension: str
    field: str | None = None


# -- which files


def expand(urls: Iterable[str]) -> list[Path]:
    """Find tars.

    Args:
        urls: Paths of tars or of folders of tars, with braces (`{0000..0012}`, `{a,b}`) and globs.

    Returns:
        Absolute paths, in the order given; the tars of a folder by name.

    Raises:
        ConfigError: A tar does not exist, is no local file, or is named twice.
    """
    paths: list[Path] = []
    for url in urls:
        for name, found in _named(url):
            if not found:
                raise ConfigError(f"{name}: no such tar" + (f" (from {url!r})" if name != url else ""))
            for path in map(Path, found):
                if path.is_dir():
                    paths += [tar.resolve() for tar in _in_folder(path)]
                elif path.suffix.lower() == ".parquet":
                    raise ConfigError(f"{path}: not a tar; {PARQUET}")
                elif path.is_file():
                    paths.append(path.resolve())
                else:
                    raise ConfigError(f"{path}: no such tar" + (f" (from {url!r})" if name != url else ""))
    if twice := sorted(str(path) for path, n in Counter(paths).items() if n > 1):
        raise ConfigError(f"given twice: {', '.join(twice[:_SHOWN])}")
    if not paths:
        raise ConfigError("no tars given")
    return paths


def needed(urls: Iterable[str]) -> list[str]:
    """The files and folders that `urls` (as for `expand`) name; a glob without matches is returned as it is.

    Raises:
        ConfigError: A name is no local path.
    """
    return [path for url in urls for name, found in _named(url) for path in found or [name]]


def _named(url: str) -> Iterator[tuple[str, list[str]]]:
    """Each name with its braces expanded, and the paths that it matches."""
    if "://" in url or url.startswith("pipe:"):
        raise ConfigError(f"{url}: only tars on local (or mounted) file systems can be indexed")
    for name in [url] if Path(url).exists() else _braces(url):
        yield name, (sorted(glob.glob(name)) if glob.has_magic(name) and not Path(name).exists() else [name])  # noqa: PTH207


def _in_folder(folder: Path) -> list[Path]:
    """The tars of a folder, by name. Without any, raises ConfigError that says what the folder holds instead."""
    if tars := sorted(folder.glob("*.tar")):
        return tars
    endings = Counter(path.name.lower().rpartition(".")[2] for path in folder.rglob("*") if path.is_file())
    what = f"{folder}: a folder without a .tar in it"
    tables = [
        path for name in ("metadata.jsonl", "metadata.csv", "metadata.parquet") for path in sorted(folder.rglob(name))
    ]
    if pictures := sum(n for ending, n in endings.items() if ending in PICTURES.split(";")):
        captions = f" captions={tables[0]}" if tables else " captions=FILE.jsonl"
        raise ConfigError(
            f"{what}, but {pictures} pictures: `ccr-dist shards build folder images={folder}{captions} --out OUT` takes"
            " those"
        )
    if endings["parquet"]:
        raise ConfigError(f"{what}, but {endings['parquet']} Parquet files; {PARQUET}")
    if packed := [ending for ending in ("gz", "tgz", "zst", "xz", "bz2", "zip") if endings[ending]]:
        raise ConfigError(
            f"{what}, but .{packed[0]} files: unpack them first; values are read by their position in plain tars"
        )
    found = ", ".join(f"{n} .{ending}" for ending, n in endings.most_common(5)) or "nothing"
    raise ConfigError(f"{what}; it holds {found}")


def _braces(text: str) -> list[str]:
    """bash's brace expansion of lists and zero-padded ranges."""
    match = _BRACE.search(text)
    if match is None:
        return [text]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if ends:
        width = max(len(ends[1]), len(ends[2])) if "0" in (ends[1][0], ends[2][0]) else 0
        parts = [str(i).zfill(width) for i in range(int(ends[1]), int(ends[2]) + 1)]
    elif "," in match[1]:
        parts = match[1].split(",")
    else:
        raise ConfigError(f"{text}: expected {{000..012}} or {{a,b}} in the braces")
    return [name for part in parts for name in _braces(text[: match.start()] + part + text[match.end() :])]


# -- their keys


def stems(paths: Sequence[Path]) -> list[str]:
    """A prefix of keys for each tar: its file name without dots; preceded by its folder's if two tars share a name.

    Raises:
        ConfigError: Two tars still share a prefix.
    """
    names = [_part(path.stem) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{_part(path.parent.name)}/{name}" for path, name in zip(paths, names, strict=True)]
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise ConfigError(
            f"tars in folders with the same name: keys of two tars would begin with {twice[0]!r}; rename a folder, or"
            " index them separately"
        )
    return names


def _part(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name) or "_"


def repeated(scans: Sequence[ShardIndex], paths: Sequence[Path]) -> tuple[str, Path, Path] | None:
    """A key that is in two tars, and these tars; None if there is none."""
    owner: dict[str, Path] = {}
    for scan, path in zip(scans, paths, strict=True):
        for key in scan.keys:
            if key in owner:
                return key, owner[key], path
            owner[key] = path
    return None


# -- their members


def extensions(scans: Iterable[ShardIndex]) -> Counter[str]:
    """Number of rows with a member of each extension."""
    counts: Counter[str] = Counter()
    for scan in scans:
        for extension in scan.members:
            counts[extension] += scan.count(extension)
    return counts


def some(there: Mapping[str, int]) -> str:
    """The extensions, for messages."""
    names = sorted(there)
    if len(names) <= _SHOWN:
        return ", ".join(names) or "none"
    shown = ", ".join(names[:_SHOWN])
    rule = "a key ends at the first dot of a name, as WebDataset has it: do the names have dots in them?"
    return f"{shown} and {len(names) - _SHOWN} more; {rule}"


def media(
    there: Mapping[str, int], image: str | None, video: str | None, known: Mapping[str, str]
) -> tuple[list[Wanted], list[str]]:
    """Decide which members make the columns of pictures and videos.

    Args:
        there: Number of rows with a member of each extension.
        image: Extensions of pictures, as in `jpg;png`; `none`; or None: as found.
        video: The same for videos.
        known: Extensions of the columns that the dataset already has.

    Returns:
        The columns, and lines for the user.

    Raises:
        ConfigError: Several kinds of members could be meant.
        DataError: There are no such members.
    """
    wanted: list[Wanted] = []
    notes: list[str] = []
    for column, asked, usual in (("image", image, PICTURES), ("video", video, VIDEOS)):
        asked = asked or known.get(column)
        if asked is None and (column == "image" or not wanted):
            asked = usual if set(usual.split(";")) & there.keys() else _compound(column, usual, there)
            if asked and asked != usual:
                notes.append(f"{column}: the members .{asked}")
        if asked and asked != "none":
            if not set(asked.lower().split(";")) & there.keys():
                raise DataError(f"no member .{asked} for {column}; there are: {some(there)}")
            wanted.append(Wanted(column, column, asked.lower()))
    left = [extension for extension in VIDEOS.split(";") if extension in there]
    if left and not any(one.column == "video" for one in wanted) and video != "none":
        notes.append(f"members .{', .'.join(left)} are not indexed; --video '{';'.join(left)}' indexes them")
    if not wanted and (image, video) != ("none", "none"):
        notes.append("no pictures or videos: a dataset of texts")
    return wanted, notes


def _compound(column: str, usual: str, there: Mapping[str, int]) -> str | None:
    """A compound extension such as `input.jpg`, if only one kind of member ends like a picture; otherwise None."""
    found = sorted(extension for extension in there if extension.rpartition(".")[2] in usual.split(";"))
    if len(found) > _SHOWN:
        raise DataError(
            f"{column}: members of {some(dict.fromkeys(found, 1))}; rename the members, or choose one with --{column}"
        )
    if len(found) > 1:
        option = f"--{column} {found[0]}"
        raise ConfigError(
            f"{column}: several kinds of members could be meant: {some(dict.fromkeys(found, 1))}. Choose one, e.g."
            f" {option}"
        )
    return found[0] if found else None


def texts(
    there: Mapping[str, int], asked: Mapping[str, str] | None, known: Mapping[str, str | None]
) -> tuple[list[Wanted], list[str]]:
    """Decide which members make the columns of captions.

    Args:
        there: Number of rows with a member of each extension.
        asked: `txt`, `txt:whole` or `json:FIELD` by language; None: English from `txt`, if there are such members.
        known: Fields of the columns that the dataset already has.

    Returns:
        The columns, and lines for the user.

    Raises:
        ConfigError: A choice is malformed.
        DataError: There are no such members.
    """
    notes: list[str] = []
    if asked is None:
        asked = {"en": "txt"} if "txt" in there else {}
        if not asked:
            notes.append(
                "no members .txt: no captions are indexed; --caption LANG=json:FIELD, or LANG=EXTENSION; there are:"
                f" {some(there)}"
            )
    wanted = []
    for lang, where in asked.items():
        extension, _, field = where.partition(":")
        column = check_column_name(f"caption.{lang}")
        if not decode.is_plain(extension):
            if not field:
                raise ConfigError(f"caption {lang}: name the field of the .json members: {lang}=json:caption")
        elif field not in ("", "whole", decode.LINES):
            raise ConfigError(
                f"caption {lang}: .{extension} is plain text: expected {lang}={extension}, one caption per line, or"
                f" {extension}:whole"
            )
        elif not field and column in known and known[column] is None:
            notes.append(
                f"{column}: was indexed with one caption per member, line breaks included, and stays so; in a new --out"
                " each line is a caption"
            )
            field = "whole"
        else:
            field = field or decode.LINES
        if extension not in there:
            near = difflib.get_close_matches(extension, there, 1)
            hint = f"did you mean .{near[0]}? " if near else ""
            raise DataError(f"no member .{extension} for {column}; {hint}there are: {some(there)}")
        wanted.append(Wanted(column, "texts", extension, None if field == "whole" else field))
    return wanted, notes


def fields_in(objects: Iterable[bytes]) -> list[str]:
    """The fields in some JSON members; those of nested objects as `a.b`."""
    found: dict[str, None] = {}

    def collect(value: Any, at: str, depth: int) -> None:
        for key, inner in value.items() if isinstance(value, dict) and depth else ():
            found[f"{at}{key}"] = None
            collect(inner, f"{at}{key}.", depth - 1)

    for data in objects:
        try:
            collect(json.loads(data), "", 3)
        except (ValueError, RecursionError):
            continue
    return list(found)
