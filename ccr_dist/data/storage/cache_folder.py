"""The cache folder of everything that recipes and remote datasets fetch."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """$CCR_DIST_CACHE/NAME, by default ~/.cache/ccr_dist/NAME. Created if it does not exist."""
    root = os.environ.get("CCR_DIST_CACHE")
    path = (Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ccr_dist") / name
    path.mkdir(parents=True, exist_ok=True)
    return path
