"""A dispatch mode that sees every operator of a step: its FLOPs, its traffic, and how long its results live."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ccr_dist.errors import ConfigError
from ccr_dist.plan.step.operators import Operators, scratch

SHARES = (0.0, 0.25, 0.5, 1.0)  # of gradients that a strategy may keep, for which the highest moments are noted
# products of matrices inside of operators that torch's registry has no formula for
UNCOUNTED = frozenset(
    {
        "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward", "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell",
        "_cudnn_rnn", "_cudnn_rnn_backward", "miopen_rnn", "_cdist_forward", "_cdist_backward", "linalg_solve_ex",
        "_linalg_solve_ex", "linalg_inv_ex", "_trilinear", "_bilinear",
    }
)  # fmt: skip
PLAIN = frozenset({"aten", "prim", "prims", "c10d", "_c10d_functional", "profiler"})


@dataclass(frozen=True)
class Live:
    """Bytes that are live at one moment of a step, beside parameters and what a strategy holds.

    Attributes:
        phase: start, opening (of the forward, before the first frozen block), forward, losses, backward, reduce (its
            end, all gradients there) or update.
        activations: what the forward has made and keeps.
        loss: logits, labels and whatever else the losses make.
        gathered: features of all ranks.
        workspace: what is soon gone: results of frozen towers, gradients of activations, temporaries.
        gradients: of trained parameters, as far as the backward has come.
    """

    phase: str
    activations: int = 0
    loss: int = 0
    gathered: int = 0
    workspace: int = 0
    gradients: int = 0

    @property
    def beside(self) -> int:
        """All but the gradients, in bytes."""
        return self.activations + self.loss + self.gathered + self.workspace

    def with_batch(self, size: int) -> Live:
        """The same moment with a batch of that many bytes, which is there all the time."""
        return replace(self, activations=self.activations + size)


class Meter(TorchDispatchMode):
    """Counts what is dispatched while it is on. Tensors that were there before are not counted as live.

    Args:
        what: that runs, for messages.

    Attributes:
        operators: what was called, by phase.
        gathered: most bytes of gathered features at once.
        opened: whether a frozen block has run.
        runs: of each frozen block that ran, how often: forward, and with a backward after it.
        touched: storages that some operator has read or written.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what, self._phase = what, "start"
        self.operators = Operators()
        self.gathered = 0
        self.opened = False
        self.runs: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        self.touched: set[int] = set()
        self._bytes: dict[str, int] = defaultdict(int)
        self._storages: dict[int, list[Any]] = {}  # address -> [reference, part, bytes]
        self._highest: dict[tuple[str, float], tuple[float, Live]] = {}

    # What the caller says.

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before has ended."""
        self._phase = phase
        self._look()

    def first_block(self, *_: Any) -> None:
        """A frozen block runs, as a hook before its forward; until the first of them a forward is "opening"."""
        self.opened = True

    def block_ran(self, number: int, module: nn.Module, given: Any, result: Any) -> None:
        """A frozen block ran, as a hook behind its forward. One that is computed again inside of a backward does not
        count: its weights are there.
        """
        if torch._C._current_graph_task_id() == -1:
            self.runs[number][0] += 1
            self.runs[number][1] += any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(result))

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """What these parameters collect counts as gradients, and not as temporaries."""
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._collected)

    def moments(self) -> tuple[Live, ...]:
        """The moments that may be the highest of a step, whatever share of gradients counts."""
        return tuple({live: None for _, live in self._highest.values()})

    # Operators.

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and _is_fake(args[0]):
            return self._answer(args[0])
        result = func(*args, **kwargs)
        if func.namespace == "prim" or _is_view(func):
            return result
        self._count(func, args, kwargs, result)
        self._hold(result, func, args, kwargs)
        return result

    def _answer(self, value: Tensor) -> Any:
        """A number that Python asks for: norms are finite, and what is asked whether it is so is. A count would decide
        shapes, and nobody can know it.
        """
        if value.dtype == torch.bool:
            return True
        if value.dtype.is_floating_point:
            return 1.0
        raise ConfigError(
            f"{self._what}: the step asks for a whole number that only the computed values could tell, so that it"
            " cannot be planned; measure it with a short run"
        )

    def _count(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        name = func.overloadpacket.__name__
        unknown = func.namespace not in PLAIN and func.overloadpacket not in flop_registry
        if unknown or (func.namespace == "aten" and name in UNCOUNTED):
            raise ConfigError(
                f"{self._what}: the FLOPs of {func.namespace}::{name} cannot be counted, so that the step cannot be"
                " planned; measure it with a short run"
            )
        self.operators.add(self._phase, func, args, kwargs, result)

    # Storages.

    def _hold(self, result: Any, func: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Notes storages that the operator has made: those of results that are no argument's."""
        part, given = None, {each.untyped_storage()._cdata for each in _strided((args, kwargs))}
        self.touched |= given
        for each in _strided(result):
            storage = each.untyped_storage()
            key = storage._cdata
            if key in given or key in self._storages or (size := storage.nbytes()) == 0:
                continue
            part = part or self._part(func, args)
            reference = weakref.ref(storage, partial(self._gone, key))
            self._storages[key] = [reference, part, size]
            self._bytes[part] += size
        if part:
            inside = scratch(func, args)
            self._bytes["workspace"] += inside
            self._look()
            self._bytes["workspace"] -= inside
        if func.namespace == "c10d" and "gather" in str(func):
            self._all_gathered(args)

    def _part(self, func: Any, args: Any) -> str:
        if func is torch.ops.aten.cat.default and self._is_gathered(args[0]):
            return "gathered"
        if self._phase == "losses":
            return "loss"
        if self._phase == "forward" and torch.is_grad_enabled():
            return "activations"
        return "workspace"

    def _gone(self, key: int, _: Any) -> None:
        entry = self._storages.pop(key, None)
        if entry is not None:
            self._bytes[entry[1]] -= entry[2]

    def _move(self, tensors: Iterable[Any], part: str) -> None:
        for each in tensors:
            entry = self._storages.get(each.untyped_storage()._cdata)
            if entry is not None and entry[1] != part:
                self._bytes[entry[1]] -= entry[2]
                self._bytes[part] += entry[2]
                entry[1] = part
        self._look()

    def _all_gathered(self, args: Any) -> None:
        self._move(_strided(args[0]), "gathered")

    def _is_gathered(self, tensors: Any) -> bool:
        entries = [self._storages.get(each.untyped_storage()._cdata) for each in tensors]
        return bool(entries) and all(entry is not None and entry[1] == "gathered" for entry in entries)

    def _collected(self, parameter: Tensor) -> None:
        if parameter.grad is not None and parameter.grad.layout == torch.strided:
            self._move([parameter.grad], "gradients")

    def _now(self, phase: str) -> Live:
        parts = ("activations", "loss", "gathered", "workspace", "gradients")
        return Live(phase, **{part: self._bytes[part] for part in parts})

    def _look(self) -> None:
        """Notes this moment, if it is the highest of its phase for some share of the gradients."""
        gradients = self._bytes["gradients"]
        beside = sum(self._bytes.values()) - gradients
        self.gathered = max(self.gathered, self._bytes["gathered"])
        live, phase = None, "opening" if self._phase == "forward" and not self.opened else self._phase
        for share in SHARES:
            value = beside + share * gradients
            known = self._highest.get((phase, share))
            if known is None or value > known[0]:
                live = live or self._now(phase)
                self._highest[phase, share] = (value, live)


def _strided(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor) and each.layout == torch.strided]


def _is_fake(value: Any) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(value, FakeTensor)


def _is_view(func: Any) -> bool:
    """A result that is its argument's memory, unchanged."""
    return any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
