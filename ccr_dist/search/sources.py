"""Where the pictures of an index are: from the words of a command to folders, datasets and tars.

    {"kind": "folder", "path": "/home/ana/pictures"}
    {"kind": "dataset", "path": "/data/coco/test", "visual": "image", "description": null, "digest": ...}

Tars that were made elsewhere are recorded in a dataset inside of the index first (`ccr-dist shards index`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ccr_dist.data.corpora.index import expand, index
from ccr_dist.data.storage import store
from ccr_dist.data.storage.object_store import as_url
from ccr_dist.data.table.dataset import Dataset, open_all
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.search.state import TARS, Source

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever

_VISUAL = ("image", "video", "matrix")  # kinds of columns


def sources_of(
    words: Sequence[str], root: Path, retriever: Retriever, *, column: str | None = None, progress: bool = True
) -> list[Source]:
    """The sources that a command names.

    Args:
        words: folders of pictures, datasets (or folders of them, or URLs), tars.
        root: the folder of the index.
        retriever: says which columns of a dataset it reads.
        column: of pictures, videos or features, in place of the one that the model was trained with.
        progress: whether to show a bar while tars are read.

    Raises:
        ConfigError: a word is none of these.
        DataError: a dataset lacks a column, a tar is broken, or a folder holds nothing.
    """
    if not words:
        raise ConfigError("no PICTURES: name a folder of pictures, a dataset, or tars")
    found: list[Source] = []
    tars = [word for word in words if _is_tars(word)]
    for word in words:
        if word in tars:
            continue
        path = Path(word).expanduser()
        if as_url(word) or (path / "dataset.json").exists() or any(path.glob("*/dataset.json")):
            found += [_of_dataset(dataset, retriever, column) for dataset in open_all(word)]
        elif path.is_dir():
            found.append({"kind": "folder", "path": str(path.resolve())})
        elif path.exists():
            raise ConfigError(f"{word}: a file; name the folder that holds the pictures, a dataset, or tars")
        else:
            raise ConfigError(f"{word}: no such folder; name a folder of pictures, a dataset, or tars")
    if tars:
        found.append(_of_dataset(_recorded(tars, root, progress=progress), retriever, column))
    return list({store.digest_json(source): source for source in found}.values())


def _is_tars(word: str) -> bool:
    """Tars by name, or a pattern of them."""
    return word.endswith(".tar") and not Path(word).is_dir()


def _recorded(words: list[str], root: Path, *, progress: bool) -> Dataset:
    paths = "\n".join(str(path) for path in expand(words))
    out = root / TARS / hashlib.sha256(paths.encode()).hexdigest()[:16]
    out.parent.mkdir(parents=True, exist_ok=True)
    return index(words, out, name="tars", split="index", progress=progress).dataset


def _of_dataset(dataset: Dataset, retriever: Retriever, column: str | None) -> Source:
    columns = dataset.columns()
    trained = retriever.config.data.visual
    visual = column or next((name for name in (trained, "image", "video") if name in columns), trained)
    opened = dataset.column(visual)
    if opened.kind not in _VISUAL:
        raise DataError(f"{opened.folder}: a {opened.kind} column; expected pictures, videos or features")
    if opened.kind == "matrix" and visual != trained:
        raise DataError(
            f"{opened.folder}: the model reads {trained}; features of another column are not known to be the same"
            " backbone's. Name a column of pictures with --column"
        )
    opened.require_complete()
    description = retriever.config.data.description if retriever.reads_descriptions else None
    if description is not None:
        dataset.column(description).require_complete()
    read = [opened, *([dataset.column(description)] if description else [])]
    digest = store.digest_json([dataset.digest, *(column.digest for column in read)])
    place = dataset.place if as_url(dataset.place) else str(Path(dataset.place).resolve())
    return {"kind": "dataset", "path": place, "visual": visual, "description": description, "digest": digest}


def same_place(one: Source, other: Source) -> bool:
    """Whether two sources are the same folder or dataset, whatever it holds by now."""
    return all(one.get(name) == other.get(name) for name in ("kind", "path", "visual", "description"))
