"""`ccr-dist simulate`: options, a file, a run's log; and what it says of what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ccr_dist.cli import app
from ccr_dist.cluster.pipeline import load_plan
from ccr_dist.commands import uses_of
from ccr_dist.declare import File, Folder, Settings
from ccr_dist.errors import ConfigError
from ccr_dist.simulate.advise import advise

SHORT = "--days 5 --repetitions 3"


def do(line: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["simulate", *line.split()])
    assert done.exit_code == code, done.output
    return done


def values(line: str) -> dict[str, Any]:
    found = json.loads(do(f"{line} --json").output)
    assert isinstance(found, dict)
    return found


def test_options_and_a_file_are_the_same_job(tmp_path: Path) -> None:
    options = values(
        f"--failures rsc1 --gpus 512 {SHORT} --checkpoint-every 30m --stall 20 --restart 5m --spares 2 --repair 1d"
    )
    file = tmp_path / "job.yaml"
    job = {
        "failures": "rsc1", "gpus": 512, "days": 5, "repetitions": 3, "spares": 2, "repair": "1d", "restart": 300,
        "checkpoint": {"every": 1800, "stall": 20},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(job))
    assert values(str(file)) == options
    changed = values(f"{file} checkpoint.every=1h --gpus 1024")
    assert changed["checkpoint_every_s"] == 3600 and changed["job"]["gpus"] == 1024
    assert options["override"] is None and options["curve"] is None
    assert sum(state["mean"] for state in options["seconds"].values()) == pytest.approx(5 * 86400)


def test_the_best_interval_as_an_override_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = do(f"--failures llama3 --gpus 1024 {SHORT} --stall 10 --step 7.5").output
    override = said.strip().splitlines()[-1].removeprefix("set ")
    key, _, number = override.partition("=")
    assert key == "runtime.checkpoint_every" and int(number) > 1
    # a pipeline takes the number as a value
    steps = {"train": {"command": "train mine.yaml runtime.checkpoint_every=$every"}}
    Path("p.yaml").write_text(yaml.safe_dump({"name": "p", "values": {"every": 100}, "steps": steps}))
    assert load_plan("p.yaml", [f"values.every={number}"]).jobs["train"].command[-1] == override


def test_rates_of_nodes_are_those_of_such_nodes(tmp_path: Path) -> None:
    """A node of four GPUs fails as often as it does, not as one of eight."""
    rates = tmp_path / "mine.yaml"
    cause = {"node": {"scope": "node", "per_day": 0.01}}
    rates.write_text(yaml.safe_dump({"title": "t", "source": "s", "per_node": 4, "causes": cause}))
    found = values(f"--failures {rates} --gpus 512 {SHORT}")
    assert found["job"]["per_node"] == 4
    advice = advise(rates, gpus=512, stall=30, restart=300)
    assert advice.interruptions_per_day == pytest.approx(1.28)
    assert found["checkpoint_every_s"] == pytest.approx(advice.interval_s)
    assert values(f"--failures {rates} --gpus 512 --per-node 8 {SHORT}")["job"]["per_node"] == 8
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({"failures": str(rates), "gpus": 4}))
    assert values(f"{file} {SHORT}")["job"]["per_node"] == 4


def test_a_run_tells_its_step_and_its_save(tmp_path: Path) -> None:
    line = f"--failures llama3 --gpus 1024 {SHORT} --run {tmp_path}"
    assert "log.jsonl: no step was logged yet" in do(line, ConfigError.exit_code).output
    log = tmp_path / "log.jsonl"
    steps = [{"step": n, "loss": 1.0, "step_s": 2.0, "data_s": 0.5} for n in range(5)]
    log.write_text("".join(f"{json.dumps(each)}\n" for each in steps))
    assert "no save was logged yet" in do(line, ConfigError.exit_code).output
    with log.open("a") as file:
        file.write(json.dumps({"step": 5, "event": "checkpoint", "stall_s": 4.0}) + "\n")
    measured = values(line)
    assert measured == values(line.replace(f"--run {tmp_path}", "--step 2.5 --stall 4"))
    assert measured["job"]["checkpoint"]["stall"] == 4


def test_a_curve_and_its_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "new" / "curve.png"
    said = do(f"--failures rsc1 --gpus 512 {SHORT} --plot {plot}").output
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert said.count("\n| ") == 11 and "Young" in said and "best simulated" in said
    curve = values(f"--failures rsc1 --gpus 512 {SHORT} --curve")["curve"]
    assert len(curve["points"]) == 9 and set(curve["optima_s"]) == {"Young", "Daly", "arXiv 2410.18124", "exact"}


def test_published_ratios_and_their_assumptions() -> None:
    said = do("--published --failures llama3 --repetitions 2").output
    assert "agrees" in said and "assumed, since it is not published" in said and "2602.00277" in said
    [found] = json.loads(do("--published --failures llama3 --repetitions 2 --json").output)
    assert found["agrees"] and found["reported"] == 0.9 and found["assumed"]
    listed = do("--failures ?").output
    assert "llama3 " in listed and "byterobust " in listed


def test_what_it_reads_and_makes() -> None:
    uses = uses_of(
        ["simulate", "job.yaml", "gpus=8", "--failures", "./r.yaml", "--run", "r", "--plot", "p.png"], "step a"
    )
    assert uses.reads == (Settings("job.yaml", overrides=("gpus=8",)), Settings("./r.yaml"), Folder("r"))
    assert uses.makes == (File("p.png"),)
    assert uses_of(["simulate", "gpus=8", "--failures", "llama3"], "step a").reads == ()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--failures lama3 --gpus 8",
            "failure rates 'lama3': none of that name comes with ccr-dist; did you mean 'llama3'",
        ),
        ("--failures llama3", "'gpus' is missing"),
        ("--failures llama3 --gpus 0", "gpus: expected more than 0"),
        ("--failures llama3 --gpus 12", "no multiple of the GPUs of a node (8)"),
        ("--failures llama3 --gpus 8 --days 0", "days: expected more than 0"),
        ("--failures llama3 --gpus 8 --checkpoint-every 0", "checkpoint.every: expected more than 0"),
        ("--failures llama3 --gpus 8 --checkpoint-every often", "'often' is no duration"),
        ("--failures llama3 --gpus 8 --spares 2 --repair 1d", "spares (2) is more than the nodes of the job (1)"),
        ("--failures llama3 --gpus 16 --spares 1", "repair: say how long a node is away"),
        ("--failures llama3 --gpus 16 --least-nodes 3 --repair 1d", "least_nodes (3) is more than the nodes"),
        (
            "--failures llama3 --gpus 16 --least-nodes 1 --queue 5m --repair 1d",
            "a job that goes on with fewer nodes waits",
        ),
        ("--failures llama3 --gpus 8 --stall 0", "a checkpoint that costs nothing"),
        ("--failures llama3 --gpus 8 --step 0", "step: 0 s: expected more than 0"),
        ("--failures llama3 --gpus 8 --plot p.svg", "p.svg: a plot is written as PNG"),
        ("--gpus 8", "nothing fails: name `failures`, or list `causes`"),
        (
            "stragglers.per_day=1 stragglers.lasts=60 stragglers.slows=2 --gpus 8",
            "no interval is the best; name failures",
        ),
        ("--failures llama3 gpu=8", "did you mean 'gpus'"),
        (
            "--published --gpus 8 --curve days=3",
            "days=3, --gpus, --curve: --published takes all numbers from the rates",
        ),
        ("causes.x.per_day=-1 --gpus 8", "causes.x.per_day: expected more than 0"),
        ("causes.x.per_day=1 --gpus 8 causes.x.shape=0", "causes.x.shape"),
        ("causes.x.per_day=1e9 --gpus 8 --checkpoint-every 5m", "about 3e+10 failures and slow nodes in 30 days"),
        ("causes.x.per_day=.nan --gpus 8", "causes.x.per_day"),
        ("causes.x.per_day=1 --gpus 8 --days nan", "days"),
        ("causes.x.per_day=1 --gpus 8 --checkpoint-every -5m", "'-5m' is no duration"),
        ("causes.x.per_day=1 --gpus 8 --per-node 0", "per_node: expected more than 0"),
        (
            "stragglers.per_day=1e9 stragglers.lasts=60 stragglers.slows=2 --gpus 8 --checkpoint-every 5m",
            "failures and slow nodes",
        ),
        (
            "stragglers.per_day=1 stragglers.lasts=60 stragglers.slows=1 --gpus 8",
            "stragglers.slows: expected more than 1",
        ),
    ],
)
def test_what_cannot_be(line: str, said: str) -> None:
    assert said in do(line, ConfigError.exit_code).output
