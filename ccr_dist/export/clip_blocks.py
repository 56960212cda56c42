"""open_clip's transformers as those of transformers' CLIP: the text side, and the blocks of both sides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ccr_dist.errors import ConfigError
from ccr_dist.export.layers import Layer, Lora, Normalised, Plain, fill, layers_of
from ccr_dist.export.paths import TextPath
from ccr_dist.models.towers import OpenClipTower


def clip_text(tower: OpenClipTower, table: Tensor, blocks: Sequence[Any], path: TextPath, *, merge: bool) -> Plain:
    from transformers import CLIPTextConfig, CLIPTextModel

    text = tower.text
    if text.attn_mask is None or tower.pool not in ("argmax", "eos"):
        raise ConfigError(
            f"this text tower of open_clip (pooled at '{tower.pool}',"
            f" {'causal' if text.attn_mask is not None else 'not causal'})"
            " is no CLIPTextModel of transformers"
        )
    first: Any = tower.blocks[0]
    config = CLIPTextConfig(
        vocab_size=len(table),
        hidden_size=tower.width,
        intermediate_size=first.mlp.c_fc.out_features,
        projection_dim=tower.dim,
        num_hidden_layers=tower.layers,
        num_attention_heads=first.attn.num_heads,
        max_position_embeddings=len(text.positional_embedding),
        hidden_act=activation(first),
        layer_norm_eps=first.ln_1.eps,
        pad_token_id=path.file.pad,
        bos_token_id=path.file.start,
        eos_token_id=path.file.end,
    )
    model: Any = CLIPTextModel(config)
    model.embeddings.token_embedding.weight.copy_(table.cpu())
    model.embeddings.position_embedding.weight.copy_(text.positional_embedding.cpu())
    fill(model.final_layer_norm, text.ln_final)
    lora: Lora = {}
    for number, (block, target) in enumerate(zip(blocks, model.encoder.layers, strict=True)):
        clip_block(block, target, lora, f"encoder.layers.{number}", merge=merge)
    projection = text.text_projection
    if projection is None:
        layers: list[Layer | Normalised] = []
    else:
        layers = layers_of(projection) if isinstance(projection, nn.Linear) else [Layer(projection.T.detach().cpu())]
    return Plain(model.eval(), ("lasttoken",), tuple(layers), lora)


def known(model: Any, twin: type) -> Any:
    """A model that `AutoModel` can load: itself, or one of its `twin`'s class with the same tensors, as the parts of
    MetaCLIP 2 and AltCLIP are CLIP's.

    Raises:
        ConfigError: it is neither.
    """
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if type(model.config) in MODEL_MAPPING:
        return model
    made_of: Any = twin
    ours, own = model.config.to_dict(), made_of.config_class().to_dict()
    kept = {key: ours[key] for key in own if key in ours and key not in ("model_type", "architectures", "dtype")}
    made = made_of(made_of.config_class(**kept))
    try:
        made.load_state_dict(model.state_dict())
    except RuntimeError as error:
        raise ConfigError(f"{type(model).__name__} cannot be loaded by transformers' AutoModel") from error
    return made.eval()


def activation(block: Any) -> str:
    kind = type(block.mlp.gelu).__name__
    if kind not in ("GELU", "QuickGELU"):
        raise ConfigError(f"blocks with the activation {kind} are no blocks of transformers' CLIP")
    return "gelu" if kind == "GELU" else "quick_gelu"


def clip_block(block: Any, target: Any, lora: Lora | None = None, name: str = "", *, merge: bool = True) -> None:
    """Copies a block of open_clip into one of transformers. ConfigError where they do not compute the same."""
    if any(not isinstance(getattr(block, part, nn.Identity()), nn.Identity) for part in ("ls_1", "ls_2")):
        raise ConfigError("blocks with layer scale are no blocks of transformers' CLIP")
    fill(target.layer_norm1, block.ln_1)
    fill(target.layer_norm2, block.ln_2)
    fill(target.mlp.fc1, block.mlp.c_fc)
    fill(target.mlp.fc2, block.mlp.c_proj)
    attention, own = block.attn, target.self_attn
    if isinstance(attention, nn.MultiheadAttention):
        assert attention.in_proj_weight is not None and attention.in_proj_bias is not None
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        for part, weight, bias in zip((own.q_proj, own.k_proj, own.v_proj), weights, biases, strict=True):
            part.weight.copy_(weight.cpu())
            part.bias.copy_(bias.cpu())
        fill(own.out_proj, attention.out_proj)
        return
    for part, there in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
        fill(getattr(own, there), getattr(attention, part), lora, f"{name}.self_attn.{there}", merge=merge)
