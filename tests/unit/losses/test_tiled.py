"""The tiled contrastive loss in one process: against a loop, against the loss with its matrix, and what it holds.
Ranks: tests/procs.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ccr_dist.losses import context, contrastive, tiled
from ccr_dist.losses.context import Context
from ccr_dist.losses.slots import slot_scores
from tests.nearness import apart, close
from tests.small import same_value_and_gradient
from tests.watch import largest_tensor


def features(
    rows: int, dim: int = 5, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and a scale, all with gradient."""
    generator = torch.Generator().manual_seed(seed)
    made = (
        *(torch.randn(rows, dim, generator=generator, dtype=torch.float64) for _ in range(2)),
        torch.tensor([1.7], dtype=torch.float64),
    )
    return tuple(each.to(dtype).requires_grad_() for each in made)  # type: ignore[return-value]


def whole(x: Tensor, y: Tensor, scale: Tensor | float, groups: Tensor | None = None, **changes) -> Tensor:
    """The loss with its matrix."""
    ids = torch.arange(len(x)) if groups is None else groups
    return contrastive.symmetric(x, y, all_x=x, all_y=y, group=ids, groups=ids, scale=scale, **changes)


def test_the_formula_by_a_loop():
    x, y, scale = features(4)
    group = [7, 3, 7, 1]

    def one_way(i: int, a: Tensor, b: Tensor) -> Tensor:
        logits = [scale[0] * sum(p * q for p, q in zip(a[i], b[j], strict=True)) for j in range(4)]
        bottom = torch.log(sum(torch.exp(z) for z in logits))
        right = [j for j in range(4) if group[j] == group[i]]
        return sum(bottom - logits[j] for j in right) / len(right)

    loop = torch.stack([(one_way(i, x, y) + one_way(i, y, x)) / 2 for i in range(4)])
    fast = tiled.symmetric(x, y, scale=scale, counts=[4], groups=torch.tensor(group), tile=3)
    weights = torch.tensor([1.0, -0.5, 2.0, 0.0], dtype=torch.float64)  # every row has its own gradient
    close(fast, loop)
    same_value_and_gradient(weights @ fast, weights @ loop, [x, y, scale])


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 13), tile=st.integers(1, 14), groups=st.none() | st.integers(1, 13), seed=st.integers(0, 99))
def test_any_shape_any_tile_any_groups(rows: int, tile: int, groups: int | None, seed: int):
    x, y, scale = features(rows, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    ids = None if groups is None else torch.randint(groups, (rows,), generator=generator)
    weights = torch.randn(rows, generator=generator, dtype=torch.float64)
    fast, slow = tiled.symmetric(x, y, scale=scale, counts=[rows], groups=ids, tile=tile), whole(x, y, scale, ids)
    close(fast, slow)
    for a, b in zip(*(torch.autograd.grad(weights @ loss, (x, y, scale)) for loss in (fast, slow)), strict=True):
        close(a, b)


def test_a_score_of_its_own():
    _, y, scale = features(7)
    local = torch.randn(7, 3, 5, dtype=torch.float64, requires_grad=True)
    group = torch.tensor([0, 1, 0, 2, 3, 3, 3])
    fast = tiled.symmetric(local, y, scale=scale, counts=[7], groups=group, score=slot_scores, tile=3)
    same_value_and_gradient(
        fast.square().sum(), whole(local, y, scale, group, score=slot_scores).square().sum(), [local, y, scale]
    )


@pytest.mark.parametrize("scale", [100.0, torch.tensor(100.0)], ids=["number", "tensor"])
def test_float32_with_logits_as_large_as_they_come(scale: Tensor | float):
    """All logits of some rows (columns) are 200 below those of others in the same tile: their exponentials must not
    underflow.
    """
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    y = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [1.0, 0.0]])
    for a, b in ((x, y), (y, x)):
        loss = tiled.symmetric(a, b, scale=scale, counts=[4], tile=4)
        close(loss.double(), whole(a.double(), b.double(), 100.0), tolerance=1e-5)  # of logits in float32


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_features_of_any_precision_are_multiplied_in_float32_under_autocast_too(dtype: torch.dtype, rounding: float):
    x, y, scale = features(9, 64, dtype=dtype)
    exact = [part.detach().double().requires_grad_() for part in (x, y, scale)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tiled.symmetric(x, y, scale=scale, counts=[9], tile=4)
        loss.sum().backward()
    assert loss.dtype == torch.float32
    slow = whole(*exact)
    slow.sum().backward()
    close(loss.double(), slow, tolerance=1e-5)
    for ours, theirs in zip((x, y, scale), exact, strict=True):
        assert ours.grad is not None and ours.grad.dtype == dtype  # rounded once, at the end
        close(ours.grad.double(), theirs.grad, tolerance=rounding)


def test_gradients_only_where_they_are_asked_for():
    x, y, _ = features(5)
    for wanted in (x, y):
        frozen = [part if part is wanted else part.detach() for part in (x, y)]
        calls = [
            lambda f=frozen: tiled.symmetric(*f, scale=2.0, counts=[5], tile=2).sum(),
            lambda f=frozen: whole(*f, 2.0).sum(),
        ]
        same_value_and_gradient(calls[0](), calls[1](), [wanted])
    assert tiled.symmetric(x.detach(), y.detach(), scale=2.0, counts=[5]).grad_fn is None


def test_no_rows():
    x, y, scale = features(0)
    loss = tiled.symmetric(x, y, scale=scale, counts=[0])
    loss.sum().backward()
    assert loss.shape == (0,) and x.grad is not None and float(scale.grad) == 0


def test_no_tensor_is_larger_than_features_and_tiles():
    rows, dim, tile = 600, 8, 64
    x, y, scale = features(rows, dim)
    groups = torch.arange(rows) // 3
    largest = largest_tensor(
        lambda: tiled.symmetric(x, y, scale=scale, counts=[rows], groups=groups, tile=tile).sum().backward()
    )
    assert largest == max(rows * dim, tile * tile)


def test_the_context_chooses(monkeypatch):
    """Which way was taken shows in whether there is a matrix to come across; the value never tells."""
    x, y, scale = features(8)
    group = torch.arange(8) // 2
    taken: list[str] = []
    for name, module in (("gathered", context), ("tiled", context.tiled)):
        whole_of = module.symmetric
        monkeypatch.setattr(module, "symmetric", lambda *a, n=name, f=whole_of, **k: (taken.append(n), f(*a, **k))[1])

    def loss(way: str = "auto") -> Tensor:
        return Context(seed=0, step=0, rows=8, loss=way).contrastive(x, y, scale=scale, group=group)

    values = [loss(way) for way in ("gathered", "tiled", "ring", "auto")]
    monkeypatch.setattr(tiled, "tile_of", lambda device: 7)
    values.append(loss())
    assert taken == ["gathered", "tiled", "tiled", "gathered", "tiled"]
    for value in values[1:]:
        same_value_and_gradient(value, loss("gathered"), [x, y, scale])
    assert apart(values[0], Context(seed=0, step=0, rows=8).contrastive(x, y, scale=scale))
