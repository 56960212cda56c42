"""Lazy embedding tables: which rows a step moves, by loops and against the dense optimiser; clipping; state; what is
refused.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_dist.config import RuntimeConfig, StageConfig
from ccr_dist.errors import ConfigError
from ccr_dist.models.frontend import TokenTable
from ccr_dist.train.optimizers.lazy_tables import dense_parts, whole_rows
from ccr_dist.train.optimizers.optimizer import make_optimizer, set_rate
from ccr_dist.train.strategies.fsdp2 import Fsdp2
from ccr_dist.train.strategies.strategy import Strategy
from ccr_dist.train.strategies.zero import Zero1, Zero3
from tests.nearness import close

WORDS, WIDTH = 7, 3
ADAMW: dict[str, Any] = {"weight_decay": 0.1, "clip_norm": None}
BERT: dict[str, Any] = {"optimizer": "bert_adam", "weight_decay": 0.1, "decay_tables": True, "clip_norm": None}


class Model(nn.Module):
    def __init__(self, rows: str = "all") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        table = torch.randn(WORDS, WIDTH, generator=generator, dtype=torch.float64)
        self.front = nn.Module()
        self.front.table = TokenTable(table, torch.tensor([0, 1, 4, 5]) if rows == "used" else "all")
        self.front.linear = nn.Linear(WIDTH, 2, dtype=torch.float64)
        with torch.no_grad():
            self.front.linear.weight.copy_(torch.arange(6.0).reshape(2, 3) / 6)
            self.front.linear.bias.zero_()

    def forward(self, ids: Tensor) -> Tensor:
        return self.front.linear(self.front.table(ids)).tanh().sum()

    @property
    def table(self) -> nn.Parameter:
        return next(iter(self.front.table.parameters()))


def stage(**options: Any) -> StageConfig:
    return StageConfig(**{"steps": 100, "batch": 8, "lr": 0.1, **options})


def engine(model: Model, **options: Any) -> Any:
    return Strategy(RuntimeConfig(threads=1)).engine(model, dict(model.named_parameters()), stage(**options))


def steps(model: Model, made: Any, batches: list[list[int]], rate: float = 0.1) -> list[float]:
    norms = []
    for ids in batches:
        made.backward(made(torch.tensor(ids)))
        norms.append(made.update(rate))
    return norms


@pytest.mark.parametrize("rows", ["all", "used"])
@pytest.mark.parametrize("options", [ADAMW, BERT])
def test_the_first_step_is_the_dense_one_on_the_rows_of_the_batch(rows, options):
    dense, lazy = Model(rows), Model(rows)
    start = dense.table.detach().clone()
    for model, flag in ((dense, False), (lazy, True)):
        made = engine(model, **options, lazy_tables=flag)
        made.backward(model(torch.tensor([4, 1])) + model(torch.tensor([4])))  # twice in one backward
        assert model.table.grad.is_sparse == flag
        made.update(0.1)
    touched = torch.tensor([1, 2] if rows == "used" else [1, 4])
    close(lazy.table[touched], dense.table[touched])
    assert ((lazy.table[touched] - start[touched]).abs() > 1e-3).all()
    others = [i for i in range(len(start)) if i not in touched]
    assert torch.equal(lazy.table[others], start[others])
    assert torch.equal(lazy.front.linear.weight, dense.front.linear.weight)


@pytest.mark.parametrize("options", [ADAMW, BERT])
def test_by_loops(options):
    """Row by row: the rows of the batch move, with the table's count of steps; the others keep weights and moments."""
    model = Model()
    made = engine(model, **options, lazy_tables=True)
    slow = [[[float(x), 0.0, 0.0] for x in row] for row in model.table.detach()]
    bert = "optimizer" in options
    for count, ids in enumerate([[1, 2], [2, 3, 3], [5], [1, 5]], start=1):
        made.backward(model(torch.tensor(ids)))
        gradient = made.gradients()["front.table.weight"].clone()
        made.update(0.1)
        for row in set(ids):
            for number, g in zip(slow[row], gradient[row].tolist(), strict=True):
                p, m, v = number
                m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
                if bert:
                    p -= 0.1 * (m / (math.sqrt(v) + 1e-8) + 0.1 * p)
                else:
                    p -= 0.1 * (m / (1 - 0.9**count)) / (math.sqrt(v / (1 - 0.98**count)) + 1e-8)
                number[:] = [p, m, v]
    expected = torch.tensor(slow, dtype=torch.float64)
    state = made.optimizer_state()
    close(model.table.detach(), expected[..., 0])
    close(state["front.table.weight/exp_avg"], expected[..., 1])
    close(state["front.table.weight/exp_avg_sq"], expected[..., 2])
    assert not state["front.table.weight/exp_avg"][[0, 4, 6]].any()


def test_clipping_counts_the_rows_like_any_gradient():
    batches = [[1, 2, 2], [3, 1]]
    for options in ({"clip_norm": 0.05}, {"clip_norm": 0.05, "clip": "tensor"}):
        norms, moved = [], []
        for flag in (False, True):
            model = Model()
            norms.append(steps(model, engine(model, **options, lazy_tables=flag), batches[:1]))
            moved.append(model.table.detach().clone())
        assert norms[0] == pytest.approx(norms[1], rel=1e-12)
        close(moved[0], moved[1])
    made = engine(Model(), lazy_tables=True)
    made.backward(made(torch.tensor(batches[0])))
    before = made.gradients()
    found = made.norms({"table": ["front.table.weight"], "linear": ["front.linear.weight", "front.linear.bias"]})
    assert found["table"] == pytest.approx(float(before["front.table.weight"].norm()), rel=1e-12)
    assert made.update(0.1) == pytest.approx(math.hypot(*found.values()), rel=1e-12)


@pytest.mark.parametrize("options", [ADAMW, BERT])
def test_state_goes_from_the_dense_optimiser_to_the_lazy_one_and_back(options):
    """Where every batch has all rows, the two are the same; so a run may change from one to the other."""
    every = list(range(WORDS))
    straight, changing = Model(), Model()
    steps(straight, engine(straight, **options), [every] * 6)
    state: dict[str, Tensor] = {}
    for flag in (False, True, False):
        made = engine(changing, **options, lazy_tables=flag)
        made.restore(state)
        steps(changing, made, [every] * 2)
        state = made.optimizer_state()
    close(changing.table, straight.table)
    dense = engine(straight, **options)
    steps(straight, dense, [every])
    assert {name: v.shape for name, v in dense.optimizer_state().items()} == {
        name: v.shape for name, v in state.items()
    }


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = Model()
    made = engine(model, lazy_tables=True)
    steps(model, made, [[1, 2]])
    weights, state = model.table.detach().clone(), made.optimizer_state()
    made.backward(made(torch.tensor([1])) * math.inf)
    assert not math.isfinite(made.update(0.1))
    assert torch.equal(model.table, weights)
    assert all(torch.equal(value, state[name]) for name, value in made.optimizer_state().items())
    assert set(made.refused) == {name for name, _ in model.named_parameters()}


def test_a_later_dense_stage_has_dense_gradients_again():
    model = Model()
    engine(model, lazy_tables=True)
    made = engine(model)
    made.backward(made(torch.tensor([1])))
    assert not model.table.grad.is_sparse


def test_repeated_rows_are_added_up():
    gradient = torch.sparse_coo_tensor(
        torch.tensor([[3, 1, 3]]), torch.tensor([[1.0], [2.0], [4.0]]), (5, 1), check_invariants=True
    )
    found = whole_rows(gradient, 1)
    assert found.indices().tolist() == [[1, 3]] and found.values().tolist() == [[2.0], [5.0]]
    table = nn.Parameter(torch.zeros(5, 1))
    table.grad = found
    dense_parts([table])[0].mul_(2)
    assert table.grad.to_dense().flatten().tolist() == [0, 4, 0, 10, 0]


def test_the_dense_gradient_and_the_sparse_one_are_equal():
    ids = torch.tensor([[1, 4, 1], [6, 0, 4]])
    for rows in ("all", "used"):
        found = []
        for lazy in (False, True):
            model = Model(rows)
            model.front.table.lazy = lazy
            F.normalize(model.front.table(ids), dim=-1)[..., 0].sum().backward()
            found.append(model.table.grad.to_dense() if lazy else model.table.grad)
        close(found[1], found[0])


def test_what_is_refused():
    named = {"net.linear.weight": nn.Parameter(torch.zeros(2, 2))}
    with pytest.raises(ConfigError, match=r"lazy_tables is set, but no embedding table is trained"):
        make_optimizer(stage(lazy_tables=True), named, torch.device("cpu"))
    for kind in (Zero1, Zero3, Fsdp2):
        with pytest.raises(ConfigError, match=f"lazy_tables needs whole tables .* but {kind.name} cuts them: use ddp"):
            kind(None, Model(), {}, lambda parameters: None, stage(lazy_tables=True))


def test_rates_and_groups_stay_as_they_are():
    model = Model()
    made = make_optimizer(
        stage(lazy_tables=True, weight_decay=0.1, lr_scale={"front.table.": 0.5}),
        dict(model.named_parameters()),
        torch.device("cpu"),
    )
    before = [list(map(id, group["params"])) for group in made.param_groups]
    model.front.table.lazy = True
    model(torch.tensor([2])).backward()
    model.table.grad = whole_rows(model.table.grad, 1)
    start = model.table.detach().clone()
    set_rate(made, 0.1)
    made.step()
    assert [list(map(id, group["params"])) for group in made.param_groups] == before
    assert set(made.state) == set(model.parameters())
    # but for eps
    close((model.table - start)[2].abs(), torch.full((WIDTH,), 0.05, dtype=torch.float64), tolerance=1e-6)
