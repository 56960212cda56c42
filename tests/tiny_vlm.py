"""A tiny Qwen2-VL with random weights (0.7 M parameters), saved with tokenizer, processor and chat template like a real
one.

    tiny_vlm(folder)     sees pictures and videos; the same seed gives the same files
    tiny_llm(folder)     the same language model without eyes (Qwen2), for text-only requests

Byte-level tokens (any text goes in and out) and some words; answers are babble of these words, some of it in sentences,
that differs between pictures and prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = (
    *("a", "the", "of", "on", "with", "man", "dog", "cat", "red", "blue", "yellow", "small", "two", "is", "are"),
    *("playing", "water", "snow", "table", "hat", "face", "picture"),
)
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] in ('video', 'video_url') %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEAD = 32  # width of a head: what the rotary sections below add up to


def _text(width: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD,
        "num_key_value_heads": width // HEAD,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }


def _tokenizer() -> Any:
    """Listed, not trained: the library's trainers break ties differently in every process."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import Qwen2Tokenizer

    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in WORDS:
        whole = ""
        for letter in "Ġ" + word:  # how a leading space is written
            if whole and whole + letter not in pieces:
                pieces.append(whole + letter)
                merges.append((whole, letter))
            whole += letter
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        model_max_length=4096,
    )


def _readable(token: str) -> bool:
    return token.strip() in WORDS or token in '.,"]'


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head.mul_(4)  # clear winners: equal tokens in other libraries' order of summation, too
        vocabulary = tokenizer.get_vocab()
        head[[vocabulary["."], tokenizer.eos_token_id]] *= 1.7  # some sentences and some ends
        odd = [i for token, i in vocabulary.items() if not _readable(token.replace("Ġ", " "))]
        head[[*odd, *tokenizer.convert_tokens_to_ids([token for token in SPECIAL if token != tokenizer.eos_token])]] = 0
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)


def tiny_llm(folder: Path, seed: int = 1) -> str:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = _tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(tokenizer), initializer_range=0.2, eos_token_id=tokenizer.eos_token_id, **_text(64, 2)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _save(Qwen2ForCausalLM(config), tokenizer, folder)
    return str(folder)


def tiny_vlm(folder: Path, seed: int = 1, *, width: int = 64, layers: int = 2, pixels: int = 112 * 112) -> str:
    from transformers import (
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer()
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    sizes = {"min_pixels": 28 * 28, "max_pixels": pixels}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    text = {
        "vocab_size": len(tokenizer),
        "rope_parameters": rope,
        "initializer_range": 0.2,
        "eos_token_id": ids["<|im_end|>"],
    }
    text |= _text(width, layers)
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": width,
        "num_heads": 2,
        "mlp_ratio": 2,
        "initializer_range": 0.2,
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _save(Qwen2VLForConditionalGeneration(config), tokenizer, folder)
    return str(folder)
