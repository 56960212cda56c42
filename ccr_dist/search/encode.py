"""The jobs that fill a segment of an index: the digests of files, and the rows that a retriever makes of them, or of
the rows of a dataset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ccr_dist.data.media import pictures
from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.media.media_files import Kind, kind_of, open_file
from ccr_dist.data.media.text import has_text, texts_of
from ccr_dist.data.media.video import decode_video
from ccr_dist.data.storage import store
from ccr_dist.data.table.dataset import Column, Dataset
from ccr_dist.errors import ConfigError, DataError, NonFiniteError, failing
from ccr_dist.generate.jobs.request_stream import spare_cores
from ccr_dist.generate.processor import Processor, RowOutcome
from ccr_dist.search.state import FILE, SHA256

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever

NOT_AS_LISTED = "not as it was listed: "  # begins the reason of files that the next update looks at again


class Prepared(NamedTuple):
    """What the retriever encodes of one item.

    Attributes:
        value: a picture (3, H, W), the frames of a video (n, 3, H, W), or vectors (n, F).
        description: of the item; "" without one.
    """

    value: np.ndarray
    description: str = ""


def read_file(path: str) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it is gone, or may not be read.
        OSError: the disk fails.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        if failing(error, path):
            raise
        raise DataError(f"{NOT_AS_LISTED}{path}: {error.strerror or error}") from None


class Digests(Processor):
    """File -> sha256 of its content."""

    kind = "label"
    inputs = (FILE,)
    batch = 64

    def plan(self) -> dict[str, Any]:
        return {"processor": "sha256"}

    def preparer(self) -> Callable[[str, dict[str, Any]], Any]:
        return _digest

    def process(self, items: list[Any]) -> list[RowOutcome]:
        return [RowOutcome(item) for item in items]


def _digest(key: str, values: dict[str, Any]) -> str:
    return hashlib.sha256(read_file(values[FILE])).hexdigest()


@dataclass(frozen=True)
class FileItems:
    """(key, values) -> the picture or video in a file; None where its content is known by another number."""

    transform: Callable[[Any], Any]
    frames: int
    known: frozenset[str]  # keys

    def __call__(self, key: str, values: dict[str, Any]) -> Prepared | None:
        if key in self.known or values[SHA256] is None:
            return None
        path = values[FILE]
        data = read_file(path)
        if hashlib.sha256(data).hexdigest() != values[SHA256]:
            raise DataError(
                f"{NOT_AS_LISTED}{path}: changed while it was indexed; run the same command again when it is whole"
            )
        if not data:
            raise DataError(f"{path}: the file is empty")
        suffix = Path(path).suffix
        return _visual(kind_of(data[:64], suffix), data, suffix, path, self.transform, self.frames)


def _visual(
    kind: Kind | None, data: bytes, suffix: str, what: str, transform: Callable[[Any], Any], frames: int
) -> Prepared:
    if kind != "video":
        return Prepared(transform(open_file(data, suffix, what)).numpy())
    try:
        return Prepared(_film(data, what, transform, frames))
    except ConfigError as error:  # the decoder is not installed: one of the files that cannot be read here
        raise DataError(str(error)) from None


def _film(data: bytes, what: str, transform: Callable[[Any], Any], frames: int) -> np.ndarray:
    """The frames of a video, small: as they are decoded a few films fill the memory."""
    return np.stack([transform(frame).numpy() for frame in decode_video(data, what, frames=frames)])


@dataclass(frozen=True)
class RowItems:
    """(key, values) -> the picture, video or vectors of a row of a dataset, with its description; None: a null row."""

    transform: Callable[[Any], Any] | None
    frames: int
    visual: str
    kind: str
    description: str | None

    def __call__(self, key: str, values: dict[str, Any]) -> Prepared | None:
        value = values[self.visual]
        if value is None or len(value) == 0:
            return None
        said = " ".join(filter(has_text, texts_of(values[self.description]))) if self.description else ""
        if self.kind == "matrix":
            return Prepared(value.astype(np.float32), said)
        assert self.transform is not None
        if self.kind == "video":
            return Prepared(_film(value, key, self.transform, self.frames), said)
        return Prepared(self.transform(decode_image(value, key)).numpy(), said)


class Vectors(Processor):
    """Pictures, videos or cached features -> the retriever's rows, (1, visual_width) float32 each.

    Args:
        retriever: encodes them.
        frames: of a video.
    """

    kind = "matrix"
    extension = "npy"
    dtype = "float32"
    batch = 64

    def __init__(self, retriever: Retriever, frames: int) -> None:
        self._retriever, self._frames = retriever, frames

    @property
    def workers(self) -> int:  # type: ignore[override]
        """Processes feed an accelerator; on the CPU the model itself takes the cores."""
        return 0 if self._retriever.device.type == "cpu" else spare_cores()

    @property
    def width(self) -> int:  # type: ignore[override]
        """Of a row."""
        return self._retriever.visual_width

    def plan(self) -> dict[str, Any]:
        return {
            "processor": "index",
            "retriever": self._retriever.digest,
            "frames": self._frames,
            "pictures": pictures.VERSION,
        }

    def provenance(self) -> dict[str, Any]:
        return {"model": self._retriever.name}

    def process(self, items: list[Prepared]) -> list[RowOutcome]:
        rows: list[Any] = [None] * len(items)
        others = []
        try:
            for at, item in enumerate(items):
                if item.value.ndim == 4:
                    rows[at] = self._retriever.encode_film(item.value, description=item.description)[None]
                else:
                    others.append(at)
            for at, row in zip(others, self._encoded([items[at] for at in others]), strict=True):
                rows[at] = row[None]
        except NonFiniteError as error:  # each item by itself is asked then
            raise DataError(str(error)) from None
        return [RowOutcome(np.ascontiguousarray(row, np.float32)) for row in rows]

    def _encoded(self, items: list[Prepared]) -> np.ndarray:
        if not items:
            return np.zeros((0, self.width), np.float32)
        arrays = [item.value for item in items]
        said = [item.description for item in items] if self._retriever.reads_descriptions else []
        if arrays[0].ndim == 3:
            return self._retriever.encode_pixels(np.stack(arrays), description=said)
        if not self._retriever.reads_tokens:
            return self._retriever.encode_pixels(np.stack([_one(array) for array in arrays]), description=said)
        most = max(map(len, arrays))
        tokens = np.zeros((len(arrays), most, arrays[0].shape[1]), np.float32)
        there = np.zeros((len(arrays), most), np.bool_)
        for at, array in enumerate(arrays):
            tokens[at, : len(array)], there[at, : len(array)] = array, True
        return self._retriever.encode_pixels(tokens, there, said)


def _one(array: np.ndarray) -> np.ndarray:
    if len(array) != 1:
        raise DataError(f"{len(array)} vectors; the model reads one an item")
    found: np.ndarray = array[0]
    return found


class FileVectors(Vectors):
    """The rows of the files of a segment.

    Args:
        retriever, frames: as for `Vectors`.
        known: keys of the files whose content is known by another number.
    """

    inputs = (FILE, SHA256)

    def __init__(self, retriever: Retriever, frames: int, known: frozenset[str]) -> None:
        super().__init__(retriever, frames)
        self._known = known

    def plan(self) -> dict[str, Any]:
        return {**super().plan(), "known": store.digest_json(sorted(self._known))}

    def preparer(self) -> Callable[[str, dict[str, Any]], Any]:
        return FileItems(self._retriever.image_transform(), self._frames, self._known)


class RowVectors(Vectors):
    """The rows of the items of a dataset.

    Args:
        retriever, frames: as for `Vectors`.
        visual: the column of pictures, videos or features.
        description: the column of descriptions, for models that read them.
    """

    def __init__(self, retriever: Retriever, frames: int, visual: str, description: str | None) -> None:
        super().__init__(retriever, frames)
        self._visual, self._description, self._kind = visual, description, "image"
        self.inputs = (visual,) if description is None else (visual, description)

    def check(self, dataset: Dataset) -> None:
        column = dataset.column(self._visual)
        if column.kind not in ("image", "video", "matrix"):
            raise DataError(f"{column.folder}: a {column.kind} column; pictures, videos or features are indexed")
        self._kind = column.kind

    def preparer(self) -> Callable[[str, dict[str, Any]], Any]:
        transform = None if self._kind == "matrix" else self._retriever.image_transform()
        return RowItems(transform, self._frames, self._visual, self._kind, self._description)


class Beside(Dataset):
    """The rows of another dataset again, in a folder of its own. Columns that are not in that folder are read where
    they are.

    Args:
        root: the folder.
        other: has the same rows.
    """

    def __init__(self, root: Path, other: Dataset) -> None:
        super().__init__(root)
        self._other = other

    def _open_column(self, name: str) -> Column:
        own = (self.root / name / "column.json").exists()
        return super()._open_column(name) if own else self._other.column(name)
