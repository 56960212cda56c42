"""mteb measures a retriever as `ccr-dist evaluate` does, where the metric is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mteb")

from ccr_dist.evaluate.encoding import Encoders, Encoding, EvaluatedColumns
from ccr_dist.evaluate.evaluate import results
from ccr_dist.evaluate.retrieval import Fusion
from ccr_dist.retriever.retriever import Retriever
from ccr_dist.standard.command import measure
from ccr_dist.standard.encoder import RetrieverEncoder
from ccr_dist.standard.own_tasks import own_task
from tests import retrievers, toy

LANGS = ("en", "es")

pytestmark = pytest.mark.long  # mteb and its libraries take seconds to import


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return retrievers.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return retrievers.hybrid(tmp_path_factory.mktemp("hybrid"))


def uneven(root: Path) -> Path:
    """Items with two captions and a blank one, with a blank one alone, without captions, and without a picture."""
    english: list[Any] = [[text, f"{text} again", " "] for text in toy.ENGLISH[:20]]
    spanish: list[Any] = [[text] for text in toy.SPANISH[:20]]
    pictures: list[Any] = [toy.picture(number) for number in range(20)]
    english[3], english[4], pictures[5] = ["\u200b"], None, None
    retrievers.dataset(root, {"image": pictures, "caption.en": english, "caption.es": spanish})
    return root


def ours(model: Retriever, folder: Path) -> dict[str, dict[str, float]]:
    """Metrics by language, as `ccr-dist evaluate` computes them."""
    method = model.method
    encoders = Encoders(
        lambda texts, lang, companion: method.encode_text(texts, lang, companion),
        lambda visual, mask, description: method.encode_visual(visual, mask, description or [""] * len(visual)),
        transform=method.backbone.image_transform(),
    )
    columns = EvaluatedColumns({lang: f"caption.{lang}" for lang in LANGS}, "image")
    encoded = Encoding(encoders, retrievers.Dataset.open(folder), columns).run()
    fusion = Fusion(model.record.fusion["weights"])
    found = results(encoded, score=method.scores, fusion=fusion, examples=0, replicates=0)
    return {lang: each.result.metrics for lang, each in found.items()}


def theirs(model: Retriever, folder: Path, direction: str, out: Path) -> dict[str, dict[str, float]]:
    result, file = measure(RetrieverEncoder(model), own_task(direction, folder), out)
    assert file.is_file()
    return {row["hf_subset"]: row for row in result.scores["test"]}


@pytest.mark.parametrize("model", ["clip", "hybrid"])
def test_recall_is_that_of_ccr_dist(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    retriever, folder = request.getfixturevalue(model), uneven(tmp_path / "data")
    expected = ours(retriever, folder)
    for direction in ("T2V", "V2T"):
        found = theirs(retriever, folder, direction, tmp_path / "out")
        assert found.keys() == expected.keys()
        for lang, metrics in expected.items():
            for k in (1, 5, 10):
                recall = metrics[f"{direction.lower()}_R{k}"]
                assert found[lang][f"hit_rate_at_{k}"] == round(recall / 100, 5)  # mteb keeps five digits
                if direction == "T2V":  # with one right answer a query, mteb's recall is the same
                    assert found[lang][f"recall_at_{k}"] == found[lang][f"hit_rate_at_{k}"]


def test_the_random_models_do_not_all_agree(clip: Retriever, hybrid: Retriever, tmp_path: Path) -> None:
    folder = uneven(tmp_path / "data")
    assert ours(clip, folder) != ours(hybrid, folder)
    assert ours(clip, folder)["en"] != ours(clip, folder)["es"]


def test_ties_count_against_the_method_here_and_go_by_name_in_mteb(clip: Retriever, tmp_path: Path) -> None:
    """All pictures are equal, so every score of a caption ties. Here its rank is the last one. mteb orders equal
    scores by the names of the items, backwards: item-3 is found by every caption first.
    """
    folder = tmp_path / "data"
    captions = [[text] for text in toy.ENGLISH[:4]]
    pictures = [toy.picture(0)] * 4
    retrievers.dataset(folder, {"image": pictures, "caption.en": captions, "caption.es": captions})
    assert ours(clip, folder)["en"]["t2v_R1"] == 0
    assert theirs(clip, folder, "T2V", tmp_path / "out")["en"]["hit_rate_at_1"] == 0.25
