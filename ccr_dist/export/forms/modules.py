"""Plain forms as modules of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ccr_dist.export.layers import Layer, Normalised, Plain
from ccr_dist.export.paths import TextPath


def native(place: Path, path: TextPath, found: Plain) -> list[Any]:
    """The library's modules for a plain form; `place`: a folder for the encoder's files."""
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    save(place, path, found)
    encoder = Transformer(str(place), max_seq_length=path.file.limit)
    return [encoder, Pooling(found.model.config.hidden_size, found.modes), *denses(found.layers)]


def save(place: Path, path: TextPath, found: Plain) -> None:
    """An encoder and its tokeniser as a folder of transformers."""
    found.model.save_pretrained(str(place))
    path.file.for_transformers().save_pretrained(str(place))


def denses(layers: tuple[Layer | Normalised, ...]) -> list[Any]:
    """Layers behind a pooling as modules of the library."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    made: list[Any] = []
    for layer in layers:
        if isinstance(layer, Normalised):
            made.append(Normalize())
            continue
        width, inputs = layer.weight.shape
        bias: Tensor | None = layer.bias
        made.append(
            Dense(
                inputs, width, bias=bias is not None, activation_function=layer.activation(),
                init_weight=layer.weight.float().clone(), init_bias=None if bias is None else bias.float().clone(),
            )
        )  # fmt: skip
    return made
