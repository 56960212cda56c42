"""The routes below /api: searching, items and their pictures."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from ccr_dist import __version__
from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.media.pictures import size_of
from ccr_dist.data.media.text import has_text
from ccr_dist.errors import CcrError, ConfigError, DataError
from ccr_dist.search.searcher import uncertain
from ccr_dist.serve import schema
from ccr_dist.serve.gallery import SIZES, Gallery, Original
from ccr_dist.serve.limits import Limits, Refused
from ccr_dist.serve.model_queue import ModelQueue
from ccr_dist.serve.public_text import disposition, line, message, shown
from ccr_dist.serve.thumbnails import Thumbnails

_CHUNK = 262_144  # bytes of a file that are sent at a time
_SANDBOX = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
# A browser plays a video in a document of its own, which a sandbox would not let read it.
_FILM = {"content-security-policy": "default-src 'none'; media-src 'self'; style-src 'unsafe-inline'"}

_PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}}}
_BODY = {"requestBody": {"required": True, "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}}

Number = Annotated[int, Path(ge=0, le=2**53, description="of the item in its index")]
Place = Annotated[int, Query(ge=0, description="number of an index, as /api/info lists them")]
Hits = Annotated[int, Query(ge=1, description="how many items")]
Lang = Annotated[str | None, Query(max_length=35, description="language of the query (BCP 47); detected without it")]
Where = Annotated[list[str] | None, Query(description="`column=value`, any number: only items with these labels")]


class Service:
    """What the routes share.

    Args:
        galleries: the served indexes.
        queue: calls their models.
        limits: of requests.
        thumbnails: of all galleries.
        started: names this start of the server.
    """

    def __init__(
        self, galleries: list[Gallery], queue: ModelQueue, limits: Limits, thumbnails: Thumbnails, started: str
    ) -> None:
        self.galleries, self.queue, self.limits = galleries, queue, limits
        self.thumbnails, self.started = thumbnails, started
        self._opening: set[int] = set()  # indexes
        self._files, self._uploads = asyncio.Semaphore(limits.files), asyncio.Semaphore(limits.uploads)

    async def gallery(self, place: int) -> Gallery:
        """A served index, in its newest state, or in the one before it while that is opened for another request. Raises
        Refused.
        """
        if not 0 <= place < len(self.galleries):
            raise Refused(404, f"index {place}: there are {len(self.galleries)}, from 0")
        found = self.galleries[place]
        if place not in self._opening and found.outdated():
            self._opening.add(place)
            try:
                await asyncio.to_thread(found.refresh)
            finally:
                self._opening.remove(place)
        return found

    def hits(self, k: int) -> int:
        """How many items are answered. Raises Refused."""
        if k > self.limits.hits:
            raise Refused(400, f"k = {k}: at most {self.limits.hits}")
        return k

    def text(self, text: str, most: int) -> str:
        """A text that a client sent. Raises Refused where there is nothing in it, or more than `most` characters."""
        text = shown(text)
        if not has_text(text):
            raise Refused(400, "the text is empty: write what you look for")
        if len(text) > most:
            raise Refused(400, f"the text has {len(text):,} characters: at most {most:,}")
        return text

    def picture(self, data: bytes, what: str = "picture") -> Any:
        """A picture that a client sent, opened. Raises Refused."""
        try:
            width, height = size_of(data, what)
            if width * height > self.limits.pixels:
                raise Refused(413, f"{what}: {width} x {height} pixels: at most {self.limits.pixels:,}")
            return decode_image(data, what)
        except DataError as error:
            raise Refused(415, message(error)) from None

    @contextlib.asynccontextmanager
    async def upload(self) -> AsyncIterator[None]:
        """A turn to read a body and to hold what is in it. Before it the body waits with the client. Raises Refused."""
        await self._turn_of(self._uploads)
        try:
            yield
        finally:
            self._uploads.release()

    async def turn(self) -> Callable[[], None]:
        """Waits until a whole file may be held in memory. Returns what gives the turn back. Raises Refused."""
        await self._turn_of(self._files)
        return self._files.release

    async def _turn_of(self, turns: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(self.limits.wait_s):
                await turns.acquire()
        except TimeoutError:
            raise Refused(503, "too many files are asked for; try again in a moment", {"retry-after": "2"}) from None

    async def info(self) -> schema.Info:
        """What this server has."""
        galleries = [await self.gallery(place) for place in range(len(self.galleries))]
        limits = schema.Bounds(text=self.limits.text, hits=self.limits.hits, bytes=self.limits.body)
        indexes = [schema.IndexInfo(**gallery.about()) for gallery in galleries]
        return schema.Info(version=__version__, started=self.started, indexes=indexes, limits=limits)


class FileAnswer(Response):
    """A file in parts, each sent when the client has read the ones before; `done` is called at the end, whatever it is.

    Args:
        original: the file.
        done: gives back the turn that its memory has.
    """

    def __init__(self, original: Original, done: Callable[[], None]) -> None:
        headers = {
            "content-length": str(len(original.data)),
            "content-disposition": disposition(original.name, attached=original.attached),
            "cache-control": "private, max-age=3600",
            **(_FILM if original.type.startswith("video/") else _SANDBOX),
        }
        super().__init__(media_type=original.type, headers=headers)
        self._data, self._done = memoryview(original.data), done

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            for at in range(0, len(self._data), _CHUNK):
                part = bytes(self._data[at : at + _CHUNK])
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._done()


async def asked(call: Awaitable[Any]) -> Any:
    """The answer of a model. What is wrong with the question is told; anything else is ours, and only logged.

    Raises:
        Refused: there is no answer.
    """
    try:
        return await call
    except (ConfigError, DataError) as error:
        raise Refused(400, message(error)) from None
    except CcrError as error:
        print(line(f"error: {error}", most=1000), file=sys.stderr)
        raise Refused(500, "the server could not answer; its log says why") from None


def router(service: Service) -> APIRouter:
    """The routes."""
    routes, limits = APIRouter(prefix="/api"), service.limits

    @routes.get("/info")
    async def info() -> schema.Info:
        """What this server has: its indexes, their models and languages."""
        return await service.info()

    @routes.get("/search")
    async def search(
        text: Annotated[str, Query(description="the query")],
        lang: Lang = None,
        k: Hits = 30,
        index: Place = 0,
        where: Where = None,
        via_english: Annotated[
            Literal["only", "average"] | None,
            Query(description="ask by the English translation alone, or by the average of both scores"),
        ] = None,
    ) -> schema.Answer:
        """The items that fit a text best."""
        gallery, text, k = await service.gallery(index), service.text(text, limits.text), service.hits(k)
        chosen = labels(where)
        group = (index, lang, k, via_english, tuple(sorted(chosen.items())))
        ask = functools.partial(gallery.texts, lang=lang, k=k, where=chosen or None, via_english=via_english)
        found = await asked(service.queue.together(group, text, ask))
        return answered(gallery, found, query=text, given=lang)

    @routes.post("/search", openapi_extra=_BODY)
    async def search_by_picture(request: Request, k: Hits = 30, index: Place = 0, where: Where = None) -> schema.Answer:
        """The items that are most like a picture. The body is its file."""
        gallery, k = await service.gallery(index), service.hits(k)
        chosen = labels(where)
        async with service.upload():
            picture = await asyncio.to_thread(service.picture, await request.body())
            ask = functools.partial(gallery.searcher.pictures, [picture], k=k, where=chosen or None)
            found = (await asked(service.queue.call(ask)))[0]
        return answered(gallery, found, query=None, given=None)

    @routes.get("/labels")
    async def label_values(index: Place = 0) -> list[schema.Label]:
        """What the items of an index can be chosen by (`where`)."""
        gallery = await service.gallery(index)
        found = await asyncio.to_thread(gallery.labels, limits.values)
        return [schema.Label(**label) for label in found]

    @routes.get("/items/{number}")
    async def item(number: Number, index: Place = 0) -> schema.ItemInfo:
        """An item: its file, its captions in all languages, its labels."""
        gallery = await service.gallery(index)
        found = await asyncio.to_thread(gallery.item, number)
        return schema.ItemInfo(
            index=index,
            number=number,
            key=shown(found.key),
            name=shown(found.name),
            kind=found.kind,
            captions={lang: [shown(text) for text in texts] for lang, texts in found.captions.items()},
            labels={shown(column): shown(str(value)) for column, value in found.labels.items()},
        )

    @routes.get("/items/{number}/picture", response_class=Response, responses=_PICTURE)
    async def picture(
        number: Number,
        index: Place = 0,
        size: Annotated[Literal["small", "large"], Query(description=f"longest side: {SIZES}")] = "small",
        full: Annotated[bool, Query(description="the file itself, as it was indexed")] = False,
    ) -> Response:
        """The picture of an item, as a JPEG; of a video a frame."""
        gallery = await service.gallery(index)
        if full:
            done = await service.turn()
            try:
                return FileAnswer(await asyncio.to_thread(gallery.original, number), done)
            except BaseException:
                done()
                raise
        data = await service.thumbnails.get(gallery, number, size)
        headers = {"cache-control": "private, max-age=3600", **_SANDBOX}
        return Response(data, media_type="image/jpeg", headers=headers)

    @routes.get("/items/{number}/similar")
    async def similar(number: Number, k: Hits = 12, index: Place = 0) -> schema.Answer:
        """The items that look most like an item, without itself."""
        gallery, k = await service.gallery(index), service.hits(k)
        await asyncio.to_thread(gallery.item, number)
        found = await asked(service.queue.call(lambda: gallery.searcher.similar(number, k)))
        return answered(gallery, found, query=None, given=None)

    return routes


def labels(where: list[str] | None) -> dict[str, str]:
    """`column=value` words as a filter. Raises Refused."""
    chosen = {}
    for word in where or ():
        column, equals, value = word.partition("=")
        if not column or not equals:
            raise Refused(400, f"where = {shown(word)}: expected column=value")
        chosen[column] = value
    return chosen


def answered(gallery: Gallery, answer: Any, *, query: str | None, given: str | None) -> schema.Answer:
    """An answer of a searcher, for a client.

    Args:
        gallery: that was searched.
        answer: of its searcher.
        query: text that was asked; None: a picture.
        given: language that the client named.
    """
    hits = [
        schema.Found(rank=hit.rank, score=hit.score, number=hit.number, key=shown(hit.key), name=shown(hit.name))
        for hit in answer.hits
    ]
    return schema.Answer(
        index=gallery.place,
        query=query,
        lang=answer.lang if query is not None else None,
        detected=query is not None and given is None,
        sure=bool(answer.sure),
        notes=[shown(note) for note in answer.notes if note != uncertain(answer.lang)],  # that is what `sure` says
        hits=hits,
    )
