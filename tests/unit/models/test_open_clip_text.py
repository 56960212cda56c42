"""Text towers of open_clip other than CLIP's own: the features that the library gives, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.open_clip.options import OpenClipConfig
from tests.encoders import write_json
from tests.nearness import close
from tests.tiny import DIM, IMAGE_SIZE, TEXTS, tiny_tokenizer


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
    write_json(tmp_path, "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {"size": IMAGE_SIZE}})
    theirs = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    save_file(
        {name: tensor.clone() for name, tensor in theirs.state_dict().items()}, tmp_path / "open_clip_model.safetensors"
    )
    ours = build_backbone(OpenClipConfig(kind="open_clip", model=f"local-dir:{tmp_path}"))
    texts, pixels = [*TEXTS, "word " * 60], torch.rand(3, 3, IMAGE_SIZE, IMAGE_SIZE)
    close(ours.text_features(texts), theirs.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path}")(texts)))
    close(ours.image_features(pixels), theirs.encode_image(pixels))
    if kind == "mt5":
        assert ours.tower.layers == 1
        return
    with pytest.raises(ConfigError, match="CoCa"):
        _ = ours.tower


def test_a_broken_open_clip_folder_is_refused(tmp_path):
    write_json(tmp_path, "open_clip_config.json", {"model_cfg": {"embed_dim": 8, "no_such_option": 1}})
    with pytest.raises(
        ConfigError, match=r"open_clip cannot make model 'local-dir:.*no_such_option|open_clip cannot make model"
    ):
        build_backbone(OpenClipConfig(kind="open_clip", model=f"local-dir:{tmp_path}"))
