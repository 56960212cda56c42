"""The run configs that come with the project."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def is_run(path: Path) -> bool:
    """Studies, scaling studies and pipelines are no run configs; tests beside their code check them."""
    return path.parent.name not in ("pipelines", "scaling") and not (
        path.parent.name == "studies" and "title" in yaml.safe_load(path.read_text())
    )


SHIPPED = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if not path.name.startswith("_") and is_run(path))
