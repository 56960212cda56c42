"""Queries to answers: texts in the languages of a model, pictures, and items of the index themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ccr_dist.data.media.text import has_text
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.retriever.language import own_tag
from ccr_dist.search.index import Index

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever

ViaEnglish = Literal["only", "average"]
Translate = Callable[[list[str], str], list[str]]  # (texts, their language) -> English texts
ENGLISH = "en"


def uncertain(lang: str) -> str:
    """The note of an answer whose language was found out, and is not sure. How another one is named is for whoever
    shows it.
    """
    return f"the language is not certain; taken for {lang}"


@dataclass(frozen=True)
class Hit:
    """An item that was found.

    Attributes:
        rank: from 1.
        score: larger is better.
        number: of the item in the index.
        key: its path in its folder, or its key in its dataset.
        name: for people.
        path: the file, or the dataset that holds it.
    """

    rank: int
    score: float
    number: int
    key: str
    name: str
    path: str


@dataclass(frozen=True)
class Answer:
    """What was found for a query.

    Attributes:
        query: the text, or what names the picture.
        lang: the language that the text was encoded in; None of a picture.
        sure: whether that language was given, or is certain.
        notes: what the asker has to know.
        hits: best first.
    """

    query: str
    lang: str | None
    sure: bool
    notes: list[str] = field(default_factory=list)
    hits: list[Hit] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


class EnglishNeededError(ConfigError):
    """The model scores a query together with its English translation, and `via_english` asks for none."""


class Searcher:
    """An index with the retriever that it was made with.

    Args:
        index: that is searched.
        retriever: encodes the queries.
        translate: makes English of a query, for `via_english`.
        ann: search by faiss' lists, where the index has them; see `Index.search`.

    Raises:
        ConfigError: the index is one of another model.
    """

    def __init__(
        self, index: Index, retriever: Retriever, *, translate: Translate | None = None, ann: bool = False
    ) -> None:
        index.require(retriever)
        self.index, self.retriever, self._translate, self._ann = index, retriever, translate, ann

    def on(self, index: Index) -> Searcher:
        """The same for another index, or another state of this one. Raises ConfigError where its model is another."""
        return Searcher(index, self.retriever, translate=self._translate, ann=self._ann)

    def texts(
        self,
        texts: Sequence[str],
        lang: str | None = None,
        k: int = 10,
        via_english: ViaEnglish | None = None,
        where: Mapping[str, str] | None = None,
    ) -> list[Answer]:
        """Answers texts.

        Args:
            texts: n ≥ 0 queries.
            lang: their language; None: found out for each of them, among those of the model.
            k: items for each; fewer where there are fewer.
            via_english: `only` asks in English what the query says, `average` takes the mean of both scores; a model
                that asks each query twice (fusion) weighs them as validation chose.
            where: label -> value: only items that have all of them.

        Returns:
            n answers.

        Raises:
            DataError: a query is blank, or no item has such a label.
            ConfigError: the model cannot encode the language, or there is nothing that translates.
            EnglishNeededError: the model needs the English of a query, and `via_english` is None.
        """
        if isinstance(texts, str):
            raise TypeError("texts: expected a list of texts, not one text")
        if via_english not in (None, "only", "average"):
            raise ConfigError(f"via_english {via_english!r}: expected 'only', 'average' or None")
        for at, text in enumerate(texts):
            if not has_text(text):
                raise DataError(f"query {at + 1} is empty: {text!r}; write what you look for")
        spoken = [self._spoken(text, lang) for text in texts]
        answers: list[Answer | None] = [None] * len(texts)
        for each in dict.fromkeys(its for its, _ in spoken):
            places = [at for at, (its, _) in enumerate(spoken) if its == each]
            some = [texts[at] for at in places]
            found = self._in_language(some, each, k, via_english, where)
            for at, (notes, hits) in zip(places, found, strict=True):
                sure = spoken[at][1]
                answers[at] = Answer(texts[at], each, sure, [*([] if sure else [uncertain(each)]), *notes], hits)
        return [answer for answer in answers if answer is not None]

    def _spoken(self, text: str, lang: str | None) -> tuple[str, bool]:
        """The language of a query, and whether that is sure."""
        if lang is not None:
            return own_tag(lang, self.retriever.languages) or lang, True
        found, sure = self.retriever.detect(text)
        return found, sure

    def _in_language(
        self,
        texts: list[str],
        lang: str,
        k: int,
        via_english: ViaEnglish | None,
        where: Mapping[str, str] | None,
    ) -> list[tuple[list[str], list[Hit]]]:
        notes: list[list[str]] = [[] for _ in texts]
        english = None
        if via_english is None and self.retriever.asks_twice(lang):
            raise EnglishNeededError(
                f"{self.retriever.name} scores a query in {lang!r} together with its English translation; search by the"
                " average with English"
            )
        if via_english is not None and lang != ENGLISH:
            if self._translate is None:
                raise ConfigError("via English: there is no translation engine")
            english = self._translate(texts, lang)
            for each, said in zip(notes, english, strict=True):
                each.append(f"in English: {said}")
        rows = []
        if english is None or via_english == "average":
            rows.append(self._encoded(texts, lang, english, notes))
        if english is not None and not (rows and self.retriever.asks_twice(lang)):  # it has averaged them itself
            rows.append(self._encoded(english, ENGLISH, None, notes))
        numbers, scores = self._best(rows, k, where)
        return [
            (each, self._hits(*found)) for each, found in zip(notes, zip(numbers, scores, strict=True), strict=True)
        ]

    def _encoded(self, texts: list[str], lang: str, companion: list[str] | None, notes: list[list[str]]) -> np.ndarray:
        """The rows of texts. `notes` gets what the model has to say about them."""
        retriever = self.retriever

        def encode(some: list[str], beside: list[str] | None) -> np.ndarray:
            return retriever.encode_text(some, lang, companion=beside or ())

        before = retriever.truncated
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows = encode(texts, companion)
        said = dict.fromkeys(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning))
        for each in notes:
            each += [note for note in said if note not in each]
        if retriever.truncated > before:
            for at, text in enumerate(texts):
                before = retriever.truncated
                with warnings.catch_warnings(action="ignore"):
                    encode([text], companion and [companion[at]])
                if retriever.truncated > before:
                    notes[at].append("the query is longer than the model reads: its end does not count")
        return rows

    def _best(self, rows: list[np.ndarray], k: int, where: Mapping[str, str] | None) -> tuple[np.ndarray, np.ndarray]:
        """Of queries that were encoded in one or several ways, whose scores are averaged."""
        if self.index.cosine:
            return self.index.search(sum(rows[1:], rows[0]) / len(rows), k, where=where, ann=self._ann)
        similarity = self.retriever.similarity

        def score(_: np.ndarray, block: np.ndarray) -> np.ndarray:
            return sum((similarity(some, block) for some in rows[1:]), similarity(rows[0], block)) / len(rows)

        return self.index.search(rows[0], k, where=where, score=score, ann=self._ann)

    def pictures(self, images: Sequence[Any], k: int = 10, where: Mapping[str, str] | None = None) -> list[Answer]:
        """Answers pictures with pictures that look alike.

        Args:
            images: paths, PIL pictures, or (H, W, 3) uint8 arrays; n ≥ 0.
            k, where: as for `texts`.

        Returns:
            n answers.
        """
        if isinstance(images, str | Path):
            raise TypeError("images: expected a list of pictures, not one path")
        if not len(images):
            return []
        return [
            Answer(
                str(image) if isinstance(image, str) or hasattr(image, "__fspath__") else "picture",
                None,
                True,
                [],
                hits,
            )
            for image, hits in zip(images, self._alike(self.retriever.encode_images(images), k, where), strict=True)
        ]

    def similar(self, number: int, k: int = 10, where: Mapping[str, str] | None = None) -> Answer:
        """The items that look most like an item of the index, without that one itself.

        Raises:
            DataError: no item has this number.
        """
        if k < 1:
            raise DataError(f"the best {k} items: expected 1 or more")
        item = self.index.item(number)
        (hits,) = self._alike(self.index.rows([number]), k + 1, where)
        others = [hit for hit in hits if hit.number != number][:k]
        ranked = [Hit(**(asdict(hit) | {"rank": rank})) for rank, hit in enumerate(others, 1)]
        return Answer(item.name, None, True, [], ranked)

    def _alike(self, rows: np.ndarray, k: int, where: Mapping[str, str] | None) -> list[list[Hit]]:
        score = None if self.index.cosine else self.retriever.visual_similarity
        numbers, scores = self.index.search(rows, k, where=where, score=score, ann=self._ann)
        return [self._hits(*found) for found in zip(numbers, scores, strict=True)]

    def _hits(self, numbers: np.ndarray, scores: np.ndarray) -> list[Hit]:
        found = []
        for rank, (number, score) in enumerate(zip(numbers.tolist(), scores.tolist(), strict=True), 1):
            name = self.index.named(number)
            found.append(Hit(rank, score, number, name.key, name.key, name.path))
        return found
