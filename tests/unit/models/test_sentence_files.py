"""Folders of sentence-transformers as its versions write them: the same features as those of the library's own
arithmetic, written down again here, or a refusal that names what is not known.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.dual.options import DualConfig
from ccr_dist.models.backbones.sentence.options import SentenceConfig
from tests.encoders import load_sentence, write_json
from tests.nearness import close
from tests.tiny import DIM, TEXTS, tiny_dual_config

NEW = (
    "sentence_transformers.base.modules.transformer.Transformer",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
)
OLD = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
DENSE, NORMALIZE = "sentence_transformers.base.modules.dense.Dense", "sentence_transformers.models.Normalize"
WIDTH = 24


def modules(
    folder: Path, pooling: dict[str, Any], *more: tuple[str, str], kinds: tuple[str, ...] = NEW, encoder: str = ""
) -> None:
    listed = [(kinds[0], encoder), (kinds[1], "1_Pooling"), *more]
    write_json(
        folder,
        "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(listed)],
    )
    write_json(folder, "1_Pooling/config.json", pooling)


def dense(folder: Path, path: str, wide: int, out: int, activation: str, bias: bool = True, **more: Any) -> nn.Linear:
    linear = nn.Linear(wide, out, bias=bias)
    config = {"in_features": wide, "out_features": out, "bias": bias, "activation_function": activation}
    write_json(
        folder,
        f"{path}/config.json",
        {**config, "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding", **more},
    )
    save_file(
        {f"linear.{name}": tensor.detach().clone() for name, tensor in linear.named_parameters()},
        folder / path / "model.safetensors",
    )
    return linear


@torch.no_grad()
def states(folder: Path, text: str) -> Tensor:
    """(T, H): one text by itself, without padding."""
    from transformers import AutoModel, AutoTokenizer

    return (
        AutoModel.from_pretrained(folder)
        .eval()(**AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt"))
        .last_hidden_state[0]
    )


POOLED = {
    "cls": lambda h: h[0],
    "max": lambda h: h.max(0).values,
    "mean": lambda h: h.mean(0),
    "mean_sqrt_len_tokens": lambda h: h.sum(0) / len(h) ** 0.5,
    "weightedmean": lambda h: sum((t + 1) * h[t] for t in range(len(h))) / sum(range(1, len(h) + 1)),
    "lasttoken": lambda h: h[-1],
}


@torch.no_grad()
@pytest.mark.parametrize("mode", POOLED)
def test_pooling_as_the_folder_says(encoder, mode):
    modules(encoder, {"embedding_dimension": WIDTH, "pooling_mode": mode, "include_prompt": True})
    write_json(
        encoder,
        "sentence_bert_config.json",
        {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"},
    )
    backbone = load_sentence(encoder)
    expected = torch.stack([POOLED[mode](states(encoder, text)) for text in TEXTS])
    close(backbone.text_features(TEXTS), expected)
    x, mask, end = backbone.tower.embed_native(TEXTS)
    close(backbone.tower.run(x, mask, end), expected)
    assert ("sentence" in backbone.description()) == (mode != "mean"), (
        "the mean is what columns of before were made with"
    )


@torch.no_grad()
def test_folders_of_before_name_their_pooling_by_flags_and_may_join_several(encoder):
    flags = {
        "word_embedding_dimension": WIDTH,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    }
    modules(encoder, flags, (NORMALIZE, "2_Normalize"), kinds=OLD)
    write_json(encoder, "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    backbone = load_sentence(encoder)
    assert backbone.dim == 2 * WIDTH and backbone.context_length == 9
    assert backbone.feature_identity("text") != load_mean(encoder).feature_identity("text")
    short = TEXTS[0]
    h = states(encoder, short)
    close(backbone.text_features([short])[0], torch.cat([h[0], h.mean(0)]))


def load_mean(folder: Path):
    (folder / "modules.json").unlink()
    return load_sentence(folder)


@torch.no_grad()
def test_dense_layers_their_activations_and_a_prompt(encoder):
    modules(
        encoder,
        {"pooling_mode": "mean"},
        (DENSE, "2_Dense"),
        (NORMALIZE, ""),
        (DENSE, "3_Dense"),
        (NORMALIZE, "4_Normalize"),
    )
    first = dense(encoder, "2_Dense", WIDTH, 10, "torch.nn.modules.activation.Tanh")
    second = dense(encoder, "3_Dense", 10, 12, "torch.nn.modules.linear.Identity", bias=False)
    write_json(
        encoder,
        "config_sentence_transformers.json",
        {"prompts": {"query": "two dogs ", "document": ""}, "default_prompt_name": "query"},
    )
    backbone = load_sentence(encoder)
    means = torch.stack([states(encoder, f"two dogs {text}").mean(0) for text in TEXTS])
    features = backbone.text_features(TEXTS)
    close(features, second(nn.functional.normalize(torch.tanh(first(means)), dim=-1)))
    assert (
        backbone.dim == 12
        and backbone.text_features([]).shape == (0, 12)
        and ((features.norm(dim=-1) - 1).abs() > 1e-2).any()
    )
    assert backbone.description()["sentence"] == {
        "pooling": ["mean"],
        "layers": ["dense", "normalize", "dense"],
        "prompt": "two dogs ",
    }
    asked = build_backbone(SentenceConfig(kind="sentence", text=str(encoder), prompt="a lemon "))
    means = torch.stack([states(encoder, f"a lemon {text}").mean(0) for text in TEXTS])
    close(asked.text_features(TEXTS), second(nn.functional.normalize(torch.tanh(first(means)), dim=-1)))
    assert asked.description()["sentence"]["prompt"] == "a lemon "
    same = build_backbone(SentenceConfig(kind="sentence", text=str(encoder), prompt="two dogs "))
    assert same.identity() == load_sentence(encoder).identity()
    weights = load_file(encoder / "2_Dense/model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, encoder / "2_Dense/model.safetensors")
    assert load_sentence(encoder).feature_identity("text")["digest"] != backbone.feature_identity("text")["digest"]


@torch.no_grad()
def test_a_prompt_of_ones_own_for_a_folder_that_has_none(encoder):
    plain, asked = load_sentence(encoder), SentenceConfig(kind="sentence", text=str(encoder), prompt="two dogs ")
    close(build_backbone(asked).text_features(TEXTS), plain.text_features([f"two dogs {text}" for text in TEXTS]))
    assert build_backbone(asked).feature_identity("text") != plain.feature_identity("text")
    none = build_backbone(SentenceConfig(kind="sentence", text=str(encoder), prompt=""))
    assert none.identity() == plain.identity() and "sentence" not in none.description()


def test_a_prompt_that_is_not_pooled_is_refused_whoever_gives_it(encoder):
    modules(encoder, {"pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(ConfigError, match="include_prompt"):
        build_backbone(SentenceConfig(kind="sentence", text=str(encoder), prompt="two dogs "))
    write_json(encoder, "config_sentence_transformers.json", {"prompts": {"q": "ask: "}, "default_prompt_name": "q"})
    assert build_backbone(SentenceConfig(kind="sentence", text=str(encoder), prompt="")).recipe.prompt == ""


@torch.no_grad()
def test_a_dual_encoder_stands_on_such_a_folder(encoder, tmp_path):
    image = tiny_dual_config(tmp_path / "dual").image
    modules(encoder, {"pooling_mode": "cls"}, (DENSE, "2_Dense"))
    dense(encoder, "2_Dense", WIDTH, 10, "torch.nn.modules.activation.ReLU")
    backbone = build_backbone(DualConfig(kind="dual", image=image, text=str(encoder), dim=DIM, hidden=32))
    assert backbone.encode_text(TEXTS).shape == (len(TEXTS), DIM)
    parts = {backbone.part_of(name) for name, _ in backbone.named_parameters()}
    assert parts == {"image", "text", "heads"} and backbone.part_of("text_head.layers.0.0.weight") == "text"


@torch.no_grad()
def test_the_encoder_may_lie_in_a_folder_of_its_own_and_texts_be_lowered(bert, tmp_path):
    folder = tmp_path / "st"
    shutil.copytree(bert, folder / "0_Transformer")
    modules(folder, {"pooling_mode_mean_tokens": True}, kinds=OLD, encoder="0_Transformer")
    write_json(folder, "0_Transformer/sentence_roberta_config.json", {"max_seq_length": 12, "do_lower_case": True})
    backbone = load_sentence(folder)
    assert backbone.context_length == 12
    close(backbone.text_features([TEXTS[0].upper()])[0], states(folder / "0_Transformer", TEXTS[0]).mean(0))


BAD: dict[str, tuple[Any, str]] = {
    "a module of another project": (
        lambda f: modules(f, {}, ("custom_st.Merge", "2")),
        r"custom_st\.Merge.*expected are a Transformer",
    ),
    "a module of theirs": (lambda f: modules(f, {}, ("sentence_transformers.models.LSTM", "2")), r"models\.LSTM"),
    "no pooling": (
        lambda f: write_json(f, "modules.json", [{"type": NEW[0], "path": ""}]),
        "expected are a Transformer, a Pooling",
    ),
    "no list": (lambda f: write_json(f, "modules.json", {"a": 1}), r"modules\.json of .* is not a list"),
    "a pooling that is no name": (lambda f: modules(f, {"pooling_mode": 5}), "unknown pooling 5"),
    "settings that are no object": (lambda f: write_json(f, "sentence_bert_config.json", [1]), "is no JSON object"),
    "another pooling": (lambda f: modules(f, {"pooling_mode": "median"}), "unknown pooling 'median'"),
    "pooling without its prompt": (
        lambda f: (
            modules(f, {"pooling_mode": "mean", "include_prompt": False}),
            write_json(f, "config_sentence_transformers.json", {"prompts": {"q": "ask: "}, "default_prompt_name": "q"}),
        ),
        "include_prompt",
    ),
    "a prompt that is not there": (
        lambda f: (
            modules(f, {}),
            write_json(f, "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": "q"}),
        ),
        "no prompt 'q'",
    ),
    "code as activation": (
        lambda f: (modules(f, {}, (DENSE, "2_D")), dense(f, "2_D", WIDTH, 4, "torch.hub.load")),
        r"unknown activation 'torch\.hub\.load'",
    ),
    "a residual": (
        lambda f: (
            modules(f, {}, (DENSE, "2_D")),
            dense(f, "2_D", WIDTH, 4, "torch.nn.modules.activation.Tanh", use_residual=True),
        ),
        "residual",
    ),
    "a dense layer of another width": (
        lambda f: (modules(f, {}, (DENSE, "2_D")), dense(f, "2_D", 10, 4, "torch.nn.modules.activation.Tanh")),
        f"2_D of .* takes 10 values, and gets {WIDTH}",
    ),
    "a dense layer without weights": (
        lambda f: (
            modules(f, {}, (DENSE, "2_D")),
            dense(f, "2_D", WIDTH, 4, "torch.nn.Tanh"),
            (f / "2_D/model.safetensors").unlink(),
        ),
        "no weights in 2_D",
    ),
    "cut weights": (
        lambda f: (
            modules(f, {}, (DENSE, "2_D")),
            dense(f, "2_D", WIDTH, 4, "torch.nn.Tanh"),
            (f / "2_D/model.safetensors").write_bytes(b"{"),
        ),
        "is damaged",
    ),
    "another task": (
        lambda f: write_json(f, "sentence_bert_config.json", {"transformer_task": "fill-mask"}),
        "transformer_task = 'fill-mask'",
    ),
    "a length that is none": (
        lambda f: write_json(f, "sentence_bert_config.json", {"max_seq_length": "many"}),
        "max_seq_length = 'many'",
    ),
    "cut JSON": (lambda f: (f / "modules.json").write_text("[{"), r"modules\.json is not valid JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_known_is_refused_by_name(encoder, case):
    make, message = BAD[case]
    make(encoder)
    with pytest.raises(ConfigError, match=rf"text encoder '.*'.*{message}"):
        load_sentence(encoder)
