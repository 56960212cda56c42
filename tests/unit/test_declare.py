"""What each command that a step of a pipeline may be declares, and what is said before anything is queued."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.cluster import checks, preflight
from ccr_dist.cluster.made import holds, provides
from ccr_dist.cluster.pipeline import load_plan
from ccr_dist.commands import tree, uses_of
from ccr_dist.declare import File, Folder, Run, Settings, Table, Uses, commands, declared, declares, names_a_path, parse
from ccr_dist.errors import ConfigError
from tests import jobs

ROOT = Path(__file__).parents[2]
CONFIG = f"{ROOT}/configs/demo/dasd.yaml"
UNTRAINED = f"{ROOT}/configs/demo/clip.yaml"

# A line for every command, with each of its options that names a path.
LINES = {
    "config show": f"{CONFIG} seed=1",
    "methods": CONFIG,
    "train": f"{CONFIG} out=o --seeds 0,1 --test",
    "evaluate": f"{UNTRAINED} out=o --split val",
    "doctor": "--out o",
    "scale compare": "r s",
    "simulate": "JOB --run r --plot p.png",
    "report": "r s --out o --pictures p",
    "describe": "d --engine replay --set path=a.jsonl --captions caption.en --column description.x",
    "translate": "d --engine vllm --model m --to de --column caption.de",
    "featurise": f"d --config {CONFIG} --column feature.x",
    "replay": "d f.jsonl --column caption.de",
    "jobs status": "d",
    "index": "m p --out i",
    "export": "m --to onnx --out o --check d",
    "search": "i query --model m --file q.txt --picture a.png",
    "shards build": "folder --out o images=i captions=c.csv name=n",
    "shards recipes": "folder",
    "shards convert": "nrccr d --out o",
    "shards index": "a.tar 'b/{0..1}.tar' --out o",
    "shards export": "d --out o --also label.x",
    "shards inspect": "d",
    "shards verify": "d",
    "shards seal": "d",
    "shards push": "d s3://b/d",
    "shards pull": "s3://b/d d",
    "shards quality": "d --column caption.de --human caption.en",
    "shards overlap": "t d",
    "study run": "STUDY",
    "study report": "STUDY --out o",
    "study bins": "STUDY --out o",
    "study growth": "STUDY --out o",
    "checkpoint inspect": "r",
    "checkpoint verify": "r",
    "checkpoint convert": "r/checkpoints/step-00000001 w.safetensors",
}
LOOKED_AT = {("doctor", "out")}  # the disk that it would lie on: neither read nor made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"name": "zero-shot", "config": UNTRAINED}]
    study = {"name": "s", "title": "S", "out": "o", "seeds": [0], "rows": rows}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    jobs.captions(tmp_path / "data", rows=(2,))
    (tmp_path / "in.txt").write_text("a.jpg#0 text\n")
    (tmp_path / "t.jsonl").write_text('{"id": "a", "text": "x"}\n')
    return tmp_path


def test_every_command_declares_what_it_reads_and_makes() -> None:
    silent = [name for name, command in commands(tree()).items() if declared(command) is None]
    assert silent == []


@pytest.mark.parametrize("name", sorted(commands(tree())))
def test_every_path_of_a_command_is_declared(folder: Path, name: str) -> None:
    words = shlex.split(LINES[name].replace("STUDY", "study.yaml").replace("JOB", "job.yaml"))
    uses = uses_of([*name.split(), *words], "step a")
    known = [item.path for item in (*uses.reads, *uses.makes)]
    given = commands(tree())[name].make_context(name, words).params
    for option, value in given.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Path) and (name, option) not in LOOKED_AT:
                assert any(path == str(each) or Path(path).is_relative_to(each) for path in known), (option, each)


def test_a_recipe_of_ones_own_is_read(folder: Path) -> None:
    (folder / "my.yaml").write_bytes((ROOT / "shards/texts.yaml").read_bytes())
    words = ("shards", "build", "my.yaml", "--out", "o", "file=t.jsonl", "name=t")
    assert Settings("my.yaml", overrides=words[-2:]) in uses_of(words, "step a").reads


def test_a_command_without_a_declaration_is_an_error() -> None:
    own = typer.Typer()

    @own.command()
    def one(path: Path) -> None: ...

    @own.command()
    @declares(lambda path: Uses(reads=(Folder(str(path)),)))
    def two(path: Annotated[Path, typer.Option("--from", "-f")]) -> None: ...

    root = typer.main.get_command(own)
    assert [name for name, command in commands(root).items() if declared(command) is None] == ["one"]
    with pytest.raises(TypeError, match="does not declare"):
        parse(root, ["one", "a"], "step a")
    assert parse(root, ["two", "-f", "a"], "step a").reads == (Folder("a"),)  # by its alias
    with pytest.raises(TypeError, match="no parameter paht"):
        declares(lambda paht: Uses())(lambda path: None)


@pytest.mark.parametrize("line", ["submit p.yaml", "run p.yaml", "status r", "cancel r", "init d"])
def test_commands_for_pipelines_are_no_steps(line: str) -> None:
    with pytest.raises(ConfigError, match="that a pipeline can run"):
        uses_of(line.split(), "step a")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ccr-dist methods", "step a: ccr-dist has no command 'ccr-dist'.*leave out the word ccr-dist"),
        ("shards", "step a: ccr-dist shards: expected one of its commands after it: build, "),
        ("methods --help", "step a: 'methods --help' only prints help"),
    ],
)
def test_a_step_that_is_no_whole_command(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=message):
        uses_of(line.split(), "step a")
    assert capsys.readouterr().out == ""


def test_what_holds_what(folder: Path) -> None:
    built, column, run = Table("d"), Table("d/train", "caption.de"), Run("runs/a-s0")
    assert provides(built, Table("d/train", "caption.xx")) and provides(built, Table(f"{folder}/d"))
    assert provides(column, Table("d/train", "caption.de")) and not provides(column, Table("d", "caption.de"))
    assert not provides(column, Table("d/train", "caption.en"))
    assert (
        holds(built, "d/train/words.jsonl") and holds(built, "d/dataset.json") and not holds(built, "d/pictures/a.jpg")
    )
    assert holds(column, "d/train/caption.de/column.json") and not holds(column, "d/train/dataset.json")
    assert (
        holds(run, "runs/a-s0/checkpoints/step-00000001") and holds(Folder("o"), "o/x") and not holds(File("o"), "o/x")
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [("org/model", False), ("minilm", False), ("~/m", True), ("../m", True), ("a/b/c", True)]
    + [(f"weights{suffix}", True) for suffix in (".pt", ".pth", ".bin", ".safetensors")],
)
def test_what_can_only_be_a_path(name: str, path: bool) -> None:
    assert names_a_path(name) is path


def write(folder: Path, *lines: str, **settings: Any) -> Path:
    steps = {f"s{number}": {"command": line, **settings} for number, line in enumerate(lines)}
    path = folder / "p.yaml"
    path.write_text(yaml.safe_dump({"name": "p", "folder": "runs", "steps": steps}, sort_keys=False))
    return path


WRONG = [
    (["replay data nowhere.jsonl --column caption.de"], "nowhere.jsonl: there is no such file"),
    (["replay data data --column caption.de"], "data: expected a file, and this is a folder"),
    (["report nowhere"], "nowhere/results/test.json: there is no such file.*`ccr-dist evaluate CONFIG --split test`"),
    (["report data.json"], "data.json: there is no such file"),
    (["report t.jsonl --pictures nowhere"], "nowhere: there is no dataset"),
    (["report t.jsonl --pictures data"], "no step before makes image"),
    (["describe data --engine vllm --model m --prompt nowhere.yaml --column description.x"], "nowhere.yaml"),
    (["describe data --engine replay --set path=no.jsonl --column description.x"], "no.jsonl: there is no such file"),
    (["describe data --engine vllm --model ./no --from caption.en --column description.x"], "no: there is no such"),
    (["translate data --engine vllm --model m --to de --prompt no.yaml --column caption.de"], "no.yaml"),
    (["translate data --engine transformers --model /no/m --to de --column caption.de"], "/no/m: there is no such"),
    ([f"featurise data --config {CONFIG} --set weights=nowhere --column feature.x"], "nowhere: there is no such run"),
    (["featurise data --backbone dual --set weights=no.safetensors --column feature.x"], "no.safetensors"),
    (["featurise data --backbone dual --set text=./no --from caption.en --column feature.x"], "no: there is no such"),
    (
        ["featurise data --backbone open_clip --set pretrained=no.pt --set model=m --column feature.x"],
        "no.pt: there is",
    ),
    ([f"train {CONFIG} backbone.weights=nowhere"], "nowhere: there is no such run"),
    ([f"train {CONFIG} init_from=nowhere"], "nowhere: there is no such run"),
    ([f"train {CONFIG} backbone.weights=data"], "data: the run is not complete"),
    ([f"train {CONFIG} method.frontend.embeddings=./no"], "no: there is no such file or folder"),
    ([f"train {ROOT}/configs/msrvtt_cn/leccr.yaml method.text_encoder=./no"], "no: there is no such file or folder"),
    ([f"train {CONFIG} data.test=null --test"], "data.test names no dataset"),
    ([f"evaluate {CONFIG} out=o"], "o/dasd-s0: there is no such run, and no step before trains it"),
    (["shards build texts --out o file=nowhere.txt name=t"], "nowhere.txt: there is no such file or folder"),
    (["shards build folder --out o images=no captions=no.csv name=n"], "no.csv: there is no such file or folder"),
    (["shards index 'no/*.tar' --out o"], "no/\\*.tar: there is no such file or folder"),
    (["shards index in.txt --out o --caption en"], "--caption en: expected LANG=txt"),
    (["shards convert replay nowhere.txt --out o.jsonl"], "nowhere.txt: there is no such file or folder"),
    (["shards convert nrccr data --out o --column caption.xx"], "no step before makes caption.xx"),
    (["shards convert raplay in.txt --out o.jsonl"], "expected nrccr, mla or replay"),
    (["shards export data --out o"], "no step before makes image"),
    (["shards export data --image caption.en --caption caption.xx --out o"], "no step before makes caption.xx"),
    (["shards export data --image caption.en --also label.x --out o"], "no step before makes label.x"),
    (["shards verify nowhere"], "nowhere: there is no dataset"),
    (["shards seal nowhere"], "nowhere: there is no dataset"),
    (["shards push nowhere s3://b/d"], "nowhere: there is no dataset"),
    (["shards push data s3://b/d --column caption.xx"], "no step before makes caption.xx"),
    (["shards quality data --column caption.xx"], "no step before makes caption.xx"),
    (["shards overlap data data --column caption.xx"], "no step before makes caption.xx"),
    (["shards build wordnet --out o apart_from=[nowhere]"], "nowhere: there is no such file or folder"),
    (["shards quality data --column caption.en --source caption.xx"], "no step before makes caption.xx"),
    (
        [
            "describe data --engine replay --set path=t.jsonl --from caption.en --captions caption.xx"
            " --column description.x"
        ],
        "no step before makes caption.xx",
    ),
    (["checkpoint verify nowhere"], "nowhere: there is no such folder"),
    (["checkpoint convert nowhere w.safetensors"], "nowhere: there is no such folder"),
    (["scale compare t.jsonl"], "t.jsonl: expected a folder, and this is a file"),
    (["scale compare nowhere"], "nowhere: there is no such folder"),
    (["config show nowhere.yaml"], "nowhere.yaml: there is no such file"),
    (["methods nowhere.yaml"], "nowhere.yaml: there is no such file"),
    (["study run nowhere.yaml"], "nowhere.yaml"),
    (
        ["shards pull s3://b/d new --column image", "shards quality new --column caption.de"],
        "no step before makes caption.de",
    ),
    (["report ~/runs/a-s0"], "~/runs/a-s0/results/test.json: there is no such file.*`~` and shell variables"),
    (
        ["shards build texts --out '$$HOME/o' file=in.txt name=t"],
        "\\$HOME/o: a folder of exactly this name would be made",
    ),
    (
        ["replay data x.jsonl --column caption.de", "shards convert replay in.txt --out x.jsonl"],
        "x.jsonl is made by step s1, which does not run before it: put that step above, and name it in `after`",
    ),
    (
        [
            "replay data t.jsonl --column caption.de",
            "translate data --engine vllm --model m --to de --column caption.de",
        ],
        "step s0 makes column caption.de of data, too: give each its own --column",
    ),
    (
        [
            "shards pull s3://b/d new",
            "replay new/train t.jsonl --column caption.x",
            "replay new in.txt --column caption.x",
        ],
        "step s1 makes column caption.x of new, too",
    ),
    (
        [
            "shards pull s3://b/d new",
            "replay new t.jsonl --column caption.x",
            "replay new/train in.txt --column caption.x",
        ],
        "step s1 makes column caption.x of new/train, too",
    ),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_not_there_is_said_before_anything_is_queued(folder: Path, number: int) -> None:
    lines, message = WRONG[number]
    path = write(folder, *lines)
    with pytest.raises(ConfigError, match=rf"(?s)p\.yaml:\d+: step s\d.*{message}"):
        checks.check(load_plan(path), free_disk_gib=0)


@pytest.mark.parametrize("command", ["submit", "run"])
def test_the_exit_code_says_wrong_config_and_nothing_is_queued_or_run(folder: Path, command: str) -> None:
    path = write(folder, "methods", "replay data nowhere.jsonl --column caption.de")
    done = CliRunner().invoke(app, [command, str(path)])
    assert done.exit_code == ConfigError.exit_code
    assert "step s1: nowhere.jsonl: there is no such file, and no step before makes it" in done.output
    assert not (folder / "runs/p/jobs.jsonl").exists() and not list((folder / "runs").rglob("attempts/*"))


RIGHT = [
    ["shards pull s3://b/d new", "translate new --engine vllm --model m --to de --column caption.de"],
    [
        "shards pull s3://b/d new --column caption.en",
        "translate new --engine vllm --model m --to de --column caption.de",
    ],
    ["shards convert replay in.txt --out './my x.jsonl'", "replay data 'my x.jsonl' --column caption.de"],
    ["shards export data --image caption.en --out tars", "shards index 'tars/*.tar' --out d"],
    ["shards push data s3://b/d", "shards pull s3://b/d new", "shards verify new"],
    ["shards verify s3://b/d"],
    ["shards build texts --out o file=t.jsonl name=t", "shards quality o --column caption.xx"],
    ["shards build texts --out o file=t.jsonl name=t", "shards build wordnet --out w apart_from=[o]"],
    ["shards build texts --out o file=t.jsonl name=t", "shards overlap o o --column caption.en"],
    ["shards index in.txt --out o/train", "shards index in.txt --out o/val", "shards seal o"],
    ["study run study.yaml", "report o/zero-shot-s0 --out o/page", "study report study.yaml"],
    ["replay data t.jsonl --column caption.de", "shards quality data --column caption.de --human caption.en"],
    ["replay data t.jsonl --column caption.de", "replay data t.jsonl --column caption.de"],
    ["replay data t.jsonl --column caption.de", "replay data in.txt --column caption.nl"],
    ["shards pull s3://b/d new", *(f"replay new/{split} t.jsonl --column caption.x" for split in ("train", "val"))],
]


@pytest.mark.parametrize("number", range(len(RIGHT)))
def test_what_an_earlier_step_makes_need_not_be_there(folder: Path, number: int) -> None:
    plan = load_plan(write(folder, *RIGHT[number]))
    if "study" in RIGHT[number][0]:  # whose datasets are those of the demo
        with pytest.raises(ConfigError) as refused:
            checks.check(plan, free_disk_gib=0)
        assert "step s1" not in str(refused.value) and "step s2" not in str(refused.value)
        return
    assert checks.check(plan, free_disk_gib=0).notes == []


def test_every_split_of_a_folder_needs_the_column(folder: Path) -> None:
    for split in ("train", "val"):
        jobs.captions(folder / "both" / split, rows=(2,))
    make = "replay both/{} t.jsonl --column caption.de"
    look = "shards quality both --column caption.de"
    with pytest.raises(ConfigError, match=r"step s1: no step before makes caption\.de, and both/val"):
        checks.check(load_plan(write(folder, make.format("train"), look)), free_disk_gib=0)
    checks.check(load_plan(write(folder, make.format("train"), make.format("val"), look)), free_disk_gib=0)
    with pytest.raises(ConfigError, match="both: a folder of several datasets, and the command reads one"):
        checks.check(load_plan(write(folder, "report t.jsonl --pictures both")), free_disk_gib=0)


def test_a_column_that_was_only_begun_is_said_before_anything_is_queued(folder: Path) -> None:
    path = write(folder, "translate data --engine vllm --model m --to de --column caption.de")
    checks.check(load_plan(path), free_disk_gib=0)
    for record in (folder / "data/caption.en").glob("*.json"):
        if record.name not in ("column.json", "sealed.json"):
            record.unlink()
    with pytest.raises(ConfigError, match=r"step s0: no step before makes caption\.en, and .*missing"):
        checks.check(load_plan(path), free_disk_gib=0)


def test_a_disk_without_room_is_said_before_anything_is_queued(folder: Path) -> None:
    path = write(folder, "shards build texts --out o file=t.jsonl name=t")
    with pytest.raises(ConfigError, match=rf"{folder}: .* GiB are free, 1e\+09 are expected"):
        checks.check(load_plan(path), free_disk_gib=1e9)


def test_what_is_only_worth_a_note(folder: Path) -> None:
    featurise = "featurise data --backbone dual --from caption.en --column feature.x --device cuda:1"
    steps = {
        "read": {"command": "replay data t.jsonl --column caption.de"},
        "make": {"command": "shards convert replay in.txt --out t.jsonl", "after": []},
        "gpu": {"command": featurise, "after": []},
    }
    (folder / "p.yaml").write_text(yaml.safe_dump({"name": "p", "folder": "runs", "steps": steps}, sort_keys=False))
    notes = checks.check(load_plan(folder / "p.yaml"), free_disk_gib=0).notes
    assert len(notes) == 2
    assert "step read reads t.jsonl as it is now; step make, which makes it, does not run before it" in notes[0]
    assert "step gpu: its command needs the device cuda:1, but the step requests no GPU" in notes[1]


def test_what_this_python_lacks(folder: Path) -> None:
    plan = load_plan(write(folder, "translate data --engine apertium --to es --column caption.es"))
    uses = checks.check(plan, free_disk_gib=0).uses
    assert preflight.lacking(["json", "no_such_module"], ["sh", "no-such-tool"]) == ["no_such_module", "no-such-tool"]
    _, tools = checks.lines_of(plan, uses, ["apertium"], "python")
    assert len(tools) == 1 and "step s0: there is no program apertium" in tools[0]
    plan = load_plan(write(folder, "translate data --engine vllm --model m --to es --column caption.es"))
    uses = checks.check(plan, free_disk_gib=0).uses
    packages, _ = checks.lines_of(plan, uses, ["vllm"], "python")
    advice = "step s0: python: this needs vllm, which is not installed here: pip install 'ccr-dist[vllm]'"
    assert len(packages) == 1 and advice in packages[0]
