"""What is kept and shown of commands and of the environment holds no secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccr_dist.errors import ConfigError, boundary
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import run
from ccr_dist.redact import command_line, is_secret, without_places, without_secrets
from tests.jobs import Shout, captions


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("http://me:pw@host:8000/v1", "http://***@host:8000/v1"),
        (
            "base_url=https://tok3n@host/v1?api_key=abc&api-version=2",
            "base_url=https://***@host/v1?api_key=***&api-version=2",
        ),
        ("s3://AKIA:abc@bucket/x and s3://bucket/y", "s3://***@bucket/x and s3://bucket/y"),
        ("https://h/x?X-Amz-Signature=abc&sig=def", "https://h/x?X-Amz-Signature=***&sig=***"),
        ("http://host/v1 mail me@host.org", "http://host/v1 mail me@host.org"),
        ("http://host/@cf/model", "http://host/@cf/model"),
    ],
)
def test_addresses(text: str, kept: str) -> None:
    assert without_secrets(text) == kept


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/ana/project/runs/dasd-s0", "runs/dasd-s0"),
        ("/home/ana/project", "."),
        ("out=/home/ana/project/runs", "out=runs"),
        ("data.train=[{path: /home/ana/data/coco/test, weight: 1}]", "data.train=[{path: test, weight: 1}]"),
        ("local-dir:/home/ana/My models/clip", "local-dir:clip"),
        ("file:///mnt/store/d", "file://d"),
        ("/home/ana", "~"),
        ("in /home/bo and /Users/ana/", "in ~ and ~"),
        ("mR on data/toy/val", "mR on data/toy/val"),
        (
            "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
            "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        ),
        ("http://gpu17:8000/v1 http://10.0.0.7/v1", "http://***:8000/v1 http://***/v1"),
        ("s3://bucket/x hf://org/name", "s3://bucket/x hf://org/name"),
        ("1/2 and a / b", "1/2 and a / b"),
        ("{epoch}/{step}", "{epoch}/{step}"),
    ],
)
def test_places(text: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/home/ana/project"))
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ana"))
    assert without_places(text) == kept
    assert without_places({"a": [text, 1, None]}) == {"a": [kept, 1, None]}


def test_places_in_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/"))  # nothing is below it that may be told
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ana"))
    words = ["ccr-dist", "train", "/home/ana/My project/a b.yaml", "out=/home/ana/runs one", "seed=1"]
    public = without_places({"command": command_line(words), "seed": 1})
    assert public == {"command": "ccr-dist train 'a b.yaml' 'out=runs one' seed=1", "seed": 1}
    assert without_places({"command": "it's /home/ana/x"}) == {"command": "it's x"}


def test_commands() -> None:
    words = [
        "ccr-dist",
        "translate",
        "d",
        "--set",
        "api_key=abc",
        "--set",
        "base_url=http://u:p@h/v1",
        "--set",
        "max_tokens=5",
        "--token=abc",
    ]
    assert command_line(words) == (
        "ccr-dist translate d --set 'api_key=***' --set 'base_url=http://***@h/v1' --set max_tokens=5 '--token=***'"
    )


def test_variables() -> None:
    secret = (
        "SLURM_JWT",
        "HF_PASS",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "SLURM_AUTH",
        "HF_PASSWORD",
        "CUDA_CREDENTIALS",
    )
    assert all(map(is_secret, secret))
    assert not any(
        map(
            is_secret,
            ("SLURM_JOB_ID", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HOME", "MASTER_ADDR", "SLURM_NTASKS"),
        )
    )


def test_provenance_of_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["/usr/bin/ccr-dist", "translate", "--set", "base_url=http://me:pa55@host/v1?key=qu3ry"]
    )
    dataset = captions(tmp_path / "d")
    run(dataset, Translate(Shout(), "caption.en"), "caption.xx.shout", progress=False)
    text = (dataset.root / "caption.xx.shout" / "column.json").read_text()
    assert "ccr-dist translate --set" in text and not any(secret in text for secret in ("pa55", "qu3ry", "me:"))


def test_no_message_of_a_command_shows_a_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), boundary():
        raise ConfigError("no such store: s3://AKIA:abc@bucket/x?sig=def; name another one")
    assert capsys.readouterr().err == "error: no such store: s3://***@bucket/x?sig=***; name another one\n"
