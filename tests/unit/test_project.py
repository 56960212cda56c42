"""`ccr-dist init`: what is laid out, and that nothing is ever overwritten."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ccr_dist import project, yamlfile
from ccr_dist.cli import app
from ccr_dist.cluster.profile import load_profile
from ccr_dist.errors import ConfigError
from ccr_dist.methods.run_config import load_config

ROOT = Path(__file__).parents[2]


def test_what_a_project_has(tmp_path: Path) -> None:
    written = project.lay_out(tmp_path / "p")
    assert {str(path.relative_to(tmp_path / "p")) for path in (tmp_path / "p").rglob("*") if path.is_file()} == {
        str(path) for path in written
    }
    for path in written:
        if path.parts[0] in ("configs", "launch"):
            assert (tmp_path / "p" / path).read_bytes() == (ROOT / path).read_bytes()
    for word in project.README.replace("`", " ").replace(",", " ").split():
        if word.endswith(".yaml") and word != "PIPELINE":
            assert Path(word) in written, word


@pytest.mark.parametrize("folder", project.known())
def test_any_folder_of_configs_is_complete(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.lay_out(tmp_path, [folder])
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "configs" / folder).rglob("[!_]*.yaml"):
        if not {"rows", "steps"} & yamlfile.load(path).data.keys():  # of studies and pipelines
            load_config(path)


@pytest.mark.parametrize("there", ["README.md", "slurm/mysite.yaml", "configs/_dasd.yaml", "launch", "configs"])
def test_what_exists_is_named_and_nothing_written(there: str, tmp_path: Path) -> None:
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=rf"already has {there}; nothing was written"):
        project.lay_out(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / there).read_text() == "mine"


def test_a_link_to_nowhere_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "README.md").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"already has README\.md; nothing was written"):
        project.lay_out(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_the_profile_names_this_environment(tmp_path: Path) -> None:
    project.lay_out(tmp_path)
    assert load_profile(str(tmp_path / project.SITE)).python == sys.executable


def test_a_folder_that_cannot_be_written_keeps_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = project.files()
    name = Path("README.md/x")  # its folder is a file by then
    monkeypatch.setattr(project, "files", lambda configs: whole | {name: b""})
    with pytest.raises(OSError, match="exists"):
        project.lay_out(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_unknown_configs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--configs clop: there are: cc300k, clip, demo"):
        project.lay_out(tmp_path, ["clop"])
    assert not list(tmp_path.iterdir())


def test_files_are_listed_one_a_line_with_what_to_do_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "a b")])
    assert done.stdout.splitlines() == [f"{tmp_path}/a b/{path}" for path in project.files()]
    assert done.stderr == f"next: cd '{tmp_path}/a b' && ccr-dist run configs/pipelines/emoji14.yaml --dry-run\n"
    again = CliRunner().invoke(app, ["init", str(tmp_path / "a b")])
    assert again.exit_code == 2 and again.stderr.splitlines()[1:] == [f"  {path}" for path in project.files()]
