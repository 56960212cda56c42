"""The import table of the architecture page is held: rooms import what their row names, and modules form no circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "ccr_dist" / "README.md"
MOST_FILES = 20  # Python files in a folder; recipes and engines are lists of like things


class Import(NamedTuple):
    module: str
    line: int
    imported: str

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.imported}"


class Contract:
    """rooms: a room's name (`data.table`, `config`) and the rooms that it may import; `*`: every room."""

    def __init__(self, rooms: dict[str, set[str]], row_of: dict[str, str]) -> None:
        self.rooms = rooms
        self.row_of = row_of

    @classmethod
    def of_page(cls, text: str) -> Contract:
        """The table whose header names `may import`. Rooms of a row share what they may import; all import the first
        row.
        """
        rooms: dict[str, set[str]] = {}
        row_of: dict[str, str] = {}
        table = re.search(r"^\| rooms? \|[^\n]*may import[^\n]*\n\|[ -|]+\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
        assert table, f"{PAGE}: no table of rooms"
        for row in table.group(1).splitlines():
            cells = [cell.strip() for cell in row.strip("|").split(" | ")]
            named, allowed = re.findall(r"`([\w.]+)`", cells[0]), set(re.findall(r"`([\w.*]+)`", cells[-1]))
            for room in named:
                rooms[room] = allowed | (set(named) - {room})
                row_of[room] = named[0]
        for room, row in row_of.items():
            if row != next(iter(rooms)):
                rooms[room] |= {name for name in rooms if row_of[name] == next(iter(rooms))}
        return cls(rooms, row_of)

    def room(self, module: str) -> str | None:
        """The row that is nearest to a module's name."""
        name = module.removeprefix("ccr_dist.")
        found = [room for room in self.rooms if name == room or name.startswith(f"{room}.")]
        return max(found, key=len, default=None)

    def faults(self, imports: list[Import]) -> list[str]:
        found = []
        for each in imports:
            here, there = self.room(each.module), self.room(each.imported)
            if here is None or there is None:
                found.append(f"{each}: {each.module if here is None else each.imported} is in no row of the table")
            elif here != there and "*" not in self.rooms[here] and there not in self.rooms[here]:
                found.append(f"{each}: `{here}` may not import `{there}`")
        return found

    def upward(self) -> list[list[str]]:
        """Circles of the table itself; rows that may import everything are above all others."""
        arrows = {
            self.row_of[room]: {self.row_of[name] for name in may if name in self.rooms}
            for room, may in self.rooms.items()
        }
        return circles(arrows)


def modules(root: Path) -> dict[str, Path]:
    """Dotted names and files of a package."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> list[Import]:
    """Every import of the package by itself: at the top, inside functions, and for typing only."""
    known = modules(root)
    found = set()
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _imported(node, known):
                if name != module and name != root.name:  # the package itself holds its version
                    found.add(Import(module, node.lineno, name))  # type: ignore[attr-defined]
    return sorted(found)


def _imported(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom):
        assert not node.level, f"line {node.lineno}: imports are absolute"
        if node.module and node.module.split(".")[0] == "ccr_dist":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module
    elif isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.split(".")[0] == "ccr_dist":
                yield alias.name


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one node (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(arrows):
        if node not in order:
            visit(node)
    return found


def of_modules(found: list[Import]) -> dict[str, set[str]]:
    arrows: dict[str, set[str]] = {}
    for each in found:
        arrows.setdefault(each.module, set()).add(each.imported)
    return arrows


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract.of_page(PAGE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found() -> list[Import]:
    return imports(ROOT / "ccr_dist")


def test_rooms_import_what_the_table_allows(contract: Contract, found: list[Import]) -> None:
    assert len(found) > 1000
    assert contract.faults(found) == []


def test_the_table_has_no_arrow_back(contract: Contract) -> None:
    assert contract.upward() == []


def test_modules_form_no_circle(found: list[Import]) -> None:
    assert circles(of_modules(found)) == []


def test_every_row_of_the_table_is_a_room(contract: Contract) -> None:
    known = modules(ROOT / "ccr_dist")
    assert [room for room in contract.rooms if not {room, f"ccr_dist.{room}"} & known.keys()] == []
    allowed = {name for may in contract.rooms.values() for name in may if name != "*"}
    assert sorted(allowed - set(contract.rooms)) == []


def test_no_folder_is_a_heap() -> None:
    counts = {
        folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in (ROOT / "ccr_dist").rglob("*.py")}
    }
    lists = {"recipes", "engines"}
    assert {str(folder): n for folder, n in counts.items() if n > MOST_FILES and folder.name not in lists} == {}


ALLOWED = (
    "| room | owns | may import |\n| --- | --- | --- |\n| `base` | z | – |\n| `low` | x | – |\n| `high` | y | `low` |\n"
)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from ccr_dist.high import b", "`low` may not import `high`"),
        ("import ccr_dist.high.b", "`low` may not import `high`"),
        ("def f():\n    from ccr_dist.high.b import x", "`low` may not import `high`"),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ccr_dist.high.b import X",
            "`low` may not import `high`",
        ),
        ("from ccr_dist.nowhere import y", "ccr_dist.nowhere is in no row"),
        ("from ccr_dist.low import b", None),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, source: str, fault: str | None) -> None:
    root = tmp_path / "ccr_dist"
    for name in ("__init__.py", "low/__init__.py", "low/a.py", "low/b.py", "high/__init__.py", "high/b.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = X = 0\n")
    (root / "low/a.py").write_text(source)
    faults = Contract.of_page(ALLOWED).faults(imports(root))
    assert len(faults) == (fault is not None)
    assert fault is None or fault in faults[0]


def test_a_circle_is_found(tmp_path: Path) -> None:
    root = tmp_path / "ccr_dist"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text("from ccr_dist import b\n")
    (root / "b.py").write_text("def f():\n    from ccr_dist.c import x\n")
    (root / "c.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ccr_dist.a import x\n")
    assert circles(of_modules(imports(root))) == [["ccr_dist.a", "ccr_dist.b", "ccr_dist.c"]]
    table = ALLOWED.replace("| `low` | x | – |", "| `low` | x | `high` |")
    assert Contract.of_page(table).upward() == [["high", "low"]]


def test_a_relative_import_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "ccr_dist"
    root.mkdir()
    (root / "a.py").write_text("from . import b\n")
    with pytest.raises(AssertionError, match="imports are absolute"):
        imports(root)
