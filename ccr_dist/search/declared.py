"""What `index` and `search` read and make, for pipelines."""

from __future__ import annotations

from pathlib import Path

from ccr_dist.declare import File, Folder, Item, Place, Run, Table, Uses
from ccr_dist.errors import ConfigError


def indexing(model: str, pictures: list[str], out: Path, column: str | None, device: str) -> Uses:
    """What `index` reads and makes."""
    reads: list[Item] = [] if "://" in model else [Run(model)]
    for word in pictures:
        if "://" in word or (Path(word) / "dataset.json").exists() or column is not None:
            reads.append(Table(word, column))
        elif not any(mark in word for mark in "*{["):
            reads.append(Place(word))
    return Uses(
        reads=tuple(reads),
        makes=(Folder(str(out)),),
        packages=("torch",),
        device=device if "cuda" in device else None,
    )


def searching(
    index: Path, queries: list[str] | None, model: str | None, file: Path | None, picture: list[Path] | None,
    opened: bool, device: str,
) -> Uses:  # fmt: skip
    """What `search` reads."""
    if opened:
        raise ConfigError("--open: nobody looks at the pictures that a step of a pipeline finds")
    asked = [*([file] if file else []), *(picture or [])]
    if not (asked or queries):
        raise ConfigError("nothing to search for: give QUERY, --file or --picture")
    return Uses(
        reads=(
            Folder(str(index)),
            *(File(str(path)) for path in asked),
            *([] if model is None or "://" in model else [Run(model)]),
        ),
        packages=("torch",),
        device=device if "cuda" in device else None,
    )
