"""What someone has who ran `pip install ccr-dist`: a wheel in an environment of its own, a folder of theirs, no torch.

Needs pip's index, for the build backend and the base dependencies.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
LARGEST = 1_500_000  # bytes of a wheel
SHIPPED = {".yaml", ".json", ".sh", ".sbatch"}
pytestmark = pytest.mark.procs


def done(command: Sequence[str | Path], folder: Path, **variables: str) -> str:
    """What a command prints; the test fails, with all of it, where the command does."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    process = subprocess.run(command, cwd=folder, env=clean | variables, capture_output=True, text=True)
    text = process.stdout + process.stderr
    assert process.returncode == 0, f"{' '.join(map(str, command))} ended with {process.returncode}:\n{text}"
    return text


def pip(*arguments: str | Path, folder: Path, **variables: str) -> str:
    return done([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], folder, **variables)


@dataclass
class Installed:
    """An environment with the wheel in it. wheels: made of a checkout, of the checkout again, and of its sdist."""

    bin: Path
    wheels: list[Path]
    sdist: Path

    def run(self, folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """`ccr-dist WORDS` as its user types it, where SLURM is not at hand."""
        variables = {"PATH": f"{self.bin}:/nowhere", "HOME": str(folder), "LANG": "C.UTF-8"}
        command = [self.bin / "ccr-dist", *words]
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)

    def says(self, folder: Path, *words: str | Path) -> str:
        process = self.run(folder, *words)
        text = process.stdout + process.stderr
        assert process.returncode == 0, f"ccr-dist {' '.join(map(str, words))} ended with {process.returncode}:\n{text}"
        return text


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("installed")
    before = {path.name for path in ROOT.iterdir()}
    backend = place / "backend"
    requires = re.search(r'requires = \["(.+)"\]', (ROOT / "pyproject.toml").read_text())
    assert requires
    pip("install", "--no-compile", "--target", backend, requires[1], folder=place)
    build = [sys.executable, "-m", "hatchling", "build", "-d"]
    done([*build, place / "a", "-t", "sdist", "-t", "wheel"], ROOT, PYTHONPATH=str(backend))
    with tarfile.open(next((place / "a").glob("*.tar.gz"))) as archive:
        archive.extractall(place / "unpacked", filter="data")
    source = next((place / "unpacked").iterdir())
    pip("wheel", "--no-build-isolation", "--no-deps", "-w", place / "b", source, folder=place, PYTHONPATH=str(backend))
    wheels = [next((place / folder).glob("*.whl")) for folder in ("a", "b")]
    made = {path.name for path in ROOT.iterdir()} - before
    assert not {name for name in made if not name.startswith(".")}, "a build leaves nothing in the checkout"
    environment = place / "environment"
    venv.create(environment, symlinks=True)
    (environment / "bin" / "bash").symlink_to(shutil.which("bash") or "")  # alone: SLURM's commands may lie beside it
    pip("--python", environment / "bin" / "python", "install", "--no-compile", wheels[0], folder=place)
    return Installed(environment / "bin", wheels, next((place / "a").glob("*.tar.gz")))


def test_a_wheel_is_small_and_the_same_from_a_checkout_and_from_an_sdist(installed: Installed) -> None:
    a, b = (wheel.read_bytes() for wheel in installed.wheels)
    assert a == b and len(a) < LARGEST
    names = zipfile.ZipFile(installed.wheels[0]).namelist()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"ccr_dist"}
    assert {Path(name).suffix for name in names if name.startswith("ccr_dist/shipped")} == SHIPPED
    page = [path for path in (ROOT / "ccr_dist/serve/page").iterdir() if path.is_file()]
    assert {".html", ".css", ".js"} <= {path.suffix for path in page}
    assert {f"ccr_dist/serve/page/{path.name}" for path in page} <= set(names)
    for folder in ("shards", "slurm", "slurm/profiles", "launch/accelerate", "launch/deepspeed", "configs/multi30k"):
        files = [path for path in (ROOT / folder).iterdir() if path.suffix in SHIPPED]
        assert files and {f"ccr_dist/shipped/{folder}/{path.name}" for path in files} <= set(names)


def test_an_editable_install_has_no_copies(installed: Installed, tmp_path: Path) -> None:
    backend = installed.bin.parents[1] / "backend"
    code = f"import hatchling.build; print(hatchling.build.build_editable({str(tmp_path)!r}))"
    name = done([sys.executable, "-c", code], ROOT, PYTHONPATH=str(backend)).split()[-1]
    names = zipfile.ZipFile(tmp_path / name).namelist()
    assert [name for name in names if "dist-info" not in name] == ["_ccr_dist.pth"]


def test_first_looks(installed: Installed, tmp_path: Path) -> None:
    assert installed.says(tmp_path, "--version").strip() == "0.1.0"
    assert "Commands:" in installed.says(tmp_path, "--help")
    recipes = installed.says(tmp_path, "shards", "recipes")
    for path in (ROOT / "shards").glob("*.yaml"):
        assert re.search(rf"^{re.escape(path.stem)} +\S", recipes, re.M), path.stem
    options = installed.says(tmp_path, "shards", "recipes", "folder").rpartition("options: ")[2].strip()
    assert "captions: captions.jsonl" in Path(options).read_text()
    assert "dasd" in installed.says(tmp_path, "methods")
    assert "torch: not installed: training needs ccr-dist[train]" in installed.run(tmp_path, "doctor").stdout
    assert not list(tmp_path.iterdir())


def test_own_pictures_become_a_dataset(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    lines = []
    for n in range(6):
        Image.new("RGB", (8, 8), (40 * n, 0, 0)).save(tmp_path / "pictures" / f"{n}.png")
        lines.append(f"{n}.png,a picture of number {n}")
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *lines]) + "\n")
    options = ("images=pictures", "captions=captions.csv", "shard_rows=2")
    assert "6 " in installed.says(tmp_path, "shards", "build", "folder", "--out", "data/mine", *options)
    assert "caption.en" in installed.says(tmp_path, "shards", "inspect", "data/mine/train")
    installed.says(tmp_path, "shards", "verify", "data/mine/train")


def test_a_project_works_as_it_is_laid_out(installed: Installed, tmp_path: Path) -> None:
    said = installed.says(tmp_path, "init", "project")
    project = tmp_path / "project"
    assert "project/README.md" in said
    configs = [path for path in sorted(project.glob("configs/*/*.yaml")) if path.parent.name != "pipelines"]
    assert {path.parent.name for path in configs} == {"demo", "clip"} and len(configs) > 8
    for path in configs:
        if not path.name.startswith("_"):
            shown = yaml.safe_load(installed.says(project, "config", "show", path.relative_to(project)))
            assert shown["name"] and shown["method"]["name"]
    site = project / "slurm" / "mysite.yaml"
    assert yaml.safe_load(site.read_text())["python"] == str(installed.bin / "python")
    site.write_text(site.read_text() + "free_disk_gib: 0.1\n")  # of the machine that tests
    pipeline = "configs/pipelines/emoji14.yaml"
    said = installed.says(project, "submit", pipeline, "--dry-run", "--profile", "slurm/mysite.yaml")
    steps = yaml.safe_load((project / pipeline).read_text())["steps"]
    for step in steps:
        script = project / "runs/pipelines/emoji14/steps" / step / "script.sbatch"
        done(["bash", "-n", script], project)
        assert str(script.relative_to(project)) in said
        named = dict(re.findall(r"^(SCRIPTS|LAUNCH|PYTHON)=(\S+)$", script.read_text(), re.M))
        assert (Path(named["SCRIPTS"]) / "job.sh").is_file() and named["PYTHON"] == str(installed.bin / "python")
        assert "LAUNCH" not in named or Path(named["LAUNCH"]).is_file()
    assert "SLURM was not asked" in said


def test_a_second_project_in_the_same_folder_is_refused(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    refused = installed.run(tmp_path, "init", ".")
    assert refused.returncode == 2 and "already has README.md; nothing was written" in refused.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("README.md", "mine")]


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("train configs/clip/dasd.yaml", "train"),
        ("featurise data --config configs/clip/dasd.yaml --from image --column feature.x", "train"),
        ("checkpoint inspect runs/x", "train"),
        ("translate data --engine transformers --model x --to de", "train"),
        ("describe data --engine vllm --model x", "vllm"),
        ("shards pull s3://bucket/data data", "remote"),
    ],
)
def test_a_command_that_needs_an_extra_says_which(
    installed: Installed, tmp_path_factory: pytest.TempPathFactory, command: str, extra: str
) -> None:
    project = tmp_path_factory.getbasetemp() / "needs"
    if not project.exists():
        installed.says(tmp_path_factory.getbasetemp(), "init", "needs")
    said = installed.run(project, *command.split())
    assert said.returncode in (2, 6) and f"pip install 'ccr-dist[{extra}]'" in said.stderr
    assert "Traceback" not in said.stderr
