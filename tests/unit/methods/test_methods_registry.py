"""Finding methods by name, their options and stages, which columns they ask, and what they count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

import ccr_dist.methods as folder
from ccr_dist.config import DataConfig
from ccr_dist.errors import ConfigError
from ccr_dist.methods import catalogue, registry
from ccr_dist.methods.params import count
from ccr_dist.models.frontend import TokenTable
from tests.small import LANGUAGES, backbone, batch, context, front_end, method


def test_names_and_the_nearest_one():
    assert {"clip", "translate_test", "english", "static", "dasd"} <= set(registry.names())
    with pytest.raises(
        ConfigError, match=r"run\.yaml:3: unknown method 'dsad'; did you mean 'dasd'\? known methods: clip, dasd"
    ) as error:
        registry.options("dsad", place="run.yaml:3")
    assert error.value.exit_code == 2


def test_names_options_and_stages_need_no_torch():
    program = (
        "import sys; from ccr_dist.methods import catalogue, registry\n"
        "for name in registry.names():\n"
        "    registry.options(name)(name=name).training_stages()\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_options_are_strict_and_published_values_are_the_defaults():
    options = registry.options("dasd")(name="dasd").model_dump()
    published = {
        "rank": 32,
        "mse": 1,
        "contrastive": 1,
        "scale": 100,
        "consistency": 0.1,
        "adversarial": 0.001,
        "discriminator_lr": 1e-4,
    }
    assert {key: options[key] for key in published} == published
    assert options["characteristics"] == "code" and options["keep_english"]
    assert not registry.options("static")(name="static").keep_english
    with pytest.raises(ValidationError):
        registry.options("dasd")(name="dasd", rnak=8)
    for nothing in ({"mse": 0}, {"contrastive": 0, "keep_english": False}):
        with pytest.raises(ValidationError, match="would align captions with nothing"):
            registry.options("dasd")(name="dasd", **nothing)


def test_stages_say_what_they_read():
    stages = registry.options("dasd")(name="dasd").training_stages()
    assert list(stages) == ["cla", "cma"]
    assert stages["cla"].needs == {"source_feature", "target_text"}
    assert stages["cma"].needs == {"visual", "source_feature", "target_text"}
    assert registry.options("static")(name="static").training_stages()["cma"].needs == {
        "visual",
        "target_text",
    }
    assert registry.options("clip")(name="clip").training_stages() == {}


def test_translate_test_asks_the_translated_columns():
    data = {"train": [{"path": "t"}], "val": "v", "queries": {"en": "caption.en", "es": "caption.es"}}
    asked = registry.options("translate_test")(name="translate_test")
    whole = DataConfig(**data, translated_queries={"es": "caption.en.apertium", "de": "unused"})
    assert asked.query_columns(whole) == {"en": "caption.en", "es": "caption.en.apertium"}
    assert registry.options("clip")(name="clip").query_columns(whole) == data["queries"]
    with pytest.raises(ConfigError, match=r"no column for 'es'.*'caption\.es' with `ccr-dist translate`"):
        asked.query_columns(DataConfig(**data))


def test_languages_are_checked(tmp_path):
    model, frontend = backbone(tmp_path / "b", "clip"), front_end(tmp_path / "f")
    for languages in ((), ("es", "en")):
        with pytest.raises(ConfigError, match=r"data\.targets: method static"):
            method("static", model, frontend, languages=languages)
    with pytest.raises(ConfigError, match=r"'de' is asked for.*trained for es, to"):
        method("static", model, frontend).encode_text(["Hund"], "de")


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory):
    """CLIP ViT-B's text tower (width 512, 12 layers, D = 512) beside a small image tower."""
    import json

    import open_clip

    from ccr_dist.models.backbones.build import build_backbone
    from ccr_dist.models.backbones.open_clip.options import OpenClipConfig

    folder = tmp_path_factory.mktemp("vit-b")
    model = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    }
    (folder / "text-of-vit-b.json").write_text(json.dumps(model))
    open_clip.add_model_config(folder / "text-of-vit-b.json")
    return build_backbone(OpenClipConfig(kind="open_clip", model="text-of-vit-b"))


@pytest.fixture(scope="module")
def mbert(tmp_path_factory):
    """A front end as wide as multilingual BERT's; its vocabulary is small, so the table is counted apart."""
    from tests.tiny import tiny_frontend_folder

    return {"embeddings": tiny_frontend_folder(tmp_path_factory.mktemp("mbert"), width=768)}


def test_published_counts_of_dasd(vit_b, mbert):
    parts = count(method("dasd", vit_b, mbert, languages=("ja",)))
    assert parts["adapter"] == 399_744
    assert parts["generator"] == 6_303_744 + 524_800
    assert parts["characteristics"] == 262_144
    assert parts["front_end"] == 393_728
    assert parts["trainable"] - parts["table"] == 7_884_160
    assert parts["auxiliary"] == 295_554
    with torch.device("meta"):
        table = sum(parameter.numel() for parameter in TokenTable(torch.empty(119_547, 768), "all").parameters())
    assert table == 91_812_096 and parts["trainable"] - parts["table"] + table == 99_696_256
    assert parts["total"] == parts["trainable"] + sum(parameter.numel() for parameter in vit_b.parameters())


def test_published_counts_of_static_adapters(vit_b, mbert):
    cases = [
        ({"adapter": "bottleneck"}, 3_154_944),
        ({"adapter": "bottleneck", "hidden": 32}, 399_744),
        ({"adapter": "core"}, 399_744 + 12 * 32 * 32),
        ({"adapter": "none"}, 0),
    ]
    for options, a_language in cases:
        parts = count(method("static", vit_b, mbert, **options))
        assert parts["adapter"] == a_language * len(LANGUAGES)
        assert parts["trainable"] == parts["adapter"] + parts["front_end"] + parts["table"]
    assert count(method("dasd", vit_b, mbert, use="none"))["adapter"] == len(LANGUAGES) * (399_744 + 12 * 32 * 32)


def test_counts_of_what_trains_nothing_and_of_heads(tmp_path):
    model = backbone(tmp_path, "dual")
    assert count(method("clip", model, languages=()))["trainable"] == 0
    heads = sum(parameter.numel() for parameter in model.heads.parameters())
    assert count(method("english", model, languages=()))["trainable"] == heads > 0


def test_the_docs_example_is_a_method(tmp_path, monkeypatch):
    text = (Path(__file__).parents[3] / "docs" / "extending.md").read_text()
    (tmp_path / "rotate").mkdir()
    for block in text.split("```python\n")[1:4]:
        first, _, rest = block.split("```")[0].partition("\n")
        assert first.startswith("# ccr_dist/methods/rotate/")
        (tmp_path / first.removeprefix("# ccr_dist/methods/")).write_text(rest)
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    for name in ("_options", "_methods"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    try:
        assert "rotate" in registry.names() and "ccr_dist.methods.rotate.method" not in sys.modules
        built = method("rotate", backbone(tmp_path / "b", "clip"), languages=())
        outputs = built.outputs("rotate", batch())
        built.losses("rotate", batch(), outputs, context())["contrastive"].backward()
        assert all(parameter.grad is not None for parameter in built.net.parameters())
        assert built.outputs("rotate", batch(0))["turned"].shape == (0, 16)
        assert count(built)["rotation"] == 16 * 16 + 16
        assert catalogue.summary("rotate") == "Rotate: a linear map of English features"
    finally:
        for name in [name for name in sys.modules if name.startswith("ccr_dist.methods.rotate")]:
            del sys.modules[name]
        del folder.rotate
