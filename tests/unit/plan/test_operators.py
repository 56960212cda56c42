"""What operators compute and move, by hand, and the same for fake tensors as for real ones."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from ccr_dist.plan.step.operators import Kind, Operators


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found = Operators()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.found.add("forward", function, args, kwargs or {}, result)
        return result


def counted(work: Any, *, fake: bool = False) -> Operators:
    with FakeTensorMode() if fake else contextlib.nullcontext():
        inputs = work(None)
        with Counting() as counting:
            work(inputs)
    return counting.found


def test_a_product() -> None:
    def work(inputs: Any) -> Any:
        return (torch.zeros(5, 7), torch.zeros(7, 3)) if inputs is None else inputs[0] @ inputs[1]

    for fake in (False, True):
        assert counted(work, fake=fake).frozen() == {
            "forward": {Kind("product", 5, 3, 7, 1, 2 * 5 * 7 * 3, 4 * (35 + 21 + 15), "fp32"): 1}
        }


def test_views_are_free_and_rows_of_a_table_are_not_the_table() -> None:
    def work(inputs: Any) -> Any:
        if inputs is None:
            return torch.zeros(1000, 8), torch.zeros(6, dtype=torch.int64)
        rows = functional.embedding(inputs[1], inputs[0])
        return rows.view(3, 16).T.unsqueeze(0) + 1

    flops, moved, kernels = counted(work).sums("forward")
    assert (flops, moved, kernels) == (0, 2 * 6 * 8 * 4 + 2 * 48 * 4, 2)


@pytest.mark.parametrize("fake", [False, True])
def test_a_layer_with_attention_forward_and_backward(fake: bool) -> None:
    """Products: 2 rows inputs outputs, twice that backward. Attention: 4 heads queries keys width, and 2.5 times."""

    def work(inputs: Any) -> Any:
        if inputs is None:
            return torch.nn.Linear(16, 48), torch.zeros(2, 9, 16, requires_grad=True)
        layer, x = inputs
        q, k, v = layer(x).view(2, 9, 4, 3, 4).permute(3, 0, 2, 1, 4)
        functional.scaled_dot_product_attention(q, k, v).sum().backward()

    kinds = counted(work, fake=fake).frozen()["forward"]
    named = {name: sum(k.flops * n for k, n in kinds.items() if k.name == name) for name in ("product", "attention")}
    assert named["product"] == 3 * 2 * 18 * 16 * 48
    assert named["attention"] == 4 * 2 * 4 * 9 * 9 * 4
    backward = [kind for kind in kinds if kind.name == "attention_backward"]
    assert [(k.m, k.n, k.k, k.batch) for k in backward] == [(9, 9, 4, 8)]
    assert backward[0].flops == 2.5 * named["attention"]


def test_sums_of_phases() -> None:
    found = Operators()
    assert found.sums("forward") == (0.0, 0.0, 0)
    a = torch.zeros(4)
    found.add("update", torch.ops.aten.add_.Tensor, (a, a), {}, a)
    assert found.sums("update") == (0.0, 3 * 16, 1)


def test_operators_that_work_in_place_take_no_new_memory() -> None:
    def work(inputs: Any) -> Any:
        return torch.zeros(8) if inputs is None else inputs.mul_(2).add_(1) + 1

    kinds = counted(work).frozen()["forward"]
    assert {kind.name: count for kind, count in kinds.items()} == {"copy": 2, "moves": 1}
