"""Embedding tables of which a step moves the rows of the batch's tokens and no others (`stages.*.lazy_tables`).

The stage's own optimiser runs on those rows, with their part of its state; the table has no dense gradient, and
processes exchange row numbers and rows instead of tables. Other numbers than the dense optimiser's, from the second
step on: in a row that a batch does not touch, moments do not fade, momentum moves nothing, and `decay_tables` shrinks
nothing. The step count, which corrects Adam's bias, is the table's, not the row's (as in `torch.optim.SparseAdam`).
State has the layout of the dense optimiser's, so that a run may resume from either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ccr_dist.losses.gather import gather_rows, row_counts
from ccr_dist.models.frontend import TokenTable


def is_table(name: str) -> bool:
    """Whether a parameter is an embedding table (`models.frontend.TokenTable`), by its name."""
    return ".table." in name


def lazily(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The optimiser, for which the rows of a sparse gradient (coalesced, as `whole_rows` makes it) are a small
    parameter of their own.
    """
    return type(f"Lazy{kind.__name__}", (_Lazy, kind), {})


class _Lazy(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        taken = [
            (members, place, self._take(table, table.grad))
            for members in (group["params"] for group in self.param_groups)
            for place, table in enumerate(members)
            if table.grad is not None and table.grad.is_sparse
        ]
        for members, place, (part, *_) in taken:
            members[place] = part
        super().step()
        for members, place, (part, table, rows) in taken:
            members[place] = table
            self._put_back(part, table, rows)

    def _take(self, table: nn.Parameter, gradient: Tensor) -> tuple[nn.Parameter, nn.Parameter, Tensor]:
        """The rows that have a gradient, as a parameter with its state; the table; their numbers."""
        rows = gradient.indices()[0]
        part = nn.Parameter(table[rows])
        part.grad = gradient.values()
        if self.state[table]:
            self.state[part] = {
                key: value[rows] if _by_row(value) else value for key, value in self.state[table].items()
            }
        return part, table, rows

    def _put_back(self, part: nn.Parameter, table: nn.Parameter, rows: Tensor) -> None:
        table[rows] = part
        whole = self.state[table]
        for key, value in self.state.pop(part).items():
            if _by_row(value):
                whole.setdefault(key, torch.zeros_like(table))[rows] = value
            else:
                whole[key] = value


def _by_row(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def set_lazy(module: nn.Module, lazy: bool) -> None:
    """Whether the tables in a module give sparse gradients from now on."""
    for table in module.modules():
        if isinstance(table, TokenTable):
            table.lazy = lazy


def whole_rows(gradient: Tensor, world: int) -> Tensor:
    """A sparse gradient of this rank to the mean over ranks, coalesced. Collective."""
    gradient = gradient.coalesce()
    if world > 1:
        rows, values = gradient.indices()[0], gradient.values()
        counts = row_counts(len(rows), values.device)
        every = gather_rows(rows, counts), gather_rows(values, counts) / world
        gradient = torch.sparse_coo_tensor(every[0][None], every[1], gradient.shape, check_invariants=False).coalesce()
    return gradient


def dense_parts(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients of parameters; of a sparse one, its rows. What is done to them in place is done to the
    gradients.
    """
    gradients = (parameter.grad for parameter in parameters if parameter.grad is not None)
    return [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
