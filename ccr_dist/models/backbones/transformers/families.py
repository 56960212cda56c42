"""What transformers' dual encoders need to know of a text: how it is padded, whether padding is seen, whether it is
lower-cased, and where its feature is taken.

None of it is in a model's class, and all of it ruins features silently when it is wrong. So a type that is not listed
here is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ccr_dist.errors import ConfigError


@dataclass(frozen=True)
class Family:
    """A kind of dual encoder.

    Attributes:
        fixed: texts are padded to the context; padding is not masked, since the models have learnt with it.
        lower: texts are lower-cased, as in training, where the tokeniser does not do it.
        pooled: the feature is taken at the end token, the last position, or the first one.
        tokens: pictures have tokens: one a patch, normalised and projected as the global one.
        flexible: pictures are patches in a grid of any shape (NaFlex).
    """

    fixed: bool = False
    lower: bool = False
    pooled: str = "end"
    tokens: bool = True
    flexible: bool = False


_SIGLIP = {"fixed": True, "lower": True, "pooled": "last", "tokens": False}
FAMILIES = {
    "clip": Family(),
    "metaclip_2": Family(),
    "siglip": Family(**_SIGLIP),  # type: ignore[arg-type]
    "siglip2": Family(**_SIGLIP, flexible=True),  # type: ignore[arg-type]
    "chinese_clip": Family(pooled="first"),
    "altclip": Family(pooled="first"),
}
NAMES = "CLIP, MetaCLIP 2, SigLIP, SigLIP 2, Chinese-CLIP and AltCLIP"


def family_of(config: Any, *, what: str) -> Family:
    """The family of a model by its config. ConfigError when it is not listed."""
    if config.model_type not in FAMILIES:
        raise ConfigError(
            f"{what} is of type '{config.model_type}'; kind transformers takes {NAMES} (model_type"
            f" {', '.join(FAMILIES)}). How texts of other types are padded and pooled is not known here."
        )
    return FAMILIES[config.model_type]


def end_of(config: Any, ids: Tensor) -> Tensor:
    """(n,): the position of each text's end token in ids (n, T), found as the model finds it. config: the text's."""
    if config.model_type == "clip_text_model" and config.eos_token_id == 2:  # files from before the id was right
        return ids.argmax(1)
    return (ids == config.eos_token_id).int().argmax(1)


def lowers(tokenizer: Any) -> bool:
    """The tokeniser itself treats capitals as small letters."""
    capitals = "ABCDEFGHIJKLMNOPQRSTUVWXYZ A"
    return bool(tokenizer(capitals)["input_ids"] == tokenizer(capitals.lower())["input_ids"])


def check_ends(config: Any, batch: dict[str, Tensor], *, what: str) -> None:
    """ConfigError unless the model finds the end token of every text: it takes the feature there, and of the first
    token where there is none. batch: ids and mask of some texts.
    """
    last = batch["mask"].sum(1) - 1
    if not torch.equal(end_of(config, batch["ids"]), last):
        raise ConfigError(
            f"{what}: the tokeniser does not end texts with the token {config.eos_token_id} where the model takes their"
            " features (eos_token_id of its text_config): not of the same model"
        )
