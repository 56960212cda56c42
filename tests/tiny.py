"""Tiny models with random weights, saved in the formats of real ones, for any test that needs a backbone or a front end
in milliseconds.

Everything is a folder under the test's `tmp_path`: other processes can load it from a config alone. No network, no
package with weights.

    tiny_clip_config(folder, text=…)     an open_clip model: text "clip", "custom", "siglip", "bert" or "xlm-roberta"
    tiny_dual_config(folder, texts)      image encoder (timm) + text encoder (BERT) + heads
    tiny_frontend_folder(folder, texts)  a multilingual-BERT-like model with a tokeniser for `texts`, for
    FrontEndConfig.embeddings tiny_encoder(folder, texts, family=…)    the Hugging Face encoder behind the last two
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ccr_dist.models.backbones.dual.options import DualConfig
from ccr_dist.models.backbones.open_clip.options import OpenClipConfig

TEXTS = (
    "a yellow lemon on a table",
    "two dogs are playing in the snow",
    "an old man with a red hat and a beard",
    "the small boat crosses a wide river",
    "un limón amarillo sobre una mesa",
    "dos perros juegan en la nieve",
    "um barco pequeno atravessa o rio",
)
DIM = 16  # of the shared space of every tiny backbone
IMAGE_SIZE = 32  # of tiny_clip_config; timm's test model in tiny_dual_config takes 160
Family = Literal["bert", "xlm-roberta"]


def tiny_tokenizer(folder: Path | str, texts: Sequence[str] = TEXTS, *, family: Family = "bert") -> Any:
    """Saves in `folder`, and returns, a tokeniser that knows the words and letters of `texts`: WordPiece with [CLS] and
    [SEP], or Unigram with <s> and </s>. Listed, not trained: the library's trainers break ties differently in every
    process.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    if family == "bert":
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        pieces = dict.fromkeys([*special.values(), *letters, *(f"##{letter}" for letter in letters), *words])
        tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        special = {"cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}
        scores = (
            dict.fromkeys(special.values(), 0.0)
            | dict.fromkeys(["▁", *letters], -9.0)
            | {f"▁{word}": -4.0 for word in words}
        )
        tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=3, byte_fallback=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.normalizer = normalizers.NFC()
    start, end = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)
    wrapped.save_pretrained(str(folder))
    return wrapped


def tiny_encoder(
    folder: Path | str,
    texts: Sequence[str] = TEXTS,
    *,
    family: Family = "bert",
    width: int = 24,
    layers: int = 2,
    seed: int = 0,
) -> str:
    """Saves a random BERT or XLM-RoBERTa of that width with a tokeniser for `texts`; returns the folder, usable as a
    Hugging Face id.
    """
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    tokenizer = tiny_tokenizer(folder, texts, family=family)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 66,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,  # the usual 0.02 makes all features of a tiny model nearly equal
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = (
            BertModel(BertConfig(**sizes))
            if family == "bert"
            else XLMRobertaModel(XLMRobertaConfig(type_vocab_size=1, **sizes))
        )
    model.save_pretrained(str(folder))
    return str(folder)


def tiny_frontend_folder(folder: Path | str, texts: Sequence[str] = TEXTS, *, width: int = 20, seed: int = 1) -> str:
    """A multilingual-BERT-like folder for `FrontEndConfig.embeddings`: its word embeddings are `width` wide."""
    return tiny_encoder(folder, texts, width=width, layers=1, seed=seed)


def tiny_clip_config(
    folder: Path | str,
    *,
    text: Literal["clip", "custom", "siglip", "bert", "xlm-roberta"] = "clip",
    texts: Sequence[str] = TEXTS,
    seed: int = 0,
) -> OpenClipConfig:
    """Saves an open_clip model (2 + 2 layers, images of 32 pixels, D = 16) with weights and returns the config that
    loads it.

    "clip": causal text tower inside `CLIP`; "custom": the same in `CustomTextCLIP`; "siglip": no causal mask, pooled at
    the last position; "bert", "xlm-roberta": a Hugging Face text tower.
    """
    import open_clip
    from safetensors.torch import save_file

    # Four fifths of building a tiny backbone would be the reading of CLIP's vocabulary. What is kept is kept until a
    # folder is written.
    tokenizers: Any = open_clip.get_tokenizer
    open_clip.get_tokenizer = tokenizers = (
        tokenizers if hasattr(tokenizers, "cache_clear") else functools.cache(tokenizers)
    )
    tokenizers.cache_clear()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if text in ("bert", "xlm-roberta"):
        tower = tiny_encoder(folder / "text", texts, family="bert" if text == "bert" else "xlm-roberta")
        tiny_tokenizer(folder, texts, family="bert" if text == "bert" else "xlm-roberta")
        text_cfg: dict[str, Any] = {
            "hf_model_name": tower,
            "hf_tokenizer_name": tower,
            "hf_proj_type": "linear",
            "hf_pooler_type": "mean_pooler" if text == "xlm-roberta" else "cls_pooler",
            "context_length": 32,
        }
    else:
        text_cfg = {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2}
        if text == "siglip":
            text_cfg |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    model_cfg = {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": IMAGE_SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": text_cfg,
        "custom_text": text != "clip",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {"size": IMAGE_SIZE}})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}")
        for name, tensor in model.named_parameters():
            if "token_embedding" in name or "positional_embedding" in name:
                tensor.data.mul_(10)  # so that features of different texts differ clearly
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        str(folder / "open_clip_model.safetensors"),
    )
    return OpenClipConfig(kind="open_clip", model=f"local-dir:{folder}")


def tiny_dual_config(folder: Path | str, texts: Sequence[str] = TEXTS, *, seed: int = 0) -> DualConfig:
    """Saves an image encoder (timm's test model, 160 pixels) and a text encoder (2-layer BERT, width 24); returns a
    config with D = 16.
    """
    import timm
    from timm.models import save_for_hf

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    save_for_hf(image, str(folder / "image"))
    text = tiny_encoder(folder / "text", texts, seed=seed)
    return DualConfig(kind="dual", image=f"local-dir:{folder / 'image'}", text=text, dim=DIM, hidden=32, dropout=0.1)
