"""Text from data, file names, servers and logs is only ever text: to the terminal, to spreadsheets, to browsers."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.table import Table
from typer.core import TyperGroup

from ccr_dist import cli, errors, terminal
from ccr_dist.data.storage.progress_bar import bar
from ccr_dist.evaluate.protocols import language_result
from ccr_dist.evaluate.report import write_report
from ccr_dist.evaluate.schema import RunResult
from ccr_dist.evaluate.summaries import aggregate, collect
from ccr_dist.evaluate.tables import cell, to_csv
from tests import jobs

EVIL = "a\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e [/b] [red]\ud800"
SEEN = "a\\u001b[2J\\u001b]0;owned\\u0007\\u000d\\u009b31m\\u202e [/b] [red]\\ud800"


def harmless(said: str) -> bool:
    return terminal.visible(said.replace("\r\n", "\n")) == said


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.guarded():
        print(EVIL, file=sys.stdout)
        sys.stderr.writelines([f"{EVIL}\n", "ação\tनमस्ते 👩‍👩‍👧\n"])
        print(f"\r{EVIL}", end="")
        assert not sys.stdout.isatty()
    said = capsys.readouterr()
    assert said.out == f"{SEEN}\n\r{SEEN}" and said.err == f"{SEEN}\nação\tनमस्ते 👩‍👩‍👧\n"


def test_what_tables_and_bars_print(capsys: pytest.CaptureFixture[str]) -> None:
    """Their own commands pass, when there is a terminal; those in their texts do not, and brackets are no markup."""
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL)
    with terminal.guarded():
        terminal.console(width=400).print(table, EVIL)
        with bar(True, EVIL + " {0} {x}", 2, "items") as move:
            move()
    said = capsys.readouterr()
    assert (
        said.out.count(SEEN.replace("\\u000d", "")) + said.out.count(SEEN) == 4
        and harmless(said.out)
        and harmless(said.err)
        and "owned" in said.err
    )
    file = io.StringIO()
    coloured = terminal._kind()(file=file, force_terminal=True, width=200, markup=False, highlight=False)
    coloured.print(EVIL, style="red")
    assert file.getvalue() == f"\x1b[31m{SEEN}\x1b[0m\n"


def test_what_the_terminals_encoding_has_not(capfd: pytest.CaptureFixture[str]) -> None:
    raw = io.BytesIO()
    latin = io.TextIOWrapper(raw, encoding="latin-1", write_through=True)
    before, sys.stdout = sys.stdout, latin
    try:
        with terminal.guarded():
            print("ação नम")
    finally:
        sys.stdout = before
    assert raw.getvalue() == "ação \\u0928\\u092e\n".encode("latin-1")


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (errors.DataError(EVIL), OSError(5, "x", EVIL), OSError(EVIL)):
        with pytest.raises(SystemExit), errors.boundary():
            raise error
        said = capsys.readouterr().err
        assert SEEN in said and harmless(said)


def test_commands_that_show_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = jobs.captions(tmp_path / "data", rows=(1,), values={(0, 0): [EVIL.replace("\ud800", "")]})
    evil = tmp_path / "p\x1b[31mq"
    evil.mkdir()
    (evil / "p.yaml").write_text(yaml.safe_dump({"name": "p", "stepz": {}}))
    for command in (
        ["shards", "inspect", str(data.root)],
        ["run", str(evil / "p.yaml")],
        ["shards", "verify", str(evil)],
        ["report", str(evil)],
    ):
        with pytest.raises(SystemExit):
            cli.app(command)
        said = capsys.readouterr()
        assert "\\u001b[" in said.out + said.err and harmless(said.out) and harmless(said.err), (command, said)
    with pytest.raises(SystemExit):
        cli.app(["shards", "inspect", str(data.root), "--json"])
    assert "\x1b[2J" in json.dumps(json.loads(capsys.readouterr().out), ensure_ascii=False).encode().decode(
        "unicode_escape"
    )


FORMULAS = ["=1+1", "+1", "-1 cmd|x", "@SUM(A1)", "\t=1", " =1", "\r=1", "＝1"]


def result(text: str) -> RunResult:
    ranks = (np.array(each) for each in ([1, 2, 1, 1], [1, 2], [1, 1], [0, 0, 1, 1]))
    found = language_result(f"caption.{text}", *ranks, replicates=5)
    about: dict[str, Any] = {
        "name": "r-s0",
        "label": text,
        "method": text,
        "seed": 0,
        "dataset": text,
        "split": text,
        "dataset_digest": "x",
    }
    return RunResult(
        **about,
        items=2,
        groups=2,
        languages={text: found},
        meta={text: text},
        provenance={text: text},
        attribution=(text,),
    )


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(result(text).model_dump_json())
    [line] = csv.DictReader(io.StringIO(to_csv(aggregate(collect([tmp_path / "r.json"]))), newline=""))
    assert {line[key] for key in ("dataset", "split", "language", "label", "method")} == {f"'{terminal.visible(text)}"}
    assert float(line["SumR"]) > 0 and line["seeds"] == "0"


def test_numbers_stay_numbers() -> None:
    assert [cell(value) for value in (-1, -0.5, None, True, "", "a-b", "-")] == [-1, -0.5, None, True, "", "a-b", "'-"]


def test_no_text_of_a_page_is_html(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(result("<script>x</script>\"'&").model_dump_json())
    page = write_report(
        collect([tmp_path / "r.json"]), tmp_path / "out", title="<script>x", notes=["<script>y"]
    ).read_text()
    assert (
        "<script>x" not in page
        and "<script>y" not in page
        and "&lt;script&gt;x&lt;/script&gt;&quot;&#x27;&amp;" in page
    )


@pytest.mark.parametrize(
    "words", [[f"--{EVIL}"], [EVIL], ["shards", f"--{EVIL}"], ["shards", EVIL], ["train", "x", "--world", EVIL]]
)
def test_what_is_said_of_arguments_that_are_not_known(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.app(words)
    said = capsys.readouterr()
    assert end.value.code == 2 and harmless(said.out) and harmless(said.err) and "Error: " in said.err


def test_usage_errors_of_any_version_of_the_parser_are_only_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some versions quote an argument as it is."""

    def parsed(*_: Any, **__: Any) -> None:
        print(f"Error: No such option: {EVIL}", file=sys.stderr)

    monkeypatch.setattr(TyperGroup, "main", parsed)
    cli.app([])
    assert capsys.readouterr().err == f"Error: No such option: {SEEN}\n"
