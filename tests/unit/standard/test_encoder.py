"""A retriever as an encoder of mteb: languages, modalities, files, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mteb")

import mteb
from datasets import Dataset, Features, Image, Value, Video
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, SearchProtocol
from torch.utils.data import DataLoader

from ccr_dist.errors import ConfigError, DataError
from ccr_dist.retriever.retriever import Retriever
from ccr_dist.standard.encoder import RetrieverEncoder, Rows
from ccr_dist.standard.subsets import language_of, shortest, written
from tests import generation, retrievers, toy

XM3600 = mteb.get_task("XM3600T2IRetrieval").metadata

pytestmark = pytest.mark.long  # mteb and its libraries take seconds to import


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return retrievers.clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    return retrievers.hybrid(tmp_path_factory.mktemp("hybrid"))


def loader(values: dict[str, list[Any]], features: Features | None = None, batch: int = 2) -> DataLoader[Any]:
    def together(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
        return {name: [row[name] for row in rows] for name in rows[0]}

    return DataLoader(Dataset.from_dict(values, features=features), batch_size=batch, collate_fn=together)


def encode(model: Retriever, inputs: DataLoader[Any], subset: str = "es", about: Any = XM3600, **options: Any) -> Rows:
    return RetrieverEncoder(model).encode(inputs, task_metadata=about, hf_split="test", hf_subset=subset, **options)


def files(kind: Any, values: list[bytes | None]) -> DataLoader[Any]:
    name = "image" if kind is Image else "video"
    content = [None if value is None else {"bytes": value, "path": None} for value in values]
    ids = [f"doc-{i}" for i in range(len(values))]
    return loader({"id": ids, name: content}, Features({"id": Value("string"), name: kind()}))


def test_it_is_an_encoder_and_searches_by_mteb(clip: Retriever) -> None:
    encoder = RetrieverEncoder(clip)
    assert isinstance(encoder, EncoderProtocol) and not isinstance(encoder, SearchProtocol)
    meta = encoder.mteb_model_meta
    assert (meta.name, meta.revision, meta.languages) == ("ccr-dist/clip-s0", clip.digest, ["eng-Latn"])
    assert meta.similarity_fn_name == "cosine" and meta.n_parameters and meta.embed_dim == clip.text_width


def test_texts_are_encoded_in_the_language_of_the_subset(hybrid: Retriever) -> None:
    found = encode(hybrid, loader({"text": toy.SPANISH[:5]}), "es")
    assert found.side == "text"
    assert np.allclose(found, hybrid.encode_text(toy.SPANISH[:5], "es"), atol=1e-6)
    assert not np.allclose(found, encode(hybrid, loader({"text": toy.SPANISH[:5]}), "en"), atol=1e-3)


def test_a_language_that_the_method_cannot_encode_is_refused(hybrid: Retriever) -> None:
    with pytest.warns(UserWarning, match="not trained"), pytest.raises(ConfigError):
        encode(hybrid, loader({"text": ["a"]}), "te")


def test_a_blank_text_scores_nothing_and_is_reported(clip: Retriever, capsys: pytest.CaptureFixture[str]) -> None:
    found = encode(clip, loader({"text": ["a red spot", " \u200b", "a blue spot"]}), "en")
    assert not found[1].any() and found[0].any() and found[2].any()
    assert "XM3600T2IRetrieval, split test, subset en: 1 blank texts" in capsys.readouterr().err


def test_pictures_are_opened_by_the_rule_of_training(clip: Retriever, tmp_path: Path) -> None:
    """Files, whatever `datasets` makes of them, and pictures that are open already; equal ones are encoded once."""
    pictures = [toy.picture(0), toy.picture(1), toy.picture(0), toy.picture(2)]
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, data in zip(paths, pictures, strict=True):
        path.write_bytes(data)
    expected = clip.encode_images(paths)
    found = encode(clip, files(Image, list(pictures)))
    assert found.side == "visual" and np.allclose(found, expected, atol=1e-6)
    assert (found[0] == found[2]).all()
    by_path = loader({"image": [str(path) for path in paths]}, Features({"image": Image()}))
    assert np.allclose(encode(clip, by_path), expected, atol=1e-6)
    opened = [Dataset.from_dict({"image": [str(path)]}, features=Features({"image": Image()}))[0] for path in paths]
    assert np.allclose(encode(clip, DataLoader(opened, batch_size=4, collate_fn=_collated)), expected, atol=1e-6)


def _collated(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


@pytest.mark.parametrize(("data", "said"), [(b"GIF8 broken", "doc-1: broken picture"), (None, "doc-1")])
def test_a_broken_picture_is_named(clip: Retriever, data: bytes | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        encode(clip, files(Image, [toy.picture(0), data]))


def test_videos_are_decoded_by_this_project_not_by_torchcodec(clip: Retriever, tmp_path: Path) -> None:
    pytest.importorskip("av")
    film = generation.video()
    (tmp_path / "a.mp4").write_bytes(film)
    found = encode(clip, files(Video, [film, film]))
    assert np.allclose(found, clip.encode_videos([tmp_path / "a.mp4"] * 2), atol=1e-6)


@pytest.mark.parametrize(
    "values", [{"text": ["a"], "image": ["b"]}, {"audio": ["a"]}, {"label": ["a"]}], ids=["two", "audio", "none"]
)
def test_other_inputs_are_refused(clip: Retriever, values: dict[str, list[Any]]) -> None:
    with pytest.raises(ConfigError, match="each by itself"):
        encode(clip, loader(values))
    with pytest.raises(ConfigError, match="precision"):
        encode(clip, loader({"text": ["a"]}), precision="int8")


def test_the_score_of_several_parts_knows_texts_from_pictures(hybrid: Retriever) -> None:
    encoder = RetrieverEncoder(hybrid)
    text = encode(hybrid, loader({"text": toy.SPANISH[:3]}))
    visual = encode(hybrid, files(Image, [toy.picture(i) for i in range(4)]))
    scores = encoder.similarity(text, visual)
    assert np.array_equal(scores, hybrid.similarity(np.asarray(text), np.asarray(visual)))
    assert np.array_equal(encoder.similarity(visual[1:3], text), scores.T[1:3])
    assert encoder.mteb_model_meta.similarity_fn_name == "custom"
    for one, other in ((text, text), (torch.as_tensor(text), torch.as_tensor(visual))):
        with pytest.raises(ConfigError, match="several parts"):
            encoder.similarity(one, other)
    with pytest.raises(ConfigError, match="several parts"):
        encoder.similarity_pairwise(text, text)


def test_a_dot_product_compares_all(clip: Retriever) -> None:
    """Also what mteb has cut to tensors when it ranks anew, and row by row."""
    encoder = RetrieverEncoder(clip)
    text = encode(clip, loader({"text": toy.ENGLISH[:3]}), "en")
    visual = encode(clip, files(Image, [toy.picture(i) for i in range(3)]))
    scores = encoder.similarity(text, visual)
    assert np.allclose(encoder.similarity(torch.as_tensor(text), torch.as_tensor(visual)), scores, atol=1e-6)
    assert np.allclose(encoder.similarity_pairwise(text, visual), np.diag(scores), atol=1e-6)
    assert np.allclose(np.diag(encoder.similarity(text, text)), 1, atol=1e-6)


def metadata(**langs: list[str]) -> TaskMetadata:
    return XM3600.model_copy(update={"eval_langs": langs})


def test_languages_of_subsets() -> None:
    assert [language_of(XM3600, subset) for subset in ("de", "no", "zh", "fil", "quz", "sw")] == [
        "de", "no", "zh", "fil", "quz", "sw",
    ]  # fmt: skip
    assert language_of(metadata(one=["zho-Hant"]), "one") == "zh-Hant"
    assert language_of(metadata(one=["deu-Latn"], en=["deu-Latn"]), "en") == "de"
    with pytest.raises(ConfigError, match="de and en"):
        language_of(metadata(**{"de-en": ["deu-Latn", "eng-Latn"]}), "de-en")
    for subset, tags in XM3600.hf_subsets_to_langscripts.items():
        assert subset == "no" or [written(shortest(tag)) for tag in tags] == tags
