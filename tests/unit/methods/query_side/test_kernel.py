"""The closed form of `kernel` against scikit-learn and against its definition, on random rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ccr_dist.errors import ConfigError
from ccr_dist.methods.kernel.method import Kernel
from ccr_dist.methods.kernel.options import KernelOptions
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from tests import query_side, tiny
from tests.nearness import close

Rows = Mapping[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernel")


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return build_backbone(tiny.tiny_dual_config(folder / "dual"))


def built(folder: Path, backbone: Backbone, **options: Any) -> Kernel:
    query = {"text": query_side.encoder(folder)}
    method = Kernel(KernelOptions(name="kernel", query=query, **options), backbone, ("es",))
    for parameter in method.net.parameters():
        parameter.requires_grad_(False)
    return method


def rows(method: Kernel, count: int = 30, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    width = method.backbone.text_features(["a"]).shape[-1]
    image: Any = method.backbone.image
    query = torch.randn(count, method.query.dim, generator=generator) + 1
    visual = torch.randn(count, image.width, generator=generator)
    return {"query": query, "english": torch.randn(count, width, generator=generator), "visual": visual}


def fitted(method: Kernel, drawn: Tensor, parts: Sequence[Rows]) -> list[dict[str, Any]]:
    method.begin("fit", drawn)
    sums: dict[str, Tensor] = {}
    for part in parts:
        for name, value in method.statistics("fit", "es", part).items():
            assert value.dtype == torch.float64
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
    return [label for label, weights in method.solutions("fit", sums) if load(method, weights)]


def load(method: Kernel, weights: Mapping[str, Tensor]) -> bool:
    for name, value in weights.items():
        method.named_parameters()[name].copy_(value)
    return True


def target(backbone: Backbone, given: Rows, weight: float) -> Tensor:
    english = normalize(backbone.project_text(given["english"]), dim=-1)
    return (1 - weight) * english + weight * normalize(backbone.project_image(given["visual"]), dim=-1)


def test_with_all_captions_as_landmarks_it_is_the_kernel_ridge_of_scikit_learn(
    folder: Path, backbone: Backbone
) -> None:
    kernel_ridge = pytest.importorskip("sklearn.kernel_ridge")
    method = built(folder, backbone, penalties=(0.05,), pictures=(0.3,), landmarks=64)
    given = rows(method)
    [label] = fitted(method, given["query"], [given])
    assert label == {"penalty": 0.05, "pictures": 0.3}
    unit = normalize(given["query"] - given["query"].mean(0), dim=-1).double()
    apart = torch.cdist(unit, unit).square().mean()
    with torch.no_grad():
        y = target(backbone, given, 0.3).double()
        model = kernel_ridge.KernelRidge(alpha=0.05, kernel="rbf", gamma=float(2.0 / apart))
        model.fit(unit.numpy(), (y - y.mean(0)).numpy())
        asked = rows(method, 7, seed=5)["query"]
        others = normalize(asked - given["query"].mean(0), dim=-1).double()
        expected = torch.from_numpy(model.predict(others.numpy())) + y.mean(0)
        close(method.mapped(asked, "es")["global"], expected.float(), tolerance=1e-4)
    assert method.mapped(asked[:0], "es")["global"].shape == (0, backbone.dim)


def test_fewer_landmarks_give_the_best_map_in_their_span(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone, penalties=(0.05,), pictures=(0.0,), landmarks=8)
    given = rows(method)
    fitted(method, given["query"][:8], [given])
    with torch.no_grad():
        k = method._kernel(given["query"]).double()
        own = method._compared(method._parts["landmarks"], method._parts["landmarks"]).double()
        y = target(backbone, given, 0.0).double()
        expected = torch.linalg.solve(k.T @ k + 0.05 * own, k.T @ (y - y.mean(0)))
    close(method._parts["coefficients"], expected.float(), tolerance=1e-3)


def test_sums_do_not_depend_on_how_rows_are_divided(folder: Path, backbone: Backbone) -> None:
    found = []
    for cuts in ((slice(0, 30),), (slice(0, 1), slice(1, 1), slice(1, 30))):
        method = built(folder, backbone, penalties=(0.05,))
        given = rows(method)
        fitted(method, given["query"], [{k: v[cut] for k, v in given.items()} for cut in cuts])
        found.append(method.mapped(rows(method, 5, seed=3)["query"], "es")["global"].detach())
    close(found[0], found[1], tolerance=1e-5)


def test_english_may_take_the_same_path(folder: Path, backbone: Backbone) -> None:
    texts = ["a red dog", "two dogs"]
    for english in ("backbone", "query"):
        method = built(folder, backbone, english=english, penalties=(0.05,))
        given = rows(method)
        fitted(method, given["query"], [given])
        with torch.no_grad():
            as_english, as_spanish = (method.encode_text(texts, lang)["global"] for lang in ("en", "es"))
        assert torch.equal(as_english, backbone.encode_text(texts)) == (english == "backbone")
        assert torch.equal(as_english, as_spanish) == (english == "query")


def test_impossible_options_and_too_few_captions_are_refused(folder: Path, backbone: Backbone) -> None:
    for options, said in (({"penalties": [0.0]}, "above 0"), ({"pictures": [2.0]}, "from 0 to 1")):
        with pytest.raises(ValueError, match=said):
            KernelOptions(name="kernel", **options)
    method = built(folder, backbone)
    with pytest.raises(ConfigError, match="not two captions"):
        method.begin("fit", rows(method, 1)["query"])


def test_queries_are_compared_in_float32_whatever_the_precision_of_the_run(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone, landmarks=30, penalties=[1e-3])
    given = rows(method, 60)
    fitted(method, given["query"][:30], [given])
    exact = method.mapped(given["query"], "es")["global"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.mapped(given["query"], "es")["global"], exact)


def test_rows_without_a_picture_count_for_english_alone(folder: Path, backbone: Backbone) -> None:
    """Each of the two targets is fitted on the rows that have it, and the two are mixed."""
    weight = 0.3
    method = built(folder, backbone, penalties=(0.05,), pictures=(weight,), landmarks=64)
    pairs, texts = rows(method), rows(method, 9, seed=4)
    del texts["visual"]
    drawn = torch.cat([pairs["query"], texts["query"]])
    fitted(method, drawn, [{k: v[:11] for k, v in texts.items()}, pairs])
    with torch.no_grad():
        own = method._compared(method._parts["landmarks"], method._parts["landmarks"]).double()[:39, :39]

        def solved(queries: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            k = method._kernel(queries).double()[:, :39]
            return torch.linalg.solve(k.T @ k + 0.05 * own, k.T @ (y - y.mean(0))), y.mean(0)

        english = normalize(backbone.project_text(torch.cat([pairs["english"], texts["english"]])), dim=-1).double()
        first = solved(torch.cat([pairs["query"], texts["query"]]), english)
        second = solved(pairs["query"], target(backbone, pairs, 1.0).double())
        coefficients, bias = ((1 - weight) * a + weight * b for a, b in zip(first, second, strict=True))
    asked = method._kernel(rows(method, 7, seed=5)["query"]).double()[:, :39]
    close(
        method.mapped(rows(method, 7, seed=5)["query"], "es")["global"],
        (asked @ coefficients + bias).float(),
        tolerance=1e-4,
    )


def test_texts_alone_have_no_picture_to_go_towards(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone, penalties=(0.05,))
    texts = rows(method)
    del texts["visual"]
    with pytest.raises(ConfigError, match=r"no caption has a picture; set method\.pictures to \[0\]"):
        fitted(method, texts["query"], [texts])
