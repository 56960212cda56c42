"""What stands behind an encoder's states: layers with an activation, and tensors copied from module to module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ccr_dist.errors import ConfigError
from ccr_dist.models.backbones.dual.backbone import Head

Lora: TypeAlias = dict[str, tuple[Tensor, Tensor]]  # name of a linear map -> A (r, in) and B (out, r)


@dataclass(frozen=True)
class Layer:
    """x -> activation(W x + b); W (out, in).

    Attributes:
        activation: a class of torch.nn, without arguments.
    """

    weight: Tensor
    bias: Tensor | None = None
    activation: type[nn.Module] = nn.Identity

    def module(self) -> nn.Module:
        made = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None)
        with torch.no_grad():
            made.weight.copy_(self.weight)
            if self.bias is not None:
                made.bias.copy_(self.bias)
        return nn.Sequential(made, self.activation())


@dataclass(frozen=True)
class Normalised:
    """To unit length, between layers."""


@dataclass(frozen=True)
class Plain:
    """An encoder of transformers, how its states become one vector, and what follows; unit length at the end.

    Attributes:
        model: a PreTrainedModel on the CPU, float32; `AutoModel` loads what it saves.
        modes: poolings by sentence-transformers' names, joined.
        layers: behind the pooling.
        lora: the matrices that `model` does not hold, for `peft` (see `export/peft_files.py`).
    """

    model: Any
    modes: tuple[str, ...]
    layers: tuple[Layer | Normalised, ...] = ()
    lora: Lora = field(default_factory=dict)


def layers_of(module: nn.Module) -> list[Layer | Normalised]:
    """A linear map, a head, or a sequence of them with activations, as layers. ConfigError where it is something else.

    A head is linear plus two-layer MLP: as gelu(x) - gelu(-x) = x, the linear part goes through the activation as well.
    """
    if isinstance(module, nn.Identity | nn.Dropout):
        return []
    if isinstance(module, nn.Linear):
        return [Layer(*_tensors(module))]
    if isinstance(module, Head):
        parts: tuple[Any, ...] = (module.linear, module.mlp[0], module.mlp[3])
        (weight, bias), (inner, inner_bias), (outer, outer_bias) = (
            (part.weight.detach().cpu(), part.bias.detach().cpu()) for part in parts
        )
        one = torch.eye(len(weight))
        return [
            Layer(torch.cat([inner, weight, -weight]), torch.cat([inner_bias, bias, -bias]), nn.GELU),
            Layer(torch.cat([outer, one, -one], dim=1), outer_bias),
        ]
    if type(module).__name__ == "_Normalize":
        return [Normalised()]
    if isinstance(module, nn.Sequential):
        found: list[Layer | Normalised] = []
        for part in module:
            if isinstance(part, nn.Linear | Head | nn.Sequential | nn.Identity | nn.Dropout):
                found += layers_of(part)
            elif found and isinstance(found[-1], Layer) and type(part).__module__.startswith("torch.nn"):
                last = found[-1]
                if last.activation is not nn.Identity:
                    break
                found[-1] = Layer(last.weight, last.bias, type(part))
            else:
                break
        else:
            return found
    raise ConfigError(f"{type(module).__name__} is not made of linear maps and activations")


def _tensors(linear: Any) -> tuple[Tensor, Tensor | None]:
    return linear.weight.detach().cpu(), None if linear.bias is None else linear.bias.detach().cpu()


def fill(
    target: nn.Module,
    source: nn.Module,
    lora: Lora | None = None,
    name: str = "",
    *,
    merge: bool = True,
) -> None:
    """Copies the tensors of a module into another of the same structure, parameters and buffers alike. Linear maps of
    peft are merged, or their matrices put into `lora` by the target's name.
    """
    if isinstance(target, nn.Linear):
        weight, bias = linear(source, lora, name, merge=merge)
        target.weight.copy_(weight.cpu())
        if target.bias is not None:
            target.bias.copy_(bias.cpu())
        return
    for key, tensor in [*target.named_parameters(recurse=False), *target.named_buffers(recurse=False)]:
        found = getattr(source, key, None)
        if isinstance(found, Tensor) and found.shape == tensor.shape:
            tensor.copy_(found.cpu())
        elif isinstance(tensor, nn.Parameter):
            raise ConfigError(f"{type(source).__name__} has no {key} of the shape {tuple(tensor.shape)}")
    for key, child in target.named_children():
        fill(child, getattr(source, key), lora, f"{name}.{key}", merge=merge)


def linear(source: Any, lora: Lora | None, name: str, *, merge: bool) -> tuple[Tensor, Tensor]:
    """Weight and bias. An update of LoRA is added, or kept in `lora` as A (r, in) and B (out, r)."""
    base = getattr(source, "base_layer", source)
    weight = base.weight.detach()
    if base is not source:
        if merge:
            weight = weight + source.get_delta_weight("default")
        elif lora is not None:
            lora[name] = tuple(getattr(source, part)["default"].weight.detach().cpu() for part in ("lora_A", "lora_B"))
    return weight, base.bias.detach() if base.bias is not None else weight.new_zeros(len(weight))
