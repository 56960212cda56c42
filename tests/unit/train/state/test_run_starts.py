"""What the next start, or a measurement, concludes from a run folder: one file is no proof of another."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ccr_dist.config import RunConfig
from ccr_dist.data.media.pictures import VERSION
from ccr_dist.data.storage.checked import DIGEST, checked, with_digest
from ccr_dist.data.storage.json_lines import read_lines
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import STOPPED, CheckpointError, ConfigError, DataError
from ccr_dist.evaluate.schema import read_result, written
from ccr_dist.methods.run_config import load_config
from ccr_dist.models import tensorfile
from ccr_dist.train import commands, loop
from ccr_dist.train.inputs import measured_on
from ccr_dist.train.publish import publish_model
from ccr_dist.train.selected import Source
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.strategies.strategy import Strategy
from ccr_dist.train.watch.signals import Stopped
from tests import toy
from tests.short_runs import SMALL, train

pytestmark = pytest.mark.long


def test_a_run_that_ends_before_its_first_checkpoint_begins_anew_from_the_same_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vocabulary is kept; the start of the projection is not in it."""
    start = "method.frontend.start=scaled"
    calm = train(toy.dasd(folder, name="calm"), start)

    def killed(*_: Any) -> None:
        raise SystemExit(137)

    path = toy.dasd(folder, name="cut")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", killed)
        with pytest.raises(SystemExit):
            train(path, start)
    cut = load_config(path)
    assert (cut.folder / "method.json").exists() and not checkpoint.steps(cut.folder / "checkpoints")
    train(path, start)
    assert (cut.folder / "model.safetensors").read_bytes() == (calm.folder / "model.safetensors").read_bytes()
    default = train(toy.dasd(folder, name="default"))
    assert (default.folder / "model.safetensors").read_bytes() != (calm.folder / "model.safetensors").read_bytes(), (
        "the start matters"
    )


def test_a_run_that_ends_before_it_has_tidied_up_is_tidied_up_by_the_next_start(copy: Path, folder: Path) -> None:
    (copy / "model.safetensors").unlink()  # it is made last
    shutil.copytree(copy / "checkpoints" / "step-00000006", copy / "checkpoints" / "step-00000005")
    best = RunFolder(copy).best()
    train(toy.dasd(folder, name="complete"), *SMALL, "runtime.keep=1", f"out={copy.parent}")
    assert checkpoint.steps(copy / "checkpoints") == sorted({best["step"], 10})


def test_without_a_healthy_checkpoint_a_run_that_was_trained_is_not_begun_anew(copy: Path, folder: Path) -> None:
    path, overrides = toy.dasd(folder, name="complete"), (*SMALL, f"out={copy.parent}")
    for step in (6, 10):
        os.truncate(copy / "checkpoints" / f"step-{step:08d}" / "weights.safetensors", 100)
    assert commands.train([load_config(path, overrides)], test=False, world=None) == 0, (
        "its weights are whole and of its last step"
    )
    os.truncate(copy / "model.safetensors", 100)
    with pytest.raises(
        CheckpointError,
        match=r"(?s)no checkpoint left to resume from.*step-00000010.*step-00000006.*delete that folder",
    ) as caught:
        train(path, *overrides)
    assert caught.value.exit_code == 8
    del caught
    gc.collect()  # what is left of the start has the folder locked
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        train(path, *overrides)


def test_published_weights_of_fewer_steps_are_not_those_of_a_longer_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its last checkpoint and the publishing, a longer run is not complete because the shorter one
    was.
    """
    path = toy.dasd(folder, name="longer")
    train(path, test=True)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(path, "stages.cma.steps=9")
    with pytest.raises(ConfigError, match=r"weights of step 10, and the config trains 15 steps"):
        commands.evaluate([load_config(path, ["stages.cma.steps=9"])], split="test", again=True, world=None)
    config = train(path, "stages.cma.steps=9", test=True)
    facts = RunFolder(config.folder).published()
    assert facts is not None and facts["step"] == 15
    assert read_result(config.folder / "results" / "test.json").test_reads == 2, "other weights are measured anew"


def test_best_json_is_what_the_checkpoint_says(folder: Path) -> None:
    """A process that dies between a save and best.json would publish an older selection."""
    path = toy.dasd(folder, name="selected")
    config = train(path, "stages.cma.validate_every=1")
    right = (config.folder / "model.safetensors").read_bytes()
    best = json.loads((config.folder / "best.json").read_text())
    (config.folder / "model.safetensors").unlink()
    for stale in (json.dumps(with_digest({**best, "step": 6} | {DIGEST: None})), "[]", None):
        (config.folder / "best.json").write_text(stale) if stale else (config.folder / "best.json").unlink()
        train(path, "stages.cma.validate_every=1")
        assert RunFolder(config.folder).best() == {key: value for key, value in best.items() if key != DIGEST}
    assert (config.folder / "model.safetensors").read_bytes() == right


def test_weights_of_another_config_are_not_measured(folder: Path, complete: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"(?s)trained under another config.*method\.rank"):
        commands.evaluate(
            [load_config(toy.dasd(folder, name="complete"), [*SMALL, "method.rank=3"])],
            split="test",
            again=True,
            world=None,
        )


def test_a_result_tells_what_it_was_measured_on_and_is_made_anew_for_something_else(
    folder: Path, copy: Path, complete: RunConfig
) -> None:
    assert complete.data.test is not None
    found, dataset = read_result(complete.folder / "results/test.json"), Dataset.open(complete.data.test)
    asked = {complete.data.visual, *complete.data.queries.values()}
    assert asked <= found.columns.keys()
    assert all(digest == dataset.column(name).digest for name, digest in found.columns.items())
    config = load_config(toy.dasd(folder, name="complete"), [*SMALL, f"out={copy.parent}"])
    assert config.folder == copy
    path = copy / "results/test.json"
    for changed, reads in (({}, found.test_reads), ({"columns": {**found.columns, complete.data.visual: "0" * 64}}, 2)):
        path.write_bytes(written(found.model_copy(update=changed)))
        commands.evaluate([config], split="test", again=False, world=None)
        assert (read_result(path).test_reads, read_result(path).columns) == (reads, found.columns)


def test_a_run_of_pictures_that_were_read_by_another_rule_says_so_when_it_is_measured(
    folder: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(toy.dasd(folder, name="complete"), [*SMALL, f"out={copy.parent}"])
    known = RunFolder(copy).identity()
    assert known is not None and known.pop("pictures") == VERSION
    for began, said in ((None, False), (known, True)):
        if began is not None:
            (copy / "identity.json").write_text(json.dumps(with_digest(began)))
        commands.evaluate([config], split="test", again=True, world=None)
        assert (f"{copy}: this run began when pictures were read by rule 0" in capsys.readouterr().err) is said


@pytest.mark.parametrize(("kind", "plan", "rule"), [
    ("image", {}, {"pictures": VERSION}),
    ("matrix", {"processor": "featurise", "backbone": {"side": "image"}}, {"pictures": 0}),
    ("matrix", {"processor": "featurise", "backbone": {"side": "image"}, "pictures": 1}, {"pictures": 1}),
    ("matrix", {"processor": "featurise", "backbone": {"side": "text"}, "texts": 1}, {"texts": 1}),
    ("matrix", {"processor": "import"}, {}),
])  # fmt: skip
def test_the_rule_by_which_a_gallery_was_opened(
    folder: Path, complete: RunConfig, kind: str, plan: Any, rule: Any
) -> None:
    class Column:
        digest, inputs = "d", {"image": "i"}

    class Table:
        def column(self, name: str) -> Any:
            column: Any = Column()
            column.kind, column.plan = (kind, plan) if name == complete.data.visual else ("texts", {})
            return column

    table: Any = Table()
    columns, rules = measured_on(complete, table)
    assert rules == rule and columns["image"] == ("d" if complete.data.visual == "image" else "i")


def test_init_from_weights_whose_rows_mean_other_words_are_refused(
    folder: Path, complete: RunConfig, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(complete.folder, tmp_path / "source"))
    state = RunFolder(source).method_state()
    assert state is not None
    state["front_end"]["rows"][0] += 1
    (source / "method.json").write_text(json.dumps(with_digest(state)))
    with pytest.raises(ConfigError, match=r"mean something else.*front_end\.rows\[0\]"):
        train(toy.dasd(folder, name="from-other"), *SMALL, f"init_from={source}")


def test_init_from_a_run_whose_checkpoints_are_deleted(folder: Path, complete: RunConfig, tmp_path: Path) -> None:
    source = Path(shutil.copytree(complete.folder, tmp_path / "source"))
    publish_model(complete, Strategy(complete.runtime, world=1), source)
    names = [name for name in Source(source).weights(())[0] if name.startswith("net.")]
    before, _ = Source(source).weights(names)
    shutil.rmtree(source / "checkpoints")
    after, where = Source(source).weights(names)
    assert where == str(source / "model") and after.keys() == set(names)
    assert all(torch.equal(after[name], before[name]) for name in names)


def test_a_changed_source_of_init_from_is_noticed_before_the_first_checkpoint(
    folder: Path, complete: RunConfig, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(complete.folder, tmp_path / "source"))
    path, overrides = toy.dasd(folder, name="from"), (*SMALL, f"init_from={source}")
    config = train(path, *overrides)
    first = (config.folder / "model.safetensors").read_bytes()
    step = next(step for step in checkpoint.steps(source / "checkpoints") if step != RunFolder(source).best()["step"])
    RunFolder(source).keep_best({"step": step, "stage": "cla", "metric": "mR", "value": 1.0})
    train(path, *overrides)
    assert (config.folder / "model.safetensors").read_bytes() == first, "a run that has a checkpoint does not ask"
    for name in ("checkpoints", "model.safetensors", "best.json"):
        gone = config.folder / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(ConfigError, match="other weights are selected there"):
        train(path, *overrides)


def test_an_object_keeps_its_digest_through_other_white_space_only() -> None:
    values = {"a": 1.5, "ü": [None, True, {"b": -0.0}], "c": "\u2028"}
    text = json.dumps(with_digest(values))
    assert checked(text, "x") == (values, True) == checked(json.dumps(json.loads(text), indent=3), "x")
    for other in (text.replace("1.5", "1.25"), text.replace("true", "1"), text.replace("-0.0", "0.0")):
        with pytest.raises(DataError, match="x: damaged"):
            checked(other, "x", error=DataError)


def test_a_validation_that_a_stop_request_interrupts_is_made_at_the_next_start(
    folder: Path, complete: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toy.dasd(folder, name="halted")

    def stopped(*_: Any, **__: Any) -> Any:
        raise Stopped("asked to stop")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", stopped)
        assert commands.train([load_config(path, SMALL)], test=False, world=None) == STOPPED
    *_, kept = checkpoint.steps(load_config(path, SMALL).folder / "checkpoints")
    config = train(path, *SMALL)
    logs = [read_lines(each.folder / "log.jsonl").values for each in (config, complete)]
    validated, others = ([line["step"] for line in log if line.get("event") == "validation"] for log in logs)
    assert validated == others and kept == others[0]


def test_weights_without_a_digest_are_made_again_or_kept_where_they_cannot_be(
    copy: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, overrides = toy.dasd(folder, name="complete"), (*SMALL, f"out={copy.parent}")
    weights, before = copy / "model.safetensors", (copy / "model.safetensors").read_bytes()
    values, _ = tensorfile.read(weights)
    weights.unlink()
    tensorfile.write(weights, values)
    bare = weights.read_bytes()
    train(path, *overrides)
    assert weights.read_bytes() == before != bare
    best = RunFolder(copy).best()
    assert best is not None
    shutil.rmtree(checkpoint.folder_of(copy / "checkpoints", best["step"]))
    weights.write_bytes(bare)
    train(path, *overrides)
    assert weights.read_bytes() == bare and "it has no digest" in capsys.readouterr().err


def test_what_is_missing_of_a_complete_run_is_made_again(copy: Path, folder: Path) -> None:
    path, overrides = toy.dasd(folder, name="complete"), (*SMALL, f"out={copy.parent}")
    before = {name: (copy / name).read_bytes() for name in ("method.json", "best.json", "model.safetensors")}
    for name in before:
        (copy / name).unlink()
        (copy / "log.jsonl").write_bytes(b'{"step": 1}\n[]\n{"stop": 3}\n\xff{')
        if name == "method.json":
            with pytest.raises(CheckpointError, match=r"method\.json is missing; training with the same command"):
                commands.evaluate([load_config(path, overrides)], split="test", again=True, world=None)
        train(path, *overrides)
        assert {name: (copy / name).read_bytes() for name in before} == before
