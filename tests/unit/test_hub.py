"""Fetching from and pushing to a hub, against the stand-in server of `tests/hub_server.py`. Huggingface_hub is in a
process of its own, since it reads its environment when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ccr_dist import hub
from ccr_dist.errors import ConfigError
from tests.hub_server import Hub
from tests.hub_server import hub as serving

TOLD = """
import json, sys
from pathlib import Path
from ccr_dist.errors import CcrError
from ccr_dist.hub import fetch_model, push_folder
told = []
for function, *arguments in json.loads(sys.argv[1]):
    try:
        told.append(str({"push": push_folder, "fetch": fetch_model}[function](*arguments)))
    except CcrError as error:
        told.append(f"{type(error).__name__}: {error}")
print(json.dumps(told))
"""


def asked(tmp_path: Path, server: Hub, calls: list[list[str]], **environment: str) -> list[str]:
    settings = {
        "HF_ENDPOINT": server.url, "HF_TOKEN": "writer", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", TOLD, json.dumps(calls)],
        env={**os.environ, **settings}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_a_folder_comes_back_as_it_was_pushed(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "base").mkdir(parents=True)
    (model / "model.json").write_text("{}")
    (model / "base" / "weights.bin").write_bytes(bytes(range(256)) * 20)  # goes by LFS
    calls = [["push", str(model), "org/m"], ["fetch", "hf://org/m"], ["fetch", "hf://org/m@" + "0" * 40]]
    with serving() as server:
        pushed, first, before = asked(tmp_path, server, calls)
        assert pushed.endswith(server.at("org/m", "main")[0])
        files = {path.relative_to(first).as_posix(): path.read_bytes() for path in Path(first).rglob("*.*")}
        assert files == server.files("org/m") and set(files) == {"model.json", "base/weights.bin"}
        assert before.startswith("ConfigError:") and "holds no files" in before  # the revision before it
        assert any(line.startswith("PUT upload/") for line in server.requests)


def test_the_model_folder_inside_an_export_is_the_model(tmp_path: Path) -> None:
    (tmp_path / "export" / "model").mkdir(parents=True)
    (tmp_path / "export" / "modules.json").write_text("[]")
    (tmp_path / "export" / "model" / "model.json").write_text("{}")
    with serving() as server:
        _, found = asked(tmp_path, server, [["push", str(tmp_path / "export"), "hf://org/e"], ["fetch", "hf://org/e"]])
    assert (Path(found) / "model.json").is_file()


def test_what_the_hub_refuses_is_said(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.json").write_text("{}")
    with serving() as server:
        calls = [["push", str(tmp_path / "m"), "org/m"], ["fetch", "hf://org/none"], ["fetch", "hf://org/m@nope"]]
        _, nothing, revision = asked(tmp_path, server, calls)
        [reader] = asked(tmp_path, server, [["push", str(tmp_path / "m"), "org/m"]], HF_TOKEN="reader")
        [offline] = asked(tmp_path, server, [["fetch", "hf://org/other"]], HF_HUB_OFFLINE="1")
    [gone] = asked(tmp_path, server, [["fetch", "hf://org/other"]])
    assert nothing.startswith("ConfigError: hf://org/none:") and "no such repository" in nothing
    assert revision.startswith("ConfigError: hf://org/m@nope:") and "no such branch" in revision
    assert reader.startswith("ConfigError:") and "403" in reader
    assert offline.startswith("StorageError: hf://org/other: HF_HUB_OFFLINE is set")
    assert gone.startswith("StorageError: hf://org/other:") and "could not be reached" in gone


@pytest.mark.parametrize("name", ["hf://name", "hf://a/b/c", "org/name", "hf://org/name@", "hf://../x y"])
def test_an_id_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="expected hf://org/name"):
        hub.fetch_model(name)


@pytest.mark.parametrize("name", ["name", "a/b/c", "org/name@main"])
def test_a_place_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="expected a repository"):
        hub.push_folder(tmp_path, name)
