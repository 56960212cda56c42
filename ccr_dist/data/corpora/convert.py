"""Converts datasets to the files of NRCCR, LECCR, MLA and DASD, and files of translations to what `ccr-dist replay`
reads.

Recipes go the other way, from such files to a dataset (`shards/nrccr.yaml`, `shards/mla.yaml`). Media are not written:
all of these projects read a folder of pictures named by item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ccr_dist.data.corpora.formats.files import Files
from ccr_dist.data.corpora.formats.readers import Keyed, Mapping, TextFolder
from ccr_dist.data.corpora.formats.writers import write_json, write_keyed, write_mapping, write_names
from ccr_dist.data.corpora.recipes.captions import safe_key
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import Column, Dataset, open_all
from ccr_dist.errors import ConfigError, DataError

_BACK = re.compile(r"back-([A-Za-z]{2,3}(?:-[A-Z][A-Za-z]{1,3})?)-(.+)")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{2,4}$")


@dataclass
class Converted:
    """Report on a conversion.

    Attributes:
        files: The files and folders written.
        blank: Number of blank captions left out.
    """

    files: list[Path] = field(default_factory=list)
    blank: int = 0


def to_nrccr(path: str | Path, out: str | Path, *, name: str | None = None, columns: Sequence[str] = ()) -> Converted:
    """Convert a dataset to the files of NRCCR and LECCR.

    Writes TextData/NAME<split>_<tag>.caption.txt for every caption column, {img,video}_id/<split>_id.txt, and
    description.<source>/KEY.txt.

    Args:
        path: A dataset or a folder of datasets.
        out: A new or empty folder.
        name: Name of the collection, such as `multi30k`; None: the dataset's.
        columns: Names of columns; by default all.

    Raises:
        ConfigError: `out` is not empty, or a column does not exist.
        DataError: A column is incomplete.
    """
    datasets, done, out = _open(path, columns), Converted(), _empty(out)
    for dataset in datasets:
        collection = f"{name or dataset.name}{dataset.split}"
        kind = "video" if "video" in dataset.columns() else "img"
        ids = out / f"{kind}_id" / f"{dataset.split}_id.txt"
        write_names(ids, [key for shard in range(len(dataset.shards)) for key in dataset.keys(shard)])
        done.files.append(ids)
        for column in _wanted(dataset, columns):
            if column.name.startswith("caption."):
                stem, tag = nrccr_name(column)
                target = out / "TextData" / f"{collection}_{stem}.caption.txt"
                done.blank += write_keyed(target, tag, _texts(column))
                done.files.append(target)
            else:
                folder = out / column.name
                folder.mkdir(exist_ok=True)
                for key, texts in _texts(column):
                    if "/" in key:
                        raise DataError(f"{column.folder}: the key {key!r} cannot name a file")
                    store.create_once(folder / f"{key}.txt", " ".join(texts).encode())
                done.files.append(folder)
    return done


def nrccr_name(column: Column) -> tuple[str, str]:
    """(middle of the file name, tag) of a caption column in NRCCR's files.

    caption.en: enc; caption.de: de; caption.de.google: google_enc2de; caption.en.back-de-google: google_enc2de2enc;
    caption.en.google, made from caption.de: google_de2enc.
    """
    language, _, engine = column.name.removeprefix("caption.").partition(".")
    if not engine:
        return ("enc", "enc") if language == "en" else (language, language)
    if language != "en":
        return f"{engine}_enc2{language}", f"enc2{language}"
    if back := _BACK.fullmatch(engine):
        return f"{back[2]}_enc2{back[1]}2enc", f"enc2{back[1]}2enc"
    inputs = [name for name in column.plan.get("inputs", {}) if name.startswith("caption.")]
    if len(inputs) != 1:
        raise ConfigError(
            f"{column.folder}: its plan does not name the caption column it was translated from; leave it out with"
            " --column"
        )
    source = inputs[0].split(".")[1]
    return f"{engine}_{source}2enc", f"{source}2enc"


def to_mla(path: str | Path, out: str | Path, *, media: str = "images", columns: Sequence[str] = ()) -> Converted:
    """Convert a dataset to the files of MLA and DASD.

    Writes annotation/<split>_<language>[.<engine>].json, public_split/<split>.npy, and path.json, which MLA's loaders
    read first. It names one file per language: in train the translations, if there are any, otherwise the human
    captions.

    Args:
        path: A dataset or a folder of datasets.
        out: A new or empty folder.
        media: The folder of pictures that path.json names.
        columns: Names of columns; by default all.

    Raises:
        ConfigError: `out` is not empty, a column does not exist, or train has translations by two engines.
        DataError: A column is incomplete.
    """
    datasets, done, out = _open(path, columns), Converted(), _empty(out)
    paths: dict[str, dict[str, list[str]]] = {}
    for dataset in datasets:
        names = _file_names(dataset)
        listing = out / "public_split" / f"{dataset.split}.npy"
        write_names(listing, list(names.values()))
        files: dict[str, Path] = {}
        for column in _wanted(dataset, columns):
            if column.name.startswith("caption."):
                target = out / "annotation" / f"{dataset.split}_{column.name.removeprefix('caption.')}.json"
                write_mapping(target, {names[key]: texts for key, texts in _texts(column)})
                files[column.name] = target
        done.files += [listing, *files.values()]
        chosen = {language: files[name] for language, name in _one_a_language(dataset, list(files)).items()}
        paths[dataset.split] = {
            "anno_file": [str(target.resolve()) for target in chosen.values()],
            "feature": [media] * len(chosen),
            "name_file": [str(listing.resolve())] * len(chosen),
            "langs": list(chosen),
        }
    write_json(out / "path.json", paths)
    done.files.append(out / "path.json")
    return done


def to_replay(source: str | Path, out: str | Path) -> Converted:
    """Convert NRCCR's lines (.txt), MLA's JSON or a folder of ITEM.txt to lines of `{"key": ..., "value": ...}`.

    Texts keep the order of the file. Keys are made as in recipes: without the suffix of a picture, and with `_` for
    everything but letters, digits, _ and -.

    Args:
        source: The file or folder.
        out: A new file.

    Raises:
        ConfigError: The source is of another kind, or `out` exists.
        DataError: The source cannot be read, has no text, or its captions are not numbered 0, 1, 2, ...
    """
    source = Path(source)
    files, name = Files(source.parent), source.name
    texts: dict[str, list[str]] = {}
    labels: dict[str, list[str | None]] = {}
    stem = name.removesuffix(".gz")
    if not source.is_dir() and not stem.endswith((".txt", ".json")):
        raise ConfigError(f"{source}: expected NRCCR's .txt, MLA's .json or a folder of text files")
    reader: TextFolder | Keyed | Mapping
    if source.is_dir():
        reader = TextFolder(format="texts", file=name)
    elif stem.endswith(".txt"):
        reader = Keyed(format="keyed", file=name)
    else:
        reader = Mapping(format="mapping", file=name)
    for entry in reader.entries(files):
        key = safe_key(entry.item if source.is_dir() else _SUFFIX.sub("", entry.item))
        texts.setdefault(key, []).append(entry.text)
        labels.setdefault(key, []).append(entry.label)
    if not texts:
        raise DataError(f"{source}: contains no text")
    # A gap in the numbers would pair a caption with the translation of another.
    for key, numbers in labels.items():
        if numbers[0] is not None and numbers != [str(i) for i in range(len(numbers))]:
            raise DataError(
                f"{source}: the captions of {key!r} are numbered {', '.join(map(str, numbers))}; expected 0, 1, 2 ..."
                " in order"
            )
    lines = [
        json.dumps(
            {"key": key, "value": {"views": {"detail": said[0]}} if source.is_dir() else said}, ensure_ascii=False
        )
        + "\n"
        for key, said in texts.items()
    ]
    out = Path(out)
    if not store.create_once(out, "".join(lines).encode()):
        raise ConfigError(f"{out}: already exists; give another --out")
    return Converted([out])


def _empty(out: str | Path) -> Path:
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: already holds files; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _open(path: str | Path, columns: Sequence[str]) -> list[Dataset]:
    """The datasets at a path. Raises ConfigError for a column that none of them has."""
    datasets = open_all(path)
    there = {name for dataset in datasets for name in dataset.columns()}
    if unknown := [name for name in columns if name not in there]:
        raise ConfigError(f"{path}: no column {', '.join(unknown)}; there are: {', '.join(sorted(there))}")
    return datasets


def _wanted(dataset: Dataset, columns: Sequence[str]) -> list[Column]:
    """The columns of captions and descriptions to convert. Raises DataError for an incomplete one."""
    named = [name for name in dataset.columns() if name.startswith(("caption.", "description."))]
    found = [dataset.column(name) for name in named if not columns or name in columns]
    for column in found:
        column.require_complete()
    return found


def _texts(column: Column) -> Iterator[tuple[str, list[str]]]:
    """(key, texts) of the rows that have texts; of views, their texts in order."""
    for shard in range(len(column.dataset.shards)):
        for row, key in enumerate(column.dataset.keys(shard)):
            if (value := column.value(shard, row)) is not None:
                yield key, list(value["views"].values()) if isinstance(value, dict) else value


def _file_names(dataset: Dataset) -> dict[str, str]:
    """Names of picture or video files by key; KEY.jpg for rows without one."""
    names = {key: f"{key}.jpg" for shard in range(len(dataset.shards)) for key in dataset.keys(shard)}
    media = next((name for name in ("image", "video") if name in dataset.columns()), None)
    for shard in range(len(dataset.shards)) if media else ():
        index = dataset.column(media or "").index(shard)
        for extension, places in index["members"].items():
            names |= {
                key: f"{key}.{extension}" for key, size in zip(index["keys"], places["sizes"], strict=True) if size > 0
            }
    return names


def _one_a_language(dataset: Dataset, columns: list[str]) -> dict[str, str]:
    """The column of each language for path.json, English first."""
    chosen: dict[str, str] = {}
    for language in sorted({name.split(".")[1] for name in columns}, key=lambda language: (language != "en", language)):
        human = f"caption.{language}"
        translated = [name for name in columns if name.startswith(f"{human}.")]
        if dataset.split == "train" and language != "en" and translated:
            if len(translated) > 1:
                raise ConfigError(f"{dataset.root}: {language} has {' and '.join(translated)}; choose with --column")
            chosen[language] = translated[0]
        elif human in columns:
            chosen[language] = human
    return chosen
