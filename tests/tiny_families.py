"""Describers of other families with random weights, saved like real ones: what they give back, and how they are asked,
differs.

tiny_blip(folder)              BLIP: its decoder gives the prompt back without its last token
tiny_blip2(folder, "opt")      BLIP-2 on a language model alone: gives the prompt back
tiny_blip2(folder, "t5")       BLIP-2 on a T5: an encoder reads the prompt, the answer begins with the decoder's start
token tiny_llava(folder)             LLaVA: sees pictures and no videos
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tiny import TEXTS, tiny_tokenizer

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def _saved(model: Any, folder: Path) -> str:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # random weights as they are begun answer everything alike
    model.save_pretrained(folder)
    return str(folder)


def tiny_blip(folder: Path) -> str:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    tokenizer = tiny_tokenizer(folder, TEXTS, family="bert")
    size = {"height": 32, "width": 32}
    BlipProcessor(BlipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    ids = {"bos_token_id": 2, "sep_token_id": 3, "pad_token_id": 0, "eos_token_id": 3}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={**text, **ids, "encoder_hidden_size": 16, "max_position_embeddings": 64}, vision_config=VISION
    )
    return _saved(BlipForConditionalGeneration(config), folder)


def tiny_blip2(folder: Path, kind: str) -> str:
    from transformers import (
        AddedToken,
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        OPTConfig,
        T5Config,
    )

    tokenizer = tiny_tokenizer(folder, TEXTS, family="xlm-roberta")
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)], special_tokens=True)
    Blip2Processor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer, num_query_tokens=4).save_pretrained(
        folder
    )
    ids = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0}
    if kind == "opt":
        sizes = {
            "hidden_size": 16,
            "ffn_dim": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 16,
        }
        text: Any = OPTConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **ids)
    else:
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        text = T5Config(vocab_size=len(tokenizer), **{"decoder_start_token_id": 1, **sizes, **ids})
    former = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "encoder_hidden_size": 16,
    }
    torch.manual_seed(4)
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=former,
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_token_index=len(tokenizer) - 1,
    )
    return _saved(Blip2ForConditionalGeneration(config), folder)


def tiny_llava(folder: Path) -> str:
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from tests.tiny_vlm import TEMPLATE, _tokenizer

    tokenizer = _tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    template = TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    template = template.replace("<|vision_start|><|video_pad|><|vision_end|>", "")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
    }
    text |= {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=text,
        vision_config={"model_type": "clip_vision_model", **VISION, "projection_dim": 16, "num_hidden_layers": 2},
        image_token_index=len(tokenizer) - 1,
    )
    return _saved(LlavaForConditionalGeneration(config), folder)
