"""One index as it is served: what it is, its items, and the pictures of these."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ccr_dist.data.media.decode import file_extension
from ccr_dist.data.media.media_files import open_file
from ccr_dist.data.media.video import decode_video
from ccr_dist.errors import CcrError, DataError
from ccr_dist.search.index import Index
from ccr_dist.search.items import Item
from ccr_dist.search.searcher import Answer, Searcher, ViaEnglish
from ccr_dist.search.state import INDEX, newest
from ccr_dist.serve.limits import Refused
from ccr_dist.serve.public_text import line, shown

SIZES = {"small": 360, "large": 1280}  # longest side of a thumbnail, pixels
_TYPES = {
    "jpg": "image/jpeg", "png": "image/png", "gif": "image/gif", "bmp": "image/bmp", "tif": "image/tiff",
    "webp": "image/webp", "mp4": "video/mp4", "webm": "video/webm",
}  # fmt: skip
_SHOWN = {"image/jpeg", "image/png", "image/gif", "image/bmp", "image/webp", "video/mp4", "video/webm"}


class Original(NamedTuple):
    """A file of an index as it was indexed.

    Attributes:
        data: its bytes.
        name: for people.
        type: media type; `application/octet-stream` for what browsers do not show.
    """

    data: bytes
    name: str
    type: str

    @property
    def attached(self) -> bool:
        """Whether a browser should save it."""
        return self.type not in _SHOWN


class Gallery:
    """An index and its searcher.

    An update of the index on disk is noticed by `outdated`, and shown after `refresh`. Requests that run meanwhile are
    answered by the state that they began with.

    Args:
        place: which of the served indexes it is, from 0.
        name: unique among them, for people.
        index: its folder is not shown to clients.
        searcher: of this index.
        english: languages that the searcher translates into English.
    """

    def __init__(self, place: int, name: str, index: Index, searcher: Searcher, english: Sequence[str] = ()) -> None:
        self.place, self.name, self.english = place, name, list(english)
        self._opened = index, searcher
        self._seen: tuple[int | None, int | None] = _stamp(index.path)[0], index.generation

    @property
    def index(self) -> Index:
        """The state that is shown."""
        return self._opened[0]

    @property
    def searcher(self) -> Searcher:
        """Of that state."""
        return self._opened[1]

    def outdated(self) -> bool:
        """Whether the index was updated since it was opened, or since it last could not be."""
        stamp = _stamp(self.index.path)
        return None not in stamp and stamp != self._seen

    def refresh(self) -> None:
        """Shows the newest state. Where that cannot be opened, the old one is kept, and the log says why."""
        stamp = _stamp(self.index.path)
        try:
            index = Index.open(self.index.path)
            self._opened = index, self.searcher.on(index)
            self._seen = stamp[0], index.generation
        except (CcrError, OSError) as error:
            self._seen = stamp
            print(line(f"{self.name}: its new state is not shown: {error}", most=1000), file=sys.stderr)

    def about(self) -> dict[str, Any]:
        """For clients."""
        model = self.index.model
        return {
            "index": self.place,
            "name": shown(self.name),
            "model": shown(model["name"]),
            "digest": model["digest"],
            "languages": list(self.index.languages),
            "any_language": self.index.any_language,
            "items": self.index.items,
            "dtype": self.index.dtype,
            "english": self.english,
        }

    def texts(
        self,
        texts: Sequence[str],
        *,
        lang: str | None,
        k: int,
        where: Mapping[str, str] | None,
        via_english: ViaEnglish | None = None,
    ) -> list[Answer]:
        """The answers of the searcher."""
        return list(self.searcher.texts(list(texts), lang=lang, k=k, where=where, via_english=via_english))

    def labels(self, most: int) -> list[dict[str, Any]]:
        """Labels with at most so many of their values, the most frequent first; none where they cannot be read."""
        try:
            known = self.index.labels()
        except DataError:  # its dataset is gone; pictures are found all the same
            return []
        found = []
        for name, values in known.items():
            often = sorted(values, key=lambda value: (-values[value], value))
            found.append({"name": shown(name), "values": {value: values[value] for value in often[:most]}})
        return [label for label in found if label["values"]]

    def item(self, number: int) -> Item:
        """An item. Raises Refused where there is none of that number."""
        try:
            return self.index.item(number)
        except DataError:
            raise Refused(404, f"there is no item {number} in this index") from None

    def original(self, number: int) -> Original:
        """The file of an item. Raises Refused where there is none, or another one now."""
        item = self.item(number)
        try:
            data = self.index.picture(number)
        except DataError as error:
            if "only features" in str(error):
                raise Refused(404, "of this item there are only features, no picture") from None
            raise Refused(
                410, "this file is gone, or not the one that was indexed; `ccr-dist index` brings the index up to date"
            ) from None
        return Original(data, item.name, _TYPES.get(_extension(data, item.kind), "application/octet-stream"))

    def thumbnail(self, number: int, size: str) -> bytes:
        """A JPEG of a picture, or of the middle of a video.

        Args:
            number: of the item.
            size: a key of `SIZES`.

        Raises:
            Refused: there is no such item, or no picture can be made of it.
        """
        data = self.original(number).data
        item = self.item(number)
        side = SIZES[size]
        try:
            if item.kind == "video":
                frames = decode_video(data, "video", frames=3)
                image = frames[len(frames) // 2]
            else:
                image = open_file(data, PurePosixPath(item.name).suffix, "picture")
        except DataError:
            raise Refused(415, "no picture can be made of this file") from None
        image.thumbnail((side, side), reducing_gap=3.0)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=84)
        return file.getvalue()


def _stamp(path: Path) -> tuple[int | None, int | None]:
    """What changes with an index on disk: when it was made, and its newest state. None: it cannot be seen now."""
    try:
        return (path / INDEX).stat().st_mtime_ns, newest(path)
    except OSError:
        return None, None


def _extension(data: bytes, kind: str) -> str:
    try:
        return file_extension(kind, data)
    except DataError:  # of the formats that only folders of files may have
        return ""
