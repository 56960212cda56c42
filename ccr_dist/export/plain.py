"""A text path as a model of transformers with a pooling and dense layers behind it, where it is one: front ends folded
into the embedding table, LoRA merged into the projections it adapts, heads as layers with an activation.

What has networks between the blocks (adapters, characteristics) or a sequence encoder of its own is no such model;
`plain` says why.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.config import ENGLISH
from ccr_dist.errors import ConfigError
from ccr_dist.export.clip_blocks import clip_text, known
from ccr_dist.export.layers import Layer, Normalised, Plain, fill, layers_of, linear
from ccr_dist.export.layers import Lora as Matrices
from ccr_dist.export.paths import TextPath
from ccr_dist.methods.base import Method
from ccr_dist.methods.crosslingual.method import CrossLingual
from ccr_dist.methods.full.method import Full
from ccr_dist.methods.leccr.method import Leccr
from ccr_dist.methods.lora.method import Lora
from ccr_dist.methods.map.method import Map
from ccr_dist.methods.query_side.method import QuerySide
from ccr_dist.methods.static.method import Static
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.dual.backbone import DualBackbone
from ccr_dist.models.backbones.open_clip.backbone import OpenClipBackbone
from ccr_dist.models.backbones.sentence.backbone import SentenceEncoder
from ccr_dist.models.backbones.transformers.towers import ClipTower
from ccr_dist.models.frontend import FrontEnd
from ccr_dist.models.hf_tower import HuggingFaceTower
from ccr_dist.models.opened import FAMILY, opened
from ccr_dist.models.subwords import Tokens
from ccr_dist.models.towers import OpenClipTower, TextTower


def plain(method: Method, path: TextPath, *, merge: bool = True) -> Plain:
    """The plain form of a path.

    Args:
        method: in eval mode.
        path: of it.
        merge: LoRA's updates into the projections; else they are left to `Plain.lora`.

    Raises:
        ConfigError: it has none; the message is the reason.
    """
    with torch.no_grad():
        if path.kind == "english":
            found = _of_tower(method.backbone, method.backbone.tower, path)
        elif isinstance(method, Leccr):
            found = _of_leccr(method, path)
        elif isinstance(method, Map):
            found = _of_map(method, path)
        elif type(method) in (Full, Lora) or (type(method) is Static and method.adapters is None):
            assert isinstance(method, CrossLingual)
            found = _of_tower(method.backbone, method.tower, path, method, merge=merge)
        else:
            raise ConfigError(_reason(method))
    return found


def _reason(method: Method) -> str:
    if isinstance(method, CrossLingual):
        return f"method {method.name} has networks between the blocks of its text encoder"
    if isinstance(method, QuerySide):
        return f"method {method.name} maps the vectors of its query encoder by no linear map"
    return f"method {method.name} has a sequence encoder of its own behind its text encoder"


def _of_map(method: Map, path: TextPath) -> Plain:
    """The query encoder, the map behind its pooling, and the backbone's text head where the map ends before it."""
    encoder = _of_tower(method.query, method.query.tower, path)
    weight, bias = (tensor.detach().cpu() for tensor in method.parts(path.languages[0]))
    head: list[Layer | Normalised] = []
    if method.options.space == "features" and type(method.backbone).project_text is not Backbone.project_text:
        if not isinstance(method.backbone, DualBackbone):
            raise ConfigError(f"the text head of {method.backbone.name} is not made of linear maps and activations")
        head = layers_of(method.backbone.heads.text)
    return replace(encoder, layers=(*encoder.layers, Layer(weight, bias), *head))


def _of_leccr(method: Leccr, path: TextPath) -> Plain:
    """The text encoder's blocks, pooled, and one linear map."""
    from transformers import AutoModel

    encoder, config = method.text, copy.deepcopy(method.text.config)
    config.num_hidden_layers = len(encoder.encoder.layer)
    model: Any = AutoModel.from_config(config, dtype=torch.float32)
    fill(model.embeddings, encoder.embeddings)
    fill(model.encoder, encoder.encoder)
    _no_pooler(model)
    _pad(model, path.file.pad)
    pool = "cls" if method.options.text_pool == "cls" else "mean"
    return Plain(model.eval(), (pool,), tuple(layers_of(method.text_head)))


def _of_tower(
    backbone: Backbone, tower: TextTower, path: TextPath, method: CrossLingual | None = None, *, merge: bool = True
) -> Plain:
    table = None if method is None else _folded(method.front_end)
    blocks: Sequence[nn.Module] = tower.blocks
    if isinstance(method, Lora):
        blocks = method.lora.variants(next(lang for lang in path.languages if lang != ENGLISH))
    if isinstance(tower, HuggingFaceTower):
        return _transformers(backbone, tower, table, blocks, path, merge=merge)
    if isinstance(tower, OpenClipTower):
        return clip_text(tower, tower.token_table() if table is None else table, blocks, path, merge=merge)
    if type(tower) is ClipTower:
        return _clip_of_transformers(tower, table, blocks, path, merge=merge)
    raise ConfigError(f"the text tower of {backbone.name} ({type(tower).__name__}) has no form in transformers that is"
                      " known here")  # fmt: skip


def _folded(front_end: FrontEnd) -> Tensor:
    """(V, width): what the front end makes of each piece, as the embedding table that it stands for."""
    device, table = front_end.linear.weight.device, front_end.table
    rows = len(table.weight if table.weight is not None else table.get_buffer("frozen"))
    found = []
    for start in range(0, rows, 8192):
        ids = torch.arange(start, min(rows, start + 8192), device=device).unsqueeze(1)
        mask = torch.ones_like(ids, dtype=torch.bool)
        end = torch.zeros(len(ids), dtype=torch.int64, device=device)
        found.append(front_end(Tokens(ids, mask, end, end.bool()))[:, 0])
    return torch.cat(found)


# Encoders of transformers.

PLAIN = (*FAMILY, "distilbert", "modernbert")  # whose table can be another one, with another padding
AS_THEY_ARE = (*PLAIN, "mpnet")


def _transformers(
    backbone: Backbone,
    tower: HuggingFaceTower,
    table: Tensor | None,
    blocks: Sequence[nn.Module],
    path: TextPath,
    *,
    merge: bool,
) -> Plain:
    """A copy of the encoder; with the `table` of a front end, and with what LoRA adds to its `blocks`."""
    source, kind = tower.parts.model, tower.parts.config.model_type
    if kind not in (AS_THEY_ARE if table is None else PLAIN):
        raise ConfigError(f"the text encoder of {backbone.name} (type {kind}) keeps its own token table and padding")
    words = tower.parts.words.weight
    model: Any = copy.deepcopy(source, {id(words): words}).cpu().float()  # the table is not copied twice
    lora: Matrices = {}
    names = {id(module): name for name, module in model.named_modules()}
    parts = opened(model)
    assert parts is not None
    for block, target in zip(blocks, parts.blocks, strict=True):
        _update(target, block, lora, names, merge=merge)
    rows = (words if table is None else table).detach().cpu().float().clone()
    padding, pad = model.config.pad_token_id, path.file.pad
    parts.words.weight, parts.words.num_embeddings = nn.Parameter(rows), len(rows)
    model.config.vocab_size = len(rows)
    if kind in FAMILY:
        _no_pooler(model)
        _pad(model, pad, padding)
    model.config.pad_token_id = pad
    modes, layers = _pooled(backbone, tower)
    return Plain(model.eval(), modes, tuple(layers), lora)


def _clip_of_transformers(
    tower: ClipTower, table: Tensor | None, blocks: Sequence[nn.Module], path: TextPath, *, merge: bool
) -> Plain:
    """A copy of the text model of transformers' CLIP or MetaCLIP 2."""
    from transformers import CLIPTextModel

    own, project = tower.token_table(), tower.project
    assert isinstance(project, nn.Module)
    model: Any = copy.deepcopy(tower.text, {id(own): own}).cpu().float()
    lora: Matrices = {}
    names = {id(module): name for name, module in model.named_modules()}
    for block, target in zip(blocks, model.encoder.layers, strict=True):
        _update(target, block, lora, names, merge=merge)
    rows = (own if table is None else table).detach().cpu().float().clone()
    words = model.embeddings.token_embedding
    words.weight, words.num_embeddings = nn.Parameter(rows), len(rows)
    model.config.vocab_size, model.config.pad_token_id = len(rows), path.file.pad
    return Plain(known(model.eval(), CLIPTextModel), ("lasttoken",), tuple(layers_of(project)), lora)


def _update(target: nn.Module, source: nn.Module, lora: Matrices, names: dict[int, str], *, merge: bool) -> None:
    """LoRA's updates of a block's variant, into the block's copy, or into `lora` by the copy's names."""
    for name, module in source.named_modules():
        if hasattr(module, "base_layer"):
            own: Any = target.get_submodule(name)
            weight, _ = linear(module, lora, names[id(own)], merge=merge)
            own.weight = nn.Parameter(weight.cpu().float().clone())


def _pooled(backbone: Backbone, tower: HuggingFaceTower) -> tuple[tuple[str, ...], list[Layer | Normalised]]:
    """Pooling and layers behind a BERT-like tower."""
    if isinstance(backbone, SentenceEncoder):
        layers = [layer for part in backbone.text_head.layers for layer in layers_of(part)]
        if isinstance(backbone, DualBackbone):
            layers += layers_of(backbone.heads.text)
        return backbone.text_head.modes, layers
    if isinstance(backbone, OpenClipBackbone):
        text: Any = backbone.model.text
        kind, pooler = type(text.pooler).__name__, getattr(text.transformer, "pooler", None)
        layers = layers_of(text.proj)
        if kind == "MeanPooler":
            return ("mean",), layers
        if kind == "MaxPooler":
            return ("max",), layers
        if kind == "ClsPooler" and pooler is not None and text.pooler.use_pooler_output:
            return ("cls",), [*layers_of(nn.Sequential(pooler.dense, pooler.activation)), *layers]
        if kind in ("ClsPooler", "ClsLastHiddenStatePooler"):
            return ("cls",), layers
        raise ConfigError(f"open_clip's {kind} is no pooling of sentence-transformers")
    raise ConfigError(f"how {backbone.name} pools its text encoder is not known here")


def _pad(model: Any, pad: int, was: int | None = None) -> None:
    """Makes `pad` the padding of an encoder. RoBERTa counts positions from behind the padding's id, so its table of
    positions moves along.
    """
    table = model.embeddings.position_embeddings
    if was is not None and was != pad and getattr(table, "padding_idx", None) is not None:
        kept = table.weight[was + 1 :]
        rows = torch.zeros(pad + 1 + len(kept), table.embedding_dim)
        rows[pad + 1 :] = kept
        model.embeddings.position_embeddings = nn.Embedding.from_pretrained(rows, freeze=True, padding_idx=pad)
        model.embeddings.padding_idx = pad
        for name in ("position_ids", "token_type_ids"):
            if hasattr(model.embeddings, name):
                length = torch.arange(len(rows)).expand((1, -1))
                model.embeddings.register_buffer(
                    name, length if name == "position_ids" else torch.zeros_like(length), persistent=False
                )
        model.config.max_position_embeddings = len(rows)
    model.config.pad_token_id = pad


def _no_pooler(model: Any) -> None:
    """Nothing reads a pooler behind this model, and `AutoModel` wants one: zeros, so that what is saved is the same
    every time.
    """
    if getattr(model, "pooler", None) is None:
        model.pooler = copy.deepcopy(type(model)(_smallest(model.config)).pooler)
        size = model.config.hidden_size
        model.pooler.dense = nn.Linear(size, size)
    for parameter in model.pooler.parameters():
        nn.init.zeros_(parameter)


def _smallest(config: Any) -> Any:
    """The config of a model of the same type that is made in no time."""
    small = copy.deepcopy(config)
    small.vocab_size, small.num_hidden_layers, small.pad_token_id = 2, 1, 0
    return small
