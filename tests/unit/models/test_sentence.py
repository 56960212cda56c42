"""The sentence backbone: features of English texts are its items, pictures are refused, adapters find the frozen
encoder's blocks.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

from ccr_dist.errors import ConfigError
from ccr_dist.methods import registry
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.sentence.options import SentenceConfig
from tests.nearness import apart, close
from tests.small import front_end, method, unsettle
from tests.tiny import DIM as DUAL_DIM
from tests.tiny import TEXTS, tiny_dual_config, tiny_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("sentence") / "tiny-sentences")


@pytest.fixture
def backbone(folder):
    return build_backbone(SentenceConfig(kind="sentence", text=folder))


@torch.no_grad()
def test_a_text_is_the_mean_of_its_tokens_and_an_item_the_feature_of_one(backbone, folder):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    one_by_one = [model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    features = backbone.text_features(TEXTS)
    close(features, torch.stack(one_by_one))
    assert backbone.dim == features.shape[1] == 24 and torch.equal(backbone.encode_text(TEXTS), features)
    assert torch.equal(backbone.encode_image(features), features) and torch.equal(
        backbone.project_text(features), features
    )
    assert backbone.text_features([]).shape == (0, 24)


def test_pictures_are_refused_with_what_to_do(backbone):
    with pytest.raises(ConfigError, match=r"sees no pictures.*feature\.tiny-sentences\.caption\.en"):
        backbone.encode_image(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="sees no pictures"):
        backbone.image_transform()(Image.new("RGB", (8, 8)))


@torch.no_grad()
def test_the_tower_is_the_encoder_itself(backbone):
    x, mask, end = backbone.tower.embed_native(TEXTS)
    close(backbone.tower.run(x, mask, end), backbone.encode_text(TEXTS))
    seen = []
    changed = backbone.tower.run(x, mask, end, after=lambda layer, h: (seen.append(layer), h + 1)[1])
    assert seen == [0, 1] and apart(changed, backbone.encode_text(TEXTS))


def test_it_is_named_by_its_weights_not_by_its_folder(backbone, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "tiny-sentences")
    assert (
        build_backbone(SentenceConfig(kind="sentence", text=str(tmp_path / "tiny-sentences"))).identity()
        == backbone.identity()
    )
    assert str(folder) not in str(backbone.identity()) and backbone.identity()["kind"] == "sentence"
    before = backbone.feature_identity("text")
    with torch.no_grad():
        backbone.trainable_parameters("all")[0].add_(1)
    assert backbone.feature_identity("text") != before


def test_it_has_no_heads_to_train(backbone):
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(ConfigError, match="no projection heads"):
        backbone.trainable_parameters("heads")


@torch.no_grad()
def test_its_features_are_those_of_a_dual_encoder_on_the_same_text_encoder(tmp_path):
    dual = tiny_dual_config(tmp_path)
    alone = build_backbone(SentenceConfig(kind="sentence", text=dual.text))
    assert torch.equal(alone.text_features(TEXTS), build_backbone(dual).text_features(TEXTS)) and alone.dim != DUAL_DIM


def test_adapters_learn_in_it(backbone, tmp_path):
    dasd = method("dasd", backbone, front_end(tmp_path / "mbert"), rank=4)
    unsettle(dasd.net)
    found = dasd.encode_text(["un limón amarillo", "dos perros"], "es")["global"]
    assert found.shape == (2, backbone.dim)
    found.sum().backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(parameter.grad is not None for name, parameter in dasd.net.named_parameters() if ".es." in name)
    assert registry.method("dasd")
