"""Folders of Hugging Face: which text encoders are taken from them, which are refused, and how texts are bounded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.huggingface import CHARACTERS, bounded, positions
from tests.encoders import load_sentence, write_json
from tests.nearness import close
from tests.tiny import DIM, TEXTS, tiny_clip_config, tiny_tokenizer


def test_an_encoder_saved_without_its_pooler_is_the_same_every_time(tmp_path):
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer(tmp_path)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    assert load_sentence(tmp_path).identity() == load_sentence(tmp_path).identity()


def test_a_folder_without_its_tokenisers_files_is_refused(encoder):
    """transformers makes one that knows special tokens only, and every text would be the same."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (encoder / name).unlink()
    with pytest.raises(ConfigError, match=r"tokeniser of .* (knows no pieces|could be loaded)"):
        load_sentence(encoder)


def test_the_tokeniser_of_a_larger_model_is_refused(encoder):
    tiny_tokenizer(encoder, (*TEXTS, "more words than there were before"))
    with pytest.raises(ConfigError, match=r"its tokeniser has \d+ pieces, and the encoder \d+"):
        load_sentence(encoder)


def test_weights_of_another_width_are_refused(encoder):
    config = json.loads((encoder / "config.json").read_text())
    write_json(encoder, "config.json", {**config, "hidden_size": 2 * config["hidden_size"]})
    with pytest.raises(ConfigError, match="no model could be loaded"):
        load_sentence(encoder)


def test_weights_that_are_not_there_are_refused(encoder):
    weights = load_file(encoder / "model.safetensors")
    gone = "encoder.layer.1.output.dense.weight"
    save_file(
        {name: tensor for name, tensor in weights.items() if name != gone},
        encoder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ConfigError, match=rf"lack 1 tensors of a BertModel, for example {gone}"):
        load_sentence(encoder)


@torch.no_grad()
def test_of_a_t5_the_encoder_is_taken(tmp_path):
    from transformers import AutoTokenizer, MT5Config, MT5EncoderModel, MT5Model

    tokenizer = tiny_tokenizer(tmp_path, family="xlm-roberta")
    MT5Model(
        MT5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).save_pretrained(tmp_path)
    model, batch = (
        MT5EncoderModel.from_pretrained(tmp_path).eval(),
        AutoTokenizer.from_pretrained(tmp_path)([TEXTS[0]], return_tensors="pt"),
    )
    backbone = load_sentence(tmp_path)
    close(backbone.text_features([TEXTS[0]])[0], model(**batch).last_hidden_state[0].mean(0))
    close(backbone.tower.run(*backbone.tower.embed_native(TEXTS)), backbone.text_features(TEXTS))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "blip-2"},
            r"of pictures and texts \(model_type 'blip-2'\).*a text encoder is expected.*BLIP-2 are not supported",
        ),
        ({"model_type": "siglip"}, r"model_type 'siglip'.*`kind: open_clip`"),
        (
            {"model_type": "mbart"},
            r"encoder-decoder \(model_type 'mbart'\).*of those only the encoders of t5, mt5, umt5",
        ),
        ({"model_type": "no-such-kind"}, "no model could be loaded"),
    ],
)
def test_models_that_are_no_text_encoders_are_refused(tmp_path, config, message):
    write_json(tmp_path, "config.json", config)
    with pytest.raises(ConfigError, match=message):
        load_sentence(tmp_path)


def test_positions_begin_behind_the_padding_index(tmp_path):
    from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel, RobertaConfig, RobertaModel

    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    longest = [
        positions(kind(config(max_position_embeddings=20, **sizes)))
        for kind, config in ((BertModel, BertConfig), (MPNetModel, MPNetConfig), (RobertaModel, RobertaConfig))
    ]
    assert longest == [20, 18, 18]


def test_texts_are_bounded_before_they_are_split():
    assert bounded(["a b", "  a  " * 10], 2) == (["a b", "  a  " * 10], [False, False])
    spaced, long = "a" + " " * 10_000 + "b", "x" * 10_000
    assert bounded([spaced, long, "y"], 2) == (["a b", "x" * 2 * CHARACTERS, "y"], [False, True, False])


@torch.no_grad()
def test_megabytes_of_text_are_the_beginning_of_it(tmp_path, encoder):
    """Without a bound CLIP's tokeniser would not be back: it is quadratic in the length of a word."""
    word, words = "xy" * 500_000, "two dogs " * 200_000
    for backbone in (build_backbone(tiny_clip_config(tmp_path / "clip")), load_sentence(encoder)):
        limit = CHARACTERS * (24 if backbone.dim == DIM else 64)
        assert torch.equal(backbone.text_features([word, words]), backbone.text_features([word[:limit], words[:limit]]))
        assert backbone.truncated >= 3
        x, mask, end = backbone.tower.embed_native([words])
        close(backbone.tower.run(x, mask, end), backbone.text_features([words]))
