"""Fusion: the scores of a query and of its translation, from the weights of another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ccr_dist
from ccr_dist.config import DataConfig, RunConfig
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.evaluate.retrieval import ranks
from ccr_dist.export.paths import text_paths
from ccr_dist.methods import registry
from ccr_dist.methods.build import build_method
from ccr_dist.methods.fusion.method import Fusion
from ccr_dist.methods.fusion.options import FusionOptions
from ccr_dist.methods.hybrid.method import Hybrid
from ccr_dist.methods.hybrid.options import HybridOptions
from ccr_dist.methods.run_config import load_config
from ccr_dist.models import tensorfile
from ccr_dist.retriever import model_folder
from ccr_dist.train import commands
from ccr_dist.train.borrowed import borrowed
from tests import toy
from tests.small import ENGLISH, SPANISH, backbone, front_end, method, unsettle

SMALL = {"rank": 4}


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory):
    """(DASD, its fusion with equal weights, the backbone's zero-shot method)."""
    folder = tmp_path_factory.mktemp("fused")
    model, frontend = backbone(folder / "b", "clip"), front_end(folder / "f")
    dasd = method("dasd", model, frontend, **SMALL)
    fusion = method("fusion", model, of=dasd.options)
    for each in (dasd, fusion):
        unsettle(each.net)
    return dasd, fusion, method("clip", model)


def banks(fused, texts=SPANISH) -> tuple[dict[str, Any], ...]:
    """Text banks of the three, and the gallery."""
    dasd, fusion, clip = fused
    pictures = torch.randn(len(texts), 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        asked = fusion.encode_text(texts, "es", ENGLISH[: len(texts)])
        return (
            dasd.encode_text(texts, "es"),
            asked,
            clip.encode_text(ENGLISH[: len(texts)], "en"),
            clip.encode_visual(pictures),
        )


def test_the_ends_are_the_trained_method_and_translate_test_to_the_bit(fused) -> None:
    dasd, fusion, clip = fused
    own, asked, english, gallery = banks(fused)
    item = torch.arange(len(SPANISH))
    candidates = fusion.fusions()
    assert [str(each) for each in (candidates[0], candidates[3], candidates[-1])] == [
        "1 global",
        "0.7 global + 0.3 translation",
        "1 translation",
    ]
    for fusing, bank, other in ((candidates[0], own, dasd), (candidates[-1], english, clip)):
        found = ranks(asked, gallery, item, item, fusion.scores, fusion=fusing)
        expected = ranks(bank, gallery, item, item, other.scores)
        for name in ("text_to_visual", "visual_to_text", "visual_to_text_items"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(asked["translation"], english["global"]) and torch.equal(asked["global"], own["global"])


def test_between_them_it_is_a_mean_of_cosines(fused) -> None:
    own, asked, english, gallery = banks(fused)

    def cosines(bank) -> np.ndarray:
        x, y = (each["global"].double().numpy() for each in (bank, gallery))
        x, y = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (x, y))
        return x @ y.T

    parts = fused[1].scores(
        {name: part.double() for name, part in asked.items()}, {"global": gallery["global"].double()}
    )
    for fusing, weight in ((fused[1].fusions()[3], 0.3), (fused[1].fusions()[8], 0.8)):
        expected = (1 - weight) * cosines(own) + weight * cosines(english)
        np.testing.assert_allclose(fusing.fused(parts).numpy(), expected, rtol=0, atol=1e-7)


def test_english_is_its_own_translation_and_others_need_one(fused) -> None:
    _, fusion, clip = fused
    found = fusion.encode_text(ENGLISH, "en")
    assert torch.equal(found["global"], found["translation"])
    assert torch.equal(found["global"], clip.encode_text(ENGLISH, "en")["global"])
    assert {len(part) for part in fusion.encode_text([], "es", []).values()} == {0}
    with pytest.raises(ConfigError, match="0 translations for 1 queries in 'es'"):
        fusion.encode_text(SPANISH[:1], "es")


def test_the_candidates_of_a_score_of_parts_are_tried_with_every_weight() -> None:
    hybrid = HybridOptions(name="hybrid", alpha=(1.0, 0.8))
    inner: Any = SimpleNamespace(options=hybrid, text_parts=("global",))
    inner.fusions = lambda: Hybrid.fusions(inner)
    whole: Any = SimpleNamespace(inner=inner, options=FusionOptions(name="fusion", of=hybrid, weights=(0, 0.5)))
    assert [str(each) for each in Fusion.fusions(whole)] == [
        "1 global",
        "0.5 global + 0.5 translation",
        "0.8 global + 0.2 local",
        "0.4 global + 0.1 local + 0.4 translation + 0.1 translation local",
    ]


def test_options_are_checked_with_their_places(tmp_path: Path) -> None:
    path = toy.config(tmp_path, {"name": "fusion", "of": {"name": "dasd", "rnak": 4}}, {})
    with pytest.raises(ConfigError, match=r"fusion\.yaml:\d+: unknown key 'method\.of\.rnak'; did you mean 'rank'"):
        load_config(path)
    for of, message in (
        ("{name: dsad}", "unknown method 'dsad'; did you mean 'dasd'"),
        ("{rank: 3}", "'method.of' needs a name"),
        ("{name: fusion}", "method fusion asks translations already"),
        ("{name: translate_test}", "method translate_test asks translations already"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(path, [f"method.of={of}"])
    with pytest.raises(ConfigError, match=r"method\.weights.*at most 1"):
        load_config(path, ["method.of={name: clip}", "method.weights=[0, 2]"])
    scaled: Any = load_config(path, ["method.of={name: dasd, scale: 1e1}"]).method.learner()
    assert scaled.scale == 10


def test_every_language_needs_translations() -> None:
    data = {"train": [{"path": "t"}], "val": "v", "queries": {"en": "caption.en", "es": "caption.es"}}
    options = registry.options("fusion")(name="fusion")
    whole = DataConfig(**data, translated_queries={"es": "caption.en.apertium", "de": "unused"})
    assert options.query_columns(whole) == data["queries"] and options.companions(whole) == {
        "es": "caption.en.apertium"
    }
    with pytest.raises(ConfigError, match=r"no column for 'es'.*'caption\.es' with `ccr-dist translate`"):
        options.companions(DataConfig(**data))


def test_the_demos_fusion_names_the_method_of_the_run_that_it_takes() -> None:
    demo = Path(__file__).parents[3] / "configs" / "demo"
    fusion, source = load_config(demo / "fusion.yaml"), load_config(demo / "kernel.yaml")
    assert fusion.init_from == str(source.folder)
    assert (fusion.method.learner(), fusion.backbone) == (source.method, source.backbone)


# A run, and its fusion.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    """Folder, and the config of a complete DASD run in it."""
    folder = tmp_path_factory.mktemp("fusion")
    config = load_config(toy.dasd(folder, cla=3, cma=2))
    assert commands.train([config], test=True, world=None) == 0
    return folder, config


def fusion_of(corpus: tuple[Path, RunConfig], out: Path, *overrides: str, **sections: Any) -> RunConfig:
    folder, config = corpus
    of = config.method.model_dump(mode="json")
    sections = {"init_from": str(config.folder), "out": str(out), **sections}
    return load_config(toy.config(folder, {"name": "fusion", "of": of}, {}, **sections), overrides)


def evaluate(config: RunConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    assert commands.evaluate([config], split="test", again=False, world=None) == 0
    results = config.folder / "results"
    return json.loads((results / "test.json").read_text()), dict(np.load(results / "test.ranks.npz"))


def test_a_run_is_measured_with_its_translations(corpus, tmp_path: Path) -> None:
    folder, config = corpus
    dasd = dict(np.load(config.folder / "results/test.ranks.npz"))
    _, translated = evaluate(load_config(toy.config(folder, {"name": "translate_test"}, {}, out=str(tmp_path))))
    for weight, expected in ((0, dasd), (1, translated)):
        out = tmp_path / str(weight)
        found, arrays = evaluate(fusion_of(corpus, out, f"method.weights=[{weight}]"))
        assert arrays.keys() == expected.keys()
        assert all(np.array_equal(arrays[name], expected[name]) for name in arrays)
        assert found["selection"] is None
    whole = fusion_of(corpus, tmp_path, "data.targets={pt: caption.es.toy}")  # it knows what it has learnt
    result, _ = evaluate(whole)
    weights = model_folder.read(config.folder / "model").files["model.safetensors"]
    assert result["meta"]["weights"] == weights and result["selection"].startswith("mR on ")
    record = model_folder.read(whole.folder / "model")
    assert record.facts["score"] == result["meta"]["score"] and record.languages == ["en", "es"]
    assert record.facts["weights"] == weights
    assert {each["split"] for each in record.facts["data"]} == {"train", "val", "test"}


def test_its_model_folder_asks_queries_twice_wherever_it_lies(corpus, tmp_path: Path) -> None:
    folder, config = corpus
    whole = fusion_of(corpus, tmp_path / "out")
    evaluate(whole)
    shutil.copytree(whole.folder / "model", tmp_path / "copy")
    gone = [folder / "clip", folder / "mbert", config.folder]
    for path in gone:
        path.rename(path.with_name(f"{path.name}.away"))
    try:
        retriever = ccr_dist.load(tmp_path / "copy")
        with pytest.raises(ConfigError, match=r"together with its English translation; give it as `companion`"):
            retriever.encode_text(toy.SPANISH[:2], "es")
        row = retriever.encode_text(toy.SPANISH[:2], "es", companion=toy.ENGLISH[:2])
        half = row.shape[1] // 2
        assert np.array_equal(row[:, half:], retriever.encode_text(toy.ENGLISH[:2], "en")[:, :half])
        assert retriever.asks_twice("es") and not retriever.asks_twice("en")
        with pytest.raises(ConfigError, match="export the dasd model that it was made of"):
            text_paths(retriever.method, ["es"])
    finally:
        for path in gone:
            path.with_name(f"{path.name}.away").rename(path)
    own = ccr_dist.load(config.folder).encode_text(toy.SPANISH[:2], "es")
    unit = row[:, :half] / np.linalg.norm(row[:, :half], axis=1, keepdims=True)
    np.testing.assert_allclose(unit, own, rtol=0, atol=1e-6)


def test_other_weights_are_measured_again(corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = corpus
    other = load_config(toy.dasd(folder, cla=1, cma=1, out=str(tmp_path)), ["seed=1"])
    assert commands.train([other], test=False, world=None) == 0
    first, _ = evaluate(fusion_of(corpus, tmp_path))
    again, _ = evaluate(fusion_of(corpus, tmp_path))
    assert again["test_reads"] == 1
    changed, _ = evaluate(fusion_of(corpus, tmp_path, init_from=str(other.folder)))
    assert changed["test_reads"] == 2 and changed["meta"]["weights"] != first["meta"]["weights"]
    assert "measured with another weights" in capsys.readouterr().out
    kept = ccr_dist.load(tmp_path / "fusion-s0")
    assert kept.facts["weights"] == changed["meta"]["weights"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["init_from=null"], r"init_from is not set.*takes the weights of a trained 'dasd'.*init_from=runs/NAME-s0"),
        (["init_from=nowhere"], "nowhere: there is no model folder.*train it first"),
        (["method.of.rank=8"], r"(?s)holds another model.*method\.rank: there 4, asked 8"),
        (["method.of={name: static}"], r"say:\n  method\.name: there 'dasd', asked 'static'\nGive"),
        (["data.queries={en: caption.en}"], "no captions in another language than English"),
        (["method.of={name: clip}"], "method 'clip' has no weights of its own"),
        (["backbone={kind: dual, image: efficientnet-lite0, text: minilm}"], "backbone.kind: there 'open_clip', asked"),
    ],
)
def test_weights_of_another_model_are_refused(corpus, tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(fusion_of(corpus, tmp_path, *changes))
    assert not (tmp_path / "fusion-s0/results/test.json").exists()


def test_base_weights_of_another_version_are_refused(corpus, tmp_path: Path, monkeypatch) -> None:
    _, config = corpus
    record = model_folder.read(config.folder / "model")
    monkeypatch.setattr(model_folder, "read", lambda path: model_folder.Record(**{**vars(record), "base": "0" * 64}))
    with pytest.raises(CheckpointError, match="other weights than those that the model was made with"):
        evaluate(fusion_of(corpus, tmp_path))


def test_a_backbone_with_other_weights_than_the_models_is_refused(corpus, tmp_path: Path) -> None:
    source = borrowed(fusion_of(corpus, tmp_path))
    assert source is not None
    tensors = {f"backbone.{name}": tensor for name, tensor in source.method().backbone.state_dict().items()}
    name = next(name for name in tensors if tensors[name].is_floating_point())
    tensorfile.write(tmp_path / "same.safetensors", {name: tensors[name]})
    tensorfile.write(tmp_path / "other.safetensors", {name: tensors[name] + 1})
    same = borrowed(fusion_of(corpus, tmp_path, f"backbone.weights={tmp_path}/same.safetensors"))
    assert same is not None and same.method().name == "fusion"
    other = borrowed(fusion_of(corpus, tmp_path, f"backbone.weights={tmp_path}/other.safetensors"))
    with pytest.raises(ConfigError, match=r"backbone\.weights: .*holds other weights"):
        assert other is not None and other.method()


def test_without_a_trained_method_it_is_the_backbone_with_translations(corpus, tmp_path: Path) -> None:
    folder, _ = corpus
    config = load_config(toy.config(folder, {"name": "fusion"}, {}, out=str(tmp_path)))
    method: Any = build_method(config)
    assert borrowed(config) is None and method.inner.name == "clip"
    result, _ = evaluate(config)
    assert result["selection"].startswith("mR on ")
