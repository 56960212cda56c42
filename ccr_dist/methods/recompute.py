"""Gradient checkpointing of models that other libraries wrote: a backward pass computes their blocks again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of an encoder, by name: the members of its outermost lists and sequences of modules that have weights
    and can be called.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inner = any(f"{name}.".startswith(f"{each}.") for each in found)
        if isinstance(module, nn.ModuleList | nn.Sequential) and not inner:
            found |= {
                f"{name}.{key}": block
                for key, block in module.named_children()
                if next(block.parameters(), None) is not None and type(block).forward is not nn.Module.forward
            }
    return found


def recompute(blocks: Iterable[nn.Module], asked: Callable[[], bool]) -> bool:
    """Lets a backward pass compute each block again, where `asked()` says so; False: there are none.

    Each does so inside of its own call, where wrappers have gathered its weights. Nothing in it may depend on how often
    it runs, as statistics of a batch would.
    """
    several = list(blocks)
    for block in several:
        block.forward = partial(_again, block.forward, asked)
    return bool(several)


def _again(forward: Callable[..., Any], asked: Callable[[], bool], *inputs: Any, **named: Any) -> Any:
    if not (asked() and torch.is_grad_enabled()):
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, **named)
