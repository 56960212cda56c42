"""Loading Hugging Face encoders and tokenisers by id or local folder, with errors that say what to do. No architecture is opened here."""

from __future__ import annotations

from typing import Any

import torch

from ccr_dist.errors import ConfigError

ADVICE = "Give a Hugging Face id or a local folder; without network, a folder or an id that is in the local cache."


def load_encoder(name: str, *, what: str) -> Any:
    """The encoder `name` with its weights in float32. ConfigError naming `what` when it cannot be loaded."""
    from transformers import AutoModel
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of reading a local file; every rank would draw one
    try:
        return AutoModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: no model could be loaded from '{name}' ({error}). {ADVICE}") from error
    finally:
        if shown:
            logging.enable_progress_bar()


def load_tokenizer(name: str, *, what: str) -> Any:
    """The tokeniser `name`, padding on the right. ConfigError naming `what` when it cannot be loaded or cannot pad."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what}: no tokeniser could be loaded from '{name}' ({error}). {ADVICE}") from error
    if tokenizer.pad_token_id is None:
        raise ConfigError(f"{what}: the tokeniser of '{name}' has no padding token. Choose a model whose tokeniser has one.")
    tokenizer.padding_side = "right"
    return tokenizer


def positions(model: Any) -> int:
    """The longest input of an encoder, in tokens."""
    longest = getattr(model.config, "max_position_embeddings", 512)
    if hasattr(model, "embeddings") and hasattr(model.embeddings, "create_position_ids_from_input_ids"):
        longest -= model.embeddings.padding_idx + 1  # RoBERTa counts from behind the padding index
    return longest


def start_and_end(tokenizer: Any) -> tuple[int | None, int | None]:
    """Ids of the tokens that the model puts around a text: [CLS] and [SEP], or <s> and </s>."""
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    return start, end
