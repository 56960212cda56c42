"""Queries to answers: languages, notes, English on the way, pictures, methods whose score has several parts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from ccr_dist.errors import ConfigError, DataError, EngineError, Notice
from ccr_dist.generate.engines import base
from ccr_dist.search.english import english_by
from ccr_dist.search.index import Index
from ccr_dist.search.searcher import EnglishNeededError, Searcher
from tests.searching import COLOURS, WORDS, Colours, encoded, half, picture, put


def fill(folder: Path) -> Path:
    for colour in COLOURS:
        put(folder / "whole" / f"{colour}.png", encoded(picture(colour)))
        put(folder / "half" / f"{colour}.png", encoded(half(colour)))
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("searcher")
    return Index.build(folder / "i", Colours(), fill(folder / "p"), progress=False)


@pytest.fixture
def searcher(index: Index) -> Searcher:
    return Searcher(index, Colours(), translate=lambda texts, lang: [WORDS[text] for text in texts])


def names(answer) -> list[str]:
    return [hit.name for hit in answer.hits]


def test_each_query_is_answered_in_its_language(searcher: Searcher) -> None:
    red, verde = searcher.texts(["left red", "verde"], k=2)
    assert (red.query, red.lang, red.sure, red.notes) == ("left red", "en", True, [])
    assert (verde.lang, verde.sure) == ("pt", True)
    assert names(red)[0] == "half/red.png" and names(verde)[0] == "whole/green.png"
    assert [hit.rank for hit in red.hits] == [1, 2] and red.hits[0].score > red.hits[1].score
    assert Path(red.hits[0].path).is_file() and searcher.index.named(red.hits[0].number).key == "half/red.png"
    assert json.loads(json.dumps(red.to_json()))["hits"][0]["name"] == "half/red.png"


def test_the_asker_is_told_what_may_be_wrong(searcher: Searcher) -> None:
    (unsure,) = searcher.texts(["red"], k=1)
    assert not unsure.sure and "not certain; taken for en" in unsure.notes[0] and "--" not in unsure.notes[0]
    long, short = searcher.texts(["left" + " " * 60 + "red", "left blue"], lang="en", k=1)
    assert long.notes == ["the query is longer than the model reads: its end does not count"] and not short.notes

    class Warning_(Colours):
        def encode_text(self, texts, lang=None, **more):
            warnings.warn(f"not trained for {lang}", stacklevel=2)
            return super().encode_text(texts, lang, **more)

    (answer,) = Searcher(searcher.index, Warning_()).texts(["red"], lang="de", k=1)
    assert answer.notes == ["not trained for de"] and answer.sure


@pytest.mark.parametrize("category", [UserWarning, Notice])
def test_warnings_of_the_model_are_notes(index: Index, category: type[Warning]) -> None:
    class Doubtful(Colours):
        def encode_text(self, texts, lang=None, **more):
            warnings.warn(f"not trained for {lang}", category, stacklevel=2)
            return super().encode_text(texts, lang, **more)

    (answer,) = Searcher(index, Doubtful()).texts(["red"], lang="de", k=1)
    assert answer.notes == ["not trained for de"]


def test_a_tag_with_a_region_is_the_language_of_the_model(searcher: Searcher) -> None:
    (english,) = searcher.texts(["red"], lang="en-US", k=1, via_english="only")
    (answer,) = searcher.texts(["verde"], lang="pt-BR", k=1)
    assert (english.lang, english.notes, answer.lang) == ("en", [], "pt")


def test_one_text_is_no_list_of_texts(searcher: Searcher) -> None:
    for ask in (searcher.texts, searcher.pictures):
        with pytest.raises(TypeError, match="expected a list"):
            ask("red")


@pytest.mark.parametrize("number", ["1", 1.7, True, None])
def test_numbers_are_whole_numbers(index: Index, number) -> None:
    with pytest.raises(DataError, match="expected a whole number"):
        index.item(number)
    with pytest.raises(DataError, match="expected a list of whole numbers"):
        index.rows([number])
    with pytest.raises(DataError, match="expected a whole number, at least 1"):
        index.search(np.zeros((1, index.text_width), np.float32), number)


@pytest.mark.parametrize(("texts", "lang", "error", "message"), [
    (["red", " \u200b"], None, DataError, "query 2 is empty"),
    (["red"], "zz", ConfigError, "cannot encode language 'zz'"),
])  # fmt: skip
def test_what_cannot_be_asked(searcher: Searcher, texts, lang, error, message: str) -> None:
    with pytest.raises(error, match=message):
        searcher.texts(texts, lang)
    assert searcher.texts([]) == []


def test_by_the_english_alone_or_by_both(searcher: Searcher) -> None:
    retriever, translated = searcher.retriever, []

    def translate(texts, lang):
        translated.append((texts, lang))
        return ["left red" for _ in texts]

    both = Searcher(searcher.index, retriever, translate=translate)
    (only,) = both.texts(["vermelho"], "pt", k=16, via_english="only")
    (average,) = both.texts(["vermelho"], "pt", k=16, via_english="average")
    (plain,) = both.texts(["vermelho"], "pt", k=16)
    assert translated == [(["vermelho"], "pt")] * 2
    assert names(only)[0] == "half/red.png" and names(plain)[0] == "whole/red.png"
    assert only.notes == average.notes == ["in English: left red"]
    scores = [{hit.number: hit.score for hit in answer.hits} for answer in (only, plain, average)]
    for number, score in scores[2].items():
        assert score == pytest.approx((scores[0][number] + scores[1][number]) / 2, abs=1e-6)
    (english,) = both.texts(["left red"], "en", k=1, via_english="only")
    assert len(translated) == 2 and not english.notes, "English is not translated"
    with pytest.raises(ConfigError, match="no translation engine"):
        Searcher(searcher.index, retriever).texts(["vermelho"], "pt", via_english="only")


def test_a_model_that_asks_each_query_twice_weighs_both_itself(index: Index) -> None:
    class Twice(Colours):
        def asks_twice(self, lang: str) -> bool:
            return lang != "en"

        def encode_text(self, texts, lang=None, *, companion=(), **more):
            own = super().encode_text(texts, lang)
            return 0.25 * own + 0.75 * super().encode_text(companion, "en") if companion else own

    retriever = Twice()
    searcher = Searcher(index, retriever, translate=lambda texts, lang: ["left red" for _ in texts])
    (average,) = searcher.texts(["vermelho"], "pt", k=16, via_english="average")
    row = retriever.encode_text(["vermelho"], "pt", companion=["left red"])
    expected = index.search(row, 16)[1][0]
    assert [hit.score for hit in average.hits] == expected.tolist()
    with pytest.raises(EnglishNeededError, match="colours scores a query in 'pt' together with its English"):
        searcher.texts(["vermelho"], "pt")
    (only,) = searcher.texts(["vermelho"], "pt", k=16, via_english="only")
    assert [hit.score for hit in only.hits] == index.search(Colours.encode_text(retriever, ["left red"]), 16)[1][
        0
    ].tolist()


def test_pictures_and_items_as_queries(searcher: Searcher, tmp_path: Path) -> None:
    path = put(tmp_path / "q.png", encoded(half("cyan", (50, 50))))
    (answer,) = searcher.pictures([str(path)], k=3)
    assert (answer.query, answer.lang) == (str(path), None) and names(answer)[0] == "half/cyan.png"
    similar = searcher.similar(answer.hits[0].number, k=3)
    assert similar.query == "half/cyan.png" and "half/cyan.png" not in names(similar)
    assert [hit.rank for hit in similar.hits] == [1, 2, 3]
    with pytest.raises(DataError, match="no item has the number 99"):
        searcher.similar(99, 3)


def test_only_items_of_a_folder(searcher: Searcher) -> None:
    (answer,) = searcher.texts(["red"], "en", k=99, where={"folder": "half"})
    assert len(answer.hits) == len(COLOURS) and all(name.startswith("half/") for name in names(answer))


def test_a_picture_in_two_folders_is_found_in_both(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        put(tmp_path / "p" / folder / "red.png", encoded(picture("red")))
    index = Index.build(tmp_path / "i", Colours(), tmp_path / "p", progress=False)
    assert index.items == 1
    for folder in ("a", "b"):
        (answer,) = Searcher(index, Colours()).texts(["red"], "en", where={"folder": folder})
        assert len(answer.hits) == 1


class Parts(Colours):
    """Its rows have two parts, and its score is no dot product of rows."""

    cosine = False

    def similarity(self, text: np.ndarray, visual: np.ndarray) -> np.ndarray:
        return -np.abs(text[:, None] - visual[None]).sum(-1).astype(np.float32)


def test_scores_of_several_parts_are_those_of_the_method(tmp_path: Path) -> None:
    retriever = Parts("parts")
    index = Index.build(tmp_path / "i", retriever, fill(tmp_path / "p"), progress=False)
    searcher = Searcher(index, retriever, translate=lambda texts, lang: ["left red"] * len(texts))
    (answer,) = searcher.texts(["red"], "en", k=16)
    rows = retriever.encode_text(["red"])
    expected = retriever.similarity(rows, index.rows(index.numbers()))[0]
    order = np.lexsort((index.numbers(), -expected))
    assert [hit.number for hit in answer.hits] == index.numbers()[order].tolist()
    assert np.array_equal([hit.score for hit in answer.hits], expected[order])
    (average,) = searcher.texts(["vermelho"], "pt", k=16, via_english="average")
    english = retriever.similarity(retriever.encode_text(["left red"]), index.rows(index.numbers()))[0]
    assert average.hits[0].score == pytest.approx(((expected + english) / 2).max(), abs=1e-6)
    with pytest.raises(DataError, match="scores of parts have several parts"):
        index.search(rows, 1)


def test_an_index_of_another_model_is_refused(index: Index) -> None:
    with pytest.raises(ConfigError, match="rows of two models cannot be compared"):
        Searcher(index, Colours(seed="other"))


@base.translators.register("dictionary")
class Dictionary(base.Translator):
    class Options(base.EngineOptions):
        add: str = ""

    def __init__(self, source: str, target: str, options: Dictionary.Options) -> None:
        if (source, target) != ("pt", "en"):
            raise EngineError(f"dictionary has no {source} -> {target}")
        self._options = options

    def identity(self):
        return {}

    def translate(self, texts):
        return [WORDS.get(text, "") + self._options.add for text in texts]


def test_english_comes_from_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.translators, "names", lambda: ["dictionary"])  # other tests register more
    english = english_by("dictionary", {"add": "!"})
    assert english(["verde", "azul"], "pt") == ["green!", "blue!"]
    with pytest.raises(DataError, match="'cinza': the translation into English is empty"):
        english_by("dictionary", {})(["cinza"], "pt")
    with pytest.raises(EngineError, match="dictionary has no xx -> en"):
        english(["a"], "xx")
    with pytest.raises(
        EngineError, match=r"no translation engine for xx -> en is ready; name one(.|\n)*dictionary has no xx"
    ):
        english_by(None, {})(["a"], "xx")
    with pytest.raises(ConfigError, match="unknown translation engine 'dictionnary'; did you mean 'dictionary'"):
        english_by("dictionnary", {})
