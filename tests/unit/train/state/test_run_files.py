"""What a run reads back of its folder: as it was written, or not at all. Bits are flipped in every file, and files are
taken away.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.storage.checked import DIGEST
from ccr_dist.errors import CcrError
from ccr_dist.evaluate.schema import read_result
from ccr_dist.evaluate.summaries import collect
from ccr_dist.methods.run_config import load_config
from ccr_dist.models import tensorfile
from ccr_dist.study.compare import load_outcome
from ccr_dist.train import commands
from ccr_dist.train.state import checkpoint
from ccr_dist.train.state.run_folder import RunFolder
from ccr_dist.train.subjects import trained_method
from tests import toy
from tests.short_runs import SMALL

pytestmark = pytest.mark.long

# Of every file; `pytest -m slow tests/unit/train/state/test_run_files.py` flips a bit of every byte.
SAMPLE = 60


def tensors(state: checkpoint.State) -> dict[str, torch.Tensor]:
    return {**state.weights, **state.optimizer, **state.auxiliary}


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit, so that NaN equals itself."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(*map(raw, (one[name], other[name])))
        for name in one
    )


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def read(run: Path, name: str) -> Any:
    """What the product takes from a file of the run; errors are CcrErrors."""
    folder = RunFolder(run)
    if "step-" in name:
        state = checkpoint.load(run / Path(name).parent)
        return state.values, tensors(state)
    if name == "model.safetensors":
        return None, tensorfile.read(run / name)[0]
    if name.startswith("results/"):
        outcome = load_outcome(run / "results" / "test.json", "x")
        values = collect([run / "results" / "test.json"]).runs[0].model_dump(exclude={"meta"})
        return values, {lang: torch.from_numpy(table) for lang, table in outcome.tables.items()}
    look: dict[str, Callable[[], Any]] = {
        "identity.json": folder.identity,
        "method.json": folder.method_state,
        "best.json": folder.best,
        "config.yaml": lambda: folder.config()[0],
    }
    return look[name](), {}


def files(run: Path) -> list[str]:
    """All that is read back."""
    names = [
        "identity.json",
        "method.json",
        "best.json",
        "config.yaml",
        "model.safetensors",
        "results/test.json",
        "results/test.ranks.npz",
    ]
    return names + [str(path.relative_to(run)) for path in sorted((run / "checkpoints").rglob("*")) if path.is_file()]


def known(values: Any, like: Any) -> Any:
    """Without keys that `like` does not have: a flip in the name of a digest leaves a key that nobody reads."""
    return (
        {key: value for key, value in values.items() if key in like}
        if isinstance(values, dict) and isinstance(like, dict)
        else values
    )


def flip(run: Path, most: int | None) -> dict[str, list[int]]:
    """Per file: flips that were noticed, and those that left the same content. AssertionError on any other."""
    found: dict[str, list[int]] = {}
    for name in files(run):
        path, dice = run / name, random.Random(name)
        content, (values, weights) = path.read_bytes(), read(run, name)
        places = (
            range(len(content))
            if most is None or len(content) <= most
            else sorted(dice.sample(range(len(content)), most))
        )
        counts = found[name] = [0, 0]
        for place in places:
            torn = bytearray(content)
            torn[place] ^= 1 << dice.randrange(8)
            path.write_bytes(torn)
            try:
                now, there = read(run, name)
            except CcrError as error:
                assert str(path.parent) in str(error), "the file is named"
                counts[0] += 1
                continue
            assert known(now, values) == values and same_tensors(there, weights), (name, place, torn[place])
            counts[1] += 1
        path.write_bytes(content)
    return found


def test_a_flipped_bit_of_any_file_is_noticed_or_changes_nothing(copy: Path) -> None:
    found = flip(copy, SAMPLE)
    assert sum(noticed for noticed, _ in found.values()) > 0.9 * sum(sum(counts) for counts in found.values())
    assert {name for name, (noticed, _) in found.items() if not noticed} == set()


@pytest.mark.slow
def test_a_flipped_bit_of_every_byte_is_noticed_or_changes_nothing(copy: Path) -> None:
    flip(copy, None)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", '"x"', "3", "[" * 100_000, '{"a":' * 5000, "{}", '{"format": 2}',
    '{"format": true, "step": 1}', '{"step": NaN}',
     '{"x": "\\ud800", "digest": "y"}', "\xff", '{"format": 1, "step": 10, "progress": [], "sha256": {}}',
     '{"format": 1, "step": 10, "progress": {"stage": 3}, "sha256": {}}',
     '{"format": 1, "step": 10, "progress": {}, "sha256": []}',
     '{"format": 1, "step": 10, "progress": {"step": 9}, "sha256": {}}',
     '{"format": 1, "step": 9, "progress": {}, "sha256": {}}',
     '{"format": 1, "step": 10, "progress": {}, "sha256": {"../../identity.json": "x"}}',
     '{"format": 1, "step": 10, "progress": {"best": {"step": "1"}}, "sha256": {}}',
     '{"format": 1, "step": 10, "progress": {"nowhere": 1}, "sha256": {}}',
     '{"format": 1, "step": 10, "progress": {}, "sha256": {}}'],
)  # fmt: skip
def test_verify_says_what_is_wrong_and_a_start_goes_on_from_the_checkpoint_before(copy: Path, content: str) -> None:
    newest = copy / "checkpoints" / "step-00000010"
    (newest / "state.json").write_bytes(content.encode("latin-1"))
    done = CliRunner().invoke(app, ["checkpoint", "verify", str(copy)])
    assert done.exit_code == 8 and "step-00000010" in done.output and "state.json" in done.output
    found, passed = checkpoint.newest(copy / "checkpoints")
    assert found == copy / "checkpoints" / "step-00000006" and len(passed) == 1
    assert CliRunner().invoke(app, ["checkpoint", "inspect", str(copy)]).exit_code == 0, (
        "the table has the problem in its row"
    )
    for name in ("identity.json", "method.json", "best.json", "config.yaml", "results/test.json"):
        path = copy / name
        kept = path.read_bytes()
        path.write_bytes(content.encode("latin-1"))
        done = CliRunner().invoke(app, ["checkpoint", "verify", str(copy)])
        assert done.exit_code == 8 and path.name in done.output
        path.write_bytes(kept)


def test_a_checkpoint_lies_where_its_step_says_and_belongs_to_its_run(copy: Path) -> None:
    root = copy / "checkpoints"
    (root / "step-00000006").rename(root / "step-00000007")
    assert "it is of step 6, and lies in step-00000007" in str(checkpoint.problem(root / "step-00000007"))
    assert checkpoint.newest(root, "another")[0] is None
    (root / "step-²").mkdir()
    (root / "step-12").mkdir()
    assert checkpoint.steps(root) == [7, 10]


def test_files_of_earlier_versions_open_with_a_note(
    copy: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(toy.dasd(folder, name="complete"), [*SMALL, f"out={copy.parent}"])
    for path in (
        copy / "identity.json",
        copy / "method.json",
        copy / "best.json",
        *(copy / "checkpoints").glob("*/state.json"),
    ):
        values = {
            key: value for key, value in json.loads(path.read_text()).items() if key not in (DIGEST, "weights", "run")
        }
        path.write_text(json.dumps(values | ({"format": 1} if "format" in values else {})))
    weights, _ = tensorfile.read(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    tensorfile.write(copy / "model.safetensors", weights)
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().rpartition("#")[0])
    done = CliRunner().invoke(app, ["checkpoint", "verify", str(copy)])
    assert done.exit_code == 0 and done.output.count("an earlier version wrote it without a digest of its own") == 7
    commands.evaluate([config], split="test", again=True, world=None)
    assert "model.safetensors: it has no digest" in capsys.readouterr().err
    trained_method(config, RunFolder(config.folder), tell=False)
    assert capsys.readouterr().err == "", "ranks other than the first say nothing"
    assert commands.train([config], test=False, world=None) == 0
    assert tensorfile.read(copy / "model.safetensors")[1] is not None, (
        "made again of the selected checkpoint, with a digest"
    )
    assert read_result(copy / "results" / "test.json").test_reads == 2
