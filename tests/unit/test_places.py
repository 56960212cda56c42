"""Where commands write, and the columns that they name: what cannot be is said before any work, as a mistake in the
request.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
from pathlib import Path
from typing import get_type_hints

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from ccr_dist import places
from ccr_dist.cli import app
from ccr_dist.cluster.ledger import held
from ccr_dist.commands import uses_of
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.declare import commands
from ccr_dist.errors import ConfigError, DataError, StorageError
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import run
from ccr_dist.places import folder_to_make, require_writable
from tests import jobs

ROOT = Path(__file__).parents[2]
UNTRAINED, TRAINED = f"{ROOT}/configs/demo/clip.yaml", f"{ROOT}/configs/demo/dasd.yaml"
NOWHERE = "/proc/ccr-dist"  # a folder that nobody can make, not even root

# A line for every command that makes a folder, which is FILE here.
LINES = [
    "init FILE",
    "plan run DASD --gpus 1 --measure --calibration FILE/below",
    "train DASD out=FILE",
    "train DASD out=FILE/below --seeds 0,1",
    "evaluate CLIP out=FILE",
    "report runs/a --out FILE",
    "report runs/a --out FILE/below",
    "shards build folder --out FILE images=i captions=c.csv name=n",
    "shards convert nrccr data --out FILE",
    "shards convert replay in.txt --out FILE/x.jsonl",
    "shards index a.tar --out FILE",
    "shards export data --out FILE",
    "shards pull file:///nowhere FILE",
    "shards pull file:///nowhere FILE/below",
    "study run study.yaml",
    "study report study.yaml",
    "study report good.yaml --out FILE",
    "study bins good.yaml --out FILE",
    "study growth good.yaml --out FILE",
    "checkpoint convert runs/a/checkpoints/step-00000001 FILE",
    "checkpoint convert runs/a/checkpoints/step-00000001 FILE/x.safetensors",
    "export runs/a --to onnx --out FILE",
    "index runs/a pictures --out FILE",
    "evaluate hf://org/name --mteb T --out FILE",
    "doctor --out FILE",
    "scale report runs/a --out FILE",
    "simulate --failures rsc1 --gpus 8 --plot FILE/p.png",
    "submit pipeline.yaml --dry-run",
    "submit pipeline.yaml --to kubernetes --profile kubernetes --out FILE",
    "run pipeline.yaml",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("mine")
    study = {"name": "s", "title": "S", "seeds": [0], "rows": [{"name": "zero-shot", "config": UNTRAINED}]}
    for name, out in (("study", "FILE/studies"), ("good", "o")):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**study, "out": out}))
    steps = {"look": {"command": "shards inspect data"}}
    Path("pipeline.yaml").write_text(yaml.safe_dump({"name": "p", "folder": "FILE", "steps": steps}))
    jobs.captions(tmp_path / "data", rows=(2,))
    return tmp_path


def do(line: str) -> Result:
    words = shlex.split(line.replace("DASD", TRAINED).replace("CLIP", UNTRAINED))
    return CliRunner().invoke(app, words)


@pytest.mark.parametrize("line", LINES)
def test_a_file_where_a_folder_is_to_be_is_a_mistake_in_the_request(folder: Path, line: str) -> None:
    done = do(line)
    assert done.exit_code == ConfigError.exit_code, done.output
    said = "FILE: a file is there, and a folder is expected; name another place, or move the file away"
    assert said in done.output, done.output
    assert Path("FILE").read_text() == "mine"


def test_a_link_to_nothing_is_no_folder(folder: Path) -> None:
    Path("link").symlink_to("gone")
    with pytest.raises(ConfigError, match="link: a link to nothing is there"):
        folder_to_make(Path("link/below"))


def test_a_step_of_a_pipeline_that_writes_into_a_file_has_its_place_named(folder: Path) -> None:
    for line in ("shards pull s3://b/d FILE", f"train {TRAINED} out=FILE", "describe data --engine replay --from x"):
        with pytest.raises(ConfigError, match=r"^step a: (FILE|.*: FILE|column name)"):
            uses_of(line.split(), "step a")


def test_folders_of_a_dataset_that_are_files(folder: Path) -> None:
    with pytest.raises(ConfigError, match="FILE: a file is there"):
        create_dataset("FILE", name="d", split="train", keys=[["a"]])
    dataset = create_dataset("new", name="d", split="train", keys=[["a"]])
    Path("new/caption.de").write_text("")
    with pytest.raises(ConfigError, match=r"caption\.de: a file is there"):
        create_column(dataset, "caption.de", kind="texts", extension="json", plan={}, provenance={})
    with pytest.raises(ConfigError, match="FILE: a file is there"), held(Path("FILE/p")):
        pass


@pytest.mark.parametrize(
    "line",
    [
        f"report nowhere --out {NOWHERE}",  # results are read before anything is written
        f"study report good.yaml --out {NOWHERE}",
        f"study bins good.yaml --out {NOWHERE}",
        f"study growth good.yaml --out {NOWHERE}",
        f"scale report nowhere --out {NOWHERE}",
        f"evaluate CLIP out={NOWHERE} data.val=nowhere",
        f"checkpoint convert nowhere {NOWHERE}/w.safetensors",
        f"export nowhere --to onnx --out {NOWHERE}",
        f"index nowhere pictures --out {NOWHERE}",
        f"evaluate hf://org/name --mteb T --out {NOWHERE}",
    ],
)
def test_a_place_where_nothing_can_be_written_is_reported_before_the_work(folder: Path, line: str) -> None:
    """What else is wrong with the request is found when the work begins, so that it tells which of both came first."""
    done = do(line.replace("data.val=", f"data.test={folder}/data data.val="))
    assert done.exit_code == StorageError.exit_code, done.output
    assert NOWHERE in done.output


def test_looking_whether_a_folder_can_be_written_leaves_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    require_writable(folder)
    require_writable(folder / "not/yet/there")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "line",
    [
        "describe data --engine replay --set path=a.jsonl --from {}",
        "describe data --engine replay --set path=a.jsonl --captions {}",
        "describe data --engine replay --set path=a.jsonl --column {}",
        "translate data --engine shout --to de --from {}",
        "translate data --engine shout --to de --column {}",
        "featurise data --backbone dual --from {}",
        "featurise data --backbone dual --column {}",
        "replay data a.jsonl --column {}",
        "jobs status data --column {}",
        "shards convert nrccr data --out o --column {}",
        "shards export data --out o --image {}",
        "shards export data --out o --caption {}",
        "shards export data --out o --also {}",
        "shards push data file:///tmp/nowhere --column {}",
        "shards pull file:///tmp/nowhere d --column {}",
        "shards quality data --column {}",
        "shards overlap data data --column {}",
        "shards overlap data data --among {}",
        "shards quality data --column caption.en --human {}",
        "shards quality data --column caption.en --source {}",
        "shards quality data --column caption.en --back {}",
        "shards index a.tar --out o --caption a/b={}",
        "index runs/a data --out o --column {}",
        "study bins good.yaml --by chrf:{}:caption.en.x",
        "evaluate CLIP out=o data.test=data data.val=data data.visual={}",
        "train DASD out=o 'data.train=[{{path: data}}]' data.test=data data.val=data data.source={}",
    ],
)
def test_a_malformed_column_name_is_a_mistake_in_the_request(folder: Path, line: str) -> None:
    done = do(line.format("captoin.en"))
    assert done.exit_code == ConfigError.exit_code, done.output
    assert "expected image, video, caption.<lang>" in done.output


# What names something to read: FOLDER is where a file is expected, FILE where a folder is.
FILES_TO_READ = [
    "config show FOLDER",
    "methods FOLDER",
    "describe data --engine replay --set path=FOLDER --from caption.en --column description.x",
    "describe data --engine vllm --model m --prompt FOLDER --from caption.en --column description.x",
    "translate data --engine vllm --model m --to de --prompt FOLDER --column caption.de",
    "featurise data --config FOLDER --column feature.x",
    "replay data FOLDER --column caption.de",
    "search index --file FOLDER",
    "search index --picture FOLDER",
    "shards build FOLDER --out o",
    "plan run FOLDER --gpus 8 --device h100-80gb",
    "plan run DASD --gpus 8 --calibration FOLDER",
    "simulate FOLDER",
    "simulate --failures ./FOLDER --gpus 8",
    "shards build texts --out o file=FOLDER name=t",
    "shards build folder --out o images=data captions=FOLDER name=n",
    "shards index FOLDER --out o",
    "scale run FOLDER",
    "study run FOLDER",
    "study report FOLDER",
    "study bins FOLDER",
    "study growth FOLDER",
    "submit FOLDER",
    "submit steps.yaml --profile ./FOLDER",
    "run FOLDER",
    "serve index --token-file FOLDER",
]
FOLDERS_TO_READ = [
    "scale compare FILE",
    "scale report FILE",
    "simulate --failures rsc1 --gpus 8 --run FILE",
    "describe FILE --engine replay --set path=a --column description.x",
    "translate FILE --engine shout --to de --column caption.de",
    "featurise FILE --backbone dual --column feature.x",
    "replay FILE a.jsonl --column caption.de",
    "jobs status FILE",
    "index FILE data --out o",
    "export FILE --to onnx --out o",
    "push FILE org/name",
    "search FILE query",
    "serve FILE",
    "shards build folder --out o images=FILE captions=FILE name=n",
    "shards convert nrccr FILE --out o",
    "shards convert mla FILE --out o",
    "shards export FILE --out o",
    "shards inspect FILE",
    "shards verify FILE",
    "shards seal FILE",
    "shards push FILE file:///nowhere",
    "shards pull FILE new",
    "shards quality FILE --column caption.de",
    "shards overlap FILE data",
    "shards overlap data FILE",
    "report runs/a --pictures FILE",
    "checkpoint inspect FILE",
    "checkpoint verify FILE",
    "checkpoint convert FILE w.safetensors",
    "status FILE",
    "cancel FILE",
    "resume FILE",
]


@pytest.mark.parametrize("line", [*FILES_TO_READ, *FOLDERS_TO_READ])
def test_a_file_for_a_folder_or_a_folder_for_a_file_is_a_mistake_in_the_request(folder: Path, line: str) -> None:
    Path("FOLDER").mkdir()
    Path("steps.yaml").write_text(Path("pipeline.yaml").read_text().replace("FILE", "runs"))
    done = do(line)
    assert done.exit_code == ConfigError.exit_code, done.output
    assert re.search("FILE|FOLDER", done.output.removeprefix("error: ").split("; ")[0]), done.output
    assert "put it back" not in done.output


def test_every_path_of_a_command_has_such_a_line() -> None:
    """A new option that names a file or a folder has to be looked at, too."""
    tree = commands(typer.main.get_command(app))
    lines = dict.fromkeys(tree, "")
    for line in (*LINES, *FILES_TO_READ, *FOLDERS_TO_READ):
        lines[max((name for name in tree if line.startswith(f"{name} ")), key=len)] += f" {line} "
    either = {("serve", "model")}  # a run, a model, or a config
    silent = set()
    for name, command in tree.items():
        hints = get_type_hints(command.callback)
        for param in command.params:
            said = any(f" {word} " in lines[name] or (word[0] != "-" and lines[name]) for word in param.opts)
            if "pathlib.Path" in str(hints.get(param.name)) and not said:
                silent.add((name, param.name))
    assert silent == either


@pytest.mark.parametrize("line", ["shards export data --out=", "shards export data --out ''", "report runs/a --out="])
def test_an_empty_value_is_not_the_current_folder(folder: Path, line: str) -> None:
    done = do(line)
    assert done.exit_code == ConfigError.exit_code and "--out" in done.output
    assert "an empty value; give one, or leave it out (. is the current folder)" in done.output
    with pytest.raises(ConfigError, match=r"^step a: .*an empty value"):
        uses_of(shlex.split(line), "step a")
    assert len(list(folder.iterdir())) == 5  # what was there before


def test_an_empty_out_is_no_folder(folder: Path) -> None:
    done = do("train DASD out=")
    assert done.exit_code == ConfigError.exit_code and "out=. is the current folder" in done.output


def test_a_run_without_results_says_what_makes_them(folder: Path) -> None:
    assert (
        "runs/a/results/val.json: no such file: the run was not measured on val yet."
        in do("report runs/a --split val").output
    )


def test_a_column_of_another_kind_says_which_would_do(folder: Path) -> None:
    with pytest.raises(DataError, match=r"caption\.en: a column of kind texts; describe takes image, video\."):
        Dataset("data").column("caption.en").require_kind(("image", "video"), "describe")
    with pytest.raises(DataError, match=r"Columns that fit: caption\.en$"):
        made = create_column(Dataset("data"), "label.x", kind="label", extension="json", plan={}, provenance={})
        made.require_kind(("texts", "views"), "translate")


def test_a_job_looks_whether_its_column_can_be_written_before_it_loads_a_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Looked(Translate):
        def check(self, dataset: Dataset) -> None:
            raise AssertionError("the work began")

    def refused(**options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/data/tmpx")

    monkeypatch.setattr(places.tempfile, "TemporaryFile", refused)  # root may write everywhere
    with pytest.raises(OSError, match=r"Read-only file system: 'data/caption\.xx\.shout'"):
        run(Dataset("data"), Looked(jobs.Shout(), "caption.en"), "caption.xx.shout", progress=False)
    assert not Path("data/caption.xx.shout").exists()


def test_a_folder_that_another_process_makes_meanwhile_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that begin a column together make its folder together."""
    there = os.path.lexists

    def later(place: Path) -> bool:
        place.mkdir(exist_ok=True)
        return there(place)

    monkeypatch.setattr(os.path, "lexists", later)
    assert folder_to_make(tmp_path / "new") == tmp_path / "new"
