"""What an operator of torch computes and moves: from its arguments and results, so that fake tensors will do.

FLOPs are those of torch's own registry (matrix products, convolutions, attention; two a multiply-add). Bytes moved are
those of all tensors that go in and come out, but for operators that look at a part of what goes in (rows of a table).
Views move nothing and call no kernel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from ccr_dist.train.record.flops import on_cpu

aten = torch.ops.aten
_FLOPS = {**flop_registry, **{packet: shape_wrapper(count) for packet, count in on_cpu().items()}}
_ROWS_OF = {
    aten.embedding,
    aten.index,
    aten.index_select,
    aten.gather,
    aten.slice,
    aten.select,
}  # read what they return
_FREE = {
    aten.detach, aten.alias, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided,
    aten._local_scalar_dense, aten.lift_fresh, aten._unsafe_view, aten.is_same_size,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Operators that take the same time.

    Attributes:
        name: product, attention, convolution, or moves (for all that torch counts no FLOPs for).
        m, n, k: rows and columns of the result, and what is summed over; of attention: queries, keys, width of a head.
            0 for moves.
        batch: how many such products.
        flops: of one call.
        moved: bytes of one call.
    """

    name: str
    m: int
    n: int
    k: int
    batch: int
    flops: float
    moved: float


@dataclass(frozen=True)
class Call:
    """A collective.

    Attributes:
        kind: all_reduce, all_gather, reduce_scatter, or send (to one rank, while another one's arrives).
        size: bytes of the whole buffer; of a send, those that are sent.
    """

    kind: str
    size: int


@dataclass
class Operators:
    """Operators and collectives by phase: how often each kind is called."""

    calls: dict[str, dict[Kind, int]]
    collectives: dict[str, dict[Call, int]]

    def __init__(self) -> None:
        self.calls = defaultdict(lambda: defaultdict(int))
        self.collectives = defaultdict(lambda: defaultdict(int))

    def add(self, phase: str, function: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        """Count a call. `function`: an overload of an operator, as a dispatch mode sees it."""
        if function.namespace == "c10d":
            call = _collective(function, args)
            if call is not None:
                self.collectives[phase][call] += 1
            return
        found = kind_of(function, args, kwargs, result)
        if found is not None:
            self.calls[phase][found] += 1

    def sums(self, phase: str) -> tuple[float, float, int]:
        """FLOPs, bytes moved and number of kernels of a phase."""
        found = self.calls.get(phase, {})
        return (
            float(sum(kind.flops * count for kind, count in found.items())),
            float(sum(kind.moved * count for kind, count in found.items())),
            sum(found.values()),
        )

    def frozen(self) -> dict[str, dict[Kind, int]]:
        """Operators as plain dictionaries."""
        return {phase: dict(kinds) for phase, kinds in self.calls.items()}

    def sent(self) -> dict[str, dict[Call, int]]:
        """Collectives as plain dictionaries."""
        return {phase: dict(calls) for phase, calls in self.collectives.items()}


def _collective(function: Any, args: Any) -> Call | None:
    """A call of c10d: its first argument is what is written, but of a send."""
    name = function.overloadpacket.__name__.strip("_")
    for word, kind in (("allreduce", "all_reduce"), ("allgather", "all_gather"), ("reduce_scatter", "reduce_scatter")):
        if name.startswith(word):
            tensors = list(_tensors(args[1] if kind == "reduce_scatter" else args[0]))
            return Call(kind, sum(map(_bytes, tensors)))
    return Call("send", sum(map(_bytes, _tensors(args[0])))) if name == "send" else None


def kind_of(function: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> Kind | None:
    """The kind of a call; None: it starts no kernel."""
    packet = function.overloadpacket
    if packet in _FREE or function.is_view:
        return None
    going_in, coming_out = list(_tensors((args, kwargs))), list(_tensors(result))
    if not coming_out and not going_in:
        return None
    moved = float(sum(map(_bytes, coming_out)))
    moved += moved if packet in _ROWS_OF else sum(map(_bytes, going_in))
    count = _FLOPS.get(packet)
    if count is None:
        return Kind("moves", 0, 0, 0, 1, 0.0, moved)
    flops = float(count(*args, **kwargs, out_val=result))
    name, m, n, k, batch = _shape(packet, going_in, coming_out)
    return Kind(name, m, n, k, batch, flops, moved)


def _shape(packet: Any, going_in: list[Tensor], coming_out: list[Tensor]) -> tuple[str, int, int, int, int]:
    name = str(packet)
    if "attention" in name:
        query, key = ([each for each in going_in if each.ndim == 4] + going_in[:2])[:2]
        if query.ndim == 4 and key.ndim == 4:
            kind = "attention_backward" if "backward" in name else "attention"
            return kind, query.shape[-2], key.shape[-2], query.shape[-1], prod(query.shape[:-2])
        return "attention", 1, 1, 1, 1
    out = coming_out[0]
    if "convolution" in name:
        weight = next((each for each in going_in if each.ndim >= 3 and each is not going_in[0]), going_in[0])
        return "convolution", out.numel() // max(out.shape[1], 1), out.shape[1], prod(weight.shape[1:]), 1
    batch = prod(out.shape[:-2]) if out.ndim > 2 else 1
    inner = [each for each in going_in if each.ndim >= 2][-2].shape[-1]
    return "product", out.shape[-2], out.shape[-1], inner, batch


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
