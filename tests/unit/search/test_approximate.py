"""Approximate search: its recall is stated and kept, its scores are exact, and it belongs to one state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("faiss")
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.search.index import Index
from ccr_dist.search.searcher import Searcher
from ccr_dist.search.update import JobSettings
from tests.searching import Colours, encoded, picture, put

QUIET = JobSettings(progress=False)
WIDTH = Colours.visual_width


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Colours]:
    """An index of 400 features in 20 heaps."""
    from ccr_dist.data.table.dataset import create_column, create_dataset

    folder, dice, retriever = tmp_path_factory.mktemp("ann"), np.random.default_rng(0), Colours()
    retriever.config.data.visual = "feature.x"
    data = create_dataset(folder / "d", name="d", split="test", keys=[[f"k{i}" for i in range(400)]])
    heaps = np.repeat(dice.standard_normal((20, WIDTH)), 20, axis=0)
    rows = heaps + 0.3 * dice.standard_normal((400, WIDTH))
    create_column(data, "feature.x", kind="matrix", extension="npy", plan={}, provenance={}).commit_matrix(0, rows)
    Index.build(folder / "i", retriever, folder / "d", ann=True, progress=False)
    return folder, retriever


def test_the_stated_recall_is_that_of_its_answers(built: tuple[Path, Colours]) -> None:
    folder, retriever = built
    index = Index.open(folder / "i")
    stated = index.make_ann()  # it is there
    assert stated.items == 400 and 1 < stated.lists <= 10 and stated.probes < stated.lists and stated.recall >= 0.98
    queries = index.rows(index.numbers())
    exact, scores = index.search(queries, 10)
    found, values = index.search(queries, 10, ann=True)
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]) > 0.95
    known = {(q, n): s for q in range(400) for n, s in zip(exact[q].tolist(), scores[q].tolist(), strict=True)}
    same = [(s, known[q, n]) for q in range(400) for n, s in zip(found[q].tolist(), values[q].tolist(), strict=True)
            if (q, n) in known]  # fmt: skip
    assert len(same) > 3800 and all(a == b for a, b in same), "the score of an item is not its exact one"
    (answer,) = Searcher(index, retriever, ann=True).texts(["red"], "en", k=3)
    assert len(answer.hits) == 3


def test_it_belongs_to_one_state_and_is_made_anew_by_updates(tmp_path: Path) -> None:
    retriever, dice = Colours(), np.random.default_rng(1)
    for number in range(30):
        put(tmp_path / "p" / f"{number}.png", encoded(Image.fromarray(dice.integers(0, 255, (4, 4, 3), np.uint8))))
    index = Index.build(tmp_path / "i", retriever, tmp_path / "p", progress=False)
    rows = retriever.encode_text(["red"])
    with pytest.raises(ConfigError, match=r"was not made for the newest state of this index: .*--ann"):
        index.search(rows, 1, ann=True)
    done = index.update(retriever, [str(tmp_path / "p")], ann=True, settings=QUIET)
    assert done.ann is not None and done.ann["items"] == 30 and done.ann["recall"] == 1
    put(tmp_path / "p" / "new.png", encoded(picture("red")))
    (tmp_path / "p" / "7.png").unlink()
    done = index.update(retriever, [str(tmp_path / "p")], settings=QUIET)
    assert done.ann is not None and done.ann["items"] == 30
    numbers, scores = index.search(rows, 50, ann=True)
    assert np.array_equal(numbers, index.search(rows, 50)[0]) and scores[0, 0] == pytest.approx(1)
    assert sorted(path.name for path in (tmp_path / "i" / "ann").iterdir()) == ["000002.faiss", "000002.json"]
    with pytest.raises(ConfigError, match="approximate search knows no labels"):
        index.search(rows, 1, where={"folder": ""}, ann=True)
    path = tmp_path / "i" / "ann" / "000002.faiss"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match="missing or damaged; remove"):
        Index.open(tmp_path / "i").search(rows, 1, ann=True)


def test_scores_of_several_parts_have_none(tmp_path: Path) -> None:
    class Parts(Colours):
        cosine = False

    put(tmp_path / "p" / "a.png", encoded(picture("red")))
    with pytest.raises(ConfigError, match="several parts, which faiss cannot search"):
        Index.build(tmp_path / "j", retriever := Parts(), tmp_path / "p", ann=True, progress=False)
    assert retriever.encoded == 0, "it is said before the work"
    with pytest.raises(ConfigError, match="several parts, which faiss cannot search"):
        Index.build(tmp_path / "i", Parts(), tmp_path / "p", ann=True, progress=False)
