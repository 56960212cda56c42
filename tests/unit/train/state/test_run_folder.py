"""A whole small run in this process: what is written, what is refused, and what a broken dataset does to it."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from ccr_dist.config import RunConfig
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.stores.push import push
from ccr_dist.errors import CcrError, ConfigError, DataBudgetError, DataError, NonFiniteError
from ccr_dist.evaluate import evaluate
from ccr_dist.evaluate.retrieval import Fusion, cosine
from ccr_dist.methods.run_config import load_config
from ccr_dist.train import commands, loop, subjects, validation
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.run_folder import RunFolder, identity
from ccr_dist.train.strategies.strategy import Strategy
from tests import tiny, toy

pytestmark = pytest.mark.long


def train(path: Path, *overrides: str, test: bool = False) -> RunConfig:
    config = load_config(path, overrides)
    assert commands.train([config], test=test, world=None) == 0
    return config


def results(config: RunConfig) -> dict[str, Any]:
    return json.loads((config.folder / "results" / "test.json").read_text())


def break_a_picture(dataset: Path) -> None:
    """Overwrite the inside of every picture of the first shard but one."""
    tar = dataset / "image" / "000000.tar"
    content = bytearray(tar.read_bytes())
    found = [i for i in range(len(content)) if content[i : i + 4] == b"\x89PNG"]
    for start in found[1:]:
        content[start : start + 60] = b"x" * 60
    tar.write_bytes(content)


def test_a_run_learns_selects_on_validation_and_is_measured_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = train(toy.dasd(folder, name="learns"), "stages.cla.steps=30", "stages.cla.validate_every=10", test=True)
    log = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if line.get("stage") == "cla" and "event" not in line]
    assert losses[-1] < 0.8 * losses[0]
    scores = {line["step"]: line["mR"] for line in log if line.get("event") == "validation"}
    best = json.loads((config.folder / "best.json").read_text())
    assert scores.keys() == {10, 20, 30, 34} and best["value"] == max(scores.values()) == scores[best["step"]]
    assert results(config)["test_reads"] == 1 and results(config)["selection"] == f"mR on {config.data.val}"
    assert {path.name for path in (config.folder / "tensorboard").iterdir()}

    train(toy.dasd(folder, name="learns"), "stages.cla.steps=30", "stages.cla.validate_every=10", test=True)
    said = capsys.readouterr()
    assert "complete already (34 steps)" in said.err and "measured already" in said.out
    commands.evaluate([config], split="test", again=True, world=None)
    assert results(config)["test_reads"] == 2

    changes = ["stages.cla.steps=30", "stages.cla.validate_every=10"]
    for other, message in (
        ("method.rank=3", "trained under another config:\n  method.rank"),
        ("data.queries.en=caption.en.absent", "no column 'caption.en.absent'"),
    ):  # the result that is there answers another question
        asked = load_config(folder / "learns.yaml", [*changes, other])
        with pytest.raises((ConfigError, DataError), match=message):
            commands.evaluate([asked], split="test", again=False, world=None)
    assert results(config)["test_reads"] == 2


@pytest.mark.parametrize("backbone", ["clip", "dual"])
def test_bf16_and_gradient_checkpointing_change_the_losses_little(tmp_path: Path, backbone: str) -> None:
    chosen = (
        {"backbone": tiny.tiny_dual_config(tmp_path / "dual", toy.ALL_TEXTS).model_dump()} if backbone == "dual" else {}
    )
    path = toy.dasd(tmp_path, cla=3, cma=2, **chosen)
    losses = []
    for name, overrides in {
        "plain": (),
        "checkpointing": ("runtime.gradient_checkpointing=true",),
        "bf16": ("runtime.precision=bf16", "runtime.workers=1"),
    }.items():
        config = train(path, f"name={name}", *overrides)
        log = map(json.loads, (config.folder / "log.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in log if line.get("stage") == "cla" and "event" not in line])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=0.05) and losses[2] != losses[0]


def test_texts_that_were_cut_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the captions are longer than the tower's 24 positions."""
    monkeypatch.setattr(toy, "SPANISH", [text * 9 if n % 2 else text for n, text in enumerate(toy.SPANISH)])
    config = train(toy.dasd(tmp_path, cla=4, cma=2), test=True)
    lines = [json.loads(line) for line in (config.folder / "log.jsonl").read_text().splitlines()]
    told = [line["texts"] for line in lines if line.get("event") == "truncated"]
    assert told and told == sorted(set(told)) and told[0] > 4 * 10 / 4
    assert f"{told[-1]} texts were longer than" in capsys.readouterr().err
    assert results(config)["meta"]["truncated"] == 15, "of the 30 Spanish queries; English ones are short"


def test_validation_chooses_the_fusion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among three that measure differently, in any order; one alone is not measured."""
    config = load_config(toy.config(folder, {"name": "clip"}, {}))
    strategy = Strategy(config.runtime)
    method, step = subjects.trained_method(config, RunFolder(config.folder))
    monkeypatch.setattr(
        method,
        "scores",
        lambda text, visual: (c := cosine(text, visual)) | {"inverse": -c["global"], "tie": 0 * c["global"]},
    )
    candidates = [Fusion({part: 1.0}) for part in ("global", "inverse", "tie")]
    val = validation.encoded(
        config, method, step, strategy, Dataset.open(config.data.val), validation.selection_queries(config)
    )
    values = {
        str(f): statistics.fmean(
            e.result.metrics["mR"] for e in evaluate.results(val, score=method.scores, fusion=f, replicates=0).values()
        )
        for f in candidates
    }
    assert len(set(values.values())) == 3
    for order in itertools.permutations(candidates):
        monkeypatch.setattr(method, "fusions", lambda order=order: list(order))
        assert values[str(validation.chosen_fusion(config, method, step, strategy))] == max(values.values())
    monkeypatch.setattr(method, "fusions", lambda: candidates[2:])
    monkeypatch.setattr(validation, "encoded", None)
    assert validation.chosen_fusion(config, method, step, strategy) == candidates[2]


def test_english_is_the_backbones_own_for_every_method(folder: Path) -> None:
    trained = train(toy.dasd(folder, name="english-kept"), test=True)
    untrained = load_config(toy.config(folder, {"name": "clip"}, {}))
    commands.evaluate([untrained], split="test", again=False, world=None)
    assert results(trained)["languages"]["en"] == results(untrained)["languages"]["en"]


def test_translate_test_reads_the_translated_queries_and_shows_the_human_ones(folder: Path) -> None:
    config = load_config(toy.config(folder, {"name": "translate_test"}, {}))
    commands.evaluate([config], split="test", again=False, world=None)
    spanish = results(config)["languages"]["es"]
    assert spanish["column"] == "caption.en.toy" and spanish["examples"][0]["query"] in toy.SPANISH
    assert spanish["metrics"] == results(config)["languages"]["en"]["metrics"], "the toy's translations are perfect"


def test_a_run_folder_of_another_plan_is_refused_with_the_difference_and_left_alone(folder: Path) -> None:
    config = train(toy.dasd(folder, name="plan"))
    before = {
        path: path.stat().st_mtime_ns for path in config.folder.rglob("*") if path.is_file() and path.name != "lock"
    }
    with pytest.raises(ConfigError, match=r"(?s)another plan.*stages\.cla\.lr") as error:
        train(toy.dasd(folder, name="plan"), "stages.cla.lr=0.5")
    assert "init_from" in str(error.value)
    assert before == {
        path: path.stat().st_mtime_ns for path in config.folder.rglob("*") if path.is_file() and path.name != "lock"
    }


def test_the_number_of_processes_is_part_of_a_run_whose_losses_depend_on_it(folder: Path) -> None:
    def same(*overrides: str) -> bool:
        config = load_config(toy.dasd(folder, name="places"), overrides)
        return identity(config, {}, {}, world=1) == identity(config, {}, {}, world=2)

    assert same() and not same("stages.cma.negatives=local")


def test_a_stage_starts_from_the_best_of_the_one_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all its networks: an opponent that knows the stage's end would not be that of its best step."""
    started: dict[str, dict[str, Any]] = {}

    class Witness(loop.StageRun):
        def __init__(self, name: str, **rest: Any) -> None:
            super().__init__(name, **rest)
            own = {f"discriminator/weights/{n}": p for n, p in self.method.aux["discriminator"].named_parameters()}
            started[name] = {n: p.detach().clone() for n, p in (*rest["step"].named_parameters(), *own.items())}

    values = iter((20.0, 10.0, 5.0))
    monkeypatch.setattr(loop, "StageRun", Witness)
    monkeypatch.setattr(loop, "validate", lambda *_, **__: (next(values), {}))
    config = train(toy.dasd(folder, name="best-start"), "stages.cla.validate_every=3")
    best, last = (checkpoint.load(checkpoint.folder_of(config.folder / "checkpoints", step)) for step in (3, 6))
    for kept in ("weights", "auxiliary"):
        names = getattr(best, kept).keys() & started["cma"].keys()
        assert names and all((getattr(best, kept)[name] == started["cma"][name]).all() for name in names)
        assert any((getattr(last, kept)[name] != started["cma"][name]).any() for name in names)


def test_more_steps_go_on_where_the_run_ended(folder: Path) -> None:
    train(toy.dasd(folder, name="more"))
    config = train(toy.dasd(folder, name="more"), "stages.cma.steps=9")
    starts = [json.loads(line) for line in (config.folder / "starts.jsonl").read_text().splitlines()]
    assert [(start["step"], start["steps"]) for start in starts] == [(0, 10), (10, 15)]


def test_a_damaged_checkpoint_is_passed_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("runtime.checkpoint_every=2",)
    config = train(toy.dasd(folder, name="damaged"), *overrides)
    newest = checkpoint.folder_of(config.folder / "checkpoints", 10)
    content = (newest / "weights.safetensors").read_bytes()
    (newest / "weights.safetensors").write_bytes(content[:-1])
    (config.folder / "model.safetensors").unlink()
    train(toy.dasd(folder, name="damaged"), *overrides)
    said = capsys.readouterr().err
    assert "step-00000010: passed over" in said and "resuming at step 8 of 10" in said
    assert (newest / "weights.safetensors").read_bytes() == content


def test_weights_that_diverge_end_the_run_and_leave_the_checkpoint(folder: Path) -> None:
    path = toy.dasd(folder, name="nan")
    with pytest.raises(NonFiniteError, match=r"step \d+ of .*not finite.*last checkpoint is intact"):
        train(
            path,
            "stages.cla.lr=1e30",
            "stages.cla.schedule=constant",
            "stages.cla.clip_norm=null",
            "runtime.skipped_steps=2",
        )


def test_broken_pictures_are_replaced_listed_and_bounded(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = toy.dasd(tmp_path)
    break_a_picture(tmp_path / "data" / "train")
    config = train(path)
    listed = [json.loads(line) for line in (config.folder / "substituted.jsonl").read_text().splitlines()]
    assert listed and all(line["item"].startswith("train-00") and line["stand_in"] == "train-000" for line in listed)
    assert f"step 10: {len(listed)} of 100 samples so far were broken, and others stood in (" in capsys.readouterr().err
    with pytest.raises(DataBudgetError, match=r"runtime\.bad_samples allows 0.*substituted\.jsonl"):
        train(path, "name=bounded", "runtime.bad_samples=0")


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        ("data.targets={es: caption.es.opus}", DataError, r"caption\.es\.opus.*ccr-dist translate"),
        ("data.source_feature=feature.nowhere", DataError, r"feature\.nowhere.*ccr-dist featurise"),
        ("data.val=nowhere", DataError, "nowhere"),
        ("data.queries={en: caption.en}", ConfigError, "no captions in es"),
        ("select=R1", ConfigError, "t2v_R1"),
        ("runtime.precision=fp16", ConfigError, "fp16 needs a GPU"),
        ("backbone.pretrained=nowhere.pt", ConfigError, "nowhere"),
    ],
)
def test_what_is_missing_is_named(folder: Path, override: str, kind: type[CcrError], message: str) -> None:
    if "fp16" in override:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("a GPU can do fp16")
    with pytest.raises(kind, match=f"(?s){message}"):
        train(toy.dasd(folder, name=f"missing-{override.partition('=')[0]}"), override)


def test_a_run_from_a_store_is_the_run_from_the_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training, validation and test on datasets at URLs."""
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path))
    push(folder / "data", "memory://store/data")
    there = [f"data.{split}=memory://store/data/{split}" for split in ("val", "test")]
    local = train(toy.dasd(folder, name="folder"), test=True)
    stored = train(toy.dasd(folder, name="store"), "data.train=[{path: memory://store/data/train}]", *there, test=True)
    assert results(stored)["languages"] == results(local)["languages"]
    weights = [load_file(config.folder / "model.safetensors") for config in (local, stored)]
    assert weights[0].keys() == weights[1].keys() and all(
        (weights[0][name] == weights[1][name]).all() for name in weights[0]
    )
    assert any((tmp_path / "remote" / "payloads").glob("*.tar"))
