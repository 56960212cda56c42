"""An index of a real (tiny, random) model: its rows are those of the retriever, however they were made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ccr_dist
from ccr_dist.cli import app
from ccr_dist.data.media.decode import decode_image
from ccr_dist.errors import ConfigError
from tests import retrievers, toy
from tests.searching import COLOURS, encoded, half, picture, put


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for colour in COLOURS:
        put(folder / "p" / f"{colour}.jpg", encoded(picture(colour, (40, 30)), "JPEG"))
        put(folder / "p" / f"half {colour}.png", encoded(half(colour, (30, 40))))
    return toy.config(folder, {"name": "clip"}, {})


def test_rows_and_answers_are_those_of_the_retriever(model: Path) -> None:
    folder, out = model.parent, model.parent / "i"
    for _ in range(2):
        result = CliRunner().invoke(app, ["index", str(model), str(folder / "p"), "--out", str(out), "--quiet"])
        assert result.exit_code == 0, result.output
    assert "16 pictures and videos can be found (nothing new; 0 encoded)" in result.stdout
    retriever, index = ccr_dist.load(model), ccr_dist.Index.open(out)
    paths = [index.item(int(number)).path for number in index.numbers()]
    rows = retriever.encode_images(paths)
    assert index.cosine and np.allclose(index.rows(index.numbers()), rows, atol=2e-6)
    query = toy.ENGLISH[0]
    lines = CliRunner().invoke(app, ["search", str(out), query, "--lang", "en", "--json", "-k", "16"]).stdout
    hits = json.loads(lines)["hits"]
    expected = retriever.similarity(retriever.encode_text([query], "en"), index.rows(index.numbers()))[0]
    assert [hit["score"] for hit in hits] == pytest.approx(np.sort(expected)[::-1].tolist(), abs=1e-6)
    assert paths[int(expected.argmax())] == hits[0]["path"]
    (same,) = ccr_dist.Searcher(index, retriever).pictures([paths[3]], k=1)
    assert same.hits[0].path == paths[3] and same.hits[0].score == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_processes_that_read_pictures_change_nothing(model: Path, tmp_path: Path) -> None:
    retriever = ccr_dist.load(model)
    index = ccr_dist.Index.build(tmp_path / "i", retriever, model.parent / "p", workers=1, progress=False)
    paths = [index.item(int(number)).path for number in index.numbers()]
    assert np.allclose(index.rows(index.numbers()), retriever.encode_images(paths), atol=2e-6)


@pytest.mark.filterwarnings("error:The given NumPy array")
def test_a_score_of_two_parts_is_searched_exactly(tmp_path: Path) -> None:
    retriever = retrievers.hybrid(tmp_path)
    pictures = [toy.picture(number) for number in range(9)]
    said: list[list[str] | None] = [[f"{toy.ENGLISH[number % len(toy.ENGLISH)]}"] for number in range(9)]
    said[4] = None  # an item without a description has an empty one
    dataset = retrievers.dataset(tmp_path / "d", {"image": pictures, "caption.en.toy": said})
    index = ccr_dist.Index.build(tmp_path / "i", retriever, dataset.root, progress=False)
    with pytest.raises(ConfigError, match=r"dtype int8: scores of .* have several parts"):
        ccr_dist.Index.build(tmp_path / "j", retriever, dataset.root, dtype="int8", progress=False)
    transform = retriever.image_transform()
    pixels = np.stack([transform(decode_image(data)).numpy() for data in pictures])
    rows = retriever.encode_pixels(pixels, description=[" ".join(each or []) for each in said])
    assert not index.cosine and np.allclose(index.rows(index.numbers()), rows, atol=1e-5)
    (answer,) = ccr_dist.Searcher(index, retriever).texts([toy.SPANISH[1]], "es", k=9)
    expected = retriever.similarity(retriever.encode_text([toy.SPANISH[1]], "es"), index.rows(index.numbers()))[0]
    order = np.lexsort((index.numbers(), -expected))
    assert [hit.number for hit in answer.hits] == order.tolist()
    assert np.allclose([hit.score for hit in answer.hits], expected[order], atol=1e-6)
    similar = ccr_dist.Searcher(index, retriever).similar(3, k=8)
    cosines = retriever.visual_similarity(rows[[3]], rows)[0]
    assert similar.hits[0].number == int(np.argsort(-cosines)[1])
