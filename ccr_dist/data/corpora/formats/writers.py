"""Writes the files of NRCCR and LECCR (lines of text) and of MLA and DASD (JSON). `data/corpora/convert.py` decides
which column goes into which file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ccr_dist.data.media.text import has_text
from ccr_dist.data.storage import store
from ccr_dist.errors import DataError


def write_keyed(path: Path, tag: str, rows: Iterable[tuple[str, Sequence[str]]]) -> int:
    """Write lines of `ITEM#TAG#N caption`, N from 0. A line break inside a caption becomes a blank.

    Args:
        path: A new file.
        tag: The TAG.
        rows: (item, captions) in order.

    Returns:
        Number of blank captions, which are left out, since readers of this format need text.

    Raises:
        DataError: An item has white space or #.
    """
    lines, blank = [], 0
    for item, texts in rows:
        if re.search(r"[\s#]", item):
            raise DataError(f"{path}: the key {item!r} has white space or #, which end a key in this format")
        for number, text in enumerate(texts):
            if has_text(text):
                line = re.sub(r"\s*[\r\n]+\s*", " ", text).strip()
                lines.append(f"{item}#{tag}#{number} {line}\n")
            else:
                blank += 1
    _write(path, "".join(lines).encode())
    return blank


def write_names(path: Path, names: Sequence[str]) -> None:
    """Write an id list: one item per line, or for a .npy an array of strings, (N,)."""
    if path.suffix == ".npy":
        path.parent.mkdir(parents=True, exist_ok=True)
        with store.staged(path) as tmp:
            with tmp.open("wb") as file:
                np.save(store.Plain(file), np.array(names, dtype=np.str_), allow_pickle=False)
            store.publish_once(tmp, path)
    else:
        _write(path, "".join(f"{name}\n" for name in names).encode())


def write_mapping(path: Path, rows: dict[str, Sequence[str]]) -> None:
    """Write a JSON object of captions by file name."""
    _write(path, json.dumps(rows, ensure_ascii=False, indent=1).encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    _write(path, store.pretty_json(value))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    store.create_once(path, data)
