"""Folders of text encoders, written file by file and opened as sentence backbones; and small random encoders of every
family that can be opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.sentence.options import SentenceConfig
from tests.tiny import TEXTS, tiny_tokenizer

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert", "t5", "mt5", "m2m_100")
WIDTH, LAYERS, POSITIONS = 24, 3, 66


def write_json(folder: Path, name: str, value: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


def load_sentence(folder: Path) -> Backbone:
    return build_backbone(SentenceConfig(kind="sentence", text=str(folder)))


def family_tokenizer(folder: Path, family: str) -> Any:
    """BERT's [CLS] … [SEP], T5's … </s>, M2M100's __en__ … </s>, or <s> … </s>."""
    from tokenizers import processors

    tokenizer = tiny_tokenizer(folder, TEXTS, family="bert" if family in ("bert", "distilbert") else "xlm-roberta")
    start = {"t5": "", "mt5": "", "m2m_100": "__en__"}.get(family)
    if start is not None:
        if start:
            tokenizer.add_special_tokens({"additional_special_tokens": [start]})
        around = [token for token in (start, "</s>") if token]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A </s>".strip(),
            special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in around],
        )
        tokenizer.save_pretrained(str(folder))
    return tokenizer


def family_folder(folder: Path, family: str, *, seed: int = 0) -> str:
    """A random encoder of the family, of its real class, with a tokeniser: 24 wide, 3 blocks."""
    import transformers

    tokenizer = family_tokenizer(folder, family)
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    bert: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3,
    }
    t5: dict[str, Any] = {"d_model": WIDTH, "num_layers": LAYERS, "num_heads": 2, "d_kv": 12, "d_ff": 2 * WIDTH}
    m2m: dict[str, Any] = {
        "d_model": WIDTH,
        "encoder_layers": LAYERS,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 2 * WIDTH,
    }
    m2m |= {
        "encoder_ffn_dim": 2 * WIDTH,
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": WIDTH,
        "init_std": 0.3,
    }
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "bert": ("BertConfig", "BertModel", bert),
        "roberta": ("RobertaConfig", "RobertaModel", {**bert, "type_vocab_size": 1}),
        "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", {**bert, "type_vocab_size": 1}),
        "distilbert": (
            "DistilBertConfig",
            "DistilBertModel",
            {"dim": WIDTH, "n_layers": LAYERS, "n_heads": 2, "hidden_dim": 2 * WIDTH, "initializer_range": 0.3},
        ),
        "mpnet": ("MPNetConfig", "MPNetModel", bert),
        # the middle block sees 2 to either side
        "modernbert": (
            "ModernBertConfig",
            "ModernBertModel",
            {**bert, "local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 0, "sep_token_id": 2},
        ),
        "t5": ("T5Config", "T5Model", t5),
        "mt5": ("MT5Config", "MT5Model", {**t5, "feed_forward_proj": "gated-gelu"}),
        "m2m_100": ("M2M100Config", "M2M100Model", {**m2m, "max_position_embeddings": POSITIONS}),
    }
    config, model, sizes = kinds[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: Any = getattr(transformers, model)(getattr(transformers, config)(**vocabulary, **sizes))
        if family in ("t5", "mt5"):  # a bias of distances that matters
            made.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data.normal_()
        if family == "mpnet":
            made.encoder.relative_attention_bias.weight.data.normal_()
    made.save_pretrained(str(folder))
    return str(folder)
