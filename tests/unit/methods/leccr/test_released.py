"""LECCR as its release computes, written anew in float64: gradients of its two processes, position embeddings,
captions, ties.
"""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, strategies
from torch.nn import functional as F

from ccr_dist.errors import ConfigError
from ccr_dist.losses.slots import slot_scores
from ccr_dist.methods.leccr.captions import words_of
from ccr_dist.methods.nrccr.losses import hardest_negative
from ccr_dist.models.backbones.build import build_backbone
from tests.nearness import close
from tests.small import backbone, batch, context, method
from tests.tiny import tiny_clip_config, tiny_encoder

pytestmark = pytest.mark.long

N, D, K, W, T, PROCESSES = 6, 5, 3, 8, 4, 2  # rows, shared space, slots, width of slots and tokens, tokens, processes
GROUP = [1, 2, 1, 3, 4, 3]
WEIGHTS = {"local": 0.3, "soft": 0.4, "diversity": 0.2, "vision": 0.7}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leccr")
    return backbone(folder / "clip", "clip"), tiny_encoder(folder / "encoder")


class Gathered(torch.autograd.Function):
    """All processes' rows; the gradient of this process' rows alone comes back."""

    @staticmethod
    def forward(ctx, mine, everything, first):
        ctx.first, ctx.rows = first, len(mine)
        return everything.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.first : ctx.first + ctx.rows], None, None


def released(features, w_c, w_p, tau, video):
    """The mean over processes of the loss that each computes: what data-parallel training descends."""
    total, rows, group = 0.0, N // PROCESSES, torch.tensor(GROUP)
    for process in range(PROCESSES):
        here = slice(process * rows, (process + 1) * rows)
        own = {name: value[here] for name, value in features.items()}
        every = {name: Gathered.apply(own[name], value.detach(), here.start) for name, value in features.items()}

        def right(ids):
            same = (ids[:, None] == ids[None, :]).double()
            return same / same.sum(1, keepdim=True)

        def entropy(labels, logits):
            return -(labels * F.log_softmax(logits, 1)).sum(1).mean()

        def pair(x, y):
            logits = x @ y.T / tau
            return (entropy(right(group), logits) + entropy(right(group), logits.T)) / 2

        def best(local, texts):
            return torch.stack([slot @ texts.T for slot in local.unbind(1)]).max(0)[0]

        def slots_with(local, texts):
            logits, labels = best(local, texts) / tau, torch.eye(rows, dtype=torch.float64)
            return (entropy(labels, logits) + entropy(labels, logits.T)) / 2

        def scaled(z):
            z = z - z.min()
            return z / z.max()

        teacher = 0.8 * scaled(every["english"] @ every["visual"].T) + 0.2 * scaled(
            best(every["local"], every["english"])
        )
        teacher = F.softmax(teacher, 1).detach()
        soft = (teacher * (teacher.log() - F.log_softmax(every["target"] @ every["visual"].T, 1))).sum(1).mean()
        unit = F.normalize(own["slots"], dim=-1)
        diversity = (unit @ unit.transpose(1, 2) - torch.eye(K, dtype=torch.float64)).mean()
        slots, tokens, ids = (
            (own["slots"], own["tokens"], group[here]) if video else (every["slots"], every["tokens"], group)
        )
        # over the second axis, as `dim=1` is the default
        slots, tokens = F.normalize(w_c(slots)), F.normalize(w_p(tokens))
        means = torch.einsum("ikd,jtd->ij", slots, tokens) / (K * T)
        total = (
            total
            + pair(every["visual"], every["english"])
            + (1 - WEIGHTS["soft"]) * pair(every["visual"], every["target"])
        )
        total = (
            total + pair(every["english"], every["target"]) + WEIGHTS["soft"] * soft + WEIGHTS["diversity"] * diversity
        )
        total = total + WEIGHTS["local"] * (
            slots_with(own["local"], own["english"]) + slots_with(own["local"], own["target"])
        )
        total = total + WEIGHTS["vision"] * entropy(right(ids), means)
    return total / PROCESSES


@pytest.mark.parametrize("video", [False, True], ids=["image", "video"])
def test_gradients_are_those_of_the_releases_two_processes(parts, video):
    clip, encoder = parts
    kind = {"visual": "video", "frame_width": W} if video else {"width": W}
    built = method("leccr", clip, text_encoder=encoder, dim=D, heads=2, slots=K, processes=PROCESSES, **kind, **WEIGHTS)
    built.net.double()
    generator = torch.Generator().manual_seed(5)
    sizes = {
        "visual": (N, D),
        "english": (N, D),
        "target": (N, D),
        "local": (N, K, D),
        "slots": (N, K, W),
        "tokens": (N, T, W),
    }
    raw = {
        name: torch.randn(*size, generator=generator, dtype=torch.float64, requires_grad=True)
        for name, size in sizes.items()
    }
    features = {name: F.normalize(value, dim=-1) if value.ndim == 2 else value for name, value in raw.items()}
    tau = built.temperature["tau"]
    trained = [*raw.values(), *built.visual.slot_mean.parameters(), *built.visual.token_mean.parameters(), tau]

    built.encode_text = lambda texts, lang: {"global": torch.cat([features["english"], features["target"]])}
    found = {**features, "global": features["visual"]}
    built._described = lambda *given: (found, None)
    rows = batch(N, source_text=[""] * N, target_text=[""] * N, group=GROUP, visual=torch.zeros(N, T, W))
    ours = torch.stack(list(built.losses("train", rows, built.outputs("train", rows), context(N)).values())).sum()
    theirs = released(features, built.visual.slot_mean, built.visual.token_mean, tau, video)
    close(ours, theirs)
    close(torch.autograd.grad(ours, trained, retain_graph=True), torch.autograd.grad(theirs, trained))


def test_position_embeddings_are_resized_by_bicubic_convolution_without_antialiasing(tmp_path):
    """Keys' cubic kernel with a = -0.75, four points wide whatever the scale, edges repeated."""
    config = tiny_clip_config(tmp_path / "clip")
    before = build_backbone(config).model.visual.positional_embedding.detach().double()
    side = math.isqrt(len(before) - 1)
    changed = config.model_copy(update={"image_size": 48, "positions": "plain"})
    found = build_backbone(changed)
    new = math.isqrt(len(found.model.visual.positional_embedding) - 1)
    assert new > side > 1

    def kernel(x, a=-0.75):
        x = abs(x)
        return (
            (a + 2) * x**3 - (a + 3) * x**2 + 1
            if x <= 1
            else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
            if x < 2
            else 0.0
        )

    weights = torch.zeros(new, side, dtype=torch.float64)
    for place in range(new):
        centre = (place + 0.5) * side / new - 0.5
        for point in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[place, min(max(point, 0), side - 1)] += kernel(centre - point)
    grid = before[1:].reshape(side, side, -1)
    expected = torch.einsum("xi,yj,ijw->xyw", weights, weights, grid).reshape(new * new, -1)
    close(found.model.visual.positional_embedding.double(), torch.cat([before[:1], expected]), tolerance=1e-5)
    default = build_backbone(changed.model_copy(update={"positions": "antialias"}))
    assert default.identity()["digest"] != found.identity()["digest"], "features of the one are none of the other"


def test_positions_that_are_no_table_are_refused(tmp_path):
    config = tiny_clip_config(tmp_path / "clip", text="custom")
    if hasattr(build_backbone(config).model.visual, "positional_embedding"):
        config = config.model_copy(update={"model": "RN50", "pretrained": None})
    with pytest.raises(ConfigError, match=r"backbone.positions: .* no vision transformer of open_clip's own"):
        build_backbone(config.model_copy(update={"image_size": 64, "positions": "plain"}))
    with pytest.raises(ValueError, match="without image_size"):
        type(config)(**{**config.model_dump(), "image_size": None, "positions": "plain"})


CHARACTERS = "ab \t\u00a0\n" + "".join(map(chr, range(33, 48))) + "<person>:;@[]{|}~É柠，"


@given(strategies.text(CHARACTERS, max_size=30))
def test_captions_are_cleaned_as_released(caption):
    plain = (
        re.sub(r"([,.'!?\"()*#:;~])", " ", caption.lower())
        .replace("-", " ")
        .replace("/", " ")
        .replace("<person>", "person")
    )
    plain = re.sub(r"\s{2,}", " ", plain).rstrip("\n").strip(" ")
    words = plain.split(" ")
    assert words_of(caption, "released")[:5] == [word for word in words[:5] if word]


def test_what_no_mark_is_stays_in_a_caption(parts):
    built = method("leccr", parts[0], text_encoder=parts[1], dim=D, heads=2)
    caption = "A $5 & 10%_off @ <b>tab\there</b>\u00a0+ it's/OK."
    assert built._prepared([caption]) == ["a $5 & 10%_off @ <b>tab\there< b>\u00a0+ it s ok"]
    intended = method("leccr", parts[0], text_encoder=parts[1], dim=D, heads=2, mode="intended")
    assert intended._prepared(["A $5 & 10%_off\tit's"]) == ["a 5 10 off it s"], "as it always was"


def test_of_slots_and_negatives_that_tie_the_first_takes_the_gradient():
    local = torch.ones(1, 3, 2, dtype=torch.float64, requires_grad=True)
    text = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    (grad,) = torch.autograd.grad(slot_scores(local, text).sum(), local)
    assert grad.tolist() == [[[1, 2], [0, 0], [0, 0]]]
    assert slot_scores(torch.tensor([[[1.0], [torch.nan]]]), torch.ones(1, 1)).isnan().all()
    similarity = torch.tensor([[0.5, 0.4, 0.4]], requires_grad=True)
    right = torch.tensor([[True, False, False]])
    (grad,) = torch.autograd.grad(hardest_negative(similarity, torch.tensor([0.5]), right, 0.2).sum(), similarity)
    assert grad.tolist() == [[0, 1, 0]]
