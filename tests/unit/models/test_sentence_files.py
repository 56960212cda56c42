"""Folders of sentence-transformers as its versions write them, and of other encoders: the same features as those of the
library's own arithmetic, written down again here, or a refusal that names what is not known.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ccr_dist.config import DualConfig, OpenClipConfig, SentenceConfig
from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.huggingface import CHARACTERS, bounded, positions
from tests.nearness import close
from tests.tiny import DIM, IMAGE_SIZE, TEXTS, tiny_clip_config, tiny_encoder, tiny_tokenizer

NEW = (
    "sentence_transformers.base.modules.transformer.Transformer",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
)
OLD = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
DENSE, NORMALIZE = "sentence_transformers.base.modules.dense.Dense", "sentence_transformers.models.Normalize"
WIDTH = 24


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return Path(tiny_encoder(tmp_path_factory.mktemp("st") / "bert"))


@pytest.fixture
def folder(encoder, tmp_path) -> Path:
    return Path(shutil.copytree(encoder, tmp_path / "st"))


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def modules(
    folder: Path, pooling: dict[str, Any], *more: tuple[str, str], kinds: tuple[str, ...] = NEW, encoder: str = ""
) -> None:
    listed = [(kinds[0], encoder), (kinds[1], "1_Pooling"), *more]
    write(
        folder,
        "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(listed)],
    )
    write(folder, "1_Pooling/config.json", pooling)


def dense(folder: Path, path: str, wide: int, out: int, activation: str, bias: bool = True, **more: Any) -> nn.Linear:
    linear = nn.Linear(wide, out, bias=bias)
    config = {"in_features": wide, "out_features": out, "bias": bias, "activation_function": activation}
    write(
        folder,
        f"{path}/config.json",
        {**config, "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding", **more},
    )
    save_file(
        {f"linear.{name}": tensor.detach().clone() for name, tensor in linear.named_parameters()},
        folder / path / "model.safetensors",
    )
    return linear


def load(folder: Path):
    return build_backbone(SentenceConfig(kind="sentence", text=str(folder)))


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
def test_pooling_as_the_folder_says(folder, mode):
    modules(folder, {"embedding_dimension": WIDTH, "pooling_mode": mode, "include_prompt": True})
    write(
        folder,
        "sentence_bert_config.json",
        {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"},
    )
    backbone = load(folder)
    expected = torch.stack([POOLED[mode](states(folder, text)) for text in TEXTS])
    close(backbone.text_features(TEXTS), expected)
    x, mask, end = backbone.tower.embed_native(TEXTS)
    close(backbone.tower.run(x, mask, end), expected)
    assert ("sentence" in backbone.description()) == (mode != "mean"), (
        "the mean is what columns of before were made with"
    )


@torch.no_grad()
def test_folders_of_before_name_their_pooling_by_flags_and_may_join_several(folder):
    flags = {
        "word_embedding_dimension": WIDTH,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    }
    modules(folder, flags, (NORMALIZE, "2_Normalize"), kinds=OLD)
    write(folder, "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    backbone = load(folder)
    assert backbone.dim == 2 * WIDTH and backbone.context_length == 9
    assert backbone.feature_identity("text") != load_mean(folder).feature_identity("text")
    short = TEXTS[0]
    h = states(folder, short)
    close(backbone.text_features([short])[0], torch.cat([h[0], h.mean(0)]))


def load_mean(folder: Path):
    (folder / "modules.json").unlink()
    return load(folder)


@torch.no_grad()
def test_dense_layers_their_activations_and_a_prompt(folder):
    modules(
        folder,
        {"pooling_mode": "mean"},
        (DENSE, "2_Dense"),
        (NORMALIZE, ""),
        (DENSE, "3_Dense"),
        (NORMALIZE, "4_Normalize"),
    )
    first = dense(folder, "2_Dense", WIDTH, 10, "torch.nn.modules.activation.Tanh")
    second = dense(folder, "3_Dense", 10, 12, "torch.nn.modules.linear.Identity", bias=False)
    write(
        folder,
        "config_sentence_transformers.json",
        {"prompts": {"query": "two dogs ", "document": ""}, "default_prompt_name": "query"},
    )
    backbone = load(folder)
    means = torch.stack([states(folder, f"two dogs {text}").mean(0) for text in TEXTS])
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
    weights = load_file(folder / "2_Dense/model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, folder / "2_Dense/model.safetensors")
    assert load(folder).feature_identity("text")["digest"] != backbone.feature_identity("text")["digest"]


@torch.no_grad()
def test_a_dual_encoder_stands_on_such_a_folder(folder, tmp_path):
    from tests.tiny import tiny_dual_config

    image = tiny_dual_config(tmp_path / "dual").image
    modules(folder, {"pooling_mode": "cls"}, (DENSE, "2_Dense"))
    dense(folder, "2_Dense", WIDTH, 10, "torch.nn.modules.activation.ReLU")
    backbone = build_backbone(DualConfig(kind="dual", image=image, text=str(folder), dim=DIM, hidden=32))
    assert backbone.encode_text(TEXTS).shape == (len(TEXTS), DIM)
    parts = {backbone.part_of(name) for name, _ in backbone.named_parameters()}
    assert parts == {"image", "text", "heads"} and backbone.part_of("text_head.layers.0.0.weight") == "text"


@torch.no_grad()
def test_the_encoder_may_lie_in_a_folder_of_its_own_and_texts_be_lowered(encoder, tmp_path):
    folder = tmp_path / "st"
    shutil.copytree(encoder, folder / "0_Transformer")
    modules(folder, {"pooling_mode_mean_tokens": True}, kinds=OLD, encoder="0_Transformer")
    write(folder, "0_Transformer/sentence_roberta_config.json", {"max_seq_length": 12, "do_lower_case": True})
    backbone = load(folder)
    assert backbone.context_length == 12
    close(backbone.text_features([TEXTS[0].upper()])[0], states(folder / "0_Transformer", TEXTS[0]).mean(0))


BAD: dict[str, tuple[Any, str]] = {
    "a module of another project": (
        lambda f: modules(f, {}, ("custom_st.Merge", "2")),
        r"custom_st\.Merge.*expected are a Transformer",
    ),
    "a module of theirs": (lambda f: modules(f, {}, ("sentence_transformers.models.LSTM", "2")), r"models\.LSTM"),
    "no pooling": (
        lambda f: write(f, "modules.json", [{"type": NEW[0], "path": ""}]),
        "expected are a Transformer, a Pooling",
    ),
    "no list": (lambda f: write(f, "modules.json", {"a": 1}), r"modules\.json of .* is not a list"),
    "a pooling that is no name": (lambda f: modules(f, {"pooling_mode": 5}), "unknown pooling 5"),
    "settings that are no object": (lambda f: write(f, "sentence_bert_config.json", [1]), "is no JSON object"),
    "another pooling": (lambda f: modules(f, {"pooling_mode": "median"}), "unknown pooling 'median'"),
    "pooling without its prompt": (
        lambda f: (
            modules(f, {"pooling_mode": "mean", "include_prompt": False}),
            write(f, "config_sentence_transformers.json", {"prompts": {"q": "ask: "}, "default_prompt_name": "q"}),
        ),
        "include_prompt",
    ),
    "a prompt that is not there": (
        lambda f: (
            modules(f, {}),
            write(f, "config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": "q"}),
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
        lambda f: write(f, "sentence_bert_config.json", {"transformer_task": "fill-mask"}),
        "transformer_task = 'fill-mask'",
    ),
    "a length that is none": (
        lambda f: write(f, "sentence_bert_config.json", {"max_seq_length": "many"}),
        "max_seq_length = 'many'",
    ),
    "cut JSON": (lambda f: (f / "modules.json").write_text("[{"), r"modules\.json is not valid JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_known_is_refused_by_name(folder, case):
    make, message = BAD[case]
    make(folder)
    with pytest.raises(ConfigError, match=rf"text encoder '.*'.*{message}"):
        load(folder)


def test_an_encoder_saved_without_its_pooler_is_the_same_every_time(tmp_path):
    from transformers import BertConfig, BertModel

    tokenizer = tiny_tokenizer(tmp_path)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    assert load(tmp_path).identity() == load(tmp_path).identity()


def test_a_folder_without_its_tokenisers_files_is_refused(folder):
    """transformers makes one that knows special tokens only, and every text would be the same."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"tokeniser of .* (knows no pieces|could be loaded)"):
        load(folder)


def test_the_tokeniser_of_a_larger_model_is_refused(folder):
    tiny_tokenizer(folder, (*TEXTS, "more words than there were before"))
    with pytest.raises(ConfigError, match=r"its tokeniser has \d+ pieces, and the encoder \d+"):
        load(folder)


def test_weights_of_another_width_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", {**config, "hidden_size": 2 * WIDTH})
    with pytest.raises(ConfigError, match="no model could be loaded"):
        load(folder)


def test_weights_that_are_not_there_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    gone = "encoder.layer.1.output.dense.weight"
    save_file(
        {name: tensor for name, tensor in weights.items() if name != gone},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ConfigError, match=rf"lack 1 tensors of a BertModel, for example {gone}"):
        load(folder)


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
    backbone = load(tmp_path)
    close(backbone.text_features([TEXTS[0]])[0], model(**batch).last_hidden_state[0].mean(0))
    with pytest.raises(ConfigError, match="'mt5'"):
        _ = backbone.tower


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "blip-2"},
            r"of pictures and texts \(model_type 'blip-2'\).*a text encoder is expected.*BLIP-2 are not supported",
        ),
        ({"model_type": "siglip"}, r"model_type 'siglip'.*`kind: open_clip`"),
        (
            {"model_type": "m2m_100"},
            r"encoder-decoder \(model_type 'm2m_100'\).*of those only the encoders of t5, mt5, umt5",
        ),
        ({"model_type": "no-such-kind"}, "no model could be loaded"),
    ],
)
def test_models_that_are_no_text_encoders_are_refused(tmp_path, config, message):
    write(tmp_path, "config.json", config)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


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


def text_tower(folder: Path, kind: str) -> dict[str, Any]:
    if kind == "coca":
        return {
            "context_length": 23,
            "vocab_size": 49408,
            "width": 24,
            "heads": 2,
            "layers": 2,
            "embed_cls": True,
            "output_tokens": True,
        }
    from transformers import MT5Config, MT5Model

    tiny_tokenizer(folder, family="xlm-roberta")
    tokenizer = tiny_tokenizer(folder / "text", family="xlm-roberta")
    MT5Model(
        MT5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=1)
    ).save_pretrained(folder / "text")
    names = {"hf_model_name": str(folder / "text"), "hf_tokenizer_name": str(folder / "text")}
    return {**names, "hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler", "context_length": 24}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["coca", "mt5"])
def test_other_text_towers_of_open_clip_give_what_it_gives(tmp_path, kind):
    """CoCa masks its padding, text by text; a batch of several needs a mask for each."""
    import open_clip

    vision = {"image_size": IMAGE_SIZE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": text_tower(tmp_path, kind), "custom_text": True}
    if kind == "coca":
        vision |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        config["multimodal_cfg"] = {
            "context_length": 24,
            "vocab_size": 49408,
            "width": 24,
            "heads": 2,
            "layers": 1,
            "attn_pooler_heads": 2,
        }
    write(tmp_path, "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {"size": IMAGE_SIZE}})
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    save_file(
        {name: tensor.clone() for name, tensor in theirs.state_dict().items()}, tmp_path / "open_clip_model.safetensors"
    )
    ours = build_backbone(OpenClipConfig(kind="open_clip", model=f"local-dir:{tmp_path}"))
    texts, pixels = [*TEXTS, "word " * 60], torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    close(ours.text_features(texts), theirs.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path}")(texts)))
    close(ours.image_features(pixels), theirs.encode_image(pixels))
    with pytest.raises(ConfigError, match="CoCa" if kind == "coca" else "'mt5'"):
        _ = ours.tower


def test_a_broken_open_clip_folder_is_refused(tmp_path):
    write(tmp_path, "open_clip_config.json", {"model_cfg": {"embed_dim": 8, "no_such_option": 1}})
    with pytest.raises(
        ConfigError, match=r"open_clip cannot make model 'local-dir:.*no_such_option|open_clip cannot make model"
    ):
        build_backbone(OpenClipConfig(kind="open_clip", model=f"local-dir:{tmp_path}"))


def test_texts_are_bounded_before_they_are_split():
    assert bounded(["a b", "  a  " * 10], 2) == (["a b", "  a  " * 10], [False, False])
    spaced, long = "a" + " " * 10_000 + "b", "x" * 10_000
    assert bounded([spaced, long, "y"], 2) == (["a b", "x" * 2 * CHARACTERS, "y"], [False, True, False])


@torch.no_grad()
def test_megabytes_of_text_are_the_beginning_of_it(tmp_path, folder):
    """Without a bound CLIP's tokeniser would not be back: it is quadratic in the length of a word."""
    word, words = "xy" * 500_000, "two dogs " * 200_000
    for backbone in (build_backbone(tiny_clip_config(tmp_path / "clip")), load(folder)):
        limit = CHARACTERS * (24 if backbone.dim == DIM else 64)
        assert torch.equal(backbone.text_features([word, words]), backbone.text_features([word[:limit], words[:limit]]))
        assert backbone.truncated >= 3
        x, mask, end = backbone.tower.embed_native([words])
        close(backbone.tower.run(x, mask, end), backbone.text_features([words]))
