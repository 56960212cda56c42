"""The losses of NRCCR against plain loops in float64, with nothing to rank, without rows, and what their gradients
reach.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.nearness import close
from tests.nrccr import DIM, data, dot, make
from tests.small import batch, context

pytestmark = pytest.mark.long

N, D = 5, DIM
GROUP = [7, 3, 7, 5, 3]


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(3)
    made = {
        name: torch.randn(N, D, generator=generator, dtype=torch.float64)
        for name in ("visual", "english", "target", "teacher", "back")
    }
    made = {name: F.normalize(value, dim=-1) for name, value in made.items()}
    made |= {
        name: torch.randn(N, 24, generator=generator, dtype=torch.float64) for name in ("state_english", "state_target")
    }
    return {name: value.requires_grad_() for name, value in made.items()}


def same_value_and_gradient(fast: Tensor, slow: Tensor, inputs: list[Tensor]) -> None:
    close(fast, slow)
    fast_gradients = torch.autograd.grad(fast, inputs, retain_graph=True, allow_unused=True)
    slow_gradients = torch.autograd.grad(slow, inputs, retain_graph=True, allow_unused=True)
    for a, b in zip(fast_gradients, slow_gradients, strict=True):
        close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b)


def triplets(x, y, group, margin):
    total = 0
    for one, other in ((x, y), (y, x)):
        for i in range(len(one)):
            wrong = [dot(one[i], other[j]) for j in range(len(other)) if group[j] != group[i]]
            violation = margin + max(wrong) - dot(x[i], y[i])
            total = total + (violation if violation > 0 else 0)
    return total


def distilled(visual, target, teacher, tau):
    visual_fixed, teacher = visual.detach(), teacher.detach()
    total = 0
    for rows, columns, fixed_rows, fixed_columns in (
        (visual, target, visual_fixed, teacher),
        (target, visual, teacher, visual_fixed),
    ):
        for i in range(len(rows)):
            soft = torch.stack([dot(fixed_rows[i], fixed_columns[j]) / tau for j in range(len(columns))])
            logits = torch.stack([dot(rows[i], columns[j]) / tau for j in range(len(columns))])
            weights = torch.exp(soft) / torch.exp(soft).sum()
            total = total - sum(
                w * (z - torch.log(torch.exp(logits).sum())) for w, z in zip(weights, logits, strict=True)
            )
    return total / len(visual) / 2


@pytest.mark.parametrize("positives", ["group", "diagonal"])
def test_losses_by_their_formulas(clip, encoder, outputs, positives):
    weights = {"english": 1.1, "target": 0.7, "back": 0.4, "similarity": 0.3, "feature": 0.2, "adversarial": 0.01}
    built = make(clip, encoder, positives=positives, margin=0.3, temperature=0.11, beta=0.05, **weights)
    built.aux.double()
    rows = data(N, source_text=[], target_text=[], back_text=[], group=GROUP)
    losses = built.losses("train", rows, outputs, context(N))
    assert losses.keys() == weights.keys()

    group = GROUP if positives == "group" else range(N)
    visual, english, target, teacher, back = (
        outputs[name] for name in ("visual", "english", "target", "teacher", "back")
    )
    everything = list(outputs.values())
    for name, x, y in (("english", visual, english), ("target", visual, target), ("back", english, back)):
        same_value_and_gradient(losses[name], weights[name] * triplets(x, y, group, 0.3), everything)
    same_value_and_gradient(losses["similarity"], 0.3 * distilled(visual, target, teacher, 0.11), everything)

    def distance(d):
        return 0.5 * d**2 / 0.05 if d < 0.05 else d - 0.025

    apart = sum(distance(abs(target[i, j] - teacher[i, j])) for i in range(N) for j in range(D)) / (N * D)
    same_value_and_gradient(losses["feature"], 0.2 * apart, everything)

    def told(state, which):
        logits = built.aux["discriminator"](state)
        return sum(-torch.log(torch.sigmoid(v if k == which else -v)) for k, v in enumerate(logits)) / 2

    state_english, state_target = outputs["state_english"], outputs["state_target"]
    same_value_and_gradient(losses["adversarial"], 0.01 * sum(told(state, 0) for state in state_target) / N, everything)
    judge = sum(told(state_english[i].detach(), 0) + told(state_target[i].detach(), 1) for i in range(N)) / (2 * N)
    detached = {name: value.detach() for name, value in outputs.items()}
    own = built.auxiliary_losses("train", rows, detached, context(N))["discriminator"]
    same_value_and_gradient(own, judge, list(built.aux.parameters()))


def test_a_batch_without_negatives_ranks_nothing(clip, encoder, outputs):
    built = make(clip, encoder)
    built.aux.double()
    losses = built.losses(
        "train", data(N, source_text=[], target_text=[], back_text=[], group=[1] * N), outputs, context(N)
    )
    assert all(float(losses[name].detach()) == 0 for name in ("english", "target", "back"))
    sum(losses.values()).backward()
    assert all(value.grad.isfinite().all() for name, value in outputs.items() if name != "state_english")


def test_terms_of_weight_zero_are_gone_with_what_only_they_read(clip, encoder):
    none = {"back": 0, "similarity": 0, "feature": 0, "adversarial": 0}
    built = make(clip, encoder, **none)
    assert "back_text" not in built.options.training_stages()["train"].needs and not built.aux
    outputs = built.outputs("train", batch())
    assert set(outputs) == {"visual", "english", "target"}
    assert set(built.losses("train", batch(), outputs, context())) == {"english", "target"}
    assert built.auxiliary_losses("train", batch(), outputs, context()) == {}
    assert make(clip, encoder).options.training_stages()["train"].needs == {
        "visual",
        "source_text",
        "target_text",
        "back_text",
    }


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("visual", ["image", "frames"])
def test_a_rank_without_rows_takes_part(clip, encoder, monkeypatch, visual, norm):
    """Its outputs are empty and hang on every parameter; its shares are zero. Here the other ranks' rows are made
    up.
    """

    def gathered(rows, counts=()):
        return torch.cat([rows, torch.arange(3 * rows.shape[1:].numel()).view(3, *rows.shape[1:]).to(rows.dtype)])

    monkeypatch.setattr("ccr_dist.methods.nrccr.network.gather_rows", gathered)
    ctx = context(3)
    ctx.gather = gathered
    empty = (
        {"visual": torch.zeros(0, 0, 6), "visual_mask": torch.zeros(0, 0, dtype=torch.bool)}
        if visual == "frames"
        else {}
    )
    built, rows = make(clip, encoder, norm=norm, visual=visual, frame_width=6), data(0, **empty)
    outputs = built.outputs("train", rows)
    losses = built.losses("train", rows, outputs, ctx)
    torch.stack(list(losses.values())).sum().backward()
    assert all(len(value) == 0 for value in outputs.values()) and all(
        float(loss.detach()) == 0 for loss in losses.values()
    )
    assert all(p.grad is not None for name, p in built.net.named_parameters() if not name.startswith("running."))
    detached = {name: value.detach() for name, value in outputs.items()}
    built.auxiliary_losses("train", rows, detached, ctx)["discriminator"].backward()
    assert all(p.grad is not None for p in built.aux.parameters())


def test_steps_of_discriminator_and_encoder_leave_each_other_alone(clip, encoder):
    built = make(clip, encoder)
    outputs = built.outputs("train", data())
    built.auxiliary_losses("train", data(), {key: value.detach() for key, value in outputs.items()}, context())[
        "discriminator"
    ].backward()
    assert all(p.grad is None for p in built.net.parameters()) and all(
        p.grad.abs().sum() > 0 for p in built.aux.parameters()
    )
    built.aux.zero_grad()
    built.losses("train", data(), outputs, context())["adversarial"].backward()
    assert all(p.grad is None for p in built.aux.parameters())
    reached = {
        name.split(".")[0] for name, p in built.net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert reached == {"encoder"} and built.auxiliary_lr("discriminator") == 1e-3
