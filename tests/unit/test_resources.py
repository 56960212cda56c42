"""Files that come with ccr-dist: where they lie, and which file a user's word means."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ccr_dist import resources, yamlfile
from ccr_dist.cluster import submit
from ccr_dist.cluster.checks import check
from ccr_dist.cluster.identity import Standing
from ccr_dist.cluster.pipeline import load_plan
from ccr_dist.cluster.profile import load_profile
from ccr_dist.cluster.render import render
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.errors import ConfigError
from ccr_dist.generate.jobs.prompts import load_prompt
from ccr_dist.resources import DEEPSPEED, LAUNCH, PROFILES, PROMPTS, RECIPES, Kind
from ccr_dist.train.strategies.choose import deepspeed_config

ROOT = Path(__file__).parents[2]
KINDS = (RECIPES, PROMPTS, PROFILES, LAUNCH, DEEPSPEED)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)


@kinds
def test_every_kind_is_there_and_found_by_name_from_anywhere(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(kind.files()) > 1
    for name, path in kind.files().items():
        assert path.is_file() and path.is_relative_to(ROOT) and kind.find(name) == path


@kinds
def test_paths_are_paths(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(iter(kind.files()))
    for path in (f"{name}.yaml", f"{name}.yml", f"{name}.json", f"./{name}", f"../{name}", f"/{name}"):
        assert kind.find(path) == Path(path)


@kinds
@pytest.mark.parametrize("place", ["{name}", "{name}{suffix}", "{where}/{name}{suffix}"])
def test_a_file_here_neither_wins_nor_loses_silently(
    kind: Kind, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, shipped = next(iter(kind.files().items()))
    here = Path(place.format(name=name, where=kind.where, suffix=kind.suffix))
    here.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(shipped, here)
    assert kind.find(name) == shipped  # the same: nothing to choose between
    here.write_text("other: 1\n")
    with pytest.raises(ConfigError) as error:
        kind.find(name)
    mine = str(error.value).partition("write ")[2].partition(" for the one here")[0]
    assert kind.find(mine).samefile(here) and f"{shipped} for the other" in str(error.value)
    assert kind.find(shipped) == shipped


@kinds
def test_names_that_are_not_there(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(iter(kind.files()))
    with pytest.raises(ConfigError, match=rf"{kind.what} '{name}x': .*did you mean '{name}'\?"):
        kind.find(f"{name}x")
    with pytest.raises(ConfigError, match=rf"there are: .*{name}.*path of a {kind.suffix} file"):
        kind.find("?")
    Path(f"mine{kind.suffix}").touch()
    with pytest.raises(ConfigError, match=rf"for the file here write mine{kind.suffix}"):
        kind.find("mine")


def test_every_place_that_takes_a_name_refuses_what_is_ambiguous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder.yaml", "detail.yaml", "default.yaml", "ddp.yaml", "zero2.json"):
        Path(name).write_text("{}")
    Path("p.yaml").write_text("name: p\nsteps: {a: {command: train x.yaml}}\n")
    for use in (
        lambda: load_recipe("folder"),
        lambda: load_prompt("detail", ()),
        lambda: load_profile("default"),
        lambda: deepspeed_config("zero2"),
        lambda: check(load_plan("p.yaml"), free_disk_gib=0),
    ):
        with pytest.raises(ConfigError, match=r"one comes with ccr-dist, and .* in this folder is another"):
            use()


def test_a_pipeline_may_be_called_like_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").write_text("name: p\nsteps: {a: {command: shards build folder --out d}}\n")
    assert resources.RECIPES.find("folder") == resources.RECIPES.files()["folder"]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("rows: []", True), ("stages: {}", True), ("method : {}", True), ("a: 1\n  rows: 2", False), ("# rows:", False)],
)
def test_what_has_no_short_name_is_told_by_its_own_keys(
    text: str, is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").write_text(text)
    if is_one:
        assert resources.RECIPES.find("folder") == resources.RECIPES.files()["folder"]
    else:
        with pytest.raises(ConfigError, match="in this folder is another"):
            resources.RECIPES.find("folder")


def test_a_pipeline_names_its_launch_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = ROOT / "configs" / "clip" / "dasd.yaml"
    command = f"command: train {config}"
    profile = load_profile("default")
    asked = []
    for launch, expected in (
        ("", LAUNCH.find("ddp")),
        (", launch: ddp", LAUNCH.find("ddp")),
        (", launch: zero2", LAUNCH.find("zero2")),
        (", launch: launch/accelerate/ddp.yaml", Path("launch/accelerate/ddp.yaml")),
    ):
        Path("p.yaml").write_text(f"name: p\nsteps: {{a: {{{command}{launch}}}}}\n")
        plan = load_plan("p.yaml")
        text = render(plan, plan.jobs["a"], profile, root=tmp_path, tasks=[0], offset=0)
        assert f"\nLAUNCH={expected}\n" in text
        assert f"\nSCRIPTS={ROOT / 'slurm'}\n" in text
        asked.append(submit._asked(Standing(plan), "a")["step"])
    assert asked[0] == asked[1] == asked[3] != asked[2]  # a job that was queued under the path is still the same job
    with pytest.raises(
        ConfigError, match=r"launch/accelerate/ddp\.yaml: no such file here; ccr-dist comes with one.*names: cpu, ddp"
    ):
        check(plan, free_disk_gib=0)
    Path("p.yaml").write_text(f"name: p\nsteps: {{a: {{{command}, launch: dpp}}}}\n")
    with pytest.raises(ConfigError, match=r"p\.yaml:2: step a: launch: launch profile 'dpp': .*did you mean 'ddp'"):
        check(load_plan("p.yaml"), free_disk_gib=0)


def test_a_config_that_is_only_shipped_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"clip/dasd\.yaml: no such file here; ccr-dist comes with one.*`ccr-dist init DIR`"
    ):
        yamlfile.load("configs/clip/dasd.yaml")
    with pytest.raises(ConfigError, match=r"clip/nothing\.yaml: no such file$"):
        yamlfile.load("configs/clip/nothing.yaml")


def test_shown_paths_lead_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert resources.shown("launch/accelerate/ddp.yaml") == "launch/accelerate/ddp.yaml"
    monkeypatch.chdir(tmp_path)
    assert resources.shown("launch/accelerate/ddp.yaml") == str(ROOT / "launch/accelerate/ddp.yaml")


@pytest.mark.parametrize("beside", [True, False], ids=["files of others beside it", "nothing beside it"])
def test_a_damaged_installation_takes_nothing_of_others(
    beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ccr_dist").mkdir()
    if beside:
        (tmp_path / "slurm").mkdir()
    monkeypatch.setattr(resources, "package", lambda: tmp_path / "ccr_dist")
    with pytest.raises(ConfigError, match=r"shipped/slurm: .*the installation is damaged; install it again"):
        resources.folder("slurm")
    (tmp_path / "ccr_dist" / "shipped" / "slurm").mkdir(parents=True)
    assert resources.folder("slurm") == tmp_path / "ccr_dist" / "shipped" / "slurm"
    (tmp_path / "pyproject.toml").touch()  # a project whose virtual environment lies in it
    (tmp_path / "slurm").mkdir(exist_ok=True)
    assert resources.folder("slurm") == tmp_path / "ccr_dist" / "shipped" / "slurm"
