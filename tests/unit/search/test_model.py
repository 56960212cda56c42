"""An index of a real (tiny, random) model: its rows are those of the retriever, however they were made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import ccr_dist
from ccr_dist.cli import app
from tests import toy
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
