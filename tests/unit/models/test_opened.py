"""Every family of text encoders that is opened computes, block by block, what its own class computes."""

from __future__ import annotations

import json

import pytest
import torch

from ccr_dist.errors import ConfigError
from ccr_dist.methods.lora.network import LoraBank
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.open_clip.options import OpenClipConfig
from ccr_dist.models.opened import FAMILIES as OPENED
from ccr_dist.models.packing import Packing
from tests.encoders import FAMILIES, LAYERS, WIDTH, family_folder, family_tokenizer, load_sentence
from tests.nearness import apart, close
from tests.small import front_end, method, unsettle
from tests.tiny import DIM, IMAGE_SIZE, TEXTS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: family_folder(tmp_path_factory.mktemp(family) / family, family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def backbone(folders, family):
    return load_sentence(folders[family])


def alone(folder, texts):
    """The encoder's own class on one text after another: the mean of its states."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    return torch.stack([model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts])


def test_all_are_tested():
    elsewhere = {"chinese_clip_text_model", "altclip_text_model"}  # test_transformers.py
    assert set(OPENED) == {*FAMILIES, "camembert"} | elsewhere  # CamemBERT is RoBERTa by another name


@torch.no_grad()
def test_the_encoder_and_its_blocks_in_a_row_are_what_the_library_computes(backbone, folders, family):
    expected = alone(folders[family], TEXTS)
    assert torch.pdist(torch.nn.functional.normalize(expected, dim=-1)).min() > 1e-3  # else agreeing shows nothing
    close(backbone.encode_text(TEXTS), expected)
    tower = backbone.tower
    assert (tower.width, tower.layers, tower.dim) == (WIDTH, LAYERS, WIDTH)
    seen = []
    x, mask, end = tower.embed_native(TEXTS)
    close(tower.run(x, mask, end, after=lambda layer, h: (seen.append(layer), h)[1]), expected)
    assert seen == list(range(LAYERS))
    assert apart(tower.run(x, mask, end, after=lambda layer, h: h + torch.linspace(-1, 1, WIDTH)), expected)
    assert tower.run(x[:0], mask[:0], end[:0]).shape == (0, WIDTH)


@torch.no_grad()
def test_padding_and_company_change_nothing(backbone):
    tower = backbone.tower
    x, mask, end = tower.embed_native(TEXTS)
    full = tower.run(x, mask, end)
    close(
        tower.run(torch.nn.functional.pad(x, (0, 0, 0, 5), value=7.0), torch.nn.functional.pad(mask, (0, 5)), end), full
    )
    close(torch.cat([backbone.encode_text([text]) for text in TEXTS]), full)
    packed = Packing((end + 1).tolist(), tower.context_length)
    assert tower.packs and len(packed.mask) < len(TEXTS)
    close(tower.run(x, mask, end, rows=packed), full)
    everything = torch.cat([tower.sentence(x[i : i + 1, : end[i] + 1], mask[i : i + 1, : end[i] + 1], end[i : i + 1])
                            for i in range(len(TEXTS))])  # fmt: skip
    close(tower.sentence(x, mask, end), everything)


@torch.no_grad()
def test_eager_attention_gives_the_same(backbone):
    tower = backbone.tower
    x, mask, end = tower.embed_native(TEXTS)
    usual = tower.run(x, mask, end), tower.run(x, mask, end, rows=Packing((end + 1).tolist(), tower.context_length))
    tower.parts.config._attn_implementation = "eager"
    close(tower.run(x, mask, end), usual[0])
    close(tower.run(x, mask, end, rows=Packing((end + 1).tolist(), tower.context_length)), usual[1])


@torch.no_grad()
def test_half_precision(backbone):
    tower, whole = backbone.tower, backbone.encode_text(TEXTS)
    with torch.autocast("cpu", torch.bfloat16):
        x, mask, end = tower.embed_native(TEXTS)
        alone = tower.run(x, mask, end)
        packed = tower.run(x, mask, end, rows=Packing((end + 1).tolist(), tower.context_length))
    for half in (alone, packed):
        assert torch.nn.functional.cosine_similarity(half.float(), whole).min() > 0.99


@torch.no_grad()
def test_what_stands_around_a_text(backbone, family):
    tower, rows = backbone.tower, backbone.tower.token_table()
    pieces = backbone.tokenizer.convert_tokens_to_ids
    start, end = {
        "bert": ("[CLS]", "[SEP]"), "distilbert": ("[CLS]", "[SEP]"), "t5": (None, "</s>"), "mt5": (None, "</s>"),
        "m2m_100": ("__en__", "</s>"),
    }.get(family, ("<s>", "</s>"))  # fmt: skip
    special = tower.special
    assert torch.equal(special["end"], rows[pieces(end)])
    assert special["start"] is None if start is None else torch.equal(special["start"], rows[pieces(start)])
    x, _, place = tower.embed_native(TEXTS)
    assert torch.equal(x[torch.arange(len(TEXTS)), place], special["end"].expand(len(TEXTS), -1))


def test_sines_of_another_machine_are_no_other_model(folders):
    backbone, other = load_sentence(folders["m2m_100"]), load_sentence(folders["m2m_100"])
    other.text.embed_positions.weights.add_(1e-7)
    assert backbone.computed <= dict(backbone.named_buffers()).keys()
    assert other.identity() == backbone.identity()
    other.text.layer_norm.weight.data.add_(1)
    other._digests.clear()
    assert other.identity() != backbone.identity()


def test_gradients_survive_checkpointing(backbone):
    backbone.trainable_parameters("all")
    tower = backbone.tower

    def gradients(checkpoint):
        backbone.zero_grad()
        tower.run(*tower.embed_native(TEXTS), checkpoint=checkpoint).square().sum().backward()
        return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys() and all(any(f".{layer}." in name for name in plain) for layer in range(LAYERS))
    for name, gradient in plain.items():
        close(again[name], gradient)


@torch.no_grad()
def test_low_rank_matrices_find_its_projections(backbone, family):
    def make():
        sizes = {"rank": 2, "alpha": 4, "dropout": 0.0}
        return LoraBank(backbone.tower, ["es"], **sizes, targets="qkvo", name=backbone.name)

    if family == "modernbert":  # one projection for query, key and value together
        with pytest.raises(ConfigError, match="a projection each for query, key, value and output"):
            make()
        return
    bank, tower = make(), backbone.tower
    x, mask, end = tower.embed_native(TEXTS)
    close(tower.run(x, mask, end, blocks=bank.variants("es")), tower.run(x, mask, end))
    unsettle(bank)
    assert apart(tower.run(x, mask, end, blocks=bank.variants("es")), tower.run(x, mask, end))


def test_adapters_learn_in_it(backbone, tmp_path):
    dasd = method("dasd", backbone, front_end(tmp_path / "mbert", pad="packed"), rank=4)
    unsettle(dasd.net)
    found = dasd.encode_text(["un limón amarillo", "dos perros"], "es")["global"]
    assert found.shape == (2, backbone.dim)
    found.sum().backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(parameter.grad is not None for name, parameter in dasd.net.named_parameters() if ".es." in name)


@torch.no_grad()
@pytest.mark.parametrize(("family", "pooler"), [("mt5", "mean_pooler"), ("m2m_100", "cls_pooler"), ("roberta", None)])
def test_such_a_tower_inside_open_clip(folders, tmp_path, family, pooler):
    family_tokenizer(tmp_path, family)
    text = {"hf_model_name": folders[family], "hf_tokenizer_name": folders[family], "hf_proj_type": "linear"}
    vision = {"image_size": IMAGE_SIZE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    model = {"embed_dim": DIM, "vision_cfg": vision, "custom_text": True}
    model["text_cfg"] = {**text, "hf_pooler_type": pooler, "context_length": 32}
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model, "preprocess_cfg": {"size": IMAGE_SIZE}})
    )
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    made = open_clip.create_model(f"local-dir:{tmp_path}", require_pretrained=False)
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    save_file(state, str(tmp_path / "open_clip_model.safetensors"))
    backbone = build_backbone(OpenClipConfig(kind="open_clip", model=f"local-dir:{tmp_path}"))
    expected = backbone.encode_text(TEXTS)
    assert torch.pdist(torch.nn.functional.normalize(expected, dim=-1)).min() > 1e-3
    close(backbone.tower.run(*backbone.tower.embed_native(TEXTS)), expected)
    close(torch.cat([backbone.encode_text([text]) for text in TEXTS]), expected)
