"""What the tests of engines share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from transformers import T5Config, T5ForConditionalGeneration

    from tests.tiny import TEXTS, tiny_tokenizer

    folder = tmp_path_factory.mktemp("t5")
    tokenizer = tiny_tokenizer(folder, TEXTS, family="xlm-roberta")
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "n_positions": 64,
    }
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    T5ForConditionalGeneration(T5Config(**sizes, **ids, initializer_factor=5.0)).save_pretrained(folder)
    return folder
