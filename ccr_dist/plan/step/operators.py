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
# Of a square matrix of n rows and k right-hand sides (Golub and Van Loan, Matrix Computations, 4th ed., 4.2, 8.3, 8.6;
# of a singular value decomposition of m by n, both sides thin). torch's registry has none of them.
SOLVERS = {
    "cholesky": lambda n, k: n**3 / 3,
    "triangular": lambda n, k: float(n * n * k),
    "cholesky_solve": lambda n, k: 2.0 * n * n * k,
    "eigh": lambda n, k: 9.0 * n**3,
    "svd": lambda m, n: 14.0 * max(m, n) * min(m, n) ** 2 + 8.0 * min(m, n) ** 3,
}
_SOLVERS = {
    aten.linalg_cholesky_ex: "cholesky",
    aten.linalg_solve_triangular: "triangular",
    aten.cholesky_solve: "cholesky_solve",
    aten._linalg_eigh: "eigh",
    aten._linalg_svd: "svd",
}
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
_PRECISIONS = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Kind:
    """Operators that take the same time.

    Attributes:
        name: product, attention, convolution, one of `SOLVERS`; of all that no FLOPs are counted for: moves, copy
            (which writes into memory that is there, as optimisers do) or clone (of engines: into new memory).
        m, n, k: rows and columns of the result, and what is summed over; of attention: queries, keys, width of a head;
            of a solver: rows, columns or right-hand sides, 1. 0 where no FLOPs are counted.
        batch: how many such products.
        flops: of one call.
        moved: bytes of one call.
        precision: in which it computes: fp64, fp32, bf16 or fp16; empty: that of the run.
    """

    name: str
    m: int
    n: int
    k: int
    batch: int
    flops: float
    moved: float
    precision: str = ""


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
    if packet in _SOLVERS:
        name, rows, columns = _SOLVERS[packet], *_sides(packet, args)
        return Kind(name, rows, columns, 1, 1, SOLVERS[name](rows, columns), moved, _precision(going_in))
    count = _FLOPS.get(packet)
    if count is None:
        return Kind("copy" if function._schema.is_mutable else "moves", 0, 0, 0, 1, 0.0, moved)
    flops = float(count(*args, **kwargs, out_val=result))
    name, m, n, k, batch = _shape(packet, going_in, coming_out)
    return Kind(name, m, n, k, batch, flops, moved, _precision(going_in))


def _sides(packet: Any, args: Any) -> tuple[int, int]:
    """Rows of a solver's matrix, and its columns or those of what it is solved for."""
    if packet is aten.cholesky_solve:  # (right, factor)
        return args[0].shape[-2], args[0].shape[-1]
    return args[0].shape[-2], (args[1] if packet is aten.linalg_solve_triangular else args[0]).shape[-1]


def scratch(function: Any, args: Any) -> int:
    """Bytes that an operator takes inside and gives back: what LAPACK's routines ask for, and copies of matrices that
    they overwrite.
    """
    packet = function.overloadpacket
    if packet not in _SOLVERS:
        return 0
    m, n = _sides(packet, args)
    elements = {
        "cholesky_solve": m * m + m * n,  # it works on copies of both
        "eigh": 2 * m * m,  # dsyevd
        "svd": m * n + 4 * min(m, n) ** 2,  # dgesdd, on a copy
    }.get(_SOLVERS[packet], 0)
    return elements * args[0].element_size()


def _precision(tensors: list[Tensor]) -> str:
    """Of the first that has one: operands are of one type, and what attention's backward gets beside them is wider."""
    return next((_PRECISIONS[each.dtype] for each in tensors if each.dtype in _PRECISIONS), "")


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
