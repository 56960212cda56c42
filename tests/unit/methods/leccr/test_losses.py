"""The seven loss terms of LECCR and their gradients against plain loops in float64, in both modes and with every
switch.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ccr_dist.losses.contrastive import cross_entropy, positives, similarities
from ccr_dist.losses.slots import overlap, slot_scores
from ccr_dist.methods.leccr.losses import softened
from ccr_dist.methods.leccr.network import EnrichedVisual
from tests.nearness import close
from tests.small import backbone, batch, context, method
from tests.tiny import tiny_encoder

N, D, K, W, T = 6, 5, 3, 8, 4  # rows, shared space, slots, width of slots and tokens, tokens
GROUP = [1, 2, 1, 3, 4, 2]
TAU = 0.2


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leccr")
    clip, encoder = backbone(folder / "clip", "clip"), tiny_encoder(folder / "encoder")
    return lambda **options: method("leccr", clip, text_encoder=encoder, dim=D, heads=2, **options)


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(3)
    sizes = {"visual": (N, D), "english": (N, D), "target": (N, D), "local": (N, K, D), "slots": (N, K, W)}
    sizes |= {"slot_mean": (N, W), "token_mean": (N, W)}
    made = {name: torch.randn(*size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    for name in ("visual", "english", "target"):
        made[name] = torch.nn.functional.normalize(made[name], dim=-1)
    made["scale"] = torch.tensor([1 / TAU], dtype=torch.float64)
    return {name: value.requires_grad_() for name, value in made.items()}


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def length(x):
    return torch.sqrt(dot(x, x))


def log_softmax(logits):
    bottom = torch.log(sum(torch.exp(z) for z in logits))
    return [z - bottom for z in logits]


def right(i, group, among):
    return [j for j in among if (j == i if group is None else group[j] == group[i])]


def one_way(score, group=None, near=None):
    """CE(P, Z) of the matrix `score(i, j)`; every row among the rows of its own part."""
    total = 0
    for i in range(N):
        among = [j for j in range(N) if near is None or i // near == j // near]
        log_p = dict(zip(among, log_softmax([score(i, j) for j in among]), strict=True))
        answers = right(i, group, among)
        total = total - sum(log_p[j] for j in answers) / len(answers)
    return total / N


def both_ways(score, group=None, near=None):
    return (one_way(score, group, near) + one_way(lambda i, j: score(j, i), group, near)) / 2


def best(local, x):
    """Lambda: of item i and text j."""
    return lambda i, j: max((dot(local[i][k], x[j]) for k in range(K)), key=lambda score: score.item())


def minmax(score):
    values = [[float(score(i, j)) for j in range(N)] for i in range(N)]
    low, high = min(map(min, values)), max(map(max, values))
    return lambda i, j: (values[i][j] - low) / (high - low)


def same(fast, slow, inputs):
    """Value, gradients, and that there is a gradient for nothing else."""
    close(fast, slow.reshape(fast.shape))
    ours = torch.autograd.grad(fast, list(inputs.values()), retain_graph=True, allow_unused=True)
    loops = torch.autograd.grad(slow, list(inputs.values()), retain_graph=True, allow_unused=True)
    for name, a, b in zip(inputs, ours, loops, strict=True):
        assert (a is None or not a.any()) == (b is None or not b.any()), name
        if b is not None and a is not None:
            close(a, b, msg=name)


def losses(built, outputs, **options):
    return built(**options).losses("train", batch(N, group=GROUP), outputs, context(N))


@pytest.mark.parametrize("mode", ["released", "intended"])
def test_all_seven_terms(built, outputs, mode):
    terms = losses(built, outputs, mode=mode, local=0.3, soft=0.4, diversity=0.2, vision=0.6)
    assert list(terms) == ["visual_english", "visual_target", "english_target", "local", "soft", "diversity", "vision"]
    g, e, f, local = (outputs[name] for name in ("visual", "english", "target", "local"))
    scale = outputs["scale"][0]

    def cosines(x, y):
        return lambda i, j: scale * dot(x[i], y[j]) / length(x[i]) / length(y[j])

    same(terms["visual_english"], both_ways(cosines(g, e), GROUP), outputs)
    same(terms["visual_target"], 0.6 * both_ways(cosines(g, f), GROUP), outputs)
    same(terms["english_target"], both_ways(cosines(e, f), GROUP), outputs)

    group = None if mode == "released" else GROUP
    matched = [both_ways(lambda i, j, x=x: scale * best(local, x)(i, j), group) for x in (e, f)]
    same(terms["local"], 0.3 * sum(matched), outputs)

    tau = 1.0 if mode == "released" else 0.05
    with torch.no_grad():
        # L2: rows are items where texts belong
        by_slot = best(local, e) if mode == "released" else lambda i, j: best(local, e)(j, i)
        parts = minmax(lambda i, j: dot(e[i], g[j])), minmax(by_slot)
    soft = 0
    for i in range(N):
        q = torch.softmax(
            torch.tensor([(0.8 * parts[0](i, j) + 0.2 * parts[1](i, j)) / tau for j in range(N)], dtype=torch.float64),
            0,
        )
        log_p = log_softmax([dot(f[i], g[j]) / tau for j in range(N)])
        soft = soft + sum(q[j] * (torch.log(q[j]) - log_p[j]) for j in range(N)) / N
    same(terms["soft"], 0.4 * soft, outputs)

    s = outputs["slots"]
    pairs = itertools.product(range(N), range(K), range(K))
    apart = sum(dot(s[b, k], s[b, m]) / length(s[b, k]) / length(s[b, m]) - float(k == m) for b, k, m in pairs) / (
        N * K * K
    )
    same(terms["diversity"], 0.2 * apart, outputs)
    same(
        terms["vision"],
        0.6 * one_way(lambda i, j: dot(outputs["slot_mean"][i], outputs["token_mean"][j]), GROUP),
        outputs,
    )


def test_the_vision_term_is_a_mean_over_all_pairs_of_slot_and_token():
    torch.manual_seed(0)
    visual = EnrichedVisual(W, 3, D, slots=K, heads=2).double()
    n = 3
    tokens, slots = torch.randn(n, T, W).double().requires_grad_(), torch.randn(n, K, W).double().requires_grad_()
    mask = torch.arange(T) < torch.tensor([4, 1, 3])[:, None]
    c, v = visual.slot_mean(slots), visual.token_mean(tokens)
    for axis in ("features", "tokens"):

        def normal(x, count, axis=axis):
            """Of the first `count` slots or tokens."""
            if axis == "features":
                return [x[p] / length(x[p]) for p in range(count)]
            return [torch.stack([x[p, d] / length(x[:count, d]) for d in range(W)]) for p in range(count)]

        slow = []
        for i, j in itertools.product(range(n), range(n)):
            count = int(mask[j].sum())
            slow.append(sum(dot(a, b) for a in normal(c[i], K) for b in normal(v[j], count)) / (K * count))
        x, y = visual.means(tokens, mask, slots, axis)
        inputs = {"tokens": tokens, "slots": slots, **dict(visual.named_parameters())}
        weights = torch.randn(n * n).double()
        same((similarities(x, y).flatten() * weights).sum(), dot(torch.stack(slow), weights), inputs)


def test_local_term_in_chunks_is_the_mean_over_the_chunks(built, outputs):
    local, scale = outputs["local"], outputs["scale"][0]
    for labels, group in (("diagonal", None), ("group", GROUP)):
        term = losses(built, outputs, local=1.0, local_chunk=4, local_labels=labels)["local"]
        slow = [
            both_ways(lambda i, j, x=x: scale * best(local, x)(i, j), group, near=4)
            for x in (outputs["english"], outputs["target"])
        ]
        same(term, sum(slow), outputs)
    apart = losses(built, outputs, local=1.0, local_chunk=1)["local"]
    assert float(apart.detach()) == 0  # nothing to be told from


def test_terms_that_are_switched_off_are_gone(built, outputs):
    pairs = ["visual_english", "visual_target", "english_target"]
    assert list(losses(built, outputs, local=0, soft=0, diversity=0, vision=0)) == pairs
    assert list(losses(built, outputs, descriptions=False)) == [*pairs, "soft"]
    assert list(losses(built, outputs, local=0)) == [*pairs, "soft", "diversity", "vision"]
    whole, half = (losses(built, outputs, soft=weight)["visual_target"] for weight in (0.0, 0.5))
    close(half, 0.5 * whole)


@pytest.mark.parametrize("options", [{"local": 0}, {"descriptions": False}, {"soft_global": 1.0}])
def test_without_slots_the_teacher_is_global(built, outputs, options):
    """With `soft_global` at 1 the slots have no share; otherwise the global part takes it all."""
    soft = losses(built, outputs, mode="intended", soft=1.0, **options)["soft"]
    e, f, g = (outputs[name] for name in ("english", "target", "visual"))
    teacher = e @ g.T
    teacher = (teacher - teacher.min()) / (teacher.max() - teacher.min())
    close(soft, softened(teacher, f @ g.T, 0.05).mean())


def test_released_softened_matching_is_all_but_inert():
    """At 128 rows an ideal teacher puts 0.021 on the true pair (uniform: 0.0078), and KL to a uniform student is 0.0076
    (trap L1).
    """
    ideal, uniform = torch.eye(128, dtype=torch.float64), torch.zeros(128, 128, dtype=torch.float64)
    assert float(torch.softmax(ideal, 1)[0, 0]) == pytest.approx(0.021, abs=5e-4)
    assert float(softened(ideal, uniform, 1.0).mean()) == pytest.approx(0.0076, abs=5e-5)
    assert float(softened(ideal, uniform, 0.05).mean()) > 1


def test_two_right_answers_get_half_each():
    labels = positives(torch.tensor([5, 7, 5]), torch.tensor([5, 7, 5]))
    assert labels.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]
    x = torch.nn.functional.normalize(torch.randn(5, 4, dtype=torch.float64), dim=-1)
    values = [float(context(5).contrastive(x, x, scale=1 / tau)) for tau in (1.0, 0.5, 0.1)]
    assert values == sorted(values, reverse=True)
    assert float(cross_entropy(torch.zeros(1, 4), positives(torch.tensor([0]), torch.arange(4)))) == pytest.approx(
        math.log(4), rel=1e-5
    )


def test_the_order_of_slots_does_not_matter():
    local, text, slots = torch.randn(3, K, D), torch.randn(7, D), torch.randn(3, K, W)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(slot_scores(local, text), slot_scores(local[:, order], text)) and slot_scores(
        local, text
    ).shape == (3, 7)
    close(overlap(slots), overlap(slots[:, order]))
    assert overlap(slots).min() < 1 - 1 / K and overlap(torch.ones(2, K, W)).tolist() == pytest.approx(
        [1 - 1 / K] * 2, rel=1e-5
    )


def test_scores_keep_their_digits_under_autocast():
    local, text = torch.randn(3, K, 64), torch.randn(7, 64)
    exact = slot_scores(local.double(), text.double()).float()
    with torch.autocast("cpu", torch.bfloat16):
        close(slot_scores(local, text), exact)
        close(overlap(local), overlap(local.double()).float())


def test_minmax_of_equal_values():
    ctx = context(3)
    assert (
        not ctx.minmax(torch.full((3, 3), 7.0)).any()
        and not ctx.minmax(torch.randn(3, 3, requires_grad=True)).requires_grad
    )
    assert ctx.minmax(torch.tensor([[1.0, 2.0, 3.0]] * 3)).tolist() == [[0.0, 0.5, 1.0]] * 3
