"""Loading Hugging Face encoders and tokenisers by id or local folder, with errors that say what to do. No architecture
is opened here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ccr_dist.errors import ConfigError, let_pass
from ccr_dist.models import token_counts
from ccr_dist.models.backbones.weightless import only_architecture

CHARACTERS = 64  # of a token, for `bounded`
_ADVICE = "Give a Hugging Face id or a local folder; without network, a folder or an id that is in the local cache."
_ALONE = (
    "A plan needs no weights of it, only its config.json and tokeniser: give a folder with those, or fetch them where"
    " there is a network (hf download NAME --include '*.json' '*.model' '*.txt')."
)


def not_loaded(error: Exception, what: str, name: str, kind: str = "model", more: str = "") -> ConfigError:
    """The error for a model, or a part of one, that transformers cannot load.

    Args:
        error: what it raised.
        what: the role of the model, for the message.
        name: its id or folder.
        kind: model, tokeniser, or image processor.
        more: a sentence on it, with a space before.
    """
    said = str(error).partition("\nCheck your internet connection")[0].rstrip(".")
    source = f" from '{name}'" if name else ""
    return ConfigError(
        f"{what}: no {kind} could be loaded{source} ({said}).{more} {_ALONE if only_architecture() else _ADVICE}"
    )


def load_encoder(name: str, *, what: str, subfolder: str = "") -> Any:
    """The text encoder `name` with its weights in float32; of the T5 family and of M2M100 (NLLB) the encoder alone.
    ConfigError naming `what` when it cannot be loaded, is no text encoder, or lacks weights.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel, T5EncoderModel
    from transformers.models.mt5 import MT5EncoderModel
    from transformers.models.umt5 import UMT5EncoderModel

    encoders: dict[str, Any] = {
        "t5": T5EncoderModel,
        "mt5": MT5EncoderModel,
        "umt5": UMT5EncoderModel,
        "m2m_100": AutoModel,
    }
    try:
        config = AutoConfig.from_pretrained(name, subfolder=subfolder)
        _check_kind(name, config, encoders, what)
        kind: Any = encoders.get(config.model_type, AutoModel)
        if only_architecture():
            made = kind.from_config(config) if kind is AutoModel else kind(config)
            return made.get_encoder() if config.model_type == "m2m_100" else made
        with quiet_loading():
            model, found = kind.from_pretrained(
                name, subfolder=subfolder, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, ConfigError):
            raise
        let_pass(error, name)
        raise not_loaded(error, what, name) from error
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ConfigError(
            f"{what}: the weights in '{name}' lack {len(missing)} tensors of a {type(model).__name__}, for example"
            f" {missing[0]}; they would be random"
        )
    # saved without a pooler, which nothing here reads: random weights would make the digest differ everywhere
    if found["missing_keys"]:
        for parameter in model.pooler.parameters():
            torch.nn.init.zeros_(parameter)
    return model.get_encoder() if model.config.model_type == "m2m_100" else model


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without transformers' bar for reading a local file; every rank would draw one."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_kind(name: str, config: Any, encoders: Mapping[str, Any], what: str) -> None:
    if any(hasattr(config, part) for part in ("vision_config", "text_config")):
        raise ConfigError(
            f"{what}: '{name}' is a model of pictures and texts (model_type '{config.model_type}'), and a text encoder"
            " is expected here. CLIP, SigLIP and CoCa are had by `kind: open_clip`, CLIP and SigLIP in this format by"
            " `kind: transformers`; BLIP and BLIP-2 are not supported as backbones"
        )
    if getattr(config, "is_encoder_decoder", False) and config.model_type not in encoders:
        raise ConfigError(
            f"{what}: '{name}' is an encoder-decoder (model_type '{config.model_type}'), and a text encoder is expected"
            f" here; of those only the encoders of {', '.join(encoders)} can be taken alone"
        )


def bounded(texts: Sequence[str], tokens: int) -> tuple[list[str], list[bool]]:
    """Texts cut to so many characters that a tokeniser which keeps `tokens` of them loses nothing it would keep, and
    which were cut.

    Tokenisers read a whole text before they cut it, some in quadratic time; a text of megabytes would stop a run.
    CHARACTERS are more than any usual piece has. White space is no piece: of a long text each run of it becomes one
    space.
    """
    limit = CHARACTERS * tokens
    short = [text if len(text) <= limit else " ".join(text.split()) for text in texts]
    return [text[:limit] for text in short], [len(text) > limit for text in short]


def at_revision(revision: str | None) -> dict[str, str]:
    """The argument of transformers' loaders, which take no null."""
    return {} if revision is None else {"revision": revision}


def encode_texts(tokenizer: Any, texts: Sequence[str], limit: int, *, fill: bool = False) -> tuple[Tensor, Tensor, int]:
    """n ≥ 1 texts as a tokeniser of transformers encodes them.

    Args:
        limit: most tokens of a text.
        fill: pad to `limit`, not to the longest text.

    Returns:
        Ids (n, T); mask (n, T), 1 = a token; how many texts lost their ends.
    """
    texts, known = bounded(texts, limit)
    batch = tokenizer(
        texts,
        padding="max_length" if fill else "longest",
        truncation=True,
        max_length=limit,
        return_attention_mask=True,
        return_tensors="pt",
    )
    lengths = batch["attention_mask"].sum(1).tolist()
    token_counts.add(sum(lengths))
    full = [text for text, long, n in zip(texts, known, lengths, strict=True) if not long and n == limit]
    longer = 0
    if full:  # they fit, or lost their ends
        roomier = tokenizer(full, truncation=True, max_length=limit + 1)["input_ids"]
        longer = sum(len(ids) > limit for ids in roomier)
    return batch["input_ids"], batch["attention_mask"], sum(known) + longer


def load_tokenizer(name: str, *, what: str, subfolder: str = "", revision: str | None = None) -> Any:
    """The tokeniser `name`, padding on the right. ConfigError naming `what` when it cannot be loaded or cannot pad."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, subfolder=subfolder, **at_revision(revision))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        let_pass(error, name)
        raise not_loaded(error, what, name, "tokeniser") from error
    # made of nothing, where its files are not there
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise ConfigError(
            f"{what}: the tokeniser of '{name}' knows no pieces; are its files there (tokenizer.json, vocab.txt, ...)?"
        )
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"{what}: the tokeniser of '{name}' has no padding token. Choose a model whose tokeniser has one."
        )
    tokenizer.padding_side = "right"
    return tokenizer


def positions(model: Any) -> int:
    """The longest input of an encoder, in tokens."""
    longest = getattr(model.config, "max_position_embeddings", 512)
    rows = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(rows, "padding_idx", None)
    if padding is not None:
        longest -= padding + 1  # RoBERTa and MPNet count from behind the padding index
    return longest


def start_and_end(tokenizer: Any) -> tuple[int | None, int | None]:
    """Ids of the tokens that the model puts around a text: [CLS] and [SEP], or <s> and </s>."""
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    return start, end
