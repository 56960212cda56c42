"""The table of a scaling experiment, from runs whose logs say what they are to say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.data.storage.json_lines import line_of
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.scaling.compare import rows, table

PARTS = {"data": 0.1, "agree": 0.1, "forward": 0.4, "losses": 0.1, "backward": 0.2, "update": 0.1}


def run(folder: Path, ranks: int, step_s: float, *, hosts: int | None = None, seed: int = 0, **parts: float) -> Path:
    """20 steps of 100 samples; the first ten are slow."""
    folder.mkdir()
    processes = [{"pid": rank, "host": f"n{rank % (hosts or ranks)}"} for rank in range(ranks)]
    (folder / "starts.jsonl").write_text(json.dumps({"world": ranks, "processes": processes}) + "\n")
    (folder / "identity.json").write_text(json.dumps({"seed": seed}))
    speed = {f"{name}_s": share * step_s for name, share in {**PARTS, **parts}.items()}
    lines: list[dict[str, Any]] = [{"step": 5, "event": "validation", "samples_per_s": 1}]
    for step in range(1, 21):
        seconds = step_s * (50 if step <= 10 else 1)
        line = {
            "step": step,
            "stage": "cla",
            "data_s": 0.1 * seconds,
            "step_s": 0.9 * seconds,
            "samples_per_s": 100 / seconds,
        }
        lines.append({**line, "speed": speed})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[1:] + lines[:1]))
    return folder


def test_rates_efficiency_and_shares(tmp_path: Path) -> None:
    # Four ranks take 0.4 s for what would be 0.25 s: 0.05 s more each in agree, losses and backward.
    slower = {"agree": 0.1875, "losses": 0.1875, "backward": 0.25}
    one, four = run(tmp_path / "one", 1, 1.0), run(tmp_path / "four", 4, 0.4, hosts=2, **slower)
    first, second = rows([four, one], warmup=10)
    assert (first.nodes, first.ranks, first.samples_per_s, first.efficiency, first.communication) == (
        1,
        1,
        100,
        1,
        None,
    )
    assert (second.nodes, second.ranks, second.steps) == (2, 4, 10) and second.samples_per_s == pytest.approx(250)
    assert second.efficiency == pytest.approx(250 / 400) and second.data == pytest.approx(0.1)
    together = 0.4 * (0.1875 + 0.1875 + 0.25 + 0.1)
    assert second.communication == pytest.approx((together - 0.5 / 4) / 0.4)
    assert "| cla | 2 | 4 | 250 ±" in table([first, second])


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    one = run(tmp_path / "one", 1, 1.0)
    with pytest.raises(ConfigError, match=r"another training than .*seed: there 0, asked 1"):
        rows([one, run(tmp_path / "other", 2, 1.0, seed=1)], warmup=10)
    with pytest.raises(
        ConfigError, match=r"1 measured step\(s\) of stage cla after the first 19, of 20.*runtime\.log_every=1"
    ):
        rows([one], warmup=19)
    with pytest.raises(ConfigError, match=r"no run of a training"):
        rows([tmp_path], warmup=10)
    with (one / "starts.jsonl").open("a") as file:
        file.write(json.dumps({"world": 2, "processes": [{"host": "n1"}, {"host": "n2"}]}) + "\n")
    with pytest.raises(ConfigError, match=r"several numbers of ranks \(\[1, 2\]\)"):
        rows([one], warmup=10)


@pytest.mark.parametrize("name", ["log.jsonl", "starts.jsonl"])
def test_a_damaged_line_is_not_measured(tmp_path: Path, name: str) -> None:
    one = run(tmp_path / "one", 1, 1.0)
    lines = [json.loads(line) for line in (one / name).read_text().splitlines()]
    (one / name).write_bytes(b"".join(map(line_of, lines)) + b'{"step": 21, "sta')
    assert rows([one], warmup=10)[0].samples_per_s == 100
    whole = b"".join(map(line_of, lines + lines[-1:]))
    (one / name).write_bytes(whole.replace(b"1", b"3", 1))
    with pytest.raises(DataError, match=rf"{name}: damaged in line 1, .* measure another run"):
        rows([one], warmup=10)


@pytest.mark.parametrize("name", ["log.jsonl", "starts.jsonl"])
def test_a_line_without_its_values_is_named(tmp_path: Path, name: str) -> None:
    one = run(tmp_path / "one", 1, 1.0)
    with (one / name).open("ab") as file:
        file.write(line_of({}))
    with pytest.raises(DataError, match=rf"{name}, entry \d+.*missing"):
        rows([one], warmup=10)
    (one / "starts.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"starts\.jsonl: holds no start of the run"):
        rows([one], warmup=10)
