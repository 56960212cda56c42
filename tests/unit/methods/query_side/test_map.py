"""The closed form of `map` against scikit-learn and against its definition, on random rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ccr_dist.config import RunConfig
from ccr_dist.errors import ConfigError
from ccr_dist.methods.features import gram
from ccr_dist.methods.map.method import Map
from ccr_dist.methods.map.options import MapOptions
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from tests import query_side, tiny
from tests.nearness import close

Rows = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("map")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return build_backbone(tiny.tiny_dual_config(folder / "dual"))


def built(folder: Path, backbone: Backbone, languages: tuple[str, ...] = ("es",), **options: Any) -> Map:
    query = {"text": query_side.encoder(folder)}
    return Map(MapOptions(name="map", query=query, **options), backbone, languages)


def rows(method: Map, count: int = 40, *, seed: int = 0, shift: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = method.backbone.text_features(["a"]).shape[-1]
    query = torch.randn(count, method.query.dim, generator=generator) + shift
    english = query[:, :1] + torch.randn(count, width, generator=generator)
    visual = torch.randn(count, method.backbone.image.width, generator=generator)
    return {"query": query, "english": english, "visual": visual}


def summed(method: Map, parts: Mapping[str, Sequence[Rows]]) -> dict[str, Tensor]:
    sums: dict[str, Tensor] = {}
    for lang, each in parts.items():
        for part in each:
            for name, value in method.statistics("fit", lang, part).items():
                assert value.dtype == torch.float64
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
    return sums


def solved(method: Map, parts: Mapping[str, Sequence[Rows]]) -> list[tuple[dict[str, Any], dict[str, Tensor]]]:
    return list(method.solutions("fit", summed(method, parts)))


def without(given: Rows, *names: str) -> dict[str, Tensor]:
    return {name: value for name, value in given.items() if name not in names}


def test_it_is_the_ridge_of_scikit_learn(folder: Path, backbone: Backbone) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    method = built(folder, backbone, penalties=(0.3, 1e-3))
    en, es = (without(rows(method, seed=seed, shift=seed), "visual") for seed in (0, 1))
    x, y = (torch.cat([en[name], es[name]]).double().numpy() for name in ("query", "english"))
    scale = np.var(x, axis=0).mean() * len(x)
    for label, weights in solved(method, {"en": [en], "es": [es]}):
        expected = linear_model.Ridge(alpha=label["penalty"] * scale, solver="cholesky").fit(x, y)
        close(weights["net.map.weight"], torch.from_numpy(expected.coef_).float(), tolerance=1e-5)
        close(weights["net.map.bias"], torch.from_numpy(expected.intercept_).float(), tolerance=1e-5)


def test_sums_do_not_depend_on_how_rows_are_divided(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone)
    whole = without(rows(method, 41), "visual")
    cuts = [{name: value[part] for name, value in whole.items()} for part in (slice(0, 1), slice(1, 1), slice(1, 41))]
    for (_, one), (_, other) in zip(solved(method, {"es": [whole]}), solved(method, {"es": cuts}), strict=True):
        for name in one:
            close(one[name], other[name], tolerance=1e-6)


def test_a_map_of_low_rank_is_the_best_one_of_its_rank(folder: Path, backbone: Backbone) -> None:
    """By the singular vectors of what the full map predicts, penalty included."""
    method = built(folder, backbone, penalties=(0.1,), ranks=(None, 2))
    given = without(rows(method), "visual")
    (_, full), (label, low) = solved(method, {"es": [given]})
    x, whole = given["query"].double().numpy(), full["net.map.weight"].double().numpy().T
    x = x - x.mean(0)
    penalty = 0.1 * np.var(x, axis=0).mean() * len(x)
    stretched = np.vstack([x, np.sqrt(penalty) * np.eye(x.shape[1])])
    _, _, directions = np.linalg.svd(stretched @ whole, full_matrices=False)
    assert label["rank"] == 2
    close(low["net.map.weight"].T, torch.from_numpy(whole @ directions[:2].T @ directions[:2]).float(), tolerance=1e-5)


def test_each_language_has_its_own_mean(folder: Path, backbone: Backbone) -> None:
    """A shift of all vectors of a language changes nothing but its bias."""
    method = built(folder, backbone, centre="language", penalties=(0.1,))
    en, es = (without(rows(method, seed=seed), "visual") for seed in (0, 1))
    moved = {**es, "query": es["query"] + 3.0}
    ((_, one),) = solved(method, {"en": [en], "es": [es]})
    ((_, other),) = solved(method, {"en": [en], "es": [moved]})
    close(other["net.map.weight"], one["net.map.weight"], tolerance=1e-5)

    def found(weights: dict[str, Tensor], query: Tensor) -> Tensor:
        with torch.no_grad():
            for name, value in weights.items():
                method.named_parameters()[name].copy_(value)
            return method.mapped(query, "es")["global"]

    close(found(other, moved["query"]), found(one, es["query"]), tolerance=1e-4)
    assert not torch.allclose(found(one, moved["query"]), found(one, es["query"]), atol=1e-2)


def test_pictures_are_part_of_the_target(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone, space="shared", pictures=(0.0, 0.25), penalties=(0.1,))
    given = rows(method)
    (_, _), (label, weights) = solved(method, {"es": [given]})
    with torch.no_grad():
        english = normalize(backbone.project_text(given["english"]), dim=-1)
        target = 0.75 * english + 0.25 * normalize(backbone.project_image(given["visual"]), dim=-1)
    x, y = (value.double() for value in (given["query"], target))
    x, y = x - x.mean(0), y - y.mean(0)
    system = x.T @ x / len(x)
    expected = torch.linalg.solve(system + 0.1 * system.diagonal().mean() * torch.eye(len(system)), x.T @ y / len(x))
    assert label == {"penalty": 0.1, "pictures": 0.25}
    close(weights["net.map.weight"].T, expected.float(), tolerance=1e-5)


def test_a_singular_system_says_how_many_directions_there_are(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone, penalties=(0.0,))
    few = without(rows(method, 5), "visual")
    with pytest.raises(ConfigError, match=r"5 captions span 4 of \d+ directions, so a penalty of 0 has no solution"):
        solved(method, {"es": [few]})
    assert solved(built(folder, backbone, penalties=(0.1,)), {"es": [few]})
    with pytest.raises(ConfigError, match="`whiten: true` has no solution"):
        solved(built(folder, backbone, penalties=(0.1,), whiten=True), {"es": [few]})
    with pytest.raises(ConfigError, match="no caption"):
        solved(method, {"es": [without(rows(method, 0), "visual")]})


def test_whitening_shrinks_all_directions_alike(folder: Path, backbone: Backbone) -> None:
    given = {"es": [without(rows(built(folder, backbone)), "visual")]}
    ((_, plain),) = solved(built(folder, backbone, penalties=(0.0,)), given)
    ((_, shrunk),) = solved(built(folder, backbone, penalties=(1.0,), whiten=True), given)
    close(shrunk["net.map.weight"], plain["net.map.weight"] / 2, tolerance=1e-5)


def test_english_is_the_backbone_and_any_other_language_takes_the_map(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone)
    (_, weights), *_ = solved(method, {"es": [without(rows(method), "visual")]})
    with torch.no_grad():
        for name, value in weights.items():
            method.named_parameters()[name].copy_(value)
        texts = ["a red dog", "two dogs"]
        assert torch.equal(method.encode_text(texts, "en")["global"], backbone.encode_text(texts))
        mapped = method.encode_text(texts, "eu")["global"]
        expected = backbone.project_text(method.map(method.query.text_features(texts)))
    assert torch.equal(mapped, expected)
    assert method.encode_text([], "eu")["global"].shape == (0, backbone.dim)


def test_another_encoder_of_the_same_name_is_refused(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone)
    again = Map(method.options, backbone, ("es",), state=method.state())
    assert again.state() == method.state()
    with pytest.raises(ConfigError, match="not those that this model was trained on"):
        Map(method.options, backbone, ("es",), state={"query": "0" * 64})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"penalties": [-1.0]}, "penalties: expected numbers of at least 0"),
        ({"ranks": [0]}, "ranks: expected whole numbers of at least 1"),
        ({"space": "shared", "pictures": [1.5]}, "pictures: expected weights from 0 to 1"),
        ({"pictures": [0.5]}, "set `space: shared`"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MapOptions(name="map", **options)


def test_a_run_config_with_such_a_stage_is_read(folder: Path) -> None:
    from ccr_dist.methods.run_config import from_dict, load_config

    config: RunConfig = load_config(query_side.config(folder))
    assert config.stages["fit"].steps == 1
    assert from_dict(config.model_dump(mode="json"), name="again") == config
    with pytest.raises(ConfigError, match=r"stages\.fit\.lr"):
        load_config(query_side.config(folder, stages={"fit": {"lr": 0.1}}))


@pytest.mark.parametrize("width", [1, 3, 8, 13])
def test_products_that_are_mirrored_are_all_products(width: int) -> None:
    x = torch.randn(9, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(gram(x), x.T @ x, tolerance=1e-14)
    assert gram(x[:0]).tolist() == [[0.0] * width] * width


def test_queries_of_like_length_are_encoded_together(
    folder: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text costs as much as the longest beside it."""
    model = built(folder, backbone)
    texts = ["perro " * (i * 7 % 20 + 1) for i in range(40)]
    whole, calls, encode = model.query.text_features(texts), [], model.query.text_features

    def counted(part: Sequence[str]) -> Tensor:
        calls.append([len(text) for text in part])
        return encode(part)

    monkeypatch.setattr(model.query, "text_features", counted)
    found = model.query_features(texts)
    close(found, whole.detach(), tolerance=1e-5)
    assert not found.requires_grad
    assert [len(call) for call in calls] == [16, 16, 8]
    assert [size for call in calls for size in call] == sorted(map(len, texts))
