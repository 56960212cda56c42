"""Reads files of captions or texts, record by record, for recipes that take a user's own files.

.jsonl        a JSON object per line
.csv, .tsv    the first line has the names; a .csv may use `;` or tabs, as Excel writes it in many countries
.json         a list of objects; an object {file: caption or [captions]}; or COCO's captions, {"images": ...,
              "annotations": ...}
.parquet      a row is a record (needs pyarrow)
.txt          each line is a `text`

All but .parquet may be compressed: .txt.gz.
"""

from __future__ import annotations

import csv
import gzip
import json
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ccr_dist.data.corpora.formats import parquet
from ccr_dist.data.corpora.formats.files import not_utf8
from ccr_dist.data.media.text import has_text, is_unicode
from ccr_dist.errors import ConfigError, DataError

SUFFIXES = (".jsonl", ".csv", ".tsv", ".json", ".parquet", ".txt")


def records(path: Path, *, lines: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the records of a file.

    Args:
        path: The file.
        lines: Whether each line is a text, whatever the file is called.

    Yields:
        (place `file:line`, record). Fields of a CSV are strings; missing ones are "".

    Raises:
        ConfigError: The file does not exist, or its suffix is unknown.
        DataError: The content cannot be read; names the place.
    """
    packed = path.suffix.lower() == ".gz"
    suffix = ".txt" if lines else (Path(path.stem) if packed else path).suffix.lower()
    if suffix not in SUFFIXES or (packed and suffix == ".parquet"):
        raise ConfigError(f"{path}: expected a file {', '.join(SUFFIXES)}, all but .parquet with .gz or without")
    if suffix == ".parquet":
        yield from ((str(place), record) for place, record in parquet.records(path))
        return
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig", newline="")
            if packed
            else path.open(encoding="utf-8-sig", newline="")
        ) as file:
            if suffix in (".csv", ".tsv"):
                yield from _table(path, file)
            elif suffix == ".json":
                yield from _document(path, json.load(file))
            else:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield (
                            f"{path}:{number}",
                            {"text": line.strip()} if suffix == ".txt" else _object(json.loads(line), path, number),
                        )
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (json.JSONDecodeError, RecursionError) as e:
        raise DataError(f"{path}:{number or getattr(e, 'lineno', 1)}: not valid JSON ({e})") from e
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as e:
        raise DataError(f"{path}: a damaged .gz, readable up to line {number} ({e}); get it again") from e
    except csv.Error as e:
        raise DataError(f"{path}: not readable as {suffix[1:].upper()} ({e})") from e


def _table(path: Path, file: IO[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    head, before = file.readline(), 1
    if head.lower().startswith("sep=") and len(head.strip()) == 5:  # Excel's way to name the separator
        separators, head, before = [head[4]], file.readline(), 2
    else:
        separators = ["\t"] if path.suffix.lower() == ".tsv" else sorted(",;\t", key=head.count, reverse=True)
    names = [name.strip() for name in next(csv.reader([head], delimiter=separators[0]), [])]
    reader = csv.DictReader(file, names, delimiter=separators[0], strict=True)
    for row in reader:
        place = f"{path}:{reader.line_num + before}"
        if None in row:
            raise DataError(
                f"{place}: more fields than names in the first line; quote fields that hold {separators[0]!r}"
            )
        if any(row.values()):
            yield place, {name: value or "" for name, value in row.items()}


def _document(path: Path, found: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(found, list):
        yield from ((f"{path}: record {number}", _object(record, path, number)) for number, record in enumerate(found))
        return
    if isinstance(found, dict) and isinstance(found.get("images"), list) and isinstance(found.get("annotations"), list):
        yield from _coco(path, found)
    elif (
        isinstance(found, dict)
        and found
        and all(isinstance(value, str | list) for value in found.values())
        and "images" not in found
    ):
        yield from ((f"{path}: {name!r}", {"file": name, "captions": value}) for name, value in found.items())
    else:
        there = (
            f"an object with {', '.join(list(map(str, found))[:8])}" if isinstance(found, dict) else repr(found)[:80]
        )
        raise DataError(
            f"{path}: expected a list of records, {{file: caption}}, or COCO's captions (images, annotations); found"
            f" {there}"
        )


def _coco(path: Path, found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        names = {image["id"]: image["file_name"] for image in found["images"]}
        captions = [(note["image_id"], note["caption"]) for note in found["annotations"]]
    except (KeyError, TypeError) as e:
        raise DataError(
            f"{path}: not COCO's captions: {e} is missing in an image (id, file_name) or annotation (image_id,"
            " caption); files of boxes (instances_*.json) have none"
        ) from e
    for number, (image, caption) in enumerate(captions):
        if image not in names:
            raise DataError(f"{path}: annotation {number}: image_id {image!r} is not among the images")
        yield f"{path}: annotation {number}", {"file": names[image], "caption": caption}


def _object(record: Any, path: Path, number: int) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{path}:{number}: expected a JSON object, found {json.dumps(record, ensure_ascii=False)[:80]}")
    return record


def texts_of(value: Any, place: str) -> list[str]:
    """Turn a string, a list of strings or None into a list without blank texts.

    Args:
        value: The value.
        place: Its place, for messages.

    Raises:
        DataError: The value is something else.
    """
    texts = [value] if isinstance(value, str) else value
    if value is None:
        return []
    if not isinstance(texts, list) or not all(isinstance(text, str) and is_unicode(text) for text in texts):
        raise DataError(f"{place}: expected a caption or a list of captions, found {json.dumps(value)[:120]}")
    return [text.strip().strip("\ufeff").strip() for text in texts if has_text(text)]


def safe_key(text: str) -> str:
    """Turn a file name or an id into a key that WebDataset accepts.

    Letters and digits of any script with their marks (NFC), _ and - are kept; everything else becomes `_`.
    """
    return "".join(
        c if c.isalnum() or c in "_-" or unicodedata.category(c)[0] == "M" else "_"
        for c in unicodedata.normalize("NFC", text)
    )
