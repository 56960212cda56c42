"""`ccr-dist index` and `ccr-dist search`: what they print, and how they end."""

from __future__ import annotations

import json
import shutil
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ccr_dist.cli import app
from ccr_dist.search import cli
from ccr_dist.search.index import begin
from tests import retrievers
from tests.searching import COLOURS, Colours, encoded, picture, put


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs a command in a folder where `model` is a model of colours and `p` has pictures of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for colour in COLOURS:
        put(tmp_path / "p" / f"{colour}.png", encoded(picture(colour)))
    monkeypatch.setattr(cli, "_load", lambda path, device: Colours(folder=Path(path)))

    def call(*words: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, words)
        assert result.exit_code == code, result.output
        return result

    return call


def index(run, *more: str, **expected) -> Result:
    return run("index", "model", "p", "--out", "i", "--quiet", *more, **expected)


def test_a_folder_is_indexed_and_searched(run) -> None:
    assert "i: 8 pictures and videos can be found (8 new; 8 encoded)" in index(run).stdout
    said = run("search", "i", "azul", "cyan", "-k", "1").stdout
    assert said.split() == ["azul", "(pt)", "1", "1.000", "blue.png", "cyan", "(en)", "1", "1.000", "cyan.png"]
    assert "(nothing new; 0 encoded)" in index(run).stdout


def test_a_language_that_is_not_certain_can_be_named(run) -> None:
    index(run)
    said = run("search", "i", "red", "-k", "1").stdout
    assert "note: the language is not certain; taken for en; if it is another one, name it with --lang" in said
    assert "not certain" not in run("search", "i", "red", "--lang", "en").stdout
    (answer,) = map(json.loads, run("search", "i", "red", "--json").stdout.splitlines())
    assert answer["sure"] is False and answer["notes"] == ["the language is not certain; taken for en"]


def test_json_is_a_line_a_query(run) -> None:
    made = json.loads(index(run, "--json").stdout)
    assert made["index"] == "i" and made["items"] == made["encoded"] == 8 and made["bad"] == {}
    Path("q.txt").write_text("verde\n\namarelo\n", encoding="utf-8-sig")
    lines = run("search", "i", "--file", "q.txt", "--picture", "p/red.png", "--json", "-k", "1").stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["hits"][0]["name"] for answer in answers] == ["green.png", "yellow.png", "red.png"]
    assert [answer["lang"] for answer in answers] == ["pt", "pt", None]


def test_items_of_a_dataset_come_with_a_caption_in_the_language_of_the_query(run) -> None:
    columns: dict[str, list[Any]] = {"image": [encoded(picture(colour)) for colour in ("red", "blue")]}
    columns |= {"caption.en": [["a red one"], ["a blue one"]], "caption.pt": [["um vermelho"], None]}
    retrievers.dataset(Path("d"), columns)
    run("index", "model", "d", "--out", "i", "--quiet")
    assert "item-0  um vermelho" in run("search", "i", "vermelho", "-k", "1").stdout
    assert "item-1  a blue one" in run("search", "i", "azul", "-k", "1").stdout, "it has no Portuguese caption"
    shutil.rmtree("d")
    assert run("search", "i", "azul", "-k", "1").stdout.split()[-1] == "item-1"


def test_files_that_cannot_be_read_are_listed_and_too_many_of_them_end_with_a_code(run) -> None:
    for number in range(12):
        put(Path(f"p/bad {number:02d}.jpg"), b"\xff\xd8\xff" + bytes([number]))
    put(Path("p/readme.md"), b"text")
    few = index(run, "--bad-items", "10", "--bad-fraction", "0.6")
    assert "8 pictures and videos can be found" in few.stdout and "12 cannot be read:" in few.stdout
    assert "p/bad 09.jpg: broken picture of 4 bytes" in few.stdout and "... and 2 more; --json" in few.stdout
    assert "1 other file is passed over" in few.stdout
    many = index(run, code=4)
    assert "12 of 20 files cannot be read, 10 are tolerated" in many.output
    assert "red.png" in run("search", "i", "red").stdout


def test_a_name_from_data_does_not_command_the_terminal(run) -> None:
    put(Path("p/\x1b[2J\u202egnp.png"), encoded(picture("red", (50, 50))))
    index(run)
    said = run("search", "i", "left red", "-k", "9").stdout
    assert "\x1b" not in said and "\u202e" not in said and "\\u001b[2J\\u202egnp.png" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "i"], "nothing to search for: give QUERY, --file or --picture"),
        (["search", "i", " "], "query 1 is empty"),
        (["search", "i", "red", "--where", "folder"], "--where 'folder': expected LABEL=VALUE"),
        (["search", "i", "red", "--engine", "apertium"], "--engine and --set are for --via-english"),
        (["search", "p", "red"], "p: not an index"),
        (["search", "i", "--file", "none.txt"], "none.txt: no such file"),
        (["search", "i", "red", "--lang", "zz"], "colours cannot encode language 'zz'"),
        (["index", "model", "p", "--out", "i", "--add", "--instead"], "exclude each other"),
        (["index", "model", "q", "--out", "i"], "q: no such folder"),
    ],
)
def test_what_is_wrong_is_one_sentence(run, words: list[str], message: str) -> None:
    index(run)
    result = CliRunner().invoke(app, words)
    assert result.exit_code in (2, 3) and message in result.output and "Traceback" not in result.output


def test_an_index_that_was_only_begun_has_no_answer(run) -> None:
    begin(Path("i"), Colours(folder=Path("model")))
    assert (
        "i: the index is empty, or was not finished; run `ccr-dist index`" in run("search", "i", "red", code=3).output
    )


def test_a_model_that_moved_is_named(run) -> None:
    index(run)
    Path("model").rename("elsewhere")
    assert "name its folder with --model" in run("search", "i", "red", code=2).output
    assert "red.png" in run("search", "i", "red", "--model", "elsewhere").stdout


def test_the_best_picture_is_opened_by_the_systems_viewer(run, monkeypatch: pytest.MonkeyPatch) -> None:
    index(run)
    viewer = put(Path("bin/xdg-open"), b'#!/bin/sh\necho "$1" > opened\n')
    viewer.chmod(viewer.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(cli.sys, "platform", "linux")
    monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:/usr/bin:/bin")
    run("search", "i", "blue", "red", "--open")
    until = time.monotonic() + 20
    while not (Path("opened").exists() and Path("opened").read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    assert Path(Path("opened").read_text().strip()).name == "blue.png"
    monkeypatch.setenv("PATH", "/nowhere")
    assert "--open: there is no xdg-open here; the picture is " in run("search", "i", "blue", "--open", code=2).output
