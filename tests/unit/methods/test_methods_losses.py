"""Every loss term of the methods, and its gradient, against plain loops in float64 that follow the formulas of the
papers.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from ccr_dist.errors import ConfigError
from ccr_dist.evaluate.retrieval import Fusion
from ccr_dist.losses.contrastive import positives
from tests.nearness import close
from tests.small import ENGLISH, backbone, batch, context, cosine, method, same_value_and_gradient

N, D, W = 4, 16, 24  # rows, shared space, tower width


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: backbone(tmp_path_factory.mktemp(kind), kind) for kind in ("clip", "dual")}


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(3)
    sizes = {"global": D, "english": D, "visual": D, "sr": D, "sa": W}
    made = {name: torch.randn(N, size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}
    for name in ("global", "sr", "sa"):
        made[name].requires_grad_()
    return made


def squared(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / len(x)


def info_nce(x, y, group, scale):
    """Half the cross entropy of every row of either side against the other side; all of a row's group are equally
    right.
    """
    total = 0
    for one, other in ((x, y), (y, x)):
        for i in range(len(one)):
            logits = [scale * cosine(one[i], other[j]) for j in range(len(other))]
            right = [j for j in range(len(other)) if group[j] == group[i]]
            bottom = torch.logsumexp(torch.stack(logits), 0)
            total = total - sum(logits[j] - bottom for j in right) / len(right) / len(one)
    return total / 2


def test_alignment_with_english(models, frontend, outputs):
    built = method("static", models["clip"], frontend, mse=0.7, cosine=1.3)
    losses = built.losses("cla", batch(), outputs, context())
    assert list(losses) == ["mse", "cosine"]
    x, y = outputs["global"], outputs["english"]
    same_value_and_gradient(losses["mse"], 0.7 * sum(squared(x[i], y[i]) for i in range(N)) / N, [x])
    same_value_and_gradient(losses["cosine"], 1.3 * sum(1 - cosine(x[i], y[i]) for i in range(N)) / N, [x])


@pytest.mark.parametrize("positives", ["group", "diagonal"])
def test_alignment_with_pictures(models, frontend, outputs, positives):
    built = method("static", models["clip"], frontend, contrastive=0.5, scale=20.0, positives=positives)
    group = [7, 3, 7, 5]
    losses = built.losses("cma", batch(group=group), outputs, context())
    assert list(losses) == ["contrastive"]  # as in MLA, the squared error ends with the first stage
    expected = 0.5 * info_nce(outputs["visual"], outputs["global"], group if positives == "group" else range(N), 20.0)
    same_value_and_gradient(losses["contrastive"], expected, [outputs["global"]])


@pytest.mark.parametrize(
    ("stage", "semantics", "y"),
    [("cla", "visual", "english"), ("cma", "visual", "visual"), ("cma", "english", "english")],
)
def test_consistency_and_adversary_of_dasd(models, frontend, outputs, stage, semantics, y):
    built = method("dasd", models["clip"], frontend, consistency=0.3, adversarial=0.02, cma_semantics=semantics)
    built.aux.double()
    ctx = context()
    losses = built.losses(stage, batch(), outputs, ctx)
    assert list(losses) == ["mse", *(["contrastive"] if stage == "cma" else []), "consistency", "adversarial"]
    y, sr, sa = outputs[y], outputs["sr"], outputs["sa"]

    def distance(a, b):
        d = abs(a - b)
        return d if stage == "cla" else torch.where(d < 1, 0.5 * d**2, d - 0.5)

    apart = sum(distance(sr[i, j], y[i, j]) for i in range(N) for j in range(D)) / (N * D)
    same_value_and_gradient(losses["consistency"], 0.3 * apart, [sr])

    strange = ctx.permute(y)
    assert not any(torch.equal(strange[i], y[i]) for i in range(N))

    def judged(pair, which):
        return (
            sum(
                -torch.log(torch.sigmoid(v if k == which else -v))
                for k, v in enumerate(built.aux["discriminator"](pair))
            )
            / 2
        )

    encoder = sum(judged(torch.cat([sa[i], strange[i]]), 0) for i in range(N)) / N
    same_value_and_gradient(losses["adversarial"], 0.02 * encoder, [sa])
    free = sa.detach()
    judge = sum(
        judged(torch.cat([free[i], strange[i]]), 1) + judged(torch.cat([free[i], y[i]]), 0) for i in range(N)
    ) / (2 * N)
    own = built.auxiliary_losses(stage, batch(), {key: value.detach() for key, value in outputs.items()}, ctx)
    same_value_and_gradient(own["discriminator"], judge, list(built.aux["discriminator"].parameters()))


def test_the_released_discriminator_is_trained_to_confuse_itself(models, frontend, outputs):
    """D3: the encoder's loss reaches its weights, too, for the main optimiser to step; the strange pair is the batch in
    reverse.
    """
    built = method("dasd", models["clip"], frontend, adversarial=0.02, discriminator="released", pairing="reversed")
    built.aux.double()
    assert built.entangled == ("discriminator",) and method("dasd", models["clip"], frontend).entangled == ()
    y, sa = outputs["english"], outputs["sa"]

    def judged(pair, which):
        return (
            sum(
                -torch.log(torch.sigmoid(v if k == which else -v))
                for k, v in enumerate(built.aux["discriminator"](pair))
            )
            / 2
        )

    ctx = context()
    encoder = sum(judged(torch.cat([sa[i], y[N - 1 - i]]), 0) for i in range(N)) / N
    released = built.losses("cla", batch(), outputs, ctx)["adversarial"]
    same_value_and_gradient(released, 0.02 * encoder, [sa, *built.aux["discriminator"].parameters()])
    free = sa.detach()
    judge = sum(
        judged(torch.cat([free[i], y[N - 1 - i]]), 1) + judged(torch.cat([free[i], y[i]]), 0) for i in range(N)
    ) / (2 * N)
    own = built.auxiliary_losses("cla", batch(), {key: value.detach() for key, value in outputs.items()}, ctx)
    same_value_and_gradient(own["discriminator"], judge, list(built.aux["discriminator"].parameters()))


def test_right_answers_of_a_batch_with_captions_of_one_item():
    assert positives(torch.tensor([7, 3, 7]), torch.tensor([7, 3, 7])).tolist() == [
        [0.5, 0, 0.5],
        [0, 1, 0],
        [0.5, 0, 0.5],
    ]
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    losses = [float(context(6).contrastive(x, x, scale=1 / tau)) for tau in (1.0, 0.5, 0.1, 0.01)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1e-6


def test_steps_of_discriminator_and_encoder_leave_each_other_alone(models, frontend):
    built = method("dasd", models["clip"], frontend)
    data, ctx = batch(), context()
    outputs = built.outputs("cma", data)
    built.auxiliary_losses("cma", data, {key: value.detach() for key, value in outputs.items()}, ctx)[
        "discriminator"
    ].backward()
    assert all(p.grad is None for p in [*built.net.parameters(), *models["clip"].parameters()])
    assert all(p.grad.abs().sum() > 0 for p in built.aux.parameters())
    built.aux.zero_grad()
    before = {name: p.detach().clone() for name, p in built.aux.named_parameters()}
    built.losses("cma", data, outputs, ctx)["adversarial"].backward()
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in built.aux.named_parameters())
    reached = {name for name, p in built.net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {
        "front_end.table.weight",
        "front_end.linear.weight",
        "front_end.linear.bias",
    }  # code variant: f_sa is read from the trunk


def test_a_part_that_is_switched_off_is_gone(models, frontend):
    def terms(**options):
        built = method("dasd", models["clip"], frontend, **options)
        return (
            set(built.losses("cma", batch(), built.outputs("cma", batch()), context())),
            set(built.net),
            set(built.aux),
        )

    everything = {"mse", "contrastive", "consistency", "adversarial"}
    net = {"front_end", "adapter", "characteristics", "generator"}
    assert terms() == (everything, net, {"discriminator"})
    assert terms(use="sr") == (everything - {"adversarial"}, net, set())
    assert terms(use="sa") == (everything - {"consistency"}, net, {"discriminator"})
    assert terms(use="none") == ({"mse", "contrastive"}, {"front_end", "adapter"}, set())
    assert terms(adversarial=0, consistency=0, keep_english=False) == ({"contrastive"}, net, set())


def test_cached_english_features_are_the_computed_ones(models, frontend):
    for kind, model in models.items():
        built = method("dasd", model, frontend)
        texts = built.outputs("cla", batch())
        with torch.no_grad():
            cached = built.outputs("cla", batch(source_text=[], source_feature=model.text_features(ENGLISH)))
            pictures = built.outputs("cma", batch(visual=model.image_features(batch().visual)))
        close(cached["english"], texts["english"], msg=kind)
        close(pictures["visual"], built.outputs("cma", batch())["visual"], msg=kind)
        assert texts["global"].requires_grad
        model.trainable_parameters("all")  # a teacher is a constant, whoever trains the backbone
        assert not any(built.outputs("cma", batch())[name].requires_grad for name in ("english", "visual"))
        model.trainable_parameters("none")


def test_english_stage_of_heads(models):
    model = models["dual"]
    built = method("english", model, languages=())
    model.train()
    data = batch(group=[1, 2, 1, 3], source_text=[], source_feature=model.text_features(ENGLISH).detach())
    model.eval()  # dropout would hide the comparison
    outputs = built.outputs("english", data)
    loss = built.losses("english", data, outputs, context())["contrastive"]
    scale = math.exp(float(model.heads.logit_scale.detach()))
    double = {name: value.detach().double() for name, value in outputs.items()}
    assert float(loss.detach()) == pytest.approx(
        float(info_nce(double["visual"], double["english"], [1, 2, 1, 3], scale)), rel=1e-4
    )
    loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert (
        reached == {name for name, _ in model.named_parameters() if name.startswith("heads.")}
        and "heads.logit_scale" in reached
    )
    model.zero_grad()
    model.trainable_parameters("none")


def test_english_stage_of_a_whole_clip(models, frontend):
    model = models["clip"]
    built = method("english", model, languages=(), train="all", scale=100.0)
    outputs = built.outputs("english", batch())
    loss = built.losses("english", batch(), outputs, context())["contrastive"]
    loss.backward()
    untouched = {name for name, p in model.named_parameters() if p.grad is None}
    assert untouched == {"model.logit_scale"}  # the scale is fixed here
    data = batch(group=[1, 2, 1, 3])
    double = {name: value.detach().double() for name, value in outputs.items()}
    for right, group in (("group", [1, 2, 1, 3]), ("diagonal", range(N))):
        built = method("english", model, languages=(), train="all", scale=100.0, positives=right)
        loss = built.losses("english", data, outputs, context())["contrastive"]
        assert float(loss.detach()) == pytest.approx(
            float(info_nce(double["visual"], double["english"], group, 100.0)), rel=1e-4
        )
    with pytest.raises(ConfigError, match="name the column of pictures"):
        built.outputs("english", batch(visual=torch.zeros(N, D)))
    model.zero_grad()
    model.trainable_parameters("none")
    with pytest.raises(ConfigError, match="no projection heads"):
        method("english", model, languages=())


@pytest.mark.parametrize("kind", ["clip", "dual"])
def test_english_stage_of_the_text_encoder_alone(models, kind):
    """The picture side is locked: pictures and their cached features are the same to it."""
    model = models[kind]
    built = method("english", model, languages=(), train="text")
    data = batch()
    if kind == "dual":
        data.visual = torch.nn.functional.interpolate(data.visual, size=160)
    cached = dataclasses.replace(data, visual=model.image_features(data.visual).detach())
    outputs = built.outputs("english", data)
    close(built.outputs("english", cached), outputs)
    built.losses("english", data, outputs, context())["contrastive"].backward()
    reached = {f"backbone.{name}" for name, p in model.named_parameters() if p.grad is not None}
    assert reached and reached <= set(built.trainable("english"))
    assert all(model.part_of(name.removeprefix("backbone.")) == "text" for name in built.trainable("english"))
    assert ("backbone.model.logit_scale" in reached) == (kind == "clip")
    model.zero_grad()
    model.trainable_parameters("none")


@pytest.mark.parametrize(("kind", "options"), [("dual", {}), ("clip", {"train": "all"})])
def test_english_stage_on_a_rank_without_rows(models, kind, options):
    model = models[kind]
    built = method("english", model, languages=(), **options)
    outputs = built.outputs("english", batch(0))
    assert [len(outputs[name]) for name in ("visual", "english")] == [0, 0]
    sum(value.sum() for value in outputs.values()).backward()
    assert all(
        p.grad is not None for name, p in model.named_parameters() if kind == "clip" or name.startswith("heads.")
    )
    model.zero_grad()
    model.trainable_parameters("none")


def test_score_is_the_cosine(models):
    text, visual = torch.randn(3, D), torch.randn(5, D)
    built = method("clip", models["clip"], languages=())
    score = built.scores({"global": text}, {"global": visual})["global"]
    assert score.shape == (3, 5) and built.fusions() == [Fusion({"global": 1.0})]
    close(score[1, 2], cosine(text[1], visual[2]))
    assert isinstance(method("clip", models["clip"], languages=()).net, nn.ModuleDict)
