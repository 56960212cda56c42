"""The recipes of `configs/queries`: they resolve, name the columns that their commands make, and run on small random
models of the same classes.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.nn.functional import normalize
from typer.testing import CliRunner

import ccr_dist
from ccr_dist.cli import app
from ccr_dist.config import RunConfig
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.methods.map.method import Map
from ccr_dist.methods.map.options import MapOptions
from ccr_dist.methods.run_config import load_config
from ccr_dist.models.backbones.backbone import slug
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.transformers.options import TransformersConfig
from ccr_dist.retriever.retriever import Retriever
from tests import query_side, tiny, toy
from tests.dual_encoders import dual_folder, words
from tests.encoders import family_folder, write_json
from tests.nearness import apart, close

RECIPES = Path(__file__).parents[4] / "configs" / "queries"
EVERY = sorted(path for path in RECIPES.glob("*.yaml") if not path.name.startswith("_"))
E5, BGE = "multilingual-e5-base", "bge-m3"
SIGLIP = "siglip2-base-patch16-224"


def bases(path: Path) -> list[Path]:
    named = (yaml.safe_load(path.read_text()) or {}).get("base", [])
    return [(path.parent / base).resolve() for base in ([named] if isinstance(named, str) else named)]


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_a_recipe_names_the_columns_that_its_commands_make(path: Path) -> None:
    config = load_config(path)
    tower: Any = config.backbone
    named = f"{tower.model}-{tower.pretrained}" if tower.kind == "open_clip" else Path(tower.model).name
    assert config.data.visual == f"feature.{slug(named)}.image"
    assert config.data.source_feature == f"feature.{slug(named)}.caption.en"
    query: Any = config.method.model_dump()["query"]
    encoder = slug(Path(query["text"]).name)
    for lang, column in config.data.query_features.items():
        source = config.data.source if lang == "en" else config.data.targets[lang]
        assert column == f"feature.{encoder}.{source}"
    assert query["prompt"] == ("query: " if "e5" in encoder else None)
    assert "en" in config.data.query_features
    assert not config.data.query_features.keys() - config.data.queries.keys(), "what is learnt is measured"
    assert config.folder == Path("runs/queries") / f"{path.stem.replace('_', '-')}-s0"


def test_no_base_is_left_over() -> None:
    wanted, used = list(EVERY), set[Path]()
    while wanted:
        new = {base for base in bases(wanted.pop()) if base not in used}
        used |= new
        wanted += new
    assert not [path for path in RECIPES.glob("_*.yaml") if path.resolve() not in used]


def encoder(place: Path, pooling: str) -> str:
    """A random XLM-RoBERTa with the files that E5 ("mean") and BGE-M3 ("cls") have: no prompt."""
    family_folder(place, "xlm-roberta")
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    write_json(place, "modules.json", modules)
    modes = {f"pooling_mode_{mode}": False for mode in ("cls_token", "mean_tokens", "max_tokens")}
    chosen = f"pooling_mode_{'cls_token' if pooling == 'cls' else 'mean_tokens'}"
    write_json(place, "1_Pooling/config.json", {"word_embedding_dimension": 24, **modes, chosen: True})
    (place / "2_Normalize").mkdir()
    return str(place)


def siglip(place: Path, kind: str) -> str:
    listed = words("", "</s>", "</s>" if kind == "siglip" else "<pad>", lower=True)
    return dual_folder(place, kind, tokenizer=listed)


def run(name: str, folder: Path, text: str, **tower: Any) -> RunConfig:
    """The commands of a recipe's head on the toy corpus, in the columns that they name themselves.

    tower: what replaces keys of `backbone`, and `data`, `stages`: of those sections.
    """
    data = folder / "data"
    toy.corpus(data)
    columns, stages = tower.pop("data", {}), tower.pop("stages", {})
    places = {"train": [{"path": str(data / "train")}], "val": str(data / "val"), "test": str(data / "test")}
    values: dict[str, Any] = {
        "base": str(RECIPES / f"{name}.yaml"),
        "out": str(folder / "runs"),
        "backbone": tower,
        "method": {"query": {"text": text}, **({"landmarks": 16} if "kernel" in name else {})},
        "data": {**places, **columns},
        "runtime": {"workers": 0},
        **({"stages": stages} if stages else {}),
    }
    path = folder / "mine.yaml"
    head = yaml.safe_dump(values)
    path.write_text(head.replace("data:\n", "data:\n  queries: !replace {en: caption.en, es: caption.es}\n"))
    for command in (
        ["featurise", data, "--from", "image"],
        ["featurise", data / "train", "--from", "caption.en"],
        ["featurise", data / "train", "--from", "caption.en", "--encoder", "query"],
        ["train", path, "--test"],
    ):
        more = ["--config", path, "--quiet", "--workers", "0"] if command[0] == "featurise" else []
        done = CliRunner().invoke(app, [str(word) for word in (*command, *more)])
        assert done.exit_code == 0, (done.output, done.exception)
    return load_config(path)


def asked(config: RunConfig) -> Retriever:
    """Its model, moved to another place, gives languages that it was not trained on rows, and English the tower's."""
    results = json.loads((config.folder / "results" / "test.json").read_text())
    assert results["languages"].keys() == {"en", "es"}
    moved = config.folder.parent / "moved"
    shutil.move(config.folder, moved)
    model = ccr_dist.load(moved)
    texts = ["una mancha verde", "a green spot on the left"]
    rows = torch.from_numpy(model.encode_text(texts, lang="de"))
    backbone = model.method.backbone
    with torch.no_grad():
        english = normalize(backbone.encode_text(texts), dim=-1)
        close(torch.from_numpy(model.encode_text(texts, lang="en")), english, tolerance=1e-5)
        assert apart(rows, english)
    alone = torch.from_numpy(model.encode_text(texts[:1], lang="de"))
    close(alone, rows[:1], tolerance=1e-5)  # whatever company it is in: padding changes nothing
    assert rows.shape == (2, model.text_width) and model.encode_images([toy_picture()]).shape[1] == model.visual_width
    return model


def toy_picture() -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(toy.picture(3)))


def from_map(name: str, stage: str, fitted: RunConfig, folder: Path) -> Retriever:
    """Two steps of a recipe that starts from this map, on translations."""
    values = yaml.safe_load((folder / "mine.yaml").read_text().replace("!replace ", ""))
    values |= {"base": str(RECIPES / f"{name}.yaml"), "init_from": str(fitted.folder)}
    values["data"] |= {"targets": {"es": "caption.es.toy"}, "query_features": {}}
    values["runtime"] |= {"precision": "fp32"}
    path = folder / f"{stage}.yaml"
    text = yaml.safe_dump(values)
    for key in ("targets", "queries", "query_features"):  # without columns of vectors: computed in every step
        text = re.sub(f"{key}:(?=\\s)", f"{key}: !replace", text)
    path.write_text(text)
    words = [f"stages.{stage}.{key}" for key in ("steps=2", "batch=10", "lr=1e-2", "warmup=0", "validate_every=1")]
    done = CliRunner().invoke(app, ["train", str(path), *words])
    assert done.exit_code == 0, (done.output, done.exception)
    return ccr_dist.load(load_config(path).folder)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*was not trained for language")
def test_siglip_2_with_e5(tmp_path: Path) -> None:
    """The checkpoints of one size are of the class of SigLIP; the prompt is the recipe's."""
    folder = siglip(tmp_path / "google" / SIGLIP, "siglip")
    text = encoder(tmp_path / "intfloat" / E5, "mean")
    fitted = run("siglip2_e5_map", tmp_path, text, model=folder)
    trained = [
        from_map(f"siglip2_e5_{name}", stage, fitted, tmp_path)
        for name, stage in (("distill", "text"), ("dynamic", "align"))
    ]
    texts = ["una mancha verde"]
    model = asked(fitted)
    for other in trained:
        assert not np.allclose(other.encode_text(texts, "es"), model.encode_text(texts, "es"), atol=1e-4)
        assert np.allclose(other.encode_text(texts, "en"), model.encode_text(texts, "en"), atol=1e-6)
    method: Any = model.method
    with torch.no_grad():
        plain = load_query(text, "").text_features(["query: a red dog"])
        close(method.query_features(["a red dog"]), plain, tolerance=1e-5)
        assert apart(plain, load_query(text, None).text_features(["a red dog"]))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*was not trained for language")
def test_siglip_2_of_any_size_with_bge_m3(tmp_path: Path) -> None:
    folder = siglip(tmp_path / "google" / SIGLIP, "siglip2")
    text = encoder(tmp_path / "BAAI" / BGE, "cls")
    model = asked(run("siglip2_bge_m3_kernel", tmp_path, text, model=folder))
    method: Any = model.method
    assert method.query.feature_identity("text").get("prompt") in (None, "")
    train = Dataset.open(tmp_path / "data" / "train")
    assert {"feature.bge-m3.caption.en", f"feature.{SIGLIP}.image"} <= set(train.columns())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*was not trained for language")
def test_open_clip_with_e5(tmp_path: Path) -> None:
    place = tmp_path / "ViT-B-32"
    tower = tiny.tiny_clip_config(place, texts=toy.ALL_TEXTS)
    text = encoder(tmp_path / "intfloat" / E5, "mean")
    name = slug(f"{place.name}-own")
    columns = {"visual": f"feature.{name}.image", "source_feature": f"feature.{name}.caption.en"}
    asked(run("vit_b_32_e5_kernel", tmp_path, text, model=tower.model, pretrained=None, data=columns))
    few = {"align": {"steps": 2, "batch": 10, "validate_every": 1}}
    own = tmp_path / "projection"
    asked(run("vit_b_32_e5_projection", own, text, model=tower.model, pretrained=None, data=columns, stages=few))


def load_query(text: str, prompt: str | None) -> Any:
    from ccr_dist.config import QueryEncoderConfig
    from ccr_dist.models.query_encoder import build_query_encoder

    return build_query_encoder(QueryEncoderConfig(text=text, prompt=prompt))


def test_features_of_a_tower_without_a_head_are_the_shared_space(tmp_path: Path) -> None:
    """Both spaces of `map` differ in the length of the targets alone, and unit targets give one map."""
    backbone = build_backbone(TransformersConfig(kind="transformers", model=siglip(tmp_path / "tower", "siglip")))
    generator = torch.Generator().manual_seed(0)
    english = torch.randn(40, backbone.dim, generator=generator)
    assert torch.equal(backbone.project_text(english), english)

    def weight(space: str, targets: torch.Tensor) -> torch.Tensor:
        query = {"text": query_side.encoder(tmp_path)}
        method = Map(MapOptions(name="map", query=query, space=space, penalties=(0.1,)), backbone, ())
        assert method.map.out_features == backbone.dim
        rows = torch.randn(40, method.query.dim, generator=torch.Generator().manual_seed(1))
        sums = method.statistics("fit", "en", {"query": rows, "english": targets})
        [(_, found)] = method.solutions("fit", sums)
        return found["net.map.weight"]

    unit = normalize(english, dim=-1)
    close(weight("features", unit), weight("shared", english), tolerance=1e-6)
    assert apart(weight("features", english), weight("shared", english))
