"""Cross blocks, slots, interaction and temporal encoder: the published formula in a slow loop, the published sizes,
padding, no rows.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ccr_dist.models.slots import CrossBlock, CrossStack, Interaction, Slots
from ccr_dist.models.temporal import TemporalEncoder, mean_over_time
from tests.nearness import close

WIDTH, HEADS = 8, 2


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tensors(*shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def unsettled(module: nn.Module) -> nn.Module:
    """In float64, with biases and norms away from where they start."""
    module = module.double().eval()
    for parameter, noise in zip(
        module.parameters(), tensors(*(p.shape for p in module.parameters()), seed=9), strict=True
    ):
        parameter.data += 0.3 * noise
    return module


def slow_block(block: CrossBlock, queries, memory, mask):
    """LN(Q + W2 GELU(W1 MHA(Q, M, M))), position by position."""
    size = WIDTH // HEADS
    w_q, w_k, w_v = block.attention.in_proj_weight.chunk(3)
    b_q, b_k, b_v = block.attention.in_proj_bias.chunk(3)
    rows = []
    for row, (query_row, memory_row) in enumerate(zip(queries, memory, strict=True)):
        there = [m for m in range(len(memory_row)) if mask is None or mask[row, m]]
        for query in query_row:
            heads = []
            for head in range(HEADS):
                part = slice(head * size, (head + 1) * size)
                q = w_q[part] @ query + b_q[part]
                weights = [torch.exp(q @ (w_k[part] @ memory_row[m] + b_k[part]) / math.sqrt(size)) for m in there]
                values = [w_v[part] @ memory_row[m] + b_v[part] for m in there]
                heads.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
            a = block.attention.out_proj.weight @ torch.cat(heads) + block.attention.out_proj.bias
            inner = block.inner.weight @ a + block.inner.bias
            gelu = torch.stack([x * 0.5 * (1 + torch.erf(x / math.sqrt(2))) for x in inner])
            y = query + block.outer.weight @ gelu + block.outer.bias
            centred = y - y.sum() / WIDTH
            rows.append(
                centred / ((centred * centred).sum() / WIDTH + 1e-5).sqrt() * block.norm.weight + block.norm.bias
            )
    return torch.stack(rows).reshape(queries.shape)


@pytest.mark.parametrize("masked", [False, True])
def test_a_block_is_the_published_formula_gradients_included(masked):
    block = unsettled(CrossBlock(WIDTH, HEADS))
    queries, memory, upstream = tensors((2, 3, WIDTH), (2, 4, WIDTH), (2, 3, WIDTH))
    mask = torch.tensor([[True, True, False, True], [False, True, True, False]]) if masked else None
    leaves = [queries.requires_grad_(), memory.requires_grad_(), *block.parameters()]
    fast, slow = block(queries, memory, mask), slow_block(block, queries, memory, mask)
    close(fast, slow)
    for ours, theirs in zip(
        *(torch.autograd.grad((out * upstream).sum(), leaves) for out in (fast, slow)), strict=True
    ):
        close(ours, theirs)


def test_the_residual_is_on_the_queries_alone():
    block = unsettled(CrossBlock(WIDTH, HEADS))
    nn.init.zeros_(block.outer.weight)
    nn.init.zeros_(block.outer.bias)
    queries, memory = tensors((2, 3, WIDTH), (2, 4, WIDTH))
    close(block(queries, memory), block.norm(queries))


def test_dropout_is_on_attention_weights_behind_gelu_and_behind_the_feed_forward():
    block = CrossBlock(WIDTH, HEADS).train()
    queries, memory = tensors((2, 3, WIDTH), (2, 4, WIDTH), dtype=torch.float32)
    assert block.attention.dropout == block.dropout.p == 0.1
    dropped, made = [], []
    block.dropout.register_forward_hook(lambda module, inputs, output: dropped.append((inputs[0], output)))
    for linear in (block.inner, block.outer):
        linear.register_forward_hook(lambda module, inputs, output: made.append(output))
    out = block(queries, memory)
    assert [id(x) for x, _ in dropped[1:]] == [id(made[1])] and torch.equal(dropped[0][0], nn.functional.gelu(made[0]))
    assert torch.equal(out, block.norm(queries + dropped[1][1]))


def test_sizes_are_those_of_the_paper_without_the_norm_that_is_never_used():
    with torch.device("meta"):
        assert count(CrossBlock(512)) == 1_577_984 - 1_024
        assert count(CrossBlock(4096)) == 100_704_256 - 8_192
        slots, interaction = Slots(768, 512, slots=4, blocks=3), Interaction(512, blocks=2)
    blocks = 7 * (1_577_984 - 1_024)
    assert count(slots) + count(interaction) == blocks + (768 * 512 + 512) + 4 * 512
    # What receives gradients in the whole image model: ViT-B/32 at 384 px, mBERT without pooler, four heads,
    # temperature, and these.
    heads = 2 * (512 * 256 + 256) + (768 * 256 + 256) + 2 * (512 * 512 + 512) + 1
    assert 87_922_176 + 177_262_848 + heads + count(slots) + count(interaction) == 277_604_353


def test_shapes_of_the_image_model():
    slots, interaction = Slots(768, 512, slots=4, blocks=1), Interaction(512, blocks=1)
    states, visual = tensors((2, 11, 768), (2, 145, 512), dtype=torch.float32)
    s0 = slots(states, torch.ones(2, 11, dtype=torch.bool))
    v1, s1 = interaction(visual, s0)
    assert s0.shape == s1.shape == (2, 4, 512) and v1.shape == (2, 145, 512)


def test_a_stack_starts_as_copies_and_reads_the_same_memory_again():
    stack = CrossStack(WIDTH, 3, HEADS).eval()
    first = [p.clone() for p in stack.blocks[0].parameters()]
    assert all(torch.equal(p, q) for block in stack.blocks for p, q in zip(block.parameters(), first, strict=True))
    assert len({id(p) for p in stack.parameters()}) == 3 * len(first)
    stack = unsettled(stack)
    queries, memory = tensors((2, 3, WIDTH), (2, 4, WIDTH))
    expected = queries
    for block in stack.blocks:
        expected = block(expected, memory)
    assert torch.equal(stack(queries, memory), expected)


def spread(slots: torch.Tensor) -> float:
    return (slots - slots[:, :1]).abs().max().item()


def test_zero_queries_make_equal_slots_until_dropout_parts_them():
    states, mask = torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.bool)
    released, intended = (Slots(6, WIDTH, 4, 2, start, heads=HEADS) for start in ("zero", "normal"))
    assert not released.queries.any() and 0.01 < intended.queries.std() < 0.03
    assert spread(released.eval()(states, mask)) < 1e-5 < 1e-3 < spread(intended.eval()(states, mask))
    assert spread(released.train()(states, mask)) > 1e-3


def test_interaction_reads_what_came_in_side_by_side():
    interaction = unsettled(Interaction(WIDTH, 2, heads=HEADS))
    visual, slots = tensors((2, 5, WIDTH), (2, 3, WIDTH))
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    v1, s1 = interaction(visual, slots, mask)
    close(v1, interaction.visual(visual, slots))
    close(s1, interaction.slots(slots, visual, mask))
    assert {id(p) for p in interaction.visual.parameters()}.isdisjoint(id(p) for p in interaction.slots.parameters())


def test_padding_is_not_read_and_rows_do_not_see_each_other():
    slots = unsettled(Slots(6, WIDTH, 4, 2, heads=HEADS))
    (states,) = tensors((3, 5, 6))
    mask = torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])
    out = slots(states, mask)
    close(slots(torch.where(mask.unsqueeze(-1), states, 7.0), mask), out)
    close(slots(states[1:2, :2], mask[1:2, :2]), out[1:2])
    turned = torch.tensor([2, 0, 1])
    close(slots(states[turned], mask[turned]), out[turned])


def test_a_row_of_padding_alone_is_finite_and_so_are_its_gradients():
    slots = unsettled(Slots(6, WIDTH, 4, 2, heads=HEADS))
    states = tensors((2, 5, 6))[0].requires_grad_()
    out = slots(states, torch.tensor([[True] * 5, [False] * 5]))
    out.sum().backward()
    assert (
        out.isfinite().all() and states.grad is not None and states.grad.isfinite().all() and not states.grad[1].any()
    )
    assert all(p.grad is not None and p.grad.isfinite().all() for p in slots.parameters())


def test_a_video_of_padding_alone_is_finite_in_inference_too():
    """Where torch takes another kernel for self-attention, one that divides by nothing."""
    temporal, frames = TemporalEncoder(WIDTH, HEADS).eval(), torch.randn(2, 5, WIDTH)
    mask = torch.tensor([[True] * 5, [False] * 5])
    with torch.inference_mode():
        out = temporal(frames, mask)
    assert out.isfinite().all()
    close(out, temporal(frames, mask))


@pytest.mark.parametrize(("tokens", "length"), [(5, 7), (0, 0)])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_no_rows_give_empty_tensors_that_hang_on_every_parameter(tokens, length, checkpoint):
    slots, interaction, temporal = (
        Slots(6, WIDTH, 4, 2, heads=HEADS),
        Interaction(WIDTH, 2, heads=HEADS),
        TemporalEncoder(WIDTH, HEADS),
    )
    there = torch.ones(0, tokens, dtype=torch.bool)
    frames = temporal(torch.zeros(0, tokens, WIDTH), there, checkpoint)
    v1, s1 = interaction(
        frames, slots(torch.zeros(0, length, 6), torch.ones(0, length, dtype=torch.bool), checkpoint), there, checkpoint
    )
    assert (
        v1.shape == (0, tokens, WIDTH) and s1.shape == (0, 4, WIDTH) and mean_over_time(v1, there).shape == (0, WIDTH)
    )
    (v1.sum() + s1.sum()).backward()
    for module in (slots, interaction, temporal):
        assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_checkpointing_changes_no_bit_not_even_with_dropout():
    slots, interaction = Slots(6, WIDTH, 4, 2, heads=HEADS), Interaction(WIDTH, 2, heads=HEADS)
    states, visual = tensors((2, 5, 6), (2, 7, WIDTH), dtype=torch.float32)
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(3)
        parts = interaction(visual, slots(states, None, checkpoint), None, checkpoint)
        gradients = torch.autograd.grad(
            sum(part.square().sum() for part in parts), [*slots.parameters(), *interaction.parameters()]
        )
        found.append([*parts, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_half_precision_stays_close_and_finite():
    slots, states = Slots(6, WIDTH, 4, 2, heads=HEADS).eval(), torch.randn(2, 5, 6)
    mask = torch.tensor([[True] * 5, [False] * 5])
    with torch.autocast("cpu", torch.bfloat16):
        half = slots(states, mask, True)
    close(half.float(), slots(states, mask), tolerance=0.05)


# Videos


def test_frames_read_frames_and_their_padding_changes_nothing():
    temporal = unsettled(TemporalEncoder(WIDTH, HEADS))
    (frames,) = tensors((2, 5, WIDTH))
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    out = temporal(frames, mask)
    close(out, slow_block(temporal.block, frames, frames, mask))
    short = temporal(frames[1:, :2], mask[1:, :2])
    close(out[1:, :2], short)
    close(mean_over_time(out, mask)[1:], mean_over_time(short))


def test_the_mean_over_time_is_that_of_the_frames_that_are_there():
    (frames,) = tensors((3, 4, 2))
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    expected = [
        [sum(frames[n, t, w] for t in range(4) if mask[n, t]) / max(1, mask[n].sum()) for w in range(2)]
        for n in range(3)
    ]
    close(mean_over_time(frames, mask), torch.tensor(expected, dtype=torch.float64))
