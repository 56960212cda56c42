"""Reading files of captions or texts, JSONL or CSV, one record a line: shared by the recipes that take a user's own files."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ccr_dist.errors import ConfigError, DataError


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place `file:line`, record) of a .jsonl, .csv (first line: names; empty fields left out) or .txt file (each line is a `text`)."""
    if path.suffix not in (".jsonl", ".csv", ".txt"):
        raise ConfigError(f"{path}: expected a .jsonl, .csv or .txt file")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    if None in row:
                        raise DataError(
                            f"{path}:{reader.line_num}: more fields than names in the first line; quote fields that hold commas"
                        )
                    yield f"{path}:{reader.line_num}", {name.strip(): value for name, value in row.items() if value and value.strip()}
                return
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                record = {"text": line.strip()} if path.suffix == ".txt" else json.loads(line)
                if not isinstance(record, dict):
                    raise DataError(f"{path}:{number}: expected a JSON object, found {line.strip()[:80]}")
                yield f"{path}:{number}", record
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{path}:{number}: not valid JSON ({e})") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path}: not readable as UTF-8 {path.suffix[1:].upper()} ({e})") from e


def texts_of(value: Any, place: str) -> list[str]:
    """A string or a list of strings as a list. DataError naming the place for anything else, or for blank text."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{place}: expected a caption or a list of captions, found {json.dumps(value, ensure_ascii=False)[:120]}")
    return [text.strip() for text in texts]


def safe_key(text: str) -> str:
    """A key that WebDataset takes, from a file name or an id: letters, digits, _ and - (of any script); the rest becomes `_`."""
    return re.sub(r"[^\w-]", "_", text)
