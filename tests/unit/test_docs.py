"""The documentation says what is there: links, anchors, commands, options, paths and generated pages; and the site
builds strictly.
"""

from __future__ import annotations

import csv
import difflib
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from ccr_dist.cli import app
from ccr_dist.generate.engines.base import translators
from ccr_dist.generate.engines.generator import generators
from ccr_dist.methods import registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = DOCS / "reference"
ROOMS = (
    "README.md",
    "shards/README.md",
    "slurm/README.md",
    "launch/README.md",
    "configs/README.md",
    "configs/studies/README.md",
)
CODE_ROOMS = ("ccr_dist/methods/README.md", "ccr_dist/generate/README.md")
PAGES = sorted(
    {
        *DOCS.rglob("*.md"),
        *(ROOT / name for name in (*ROOMS, *CODE_ROOMS, "ccr_dist/README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    }
)
EXAMPLES = ("mine", "mysite")  # names of files that a reader makes
TOP = ("ccr_dist/", "configs/", "docs/", "launch/", "shards/", "slurm/", "tests/")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMANDS: Any = typer.main.get_command(app)
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(text: str) -> str:
    """Markdown without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub and the site give to a page's headings."""
    titles = re.findall(r"^#+ (.+)$", prose(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")} <= names
    outside = [
        f"{name}: {url}"
        for name in names
        for url in re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', (tmp_path / "site" / name).read_text()
        )
    ]
    assert not outside, "pages must be readable without a network"


def test_generated_pages_are_those_of_the_code() -> None:
    pages = load(DOCS / "generate.py").pages()
    assert set(pages) <= set(GENERATED.glob("*.md"))
    kept = {path: path.read_text(encoding="utf-8") for path in pages}
    stale = [
        line
        for path, text in pages.items()
        for line in difflib.unified_diff(kept[path].splitlines(), text.splitlines(), path.name, n=0, lineterm="")
    ]
    assert not stale, "run `python docs/generate.py` and commit what it writes"


@page
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(prose(path.read_text(encoding="utf-8"))):
        if target.startswith(("http:", "https:")):
            continue
        name, _, anchor = target.partition("#")
        to = (path.parent / name).resolve() if name else path
        assert to.exists(), f"{target}: there is no such file"
        assert not anchor or anchor in anchors(to), f"{target}: there is no such heading"


def commands(text: str) -> Iterator[list[str]]:
    """The `ccr-dist` commands of a page, word by word, without the word `ccr-dist`."""
    lines = [
        line
        for kind, block in FENCE.findall(text)
        if kind == "bash"
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += INLINE.findall(prose(text))
    lines += [
        line.partition("command: ")[2].rstrip("}")
        for line in text.splitlines()
        if re.match(r"\s+(\w+: \{)?command: \w", line)
    ]
    for line in lines:
        line = re.sub(r"^(describe|translate|featurise|train|report) ", r"ccr-dist \1 ", line.strip())
        for part in re.split(r"&&|;|\|\s", line):
            found = re.search(r"(?:^|\s)(?:ccr-dist|-m ccr_dist) (.+)", part)
            if found and "command" not in part:
                yield shlex.split(found[1], comments=True)


@page
def test_commands_and_options_exist(path: Path) -> None:
    if path.parent == GENERATED:
        return
    for words in commands(path.read_text(encoding="utf-8")):
        command = COMMANDS
        rest = list(words)
        while rest and hasattr(command, "commands") and not rest[0].startswith("-") and not rest[0].isupper():
            if hasattr(command, "plain") and rest[0] not in command.commands:  # `plan CONFIG` is `plan run CONFIG`
                break
            assert rest[0] in command.commands, f"{' '.join(words)}: there is no {rest[0]}"
            command = command.commands[rest.pop(0)]
        command = command.commands[command.plain] if rest and hasattr(command, "plain") else command
        taken = [command, *([COMMANDS.commands[command.name]] if words[0] == "plan" and command.name != "run" else [])]
        options = [parameter for each in taken for parameter in each.params]
        known = {name for parameter in options for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
        unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]
        assert not unknown, f"{' '.join(words)}: no such option"


@page
def test_paths_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    words = INLINE.findall(prose(text)) + [
        word for kind, block in FENCE.findall(text) if kind == "bash" for word in re.sub(r"\s#.*", "", block).split()
    ]
    for word in words:
        for name in re.findall(r"(?:^|(?<=[\s=]))[\w./*-]+", word):
            if name.startswith(TOP) and not any(example in name for example in EXAMPLES):
                pattern = re.sub(r"\b[A-Z]{3,}\b(?!\.md)", "*", name).rstrip("/")
                assert any(ROOT.glob(pattern)), f"`{word}`: there is no {name}"


def test_the_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_bytes()
    assert len(text.splitlines()) <= 150 and len(text) <= 10_000


@pytest.mark.parametrize("name", (*ROOMS[1:], *CODE_ROOMS))
def test_readmes_of_rooms_point_to_the_pages(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 20 and "docs/" in text


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"([\w/-]+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_every_key_and_option_is_explained() -> None:
    for name, column in (("command-line.md", 1), ("config-keys.md", 2)):
        rows = [line for line in (GENERATED / name).read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
        bare = [row for row in rows if not re.split(r"(?<!\\)\|", row)[column + 1].strip()]
        assert rows and not bare, bare


def test_the_table_of_the_demo_is_that_of_its_file() -> None:
    with (ROOT / "configs" / "demo" / "results" / "results.csv").open(encoding="utf-8") as file:
        found = {(row["language"], row["label"]): row for row in csv.DictReader(file)}

    def cell(row: dict[str, str], metric: str) -> str:
        spread = row[f"{metric}_sd"]
        return f"{float(row[metric]):.1f}" + (f" ±{float(spread):.1f}" if spread else "")

    names = {"Spanish": "es", "Portuguese": "pt", "English": "en"}
    others = {
        "Arabic": "ar", "Chinese": "zh", "French": "fr", "German": "de", "Indonesian": "id", "Italian": "it",
        "Japanese": "ja", "Korean": "ko", "Persian": "fa", "Russian": "ru", "Turkish": "tr",
    }  # fmt: skip
    metrics = [f"{way}_R{k}" for way in ("t2v", "v2t") for k in (1, 5, 10)] + ["SumR"]
    rows = re.findall(r"^\| (\w+) \| (.+?) \| (.+) \|$", (DOCS / "results" / "demo.md").read_text(), re.MULTILINE)
    checked = asked = 0
    for language, label, cells in rows:
        if label in ("no", "yes"):
            row = found[(names | others)[language], "kernel map (ours)"]
            low, high = (round(float(row[f"SumR_{end}"])) for end in ("low", "high"))
            sum_r = f"{float(row['SumR']):.0f} ({low} to {high})"
            assert cells.split(" | ") == [cell(row, "t2v_R10"), cell(row, "v2t_R10"), sum_r]
            asked += 1
        elif language in names and label != "the English backbone":
            row = found[names[language], label if language != "English" else "zero-shot"]
            assert cells.split(" | ") == [cell(row, metric) for metric in metrics]
            checked += 1
    assert (checked, asked) == (17, 13)
    for language, cells in re.findall(
        r"^\| (\w+), text→image R@10 \| (.+) \|$", (ROOT / "README.md").read_text(), re.M
    ):
        maps = ("linear map", "kernel map (ours)", "translate-test", "kernel map + translation")
        labels = ("zero-shot", "DASD", *maps)
        shown = [cell(found[names[language], label], "t2v_R10") for label in labels]
        assert cells.split(" | ") == [*shown, cell(found["en", "zero-shot"], "t2v_R10")]
        checked += 1
    assert checked == 19


def test_tables_name_everything_there_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    engines = [
        name
        for registry in (translators, generators)
        for name in registry.names()
        if registry.get(name).__module__.startswith("ccr_dist.")  # tests register others
    ]
    expected = {
        "docs/start/install.md": extras,
        "docs/datasets.md": [path.stem for path in (ROOT / "shards").glob("*.yaml")],
        "docs/methods.md": registry.names(),
        "README.md": registry.names(),
        "docs/strategies.md": [path.stem for path in (ROOT / "launch" / "accelerate").glob("*.yaml")],
        "docs/configs.md": [path.name for path in (ROOT / "configs").iterdir() if path.is_dir()],
        "docs/jobs.md": [name for name in engines if name != "transformers-llm"],  # it is named beside `transformers`
    }
    for page_name, names in expected.items():
        cells = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| ([^|]+) \|", (ROOT / page_name).read_text(), re.M)))
        missing = [name for name in names if not {name, f"configs/{name}/"} & set(cells)]
        assert names and not missing, f"{page_name}: {missing}"
