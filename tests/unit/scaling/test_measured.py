"""What is read from the run folder of a training, and what it sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccr_dist.data.storage.json_lines import line_of, read_lines
from ccr_dist.errors import DataError
from ccr_dist.losses import sent
from ccr_dist.scaling.measured import measured
from ccr_dist.scaling.plan import Trial
from ccr_dist.scaling.traffic import traffic
from tests import scaling_runs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scaling_runs.base(tmp_path_factory.mktemp("scaling"))


def trial(base: Path, folder: Path, world: int = 2) -> Trial:
    return next(each for each in scaling_runs.study(base, folder).trials if each.point.settings.world == world)


def test_steps_after_the_warm_up_on_the_slowest_rank(base: Path, tmp_path: Path) -> None:
    scaling_runs.leave(trial(base, tmp_path), 0.5)
    found = measured(trial(base, tmp_path).folder, warmup=2)
    assert list(found["stages"]) == ["cla", "cma"]
    cma = found["stages"]["cma"]
    assert (cma["first_step"], cma["last_step"], cma["seconds"]) == (9, 12, [0.5] * 4)
    assert cma["phases"]["forward"] == pytest.approx(0.2) and cma["memory_bytes"] == [10**9, 10**9 + 10**6]
    assert cma["traffic"] == {"features": 100, "gradients": scaling_runs.TRAINED, "weights": 0}
    assert found["environment"]["commit"] == "abc1234" and found["quality"]["value"] == 42


def test_steps_after_another_start_are_warm_up_again(base: Path, tmp_path: Path) -> None:
    scaling_runs.leave(trial(base, tmp_path), 0.5, starts=(0, 8))
    found = measured(trial(base, tmp_path).folder, warmup=2)
    assert found["stages"]["cma"]["seconds"] == [0.5] * 2 and found["starts"] == 2


def test_what_cannot_be_measured_is_said(base: Path, tmp_path: Path) -> None:
    folder = trial(base, tmp_path).folder
    scaling_runs.leave(trial(base, tmp_path), 0.5)
    with pytest.raises(DataError, match=r"log\.jsonl: 1 measured step\(s\) of stage cla, of 6 .* `warmup`"):
        measured(folder, warmup=5)
    lines = list(read_lines(folder / "log.jsonl").values)
    for wrong, message in (
        ([line for line in lines if line.get("event") != "memory"], "does not say what ranks of stage cla hold"),
        ([{**line, "speed": {}} for line in lines if "event" not in line], r"step 3: lacks agree_s, .*this version"),
        ([], "holds no step"),
    ):
        (folder / "log.jsonl").write_bytes(b"".join(map(line_of, wrong)))
        with pytest.raises(DataError, match=message):
            measured(folder, warmup=2)
    (folder / "starts.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no start"):
        measured(folder, warmup=2)


def test_what_strategies_send() -> None:
    """Of 4 ranks, 100 bytes of trained weights and 100 frozen ones."""
    whole, part = [{"parameters": 200, "optimizer": 200}] * 4, [{"parameters": 50, "optimizer": 50}] * 4
    mixed = [{"parameters": 200, "optimizer": 50}] * 4
    expected = {
        "ddp": (whole, 2 * 100, 0), "zero1": (mixed, 100, 100), "zero2": (mixed, 100, 100),
        "zero3": (part, 100, 250), "fsdp2": (part, 100, 250),
    }  # fmt: skip
    for engine, (held, gradients, weights) in expected.items():
        found = traffic(engine, held, 4, 7.0, regathered=50)
        assert found == {"features": 7, "gradients": 0.75 * gradients, "weights": 0.75 * weights}, engine
    assert set(traffic("single", whole[:1], 1, 0.0).values()) == {0.0}
    with pytest.raises(ValueError, match="'other' is not known"):
        traffic("other", whole, 4, 0.0)


def test_what_collectives_send_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(sent, "total", 0.0)
    rows = torch.zeros(5, 4)  # 80 bytes
    sent.gathered(rows, 4)
    assert sent.total == 3 * 80
    sent.reduced(rows, 4)
    assert sent.total == 3 * 80 + 1.5 * 80
    sent.passed_on(rows)
    assert sent.total == 3 * 80 + 2.5 * 80
