"""`projection` and `dynamic`: their losses against loops in float64, their start, parts of a batch, and short runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ccr_dist
from ccr_dist.errors import ConfigError
from ccr_dist.methods.base import Method
from ccr_dist.methods.run_config import load_config
from ccr_dist.models import tensorfile
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.train.loop import train_run
from ccr_dist.train.strategies.strategy import Strategy
from tests import query_side, tiny
from tests.nearness import apart, close
from tests.short_runs import train
from tests.small import ENGLISH, SPANISH, batch, context, cosine, method, same_value_and_gradient, unsettle

N = 4
NAMES = ("projection", "dynamic")
SMALL: dict[str, dict[str, Any]] = {"projection": {"hidden": 12, "dropout": 0.0}, "dynamic": {"rank": 6}}
STAGE = {"align": {"steps": 3, "batch": 10, "lr": 1e-2, "warmup": 0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("aligned")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    found = build_backbone(tiny.tiny_dual_config(folder / "dual"))
    for parameter in found.parameters():
        parameter.requires_grad_(False)
    return found


def built(folder: Path, backbone: Backbone, name: str, **options: Any) -> Method:
    query = {"text": query_side.encoder(folder)}
    return method(name, backbone, languages=("es",), **{"query": query, **SMALL[name], **options})


def outputs(width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    made = {
        name: torch.randn(N, width, generator=generator, dtype=torch.float64)
        for name in ("global", "english", "visual")
    }
    made["global"].requires_grad_()
    return made


def features(model: Any, backbone: Any, rows: int = N) -> Any:
    """A batch of features: of captions in Spanish, of their English ones, and of pictures."""
    generator = torch.Generator().manual_seed(1)
    query, visual = (torch.randn(rows, size, generator=generator) for size in (model.query.dim, backbone.image.width))
    with torch.no_grad():
        english = backbone.text_features(ENGLISH[:rows] or [""])[:rows]
    return batch(rows, query_feature=query, visual=visual, source_feature=english, source_text=[])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("positives", ["group", "diagonal"])
def test_losses(folder: Path, backbone: Backbone, name: str, positives: str) -> None:
    weights = {"mse": 0.7, "cosine": 1.3, "contrastive": 0.5, "scale": 20.0, "positives": positives, "pictures": 0.3}
    model = built(folder, backbone, name, **weights)
    found, group = outputs(backbone.dim), [7, 3, 7, 5]
    losses = model.losses("align", batch(group=group), found, context())
    assert list(losses) == ["mse", "cosine", "contrastive"]
    x, y, v = (found[key] for key in ("global", "english", "visual"))

    def length(row: Tensor) -> Tensor:
        return sum(value * value for value in row).sqrt()

    aim = [0.7 * y[i] + 0.3 * v[i] * length(y[i]) / length(v[i]) for i in range(N)]
    squared = sum((a - b) ** 2 for i in range(N) for a, b in zip(x[i], aim[i], strict=True)) / x.numel()
    same_value_and_gradient(losses["mse"], 0.7 * squared, [x])
    same_value_and_gradient(losses["cosine"], 1.3 * sum(1 - cosine(x[i], aim[i]) for i in range(N)) / N, [x])
    alike = group if positives == "group" else range(N)
    total: Any = 0
    for one, other in ((x, v), (v, x)):
        for i in range(N):
            logits = torch.stack([20 * cosine(one[i], other[j]) for j in range(N)])
            right = [j for j in range(N) if alike[j] == alike[i]]
            total = total - sum(logits[j] - torch.logsumexp(logits, 0) for j in right) / len(right) / N / 2
    same_value_and_gradient(losses["contrastive"], 0.5 * total, [x])


def test_the_english_feature_alone_is_the_target_by_default(folder: Path, backbone: Backbone) -> None:
    model = built(folder, backbone, "projection", contrastive=0, mse=0)
    assert model.options.training_stages()["align"].needs == {"query_feature", "source_feature"}
    found = outputs(backbone.dim)
    del found["visual"]
    [(name, loss)] = model.losses("align", batch(), found, context()).items()
    assert name == "cosine"
    x, y = found["global"], found["english"]
    same_value_and_gradient(loss, sum(1 - cosine(x[i], y[i]) for i in range(N)) / N, [x])


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize("space", ["features", "shared"])
def test_a_residual_begins_at_the_map_bit_for_bit(
    folder: Path, backbone: Backbone, generated: bool, space: str
) -> None:
    model: Any = built(folder, backbone, "dynamic", generated=generated, space=space)
    unsettle(model.map)
    residual = model.net["residual"]
    assert (residual.generator is not None) == generated and not residual.up.weight.any()
    with torch.no_grad():
        x = torch.randn(5, model.query.dim, generator=torch.Generator().manual_seed(0))
        mapped = model.map(x)
        assert torch.equal(
            model.mapped(x, "es")["global"], backbone.project_text(mapped) if space == "features" else mapped
        )
        unsettle(residual)
        unit = x / x.norm(dim=1, keepdim=True) * model.query.dim**0.5
        core = unit @ residual.down.weight.T
        if generated:
            core = core * torch.tanh(unit @ residual.generator.weight.T + residual.generator.bias)
        expected = mapped + core @ residual.up.weight.T
        close(model.mapped(x, "es")["global"], backbone.project_text(expected) if space == "features" else expected)


@pytest.mark.parametrize("name", NAMES)
def test_any_language_takes_the_network_and_english_the_backbone(folder: Path, backbone: Backbone, name: str) -> None:
    model = built(folder, backbone, name)
    unsettle(model.net)
    with torch.no_grad():
        model.net.eval()
        assert torch.equal(model.encode_text(ENGLISH, "en")["global"], backbone.encode_text(ENGLISH))
        spanish, basque = (model.encode_text(SPANISH, lang)["global"] for lang in ("es", "eu"))
        assert torch.equal(spanish, basque) and spanish.shape == (len(SPANISH), backbone.dim)
        assert model.encode_text([], "eu")["global"].shape == (0, backbone.dim)
        other = built(folder, backbone, name, english="query")
        other.net.load_state_dict(model.net.state_dict())
        assert apart(other.encode_text(ENGLISH, "en")["global"], backbone.encode_text(ENGLISH))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_net_alone_also_from_no_rows(folder: Path, backbone: Backbone, name: str) -> None:
    model = built(folder, backbone, name, pictures=0.5)
    unsettle(model.net)
    for rows in (N, 0):
        model.net.zero_grad()
        found = model.outputs("align", features(model, backbone, rows))
        assert all(len(value) == rows for value in found.values())
        assert [key for key, value in found.items() if value.requires_grad] == ["global"]
        sum(model.losses("align", batch(rows), found, context(rows)).values()).backward()
        assert all(p.grad is not None and p.grad.any() == (rows > 0) for p in model.net.parameters())
    whole: Any = model
    assert all(p.grad is None for p in whole.query.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_cached_features_are_the_computed_ones(folder: Path, backbone: Backbone, name: str) -> None:
    model: Any = built(folder, backbone, name, pairs="translations", contrastive=0)
    unsettle(model.net)
    computed = model.outputs("align", batch())
    cached = batch(query_feature=model.query_features(SPANISH), source_feature=backbone.text_features(ENGLISH))
    close(model.outputs("align", cached), computed)
    english: Any = built(folder, backbone, name, contrastive=0)
    english.net.load_state_dict(model.net.state_dict())
    data = batch(lang="en", target_text=[])
    close(english.outputs("align", data)["global"], model.mapped(model.query_features(ENGLISH), "en")["global"])


def test_which_captions_are_read_follows_from_the_options() -> None:
    from ccr_dist.methods.projection.options import ProjectionOptions

    def needs(**options: Any) -> frozenset[str]:
        return ProjectionOptions(name="projection", **options).training_stages()["align"].needs

    assert needs() == {"query_feature", "source_feature", "visual"}
    assert needs(pairs="translations") == needs() | {"target_text"}
    assert needs(mse=0, cosine=0) == {"query_feature", "visual"}
    assert needs(contrastive=0, pictures=0.5) == needs()
    with pytest.raises(ValueError, match="aligned with nothing"):
        needs(mse=0, cosine=0, contrastive=0)


def weights(folder: Path) -> dict[str, Tensor]:
    return tensorfile.read(folder / "model.safetensors")[0]


@pytest.mark.parametrize("pairs", ["english", "translations"])
def test_a_run_in_parts_of_a_batch_is_that_of_whole_batches(tmp_path: Path, pairs: str) -> None:
    path = query_side.config(tmp_path, "projection", STAGE, pairs=pairs, **SMALL["projection"])
    whole = train(path, test=True)
    results = json.loads((whole.folder / "results" / "test.json").read_text())
    assert {"en", "es"} <= results["languages"].keys()
    parts = train(path, "name=parts", "runtime.micro_batch=4")
    close(weights(parts.folder), weights(whole.folder), tolerance=1e-3)
    model = ccr_dist.load(whole.folder)
    assert model.encode_text(["una mancha verde"], lang="eu").shape == (1, model.text_width)


def starting_error(path: Path, *overrides: str) -> None:
    config = load_config(path, overrides)
    train_run(config, Strategy(config.runtime))


def test_dynamic_starts_from_a_map_run(tmp_path: Path) -> None:
    fitted = train(query_side.config(tmp_path, "map", penalties=[1e-2]))
    start = f"init_from={fitted.folder}"
    path = query_side.config(tmp_path, "dynamic", STAGE, pairs="translations", **SMALL["dynamic"])
    config = train(path, start, "stages.align.lr=1e-30", "name=still")
    found = weights(config.folder)
    for name, value in weights(fitted.folder).items():
        assert torch.equal(found[name], value), name
    learnt = train(path, start)
    assert apart(weights(learnt.folder)["net.map.weight"], found["net.map.weight"], least=1e-4)
    again = train(path, f"init_from={learnt.folder}", "stages.align.lr=1e-30", "name=again")
    close(weights(again.folder), weights(learnt.folder), tolerance=1e-6)
    with pytest.raises(ConfigError, match=r"starts from a run of `map` or `dynamic` with `space: shared, centre: all`"):
        starting_error(path, start, "method.space=shared", "name=elsewhere")
