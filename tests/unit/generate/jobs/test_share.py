"""Which of N workers this one is: by numbers, by a scheduler's name, by any variables; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from ccr_dist.cli import app as app_of_all
from ccr_dist.errors import ConfigError
from ccr_dist.generate.cli import jobs_app
from ccr_dist.generate.jobs.share import SCHEDULERS, parse_share
from tests import jobs


@pytest.fixture(autouse=True)
def outside_of_schedulers(monkeypatch: pytest.MonkeyPatch) -> None:
    for known in SCHEDULERS.values():
        for name in (known.index, known.count, known.first, known.last, known.step):
            if isinstance(name, str):
                monkeypatch.delenv(name, raising=False)


def test_share() -> None:
    assert parse_share("2/8") == (2, 8)
    for wrong in ("8/8", "1", "a/b", "-1/2", "1/2/3", "", "env:", "env:A", "env:A/", "env:/8", "env:A B/8", "²/8"):
        with pytest.raises(ConfigError, match="expected I/N"):
            parse_share(wrong)


def test_share_of_a_slurm_array(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="SLURM_ARRAY_TASK_ID is not set"):
        parse_share("slurm")
    for name, value in {"ID": "5", "MIN": "3", "COUNT": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert parse_share("slurm") == (2, 4)
    monkeypatch.delenv("SLURM_ARRAY_TASK_COUNT")
    with pytest.raises(ConfigError, match="SLURM_ARRAY_TASK_COUNT is not set"):
        parse_share("slurm")


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_scheduler_gives_each_worker_its_place(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    known = SCHEDULERS[name]
    form = name if known.count else f"{name}/3"
    with pytest.raises(ConfigError, match=f"--share {form}: {known.index} is not set"):
        parse_share(form)
    if known.count:
        monkeypatch.setenv(known.count, "3")
    if isinstance(known.first, str):
        monkeypatch.setenv(known.first, "0")
    places = []
    for index in range(3):
        monkeypatch.setenv(known.index, str(index))
        places.append(parse_share(form))
    assert places == [(0, 3), (1, 3), (2, 3)]
    monkeypatch.setenv(known.index, "3")
    with pytest.raises(ConfigError, match=rf"{known.index}=3 |task 3 has"):
        parse_share(form)
    for broken in ("", "-1", "1.5", "two", "٣"):
        monkeypatch.setenv(known.index, broken)
        with pytest.raises(ConfigError, match=f"--share {form}: {known.index}='{broken}': expected a whole number"):
            parse_share(form)


def test_the_number_of_workers_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    with pytest.raises(ConfigError, match=r"\(JOB_COMPLETION_INDEX\), not the number of workers: write kubernetes/N"):
        parse_share("kubernetes")
    with pytest.raises(ConfigError, match="SKYPILOT_NUM_NODES tells the number of workers; leave out /8"):
        parse_share("skypilot/8")


def test_any_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSB_JOBINDEX", "3")
    monkeypatch.setenv("MINE", "8")
    assert parse_share("env:LSB_JOBINDEX/8") == (3, 8)
    assert parse_share("env:LSB_JOBINDEX/MINE") == (3, 8)
    assert parse_share("env:LSB_JOBINDEX-1/8") == (2, 8)
    with pytest.raises(ConfigError, match="LSB_JOBINDEX=3 is no place among 3 workers: expected 0 to 2"):
        parse_share("env:LSB_JOBINDEX/3")
    with pytest.raises(ConfigError, match="LSB_JOBINDEX=3 is no place among MINE=8: expected 4 to 11"):
        parse_share("env:LSB_JOBINDEX-4/MINE")
    with pytest.raises(ConfigError, match="OTHER is not set"):
        parse_share("env:LSB_JOBINDEX/OTHER")
    monkeypatch.setenv("MINE", "0")
    with pytest.raises(ConfigError, match="is no place among MINE=0"):
        parse_share("env:LSB_JOBINDEX/MINE")
    with pytest.raises(ConfigError, match="LSB_JOBINDEX=3 is no place among 0 workers: expected 1 worker or more"):
        parse_share("env:LSB_JOBINDEX/0")


@pytest.mark.parametrize("wrong", ["kubernets/8", "skypilots", "slrum"])
def test_a_near_name_is_told(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean '(kubernetes|skypilot|slurm)'"):
        parse_share(wrong)


def test_workers_of_an_indexed_job_share_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = jobs.captions(tmp_path / "d", rows=(2, 1, 3))
    words = jobs.shouting(dataset.root, "--quiet", "--no-wait", "--share", "kubernetes/2")
    done = []
    for index in ("1", "0"):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
        assert CliRunner().invoke(jobs_app, words, catch_exceptions=False).exit_code == 0
        done.append(dataset.column("caption.xx.shout").missing())
    assert done == [[0, 2], []]


def test_every_command_that_has_the_option_says_the_same_of_it() -> None:
    app: Any = typer.main.get_command(app_of_all)
    options = [
        (name, option.help)
        for name, command in app.commands.items()
        for option in command.params
        if "--share" in option.opts
    ]
    assert {name for name, _ in options} >= {"describe", "translate", "featurise", "replay"}
    assert len({said for _, said in options}) == 1 and "env:INDEX/COUNT" in options[0][1]
